"""An image is read by overlapping windows, whose probabilities pass into each other. No torch here.

Every window counts with a weight that falls towards its borders, where a network sees least around a pixel. Windows lie
on a grid, so that the sum of weights at a pixel is a product of two lines: only a band of rows is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from changeanywhere.legend import Mask
from changeanywhere.rasters.facts import Valid, Window

Floats = npt.NDArray[np.float32]
Read = Callable[[Sequence[Window]], Iterable[tuple[Floats, Valid | None]]]
"""Windows → their layers f32 ``[L, h, w]`` and where both dates are valid (None: everywhere), in the same order."""


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
    """Finished rows of an image from ``row`` on: layers f32 ``[L, h, W]``, and where they hold, bool ``[h, W]``."""

    row: int
    layers: Floats
    """Probability of change; of a semantic change detector then those of the classes of date 1, and of date 2."""
    valid: Valid

    @property
    def probability(self) -> Floats:
        """Of change, f32 ``[h, W]``."""
        change: Floats = self.layers[0]
        return change

    @property
    def classes(self) -> tuple[Mask, Mask]:
        """The likeliest class of each date, uint8 ``[h, W]``: 1…K, 0 where a date shows nothing."""
        first, second = (dates.argmax(0).astype(np.uint8) + 1 for dates in np.split(self.layers[1:], 2))
        return first * self.valid, second * self.valid


def rows_of(height: int, width: int, tiling: Tiling, read: Read, num_layers: int = 1) -> Iterator[Rows]:
    """The image from top to bottom, each row once. Memory grows with the width and ``num_layers`` alone."""
    tops, lefts = tiling.starts(height), tiling.starts(width)
    down, across = tiling.weights(height), tiling.weights(width)
    total_down, total_across = _total(tops, down, height), _total(lefts, across, width)
    share = down[:, None] * across
    total = np.zeros((num_layers, len(down), width), np.float32)
    valid = np.ones(total.shape[1:], bool)
    for top, end in zip(tops, [*tops[1:], height], strict=True):
        windows = [Window(top, left, len(down), len(across)) for left in lefts]
        for window, (found, seen) in zip(windows, read(windows), strict=True):
            columns = slice(window.column, window.column + window.width)
            total[:, :, columns] += found * share
            if seen is not None:
                valid[:, columns] &= seen
        count = end - top
        yield Rows(top, total[:, :count] / (total_down[top:end, None] * total_across), valid[:count].copy())
        total = np.concatenate([total[:, count:], np.zeros((num_layers, count, width), np.float32)], 1)
        valid = np.concatenate([valid[count:], np.ones((count, width), bool)])


def _total(starts: Sequence[int], weights: Floats, length: int) -> Floats:
    total = np.zeros(length, np.float32)
    for start in starts:
        total[start : start + len(weights)] += weights
    return total
