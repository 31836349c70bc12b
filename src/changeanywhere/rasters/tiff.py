"""TIFF and GeoTIFF: what the tags say, and pixels by window, through GDAL's GTiff driver alone.

Nothing but the file itself is opened: no other driver (a VRT can name any file or address), no side files (``.ovr`` and
``.msk`` are opened by whichever driver knows them, ``.aux.xml`` can point to overviews anywhere). Tags: TIFF 6.0 and
BigTIFF; https://www.awaresystems.be/imaging/tiff/tifftags.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from changeanywhere.errors import RasterError
from changeanywhere.rasters.facts import Facts, Palette, Valid, Values, Window, check_size, shown, stamp_of
from changeanywhere.rasters.ground import place_of
from changeanywhere.rasters.unplaced import unplaced
from changeanywhere.sample import Meaning

BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, COLOUR_MAP = 258, 259, 262, 274, 320
WANTED = (BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, COLOUR_MAP)
SIZES = {1: (1, "B"), 3: (2, "H"), 4: (4, "I"), 16: (8, "Q")}
"""Bytes and struct code by type of a tag: BYTE, SHORT, LONG, LONG8."""
LOSSLESS = {1, 2, 3, 4, 5, 8, 32773, 32809, 32946, 34676, 34677, 34925, 50000}
"""None, CCITT, LZW, deflate, PackBits, ThunderScan, SGI log, LZMA, Zstandard."""
LOSSY = {6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 34892: "JPEG", 33003: "JPEG 2000", 33005: "JPEG 2000"}
COLOURS = {0: "grey", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab"}
LERC, WEBP, JPEG_XL = 34887, 50001, (50002, 52546)
SAMPLES, SAMPLE_SIDE = 4, 128
"""An alpha band is judged by SAMPLES x SAMPLES squares of this side in px, evenly spaced."""
MAX_TAGS = 4096
NO_COLOUR = ("undefined", "palette", "alpha")
"""What GDAL says of bands that are no colour."""
DRIVERS = {"TIFF": "GTiff", "JPEG 2000": "JP2OpenJPEG"}


@contextmanager
def opened(path: Path, driver: str = "GTiff") -> Iterator[Any]:
    """The file as rasterio sees it; :class:`RasterError` for whatever is wrong with it."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with (
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"),
            unplaced(),
            rasterio.open(Path(path).absolute(), driver=driver) as raster,
        ):  # as Path: no URLs are looked for
            yield raster
    except (RasterioError, MemoryError) as error:
        raise RasterError(f"{path}: not a readable raster ({' '.join(str(error).split())})") from error


def tags_of(path: Path) -> dict[int, tuple[int, ...]]:
    """The first directory's :data:`WANTED` tags."""
    try:
        with path.open("rb") as file:
            return _directory(file)
    except (OSError, struct.error, ValueError) as error:
        raise RasterError(f"{path}: not a readable raster (its directory is damaged: {error})") from error


def _directory(file: BinaryIO) -> dict[int, tuple[int, ...]]:
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = struct.unpack(f"{order}H", start[2:4])[0] == 43
    place, count_code, entry_code = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    (offset,) = struct.unpack(order + place, start[8:16] if big else start[4:8])
    file.seek(offset)
    (count,) = struct.unpack(order + count_code, file.read(struct.calcsize(order + count_code)))
    if count > MAX_TAGS:
        raise ValueError(f"{count} tags")
    size = struct.calcsize(order + entry_code)
    entries = file.read(count * size)
    found = {}
    for number in range(count):
        tag, kind, length, value = struct.unpack(order + entry_code, entries[number * size : (number + 1) * size])
        if tag not in WANTED or kind not in SIZES or not 0 < length <= 3 * 65536:
            continue
        width, code = SIZES[kind]
        if width * length > len(value):
            file.seek(struct.unpack(order + place, value)[0])
            value = file.read(width * length)
        found[tag] = struct.unpack(f"{order}{length}{code}", value[: width * length])
    return found


