"""Instances: connected components of one class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import label

from changeanywhere.legend import Mask

Shape = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Instance:
    """A connected component: class, bounding box in px, area in px, and whether the tile's border cuts it.

    A cut instance does not show its true shape. What ends at unknown ground counts as whole: a mask does not say
    whether it was not imaged, and cuts, or was not labelled. ``labels`` are the component numbers of the mask.
    """

    class_index: int
    window: tuple[slice, slice]
    area: int
    cut: bool
    labels: npt.NDArray[np.int32]
    number: int
    goes_on: bool = False
    """Whether it goes on beyond a window of a scene: it may receive, and nothing else, since it is not all here."""

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
    labels, count = label(mask, background=0, connectivity=2 if connectivity == 8 else 1, return_num=True)
    labels = labels.astype(np.int32, copy=False)
    height, width = mask.shape
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    classes = np.zeros(count + 1, np.uint8)
    classes[labels.ravel()] = mask.ravel()
    boxes = ndimage.find_objects(labels)
    instances = []
    for number in np.argsort(classes[1:], kind="stable") + 1:
        rows, columns = boxes[number - 1]
        cut = rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width
        instances.append(Instance(int(classes[number]), (rows, columns), int(areas[number]), cut, labels, int(number)))
    return instances
