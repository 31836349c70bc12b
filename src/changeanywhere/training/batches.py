"""Which tiles a training step sees, as a function of (seed, step) alone.

Resuming then needs no sampler state: step 731 draws the same tiles, crops and flips whenever it runs, with any
number of reading processes.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from changeanywhere.errors import ChangeAnywhereError, InputError
from changeanywhere.sample import SourceSample
from changeanywhere.seeds import stream
from changeanywhere.sources import JoinedSource, Source
from changeanywhere.training.complete import Complete
from changeanywhere.training.recipe import DataRecipe, FirstStageRecipe, RunRecipe, SegmenterRecipe

Batch = TypeVar("Batch")
SECONDS_AFTER_SIGTERM = 30
NOT_IMAGED = -1_000_000
"""In masks of crops that were asked to say so: unknown ground without data."""


@dataclass(frozen=True)
class Mixture:
    """Tiles of several parts, numbered one part after the other, and the share of each in every step."""

    sizes: tuple[int, ...]
    shares: tuple[float, ...]

    def __len__(self) -> int:
        return sum(self.sizes)


def tiles_of_step(tiles: int | Mixture, batch_size: int, seed: int, step: int) -> list[int]:
    """Tile numbers of a step: epochs of shuffled tiles, cut into batches without regard to epoch ends. Each part of a
    mixture has epochs of its own; what a share leaves over is carried to the next step."""
    if isinstance(tiles, int):
        return _in_order(tiles, range(step * batch_size, (step + 1) * batch_size), seed)
    starts = [0, *accumulate(tiles.sizes)]
    before, after = (_split(n * batch_size, tiles.shares) for n in (step, step + 1))
    numbers = []
    for part, size in enumerate(tiles.sizes):
        places = range(before[part], after[part])
        numbers += [starts[part] + number for number in _in_order(size, places, seed + part)]
    return numbers


def _split(count: int, shares: Sequence[float]) -> list[int]:
    """How many of the first ``count`` tiles come from each part: a part takes its share of what the parts before it
    left. So they add up to ``count``, and none falls when ``count`` grows, as differences of rounded sums would."""
    rest, left, taken = count, 1.0, list[int]()
    for share in shares[:-1]:
        taken.append(round(rest * min(share / left, 1.0)))
        rest, left = rest - taken[-1], left - share
    return [*taken, rest]


def mixture_of(source: Source, data: DataRecipe) -> int | Mixture:
    """How steps draw from ``source``: all tiles alike, or by the shares of a recipe's further tiles and images."""
    if not isinstance(source, JoinedSource):
        return len(source)
    further, images = source.labelled - 1, len(source.sizes) - source.labelled
    masked = 1 - data.images_share if images else 1.0
    own = masked * (1 - data.further_share) if further else masked
    shares = [own, *[(masked - own) / max(further, 1)] * further, *[(1 - masked) / max(images, 1)] * images]
    return Mixture(tuple(source.sizes), tuple(shares))


def _in_order(num_tiles: int, positions: range, seed: int) -> list[int]:
    numbers = []
    for position in positions:
        epoch, place = divmod(position, num_tiles)
        numbers.append(int(_order_of_epoch(num_tiles, seed, epoch)[place]))
    return numbers


