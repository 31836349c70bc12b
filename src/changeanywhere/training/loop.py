"""The one training loop. What is trained is a :class:`~changeanywhere.training.stage.Stage`; how is written here.

A step in words: each process takes its rows of the batch, in parts if memory is short; gradients add up over the
parts, are averaged over the processes, and the weights move. Step N is a function of (seed, N), so that a checkpoint
(weights, optimisers, N) is all that a resumed run needs to end in the bits of an unbroken one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from changeanywhere.errors import ChangeAnywhereError, ModelError, OutputError
from changeanywhere.progress import Progress, silent
from changeanywhere.terminal import say
from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.metrics import Metrics
from changeanywhere.training.processes import Processes
from changeanywhere.training.stage import Batch, Stage
from changeanywhere.training.step import RecordedSteps, move, prepare

MAX_THREADS = 1024
STOP_AGREED_EVERY = 10
"""Steps between two moments at which several processes agree to stop: a collective that the device is waited for."""


def train_stage(stage: Stage, folder: TrainingFolder, progress: Progress = silent, stop: Event | None = None) -> Path:
    """Train ``stage``, or resume it, in ``folder``; returns the folder of the result.

    Once ``stop`` is set the run ends after the step it is at, with a checkpoint of its own, in a
    :class:`KeyboardInterrupt`. Raises :class:`TrainingDivergedError` before a loss that is no number reaches a
    checkpoint.
    """
    with _in_one_line(folder), folder.at_work():  # its end may be heard of while the folder is given back
        return _train(stage, folder, progress, stop)


@contextmanager
def _in_one_line(folder: TrainingFolder) -> Iterator[None]:
    """What ends a reading process from outside (no memory left, a kill) reaches this one as a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChangeAnywhereError(
            f"{folder.path}: a process that reads for the training died ({' '.join(str(error).split())[:120]}), often "
            "for want of memory; the last checkpoint is intact: the same command resumes, with a smaller "
            "--run.num-workers where memory is short"
        ) from error


def _train(stage: Stage, folder: TrainingFolder, progress: Progress, stop: Event | None) -> Path:
    processes, settings = stage.processes, stage.recipe.run
    first_step = _resume(stage, folder)
    metrics = Metrics(folder, stage.batch_size, first_step)
    recorded = recorded_steps(stage)
    with closing(stage.batches(stage.num_steps if stage.ended else first_step)) as batches:
        for step, batch in enumerate(batches, first_step):
            metrics.add(recorded.take(batch, step) if recorded else take_step(stage, batch, step))
            done = step + 1
            last = done == stage.num_steps
            stopping = not last and _agreed(stop, done, processes)
            save = last or stopping or done % settings.save_every == 0
            if save or done % settings.log_every == 0:
                metrics.write(done)
            stage.validate(done, folder)
            if stage.ended and not last:
                if not (save or done % settings.log_every == 0):
                    metrics.write(done)
                last, stopping, save = True, False, True
            if save:
                folder.save_checkpoint({"step": done, **stage.state()})
                if not last:
                    stage.publish(folder.out)
            if stopping:
                processes.wait()  # nobody leaves before the checkpoint is there
                raise KeyboardInterrupt
            if processes.is_main:
                if save:
                    folder.save_pictures(done, stage.pictures(batch))
                progress(metrics.headline(stage.title, stage.headline), done, stage.num_steps)
            if stage.ended:
                break
    result = stage.finish(folder.out)
    processes.wait()
    return result


def _resume(stage: Stage, folder: TrainingFolder) -> int:
    """The step to go on from: the last checkpoint's, or 0."""
    first_step, state = 0, folder.load_checkpoint()
    if state is None:
        folder.forget_best()
        stage.begin()
    elif state["step"] > stage.num_steps:
        raise OutputError(
            f"{folder.path}: has taken {state['step']} steps; {stage.name}.num_steps is {stage.num_steps}; allowed: "
            f"{state['step']} and more, or another --out"
        )
    else:
        _keep_threads(stage, state)
        try:
            stage.load_state(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise ModelError(
                f"{folder.path / 'checkpoint.pt'}: does not fit this training ({reason}); delete it to start over"
            ) from error
        first_step = int(state["step"])
    if not stage.processes.agree(first_step):
        raise ModelError(
            f"{folder.path}: the processes begin at different steps; every machine must see the same --out"
        )
    if stage.processes.is_main:
        say(f"{stage.name.replace('_', '-')}: {stage.processes} from step {first_step}", error=True)
    return first_step


def _keep_threads(stage: Stage, state: Mapping[str, Any]) -> None:
    """On a CPU sums depend on the number of threads in their last bits: a run goes on with as many as it began with."""
    threads, own = state.get("threads"), torch.get_num_threads()
    if not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS or stage.processes.device.type != "cpu":
        return
    if threads != own:
        torch.set_num_threads(threads)
        if stage.processes.is_main:
            say(f"going on with {threads} thread(s) as the run began, not {own}: results depend on it", error=True)


def take_step(stage: Stage, batch: Batch, step: int) -> dict[str, Tensor]:
    """Move the weights once; ``batch``: this process's rows. Returns scalars, where they are: no device is waited
    for."""
    prepare(stage, step)
    return move(stage, batch, step) | stage.after_step(step)


def recorded_steps(stage: Stage) -> RecordedSteps | None:
    """Steps as a CUDA graph, where there is a GPU for it and nothing in a step depends on what it computes."""
    alone = stage.processes.count == 1 and stage.processes.device.type == "cuda"
    return RecordedSteps(stage) if alone and stage.recordable else None


def _agreed(stop: Event | None, done: int, processes: Processes) -> bool:
    """Whether any process was asked to stop: all of them must, after the same step."""
    asked = stop is not None and stop.is_set()
    if processes.count == 1:
        return asked
    return done % STOP_AGREED_EVERY == 0 and processes.any(asked)
