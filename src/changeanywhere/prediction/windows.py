"""An image is read by overlapping windows, whose probabilities pass into each other. No torch here.

Every window counts with a weight that falls towards its borders, where a network sees least around a pixel. Windows lie
on a grid, so that the sum of weights at a pixel is a product of two lines: only a band of rows is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from changeanywhere.rasters.facts import Valid, Window

Floats = npt.NDArray[np.float32]
Read = Callable[[Sequence[Window]], Iterable[tuple[Floats, Valid | None]]]
"""Windows → their probabilities f32 ``[h, w]`` and where both dates are valid (None: everywhere), in the same order."""


@dataclass(frozen=True)
class Tiling:
    """``window``: side in px; ``overlap``: what neighbours share, at least."""

    window: int
    overlap: int

    def starts(self, length: int) -> list[int]:
        """Where windows begin along a side; the last one ends with it."""
        if length <= self.window:
            return [0]
        return [*range(0, length - self.window, self.window - self.overlap), length - self.window]

    def weights(self, length: int) -> Floats:
        """Of the pixels of a window along a side: 1 inside, less towards its ends, never 0."""
        side = min(self.window, length)
        place = np.arange(side)
        ramp = np.minimum(place + 1, side - place) / (self.overlap + 1)
        return np.minimum(ramp, 1).astype(np.float32)

    def count(self, height: int, width: int) -> int:
        """Windows of an image."""
        return len(self.starts(height)) * len(self.starts(width))


@dataclass(frozen=True)
class Rows:
    """Finished rows of an image from ``row`` on: probability f32 ``[h, W]``, and where it holds, bool ``[h, W]``."""

    row: int
    probability: Floats
    valid: Valid


def rows_of(height: int, width: int, tiling: Tiling, read: Read) -> Iterator[Rows]:
    """The image from top to bottom, each row once. Memory grows with the width alone."""
    tops, lefts = tiling.starts(height), tiling.starts(width)
    down, across = tiling.weights(height), tiling.weights(width)
    total_down, total_across = _total(tops, down, height), _total(lefts, across, width)
    share = down[:, None] * across
    total = np.zeros((len(down), width), np.float32)
    valid = np.ones(total.shape, bool)
    for top, end in zip(tops, [*tops[1:], height], strict=True):
        windows = [Window(top, left, len(down), len(across)) for left in lefts]
        for window, (found, seen) in zip(windows, read(windows), strict=True):
            columns = slice(window.column, window.column + window.width)
            total[:, columns] += found * share
            if seen is not None:
                valid[:, columns] &= seen
        count = end - top
        yield Rows(top, total[:count] / (total_down[top:end, None] * total_across), valid[:count].copy())
        total = np.concatenate([total[count:], np.zeros((count, width), np.float32)])
        valid = np.concatenate([valid[count:], np.ones((count, width), bool)])


def _total(starts: Sequence[int], weights: Floats, length: int) -> Floats:
    total = np.zeros(length, np.float32)
    for start in starts:
        total[start : start + len(weights)] += weights
    return total
