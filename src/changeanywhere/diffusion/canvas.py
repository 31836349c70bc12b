"""A latent plane of any size, seen through windows of one canonical size on a grid of absolute places.

Networks with group normalisation and attention see another picture through another window: their statistics are those
of what is in it. Hence one size, the one the model was trained on, and no other; windows overlap, what is within
a guard of cells of their border (where padding shows) counts nothing, and from there their weight rises over
a ramp of cells, so that two that disagree differ nowhere by a step. Measured in ``docs/scenes.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from changeanywhere.diffusion.blended import Calls, NoiseSource, mask_conditions
from changeanywhere.diffusion.options import Sampling
from changeanywhere.models.borrowed import DDPMScheduler
from changeanywhere.models.denoiser import Denoiser

GUARD = 2
"""Cells at a window's border that count nothing."""
ATTENTIVE_GUARD = 5
"""The same where the first stage attends to all of a window: what padding changes reaches farther there."""
RAMP = 2
WIDE_RAMP = 20
"""The same where a large change is painted from noise: there windows agree on less than over an exemplar."""
ATTENTIVE_RAMP = 6
"""The same where the first stage attends to all of a window: two windows then disagree in their detail, too."""
NEIGHBOURHOOD = 5
"""Side in px of what the contrast of a place is."""
STEADY = 5
"""Contrasts of this many px to each side are compared at once: the root of a ratio of two noisy ones is too large."""
Corner = tuple[int, int]
"""Row and column, in cells of a plane (negative: before it)."""
Box = tuple[int, int, int, int]
"""Row, column, height, width."""


class Runner(Protocol):
    """Does units of work, each a name and what computes it, and gives their results in the order of the units."""

    def __call__(self, units: Sequence[tuple[str, Callable[[], Tensor]]]) -> Iterator[Tensor]:
        """The results; a runner that remembers gives what it has and computes the rest, in any order."""
        ...


