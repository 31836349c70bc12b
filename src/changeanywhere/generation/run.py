"""``changeanywhere generate``: plan → shards → dataset.

    read tiles, simulate events (threads, ahead) ─► encode ─► blended diffusion ─► decode (the device)
        ─► finish and write files (threads, behind) ─► shards/N.json

A shard's marker is written last, with the files and their hashes: a shard without marker does not exist.
"""

from __future__ import annotations

import heapq
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from changeanywhere.errors import ShortfallError
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.painter import Painter, Painting
from changeanywhere.generation.plan import DatasetPlan, PlannedPair
from changeanywhere.generation.prepare import get_plan, locked, note_skipped, note_transitions
from changeanywhere.pairs.writer import FINAL_FILES, SHARED, finalise, write_pair
from changeanywhere.progress import progress_bar
from changeanywhere.stopping import polite_stop
from changeanywhere.storage import atomic_write

WRITER_THREADS = 2
READ_AHEAD = 2  # batches
OPEN_SHARDS = 2  # shards whose files are still being written while the next one is painted
DRY_RUN_BATCHES = 2  # the first warms up, the second is timed

Item = TypeVar("Item")
Result = TypeVar("Result")
Written = tuple[dict[str, str], Mapping[str, Any]]
"""Files of a pair with their hashes, and its record."""


@dataclass(frozen=True)
class GenerateReport:
    """What a call of :func:`generate` did."""

    out: Path
    num_pairs: int
    """Pairs in the dataset now."""
    num_new: int
    """Pairs that this call painted (those that the filter then dropped among them)."""
    pairs_per_second: float
    """Of this call, from the first batch to the last file; 0 if there was nothing to do."""

    num_dropped: int
    """Pairs of the plan that the filter left out."""
    reached: list[tuple[str, float, float]]
    """(target, share asked, share reached)."""
    skipped: Sequence[str]
    """Why tiles were left out, a line each (``on_error: skip``)."""

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.out / "report.html"


@dataclass(frozen=True)
class DryRun:
    """What a run would make."""

    num_pairs: int
    missing: Mapping[str, int]
    num_bytes: int
    """Of the pairs that are not there yet, those that the filter drops counted as nothing."""
    seconds: float


def generate(options: GenerateOptions) -> GenerateReport:
    """Make, or finish, the dataset in ``options.out``.

    Raises :class:`InputError` for what the user gave wrong and :class:`ShortfallError`, after writing all that could
    be made, if fewer changes are feasible than asked for. SIGTERM ends the run after the shard that is being painted,
    with :class:`KeyboardInterrupt`.
    """
    painter = Painter(options)
    with locked(options.out):
        plan = get_plan(
            options, painter.frozen_settings(), painter.source, painter.second, painter.events, True, options.shard_size
        )
        note_skipped(options.out, painter.skipped)
        note_transitions(options.out, painter.events, painter.source)
        shards = plan.shards()
        open_shards = [n for n in range(len(shards)) if not _shard_is_done(options.out, n)]
        num_new = sum(len(shards[n]) for n in open_shards)
        started = time.perf_counter()
        _paint_shards(painter, {n: shards[n] for n in open_shards}, len(plan.pairs))
        seconds = time.perf_counter() - started
        num_pairs, reached = _finalise(painter, shards, again=bool(open_shards))
    _raise_on_empty(plan, options.out)
    if plan.pairs and not num_pairs:
        raise ShortfallError(f"{options.out}: the filter dropped all {len(plan.pairs)} pairs; see filter.min_score")
    rate = num_new / seconds if num_new else 0.0
    dropped = len(plan.pairs) - num_pairs
    report = GenerateReport(options.out, num_pairs, num_new, rate, dropped, reached, painter.skipped)
    if plan.missing:
        parts = ", ".join(f"{count} {kind}" for kind, count in plan.missing.items())
        asked = len(plan.pairs) + sum(plan.missing.values())
        raise ShortfallError(f"{options.out}: {len(plan.pairs)} of {asked} pairs; missing: {parts}", report)
    return report


def _paint_shards(painter: Painter, shards: Mapping[int, Sequence[PlannedPair]], num_planned: int) -> None:
    """Paint shards one after the other while files of the one before are still being written."""
    num_open = sum(len(shard) for shard in shards.values())
    size = painter.batch_size
    # A pair's batch is part of the plan, since sums depend on it in the last bits: a batch never spans two shards.
    jobs = [(n, shard[i : i + size]) for n, shard in shards.items() for i in range(0, len(shard), size)]
    last = {number: place for place, (number, _) in enumerate(jobs)}
    waiting: deque[tuple[int, list[Future[Written]]]] = deque()
    writes: list[Future[Written]] = []
    done, started = 0, time.perf_counter()
    with (
        progress_bar() as bar,
        ThreadPoolExecutor(1) as reader,
        ThreadPoolExecutor(WRITER_THREADS) as writers,
        polite_stop() as stop,
    ):
        task = bar.add_task("painting pairs", total=num_planned, completed=num_planned - num_open)
        try:
            for place, batch in enumerate(_ahead(reader, painter.read, [job for _, job in jobs])):
                writes += [writers.submit(_write, painter, painting) for painting in painter.paint(batch)]
                done += len(batch.pairs)
                rate = done / (time.perf_counter() - started)
                bar.update(task, advance=len(batch.pairs), description=f"painting pairs  {rate:.2f}/s")
                number = jobs[place][0]
                if place == last[number]:
                    waiting.append((number, writes))
                    writes = []
                    if stop.is_set():
                        raise KeyboardInterrupt
                    while len(waiting) > OPEN_SHARDS:
                        _close_shard(painter.options.out, *waiting.popleft())
        finally:  # whatever happens, what is painted is kept
            while waiting:
                _close_shard(painter.options.out, *waiting.popleft())


