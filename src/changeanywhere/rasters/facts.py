"""What is known of an image file before its pixels are read: the container by its first bytes, and its bounds."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import InputError, RasterError
from changeanywhere.sample import Meaning

MAX_MEGAPIXELS = 178
"""Of what must be held in memory at once: a PNG or JPEG, a block of a TIFF. About what Pillow takes for an attack."""
MAX_WHOLE_MEGAPIXELS = 512
"""Of an image of a pair, which is read whole: three bands of 8 bits (WHU-CD has 499), or as many bytes of others."""
ALLOWED = "PNG, JPEG and TIFF"
JPEG_2000 = b"\0\0\0\x0cjP  "
"""Begins images that say so by their name, .jp2 (GeoNRW); whether they lost anything cannot be told."""
CONTAINERS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0\x08\0\0\0": "TIFF",
    b"MM\0+\0\x08\0\0": "TIFF",
}
"""First bytes of what is read; the last two are BigTIFF."""
FOREIGN = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"\x89HDF": "HDF5 or NetCDF",
    b"CDF": "NetCDF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"PK\x03\x04": "ZIP",
    b"\x1f\x8b": "gzip",
    b"SIMPLE": "FITS",
    b"EHFA_HEADER": "ERDAS Imagine",
    b"version https://git-lfs": "pointer of Git LFS, not the file itself; run git lfs pull",
}
"""First bytes of what is refused by its name."""
Values = npt.NDArray[Any]
Valid = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """Part of an image in px."""

    row: int
    column: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.row, self.row + self.height), slice(self.column, self.column + self.width)


@dataclass(frozen=True)
class Palette:
    """Colours uint8 ``[N, 3]`` by index, and which indices are opaque, bool ``[N]``."""

    colours: npt.NDArray[np.uint8]
    opaque: Valid


@dataclass(frozen=True, eq=False)
class Facts:
    """What a file is. Sizes are those of the picture as it is shown (``orientation`` applied)."""

    container: str
    """"PNG", "JPEG", "TIFF" or "JPEG 2000"."""
    height: int
    width: int
    count: int
    """Bands that it gives as an image; a palette and CMYK give three, alpha counts."""
    dtype: str
    """Of the bands as an image; 1, 2 and 4 bits become uint8."""
    bits: int
    """Per stored value."""
    colour: str = "bands"
    """"grey", "rgb", "cmyk", "palette", else the name of its colour space; "bands": says nothing of colours."""
    lossy: str = ""
    """What its compression loses by; empty: nothing."""
    alpha: int | None = None
    """Band, from 1, that the file tags as alpha."""
    orientation: int = 1
    """EXIF: 1 to 8."""
    inverted: bool = False
    """0 is white (TIFF)."""
    palette: Palette | None = None
    transparent: tuple[int, ...] | None = None
    """PNG: the grey value, or red, green and blue, that is transparent."""
    has_mask: bool = False
    """TIFF: a mask band inside."""
    nodata: tuple[float | None, ...] = ()
    """TIFF: by band."""
    crs: Any = None
    transform: Any = None
    """Both None where the file does not say both."""
    place_note: str = ""
    """Why a file that says something of its place is read as if it said nothing."""
    meanings: tuple[Meaning, ...] = ()
    """TIFF and JPEG 2000: by band, of stored values."""

    @property
    def scale(self) -> int:
        """What a stored value of less than 8 bits is multiplied by, so that the largest becomes 255."""
        return 255 // (2**self.bits - 1) if self.bits in (1, 2, 4) and self.palette is None else 1

    @property
    def shown_nodata(self) -> float | None:
        """What stands for missing ground in pixels as they are shown (see :func:`.gate.read_image`); None where nothing
        does, or no value of the dtype: a palette's nodata is an index, which is the colour of other ground."""
        stored = self.nodata[0] if self.nodata else None
        if stored is None or self.palette is not None:
            return None
        kind = np.dtype(self.dtype)
        if kind.kind == "f":
            return stored
        limits = np.iinfo(kind)
        shown = (2 ** min(self.bits, 8 * kind.itemsize) - 1 - stored if self.inverted else stored) * self.scale
        return shown if float(shown).is_integer() and limits.min <= shown <= limits.max else None

    @property
    def shown_meanings(self) -> tuple[Meaning, ...]:
        """By band, of pixels as they are shown; empty where the bands shown are not those stored."""
        if self.palette is not None or len(self.meanings) != self.count:
            return ()
        if not self.inverted:
            return tuple(replace(each, scale=each.scale / self.scale) for each in self.meanings)
        largest = 2 ** min(self.bits, 8 * np.dtype(self.dtype).itemsize) - 1
        return tuple(
            replace(each, scale=-each.scale / self.scale, offset=each.offset + each.scale * largest)
            for each in self.meanings
        )

    def meanings_of(self, bands: Sequence[int]) -> tuple[Meaning, ...]:
        """:attr:`shown_meanings` of ``bands``, from 1; empty where there are none."""
        said = self.shown_meanings
        return tuple(said[band - 1] for band in bands) if said else ()

    @property
    def hides_ground(self) -> bool:
        """Whether ground can be missing that neither :attr:`shown_nodata` nor an alpha band tells, so that a copy in
        pixels as they are shown needs a mask of its own."""
        named = any(value is not None for value in self.nodata)
        of_palette = self.palette is not None and (named or not bool(self.palette.opaque.all()))
        return self.has_mask or self.transparent is not None or of_palette

    @property
    def turned(self) -> bool:
        """Whether height and width are exchanged when it is shown."""
        return self.orientation >= 5


