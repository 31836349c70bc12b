"""What a first stage loses of real pixels, given back where painting left them as they were.

Encoding and decoding takes the finest octave of every image away. Where date 2 still shows what date 1, or an exemplar,
showed, that octave is known: it is the difference between the real pixels and what the first stage makes of them.
"""

from __future__ import annotations

import torch
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
    maps = torch.cat([first, second, first * second, first.square() + second.square()], 1)
    mean_first, mean_second, product, squares = _mean(maps).chunk(4, 1)
    covariance = product - mean_first * mean_second
    variances = squares - mean_first.square() - mean_second.square()
    return (2 * covariance + FLAT) / (variances.clamp(min=0) + FLAT)


def _mean(image: Tensor) -> Tensor:
    """Of the neighbourhood, as far as it lies in the image: sums of rows, then of columns, each by doubling."""
    height, width = image.shape[-2:]
    return _sum(_sum(image, -1), -2) / (_known(height, image)[:, None] * _known(width, image))


def _sum(image: Tensor, axis: int) -> Tensor:
    """Of the :data:`WINDOW` values around each along an axis: sums of 2, 4 and 8 of them, and the ninth."""
    length, reach = image.shape[axis], WINDOW // 2
    one = F.pad(image, (reach, reach) if axis == -1 else (0, 0, reach, reach))
    total, count = one, 1
    while 2 * count <= WINDOW:
        most = total.shape[axis] - count
        total, count = total.narrow(axis, 0, most) + total.narrow(axis, count, most), 2 * count
    for place in range(count, WINDOW):
        total = total.narrow(axis, 0, length) + one.narrow(axis, place, length)
    return total


def _known(length: int, image: Tensor) -> Tensor:
    """How many of these values lie in a line of so many px, for each of them."""
    places, reach = torch.arange(length, device=image.device), WINDOW // 2
    return ((places + reach).clamp(max=length - 1) - (places - reach).clamp(min=0) + 1).to(image)
