"""What every single-date source offers."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from changeanywhere.errors import ConfigError, SourceError
from changeanywhere.legend import Legend, LegendMap, Mask, load_legend_map
from changeanywhere.sample import GeoReference, SourceItem, SourceSample

ON_ERROR = ("stop", "skip")


@dataclass(frozen=True)
class SourceOptions:
    """How a source is opened."""

    legend: str | None = None
    """Legend of the masks, a name or file; default: legend.json or classes.json in the source or a parent folder."""
    tile_size: int = 256
    """Tile height and width, px; larger images are cut into windows."""
    bands: tuple[int, ...] | None = None
    """1-based band numbers to read; default: the first three."""
    stretch: tuple[float, float] = (2.0, 98.0)
    """Percentiles that become -1 and +1 in images of other than 8 bits, per band over the whole image."""
    licences: tuple[str, ...] | None = None
    """Only tiles under these licences (as provenance.csv names them)."""
    masks: Path | None = None
    """Folder of other masks for the same images (``generate --masks-t2``); images without one are left out."""

    on_error: str = "stop"
    """At a tile that cannot be read: ``stop``, or ``skip`` (every tile is read once when the source is opened)."""

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise ConfigError(f"on_error is {self.on_error!r}; allowed: {', '.join(ON_ERROR)}")
        if self.tile_size < 16 or self.tile_size % 16:
            raise ConfigError(f"tile_size is {self.tile_size}; allowed: a multiple of 16 px")
        if self.bands is not None:
            object.__setattr__(self, "bands", tuple(self.bands))  # a list from YAML or Python
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            raise ConfigError(f"bands is {list(self.bands)}; allowed: band numbers from 1")
        low, high = self.stretch
        if not 0 <= low < high <= 100:
            raise ConfigError(f"stretch is {self.stretch}; allowed: two percentiles, 0 to 100, rising")


class Source(ABC):
    """Tiles with masks. A map-style dataset of :class:`SourceSample`: a torch ``DataLoader`` takes it."""

    root: Path
    name: str
    legend: Legend
    items: tuple[SourceItem, ...]
    skipped: tuple[str, ...]
    """Why tiles were left out, a line each (``on_error: skip``)."""
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

    @abstractmethod
    def content_hash(self) -> str:
        """Of what the files hold: masks by their bytes, images by their size. Changes when labels are corrected."""

    def fingerprint(self) -> str:
        """Hash of tiles, what is known of them, their files, their legend and how they were mapped into it."""
        mapping = self.mapping and self.mapping.to_dict()
        content = [[asdict(item) for item in self.items], self.legend.to_dict(), mapping, self.content_hash()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

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
        return _MappedSource(self, load_legend_map(self.legend, target, map_file))


class _MappedSource(Source):
    """A source whose masks are rewritten into another legend."""

    mapping: LegendMap

    def __init__(self, source: Source, mapping: LegendMap) -> None:
        self._source, self.mapping = source, mapping
        self.root, self.name, self.items = source.root, source.name, source.items
        self.legend, self.skipped = mapping.target, source.skipped

    def content_hash(self) -> str:
        return self._source.content_hash()

    def read_mask(self, index: int) -> Mask:
        return self.mapping.apply(self._source.read_mask(index))

    def georef(self, index: int) -> GeoReference | None:
        return self._source.georef(index)

    def read(self, index: int) -> SourceSample:
        sample = self._source.read(index)
        return replace(sample, mask=self.mapping.apply(sample.mask))
