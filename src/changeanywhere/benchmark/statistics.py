"""What a difference between two arms is worth: paired over seeds, resampled over pre-trainings, seeds within them and
test scenes, corrected for the number of comparisons; and, before a run, which difference could be seen.

Seeds that go on from one pre-training share its luck; all that learn from one given list of labels share that of its
draw. They are a cluster: pre-trainings are drawn first, then seeds within them (Davison & Hinkley 1997, §3.8), and
Student's t has the degrees of freedom that Satterthwaite (1946) gives to a sum of two variances, between pre-trainings
and within them. Test scenes are a third: few of them make these degrees fewer, many make them no more than
pre-trainings and seeds have. (Else three pre-trainings that happen to be alike lend a gain the certainty of many
scenes: at the level of one of eighteen comparisons up to four times too often.)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from changeanywhere.errors import OutputError
from changeanywhere.seeds import stream

RESAMPLED = 4000
"""Draws of seeds and scenes; only their standard error is used."""
ALPHA = 0.05
POWER = 0.8
MIN_SCENES = 5
"""With fewer test scenes that have a change nothing is claimed, as no verdict is given of a detector."""
COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")
OFFSETS = re.compile(r"(.+?)_(\d{3,})_(\d{3,})")
"""Rows and columns in px, filled up to one width."""
NUMBERED = re.compile(r"(.*[^\W\d_].*_\d+)_\d+")
"""A tile of a scene that has a number itself: the usual names of LEVIR-CD in 256 px, ``test_SCENE_TILE``."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gain:
    """A mean difference in F1 over the seeds that two arms share."""

    gain: float
    error: float
    """Standard error over pre-trainings, seeds and test scenes, drawn together; 0 with one seed."""
    seeds: int
    pretrainings: int
    """Independent groups of seeds: as many as ``seeds`` where none share a pre-training, 1 where all share a list."""
    freedom: float
    """Degrees of freedom of the error; 0 with one pre-training, one list of labels, one seed, or few scenes: then
    nothing is claimed."""
    scenes: int | None = None
    """Test scenes with a change; None where the cells do not say (of earlier editions)."""
    one_list: bool = False
    """Whether all seeds learned from one given list of labels."""

    @property
    def few_scenes(self) -> bool:
        """Whether it is test scenes that are too few for a claim."""
        return self.scenes is not None and self.scenes < MIN_SCENES

    def interval(self, comparisons: int) -> tuple[float, float]:
        """That holds for all of so many comparisons at once with 95 % (Bonferroni, Student's t)."""
        if not self.freedom:
            return float("-inf"), float("inf")
        reach = float(stats.t.ppf(1 - ALPHA / (2 * comparisons), self.freedom)) * self.error
        return self.gain - reach, self.gain + reach

    def is_certain(self, comparisons: int) -> bool:
        """Whether the corrected interval leaves out 0."""
        low, high = self.interval(comparisons)
        return low > 0 or high < 0


def scene_of(name: str, recorded: object = None) -> str:
    """What a test pair is resampled with: its recorded scene (of any type), else its name without the offsets or the
    number of a tile (``test_12_0256_0512``, ``test_12_7`` → ``test_12``), else itself."""
    tile = NUMBERED.fullmatch(name)
    return _said(recorded) or without_offsets(name) or (tile.group(1) if tile else name)


def scenes_of(names: Sequence[str], recorded: Sequence[object]) -> list[str]:
    """:func:`scene_of` of every test pair. Where plain numbers alone would make all of them one scene
    (``area_1_0001`` to ``area_1_0500``), the numbers are of no tiles: each pair is itself."""
    found = [scene_of(name, said) for name, said in zip(names, recorded, strict=True)]
    told = any(_said(said) or without_offsets(name) for name, said in zip(names, recorded, strict=True))
    return list(names) if len(set(found)) == 1 < len(names) and not told else found


def _said(recorded: object) -> str:
    return "" if recorded is None else str(recorded)


def without_offsets(name: str) -> str | None:
    """The scene that a tile's name says with its place (``test_12_0256_0512`` → ``test_12``); None where it says
    none."""
    match = OFFSETS.fullmatch(name)
    return match.group(1) if match and len(match.group(2)) == len(match.group(3)) else None