class Remembering:
    """A :class:`Runner` that keeps what it computed, by name, in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __call__(self, units: Sequence[tuple[str, Callable[[], Tensor]]]) -> Iterator[Tensor]:
        """See :class:`Runner`."""
        for name, compute in units:
            if name not in self._kept:
                self._kept[name] = compute()
            yield self._kept[name]


def at_once(units: Sequence[tuple[str, Callable[[], Tensor]]]) -> Iterator[Tensor]:
    """A :class:`Runner` that remembers nothing."""
    return (compute() for _, compute in units)


@dataclass(frozen=True)
class Plane:
    """``height`` × ``width`` cells whose first lies at ``row``, ``column`` of the world; ``side``, ``ramp`` and
    ``guard`` of its windows."""

    row: int
    column: int
    height: int
    width: int
    side: int
    ramp: int = RAMP
    wide_ramp: int = WIDE_RAMP
    """Of :attr:`wide`."""
    guard: int = GUARD

    @property
    def stride(self) -> int:
        """Cells from a window to the next."""
        return self.side - 2 * self.guard - self.ramp

    @property
    def wide(self) -> Plane:
        """The same cells under windows that share more."""
        return replace(self, ramp=min(self.wide_ramp, self.side // 2 - 2 * self.guard))

    def part(self, box: Box) -> Plane:
        """The plane of ``box`` in this one, on the same grid."""
        return replace(self, row=self.row + box[0], column=self.column + box[1], height=box[2], width=box[3])

    def windows(self) -> list[Corner]:
        """Corners of the grid's windows that have weight in the plane, row by row. They may begin before it and end
        after it."""
        rows, columns = self._starts(self.row, self.height), self._starts(self.column, self.width)
        return [(row - self.row, column - self.column) for row in rows for column in columns]

    def _starts(self, first: int, length: int) -> list[int]:
        """Windows begin a guard and a ramp before the multiples of the stride: a plane from 0 on begins with a whole
        one."""
        lead = self.guard + self.ramp
        begin = (first + self.guard - self.side + lead) // self.stride + 1
        end = (first + length - 1 - self.guard + lead) // self.stride
        return [number * self.stride - lead for number in range(begin, end + 1)]


def mirrored(start: int, length: int, size: int) -> Tensor:
    """Places ``start`` to ``start + length`` of a line that is mirrored at both ends of 0 to ``size``: int64."""
    places = torch.arange(start, start + length) % (2 * size)
    return torch.minimum(places, 2 * size - 1 - places)


def see(plane: Tensor, corners: Sequence[Corner], side: int) -> Tensor:
    """Windows of ``[1, C, h, w]`` → ``[N, C, side, side]``, mirrored beyond the plane."""
    return torch.cat([see_box(plane, (*corner, side, side)) for corner in corners])


def see_box(plane: Tensor, box: Box) -> Tensor:
    """A box of ``[1, C, h, w]`` → ``[1, C, height, width]``, mirrored beyond the plane."""
    (row, column, tall, wide), (height, width) = box, plane.shape[2:]
    if row >= 0 and column >= 0 and row + tall <= height and column + wide <= width:
        return plane[..., row : row + tall, column : column + wide]
    rows, columns = mirrored(row, tall, height), mirrored(column, wide, width)
    return plane[:, :, rows.to(plane.device)][..., columns.to(plane.device)]


def weights(plane: Plane, scale: int = 1) -> Tensor:
    """Weight of the cells of a window (``scale`` 4: of its pixels) float32 ``[side, side]``."""
    places = torch.arange(plane.side * scale) + 0.5
    rise = ((places / scale - plane.guard) / plane.ramp).clamp(0, 1)
    line = torch.minimum(rise, rise.flip(0))
    return line[:, None] * line[None]


def contrast(pixels: Tensor) -> Tensor:
    """Variance around each pixel of ``[C, h, w]``."""
    mean = _around(pixels)
    return (_around(pixels.square()) - mean.square()).clamp(min=0)


def with_contrast(mixed: Tensor, wanted: Tensor, shared: Tensor) -> Tensor:
    """``mixed`` ``[C, h, w]``, the mean of windows, with the contrast ``wanted`` that they had: detail in which they
    disagree is averaged away, and a smoother strip shows as a border does. ``shared`` ``[h, w]``: 0 where one window is
    alone, 1 where two have equal weight."""
    least = 1e-5
    there, had = (_around(each, 2 * STEADY + 1) for each in (contrast(mixed), wanted))
    gain = ((had + least) / (there + least)).sqrt().clamp(1, 2)
    return mixed + (gain - 1) * shared * (mixed - _around(mixed))


def _around(pixels: Tensor, side: int = NEIGHBOURHOOD) -> Tensor:
    return F.avg_pool2d(pixels[None], side, stride=1, padding=side // 2, count_include_pad=False)[0]


class Blend:
    """Windows of a plane, put together by their weights: ``[1, C, h, w]`` float32."""

    def __init__(self, channels: int, plane: Plane, scale: int = 1) -> None:
        self._side, self._scale = plane.side * scale, scale
        # A trace everywhere, so that the border of what is covered holds what its only window says.
        self._weight = weights(plane, scale) + 1e-6
        self._sum = torch.zeros(channels, plane.height * scale, plane.width * scale)
        self._total = torch.zeros(plane.height * scale, plane.width * scale)

    def add(self, corner: Corner, part: Tensor) -> None:
        """One window ``[C, side, side]`` on the CPU; what lies beyond the plane is cut off."""
        row, column = corner[0] * self._scale, corner[1] * self._scale
        height, width = self._total.shape
        into = (
            slice(max(row, 0), min(row + self._side, height)),
            slice(max(column, 0), min(column + self._side, width)),
        )
        of = (slice(into[0].start - row, into[0].stop - row), slice(into[1].start - column, into[1].stop - column))
        self._sum[:, *into] += part[:, *of] * self._weight[of]
        self._total[into] += self._weight[of]

    def result(self) -> Tensor:
        """The plane; 0 where no window was."""
        return (self._sum / self._total.clamp(min=1e-9))[None]

    @property
    def share(self) -> Tensor:
        """How much of each place is covered, 0 to 1: ``[h, w]``."""
        return self._total.clamp(max=1)


def over_windows(
    name: str,
    plane: Plane,
    corners: Sequence[Corner],
    size: int,
    compute: Callable[[Sequence[Corner]], Tensor],
    run: Runner,
) -> Iterator[tuple[Corner, Tensor]]:
    """``compute`` of ``corners``, ``size`` at a time: each corner with its part ``[C, ...]``, on the CPU, in order."""
    batches = [corners[i : i + size] for i in range(0, len(corners), size)]

    def unit(some: Sequence[Corner]) -> Callable[[], Tensor]:
        return lambda: compute(some).cpu()

    # Named by the place in the world: the same window has the same name in whatever part of a scene it is painted.
    names = [f"{name}-{plane.row + some[0][0]}-{plane.column + some[0][1]}" for some in batches]
    results = run([(each, unit(some)) for each, some in zip(names, batches, strict=True)])
    for some, parts in zip(batches, results, strict=True):
        yield from zip(some, parts, strict=True)


class AveragedCalls(Calls):
    """The sampler's calls on a whole plane: each prediction is that of overlapping windows, averaged by their weights
    (after MultiDiffusion, Bar-Tal et al. 2023, whose weights are even)."""

    def __init__(
        self,
        networks: tuple[Denoiser, DDPMScheduler],
        sampling: Sampling,
        noise: NoiseSource,
        plane: Plane,
        masks: Callable[[Sequence[Corner]], Tensor],
        run: Runner = at_once,
    ) -> None:
        """``masks``: corners → masks t2 int64 ``[N, 4 side, 4 side]`` of their windows."""
        super().__init__(*networks, sampling, noise)
        self._plane, self._masks, self._run = plane, masks, run
        self.corners, self.size, self.name = plane.windows(), 4, "calls"

    def _predict(self, x: Tensor, times: Tensor, conditions: list[Tensor], guided: bool) -> Tensor:
        """``conditions`` say by their number how many this call takes; what they are follows window by window."""
        blend = Blend(x.shape[1], self._plane)
        device = next(self._denoiser.parameters()).device

        def predicted(corners: Sequence[Corner]) -> Tensor:
            masks = self._masks(corners).to(device)
            there = mask_conditions(self._denoiser, masks, self._sampling.guidance_scale)[: len(conditions)]
            here = see(x, corners, self._plane.side).to(device)
            return super(AveragedCalls, self)._predict(here, times.to(device).expand(len(corners)), there, guided)

        name = f"{self.name}-{int(times[0])}"
        for corner, part in over_windows(name, self._plane, self.corners, self.size, predicted, self._run):
            blend.add(corner, part)
        return blend.result().to(x)
