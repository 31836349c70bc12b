"""What a few labelled pairs look like, and the request that a set be like them (``targets.like``). No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from changeanywhere.errors import require
from changeanywhere.events import EventOptions
from changeanywhere.events.ground import EIGHT
from changeanywhere.generation.targets import SetTargets
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.reader import PairDataset

STRATA = 4
"""Of change ratios, as many pairs in each; fewer where there are fewer than two pairs for each."""
SIZES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of the size of objects. The ends are left out: a few pixels of a label, blocks that touch."""
SPECK = 16
"""Px below which what is labelled is no object."""


def like_pairs(targets: SetTargets, events: EventOptions) -> tuple[SetTargets, EventOptions]:
    """``targets`` and ``events`` as the labels of ``targets.like`` have them; as they are where there is none.

    ``like`` then holds words about the pairs, not their place. :class:`ConfigError` where a number of its own was given
    beside it, for a list that does not fit, and where no pair changes.
    """
    if targets.like is None:
        return targets, events
    for name, value in (("no_change", targets.no_change), ("ratios", targets.ratios)):
        require(not value, f"targets.{name}", value, "nothing beside targets.like, which measures it")
    require(not events.areas, "events.areas", list(events.areas), "nothing beside targets.like, which measures it")
    pairs = _asked(targets.like, targets.like_split, targets.like_list)
    masks = [pairs[i].change_mask for i in range(len(pairs))]
    ratios = np.array([mask.mean() for mask in masks])
    changed = np.sort(ratios[ratios > 0])
    require(len(changed) > 0, "targets.like", targets.like, "pairs of which some change")
    quiet = 1 - len(changed) / len(ratios)
    asked = SetTargets(
        no_change=round(quiet, 6),
        ratios=_strata(changed, 1 - quiet),
        class_pairs=targets.class_pairs,
        like=f"{Path(targets.like).name}: {len(pairs)} labels of {pairs.content_hash()}",
        like_split=targets.like_split,
    )
    return asked, replace(events, areas=_sizes(masks))


def _asked(folder: str, split: str | None, listing: str | None) -> PairDataset:
    pairs = load_pairs(folder, split)
    return pairs if listing is None else pairs.listed(Path(listing), f"split {split!r} of {folder}")


def _strata(ratios: npt.NDArray[np.float64], share: float) -> dict[str, float]:
    """``share`` of all pairs in strata between quantiles of ``ratios``, which are sorted and above 0."""
    count = max(1, min(STRATA, len(ratios) // 2))
    edges = np.quantile(ratios, np.linspace(0, 1, count + 1))
    # A single pair, or pairs alike, have no width: half as much to either side.
    if edges[-1] - edges[0] < 0.1 * edges[-1]:
        edges = np.array([0.75 * edges[0], min(1.0, 1.25 * edges[-1])])
    texts = [f"{edge:.5f}" for edge in edges]
    ends = sorted(set(texts), key=float)
    ends = ends if len(ends) > 1 else ends * 2  # too small for five digits to tell them apart
    # Between two quantiles lies as much as between any others; where they are one, it goes with what begins there.
    begun = Counter(min(ends.index(text), len(ends) - 2) for text in texts[:-1])
    ends[0] = f"{max(0.0, float(ends[0]) - 1e-5):.5f}"
    ends[-1] = f"{min(1.0, float(ends[-1]) + 1e-5):.5f}"
    parts = [f"{low}-{high}" for low, high in pairwise(ends)]
    # Rounded down: with what changes nothing they add up to one at most.
    return {part: int(1e6 * share * begun[number] / begun.total()) / 1e6 for number, part in enumerate(parts)}


def _sizes(masks: Sequence[npt.NDArray[np.bool_]]) -> tuple[int, ...]:
    """Quantiles of the px of connected changes, rising."""
    found = [np.bincount(ndimage.label(mask, EIGHT)[0].ravel())[1:] for mask in masks]
    areas = np.concatenate(found)
    areas = areas[areas >= SPECK] if (areas >= SPECK).any() else areas
    edges = sorted({round(float(edge)) for edge in np.quantile(areas, SIZES)})
    return tuple(edges) if len(edges) > 1 else (max(1, edges[0] // 2), 2 * edges[0])
