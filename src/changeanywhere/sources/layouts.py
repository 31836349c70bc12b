"""Folder layouts of single-date land-cover data: which image belongs to which mask, scene and split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from changeanywhere.errors import SourceError
from changeanywhere.folders import entries_of, find_folder, folders_of
from changeanywhere.sources.dates import DATES, of_one_ground, with_second
from changeanywhere.sources.entries import NAMES_OF_SPLITS, Found, Layout, make_layout
from changeanywhere.sources.files import LOSSY_SUFFIXES
from changeanywhere.sources.matching import (
    OF_MASKS,
    Places,
    Rule,
    best_rule,
    by_stem,
    match,
    match_files,
    stems_below,
    stems_in,
)
from changeanywhere.sources.official import OFFICIAL, openearthmap
from changeanywhere.sources.problems import SYSTEM, Problems
from changeanywhere.sources.provenance import check_splits, with_provenance

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "rgb", "images_png", "JPEGImages")
MASK_FOLDERS = (
    "masks", "labels", "gt", "annotations", "mask", "label", "annotation", "gts", "ground_truth", "groundtruth",
    "segmentation", "segmentations", "seg", "msk", "lbl", "masks_png", "SegmentationClass",
)  # fmt: skip
TWINS = (".png", ".tif", ".tiff")


def find_layout(root: Path, problems: Problems, masks: Path | None = None) -> Layout:
    """Recognise ``root``; ``masks`` replaces its mask folders. :class:`SourceError` saying what was looked for.

    Images without mask and masks without image go to ``problems``.
    """
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder")
    for recognise in (*OFFICIAL, _plain, _split_folders, openearthmap, _regions, _flat):
        layout = recognise(root, problems, masks)
        if layout is not None:
            if not layout.entries:
                raise SourceError(f"{root}: no image with a mask in it{passed_of(problems)}")
            layout = with_second(with_provenance(root, layout))
            check_splits(root, layout)
            return layout
    raise SourceError(
        f"{root}: no layout recognised; looked for images/ + masks/ (or labels/, gt/, annotations/), these in "
        "train/ and val/, NAME.jpg beside NAME_mask.png, REGION/images + REGION/labels (OpenEarthMap), "
        "Train|Val/Urban|Rural/images_png + masks_png (LoveDA), and FLAIR, LandCover.ai, GeoNRW, DFC2022 as downloaded"
    )


def passed_of(problems: Problems) -> str:
    """What was passed over, for the end of a message; empty for nothing."""
    lines = problems.passed_over()
    return f" (passed over: {', '.join(lines)})" if lines else ""


def name_of(root: Path) -> str:
    """What a source at ``root`` is called."""
    return f"{root.resolve().parent.name}/{root.resolve().name}"


def _folders(root: Path, masks: Path | None) -> tuple[Path, Path] | None:
    """Folders of images and masks in ``root``, by any of their usual names."""
    images, own = find_folder(root, IMAGE_FOLDERS), find_folder(root, MASK_FOLDERS)
    if images is None:  # two dates, the first with masks; in sets of pairs labels are called otherwise
        images, own = find_folder(root, [first for first, _ in DATES]), find_folder(root, MASK_FOLDERS[:1])
    chosen = masks or own
    return None if images is None or chosen is None else (images, chosen)


def _plain(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    """``images/`` + ``masks/``; where both have ``train/``, ``val/`` and so on inside, these are the splits."""
    folders = _folders(root, masks)
    if folders is None:
        return None
    found, rule = match(Places(*folders, required=masks is None), problems)
    tops = {each.name.partition("/")[0].lower() for each in found}
    if tops <= set(NAMES_OF_SPLITS) and all("/" in each.name for each in found):
        found = [replace(each, split=NAMES_OF_SPLITS[each.name.partition("/")[0].lower()]) for each in found]
    return make_layout(name_of(root), of_one_ground(found), _described(root, folders, rule))


def _described(root: Path, folders: tuple[Path, Path], rule: Rule) -> str:
    names = [f"{folder.relative_to(root)}/" if root in folder.parents else str(folder) for folder in folders]
    return f"{' with '.join(names)}, {rule.described()}"


def _split_folders(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    """``train/images`` + ``train/masks``, ``val/images`` + ``val/masks``: the folder says the split."""
    tops = [top for top in folders_of(root) if top.name.lower() in NAMES_OF_SPLITS]
    return _of_parts(root, tops, problems, masks, splits=True)


def _regions(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    """``REGION/images`` + ``REGION/labels`` with classes of the user's own."""
    return _of_parts(root, folders_of(root), problems, masks, splits=False)


