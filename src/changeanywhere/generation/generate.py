"""``changeanywhere generate``: job → plan → executor → shards → dataset."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from changeanywhere.buckets import store_at
from changeanywhere.errors import OutputError, ShortfallError
from changeanywhere.exporting.export import export
from changeanywhere.exporting.options import IN_TABLES, ExportOptions
from changeanywhere.generation.dataset import (
    SetReport,
    finish_set,
    is_finished,
    marker_of,
    open_shards,
    raise_on_missing,
    report_of,
    skipped_of,
)
from changeanywhere.generation.executors import Work
from changeanywhere.generation.executors.threads import ThreadExecutor
from changeanywhere.generation.hands import Hands, hands_for
from changeanywhere.generation.job import Job
from changeanywhere.generation.lanes import lanes_of
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.plan import PlanSummary, load_shard, load_summary
from changeanywhere.generation.prepare import (
    get_plan,
    is_asked_again,
    job_of,
    note_asked,
    note_inputs,
    refuse_foreign,
    settle_machine,
)
from changeanywhere.generation.second import share_of
from changeanywhere.generation.shard import ATTEMPTS, StoppedError, marker_name, paint_shard, read
from changeanywhere.generation.shares import Share
from changeanywhere.generation.turns import Turns
from changeanywhere.leases import Leases
from changeanywhere.painters.base import Painter
from changeanywhere.pairs.writer import Targets
from changeanywhere.progress import Progress, silent
from changeanywhere.stopping import polite_stop
from changeanywhere.storage import LocalStore, Store, check_place, remove_leftovers, shown

LAYOUTS = "layouts"
"""Folder of a set for its pairs in other layouts."""
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
    num_open: int
    """Shards that other shares have still to paint (``shard``); lists and report follow then."""
    reached: Targets
    """(target, share asked, share reached)."""
    skipped: Sequence[str]
    """Why tiles were left out, a line each (``on_error: skip``)."""
    exported: Path | None = None
    """Where the pairs lie in another layout, if one was asked for."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Changes that their tiles have no room for, with counts (``infeasible: leave``)."""

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
    ignored: float | None = None
    """Share of the ground whose real dates differ in earnest; None where no second date is shown."""


def generate(options: GenerateOptions, progress: Progress = silent) -> GenerateReport:
    """Make, or finish, the dataset in ``options.out``, and export it where another layout is asked for.

    Raises as :func:`_generate` does, a :class:`ShortfallError` of a whole set once it is exported, and what
    :func:`.exporting.export.export` raises, once the dataset is whole.
    """
    shortfall = None
    try:
        report = _generate(options, progress)
    except ShortfallError as error:
        if not isinstance(error.report, GenerateReport):  # nothing is there
            raise
        report, shortfall = error.report, error
    report = _exported(options, report, progress)
    if shortfall is not None:
        shortfall.report = report
        raise shortfall
    return report


def _exported(options: GenerateOptions, report: GenerateReport, progress: Progress) -> GenerateReport:
    """The report with the pairs in the other layout, if one was asked for and the set is whole."""
    if options.layout == GenerateOptions.layout or report.num_open:
        return report
    place, link = options.out / LAYOUTS / options.layout, options.layout not in IN_TABLES
    export(ExportOptions(pairs=options.out, layout=options.layout, out=place, link=link), progress, inside=True)
    return replace(report, exported=place)


def _generate(options: GenerateOptions, progress: Progress) -> GenerateReport:
    """Make, or finish, the dataset in ``options.out``.

    Raises :class:`InputError` for what the user gave wrong and :class:`ShortfallError`, after writing all that could
    be made, if fewer changes are feasible than asked for. SIGTERM ends the run after the shards that are being painted,
    with :class:`KeyboardInterrupt`.
    """
    check_place(options.out, options.source)
    store = store_at(options.out)
    share = Share.parse(options.shard)
    plan = load_summary(store)
    if plan is not None and is_asked_again(options, store) and is_finished(store, plan):
        with suppress(OSError, OutputError):  # a set that may only be read is finished all the same
            Leases(store).sweep()
        return _report(options, plan, _Done(report_of(store)), skipped_of(store))
    refuse_foreign(store)
    job = job_of(options, store, progress)
    leases = Leases(store)
    with polite_stop() as stop, threads_of(job):
        painter, job = painter_of(job)
        with leases.waited_for("plan", lambda: load_summary(store) is not None):
            remove_leftovers(options.out)
            plan = get_plan(job, store, progress)
            note_inputs(job, store)
            note_asked(options, store)
        with leases.waited_for("machine", lambda: False):
            settle_machine(job, store)
        if options.executor == "ray":
            count, seconds = _paint_on_ray(options, job, plan, store, leases, stop, progress, share)
        else:
            count, seconds = _paint(job, painter, plan, store, leases, stop, progress, share)
        _raise_on_empty(plan, options.out)
        done = _Done(None, count, count / seconds if count else 0.0, len(open_shards(store, plan)))
        if not done.num_open:
            with leases.waited_for("set", lambda: False):
                finished = not count and is_finished(store, plan)
                done = replace(done, whole=report_of(store) if finished else finish_set(job, plan, store))
                leases.sweep()
                remove_leftovers(options.out)
    return _report(options, plan, done, job.tiles.skipped)


@dataclass(frozen=True)
class _Done:
    """What a call did; ``whole`` is None while shards are open."""

    whole: SetReport | None
    num_new: int = 0
    rate: float = 0.0
    num_open: int = 0


