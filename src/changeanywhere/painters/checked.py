"""Looks at what a painter from another package gives back, before it becomes pixels of a file. No torch here."""

from __future__ import annotations

import numpy as np

from changeanywhere.errors import ConfigError
from changeanywhere.painters.base import Batch, Painter, Painting, Pixels


class Checked:
    """A painter whose paintings are what :class:`Painting` says; :class:`ConfigError` naming ``method`` if not: values
    beyond [-1, 1] would turn into other colours without a word, and a place given twice into one file."""

    def __init__(self, painter: Painter, method: str) -> None:
        self._painter, self._method = painter, method

    def paint(self, batch: Batch) -> list[Painting]:
        """See :class:`Painter`."""
        paintings = list(self._painter.paint(batch))
        places = [painting.place for painting in paintings]
        if len(set(places)) < len(places) or not set(places) <= set(range(len(batch))):
            allowed = f"each of 0 to {len(batch) - 1} once"
            raise ConfigError(f"method {self._method!r}: places of paintings are {places}; allowed: {allowed}")
        for painting in paintings:
            for name, image in (("image_t1", painting.image_t1), ("image_t2", painting.image_t2)):
                self._check(name, image, batch.images.shape[1:])
        return paintings

    def _check(self, name: str, image: Pixels, shape: tuple[int, ...]) -> None:
        what = f"float32 {shape} in [-1, 1]"
        if not isinstance(image, np.ndarray) or image.dtype != np.float32 or image.shape != shape:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ConfigError(f"method {self._method!r}: {name} is {found}; allowed: {what}")
        low, high = float(image.min()), float(image.max())
        if not (low >= -1 and high <= 1):  # so that nan is none of them
            raise ConfigError(f"method {self._method!r}: {name} has values from {low:g} to {high:g}; allowed: {what}")
