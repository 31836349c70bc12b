"""Events over a whole scene, drawn window by window in bounded memory; shares hold over the scene. No torch here.

Most windows are small, few are large, so that large instances have their turn: an instance that a window cuts may
receive a shape, and nothing else. What a window never holds whole (larger than :data:`SIDES` in one direction) does not
change as what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import ConfigError
from changeanywhere.events import EventOptions
from changeanywhere.events.engine import registry_of_kinds, sizes_of_events
from changeanywhere.events.ground import Ground
from changeanywhere.events.transitions import TransitionTable
from changeanywhere.legend import Legend, Mask
from changeanywhere.progress import Progress
from changeanywhere.rasters.facts import Window
from changeanywhere.sample import ChangeEvent, ShapeDonor, runs_of
from changeanywhere.scenes.inputs import strips
from changeanywhere.seeds import stream

SIDES = {384: 0.8, 768: 0.14, 1536: 0.05, 4096: 0.01}
"""Sides of windows in px, and how often each is drawn."""
ATTEMPTS = 8
"""Windows tried for an event."""
HOPELESS = 40
"""Events of a class transition in a row without a place, after which it counts as having none; a scene is full after as
many in a row of all transitions that have had one."""
SLACK = 0.1
"""Of the area that is asked for, what may be left at the end: too small for one more event."""
LEAST_SHARE = 1e-9
"""What is left for free transitions where given shares add up to 1, but for the last bits of the sum."""
LARGEST_PART, TILE_PART = 0.25, 9830
"""Of the change that is asked for, what one event may be at most, since a scene shows several; but as many px as in a
tile of 256 px at least (its 15 %)."""
KNOWN = 0.2
"""Share of a window that must be known and free."""


@dataclass(frozen=True)
class Quotas:
    """What a scene is to show: a share of its known ground that changes, or a number of events; and shares of the
    events by class transition."""

    change_share: float | None
    num_events: int | None
    class_pairs: dict[str, float]


@dataclass(frozen=True)
class ScenePlan:
    """What changes in a scene; boxes of events and donors in px of the scene."""

    events: tuple[ChangeEvent, ...]
    known: int
    """Known pixels of date 1."""
    changed: int
    missing: int
    """Events (of ``num_events``), else pixels, that found no place."""
    missing_pairs: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of ``class_pairs`` that ran out of places while there was more to change, or had none: how many events there are,
    and how many their share would be."""


def plan_scene(
    mask_t1: Mask,
    mask_t2: Mask,
    legend: Legend,
    options: EventOptions,
    quotas: Quotas,
    place: tuple[int, float | None],
    progress: Progress,
) -> ScenePlan:
    """Draw events on ``mask_t1`` uint8 ``[H, W]`` into ``mask_t2``, which is equal to it at first. ``place``: seed, and
    metres per pixel where they are known."""
    seed, gsd_m = place
    known = sum(int(np.count_nonzero(mask_t1[window.slices])) for window in strips(mask_t1.shape))
    budget = int((quotas.change_share or 1.0) * known)
    smallest, largest = options.area_limits(known, gsd_m)
    turns = _Turns(quotas, options, legend)
    weight = _weights(options, legend)
    events: list[ChangeEvent] = []
    changed = number = placed = 0
    while turns.has_any and not _is_enough(quotas, placed, budget - changed, smallest):
        most = largest
        if quotas.num_events is None:
            most = min(largest, budget - changed, max(TILE_PART, int(LARGEST_PART * budget)))
        kind, pair = turns.next(number)

        def allowed(before: int, after: int, pair: tuple[int, int] | None = pair) -> float:
            return weight(before, after) if pair is None or (before, after) == pair else 0.0

        rng = stream("scene.events", seed, number)
        found = _one(mask_t1, mask_t2, (kind, options), (smallest, most, allowed, legend), rng)
        number += 1
        if found:
            placed += 1
            events += found
            changed += sum(event.area for event in found)
        turns.tried(pair, bool(found), quotas.num_events is None and budget - changed <= SLACK * budget)
        done, total = (placed, quotas.num_events) if quotas.num_events else (min(changed, budget), budget)
        progress("planning events", done, total)
    missing = (quotas.num_events - placed) if quotas.num_events else max(0, budget - changed)
    return ScenePlan(tuple(events), known, changed, missing, turns.missing(quotas.num_events is None))


