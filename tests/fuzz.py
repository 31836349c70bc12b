"""The fuzzer: ``make test-fuzz``. Hostile files, folders and options, at random from a seed, through every command.

    python tests/fuzz.py --minutes 10 --seed 0     ends with 1 if anything was found, and prints how much was tried

Each trial changes a small world (tiles, a model, a finished set, recipes) in one to three ways, or in one of those of
``fuzz_seeds``, and runs a command or two in a fork that ``fuzz_world`` watches. Runs on the first edition as well:
``PYTHONPATH=OTHER/src``.
"""

from __future__ import annotations

import argparse
import http.server
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from fuzz_kinds import KINDS
from fuzz_seeds import PASTE, SEEDS
from fuzz_world import Finding, Trial, World

BATCH = 25


def build_template(folder: Path) -> None:
    """The world before anything is changed, made by the edition that is under test."""
    from changeanywhere.cli import run
    from changeanywhere.models.folder import save_model
    from conftest import tiny_model, write_source

    write_source(folder / "src", num_tiles=4)
    save_model(tiny_model(), folder / "model")
    (folder / "victim" / "folder").mkdir(parents=True)
    (folder / "victim" / "file").write_bytes(b"precious")
    shutil.copy(folder / "src" / "images" / "tile_1.png", folder / "victim" / "secret.png")
    (folder / "recipes").mkdir()
    (folder / "recipes" / "generate.yaml").write_text("seed: 3\nevents: {min_area: 16, kinds: [appearance]}\n")
    (folder / "recipes" / "map.yaml").write_text(
        "".join(f"{n}: {n}\n" for n in ("bareland", "road", "water", "building"))
    )
    (folder / "pipe").unlink(missing_ok=True)
    os.mkfifo(folder / "pipe")
    here = Path.cwd()
    os.chdir(folder)
    try:
        if run([each.replace("--out=out", "--out=set") for each in PASTE]) != 0:
            raise RuntimeError("the world cannot be made")
    finally:
        os.chdir(here)
    (folder / "pipe").unlink()


def _in_a_process(work: Callable[[Path], None], folder: Path) -> None:
    """In a fork: threads of networks that ran in this process would be missed by its later forks, and waited for."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(folder)
            code = 0
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise RuntimeError("the world cannot be made")


def listen(file: Path) -> tuple[int, int]:
    """A server that notes who asks; its process and port."""

    class Note(http.server.BaseHTTPRequestHandler):
        def note(self) -> None:
            with file.open("a") as notes:
                notes.write(f"{self.path}\n")
            self.send_error(404)

        do_GET, do_HEAD = note, note  # noqa: N815

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Note)
    pid = os.fork()
    if pid == 0:
        server.serve_forever()
    server.server_close()
    return pid, int(server.server_address[1])


@dataclass
class Report:
    """What was tried and found."""

    trials: int = 0
    commands: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, trial: Trial, findings: list[Finding], where: str) -> None:
        """Count a trial."""
        self.trials += 1
        self.commands += sum(isinstance(step, list) for step in trial.steps)
        self.by_kind[trial.name.partition(":")[0]] += 1
        for finding in findings:
            self.found.setdefault(finding.cause, []).append(f"{where}: {finding.detail}")


def fuzz(minutes: float, first: int, trials: int | None = None, kinds: list[Any] | None = None) -> Report:
    """Try until the time is over, or ``trials`` are made."""
    for module in ("check", "generation.simulate", "training.command"):  # forks have them at hand
        import_module(f"changeanywhere.{module}")
    report, ends = Report(), time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name).resolve()
        _in_a_process(build_template, folder / "template")
        world = World(folder / "template", folder / "world")
        server, port = listen(world.addresses)
        os.environ["FUZZ_PORT"] = str(port)
        number = first
        try:
            for name in sorted(SEEDS) if kinds is None and trials is None else ():
                _reported(world, report, name, first)
            while time.monotonic() < ends and (trials is None or report.trials < trials):
                _batch(world, report, number, ends, trials, kinds or KINDS)
                number += 1
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
    return report


class _OverError(BaseException):
    """The time is over; hypothesis keeps off what is no ``Exception``."""


def _reported(world: World, report: Report, name: str, number: int) -> None:
    """Each reported case once, before anything is left to chance."""
    chance = random.Random(f"{name} {number}")

    def draw(low: Any, high: int | None = None) -> Any:
        return chance.choice(list(low)) if high is None else chance.randint(low, high)

    with world.fresh() as root:
        trial = SEEDS[name](root, draw)
        report.add(trial, world.judge(root, trial), f"the reported case {name}")


def _batch(world: World, report: Report, number: int, ends: float, trials: int | None, kinds: list[Any]) -> None:
    @seed(number)
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        if time.monotonic() > ends or (trials is not None and report.trials >= trials):
            raise _OverError

        def draw(low: Any, high: int | None = None) -> Any:
            return data.draw(st.sampled_from(low) if high is None else st.integers(low, high))

        kind = draw(kinds)
        with world.fresh() as root:
            trial = kind(root, draw)
            report.add(trial, world.judge(root, trial), f"seed {number}, {trial.name}")

    try:
        one()
    except (_OverError, Flaky):  # the latter: what it says of a batch that was broken off
        return
    except Exception as error:  # what was found until now is not lost
        report.found.setdefault("the fuzzer itself breaks", []).append(
            f"seed {number}: {type(error).__name__}: {error}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Tries hostile files, folders and options.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one kind of trial, or one reported case")
    arguments = parser.parse_args()
    named = {each.__name__: each for each in KINDS} | SEEDS
    report = fuzz(arguments.minutes, arguments.seed, kinds=[named[arguments.only]] if arguments.only else None)
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.by_kind.most_common())
    for cause, details in sorted(report.found.items()):
        print(f"{len(details):4d} × {cause}\n       {details[0][:600]}")
    print(f"tried: {report.trials} worlds, {report.commands} commands ({kinds}); causes found: {len(report.found)}")
    return 1 if report.found else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
