"""``provenance.csv``: what its rows say of tiles, in every layout."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

from changeanywhere.errors import SourceError
from changeanywhere.folders import composed, read_text
from changeanywhere.sources.dates import twins_of
from changeanywhere.sources.entries import SPLITS, Entry, Layout
from changeanywhere.sources.files import SUFFIXES

METRES = re.compile(r"~?\s*(\d+\.?\d*|\.\d+)\s*(m|metres?|meters?)?\s*(\(.*\))?")
"""0.5, "0.5 m", "~0.7 (estimated)"."""


def with_provenance(root: Path, layout: Layout) -> Layout:
    """``layout`` with what the rows of ``provenance.csv`` say of its entries, where there is such a file.

    An entry's row is that of its path below the folder, else of its file's stem. :class:`SourceError` if there are rows
    and none of them is any entry's: scenes and licences would be lost without a word.
    """
    read = _read(root)
    if read is None:
        return layout
    file, provenance = read
    filled, matched = [], 0
    folders = zip(layout.entries, layout.folders, strict=True)
    paths = [composed(entry.image.relative_to(images).with_suffix("").as_posix()) for entry, images in folders]
    rows = [provenance.get(path) or provenance.get(composed(Path(path).name)) for path in paths]
    # One ground at two dates is one scene, though the rows name that of one date alone.
    grounds = {path: ground for path, (_, ground) in twins_of(paths).items()}
    named = {grounds.get(path): row["scene"] for path, row in zip(paths, rows, strict=True) if row and row.get("scene")}
    for entry, path, row in zip(layout.entries, paths, rows, strict=True):
        matched += row is not None
        scene = named.get(grounds[path]) if path in grounds else None
        filled.append(_with_row(replace(entry, scene=scene or entry.scene), row or {}, file))
    if provenance and filled and not matched:
        example = filled[0].image.relative_to(layout.folders[0]).with_suffix("").as_posix()
        raise SourceError(
            f"{file}: no row is about a tile of {root}; 'patch' is an image's path below its folder, as {example}, "
            f"found {next(iter(provenance))}"
        )
    return replace(layout, entries=tuple(filled))


def _read(root: Path) -> tuple[Path, dict[str, dict[str, str]]] | None:
    """``provenance.csv`` in ``root`` or its parent, and its rows by column ``patch`` without the suffix of an image."""
    for folder in (root, root.resolve().parent):
        file = folder / "provenance.csv"
        if not file.is_file():
            continue
        try:
            rows = [row for row in csv.reader(io.StringIO(read_text(file)), strict=True) if any(map(str.strip, row))]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise SourceError(f"{file}: not readable as UTF-8 CSV ({' '.join(str(error).split())})") from error
        return file, _by_patch(rows, file)
    return None


def _by_patch(rows: list[list[str]], file: Path) -> dict[str, dict[str, str]]:
    if not rows:
        return {}
    names = [name.strip() for name in rows[0]]
    if "patch" not in names:
        mend = "; columns are divided by commas" if ";" in rows[0][0] or "\t" in rows[0][0] else ""
        raise SourceError(f"{file}: no column 'patch'; found {', '.join(names)[:100]}{mend}")
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise SourceError(f"{file}: two columns are called {twice!r}; keep one")
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows[1:], 2):
        cells = dict(zip(names, (cell.strip() for cell in row), strict=False))
        patch = cells.get("patch", "")
        if len(row) > len(names):
            raise SourceError(
                f"{file}: row {number} has {len(row)} cells, the first row has {len(names)}; put quotes around commas"
            )
        if not patch:
            raise SourceError(f"{file}: row {number} names no patch; give one, or delete the row")
        found[composed(patch.replace("\\", "/"))] = cells
    # Whole names first: an image s1.tif.png is called s1.tif.
    bare = {_without_suffix(name): cells for name, cells in found.items()}
    return bare | found


def _without_suffix(patch: str) -> str:
    suffix = Path(patch).suffix
    return patch[: -len(suffix)] if suffix.lower() in SUFFIXES else patch


def _with_row(entry: Entry, row: dict[str, str], file: Path) -> Entry:
    split = (row.get("split") or "").lower() or entry.split
    if split not in (None, *SPLITS):
        raise SourceError(f"{file}: split is {row['split']!r}; allowed: {', '.join(SPLITS)}")
    gsd = _metres(row.get("gsd_m") or "", file)
    return replace(
        entry,
        scene=row.get("scene") or entry.scene,
        split=split,
        licence=row.get("licence") or entry.licence,
        gsd_m=entry.gsd_m if gsd is None else gsd,
        attribution=row.get("attribution") or entry.attribution,
        labelled_by=row.get("labelled_by") or entry.labelled_by,
    )


def _metres(text: str, file: Path) -> float | None:
    """ "~0.7 (estimated, unpublished)" → 0.7; None if empty."""
    if not text:
        return None
    found = METRES.fullmatch(text)
    if not found or not float(found.group(1)):
        raise SourceError(f"{file}: gsd_m is {text!r}; allowed: metres above 0, as 0.5")
    return float(found.group(1))


def check_splits(root: Path, layout: Layout) -> None:
    """:class:`SourceError` if a scene is stated to be in two splits."""
    stated: dict[str, str] = {}
    for entry in layout.entries:
        if entry.split is not None and stated.setdefault(entry.scene, entry.split) != entry.split:
            raise SourceError(
                f"{root}: the scene {entry.scene} is stated to be in {stated[entry.scene]} and in {entry.split}; "
                "a scene is never divided"
            )
