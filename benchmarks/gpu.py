"""What a machine with a GPU does, in a few minutes and one process: figures of each command, written as they come.

    python benchmarks/gpu.py OUT [--seconds 200]

OUT/results.md grows by a line per measurement; a step that fails leaves its traceback in OUT/STEP.txt and the next one
begins. No step begins when less time is left than it is expected to take. ``--small`` tries every step in small
numbers, on the CPU too. The tiles are the package's examples.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

STARTED = time.perf_counter()  # before what takes long to import

import pytest  # noqa: E402
import torch  # noqa: E402

import profile_generate  # noqa: E402
from changeanywhere.cli import run  # noqa: E402
from changeanywhere.generation import generate as generation  # noqa: E402
from changeanywhere.generation.options import GenerateOptions  # noqa: E402
from changeanywhere.generation.turns import Turns  # noqa: E402

IMPORTED = time.perf_counter() - STARTED
QUIET = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
"""Of modules that were imported before pytest was."""
ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "src" / "changeanywhere" / "assets" / "examples"


@dataclass(frozen=True)
class Bench:
    """Where results go, and how large everything is."""

    out: Path
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


def painted(bench: Bench, name: str, **options: Any) -> Path:
    """A set, and how fast it came about."""
    out = bench.out / name
    served: list[float] = []
    serve = Turns.serve

    def watched(self: Turns, seconds: float) -> None:
        if not served:
            served.append(time.perf_counter())  # planned, networks loaded
        serve(self, seconds)

    Turns.serve = watched  # type: ignore[method-assign]
    started = time.perf_counter()
    try:
        report = generation.generate(GenerateOptions(source=EXAMPLES, out=out, seed=1, tile_size=256, **options))
    finally:
        Turns.serve = serve  # type: ignore[method-assign]
    seconds = time.perf_counter() - started
    machine = json.loads((out / "plan" / "job.json").read_text())["machine"]
    bench.note(
        f"generate {name}: {report.pairs_per_second:.1f} pairs/s while painting ({report.num_new} pairs), "
        f"{report.num_new / seconds:.1f} with planning, lists and report; {served[0] - started:.1f} s before the "
        f"first batch; batch {machine['batch_size']}, {machine['dtype']}, {machine['device']}"
    )
    return out


def mini(bench: Bench) -> None:
    """The embedded model with its own settings; twice, since the first run warms caches up."""
    painted(bench, "mini-first", num_pairs=bench.size(128, 2))
    painted(bench, "mini", num_pairs=bench.size(2048, 4))


def mini_bytes(bench: Bench) -> None:
    """The same without processes beside this one: what they bring."""
    with patch.object(generation, "hands_for", lambda job, num_shards: 0):
        painted(bench, "mini-threads-only", num_pairs=bench.size(256, 2))


def paper(bench: Bench) -> None:
    """Networks of the paper's size, random weights, 20 steps."""
    recipe = ROOT / "recipes" / "paper.yaml"
    if bench.small:
        recipe = ROOT / "recipes" / "mini.yaml"
    folder = bench.out / "paper-model"
    profile_generate.random_model(recipe, folder)
    painted(bench, "paper", num_pairs=bench.size(256, 1), model=str(folder), num_steps=bench.size(20, 2))


def rates(bench: Bench, name: str, stage: str) -> None:
    """Of a training, from its own log."""
    log = bench.out / name / "training" / stage / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = [line["images_per_second"] for line in lines if "images_per_second" in line]
    bench.note(f"{name}: images/s at each look {[round(rate, 1) for rate in found]}")


def denoiser(bench: Bench) -> None:
    """The embedded model's denoiser on cached latents."""
    command = ["train", "denoiser", "--config", str(ROOT / "recipes" / "mini.yaml"), "--init", "mini"]
    command += ["--data.source", str(EXAMPLES), "--out", str(bench.out / "denoiser")]
    command += ["--denoiser.num-steps", str(bench.size(200, 2)), "--denoiser.batch-size", str(bench.size(128, 2))]
    command += ["--run.log-every", str(bench.size(50, 1)), "--run.save-every", "100000", "--denoiser.warmup-steps", "0"]
    if bench.small:
        command += ["--denoiser.channels", "[32, 32, 32]"]
        command.remove("--init")
        command.remove("mini")
        command += ["--first-stage-from", str(ROOT / "src" / "changeanywhere" / "assets" / "mini" / "first_stage")]
    assert run(command) == 0
    rates(bench, "denoiser", "denoiser")


def detector(bench: Bench) -> None:
    """ChangerEx-R18 on the pairs of the step before."""
    command = ["train", "detector", "--detector.pairs", str(bench.out / "mini"), "--out", str(bench.out / "detector")]
    command += ["--detector.name", "changer_ex_r18" if not bench.small else "fc_ef"]
    command += ["--detector.num-steps", str(bench.size(240, 2)), "--detector.batch-size", str(bench.size(16, 2))]
    command += ["--run.log-every", str(bench.size(60, 1)), "--run.save-every", "100000", "--detector.warmup-steps", "0"]
    command += ["--run.num-workers", str(bench.size(12, 0)), "--detector.crop-size", "256"]
    assert run(command) == 0
    rates(bench, "detector", "detector")


def profile(bench: Bench) -> None:
    """Busy share and gaps, stages, what the host can feed."""
    flags = ["--source", str(EXAMPLES), "--pairs", str(bench.size(512, 2)), "--shard-size", str(bench.size(64, 2))]
    flags += ["--shrink-ceiling", str(bench.size(1, 16)), "--processes", *(["4", "14"] if not bench.small else ["1"])]
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


def tests(bench: Bench) -> None:
    """``pytest -m gpu``."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = pytest.main(
            ["-m", "gpu", "-q", "-rA", str(ROOT / "tests" / "test_gpu.py"), "-p", "no:cacheprovider", *QUIET]
        )
    (bench.out / "pytest.txt").write_text(said.getvalue())
    last = said.getvalue().strip().splitlines()[-1]
    bench.note(f"pytest -m gpu: exit {int(code)}; {last}")


STEPS: tuple[tuple[Callable[[Bench], None], int], ...] = (
    (mini, 15),
    (denoiser, 10),
    (detector, 10),
    (paper, 25),
    (tests, 20),
    (profile, 20),
    (mini_bytes, 10),
)
"""And seconds below which a step is not worth beginning."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=200, help="after which nothing more is begun")
    parser.add_argument("--small", action="store_true", help="small numbers: does every step run?")
    parser.add_argument("--only", nargs="*", help="these steps alone, by name")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.out.resolve(), arguments.small)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    bench.note(f"{device}, {os.cpu_count()} processors, torch {torch.__version__}; imports {IMPORTED:.1f} s")
    for step, least in STEPS:
        name, left = step.__name__, arguments.seconds - (time.perf_counter() - STARTED)
        if arguments.only and name not in arguments.only:
            continue
        if left < least:
            bench.note(f"{name}: not begun, {left:.0f} s left")
            continue
        started = time.perf_counter()
        try:
            step(bench)
        except (Exception, SystemExit) as error:
            (bench.out / f"{name}.txt").write_text(traceback.format_exc())
            bench.note(f"{name}: failed: {' '.join(str(error).split())[:200]} ({name}.txt)")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        bench.note(f"{name} took {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
