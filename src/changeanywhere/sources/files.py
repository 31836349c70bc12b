"""Reading image and mask files, whole or by window.

PNG and JPEG go through Pillow, which has to decode the whole file (the last one is kept); GeoTIFF goes through
rasterio, which reads the window alone.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from changeanywhere.errors import LegendError, SourceError
from changeanywhere.legend import Legend, Mask, MaskValues
from changeanywhere.sample import GeoReference, Image, Normalisation
from changeanywhere.sources.values import PLAIN, to_classes

GEOTIFF_SUFFIXES = (".tif", ".tiff", ".jp2")  # what rasterio opens; GeoNRW comes as JPEG 2000
LOSSY_SUFFIXES = (".jpg", ".jpeg")
SUFFIXES = (".png", *LOSSY_SUFFIXES, *GEOTIFF_SUFFIXES)
DIGEST_PARTS, DIGEST_PART = 16, 1 << 18  # 4 MiB of a large file say whether it was changed
STRETCH_SIDE = 1024  # px: the percentiles of larger images are taken from a reduced read


@dataclass(frozen=True)
class Window:
    """Part of an image in px."""

    row: int
    column: int
    height: int
    width: int


@dataclass(frozen=True)
class FileInfo:
    """What the header says: size in px, bands, dtype, and where it lies (None without a CRS)."""

    height: int
    width: int
    count: int
    dtype: str
    crs: Any = None
    transform: Any = None

    def lies_elsewhere(self, other: FileInfo) -> bool:
        """Whether both have a CRS and it, or a corner by half a pixel or more, differs."""
        if self.crs is None or other.crs is None:
            return False
        if self.crs != other.crs:
            return True
        to_pixels = ~self.transform
        corners = ((0, 0), (self.width, 0), (0, self.height), (self.width, self.height))
        moved = [np.subtract(to_pixels @ (other.transform @ corner), corner) for corner in corners]
        return bool(np.abs(moved).max() >= 0.5)


def digest(path: Path) -> str:
    """Hash of a file's size and bytes; of a large one, of its size and evenly spaced parts."""
    size = path.stat().st_size
    seen = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        if size <= DIGEST_PARTS * DIGEST_PART:
            seen.update(file.read())
        else:
            for part in range(DIGEST_PARTS):
                file.seek(part * (size - DIGEST_PART) // (DIGEST_PARTS - 1))
                seen.update(file.read(DIGEST_PART))
    return seen.hexdigest()


def _is_geotiff(path: Path) -> bool:
    return path.suffix.lower() in GEOTIFF_SUFFIXES


@contextmanager
def _open_raster(path: Path) -> Iterator[Any]:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # plain TIFFs are welcome
            with rasterio.open(path) as raster:
                yield raster
    except RasterioError as error:
        raise SourceError(f"{path}: not a readable raster ({' '.join(str(error).split())})") from error


def read_info(path: Path) -> FileInfo:
    """Header of an image or mask file; :class:`SourceError` if it is none."""
    if _is_geotiff(path):
        with _open_raster(path) as raster:
            place = (raster.crs, raster.transform) if raster.crs is not None else (None, None)
            return FileInfo(raster.height, raster.width, raster.count, raster.dtypes[0], *place)
    try:
        with PillowImage.open(path) as image:
            wide = image.mode.startswith("I")  # 16-bit PNG
            bands = 3 if image.mode == "P" else len(image.getbands())
            return FileInfo(image.height, image.width, bands, "uint16" if wide else "uint8")
    except (OSError, ValueError, PillowImage.DecompressionBombError) as error:
        raise SourceError(f"{path}: not a readable image ({error})") from error


def _stamp(path: Path) -> int:
    """When a file was last written (0 if there is none): what is kept of it is of no use afterwards."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _decode(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8] | None]:
    """Whole PNG or JPEG and, for palette files, the colours by index ``[N, 3]``."""
    return _decoded(path, _stamp(path))


@lru_cache(maxsize=2)  # an image and its mask: the windows of a tile follow each other
def _decoded(path: Path, stamp: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8] | None]:
    try:
        with PillowImage.open(path) as image:
            palette = np.array(image.getpalette(), np.uint8).reshape(-1, 3) if image.mode == "P" else None
            return np.asarray(image.convert("L") if image.mode == "1" else image), palette
    except (OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError) as error:
        raise SourceError(f"{path}: not a readable image ({error})") from error


def read_image(path: Path, window: Window, bands: tuple[int, ...]) -> Image:
    """Pixels ``[h, w, len(bands)]`` in file units."""
    if _is_geotiff(path):
        import rasterio

        part = rasterio.windows.Window(window.column, window.row, window.width, window.height)
        with _open_raster(path) as raster:
            image: Image = raster.read(list(bands), window=part).transpose(1, 2, 0)
    else:
        whole, palette = _decode(path)
        if palette is not None:
            whole = palette[whole]
        whole = whole if whole.ndim == 3 else whole[..., None]
        image = whole[window.row : window.row + window.height, window.column : window.column + window.width]
        image = image[..., [band - 1 for band in bands]]
    return np.ascontiguousarray(image)


def read_valid(path: Path, window: Window, bands: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
    """Where an image was taken: not nodata, not NaN; bool ``[h, w]``. None = everywhere (PNG and JPEG)."""
    if not _is_geotiff(path):
        return None
    import rasterio

    part = rasterio.windows.Window(window.column, window.row, window.width, window.height)
    with _open_raster(path) as raster:
        valid: npt.NDArray[np.bool_] = raster.dataset_mask(window=part) > 0
        if np.issubdtype(np.dtype(raster.dtypes[0]), np.floating):
            valid &= np.isfinite(raster.read(list(bands), window=part)).all(0)
    return valid


def read_mask(path: Path, window: Window, legend: Legend, numbers: MaskValues = PLAIN) -> Mask:
    """Mask uint8 ``[h, w]`` in ``legend``; ``numbers``: what the file's own mean.

    One band: the values are the indices. Palette: if every colour in use anywhere in the file is a colour of the
    legend, the colour says the class (files are often saved with an order of their own); else the index. Three or four
    bands: the colour says the class. Raises :class:`LegendError` naming file and value.
    """
    if _is_geotiff(path):
        import rasterio

        part = rasterio.windows.Window(window.column, window.row, window.width, window.height)
        with _open_raster(path) as raster:
            values = raster.read(window=part)
            nodata = raster.nodata
        whole = values[0] if len(values) == 1 else values.transpose(1, 2, 0)
        if whole.ndim == 2 and nodata is not None and nodata != 0:
            whole = np.where(whole == nodata, 0, whole)
        palette = None
    else:
        whole, palette = _decode(path)
        whole = whole[window.row : window.row + window.height, window.column : window.column + window.width]
    if whole.ndim == 3 and whole.shape[2] < 3:
        raise SourceError(
            f"{path}: mask has {whole.shape[2]} bands; allowed: one (indices), or three and more (colours)"
        )
    if whole.ndim == 3 and not numbers.own_colours:
        raise LegendError(f"{path}: mask holds colours, and the legend has none; give each class its color [r, g, b]")
    if whole.ndim == 3:
        return _by_colour(whole[..., :3], legend, path)
    if palette is not None and numbers.own_colours:
        indices = _palette_indices(path, _stamp(path), legend)
        if indices is not None:
            found: Mask = indices[whole]
            return found
    if np.issubdtype(whole.dtype, np.floating) and not (np.isfinite(whole) & (whole == np.rint(whole))).all():
        value = whole[~(np.isfinite(whole) & (whole == np.rint(whole)))].flat[0]
        raise LegendError(f"{path}: mask value {value} is not a class; allowed: 0 (unknown) to {legend.num_classes}")
    return to_classes(whole, legend, numbers, path)


@lru_cache(maxsize=64)
def _palette_indices(path: Path, stamp: int, legend: Legend) -> npt.NDArray[np.uint8] | None:
    """Class by palette index, or None where the index itself is the class; decided once for the whole file.

    :class:`LegendError` where both readings are possible: some colours are the legend's, in another order, and some are
    not.
    """
    whole, palette = _decode(path)
    assert palette is not None
    used = np.flatnonzero(np.bincount(whole.ravel(), minlength=1))
    index_of: dict[tuple[int, ...], int] = {(0, 0, 0): 0}
    index_of |= {c.color: c.index for c in legend.classes}
    colours = {int(i): tuple(map(int, palette[i])) if i < len(palette) else None for i in used}
    if all(colour in index_of for colour in colours.values()):
        indices = np.zeros(len(palette), np.uint8)
        indices[used] = _by_colour(palette[used][None], legend, path)[0]
        return indices
    for index, colour in colours.items():
        by_colour = index_of.get(colour) if colour is not None else None
        if by_colour and by_colour != index:
            raise LegendError(
                f"{path}: palette index {index} has the colour of {legend.name_of(by_colour)}, and other colours are "
                f"not in the legend {legend.name!r}; save the mask without palette, or with the legend's colours alone"
            )
    return None


def _by_colour(pixels: npt.NDArray[Any], legend: Legend, path: Path) -> Mask:
    """RGB ``[h, w, 3]`` → indices; black is unknown unless it is a class."""
    codes = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    used, places = np.unique(codes, return_inverse=True)
    index_of = {0: 0} | {(c.color[0] << 16) + (c.color[1] << 8) + c.color[2]: c.index for c in legend.classes}
    foreign = [int(code) for code in used if int(code) not in index_of]
    if foreign:
        colour = (foreign[0] >> 16, foreign[0] >> 8 & 255, foreign[0] & 255)
        raise LegendError(f"{path}: mask colour {colour} is not in the legend {legend.name!r}")
    table = np.array([index_of[int(code)] for code in used], np.uint8)
    return table[places].reshape(codes.shape)


def read_georef(path: Path, window: Window) -> GeoReference | None:
    """CRS and transform of a window; None without a CRS."""
    if not _is_geotiff(path):
        return None
    with _open_raster(path) as raster:
        if raster.crs is None:
            return None
        a, b, c, d, e, f = tuple(raster.transform)[:6]
        epsg = raster.crs.to_epsg()
        origin = (c + a * window.column + b * window.row, f + d * window.column + e * window.row)
        return GeoReference(f"EPSG:{epsg}" if epsg else raster.crs.to_wkt(), (a, b, origin[0], d, e, origin[1]))


def read_gsd(path: Path) -> float | None:
    """Ground sampling in metres, where the CRS is projected in metres."""
    if not _is_geotiff(path):
        return None
    with _open_raster(path) as raster:
        if raster.crs is None or not raster.crs.is_projected or raster.crs.linear_units_factor[1] != 1.0:
            return None
        return float(abs(raster.transform.a))


@lru_cache(maxsize=64)
def read_stretch(path: Path, bands: tuple[int, ...], percentiles: tuple[float, float]) -> Normalisation:
    """8 bits: x / 127.5 - 1. Else percentiles of each band over the whole image (large ones read reduced)."""
    info = read_info(path)
    if info.dtype == "uint8":
        return Normalisation.eight_bit(len(bands))
    if _is_geotiff(path):
        shrink = max(1.0, max(info.height, info.width) / STRETCH_SIDE)
        shape = (len(bands), max(1, round(info.height / shrink)), max(1, round(info.width / shrink)))
        with _open_raster(path) as raster:
            values = raster.read(list(bands), out_shape=shape, masked=True).astype(np.float32).filled(np.nan)
    else:
        image = read_image(path, Window(0, 0, info.height, info.width), bands)
        values = image.astype(np.float32).transpose(2, 0, 1)
    flat = values.reshape(len(bands), -1)
    flat = np.where(np.isfinite(flat), flat, np.nan)
    if np.isnan(flat).all(1).any():
        raise SourceError(f"{path}: a band has no valid pixel")
    low, high = np.nanpercentile(flat, percentiles, axis=1)
    high = np.where(high > low, high, low + 1)  # a constant band: any scale will do
    return Normalisation(tuple(map(float, low)), tuple(map(float, high)))
