"""Masks as polygons along the edges of their pixels. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ring = list[tuple[float, float]]
"""(x, y) in px from the upper left corner; the last point is the first."""


@dataclass(frozen=True)
class Shape:
    """One connected region (by edges): its value and rings, the outer one first."""

    value: int
    rings: tuple[Ring, ...]

    @property
    def wkt(self) -> str:
        """Well-known text."""
        rings = ", ".join("(" + ", ".join(f"{x:g} {y:g}" for x, y in ring) + ")" for ring in self.rings)
        return f"POLYGON ({rings})"

    def one_ring(self) -> Ring:
        """The outer ring with every hole joined to it by a cut of no width, for formats that know no holes."""
        outer = self.rings[0][:-1]
        for hole in self.rings[1:]:
            points = hole[:-1]
            distances = np.abs(np.array(outer)[:, None] - np.array(points)).sum(-1)
            here, there = np.unravel_index(int(distances.argmin()), distances.shape)
            turned = [*points[there:], *points[:there], points[there]]
            outer = [*outer[: here + 1], *turned, *outer[here:]]
        return [*outer, outer[0]]


def shapes_of(values: npt.NDArray[np.uint8], where: npt.NDArray[np.bool_]) -> Iterator[Shape]:
    """Regions of equal values, within ``where``."""
    from rasterio import features

    if not where.any():
        return
    for geometry, value in features.shapes(values, mask=where, connectivity=4):
        rings = tuple([(float(x), float(y)) for x, y in ring] for ring in geometry["coordinates"])
        yield Shape(int(value), rings)