def facts_of_jpeg_2000(path: Path, max_megapixels: float | None) -> Facts:
    """From the header; always called lossy, since the header does not say."""
    with opened(path, DRIVERS["JPEG 2000"]) as raster:
        check_size(path, "an image of", raster.height * raster.width * raster.count // 3, max_megapixels)
        crs, transform, note = place_of(path, raster)
        alpha = [number for number, meaning in enumerate(raster.colorinterp, 1) if meaning.name == "alpha"]
        return Facts(
            container="JPEG 2000",
            height=raster.height,
            width=raster.width,
            count=raster.count,
            dtype=raster.dtypes[0],
            bits=8 * np.dtype(raster.dtypes[0]).itemsize,
            colour={1: "grey", 3: "rgb", 4: "rgb"}.get(raster.count, "bands"),
            lossy="JPEG 2000",
            alpha=alpha[0] if alpha else None,
            nodata=tuple(raster.nodatavals),
            crs=crs,
            transform=transform,
            place_note=note,
            meanings=_meanings(raster),
        )


def facts_of(path: Path, max_megapixels: float | None) -> Facts:
    """From tags and header. :class:`RasterError` for what is refused whoever reads it."""
    if path.with_name(f"{path.name}.msk").exists():
        raise RasterError(f"{path}: has a mask beside it, {path.name}.msk, which is not read; put it into the file")
    tags = tags_of(path)
    photometric = tags.get(PHOTOMETRIC, (1,))[0]
    # Files with a colour map may say that they are grey, as GDAL writes them where colours come after the pixels.
    colour = "palette" if COLOUR_MAP in tags and photometric <= 1 else COLOURS.get(photometric, "bands")
    orientation = tags.get(ORIENTATION, (1,))[0]
    orientation = orientation if 1 <= orientation <= 8 else 1  # readers take other numbers for 1
    with opened(path) as raster:
        _refuse(path, raster)
        height, width = raster.height, raster.width
        rows, columns = raster.block_shapes[0]
        pixel_interleaved = raster.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL"
        check_size(path, "a block of", rows * columns * (raster.count if pixel_interleaved else 1) // 3, max_megapixels)
        crs, transform, note = place_of(path, raster)
        if orientation != 1:
            check_size(path, "turned, ", height * width, max_megapixels)
            if crs is not None:
                raise RasterError(f"{path}: orientation {orientation} beside a CRS; save it upright (orientation 1)")
        space = raster.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE")
        if space is not None and colour not in ("cmyk", "YCbCr"):
            raise RasterError(f"{path}: colours are {space}; allowed: grey, RGB, CMYK, palette; save it as RGB")
        if colour == "cmyk" and space is None:
            raise RasterError(f"{path}: CMYK of {raster.dtypes[0]}; allowed: CMYK of 8 bits; save it as RGB")
        palette = _palette(raster) if colour == "palette" and raster.count == 1 else None
        bands = 3 if palette is not None or space == "CMYK" else raster.count
        flags = [flag.name for band in raster.mask_flag_enums for flag in band]
        alpha = [number for number, meaning in enumerate(raster.colorinterp, 1) if meaning.name == "alpha"]
        height, width = (width, height) if orientation >= 5 else (height, width)
        return Facts(
            container="TIFF",
            height=height,
            width=width,
            count=bands,
            dtype="uint8" if palette is not None else raster.dtypes[0],
            bits=tags.get(BITS, (1,))[0],
            colour=colour if colour != "rgb" or raster.count <= 4 else "bands",
            lossy=_loss(tags, raster),
            alpha=alpha[0] if alpha and space != "CMYK" and palette is None else None,
            orientation=orientation,
            inverted=photometric == 0 and palette is None,
            palette=palette,
            has_mask="per_dataset" in flags and not alpha,
            nodata=(raster.nodatavals[0],) * bands if bands > raster.count else tuple(raster.nodatavals),
            crs=crs,
            transform=transform,
            place_note=note,
            meanings=_meanings(raster),
        )


def _meanings(raster: Any) -> tuple[Meaning, ...]:
    colours = ("" if each.name in NO_COLOUR else each.name for each in raster.colorinterp)
    said = zip(raster.descriptions, raster.units, raster.scales, raster.offsets, colours, strict=True)
    return tuple(Meaning(name or "", unit or "", scale, offset, colour) for name, unit, scale, offset, colour in said)


def put_meanings(target: Any, meanings: Sequence[Meaning]) -> None:
    """Say of each band of a GeoTIFF that is being written what ``meanings`` say; nothing where these say nothing.

    Colours only where every band but an alpha band has one, and not of 8 bits: such files are red, green and blue in
    the order of their bands, since readers other than GDAL know no other order.
    """
    if not meanings:
        return
    if any(each != Meaning(colour=each.colour) for each in meanings):
        target.descriptions = tuple(each.name or None for each in meanings)
        target.units = tuple(each.unit for each in meanings)
        target.scales = tuple(each.scale for each in meanings)
        target.offsets = tuple(each.offset for each in meanings)
    from rasterio.enums import ColorInterp

    alpha, undefined = ColorInterp.alpha, ColorInterp.undefined
    there = target.colorinterp
    pairs = zip(there, meanings, strict=True)
    colours = tuple(own if own is alpha else ColorInterp[each.colour or undefined.name] for own, each in pairs)
    if target.dtypes[0] != "uint8" and undefined not in colours and colours != there:
        target.colorinterp = colours


def _refuse(path: Path, raster: Any) -> None:
    if len(raster.subdatasets) > 1:
        raise RasterError(
            f"{path}: holds {len(raster.subdatasets)} images (pages); allowed: one with all bands; save them as bands"
        )
    if raster.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") and not raster.dtypes[0].startswith("uint"):
        raise RasterError(f"{path}: 0 is white, of {raster.dtypes[0]}; allowed: of unsigned numbers; save it otherwise")
    if len(set(raster.dtypes)) > 1 or raster.dtypes[0].startswith("complex"):
        raise RasterError(f"{path}: bands are {', '.join(sorted(set(raster.dtypes)))}; allowed: one real number type")


def _palette(raster: Any) -> Palette:
    colours = raster.colormap(1)
    table = np.array([colours[index] for index in range(len(colours))], np.uint8)
    return Palette(np.ascontiguousarray(table[:, :3]), np.ones(len(table), bool))


def _loss(tags: dict[int, tuple[int, ...]], raster: Any) -> str:
    """By what the compression loses, empty for nothing."""
    compression = tags.get(COMPRESSION, (1,))[0]
    structure = raster.tags(ns="IMAGE_STRUCTURE")
    if compression in LOSSLESS:
        return "subsampled colours" if tags.get(PHOTOMETRIC) == (6,) else ""
    if compression == LERC:
        bound = float(structure.get("MAX_Z_ERROR", 0))
        exact = bound <= 0.5 if np.issubdtype(np.dtype(raster.dtypes[0]), np.integer) else bound == 0
        return "" if exact else f"LERC with an error of up to {bound:g}"
    if compression == WEBP or compression in JPEG_XL:
        exact = structure.get("COMPRESSION_REVERSIBILITY") == "LOSSLESS"
        return "" if exact else f"lossy {'WebP' if compression == WEBP else 'JPEG XL'} in TIFF"
    return f"{LOSSY.get(compression, f'compression {compression}')} in TIFF"


def read(path: Path, facts: Facts, window: Window, bands: tuple[int, ...] | None) -> tuple[Values, Valid | None]:
    """Stored values ``[h, w, bands]`` (None: all that are stored) and where they are valid (None: everywhere).

    Valid: not masked, not nodata, not NaN or infinite, not transparent; a band that is named is never a mask.
    """
    from rasterio.windows import Window as Part

    named = bands if bands is not None else tuple(number for number in range(1, facts.count + 1))
    stored = (1,) if facts.palette is not None else tuple(dict.fromkeys(named))
    alpha = facts.alpha if facts.alpha is not None and facts.alpha not in (bands or ()) else None
    if alpha is not None and not alpha_is_mask(path, alpha, stamp_of(path), facts.container):
        alpha = None
    whole = Part(0, 0, facts.height, facts.width) if facts.turned else Part(0, 0, facts.width, facts.height)
    part = Part(window.column, window.row, window.width, window.height) if facts.orientation == 1 else whole
    wanted = [*stored, *([alpha] if alpha is not None and alpha not in stored else [])]
    with opened(path, DRIVERS[facts.container]) as raster:
        values = raster.read(wanted, window=part)
        masked = raster.read_masks(1, window=part) if facts.has_mask else None
    valid = validity(values[: len(stored)], [facts.nodata[band - 1] for band in stored])
    if alpha is not None:
        valid = both(valid, values[wanted.index(alpha)] > 0)
    if masked is not None:
        valid = both(valid, masked > 0)
    order = [stored.index(band) for band in named] if facts.palette is None else [0]
    chosen = values[order] if order != list(range(len(values))) else values
    pixels = chosen.transpose(1, 2, 0)
    if facts.orientation != 1:
        pixels = shown(pixels, facts.orientation)[window.slices]
        valid = shown(valid, facts.orientation)[window.slices] if valid is not None else None
    return pixels, valid


def validity(values: Values, nodata: list[float | None]) -> Valid | None:
    """Of ``[bands, h, w]``; None: everywhere.

    Of 8 bits, ground is missing where every band is nodata: a roof that is white in one band is no hole. Of other
    depths, where any band is: no sensor measures -9999 in one band alone.
    """
    missing: Any = None
    if any(value is not None for value in nodata):
        every = values.dtype == np.uint8
        of_band = [_equal(band, value) for band, value in zip(values, nodata, strict=True)]
        missing = np.all(of_band, axis=0) if every else np.any(of_band, axis=0)
    if np.issubdtype(values.dtype, np.floating):
        unmeasured = ~np.isfinite(values).all(axis=0)
        missing = unmeasured if missing is None else missing | unmeasured
    return None if missing is None or not missing.any() else ~missing


def _equal(band: Values, value: float | None) -> Valid:
    if value is None:
        return np.zeros(band.shape, bool)
    if np.isnan(value):
        return np.isnan(band) if np.issubdtype(band.dtype, np.floating) else np.zeros(band.shape, bool)
    equal: Valid = band == (np.asarray(value).astype(band.dtype) if band.dtype.kind == "f" else value)
    return equal


def both(one: Valid | None, other: Valid | None) -> Valid | None:
    """Valid in both; None is everywhere."""
    if one is None or other is None:
        return one if other is None else other
    return one & other


@lru_cache(maxsize=256)
def alpha_is_mask(path: Path, band: int, stamp: tuple[int, int], container: str = "TIFF") -> bool:
    """Whether a band that is tagged as alpha is one: of what is not 0, nine tenths have its largest value.

    GDAL tags the fourth of four 8-bit bands as alpha whatever it holds, and there it is mostly near infrared, in which
    water is 0 and hardly anything is 255. A band of zeros alone would hide all: it is none.
    """
    from rasterio.windows import Window as Part

    with opened(path, DRIVERS[container]) as raster:
        side = min(SAMPLE_SIDE, raster.height, raster.width)
        places = [np.linspace(0, length - side, SAMPLES).astype(int) for length in (raster.height, raster.width)]
        if max(raster.height, raster.width) <= SAMPLE_SIDE * SAMPLES:
            parts = [Part(0, 0, raster.width, raster.height)]
        else:
            parts = [Part(int(column), int(row), side, side) for row in places[0] for column in places[1]]
        values = np.concatenate([raster.read(band, window=part).ravel() for part in parts])
        largest = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1
    seen = values[values != 0]
    return bool(seen.size) and bool((seen == largest).mean() >= 0.9)


def read_reduced(path: Path, facts: Facts, bands: tuple[int, ...], side: int) -> Values:
    """Float32 ``[bands, h, w]`` of at most ``side`` px, NaN where there is nothing: for percentiles."""
    with opened(path) as raster:
        shrink = max(1.0, max(raster.height, raster.width) / side)
        shape = max(1, round(raster.height / shrink)), max(1, round(raster.width / shrink))
        values = raster.read(list(bands), out_shape=(len(bands), *shape), masked=True)
        filled: Values = values.astype(np.float32).filled(np.nan)
    return filled
