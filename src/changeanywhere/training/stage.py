"""What differs between the trainings: each of the five is a :class:`Stage` in a file of its own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import Recipe

Batch = tuple[Tensor, ...]
"""Tensors ``[rows, ...]`` on the device: what this process takes of a step, the same rows in each."""


@dataclass(frozen=True)
class Learner:
    """A network and what moves its weights."""

    network: nn.Module
    optimizer: Optimizer
    largest_norm: float = math.inf
    """The gradient is scaled down to this norm; infinite = watched, not clipped."""
    norm_name: str = "gradient_norm"
    """What metrics call the norm."""

    def has_gradients(self) -> bool:
        """Whether this step reached it: a discriminator stands still until it takes part."""
        return any(parameter.grad is not None for parameter in self.network.parameters())


class Stage(ABC):
    """One training, as :func:`changeanywhere.training.loop.train_stage` drives it.

    Everything random in step N follows from (seed, N), for the whole batch; a process cuts its ``rows`` out of it.
    """

    name: str
    """Section of the recipe, and folder below ``OUT/training``."""
    headline = "loss"
    """The metric that the progress bar shows."""
    learners: Sequence[Learner]
    ended = False
    """Whether it has learned what it can, before its last step."""
    recordable = False
    """Whether a step is the same kernels whatever it computes, what :meth:`after_step` does apart: it can be recorded
    as a CUDA graph."""

    dealt = False
    """Whether a process takes rows in turn, not a block of them: where one kind of rows stands behind another and a
    step depends on what a process sees together."""

    def __init__(self, recipe: Recipe, processes: Processes) -> None:
        """A subclass builds its networks and :attr:`learners` from the seed."""
        settings = getattr(recipe, self.name)
        self.recipe, self.processes, self.seed = recipe, processes, recipe.run.seed
        self.num_steps: int = settings.num_steps
        self.batch_size: int = settings.batch_size
        self.num_parts = recipe.run.accumulation_steps
        """Parts in which a process takes its rows, one after the other."""
        self.rows = processes.rows(self.batch_size, self.num_parts, self.dealt)

    @property
    def title(self) -> str:
        """For the progress bar."""
        return self.name.replace("_", " ")

    @abstractmethod
    def learning_rate(self, step: int) -> float:
        """Of every learner at ``step``, counted from 0."""

    def begin(self) -> None:  # noqa: B027 (most begin as they are)
        """Once, before the very first step (not when a run resumes): starting weights other than random ones."""

    def seed_step(self, step: int) -> None:  # noqa: B027
        """Seed what a network draws in ``step`` by itself (dropout)."""

    @abstractmethod
    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        """What this process sees at each step from ``first_step`` to the last. Closing it ends reading processes."""

    @abstractmethod
    def backward(self, part: Batch, step: int) -> dict[str, Tensor]:
        """Add the gradients of a part of the batch (see :meth:`add_gradients`); returns scalars to be logged."""

    def after_step(self, step: int) -> dict[str, Tensor]:
        """What follows when the weights have moved; returns further scalars to be logged."""
        return {}

    def validate(self, done: int, folder: TrainingFolder) -> None:  # noqa: B027
        """After ``done`` steps: measure, if it is time, on what is not trained on."""

    def pictures(self, batch: Batch) -> list[list[Tensor]]:
        """Rows of images ``[C, H, W]`` in [-1, 1] to look at beside a checkpoint; none = no picture."""
        return []

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that the next step depends on, but for its number. The same in every process."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state`."""

    def publish(self, out: Path) -> None:  # noqa: B027
        """Beside a checkpoint that is not the last: write what can be tried already."""

    @abstractmethod
    def finish(self, out: Path) -> Path:
        """Write the result below ``out``, in the main process; returns its folder in all of them."""

    def add_gradients(self, loss: Tensor) -> None:
        """Backward through the mean loss of a part, so that all parts add up to the mean of the batch."""
        self.processes.accelerator.backward(loss / self.num_parts)


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Undo ``optimizer.state_dict()``, wherever that was said: fused as this one is, and not of a recorded step.

    Before torch reads it: by these two it settles on which device the counts of steps lie.
    """
    own = {"fused": optimizer.param_groups[0]["fused"], "capturable": False}
    groups = [group | own for group in state["param_groups"]]
    optimizer.load_state_dict({**state, "param_groups": groups})


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, cosine_decay: bool) -> float:
    """Factor on the learning rate at ``step``: linear warm-up, then constant or a cosine down to 2 %."""
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if not cosine_decay:
        return warmup
    return warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps))))
