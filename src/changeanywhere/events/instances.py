"""Instances: connected components of one class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from changeanywhere.legend import Mask

Shape = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Instance:
    """A connected component: class, bounding box in px, area in px, and whether the tile's border cuts it.

    A cut instance does not show its true shape. ``labels`` are the component numbers of its class.
    """

    class_index: int
    window: tuple[slice, slice]
    area: int
    cut: bool
    labels: npt.NDArray[np.int32]
    number: int

    @property
    def row(self) -> int:
        """First row of the bounding box."""
        return int(self.window[0].start)

    @property
    def column(self) -> int:
        """First column of the bounding box."""
        return int(self.window[1].start)

    @cached_property
    def shape(self) -> Shape:
        """Its pixels in its box, bool ``[h, w]``; made at first use, since most instances are never looked at."""
        shape: Shape = self.labels[self.window] == self.number
        return shape


def find_instances(mask: Mask, connectivity: int) -> list[Instance]:
    """All instances of all known classes, by class, then in scan order; time grows with the pixels."""
    structure = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    height, width = mask.shape
    instances = []
    for class_index in np.flatnonzero(np.bincount(mask.ravel(), minlength=1)):
        if class_index == 0:
            continue
        labels = np.empty(mask.shape, np.int32)
        ndimage.label(mask == class_index, structure, output=labels)
        areas = np.bincount(labels.ravel())
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            cut = rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width
            instances.append(Instance(int(class_index), (rows, columns), int(areas[number]), cut, labels, number))
    return instances
