"""Change-event simulation on the mask alone (paper §2.3): numpy and scipy, no model."""

from __future__ import annotations

import hashlib

import numpy as np

from changeanywhere.errors import ConfigError
from changeanywhere.events.options import KINDS, EventOptions
from changeanywhere.legend import Legend, Mask
from changeanywhere.sample import ChangePlan, change_mask_of

__all__ = ["KINDS", "EventOptions", "pair_seed", "simulate"]


def pair_seed(seed: int, key: str, index: int) -> int:
    """Seed of pair ``index`` of tile ``key``, 63 bits: the same on every machine, in any order of pairs."""
    digest = hashlib.sha256(f"{seed}\0{key}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def simulate(
    mask: Mask, legend: Legend, seed: int, *, kind: str | None = None, options: EventOptions | None = None
) -> ChangePlan | None:
    """One change event on ``mask`` uint8 ``[H, W]``; None if none of that kind is feasible.

    ``kind``: "appearance" or "disappearance"; None tries ``options.kinds`` in an order drawn from ``seed``.
    Unknown ground never changes. Raises :class:`LegendError` for a mask value outside ``legend`` and
    :class:`ConfigError` for an unknown kind.
    """
    from changeanywhere.events.kinds import REGISTRY

    options = options or EventOptions()
    legend.check(mask, "mask")
    rng = np.random.default_rng(seed)
    kinds = [kind] if kind is not None else [options.kinds[i] for i in rng.permutation(len(options.kinds))]
    for name in kinds:
        if name not in REGISTRY:
            raise ConfigError(f"kind is {name!r}; allowed: {', '.join(REGISTRY)}")
        proposal = REGISTRY[name].propose(mask, rng, options)
        if proposal is not None:
            mask_t2, event = proposal
            return ChangePlan(mask_t2, change_mask_of(mask, mask_t2), (event,), seed)
    return None
