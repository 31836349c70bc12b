"""Can a linear classifier tell painted objects from real ones, on scenes that it has not seen?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from changeanywhere.evaluation.distances import Array, Estimate, Places
from changeanywhere.seeds import stream

FOLDS = 5
MIN_SCENES = 3
"""One to test on, one to choose the regularisation on, one to learn from."""
PENALTIES = (1e-3, 1e-1, 1e1)
"""Of the mean squared weight beside the mean log loss, on standardised features."""
RESAMPLES = 200

Where = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Told:
    """How well it tells, and from how much it learned."""

    area: Estimate
    """Under the ROC curve: 0.5 = nobody can, 1 = always."""
    learned_from: float
    """Share of the other folds' crops that no place ties to the tested ones, mean over folds."""


def real_or_painted(
    features: Array, painted: Where, scenes: Sequence[str], places: Places, seed: int = 0
) -> Told | None:
    """Telling the ``painted`` of ``[N, D]``, from ``N`` tiles of ``scenes``, by logistic regression.

    In five folds of whole scenes (fewer where there are fewer); in each the penalty of three is taken that is best on
    the other folds, one after the other left out. What is tested shares no place (:class:`ObjectSet`) with what was
    learned from: a pasted object would meet itself among the real ones. Only scores of one fold are compared. The
    interval is over tiles (the first place of each), whose objects are drawn together: as a rule there are too few
    scenes to draw. None where there are fewer than three scenes, or no fold with both kinds on both sides.
    """
    if len(set(scenes)) < MIN_SCENES:
        return None
    folds, tied = _folds(scenes), _tied(places)
    chances, learned_from = [], []
    for test, rest in _folds_apart(painted, folds, tied):
        penalty = _best_penalty(features[rest], painted[rest], folds[rest], tied[np.ix_(rest, rest)])
        scores = fit(features[rest], painted[rest], penalty)(features[test])
        chances.append((np.flatnonzero(test & painted), np.flatnonzero(test & ~painted), _above(scores, painted[test])))
        learned_from.append(rest.sum() / (~test).sum())
    if not chances:
        return None
    group_of = np.unique([place[0] for place in places], return_inverse=True)[1]

    def area(counts: Array) -> float:
        terms = [(counts[ours] @ above @ counts[theirs], counts[ours].sum() * counts[theirs].sum())
                 for ours, theirs, above in chances]  # fmt: skip
        wins, pairs = np.sum(terms, axis=0)
        return float(wins / pairs) if pairs else float("nan")

    rng = stream("evaluation.share", seed)
    size = int(group_of.max()) + 1
    drawn = [
        area(np.bincount(rng.integers(size, size=size), minlength=size)[group_of].astype(float))
        for _ in range(RESAMPLES)
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Told(Estimate(area(np.ones(len(group_of))), float(low), float(high)), float(np.mean(learned_from)))


def fit(features: Array, painted: Where, penalty: float) -> Scorer:
    """Logistic regression on standardised features ``[N, D]``; both kinds weigh the same, however many there are."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    x = (features - mean) / std
    sign = np.where(painted, 1.0, -1.0)
    weight = np.where(painted, 0.5 / painted.sum(), 0.5 / (~painted).sum())

    def loss(values: Array) -> tuple[float, Array]:
        margin = sign * (x @ values[:-1] + values[-1])
        slope = -weight * sign * expit(-margin)
        penalised = penalty * values[:-1] / len(values)
        total = weight @ np.logaddexp(0, -margin) + penalised @ values[:-1] / 2
        return float(total), np.append(slope @ x + penalised, slope.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return Scorer(mean, std, found.x)


class Scorer:
    """A fitted classifier: features ``[N, D]`` → how painted they look ``[N]``."""

    def __init__(self, mean: Array, std: Array, values: Array) -> None:
        self._mean, self._std, self._values = mean, std, values

    def __call__(self, features: Array) -> Array:
        scores: Array = ((features - self._mean) / self._std) @ self._values[:-1] + self._values[-1]
        return scores


def _folds(scenes: Sequence[str]) -> npt.NDArray[np.integer]:
    """Scenes to folds, the largest first, each to the fold that holds least: one scene may be most of a source."""
    sizes = Counter(scenes)
    held = [0] * min(FOLDS, len(sizes))
    fold_of = {}
    for scene in sorted(sizes, key=lambda name: (-sizes[name], name)):
        fold_of[scene] = held.index(min(held))
        held[fold_of[scene]] += sizes[scene]
    return np.array([fold_of[scene] for scene in scenes])


def _best_penalty(features: Array, painted: Where, folds: npt.NDArray[np.integer], tied: Where) -> float:
    """The best mean area over the folds that are there, each left out once; the strongest of equals."""
    areas = {penalty: [0.0] for penalty in PENALTIES}
    for held, kept in _folds_apart(painted, folds, tied):
        for penalty, found in areas.items():
            scores = fit(features[kept], painted[kept], penalty)(features[held])
            found.append(float(_above(scores, painted[held]).mean()))
    return max(reversed(PENALTIES), key=lambda penalty: sum(areas[penalty]))


def _folds_apart(painted: Where, folds: npt.NDArray[np.integer], tied: Where) -> Iterator[tuple[Where, Where]]:
    """Each fold, and those of the others that nothing ties to it, where both hold both kinds."""
    for fold in np.unique(folds):
        held = folds == fold
        kept = ~held & ~tied[held].any(0)
        if _both(painted[held]) and _both(painted[kept]):
            yield held, kept


def _tied(places: Places) -> Where:
    """``[N, N]``: which of them share a place."""
    names = np.unique([name for place in places for name in place])
    comes_from = np.array([np.isin(names, place) for place in places])
    tied: Where = comes_from @ comes_from.T
    return tied


def _above(scores: Array, painted: Where) -> Array:
    """1 where a painted one ``[P]`` has the higher score than a real one ``[R]``, 0.5 where they are equal."""
    ours, theirs = scores[painted][:, None], scores[~painted][None]
    above: Array = (ours > theirs) + 0.5 * (ours == theirs)
    return above


def _both(painted: Where) -> bool:
    return bool(painted.any() and not painted.all())
