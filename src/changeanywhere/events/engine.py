"""Events composed into pairs: how many, of which kind, within which limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from changeanywhere.errors import ConfigError
from changeanywhere.events.options import EventOptions
from changeanywhere.legend import Legend, Mask
from changeanywhere.sample import ChangeEvent, ChangePlan, change_mask_of
from changeanywhere.seeds import stream

if TYPE_CHECKING:
    from changeanywhere.events.bank import ShapeBank
    from changeanywhere.events.ground import EventKind
    from changeanywhere.events.transitions import TransitionTable

MAX_EVENTS = 24  # events tried to reach an asked-for change ratio
MAX_SMALL_EVENTS = 64  # the same where sizes are given, so that they cannot be fewer and larger


@dataclass(frozen=True)
class EventContext:
    """What is known beside the mask: shapes of the whole source, weights of transitions, usual sizes by class in px,
    metres per pixel.
    """

    bank: ShapeBank | None = None
    transitions: TransitionTable | None = None
    sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    gsd_m: float | None = None


@dataclass(frozen=True)
class EventRequest:
    """What a pair is asked to show; every field left out is free.

    ``transition``: the only class pair (from, to) allowed. ``ratio``: share of changed pixels, from inclusive to
    exclusive. ``no_change``: a pair without any change.
    """

    kind: str | None = None
    transition: tuple[int, int] | None = None
    ratio: tuple[float, float] | None = None
    no_change: bool = False


def simulate(
    mask: Mask,
    legend: Legend,
    seed: int,
    *,
    kind: str | None = None,
    options: EventOptions | None = None,
    context: EventContext | None = None,
    request: EventRequest | None = None,
) -> ChangePlan | None:
    """Change events on ``mask`` uint8 ``[H, W]``; None if what is asked for is not feasible in it.

    ``kind`` (short for ``request.kind``): one of :data:`KINDS`; None tries ``options.kinds`` in an order drawn from
    ``seed``. Unknown ground never changes, and no two events of a pair touch the same pixel. Raises
    :class:`LegendError` for a mask value outside ``legend`` and :class:`ConfigError` for an unknown kind.
    """
    options, context = options or EventOptions(), context or EventContext()
    request = request or EventRequest(kind)
    asked = kind or request.kind
    legend.check(mask, "mask")
    kinds = registry_of_kinds()
    if asked is not None and asked not in kinds:
        raise ConfigError(f"kind is {asked!r}; allowed: {', '.join(kinds)}")
    if request.no_change:
        return ChangePlan(mask.copy(), np.zeros(mask.shape, bool), (), seed)
    rng = stream("pair.events", seed)
    wanted = int(rng.integers(options.events_per_pair[0], options.events_per_pair[1] + 1))
    low, high = request.ratio or (0.0, 1.0)
    mask_t2 = mask.copy()
    events: tuple[ChangeEvent, ...] = ()
    for number in range(max(wanted, MAX_SMALL_EVENTS if options.areas else MAX_EVENTS)):
        changed = int(np.count_nonzero(mask != mask_t2))
        if changed >= low * mask.size and number >= wanted:
            break
        step = _one_event(mask, mask_t2, legend, rng, asked, options, context, request)
        if step is None:
            break
        grown = np.count_nonzero(mask != step[0]) >= high * mask.size
        if request.ratio and number and changed >= low * mask.size and grown:
            break  # one more would be too much: what there is fits
        mask_t2, new_events = step
        events = (*events, *new_events)
    ratio = np.count_nonzero(mask != mask_t2) / mask.size
    if not events or not low <= ratio < high + (request.ratio is None):
        return None
    return ChangePlan(mask_t2, change_mask_of(mask, mask_t2), events, seed)


def _one_event(
    mask: Mask,
    mask_t2: Mask,
    legend: Legend,
    rng: np.random.Generator,
    asked: str | None,
    options: EventOptions,
    context: EventContext,
    request: EventRequest,
) -> tuple[Mask, tuple[ChangeEvent, ...]] | None:
    """One more event on the ground that is still free."""
    from changeanywhere.events.ground import Ground

    free = np.where(mask == mask_t2, mask, 0).astype(np.uint8)
    changed = int(np.count_nonzero(mask != mask_t2))
    smallest, largest = options.area_limits(mask.size, context.gsd_m)
    if request.ratio is not None:
        largest = min(largest, int(np.ceil(request.ratio[1] * mask.size)) - 1 - changed)
    missing = request.ratio[0] * mask.size - changed if request.ratio is not None else 0.0

    def weight(before: int, after: int) -> float:
        allowed = context.transitions.weight(before, after) if context.transitions is not None else 1.0
        if request.transition is not None:
            return float((before, after) == request.transition and allowed > 0)
        return allowed

    registry, objects = registry_of_kinds(), frozenset(legend.index_of(name) for name in options.objects)
    kinds = [asked] if asked is not None else [options.kinds[i] for i in rng.permutation(len(options.kinds))]
    for floor, ceiling in sizes_of_events(smallest, largest, missing, options, rng):
        ground = Ground(free, floor, ceiling, weight, legend.num_classes, options, context.bank, context.sizes, objects)
        for name in kinds:
            proposal = registry[name].propose(ground, rng)
            if proposal is not None:
                after, events = proposal
                return np.where(after != free, after, mask_t2).astype(np.uint8), events
    return None


def sizes_of_events(
    smallest: int, largest: int, missing: float, options: EventOptions, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Smallest and largest area of the next event in px, in the order in which they are tried; ``missing``: px of an
    asked-for change ratio that nothing covers yet."""
    if options.areas:
        bands = [(max(smallest, low), min(largest, high)) for low, high in pairwise(options.areas)]
        return [bands[i] for i in rng.permutation(len(bands)) if bands[i][0] <= bands[i][1]]
    # Few large events rather than many tiny ones: at least a sixth of what is still missing, where there is any.
    return [(floor, largest) for floor in sorted({smallest, max(smallest, int(missing / 6))}, reverse=True)]


def registry_of_kinds() -> dict[str, EventKind]:
    """Kinds by name; further kinds join here. Imported at use: scipy takes its time."""
    from changeanywhere.events.appearance import Appearance
    from changeanywhere.events.disappearance import Disappearance
    from changeanywhere.events.regions import Conversion, Growth, Rebuild, Shrinkage

    kinds: tuple[EventKind, ...] = (Appearance(), Disappearance(), Conversion(), Growth(), Shrinkage(), Rebuild())
    return {kind.name: kind for kind in kinds}
