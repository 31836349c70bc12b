"""Image files of a generated set, between bytes and arrays. Files of others are read through :mod:`..rasters`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from changeanywhere.errors import PairsError
from changeanywhere.rasters.tiff import put_meanings
from changeanywhere.rasters.unplaced import unplaced
from changeanywhere.sample import GeoReference, Image, Meaning

PNG_LEVEL = 1  # zlib: 7.7 ms and 94.3 kB for a tile of 256 px; level 3 12.2 ms and 90.8 kB, level 6 27.4 ms and 92.3 kB
PNG_KEPT = 8
"""Encoded images that are kept for the next pair: those of one tile share date 1 and its mask."""
PNG_KEPT_BYTES = 4 * 2**20  # of one that is kept


def encode_png(array: Image, palette: npt.NDArray[np.uint8] | None = None) -> bytes:
    """PNG of ``[H, W]`` or ``[H, W, 3]``, uint8; with ``palette``, uint8 ``[256, 3]``, of its indices."""
    encode = _png if array.nbytes <= PNG_KEPT_BYTES else _png.__wrapped__
    return encode(array.tobytes(), array.shape, None if palette is None else palette.tobytes())


@lru_cache(maxsize=PNG_KEPT)
def _png(pixels: bytes, shape: tuple[int, ...], palette: bytes | None) -> bytes:
    image = PillowImage.fromarray(np.frombuffer(pixels, np.uint8).reshape(shape))
    if palette is not None:
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def encode_geotiff(
    array: Image,
    georef: GeoReference | None,
    palette: npt.NDArray[np.uint8] | None = None,
    meanings: Sequence[Meaning] = (),
) -> bytes:
    """``[H, W, C]`` → deflate-compressed GeoTIFF; ``meanings``: of each band, or none.

    A fourth band is a band: GDAL's own choice for four bands of 8 bits is to tag it as alpha, and whatever reads that
    takes near infrared for transparency.
    """
    from rasterio.io import MemoryFile
    from rasterio.transform import Affine

    height, width, count = array.shape
    place: dict[str, Any] = {"crs": georef.crs, "transform": Affine(*georef.transform)} if georef else {}
    more = {"photometric": "RGB", "ALPHA": "NO"} if count > 3 and array.dtype == np.uint8 else {}
    with MemoryFile() as memory, unplaced():  # a tile without CRS stays without
        with memory.open(
            driver="GTiff",
            height=height,
            width=width,
            count=count,
            dtype=array.dtype,
            compress="deflate",
            **place,
            **more,
        ) as target:
            put_meanings(target, meanings)
            target.write(array.transpose(2, 0, 1))
            if palette is not None:
                target.write_colormap(1, {i: (*map(int, colour), 255) for i, colour in enumerate(palette)})
        content: bytes = memory.read()
    return content


def decode_image(content: bytes, name: str) -> npt.NDArray[Any]:
    """What the two above made: ``[H, W]`` or ``[H, W, C]``; a palette gives its indices.

    :class:`PairsError` if damaged.
    """
    from rasterio.errors import RasterioIOError
    from rasterio.io import MemoryFile

    try:
        if not name.lower().endswith((".tif", ".tiff")):
            with PillowImage.open(io.BytesIO(content), formats=("PNG",)) as image:
                return np.asarray(image)
        with unplaced(), MemoryFile(content) as memory, memory.open(driver="GTiff") as file:
            bands: npt.NDArray[Any] = file.read()
    except (OSError, UnidentifiedImageError, ValueError, RasterioIOError) as error:
        raise PairsError(f"{name}: not a readable image ({error})") from error
    return bands[0] if len(bands) == 1 else bands.transpose(1, 2, 0)
