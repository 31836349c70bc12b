"""How two dates of one place differ where nothing changed, and what a change boundary looks like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from skimage.color import rgb2lab

from changeanywhere.models.perceptual import ShiftTolerantLPIPS

AWAY = 8
"""Ground nearer than this to a change (px) counts neither as changed nor as unchanged: shadows and blending."""
MIN_PIXELS = 2000
"""Fewer unchanged pixels than this say nothing about a pair."""

Image = npt.NDArray[np.uint8]
Where = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """One pair on its unchanged ground."""

    colour_shift: float
    """Length of the difference of the mean Lab colours (ΔE 1976)."""
    gradient_correlation: float
    """Correlation of the gradient magnitudes of lightness: 1 = every edge is where it was."""
    st_lpips: float
    """Shift-tolerant LPIPS, changed ground left out."""


def far_from(change: Where) -> Where:
    """Pixels at least :data:`AWAY` px from any change."""
    if not change.any():
        return np.ones_like(change)
    far: Where = ndimage.distance_transform_edt(~change) >= AWAY
    return far


def gradient(lightness: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Magnitude of the Sobel gradient of ``[H, W]``, per px."""
    rows, columns = (ndimage.sobel(lightness.astype(float), axis) / 8 for axis in (0, 1))
    magnitude: npt.NDArray[np.float64] = np.hypot(rows, columns)
    return magnitude


@torch.no_grad()
def difference(first: Image, second: Image, change: Where, metric: ShiftTolerantLPIPS) -> Difference | None:
    """RGB images ``[H, W, 3]`` of two dates and what changed; None if too little is unchanged."""
    same = far_from(change)
    if same.sum() < MIN_PIXELS:
        return None
    labs = [rgb2lab(image) for image in (first, second)]
    shift = np.linalg.norm(labs[1][same].mean(0) - labs[0][same].mean(0))
    edges = [gradient(lab[..., 0])[same] for lab in labs]
    # Flat images have no edges to compare.
    correlation = float(np.corrcoef(edges[0], edges[1])[0, 1]) if min(e.std() for e in edges) > 1e-6 else 0.0
    # Where something changed, the second image takes the first's pixels: they add nothing to the distance.
    patched = np.where(same[..., None], second, first)
    tensors = [torch.from_numpy(x / 127.5 - 1).permute(2, 0, 1)[None].float() for x in (first, patched)]
    return Difference(float(shift), correlation, float(metric(*tensors)) / float(same.mean()))


def boundary_contrast(
    image: Image,
    inside: Where,
    ignored: Where | None = None,
    away: tuple[float, float] = (4, 12),
    least: int = 50,
) -> float | None:
    """Mean gradient of lightness on the border of ``inside`` over that within and around it (``away``: from, to px).

    Above that of real borders of the same kind: a seam. None where fewer than ``least`` px lie so within or around it,
    or where it has no border but that of ``ignored`` ground, which counts nowhere.
    """
    if not inside.any() or inside.all():
        return None
    within, around = (ndimage.distance_transform_edt(part) for part in (inside, ~inside))
    distance = np.where(inside, within, around)
    border, nearby = distance <= 1.5, (distance >= away[0]) & (distance <= away[1])
    if ignored is not None and ignored.any():
        known = ndimage.distance_transform_edt(~ignored) >= 3  # a gradient spans 3 px, a border 1.5 on both sides
        border, nearby = border & known, nearby & known
    if not border.any():
        return None
    if (nearby & inside).sum() < least or (nearby & ~inside).sum() < least:
        return None
    edges = gradient(rgb2lab(image)[..., 0])
    reference = (edges[nearby & inside].mean() + edges[nearby & ~inside].mean()) / 2
    return float(edges[border].mean() / max(reference, 1e-6))
