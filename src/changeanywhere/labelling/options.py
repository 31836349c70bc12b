"""Options of ``changeanywhere label``. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from changeanywhere.errors import require
from changeanywhere.help import one_of, require_one
from changeanywhere.storage import check_out

LINKS = ("link", "copy")


@dataclass(frozen=True)
class CleaningOptions:
    """From probabilities to whole objects. What is read at a pixel depends on what lies within some 200 px of it."""

    radius: int = 4
    """Radius in px of the guided filter that makes borders of classes follow those of the image; 0 = none."""
    min_area: int = 32
    """Patches of fewer px become what surrounds them: crumbs, and holes in objects."""
    min_confidence: float = 0.5
    """Ground whose most likely class is less likely is unknown; objects are kept or dropped whole, by their mean."""
    objects: tuple[str, ...] = ("building",)
    """Classes whose patches are objects; names that the legend does not have are passed over."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        require(0 <= self.radius <= 32, "cleaning.radius", self.radius, "0 to 32 px")
        require(0 <= self.min_area <= 10_000, "cleaning.min_area", self.min_area, "0 to 10000 px")
        require(0 <= self.min_confidence < 1, "cleaning.min_confidence", self.min_confidence, "0 to below 1")


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Options of ``changeanywhere label``."""

    source: Path
    """Folder of images (images/ in it, or the folder itself); masks that lie there are not read."""
    out: Path
    """Folder to write: images/, masks/, legend.json, provenance.csv, labels.csv; --source of other commands."""
    segmenter: Path = Path("mini-segmenter")
    """mini-segmenter, a folder of train segmenter, a folder of a transformers model for semantic segmentation (extra
    transformers), or the name of another package's segmenter."""
    predictions: Path | None = None
    """Folder of class rasters of any other model, with a legend.json: they are cleaned, and no segmenter runs."""
    legend: str | None = None
    """Legend (name or file) of the masks that are written, for segmenters and rasters of others; default: theirs."""
    legend_map: Path | None = None
    """YAML file of lines 'class: class-or-unknown', from theirs to legend."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which every window is read, '[0.75,1,1.5]'; their probabilities are averaged."""
    flips: bool = True
    """Read every window in four mirrorings, too."""
    cleaning: CleaningOptions = CleaningOptions()
    bands: tuple[int, ...] = (1, 2, 3)
    """1-based numbers of the bands that are red, green and blue."""
    stretch: tuple[float, float] = (2.0, 98.0)
    """Percentiles that become black and white in images of other than 8 bits."""
    images: str = one_of(LINKS, "link")
    """How OUT/images comes to its files: link (symbolic), or copy."""
    max_megapixels: float | None = None
    """Largest PNG or JPEG, or block of a TIFF, in millions of px, that is taken into memory; default: 178."""
    device: str | None = None
    """cpu, cuda, cuda:1, …; default: cuda where there is one."""

    def __post_init__(self) -> None:
        for name in ("scales", "bands", "stretch"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        sound = 0 < len(self.scales) <= 8 and all(0.25 <= scale <= 4 for scale in self.scales)
        require(sound, "scales", list(self.scales), "one to eight numbers, 0.25 to 4")
        own = self.segmenter == LabelOptions.segmenter
        require(self.predictions is None or own, "segmenter", str(self.segmenter), "nothing beside predictions")
        for name, value in (("scales", self.scales), ("flips", self.flips)):
            read = self.predictions is None or value == getattr(LabelOptions, name)
            require(read, name, value, "nothing beside predictions, which are not read again")
        mapped = self.legend_map is None or self.legend is not None
        require(mapped, "legend_map", str(self.legend_map), "with legend, into which it leads")
        require_one("images", self.images, LINKS)
        sound = len(self.bands) == 3 and min(self.bands) >= 1
        require(sound, "bands", list(self.bands), "three band numbers from 1")
        low, high = (*self.stretch, 0.0, 0.0)[:2]
        sound = len(self.stretch) == 2 and 0 <= low < high <= 100
        require(sound, "stretch", list(self.stretch), "two percentiles, 0 to 100, rising")
        megapixels = self.max_megapixels
        require(megapixels is None or 0 < megapixels < 1e6, "max_megapixels", megapixels, "above 0, below 1e6")
        self.cleaning.check()
        check_out(self.out, self.source, self.predictions)
