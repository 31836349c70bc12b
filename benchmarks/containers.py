"""What each container costs, in a folder and in a bucket: pairs per second, written and read.

    python benchmarks/containers.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0

Needs the dev extra: S3 is moto's, a process of its own here, behind the proxy of the tests. *Written*: shards
of ``copy_paste`` and the end of the set, its plan being there. *Read*: every pair decoded by ``load_pairs`` (from a
bucket with the copy that it makes first) and by ``stream_pairs``, which copies nothing. Arms are run in turn; beside
each rate stands that per second of this process's processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from changeanywhere.generation.generate import generate
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.shares import plan_set
from changeanywhere.pairs import load_pairs, stream_pairs
from changeanywhere.pairs.containers import FORMATS
from tiles import add_source

ARMS = [(container, place) for container in FORMATS for place in ("folder", "S3")]
TESTS = Path(__file__).parents[1] / "tests"


@dataclass(frozen=True)
class Cost:
    """Of one piece of work, per pair."""

    seconds: float
    processor: float


def timed(work: Callable[[], object], pairs: int) -> Cost:
    """What ``work`` on so many pairs cost this process."""
    started, busy = time.perf_counter(), time.process_time()
    work()
    return Cost((time.perf_counter() - started) / pairs, (time.process_time() - busy) / pairs)


def serve(end: Connection) -> None:
    """A bucket, until nobody is at the other end."""
    from bucket_server import Server

    server = Server()
    end.send(server.environment())
    try:
        end.recv()
    except EOFError:
        server.close()


@contextmanager
def bucket(cache: Path) -> Iterator[None]:
    """An S3 server beside this process, which the environment names while the context lasts."""
    sys.path.append(str(TESTS))
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    before = dict(os.environ)
    os.environ |= ours.recv() | {"CHANGEANYWHERE_CACHE": str(cache)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
        ours.close()
        process.join()
        sys.path.remove(str(TESTS))


def measured(given: argparse.Namespace, container: str, out: Path | str) -> dict[str, Cost]:
    """One set, written and read."""
    options = GenerateOptions(
        source=given.source, out=Path(out), licences=tuple(given.licences) if given.licences else None,
        num_pairs=given.pairs, method="copy_paste", format=container, tile_size=given.tile_size,
        shard_size=given.shard_size,
    )  # fmt: skip
    plan_set(options)
    costs = {"written": timed(lambda: generate(options), given.pairs)}
    costs["read by load_pairs"] = timed(lambda: read_all(out), given.pairs)
    if container != "folder":
        costs["streamed"] = timed(lambda: sum(1 for _ in stream_pairs(out)), given.pairs)
    return costs


def read_all(place: Path | str) -> None:
    """Decode every pair of a set."""
    pairs = load_pairs(place)
    for number in range(len(pairs)):
        pairs[number]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table: medians, and the slowest and fastest round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--shard-size", type=int, default=32)
    parser.add_argument("--tile-size", type=int, default=256, help="px")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(argv)
    seen: dict[tuple[str, str, str], list[Cost]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name, bucket(Path(name) / "cache"):
        for number in range(given.rounds):
            for container, place in ARMS if number % 2 == 0 else reversed(ARMS):
                folder = Path(name) / "set"
                out = f"s3://bucket/{container}-{number}" if place == "S3" else folder
                for what, cost in measured(given, container, out).items():
                    seen[container, place, what].append(cost)
                shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(Path(name) / "cache", ignore_errors=True)
            print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
    print("| container | in | what | pairs/s | from … to | per second of processor |\n|---|---|---|---|---|---|")
    for (container, place, what), costs in seen.items():
        rates, busy = [1 / cost.seconds for cost in costs], [1 / cost.processor for cost in costs]
        spread = f"{min(rates):.0f} to {max(rates):.0f}"
        median = f"{statistics.median(rates):.0f} | {spread} | {statistics.median(busy):.0f}"
        print(f"| {container} | {place} | {what} | {median} |")


if __name__ == "__main__":
    main()
