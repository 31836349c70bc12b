"""What a judge read against what the masks say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from changeanywhere.generation.fidelity import EROSION

MIN_SHARE = 0.01
"""Classes below this share of the pixels are left out of a mean IoU."""
NEIGHBOURS = 5
"""Real instances of nearest size that one painted instance is held against."""

Mask = npt.NDArray[np.uint8]


class Confusion:
    """Counts of (class of the mask, class that was read) over known pixels."""

    def __init__(self, num_classes: int) -> None:
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def add(self, mask: Mask, read: npt.NDArray[np.integer], where: npt.NDArray[np.bool_] | None = None) -> None:
        """``mask`` ``[H, W]`` with 0 = unknown, ``read`` ``[H, W]`` 1…K; only pixels ``where``."""
        chosen = mask > 0 if where is None else (mask > 0) & where
        size = len(self.counts)
        pairs = (mask[chosen].astype(np.int64) - 1) * size + read[chosen].astype(np.int64) - 1
        self.counts += np.bincount(pairs, minlength=size * size).reshape(size, size)

    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union per class ``[K]``; NaN where a class neither stands in a mask nor was read."""
        hits = np.diag(self.counts).astype(float)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        ratio: npt.NDArray[np.float64] = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
        return ratio

    def frequent(self) -> npt.NDArray[np.bool_]:
        """Classes with at least :data:`MIN_SHARE` of the masks' pixels ``[K]``."""
        enough: npt.NDArray[np.bool_] = self.counts.sum(1) >= MIN_SHARE * max(self.counts.sum(), 1)
        return enough

    def mean_iou(self, classes: npt.NDArray[np.bool_] | None = None) -> float:
        """Mean IoU over ``classes`` (default: the frequent ones)."""
        return float(np.nanmean(self.iou()[self.frequent() if classes is None else classes]))


@dataclass(frozen=True)
class ReadInstance:
    """One component of one class, and the share of its inside that was read as that class."""

    class_index: int
    area: int
    recall: float
    group: int = 0
    """Number of its image: instances of one image are not independent."""


def read_instances(
    mask: Mask, read: npt.NDArray[np.integer], where: npt.NDArray[np.bool_] | None = None, group: int = 0
) -> list[ReadInstance]:
    """Components of each class of ``mask`` within ``where``, eroded by :data:`EROSION`; vanished ones are left out."""
    found = []
    for class_index in np.unique(mask[mask > 0] if where is None else mask[where & (mask > 0)]):
        region = (mask == class_index) if where is None else (mask == class_index) & where
        components, _ = ndimage.label(region, np.ones((3, 3)))
        inside = ndimage.binary_erosion(region, iterations=EROSION)
        areas = np.bincount(components.ravel())
        sizes = np.bincount(components[inside], minlength=len(areas))
        hits = np.bincount(components[inside & (read == class_index)], minlength=len(areas))
        for number in np.flatnonzero(sizes[1:]) + 1:
            recall = hits[number] / sizes[number]
            found.append(ReadInstance(int(class_index), int(areas[number]), float(recall), group))
    return found


def matched_recall(painted: list[ReadInstance], real: list[ReadInstance]) -> tuple[list[float], list[float]]:
    """Recall of each painted instance, and of real instances of its class and of nearest size (in log area).

    Painted instances of a class of which no real one is known are left out of both.
    """
    by_class: dict[int, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]] = {}
    for class_index in {instance.class_index for instance in real}:
        chosen = [i for i in real if i.class_index == class_index]
        by_class[class_index] = (np.log([i.area for i in chosen]), np.array([i.recall for i in chosen]))
    ours, ceiling = [], []
    for instance in painted:
        if instance.class_index not in by_class:
            continue
        sizes, recalls = by_class[instance.class_index]
        nearest = np.argsort(np.abs(sizes - np.log(instance.area)), kind="stable")[:NEIGHBOURS]
        ours.append(instance.recall)
        ceiling.append(float(recalls[nearest].mean()))
    return ours, ceiling
