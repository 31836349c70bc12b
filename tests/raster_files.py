"""Small image files of every kind, for the tests of the gate: written by GDAL, Pillow, or here where neither does."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

Values = npt.NDArray[Any]
PLACE: dict[str, Any] = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_000_000, 0.5, 0.5)}
PNG_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Colour type by number of bands."""


def write_tif(path: Path, values: Values, valid: Values | None = None, **profile: Any) -> Path:
    """``[H, W]`` or ``[H, W, C]``; ``valid``: an internal mask band."""
    bands = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    more = PLACE | profile
    colours = more.pop("palette", None)
    interpretation = more.pop("colorinterp", None)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **more
        ) as file,
    ):
        if interpretation is not None:
            file.colorinterp = [ColorInterp[name] for name in interpretation]
        if colours is not None:
            file.write_colormap(1, {index: (*map(int, colour), 255) for index, colour in enumerate(colours)})
        file.write(bands)
        if valid is not None:
            file.write_mask(valid)
    return path


def write_png(
    path: Path,
    values: Values,
    bits: int = 8,
    palette: Values | None = None,
    transparency: bytes = b"",
    orientation: int = 1,
) -> Path:
    """Any depth of any colour type: ``[H, W]`` or ``[H, W, C]``; with ``palette`` uint8 ``[N, 3]``, indices."""
    values = values if values.ndim == 3 else values[..., None]
    height, width, bands = values.shape
    if bits == 16:
        rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    elif bits == 8:
        rows = values.astype(np.uint8).reshape(height, -1)
    else:
        single = values.reshape(height, -1).astype(np.uint8)
        rows = np.packbits((single[..., None] >> np.arange(bits - 1, -1, -1) & 1).reshape(height, -1), axis=1)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    kind = 3 if palette is not None else PNG_TYPES[bands]
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    if palette is not None:
        content += chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    if transparency:
        content += chunk(b"tRNS", transparency)
    if orientation != 1:
        exif = Image.Exif()
        exif[274] = orientation
        content += chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content + chunk(b"IDAT", zlib.compress(filtered.tobytes())) + chunk(b"IEND", b""))
    return path


def stored_for(shown: Values, orientation: int) -> Values:
    """What has to be stored so that a viewer shows ``shown``."""
    undo: dict[int, Any] = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    return np.ascontiguousarray(undo[orientation](shown))
