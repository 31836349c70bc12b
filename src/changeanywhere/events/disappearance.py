"""Disappearance (paper §2.3): an instance takes the class that surrounds it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from changeanywhere.events.ground import EIGHT, Ground, Proposal, class_by_class, describe
from changeanywhere.events.instances import Instance
from changeanywhere.legend import Mask


class Disappearance:
    """``fill`` majority: the class with the longest contact along the 8-neighbour ring; ties to the smaller index.

    ``fill`` random: one of the classes of that ring. ``fill`` nearest: every pixel takes the class of the nearest ring
    pixel, so that half road / half grass continue.
    Unknown ground in the ring does not count. Instances are drawn class by class; those that the tile's border cuts may
    disappear too.
    """

    name = "disappearance"

    def propose(self, ground: Ground, rng: np.random.Generator) -> Proposal | None:
        """See :class:`EventKind`."""
        fitting = [i for i in ground.whole if ground.within(i.area) and ground.usual(i.class_index, i.area)]
        for instance in class_by_class([i for i in fitting if ground.is_object(i.class_index)], rng):
            mask_t2 = vanished(ground, instance, rng)
            if mask_t2 is not None:
                return mask_t2, describe(self.name, ground.mask, mask_t2)
        return None


def vanished(ground: Ground, instance: Instance, rng: np.random.Generator) -> Mask | None:
    """:func:`dissolve` into classes that the transitions allow; None where they do not, or nothing is around."""
    mask_t2 = dissolve(ground, instance, rng)
    if mask_t2 is None:
        return None
    taken = np.unique(mask_t2[instance.window][instance.shape])
    return mask_t2 if all(ground.weight(instance.class_index, int(c)) > 0 for c in taken) else None


def dissolve(ground: Ground, instance: Instance, rng: np.random.Generator) -> Mask | None:
    """The ground's mask with ``instance`` filled from its surroundings; None if there are none."""
    surrounding = surrounding_class(ground.mask, instance)
    if surrounding is None:
        return None
    mask_t2 = ground.mask.copy()
    if ground.options.fill == "random":
        around = classes_around(ground.mask, instance)
        surrounding = int(around[rng.integers(len(around))])
    if ground.options.fill != "nearest":
        mask_t2[instance.window][instance.shape] = surrounding
        return mask_t2
    window, inside = _with_ring(ground.mask, instance)
    ring = ndimage.binary_dilation(inside, EIGHT) & ~inside & (window != 0) & (window != instance.class_index)
    nearest = ndimage.distance_transform_edt(~ring, return_distances=False, return_indices=True)
    filled: npt.NDArray[np.uint8] = window[tuple(nearest)]
    mask_t2[instance.window][instance.shape] = filled[inside]
    return mask_t2


def surrounding_class(mask: Mask, instance: Instance) -> int | None:
    """Class with most pixels in the ring around ``instance``; None if all of it is unknown or outside the tile."""
    contact = _contact(mask, instance)
    return int(contact.argmax()) if contact.any() else None


def classes_around(mask: Mask, instance: Instance) -> npt.NDArray[np.intp]:
    """Classes of the ring around ``instance``, rising."""
    return np.flatnonzero(_contact(mask, instance))


def _contact(mask: Mask, instance: Instance) -> npt.NDArray[np.intp]:
    """Px of the ring around ``instance`` by class."""
    window, inside = _with_ring(mask, instance)
    ring = ndimage.binary_dilation(inside, EIGHT) & ~inside
    contact = np.bincount(window[ring], minlength=256)
    # 4-connected instances may touch their own class diagonally; that is no surrounding to dissolve in.
    contact[[0, instance.class_index]] = 0
    return contact


def _with_ring(mask: Mask, instance: Instance) -> tuple[Mask, npt.NDArray[np.bool_]]:
    """The instance's window with 1 px around it (cut at the tile's border), and its shape in that window."""
    rows, columns = instance.window
    top, left = min(rows.start, 1), min(columns.start, 1)
    window = mask[rows.start - top : rows.stop + 1, columns.start - left : columns.stop + 1]
    inside = np.zeros(window.shape, bool)
    inside[top : top + instance.shape.shape[0], left : left + instance.shape.shape[1]] = instance.shape
    return window, inside
