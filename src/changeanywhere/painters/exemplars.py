"""Exemplars: what changed ground may look like, in real pixels, before a network paints over them. No torch here.

What appears brings the pixels of the instance whose shape it copies (its donor), turned as the shape was, with a ring
of its surroundings, where its shadow lies: of known ground, and of no further instance of its class nor over one, since
what is around it counts as unchanged. What vanishes, grows or converts becomes ground of the new class from the
same tile, as near as may be, else from another tile; so does ground of a second mask that the user brought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from changeanywhere.diffusion.options import Sampling
from changeanywhere.events.appearance import turned_shape
from changeanywhere.events.correlation import correlated
from changeanywhere.legend import Legend, Mask
from changeanywhere.painters.base import Donors, Exemplar, Pixels
from changeanywhere.sample import ChangeEvent, ChangePlan, ShapeDonor, SourceItem, SourceSample
from changeanywhere.seeds import stream

GROUND_RING = 3
"""The same around ground."""
COVERED = 0.98
"""Share of a hole that ground must fill to be taken without looking further."""
POOR = 0.6
"""Below this share, other tiles are looked at."""
DONOR_TILES = 12
MIN_PIXELS = 64
WHOLLY = 0.999
"""Share of usable ground in a px that was interpolated, from which on it is usable: all but rounding."""
SPREAD = (0.7, 1.4)
"""Limits of the factor on a donor's contrast."""

Shape = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Canvas:
    """An image that is being filled, and whose other tiles' pixels went into it."""

    image: Pixels
    mask: Mask
    """What ``image`` shows so far, uint8 ``[H, W]``."""
    sample: SourceSample
    plan: ChangePlan
    donors: Donors
    rng: np.random.Generator
    ring: int


def exemplar_of(
    image: Pixels, sample: SourceSample, plan: ChangePlan, donors: Donors, ring: int
) -> tuple[Pixels, list[SourceItem]]:
    """``image`` float32 ``[H, W, C]`` in [-1, 1] with real pixels of the new classes on changed ground, and the other
    tiles that gave them; all that is random follows from the plan's seed. ``ring``: px around a donor that come along.
    """
    used = Donors(donors.source, donors.allowed)
    rng = stream("pair.exemplar", plan.seed)
    canvas = Canvas(image.copy(), sample.mask.copy(), sample, plan, used, rng, ring)
    for event in plan.events:
        shape = _changed_by(event, sample, plan)
        pasted = event.donor is not None and _paste_donor(canvas, event, event.donor, shape)
        if not pasted:
            _fill_with_ground(canvas, event.to_class, shape)
        canvas.mask[shape] = event.to_class
    for class_index, shape in _without_event(sample, plan):
        _fill_with_ground(canvas, class_index, shape)
    return canvas.image, used.used


def strength_of(
    strength: float | list[float] | dict[str, float], plan: ChangePlan, legend: Legend
) -> npt.NDArray[np.float32]:
    """Strength by class of mask t2, f32 ``[256]``; a class that is not named takes ``default``, else 1."""
    if isinstance(strength, dict):
        by_class = np.ones(256, np.float32) * strength.get("default", 1.0)
        for name, value in strength.items():
            if name != "default":
                by_class[legend.index_of(name)] = value
        return by_class
    if isinstance(strength, list):
        strength = float(stream("pair.exemplar", plan.seed, 1).uniform(strength[0], strength[1]))
    return np.full(256, strength, np.float32)


def exemplars_of(
    images: Sequence[Pixels],
    samples: Sequence[SourceSample],
    plans: Sequence[ChangePlan],
    donors: Sequence[Donors],
    sampling: Sampling,
    legend: Legend,
) -> list[Exemplar]:
    """The exemplar of each pair, over its tile; none where the sampling begins from noise alone."""
    strength = sampling.exemplar_strength
    if strength is None or not sampling.from_exemplars:
        return []
    made = []
    for image, sample, plan, own in zip(images, samples, plans, donors, strict=True):
        pixels, used = exemplar_of(image, sample, plan, own, sampling.exemplar_ring)
        made.append(Exemplar(pixels, strength_of(strength, plan, legend), used))
    return made


def _changed_by(event: ChangeEvent, sample: SourceSample, plan: ChangePlan) -> Shape:
    """Ground that an event changed, bool ``[H, W]``."""
    shape = np.zeros(sample.mask.shape, bool)
    shape[event.box] = event.changed(sample.mask[event.box], plan.mask_t2[event.box])
    return shape & plan.change_mask


