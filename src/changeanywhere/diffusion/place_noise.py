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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from changeanywhere.models.copies import onto

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
PER_BLOCK = 4
"""Numbers of one counter: channels 0 to 3, 4 to 7, …"""

AT_ONCE = 2**18
"""Places whose numbers are worked out together: a scene has millions, and a place takes a hundred bytes meanwhile."""


def philox(counter: Sequence[Tensor], key: Sequence[int | Tensor]) -> list[Tensor]:
    """Four words of counter, int64 tensors of 0 to 2³² - 1 that broadcast, and two of key, numbers or tensors as well
    → four random words."""
    words = list(counter)
    first, second = key
    for _ in range(ROUNDS):
        # 32 by 32 bits: a product of 64, of which int64 has every bit, the highest as its sign.
        left, right = words[0] * MULTIPLIERS[0], words[2] * MULTIPLIERS[1]
        words = [
            ((right >> 32) & WORD) ^ words[1] ^ first,
            right & WORD,
            ((left >> 32) & WORD) ^ words[3] ^ second,
            left & WORD,
        ]
        first, second = (first + WEYL[0]) & WORD, (second + WEYL[1]) & WORD
    return list(torch.broadcast_tensors(*words))


def normals(
    seed: int | Tensor,
    stream: str,
    call: int,
    rows: Tensor,
    columns: Tensor,
    channels: int,
    first_channel: int = 0,
) -> Tensor:
    """Standard normal float32 ``[channels, *places]`` at ``rows`` and ``columns`` (int64, which broadcast; any sign),
    on their device.

    ``seed``: 64 bits, or several as an int64 tensor that broadcasts with the places; ``stream`` names the purpose;
    ``call`` up to 65,535; channels up to 4 × 65,535.
    """
    word = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "big")
    at = [columns & WORD, rows & WORD]
    key = (seed & WORD, (seed >> 32) & WORD)
    found: list[Tensor] = []
    blocks = range(first_channel // PER_BLOCK, -(-(first_channel + channels) // PER_BLOCK))
    for block in blocks:
        # Made where they are needed: a copy from the host would make it wait for the device.
        what = torch.full((), (call << 16) | block, dtype=torch.int64, device=rows.device)
        words = philox([*at, what, torch.full_like(what, word)], key)
        shares = [(each.double() + 0.5) / 2.0**32 for each in words]
        for radius, angle in (shares[:2], shares[2:]):
            length, turn = (-2 * radius.log()).sqrt(), 2 * math.pi * angle
            found += [length * turn.cos(), length * turn.sin()]
    skipped = first_channel - blocks.start * PER_BLOCK
    return torch.stack(found[skipped : skipped + channels]).float()


class NoiseStreams:
    """A :class:`.blended.NoiseSource` for tiles, each with the seed of its pair alone, so that batching changes no
    pair's noise; drawn on ``device``, where the same numbers come out as on any other.

    ``shape`` (channels, height, width).
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._seeds = [_signed(seed) for seed in seeds]
        self._shape = tuple(shape)
        self._drawn: dict[str, int] = {}

    def draw(self, purpose: str) -> Tensor:
        """Next noise of every pair ``[B, *shape]``."""
        call = self._drawn.get(purpose, 0)
        self._drawn[purpose] = call + 1
        channels, height, width = self._shape
        rows = torch.arange(height, device=self._device)[:, None]
        columns = torch.arange(width, device=self._device)[None]
        if self._device.type == "cpu":  # pair by pair, so that what is worked on stays in the cache
            each = [normals(seed, purpose, call, rows, columns, channels) for seed in self._seeds]
            return torch.stack(each) if each else torch.empty(0, *self._shape)
        seeds = onto(torch.tensor(self._seeds, dtype=torch.int64), self._device).view(-1, 1, 1)
        return normals(seeds, purpose, call, rows, columns, channels).transpose(0, 1)


def _signed(seed: int) -> int:
    """The same 64 bits as an int64 has them."""
    seed &= 2**64 - 1
    return seed - 2**64 if seed >= 2**63 else seed


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

    def later(self, call: int) -> PlaceNoise:
        """Of the same places, from ``call`` on: the calls before it have drawn theirs."""
        return replace(self, first_call=call)

    def draw(self, purpose: str) -> Tensor:
        """Next noise ``[B, *shape]`` of ``purpose``, on the CPU."""
        call = self._drawn.setdefault(purpose, self.first_call)
        self._drawn[purpose] += 1
        channels, height, width = self.shape
        drawn = torch.empty(len(self.corners), channels, height, width)
        step = max(1, AT_ONCE // max(1, width))
        for place, (row, column) in enumerate(self.corners):
            columns = torch.arange(column, column + width)[None]
            for first in range(0, height, step):
                rows = torch.arange(row + first, row + min(first + step, height))[:, None]
                drawn[place, :, first : first + step] = normals(self.seed, purpose, call, rows, columns, channels)
        return drawn