@lru_cache(maxsize=8)  # a batch may straddle two epochs, of several parts
def _order_of_epoch(num_tiles: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return stream("training.order", seed, epoch).permutation(num_tiles)


def dihedral(image: npt.NDArray[Any], view: int) -> npt.NDArray[Any]:
    """One of the 8 flips and right-angle rotations of ``[H, W, ...]``; view 0 is the image itself."""
    turned = np.rot90(image, view % 4)
    return turned[:, ::-1] if view >= 4 else turned


def turned(image: Tensor, view: int) -> Tensor:
    """A view of ``[..., H, W]``, as :func:`dihedral` numbers them."""
    whole = torch.rot90(image, view % 4, (-2, -1))
    return whole.flip(-1) if view >= 4 else whole


class StepSampler(Sampler[list[tuple[int, int, int]]]):
    """Yields the ``rows`` of a batch as (tile, step, row) for each step from ``first_step`` on."""

    def __init__(
        self, tiles: int | Mixture, batch_size: int, seed: int, first_step: int, num_steps: int, rows: range
    ) -> None:
        self.arguments = (tiles, batch_size, seed)
        self.steps, self.rows = range(first_step, num_steps), rows

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for step in self.steps:
            tiles = tiles_of_step(*self.arguments, step)
            yield [(tiles[row], step, row) for row in self.rows]

    def __len__(self) -> int:
        return len(self.steps)


class CropDataset(Dataset[tuple[Tensor, Tensor]]):
    """Random crops with a random flip or rotation: image float32 ``[C, crop, crop]`` in [-1, 1], mask int64.

    ``views``: among how many flips and rotations one is drawn; 1: the crop as it is. ``scale``: windows of
    ``crop_size`` divided, or multiplied, by up to ``1 + scale`` are brought to ``crop_size``. ``complete``: masks are
    as it has them, below 0 on ground that is none of some classes; a labelled pair is one crop of both dates, one above
    the other. ``imaged``: masks are :data:`NOT_IMAGED` on unknown ground that tiles say was not imaged.
    """

    def __init__(
        self,
        source: Source,
        crop_size: int,
        seed: int,
        scale: float = 0.0,
        views: int = 8,
        complete: Complete | None = None,
        imaged: bool = False,
    ) -> None:
        self.source, self.crop_size, self.seed, self.scale, self.views = source, crop_size, seed, scale, views
        self.complete, self.imaged = complete, imaged

    def __getitem__(self, place: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        tile, step, row = place
        rng = stream("training.crop", self.seed, step, row)
        dates = [] if self.complete is None else self.complete.dates(tile)
        if dates:
            return self._of_dates(dates, rng)
        sample = self.source.read(tile)
        side, top, left = self._drawn(sample, rng)
        learned = sample.mask.astype(np.int64) if self.complete is None else self.complete.masks(tile, sample.mask)
        if sample.valid is not None:  # of a complete folder, too: what fills it is no ground that is no building
            learned[(sample.mask == 0) & ~sample.valid] = NOT_IMAGED if self.imaged else 0
        window = slice(top, top + side), slice(left, left + side)
        seen = _cut(sample, learned, window, int(rng.integers(self.views)))
        return resized(*seen, (self.crop_size, self.crop_size))

    def _drawn(self, sample: SourceSample, rng: np.random.Generator, parts: int = 1) -> tuple[int, int, int]:
        """Side, top row and left column of a window of ``side // parts`` rows."""
        height, width = sample.image.shape[:2]
        side = self.crop_size
        if min(height, width) < side:  # of pairs: tiles of a source are as large as was asked
            raise InputError(f"{sample.item.key}: {height}x{width} px; allowed: crop_size, {side} px, and more")
        if self.scale:
            most = math.log1p(self.scale)
            side = min(round(side * math.exp(rng.uniform(-most, most))), height, width)
        return side, int(rng.integers(height - side // parts + 1)), int(rng.integers(width - side + 1))

    def _of_dates(
        self, dates: Sequence[tuple[SourceSample, npt.NDArray[np.int64]]], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """One crop of the same ground at two dates, each in a half: the first above, the second below it. Views are
        those in which ground keeps its place in its half: none, both mirrorings, and half a turn."""
        side, top, left = self._drawn(dates[0][0], rng, parts=2)
        view = int(rng.integers(self.views)) & ~1
        window, size = (slice(top, top + side // 2), slice(left, left + side)), (self.crop_size // 2, self.crop_size)
        seen = [resized(*_cut(sample, learned, window, view), size) for sample, learned in dates]
        return torch.cat([image for image, _ in seen], 1), torch.cat([mask for _, mask in seen], 0)


def _cut(
    sample: SourceSample, learned: npt.NDArray[np.int64], window: tuple[slice, slice], view: int
) -> tuple[Tensor, Tensor]:
    """A view of a window of a tile: image float ``[C, h, w]`` in [-1, 1], mask int64 ``[h, w]``."""
    image = dihedral(replace(sample, image=sample.image[window]).pixels(), view)
    mask = np.ascontiguousarray(dihedral(learned[window], view))
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), torch.from_numpy(mask)


def resized(image: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Image float ``[C, h, w]`` and mask int64 ``[h, w]``, brought to ``size``: the image filtered, the mask picked."""
    if tuple(mask.shape) == size:
        return image, mask
    filtered = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)
    picked = F.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")
    return filtered[0], picked[0, 0].long()


def loaded(batches: Iterable[Batch]) -> Generator[Batch, None, None]:
    """The batches of a loader. What a worker process raised as bad input comes without its traceback, in one line.

    Close it (``contextlib.closing``) to end the worker processes, whatever else still refers to it.
    """
    try:
        yield from batches
    except InputError as error:
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from error
    except (OSError, MemoryError, EOFError) as error:
        if isinstance(error, ConnectionError | EOFError) and bool(getattr(batches, "num_workers", 0)):
            # It was killed while it handed over a batch; usually its end is heard of first.
            raise RuntimeError(f"DataLoader worker is gone ({error})") from error
        if "in DataLoader worker" not in str(error):
            raise
        last = str(error).strip().splitlines()[-1][:200]
        raise ChangeAnywhereError(f"a process that reads beside failed: {last}; give the same command again") from error


def drawn_ahead(draw: Callable[[int], Batch], steps: range, beside: bool) -> Generator[Batch, None, None]:
    """``draw(step)`` of each step in their order; ``beside``: in a thread, while the step before it is taken."""
    if not beside:
        yield from map(draw, steps)
        return
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[Batch] | None = None
        for step in steps:
            drawn = ahead.result() if ahead else draw(step)
            ahead = pool.submit(draw, step + 1) if step + 1 in steps else None
            yield drawn


def outlive_sigterm(_: int) -> None:
    """In a reading process: end :data:`SECONDS_AFTER_SIGTERM` after SIGTERM, not at once.

    The training process is asked to stop as well, and still needs its batch; who waits for the end must not wait
    for ever.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_AFTER_SIGTERM) and None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one decides


def crop_batches(
    source: Source,
    settings: FirstStageRecipe | SegmenterRecipe,
    run: RunRecipe,
    first_step: int,
    num_steps: int,
    rows: range,
    tiles: int | Mixture,
    complete: Complete | None = None,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Loader of the ``rows`` of each batch, as :class:`CropDataset` has them, from ``first_step`` to ``num_steps``;
    those of a segmenter say what was imaged."""
    seed = run.seed
    return DataLoader(
        CropDataset(
            source,
            settings.crop_size,
            seed,
            getattr(settings, "scale", 0.0),
            getattr(settings, "views", 8),
            complete,
            isinstance(settings, SegmenterRecipe),
        ),
        batch_sampler=StepSampler(tiles, settings.batch_size, seed, first_step, num_steps, rows),
        num_workers=run.num_workers,
        worker_init_fn=outlive_sigterm,
        pin_memory=torch.cuda.is_available(),
    )
