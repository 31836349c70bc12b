"""Decoded pairs in memory: what is read again and again is decoded once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = tuple[npt.NDArray[Any], ...]


class Kept:
    """Arrays by key: the first ones that are asked for, as long as there is room."""

    def __init__(self, mib: int) -> None:
        self.bytes_left = mib * 2**20
        self._kept: dict[Hashable, Arrays] = {}

    def of(self, key: Hashable, make: Callable[[], Arrays]) -> Arrays:
        """What was kept for ``key``, else what ``make`` gives, which is kept if it fits."""
        if key in self._kept:
            return self._kept[key]
        arrays = make()
        size = sum(array.nbytes for array in arrays)
        if size <= self.bytes_left:
            self.bytes_left -= size
            self._kept[key] = tuple(np.ascontiguousarray(array) for array in arrays)
        return arrays
