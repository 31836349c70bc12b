"""Windows around changes: while unchanged ground is held, only they need the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIDE_STEP = 8
"""The canonical windows of a scene have a side of a multiple of this many cells."""
SIZE_STEP = 16
"""Windows around changes have sides of multiples of this many: few sizes occur (in 64 cells 32, 48 and 64), so that
windows of a batch go together. Steps of 8 would take a processor somewhat less, and a GPU twice as many recordings."""


@dataclass(frozen=True)
class LatentWindow:
    """A rectangle of latent cells of pair ``index`` of a batch."""

    index: int
    row: int
    column: int
    height: int
    width: int

    def of(self, tensor: Tensor) -> Tensor:
        """The part of ``[B, C, h, w]``, a view ``[C, height, width]``."""
        rows, columns = slice(self.row, self.row + self.height), slice(self.column, self.column + self.width)
        return tensor[self.index, :, rows, columns]


def change_windows(changed: Tensor, margin: int, multiple: int) -> list[LatentWindow]:
    """A window for every pair that changes: the changed cells and ``margin`` cells around them, within the tile.

    ``changed``: bool ``[B, 1, h, w]``, on any device (one transfer). Windows are square but where the tile is narrower;
    ``multiple``: what height and width must be divisible by, a power of two that divides h and w.
    """
    height, width = changed.shape[2:]
    step = max(SIZE_STEP, multiple)
    windows = []
    for index, cells in enumerate(changed[:, 0].cpu()):
        rows, columns = cells.any(1).nonzero().flatten(), cells.any(0).nonzero().flatten()
        if not len(rows):
            continue
        top, left = int(rows[0]), int(columns[0])
        tall, wide = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
        side = -(-(max(tall, wide) + 2 * margin) // step) * step
        size = min(side, height), min(side, width)
        # Centred on the change, then shifted inside.
        row = min(max(0, top + tall // 2 - size[0] // 2), height - size[0])
        column = min(max(0, left + wide // 2 - size[1] // 2), width - size[1])
        windows.append(LatentWindow(index, row, column, *size))
    return windows


def cut(tensor: Tensor, windows: Sequence[LatentWindow]) -> Tensor:
    """Windows of one size out of ``[B, C, h, w]`` → ``[N, C, height, width]``."""
    return torch.stack([window.of(tensor) for window in windows])
