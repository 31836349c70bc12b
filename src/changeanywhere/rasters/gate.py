"""The one way to the pixels of a file: what it is, then its pixels as an image, and where they are valid."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import RasterError
from changeanywhere.rasters import flat, tiff
from changeanywhere.rasters.facts import Facts, Palette, Valid, Values, Window, check_whole, container_of, stamp_of
from changeanywhere.sample import Image, Normalisation

STRETCH_SIDE = 1024  # px: the percentiles of larger images are taken from a reduced read


def inspect(path: Path, max_megapixels: float | None = None) -> Facts:
    """What ``path`` is. :class:`RasterError` naming what is not read: see the table in ``docs/data.md``.

    ``max_megapixels``: of what has to be held in memory at once; None: :data:`.facts.MAX_MEGAPIXELS`.
    """
    return _inspected(path, max_megapixels, stamp_of(path))


def inspect_whole(path: Path, max_megapixels: float | None = None) -> Facts:
    """:func:`inspect` of a file that will be read whole, as those of pairs are."""
    facts = inspect(path, max_megapixels)
    check_whole(path, facts, max_megapixels)
    return facts


@lru_cache(maxsize=256)
def _inspected(path: Path, max_megapixels: float | None, stamp: tuple[int, int]) -> Facts:
    container = container_of(path)
    if container == "TIFF":
        return tiff.facts_of(path, max_megapixels)
    if container == "JPEG 2000":
        return tiff.facts_of_jpeg_2000(path, max_megapixels)
    return (flat.facts_of_png if container == "PNG" else flat.facts_of_jpeg)(path, max_megapixels)


def read_stored(path: Path, facts: Facts, window: Window, bands: tuple[int, ...] | None) -> tuple[Values, Valid | None]:
    """Values as they are stored, ``[h, w, bands]`` (None: all; of a palette, the index), and where they are valid."""
    read = tiff.read if facts.container in tiff.DRIVERS else flat.read
    return read(path, facts, window, bands)


def read_image(path: Path, facts: Facts, window: Window, bands: tuple[int, ...]) -> tuple[Image, Valid | None]:
    """Pixels ``[h, w, len(bands)]`` in file units (palettes expanded, 1, 2 and 4 bits as 8, CMYK as RGB) and where they
    are valid, bool ``[h, w]`` (None: everywhere)."""
    values, valid = read_stored(path, facts, window, bands)
    if facts.palette is not None:
        colours = expanded(path, values[..., 0], facts.palette)
        values = colours if bands == (1, 2, 3) else colours[..., [band - 1 for band in bands]]
    elif facts.inverted:
        values = (2 ** min(facts.bits, 8 * values.dtype.itemsize) - 1) - values
    if facts.scale > 1:
        values = values * np.uint8(facts.scale)
    return np.ascontiguousarray(values), valid


def expanded(path: Path, indices: Values, palette: Palette) -> npt.NDArray[np.uint8]:
    """Indices ``[h, w]`` → colours uint8 ``[h, w, 3]``."""
    largest = int(indices.max(initial=0))
    if largest >= len(palette.colours):
        raise RasterError(f"{path}: palette index {largest}; allowed: 0 to {len(palette.colours) - 1}, its colours")
    return palette.colours[indices]


def whole(facts: Facts) -> Window:
    """All of a file."""
    return Window(0, 0, facts.height, facts.width)


def read_whole(path: Path, max_megapixels: float | None = None) -> tuple[Image, Valid | None, Facts]:
    """All bands of a file but a mask among them, ``[H, W]`` of one band, else ``[H, W, C]``; where they are valid."""
    facts = inspect_whole(path, max_megapixels)
    bands = tuple(number for number in range(1, facts.count + 1) if number != alpha_of(path, facts))
    if not bands:
        raise RasterError(f"{path}: one band, tagged as alpha; allowed: a band that shows something")
    image, valid = read_image(path, facts, whole(facts), bands)
    return (image[..., 0] if len(bands) == 1 else image), valid, facts


def alpha_of(path: Path, facts: Facts) -> int | None:
    """The band that says what is transparent; a PNG's always, that of a TIFF or JPEG 2000 where it holds what such a
    band holds."""
    if facts.alpha is None or facts.container not in tiff.DRIVERS:
        return facts.alpha
    return facts.alpha if tiff.alpha_is_mask(path, facts.alpha, stamp_of(path), facts.container) else None


def read_stretch(
    path: Path, bands: tuple[int, ...], percentiles: tuple[float, float], max_megapixels: float | None = None
) -> Normalisation:
    """8 bits: x / 127.5 - 1. Else percentiles of each band over the whole image (large ones read reduced)."""
    facts = inspect(path, max_megapixels)
    if facts.dtype == "uint8":
        return Normalisation.eight_bit(len(bands))
    return _stretch(path, bands, percentiles, facts)


@lru_cache(maxsize=64)
def _stretch(path: Path, bands: tuple[int, ...], percentiles: tuple[float, float], facts: Facts) -> Normalisation:
    reduced = facts.container == "TIFF" and facts.orientation == 1 and not facts.inverted
    if reduced and max(facts.height, facts.width) > STRETCH_SIDE:
        values = tiff.read_reduced(path, facts, bands, STRETCH_SIDE)
    else:
        image, valid = read_image(path, facts, whole(facts), bands)
        values = image.astype(np.float32).transpose(2, 0, 1)
        if valid is not None:
            values[:, ~valid] = np.nan
    found = values.reshape(len(bands), -1)
    found = np.where(np.isfinite(found), found, np.nan)
    if np.isnan(found).all(1).any():
        raise RasterError(f"{path}: a band has no valid pixel")
    low, high = np.nanpercentile(found, percentiles, axis=1)
    high = np.where(high > low, high, low + 1)  # a constant band: any scale will do
    return Normalisation(tuple(map(float, low)), tuple(map(float, high)))
