"""Masks: what the values, indices and colours of a file say in a legend."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import LegendError, RasterError
from changeanywhere.legend import Legend, Mask, MaskValues
from changeanywhere.rasters.facts import Facts, Valid, Values, Window, stamp_of
from changeanywhere.rasters.gate import alpha_of, expanded, read_stored
from changeanywhere.rasters.values import PLAIN, to_classes

STRIP = 1024
"""Rows of a mask that are looked at together."""


def check_mask(path: Path, facts: Facts) -> None:
    """:class:`RasterError` for what cannot hold classes, from the header alone."""
    if facts.lossy:
        raise RasterError(
            f"{path}: {facts.lossy} changes the classes of a mask; allowed: PNG, or TIFF without loss (deflate, LZW)"
        )
    if facts.inverted:
        raise RasterError(f"{path}: the file says that 0 is white; allowed for a mask: 0 is black; save it again")
    if facts.colour not in ("grey", "rgb", "palette", "bands"):
        raise RasterError(f"{path}: mask in {facts.colour} colours; allowed: indices, a palette, or RGB")
    if facts.count > 4 or (facts.count == 4 and facts.alpha != 4) or (facts.count == 2 and facts.alpha != 2):
        raise RasterError(
            f"{path}: mask has {facts.count} bands; allowed: one (indices), or red, green, blue; one band per class "
            "becomes one of indices by argmax + 1"
        )
    if facts.count > 2 and facts.palette is None and (facts.dtype, facts.bits) != ("uint8", 8):
        raise RasterError(
            f"{path}: mask colours of {facts.bits} bits ({facts.dtype}); allowed: 8 bits per colour, or one band of "
            "indices"
        )


def read_classes(path: Path, facts: Facts, window: Window, legend: Legend, numbers: MaskValues = PLAIN) -> Mask:
    """Mask uint8 ``[h, w]`` in ``legend``; ``numbers``: what the file's own mean.

    One band: the values are the indices. Palette: if every colour in use anywhere in the file is a colour of the
    legend, the colour says the class (files are often saved with an order of their own); else the index. Red, green and
    blue: the colour says the class. Unknown: where alpha is 0, a mask band says so, or a value is nodata. Raises
    :class:`LegendError` naming file and value, :class:`RasterError` for what :func:`check_mask` refuses.
    """
    check_mask(path, facts)
    colours = facts.count > 2 and facts.palette is None
    if facts.alpha is not None and alpha_of(path, facts) is None:
        raise RasterError(
            f"{path}: mask has {facts.count} bands, and the last is no alpha; allowed: one (indices), or red, green, "
            "blue; one band per class becomes one of indices by argmax + 1"
        )
    values, valid = read_stored(path, facts, window, None)
    if colours and not numbers.own_colours:
        raise LegendError(f"{path}: mask holds colours, and the legend has none; give each class its color [r, g, b]")
    if colours:
        _refuse_one_hot(path, values)
        if valid is None:
            return _by_colour(values[..., :3], legend, path)
        named = _by_colour(np.where(valid[..., None], values[..., :3], 0), legend, path)
        return np.where(valid, named, 0).astype(np.uint8)  # afterwards: black, too, may be a class
    indices = values[..., 0]
    if facts.palette is not None and numbers.own_colours:
        table = _palette_indices(path, stamp_of(path), legend, numbers, facts)
        if table is not None:
            found: Mask = table[indices]
            return found if valid is None else np.where(valid, found, 0).astype(np.uint8)
    return _by_index(indices, declared(indices, valid, facts), legend, numbers, path)


def declared(values: Values, valid: Valid | None, facts: Facts) -> Valid | None:
    """NaN counts as unknown only where the file says that it is its nodata; else it is a mistake that is told."""
    if valid is None or values.dtype.kind != "f":
        return valid
    if facts.nodata and facts.nodata[0] is not None and np.isnan(facts.nodata[0]):
        return valid | np.isinf(values)
    return valid | ~np.isfinite(values)


def _by_index(values: Values, valid: Valid | None, legend: Legend, numbers: MaskValues, path: Path) -> Mask:
    if valid is not None:  # ground without a value is unknown, whatever number stands there
        harmless = 0 if numbers.is_plain else numbers.counted(legend.num_classes)[0]
        values = np.where(valid, values, np.asarray(harmless, values.dtype))
    if values.dtype.kind == "f":
        wrong = ~(np.isfinite(values) & (values == np.rint(values)))
        if wrong.any():
            raise LegendError(
                f"{path}: mask value {values[wrong].flat[0]} is not a class; allowed: 0 (unknown) to "
                f"{legend.num_classes}"
            )
    found = to_classes(values, legend, numbers, path)
    return found if valid is None else np.where(valid, found, 0).astype(np.uint8)


def _refuse_one_hot(path: Path, values: Values) -> None:
    """Colours of which every pixel has exactly one, of equal height, are more likely one band per class."""
    largest = values.max(initial=0)
    if largest == 1 and ((values == 0) | (values == 1)).all():
        raise RasterError(
            f"{path}: mask has {values.shape[2]} bands of 0 and 1, one per class (one-hot); allowed: one band of "
            "indices; argmax + 1 over the bands gives it"
        )
    one_each = (np.count_nonzero(values, axis=2) == 1).all()
    if values.shape[2] == 4 and one_each and np.count_nonzero(values[..., :3]):
        raise RasterError(f"{path}: mask has 4 bands, one per class (one-hot); allowed: one band of indices")


@lru_cache(maxsize=64)
def _palette_indices(
    path: Path, stamp: tuple[int, int], legend: Legend, numbers: MaskValues, facts: Facts
) -> npt.NDArray[np.uint8] | None:
    """Class by palette index, or None where the index itself says the class; decided once for the whole file. What the
    legend ignores is unknown, whatever its colour.

    :class:`LegendError` where both readings are possible: some colours are the legend's, in another order, and some are
    not.
    """
    palette = facts.palette
    assert palette is not None
    counts = np.zeros(max(256, len(palette.colours), 2**16 if facts.bits == 16 else 0), np.int64)
    for row in range(0, facts.height, STRIP):
        strip = Window(row, 0, min(STRIP, facts.height - row), facts.width)
        indices, valid = read_stored(path, facts, strip, None)
        seen = indices[..., 0].ravel() if valid is None else indices[..., 0][valid]
        counts += np.bincount(seen, minlength=len(counts))
    used = np.flatnonzero(counts)
    expanded(path, used, palette)  # no index is beyond the colours
    index_of: dict[tuple[int, ...], int] = {(0, 0, 0): 0}
    index_of |= {c.color: c.index for c in legend.classes}
    colours = {int(i): tuple(map(int, palette.colours[i])) for i in used if i not in numbers.ignored}
    if numbers.is_plain and all(colour == _colour_of(index, legend) for index, colour in colours.items()):
        return None  # both say the same, but for a class that is black: 0, which is unknown, has its colour
    if all(colour in index_of for colour in colours.values()):
        table = np.zeros(len(counts), np.uint8)
        for index, colour in colours.items():
            table[index] = index_of[colour]
        return table
    for index, colour in colours.items():
        by_colour = index_of.get(colour)
        if by_colour and numbers.counted(len(legend.classes))[by_colour - 1] != index:
            raise LegendError(
                f"{path}: palette index {index} has the colour of {legend.name_of(by_colour)}, and other colours are "
                f"not in the legend {legend.name!r}; save the mask without palette, or with the legend's colours alone"
            )
    return None


def _colour_of(index: int, legend: Legend) -> tuple[int, int, int] | None:
    """As our own masks have it in their palette."""
    if index == 0:
        return (0, 0, 0)
    return legend.classes[index - 1].color if index <= legend.num_classes else None


def _by_colour(pixels: Values, legend: Legend, path: Path) -> Mask:
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
