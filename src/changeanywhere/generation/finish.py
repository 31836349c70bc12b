"""What happens to a painted pair before it is written: paste-back, nuisances, order of the dates. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from changeanywhere.generation.nuisances import NuisanceOptions, Pixels, disturb
from changeanywhere.sample import ChangeEvent, ChangePlan

PASTE_FEATHER = 8
"""Pixels from the change over which painted ground passes into pasted ground."""
OPPOSITE = {"appearance": "disappearance", "growth": "shrinkage"}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}


@dataclass(frozen=True)
class Finished:
    """Both images, float32 ``[H, W, C]`` in [0, 1], what was done to them, and which of them is real."""

    image_t1: Pixels
    image_t2: Pixels
    nuisances: dict[str, dict[str, float]]
    """Amounts by "t1" and "t2", as written."""
    real_date: int
    """1, or 2 where the dates were exchanged."""


def finish(
    first: Pixels,
    second: Pixels,
    change_mask: npt.NDArray[np.bool_],
    seed: int,
    paste_back: bool,
    random_order: bool,
    options: NuisanceOptions,
    other_tile: Callable[[np.random.Generator], Pixels],
) -> Finished:
    """Finish a pair; everything random follows from ``seed``. ``other_tile`` draws the tile that ``season`` goes to."""
    if paste_back:
        second = pasted(first, second, change_mask)
    rng = np.random.default_rng([seed, 41])
    exchanged = random_order and rng.random() < 0.5
    amounts: dict[str, dict[str, float]] = {}
    if options.any:
        images = {"first": first, "second": second}
        for name in ("first", "second") if options.dates == "both" else ("second",):
            drawn = options.draw(rng)
            other = other_tile(rng) if drawn.get("season") else None
            images[name] = disturb(images[name], drawn, other, rng)
            amounts["t1" if (name == "first") != exchanged else "t2"] = drawn
        first, second = images["first"], images["second"]
    if exchanged:
        first, second = second, first
    return Finished(first, second, dict(sorted(amounts.items())), 2 if exchanged else 1)


def pasted(first: Pixels, second: Pixels, change_mask: npt.NDArray[np.bool_]) -> Pixels:
    """Pixels of ``first`` wherever nothing changed; within :data:`PASTE_FEATHER` px of the change both mixed."""
    if not change_mask.any():
        return first
    distance = ndimage.distance_transform_edt(~change_mask)[..., None]
    share = np.clip(distance / PASTE_FEATHER, 0, 1)
    return (share * first + (1 - share) * second).astype(np.float32)


def exchange(mask_t1: npt.NDArray[np.uint8], plan: ChangePlan) -> ChangePlan:
    """The plan that leads from ``plan.mask_t2`` back to ``mask_t1``: what appeared now disappears."""
    events = tuple(_reverse(event) for event in plan.events)
    return replace(plan, mask_t2=mask_t1, events=events)


def _reverse(event: ChangeEvent) -> ChangeEvent:
    return replace(
        event,
        kind=OPPOSITE.get(event.kind, event.kind),
        from_class=event.to_class,
        to_class=event.from_class,
    )
