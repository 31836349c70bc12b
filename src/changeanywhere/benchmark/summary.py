"""Cells of a benchmark → one row per detector, share of labels and arm, with gains over the other arms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from changeanywhere.benchmark.options import SCRATCH

SCORES = ("f1", "precision", "recall", "iou")


def summarise(records: Sequence[Mapping[str, Any]], rivals: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row per detector, share and arm: mean and standard error over seeds; gains in F1 over training from scratch
    and over the arms named in ``rivals``.

    Gains are taken seed by seed: with one seed every arm is tuned on the same labels, so that what one draw of labels
    is worth cancels. A gain is *certain* where the mean difference exceeds two standard errors of the differences. An
    undefined score (nothing predicted) counts as 0 in means and is flagged as collapsed; a gain that rests on such
    cells says so, and what it is without them.
    """
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["detector"], record["share"], record["arm"]].append(record)
    rows = []
    for (detector, share, arm), cells in groups.items():
        row: dict[str, Any] = {"detector": detector, "share": share, "arm": arm, "seeds": len(cells)}
        for score in SCORES:
            values = np.array([cell[score] or 0.0 for cell in cells])
            row[score] = float(values.mean())
            row[f"{score}_error"] = standard_error(values)
        row["collapsed"] = sum(cell["collapsed"] is not None for cell in cells)
        others = {other: groups.get((detector, share, other)) for other in (SCRATCH, *rivals) if other != arm}
        gains = {other: _gain(cells, before) for other, before in others.items() if before}
        row["gains"] = {other: gain for other, gain in gains.items() if gain} if arm != SCRATCH else {}
        rows.append(row)
    return rows


def _gain(cells: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean difference in F1, and its standard error, over the seeds that both arms have."""
    own, other = ({cell["seed"]: cell for cell in group} for group in (cells, before))
    both = [(own[seed], other[seed]) for seed in own if seed in other]
    if not both:
        return {}
    differences = np.array([(one["f1"] or 0.0) - (two["f1"] or 0.0) for one, two in both])
    sound = [d for d, pair in zip(differences, both, strict=True) if not any(cell["collapsed"] for cell in pair)]
    gain, error = float(differences.mean()), standard_error(differences)
    return {
        "f1": gain,
        "f1_error": error,
        "certain": len(differences) > 1 and abs(gain) > 2 * error,
        "collapsed": len(both) - len(sound),
        "sound_f1": float(np.mean(sound)) if sound else None,
    }


def standard_error(values: np.ndarray) -> float:
    """Of the mean; 0 where there is one value only (then nothing is claimed)."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
