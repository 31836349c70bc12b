"""One training step, and many of them as one CUDA graph.

A small network keeps a GPU busy for a few milliseconds a step, and the processor needs ten times as long to ask for its
thousands of kernels one by one. Recorded once, they are asked for together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from changeanywhere.training.stage import Batch, Stage

EAGER_STEPS = 3
"""Steps before the recording: libraries choose their kernels, optimisers make their state."""


def move(stage: Stage, batch: Batch, step: int) -> dict[str, Tensor]:
    """Gradients of ``batch``, this process's rows, then the optimisers' step. Returns scalars, where they are: no
    device is waited for."""
    parts = zip(*(rows.chunk(stage.num_parts) for rows in batch), strict=True)
    noted = [stage.backward(part, step) for part in parts]
    values = {name: torch.stack([part[name].detach() for part in noted]).mean() for name in noted[0]}
    for learner in stage.learners:
        if learner.has_gradients():
            parameters = list(learner.network.parameters())
            stage.processes.average_gradients(parameters)
            values[learner.norm_name] = torch.nn.utils.clip_grad_norm_(parameters, learner.largest_norm)
            learner.optimizer.step()
        stage.processes.average_statistics(learner.network)
    return values


def prepare(stage: Stage, step: int) -> None:
    """Random numbers, learning rate and empty gradients of ``step``."""
    stage.seed_step(step)
    for learner in stage.learners:
        learner.optimizer.param_groups[0]["lr"] = stage.learning_rate(step)
        learner.optimizer.zero_grad(set_to_none=True)


class RecordedSteps:
    """The steps of a stage on one GPU, whose kernels are the same at every step (:attr:`Stage.recordable`).

    The first ones are taken one by one, beside the default stream, as a recording wants it; then one is recorded and
    played from there on. Learning rate and batch lie where the recording reads them; random numbers are drawn anew
    each time, from the seed of the step.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._stream = torch.cuda.Stream(stage.processes.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._taken = 0
        self._batch: Batch = ()
        self._values: dict[str, Tensor] = {}
        self._rates: list[Tensor] = []

    def take(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Move the weights once; returns scalars that the next step overwrites."""
        self._taken += 1
        if self._taken <= EAGER_STEPS:
            return self._eagerly(batch, step)
        if self._graph is None:
            self._graph = self._record(batch, step)
        self._stage.seed_step(step)
        for rate in self._rates:
            rate.fill_(self._stage.learning_rate(step))
        for own, given in zip(self._batch, batch, strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._values | self._stage.after_step(step)

    def _eagerly(self, batch: Batch, step: int) -> dict[str, Tensor]:
        current = torch.cuda.current_stream(self._stage.processes.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            prepare(self._stage, step)
            values = move(self._stage, batch, step) | self._stage.after_step(step)
        current.wait_stream(self._stream)
        return values

    def _record(self, batch: Batch, step: int) -> torch.cuda.CUDAGraph:
        """Nothing moves while it is recorded."""
        stage = self._stage
        self._batch = tuple(torch.empty_like(tensor).copy_(tensor) for tensor in batch)
        prepare(stage, step)
        for learner in stage.learners:
            rate = torch.tensor(stage.learning_rate(step), dtype=torch.float32, device=stage.processes.device)
            learner.optimizer.param_groups[0] |= {"lr": rate, "capturable": True}
            self._rates.append(rate)
        graph = torch.cuda.CUDAGraph()
        # Watched in this thread alone: the loader's own thread pins memory meanwhile, which a recording forbids.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._values = move(stage, self._batch, step)
        return graph