@contextmanager
def raising(kind: type[InputError]) -> Iterator[None]:
    """Pass a :class:`RasterError` on as ``kind``."""
    try:
        yield
    except RasterError as error:
        raise kind(str(error)) from error


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of a file: what is kept of it is of no use after either changed.

    :class:`RasterError` for what is no file (folders, FIFOs, devices): opening these may wait for ever.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise RasterError(f"{path}: not a readable image ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise RasterError(f"{path}: not a readable image (a folder, pipe or device, not a file)")
    return status.st_size, status.st_mtime_ns


def container_of(path: Path) -> str:
    """By the first bytes, whatever the suffix says. :class:`RasterError` names what is not read."""
    if str(path.absolute()).startswith("/vsi"):  # GDAL's names for archives, memory and the network
        raise RasterError(f"{path}: not a readable image (a name that GDAL takes for another place); move the folder")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise RasterError(f"{path}: not a readable image ({error.strerror})") from error
    for magic, name in CONTAINERS.items():
        if start.startswith(magic):
            return name
    if path.suffix.lower() == ".jp2" and start.startswith(JPEG_2000):
        return "JPEG 2000"
    raise RasterError(f"{path}: not a readable image ({_foreign(start)}); allowed: {ALLOWED}")


def _foreign(start: bytes) -> str:
    if not start:
        return "an empty file"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WebP"
    if start[4:8] == b"ftyp":
        return "AVIF or HEIC"
    if start.lstrip().startswith(b"<"):
        return "XML or HTML: a VRT, a service or a page, which can point to other places"
    return next((name for magic, name in FOREIGN.items() if start.startswith(magic)), "no image begins like this")


def check_size(path: Path, what: str, pixels: int, max_megapixels: float | None) -> None:
    """:class:`RasterError` if a header claims more than may be held at once."""
    bound = MAX_MEGAPIXELS if max_megapixels is None else max_megapixels
    if pixels > bound * 1e6:
        raise RasterError(
            f"{path}: not a readable image ({what} {pixels / 1e6:.0f} megapixels at once; allowed: {bound:g}); save it "
            "as a tiled GeoTIFF, or raise max_megapixels"
        )


def check_whole(path: Path, facts: Facts, max_megapixels: float | None) -> None:
    """:class:`RasterError` if a header claims more than a file that is read whole may hold."""
    size = facts.height * facts.width * facts.count * np.dtype(facts.dtype).itemsize / 3
    bound = MAX_WHOLE_MEGAPIXELS if max_megapixels is None else max_megapixels
    if size > bound * 1e6:
        raise RasterError(
            f"{path}: not a readable image ({facts.width}x{facts.height} px of {facts.count} bands are as much as "
            f"{size / 1e6:.0f} megapixels of 8-bit RGB, read whole; allowed: {bound:g}); cut it into tiles, or raise "
            "max_megapixels"
        )


def shown(values: Values, orientation: int) -> Values:
    """``[H, W, ...]`` as stored → as shown (EXIF 2.3, tag 274)."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 7, 8):
        values = values[:, ::-1] if orientation in (2, 3) else values[::-1]
    if orientation in (3, 4):
        values = values[::-1]
    if orientation in (6, 7):
        values = values[:, ::-1]
    return values
