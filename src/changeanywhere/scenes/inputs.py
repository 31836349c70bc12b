"""The image of a scene and its land cover on the image's grid, in the model's legend, by windows. No torch here."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import SourceError
from changeanywhere.folders import safe_keys
from changeanywhere.legend import Legend, MaskValues, load_legend_map, parse_legend
from changeanywhere.rasters import gate
from changeanywhere.rasters.facts import Facts, Valid, Window
from changeanywhere.rasters.ground import georef_of, gsd_of, lies_elsewhere
from changeanywhere.rasters.values import to_classes
from changeanywhere.sample import GeoReference, Normalisation
from changeanywhere.scenes.options import SceneOptions
from changeanywhere.scenes.vectors import SUFFIXES as VECTOR_SUFFIXES
from changeanywhere.scenes.vectors import Polygons, is_vector, moved, names_classes, rasterise, read_polygons
from changeanywhere.sources.entries import Entry, Layout
from changeanywhere.sources.files import (
    SUFFIXES,
    digest,
    read_image,
    read_info,
    read_mask,
    read_mask_info,
    read_stretch,
    read_valid,
)
from changeanywhere.sources.legends import legend_of
from changeanywhere.sources.options import SourceOptions

STRIP = 1024
"""Rows of a scene that are read at once."""
BLOCK, MASK_PX, PROBES = 1024, 1 << 24, 9
"""Of a mask on another grid: the side in px of what is brought onto the image's grid at once, of how many px of the
mask at most, and how many places along each side say where these lie."""
Rows = npt.NDArray[Any]


@dataclass(frozen=True)
class SceneFiles:
    """One scene: a key that is safe as a folder's name, and its files."""

    key: str
    image: Path
    mask: Path
    mask_t2: Path | None


@dataclass(frozen=True)
class SceneImage:
    """An open image."""

    path: Path
    facts: Facts
    bands: tuple[int, ...]
    """1-based, that the model paints."""
    normalisation: Normalisation
    max_megapixels: float | None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in px."""
        return self.facts.height, self.facts.width

    @property
    def all_bands(self) -> tuple[int, ...]:
        """1-based."""
        return tuple(range(1, self.facts.count + 1))

    @property
    def georef(self) -> GeoReference | None:
        """Of the whole image."""
        return georef_of(self.facts, gate.whole(self.facts))

    @property
    def gsd_m(self) -> float | None:
        """Metres per pixel, at its centre."""
        return gsd_of(self.facts, gate.whole(self.facts))

    def read(self, window: Window, bands: tuple[int, ...] | None = None) -> Rows:
        """``[h, w, bands]`` in the units of the file."""
        return read_image(self.path, window, bands or self.bands, self.facts)[0]

    def valid(self, window: Window) -> Valid | None:
        """Where ground was imaged, bool ``[h, w]`` (None: everywhere), by the bands that are painted: no other one
        hides it, and an alpha band among the others says what is transparent."""
        return read_valid(self.path, window, self.bands, self.facts)

    def filled(self, window: Window) -> Rows:
        """Painted bands ``[h, w, C]`` in the units of the file; what was not imaged as the dark end."""
        return self.normalisation.filled(*read_image(self.path, window, self.bands, self.facts))

    def pixels(self, window: Window) -> npt.NDArray[np.float32]:
        """float32 ``[h, w, C]`` in [-1, 1] as the networks see it; what was not imaged as the dark end."""
        return self.normalisation.apply(self.filled(window)).clip(-1, 1)


def find_scenes(options: SceneOptions) -> list[SceneFiles]:
    """The files that the options name. :class:`SourceError` naming what is missing."""
    found: list[tuple[Path, Path, Path | None]] = []
    for number, (image, mask) in enumerate(zip(options.scene, options.mask, strict=True)):
        second = Path(options.mask_t2[number]) if options.mask_t2 else None
        if Path(image).is_dir():
            files = sorted(f for f in Path(image).iterdir() if f.suffix.lower() in SUFFIXES)
            if not files:
                raise SourceError(f"{image}: no image in it; allowed: {', '.join(SUFFIXES)}")
            for file in files:
                found.append((file, _beside(Path(mask), file), _beside(second, file) if second else None))
        else:
            found.append((Path(image), Path(mask), second))
    for path in (place for each in found for place in each if place is not None):
        if not path.is_file():
            raise SourceError(f"{path}: no such file")
    stems = [image.stem for image, _, _ in found]
    for stem in stems:
        if stems.count(stem) > 1:
            raise SourceError(
                f"{stems.count(stem)} images are called {stem}; rename one: each gets a folder of its name"
            )
    keys = safe_keys(stems)
    return [SceneFiles(keys[image.stem], image, mask, second) for image, mask, second in found]


def _beside(masks: Path, image: Path) -> Path:
    if masks.is_file():
        return masks
    suffixes = (".tif", ".tiff", ".png", *VECTOR_SUFFIXES)
    files = [masks / f"{image.stem}{suffix}" for suffix in suffixes if (masks / f"{image.stem}{suffix}").is_file()]
    if len(files) != 1:
        raise SourceError(f"{image}: {len(files)} files in {masks} are called {image.stem}; allowed: one with its mask")
    return files[0]


def open_image(path: Path, source: SourceOptions, num_bands: int) -> SceneImage:
    """Headers, and the stretch of images of other than 8 bits."""
    facts = read_info(path, source.max_megapixels)
    bands = source.bands or ()
    if len(bands) != num_bands:
        raise SourceError(f"{path}: bands is {list(bands)}; this model takes {num_bands}")
    if max(bands) > facts.count:
        raise SourceError(f"{path}: has {facts.count} bands; bands is {list(bands)}; say which: --bands")
    stretch = read_stretch(path, bands, source.stretch or (2.0, 98.0), source.max_megapixels)
    return SceneImage(path, facts, bands, stretch, source.max_megapixels)


def fingerprint(files: SceneFiles) -> dict[str, str | None]:
    """Of what the files hold: changes when one was exchanged."""
    return {name: None if path is None else digest(path) for name, path in
            (("image", files.image), ("mask", files.mask), ("mask_t2", files.mask_t2))}  # fmt: skip


def idle_options(files: SceneFiles, image: SceneImage, max_megapixels: float | None) -> list[str]:
    """Names of options that would do nothing in a scene: those of polygons beside rasters, and resampling of masks that
    lie on the image's grid."""
    masks = [path for path in (files.mask, files.mask_t2) if path is not None]
    rasters = [(path, read_mask_info(path, max_megapixels)) for path in masks if not is_vector(path)]
    idle = ["class_field", "layer"] if len(rasters) == len(masks) else []
    moved = any(_needs_resampling(path, facts, image, True) for path, facts in rasters)
    return idle if moved else [*idle, "resample_mask"]