def paired_gain(cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> Gain | None:
    """Of ``cells`` over ``others``, seed by seed; None where they share no seed.

    Where cells hold counts by scene (``scenes``: scene → TP, FP, FN, TN; the same scenes in all of them), scenes are
    drawn anew too, the same ones for both arms; else (cells of earlier editions) seeds alone. Cells with one
    ``pretraining_seed`` share a pre-training; where all do, the error is that of seeds on this one. Cells that say
    ``one_list`` share their labels.
    """
    own, other = ({cell["seed"]: cell for cell in group} for group in (cells, others))
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return None
    pairs = [(own[seed], other[seed]) for seed in seeds]
    differences = np.array([[(one["f1"] or 0.0) - (two["f1"] or 0.0) for one, two in pairs]])
    gain = float(differences.mean())
    groups = groups_of(pairs)
    by_scene = all("scenes" in cell for pair in pairs for cell in pair)
    changed = scenes_with_change(pairs[0][0]) if by_scene else None
    listed = all(cell.get("one_list") for pair in pairs for cell in pair)
    if len(seeds) < 2:
        return Gain(gain, 0.0, 1, 1, 0.0, changed, listed)
    rng = stream("benchmark.bootstrap", 0)
    drawn, units = draws_of(groups, rng)
    # Resampling n units shows (n - 1) / n of their variance.
    own_factor = units / (units - 1)
    alone = _variance(differences, drawn)
    variance, freedom = alone * own_factor, degrees_of_freedom(differences[0], groups)
    scenes = sorted(pairs[0][0]["scenes"]) if by_scene else []
    if len(scenes) > 1:
        weights = rng.multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), RESAMPLED).astype(float)
        sides = [np.stack([_f1_of(cell, scenes, weights) for cell in side], 1) for side in zip(*pairs, strict=True)]
        redrawn, factor = sides[0] - sides[1], len(scenes) / (len(scenes) - 1)
        of_scenes = _variance(redrawn, np.full_like(drawn, 1 / len(seeds)))
        both = max(_variance(redrawn, drawn) - alone - of_scenes, 0.0)  # what only draws of both together show
        parts = [(variance, freedom), (of_scenes * factor, len(scenes) - 1.0)]
        parts.append((both * own_factor * factor, freedom * (len(scenes) - 1)))
        variance, freedom = sum(part for part, _ in parts), min(freedom, satterthwaite(parts))
    freedom = 0.0 if changed is not None and changed < MIN_SCENES else freedom
    return Gain(gain, float(np.sqrt(variance)), len(seeds), len(groups), freedom, changed, listed)


def require_scenes(file: Path, cell: Mapping[str, Any], scenes: Collection[str]) -> None:
    """:class:`OutputError` where the cell in ``file`` was scored on other test scenes than these. Cells of earlier
    editions do not say on which."""
    odd = sorted(cell["scenes"].keys() ^ set(scenes)) if "scenes" in cell else []
    if odd:
        told = f"on {odd[0]}, which is not there now" if odd[0] in cell["scenes"] else f"without {odd[0]}"
        raise OutputError(
            f"{file}: was scored on other test scenes ({told}); delete it, and it is measured again, or give another "
            "--out"
        )


def scenes_with_change(cell: Mapping[str, Any]) -> int:
    """Of the test scenes of a cell those in which something changed."""
    places = [COUNTS.index(name) for name in ("true_positives", "false_negatives")]
    return sum(any(counts[place] for place in places) for counts in cell["scenes"].values())


def satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of variances, each with its own; those of the first where all are 0."""
    total = sum(variance for variance, _ in parts)
    if not total or not all(freedom for variance, freedom in parts if variance):
        return parts[0][1]
    return float(total**2 / sum(variance**2 / freedom for variance, freedom in parts if variance))


def _variance(differences: Floats, weights: Floats) -> float:
    """Of the mean difference, of differences and weights of seeds, both float ``[draws or 1, seeds]``."""
    return float((differences * weights).sum(1).var(ddof=1))


def groups_of(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[list[int]]:
    """Places of ``pairs`` that hang together: on either side they share a pre-training, or with one that does; all that
    learned from one given list of labels do."""
    groups: list[tuple[set[tuple[int, Any]], list[int]]] = []
    for place, pair in enumerate(pairs):
        names = {(side, cell["pretraining_seed"]) for side, cell in enumerate(pair) if "pretraining_seed" in cell}
        names |= {(-1, "one list") for cell in pair if cell.get("one_list")}
        places = [place]
        for group in [group for group in groups if group[0] & names]:
            groups.remove(group)
            names, places = names | group[0], group[1] + places
        groups.append((names, places))
    return sorted(sorted(places) for _, places in groups)


def draws_of(groups: Sequence[Sequence[int]], rng: np.random.Generator) -> tuple[Floats, int]:
    """Weights of seeds in every draw, float ``[draws, seeds]``, each row's sum 1, and how many units were drawn from:
    groups, then seeds within each that was drawn; seeds alone where there is one group."""
    if len(groups) == 1:
        groups = [[place] for place in groups[0]]
    count = len(groups)
    drawn = rng.multinomial(count, np.full(count, 1 / count), RESAMPLED)
    weights = np.zeros((RESAMPLED, sum(map(len, groups))))
    for group, times in zip(groups, drawn.T, strict=True):
        weights[:, list(group)] = rng.multinomial(times * len(group), np.full(len(group), 1 / len(group)))
    return weights / weights.sum(1, keepdims=True), count


def degrees_of_freedom(differences: Floats, groups: Sequence[Sequence[int]]) -> float:
    """Of the error that :func:`draws_of` shows, of differences float ``[seeds]``; 0 with one group.

    Satterthwaite: (V1 + V2)² / (V1² / (groups - 1) + V2² / (seeds - groups)), V1 between groups, V2 within them.
    """
    count, seeds = len(groups), len(differences)
    if count in (1, seeds):
        return float(seeds - 1) if count > 1 else 0.0
    parts = [differences[list(group)] for group in groups]
    between = sum((part.sum() - len(part) * differences.mean()) ** 2 for part in parts)
    within = sum(len(part) * part.var() for part in parts)
    if not between + within:
        return float(count - 1)
    return float((between + within) ** 2 / (between**2 / (count - 1) + within**2 / (seeds - count)))


def _f1_of(cell: Mapping[str, Any], scenes: Sequence[str], weights: Floats) -> Floats:
    """F1 of a cell in every draw of scenes, float ``[draws]``; 0 where nothing was found."""
    counts = np.array([cell["scenes"][scene] for scene in scenes], float)
    tp, fp, fn, _ = (weights @ counts).T
    f1: Floats = np.divide(2 * tp, 2 * tp + fp + fn, out=np.zeros_like(tp), where=tp > 0)
    return f1


def visible_gain(spread: float, seeds: int, comparisons: int, pretrainings: int | None = None) -> float | None:
    """The least true gain that ``seeds`` show four times in five, where single differences spread by ``spread``; None
    with one seed, or one pre-training.

    ``pretrainings``: at how many the seeds take turns; None: none are shared. That they differ by no more than seeds do
    is assumed: where they do, less is seen.
    """
    count = seeds if pretrainings is None else min(pretrainings, seeds)
    if count < 2:
        return None
    ratio = count * (seeds - count) / ((count - 1) * seeds)  # of the expected variance within to that between
    freedom = (1 + ratio) ** 2 / (1 / (count - 1) + ratio**2 / max(seeds - count, 1))
    needed = stats.t.ppf(1 - ALPHA / (2 * comparisons), freedom) * np.sqrt(1 + ratio) + stats.t.ppf(POWER, freedom)
    return float(needed * spread / np.sqrt(seeds))


def spread_of(cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> float | None:
    """Standard deviation of the differences in F1, seed by seed; None with fewer than two."""
    own, other = ({cell["seed"]: cell for cell in group} for group in (cells, others))
    differences = [(own[s]["f1"] or 0.0) - (other[s]["f1"] or 0.0) for s in own.keys() & other.keys()]
    return float(np.std(differences, ddof=1)) if len(differences) > 1 else None
