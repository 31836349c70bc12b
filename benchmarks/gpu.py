"""What a machine with a GPU does, in two and a half minutes: figures of each command, written as they come.

    python benchmarks/gpu.py OUT [--seconds 150]

OUT/results.md grows by a line per measurement; what fails leaves its traceback in OUT/failures.txt and the next step
begins. No step begins when less time is left than it is expected to take; the most telling ones come first. Sets and
trainings lie in a temporary folder. ``--small`` tries every step in small numbers, on the CPU too. The tiles are the
package's examples; nothing is fetched.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

STARTED = time.perf_counter()  # before what takes long to import

import torch  # noqa: E402

import profile_generate  # noqa: E402
from changeanywhere.cli import run  # noqa: E402
from changeanywhere.generation import generate as generation  # noqa: E402
from changeanywhere.generation.options import GenerateOptions  # noqa: E402
from changeanywhere.training import loop  # noqa: E402

IMPORTED = time.perf_counter() - STARTED
ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "src" / "changeanywhere" / "assets" / "examples"
TESTS = ("test_gpu.py", "test_recorded_steps.py")
OUTCOMES = ("PASSED", "FAILED", "ERROR", "SKIPPED")
COMMAND_SECONDS = 60
"""After which a command is ended: what it measured by then is lost, the steps behind it are not."""
PAINTED_FOR = 8
"""Seconds for which a set is painted whose size follows the rate of the one before."""


@dataclass(frozen=True)
class Bench:
    """Where results and sets go, and how large everything is."""

    out: Path
    sets: Path
    small: bool

    def note(self, line: str) -> None:
        """Add a line to the results, on the disk at once."""
        with (self.out / "results.md").open("a") as file:
            file.write(f"- {line}\n")
            file.flush()
            os.fsync(file.fileno())
        print(line, flush=True)

    def size(self, full: int, small: int) -> int:
        """Of a measurement."""
        return small if self.small else full


def looked_at(bench: Bench, name: str, out: Path, began: float, ended: float) -> float:
    """Note how a set came about, by the times of its files; pairs per second while it was painted, its beginning (a
    quarter of the pairs) left out. ``began`` and ``ended``: seconds since the epoch."""
    job = json.loads((out / "plan" / "job.json").read_text())["machine"]
    written = sorted(file.stat().st_mtime for file in (out / "B").iterdir())
    first, num = len(written) // 4, len(written)
    rate = (num - first - 1) / max(written[-1] - written[first], 1e-9)
    opened, planned = ((out / "plan" / what).stat().st_mtime - began for what in ("job.json", "plan.json"))
    bench.note(
        f"{name}: {num} pairs in {ended - began:.1f} s, {num / (ended - began):.1f} pairs/s all in all; source and "
        f"networks open after {opened:.1f} s, planned after {planned:.1f}, first pair after {written[0] - began:.1f}, "
        f"last after {written[-1] - began:.1f}; {rate:.1f} pairs/s once under way; batch {job['batch_size']}, "
        f"{job['dtype']}, {job['device']}"
    )
    return rate


def commanded(bench: Bench, name: str, num_pairs: int, *flags: str) -> float:
    """A set by the command in a process of its own, as a user calls it; see :func:`looked_at`."""
    out = bench.sets / name
    command = [sys.executable, "-m", "changeanywhere", "generate", "--source", str(EXAMPLES), "--out", str(out)]
    command += ["--num-pairs", str(num_pairs), "--seed", "1", *flags]
    paths = os.pathsep.join(filter(None, sys.path))
    began = time.time()
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_SECONDS, env=os.environ | {"PYTHONPATH": paths}
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: exit {ended.returncode}\n{ended.stderr[-3000:]}")
    return looked_at(bench, f"command, {name}", out, began, time.time())


def called(bench: Bench, name: str, num_pairs: int, **options: Any) -> float:
    """A set in this process; see :func:`looked_at`."""
    out, began = bench.sets / name, time.time()
    generation.generate(GenerateOptions(source=EXAMPLES, out=out, seed=1, num_pairs=num_pairs, **options))
    return looked_at(bench, name, out, began, time.time())


def enough(bench: Bench, rate: float, most: int) -> int:
    """Pairs that take about :data:`PAINTED_FOR` seconds, in whole shards of a GPU."""
    return bench.size(min(most, max(256, int(rate * PAINTED_FOR) // 64 * 64)), 2)


def mini(bench: Bench) -> None:
    """The embedded model with its own settings: the start, then a larger set."""
    rate = commanded(bench, "mini-first", bench.size(256, 2))
    commanded(bench, "mini", enough(bench, rate, 3072))


def processes(bench: Bench) -> None:
    """Painting with processes for the host's part beside this one, and without: what they bring."""
    rate = 0.0
    for name, alone in (("one process", True), ("several processes", False)):
        beside = patch.object(generation, "hands_for", lambda job, num_shards: 0) if alone else nullcontext()
        with beside:
            rate = called(bench, name.replace(" ", "-"), bench.size(256, 2) if alone else enough(bench, rate, 1024))


