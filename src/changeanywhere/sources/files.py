"""Files of single-date sources: which there are, whether they changed, and their pixels through :mod:`..rasters`.

PNG and JPEG have to be decoded whole (the last ones are kept); of GeoTIFFs the window alone is read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from changeanywhere.errors import SourceError
from changeanywhere.legend import Legend, Mask, MaskValues
from changeanywhere.rasters import classes, gate
from changeanywhere.rasters.facts import Facts, Valid, Window, raising
from changeanywhere.rasters.values import PLAIN
from changeanywhere.regular import open_regular
from changeanywhere.sample import Image, Normalisation

LOSSY_SUFFIXES = (".jpg", ".jpeg")
SUFFIXES = (".png", *LOSSY_SUFFIXES, ".tif", ".tiff", ".jp2")
DIGEST_PARTS, DIGEST_PART = 16, 1 << 18  # 4 MiB of a large file say whether it was changed


def digest(path: Path) -> str:
    """Hash of a file's size and bytes; of a large one, of its size and evenly spaced parts."""
    size = path.stat().st_size
    seen = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open_regular(path) as file:
        if size <= DIGEST_PARTS * DIGEST_PART:
            seen.update(file.read())
        else:
            for part in range(DIGEST_PARTS):
                file.seek(part * (size - DIGEST_PART) // (DIGEST_PARTS - 1))
                seen.update(file.read(DIGEST_PART))
    return seen.hexdigest()


def read_info(path: Path, max_megapixels: float | None = None) -> Facts:
    """What an image or mask file is; :class:`SourceError` if it is none that is read."""
    with raising(SourceError):
        return gate.inspect(path, max_megapixels)


def read_mask_info(path: Path, max_megapixels: float | None = None) -> Facts:
    """The same of a mask; :class:`SourceError` for what cannot hold classes (lossy files, one band per class)."""
    with raising(SourceError):
        facts = gate.inspect(path, max_megapixels)
        classes.check_mask(path, facts)
        return facts


def read_image(path: Path, window: Window, bands: tuple[int, ...], facts: Facts) -> tuple[Image, Valid | None]:
    """Pixels ``[h, w, len(bands)]`` in file units, and where ground was imaged, bool ``[h, w]`` (None: everywhere)."""
    with raising(SourceError):
        return gate.read_image(path, facts, window, bands)


def read_valid(path: Path, window: Window, bands: tuple[int, ...], facts: Facts) -> Valid | None:
    """Where ground was imaged: not nodata, masked, transparent or NaN; bool ``[h, w]``. None: everywhere."""
    whole = facts.alpha is None and facts.transparent is None and not facts.has_mask
    opaque = facts.palette is None or facts.palette.opaque.all()
    measured = all(value is None for value in facts.nodata) and not facts.dtype.startswith("float")
    if whole and opaque and measured:
        return None
    return read_image(path, window, bands, facts)[1]


def read_mask(path: Path, window: Window, legend: Legend, facts: Facts, numbers: MaskValues = PLAIN) -> Mask:
    """Mask uint8 ``[h, w]`` in ``legend``; see :func:`.classes.read_classes` for what it may hold and the errors."""
    with raising(SourceError):
        return classes.read_classes(path, facts, window, legend, numbers)


def read_stretch(
    path: Path, bands: tuple[int, ...], percentiles: tuple[float, float], max_megapixels: float | None = None
) -> Normalisation:
    """8 bits: x / 127.5 - 1. Else percentiles of each band over the whole image (large ones read reduced)."""
    with raising(SourceError):
        return gate.read_stretch(path, bands, percentiles, max_megapixels)