def _without_event(sample: SourceSample, plan: ChangePlan) -> list[tuple[int, Shape]]:
    """Changed ground that no event speaks of, since the user brought the mask: new class and shape of each piece."""
    left = plan.change_mask.copy()
    for event in plan.events:
        left &= ~_changed_by(event, sample, plan)
    found = []
    for class_index in np.unique(plan.mask_t2[left]):
        pieces, count = ndimage.label(left & (plan.mask_t2 == class_index))
        found += [(int(class_index), pieces == number) for number in range(1, count + 1)]
    return found


def _paste_donor(canvas: Canvas, event: ChangeEvent, donor: ShapeDonor, shape: Shape) -> bool:
    """Put the donor's own pixels where its shape is; False where they cannot be had (a donor of another split)."""
    if donor.tile is None:
        giver, pixels, mask = canvas.sample, canvas.image, canvas.mask
    elif donor.tile in canvas.donors.allowed:
        giver = canvas.donors.source.read(donor.tile)
        pixels, mask = giver.pixels(), giver.mask
    else:
        return False
    patch, inside, usable = turned(pixels, mask, event.to_class, donor, canvas.ring)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return False
    # The place of the patch: its shape's box lies on the event's.
    top, left = event.bbox[0] - int(rows[0]), event.bbox[1] - int(columns[0])
    height, width = shape.shape
    into = (
        slice(max(top, 0), min(top + patch.shape[0], height)),
        slice(max(left, 0), min(left + patch.shape[1], width)),
    )
    of = (slice(into[0].start - top, into[0].stop - top), slice(into[1].start - left, into[1].stop - left))
    if giver is not canvas.sample:
        patch = _matched(patch, giver, canvas)
        if giver.item.key != canvas.sample.item.key:
            canvas.donors.note(giver.item)
    shown = usable[of] & _receives(canvas, event.to_class)[into] | shape[into]
    share = (_soft(shape, canvas.ring)[into] * shown)[..., None]
    canvas.image[into] = share * patch[of] + (1 - share) * canvas.image[into]
    return True


def _receives(canvas: Canvas, class_index: int) -> Shape:
    """Where the ring around what appears may lie, bool ``[H, W]``: not over instances of its class that stand already,
    nor over unknown ground, nor over what another event shows."""
    mask = canvas.sample.mask
    plain: Shape = (mask != 0) & (mask != class_index) & ~canvas.plan.change_mask
    return plain


def turned(pixels: Pixels, mask: Mask, class_index: int, donor: ShapeDonor, ring: int) -> tuple[Pixels, Shape, Shape]:
    """The donor's box and ``ring`` px around it in ``pixels`` ``[H, W, C]``, whose ground is ``mask`` ``[H, W]``,
    turned and scaled as its shape was: pixels ``[h, w, C]``; where the shape that appears lies in them, bool
    ``[h, w]``; and what of them may be shown, bool ``[h, w]``: the donor and known ground of other classes. The rest
    holds the nearest px that may, so that none of it is mixed into them. Quarter turns and mirrors agree with the shape
    exactly, other turns and scales within a pixel."""
    row, column, height, width = donor.box
    rows = np.arange(row - ring, row + height + ring).clip(0, pixels.shape[0] - 1)
    columns = np.arange(column - ring, column + width + ring).clip(0, pixels.shape[1] - 1)
    patch, ground = pixels[np.ix_(rows, columns)], mask[np.ix_(rows, columns)]
    own = donor.own(mask[row : row + height, column : column + width] == class_index)
    usable = (ground != 0) & (ground != class_index)
    usable[ring : ring + height, ring : ring + width] |= own
    if usable.any() and not usable.all():
        nearest = ndimage.distance_transform_edt(~usable, return_distances=False, return_indices=True)
        patch = patch[nearest[0], nearest[1]]
    patch, usable = np.rot90(patch, donor.turns), np.rot90(usable, donor.turns)
    if donor.mirrored:
        patch, usable = patch[:, ::-1], usable[:, ::-1]
    if donor.factor != 1.0:
        patch = ndimage.zoom(patch, (donor.factor, donor.factor, 1), order=1)
        usable = ndimage.zoom(usable.astype(np.float32), donor.factor, order=1, mode="nearest") > WHOLLY
    if donor.angle:
        patch = ndimage.rotate(patch, donor.angle, axes=(1, 0), order=1, mode="nearest")
        usable = ndimage.rotate(usable.astype(np.float32), donor.angle, order=1, mode="nearest") > WHOLLY
    # Both were turned about their middle, the shape without the ring.
    shape, inside = turned_shape(own, donor), np.zeros(patch.shape[:2], bool)
    top, left = (inside.shape[0] - shape.shape[0]) // 2, (inside.shape[1] - shape.shape[1]) // 2
    inside[top : top + shape.shape[0], left : left + shape.shape[1]] = shape
    return np.ascontiguousarray(patch, np.float32), inside, usable