def paper(bench: Bench) -> None:
    """Networks of the paper's size, random weights, 20 steps."""
    recipe = ROOT / "recipes" / ("mini.yaml" if bench.small else "paper.yaml")
    folder = bench.sets / "paper-model"
    profile_generate.random_model(recipe, folder)
    called(bench, "paper-size", bench.size(256, 1), model=str(folder), num_steps=bench.size(20, 2))


def rates(bench: Bench, name: str, stage: str, batch_size: int) -> None:
    """Of a training, from its own log: between two of its lines, since the first steps choose kernels."""
    log = bench.sets / name / "training" / stage / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    points = [(at["step"], at["step"] * batch_size / at["images_per_second"]) for at in lines if "loss" in at]
    between = [
        (step - before) * batch_size / max(seconds - earlier, 1e-9)
        for (before, earlier), (step, seconds) in zip([(0, 0.0), *points], points, strict=False)
    ]
    bench.note(f"{name}: images/s from look to look {[round(rate, 1) for rate in between]}")


def trained(bench: Bench, name: str, stage: str, flags: Sequence[str], sizes: tuple[int, int, int]) -> None:
    """A training of a stage; ``sizes``: steps, batch, and steps between two looks."""
    num_steps, batch_size, look = sizes
    command = ["train", stage, "--out", str(bench.sets / name), *flags]
    command += [f"--{stage}.num-steps", str(num_steps), f"--{stage}.batch-size", str(batch_size)]
    command += [f"--{stage}.warmup-steps", "0", "--run.log-every", str(look), "--run.save-every", "100000"]
    if (code := run(command)) != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {code}")
    rates(bench, name, stage, batch_size)


def denoiser(bench: Bench, name: str = "denoiser recorded") -> None:
    """The embedded model's denoiser on cached latents, its steps recorded as a graph."""
    flags = ["--config", str(ROOT / "recipes" / "mini.yaml"), "--data.source", str(EXAMPLES)]
    if bench.small:
        flags += ["--denoiser.channels", "[32, 32, 32]"]
        flags += ["--first-stage-from", str(ROOT / "src" / "changeanywhere" / "assets" / "mini" / "first_stage")]
    else:
        flags += ["--init", "mini"]
    trained(bench, name, "denoiser", flags, (80, 128, 16) if not bench.small else (2, 2, 1))


def denoiser_alone(bench: Bench) -> None:
    """The same, its steps taken one by one."""
    with patch.object(loop, "recorded_steps", lambda stage: None):
        denoiser(bench, "denoiser one by one")


