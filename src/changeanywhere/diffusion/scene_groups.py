"""What of a scene is painted together: changed cells near each other, and the windows that they are seen through.

Boxes are (row, column, height, width): of pixels where they go to a :class:`SceneView`, else of cells of the plane.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from changeanywhere.diffusion.canvas import GUARD, RAMP, Box, Corner, Plane
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.windows import SIDE_STEP
from changeanywhere.models.info import DOWNSAMPLING

DEFAULT_MARGIN = GUARD + RAMP + 2
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
class Group:
    """Changed cells that are painted together."""

    number: int
    """Of its cells in :attr:`Changes.labels`."""
    box: Box
    """Of its changed cells."""
    region: Box
    """What its windows see: one canonical window, or those of the grid that cover it."""
    side: int
    """Of the middle of the window, to which the held calls go; 0: more than one window."""
    corners: tuple[Corner, ...] = ()
    """Windows of the grid, relative to ``region``, in which its cells have weight, where there are several."""


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
    near = ndimage.binary_dilation(changed, SQUARE, iterations=max(1, margin // 2))
    labels = ndimage.label(near, SQUARE)[0].astype(np.int32)
    step = max(SIDE_STEP, size_multiple // DOWNSAMPLING)
    groups = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(np.where(changed, labels, 0)), 1):
        box = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        least = -(-(max(box[2:]) + 2 * margin) // step) * step
        if least <= plane.side:
            groups.append(_small(number, box, plane.side, least if sampling.window_margin else plane.side))
        else:
            own = (labels[rows, columns] == number) & changed[rows, columns]
            groups.append(_large(number, box, plane, own))
    return Changes(changed, unknown, labels, tuple(groups))


def _small(number: int, box: Box, whole: int, side: int) -> Group:
    row, column = box[0] + box[2] // 2 - whole // 2, box[1] + box[3] // 2 - whole // 2
    return Group(number, box, (row, column, whole, whole), side)


def _large(number: int, box: Box, plane: Plane, own: Cells) -> Group:
    """``own``: its changed cells in ``box``."""
    kept = []
    for row, column in plane.wide.part(box).windows():
        weighty = (row + GUARD, column + GUARD, plane.side - 2 * GUARD, plane.side - 2 * GUARD)
        if cropped(own, weighty).any():
            kept.append((row, column))
    top, left = min(row for row, _ in kept), min(column for _, column in kept)
    tall, wide = max(row for row, _ in kept) - top + plane.side, max(column for _, column in kept) - left + plane.side
    corners = tuple((row - top, column - left) for row, column in kept)
    return Group(number, box, (box[0] + top, box[1] + left, tall, wide), 0, corners)


def _pooled(read: Callable[[Box], Cells], plane: Plane) -> Cells:
    """Cells any of whose pixels is true, bool ``[h, w]``, read by bands."""
    cells = np.zeros((plane.height, plane.width), bool)
    step = BAND // DOWNSAMPLING
    for row in range(0, plane.height, step):
        rows = min(step, plane.height - row)
        found = read(in_pixels((row, 0, rows, plane.width)))
        cells[row : row + rows] = found.reshape(rows, DOWNSAMPLING, plane.width, DOWNSAMPLING).any((1, 3))
    return cells