def legends_as_read(files: SceneFiles, options: SceneOptions) -> dict[str, Any]:
    """What the numbers and colours of each mask mean, by any file that says so; nothing of polygons that name their
    classes. Raises :class:`SourceError` and :class:`LegendError`, as :func:`read_land_cover`."""
    found = {}
    for name, path in (("mask", files.mask), ("mask_t2", files.mask_t2)):
        said = options.legend is not None or options.class_names is not None
        if path is None or (is_vector(path) and not said and names_classes(path, options.class_field, options.layer)):
            continue
        legend, numbers = _legend_of_raster(path, options.of_source())
        found[name] = {
            "names": list(legend.names),
            "values": list(numbers.counted(legend.num_classes)),
            "ignored": list(numbers.ignored),
            "colours": [list(each.color) for each in legend.classes] if numbers.own_colours else None,
        }
    return found


def read_land_cover(
    path: Path, image: SceneImage, target: Legend, options: SceneOptions, out: npt.NDArray[np.uint8]
) -> dict[str, str]:
    """Fill ``out`` uint8 ``[H, W]`` with classes of ``target``; what was not imaged is unknown. How they were mapped.

    Raises :class:`SourceError` for another grid (with the command that mends it), :class:`LegendError` for classes
    without a counterpart.
    """
    source = options.of_source()
    if is_vector(path):
        polygons = read_polygons(path, options.class_field, options.layer, image.facts)
        legend, numbers = _legend_of_polygons(polygons, source)
        mapping = load_legend_map(legend, target, options.legend_map)
        rasterise(polygons, [int(mapping.table[c]) for c in _classes(polygons, legend, numbers)], image.facts, out)
    else:
        legend, numbers = _legend_of_raster(path, source)
        mapping = load_legend_map(legend, target, options.legend_map)
        facts = read_mask_info(path, source.max_megapixels)
        resampled = _needs_resampling(path, facts, image, options.resample_mask)
        if resampled:
            _resample(path, facts, image, legend, numbers, out)
        for window in strips(image.shape):
            mask = out[window.slices] if resampled else read_mask(path, window, legend, facts, numbers)
            out[window.slices] = mapping.apply(mask)
    for window in strips(image.shape):
        valid = image.valid(window)
        if valid is not None:
            out[window.slices][~valid] = 0
    return mapping.to_dict()


def strips(shape: tuple[int, int]) -> list[Window]:
    """The rows of a scene, some at a time."""
    height, width = shape
    return [Window(row, 0, min(STRIP, height - row), width) for row in range(0, height, STRIP)]


def _legend_of_raster(path: Path, source: SourceOptions) -> tuple[Legend, MaskValues]:
    entry = Entry(path.stem, path, path, path.stem)
    return legend_of(path.parent, source, Layout("scene", (entry,)))


def _legend_of_polygons(polygons: Polygons, source: SourceOptions) -> tuple[Legend, MaskValues]:
    """What is said, else the names that the polygons have."""
    names = polygons.names
    if names is not None and source.legend is None and source.class_names is None:
        return parse_legend([n for n in names if n != "unknown"], str(polygons.path.resolve()), 1)
    return _legend_of_raster(polygons.path, source)


