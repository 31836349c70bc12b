"""What the host does for a pair beside the networks: ms of each stage, and pairs per second that it can feed a device.

    python benchmarks/host_stages.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0

First every stage on one thread. Then all of it in processes, as ``generate`` does where there is a GPU, with a painter
that gives each exemplar back at once: what a device of any speed could be fed. No network is loaded.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any
from unittest.mock import patch

from changeanywhere.generation import shard
from changeanywhere.generation.executors import Work
from changeanywhere.generation.executors.threads import ThreadExecutor
from changeanywhere.generation.finish import finished_pair
from changeanywhere.generation.hands import Hands
from changeanywhere.generation.job import Job
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.plan import PlannedPair, load_shard
from changeanywhere.generation.prepare import get_plan, job_of
from changeanywhere.generation.shard import read
from changeanywhere.generation.turns import Turns
from changeanywhere.leases import Leases
from changeanywhere.machine import usable_processors
from changeanywhere.painters.base import Batch, Painting
from changeanywhere.pairs import writer
from changeanywhere.pairs.writer import write_pair
from changeanywhere.progress import silent
from changeanywhere.storage import LocalStore
from tiles import add_source

STAGES = ("reading", "events", "exemplars", "finish", "PNG", "hash", "files")


class AtOnce:
    """A painter that takes no time: date 2 is the exemplar."""

    def paint(self, batch: Batch) -> list[Painting]:
        """See :class:`Painter`."""
        made = batch.exemplars
        return [
            Painting(i, plan, batch.images[row], made[i].image if made else batch.images[row])
            for i, (plan, row) in enumerate(zip(batch.plans, batch.rows, strict=True))
        ]


def timed(seconds: dict[str, float], stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """``work``, its processor time added to ``stage``: what others do on the machine counts nothing."""

    def run(*arguments: Any, **named: Any) -> Any:
        started = time.thread_time()
        try:
            return work(*arguments, **named)
        finally:
            seconds[stage] += time.thread_time() - started

    return run


def stages_alone(job: Job, batches: Sequence[Sequence[PlannedPair]]) -> dict[str, float]:
    """Seconds of every stage, one after the other on this thread."""
    seconds: dict[str, float] = defaultdict(float)
    legend, painter = job.tiles.source.legend, AtOnce()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        store = LocalStore(folder)
        parts = [
            (job.tiles.source, "read", "reading"),
            (shard, "change_of", "events"),
            (shard, "exemplars_of", "exemplars, donors' tiles included"),
            (writer, "encode_png", "PNG"),
            (writer, "content_hash", "hash"),
            (store, "put", "files"),
        ]
        for owner, name, stage in parts:
            patches.enter_context(patch.object(owner, name, timed(seconds, stage, getattr(owner, name))))
        finish = timed(seconds, "finish", finished_pair)
        for pairs in batches:
            batch = read(job, pairs)
            for painting in painter.paint(batch):
                sample = batch.samples[painting.place]
                pair, _ = finish(job, pairs[painting.place].key, painting, sample, job.provenance)
                write_pair(store, pair, legend, job.finishing.files)
    seconds["exemplars"] = seconds.pop("exemplars, donors' tiles included", 0.0)
    return {stage: seconds[stage] for stage in STAGES}


BATCH = 64
"""Pairs that a process hands over at once."""


def in_processes(options: GenerateOptions, count: int) -> tuple[float, float]:
    """Pairs per second with ``count`` processes, once they have begun; and processor seconds per pair, all in all."""
    with tempfile.TemporaryDirectory() as folder:
        store, stop = LocalStore(folder), threading.Event()
        # Nothing is painted, so that no size would be found on the way.
        job = job_of(replace(options, batch_size=options.batch_size or BATCH), store, silent)
        plan = get_plan(job, store, silent)
        turns, leases, painted = Turns(AtOnce()), Leases(store), list[int]()
        with Hands(job, store, count) as hands:
            hands.make(0, AtOnce(), painted.append, stop)  # the first process has imported what it needs …
            done = {0}

            def make(number: int) -> None:
                hands.make(number, turns.of(number), painted.append, stop)
                done.add(number)

            executor = ThreadExecutor(count)
            warm = range(1, min(count + 1, plan.num_shards))  # … and so have the others
            executor.run(warm, Work(make, done.__contains__, turns.serve, turns.close), leases, stop)
            before, started, used = sum(painted), time.perf_counter(), processor_seconds()
            rest = range(len(done), plan.num_shards)
            executor.run(rest, Work(make, done.__contains__, turns.serve, turns.close), leases, stop)
            num, seconds = sum(painted) - before, time.perf_counter() - started
        return num / seconds, (processor_seconds() - used) / (num + before)


def processor_seconds() -> float:
    """Of this process and those of its children that have ended."""
    return sum(use.ru_utime + use.ru_stime for use in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def options_of(arguments: argparse.Namespace, out: Path, num_pairs: int, model: str, tile_size: int) -> GenerateOptions:
    """What ``generate`` would be asked for."""
    return GenerateOptions(
        source=arguments.source,
        out=out,
        model=model,
        num_pairs=num_pairs,
        tile_size=tile_size,
        licences=arguments.licences,
        shard_size=arguments.shard_size,
        seed=1,
    )


def print_host(arguments: argparse.Namespace, model: str, tile_size: int) -> None:
    """Both tables."""
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        options = options_of(arguments, Path(folder), arguments.pairs, model, tile_size)
        job = job_of(options, store, silent)
        plan = get_plan(job, store, silent)
        shards = [load_shard(store, number) for number in range(plan.num_shards)]
        batches = [batch for each in shards for batch in each.batches(arguments.shard_size)]
        stages_alone(job, batches[:1])  # warm-up
        seconds = stages_alone(job, batches)
    total = sum(seconds.values())
    print(f"\nhost alone, one thread, {plan.num_pairs} pairs of {tile_size} px\n")
    print("| stage | processor ms per pair | share |\n|---|---|---|")
    for stage, took in seconds.items():
        print(f"| {stage} | {took / plan.num_pairs * 1e3:.2f} | {took / total:.1%} |")
    print(f"| all | {total / plan.num_pairs * 1e3:.2f} | {plan.num_pairs / total:.1f} pairs/s |\n", flush=True)
    print("| processes | pairs/s, nothing painted | processor ms per pair, start included |\n|---|---|---|")
    for count in arguments.processes:
        num_pairs = arguments.shard_size * (count + 1) + max(arguments.pairs, arguments.shard_size * count * 4)
        with tempfile.TemporaryDirectory() as folder:
            rate, cost = in_processes(options_of(arguments, Path(folder) / "out", num_pairs, model, tile_size), count)
        print(f"| {count} | {rate:.1f} | {cost * 1e3:.1f} |", flush=True)


def add_host(parser: argparse.ArgumentParser) -> None:
    """Options of the tables above."""
    counts = sorted({1, 2, usable_processors()})
    parser.add_argument("--processes", type=int, nargs="*", default=counts, help="how many are tried")
    parser.add_argument("--shard-size", type=int, default=32, help="pairs of a shard")


def main(argv: Sequence[str] | None = None) -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    add_host(parser)
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    parser.add_argument("--tile-size", type=int, default=256, help="height and width in px")
    parser.add_argument("--pairs", type=int, default=128, help="pairs")
    arguments = parser.parse_args(argv)
    print_host(arguments, arguments.model, arguments.tile_size)


if __name__ == "__main__":
    main()
