"""Folders of two dates whose labels are not there, or are not asked for: images alone."""

from __future__ import annotations

from pathlib import Path

from changeanywhere.buckets import local_copy
from changeanywhere.errors import PairsError
from changeanywhere.pairs.hub import unpacked
from changeanywhere.pairs.layouts import IMAGE_SUFFIXES, LAYOUTS, SPLIT_FOLDERS, Layout, layout_of
from changeanywhere.pairs.reader import Metadata, PairDataset, load_pairs


def open_images(folder: str | Path, split: str | None = None, max_megapixels: float | None = None) -> PairDataset:
    """As :func:`.reader.load_pairs`, of folders without labels, too; what it gives has no pairs then, but files
    (``images_of``). :class:`PairsError` for a folder without two dates, and where the second date lacks a file."""
    root = unpacked(local_copy(folder))
    if layout_of(root) is None and root.is_dir():
        layout = _dates_in(root)
        if layout is not None:
            return _of(root, layout, split, max_megapixels)
        inside = {name: place for name in SPLIT_FOLDERS for place in _places(root, name)}
        if inside:
            if split not in inside:
                raise PairsError(f"{root}: has the splits {', '.join(inside)} as folders; say which (--split)")
            return open_images(inside[split], None, max_megapixels)
    pairs = load_pairs(root, split, max_megapixels)
    for number in range(len(pairs)):
        pairs.images_of(number)
    return pairs


def _places(root: Path, split: str) -> list[Path]:
    places = (root / name for name in SPLIT_FOLDERS[split])
    return [place for place in places if place.is_dir() and (_dates_in(place) or layout_of(place))][:1]


def _dates_in(root: Path) -> Layout | None:
    plain = (layout for layout in LAYOUTS if type(layout) is Layout)
    return next((layout for layout in plain if all((root / name).is_dir() for name in layout.images)), None)


def _of(root: Path, layout: Layout, split: str | None, max_megapixels: float | None) -> PairDataset:
    names = sorted(layout.files(root, layout.images[0])) if split is None else layout.split(root, split)
    if not names:
        raise PairsError(f"{root / layout.images[0]}: holds no image; allowed: {', '.join(IMAGE_SUFFIXES)}")
    file = root / "metadata.jsonl"
    pairs = PairDataset(root, names, Metadata(file) if file.is_file() else None, layout, (), max_megapixels)
    for number in range(len(pairs)):
        pairs.images_of(number)
    return pairs
