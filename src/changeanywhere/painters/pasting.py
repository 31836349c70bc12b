"""Cheaper ways to a second date, for comparison in the same harness: same tiles, same events, same files.

``copy_paste``: changed ground gets real pixels of its new class from another tile (copy-paste augmentation, Ghiasi et
al. 2021). ``recolour``: changed ground keeps its texture and takes mean and spread of its new class's colours.
``patch_exchange``: whole windows of another tile, whatever they show, or (option ``within``) of other places of the
same one; what differs in the masks is the change (after I3PE, Chen et al. 2023, which clusters instead of reading
masks). None of them needs a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from changeanywhere.errors import require
from changeanywhere.events.ground import describe
from changeanywhere.legend import Mask
from changeanywhere.painters.base import Batch, Donors, PainterSettings, Painting, Pixels
from changeanywhere.sample import ChangePlan, SourceSample, change_mask_of
from changeanywhere.seeds import stream

DONOR_TILES = 24
"""Tiles that are looked at for pixels of a class."""
PLACES = 32
"""Places that are tried in each of them; the one with most pixels of the class is taken."""
WINDOW = 0.25
"""Side of an exchanged window, share of the tile."""
MIN_SPREAD = 1e-3
MIN_PIXELS = 64


@dataclass(frozen=True)
class Spot:
    """Changed ground of one class: one component, and where pixels for it may come from."""

    own: Pixels
    """Its pixels at date 1 ``[N, C]``."""
    shape: npt.NDArray[np.bool_]
    """In its box."""
    class_index: int
    sample: SourceSample
    donors: Donors
    rng: np.random.Generator


class PastingPainter(ABC):
    """Paints pair by pair, without a network."""

    reads: ClassVar[frozenset[str]] = frozenset()
    how: ClassVar[str]
    repaints: ClassVar[bool] = False
    uses_model: ClassVar[bool] = True
    reconstructs: ClassVar[bool] = False

    @classmethod
    def build(cls, settings: PainterSettings) -> Self:
        """See :class:`PainterKind`."""
        require(not settings.options, "painter_options", dict(settings.options), "none with this method")
        return cls()

    def paint(self, batch: Batch) -> list[Painting]:
        """See :class:`Painter`."""
        pairs = zip(batch.samples, batch.plans, batch.donors, batch.rows, strict=True)
        paintings = []
        for place, (sample, plan, donors, row) in enumerate(pairs):
            image = batch.images[row]
            second, shown = self.second(image, sample, plan, donors)
            paintings.append(Painting(place, shown, image, second, tuple(donors.used)))
        return paintings

    @abstractmethod
    def second(
        self, image: Pixels, sample: SourceSample, plan: ChangePlan, donors: Donors
    ) -> tuple[Pixels, ChangePlan]:
        """Image t2 of a pair, and the plan that it shows."""


class _FillingPainter(PastingPainter):
    """Fills every component of changed ground with pixels for its new class."""

    def second(
        self, image: Pixels, sample: SourceSample, plan: ChangePlan, donors: Donors
    ) -> tuple[Pixels, ChangePlan]:
        rng = stream("pair.donors", plan.seed)
        result = image.copy()
        for class_index in np.unique(plan.mask_t2[plan.change_mask]):
            components, count = ndimage.label(plan.change_mask & (plan.mask_t2 == class_index), np.ones((3, 3)))
            for number, box in zip(range(1, count + 1), ndimage.find_objects(components), strict=True):
                shape = components[box] == number
                result[box][shape] = self.fill(Spot(image[box][shape], shape, int(class_index), sample, donors, rng))
        return result, plan

    @abstractmethod
    def fill(self, spot: Spot) -> Pixels:
        """Pixels ``[N, C]`` for ``spot``."""


class CopyPastePainter(_FillingPainter):
    """Real pixels of the new class from another tile (Ghiasi et al. 2021)."""

    how: ClassVar[str] = (
        "is the other one with pixels of another tile pasted on changed ground (no diffusion: a rival to compare with)."
    )

    def fill(self, spot: Spot) -> Pixels:
        """See :class:`_FillingPainter`."""
        return _copied(spot)


class RecolourPainter(_FillingPainter):
    """The texture that is there, in the colours of the new class."""

    how: ClassVar[str] = (
        "is the other one with changed ground in the colours of its new class (no diffusion: a rival to compare with)."
    )

    def fill(self, spot: Spot) -> Pixels:
        """See :class:`_FillingPainter`."""
        return _recoloured(spot)


class PatchExchangePainter(PastingPainter):
    """Windows of another tile, whatever they show; what differs in the masks is the change (after I3PE). Its option
    ``within``: probability that windows of one tile change places instead."""

    how: ClassVar[str] = "is the other one with windows exchanged (no diffusion: a rival to compare with)."

    def __init__(self, within: float = 0.0) -> None:
        self.within = within

    @classmethod
    def build(cls, settings: PainterSettings) -> Self:
        """See :class:`PainterKind`."""
        unknown = sorted(set(settings.options) - {"within"})
        require(not unknown, "painter_options", unknown, "within")
        within = settings.options.get("within", 0.0)
        allowed = type(within) in (int, float) and 0 <= within <= 1
        require(allowed, "painter_options.within", within, "0 to 1")
        return cls(float(within))

    def second(
        self, image: Pixels, sample: SourceSample, plan: ChangePlan, donors: Donors
    ) -> tuple[Pixels, ChangePlan]:
        """See :class:`PastingPainter`."""
        rng = stream("pair.donors", plan.seed)
        if not plan.change_mask.any():  # a pair that is to show no change
            return image, plan
        if self.within and rng.random() < self.within:
            return _exchange_places(image, sample, plan, rng)
        return _exchange_windows(image, sample, plan, donors, rng)


def _copied(spot: Spot) -> Pixels:
    """Pixels ``[N, C]`` of another tile; ground of another class there takes the nearest pixel of the class."""
    shape, class_index, rng = spot.shape, spot.class_index, spot.rng
    source = spot.donors.source
    height, width = shape.shape
    best_share, best = 0.0, (spot.sample, 0, 0)
    for _ in range(DONOR_TILES):
        donor = spot.donors.draw(rng)
        own = source.read_mask(donor) == class_index
        if not own.any() or source.items[donor].key == spot.sample.item.key:
            continue
        for _ in range(PLACES):
            top, left = rng.integers(own.shape[0] - height + 1), rng.integers(own.shape[1] - width + 1)
            share = float((own[top : top + height, left : left + width] & shape).sum() / shape.sum())
            if share > best_share:
                best_share, best = share, (source.read(donor), int(top), int(left))
        if best_share == 1:
            break
    if not best_share:  # no other tile has the class: colours of this one
        return _recoloured(spot)
    donor_sample, top, left = best
    spot.donors.note(donor_sample.item)
    window = slice(top, top + height), slice(left, left + width)
    foreign = donor_sample.mask[window] != class_index
    nearest = ndimage.distance_transform_edt(foreign, return_distances=False, return_indices=True)
    filled: Pixels = donor_sample.pixels()[window][tuple(nearest)][shape]
    return filled


def _recoloured(spot: Spot) -> Pixels:
    """Pixels ``[N, C]`` with the mean and spread that the class has in this tile, else in another one."""
    there = spot.sample.pixels()[spot.sample.mask == spot.class_index]
    for _ in range(DONOR_TILES):
        if len(there) >= MIN_PIXELS:
            break
        donor = spot.donors.source.read(spot.donors.draw(spot.rng))
        there = donor.pixels()[donor.mask == spot.class_index]
    own = spot.own
    if not len(there):
        return own
    scaled = (own - own.mean(0)) / np.maximum(own.std(0), MIN_SPREAD)
    recoloured: Pixels = (scaled * there.std(0) + there.mean(0)).clip(-1, 1).astype(np.float32)
    return recoloured


def _exchange_windows(
    image: Pixels, sample: SourceSample, plan: ChangePlan, donors: Donors, rng: np.random.Generator
) -> tuple[Pixels, ChangePlan]:
    """One to three windows of another tile at the same place; where none is drawn, windows of this one that change
    places."""
    drawn = (donors.draw(rng) for _ in range(DONOR_TILES))
    index = next((each for each in drawn if donors.source.items[each].key != sample.item.key), None)
    if index is None:
        return _exchange_places(image, sample, plan, rng)
    other = donors.source.read(index)
    donors.note(other.item)
    height, width = sample.mask.shape
    size = round(height * WINDOW), round(width * WINDOW)
    result, mask = image.copy(), sample.mask.copy()
    for _ in range(int(rng.integers(1, 4))):
        top, left = rng.integers(height - size[0] + 1), rng.integers(width - size[1] + 1)
        window = slice(top, top + size[0]), slice(left, left + size[1])
        seen = (other.mask[window] != 0) & (sample.mask[window] != 0)  # unknown ground never changes
        result[window][seen], mask[window][seen] = other.pixels()[window][seen], other.mask[window][seen]
    return result, _shown(sample, plan, mask)


def _exchange_places(
    image: Pixels, sample: SourceSample, plan: ChangePlan, rng: np.random.Generator
) -> tuple[Pixels, ChangePlan]:
    """One to three times two windows of the tile change places."""
    height, width = sample.mask.shape
    size = round(height * WINDOW), round(width * WINDOW)
    result, mask = image.copy(), sample.mask.copy()
    for _ in range(int(rng.integers(1, 4))):
        corners = [(int(rng.integers(height - size[0] + 1)), int(rng.integers(width - size[1] + 1))) for _ in range(2)]
        one, two = ((slice(top, top + size[0]), slice(left, left + size[1])) for top, left in corners)
        seen = (sample.mask[one] != 0) & (sample.mask[two] != 0)  # unknown ground never changes
        for to, of in ((one, two), (two, one)):
            result[to][seen], mask[to][seen] = image[of][seen], sample.mask[of][seen]
    return result, _shown(sample, plan, mask)


def _shown(sample: SourceSample, plan: ChangePlan, mask: Mask) -> ChangePlan:
    """The plan that exchanged windows show."""
    change = change_mask_of(sample.mask, mask)
    return replace(plan, mask_t2=mask, change_mask=change, events=describe("patch_exchange", sample.mask, mask))
