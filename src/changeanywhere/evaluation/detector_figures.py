"""Figures of a detector over all pairs, beside guessing, and what ranks one pair among others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from changeanywhere.evaluation.cases import Ranking
from changeanywhere.evaluation.distances import Array, bootstrap_of_sums
from changeanywhere.evaluation.figures import FEWEST, GUESSING, MIN_TILES, Figure
from changeanywhere.training.detection import ChangeScores, sum_of
from changeanywhere.training.semantic import SCORES as SEMANTIC_SCORES
from changeanywhere.training.semantic import TITLES as SEMANTIC_TITLES
from changeanywhere.training.semantic import SemanticScores

SCORES = ("precision", "recall", "f1", "iou")
NAMES = {"precision": "precision", "recall": "recall", "f1": "F1", "iou": "IoU"}
COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")


def detector_figures(scores: Sequence[ChangeScores], scenes: Sequence[str], seed: int = 0) -> list[Figure]:
    """Scores over all pairs, ``scenes`` being those of each, beside what guessing gives: as much ground called changed,
    at random, for precision and recall; all of it for F1 and IoU."""
    counts = np.array([[getattr(each, name) for name in COUNTS] for each in scores], float)
    overall, (found, false, missed, rest) = sum_of(scores), counts.sum(0)
    total = max(found + false + missed + rest, 1)
    changed, called = (found + missed) / total, (found + false) / total
    guessed = {"precision": changed, "recall": called, "f1": 2 * changed / (1 + changed), "iou": changed}
    enough = _enough(scores, scenes)
    figures = []
    for name, value in overall.to_dict().items():
        if name not in SCORES:
            continue
        blank = Figure(
            "change class, all pairs", NAMES[name], float("nan"), guessed[name], beside=GUESSING, count=len(scores)
        )
        if value is None:
            why = "nothing was called changed" if not found + false else "nothing changed"
            figures.append(replace(blank, note=f"withheld: {why}").where(*enough))
            continue
        interval = bootstrap_of_sums(counts, _SCORE[name], np.array(scenes, str), seed)
        note = _IN_WORDS[name].format(round(100 * value))
        figure = replace(blank, value=value, low=interval.low, high=interval.high, note=note)
        figures.append(figure.where(*enough))
    return sorted(figures, key=lambda figure: list(NAMES.values()).index(figure.name))


def class_figures(semantic: SemanticScores, scores: Sequence[ChangeScores], scenes: Sequence[str]) -> list[Figure]:
    """Scores of a semantic detector in the classes of both dates; of SeK, a kappa, chance is 0."""
    values, figures = semantic.to_dict(), []
    for name, title in zip(SEMANTIC_SCORES, SEMANTIC_TITLES, strict=True):
        value = values[name]
        chance = 0.0 if name == "sek" else None
        figure = Figure("classes of both dates, all pairs", title, float("nan"), chance, beside=GUESSING)
        figure = replace(figure, note="withheld: not defined here") if value is None else replace(figure, value=value)
        figures.append(replace(figure, count=len(scores)).where(*_enough(scores, scenes)))
    return figures


def _enough(scores: Sequence[ChangeScores], scenes: Sequence[str]) -> tuple[tuple[int, int, str], ...]:
    """What a verdict takes."""
    changed = [scene for each, scene in zip(scores, scenes, strict=True) if each.true_positives + each.false_negatives]
    return (len(changed), FEWEST, "pairs with a change"), (len(set(changed)), MIN_TILES, "scenes with a change")


def _share(part: Array, whole: Array) -> Array:
    share: Array = np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
    return share


def _f1(counts: Array) -> Array:
    """Not defined, as in the scores, where nothing was called changed or nothing changed."""
    found, false, missed = (counts[..., i] for i in range(3))
    defined = (found + false > 0) & (found + missed > 0)
    return np.where(defined, _share(2 * found, 2 * found + false + missed), np.nan)


_SCORE: dict[str, Callable[[Array], Array]] = {
    "precision": lambda counts: _share(counts[..., 0], counts[..., 0] + counts[..., 1]),
    "recall": lambda counts: _share(counts[..., 0], counts[..., 0] + counts[..., 2]),
    "f1": _f1,
    "iou": lambda counts: _share(counts[..., 0], counts[..., :3].sum(-1)),
}
"""Of sums in the order of :data:`COUNTS`."""
_IN_WORDS = {
    "precision": "of 100 px that it calls changed, {} are",
    "recall": "of 100 px that changed, it calls {} so",
    "f1": "precision and recall in one, their harmonic mean",
    "iou": "of 100 px that changed or are called so, {} are both",
}


def rank_of(scores: ChangeScores) -> float | None:
    """F1 of a pair; unlike in tables 0 where all that changed is missed, or all that is called so is wrong."""
    either = 2 * scores.true_positives + scores.false_positives + scores.false_negatives
    return 2 * scores.true_positives / either if either else None


def ranking(scores: Sequence[ChangeScores]) -> Ranking:
    """By F1, best cases and worst."""
    ranks = {number: rank_of(each) for number, each in enumerate(scores)}
    wrong = [each.false_positives + each.false_negatives for each in scores]
    values = {number: (rank, float(-wrong[number])) for number, rank in ranks.items() if rank is not None}
    by = "F1 (0 where nothing is both changed and called so; none where nothing is either), then by wrong px"
    return Ranking(by, values)
