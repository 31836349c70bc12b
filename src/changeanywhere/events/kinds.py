"""The kinds of change events (paper §2.3). A kind proposes a second mask for a first one, or says it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage, signal

from changeanywhere.events.instances import Instance, Shape, find_instances
from changeanywhere.events.options import EventOptions
from changeanywhere.legend import Mask
from changeanywhere.sample import ChangeEvent

Proposal = tuple[Mask, ChangeEvent]
EIGHT = np.ones((3, 3), bool)
MAX_REGIONS = 12  # receiving regions tried per donor before the next donor has its turn
MAX_DONORS = 24  # donors tried before the tile counts as infeasible
FFT_FROM = 2_000_000  # shape px × region px above which correlating by FFT is the faster way


class EventKind(Protocol):
    """What a further kind has to offer."""

    name: str

    def propose(self, mask: Mask, rng: np.random.Generator, options: EventOptions) -> Proposal | None:
        """Mask t1 uint8 ``[H, W]`` → (mask t2, event), or None if no such event is feasible in it."""
        ...


class Appearance:
    """The shape of a smaller instance is copied into the interior of a region of another class; the donor stays.

    Homogeneous region: one connected component of one class. Every pixel of the moved shape, and ``margin`` px
    around it, lies in that one region. Donors are drawn class by class (so that frequent classes do not take all),
    must be whole (not cut by the tile's border) and within the size limits; regions are drawn by area. The place is
    drawn uniformly from *all* feasible ones, which are computed exactly.
    """

    name = "appearance"

    def propose(self, mask: Mask, rng: np.random.Generator, options: EventOptions) -> Proposal | None:
        """See :class:`EventKind`."""
        instances = find_instances(mask, options.connectivity)
        donors = [i for i in instances if not i.cut and options.min_area <= i.area <= options.max_share * mask.size]
        for donor in _class_by_class(donors, rng)[:MAX_DONORS]:
            regions = [
                region
                for region in instances
                if region.class_index != donor.class_index and donor.area <= options.max_coverage * region.area
            ]
            for region in _by_area(regions, rng)[:MAX_REGIONS]:
                places = feasible_places(region.shape, donor.shape, options.margin)
                if not len(places):
                    continue
                row, column = places[rng.integers(len(places))]
                row, column = row + region.row, column + region.column
                mask_t2 = mask.copy()
                height, width = donor.shape.shape
                mask_t2[row : row + height, column : column + width][donor.shape] = donor.class_index
                offset = (int(row - donor.row), int(column - donor.column))
                box = (int(row), int(column), height, width)
                return mask_t2, ChangeEvent(self.name, region.class_index, donor.class_index, box, offset, donor.area)
        return None


class Disappearance:
    """An instance takes the class that surrounds it: the one with the longest contact along its 8-neighbour ring.

    Unknown ground in the ring does not count; ties go to the smaller class index. Instances cut by the tile's
    border may disappear too. Instances are drawn class by class.
    """

    name = "disappearance"

    def propose(self, mask: Mask, rng: np.random.Generator, options: EventOptions) -> Proposal | None:
        """See :class:`EventKind`."""
        instances = find_instances(mask, options.connectivity)
        within = [i for i in instances if options.min_area <= i.area <= options.max_share * mask.size]
        for instance in _class_by_class(within, rng):
            surrounding = surrounding_class(mask, instance)
            if surrounding is None:
                continue
            mask_t2 = mask.copy()
            mask_t2[instance.window][instance.shape] = surrounding
            box = (instance.row, instance.column, *instance.shape.shape)
            return mask_t2, ChangeEvent(self.name, instance.class_index, surrounding, box, (0, 0), instance.area)
        return None


REGISTRY: dict[str, EventKind] = {kind.name: kind for kind in (Appearance(), Disappearance())}


def feasible_places(region: Shape, shape: Shape, margin: int) -> npt.NDArray[np.int64]:
    """All (row, column) at which ``shape``, grown by ``margin`` px, lies in ``region``: int64 ``[N, 2]``.

    Positions of the shape's own box in the region's box. This is the erosion of the region by the grown shape,
    computed as a correlation with the region's complement: feasible where not one of its pixels is hit.
    """
    grown = np.pad(shape, margin)
    if margin:
        grown = ndimage.binary_dilation(grown, EIGHT, iterations=margin)
    # Outside the region's box there is no region.
    room = (region.shape[0] - grown.shape[0] + 1, region.shape[1] - grown.shape[1] + 1)
    if min(room) < 1:
        return np.empty((0, 2), np.int64)
    outside = ~region
    if not outside.any():
        hits = np.zeros(room)
    elif grown.size * region.size > FFT_FROM:
        hits = signal.fftconvolve(outside.astype(np.float32), grown[::-1, ::-1].astype(np.float32), mode="valid")
    else:
        hits = signal.correlate(outside.astype(np.float32), grown.astype(np.float32), mode="valid", method="direct")
    return np.argwhere(hits < 0.5) + margin


def surrounding_class(mask: Mask, instance: Instance) -> int | None:
    """Class with most pixels in the ring around ``instance``; None if all of it is unknown or outside the tile."""
    rows, columns = instance.window
    top, left = min(rows.start, 1), min(columns.start, 1)
    window = mask[rows.start - top : rows.stop + 1, columns.start - left : columns.stop + 1]
    inside = np.zeros(window.shape, bool)
    inside[top : top + instance.shape.shape[0], left : left + instance.shape.shape[1]] = instance.shape
    ring = ndimage.binary_dilation(inside, EIGHT) & ~inside
    contact = np.bincount(window[ring], minlength=256)
    # 4-connected instances may touch their own class diagonally; that is no surrounding to dissolve in.
    contact[[0, instance.class_index]] = 0
    return int(contact.argmax()) if contact.any() else None


def _class_by_class(instances: Sequence[Instance], rng: np.random.Generator) -> list[Instance]:
    """Random order in which every class present has the same chance to be next."""
    queues: dict[int, list[Instance]] = {}
    for instance in instances:
        queues.setdefault(instance.class_index, []).append(instance)
    for queue in queues.values():
        queue[:] = [queue[i] for i in rng.permutation(len(queue))]
    order = []
    while queues:
        class_index = list(queues)[rng.integers(len(queues))]
        order.append(queues[class_index].pop())
        if not queues[class_index]:
            del queues[class_index]
    return order


def _by_area(regions: Sequence[Instance], rng: np.random.Generator) -> list[Instance]:
    """Random order without replacement, weighted by area (Efraimidis & Spirakis 2006)."""
    areas = np.array([region.area for region in regions], float)
    keys = rng.random(len(regions)) ** (1 / areas)
    return [regions[i] for i in np.argsort(-keys)]
