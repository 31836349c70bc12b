"""Images of one ground at a second date, without masks: ``images_t2/`` beside ``images/``, ``B/`` beside ``A/``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from changeanywhere.folders import composed, find_folder
from changeanywhere.sources.entries import Entry, Found, Layout
from changeanywhere.sources.matching import stems_below
from changeanywhere.sources.problems import Problems

DATES = (
    ("A", "B"), ("im1", "im2"), ("t1", "t2"), ("time1", "time2"), ("Image1", "Image2"), ("image1", "image2"),
    ("before", "after"),
)  # fmt: skip
"""Folders of two dates; of the same name in both is the same ground."""
PARTNER = {one.lower(): two.lower() for pair in DATES for one, two in (pair, pair[::-1])}
"""Either of them → the other, in small letters."""

NO_DATES, SECOND_IMAGES, SECOND_MASKS = "none", "images", "masks"
"""What of a second date every tile of a source must have: nothing, an image, that and its mask."""


def names_of_second(folder: Path) -> tuple[str, ...]:
    """What the folder of the second date is called, beside the folder of the first."""
    partner = (second for first, second in DATES if first.lower() == folder.name.lower())
    return (f"{folder.name}_t2", *partner)


def expected_second(image: Path, root: Path) -> str:
    """In words, where the second date of ``image``, a file somewhere in ``root``, is looked for: beside the innermost
    folder that has another date beside it, or else could have; either of two dates is the second of the other."""
    inside = image.relative_to(root) if image.is_relative_to(root) else Path(image.parent.name, image.name)
    folders = [image.parents[number] for number in range(len(inside.parts) - 1)] or [image.parent]
    names = {folder: (*_twin_names(folder), f"{folder.name}_t2") for folder in folders}
    there = ((folder, found) for folder in folders if (found := find_folder(folder.parent, names[folder])))
    dated = ((folder, Path(names[folder][0])) for folder in folders if len(names[folder]) > 1)
    folder, second = next(there, None) or next(dated, (image.parent, Path(names[image.parent][0])))
    beside = "it" if folder == image.parent else f"{folder.name}/"
    return f"{composed(image.relative_to(folder).with_suffix('').as_posix())} in {second.name}/ beside {beside}"


def _twin_names(folder: Path) -> list[str]:
    """What the folder of the other date is called, spelt as in :data:`DATES`; none beside one of no date."""
    both = ((one, two) for pair in DATES for one, two in (pair, pair[::-1]))
    exact = [(one, two) for one, two in both if one.lower() == folder.name.lower()]
    return [two for _, two in sorted(exact, key=lambda pair: pair[0] != folder.name)]


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
    return {stem: own[twin] for stem, (twin, _) in twins_of(own).items() if twin is not None}


def of_one_date(layout: Layout) -> list[Path]:
    """Images in a folder of a date whose other date, beside it, does not have them."""
    lacking = []
    for folder in dict.fromkeys(layout.folders):
        pairs = zip(layout.entries, layout.folders, strict=True)
        own = {_stem_of(entry, each): entry.image for entry, each in pairs if each == folder}
        lacking += [own[stem] for stem, (twin, _) in twins_of(own).items() if twin is None]
    return lacking


def twins_of(stems: Iterable[str]) -> dict[str, tuple[str | None, str]]:
    """Of every path without suffix that lies in a folder of a date, where the same folder of the other date is there,
    too, at any depth: the path of the same ground at the other date (None: there is none), and that ground's name,
    which is the path without the date."""
    paths = {_folded(parts): "/".join(parts) for stem in stems if len(parts := stem.split("/")) > 1}
    folders = {path[:end] for path in paths for end in range(1, len(path))}
    found: dict[str, tuple[str | None, str]] = {}
    for path, stem in paths.items():
        for place, name in enumerate(path[:-1]):
            other = (*path[:place], PARTNER.get(name, ""))
            if other in folders:
                parts = stem.split("/")
                found[stem] = paths.get((*other, *path[place + 1 :])), "/".join(parts[:place] + parts[place + 1 :])
                break
    return found


def of_one_ground(found: Sequence[Found]) -> list[Found]:
    """``found``, where images of one ground at two dates are one scene (:func:`twins_of`), unless theirs is known."""
    grounds = {name: ground for name, (_, ground) in twins_of(each.key or each.name for each in found).items()}
    return [replace(each, scene=each.scene or grounds.get(each.key or each.name, "")) for each in found]


def _folded(parts: Sequence[str]) -> tuple[str, ...]:
    """Folders in small letters, as they are looked for in any case; the file's name as it is."""
    return *(part.lower() for part in parts[:-1]), parts[-1]


def _stem_of(entry: Entry, folder: Path) -> str:
    return composed(entry.image.relative_to(folder).with_suffix("").as_posix())
