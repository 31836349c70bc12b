"""Distances between two sets: KID and Fréchet on features, Wasserstein on numbers, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import wasserstein_distance

from changeanywhere.seeds import stream

Array = npt.NDArray[np.float64]
Groups = npt.NDArray[np.integer] | npt.NDArray[np.str_]
Places = Sequence[Sequence[str]]
"""Per image: its tile, then others whose pixels are in it."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def kid(
    first: Array, second: Array, seed: int = 0, resamples: int = 200, groups: npt.NDArray[np.integer] | None = None
) -> Estimate:
    """Kernel distance (Bińkowski et al. 2018): unbiased MMD² of features ``[N, D]``, ``[M, D]``, kernel (x·y/D + 1)³.

    Bootstrap over images of both sets, of the first one by ``groups`` ``[N]`` of images that are drawn together
    (several of one mask are not independent); pairs of an image with itself never count, so that images drawn twice
    add no bias.
    """
    sizes = len(first), len(second)
    weights = [1.0 - np.eye(sizes[0]), 1.0 - np.eye(sizes[1]), np.ones(sizes)]
    kernels = _kernels(first, second, weights)
    rng = stream("evaluation.kernel", seed)
    group_of = np.arange(sizes[0]) if groups is None else np.unique(groups, return_inverse=True)[1]
    num_groups = int(group_of.max()) + 1
    draws = ((_counts(rng, num_groups)[group_of], _counts(rng, sizes[1])) for _ in range(resamples))
    drawn = [_discrepancy(kernels, weights, x, y) for x, y in draws]
    return Estimate(_discrepancy(kernels, weights, np.ones(sizes[0]), np.ones(sizes[1])), *_interval(drawn))


def kid_of_places(
    first: Array, second: Array, places: tuple[Places, Places], seed: int = 0, resamples: int = 200
) -> Estimate:
    """:func:`kid` of features whose images come from ``places``: those of one place are never compared.

    Neighbours are alike, and a pasted object would meet itself among the real ones; so what shares a place is left out
    of all three terms. Bootstrap over places (the first of each image's), both sets of a place drawn together. NaN
    where everything shares a place.
    """
    names = sorted({name for part in places for image in part for name in image})
    number = {name: i for i, name in enumerate(names)}
    comes_from = [np.zeros((len(part), len(names)), np.float32) for part in places]
    for part, where in zip(places, comes_from, strict=True):
        for i, image in enumerate(part):
            where[i, [number[name] for name in image]] = 1
    x, y = comes_from
    weights = [(a @ b.T == 0).astype(float) for a, b in ((x, x), (y, y), (x, y))]
    kernels = _kernels(first, second, weights)
    own = np.unique([image[0] for part in places for image in part], return_inverse=True)[1]
    rng = stream("evaluation.kernel", seed)
    value = _discrepancy(kernels, weights, np.ones(len(first)), np.ones(len(second)))
    if np.isnan(value) or own.max() == 0:
        return Estimate(value, value, value)
    drawn = []
    for _ in range(resamples):
        counts = _counts(rng, int(own.max()) + 1)[own]
        drawn.append(_discrepancy(kernels, weights, counts[: len(first)], counts[len(first) :]))
    return Estimate(value, *_interval([each for each in drawn if not np.isnan(each)] or [np.nan]))


def _kernels(first: Array, second: Array, weights: list[Array]) -> list[Array]:
    """Within the first, within the second, between them; ``weights``: which pairs of entries count."""
    pairs = zip(((first, first), (second, second), (first, second)), weights, strict=True)
    return [weight * (a @ b.T / first.shape[1] + 1) ** 3 for (a, b), weight in pairs]


def _discrepancy(kernels: list[Array], weights: list[Array], x: Array, y: Array) -> float:
    """MMD² of entries that count ``x`` and ``y`` times."""
    terms = []
    for kernel, weight, (a, b) in zip(kernels, weights, ((x, x), (y, y), (x, y)), strict=True):
        count = a @ weight @ b
        if count == 0:
            return float("nan")
        terms.append(a @ kernel @ b / count)
    return float(terms[0] + terms[1] - 2 * terms[2])