def detector(bench: Bench) -> None:
    """ChangerEx-R18 on the pairs of the first step, in float32 and in bfloat16."""
    flags = ["--detector.pairs", str(bench.sets / "mini"), "--detector.crop-size", "256"]
    flags += ["--detector.name", "changer_ex_r18" if not bench.small else "fc_ef", "--detector.val-split", "null"]
    flags += ["--run.num-workers", str(bench.size(12, 0))]
    for precision in ("no", "bf16"):
        sizes = (160, 32, 20) if not bench.small else (2, 2, 1)
        trained(bench, f"detector-{precision}", "detector", [*flags, "--run.mixed-precision", precision], sizes)


def tests(bench: Bench) -> None:
    """``pytest -m gpu``."""
    import pytest

    said = io.StringIO()
    flags = ["-m", "gpu", "-q", "-rA", "--durations=12", "-p", "no:cacheprovider"]
    flags += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of modules that were imported before
    with redirect_stdout(said), redirect_stderr(said):
        code = pytest.main([*flags, *(str(ROOT / "tests" / name) for name in TESTS)])
    (bench.out / "pytest.txt").write_text(said.getvalue())
    words = Counter(line.split()[0] for line in said.getvalue().splitlines() if line.startswith(OUTCOMES))
    bench.note(f"pytest -m gpu: exit {int(code)}; {dict(words)}")


def profile(bench: Bench) -> None:
    """Busy share and gaps, stages, what the host can feed."""
    flags = ["--source", str(EXAMPLES), "--pairs", str(bench.size(256, 2)), "--shard-size", str(bench.size(64, 2))]
    flags += ["--shrink-ceiling", str(bench.size(1, 16)), "--processes", *(["14"] if not bench.small else ["1"])]
    if bench.small:
        flags += ["--num-steps", "2"]
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            profile_generate.main(flags)
    finally:
        (bench.out / "profile.md").write_text(said.getvalue())
    busy = [line for line in said.getvalue().splitlines() if "device busy" in line or "waiting" in line]
    bench.note(f"profile: {' '.join(busy)}")


STEPS: tuple[tuple[Callable[[Bench], None], int], ...] = (
    (mini, 20),
    (processes, 15),
    (paper, 20),
    (denoiser, 12),
    (denoiser_alone, 12),
    (detector, 15),
    (tests, 25),
    (profile, 20),
)
"""And seconds below which a step is not worth beginning."""


def take(bench: Bench, step: Callable[[Bench], None]) -> None:
    """One step; what it raises is noted."""
    name, started = step.__name__, time.perf_counter()
    try:
        step(bench)
    except (Exception, SystemExit) as error:
        with (bench.out / "failures.txt").open("a") as file:
            file.write(f"{name}\n{traceback.format_exc()}\n")
        bench.note(f"{name}: failed: {' '.join(str(error).split())[-200:]} (failures.txt)")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    bench.note(f"{name} took {time.perf_counter() - started:.1f} s")


def main(argv: Sequence[str] | None = None) -> None:
    """Run all steps."""
    names = [step.__name__ for step, _ in STEPS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results, four files at most")
    parser.add_argument("--seconds", type=float, default=150, help="after which nothing more is begun")
    parser.add_argument("--small", action="store_true", help="small numbers: does every step run?")
    parser.add_argument("--only", nargs="*", choices=names, help="these steps alone, by name")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    sets = Path(tempfile.mkdtemp(prefix="changeanywhere-gpu-"))
    bench = Bench(arguments.out.resolve(), sets, arguments.small)
    bench.note(f"{device}, {os.cpu_count()} processors, torch {torch.__version__}; imports {IMPORTED:.1f} s")
    try:
        for step, least in STEPS:
            left = arguments.seconds - (time.perf_counter() - STARTED)
            if arguments.only and step.__name__ not in arguments.only:
                continue
            if left < least:
                bench.note(f"{step.__name__}: not begun, {left:.0f} s left")
                continue
            take(bench, step)
    finally:
        shutil.rmtree(sets, ignore_errors=True)


if __name__ == "__main__":
    main()
