"""Instances: connected components of one class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from changeanywhere.legend import Mask

Shape = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Instance:
    """A connected component: its class, where its bounding box starts, its shape in that box, whether it is cut.

    ``shape`` is bool ``[h, w]``; ``row``, ``column`` in px; ``cut`` says that it touches the tile's border, so that
    its true shape is not known.
    """

    class_index: int
    row: int
    column: int
    shape: Shape
    area: int
    cut: bool

    @property
    def window(self) -> tuple[slice, slice]:
        """Its bounding box in the mask."""
        height, width = self.shape.shape
        return slice(self.row, self.row + height), slice(self.column, self.column + width)


def find_instances(mask: Mask, connectivity: int) -> list[Instance]:
    """All instances of all known classes, by class, then in scan order."""
    structure = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    height, width = mask.shape
    instances = []
    for class_index in np.flatnonzero(np.bincount(mask.ravel(), minlength=1)):
        if class_index == 0:
            continue
        labels, _ = ndimage.label(mask == class_index, structure)
        for number, window in enumerate(ndimage.find_objects(labels), 1):
            rows, columns = window
            shape = labels[window] == number
            cut = rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width
            area = int(np.count_nonzero(shape))
            instances.append(Instance(int(class_index), rows.start, columns.start, shape, area, cut))
    return instances
