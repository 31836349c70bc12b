"""How a large image is cut into windows that are read on their own, so that seams do not show. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from changeanywhere.rasters.facts import Window

CORE = 320
"""Side in px of what a window is kept of; a multiple of 32: the network's grid lies the same in every window."""
MARGIN = 160
"""Px around it that are read as well: more than what a pixel's label depends on, but for objects that are larger."""


@dataclass(frozen=True)
class Cell:
    """``core``: what is kept; ``window``: what is read for it."""

    core: Window
    window: Window

    @property
    def inside(self) -> tuple[slice, slice]:
        """Where the core lies in the window."""
        row, column = self.core.row - self.window.row, self.core.column - self.window.column
        return slice(row, row + self.core.height), slice(column, column + self.core.width)


def cells(height: int, width: int, offset: int = 0) -> Iterator[Cell]:
    """Cells that cover an image; one if it is hardly larger than a window. ``offset``: px that the grid is moved by."""
    if max(height, width) <= CORE + 2 * MARGIN and not offset:
        whole = Window(0, 0, height, width)
        yield Cell(whole, whole)
        return
    for top, bottom in _spans(height, offset):
        for left, right in _spans(width, offset):
            first_row, first_column = max(top - MARGIN, 0), max(left - MARGIN, 0)
            last_row, last_column = min(bottom + MARGIN, height), min(right + MARGIN, width)
            window = Window(first_row, first_column, last_row - first_row, last_column - first_column)
            yield Cell(Window(top, left, bottom - top, right - left), window)


def samples(height: int, width: int) -> list[Window]:
    """Up to 16 evenly spaced windows of an image of several cells; none of an image of one."""
    if max(height, width) <= CORE + 2 * MARGIN:
        return []
    side = CORE + 2 * MARGIN
    spans = [sorted({(length - min(side, length)) * i // 3 for i in range(4)}) for length in (height, width)]
    return [Window(row, column, min(side, height), min(side, width)) for row in spans[0] for column in spans[1]]


def _spans(length: int, offset: int) -> Iterator[tuple[int, int]]:
    edges = sorted({0, length, *range(offset % CORE, length, CORE)})
    yield from pairwise(edges)