def _paint(
    job: Job,
    painter: Painter,
    plan: PlanSummary,
    store: Store,
    leases: Leases,
    stop: threading.Event,
    progress: Progress,
    share: Share,
) -> tuple[int, float]:
    """Paint the shards of a share that are open, together with whoever else works on them; (pairs painted here,
    seconds)."""
    open_numbers = share.of(open_shards(store, plan))
    tally, turns, started = (
        _Tally(plan.num_pairs, job, len(open_numbers), progress),
        Turns(painter),
        time.perf_counter(),
    )

    count = hands_for(job, len(open_numbers))
    crew = Hands(job, store, count) if count else None

    def make(number: int) -> None:
        with suppress(StoppedError):  # nothing of it was begun
            if crew is not None:
                crew.make(number, turns.of(number), tally.add, stop)
                return
            shard = load_shard(store, number, plan)
            paint_shard(job, turns.of(number), shard, store, progress=tally.add, stop=stop)

    def is_done(number: int) -> bool:
        return marker_of(store, plan, number) is not None

    with crew or nullcontext():
        executor = ThreadExecutor(count) if count else ThreadExecutor()
        with turns.served_beside(1 if count else lanes_of(job).count - 1):
            executor.run(open_numbers, Work(make, is_done, turns.serve, turns.close), leases, stop)
    return tally.painted, time.perf_counter() - started


def _paint_on_ray(
    options: GenerateOptions,
    job: Job,
    plan: PlanSummary,
    store: Store,
    leases: Leases,
    stop: threading.Event,
    progress: Progress,
    share: Share,
) -> tuple[int, float]:
    """:func:`_paint` by the actors of a cluster."""
    from changeanywhere.generation.cluster import RayShards

    started = time.perf_counter()
    count = 0
    for _ in range(ATTEMPTS):
        numbers = share.of(open_shards(store, plan))
        if not numbers:
            break
        count += RayShards(options.address, options.workers).run(numbers, job, plan, store, leases, stop, progress)
    return count, time.perf_counter() - started


class _Tally:
    """Counts painted pairs over all threads."""

    def __init__(self, total: int, job: Job, num_open: int, progress: Progress) -> None:
        self.painted = 0
        self._total, self._progress, self._lock = total, progress, threading.Lock()
        self._before = max(0, total - num_open * job.shard_size)

    def add(self, count: int) -> None:
        with self._lock:
            self.painted += count
            self._progress("painting pairs", min(self._before + self.painted, self._total), self._total)


def painter_of(job: Job) -> tuple[Painter, Job]:
    """The painter of a job, on its device, with what ``finishing`` puts around it; and the job with the batch size that
    the device takes, where none was said. Raises :class:`ConfigError` and :class:`ModelError`."""
    from changeanywhere.generation.painting import build_painter

    return build_painter(job)


@contextmanager
def threads_of(job: Job) -> Iterator[None]:
    """The CPU threads that the job froze, and float32 convolutions of a GPU in full, while the context lasts."""
    if job.machine is None:
        yield
        return
    from changeanywhere.painters.diffusion import settled

    with settled(lanes_of(job).threads):
        yield


def dry_run(options: GenerateOptions, progress: Progress = silent) -> DryRun:
    """Plan, paint two batches without writing them, and extrapolate from the second."""
    options.check()
    store = store_at(options.out)
    refuse_foreign(store)
    job = job_of(options, store, progress)
    with tempfile.TemporaryDirectory(prefix="changeanywhere-dry-run-") as folder, threads_of(job):
        painter, job = painter_of(job)
        place: Store = LocalStore(folder)
        begun = load_summary(store)
        plan = begun or get_plan(job, place, progress)
        _raise_on_empty(plan, options.out)
        shard = load_shard(store if begun else place, 0)
        size = job.machine.batch_size if job.machine else 1
        some = replace(shard, pairs=shard.pairs[: size * lanes_of(job).count])
        batches, seconds = some.batches(size), 0.0
        for _ in range(DRY_RUN_BATCHES):
            started = time.perf_counter()
            with ThreadPoolExecutor(len(batches)) as painters:  # as many at once as when it is meant
                list(painters.map(lambda pairs: painter.paint(read(job, pairs)), batches))
            seconds = (time.perf_counter() - started) / len(some.pairs)
        sheet = LocalStore(Path(folder) / "painted")
        paint_shard(job, painter, some, sheet, progress=lambda count: None, stop=threading.Event())
        files = [name for name in sheet.list() if name != marker_name(0)]
        num_bytes = sum((sheet.root / name).stat().st_size for name in files)
        left = sum(len(load_shard(store, n).pairs) for n in open_shards(store, plan)) if begun else plan.num_pairs
    ignored = None if job.learned.ignored is None else share_of(job.learned.ignored)
    return DryRun(plan.num_pairs, plan.missing, num_bytes * left // len(some.pairs), seconds * left, ignored)


def _report(options: GenerateOptions, plan: PlanSummary, done: _Done, skipped: Sequence[str]) -> GenerateReport:
    """What was done; :class:`ShortfallError` with it where changes found no place, and were to find one."""
    out, left_out = options.out, plan.missing if options.infeasible == "leave" else {}
    whole = done.whole or SetReport(0, [])
    dropped = plan.num_pairs - whole.num_pairs if done.whole else 0
    report = GenerateReport(
        out, whole.num_pairs, done.num_new, done.rate, dropped, done.num_open, whole.reached, skipped
    )
    if left_out:
        return replace(report, left_out=left_out)
    if done.whole:
        raise_on_missing(plan, out, report)
    return report


def _raise_on_empty(plan: PlanSummary, out: Path) -> None:
    if not plan.num_pairs:
        raise ShortfallError(
            f"{shown(out)}: no change is feasible in any tile of the source; see 'kinds' and 'min_area'"
        )