def _classes(polygons: Polygons, legend: Legend, numbers: MaskValues) -> list[int]:
    """Class of each polygon in ``legend``; 0 where nothing is said."""
    found: dict[str | int | None, int] = {None: 0, "unknown": 0}
    for value in dict.fromkeys(polygons.values):
        if isinstance(value, str):
            if value not in (*legend.names, "unknown"):
                raise SourceError(
                    f"{polygons.path}: class {value!r} is not in the legend {legend.name!r}; allowed: "
                    f"{', '.join(legend.names)}, unknown"
                )
            found[value] = legend.index_of(value)
        elif value is not None:
            found[value] = int(to_classes(np.array([[value]]), legend, numbers, polygons.path)[0, 0])
    return [found[value] for value in polygons.values]


def _needs_resampling(path: Path, facts: Facts, image: SceneImage, asked: bool) -> bool:
    """Whether a mask lies on another grid; refused unless ``asked``."""
    same = (facts.height, facts.width) == image.shape and not lies_elsewhere(image.facts, facts)
    if same:
        return False
    if facts.crs is None or image.facts.crs is None:
        raise SourceError(
            f"{path}: is {facts.width}x{facts.height} px, the image {image.shape[1]}x{image.shape[0]}, and one of them "
            "has no CRS and transform; allowed: masks of the image's size, or both with their place"
        )
    if not asked:
        raise SourceError(
            f"{path}: lies on another grid than the image ({facts.width}x{facts.height} px, {facts.crs}); give "
            f"--resample-mask{_warp_command(path, image)}"
        )
    return True


def _warp_command(path: Path, image: SceneImage) -> str:
    """What brings a mask onto the image's grid; nothing where rows do not run from north to south: gdalwarp makes no
    other grids."""
    height, width = image.shape
    grid = image.facts.transform
    if grid.b or grid.d or grid.a < 0 or grid.e > 0:
        return ""
    (left, top), (right, bottom) = grid @ (0, 0), grid @ (width, height)
    georef = image.georef
    assert georef is not None
    extent = f"{left:.10g} {bottom:.10g} {right:.10g} {top:.10g}"
    target = shlex.quote(f"{path.stem}_on_grid.tif")
    return (
        f", or: gdalwarp -r near -t_srs {shlex.quote(georef.crs)} -te {extent} -ts {width} {height} "
        f"{shlex.quote(str(path))} {target}"
    )


def _resample(
    path: Path, facts: Facts, image: SceneImage, legend: Legend, numbers: MaskValues, out: npt.NDArray[np.uint8]
) -> None:
    """Classes by the nearest pixel; ground beyond the mask is unknown. Of the mask, what lies under a block of the
    image is in memory."""
    from rasterio.enums import Resampling
    from rasterio.transform import Affine
    from rasterio.warp import reproject

    def placed(of: Facts, window: Window) -> Any:
        georef = georef_of(of, window)
        assert georef is not None
        return Affine(*georef.transform)

    lies = False
    blocks = list(_blocks(gate.whole(image.facts), BLOCK))
    while blocks:
        block = blocks.pop()
        under = _under(path, facts, image.facts, block)
        if under is None:
            continue
        if under.height * under.width > MASK_PX and max(block.height, block.width) > 1:
            blocks += _blocks(block, (max(block.height, block.width) + 1) // 2)
            continue
        found = np.zeros((block.height, block.width), np.uint8)
        reproject(
            read_mask(path, under, legend, facts, numbers),
            found,
            src_transform=placed(facts, under),
            src_crs=facts.crs,
            dst_transform=placed(image.facts, block),
            dst_crs=image.facts.crs,
            resampling=Resampling.nearest,
            init_dest_nodata=True,
            src_nodata=0,
            dst_nodata=0,
        )
        out[block.slices] = found
        lies = lies or bool(found.any())
    if not lies:
        raise SourceError(f"{path}: does not lie in the image; do both have the right CRS?")


def _blocks(window: Window, side: int) -> Iterator[Window]:
    for row in range(window.row, window.row + window.height, side):
        for column in range(window.column, window.column + window.width, side):
            height, width = window.row + window.height - row, window.column + window.width - column
            yield Window(row, column, min(side, height), min(side, width))


def _under(path: Path, facts: Facts, image: Facts, block: Window) -> Window | None:
    """The part of a mask that lies under a block of the image, and a little around it; None: the block lies beyond."""
    columns, rows = np.meshgrid(
        np.linspace(block.column, block.column + block.width, PROBES),
        np.linspace(block.row, block.row + block.height, PROBES),
    )
    xs, ys = moved(path, image.crs, facts.crs, *(axis.ravel() for axis in image.transform @ (columns, rows)))
    places = np.stack(~facts.transform @ (xs, ys))
    around = 2 + (places.max(1) - places.min(1)) / PROBES
    ends = facts.width, facts.height
    left, top = (int(max(low, 0)) for low in np.floor(places.min(1) - around))
    right, bottom = (int(min(high, end)) for high, end in zip(np.ceil(places.max(1) + around), ends, strict=True))
    return Window(top, left, bottom - top, right - left) if bottom > top and right > left else None
