"""Lists, metadata, card and report of a set, made from the markers of its shards alone."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

from changeanywhere.documents import DocumentError, parse_json
from changeanywhere.errors import OutputError, ShortfallError
from changeanywhere.generation.job import Job
from changeanywhere.generation.plan import PlanSummary, load_shard
from changeanywhere.generation.shard import Marker, marker_name, read_marker
from changeanywhere.legend import Legend
from changeanywhere.painters.registry import find_painter
from changeanywhere.pairs.names import CHECKSUMS, FINAL_FILES, SPLITS, table_name
from changeanywhere.pairs.record import PairRecord
from changeanywhere.pairs.writer import Targets, finalise
from changeanywhere.seals import sealed, unsealed
from changeanywhere.storage import Store, content_hash, hash_of, shown
from changeanywhere.terminal import say

HELD = (
    *("metadata.jsonl", "targets.json", "legend.json"),
    *(f"list/{split}.txt" for split in SPLITS),
    *(table_name(split) for split in SPLITS),
)
"""Files of a whole set that are data: held to their checksums. Card and report may be edited."""
OF_MASKS = ("events.jsonl", "annotations.json", "targets.json", "legend.json")
"""The same of a set that ``simulate`` made."""

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
    return [n for n in range(plan.num_shards) if marker_name(n) not in there or marker_of(store, plan, n) is None]


def marker_of(store: Store, plan: PlanSummary, number: int) -> Marker | None:
    """The marker of shard ``number`` where it is sound and of this plan, else None."""
    return read_marker(store, number, load_shard(store, number, plan).seal if plan.seal else "")


def is_finished(store: Store, plan: PlanSummary) -> bool:
    """Whether every shard has the marker that was there when the set was finished, and the set its lists, metadata,
    card, report and checksums (written last).

    :class:`OutputError` where lists or metadata are not what was written.
    """
    there = set(store.list("shards"))
    markers = all(marker_name(n) in there for n in range(plan.num_shards))
    if not markers or not all(store.exists(name) for name in (*FINAL_FILES, CHECKSUMS)):
        return False
    try:
        held = check_held(store, plan)
    except DocumentError as error:
        say(f"{store.describe(CHECKSUMS)}: {error}; lists and metadata are made again", error=True)
        return False
    return held in ("", _hash_of_markers(store, plan))


def _hash_of_markers(store: Store, plan: PlanSummary) -> str:
    """Of all markers as they lie there, in the order of their numbers."""
    seen = hashlib.sha256()
    for number in range(plan.num_shards):
        seen.update(content_hash(store.get(marker_name(number))).encode())
    return seen.hexdigest()


def check_held(store: Store, plan: PlanSummary) -> str:
    """Hold lists and metadata to their checksums: :class:`OutputError` naming the one that is not what was written,
    :class:`DocumentError` where the checksums themselves are damaged or of another plan. Returns the hash of the
    markers that they were made from ("" where an earlier edition wrote them)."""
    content, _ = unsealed(store.get(CHECKSUMS))
    files = content.get("files")
    if not isinstance(files, dict) or content.get("plan") != plan.seal:
        raise DocumentError("of another plan")
    for name, digest in files.items():
        if not store.exists(name):
            raise OutputError(f"{store.describe(name)}: missing; {_again(store)}")
        with store.open(name) as file:
            if hash_of(file) != digest:
                raise OutputError(f"{store.describe(name)}: not what was written; {_again(store)}")
    return str(content.get("markers", ""))


def _again(store: Store) -> str:
    return (
        f"delete {store.describe(CHECKSUMS)}, and the same command makes lists and metadata again (own lists belong "
        "in a folder of their own)"
    )


def note_held(store: Store, plan: PlanSummary, names: Sequence[str] = HELD) -> None:
    """Write the checksums of lists and metadata, the end of the chain job → plan → shard → marker → set."""
    files = {}
    for name in names:
        if store.exists(name):
            with store.open(name) as file:
                files[name] = hash_of(file)
    store.keep(files)
    content = {"plan": plan.seal, "markers": _hash_of_markers(store, plan), "files": files}
    store.put(CHECKSUMS, sealed(content, indent=1))
    store.keep([CHECKSUMS])


def finish_set(job: Job, plan: PlanSummary, store: Store) -> SetReport:
    """Write lists, metadata, card and report from the markers; a second time gives the same bytes."""
    assert job.painter is not None
    records = records_in_order(store, plan)
    first = next(records, None)
    if first is None:
        raise ShortfallError(f"{store.describe()}: the filter dropped all {plan.num_pairs} pairs; see filter.min_score")
    legend = Legend.from_dict(job.source.legend, store.describe("plan/job.json"))
    how = find_painter(job.painter.method).how
    counts, reached = finalise(store, legend, chain([first], records), job.reached, how, plan.missing, plan.moved)
    if counts.count != plan.num_pairs and not job.finishing.filter.drops:
        raise OutputError(
            f"{store.describe()}: {counts.count} pairs in its markers, {plan.num_pairs} in its plan, and no filter "
            "dropped any; changeanywhere check says which file it is"
        )
    note_held(store, plan)
    return SetReport(counts.count, reached)


def report_of(store: Store) -> SetReport:
    """Of a set that is finished already."""
    with store.open("metadata.jsonl") as lines:
        count = sum(1 for _ in lines)
    rows = parse_json(store.get("targets.json")) if store.exists("targets.json") else []
    return SetReport(count, [(row["target"], row["asked"], row["reached"]) for row in rows])


def skipped_of(store: Store) -> list[str]:
    """Tiles that were left out when the set was planned, a line each."""
    return store.get("skipped.txt").decode().splitlines() if store.exists("skipped.txt") else []


def raise_on_missing(plan: PlanSummary, out: Path, report: object) -> None:
    """:class:`ShortfallError` with ``report`` where changes found no place; of a set that is whole, and was to have
    them."""
    if plan.missing:
        parts = ", ".join(f"{count} {kind}" for kind, count in plan.missing.items())
        asked = plan.num_pairs + sum(plan.missing.values())
        raise ShortfallError(f"{shown(out)}: {plan.num_pairs} of {asked} pairs; missing: {parts}", report)


def records_in_order(store: Store, plan: PlanSummary) -> Iterator[PairRecord]:
    """Records of all shards in the order of their keys."""

    def read(number: int) -> list[tuple[str, PairRecord]]:
        marker = marker_of(store, plan, number)
        if marker is None:
            raise OutputError(f"{store.describe(marker_name(number))}: damaged; the same command again makes it anew")
        return [(record.key, record) for record in marker.records]

    return in_key_order(plan.first_keys, read)


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
