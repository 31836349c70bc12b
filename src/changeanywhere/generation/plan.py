"""The plan of a dataset: which tile gets which change, decided before anything is painted. No torch here.

The plan is a function of (seed, tile keys, options). It is written once and read back by every later run on the same
folder, so that a run killed at any moment is finished by the same command to the same bytes.

    OUT/plan/shards/00000.json   the pairs of a shard: a worker reads its own
    OUT/plan/plan.json           how many there are, and what found no place; written last, it makes the plan valid
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from changeanywhere.errors import OutputError, SourceError
from changeanywhere.events import EventRequest, simulate
from changeanywhere.generation.job import FILE as JOB
from changeanywhere.generation.job import identity_of_job
from changeanywhere.generation.planners import Planners, Question, is_feasible
from changeanywhere.generation.targets import Requests
from changeanywhere.generation.tiles import EventSettings, Tiles
from changeanywhere.legend import Legend, Mask
from changeanywhere.plain import from_plain, to_plain
from changeanywhere.progress import Progress
from changeanywhere.sample import ChangePlan, change_mask_of
from changeanywhere.seals import sealed, unsealed
from changeanywhere.seeds import pair_seed, stream
from changeanywhere.sources import Source
from changeanywhere.storage import Store

MAX_EXTRA_ROUNDS = 8  # visits to every tile in search of a place for changes that others could not take
PAIRS_IN_MEMORY = 20_000  # of a plan while it is sorted; the rest waits in a temporary folder
NO_TILE, ITS_TILE = "no tile has room for it", "its tile has no room for it"
FILE = "plan/plan.json"
ANEW = "delete {}, and the same command plans anew; shards that fit are kept"
Content = TypeVar("Content")


@dataclass(frozen=True)
class PlannedPair:
    """One pair to be: its key, the tile it changes, what is asked of the change (None: given), and its seed."""

    key: str
    source_key: str
    source_index: int
    request: EventRequest | None
    seed: int


@dataclass(frozen=True)
class ShardPlan:
    """What is painted and finished together."""

    number: int
    pairs: tuple[PlannedPair, ...]
    job: str = ""
    """What the job is named by; "" in plans of editions without seals."""
    seal: str = ""
    """Of this plan, as it was read."""

    def batches(self, size: int) -> list[tuple[PlannedPair, ...]]:
        """Pairs that are painted at once: part of the plan, since sums depend on it in the last bits."""
        return [self.pairs[i : i + size] for i in range(0, len(self.pairs), size)]


@dataclass(frozen=True)
class PlanSummary:
    """How large a plan is, and how many of each request were asked for but found no place, or none in their turn."""

    num_pairs: int
    first_keys: tuple[str, ...]
    """Smallest key of each shard: what merges their records without holding them all."""
    missing: dict[str, int]
    job: str = ""
    """What the job is named by; "" in plans of editions without seals."""
    seal: str = ""
    """Of this plan, as it was read."""
    moved: dict[str, int] = field(default_factory=dict)
    """How many of each were made in extra rounds, on a tile with room, since the one whose turn it was has none
    (``infeasible: elsewhere``); empty in plans of editions that did not count them."""

    @property
    def num_shards(self) -> int:
        """Shards are numbered from 0."""
        return len(self.first_keys)


def change_of(pair: PlannedPair, tiles: Tiles, mask_t1: Mask | None = None) -> ChangePlan:
    """The second mask of a planned pair, made anew from its seed (or read, where the user brought it). ``mask_t1``:
    its tile's, where that was read already."""
    source = tiles.source
    if mask_t1 is None:
        mask_t1 = source.read_mask(pair.source_index)
    if tiles.second is not None:
        return _given_change(mask_t1, tiles.second.read_mask(tiles.second.index_of(pair.source_key)), pair.seed)
    context = tiles.context_of(pair.source_index)
    options = tiles.events.options
    plan = simulate(mask_t1, source.legend, pair.seed, options=options, context=context, request=pair.request)
    if plan is None:
        raise SourceError(
            f"{source.root}: mask of {pair.source_key} has changed since the plan was made; give another --out"
        )
    return plan


def _given_change(mask_t1: Any, mask_t2: Any, seed: int) -> ChangePlan:
    # Unknown ground never changes: where t1 is unknown, the second mask is unknown too.
    settled = np.where(mask_t1 == 0, 0, mask_t2).astype(np.uint8)
    return ChangePlan(settled, change_mask_of(mask_t1, settled), (), seed)


