"""What a training says of itself: means over steps and processes, and how fast it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from changeanywhere.errors import TrainingDivergedError
from changeanywhere.training.folder import TrainingFolder


class Metrics:
    """Means of the scalars of the steps since the last line; throughput counts from here."""

    def __init__(self, folder: TrainingFolder, batch_size: int, first_step: int) -> None:
        self._folder, self._batch_size, self._first_step = folder, batch_size, first_step
        self._started = time.perf_counter()
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._last: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Note scalars of one step, where they are: the device is not waited for."""
        for name, value in values.items():
            total, count = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = (total + value.detach(), count + 1)

    def write(self, done: int) -> None:
        """A line after ``done`` steps: means over the steps since the last one and over all processes.

        Raises :class:`TrainingDivergedError` if one of them is NaN or infinite: any step's loss makes its mean so. It
        is called before a checkpoint is saved, so that the one on disk is always a sound one.
        """
        stacked = torch.stack([total.float() / count for total, count in self._sums.values()])
        self._last = dict(zip(self._sums, self._folder.processes.mean(stacked).tolist(), strict=True))
        self._sums.clear()
        for name, value in self._last.items():
            if not math.isfinite(value):
                raise TrainingDivergedError(
                    f"{self._folder.path}: {name} is {value} at or shortly before step {done}; the checkpoint before "
                    "is intact; lower the learning rate and give another --out, or set run.mixed_precision to no"
                )
        elapsed = time.perf_counter() - self._started
        rate = (done - self._first_step) * self._batch_size / max(elapsed, 1e-9)
        self._folder.log({"step": done, **self._last, "images_per_second": rate})

    def headline(self, title: str, name: str) -> str:
        """``denoiser  loss 0.0939``: two spaces end the part that does not change."""
        return f"{title}  {name} {self._last[name]:.4f}" if name in self._last else title
