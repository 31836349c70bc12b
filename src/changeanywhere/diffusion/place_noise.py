"""Noise that is a function of the place: one generator whose counter says what a number is for.

counter = (column, row, call and channels, stream), key = seed: Philox4x32-10 (Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3", SC 2011), in whole-number operations of torch that give the same bits on every device; normal
numbers from them by Box–Muller in float64. What is drawn at a place depends neither on the window in which it is drawn
nor on what was drawn before, so that windows may come in any order, overlap, and be painted on several machines.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
PER_BLOCK = 4
"""Numbers of one counter: channels 0 to 3, 4 to 7, …"""


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Four words of counter, int64 tensors of 0 to 2³² - 1 that broadcast, and two of key → four random words."""
    words = list(torch.broadcast_tensors(*counter))
    first, second = key
    for _ in range(ROUNDS):
        (high_0, low_0), (high_1, low_1) = (
            _product(MULTIPLIERS[0], words[0]),
            _product(MULTIPLIERS[1], words[2]),
        )
        words = [high_1 ^ words[1] ^ first, low_1, high_0 ^ words[3] ^ second, low_0]
        first, second = (first + WEYL[0]) & WORD, (second + WEYL[1]) & WORD
    return words


def _product(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low half of a product of 32 by 32 bits, within the signed 64 that tensors have."""
    upper = factor * (word >> 16)  # 48 bits
    lower = factor * (word & 0xFFFF)
    middle = upper + (lower >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (lower & 0xFFFF)


def normals(
    seed: int, stream: str, call: int, rows: Tensor, columns: Tensor, channels: int, first_channel: int = 0
) -> Tensor:
    """Standard normal float32 ``[channels, *places]`` at ``rows`` and ``columns`` (int64, which broadcast; any sign).

    ``seed``: 64 bits; ``stream`` names the purpose; ``call`` up to 65,535; channels up to 4 × 65,535.
    """
    word = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "big")
    device = rows.device
    at = [columns & WORD, rows & WORD]
    found: list[Tensor] = []
    blocks = range(first_channel // PER_BLOCK, -(-(first_channel + channels) // PER_BLOCK))
    for block in blocks:
        what = torch.tensor((call << 16) | block, device=device)
        words = philox([*at, what, torch.tensor(word, device=device)], (seed & WORD, (seed >> 32) & WORD))
        shares = [(each.double() + 0.5) / 2.0**32 for each in words]
        for radius, angle in (shares[:2], shares[2:]):
            length, turn = (-2 * radius.log()).sqrt(), 2 * math.pi * angle
            found += [length * turn.cos(), length * turn.sin()]
    skipped = first_channel - blocks.start * PER_BLOCK
    return torch.stack(found[skipped : skipped + channels]).float()


@dataclass
class PlaceNoise:
    """A :class:`.blended.NoiseSource` for rectangles of one size: ``corners`` (row, column) in cells of the whole
    world, ``shape`` (channels, height, width). ``call`` counts the draws of a purpose from ``first_call`` on."""

    seed: int
    corners: Sequence[tuple[int, int]]
    shape: tuple[int, int, int]
    first_call: int = 0

    def __post_init__(self) -> None:
        self._drawn: dict[str, int] = {}

    def draw(self, purpose: str) -> Tensor:
        """Next noise ``[B, *shape]`` of ``purpose``, on the CPU."""
        call = self._drawn.setdefault(purpose, self.first_call)
        self._drawn[purpose] += 1
        channels, height, width = self.shape
        rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
        return torch.stack(
            [normals(self.seed, purpose, call, rows + row, columns + column, channels) for row, column in self.corners]
        )
