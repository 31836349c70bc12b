"""Folder layouts of single-date land-cover data: which image belongs to which mask, scene and split."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from changeanywhere.errors import SourceError
from changeanywhere.legend import LEGEND_FILES
from changeanywhere.sources.files import LOSSY_SUFFIXES, SUFFIXES
from changeanywhere.sources.problems import Problems

MASK_FOLDERS = ("masks", "labels")
SPLITS = ("train", "val", "test")
SAFE = re.compile(r"[^A-Za-z0-9._-]+")
METRES = re.compile(r"~?\s*(\d+\.?\d*|\.\d+)\s*(m|metres?|meters?)?\s*(\(.*\))?")
"""0.5, "0.5 m", "~0.7 (estimated)"."""


@dataclass(frozen=True)
class Entry:
    """An image file, its mask file and what the layout says about them."""

    stem: str
    image: Path
    mask: Path
    scene: str
    split: str | None = None
    licence: str = "unknown"
    gsd_m: float | None = None
    attribution: str = ""


@dataclass(frozen=True)
class Layout:
    """Entries of a recognised layout; ``legend`` names the legend that comes with it, if any."""

    name: str
    entries: tuple[Entry, ...]
    legend: str | None = None


def find_layout(root: Path, problems: Problems, masks: Path | None = None) -> Layout:
    """Recognise ``root``; ``masks`` replaces its mask folders. :class:`SourceError` saying what was looked for.

    Images without mask and masks without image go to ``problems``.
    """
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder")
    for recognise in (_loveda, _plain, _openearthmap):  # images/ + masks/ before what may lie beside them
        layout = recognise(root, problems, masks)
        if layout is not None:
            if not layout.entries:
                raise SourceError(f"{root}: no image with a mask in it")
            _check_splits(root, layout.entries)
            return layout
    raise SourceError(
        f"{root}: no layout recognised; looked for images/ + masks/ (or labels/), REGION/images + REGION/labels "
        "(OpenEarthMap), Train|Val/Urban|Rural/images_png + masks_png (LoveDA)"
    )


def _plain(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    mask_folder = masks or next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)
    if not (root / "images").is_dir() or mask_folder is None:
        return None
    matched = _match(root / "images", mask_folder, problems, required=masks is None)
    entries = _with_provenance(
        root, [(Entry(stem, image, mask, stem), root / "images") for stem, image, mask in matched]
    )
    name = f"{root.resolve().parent.name}/{root.resolve().name}"
    return Layout(name, tuple(entries))


def _openearthmap(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    """``REGION/images/*.tif``, ``REGION/labels/*.tif``; ``train.txt`` and ``val.txt`` name the files of each split.

    Its test images come without labels and are left out.
    """
    regions = sorted(p.parent for p in root.glob("*/images") if (p.parent / "labels").is_dir())
    if not regions:
        return None
    sharing = [region / "images" for region in regions] if masks else []
    matched = [
        (region / "images", *match)
        for region in regions
        for match in _match(region / "images", masks or region / "labels", problems, required=False, others=sharing)
    ]
    if any((root / name).is_file() for name in LEGEND_FILES):  # the same folders, but classes of the user's own
        own = [(Entry(stem, image, mask, stem), folder) for folder, stem, image, mask in matched]
        return Layout(f"{root.resolve().parent.name}/{root.resolve().name}", _with_provenance(root, own))
    splits: dict[str, str] = {}
    for split in SPLITS:
        listing = root / f"{split}.txt"
        if listing.is_file():
            splits |= {
                Path(line.strip()).stem: split
                for line in listing.read_text(encoding="utf-8-sig").splitlines()
                if line.strip()
            }
    entries = [
        (Entry(stem, image, mask, stem, splits.get(stem), "CC-BY-NC-SA-4.0"), folder)
        for folder, stem, image, mask in matched
    ]
    return Layout("openearthmap", _with_provenance(root, entries), "openearthmap")


