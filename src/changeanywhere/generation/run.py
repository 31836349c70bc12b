"""``changeanywhere generate``: plan → shards → dataset.

    read tiles ─► simulate (events) ─► encode ─► blended diffusion ─► decode ─► files on threads ─► shards/N.json

A shard's marker is written last, with the files and their hashes: a shard without marker does not exist.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from changeanywhere.errors import ShortfallError
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.painter import Painter
from changeanywhere.generation.plan import DatasetPlan
from changeanywhere.generation.prepare import get_plan, locked
from changeanywhere.pairs.layout import atomic_write
from changeanywhere.pairs.writer import finalise, write_pair
from changeanywhere.progress import progress_bar
from changeanywhere.sample import ChangePair

WRITER_THREADS = 2
DRY_RUN_BATCHES = 2  # the first warms up, the second is timed


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
    seconds: float


def generate(options: GenerateOptions) -> GenerateReport:
    """Make, or finish, the dataset in ``options.out``.

    Raises :class:`InputError` for what the user gave wrong and :class:`ShortfallError`, after writing all that could
    be made, if fewer changes are feasible than asked for.
    """
    painter = Painter(options)
    with locked(options.out):
        plan = get_plan(options, painter.frozen_settings(), painter.source, painter.second, painter.events, save=True)
        shards = plan.shards()
        open_shards = [n for n in range(len(shards)) if not _shard_is_done(options.out, n)]
        num_new = sum(len(shards[n]) for n in open_shards)
        started = time.perf_counter()
        with progress_bar() as bar, ThreadPoolExecutor(WRITER_THREADS) as threads:
            task = bar.add_task("painting pairs", total=len(plan.pairs), completed=len(plan.pairs) - num_new)
            done = 0
            for number in open_shards:
                writes: list[tuple[ChangePair, Future[dict[str, str]]]] = []
                for batch in painter.batches(shards[number]):
                    for pair in painter.paint(batch):
                        writes.append((pair, threads.submit(_write, options, painter, pair)))
                    done += len(batch)
                    rate = done / (time.perf_counter() - started)
                    bar.update(task, advance=len(batch), description=f"painting pairs  {rate:.2f}/s")
                _close_shard(options.out, number, writes)
        seconds = time.perf_counter() - started
        records = _records(options.out, len(shards))
        reached = options.targets.reached(records)
        if plan.pairs and not records:
            raise ShortfallError(f"{options.out}: the filter dropped all {len(plan.pairs)} pairs; see filter.min_score")
        if records and (open_shards or not (options.out / "report.html").is_file()):
            finalise(options.out, painter.pipeline.legend, records, reached)
    _raise_on_shortfall(plan, options.out)
    rate = num_new / seconds if num_new else 0.0
    return GenerateReport(options.out, len(records), num_new, rate, len(plan.pairs) - len(records), reached)


def dry_run(options: GenerateOptions) -> DryRun:
    """Plan, paint two batches without writing them, and extrapolate from the second."""
    painter = Painter(options)
    plan = get_plan(options, painter.frozen_settings(), painter.source, painter.second, painter.events, save=False)
    _raise_on_empty(plan, options.out)
    batches = [batch for shard in plan.shards() for batch in painter.batches(shard)]
    seconds, painted = 0.0, []
    for batch in (batches * DRY_RUN_BATCHES)[:DRY_RUN_BATCHES]:
        started = time.perf_counter()
        painted = painter.paint(batch)
        seconds = (time.perf_counter() - started) / len(batch)
    with tempfile.TemporaryDirectory() as folder:
        for pair in painted:
            _write(options, painter, pair, Path(folder))
        num_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    total = len(plan.pairs)
    return DryRun(total, plan.missing, num_bytes * total // max(len(painted), 1), seconds * total)


def _write(options: GenerateOptions, painter: Painter, pair: ChangePair, folder: Path | None = None) -> dict[str, str]:
    image_format = cast(Literal["png", "geotiff"], options.image_format)
    return write_pair(folder or options.out, pair, painter.pipeline.legend, image_format)


def _marker(out: Path, number: int) -> Path:
    return out / "shards" / f"{number:05d}.json"


def _shard_is_done(out: Path, number: int) -> bool:
    """Its marker is there and so are its files."""
    try:
        content = json.loads(_marker(out, number).read_text())
        return all((out / name).is_file() for name in content["files"])
    except (OSError, ValueError, KeyError):
        return False


def _close_shard(out: Path, number: int, writes: list[tuple[ChangePair, Future[dict[str, str]]]]) -> None:
    files: dict[str, str] = {}
    for _, future in writes:
        files |= future.result()
    content = {"files": files, "records": [pair.metadata for pair, _ in writes]}
    atomic_write(_marker(out, number), (json.dumps(content) + "\n").encode())


def _records(out: Path, num_shards: int) -> list[dict[str, Any]]:
    return [record for n in range(num_shards) for record in json.loads(_marker(out, n).read_text())["records"]]


def _raise_on_empty(plan: DatasetPlan, out: Path) -> None:
    if not plan.pairs:
        raise ShortfallError(f"{out}: no change is feasible in any tile of the source; see 'kinds' and 'min_area'")


def _raise_on_shortfall(plan: DatasetPlan, out: Path) -> None:
    _raise_on_empty(plan, out)
    if plan.missing:
        parts = ", ".join(f"{count} {kind}" for kind, count in plan.missing.items())
        asked = len(plan.pairs) + sum(plan.missing.values())
        raise ShortfallError(f"{out}: {len(plan.pairs)} of {asked} pairs; missing: {parts}")