def _ahead(executor: Executor, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``work`` of every item, in order, begun :data:`READ_AHEAD` items before it is asked for."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(executor.submit(work, item))
        if len(pending) > READ_AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _finalise(painter: Painter, shards: Sequence[Sequence[PlannedPair]], again: bool) -> tuple[int, Any]:
    """Lists, metadata, card and report, unless they are there and nothing is new; pairs, and targets reached."""
    out, targets = painter.options.out, painter.options.targets
    records = _records(out, shards)
    first = next(records, None)
    if first is None:
        return 0, []
    if again or not all((out / name).is_file() for name in FINAL_FILES):
        counts, reached = finalise(out, painter.pipeline.legend, chain([first], records), targets.reached)
        return counts.count, reached
    with (out / "metadata.jsonl").open("rb") as lines:
        count = sum(1 for _ in lines)
    file = out / "targets.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    return count, [(row["target"], row["asked"], row["reached"]) for row in rows]


def dry_run(options: GenerateOptions) -> DryRun:
    """Plan, paint two batches without writing them, and extrapolate from the second."""
    painter = Painter(options)
    plan = get_plan(
        options, painter.frozen_settings(), painter.source, painter.second, painter.events, False, options.shard_size
    )
    _raise_on_empty(plan, options.out)
    pairs = plan.shards()[0][: painter.batch_size]
    seconds, painted = 0.0, []
    for _ in range(DRY_RUN_BATCHES):
        started = time.perf_counter()
        painted = painter.paint(painter.read(pairs))
        seconds = (time.perf_counter() - started) / len(pairs)
    with tempfile.TemporaryDirectory() as folder:
        for painting in painted:
            _write(painter, painting, Path(folder))
        num_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    shards = plan.shards()
    left = sum(len(shard) for number, shard in enumerate(shards) if not _shard_is_done(options.out, number))
    return DryRun(len(plan.pairs), plan.missing, num_bytes * left // len(pairs), seconds * left)


def _write(painter: Painter, painting: Painting, folder: Path | None = None) -> Written:
    image_format = cast(Literal["png", "geotiff"], painter.options.image_format)
    pair = painter.finish(painting)
    return write_pair(folder or painter.options.out, pair, painter.pipeline.legend, image_format), pair.metadata


def _marker(out: Path, number: int) -> Path:
    return out / "shards" / f"{number:05d}.json"


def _shard_is_done(out: Path, number: int) -> bool:
    """Its marker is there and so are its files."""
    try:
        content = json.loads(_marker(out, number).read_text())
        return all((out / name).is_file() for name in content["files"])
    except (OSError, ValueError, KeyError):
        return False


def _close_shard(out: Path, number: int, writes: list[Future[Written]]) -> None:
    files: dict[str, str] = {}
    records = []
    for future in writes:
        written, record = future.result()
        files |= written
        records.append(record)
    shared = {name: records[0][name] for name in SHARED} if records else {}
    own = [{name: value for name, value in record.items() if name not in shared} for record in records]
    content = {"files": files, "records": own, "shared": shared}
    atomic_write(_marker(out, number), (json.dumps(content) + "\n").encode())


def _records(out: Path, shards: Sequence[Sequence[PlannedPair]]) -> Iterator[dict[str, Any]]:
    """Records in the order of their keys; in memory are only shards whose keys overlap."""
    smallest = [min(pair.key for pair in shard) for shard in shards]
    order = sorted(range(len(shards)), key=smallest.__getitem__)
    held: list[tuple[str, dict[str, Any]]] = []
    for place, number in enumerate(order):
        content = json.loads(_marker(out, number).read_text())
        for record in content["records"]:
            heapq.heappush(held, (record["key"], record | content["shared"]))
        limit = smallest[order[place + 1]] if place + 1 < len(order) else None
        while held and (limit is None or held[0][0] < limit):
            yield heapq.heappop(held)[1]


def _raise_on_empty(plan: DatasetPlan, out: Path) -> None:
    if not plan.pairs:
        raise ShortfallError(f"{out}: no change is feasible in any tile of the source; see 'kinds' and 'min_area'")
