"""What of a scene is painted together: changed cells near each other, and the windows that they are seen through.

Boxes are (row, column, height, width): of pixels where they go to a :class:`SceneView`, else of cells of the plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from changeanywhere.diffusion.canvas import GUARD, RAMP, Box, Corner, Plane
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.windows import SIZE_STEP
from changeanywhere.models.info import DOWNSAMPLING

DEFAULT_MARGIN = 8
"""Cells around a group that its window shows at least, where the sampling names none."""
BAND = 256
"""Rows of pixels that are read at once."""
SQUARE = np.ones((3, 3), bool)
Pixels = npt.NDArray[np.float32]
Cells = npt.NDArray[np.bool_]


class SceneView(Protocol):
    """A scene by boxes of pixels, of which parts may lie beyond it: there it is mirrored, and unchanged."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in px."""
        ...

    def image(self, box: Box) -> Pixels:
        """Date 1, float32 ``[h, w, C]`` in [-1, 1]."""
        ...

    def mask(self, box: Box) -> npt.NDArray[np.uint8]:
        """Mask t2 uint8 ``[h, w]``."""
        ...

    def change(self, box: Box) -> Cells:
        """Changed ground bool ``[h, w]``."""
        ...

    def strength(self, box: Box, changed: Box) -> Pixels | None:
        """With which what changed in ``changed`` is painted over its exemplar, float32 ``[h, w]``; None: there are no
        exemplars, it is painted from noise."""
        ...

    def exemplar(self, box: Box, changed: Box) -> Pixels:
        """Date 1 with real pixels of the new classes on what changed in ``changed``."""
        ...


