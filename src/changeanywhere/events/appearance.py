"""Appearance (paper §2.3): the shape of an instance is copied into the interior of a region of another class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from changeanywhere.events.correlation import correlated
from changeanywhere.events.disappearance import vanished
from changeanywhere.events.ground import EIGHT, Ground, Proposal, class_by_class, describe, weighted_order
from changeanywhere.events.instances import Instance, Shape
from changeanywhere.events.placement import alike, surroundings
from changeanywhere.sample import ShapeDonor, runs_of

MAX_REGIONS = 12  # receiving regions tried per donor before the next donor has its turn
MAX_DONORS = 24  # donors tried before the tile counts as infeasible


@dataclass(frozen=True)
class Donor:
    """A shape that may appear: bool ``[h, w]``, and where it was taken from (tile None: the one that changes)."""

    class_index: int
    shape: Shape
    tile: int | None
    box: tuple[int, int, int, int]

    @property
    def origin(self) -> tuple[int, int] | None:
        """Where in the tile that changes it was."""
        return self.box[:2] if self.tile is None else None


class Appearance:
    """The donor stays; the copy lies, with ``margin`` px around it, in one connected region of one other class.

    Donors are whole instances (not cut by the tile's border) within the size limits, drawn class by class; receiving
    regions are drawn by area times the transition's weight. The place is drawn uniformly from *all* feasible ones.
    """

    name = "appearance"

    def propose(self, ground: Ground, rng: np.random.Generator) -> Proposal | None:
        """See :class:`EventKind`."""
        for donor in islice(_donors(ground, rng), MAX_DONORS):
            shape, turn = transform(donor.shape, ground, rng)
            area = int(np.count_nonzero(shape))
            if not ground.within(area) or not ground.usual(donor.class_index, area):
                continue
            weights = [
                region.area * ground.weight(region.class_index, donor.class_index)
                if region.class_index != donor.class_index and area <= ground.options.max_coverage * region.area
                else 0.0
                for region in ground.instances
            ]
            for number in weighted_order(weights, rng)[:MAX_REGIONS]:
                region = ground.instances[number]
                places = feasible_places(region.shape, shape, ground.options.margin)
                if not len(places):
                    continue
                places += (region.row, region.column)
                if ground.options.placement == "like_donor":
                    places = alike(ground.mask, places, shape, region.class_index, _around(donor, ground))
                row, column = places[rng.integers(len(places))]
                mask_t2 = ground.mask.copy()
                mask_t2[row : row + shape.shape[0], column : column + shape.shape[1]][shape] = donor.class_index
                offset = (int(row) - donor.origin[0], int(column) - donor.origin[1]) if donor.origin else (0, 0)
                came_from = replace(turn, tile=donor.tile, box=donor.box, runs=runs_of(donor.shape))
                events = describe(self.name, ground.mask, mask_t2, offset, came_from)
                if not ground.options.move:
                    return mask_t2, events
                left = vanished(ground, _standing(donor, ground), rng)
                if left is None:  # nothing is around it that it may become
                    break
                # After the appearance, whose exemplar is seen where the donor still stands.
                events = (*events, *describe("disappearance", ground.mask, left))
                return np.where(left != ground.mask, left, mask_t2).astype(np.uint8), events
        return None


def _standing(donor: Donor, ground: Ground) -> Instance:
    """The instance of this tile that a donor is."""
    return next(
        i
        for i in ground.instances
        if (i.class_index, i.row, i.column) == (donor.class_index, *donor.box[:2])
        and i.shape.shape == donor.shape.shape
    )


def _around(donor: Donor, ground: Ground) -> npt.NDArray[np.float64]:
    """What is around a donor where it stands."""
    mask = ground.mask if donor.tile is None or ground.bank is None else ground.bank.mask(donor.tile)
    return surroundings(mask, donor.box, donor.class_index, ground.num_classes)


def _donors(ground: Ground, rng: np.random.Generator) -> Iterable[Donor]:
    """Donors in random order: of this tile, or of the whole source where there is a bank."""
    if ground.bank is not None:
        bank = ground.bank
        drawn = bank.draw(rng, MAX_DONORS, ground.min_area, ground.max_area, ground.objects or None)
        return (Donor(c, bank.shape(c, n), *bank.place(c, n)) for c, n in drawn)  # read when its turn comes
    whole = [i for i in ground.instances if not i.cut and i.area <= ground.max_area and ground.is_object(i.class_index)]
    smallest = 1 if ground.options.group_size > 1 else ground.min_area
    return [_group(i, whole, ground, rng) for i in class_by_class([i for i in whole if i.area >= smallest], rng)]


def _group(instance: Instance, whole: list[Instance], ground: Ground, rng: np.random.Generator) -> Donor:
    """The instance with up to ``group_size - 1`` of its nearest fellows, in their layout."""
    members = [instance]
    if ground.options.group_size > 1:
        fellows = [i for i in whole if i.class_index == instance.class_index and i is not instance]
        fellows.sort(key=lambda i: (i.row - instance.row) ** 2 + (i.column - instance.column) ** 2)
        wanted = int(rng.integers(1, ground.options.group_size + 1)) - 1
        for fellow in fellows[:wanted]:
            if sum(m.area for m in members) + fellow.area <= ground.max_area:
                members.append(fellow)
    top, left = min(m.row for m in members), min(m.column for m in members)
    height = max(m.row + m.shape.shape[0] for m in members) - top
    width = max(m.column + m.shape.shape[1] for m in members) - left
    shape = np.zeros((height, width), bool)
    for m in members:
        shape[m.row - top : m.row - top + m.shape.shape[0], m.column - left : m.column - left + m.shape.shape[1]] |= (
            m.shape
        )
    return Donor(instance.class_index, shape, None, (top, left, height, width))


def transform(shape: Shape, ground: Ground, rng: np.random.Generator) -> tuple[Shape, ShapeDonor]:
    """Rotate, mirror and scale ``shape`` as the options say; trimmed to its bounding box. And how it was turned."""
    options = ground.options
    turns = int(rng.integers(4)) if options.rotate == "right_angles" else 0
    mirrored = bool(options.flip and rng.integers(2))
    angle = float(rng.uniform(0, 360)) if options.rotate == "any" else 0.0
    factor = float(rng.uniform(*options.scale)) if options.scale != (1.0, 1.0) else 1.0
    turn = ShapeDonor(None, (0, 0, *shape.shape), turns, mirrored, factor, angle)
    shape = turned_shape(shape, turn)
    if angle or factor != 1.0:
        if not shape.any():
            return np.zeros((1, 1), bool), ShapeDonor(None, (0, 0, 1, 1))
        rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
        shape = shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.ascontiguousarray(shape), turn


def turned_shape(shape: Shape, turn: ShapeDonor) -> Shape:
    """A donor's shape, bool ``[h, w]``, as it appears; a free angle leaves a margin around it."""
    shape = np.rot90(shape, turn.turns)
    if turn.mirrored:
        shape = shape[:, ::-1]
    if not turn.angle and turn.factor == 1.0:
        return shape
    grey = shape.astype(np.float32)
    if turn.factor != 1.0:
        grey = ndimage.zoom(grey, turn.factor, order=1)
    if turn.angle:
        grey = ndimage.rotate(grey, turn.angle, order=1)
    return np.asarray(grey > 0.5)


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
        hits = np.zeros(room, np.float32)
    else:
        hits = correlated(outside.astype(np.float32), grown.astype(np.float32))
    return np.argwhere(hits < 0.5) + margin
