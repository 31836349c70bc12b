"""What happens to a painted pair before it is written: paste-back, nuisances, order of the dates. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from changeanywhere.errors import ModelError
from changeanywhere.generation.found import with_found
from changeanywhere.generation.job import Job
from changeanywhere.generation.nuisances import Pixels, disturb
from changeanywhere.generation.options import FinishingOptions
from changeanywhere.generation.second import in_style
from changeanywhere.generation.tiles import Tiles
from changeanywhere.painters.base import Painting
from changeanywhere.pairs.record import Finish, Origin, PairRecord, Provenance, record_of
from changeanywhere.rasters.facts import Valid
from changeanywhere.sample import ChangeEvent, ChangePair, ChangePlan, Image, SourceItem, SourceSample
from changeanywhere.seeds import stream

PASTE_FEATHER = 8
"""Pixels from the change over which painted ground passes into pasted ground."""
OPPOSITE = {"appearance": "disappearance", "growth": "shrinkage"}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}


@dataclass(frozen=True)
class Finished:
    """Both images, float32 ``[H, W, C]`` in [0, 1], what was done to them, and which of them is real."""

    image_t1: Pixels
    image_t2: Pixels
    nuisances: dict[str, dict[str, float]]
    """Amounts by "t1" and "t2", as written."""
    real_date: int
    """1, or 2 where the dates were exchanged."""


def finished_pair(
    job: Job, key: str, painting: Painting, sample: SourceSample, provenance: Provenance
) -> tuple[ChangePair, PairRecord]:
    """A painted pair as it is written, and its record."""
    plan, options, tiles = painting.plan, job.finishing, job.tiles
    _check_finite(key, painting)

    def other_tile(rng: np.random.Generator) -> Pixels:
        index = tiles.source.index_of(sample.item.key)
        # Of its own split, as all that pairs take from other tiles; not the light that it has.
        others = [each for each in tiles.fellows(index) if each != index] or [index]
        other = tiles.source.read(others[int(rng.integers(len(others)))])
        pixels = _shares(other.pixels())
        return pixels.reshape(-1, pixels.shape[2]) if other.valid is None else pixels[other.valid]

    dates = _dates_of(job, painting, sample)
    finished = finish(dates, plan.change_mask, plan.seed, options, other_tile)
    mask_t1 = sample.mask
    if tiles.dates is not None and sample.date == 2:
        mask_t1 = tiles.dates.read_masks(tiles.dates.index_of(sample.item.key))[0]
        plan = with_found(mask_t1, sample.mask, plan)
    masks, samples = (mask_t1, plan.mask_t2), (dates.sample_t1, sample)
    if finished.real_date == 2:
        masks, samples, plan = masks[::-1], samples[::-1], exchange(mask_t1, plan)
    first, second = _in_file_units(finished, samples, options)
    pair = ChangePair(
        key, first, second, plan.change_mask, *masks, georef=sample.georef, ignored=_ignored(tiles, sample),
        meanings=(samples[0].meanings, samples[1].meanings),
    )  # fmt: skip
    item, legend = credited(sample.item, painting.donors), tiles.source.legend
    origin = Origin(item, job.source.name, tiles.splits[item.scene], sample.bands, sample.normalisation)
    how = [
        {"class": legend.name_of(each.class_index), "strength": each.strength, "timestep": each.timestep}
        for each in painting.exemplars
    ]
    done = Finish(
        *(finished.real_date, finished.nuisances, painting.score, painting.attempt, painting.donors, how),
        free_fraction=painting.free_fraction,
        second="" if job.second.use == "none" else "base" if sample.date == 2 else job.second.use,
    )
    return pair, record_of(pair, plan, legend, origin, done, options.image_format, provenance)


def _check_finite(key: str, painting: Painting) -> None:
    """NaN becomes black in a file of whole numbers, and nobody sees it again."""
    for date, image in ((1, painting.image_t1), (2, painting.image_t2)):
        if not np.isfinite(image).all():
            raise ModelError(
                f"{key}: image t{date} was painted with NaN or infinity in it; the model or the painter is damaged, or "
                "overflows: give --dtype float32, or another --model"
            )


@dataclass(frozen=True)
class Dates:
    """Images of a pair before they are finished, float32 ``[H, W, C]`` in [0, 1]."""

    first: Pixels
    base: Pixels
    """What was painted on: ``first``, or a real second date."""
    painted: Pixels
    sample_t1: SourceSample
    """What ``first`` was read from."""
    like: Pixels | None = None
    """A real second date, whose colours and sharpness the painted one takes."""
    valid: tuple[Valid | None, Valid | None] = (None, None)
    """Which ground ``first`` and ``base`` show, bool ``[H, W]``; None: all."""
    like_valid: Valid | None = None


def _dates_of(job: Job, painting: Painting, sample: SourceSample) -> Dates:
    base, painted, tiles, item = _shares(painting.image_t1), _shares(painting.image_t2), job.tiles, sample.item
    if sample.date == 2:
        first = tiles.first.read(tiles.first.index_of(item.key))
        return Dates(_shares(first.pixels()), base, painted, first, valid=(first.valid, sample.valid))
    dates = Dates(base, base, painted, sample, valid=(sample.valid, sample.valid))
    if job.second.use != "style":
        return dates
    other = tiles.first.read_second(tiles.first.index_of(item.key))
    return replace(dates, like=_shares(other.pixels()), like_valid=other.valid)


def _ignored(tiles: Tiles, sample: SourceSample) -> npt.NDArray[np.bool_] | None:
    """Ground of which no label speaks; None in sets that know no second date, of ground where both were shown."""
    if tiles.dates is None:
        return None
    where = tiles.dates.ignored(tiles.dates.index_of(sample.item.key))
    return where if sample.date == 2 else np.zeros_like(where)


def finish(
    dates: Dates,
    change_mask: npt.NDArray[np.bool_],
    seed: int,
    options: FinishingOptions,
    other_tile: Callable[[np.random.Generator], Pixels],
) -> Finished:
    """Finish the images of a pair; everything random follows from ``seed``. ``other_tile`` draws the tile that
    ``season`` goes to, as ground ``[N, C]``."""
    first, second = dates.first, dates.painted
    amounts: dict[str, dict[str, float]] = {}
    styled: dict[str, float] = {}
    if options.paste_back:
        second = pasted(dates.base, second, change_mask)
    if dates.like is not None:
        second, styled = in_style(second, first, dates.like, (dates.valid[0], dates.like_valid))
    rng = stream("pair.finish", seed)
    exchanged = options.random_order and rng.random() < 0.5
    nuisances = options.nuisances
    if styled:
        amounts["t1" if exchanged else "t2"] = styled
    if nuisances.any:
        images = {"first": first, "second": second}
        for name in ("first", "second") if nuisances.dates == "both" else ("second",):
            drawn = nuisances.draw(rng)
            other = other_tile(rng) if drawn.get("season") else None
            images[name] = disturb(images[name], drawn, other, rng, dates.valid[0 if name == "first" else 1])
            amounts["t1" if (name == "first") != exchanged else "t2"] = drawn
        first, second = images["first"], images["second"]
    # What was not imaged has no light, no haze and no grain: dark at either date, as it was read.
    first, second = (
        image if valid is None else np.where(valid[..., None], image, 0).astype(np.float32)
        for image, valid in zip((first, second), dates.valid, strict=True)
    )
    if exchanged:
        first, second = second, first
    return Finished(first, second, dict(sorted(amounts.items())), 2 if exchanged else 1)


def pasted(first: Pixels, second: Pixels, change_mask: npt.NDArray[np.bool_]) -> Pixels:
    """Pixels of ``first`` wherever nothing changed; within :data:`PASTE_FEATHER` px of the change both mixed."""
    if not change_mask.any():
        return first
    distance = ndimage.distance_transform_edt(~change_mask)[..., None]
    share = np.clip(distance / PASTE_FEATHER, 0, 1)
    return (share * first + (1 - share) * second).astype(np.float32)


def exchange(mask_t1: npt.NDArray[np.uint8], plan: ChangePlan) -> ChangePlan:
    """The plan that leads from ``plan.mask_t2`` back to ``mask_t1``: what appeared now disappears."""
    events = tuple(_reverse(event) for event in plan.events)
    return replace(plan, mask_t2=mask_t1, events=events)


def _reverse(event: ChangeEvent) -> ChangeEvent:
    return replace(
        event,
        kind=OPPOSITE.get(event.kind, event.kind),
        from_class=event.to_class,
        to_class=event.from_class,
    )


def _in_file_units(
    finished: Finished, samples: tuple[SourceSample, SourceSample], options: FinishingOptions
) -> list[Image]:
    """Images of both dates as they are written: uint8 for PNG, else the source's units and dtype. ``samples``: what the
    real ground of each was read from."""
    images: list[Image] = []
    for date, image, sample in ((1, finished.image_t1, samples[0]), (2, finished.image_t2, samples[1])):
        if options.image_format == "png":
            images.append(np.rint(image * 255).astype(np.uint8))
            continue
        written = sample.normalisation.invert(image * 2 - 1, sample.image.dtype)
        if not (options.reconstruct_t1 or f"t{date}" in finished.nuisances):
            # Real pixels are written as they were read, with what lies beyond the stretch.
            real = _shares(sample.pixels()) == image
            written[real] = sample.image[real]
        images.append(written)
    return images


def credited(item: SourceItem, donors: Sequence[SourceItem]) -> SourceItem:
    """With the licences and credits of all whose pixels a pair has; licences as an SPDX expression."""
    licences = dict.fromkeys([item.licence, *(donor.licence for donor in donors)])
    credits = dict.fromkeys(filter(None, [item.attribution, *(donor.attribution for donor in donors)]))
    return replace(item, licence=" AND ".join(licences), attribution="; ".join(credits))


def _shares(image: Pixels) -> Pixels:
    """[-1, 1] → [0, 1]."""
    shares: Pixels = (image + 1) / np.float32(2)
    return shares