@dataclass(frozen=True)
class Cover:
    """Windows of ``side`` cells over a group, by their corners in its region; of several the weights rise over
    ``ramp``, beyond ``guard`` cells that count nothing."""

    side: int
    ramp: int
    corners: tuple[Corner, ...]
    guard: int = GUARD

    def showing(self, cells: Cells) -> list[Corner]:
        """Windows in which some of ``cells`` ``[h, w]`` of the region have weight."""
        guard, inner = self.guard, self.side - 2 * self.guard
        return [(row, column) for row, column in self.corners
                if cropped(cells, (row + guard, column + guard, inner, inner)).any()]  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Changed cells that are painted together."""

    number: int
    """Of its cells in :attr:`Changes.labels`."""
    box: Box
    """Of its changed cells."""
    region: Box
    """What its windows see."""
    whole: Cover
    """The canonical windows, to which encoder, decoder and the free tail go."""
    held: Cover
    """Those to which the held calls go: in the middle of the canonical one, where there is one, and of several no
    larger than they need be."""

    @property
    def is_small(self) -> bool:
        """Whether one window shows it."""
        return len(self.whole.corners) == 1


@dataclass(frozen=True)
class Changes:
    """Changed and unknown cells of a whole scene, and its groups."""

    changed: Cells
    """To be repainted, ``[h, w]``."""
    unknown: Cells
    """Kept to the last call."""
    labels: npt.NDArray[np.int32]
    """Number of the group to which a cell, or what is near it, belongs; 0: none."""
    groups: tuple[Group, ...]

    def own(self, group: Group, box: Box | None = None) -> Cells:
        """The changed cells of a group in ``box``, by default its region."""
        place = box or group.region
        own: Cells = (cropped(self.labels, place) == group.number) & cropped(self.changed, place)
        return own

    def others(self, group: Group) -> Cells:
        """Cells of its region that are, or are near, those of other groups."""
        labels = cropped(self.labels, group.region)
        others: Cells = (labels != 0) & (labels != group.number)
        return others


def in_pixels(box: Box) -> Box:
    """A box of cells in px."""
    row, column, height, width = (each * DOWNSAMPLING for each in box)
    return row, column, height, width


def cropped(cells: npt.NDArray[Any], box: Box) -> npt.NDArray[Any]:
    """``box`` of ``[h, w]``; 0 beyond."""
    row, column, height, width = box
    result = np.zeros((height, width), cells.dtype)
    rows = slice(max(row, 0), min(row + height, cells.shape[0]))
    columns = slice(max(column, 0), min(column + width, cells.shape[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
        result[rows.start - row : rows.stop - row, columns.start - column : columns.stop - column] = cells[
            rows, columns
        ]
    return result


def changes_of(view: SceneView, plane: Plane, sampling: Sampling, size_multiple: int) -> Changes:
    """``size_multiple``: of the denoiser, in px."""
    changed = _pooled(view.change, plane)
    if sampling.dilate_cells:
        reach = 2 * sampling.dilate_cells + 1
        changed = ndimage.binary_dilation(changed, np.ones((reach, reach), bool))
    unknown = _pooled(lambda box: view.mask(box) == 0, plane) & ~changed
    margin = sampling.window_margin or DEFAULT_MARGIN
    near = ndimage.binary_dilation(changed, SQUARE, iterations=max(1, margin // 4))
    labels = ndimage.label(near, SQUARE)[0].astype(np.int32)
    step = max(SIZE_STEP, size_multiple // DOWNSAMPLING)
    smaller = range(step, plane.side, step) if sampling.window_margin else ()
    sides = (*smaller, plane.side)
    groups = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(np.where(changed, labels, 0)), 1):
        box = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        group = _covered(number, box, plane.wide, margin, sides)
        if not group.is_small and group.held == group.whole:
            group = _without_idle(group, (labels[rows, columns] == number) & changed[rows, columns])
        groups.append(group)
    return Changes(changed, unknown, labels, tuple(groups))


def _covered(number: int, box: Box, plane: Plane, margin: int, sides: Sequence[int]) -> Group:
    """A group under as few canonical windows as show its ``box`` beyond their guard; the held calls see it through as
    many, of the smallest of ``sides`` that show ``margin`` cells around it."""
    guard = plane.guard
    lines = [_line(length, plane.side, 2 * guard + plane.ramp, margin, guard) for length in box[2:]]
    top, left = (line[0] for line in lines)
    tall, wide = (line[-1] + plane.side - line[0] for line in lines)
    region = (box[0] + top, box[1] + left, tall, wide)
    whole = _cover(lines, plane.side, (top, left), guard)
    shared = 2 * GUARD + plane.ramp
    for side in sides:
        held = [_line(length, side, shared, margin, margin) for length in box[2:]]
        if all(len(one) <= len(other) for one, other in zip(held, lines, strict=True)):
            inner = [_within(one, side, (other[0], other[-1] + plane.side))
                     for one, other in zip(held, lines, strict=True)]  # fmt: skip
            return Group(number, box, region, whole, whole if side == plane.side else _cover(inner, side, (top, left)))
    return Group(number, box, region, whole, whole)


def _line(length: int, side: int, shared: int, margin: int, least: int) -> list[int]:
    """Where windows begin along a line of ``length`` cells, relative to it: one in its middle, or as few as share
    ``shared`` cells and show ``least`` around it. What they have to spare goes to the surroundings, up to ``margin``,
    and to what they share."""
    if length + 2 * least <= side:
        return [length // 2 - side // 2]
    shared = min(shared, side // 2)
    count = -(-(length + 2 * least - shared) // (side - shared))
    spare = count * side - (count - 1) * shared - length - 2 * least
    around = least + min(spare // (count + 1), max(0, margin - least))
    first, last = -around, length + around - side
    return [first + (last - first) * number // (count - 1) for number in range(count)]


def _within(line: Sequence[int], side: int, ends: tuple[int, int]) -> list[int]:
    """Windows moved to lie between both ends."""
    return [min(max(first, ends[0]), ends[1] - side) for first in line]


def _cover(lines: Sequence[Sequence[int]], side: int, origin: Corner, guard: int = GUARD) -> Cover:
    """Rows by columns of windows; the ramp is what all that are neighbours share."""
    steps = [second - first for line in lines for first, second in pairwise(line)]
    ramp = max(1, side - max(steps, default=side) - 2 * guard) if steps else RAMP
    rows, columns = ([first - begin for first in line] for line, begin in zip(lines, origin, strict=True))
    return Cover(side, ramp, tuple((row, column) for row in rows for column in columns), guard)


def _without_idle(group: Group, own: Cells) -> Group:
    """Of many windows those that show a cell of the group; ``own``: its changed cells in its box."""
    place = np.zeros(group.region[2:], bool)
    row, column = group.box[0] - group.region[0], group.box[1] - group.region[1]
    place[row : row + own.shape[0], column : column + own.shape[1]] = own
    cover = replace(group.whole, corners=tuple(group.whole.showing(place)))
    return replace(group, whole=cover, held=cover)


def _pooled(read: Callable[[Box], Cells], plane: Plane) -> Cells:
    """Cells any of whose pixels is true, bool ``[h, w]``, read by bands."""
    cells = np.zeros((plane.height, plane.width), bool)
    step = BAND // DOWNSAMPLING
    for row in range(0, plane.height, step):
        rows = min(step, plane.height - row)
        found = read(in_pixels((row, 0, rows, plane.width)))
        cells[row : row + rows] = found.reshape(rows, DOWNSAMPLING, plane.width, DOWNSAMPLING).any((1, 3))
    return cells
