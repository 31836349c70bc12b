"""What both training loops share: the run's folder, metrics, checkpoints that resume exactly, progress."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor

from changeanywhere.errors import ConfigError, ModelError, OutputError, TrainingDivergedError
from changeanywhere.training.recipe import Recipe


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, cosine_decay: bool) -> float:
    """Factor on the learning rate at ``step``: linear warm-up, then constant or a cosine down to 2 %."""
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if not cosine_decay:
        return warmup
    return warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps))))


def single_process_accelerator(mixed_precision: str) -> Accelerator:
    """Device and mixed precision; :class:`ConfigError` under a launcher with several processes."""
    AcceleratorState._reset_state()  # it remembers the precision of an earlier run in this process
    accelerator = Accelerator(mixed_precision=mixed_precision)
    if accelerator.num_processes > 1:
        raise ConfigError("training on several processes is not supported yet; start one process")
    return accelerator


class TrainingRun:
    """One stage's folder: ``recipe.json``, ``metrics.jsonl``, ``samples/``, ``checkpoint.pt``, TensorBoard files.

    The same recipe on the same folder resumes; another recipe raises :class:`OutputError` naming the difference.
    Only ``num_steps``, ``run.num_workers``, ``run.log_every`` and ``run.save_every`` may change.
    """

    def __init__(self, folder: Path, stage: str, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        try:
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            self._freeze(stage)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error
        self._writer = self._tensorboard()
        self._started: float | None = None
        self._first_step = 0

    def _freeze(self, stage: str) -> None:
        sections = asdict(self.recipe)
        frozen: dict[str, Any] = {"data": sections["data"], stage: sections[stage], "run": sections["run"]}
        for key in ("num_workers", "log_every", "save_every"):
            del frozen["run"][key]
        del frozen[stage]["num_steps"]
        file = self.folder / "recipe.json"
        if not file.exists():
            file.write_text(json.dumps(frozen, indent=1) + "\n")
            return
        before = json.loads(file.read_text())
        for section, values in frozen.items():
            for key, value in values.items():
                old = before.get(section, {}).get(key)
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
        return state

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint atomically: a crash leaves the old one."""
        temporary = self.folder / "checkpoint.pt.part"
        try:
            torch.save(dict(state), temporary)
            temporary.replace(self.folder / "checkpoint.pt")
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise OutputError(f"{temporary}: cannot be written ({error}); the last checkpoint is intact") from error

    def start_clock(self, step: int) -> None:
        """Throughput counts from here."""
        self._started, self._first_step = time.perf_counter(), step

    def log(self, step: int, images_per_step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Append to ``metrics.jsonl`` and TensorBoard; returns the values with images/s added."""
        assert self._started is not None
        elapsed = time.perf_counter() - self._started
        rate = (step + 1 - self._first_step) * images_per_step / max(elapsed, 1e-9)
        record = {"step": step + 1, **values, "images_per_second": rate}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({k: float(f"{v:.6g}") for k, v in record.items()}) + "\n")
        if self._writer is not None:
            for name, value in record.items():
                if name != "step":
                    self._writer.add_scalar(name, value, step + 1)
        return record

    def check_finite(self, step: int, values: Mapping[str, float]) -> None:
        """Raise :class:`TrainingDivergedError` at the first NaN or infinity."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingDivergedError(
                    f"{self.folder}: {name} is {value} at step {step + 1}; the checkpoint before is intact; "
                    "lower the learning rate and give another --out, or set run.mixed_precision to no"
                )

    def save_grid(self, step: int, rows: list[list[Tensor]]) -> Path:
        """Images ``[C, H, W]`` in [-1, 1], row by row, into ``samples/STEP.png`` (first three channels)."""
        lines = [torch.cat([image[:3].float().cpu() for image in row], dim=2) for row in rows]
        grid = torch.cat(lines, dim=1).clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
        path = self.folder / "samples" / f"{step:07d}.png"
        Image.fromarray(np.ascontiguousarray(grid)).save(path)
        return path
