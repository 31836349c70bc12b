"""Several processes, on one machine or many, that take the training steps of one together.

Step N sees the same tiles and random numbers with any number of processes: each takes its rows of the batch, and the
gradients are averaged before the optimiser steps. That is one flat all-reduce after the backward pass rather than a
wrapped module, because the loops call parts of a network on their own (adaptive weight at the decoder's last layer,
the mask encoder) and accumulate gradients; what it costs is that it does not overlap with the backward pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from changeanywhere.errors import ConfigError
from changeanywhere.models.copies import onto
from changeanywhere.training.recipe import RunRecipe


class Processes:
    """What ``accelerate launch`` started (a single process without it): device, precision, collectives."""

    def __init__(self, run: RunRecipe) -> None:
        """:class:`ConfigError` if the recipe asks for what the device cannot do.

        That is ``compile`` on a CPU: the backward pass that torch 2.13.0 compiles there for a residual block before
        nearest-neighbour upsampling loses gradients without a word (all of the encoder's; losses agree at first).
        """
        AcceleratorState._reset_state()  # it remembers the precision of an earlier run in this process
        self.accelerator = Accelerator(mixed_precision=run.mixed_precision)
        self.device: torch.device = self.accelerator.device
        self.count: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        self.is_main: bool = self.accelerator.is_main_process
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1 and self.count == 1:  # each of them would train the whole model, into the same folder
            raise ConfigError(
                f"{started} processes were started, but did not join; without a GPU: "
                f"ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {started} ..."
            )
        if run.compile and self.device.type == "cpu":
            raise ConfigError("run.compile is true; allowed on a CPU: false (torch compiles gradients wrongly there)")

    def __str__(self) -> str:
        """``2 processes on cuda, bf16``."""
        precision = "float32" if self.accelerator.mixed_precision == "no" else self.accelerator.mixed_precision
        return f"{self.count} process{'es' if self.count > 1 else ''} on {self.device.type}, {precision}"

    def rows(self, batch_size: int, accumulation_steps: int, dealt: bool = False) -> range:
        """The rows of a batch that this process takes; :class:`ConfigError` if it does not divide evenly.

        ``dealt``: one by one in turn, not a block of them: of a batch in which one kind of rows stands behind another
        each process then has its share of both.
        """
        parts = self.count * accumulation_steps
        if batch_size % parts:
            raise ConfigError(
                f"batch_size {batch_size} is not divisible by {self.count} processes x run.accumulation_steps "
                f"{accumulation_steps}; batch_size counts the tiles of a step over all processes"
            )
        if dealt:
            return range(self.rank, batch_size, self.count)
        share = batch_size // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()

    def put(self, *images: Tensor) -> tuple[Tensor, ...]:
        """Images ``[B, C, H, W]`` onto the device, channels-last; masks ``[B, H, W]`` as they are."""
        formats = (torch.channels_last if tensor.dim() == 4 else torch.preserve_format for tensor in images)
        return tuple(onto(t, self.device, f) for t, f in zip(images, formats, strict=True))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.mean(torch.cat([g.reshape(-1) for g in gradients]))
        for gradient, averaged in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(averaged.view(gradient.shape))

    @torch.no_grad()
    def average_statistics(self, network: nn.Module) -> None:
        """Replace what batch normalisations have gathered, each process from its own rows, by the mean over the
        processes: what is saved, and what a teacher reads with, is then that of the whole batch. The variance is that
        within a process's rows."""
        if self.count == 1:
            return
        norms = [each for each in network.modules() if isinstance(each, _NormBase) and each.training]
        own = [buffer for each in norms for buffer in (each.running_mean, each.running_var) if buffer is not None]
        if own:
            flat = self.mean(torch.cat(own))
            for buffer, averaged in zip(own, torch.split(flat, [b.numel() for b in own]), strict=True):
                buffer.copy_(averaged)

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over the processes, of a tensor of equal shape in each."""
        return self.sum(tensor) / self.count if self.count > 1 else tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, of a tensor of equal shape in each."""
        if self.count == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def whole(self, count: Tensor) -> Tensor:
        """By what a sum over ``count`` places of this process's rows is divided, 1 at least, so that the mean over the
        processes is the mean over the places of all of them."""
        return self.sum(count).clamp(min=1) / self.count if self.count > 1 else count.clamp(min=1)

    def gather(self, tensor: Tensor) -> Tensor:
        """``[N, ...]`` of every process, one behind the other: ``[processes · N, ...]``."""
        if self.count == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in one of the processes, or in more; the device is waited for."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)))

    def agree(self, value: int) -> bool:
        """Whether every process has the same ``value``."""
        values = self.gather(torch.tensor([value], device=self.device))
        return bool((values == value).all())

    def said_by_main(self, text: str) -> str:
        """``text`` of the main process, in all of them."""
        said = [text]
        if self.count > 1:
            dist.broadcast_object_list(said, src=0, device=self.device)
        return said[0]

    def copy_from_main(self, tensor: Tensor) -> None:
        """Overwrite ``tensor`` with the main process's (sums on a GPU differ between processes in the last bits)."""
        if self.count > 1:
            dist.broadcast(tensor, src=0)
