"""What a first stage loses of real pixels, given back where painting left them as they were.

Encoding and decoding takes the finest octave of every image away. Where date 2 still shows what date 1, or an exemplar,
showed, that octave is known: it is the difference between the real pixels and what the first stage makes of them.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

WINDOW = 9
"""Side of the neighbourhood, px, in which two images are compared."""
FLAT = 0.03**2
"""Variance (of images in [-1, 1]) that counts as flat: below it there is no structure that could differ."""


def give_back(painted: Tensor, real: Tensor, through: Tensor, share: float) -> Tensor:
    """``painted`` f32 ``[B, C, H, W]`` plus ``share`` (0 to 1) of ``real - through``, as far as both agree.

    ``through``: ``real`` encoded and decoded. Agreement is that of ``painted`` with ``through`` around each pixel, the
    contrast and structure term of SSIM (Wang et al. 2004, eq. 13 without luminance, so that another light is no
    disagreement), and nothing below 0. Ground that was painted from noise agrees with nothing and stays as it is.
    """
    agreement = contrast_structure(painted.mean(1, keepdim=True), through.mean(1, keepdim=True)).clamp(0, 1)
    return painted + share * agreement * (real - through)


def contrast_structure(first: Tensor, second: Tensor) -> Tensor:
    """(2 covariance + c) / (sum of variances + c) in a window around each pixel: ``[B, 1, H, W]``, -1 to 1."""
    mean_first, mean_second = _mean(first), _mean(second)
    covariance = _mean(first * second) - mean_first * mean_second
    variances = _mean(first.square()) - mean_first.square() + _mean(second.square()) - mean_second.square()
    return (2 * covariance + FLAT) / (variances.clamp(min=0) + FLAT)


def _mean(image: Tensor) -> Tensor:
    """Of the neighbourhood, as far as it lies in the image: of columns of means of rows, 18 values for 81."""
    across = F.avg_pool2d(image, (1, WINDOW), stride=1, padding=(0, WINDOW // 2), count_include_pad=False)
    return F.avg_pool2d(across, (WINDOW, 1), stride=1, padding=(WINDOW // 2, 0), count_include_pad=False)
