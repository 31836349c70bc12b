"""What a kind of event works on: the ground that is still free to change, and the limits that hold there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from changeanywhere.events.instances import Instance, find_instances
from changeanywhere.events.options import EventOptions
from changeanywhere.legend import Mask
from changeanywhere.sample import ChangeEvent, ShapeDonor, runs_of

if TYPE_CHECKING:
    from changeanywhere.events.bank import ShapeBank

EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Ground:
    """``mask`` uint8 ``[H, W]``: 0 = unknown *or already changed*, so that several events of a pair never overlap.

    ``weight(from, to)`` is the transition's weight, 0 = forbidden. Areas in px.
    """

    mask: Mask
    min_area: int
    max_area: int
    weight: Callable[[int, int], float]
    num_classes: int
    options: EventOptions
    bank: ShapeBank | None = None
    sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    objects: frozenset[int] = frozenset()
    """Classes whose instances may appear or disappear; empty = all."""
    inner: tuple[bool, bool, bool, bool] = (False, False, False, False)
    """Sides (top, bottom, left, right) behind which a scene goes on."""

    def is_object(self, class_index: int) -> bool:
        """Whether instances of this class may appear or disappear."""
        return not self.objects or class_index in self.objects

    @cached_property
    def instances(self) -> list[Instance]:
        """All instances of the free ground."""
        found = find_instances(self.mask, self.options.connectivity)
        return [replace(each, goes_on=True) if self._goes_on(each) else each for each in found]

    @cached_property
    def whole(self) -> list[Instance]:
        """Those that do not go on beyond the ground: only they may change as what they are."""
        return [each for each in self.instances if not each.goes_on]

    def _goes_on(self, instance: Instance) -> bool:
        (rows, columns), (height, width) = instance.window, self.mask.shape
        at = (rows.start == 0, rows.stop == height, columns.start == 0, columns.stop == width)
        return any(touches and goes_on for touches, goes_on in zip(at, self.inner, strict=True))

    def within(self, area: int) -> bool:
        """Whether an event of ``area`` px is allowed."""
        return self.min_area <= area <= self.max_area

    def usual(self, class_index: int, area: int) -> bool:
        """Whether an object of this class comes in this size, where sizes were learned from the source."""
        low, high = self.sizes.get(class_index, (0, area))
        return low <= area <= high


Proposal = tuple[Mask, tuple[ChangeEvent, ...]]
"""The second mask (equal to the ground's where nothing changed) and the events that made it."""


class EventKind(Protocol):
    """What a further kind has to offer."""

    name: str

    def propose(self, ground: Ground, rng: np.random.Generator) -> Proposal | None:
        """A change of ``ground``, or None if no such event is feasible in it."""
        ...


def describe(
    kind: str, before: Mask, after: Mask, offset: tuple[int, int] = (0, 0), donor: ShapeDonor | None = None
) -> tuple[ChangeEvent, ...]:
    """One :class:`ChangeEvent` per class transition between two masks, as the pixels say."""
    changed = before != after
    codes = before[changed].astype(np.int64) * 256 + after[changed]
    events = []
    for code in np.unique(codes):
        start, end = int(code) // 256, int(code) % 256
        part = changed & (before == start) & (after == end)
        rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
        box = (int(rows[0]), int(columns[0]), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)
        events.append(
            ChangeEvent(
                kind,
                start,
                end,
                box,
                offset,
                int(part.sum()),
                donor,
                runs_of(part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]),
            )
        )
    return tuple(events)


def class_by_class(instances: Sequence[Instance], rng: np.random.Generator) -> list[Instance]:
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


def weighted_order(weights: npt.ArrayLike, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Random order without replacement, weighted (Efraimidis & Spirakis 2006); weight 0 is left out."""
    values = np.asarray(weights, float)
    possible = np.flatnonzero(values > 0)
    # The logarithm of u^(1/w): the power itself is 0 for small weights.
    keys = np.log(rng.random(len(possible))) / values[possible]
    order: npt.NDArray[np.intp] = possible[np.argsort(-keys)]
    return order
