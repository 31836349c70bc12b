"""Lists, metadata, card and report of a set, made from the markers of its shards alone."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from changeanywhere.errors import OutputError, ShortfallError
from changeanywhere.generation.job import Job
from changeanywhere.generation.plan import PlanSummary
from changeanywhere.generation.shard import marker_name, read_marker
from changeanywhere.legend import Legend
from changeanywhere.painters.registry import find_painter
from changeanywhere.pairs.names import FINAL_FILES
from changeanywhere.pairs.record import PairRecord
from changeanywhere.pairs.writer import Targets, finalise
from changeanywhere.storage import Store

Item = TypeVar("Item")


@dataclass(frozen=True)
class SetReport:
    """What a set holds."""

    num_pairs: int
    reached: Targets
    """(target, share asked, share reached)."""


def open_shards(store: Store, plan: PlanSummary) -> list[int]:
    """Shards that have no marker, or a damaged one. Images are not looked at: ``check`` does that."""
    there = set(store.list("shards"))
    return [n for n in range(plan.num_shards) if marker_name(n) not in there or read_marker(store, n) is None]


def is_finished(store: Store, plan: PlanSummary) -> bool:
    """Whether every shard has its marker and the set its lists, metadata, card and report (written last)."""
    there = set(store.list("shards"))
    markers = all(marker_name(n) in there for n in range(plan.num_shards))
    return markers and all(store.exists(name) for name in FINAL_FILES)


def finish_set(job: Job, plan: PlanSummary, store: Store) -> SetReport:
    """Write lists, metadata, card and report from the markers; a second time gives the same bytes."""
    assert job.painter is not None
    records = records_in_order(store, plan.first_keys)
    first = next(records, None)
    if first is None:
        raise ShortfallError(f"{store.describe()}: the filter dropped all {plan.num_pairs} pairs; see filter.min_score")
    legend = Legend.from_dict(job.source.legend, store.describe("plan/job.json"))
    how = find_painter(job.painter.method).how
    counts, reached = finalise(store, legend, chain([first], records), job.targets.reached, how)
    return SetReport(counts.count, reached)


def report_of(store: Store) -> SetReport:
    """Of a set that is finished already."""
    with store.open("metadata.jsonl") as lines:
        count = sum(1 for _ in lines)
    rows = json.loads(store.get("targets.json")) if store.exists("targets.json") else []
    return SetReport(count, [(row["target"], row["asked"], row["reached"]) for row in rows])


def records_in_order(store: Store, first_keys: Sequence[str]) -> Iterator[PairRecord]:
    """Records of all shards in the order of their keys; ``first_keys``: the smallest key of each shard."""

    def read(number: int) -> list[tuple[str, PairRecord]]:
        marker = read_marker(store, number)
        if marker is None:
            raise OutputError(f"{store.describe(marker_name(number))}: damaged; the same command again makes it anew")
        return [(record.key, record) for record in marker.records]

    return in_key_order(first_keys, read)


def in_key_order(first_keys: Sequence[str], read: Callable[[int], list[tuple[str, Item]]]) -> Iterator[Item]:
    """What ``read`` gives of each shard, (key, item), merged by key; in memory are only shards whose keys overlap."""
    order = sorted(range(len(first_keys)), key=first_keys.__getitem__)
    held: list[tuple[str, int, Item]] = []
    for place, number in enumerate(order):
        for entry, (key, item) in enumerate(read(number)):
            heapq.heappush(held, (key, number << 32 | entry, item))  # the number decides between equal keys
        limit = first_keys[order[place + 1]] if place + 1 < len(order) else None
        while held and (limit is None or held[0][0] < limit):
            yield heapq.heappop(held)[2]