def _fill_with_ground(canvas: Canvas, class_index: int, shape: Shape) -> None:
    """Ground of a class over ``shape``: shifted from where the tile has it, else from another tile."""
    here = (canvas.sample.mask == class_index) & ~canvas.plan.change_mask
    covered, shift = _nearest_cover(here, shape)
    source, pixels, giver = here, canvas.image, canvas.sample
    for _ in range(DONOR_TILES if covered < POOR else 0):
        other = canvas.donors.source.read(canvas.donors.draw(canvas.rng))
        there = other.mask == class_index
        its_cover, its_shift = _nearest_cover(there, shape)
        if other.item.key != canvas.sample.item.key and its_cover > covered:
            covered, shift, source, giver = its_cover, its_shift, there, other
        if covered >= COVERED:
            break
    if not covered:
        return
    if giver is not canvas.sample:
        pixels = _matched(giver.pixels(), giver, canvas)
        canvas.donors.note(giver.item)
    # Where the shifted ground is of another class, the nearest pixel of the class stands in.
    nearest = ndimage.distance_transform_edt(~source, return_distances=False, return_indices=True)
    box = _box(shape, GROUND_RING)
    rows = np.arange(box[0].start, box[0].stop) + shift[0]
    columns = np.arange(box[1].start, box[1].stop) + shift[1]
    at = np.ix_(rows.clip(0, source.shape[0] - 1), columns.clip(0, source.shape[1] - 1))  # the giver may be smaller
    filled = pixels[nearest[0][at], nearest[1][at]]
    share = _soft(shape, GROUND_RING)[box][..., None]
    canvas.image[box] = share * filled + (1 - share) * canvas.image[box]


def _nearest_cover(source: Shape, shape: Shape) -> tuple[float, tuple[int, int]]:
    """The shift (rows, columns) at which ``source`` covers most of ``shape``, the shortest of those as good as
    :data:`COVERED`; (share covered, shift)."""
    if not source.any() or not shape.any():
        return 0.0, (0, 0)
    box = _box(shape, 0)
    part = shape[box].astype(np.float32)
    hits = correlated(source.astype(np.float32), part) / part.sum()
    rows, columns = np.indices(hits.shape)
    way = np.hypot(rows - box[0].start, columns - box[1].start)
    good = hits >= COVERED
    place = np.where(good, way, np.inf).argmin() if good.any() else (hits - 1e-6 * way).argmax()
    row, column = np.unravel_index(int(place), hits.shape)
    return float(hits[row, column].clip(0, 1)), (int(row) - box[0].start, int(column) - box[1].start)


def _matched(pixels: Pixels, giver: SourceSample, canvas: Canvas) -> Pixels:
    """Another tile's pixels in the light of this one: mean and spread of the classes that both have, band by band."""
    shared = []
    for class_index in np.intersect1d(np.unique(giver.mask), np.unique(canvas.sample.mask)):
        there, here = giver.mask == class_index, (canvas.sample.mask == class_index) & ~canvas.plan.change_mask
        if class_index and min(there.sum(), here.sum()) >= MIN_PIXELS:
            shared.append((giver.pixels()[there], canvas.sample.pixels()[here]))
    if not shared:
        return pixels
    theirs, ours = (np.concatenate([pair[i] for pair in shared]) for i in (0, 1))
    factor = (ours.std(0) / np.maximum(theirs.std(0), 1e-3)).clip(*SPREAD)
    matched: Pixels = ((pixels - theirs.mean(0)) * factor + ours.mean(0)).clip(-1, 1).astype(np.float32)
    return matched


def _soft(shape: Shape, ring: int) -> Pixels:
    """1 inside ``shape``, falling to 0 over ``ring`` px around it."""
    share = np.zeros(shape.shape, np.float32)
    if shape.any():
        box = _box(shape, ring)  # beyond it nothing is left, and distances cost by the pixel
        share[box] = (1 - ndimage.distance_transform_edt(~shape[box]) / (ring + 1)).clip(0, 1)
    return share


def _box(shape: Shape, ring: int) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    return (
        slice(max(int(rows[0]) - ring, 0), min(int(rows[-1]) + 1 + ring, shape.shape[0])),
        slice(max(int(columns[0]) - ring, 0), min(int(columns[-1]) + 1 + ring, shape.shape[1])),
    )
