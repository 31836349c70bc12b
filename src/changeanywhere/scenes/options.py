"""What ``generate --scene`` can be told. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from changeanywhere.diffusion.options import SamplingOptions
from changeanywhere.errors import require
from changeanywhere.events import EventOptions
from changeanywhere.generation.options import IMAGE_FORMATS, refuse_idle_events, refuse_two_ways
from changeanywhere.help import one_of, require_one
from changeanywhere.limits import check_limits
from changeanywhere.sources.options import DEFAULT_BANDS, DEFAULT_STRETCH, SourceOptions
from changeanywhere.storage import check_out

OTHER_BANDS = ("copy", "nodata")
EVENT_FORMATS = ("geojson", "gpkg")
DEFAULT_SHARE = 0.03


@dataclass(frozen=True, kw_only=True)
class SceneOptions(SamplingOptions):
    """Options of ``changeanywhere generate --scene``. Settings left out are those that the model recommends."""

    scene: tuple[str, ...]
    """Images, or a folder of images: GeoTIFF of any size, or PNG; several with commas between."""
    mask: tuple[str, ...]
    """Land cover of each, in the same order, or a folder of files named like the images: rasters, or polygons
    (.gpkg, .geojson, .fgb), which the extra 'scenes' reads."""
    out: Path
    """Folder of the result, with a folder for each scene; the same command again finishes what was interrupted."""
    mask_t2: tuple[str, ...] | None = None
    """Land cover of the second date, of each scene, as rasters or polygons; no events are simulated then."""
    class_field: str | None = None
    """Field of polygons that holds their class; default: class, landcover, land_cover or label, whichever there is."""
    layer: str | None = None
    """Layer of polygons, where a file has several."""
    resample_mask: bool = False
    """Bring a mask of another grid or CRS onto the image's, by nearest neighbour."""
    legend: str | None = None
    """Legend of the masks, a name or file; default: legend.json or classes.json beside them or in a parent folder; of
    polygons with names the names themselves."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes, in the order of their numbers, where there is no legend: water,building,road."""
    first_class: int | None = None
    """Number of the first class in the masks: 1 (0 is unknown ground) or 0; default: what the legend says, else 1."""
    ignore_value: int | None = None
    """Number in the masks that stands for ground without a class (255); default: what the legend says."""
    legend_map: Path | None = None
    """YAML file 'source class: target class or unknown'; default: equal names, or a mapping of the package."""
    bands: tuple[int, ...] | None = None
    """1-based band numbers to read as red, green, blue; default: the model's, else the first three."""
    stretch: tuple[float, float] | None = None
    """Percentiles that become black and white in images of other than 8 bits; default: the model's, else 2 and 98."""
    max_megapixels: float | None = None
    """Largest PNG or JPEG, or block of a TIFF, in millions of px, that is taken into memory; default: 178."""
    change_share: float | None = None
    """Share of known ground that changes, over the whole scene: events are drawn until it is reached; default 0.03."""
    num_events: int | None = None
    """Events in the scene, in place of change_share."""
    class_pairs: dict[str, float] = field(default_factory=dict)
    """Share of the events by class transition, over the scene, '{"bareland->building": 0.5}'; the rest is free."""
    seed: int = 0
    """Every random number follows from it and from the place."""
    events: EventOptions = field(default_factory=EventOptions)
    model: str = "mini"
    """``mini`` (in the package), or a model's folder or address (s3://…)."""
    window: int | None = None
    """Side in px of the windows that the networks see; default: that of the tiles that the model was trained on."""
    paste_back: bool = False
    """Keep the pixels of date 1 bit for bit on unchanged ground, with a soft seam of 8 px around the change."""
    other_bands: str = one_of(OTHER_BANDS, "copy")
    """Bands that the model does not paint: ``copy`` them from date 1, or ``nodata`` on changed ground."""
    events_format: str = one_of(EVENT_FORMATS, "geojson")
    """``geojson`` (longitude and latitude), or ``gpkg`` (the image's CRS), which the extra 'scenes' writes."""
    tiles: int | None = None
    """Also cut the finished scene into training pairs of this side in px, a set in OUT/SCENE/tiles."""
    image_format: str = one_of(IMAGE_FORMATS, "png")
    """Of the images of ``tiles``: png (8-bit RGB) or geotiff (CRS, transform, painted bands and dtype of the scene, and
    what it says of the bands: names, units, scales, offsets)."""
    batch_size: int = 4
    """Windows that go through the networks at once."""
    dry_run: bool = False
    """Plan, time a few windows, say pixels, windows, time and disk; write nothing."""

    def __post_init__(self) -> None:
        for name in ("scene", "mask", "mask_t2", "class_names", "bands", "stretch"):  # YAML and callers give lists
            value = getattr(self, name)
            value = (str(value),) if isinstance(value, str | Path) else value
            object.__setattr__(self, name, None if value is None else tuple(value))

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed, or that would do nothing."""
        check_limits(self)
        require(bool(self.scene), "scene", list(self.scene), "one image or folder at least")
        require(len(self.mask) == len(self.scene), "mask", list(self.mask), f"as many as scenes: {len(self.scene)}")
        check_out(self.out, *(place for place in (*self.scene, *self.mask) if Path(place).is_dir()))
        self.of_source()
        require_one("other_bands", self.other_bands, OTHER_BANDS)
        require_one("events_format", self.events_format, EVENT_FORMATS)
        require_one("image_format", self.image_format, IMAGE_FORMATS)
        used = self.tiles is not None or self.image_format == SceneOptions.image_format
        require(used, "image_format", self.image_format, "with tiles, whose images it is of")
        share = self.change_share
        require(share is None or 0 < share <= 0.5, "change_share", share, "above 0 to 0.5")
        alone = self.num_events is None or share is None
        require(alone, "num_events", self.num_events, "nothing beside change_share, of which it takes the place")
        total = sum(self.class_pairs.values())
        require(total <= 1 + 1e-9, "class_pairs", self.class_pairs, "shares that add up to 1 at most")
        refuse_two_ways(self.events, self.class_pairs, "class_pairs")
        require(not self.events.shape_bank, "events.shape_bank", True, "false for a scene, whose shapes are its own")
        default = self.events.events_per_pair == EventOptions().events_per_pair
        what = "left out: num_events says how many a scene has"
        require(default, "events.events_per_pair", self.events.events_per_pair, what)
        refuse_idle_events(self.events)
        if self.mask_t2 is not None:
            self._check_given_masks(self.mask_t2)

    def _check_given_masks(self, masks: tuple[str, ...]) -> None:
        require(len(masks) == len(self.scene), "mask_t2", list(masks), f"as many as scenes: {len(self.scene)}")
        blank = SceneOptions(scene=self.scene, mask=self.mask, out=self.out)
        for name in ("change_share", "num_events", "class_pairs", "events"):
            same = getattr(self, name) == getattr(blank, name)
            require(same, "mask_t2", f"{masks[0]} beside {name}", "alone: your masks say what changes")

    def of_source(
        self, bands: tuple[int, ...] | None = None, stretch: tuple[float, float] | None = None
    ) -> SourceOptions:
        """How files are read, with a model's ``bands`` and ``stretch`` where none were given."""
        return SourceOptions(
            legend=self.legend,
            class_names=self.class_names,
            first_class=self.first_class,
            ignore_value=self.ignore_value,
            bands=self.bands or bands or DEFAULT_BANDS,
            stretch=self.stretch or stretch or DEFAULT_STRETCH,
            max_megapixels=self.max_megapixels,
        )
