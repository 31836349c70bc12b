"""Cells of a benchmark → one row per detector, share of labels and arm, with gains over the other arms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from changeanywhere.benchmark.arms import BASELINES, WITHOUT_LABELS
from changeanywhere.benchmark.options import BenchmarkOptions, Claims
from changeanywhere.benchmark.statistics import paired_gain, spread_of

SCORES = ("f1", "precision", "recall", "iou")
ALL_CHANGED = "(all changed)"
"""Name of the constant prediction, over which arms without labels gain."""
Group = tuple[str, int, str]
"""Detector, share, arm."""


def planned(options: BenchmarkOptions) -> list[Group]:
    """Every group of cells that a benchmark will have, in their order, and what calls everything changed."""
    groups = []
    for detector in options.detectors:
        for share in sorted(options.shares):
            groups += [(detector, share, arm) for arm in options.arms_at(share)]
            groups += [(detector, 0, ALL_CHANGED)] if share == 0 and options.arms else []
    return groups


def one_list(options: BenchmarkOptions, share: int) -> bool:
    """Whether all seeds learn from the same labels of a share, which somebody drew: what that draw is worth to either
    arm is in no error."""
    return options.lists is not None and 0 < share < 100


def summarise(
    records: Sequence[Mapping[str, Any]], claims: Claims | None = None, plan: Collection[Group] = ()
) -> list[dict[str, Any]]:
    """One row per detector, share and arm: mean and standard error over seeds; gains in F1 over the references of
    ``claims``.

    Gains are taken seed by seed: with one seed every arm is tuned on the same labels, so that what one draw of labels
    is worth cancels. A gain is *certain* where its interval, corrected for every gain that is claimed (those of groups
    of ``plan``, too, that have no cell yet), leaves out 0. An undefined score (nothing predicted) counts as 0 in means
    and is flagged as collapsed; a gain that rests on such cells says so, and what it is without them.
    """
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["detector"], record["share"], record["arm"]].append(record)
    claims = claims or Claims()
    count = len(comparisons({*groups, *plan}, claims))
    rows = []
    for (detector, share, arm), cells in groups.items():
        row: dict[str, Any] = {"detector": detector, "share": share, "arm": arm, "seeds": len(cells)}
        for score in SCORES:
            values = np.array([cell[score] or 0.0 for cell in cells])
            row[score] = float(values.mean())
            row[f"{score}_error"] = standard_error(values)
        row["collapsed"] = sum(cell["collapsed"] is not None for cell in cells)
        for name in ("steps", "candidates", "rates"):
            found = [cell[name] for cell in cells if cell.get(name) is not None]
            row[name] = round(float(np.mean(found))) if found else None
        others = {other: groups.get((detector, share, other)) for other in (*claims.references, ALL_CHANGED)}
        compared = {other: before for other, before in others.items() if before and is_compared(arm, other)}
        gains = {other: _gain(cells, before, count, claims.hold(share, arm)) for other, before in compared.items()}
        row["gains"] = {other: gain for other, gain in gains.items() if gain}
        rows.append(row)
    return rows


def is_compared(arm: str, other: str) -> bool:
    """Whether a gain of ``arm`` over ``other`` is asked for: baselines are references and gain over none, but for
    those that see more than labels, over those that do not."""
    if arm in WITHOUT_LABELS:
        return other not in WITHOUT_LABELS
    return arm != other and arm not in (*BASELINES, ALL_CHANGED)


def comparisons(groups: Collection[Group], claims: Claims) -> list[tuple[str, int, str, str]]:
    """Every (detector, share, arm, reference) for which a gain is claimed."""
    return [
        (detector, share, arm, other)
        for detector, share, arm in groups
        for other in (*claims.references, ALL_CHANGED)
        if (detector, share, other) in groups and is_compared(arm, other) and claims.hold(share, arm)
    ]


def _gain(
    cells: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]], count: int, claimed: bool
) -> dict[str, Any]:
    """Mean difference in F1 over the seeds that both arms have, its error and its corrected interval."""
    found = paired_gain(cells, before)
    if found is None:
        return {}
    own, other = ({cell["seed"]: cell for cell in group} for group in (cells, before))
    both = [(own[seed], other[seed]) for seed in own if seed in other]
    sound = [(one["f1"] or 0.0) - (two["f1"] or 0.0) for one, two in both if not (one["collapsed"] or two["collapsed"])]
    low, high = found.interval(max(count, 1))
    return {
        "f1": found.gain,
        "f1_error": found.error,
        "seeds": found.seeds,
        "pretrainings": found.pretrainings,
        "one_list": found.one_list,
        "freedom": found.freedom,
        "scenes": found.scenes,
        "few_scenes": found.few_scenes,
        "interval": [low, high] if found.freedom else None,
        "certain": claimed and found.is_certain(max(count, 1)),
        "claimed": claimed,
        "spread": spread_of(cells, before),
        "collapsed": len(both) - len(sound),
        "sound_f1": float(np.mean(sound)) if sound else None,
    }


def standard_error(values: np.ndarray) -> float:
    """Of the mean; 0 where there is one value only (then nothing is claimed)."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
