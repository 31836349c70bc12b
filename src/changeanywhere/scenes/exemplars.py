"""Real pixels of the new classes on changed ground of a scene, event by event. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import SourceError
from changeanywhere.legend import Legend, Mask
from changeanywhere.painters.base import Donors, Pixels
from changeanywhere.painters.exemplars import exemplar_of
from changeanywhere.rasters.facts import Window
from changeanywhere.sample import ChangeEvent, ChangePlan, GeoReference, SourceItem, SourceSample, change_mask_of
from changeanywhere.scenes.inputs import SceneImage
from changeanywhere.seeds import pair_seed
from changeanywhere.sources import Source

TILE = 256
"""Side in px of the tiles that ground may come from, and of what is looked at around an event."""
BLOCK = 192
"""Ground larger than this is filled block by block: no tile holds as much of it."""
KEPT_EVENTS, KEPT_TILES = 1024, 48
"""Of events what is touched alone is kept; windows that meet one come again and again."""
Box = tuple[int, int, int, int]
Made = tuple[Box, Pixels, npt.NDArray[np.bool_]]
"""Where, which pixels, and which of them are others than date 1."""


class SceneTiles(Source):
    """A scene as tiles: other ground of the same day."""

    def __init__(self, image: SceneImage, mask: Mask, legend: Legend) -> None:
        self._image, self._mask, self.legend = image, mask, legend
        self.root, self.name, self.skipped = image.path, image.path.stem, ()
        height, width = image.shape
        self._windows = [
            Window(row, column, min(TILE, height), min(TILE, width))
            for row in range(0, max(height - TILE, 0) + 1, TILE)
            for column in range(0, max(width - TILE, 0) + 1, TILE)
        ]
        self.items = tuple(SourceItem(f"{w.row}-{w.column}", self.name) for w in self._windows)
        self._cached = lru_cache(KEPT_TILES)(self._read)

    def read_mask(self, index: int) -> Mask:
        return np.asarray(self._mask[self._windows[index].slices])

    def read(self, index: int) -> SourceSample:
        return self._cached(index)

    def _read(self, index: int) -> SourceSample:
        return self.sample(self._windows[index], self.items[index])

    def sample(self, window: Window, item: SourceItem) -> SourceSample:
        """Any part of the scene."""
        return SourceSample(
            item,
            self._image.filled(window),
            np.asarray(self._mask[window.slices]),
            tuple(str(band) for band in self._image.bands),
            self._image.normalisation,
        )

    def content_hash(self) -> str:
        raise SourceError(f"{self.root}: tiles of a scene are no source of their own")

    def georef(self, index: int) -> GeoReference | None:
        return None


class SceneExemplars:
    """Date 1 with exemplars, by box; each event is made once and kept for a while."""

    def __init__(
        self, tiles: SceneTiles, masks: tuple[Mask, Mask], events: Sequence[ChangeEvent], seed: int, ring: int
    ) -> None:
        self._tiles, (self._mask_t1, self._mask_t2), self._events = tiles, masks, events
        self._seed, self._ring = seed, ring
        self._boxes = np.array([event.bbox for event in events], np.int64).reshape(-1, 4)
        self._made = lru_cache(KEPT_EVENTS)(self._make)

    def over(self, image: Pixels, box: Box, changed: Box) -> Pixels:
        """``image`` float32 ``[h, w, C]`` of ``box`` (parts of which may lie beyond the scene, and stay as they are),
        with exemplars of the events that meet ``changed``."""
        result = image.copy()
        for number in self._meeting(changed):
            for (row, column, height, width), pixels, touched in self._made(number):
                first, last = max(row, box[0]), min(row + height, box[0] + box[2])
                left, right = max(column, box[1]), min(column + width, box[1] + box[3])
                if first >= last or left >= right:
                    continue
                of = (slice(first - row, last - row), slice(left - column, right - column))
                into = (slice(first - box[0], last - box[0]), slice(left - box[1], right - box[1]))
                result[into] = np.where(touched[of][..., None], pixels[of], result[into])
        return result

    def _meeting(self, box: Box) -> list[int]:
        if not len(self._boxes):
            return []
        row, column, height, width = self._boxes.T
        meets = (row < box[0] + box[2]) & (row + height > box[0]) & (column < box[1] + box[3])
        return [int(n) for n in np.flatnonzero(meets & (column + width > box[1]))]

    def _make(self, number: int) -> list[Made]:
        event = self._events[number]
        return [self._one(part) for part in _blocks(event)]

    def _one(self, event: ChangeEvent) -> Made:
        """The exemplar of one event in its surroundings."""
        donor = event.donor
        box = _around(event.bbox, None if donor is None else donor.box, self._ring, self._mask_t1.shape)
        window = Window(*box)
        sample = self._tiles.sample(window, SourceItem("scene", self._tiles.name))
        mask_t2 = np.asarray(self._mask_t2[window.slices])
        moved = replace(
            event,
            bbox=_relative(event.bbox, box),
            donor=None if donor is None else replace(donor, box=_relative(donor.box, box)),
        )
        seed = pair_seed(self._seed, f"{event.bbox[0]} {event.bbox[1]}", event.to_class)
        plan = ChangePlan(mask_t2, change_mask_of(sample.mask, mask_t2), (moved,), seed)
        pixels = sample.pixels()
        made, _ = exemplar_of(pixels, sample, plan, Donors(self._tiles, range(len(self._tiles.items))), self._ring)
        touched = (made != pixels).any(2)
        rows, columns = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
        if not len(rows):
            return (*box[:2], 0, 0), made[:0, :0], touched[:0, :0]
        part = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        kept = touched[part].copy()
        place = box[0] + part[0].start, box[1] + part[1].start, kept.shape[0], kept.shape[1]
        return place, made[part].copy(), kept


def _blocks(event: ChangeEvent) -> Iterator[ChangeEvent]:
    """An event without a donor in parts of at most :data:`BLOCK`, on a grid of the whole scene."""
    row, column, height, width = event.bbox
    if event.donor is not None or max(height, width) <= BLOCK:
        yield event
        return
    for top in range(row // BLOCK * BLOCK, row + height, BLOCK):
        for left in range(column // BLOCK * BLOCK, column + width, BLOCK):
            first, last = max(top, row), min(top + BLOCK, row + height)
            start, stop = max(left, column), min(left + BLOCK, column + width)
            yield event.within((first, start, last - first, stop - start))


def _around(box: Box, donor: Box | None, ring: int, shape: tuple[int, int]) -> Box:
    """At least a tile around a box, and its donor with it, within the scene."""
    starts, sizes = [], []
    for axis in (0, 1):
        boxes = [box] if donor is None else [box, donor]
        first = min(each[axis] for each in boxes) - ring
        last = max(each[axis] + each[axis + 2] for each in boxes) + ring
        size = min(max(last - first, TILE), shape[axis])
        starts.append(min(max(first - (size - (last - first)) // 2, 0), shape[axis] - size))
        sizes.append(size)
    return starts[0], starts[1], sizes[0], sizes[1]


def _relative(box: Box, to: Box) -> Box:
    return box[0] - to[0], box[1] - to[1], box[2], box[3]
