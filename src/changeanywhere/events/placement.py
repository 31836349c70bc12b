"""Where an appearance lies among all places at which it fits: anywhere (the paper's), or in surroundings like those of
the shape that it copies (ours): houses beside houses and roads rather than in the middle of a desert."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from changeanywhere.events.instances import Shape
from changeanywhere.legend import Mask

REACH = 24
"""Px around a shape's box that are its surroundings."""
BEST_SHARE = 0.1
"""Of all places this share, the most alike, are drawn from."""


def surroundings(
    mask: Mask, box: tuple[int, int, int, int], class_index: int, num_classes: int
) -> npt.NDArray[np.float64]:
    """Share of each class around ``box`` (row, column, height, width) within the tile, but for the shape's own class
    inside the box: ``[num_classes + 1]``, sum 1 (all 0 where there is nothing around it)."""
    row, column, height, width = box
    around = mask[max(row - REACH, 0) : row + height + REACH, max(column - REACH, 0) : column + width + REACH]
    counts = np.bincount(around.ravel(), minlength=num_classes + 1).astype(float)
    inside = mask[row : row + height, column : column + width]
    counts[class_index] -= np.count_nonzero(inside == class_index)
    shares: npt.NDArray[np.float64] = counts / max(float(counts.sum()), 1.0)
    return shares


def alike(
    mask: Mask,
    places: npt.NDArray[np.int64],
    shape: Shape,
    receiver: int,
    like: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    """Of ``places`` int64 ``[N, 2]`` (row, column) in ``mask`` for ``shape`` bool ``[h, w]``, those whose surroundings
    are most like ``like``, by total variation: a tenth of them, and all that are as good as the last of these.

    The pixels under the shape, all of the class ``receiver``, do not count as surroundings.
    """
    sums = [np.pad((mask == c).cumsum(0).cumsum(1), ((1, 0), (1, 0))) for c in range(len(like))]
    top, left = (np.maximum(places[:, i] - REACH, 0) for i in (0, 1))
    bottom, right = (np.minimum(places[:, i] + shape.shape[i] + REACH, mask.shape[i]) for i in (0, 1))
    counts = np.stack([s[bottom, right] - s[top, right] - s[bottom, left] + s[top, left] for s in sums], 1).astype(
        float
    )
    counts[:, receiver] -= np.count_nonzero(shape)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)
    distance = np.abs(shares - like).sum(1)
    worst = np.sort(distance)[max(int(np.ceil(BEST_SHARE * len(places))) - 1, 0)]
    found: npt.NDArray[np.int64] = places[distance <= worst]
    return found
