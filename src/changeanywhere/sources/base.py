"""What every single-date source offers."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from changeanywhere.errors import LegendError, SourceError
from changeanywhere.legend import UNKNOWN, Legend, LegendMap, Mask, load_legend_map
from changeanywhere.sample import GeoReference, SourceItem, SourceSample


class Source(ABC):
    """Tiles with masks. A map-style dataset of :class:`SourceSample`: a torch ``DataLoader`` takes it."""

    root: Path
    name: str
    legend: Legend
    items: tuple[SourceItem, ...]
    skipped: tuple[str, ...]
    """Why tiles were left out, a line each (``on_error: skip``)."""
    passed: tuple[str, ...] = ()
    """Files that are not read although nothing is wrong with them, a line per reason."""
    unplaced: tuple[str, ...] = ()
    """Images that say something of their place and are read as if they said nothing: each with the reason."""
    mapping: LegendMap | None = None
    """How the masks were rewritten into ``legend``, if they were."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> SourceSample:
        return self.read(index)

    @abstractmethod
    def read_mask(self, index: int) -> Mask:
        """Mask uint8 ``[H, W]`` of tile ``index``, checked against ``legend``."""

    @abstractmethod
    def read(self, index: int) -> SourceSample:
        """Image and mask of tile ``index``."""

    def read_second(self, index: int) -> SourceSample:
        """The same ground at the second date: its image, on the stretch of the first, and the mask of the first without
        ground that was not imaged, which ``valid`` says, too. :class:`SourceError` where there is none."""
        raise SourceError(f"{self.root}: has no images of a second date")

    def read_second_mask(self, index: int) -> Mask:
        """The second date's own mask, uint8 ``[H, W]``, where that date is a tile of the source as well (what ``label``
        makes of two dates). :class:`SourceError` where it is none."""
        raise SourceError(f"{self.root}: has no images of a second date")

    def second_hash(self) -> str:
        """Of the images of the second date, by their size. :class:`SourceError` naming the first tile without one, or
        one of another size or place."""
        raise SourceError(f"{self.root}: has no images of a second date")

    @abstractmethod
    def content_hash(self) -> str:
        """Of what the files hold: masks by their bytes, images by their size. Changes when labels are corrected."""

    def fingerprint(self) -> str:
        """Hash of tiles, what is known of them, their files, their legend and how they were mapped into it."""
        mapping = self.mapping and self.mapping.to_dict()
        content = [[asdict(item) for item in self.items], self.legend.to_dict(), mapping, self.content_hash()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def stored(self, mask: Mask) -> Mask:
        """A mask in ``legend``, uint8 ``[H, W]``, as mask files of this source hold it: what the masks of
        ``generate --masks-t2`` are. :class:`LegendError` for a class that they have no number for."""
        return mask

    @abstractmethod
    def georef(self, index: int) -> GeoReference | None:
        """Where tile ``index`` lies, without reading its pixels; None without a CRS."""

    @cached_property
    def _places(self) -> dict[str, int]:
        return {item.key: i for i, item in enumerate(self.items)}

    def index_of(self, key: str) -> int:
        """Number of the tile ``key``; :class:`SourceError` if there is none."""
        if key not in self._places:
            raise SourceError(f"{self.root}: no tile {key!r}")
        return self._places[key]

    def with_legend(self, target: Legend, map_file: Path | None = None) -> Source:
        """The same tiles with masks in ``target``; see :func:`load_legend_map` for the errors."""
        return self.mapped(load_legend_map(self.legend, target, map_file))

    def mapped(self, mapping: LegendMap) -> Source:
        """The same tiles with masks rewritten by ``mapping``."""
        return _MappedSource(self, mapping)


class _MappedSource(Source):
    """A source whose masks are rewritten into another legend."""

    mapping: LegendMap

    def __init__(self, source: Source, mapping: LegendMap) -> None:
        self._source, self.mapping = source, mapping
        self.root, self.name, self.items = source.root, source.name, source.items
        self.legend, self.skipped, self.passed = mapping.target, source.skipped, source.passed
        self.unplaced = source.unplaced

    def content_hash(self) -> str:
        return self._source.content_hash()

    def read_mask(self, index: int) -> Mask:
        return self.mapping.apply(self._source.read_mask(index))

    def stored(self, mask: Mask) -> Mask:
        table = np.zeros(256, np.uint8)
        for index in (int(each) for each in np.unique(mask) if each):
            (found,) = np.nonzero(self.mapping.table == index)
            if not len(found):
                raise LegendError(
                    f"the tiles have no class that is {self.legend.name_of(index)}; allowed: "
                    f"{', '.join(sorted({*self.mapping.to_dict().values()} - {UNKNOWN}))}"
                )
            table[index] = found[0]
        return self._source.stored(table[mask])

    def georef(self, index: int) -> GeoReference | None:
        return self._source.georef(index)

    def read_second(self, index: int) -> SourceSample:
        sample = self._source.read_second(index)
        return replace(sample, mask=self.mapping.apply(sample.mask))

    def read_second_mask(self, index: int) -> Mask:
        return self.mapping.apply(self._source.read_second_mask(index))

    def second_hash(self) -> str:
        return self._source.second_hash()

    def read(self, index: int) -> SourceSample:
        sample = self._source.read(index)
        return replace(sample, mask=self.mapping.apply(sample.mask))