def frechet(first: Array, second: Array) -> float:
    """Fréchet distance of the Gaussians fitted to features ``[N, D]``, ``[M, D]`` (Heusel et al. 2017).

    Biased upwards for small sets; compare only figures of equal set sizes. Not an FID: that means Inception features.
    """
    means, covariances = zip(*((x.mean(0), np.cov(x, rowvar=False)) for x in (first, second)), strict=True)
    root = _root(covariances[0])
    # tr((S1 S2)^½) through the symmetric S1^½ S2 S1^½, which has the same eigenvalues.
    mixed = np.linalg.eigvalsh(root @ covariances[1] @ root).clip(min=0)
    trace = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.sqrt(mixed).sum()
    return float(((means[0] - means[1]) ** 2).sum() + trace)


@dataclass(frozen=True)
class HalvesComparison:
    """Wasserstein-1 distance of a set to the real one, beside the distance between two random halves of the real."""

    distance: float
    between_halves: float

    @property
    def ratio(self) -> float:
        """1 = as far from the real set as the real set's halves from each other."""
        return self.distance / max(self.between_halves, 1e-12)


def against_halves(values: Array, real: Array, seed: int = 0, splits: int = 200) -> HalvesComparison:
    """Compare numbers ``[N]`` to real numbers ``[M]``; both distances are means over random halves of the real set.

    ``values`` and one of the halves are cut to the same size, since the distance shrinks as sets grow.
    """
    rng = stream("evaluation.mean", seed)
    half = len(real) // 2
    size = min(half, len(values))
    distances, between = [], []
    for _ in range(splits):
        order = rng.permutation(len(real))
        sample = rng.choice(values, size=size, replace=False)
        distances.append(wasserstein_distance(sample, real[order[:half]]))
        between.append(wasserstein_distance(real[order[half : half + size]], real[order[:half]]))
    return HalvesComparison(float(np.mean(distances)), float(np.mean(between)))


def bootstrap_mean(values: Array, seed: int = 0, resamples: int = 1000, groups: Groups | None = None) -> Estimate:
    """Mean of ``[N]``, resampled over its entries, or over ``groups`` ``[N]`` of entries that are drawn together."""
    rng = stream("evaluation.share", seed)
    group_of = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums, sizes = np.bincount(group_of, values), np.bincount(group_of)
    chosen = rng.integers(len(sums), size=(resamples, len(sums)))
    drawn = (sums[chosen].sum(1) / sizes[chosen].sum(1)).tolist()
    return Estimate(float(values.mean()), *_interval(drawn))


def bootstrap_median(values: Array, groups: Groups, seed: int = 0, resamples: int = 200) -> Estimate:
    """Median of ``[N]``, resampled over ``groups`` ``[N]`` of entries that are drawn together."""
    group_of = np.unique(groups, return_inverse=True)[1]  # two and more
    order = np.argsort(values)
    rng = stream("evaluation.share", seed)
    drawn = []
    for _ in range(resamples):
        counts = _counts(rng, int(group_of.max()) + 1)[group_of][order].cumsum()
        drawn.append(float(values[order][np.searchsorted(counts, counts[-1] / 2)]))
    return Estimate(float(np.median(values)), *_interval(drawn))


def bootstrap_of_sums(
    counts: Array, of: Callable[[Array], Array], groups: Groups, seed: int = 0, resamples: int = 1000
) -> Estimate:
    """``of`` the sums ``[…, K]`` of rows ``[N, K]``, resampled over ``groups`` ``[N]`` of rows that are drawn together.

    Draws for which it is not defined (NaN) are left out; NaN where it is defined for none.
    """
    rng = stream("evaluation.share", seed)
    group_of = np.unique(groups, return_inverse=True)[1]
    sums = np.stack([np.bincount(group_of, column) for column in counts.T], 1)
    times = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    drawn = of(times.astype(float) @ sums)
    kept = drawn[~np.isnan(drawn)].tolist() or [np.nan]
    return Estimate(float(of(sums.sum(0))), *_interval(kept))


def _counts(rng: np.random.Generator, size: int) -> Array:
    """How often each of ``size`` ≥ 2 entries is drawn, with replacement; at least two different ones."""
    while True:
        counts = np.bincount(rng.integers(size, size=size), minlength=size).astype(float)
        if np.count_nonzero(counts) > 1:
            return counts


def _interval(drawn: list[float]) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    root: Array = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