def make_plan(
    tiles: Tiles,
    requests: Requests,
    seed: int,
    shard_size: int,
    store: Store,
    progress: Progress,
    job: str = "",
    elsewhere: bool = True,
) -> PlanSummary:
    """Find a feasible tile for each request and write the shards, tile by tile (a tile's pairs are painted together).

    Round r visits every tile once, in an order drawn from ``seed``. Without targets the kinds take turns so that in two
    rounds each tile gets one appearance and one disappearance (paper §3.1). What is infeasible at its place is tried,
    with ``elsewhere``, at the other tiles in extra rounds; without, it is missing. Memory: two bytes a pair, and
    :data:`PAIRS_IN_MEMORY` of them whole. ``job``: what the job is named by.
    """
    missing: Counter[EventRequest] = Counter()
    moved: Counter[EventRequest] = Counter()
    num_buckets = max(1, -(-len(requests) // PAIRS_IN_MEMORY))
    with tempfile.TemporaryDirectory(prefix="changeanywhere-plan-") as folder:
        buckets = _Buckets(Path(folder), num_buckets, len(tiles.source))
        with buckets:
            for pair in _placed(tiles, requests, seed, missing, moved if elsewhere else None):
                buckets.add(pair)
                progress("planning changes", buckets.count, len(requests))
        words = _in_words(missing, tiles.source, tiles.events, NO_TILE if elsewhere else ITS_TILE)
        names: Counter[str] = Counter()
        for request, count in moved.items():
            names[f"{_name_of(request, tiles.source.legend)} ({ITS_TILE})"] += count
        return _write_shards(buckets.sorted(), shard_size, store, (words, dict(names)), job)


def plan_given(tiles: Tiles, seed: int, shard_size: int, store: Store, job: str = "") -> PlanSummary:
    """A pair for every tile whose second mask the user brought; a mask that changes nothing is a no-change pair."""
    source, second = tiles.source, tiles.second
    assert second is not None
    places = {item.key: i for i, item in enumerate(source.items)}
    foreign = [item.key for item in second.items if item.key not in places]
    if foreign and not source.skipped:  # else its first mask is among what was left out, and listed
        raise SourceError(f"{second.root}: {foreign[0]} has no tile of that name in {source.root}")
    pairs = [
        PlannedPair(f"{item.key}_0", item.key, places[item.key], None, pair_seed(seed, item.key, 0))
        for item in second.items
        if item.key in places
    ]
    return _write_shards(sorted(pairs, key=lambda p: (p.source_index, p.key)), shard_size, store, ({}, {}), job)


def load_summary(store: Store) -> PlanSummary | None:
    """The plan of a set; None if it has none yet. :class:`OutputError` for one that is damaged or of another job."""
    if not store.exists(FILE):
        return None
    plan = _load(store, FILE, PlanSummary)
    if plan.job and plan.job != identity_of_job(store):
        raise OutputError(
            f"{store.describe(JOB)}: not the job that plan.json was made of; {ANEW.format(store.describe(FILE))}"
        )
    return plan


def load_shard(store: Store, number: int, plan: PlanSummary | None = None) -> ShardPlan:
    """Shard ``number`` of the plan; :class:`OutputError` if it is missing, damaged, or none of ``plan``'s."""
    name = _shard_file(number)
    shard = _load(store, name, ShardPlan)
    if shard.number != number or (plan is not None and shard.job != plan.job):
        raise OutputError(f"{store.describe(name)}: of another plan; {ANEW.format(store.describe(FILE))}")
    return shard


def _load(store: Store, name: str, kind: type[Content]) -> Content:
    try:
        content, seal = unsealed(store.get(name))
        return from_plain(kind, {"job": "", "seal": seal} | content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{store.describe(name)}: damaged plan ({error}); {ANEW.format(store.describe(FILE))}"
        ) from error


def _shard_file(number: int) -> str:
    return f"plan/shards/{number:05d}.json"


def _placed(
    tiles: Tiles, requests: Requests, seed: int, missing: Counter[EventRequest], moved: Counter[EventRequest] | None
) -> Iterator[PlannedPair]:
    """A pair for every request that finds a tile, in the order of finding; what does not is counted in ``missing``, and
    what finds one in extra rounds in ``moved``; None: there are none."""
    items, order = tiles.source.items, stream("plan.order", seed).permutation(len(tiles.source))
    num_tiles, num_rounds = len(order), -(-len(requests) // len(order))

    def asked(place: int, round_number: int, request: EventRequest) -> Question:
        return Question(place, int(order[place]), round_number, request)

    def pair_of(one: Question) -> PlannedPair:
        key, number = items[one.index].key, one.round_number
        return PlannedPair(f"{key}_{number}", key, one.index, one.request, pair_seed(seed, key, number))

    def rounds() -> Iterator[Question]:
        for number in range(num_rounds):
            slots = requests.part(number * num_tiles, (number + 1) * num_tiles)
            # In the source's order, though drawn in another: windows of one large file are then read one after the
            # other.
            for place in sorted(range(len(slots)), key=lambda place: int(order[place])):
                yield asked(place, number, slots[place])

    with Planners(tiles, seed, len(requests)) as planners:
        for _, answers in groupby(planners.answered(rounds()), lambda answer: answer[0].round_number):
            infeasible = {}
            for one, found in answers:
                if found:
                    yield pair_of(one)
                else:
                    infeasible[one.place] = one.request
            missing.update(infeasible[place] for place in sorted(infeasible))
    if moved is None:
        return
    for request in list(missing):
        last_round = num_rounds + MAX_EXTRA_ROUNDS
        while missing[request] and num_rounds < last_round:
            before = missing[request]
            for place in range(num_tiles):
                one = asked(place, num_rounds, request)
                if missing[request] and is_feasible(tiles, seed, one):
                    missing[request] -= 1
                    moved[request] += 1
                    yield pair_of(one)
            num_rounds += 1
            if missing[request] == before:
                break


class _Buckets:
    """Planned pairs by tile, in files: what is found round by round comes out tile by tile."""

    def __init__(self, folder: Path, number: int, num_tiles: int) -> None:
        self._paths = [folder / f"{i}.jsonl" for i in range(number)]
        self._num_tiles = num_tiles
        self.count = 0

    def __enter__(self) -> None:
        self._files = [path.open("w") for path in self._paths]

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def add(self, pair: PlannedPair) -> None:
        """Put a pair where its tile belongs."""
        bucket = pair.source_index * len(self._files) // self._num_tiles
        self._files[bucket].write(json.dumps(to_plain(pair)) + "\n")
        self.count += 1

    def sorted(self) -> Iterator[PlannedPair]:
        """All pairs by (number of the tile, key)."""
        for path in self._paths:
            pairs = [from_plain(PlannedPair, json.loads(line)) for line in path.read_text().splitlines()]
            yield from sorted(pairs, key=lambda pair: (pair.source_index, pair.key))


def _write_shards(
    pairs: Iterable[PlannedPair], shard_size: int, store: Store, short: tuple[dict[str, int], dict[str, int]], job: str
) -> PlanSummary:
    """``short``: what found no place, and what none in its turn, with counts."""
    first_keys: list[str] = []
    held: list[PlannedPair] = []
    count = 0

    def write() -> None:
        shard = ShardPlan(len(first_keys), tuple(held), job)
        store.put(_shard_file(shard.number), _sealed(shard))
        first_keys.append(min(pair.key for pair in held))
        held.clear()

    for pair in pairs:
        held.append(pair)
        count += 1
        if len(held) == shard_size:
            write()
    if held:
        write()
    store.keep(_shard_file(number) for number in range(len(first_keys)))
    missing, moved = short
    summary = PlanSummary(count, tuple(first_keys), missing, job, moved=moved)
    store.put(FILE, _sealed(summary, indent=1))
    store.keep([JOB, FILE] if store.exists(JOB) else [FILE])
    return replace(summary, seal=unsealed(store.get(FILE))[1])


def _sealed(plan: PlanSummary | ShardPlan, indent: int | None = None) -> bytes:
    content = to_plain(plan)
    del content["seal"]
    if not content.get("moved", True):  # the bytes of a plan in which nothing is moved stay what they were
        del content["moved"]
    return sealed(content, indent)


def _in_words(missing: Counter[EventRequest], source: Source, events: EventSettings, no_room: str) -> dict[str, int]:
    """What found no place, and why, with counts."""
    short = {request: count for request, count in missing.items() if count}
    if not short:
        return {}
    present = set(
        np.flatnonzero(sum(np.bincount(source.read_mask(i).ravel(), minlength=256) for i in range(len(source))))
    )
    words: Counter[str] = Counter()
    for request, count in short.items():
        reason = no_room
        if request.transition is not None:
            before, after = request.transition
            table = events.context.transitions
            if table is not None and not table.weight(before, after):
                reason = "the transition table forbids it"
            elif before not in present:
                reason = f"no tile has {source.legend.name_of(before)}"
            elif after not in present and "conversion" not in events.options.kinds:
                reason = f"no tile has {source.legend.name_of(after)}, and conversion is not among the kinds"
        words[f"{_name_of(request, source.legend)} ({reason})"] += count
    return dict(words)


def _name_of(request: EventRequest, legend: Legend) -> str:
    parts = [request.kind] if request.kind else []
    if request.transition is not None:
        before, after = request.transition
        parts.append(f"{legend.name_of(before)}->{legend.name_of(after)}")
    if request.ratio is not None:
        parts.append(f"with change ratio {request.ratio[0]:g}-{request.ratio[1]:g}")
    return " ".join(parts) or "change"
