"""Which tiles a training step sees, as a function of (seed, step) alone.

Resuming then needs no sampler state: step 731 draws the same tiles, crops and flips whenever it runs, with any
number of reading processes.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from changeanywhere.errors import ChangeAnywhereError, InputError
from changeanywhere.seeds import stream
from changeanywhere.sources import Source
from changeanywhere.training.recipe import FirstStageRecipe, RunRecipe, SegmenterRecipe

Batch = TypeVar("Batch")
SECONDS_AFTER_SIGTERM = 30


def tiles_of_step(num_tiles: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Tile numbers of a step: epochs of shuffled tiles, cut into batches without regard to epoch ends."""
    numbers = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, num_tiles)
        numbers.append(int(_order_of_epoch(num_tiles, seed, epoch)[place]))
    return numbers


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def _order_of_epoch(num_tiles: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return stream("training.order", seed, epoch).permutation(num_tiles)


def dihedral(image: npt.NDArray[Any], view: int) -> npt.NDArray[Any]:
    """One of the 8 flips and right-angle rotations of ``[H, W, ...]``; view 0 is the image itself."""
    turned = np.rot90(image, view % 4)
    return turned[:, ::-1] if view >= 4 else turned


class StepSampler(Sampler[list[tuple[int, int, int]]]):
    """Yields the ``rows`` of a batch as (tile, step, row) for each step from ``first_step`` on."""

    def __init__(
        self, num_tiles: int, batch_size: int, seed: int, first_step: int, num_steps: int, rows: range
    ) -> None:
        self.arguments = (num_tiles, batch_size, seed)
        self.steps, self.rows = range(first_step, num_steps), rows

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for step in self.steps:
            tiles = tiles_of_step(*self.arguments, step)
            yield [(tiles[row], step, row) for row in self.rows]

    def __len__(self) -> int:
        return len(self.steps)


class CropDataset(Dataset[tuple[Tensor, Tensor]]):
    """Random crops with a random flip or rotation: image float32 ``[C, crop, crop]`` in [-1, 1], mask int64."""

    def __init__(self, source: Source, crop_size: int, seed: int) -> None:
        self.source, self.crop_size, self.seed = source, crop_size, seed

    def __getitem__(self, place: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        tile, step, row = place
        rng = stream("training.crop", self.seed, step, row)
        sample = self.source.read(tile)
        height, width = sample.image.shape[:2]
        top, left = rng.integers(height - self.crop_size + 1), rng.integers(width - self.crop_size + 1)
        window = slice(top, top + self.crop_size), slice(left, left + self.crop_size)
        view = int(rng.integers(8))
        image = dihedral(replace(sample, image=sample.image[window]).pixels(), view)
        mask = dihedral(sample.mask[window], view).astype(np.int64)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), torch.from_numpy(mask)


def loaded(batches: Iterable[Batch]) -> Generator[Batch, None, None]:
    """The batches of a loader. What a worker process raised as bad input comes without its traceback, in one line.

    Close it (``contextlib.closing``) to end the worker processes, whatever else still refers to it.
    """
    try:
        yield from batches
    except InputError as error:
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from error
    except (OSError, MemoryError) as error:
        if "in DataLoader worker" not in str(error):
            raise
        last = str(error).strip().splitlines()[-1][:200]
        raise ChangeAnywhereError(
            f"a process that reads for the training failed: {last}; the same command resumes"
        ) from error


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
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Loader of the ``rows`` of each batch, as :class:`CropDataset` has them, from ``first_step`` to ``num_steps``."""
    seed = run.seed
    return DataLoader(
        CropDataset(source, settings.crop_size, seed),
        batch_sampler=StepSampler(len(source), settings.batch_size, seed, first_step, num_steps, rows),
        num_workers=run.num_workers,
        worker_init_fn=outlive_sigterm,
        pin_memory=torch.cuda.is_available(),
    )
