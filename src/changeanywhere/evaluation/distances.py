"""Distances between two sets: KID and Fréchet on features, Wasserstein on numbers, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import wasserstein_distance

from changeanywhere.seeds import stream

Array = npt.NDArray[np.float64]


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
    dimensions = first.shape[1]
    kernels = [(a @ b.T / dimensions + 1) ** 3 for a, b in ((first, first), (second, second), (first, second))]

    def estimate(x: Array, y: Array) -> float:
        within = [
            (w @ k @ w - (w**2 * np.diag(k)).sum()) / (w.sum() ** 2 - (w**2).sum())
            for w, k in zip((x, y), kernels[:2], strict=True)
        ]
        return float(within[0] + within[1] - 2 * (x @ kernels[2] @ y) / (x.sum() * y.sum()))

    rng = stream("evaluation.kernel", seed)
    sizes = len(first), len(second)
    group_of = np.arange(sizes[0]) if groups is None else np.unique(groups, return_inverse=True)[1]
    num_groups = int(group_of.max()) + 1
    drawn = [estimate(_counts(rng, num_groups)[group_of], _counts(rng, sizes[1])) for _ in range(resamples)]
    return Estimate(estimate(np.ones(sizes[0]), np.ones(sizes[1])), *_interval(drawn))


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

    ``values`` are held against half-sets too, cut to the same size, since the distance shrinks as sets grow.
    """
    rng = stream("evaluation.mean", seed)
    half = len(real) // 2
    distances, between = [], []
    for _ in range(splits):
        order = rng.permutation(len(real))
        sample = rng.choice(values, size=min(half, len(values)), replace=False)
        distances.append(wasserstein_distance(sample, real[order[:half]]))
        between.append(wasserstein_distance(real[order[half : 2 * half]], real[order[:half]]))
    return HalvesComparison(float(np.mean(distances)), float(np.mean(between)))


def bootstrap_mean(
    values: Array, seed: int = 0, resamples: int = 1000, groups: npt.NDArray[np.integer] | None = None
) -> Estimate:
    """Mean of ``[N]``, resampled over its entries, or over ``groups`` ``[N]`` of entries that are drawn together."""
    rng = stream("evaluation.share", seed)
    group_of = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums, sizes = np.bincount(group_of, values), np.bincount(group_of)
    chosen = rng.integers(len(sums), size=(resamples, len(sums)))
    drawn = (sums[chosen].sum(1) / sizes[chosen].sum(1)).tolist()
    return Estimate(float(values.mean()), *_interval(drawn))


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
