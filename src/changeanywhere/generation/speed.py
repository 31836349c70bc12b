"""``changeanywhere speed``: what this machine paints per second, where the time goes, and what it could at most."""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from changeanywhere.diffusion.options import DTYPES
from changeanywhere.errors import require
from changeanywhere.generation.finish import finished_pair
from changeanywhere.generation.generate import generate, painter_of, threads_of
from changeanywhere.generation.job import Job, current_versions
from changeanywhere.generation.lanes import lanes_of
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.plan import load_shard
from changeanywhere.generation.prepare import get_plan, job_of
from changeanywhere.generation.shard import read
from changeanywhere.help import one_of
from changeanywhere.limits import check_limits
from changeanywhere.machine import read_file, usable_processors
from changeanywhere.painters.base import Painter
from changeanywhere.pairs.writer import write_pair
from changeanywhere.progress import Progress, silent
from changeanywhere.shipped import EXAMPLES, find_source
from changeanywhere.storage import LocalStore
from changeanywhere.text import one_line

NETWORKS = ("encoding", "denoising", "decoding")
STAGES = ("reading", *NETWORKS, "rest of painting", "writing")
MAX_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """Options of ``changeanywhere speed``."""

    model: str = GenerateOptions.model
    """``mini`` (in the package) or a model folder."""
    source: Path = Path(EXAMPLES)
    """Tiles to paint; ``examples``: those of the package."""
    tile_size: int | None = None
    """Side of a tile, px; default: what the model was trained on."""
    num_pairs: int = 32
    """Pairs of the whole command, which is timed once, after the stages."""
    rounds: int = 3
    """Batches by which each stage is timed, after one that warms up."""
    num_steps: int | None = None
    """Denoiser calls per image; default: what the model recommends."""
    batch_size: int | None = None
    """Pairs painted at once; default: that of generate."""
    device: str | None = None
    """cpu, cuda, …; default: cuda where there is one. Of several GPUs CUDA_VISIBLE_DEVICES=1 before the command takes
    the second."""
    dtype: str | None = one_of(DTYPES)
    """float32, bfloat16 or float16; default: that of generate."""
    num_threads: int | None = None
    """CPU threads of the model, on up to four batches at once; default: all."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        check_limits(self)
        require(1 <= self.rounds <= MAX_ROUNDS, "rounds", self.rounds, f"1 to {MAX_ROUNDS}")

    def generating(self, out: Path) -> GenerateOptions:
        """The same as options of ``generate``."""
        return GenerateOptions(
            source=Path(find_source(self.source)), out=out, model=self.model, num_pairs=self.num_pairs,
            tile_size=self.tile_size, num_steps=self.num_steps, batch_size=self.batch_size, device=self.device,
            dtype=self.dtype, num_threads=self.num_threads,
        )  # fmt: skip


@dataclass(frozen=True)
class Speed:
    """What was measured."""

    machine: Mapping[str, str]
    """What it was measured on and with, in words."""
    seconds: Mapping[str, float]
    """By stage, of one pair, one stage after the other on one thread of the host."""
    calls: float
    """Of the denoiser, by batch."""
    pairs_per_second: float
    """Of the whole command, which reads, paints and writes at once."""
    at_once: int = 1
    """Batches that the command paints at once."""

    @property
    def ceiling(self) -> float:
        """Pairs per second if there were no work but that of the networks."""
        return self.at_once / sum(self.seconds[stage] for stage in NETWORKS)

    def text(self) -> str:
        """For people, and for an issue: Markdown."""
        total = sum(self.seconds.values())
        lines = [f"{name}: {value}  " for name, value in self.machine.items()]
        lines += ["", "| stage | ms per pair | share |", "|---|---|---|"]
        lines += [f"| {name} | {1000 * s:.1f} | {s / total:.0%} |" for name, s in self.seconds.items()]
        lines += ["", f"whole command: {self.pairs_per_second:.2f} pairs/s  "]
        lines += [f"ceiling, the networks alone: {self.ceiling:.2f} pairs/s ({self.calls:.1f} denoiser calls a batch)"]
        return "\n".join(lines)


def measure_speed(options: SpeedOptions, progress: Progress = silent) -> Speed:
    """Paint some batches with a clock at every stage, then a small set as ``generate`` does; nothing is kept.

    Raises as :func:`.generate.generate` does.
    """
    options.check()
    with tempfile.TemporaryDirectory(prefix="changeanywhere-speed-") as folder:
        asked = options.generating(Path(folder) / "set")
        asked.check()
        job = job_of(asked, LocalStore(asked.out), silent)
        with threads_of(job):
            painter, job = painter_of(job)
            seconds, calls = _stages(job, painter, options.rounds, LocalStore(Path(folder) / "stages"), progress)
            report = generate(asked, progress)
    return Speed(_machine(job), seconds, calls, report.pairs_per_second, lanes_of(job).count)


def _stages(
    job: Job, painter: Painter, rounds: int, store: LocalStore, progress: Progress
) -> tuple[dict[str, float], float]:
    """Seconds by stage of one pair, and denoiser calls by batch."""
    assert job.machine is not None
    plan, clock = get_plan(job, store, silent), Clock(job.machine.device)
    pairs = [pair for number in range(plan.num_shards) for pair in load_shard(store, number, plan).pairs]
    size, legend = min(job.machine.batch_size, len(pairs)), job.tiles.source.legend
    watched, painted = clock.watching(painter), 0
    for round_ in range(rounds + 1):
        if round_ == 1:  # the first warms up
            clock.clear()
            painted = 0
        some = [pairs[(round_ * size + n) % len(pairs)] for n in range(size)]
        batch = clock.timed("reading", read)(job, some)
        paintings = clock.timed("painting", watched.paint)(batch)
        started = time.perf_counter()
        for painting in paintings:
            key, sample = some[painting.place].key, batch.samples[painting.place]
            write_pair(store, finished_pair(job, key, painting, sample, job.provenance)[0], legend, job.finishing.files)
        clock.seconds["writing"] += time.perf_counter() - started
        painted += len(paintings)
        progress("timing stages", round_ + 1, rounds + 1)
    clock.seconds["rest of painting"] = clock.seconds["painting"] - sum(clock.seconds[name] for name in NETWORKS)
    return {name: max(clock.seconds[name], 1e-9) / max(painted, 1) for name in STAGES}, clock.calls / rounds


class Clock:
    """Seconds by stage; a GPU has done what it was told before a clock is read."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls = 0
        self._device, self._begun = device, 0.0

    def clear(self) -> None:
        """Forget what was counted."""
        self.seconds.clear()
        self.calls = 0

    def now(self) -> float:
        """Once the device is idle."""
        import torch

        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, its time added to ``stage``."""

        def run(*arguments: Any, **named: Any) -> Any:
            started = self.now()
            try:
                return work(*arguments, **named)
            finally:
                self.seconds[stage] += self.now() - started

        return run

    def watching(self, painter: Any) -> Any:
        """``painter``, its networks on the clock, by hooks of torch that leave what they compute as it is."""
        pipe = painter.pipeline
        pipe.encode, pipe.decode = self.timed("encoding", pipe.encode), self.timed("decoding", pipe.decode)

        def begin(*_: object) -> None:
            self._begun = self.now()

        def end(*_: object) -> None:
            self.seconds["denoising"] += self.now() - self._begun
            self.calls += 1

        pipe.denoiser.register_forward_pre_hook(begin)
        pipe.denoiser.register_forward_hook(end)
        return painter


def _machine(job: Job) -> dict[str, str]:
    assert job.machine is not None and job.painter is not None and job.sampling is not None
    machine, versions = job.machine, current_versions()
    name = next(
        (line.partition(":")[2] for line in read_file("/proc/cpuinfo").splitlines() if "model name" in line), ""
    )
    tile = job.source.options.tile_size
    words = {
        "versions": ", ".join(f"{each} {number}" for each, number in versions.items()),
        "system": f"Python {platform.python_version()}, {sys.platform} {platform.machine()}",
        "processor": f"{name.strip() or platform.processor() or 'unknown'}, {usable_processors()} usable",
        "device": f"{_device(machine.device)}, {machine.dtype}, batch {machine.batch_size}, "
        f"{machine.num_threads} threads, {lanes_of(job).count} batches at once",
        "model": f"{Path(job.painter.model).name} {job.painter.model_hash}, {tile} px, {job.sampling.sampler}, "
        f"{job.sampling.num_steps} steps",
    }
    return {what: one_line(text) for what, text in words.items()}


def _device(name: str) -> str:
    import torch

    return f"{name} ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else name
