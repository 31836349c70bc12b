"""Objects: connected ground of one class, seen through a window, and real ones of the same class and like size.

An object up to 62 px wide stands in the middle of one window. Of a larger one (a road, a lake) up to four windows look
at ground of it drawn at random; what counts of it then is what the window shows. Changed ground that took the class
around it (a disappearance) has no border that a mask shows: its counterpart is the same shape, laid on real ground of
that class. All lengths are px.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.signal import fftconvolve

from changeanywhere.evaluation.differences import boundary_contrast
from changeanywhere.evaluation.reading import Image
from changeanywhere.evaluation.scores import Mask

SIDE = 64
"""Window: an object of ten metres at 0.3 to 1 m, and as much again around it."""
SHOWN = 128
"""A window is enlarged to this for the feature network, whose last maps have a thirty-second of its side."""
MIN_AREA = 60
"""Smaller objects, and smaller parts of one in a window, are left out."""
WINDOWS = 4
"""Windows on an object that does not fit into one."""
GREY = 128
"""What stands around an object that is looked at alone."""
LIKE = float(np.log(2))
"""Areas of counterparts differ by less than this in log: by less than a factor of two."""
TRIES = 20
"""Tiles on which a place for a shape is looked for."""
NEAR, FAR, LEAST = 3, 8, 16
"""Ground beside an object's border: from and to so many px away, so many px at least (8 × 8 has 16 inside)."""

