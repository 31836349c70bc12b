"""The plan of a dataset: which tile gets which change, decided before anything is painted. No torch here.

The plan is a function of (seed, tile keys, options). It is written once and read back by every later run on the same
folder, so that a run killed at any moment is finished by the same command to the same bytes.

    OUT/plan/settings.json     everything that the bytes of the dataset depend on
    OUT/plan/pairs.jsonl       a line per pair, in shard order
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from changeanywhere.errors import OutputError, SourceError
from changeanywhere.events import EventContext, EventOptions, EventRequest, pair_seed, simulate
from changeanywhere.sample import ChangePlan, change_mask_of
from changeanywhere.sources import Source
from changeanywhere.storage import atomic_write

MAX_EXTRA_ROUNDS = 8  # visits to every tile in search of a place for changes that others could not take


@dataclass(frozen=True)
class PlannedPair:
    """One pair to be: its key, the tile it changes, what is asked of the change (None: given), its seed and shard."""

    key: str
    source_key: str
    source_index: int
    request: EventRequest | None
    seed: int
    shard: int


@dataclass(frozen=True)
class DatasetPlan:
    """All pairs in shard order, and how many of each request were asked for but found no place."""

    pairs: tuple[PlannedPair, ...]
    missing: Mapping[str, int]

    def shards(self) -> list[list[PlannedPair]]:
        """The pairs, shard by shard; shard N is entry N."""
        return [list(group) for _, group in groupby(self.pairs, key=lambda pair: pair.shard)]


@dataclass(frozen=True)
class EventSettings:
    """What events depend on beside mask and seed: the options, and what was learned from the whole source."""

    options: EventOptions
    context: EventContext

    def at(self, gsd_m: float | None) -> EventContext:
        """The context of a tile with this ground sampling."""
        return replace(self.context, gsd_m=gsd_m)


def change_of(pair: PlannedPair, source: Source, second: Source | None, events: EventSettings) -> ChangePlan:
    """The second mask of a planned pair, made anew from its seed (or read, where the user brought it)."""
    mask_t1 = source.read_mask(pair.source_index)
    if second is not None:
        return _given_change(mask_t1, second.read_mask(second.index_of(pair.source_key)), pair.seed)
    context = events.at(source.items[pair.source_index].gsd_m)
    plan = simulate(mask_t1, source.legend, pair.seed, options=events.options, context=context, request=pair.request)
    if plan is None:
        raise SourceError(
            f"{source.root}: mask of {pair.source_key} has changed since the plan was made; give another --out"
        )
    return plan


def make_plan(
    source: Source,
    requests: Sequence[EventRequest],
    seed: int,
    shard_size: int,
    events: EventSettings,
    on_progress: Callable[[], object] = lambda: None,
) -> DatasetPlan:
    """Find a feasible tile for each request, spread over the tiles in an order drawn from ``seed``.

    Round r visits every tile once. Without targets the kinds take turns so that in two rounds each tile gets one
    appearance and one disappearance (paper §3.1). What is infeasible at its place is tried at the other tiles in
    extra rounds.
    """
    tiles = np.random.default_rng(seed).permutation(len(source))
    found: list[PlannedPair] = []
    missing: Counter[EventRequest] = Counter()

    def attempt(place: int, round_number: int, request: EventRequest) -> bool:
        index = int(tiles[place])
        item = source.items[index]
        pair_number = pair_seed(seed, item.key, round_number)
        mask = source.read_mask(index)
        context = events.at(item.gsd_m)
        plan = simulate(mask, source.legend, pair_number, options=events.options, context=context, request=request)
        if plan is None:
            return False
        found.append(PlannedPair(f"{item.key}_{round_number}", item.key, index, request, pair_number, 0))
        on_progress()
        return True

    for start in range(0, len(requests), len(tiles)):
        slots = requests[start : start + len(tiles)]
        # In the source's order, though drawn in another: windows of one large file are then read one after the other.
        places = sorted(range(len(slots)), key=lambda place: int(tiles[place]))
        feasible = {place: attempt(place, start // len(tiles), slots[place]) for place in places}
        missing.update(request for place, request in enumerate(slots) if not feasible[place])
    next_round = -(-len(requests) // len(tiles))
    for request in list(missing):
        last_round = next_round + MAX_EXTRA_ROUNDS
        while missing[request] and next_round < last_round:
            before = missing[request]
            for place in range(len(tiles)):
                if missing[request] and attempt(place, next_round, request):
                    missing[request] -= 1
            next_round += 1
            if missing[request] == before:
                break
    return DatasetPlan(_into_shards(found, shard_size), _in_words(missing, source, events))


def _in_words(missing: Counter[EventRequest], source: Source, events: EventSettings) -> dict[str, int]:
    """What found no place, and why, with counts."""
    short = {request: count for request, count in missing.items() if count}
    if not short:
        return {}
    present = set(
        np.flatnonzero(sum(np.bincount(source.read_mask(i).ravel(), minlength=256) for i in range(len(source))))
    )
    words: Counter[str] = Counter()
    for request, count in short.items():
        parts, reason = [request.kind] if request.kind else [], "no tile has room for it"
        if request.transition is not None:
            before, after = request.transition
            parts.append(f"{source.legend.name_of(before)}->{source.legend.name_of(after)}")
            table = events.context.transitions
            if table is not None and not table.weight(before, after):
                reason = "the transition table forbids it"
            elif before not in present:
                reason = f"no tile has {source.legend.name_of(before)}"
            elif after not in present and "conversion" not in events.options.kinds:
                reason = f"no tile has {source.legend.name_of(after)}, and conversion is not among the kinds"
        if request.ratio is not None:
            parts.append(f"with change ratio {request.ratio[0]:g}-{request.ratio[1]:g}")
        words[f"{' '.join(parts) or 'change'} ({reason})"] += count
    return dict(words)


def plan_given(source: Source, second: Source, seed: int, shard_size: int) -> DatasetPlan:
    """A pair for every tile whose second mask the user brought; a mask that changes nothing is a no-change pair."""
    places = {item.key: i for i, item in enumerate(source.items)}
    foreign = [item.key for item in second.items if item.key not in places]
    if foreign and not source.skipped:  # else its first mask is among what was left out, and listed
        raise SourceError(f"{second.root}: {foreign[0]} has no tile of that name in {source.root}")
    pairs = [
        PlannedPair(f"{item.key}_0", item.key, places[item.key], None, pair_seed(seed, item.key, 0), 0)
        for item in second.items
        if item.key in places
    ]
    return DatasetPlan(_into_shards(pairs, shard_size), {})


def _into_shards(pairs: list[PlannedPair], shard_size: int) -> tuple[PlannedPair, ...]:
    """Tile by tile, so that a tile's pairs are painted together."""
    ordered = sorted(pairs, key=lambda p: (p.source_index, p.key))
    return tuple(replace(p, shard=i // shard_size) for i, p in enumerate(ordered))


def _given_change(mask_t1: Any, mask_t2: Any, seed: int) -> ChangePlan:
    # Unknown ground never changes: where t1 is unknown, the second mask is unknown too.
    settled = np.where(mask_t1 == 0, 0, mask_t2).astype(np.uint8)
    return ChangePlan(settled, change_mask_of(mask_t1, settled), (), seed)


def save_plan(plan: DatasetPlan, settings: Mapping[str, Any], out: Path) -> None:
    """Write the plan; ``settings.json`` comes last and makes it valid."""
    lines = [json.dumps(asdict(pair)) for pair in plan.pairs]
    atomic_write(out / "plan" / "pairs.jsonl", "".join(f"{line}\n" for line in lines).encode())
    content = {"settings": dict(settings), "missing": dict(plan.missing)}
    atomic_write(out / "plan" / "settings.json", (json.dumps(content, indent=1) + "\n").encode())


def settings_of(out: Path) -> dict[str, Any]:
    """The settings that ``out`` was started with; empty if it was not."""
    try:
        settings: dict[str, Any] = json.loads((out / "plan" / "settings.json").read_text())["settings"]
    except (OSError, ValueError, KeyError):  # a damaged plan is reported by load_plan
        return {}
    return settings


def _parse_pair(content: dict[str, Any]) -> PlannedPair:
    request = content.pop("request")
    if request is not None:
        request = EventRequest(
            request["kind"],
            tuple(request["transition"]) if request["transition"] else None,
            tuple(request["ratio"]) if request["ratio"] else None,
            request["no_change"],
        )
    return PlannedPair(request=request, **content)


def load_plan(settings: Mapping[str, Any], out: Path) -> DatasetPlan | None:
    """The plan that ``out`` was started with, None if there is none.

    Raises :class:`OutputError` if it was made with other settings, or if ``out`` holds something else.
    """
    file = out / "plan" / "settings.json"
    if not file.is_file():
        leftovers = [p.name for p in out.iterdir() if p.name not in ("plan", ".lock")] if out.is_dir() else []
        if leftovers:
            raise OutputError(
                f"{out}: not empty ({sorted(leftovers)[0]}) and not made by this command; give another --out"
            )
        return None
    try:
        content = json.loads(file.read_text())
        lines = (out / "plan" / "pairs.jsonl").read_text().splitlines()
        pairs = tuple(_parse_pair(json.loads(line)) for line in lines)
        before, missing = content["settings"], content["missing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{file.parent}: damaged plan ({error}); give another --out") from error
    asked = json.loads(json.dumps(settings))
    for key in sorted({*before, *asked}):
        if before.get(key) != asked.get(key):
            raise OutputError(
                f"{out}: was made with {key} = {before.get(key)!r}, asked now: {asked.get(key)!r}; "
                "give another --out, or the same settings to resume"
            )
    return DatasetPlan(pairs, missing)
