"""What both training loops share: the run's folder, metrics, checkpoints that resume exactly, progress."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from changeanywhere.errors import ModelError, OutputError, TrainingDivergedError
from changeanywhere.stopping import polite_stop
from changeanywhere.storage import atomic_file, atomic_write
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import Recipe

ADJUSTABLE = ("accumulation_steps", "num_workers", "log_every", "save_every")
"""Settings of ``run`` that may change when a run resumes: they change nothing but the last bits."""

STOP_AGREED_EVERY = 10
"""Steps between two moments at which several processes agree to stop: a collective that the device is waited for."""


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, cosine_decay: bool) -> float:
    """Factor on the learning rate at ``step``: linear warm-up, then constant or a cosine down to 2 %."""
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if not cosine_decay:
        return warmup
    return warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps))))


class TrainingRun:
    """One stage's folder: ``recipe.json``, ``metrics.jsonl``, ``samples/``, ``checkpoint.pt``, TensorBoard files.

    The same recipe on the same folder resumes; another recipe raises :class:`OutputError` naming the difference.
    Only ``num_steps`` and the :data:`ADJUSTABLE` settings of ``run`` may change, and ``content``, a hash of the
    training data, must not. Of several processes the main one writes, the others only read.
    """

    def __init__(self, folder: Path, stage: str, recipe: Recipe, processes: Processes, content: str) -> None:
        self.folder, self.recipe, self.processes, self.stage = folder, recipe, processes, stage
        self._writer = None
        if processes.is_main:
            try:
                (folder / "samples").mkdir(parents=True, exist_ok=True)
                self._freeze(stage, content)
            except OSError as error:
                raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error
            self._writer = self._tensorboard()
        processes.wait()
        self._started: float | None = None
        self._first_step = 0
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._sigterm = threading.Event()
        self._stopping = False

    def _freeze(self, stage: str, content: str) -> None:
        sections, defaults = asdict(self.recipe), asdict(Recipe())
        frozen: dict[str, Any] = {name: sections[name] for name in ("data", stage, "run")}
        frozen["data"]["content"], defaults["data"]["content"] = content, content
        frozen["run"]["init"], defaults["run"]["init"] = sections["init"], None
        for key in ADJUSTABLE:
            del frozen["run"][key]
        del frozen[stage]["num_steps"]
        file = self.folder / "recipe.json"
        if not file.exists() or not (self.folder / "checkpoint.pt").exists():  # nothing depends on it yet
            atomic_write(file, (json.dumps(frozen, indent=1) + "\n").encode())
            return
        try:
            before = json.loads(file.read_text())
        except ValueError as error:
            raise OutputError(f"{file}: damaged; give another --out") from error
        for section, values in frozen.items():
            for key, value in values.items():
                # A setting that is younger than the run was at its default.
                old = before.get(section, {}).get(key, defaults[section][key])
                if old != value:
                    raise OutputError(
                        f"{self.folder}: was started with {section}.{key} = {old!r}, now {value!r}; "
                        "give another --out or the old value"
                    )

    def _tensorboard(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # the "train" extra is not installed: metrics.jsonl has every number
            return None
        return SummaryWriter(str(self.folder / "tensorboard"))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, None at a fresh start. Unpickles tensors and plain containers only."""
        file = self.folder / "checkpoint.pt"
        if not file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ModelError(
                f"{file}: not a readable checkpoint ({type(error).__name__}); delete it to start over"
            ) from error
        if self.processes.is_main:
            for name in ("metrics.jsonl", "validation.jsonl"):
                _keep_rows(self.folder / name, int(state["step"]))
        return state

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint atomically: a crash leaves the old one.

        After a SIGTERM (see :meth:`running`) it raises :class:`KeyboardInterrupt` in every process once that is done.
        """
        if self.processes.is_main:
            self._write_checkpoint(state)
        if self._stopping:
            self.processes.wait()
            raise KeyboardInterrupt

    def _write_checkpoint(self, state: Mapping[str, Any]) -> None:
        temporary = self.folder / "checkpoint.pt.part"
        try:
            torch.save(dict(state), temporary)
            temporary.replace(self.folder / "checkpoint.pt")
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            temporary.unlink(missing_ok=True)
            raise OutputError(f"{temporary}: cannot be written ({error}); the last checkpoint is intact") from error

    @contextmanager
    def running(self, first_step: int) -> Iterator[None]:
        """Around the steps: throughput counts from here, and SIGTERM ends the run after a checkpoint of its own."""
        if not self.processes.agree(first_step):
            raise ModelError(
                f"{self.folder}: the processes begin at different steps; every machine must see the same --out"
            )
        if self.processes.is_main:
            print(f"{self.stage.replace('_', '-')}: {self.processes} from step {first_step}", file=sys.stderr)
        self._started, self._first_step = time.perf_counter(), first_step
        with polite_stop() as self._sigterm:
            yield

    def due(self, step: int, num_steps: int) -> tuple[bool, bool]:
        """Whether metrics and whether a checkpoint are due after ``step``; the last step always writes both."""
        done = step + 1
        settings = self.recipe.run
        last = done == num_steps
        self._stopping = not last and self._asked_to_stop(done)
        return done % settings.log_every == 0 or last, done % settings.save_every == 0 or last or self._stopping

    def _asked_to_stop(self, done: int) -> bool:
        """Whether SIGTERM came, to any of the processes: all of them must stop after the same step."""
        if self.processes.count == 1:
            return self._sigterm.is_set()
        if done % STOP_AGREED_EVERY:
            return False
        heard = torch.tensor(float(self._sigterm.is_set()), device=self.processes.device)
        return bool(self.processes.sum(heard))

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Note scalars of one step, where they are: the device is not waited for."""
        for name, value in values.items():
            total, count = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = (total + value.detach(), count + 1)

    def means(self, step: int) -> dict[str, float]:
        """Means over the steps since the last call and over all processes.

        Raises :class:`TrainingDivergedError` if one of them is NaN or infinite: any step's loss makes its mean so.
        Call it before :meth:`save_checkpoint`, so that the checkpoint on disk is always a sound one.
        """
        if not self._sums:
            return {}
        stacked = torch.stack([total.float() / count for total, count in self._sums.values()])
        values = dict(zip(self._sums, self.processes.mean(stacked).tolist(), strict=True))
        self._sums.clear()
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingDivergedError(
                    f"{self.folder}: {name} is {value} at or shortly before step {step + 1}; the checkpoint before is "
                    "intact; lower the learning rate and give another --out, or set run.mixed_precision to no"
                )
        return values

    def log(self, step: int, images_per_step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Append to ``metrics.jsonl`` and TensorBoard; returns the values with images/s added."""
        assert self._started is not None
        elapsed = time.perf_counter() - self._started
        rate = (step + 1 - self._first_step) * images_per_step / max(elapsed, 1e-9)
        record = {"step": step + 1, **values, "images_per_second": rate}
        if not self.processes.is_main:
            return record
        append_line(self.folder / "metrics.jsonl", {k: float(f"{v:.6g}") for k, v in record.items()})
        if self._writer is not None:
            for name, value in record.items():
                if name != "step":
                    self._writer.add_scalar(name, value, step + 1)
        return record

    def save_grid(self, step: int, rows: list[list[Tensor]]) -> None:
        """Images ``[C, H, W]`` in [-1, 1], row by row, into ``samples/STEP.png`` (first three channels)."""
        if not self.processes.is_main:
            return
        lines = [torch.cat([image[:3].float().cpu() for image in row], dim=2) for row in rows]
        grid = torch.cat(lines, dim=1).clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
        with atomic_file(self.folder / "samples" / f"{step:07d}.png") as target:
            Image.fromarray(np.ascontiguousarray(grid)).save(target, "PNG")


def append_line(file: Path, content: Mapping[str, Any]) -> None:
    """A line of JSON more; :class:`OutputError` if it cannot be written."""
    try:
        with file.open("a") as lines:
            lines.write(json.dumps(content) + "\n")
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror}); the last checkpoint is intact") from error


def _keep_rows(file: Path, step: int) -> None:
    """Drop the lines after ``step``: a run that was killed between a log and a checkpoint takes those steps again."""
    if file.is_file():
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            atomic_write(file, "".join(f"{line}\n" for line in kept).encode())


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # cut off by the kill
        return math.inf
