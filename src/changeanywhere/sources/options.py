"""How a single-date source is opened: the same options for every command that reads one."""

from __future__ import annotations

from dataclasses import dataclass, fields

from changeanywhere.errors import require
from changeanywhere.help import one_of, require_one
from changeanywhere.legend import MAX_CLASSES, UNKNOWN
from changeanywhere.sources.splits import check_wanted

DEFAULT_TILE_SIZE = 256
DEFAULT_BANDS = (1, 2, 3)
DEFAULT_STRETCH = (2.0, 98.0)
ON_ERROR = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options of a source. What is left out follows from the model where there is one."""

    legend: str | None = None
    """Legend of the source, a name or file; default: legend.json or classes.json there or in a parent folder."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes, in the order of their numbers, where there is no legend: water,building,road."""
    first_class: int | None = one_of((0, 1))
    """Number of the first class in the masks: 1 (0 is unknown ground) or 0; default: what the legend says, else 1."""
    ignore_value: int | None = None
    """Number in the masks that stands for ground without a class (255); default: what the legend says."""
    tile_size: int | None = None
    """Tile height and width in px; larger images are cut, read by window. Default: 256 (evaluate: the model's)."""
    bands: tuple[int, ...] | None = None
    """1-based band numbers to read as red, green, blue; default: the model's, else the first three."""
    stretch: tuple[float, float] | None = None
    """Percentiles that become black and white in images of other than 8 bits; default: the model's, else 2 and 98."""
    licences: tuple[str, ...] | None = None
    """Only tiles under these licences (as provenance.csv names them); default: all."""
    splits: dict[str, str | int] | None = None
    """Splits that are read, of those that the source states: all of one or a number of images (which ones follows from
    their names), '{"train": "all", "val": 500}'; default: everything."""
    max_megapixels: float | None = None
    """Largest PNG or JPEG, or block of a TIFF, in millions of px, that is taken into memory; default: 178. Files
    of pairs are read whole: there of any TIFF, whose default is 512."""
    on_error: str = one_of(ON_ERROR, "stop")
    """At a tile that cannot be read: ``stop`` (one line, exit code 2), or ``skip``: read every tile first, leave out
    the bad ones and list them in OUT/skipped.txt."""

    def __post_init__(self) -> None:
        for name in ("bands", "stretch", "licences", "class_names"):  # YAML, flags and callers give lists
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        self._check_classes()
        require_one("on_error", self.on_error, ON_ERROR)
        check_wanted(self.splits)
        size, bands, stretch = self.tile_size, self.bands, self.stretch
        require(size is None or (size >= 16 and size % 16 == 0), "tile_size", size, "a multiple of 16 px")
        require(bands is None or (bool(bands) and min(bands) >= 1), "bands", bands, "band numbers from 1")
        megapixels = self.max_megapixels
        require(megapixels is None or 0 < megapixels < 1e6, "max_megapixels", megapixels, "above 0, below 1e6")
        require(
            stretch is None or (len(stretch) == 2 and 0 <= stretch[0] < stretch[1] <= 100),
            "stretch",
            stretch,
            "two percentiles, 0 to 100, rising",
        )

    def _check_classes(self) -> None:
        names, first, ignored = self.class_names, self.first_class, self.ignore_value
        require(first in (None, 0, 1), "first_class", first, "0 or 1")
        if names is not None:
            require(self.legend is None, "class_names", ",".join(names), "nothing beside legend, which names them too")
            sound = bool(names) and all(names) and len(set(names)) == len(names) and len(names) <= MAX_CLASSES
            require(sound, "class_names", ",".join(names), f"1 to {MAX_CLASSES} names, each once")
            require(UNKNOWN not in names, "class_names", UNKNOWN, "classes alone; unknown ground needs no name")
        begin = 1 if first is None else first
        taken = range(begin, begin + len(names or ()))
        free = ignored is None or (0 <= ignored <= 65535 and ignored not in taken and not (first == 0 and ignored == 0))
        require(free, "ignore_value", ignored, "a number from 0 to 65535 that is no class")

    def of_source(
        self,
        tile_size: int | None = None,
        bands: tuple[int, ...] | None = None,
        stretch: tuple[float, float] | None = None,
    ) -> SourceOptions:
        """These options alone (without what a command adds), with a model's values where none were given."""
        own = {field.name: getattr(self, field.name) for field in fields(SourceOptions)}
        for name, default in (("tile_size", tile_size), ("bands", bands), ("stretch", stretch)):
            own[name] = default if own[name] is None else own[name]
        return SourceOptions(**own)
