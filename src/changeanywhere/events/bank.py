"""A shape bank: whole instances of a whole source, so that a tile of bare ground can receive a building."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from changeanywhere.events.instances import Shape, find_instances
from changeanywhere.events.options import EventOptions
from changeanywhere.legend import Mask

MAX_SHAPES_PER_CLASS = 2000  # drawn evenly from all; bounds the memory


@dataclass(frozen=True)
class ShapeBank:
    """Shapes by class, bool ``[h, w]`` each."""

    shapes: dict[int, list[Shape]]

    @cached_property
    def areas(self) -> dict[int, npt.NDArray[np.int64]]:
        """Px of each shape, counted once: the bank is asked for every event."""
        return {c: np.array([np.count_nonzero(shape) for shape in shapes]) for c, shapes in self.shapes.items()}

    def shapes_of(self, class_index: int) -> list[Shape]:
        """All shapes of a class."""
        return self.shapes.get(class_index, [])

    def draw(self, rng: np.random.Generator, count: int, min_area: int, max_area: int) -> list[tuple[int, Shape]]:
        """``count`` random (class, shape) within the area limits, every class with the same chance."""
        fitting = {c: np.flatnonzero((min_area <= areas) & (areas <= max_area)) for c, areas in self.areas.items()}
        classes = [c for c, places in fitting.items() if len(places)]
        drawn = []
        for _ in range(count if classes else 0):
            c = classes[rng.integers(len(classes))]
            drawn.append((c, self.shapes[c][fitting[c][rng.integers(len(fitting[c]))]]))
        return drawn


def build_bank(masks: Iterable[Mask], options: EventOptions, seed: int) -> ShapeBank:
    """All whole instances of at least ``min_area`` px in ``masks``; large classes are thinned at random."""
    shapes: dict[int, list[Shape]] = {}
    for mask in masks:
        for instance in find_instances(mask, options.connectivity):
            if not instance.cut and options.min_area <= instance.area <= options.max_share * mask.size:
                shapes.setdefault(instance.class_index, []).append(instance.shape)
    rng = np.random.default_rng([seed, 17])
    for class_index in sorted(shapes):
        found = shapes[class_index]
        if len(found) > MAX_SHAPES_PER_CLASS:
            kept = np.sort(rng.choice(len(found), MAX_SHAPES_PER_CLASS, replace=False))
            shapes[class_index] = [found[i] for i in kept]
    return ShapeBank(dict(sorted(shapes.items())))
