"""Kinds that the real world has and the paper has not (all ours, off in its recipe)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from changeanywhere.events.appearance import feasible_places, transform
from changeanywhere.events.disappearance import dissolve, surrounding_class
from changeanywhere.events.ground import EIGHT, Ground, Proposal, class_by_class, describe, weighted_order
from changeanywhere.events.instances import Instance, Shape
from changeanywhere.legend import Mask

ATTEMPTS = 24  # instances or shapes tried before the tile counts as infeasible


class Conversion:
    """A region changes class as a whole (forest → bare land). The new class is drawn by the transitions' weights."""

    name = "conversion"

    def propose(self, ground: Ground, rng: np.random.Generator) -> Proposal | None:
        """See :class:`EventKind`."""
        for instance in class_by_class([i for i in ground.whole if ground.within(i.area)], rng)[:ATTEMPTS]:
            weights = [
                ground.weight(instance.class_index, c) if c != instance.class_index else 0.0
                for c in range(1, ground.num_classes + 1)
            ]
            order = weighted_order(weights, rng)
            if len(order):
                mask_t2 = ground.mask.copy()
                mask_t2[instance.window][instance.shape] = order[0] + 1
                return mask_t2, describe(self.name, ground.mask, mask_t2)
        return None


class Growth:
    """An instance takes a band of ``spread`` px from the neighbour with the longest contact (flood, built-up edge)."""

    name = "growth"

    def propose(self, ground: Ground, rng: np.random.Generator) -> Proposal | None:
        """See :class:`EventKind`."""
        for instance in class_by_class([i for i in ground.whole if i.area >= ground.min_area], rng)[:ATTEMPTS]:
            neighbour = surrounding_class(ground.mask, instance)
            if neighbour is None or not ground.weight(neighbour, instance.class_index):
                continue
            whole = np.zeros(ground.mask.shape, bool)
            whole[instance.window] = instance.shape
            reach = int(rng.integers(ground.options.spread[0], ground.options.spread[1] + 1))
            # Grown through the neighbour's ground alone: it does not jump over a road.
            band = ndimage.binary_dilation(whole, EIGHT, reach, mask=whole | (ground.mask == neighbour)) & ~whole
            if ground.within(int(np.count_nonzero(band))):
                mask_t2 = np.where(band, np.uint8(instance.class_index), ground.mask)
                return mask_t2, describe(self.name, ground.mask, mask_t2)
        return None


class Shrinkage:
    """An instance loses a band of ``spread`` px along the neighbour with the longest contact, to that neighbour."""

    name = "shrinkage"

    def propose(self, ground: Ground, rng: np.random.Generator) -> Proposal | None:
        """See :class:`EventKind`."""
        for instance in class_by_class([i for i in ground.whole if i.area >= ground.min_area], rng)[:ATTEMPTS]:
            neighbour = surrounding_class(ground.mask, instance)
            if neighbour is None or not ground.weight(instance.class_index, neighbour):
                continue
            whole = np.zeros(ground.mask.shape, bool)
            whole[instance.window] = instance.shape
            reach = int(rng.integers(ground.options.spread[0], ground.options.spread[1] + 1))
            near = ground.mask == neighbour
            band = ndimage.binary_dilation(near, EIGHT, reach, mask=near | whole) & whole
            area = int(np.count_nonzero(band))
            if ground.within(area) and area < instance.area:  # all of it would be a disappearance
                mask_t2 = np.where(band, np.uint8(neighbour), ground.mask)
                return mask_t2, describe(self.name, ground.mask, mask_t2)
        return None


class Rebuild:
    """An instance gives way to another shape of its class at the same place; what is left over is dissolved.

    The new shape comes from another whole instance (or the bank), covers the old centre and lies, apart from the old
    instance, in the surrounding class.
    """

    name = "rebuild"

    def propose(self, ground: Ground, rng: np.random.Generator) -> Proposal | None:
        """See :class:`EventKind`."""
        candidates = [i for i in ground.whole if not i.cut and ground.min_area <= i.area <= ground.max_area]
        for old in class_by_class(candidates, rng)[:ATTEMPTS]:
            cleared = dissolve(ground, old, rng)
            surrounding = surrounding_class(ground.mask, old)
            if cleared is None or surrounding is None:
                continue
            shapes = [i.shape for i in candidates if i.class_index == old.class_index and i is not old]
            banked = ground.bank.count_of(old.class_index) if ground.bank is not None else 0
            for number in rng.permutation(len(shapes) + banked)[:4]:
                if number < len(shapes):
                    shape = shapes[number]
                else:
                    assert ground.bank is not None
                    shape = ground.bank.shape(old.class_index, int(number) - len(shapes))
                shape, _ = transform(shape, ground, rng)
                mask_t2 = self._place(ground, old, cleared, surrounding, shape, rng)
                if mask_t2 is not None:
                    return mask_t2, describe(self.name, ground.mask, mask_t2)
        return None

    def _place(
        self, ground: Ground, old: Instance, cleared: Mask, surrounding: int, shape: Shape, rng: np.random.Generator
    ) -> Mask | None:
        """``cleared`` with ``shape`` over the old centre, or None."""
        places = feasible_places(cleared == surrounding, shape, ground.options.margin)
        height, width = shape.shape
        centre = np.array([old.row + old.shape.shape[0] // 2, old.column + old.shape.shape[1] // 2])
        covering = places[((places <= centre) & (places > centre - (height, width))).all(1)]
        if not len(covering):
            return None
        row, column = covering[rng.integers(len(covering))]
        mask_t2 = cleared.copy()
        mask_t2[row : row + height, column : column + width][shape] = old.class_index
        changed = mask_t2 != ground.mask
        weights_hold = ground.weight(surrounding, old.class_index) > 0 and all(
            ground.weight(old.class_index, int(c)) > 0 for c in np.unique(cleared[old.window][old.shape])
        )
        return mask_t2 if weights_hold and ground.within(int(np.count_nonzero(changed))) else None