_AROUND = np.ones((3, 3), bool)
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Spot:
    """An object in its window: ``there`` bool ``[side, side]``, its first pixel at (``row``, ``column``) of a tile."""

    tile: int
    row: int
    column: int
    class_index: int
    there: npt.NDArray[np.bool_]
    whole: bool
    """The window shows all of it."""
    filled: bool = False
    """Ground of its own class lies around it."""

    @property
    def area(self) -> int:
        """Its pixels in the window."""
        return int(self.there.sum())

    def of(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Its window of an image or a mask of its tile."""
        height, width = self.there.shape
        return array[self.row : self.row + height, self.column : self.column + width]


def find_spots(
    mask: Mask, tile: int, rng: np.random.Generator, where: npt.NDArray[np.bool_] | None = None
) -> list[Spot]:
    """Objects of each class of ``mask`` ``[H, W]`` (8-connected, within ``where``), at least :data:`MIN_AREA` px."""
    side = min(SIDE, *mask.shape)
    found = []
    for class_index in np.unique(mask[mask > 0] if where is None else mask[where & (mask > 0)]):
        of_class = mask == class_index
        labels, _ = ndimage.label(of_class if where is None else of_class & where, _AROUND)
        areas = np.bincount(labels.ravel())
        for number, box in enumerate(ndimage.find_objects(labels), 1):
            if areas[number] < MIN_AREA:
                continue
            whole = max(part.stop - part.start for part in box) <= side - 2
            for y, x in [_middle(box)] if whole else _drawn(labels == number, rng):
                row, column = (min(max(i - side // 2, 0), n - side) for i, n in zip((y, x), mask.shape, strict=True))
                spot = Spot(tile, row, column, int(class_index), np.empty((side, side), bool), whole)
                there = spot.of(labels) == number
                if there.sum() >= MIN_AREA:
                    found.append(replace(spot, there=there, filled=_is_filled(there, spot.of(of_class))))
    return found


def _middle(box: tuple[slice, ...]) -> tuple[int, int]:
    rows, columns = box
    return (rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2


def _drawn(there: npt.NDArray[np.bool_], rng: np.random.Generator) -> list[tuple[int, int]]:
    ys, xs = np.nonzero(there)
    return [(int(ys[i]), int(xs[i])) for i in rng.choice(len(ys), WINDOWS, replace=False)]


def _is_filled(there: npt.NDArray[np.bool_], of_class: npt.NDArray[np.bool_]) -> bool:
    """More than half of the px around are of its class; without anything around (it fills the window) it is not."""
    ring = ndimage.binary_dilation(there, _AROUND) & ~there
    return bool(of_class[ring].mean() > 0.5) if ring.any() else False


def counterparts(
    painted: Sequence[Spot], pool: Sequence[Spot], masks: Sequence[Mask], rng: np.random.Generator
) -> list[tuple[Spot, Spot]]:
    """Each painted object with a real one, each of the ``pool`` once; painted ones without any are left out.

    ``masks``: those of the real tiles. What a window cuts is held against what a window cuts where there is enough.
    """
    found = []
    for class_index in sorted({spot.class_index for spot in painted}):
        of_class = [spot for spot in painted if spot.class_index == class_index]
        found += _of_like_size(
            [spot for spot in of_class if not spot.filled], [spot for spot in pool if spot.class_index == class_index]
        )
        tiles = np.flatnonzero([(mask == class_index).any() for mask in masks])
        for spot in of_class:
            ground = _ground_like(spot, masks, rng.permutation(tiles)[:TRIES], rng) if spot.filled else None
            if ground is not None:
                found.append((spot, ground))
    return found


def _of_like_size(painted: list[Spot], pool: list[Spot]) -> list[tuple[Spot, Spot]]:
    if not painted or not pool:
        return []
    ours, theirs = (np.log([spot.area for spot in spots]) for spots in (painted, pool))
    apart = np.abs(ours[:, None] - theirs)
    differ = np.array([s.whole for s in painted])[:, None] != np.array([s.whole for s in pool])
    # Beyond the limit an object is better left out than paired, however many others that costs.
    rows, columns = linear_sum_assignment(np.where(apart < LIKE, apart + LIKE * differ, 1e6))
    return [(painted[i], pool[j]) for i, j in zip(rows, columns, strict=True) if apart[i, j] < LIKE]


def _ground_like(
    spot: Spot, masks: Sequence[Mask], tiles: npt.NDArray[np.integer], rng: np.random.Generator
) -> Spot | None:
    """The shape of ``spot`` on real ground of its class: at a place drawn from all that take it, on the first tile."""
    for tile in tiles:
        of_class = (masks[tile] == spot.class_index).astype(np.float32)
        if of_class.sum() < spot.area or min(of_class.shape) < len(spot.there):
            continue
        covered = fftconvolve(of_class, spot.there[::-1, ::-1].astype(np.float32), "valid")
        rows, columns = np.nonzero(covered > spot.area - 0.5)
        if len(rows):
            i = int(rng.integers(len(rows)))
            return replace(spot, tile=int(tile), row=int(rows[i]), column=int(columns[i]))
    return None


def crops(images: Mapping[int, Image], spots: Sequence[Spot], alone: bool) -> list[Image]:
    """Windows of ``images`` (by number of tile), enlarged; ``alone``: with grey for all that is not the object."""
    found = []
    for spot in spots:
        crop = spot.of(images[spot.tile])
        if alone:
            crop = np.where(spot.there[..., None], crop, GREY).astype(np.uint8)
        found.append(np.asarray(PillowImage.fromarray(crop).resize((SHOWN, SHOWN), PillowImage.Resampling.BICUBIC)))
    return found


def seams(images: Mapping[int, Image], masks: Sequence[Mask], spots: Sequence[Spot]) -> npt.NDArray[np.float64]:
    """Contrast at the border of each object against that beside it ``[N]``, NaN where too little lies on one side.

    A border to unknown ground (``masks``: 0) is none: nobody says what lies there.
    """
    found = []
    for spot in spots:
        unknown = spot.of(masks[spot.tile]) == 0
        value = boundary_contrast(spot.of(images[spot.tile]), spot.there, unknown, (NEAR, FAR), LEAST)
        found.append(np.nan if value is None else value)
    return np.array(found, float)


def readings(read: Mapping[int, Mask], spots: Sequence[Spot]) -> npt.NDArray[np.float64]:
    """Share of each object's px that a judge read as its class ``[N]``; its edge counts, for a road is little else."""
    return np.array([(spot.of(read[spot.tile])[spot.there] == spot.class_index).mean() for spot in spots], float)
