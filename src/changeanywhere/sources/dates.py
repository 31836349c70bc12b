"""Images of one ground at a second date, without masks: ``images_t2/`` beside ``images/``, ``B/`` beside ``A/``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from changeanywhere.folders import composed, find_folder
from changeanywhere.sources.entries import Entry, Layout
from changeanywhere.sources.matching import stems_below
from changeanywhere.sources.problems import Problems

DATES = (
    ("A", "B"), ("im1", "im2"), ("t1", "t2"), ("time1", "time2"), ("Image1", "Image2"), ("image1", "image2"),
    ("before", "after"),
)  # fmt: skip
"""Folders of two dates; of the same name in both is the same ground."""


def names_of_second(folder: Path) -> tuple[str, ...]:
    """What the folder of the second date is called, beside the folder of the first."""
    partner = (second for first, second in DATES if first.lower() == folder.name.lower())
    return (f"{folder.name}_t2", *partner)


def with_second(layout: Layout) -> Layout:
    """Each entry with its image of the second date, as far as there are any: of the same name, whatever its suffix.

    ``images_t2/NAME`` beside ``images/NAME``, ``B/NAME`` beside ``A/NAME``; inside one folder of images (what ``label``
    makes of two dates) ``B/NAME`` is the second date of ``A/NAME`` and the other way round.
    """
    found: dict[Path, dict[str, Path]] = {}
    for folder in dict.fromkeys(layout.folders):
        second = find_folder(folder.parent, names_of_second(folder))
        found[folder] = stems_below(second, Problems(skip=True)) if second is not None else _inside(layout, folder)
    entries = [
        replace(entry, second=found[folder].get(_stem_of(entry, folder)))
        for entry, folder in zip(layout.entries, layout.folders, strict=True)
    ]
    return replace(layout, entries=tuple(entries))


def _inside(layout: Layout, folder: Path) -> dict[str, Path]:
    """Of the images of two dates in ``folder``: path of one → file of the other."""
    pairs = zip(layout.entries, layout.folders, strict=True)
    own = {_stem_of(entry, each): entry.image for entry, each in pairs if each == folder}
    partner = {one: two for pair in DATES for one, two in (pair, pair[::-1])}
    other = {stem: f"{partner.get(stem.partition('/')[0], '')}/{stem.partition('/')[2]}" for stem in own}
    return {stem: own[twin] for stem, twin in other.items() if twin in own}


def _stem_of(entry: Entry, folder: Path) -> str:
    return composed(entry.image.relative_to(folder).with_suffix("").as_posix())
