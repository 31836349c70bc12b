"""Labelled pairs as evidence of a class: ground that changed is of it at date 2, and was not at date 1.

A label of change says little, and that for certain: where houses were built, a house stands afterwards and stood not
before. Of all other ground it says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from changeanywhere.errors import ConfigError, SourceError
from changeanywhere.legend import Legend, Mask
from changeanywhere.pairs import load_pairs
from changeanywhere.sample import ChangePair, GeoReference, Image, Normalisation, SourceItem, SourceSample
from changeanywhere.sources.base import Source
from changeanywhere.sources.options import DEFAULT_BANDS


class Evidence(Source):
    """Both dates of each pair, one after the other: tile 2n is date 1 of pair n, tile 2n + 1 date 2.

    The mask of date 2 has the class where something changed, that of date 1 **what it was not**; unknown elsewhere.
    """

    def __init__(
        self, folder: str, became: str, legend: Legend, split: str | None, bands: Sequence[int] | None
    ) -> None:
        """``became``: name of the class. :class:`ConfigError` for one that ``legend`` does not have, or beside which it
        has none; :class:`PairsError` for a folder that holds no labelled pairs, or not that split."""
        if became not in legend.names or len(legend.names) == 1:
            allowed = ", ".join(legend.names) if len(legend.names) > 1 else "more than one class in the legend"
            raise ConfigError(f"data.evidence: {folder}: {became}; allowed: {allowed}")
        self._pairs, self._bands = load_pairs(folder, split), tuple(bands or DEFAULT_BANDS)
        self.root, self.name, self.legend, self.skipped = self._pairs.folder, "evidence", legend, ()
        self.became, self._class = became, legend.names.index(became) + 1
        keys = [self._pairs.key_of(number) for number in range(len(self._pairs))]
        self.items = tuple(SourceItem(f"{key}__t{date}", key) for key in keys for date in (1, 2))

    def content_hash(self) -> str:
        return f"{self._pairs.content_hash()}-{self._class}"

    def georef(self, index: int) -> GeoReference | None:
        return None

    def read_mask(self, index: int) -> Mask:
        return self._mask(self._pairs[index // 2])

    def read(self, index: int) -> SourceSample:
        pair = self._pairs[index // 2]
        stored = pair.image_t2 if index % 2 else pair.image_t1
        image = self._image(stored if stored.ndim == 3 else stored[..., None], pair.key)
        names, scale = tuple(map(str, self._bands)), Normalisation.eight_bit(len(self._bands))
        return SourceSample(self.items[index], image, self._mask(pair), names, scale, date=1 + index % 2)

    def _image(self, stored: Image, key: str) -> Image:
        if stored.dtype != np.uint8 or stored.shape[2] < max(self._bands):
            raise SourceError(
                f"{self.root}: {key} is {stored.dtype} of {stored.shape[2]} band(s); allowed: 8 bits, with band "
                f"{max(self._bands)}"
            )
        return stored[..., [band - 1 for band in self._bands]]

    def _mask(self, pair: ChangePair) -> Mask:
        changed = pair.change_mask if pair.ignored is None else pair.change_mask & ~pair.ignored
        mask: Mask = np.where(changed, self._class, 0).astype(np.uint8)
        return mask
