"""What a layout is made of: images with their masks, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from changeanywhere.folders import safe_keys

SPLITS = ("train", "val", "test")
NAMES_OF_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Entry:
    """An image file, its mask file and what the layout says about them."""

    stem: str
    image: Path
    mask: Path | None
    """None: all of its ground is unknown."""
    scene: str
    split: str | None = None
    licence: str = "unknown"
    gsd_m: float | None = None
    attribution: str = ""
    labelled_by: str = ""
    """The machine that made the mask; "" for people."""
    second: Path | None = None
    """The same ground at another date, without a mask."""


@dataclass(frozen=True)
class Found:
    """An image and its mask as a layout finds them, before they have a key."""

    name: str
    """Path of the image below ``folder``, without its suffix."""
    folder: Path
    image: Path
    mask: Path | None
    key: str = ""
    """What the key is made of, where that is not ``name``."""
    scene: str = ""
    split: str | None = None


@dataclass(frozen=True)
class Layout:
    """Entries of a recognised layout; ``legend`` names the legend that comes with it, if any."""

    name: str
    entries: tuple[Entry, ...]
    legend: str | None = None
    described: str = ""
    """Which folders and names were taken for images and masks, for ``check``."""
    folders: tuple[Path, ...] = field(default=(), compare=False)
    """Folder of each entry's image: ``provenance.csv`` counts paths from there."""


def make_layout(
    name: str,
    found: Sequence[Found],
    described: str,
    legend: str | None = None,
    licence: str = "unknown",
    gsd_m: float | None = None,
) -> Layout:
    """Layout of ``found``: each gets a key of its own; its scene is its key unless the layout knows better.

    Files of one name in several folders keep it as their key, and are refused later: nobody knows whether they are one.
    """
    keys = safe_keys(dict.fromkeys(each.key or each.name for each in found))
    entries = []
    for each in found:
        key = keys[each.key or each.name]
        entry = Entry(key, each.image, each.mask, each.scene or key, each.split, licence)
        entries.append(entry if gsd_m is None else replace(entry, gsd_m=gsd_m))
    return Layout(name, tuple(entries), legend, described, tuple(each.folder for each in found))
