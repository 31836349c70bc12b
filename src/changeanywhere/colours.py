"""Colours for classes that were given none: the same at every call, and as far from each other as may be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Colour = tuple[int, int, int]
LEVELS = (30, 85, 140, 195, 250)
TAKEN: tuple[Colour, ...] = ((0, 0, 0), (255, 255, 255))
"""Unknown ground, and paper."""


def distinct_colours(count: int, taken: Sequence[Colour] = ()) -> list[Colour]:
    """``count`` colours, one after the other the farthest from all before, from ``taken``, black and white."""
    levels = LEVELS if count <= 60 else tuple(range(15, 256, 30))
    candidates = np.array([(r, g, b) for r in levels for g in levels for b in levels], np.float64)
    weights = np.sqrt([0.3, 0.59, 0.11])  # the eye tells green best, blue least
    nearest = np.full(len(candidates), np.inf)
    chosen: list[Colour] = []
    for colour in (*TAKEN, *taken):
        nearest = np.minimum(nearest, np.linalg.norm((candidates - colour) * weights, axis=1))
    for _ in range(count):
        red, green, blue = candidates[int(nearest.argmax())]
        chosen.append((int(red), int(green), int(blue)))
        nearest = np.minimum(nearest, np.linalg.norm((candidates - chosen[-1]) * weights, axis=1))
    return chosen
