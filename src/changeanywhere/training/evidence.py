"""Labelled pairs as evidence of a class: ground that changed is of it at date 2 and was not at date 1, and ground that
did not change is of it at both dates or at neither.

A label of change says little, and that for certain: where houses were built, a house stands afterwards and stood not
before. What stands on other ground it does not say; but the same at both dates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import ConfigError, PairsError, SourceError
from changeanywhere.legend import Legend, Mask
from changeanywhere.pairs import load_pairs
from changeanywhere.rasters.facts import Valid
from changeanywhere.sample import ChangePair, GeoReference, Image, Normalisation, SourceItem, SourceSample
from changeanywhere.sources.base import Source
from changeanywhere.sources.options import DEFAULT_BANDS


def _has_tests(folder: str) -> bool:
    try:
        return len(load_pairs(folder, "test")) > 0
    except PairsError:
        return False


class Evidence(Source):
    """Labelled pairs: ``read`` has date 1 of each, ``read_second`` date 2.

    The mask of both is that of date 2: the class where something changed, unknown elsewhere.
    """

    def __init__(
        self, folder: str, became: str, legend: Legend, split: str | None, bands: Sequence[int] | None
    ) -> None:
        """``became``: name of the class. :class:`ConfigError` for one that ``legend`` does not have, or beside which it
        has none, or a folder whose test pairs would teach, too, without a ``split``; :class:`PairsError` for a folder
        that holds no labelled pairs, or not that split."""
        if became not in legend.names or len(legend.names) == 1:
            allowed = ", ".join(legend.names) if len(legend.names) > 1 else "more than one class in the legend"
            raise ConfigError(f"data.evidence: {folder}: {became}; allowed: {allowed}")
        if split is None and _has_tests(folder):
            what = "has a test split, which would teach too; say which teaches (data.evidence_split train)"
            raise ConfigError(f"data.evidence: {folder} {what}")
        self._pairs, self._bands = load_pairs(folder, split), tuple(bands or DEFAULT_BANDS)
        self.root, self.name, self.legend, self.skipped = self._pairs.folder, "evidence", legend, ()
        self.became, self._class = became, legend.names.index(became) + 1
        keys = [self._pairs.key_of(number) for number in range(len(self._pairs))]
        self.items = tuple(SourceItem(key, key) for key in keys)

    def content_hash(self) -> str:
        return f"{self._pairs.content_hash()}-{self._class}"

    def georef(self, index: int) -> GeoReference | None:
        return None

    def read_mask(self, index: int) -> Mask:
        return self._mask(self._pairs[index])

    def read(self, index: int) -> SourceSample:
        return self.read_both(index)[0]

    def read_second(self, index: int) -> SourceSample:
        return self.read_both(index)[1]

    def read_both(self, index: int) -> tuple[SourceSample, SourceSample, npt.NDArray[np.bool_]]:
        """Both dates of a pair, and of which ground its label speaks, bool ``[H, W]``."""
        pair, scale = self._pairs[index], Normalisation.eight_bit(len(self._bands))
        names, mask = tuple(map(str, self._bands)), self._mask(pair)
        dates = zip((1, 2), (pair.image_t1, pair.image_t2), pair.seen, strict=True)
        first, second = (
            SourceSample(
                self.items[index], self._image(image, seen, pair.key), mask, names, scale, date=date, valid=seen
            )
            for date, image, seen in dates
        )
        return first, second, np.ones(mask.shape, bool) if pair.ignored is None else ~pair.ignored

    def _image(self, stored: Image, seen: Valid | None, key: str) -> Image:
        image = stored if stored.ndim == 3 else stored[..., None]
        if image.dtype != np.uint8 or image.shape[2] < max(self._bands):
            raise SourceError(
                f"{self.root}: {key} is {image.dtype} of {image.shape[2]} band(s); allowed: 8 bits, with band "
                f"{max(self._bands)}"
            )
        image = image[..., [band - 1 for band in self._bands]]
        return image if seen is None else np.where(seen[..., None], image, 0)

    def _mask(self, pair: ChangePair) -> Mask:
        changed = pair.change_mask if pair.ignored is None else pair.change_mask & ~pair.ignored
        mask: Mask = np.where(changed, self._class, 0).astype(np.uint8)
        return mask
