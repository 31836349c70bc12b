"""A shape bank: whole instances of a whole source, so that a tile of bare ground can receive a building.

The bank holds where the shapes are, not their pixels: it travels in a job, and names the tile that a shape is of.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import repeat

import numpy as np
import numpy.typing as npt
from skimage.measure import label

from changeanywhere.events.instances import Shape, find_instances
from changeanywhere.events.options import EventOptions
from changeanywhere.legend import Mask
from changeanywhere.seeds import stream

MAX_SHAPES_PER_CLASS = 2000  # drawn evenly from all; bounds the memory
SHAPES_AT_HAND = 512  # shapes kept after they were read


@dataclass(frozen=True)
class ShapeReference:
    """Where a shape is: number of its tile, box (row, column, height, width) in px, the column in the box's first row
    at which it begins (two shapes may share a box), and its area in px."""

    tile: int
    box: tuple[int, int, int, int]
    start: int
    area: int


class ShapeBank:
    """Shapes by class. ``read_mask``: number of a tile → its mask uint8 ``[H, W]``, as when the bank was made."""

    def __init__(
        self,
        references: Mapping[int, Sequence[ShapeReference]],
        read_mask: Callable[[int], Mask],
        connectivity: int,
    ) -> None:
        self.references = {c: tuple(references[c]) for c in sorted(references)}
        self.connectivity = connectivity
        self._read_mask = read_mask
        self._shape = lru_cache(SHAPES_AT_HAND)(self._cut_out)

    def __reduce__(self) -> tuple[type[ShapeBank], tuple[object, ...]]:
        """To another process, without the shapes at hand: a cache stays where it is."""
        return ShapeBank, (self.references, self._read_mask, self.connectivity)

    @cached_property
    def areas(self) -> dict[int, npt.NDArray[np.int64]]:
        """Px of each shape, by class."""
        return {c: np.array([one.area for one in found]) for c, found in self.references.items()}

    def count_of(self, class_index: int) -> int:
        """How many shapes of a class there are."""
        return len(self.references.get(class_index, ()))

    def shape(self, class_index: int, number: int) -> Shape:
        """Shape ``number`` of a class, bool ``[h, w]``, read from its mask."""
        return self._shape(class_index, self.references[class_index][number])

    def place(self, class_index: int, number: int) -> tuple[int, tuple[int, int, int, int]]:
        """Tile and box of a shape."""
        reference = self.references[class_index][number]
        return reference.tile, reference.box

    def draw(
        self, rng: np.random.Generator, count: int, min_area: int, max_area: int, among: Container[int] | None = None
    ) -> list[tuple[int, int]]:
        """``count`` random (class, number of the shape) within the area limits, every class (of ``among``) with the
        same chance."""
        fitting = {
            c: np.flatnonzero((min_area <= areas) & (areas <= max_area))
            for c, areas in self.areas.items()
            if among is None or c in among
        }
        classes = [c for c, places in fitting.items() if len(places)]
        drawn = []
        for _ in range(count if classes else 0):
            c = classes[rng.integers(len(classes))]
            drawn.append((c, int(fitting[c][rng.integers(len(fitting[c]))])))
        return drawn

    def of_tiles(self, tiles: Iterable[int]) -> ShapeBank:
        """The shapes of these tiles alone."""
        wanted = set(tiles)
        own = {c: [one for one in found if one.tile in wanted] for c, found in self.references.items()}
        return ShapeBank({c: found for c, found in own.items() if found}, self._read_mask, self.connectivity)

    def mask(self, tile: int) -> Mask:
        """Mask uint8 ``[H, W]`` of the tile that a shape is of."""
        return self._read_mask(tile)

    def _cut_out(self, class_index: int, reference: ShapeReference) -> Shape:
        row, column, height, width = reference.box
        part = self._read_mask(reference.tile)[row : row + height, column : column + width] == class_index
        numbers = label(part, connectivity=2 if self.connectivity == 8 else 1)
        shape: Shape = numbers == numbers[0, reference.start]
        return shape

    def to_dict(self) -> dict[str, list[list[int]]]:
        """For a job: class → tile, row, column, height, width, start, area of each shape."""
        return {str(c): [[r.tile, *r.box, r.start, r.area] for r in found] for c, found in self.references.items()}


def references_of(content: Mapping[str, Sequence[Sequence[int]]]) -> dict[int, list[ShapeReference]]:
    """What :meth:`ShapeBank.to_dict` gave."""
    return {
        int(c): [
            ShapeReference(tile, (row, column, h, w), start, area) for tile, row, column, h, w, start, area in found
        ]
        for c, found in content.items()
    }


def find_shapes(
    masks: Iterable[Mask], options: EventOptions, seed: int, gsds: Iterable[float | None] | None = None
) -> dict[int, list[ShapeReference]]:
    """All whole instances in ``masks`` within the limits of the options, ``gsds`` being metres per px of each mask
    (None: limits in px); large classes are thinned at random."""
    found: dict[int, list[ShapeReference]] = {}
    for tile, (mask, gsd_m) in enumerate(zip(masks, gsds or repeat(None), strict=False)):
        smallest, largest = options.area_limits(mask.size, gsd_m)
        for instance in find_instances(mask, options.connectivity):
            if not instance.cut and smallest <= instance.area <= largest:
                rows, columns = instance.window
                box = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
                start = int(np.argmax(instance.shape[0]))
                reference = ShapeReference(tile, box, start, instance.area)
                found.setdefault(instance.class_index, []).append(reference)
    rng = stream("plan.bank", seed)
    for class_index in sorted(found):
        shapes = found[class_index]
        if len(shapes) > MAX_SHAPES_PER_CLASS:
            kept = np.sort(rng.choice(len(shapes), MAX_SHAPES_PER_CLASS, replace=False))
            found[class_index] = [shapes[i] for i in kept]
    return found
