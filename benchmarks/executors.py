"""What the Ray executor costs beside local processes: pairs per second and processor time per pair, start-up apart.

    python benchmarks/executors.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0

As many processes of one command as Ray has actors (each with threads that read and write, as ``generate`` has), in turn
with Ray: one round local first, the next one Ray first. Each side paints with ``--num-threads`` threads per worker.
Figures are of the time from the moment when every worker has finished a shard to the last marker; before it lies the
start of Python, torch and Ray. Processor time is that of the command and of all that it starts, read from /proc: for
Ray told apart as actors, driver, and Ray's own processes. It is what other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tiles import add_source

LOOK = 0.25
"""Seconds between two looks at markers and processes."""
TICK = 1 / os.sysconf("SC_CLK_TCK")
PARTS = ("painting", "driver", "Ray's own")


@dataclass
class Watched:
    """Processor seconds of a process and of all that it started, by part, as far as they were ever seen."""

    roots: Sequence[int]
    part_of: Callable[[int, str], str]
    seconds: dict[tuple[int, str], tuple[str, float]] = field(default_factory=dict)
    """(process, when it began) → part, seconds."""

    def look(self) -> Counter[str]:
        """Look at all of them now; seconds by part since the beginning."""
        children: dict[int, list[int]] = {}
        stats = {}
        for place in Path("/proc").iterdir():
            if place.name.isdigit() and (found := _stat(place)) is not None:
                stats[int(place.name)] = found
                children.setdefault(found[0], []).append(int(place.name))
        todo, seen = list(self.roots), set[int]()
        known = {pid for pid, began in self.seconds if pid in stats and stats[pid][1] == began}
        todo += known - set(todo)  # those whose parent has gone
        while todo:
            pid = todo.pop()
            if pid in seen or pid not in stats:
                continue
            seen.add(pid)
            todo += children.get(pid, [])
            _, began, used, name = stats[pid]
            part, _ = self.seconds.get((pid, began), (PARTS[-1], 0.0))  # one that has ended has no name any more
            self.seconds[pid, began] = (self.part_of(pid, name) if part == PARTS[-1] else part, used)
        total = Counter[str]()
        for part, used in self.seconds.values():
            total[part] += used  # type: ignore[assignment]  # Counter adds any numbers
        return total


def _stat(place: Path) -> tuple[int, str, float, str] | None:
    """Parent, when it began, processor seconds and name of a process; None if it is gone."""
    try:
        text = (place / "stat").read_text()
        name = (place / "cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    except (OSError, ValueError):
        return None
    words = text.rpartition(")")[2].split()
    return int(words[1]), words[19], (int(words[11]) + int(words[12])) * TICK, name


@dataclass(frozen=True)
class Run:
    """One run of a set, from when every worker had finished a shard."""

    pairs: int
    seconds: float
    processor: Mapping[str, float]
    before: float
    """Seconds until then."""
    load: float

    @property
    def rate(self) -> float:
        return self.pairs / self.seconds

    def used(self, part: str | None = None) -> float:
        """Processor seconds per pair."""
        return (sum(self.processor.values()) if part is None else self.processor.get(part, 0.0)) / self.pairs


def command_of(given: argparse.Namespace, out: Path) -> list[str]:
    """The command, without what the two sides differ in."""
    command = [sys.executable, "-m", "changeanywhere", "generate", f"--source={given.source}", f"--out={out}"]
    command += [f"--num-pairs={given.pairs}", f"--shard-size={given.shard_size}", f"--method={given.method}"]
    command += [f"--licences=[{','.join(given.licences)}]"] if given.licences else []
    command += [f"--tile-size={given.tile_size}"] if given.tile_size else []
    command += [f"--batch-size={given.batch_size}"]
    if given.method == "diffusion":
        command += [f"--model={given.model}", "--device=cpu", "--dtype=float32", f"--num-threads={given.num_threads}"]
        command += [f"--num-steps={given.num_steps}"] if given.num_steps else []
    return command


def measured(given: argparse.Namespace, out: Path, on_ray: bool) -> Run:
    """Run a set, and look at its markers and processes until it is there."""
    load, began = os.getloadavg()[0], time.perf_counter()
    more = ["--executor=ray", f"--workers={given.workers}"] if on_ray else []
    environment = os.environ | {"OMP_NUM_THREADS": str(given.num_threads), "RAY_USAGE_STATS_ENABLED": "0"}
    with (out.parent / "said.txt").open("w+") as said:
        processes = [
            subprocess.Popen([*command_of(given, out), *more], env=environment, stdout=said, stderr=said)
            for _ in range(1 if on_ray else given.workers)
        ]
        roots = [process.pid for process in processes]
        watched = Watched(roots, (lambda pid, name: _part_on_ray(pid in roots, name)) if on_ray else _painting)
        points: list[tuple[int, float, Counter[str]]] = []
        while any(process.poll() is None for process in processes):
            there, used = len(list((out / "shards").glob("*.json"))), watched.look()
            if there >= given.workers and (not points or there > points[-1][0]):
                points.append((there, time.perf_counter(), used))
            time.sleep(LOOK)
        if any(process.returncode for process in processes):
            said.seek(0)
            raise SystemExit(f"a command of {out.name} failed: {said.read()[-800:]}")
    if len(points) < 2:
        raise SystemExit(f"{out}: too few shards to measure; give more --pairs, or a smaller --shard-size")
    (first, started, before), (last, ended, after) = points[0], points[-1]
    pairs = min(last * given.shard_size, given.pairs) - first * given.shard_size
    return Run(pairs, ended - started, {p: after[p] - before[p] for p in PARTS}, started - began, load)


def _painting(pid: int, name: str) -> str:
    return "painting"


def _part_on_ray(is_root: bool, name: str) -> str:
    """Ray's workers call themselves by what they do."""
    if is_root:
        return "driver"
    return "painting" if name.startswith("ray::Painting") else "Ray's own"


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Median, least and most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main(argv: Sequence[str] | None = None) -> None:
    """Print both sides and the overhead by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--method", default="diffusion", help="diffusion, or one without a network")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--num-steps", type=int, default=None, help="sampler calls; the model's own")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--num-threads", type=int, default=1, help="of each worker")
    parser.add_argument("--pairs", type=int, default=128, help="of a round and side")
    parser.add_argument("--shard-size", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tile-size", type=int, default=None, help="px; as the model has it")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(argv)
    sides: dict[str, list[Run]] = {"local": [], "Ray": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            for side in sorted(sides, reverse=number % 2 == 0):
                out = Path(folder) / "set"
                sides[side].append(measured(given, out, side == "Ray"))
                shutil.rmtree(out)
                print(f"{side}: {sides[side][-1]}", file=sys.stderr, flush=True)
    print("| side | pairs | pairs/s | processor seconds per pair | before, s | load |\n|---|---|---|---|---|---|")
    for side, runs in sides.items():
        pairs, loads = sum(run.pairs for run in runs), ", ".join(f"{run.load:.1f}" for run in runs)
        used, rates = spread([run.used() for run in runs]), spread([run.rate for run in runs], ".2f")
        print(f"| {side} | {pairs} | {rates} | {used} | {spread([run.before for run in runs], '.1f')} | {loads} |")
    parts = (f"{part} {spread([run.used(part) for run in sides['Ray']])}" for part in PARTS)
    print(f"of Ray's: {'; '.join(parts)}")
    both = list(zip(sides["local"], sides["Ray"], strict=True))
    print(f"overhead by round, processor: {told([ray.used() / local.used() - 1 for local, ray in both])}")
    print(f"overhead by round, wall: {told([local.rate / ray.rate - 1 for local, ray in both])}")


def told(shares: Sequence[float]) -> str:
    """Each, and the median."""
    return f"{', '.join(f'{each:+.1%}' for each in shares)}; median {statistics.median(shares):+.1%}"


if __name__ == "__main__":
    main()
