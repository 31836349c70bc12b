"""What masks of two real dates differ by, and what of it is believed. No torch here.

Masks of machines contradict each other where nothing changed, and know nothing where much did. What stands against them
is the ground itself: where brightness varies in the same way at both dates, the same things stand there, in whatever
light and whatever a mask says.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from changeanywhere.legend import Mask
from changeanywhere.pairs.names import FOUND
from changeanywhere.sample import ChangePlan, SourceSample, change_mask_of, runs_of

Pixels = npt.NDArray[np.float32]
Where = npt.NDArray[np.bool_]
"""bool ``[H, W]``."""
AROUND = 8.0
"""Standard deviation, px, of the ground whose brightness is compared: about a house."""
LEAST_VARIANCE = 1e-4
"""Of brightness in 0 to 1, that is 2.5 of 255 levels: ground that varies less shows nothing that could be the same."""
SOLID = 7
"""Side of the square, px, that a change between masks must hold somewhere: what is thinner lies between two outlines of
one thing."""


def shown_by_both(first: SourceSample, second: SourceSample) -> Where | None:
    """Ground that both dates of a tile show; None: all of it."""
    shown = [sample.valid for sample in (first, second) if sample.valid is not None and not sample.valid.all()]
    return np.logical_and.reduce(shown) if shown else None


def correlation(first: Pixels, second: Pixels, shown: Where | None = None) -> npt.NDArray[np.float64]:
    """How alike brightness varies around each px at two dates ``[H, W, C]`` in [-1, 1]: -1 to 1, ``[H, W]``.

    Pearson's correlation under a Gaussian window; light, haze and contrast cancel out. Ground that is not ``shown``
    (bool ``[H, W]``; None: all is) is left out of the windows, and -1 itself: what fills it is dark at any date.
    """
    from scipy import ndimage

    def around(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        smooth: npt.NDArray[np.float64] = ndimage.gaussian_filter(values if shown is None else values * shown, AROUND)
        return smooth if share is None else smooth / share

    share = None if shown is None else np.maximum(ndimage.gaussian_filter(shown.astype(np.float64), AROUND), 1e-6)

    one, two = ((image.astype(np.float64).mean(2) + 1) / 2 for image in (first, second))
    mean_one, mean_two = around(one), around(two)
    shared = around(one * two) - mean_one * mean_two
    spread_one, spread_two = around(one * one) - mean_one**2, around(two * two) - mean_two**2
    least = LEAST_VARIANCE
    alike: npt.NDArray[np.float64] = shared / np.sqrt(np.maximum(spread_one, least) * np.maximum(spread_two, least))
    return alike if shown is None else np.where(shown, alike, -1.0)


def doubtful(differs: Where, first: Mask, second: Mask, same: Where, keep: bool) -> Where:
    """Where no label can speak: ground that ``differs`` though masks uint8 ``[H, W]`` of both dates agree, that is
    unknown in one of them, or that is of another class in too small a piece, or without ``keep`` at all; and nowhere
    that is the ``same``."""
    apart = change_mask_of(first, second) & ~same
    found = solid(apart) if keep else np.zeros_like(apart)
    unknown: Where = (first == 0) | (second == 0)
    return (unknown | apart | differs) & ~found & ~same


def solid(where: Where) -> Where:
    """The pieces of ``where`` that hold a square of :data:`SOLID` px somewhere."""
    from scipy import ndimage

    cores = ndimage.binary_erosion(where, np.ones((SOLID, SOLID), bool))
    pieces, count = ndimage.label(where, np.ones((3, 3)))
    holds = np.zeros(count + 1, bool)
    holds[np.unique(pieces[cores])] = True
    holds[0] = False
    kept: Where = holds[pieces]
    return kept


def settled(first: Mask, second: Mask, ignored: Where, same: Where) -> tuple[Mask, Mask]:
    """Masks of both dates as they are written: 0 on ground that is ``ignored``; on the ``same`` ground equal, with the
    class that one of them knows, or 0 where they contradict each other."""
    known = np.maximum(first, second) * ((first == 0) | (second == 0) | (first == second))
    masks = (np.where(ignored, 0, np.where(same, known, mask)).astype(np.uint8) for mask in (first, second))
    return next(masks), next(masks)


def with_found(first: Mask, ground: Mask, plan: ChangePlan) -> ChangePlan:
    """``plan``, drawn on the mask ``ground`` of a second date, as it leads from ``first``, that of the first date:
    what differs between these and was not painted over is a change of the kind :data:`FOUND`.

    Painted events of which nothing is left (a house removed that was not there at date 1) are no events of the pair.
    """
    from changeanywhere.events.ground import describe

    if np.array_equal(first, ground):
        return plan
    covered, events = np.zeros(first.shape, bool), []
    for event in plan.events:
        left = event.changed(first[event.box], plan.mask_t2[event.box]) & plan.change_mask[event.box]
        covered[event.box] |= left
        if left.any():
            events.append(replace(event, area=int(left.sum()), runs=runs_of(left)))
    found = describe(FOUND, first, np.where(covered, first, plan.mask_t2))
    return replace(plan, change_mask=change_mask_of(first, plan.mask_t2), events=(*events, *found))
