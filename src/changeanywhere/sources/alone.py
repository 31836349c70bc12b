"""Images of which no mask is asked for: what of a folder is one, and which of them show one ground."""

from __future__ import annotations

from pathlib import Path

from changeanywhere.errors import SourceError
from changeanywhere.folders import find_folder
from changeanywhere.sources.dates import of_one_ground
from changeanywhere.sources.entries import Found, Layout, make_layout
from changeanywhere.sources.layouts import IMAGE_FOLDERS, MASK_FOLDERS, name_of, passed_of
from changeanywhere.sources.matching import OF_MASKS, stems_below
from changeanywhere.sources.problems import Problems
from changeanywhere.sources.provenance import with_provenance

LABELS = "masks and labels, which are not asked for"
LABEL_FOLDERS = frozenset(name.lower() for name in MASK_FOLDERS) | {
    "label1", "label2", "ignore", "out", "cm", "cd_mask", "labels_change", "change_label", "change label",
    "t1_masks", "t2_masks",
}  # fmt: skip
"""Folders of masks, and of labels in sets of two dates, in small letters."""


def images_alone(root: Path, problems: Problems) -> Layout:
    """Every image below ``root/images`` (or the like), else below ``root``; masks and labels among them, by the names
    of their folders or beside an image of theirs (``NAME_mask``), are passed over. Of one name in folders of two dates
    (:data:`.dates.DATES`) they are one scene. The rows of ``provenance.csv`` count. :class:`SourceError` without any.
    """
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder")
    folder = find_folder(root, IMAGE_FOLDERS) or root
    stems = stems_below(folder, problems)
    labels = {name for name in stems if _in_labels(name) or _beside_image(name, stems)}
    problems.pass_over(LABELS, *(stems[name] for name in labels))
    images = {name: image for name, image in stems.items() if name not in labels}
    if not images:
        raise SourceError(f"{root}: no image in it{passed_of(problems)}")
    found = of_one_ground([Found(name, folder, image, None) for name, image in images.items()])
    return with_provenance(root, make_layout(name_of(root), found, f"images of {folder.name}/, no masks"))


def _in_labels(name: str) -> bool:
    return any(part.lower() in LABEL_FOLDERS for part in name.split("/")[:-1])


def _beside_image(name: str, stems: dict[str, Path]) -> bool:
    return any(affix.core(name) in stems for affix in OF_MASKS)
