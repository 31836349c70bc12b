"""What a difference between two arms is worth: paired over seeds, resampled over seeds and test scenes, corrected for
the number of comparisons; and, before a run, which difference could be seen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from changeanywhere.seeds import stream

RESAMPLED = 4000
"""Draws of seeds and scenes; only their standard error is used."""
ALPHA = 0.05
POWER = 0.8
COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")
OFFSETS = re.compile(r"(.+?)_\d{2,}_\d{2,}")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gain:
    """A mean difference in F1 over the seeds that two arms share."""

    gain: float
    error: float
    """Standard error over seeds and test scenes, drawn together; 0 with one seed: then nothing is claimed."""
    seeds: int

    def interval(self, comparisons: int) -> tuple[float, float]:
        """That holds for all of so many comparisons at once with 95 % (Bonferroni, Student's t over seeds)."""
        if self.seeds < 2:
            return float("-inf"), float("inf")
        reach = float(stats.t.ppf(1 - ALPHA / (2 * comparisons), self.seeds - 1)) * self.error
        return self.gain - reach, self.gain + reach

    def is_certain(self, comparisons: int) -> bool:
        """Whether the corrected interval leaves out 0."""
        low, high = self.interval(comparisons)
        return low > 0 or high < 0


def scene_of(name: str, recorded: str | None = None) -> str:
    """What a test pair is resampled with: its recorded scene, else its name without the offsets of a tile
    (``test_12_0256_0512`` → ``test_12``), else itself."""
    match = OFFSETS.fullmatch(name)
    return recorded or (match.group(1) if match else name)


def paired_gain(cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> Gain | None:
    """Of ``cells`` over ``others``, seed by seed; None where they share no seed.

    Where cells hold counts by scene (``scenes``: scene → TP, FP, FN, TN), scenes are drawn anew too, the same ones for
    both arms; else (cells of earlier editions) seeds alone.
    """
    own, other = ({cell["seed"]: cell for cell in group} for group in (cells, others))
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return None
    pairs = [(own[seed], other[seed]) for seed in seeds]
    gain = float(np.mean([(one["f1"] or 0.0) - (two["f1"] or 0.0) for one, two in pairs]))
    if len(seeds) < 2:
        return Gain(gain, 0.0, 1)
    rng = stream("benchmark.bootstrap", 0)
    drawn = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), RESAMPLED) / len(seeds)
    if all("scenes" in cell for pair in pairs for cell in pair):
        scenes = sorted(pairs[0][0]["scenes"])
        weights = rng.multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), RESAMPLED).astype(float)
        sides = [np.stack([_f1_of(cell, scenes, weights) for cell in side], 1) for side in zip(*pairs, strict=True)]
        differences = sides[0] - sides[1]
    else:
        differences = np.array([[(one["f1"] or 0.0) - (two["f1"] or 0.0) for one, two in pairs]])
    means = (differences * drawn).sum(1)
    # Resampling n seeds shows (n - 1) / n of their variance.
    return Gain(gain, float(means.std(ddof=1)) * float(np.sqrt(len(seeds) / (len(seeds) - 1))), len(seeds))


def _f1_of(cell: Mapping[str, Any], scenes: Sequence[str], weights: Floats) -> Floats:
    """F1 of a cell in every draw of scenes, float ``[draws]``; 0 where nothing was found."""
    counts = np.array([cell["scenes"][scene] for scene in scenes], float)
    tp, fp, fn, _ = (weights @ counts).T
    f1: Floats = np.divide(2 * tp, 2 * tp + fp + fn, out=np.zeros_like(tp), where=tp > 0)
    return f1


def visible_gain(spread: float, seeds: int, comparisons: int) -> float | None:
    """The least true gain that ``seeds`` show four times in five, where single differences spread by ``spread``; None
    with one seed."""
    if seeds < 2:
        return None
    needed = stats.t.ppf(1 - ALPHA / (2 * comparisons), seeds - 1) + stats.t.ppf(POWER, seeds - 1)
    return float(needed * spread / np.sqrt(seeds))


def spread_of(cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> float | None:
    """Standard deviation of the differences in F1, seed by seed; None with fewer than two."""
    own, other = ({cell["seed"]: cell for cell in group} for group in (cells, others))
    differences = [(own[s]["f1"] or 0.0) - (other[s]["f1"] or 0.0) for s in own.keys() & other.keys()]
    return float(np.std(differences, ddof=1)) if len(differences) > 1 else None