def _of_parts(root: Path, tops: list[Path], problems: Problems, masks: Path | None, splits: bool) -> Layout | None:
    parts = [(top, folders) for top in tops if (folders := _folders(top, _masks_of(top, masks))) is not None]
    if not parts:
        return None
    others = tuple(images for _, (images, own) in parts if own == masks)
    found: list[Found] = []
    rules = []
    for top, folders in parts:
        shared = others if folders[1] == masks else ()
        matched, rule = match(Places(*folders, required=masks is None, others=shared), problems)
        rules.append(rule)
        split = NAMES_OF_SPLITS[top.name.lower()] if splits else None
        found += [replace(each, key=f"{top.name}/{each.name}", split=split) for each in matched]
    if masks is not None:
        _refuse_shared(found, masks)
    for top in tops:
        if top not in dict(parts) and (images := find_folder(top, IMAGE_FOLDERS)):
            problems.pass_over("images without a mask", *stems_below(images, problems).values())
    if len({each.name for each in found}) == len(found):
        found = [replace(each, key=each.name) for each in found]
    names = ", ".join(dict.fromkeys(f"{'|'.join(f.name for f in folders)}/" for _, folders in parts))
    kind = "|".join(top.name for top, _ in parts) if splits else f"{len(parts)} folders"
    return make_layout(name_of(root), of_one_ground(found), f"{kind} with {names} in each, {rules[0].described()}")


def _masks_of(top: Path, masks: Path | None) -> Path | None:
    """Of ``masks`` given for all parts, the folder of ``top``, where there is one: by its name, with or without the
    usual folder of masks in it."""
    own = None if masks is None else masks / top.name
    if own is None or not own.is_dir():
        return masks
    return find_folder(own, MASK_FOLDERS) or own


def _refuse_shared(found: list[Found], masks: Path) -> None:
    """:class:`SourceError` where one mask would be that of two images."""
    image_of: dict[Path, Path] = {}
    for each in found:
        if each.mask is not None and image_of.setdefault(each.mask, each.image) != each.image:
            raise SourceError(
                f"{each.mask}: would be the mask of {image_of[each.mask]} and of {each.image}; put those of each part "
                f"into its own folder of {masks}, as {masks / each.folder.parent.name}"
            )


def _flat(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    """One folder: ``NAME.jpg`` beside ``NAME_mask.png``, or ``NAME.jpg`` beside ``NAME.png``."""
    files = stems_in(root, Problems(skip=True))
    if masks is not None:
        places = Places(root, masks, required=False)
        found, rule = match_files(stems_in(root, problems), stems_below(masks, problems), places, problems)
    elif (divided := _divided(files)) is not None:
        stems_in(root, problems)  # once more, for what is wrong there
        found, rule = match_files(*divided, Places(root, root), problems)
    elif _has_twins(own := _files_of(root, passed := set[Path]())):
        problems.pass_over(SYSTEM, *passed)
        images = by_stem([file for file in own if _is_jpeg(file)], root, problems)
        others = by_stem([file for file in own if not _is_jpeg(file)], root, problems)
        found, rule = match_files(images, others, Places(root, root), problems, Rule())
        return make_layout(name_of(root), found, "one folder, NAME.jpg with NAME.png")
    else:
        return None
    return make_layout(name_of(root), found, f"one folder, {rule.described()}")


def _divided(files: Mapping[str, Path]) -> tuple[dict[str, Path], dict[str, Path]] | None:
    """Images and masks, by that ending or beginning of masks under which most images have one; None without any."""
    best, most = None, 0
    for affix in OF_MASKS:
        masks = {stem: file for stem, file in files.items() if affix.core(stem) is not None}
        if not masks:
            continue
        images = {stem: file for stem, file in files.items() if stem not in masks}
        rule = best_rule(images, masks)
        cores = {rule.of_image.core(stem) for stem in images} - {None}
        count = len(cores & {rule.of_mask.core(stem) for stem in masks})
        if count > most:
            best, most = (images, masks), count
    return best


def _files_of(root: Path, passed: set[Path]) -> list[Path]:
    return [path for path in entries_of(root, passed) if path.is_file()]


def _has_twins(files: list[Path]) -> bool:
    """Whether a JPEG lies beside a PNG or TIFF of its name, in any case of the suffixes' letters."""
    masks = {file.stem for file in files if file.suffix.lower() in TWINS}
    return any(_is_jpeg(file) and file.stem in masks for file in files)


def _is_jpeg(file: Path) -> bool:
    return file.suffix.lower() in LOSSY_SUFFIXES
