"""Folders of two dates whose labels are not there, or are not asked for: images alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.buckets import local_copy
from changeanywhere.errors import EmptySplitError, PairsError
from changeanywhere.pairs.hub import unpacked
from changeanywhere.pairs.layouts import IMAGE_SUFFIXES, LAYOUTS, SPLIT_FOLDERS, Layout, OneImage, layout_of
from changeanywhere.pairs.metadata import metadata_of
from changeanywhere.pairs.reader import PairDataset, load_pairs
from changeanywhere.rasters.facts import Valid, raising
from changeanywhere.rasters.gate import read_whole
from changeanywhere.sample import ChangePair


def open_images(folder: str | Path, split: str | None = None, max_megapixels: float | None = None) -> PairDataset:
    """As :func:`.reader.load_pairs`, of pairs without labels, too: folders that have none, and of OSCD, HRSCD and
    synthetic sets those that are not labelled. What it gives has files (``images_of``); not every pair has a label.
    :class:`PairsError` for a folder without two dates, and where the second date lacks a file."""
    root = unpacked(local_copy(folder))
    layout = layout_of(root) or _dates_in(root)
    if layout is not None:
        return _of(root, layout, split, max_megapixels)
    inside = {name: place for name in SPLIT_FOLDERS for place in _places(root, name)}
    if inside:
        if split not in inside:
            raise PairsError(f"{root}: has the splits {', '.join(inside)} as folders; say which (--split)")
        return open_images(inside[split], None, max_megapixels)
    return load_pairs(root, split, max_megapixels)  # which says what is wrong


def _places(root: Path, split: str) -> list[Path]:
    places = (root / name for name in SPLIT_FOLDERS[split])
    return [place for place in places if place.is_dir() and (_dates_in(place) or layout_of(place))][:1]


def _dates_in(root: Path) -> Layout | None:
    """The layout of which both dates are there; not that of one image, whose label tells it from any before/, after/"""
    some = (layout for layout in LAYOUTS if type(layout) is not OneImage)
    return next((layout for layout in some if all((root / name).is_dir() for name in layout.images)), None)


def _of(root: Path, layout: Layout, split: str | None, max_megapixels: float | None) -> PairDataset:
    names = sorted(layout.files(root, layout.images[0])) if split is None else layout.split(root, split)
    if not names and split is not None:
        raise EmptySplitError(f"{root}: split {split!r} is empty")
    if not names:
        raise PairsError(f"{root / layout.images[0]}: holds no image; allowed: {', '.join(IMAGE_SUFFIXES)}")
    pairs = PairDataset(root, names, metadata_of(root, layout), layout, (), max_megapixels)
    for number in range(len(pairs)):
        pairs.images_of(number)
    return pairs


class UnlabelledPairs:
    """Pairs of one set or of several, one after the other, without labels: no file of a label is opened."""

    def __init__(self, sets: Sequence[PairDataset]) -> None:
        self.sets = tuple(sets)
        self._ends = list(accumulate(map(len, self.sets)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place_of(self, number: int) -> tuple[PairDataset, int]:
        """The set that a pair lies in, and its number there."""
        part = next(part for part, end in enumerate(self._ends) if number < end)
        return self.sets[part], number - (self._ends[part] - len(self.sets[part]))

    def __getitem__(self, number: int) -> ChangePair:
        """Both images; nothing is said to have changed, ``ignored`` is where one of the dates shows nothing."""
        pairs, inside = self.place_of(number)
        files = pairs.images_of(inside)
        first, second = (image_of(file, pairs.max_megapixels) for file in files)
        if first[0].shape[:2] != second[0].shape[:2]:
            raise PairsError(f"{files[1]}: {second[0].shape[:2]} px; date 1 of the pair has {first[0].shape[:2]}")
        hidden = np.zeros(first[0].shape[:2], bool)
        for _, valid in (first, second):
            hidden |= False if valid is None else ~valid
        nothing, record = np.zeros_like(hidden), pairs.record_of(inside)
        seen = first[1], second[1]
        return ChangePair(
            pairs.key_of(inside), first[0], second[0], nothing, metadata=record, ignored=hidden, seen=seen
        )

    def content_hash(self) -> str:
        """Of names and sizes of images in their order: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for number in range(len(self)):
            pairs, inside = self.place_of(number)
            sizes = [file.stat().st_size for file in pairs.images_of(inside)]
            digest.update(repr((pairs.names[inside], sizes)).encode())
        return digest.hexdigest()[:16]


def image_of(file: Path, max_megapixels: float | None) -> tuple[npt.NDArray[Any], Valid | None]:
    """An image as stored, ``[H, W]`` or ``[H, W, C]``, and where it is valid, bool ``[H, W]`` (None: everywhere)."""
    with raising(PairsError):
        image, valid, _ = read_whole(file, max_megapixels)
    return image, valid
