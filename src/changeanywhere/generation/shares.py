"""Several machines on one set without talking to each other: each paints its share of the shards.

changeanywhere plan … --out DIR                 # once; a login node will do
changeanywhere generate … --out DIR --shard 3/8 # each of eight jobs
changeanywhere finish DIR                       # or the share that finishes last
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from changeanywhere.buckets import store_at
from changeanywhere.errors import OutputError, ShortfallError, require
from changeanywhere.generation.dataset import (
    finish_set,
    is_finished,
    open_shards,
    raise_on_missing,
    report_of,
    skipped_of,
)
from changeanywhere.generation.job import load_job
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.plan import PlanSummary, load_summary
from changeanywhere.generation.prepare import get_plan, job_of, note_asked, note_inputs, refuse_foreign
from changeanywhere.leases import Leases
from changeanywhere.pairs.writer import Targets
from changeanywhere.progress import Progress, silent
from changeanywhere.storage import remove_leftovers, shown


@dataclass(frozen=True)
class Share:
    """Every ``count``-th shard, from number ``index`` on."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Share:
        """ "3/8" → the fourth of eight; None: all of them. :class:`ConfigError` for anything else."""
        if text is None:
            return cls()
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        index, count = (int(part) for part in found.groups()) if found else (1, 0)
        require(index < count, "shard", text, "I/N with I from 0 to N - 1, as 0/8")
        return cls(index, count)

    def of(self, numbers: Sequence[int]) -> list[int]:
        """Those of ``numbers`` that belong to this share."""
        return [number for number in numbers if number % self.count == self.index]


def plan_set(options: GenerateOptions, progress: Progress = silent) -> PlanSummary:
    """Make the plan of a set and paint nothing; on what it is painted stays open until the first shard is.

    A plan that is there already is returned as it is, if it is the same. Raises :class:`InputError`.
    """
    options.check()
    plain = options.layout == GenerateOptions.layout
    require(plain, "layout", options.layout, "with generate, or export the finished set; a plan has no pairs")
    store = store_at(options.out)
    refuse_foreign(store)
    job = job_of(options, store, progress)
    with Leases(store).waited_for("plan", lambda: load_summary(store) is not None):
        remove_leftovers(options.out)
        begun = load_job(store)
        plan = get_plan(replace(job, machine=begun.machine if begun else None).opened_with(job.tiles), store, progress)
        note_inputs(job, store)
        note_asked(options, store)
    if not plan.num_pairs:
        raise ShortfallError(
            f"{shown(options.out)}: no change is feasible in any tile of the source; see 'kinds' and 'min_area'"
        )
    return plan


@dataclass(frozen=True)
class FinishReport:
    """What a set holds that :func:`finish` has finished."""

    out: Path
    num_pairs: int
    reached: Targets
    """(target, share asked, share reached)."""
    num_dropped: int
    """Pairs of the plan that the filter left out."""
    skipped: Sequence[str]
    """Why tiles were left out, a line each (``on_error: skip``)."""
    left_out: Mapping[str, int]
    """Changes that their tiles have no room for, with counts (``infeasible: leave``)."""


def finish(out: Path) -> FinishReport:
    """Lists, metadata, card and report of a set whose shards are all there, from the markers alone.

    Raises :class:`OutputError` where there is no plan, :class:`ShortfallError` where shards are open, and, once the set
    is whole, where changes found no place that were to find one.
    """
    store = store_at(out)
    job, plan = load_job(store), load_summary(store)
    if job is None or plan is None:
        raise OutputError(f"{shown(out)}: no plan in it; make one with 'changeanywhere plan' or 'generate'")
    missing = open_shards(store, plan)
    if missing:
        first = ", ".join(map(str, missing[:5]))
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ShortfallError(
            f"{shown(out)}: {len(missing)} of {plan.num_shards} shards are not there ({first}{more}); "
            "generate --shard paints them"
        )
    leases = Leases(store)
    with leases.waited_for("set", lambda: False):
        done = report_of(store) if is_finished(store, plan) else finish_set(job, plan, store)
        leases.sweep()
        remove_leftovers(out)
    left_out = plan.missing if job.infeasible == "leave" else {}
    dropped = plan.num_pairs - done.num_pairs
    report = FinishReport(out, done.num_pairs, done.reached, dropped, skipped_of(store), left_out)
    if not left_out:
        raise_on_missing(plan, out, report)
    return report