def _loveda(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    """``Train|Val/Urban|Rural/images_png + masks_png``, or one of Train and Val itself. Test has no masks."""
    tops = [root] if root.name in ("Train", "Val") else [root / "Train", root / "Val"]
    areas = [top / area for top in tops for area in ("Urban", "Rural") if (top / area / "images_png").is_dir()]
    if not areas:
        return None
    entries = []
    for area in areas:
        for stem, image, mask in _match(
            area / "images_png",
            masks or area / "masks_png",
            problems,
            required=masks is None,
            others=[other / "images_png" for other in areas] if masks else [],
        ):
            key = f"{area.parent.name}_{area.name}_{stem}".lower()
            entry = Entry(key, image, mask, key, area.parent.name.lower(), "CC-BY-NC-SA-4.0")
            entries.append((entry, area / "images_png"))
    return Layout("loveda", _with_provenance(root, entries), "loveda")


def _match(
    images: Path, masks: Path, problems: Problems, required: bool, others: Sequence[Path] = ()
) -> list[tuple[str, Path, Path]]:
    """(stem, image, mask) by equal stem, subfolders included.

    ``required``: an image without mask is a problem. A mask without image always is, unless its image lies in one of
    the folders ``others``, which share ``masks``.
    """
    if not masks.is_dir():
        raise SourceError(f"{masks}: no such folder of masks")
    image_files, mask_files = _by_stem(images, problems), _by_stem(masks, problems)
    for stem, file in image_files.items():
        if required and stem not in mask_files:
            problems.add(SourceError(f"{file}: has no mask; expected {masks / stem}.png or .tif"))
    known = set(image_files).union(*(_by_stem(folder, problems) for folder in others))
    for stem, file in mask_files.items():
        if stem not in known:
            problems.add(SourceError(f"{file}: has no image; expected {images / stem}.png, .jpg or .tif"))
        elif file.suffix.lower() in LOSSY_SUFFIXES:
            problems.add(SourceError(f"{file}: JPEG changes the classes of a mask; allowed: .png and .tif"))
    return [
        (SAFE.sub("_", s.replace("/", "__")), image_files[s], mask_files[s])
        for s in sorted(mask_files.keys() & image_files)
        if mask_files[s].suffix.lower() not in LOSSY_SUFFIXES
    ]


def _by_stem(folder: Path, problems: Problems) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
            continue
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in files:
            problems.add(SourceError(f"{file}: same name as {files[stem].name} in the same folder; keep one"))
            continue
        files[stem] = file
    return files


def _read_provenance(root: Path) -> tuple[Path, dict[str, dict[str, str]]] | None:
    """``provenance.csv`` in ``root`` or its parent, and its rows by column ``patch`` without the suffix of an image."""
    for folder in (root, root.resolve().parent):
        file = folder / "provenance.csv"
        if not file.is_file():
            continue
        try:
            with file.open(newline="", encoding="utf-8-sig") as lines:
                rows = list(csv.DictReader(lines))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise SourceError(f"{file}: not readable as UTF-8 CSV ({error})") from error
        if rows and "patch" not in rows[0]:
            raise SourceError(f"{file}: no column 'patch'; found {', '.join(rows[0])}")
        return file, {_without_suffix(row["patch"]): row for row in rows}
    return None


def _without_suffix(patch: str) -> str:
    suffix = Path(patch).suffix
    return patch[: -len(suffix)] if suffix.lower() in SUFFIXES else patch


def _with_provenance(root: Path, entries: Sequence[tuple[Entry, Path]]) -> tuple[Entry, ...]:
    """Entries, each with its folder of images, with what their rows of ``provenance.csv`` say, where there is one.

    An entry's row is that of its path below the folder, else of its file's stem. :class:`SourceError` if there are rows
    and none of them is any entry's: scenes and licences would be lost without a word.
    """
    read = _read_provenance(root)
    if read is None:
        return tuple(entry for entry, _ in entries)
    file, provenance = read
    filled, matched = [], 0
    for entry, images in entries:
        path = entry.image.relative_to(images).with_suffix("").as_posix()
        row = provenance.get(path) or provenance.get(entry.image.stem)
        matched += row is not None
        filled.append(_with_row(entry, row or {}, file))
    if provenance and filled and not matched:
        raise SourceError(
            f"{file}: no row is about a tile of {root}; 'patch' is an image's path below its folder, as "
            f"{filled[0].image.relative_to(entries[0][1]).with_suffix('').as_posix()}, found {next(iter(provenance))}"
        )
    return tuple(filled)


def _with_row(entry: Entry, row: dict[str, str], file: Path) -> Entry:
    split = (row.get("split") or "").strip().lower() or entry.split
    if split not in (None, *SPLITS):
        raise SourceError(f"{file}: split is {row['split']!r}; allowed: {', '.join(SPLITS)}")
    return replace(
        entry,
        scene=row.get("scene") or entry.scene,
        split=split,
        licence=row.get("licence") or entry.licence,
        gsd_m=_metres(row.get("gsd_m") or "", file),
        attribution=row.get("attribution") or entry.attribution,
    )


def _metres(text: str, file: Path) -> float | None:
    """ "~0.7 (estimated, unpublished)" → 0.7; None if empty."""
    if not text.strip():
        return None
    found = METRES.fullmatch(text.strip())
    if not found or not float(found.group(1)):
        raise SourceError(f"{file}: gsd_m is {text!r}; allowed: metres above 0, as 0.5")
    return float(found.group(1))


def _check_splits(root: Path, entries: Sequence[Entry]) -> None:
    """:class:`SourceError` if a scene is stated to be in two splits."""
    stated: dict[str, str] = {}
    for entry in entries:
        if entry.split is not None and stated.setdefault(entry.scene, entry.split) != entry.split:
            raise SourceError(
                f"{root}: the scene {entry.scene} is stated to be in {stated[entry.scene]} and in {entry.split}; "
                "a scene is never divided"
            )