def _is_enough(quotas: Quotas, placed: int, left: int, smallest: int) -> bool:
    if quotas.num_events is not None:
        return placed >= quotas.num_events
    return left < 2 * smallest


class _Turns:
    """Which kind and class pair the next event takes: kinds in turn, of the pairs the one furthest behind its share. A
    pair that has no place leaves its share to the others, and its turn meanwhile: so that few tries tell whether it is
    the pair that has none, or the scene."""

    def __init__(self, quotas: Quotas, options: EventOptions, legend: Legend) -> None:
        self._kinds = options.kinds
        self._asked: dict[tuple[int, int], str] = {}
        shares: dict[tuple[int, int] | None, float] = {}
        for text, share in quotas.class_pairs.items():
            names = text.split("->")
            if len(names) != 2 or names[0] == names[1] or not set(names) <= set(legend.names):
                raise ConfigError(f"class_pairs has {text!r}; allowed: 'from->to' of {', '.join(legend.names)}")
            pair = legend.index_of(names[0]), legend.index_of(names[1])
            self._asked[pair], shares[pair] = text, share
        shares[None] = 1 - sum(shares.values())
        self._shares = {pair: share for pair, share in shares.items() if share > LEAST_SHARE}
        self._left = dict(self._shares)
        self._made: dict[tuple[int, int] | None, int] = dict.fromkeys(self._shares, 0)
        self._failures = dict(self._made)
        self._in_a_row = dict(self._made)
        """Failures of each pair since the last event of any."""
        self._short = set[tuple[int, int] | None]()
        """Pairs that ran out of places before what was asked for was all but there."""

    @property
    def has_any(self) -> bool:
        """Whether a pair may still have a place."""
        return bool(self._left)

    def next(self, number: int) -> tuple[str, tuple[int, int] | None]:
        count = sum(self._made[pair] for pair in self._left) + 1
        behind = {pair: share * count - self._made[pair] for pair, share in self._left.items()}
        patience = max(1, HOPELESS // len(self._left))
        rounds = {pair: self._in_a_row[pair] // patience for pair in self._left}
        return self._kinds[number % len(self._kinds)], min(behind, key=lambda pair: (rounds[pair], -behind[pair]))

    def tried(self, pair: tuple[int, int] | None, found: bool, all_but_full: bool) -> None:
        """Whether an event of ``pair`` ``found`` a place; whether what is left of the area may be too small for one."""
        self._made[pair] += found
        self._failures[pair] = 0 if found else self._failures[pair] + 1
        self._in_a_row = dict.fromkeys(self._in_a_row, 0) if found else self._in_a_row
        self._in_a_row[pair] += not found
        if self._failures[pair] == HOPELESS:
            del self._left[pair]
            total = sum(self._left.values())
            self._left = {other: share / total for other, share in self._left.items()}
            self._short |= set() if all_but_full and self._made[pair] else {pair}
        if sum(row for other, row in self._in_a_row.items() if self._made[other]) >= HOPELESS:
            self._short |= {other for other in self._left if not self._made[other] and self._failures[other]}
            self._left = {}

    def missing(self, by_area: bool) -> dict[str, tuple[int, int]]:
        """See :attr:`ScenePlan.missing_pairs`. ``by_area``: the last event of a pair may be one too large for what is
        left of the area, and is not missing then."""
        count, found = sum(self._made.values()), {}
        for pair, text in self._asked.items():
            made, wanted = self._made.get(pair, 0), int(self._shares.get(pair, 0) * count + LEAST_SHARE)
            if pair in self._short and made + (by_area and made > 0) < wanted:
                found[text] = made, wanted
        return found


def _weights(options: EventOptions, legend: Legend) -> Callable[[int, int], float]:
    if options.transitions is None:
        return lambda before, after: 1.0
    from changeanywhere.events.transitions import load_table

    table: TransitionTable = load_table(options.transitions, legend)
    return table.weight


def _one(
    mask_t1: Mask,
    mask_t2: Mask,
    what: tuple[str, EventOptions],
    limits: tuple[int, int, Callable[[int, int], float], Legend],
    rng: np.random.Generator,
) -> list[ChangeEvent]:
    """One event, written into ``mask_t2``; none where no window of :data:`ATTEMPTS` had a place for it."""
    kind, options = what
    smallest, largest, weight, legend = limits
    num_classes, objects = legend.num_classes, frozenset(legend.index_of(name) for name in options.objects)
    proposer = registry_of_kinds()[kind]
    height, width = mask_t1.shape
    for _ in range(ATTEMPTS):
        side = int(rng.choice(list(SIDES), p=list(SIDES.values())))
        tall, wide = min(side, height), min(side, width)
        row, column = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        window = Window(row, column, tall, wide).slices
        before = np.asarray(mask_t1[window])
        free = np.where(before == mask_t2[window], before, 0).astype(np.uint8)
        if np.count_nonzero(free) < KNOWN * free.size:
            continue
        inner = (row > 0, row + tall < height, column > 0, column + wide < width)
        for floor, ceiling in sizes_of_events(smallest, largest, 0.0, options, rng):
            ground = Ground(free, floor, ceiling, weight, num_classes, options, objects=objects, inner=inner)
            proposal = proposer.propose(ground, rng)
            if proposal is None or _touches(proposal[0] != free, inner):
                continue  # no place, or cut by the window: a straight edge that nobody drew
            after, events = proposal
            mask_t2[window] = np.where(after != free, after, mask_t2[window])
            return [_moved(event, row, column) for event in events]
    return []


def _touches(change: npt.NDArray[np.bool_], inner: tuple[bool, bool, bool, bool]) -> bool:
    edges: tuple[Any, ...] = (change[0], change[-1], change[:, 0], change[:, -1])
    return any(goes_on and edge.any() for goes_on, edge in zip(inner, edges, strict=True))


def _moved(event: ChangeEvent, row: int, column: int) -> ChangeEvent:
    """In pixels of the scene."""
    donor = event.donor
    if donor is not None:
        donor = replace(donor, box=_box(donor.box, row, column))
    return replace(event, bbox=_box(event.bbox, row, column), donor=donor)


def _box(box: tuple[int, int, int, int], row: int, column: int) -> tuple[int, int, int, int]:
    return box[0] + row, box[1] + column, box[2], box[3]


def given_events(mask_t1: Mask, mask_t2: Mask) -> Iterator[ChangeEvent]:
    """Events of second masks that somebody gave: connected ground of one class transition."""
    from rasterio.features import rasterize, shapes
    from rasterio.transform import Affine

    codes = np.zeros(mask_t1.shape, np.uint16)
    for window in strips(mask_t1.shape):
        before, after = mask_t1[window.slices], mask_t2[window.slices]
        change = (before != 0) & (after != 0) & (before != after)
        codes[window.slices] = np.where(change, before.astype(np.uint16) * 256 + after, 0)
    for geometry, code in shapes(codes, mask=codes != 0, connectivity=8):
        outer = np.asarray(geometry["coordinates"][0]).astype(int)
        (left, top), (right, bottom) = outer.min(0), outer.max(0)
        area = round(sum(_area(np.asarray(ring)) * (-1 if i else 1) for i, ring in enumerate(geometry["coordinates"])))
        box = (int(top), int(left), int(bottom - top), int(right - left))
        place = Affine.translation(box[1], box[0])
        runs = runs_of(rasterize([geometry], box[2:], transform=place, dtype="uint8") == 1)
        yield ChangeEvent("given", int(code) // 256, int(code) % 256, box, (0, 0), area, runs=runs)


def _area(ring: npt.NDArray[np.float64]) -> float:
    """Of a closed ring, by the shoelace formula."""
    x, y = ring[:, 0], ring[:, 1]
    return abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2


def events_of(content: list[dict[str, Any]]) -> tuple[ChangeEvent, ...]:
    """What ``to_plain`` made of events."""
    found = []
    for entry in content:
        donor = entry.get("donor")
        given = None if donor is None else ShapeDonor(**{**donor, "box": tuple(donor["box"])})
        values = {**entry, "bbox": tuple(entry["bbox"]), "offset": tuple(entry["offset"]), "donor": given}
        found.append(ChangeEvent(**values))
    return tuple(found)
