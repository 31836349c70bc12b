"""PNG and JPEG, through Pillow, which decodes the whole file; PNG of several bands of 16 bits, which Pillow cuts to 8,
through GDAL's PNG driver. Chunks: https://www.w3.org/TR/png-3/.
"""

from __future__ import annotations

import io
import struct
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from changeanywhere.errors import RasterError
from changeanywhere.rasters.facts import Facts, Palette, Valid, Values, Window, check_size, shown, stamp_of
from changeanywhere.rasters.unplaced import unplaced

COLOUR_TYPES = {0: ("grey", 1), 2: ("rgb", 3), 3: ("palette", 1), 4: ("grey", 2), 6: ("rgb", 4)}
"""Of a PNG: what it holds, and bands (alpha among them)."""
READ_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf")
MAX_CHUNKS, MAX_CHUNK = 1_000_000, 1 << 20
ORIENTATION = 274
UNREADABLE = (OSError, ValueError, SyntaxError, struct.error, KeyError, PillowImage.DecompressionBombError)
_BOUND = threading.Lock()


def facts_of_png(path: Path, max_megapixels: float | None) -> Facts:
    """From the chunks; :class:`RasterError` for what is damaged or too large."""
    try:
        chunks = _chunks(path)
        width, height, bits, kind = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
        colour, bands = COLOUR_TYPES[kind]
    except UNREADABLE as error:
        raise RasterError(f"{path}: not a readable image (damaged PNG: {error})") from error
    if b"acTL" in chunks:
        raise RasterError(f"{path}: an animated PNG; allowed: one image per file")
    check_size(path, f"{width}x{height} px are", width * height, max_megapixels)
    if not width or not height:
        raise RasterError(f"{path}: not a readable image (it is {width}x{height} px)")
    transparency = chunks.get(b"tRNS", b"")
    palette, transparent = None, None
    if kind == 3:
        colours = np.frombuffer(chunks.get(b"PLTE", b"")[:768], np.uint8)
        if len(colours) % 3 or not len(colours):
            raise RasterError(f"{path}: not a readable image (damaged PNG: its palette has {len(colours)} bytes)")
        opaque = np.ones(len(colours) // 3, bool)
        alphas = np.frombuffer(transparency, np.uint8)[: len(opaque)]
        opaque[: len(alphas)] = alphas > 0
        palette = Palette(colours.reshape(-1, 3), opaque)
    elif len(transparency) == 2 * bands and kind in (0, 2):
        transparent = struct.unpack(f">{bands}H", transparency)
    orientation = _orientation(chunks.get(b"eXIf", b""))
    height, width = (width, height) if orientation >= 5 else (height, width)
    return Facts(
        container="PNG",
        height=height,
        width=width,
        count=3 if kind == 3 else bands,
        dtype="uint16" if bits == 16 else "uint8",
        bits=bits,
        colour=colour,
        alpha={4: 2, 6: 4}.get(kind),
        orientation=orientation,
        palette=palette,
        transparent=transparent,
    )


def _chunks(path: Path) -> dict[bytes, bytes]:
    """First content of each kind of chunk; empty for kinds that are not read."""
    found: dict[bytes, bytes] = {}
    with path.open("rb") as file:
        file.seek(8)
        for _ in range(MAX_CHUNKS):
            start = file.read(8)
            if len(start) < 8:
                break
            length, name = struct.unpack(">I4s", start)
            if name in READ_CHUNKS and name not in found:
                found[name] = file.read(min(length, MAX_CHUNK))
                file.seek(length - len(found[name]) + 4, io.SEEK_CUR)
            else:
                found.setdefault(name, b"")
                file.seek(length + 4, io.SEEK_CUR)
            if name == b"IEND":
                break
    return found


def _orientation(exif: bytes) -> int:
    """1 where EXIF is missing or damaged, as viewers take it."""
    if not exif:
        return 1
    try:
        data = PillowImage.Exif()
        data.load(exif if exif.startswith(b"Exif\0\0") else b"Exif\0\0" + exif)
        value = int(data.get(ORIENTATION, 1))
    except Exception:  # Pillow raises whatever its parser stumbles over
        return 1
    return value if 1 <= value <= 8 else 1


def facts_of_jpeg(path: Path, max_megapixels: float | None) -> Facts:
    """From the header; :class:`RasterError` for what is damaged or too large."""
    try:
        with _opened(path) as image:
            width, height, mode = image.width, image.height, image.mode
            orientation = _orientation(image.info.get("exif", b""))
    except UNREADABLE as error:
        raise RasterError(f"{path}: not a readable image ({error})") from error
    check_size(path, f"{width}x{height} px are", width * height, max_megapixels)
    if mode not in ("L", "RGB", "CMYK"):
        raise RasterError(f"{path}: JPEG of colours {mode}; allowed: grey, RGB, CMYK")
    height, width = (width, height) if orientation >= 5 else (height, width)
    return Facts(
        container="JPEG",
        height=height,
        width=width,
        count=1 if mode == "L" else 3,
        dtype="uint8",
        bits=8,
        colour={"L": "grey", "RGB": "rgb", "CMYK": "cmyk"}[mode],
        lossy="JPEG",
        orientation=orientation,
    )


def _opened(path: Path) -> Any:
    """Pillow's image, not decoded. Pillow's bound is lifted for the moment: ours is held to what the header says."""
    with _BOUND:
        bound = PillowImage.MAX_IMAGE_PIXELS
        PillowImage.MAX_IMAGE_PIXELS = None
        try:
            return PillowImage.open(path, formats=("PNG", "JPEG", "MPO"))
        finally:
            PillowImage.MAX_IMAGE_PIXELS = bound


def read(path: Path, facts: Facts, window: Window, bands: tuple[int, ...] | None) -> tuple[Values, Valid | None]:
    """Stored values ``[h, w, bands]`` (None: all; CMYK is RGB already, a palette's are its indices) and where they are
    valid (None: everywhere): not transparent; a band that is named is never a mask."""
    whole = _decoded(path, facts.bits, facts.container, stamp_of(path))
    if facts.orientation != 1:
        whole = shown(whole, facts.orientation)
    values = whole[window.slices]
    valid: Valid | None = None
    if facts.alpha is not None and facts.alpha not in (bands or ()):
        valid = values[..., facts.alpha - 1] > 0
    elif facts.transparent is not None:
        valid = (values != np.array(facts.transparent, values.dtype)).any(-1)
    elif facts.palette is not None and not facts.palette.opaque.all():
        opaque = np.ones(256, bool)
        opaque[: len(facts.palette.opaque)] = facts.palette.opaque
        valid = opaque[values[..., 0]]
    if bands is not None and facts.palette is None and bands != tuple(range(1, values.shape[2] + 1)):
        values = values[..., [band - 1 for band in bands]]
    return values, valid


@lru_cache(maxsize=2)  # an image and its mask: the windows of a tile follow each other
def _decoded(path: Path, bits: int, container: str, stamp: tuple[int, int]) -> Values:
    """Stored values of the whole file ``[H, W, bands]``."""
    try:
        if bits == 16 and container == "PNG":
            deep = _deep_png(path)
            if deep is not None:
                return deep
        with _opened(path) as image:
            if image.mode == "CMYK":
                image = image.convert("RGB")
            values: npt.NDArray[Any] = np.asarray(image)
    except UNREADABLE as error:
        raise RasterError(f"{path}: not a readable image ({error})") from error
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif bits in (2, 4) and container == "PNG" and image.mode == "L":
        values = values // (255 // (2**bits - 1))  # Pillow shows them in 8 bits
    elif values.dtype == np.int32:  # 16-bit grey of older Pillows
        values = values.astype(np.uint16)
    return values if values.ndim == 3 else values[..., None]


def _deep_png(path: Path) -> Values | None:
    """16-bit PNG of several bands; None for one band, which Pillow reads as it is."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with (
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"),
            unplaced(),
            rasterio.open(Path(path).absolute(), driver="PNG") as raster,
        ):
            if raster.count == 1:
                return None
            values: Values = np.ascontiguousarray(raster.read().transpose(1, 2, 0))
            return values
    except RasterioError as error:
        raise RasterError(f"{path}: not a readable image ({' '.join(str(error).split())})") from error
