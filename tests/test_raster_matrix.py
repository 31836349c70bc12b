"""Every kind of file in every place: read to the exact pixels, or refused by name, as docs/data.md says.

Container × depth × bands × compression × alpha, mask, nodata and orientation; image and mask of a source, image and
label of a pair.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from PIL import Image

from changeanywhere.errors import InputError, LegendError, PairsError, SourceError
from changeanywhere.legend import load_legend
from changeanywhere.pairs import load_pairs
from changeanywhere.sources import SourceOptions, open_source
from raster_files import stored_for, write_png, write_tif

LEGEND = load_legend("mini")
SIDE = 32
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[3:9, 10:17] = True
TYPES = {"1": "uint8", "2": "uint8", "4": "uint8"}
DEPTHS = ("1", "2", "4", "uint8", "uint16", "int16", "uint32", "float32", "float64")
CODED: dict[str, dict[str, Any]] = {
    "none": {},
    "deflate": {"compress": "deflate", "predictor": 1},
    "lzw": {"compress": "lzw"},
    "zstd": {"compress": "zstd"},
    "lerc": {"compress": "lerc"},
    "lerc_zstd": {"compress": "lerc_zstd"},
    "lossy lerc": {"compress": "lerc", "MAX_Z_ERROR": 1},
    "lossy lerc_deflate": {"compress": "lerc_deflate", "MAX_Z_ERROR": 1},
    "webp": {"compress": "webp", "WEBP_LOSSLESS": True},
    "lossy webp": {"compress": "webp", "WEBP_LOSSLESS": False},
    "lossy jpeg": {"compress": "jpeg"},
    "lossy jpeg ycbcr": {"compress": "jpeg", "photometric": "YCBCR"},
}
Values = npt.NDArray[Any]


class Cell(NamedTuple):
    """One kind of file."""

    container: str
    depth: str
    bands: int
    """Alpha not counted."""
    coding: str = "none"
    extra: str = ""
    """"alpha", "mask", "nodata", "nan", "transparent", "infrared" (a fourth band that GDAL tags as alpha)."""
    orientation: int = 1

    @property
    def lossy(self) -> bool:
        return self.container == "jpeg" or self.coding.startswith("lossy")

    @property
    def holed(self) -> bool:
        return self.extra not in ("", "infrared")

    @property
    def largest(self) -> int:
        bits = {"1": 1, "2": 2, "4": 4}.get(self.depth)
        if bits:
            return int(2**bits - 1)
        kind = np.dtype(self.depth)
        return int(np.iinfo(kind).max) if kind.kind in "ui" else 30_000

    @property
    def colours(self) -> bool:
        return self.container != "tif" and self.bands == 3


def cells() -> list[Cell]:
    found = []
    for depth in DEPTHS:
        few = depth in TYPES
        for bands in (1, 3) if few else (1, 2, 3, 4, 6):
            found.append(Cell("tif", depth, bands))
            found += [Cell("tif", depth, bands, extra="mask"), Cell("tif", depth, bands, "deflate")]
            if not few:
                found += [Cell("tif", depth, bands, extra="nodata")]
            if depth.startswith("float"):
                found += [Cell("tif", depth, bands, extra="nan")]
            if depth in ("uint8", "uint16") and bands in (1, 3):
                found.append(Cell("tif", depth, bands, extra="alpha"))
        for coding in ("lzw", "zstd", *(("lerc", "lossy lerc", "lerc_zstd", "lossy lerc_deflate") if not few else ())):
            found += [Cell("tif", depth, bands, coding) for bands in (1, 3)]
    found += [Cell("tif", "uint8", 3, coding) for coding in ("webp", "lossy webp", "lossy jpeg", "lossy jpeg ycbcr")]
    found += [Cell("tif", "uint8", 1, "lossy jpeg"), Cell("tif", "uint8", 4, extra="infrared")]
    found += [Cell("tif", "uint8", bands, orientation=turn) for bands in (1, 3) for turn in range(2, 9)]
    for depth in ("1", "2", "4", "uint8", "uint16"):
        for turn in (1, 6, 3):
            found += [Cell("png", depth, 1, orientation=turn), Cell("png", depth, 1, "palette", orientation=turn)][
                : 1 if depth == "uint16" else 2
            ]
            found += [Cell("png", depth, 3, orientation=turn)] if depth not in TYPES else []
        found += [Cell("png", depth, 1, extra="transparent")] if depth != "1" else []
        found += [Cell("png", depth, 1, "palette", "transparent")] if depth not in ("1", "uint16") else []
        if depth not in TYPES:
            found += [Cell("png", depth, bands, extra=extra) for bands in (1, 3) for extra in ("alpha", "transparent")]
    found += [Cell("jpeg", "uint8", bands, orientation=turn) for bands in (1, 3, 4) for turn in range(1, 9)]
    return list(dict.fromkeys(found))


CELLS = cells()


def saved(path: Path, cell: Cell, values: Values, nodata: float = 0) -> Values:
    """Write ``values`` ``[H, W, C]``; what a reader should see as they are stored (loss and holes among it)."""
    dtype = TYPES.get(cell.depth, cell.depth)
    values = values.astype(dtype)
    if cell.extra in ("nodata", "transparent"):
        values[HOLE] = nodata
    if cell.extra == "nan":
        values[HOLE] = np.nan
    if cell.extra == "alpha":
        values = np.dstack([values, np.where(HOLE, 0, cell.largest).astype(dtype)])
    stored = stored_for(values, cell.orientation)
    if cell.container == "tif":
        profile = dict(CODED[cell.coding])
        if cell.depth in TYPES:
            profile["nbits"] = int(cell.depth)
        if cell.extra == "alpha":
            profile |= {"ALPHA": "YES", "photometric": "RGB" if cell.bands == 3 else "MINISBLACK"}
        elif cell.bands == 4 and cell.depth == "uint8" and cell.extra != "infrared":
            profile |= {"ALPHA": "NO", "photometric": "RGB"}
        if cell.extra == "nodata":
            profile["nodata"] = nodata
        if cell.orientation != 1:
            Image.fromarray(stored[..., 0] if cell.bands == 1 else stored).save(path, tiffinfo={274: cell.orientation})
        else:
            write_tif(path, stored, ~HOLE if cell.extra == "mask" else None, **profile)
    elif cell.container == "png":
        bits = 16 if cell.depth == "uint16" else 8 if cell.depth == "uint8" else int(cell.depth)
        transparency, palette = b"", None
        if cell.coding == "palette":
            palette = PALETTE[: 2**bits]
            transparency = bytes(0 if index == nodata else 255 for index in range(len(palette)))
            transparency = transparency if cell.extra == "transparent" else b""
        elif cell.extra == "transparent":
            transparency = int(nodata).to_bytes(2, "big") * cell.bands
        write_png(path, stored, bits, palette, transparency, cell.orientation)
    else:
        shape = stored[..., 0] if cell.bands == 1 else stored
        picture = Image.fromarray(shape, "CMYK" if cell.bands == 4 else None)
        exif = Image.Exif()
        exif[274] = cell.orientation
        picture.save(path, "JPEG", quality=95, exif=exif)
    return values


PALETTE = np.array([(index * 16, 255 - index * 16, index * 3) for index in range(16)], np.uint8)


def as_image(path: Path, cell: Cell, values: Values) -> Values:
    """What an image of these values shows."""
    if cell.container == "jpeg":  # whatever the decoder of Pillow gives
        with Image.open(path) as picture:
            turned = np.asarray(picture.convert("RGB") if cell.bands == 4 else picture)
        shown = {6: np.rot90(turned, -1), 8: np.rot90(turned, 1), 3: turned[::-1, ::-1], 2: turned[:, ::-1]}
        shown |= {1: turned, 4: turned[::-1], 5: turned.swapaxes(0, 1), 7: turned[::-1, ::-1].swapaxes(0, 1)}
        image = shown[cell.orientation]
        return image if image.ndim == 3 else image[..., None]
    if cell.lossy:  # whatever GDAL gives
        with rasterio.open(path) as raster:
            return np.asarray(raster.read()).transpose(1, 2, 0)
    if cell.coding == "palette":
        return PALETTE[values[..., 0]]
    if cell.depth in TYPES:
        return values * np.uint8(255 // cell.largest)
    return values


def pattern(cell: Cell, values: Values) -> Values:
    """``values`` by row and column in ``cell.bands`` bands, each another."""
    rows, columns = np.indices((SIDE, SIDE))
    kinds = (rows // 4 + columns // 4) % len(values)
    return np.stack([values[(kinds + band) % len(values)] for band in range(cell.bands)], axis=-1)


def levels(cell: Cell) -> Values:
    """Values of an image: from 1 to the largest of the depth, so that 0 is free for nodata."""
    if cell.coding == "palette":
        return np.arange(1, 2 ** (int(cell.depth) if cell.depth in TYPES else 4))
    return np.unique(np.linspace(min(1, cell.largest - 1), cell.largest, 9).astype(np.int64))


def refusal_of_bands(cell: Cell) -> bool:
    """More bands than colours have, or two."""
    return cell.bands in (2, 4, 6) and cell.container != "jpeg"


def good(folder: Path, *names: str) -> None:
    """Usual files beside the one that is tried."""
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        shape = (SIDE, SIDE, 3) if name in ("images", "A", "B") else (SIDE, SIDE)
        high = {"masks": 8, "label": 1}.get(name, 255)
        Image.fromarray(rng.integers(0, high, shape).astype(np.uint8)).save(folder / name / "x.png")
    LEGEND.save(folder / "legend.json")


def place(folder: Path, cell: Cell) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"x.{'jpg' if cell.container == 'jpeg' else cell.container}"


def test_the_matrix_is_large() -> None:
    assert len(CELLS) >= 150 and len(set(CELLS)) == len(CELLS)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_images_of_a_source_and_of_a_pair(cell: Cell, tmp_path: Path) -> None:
    values = pattern(cell, levels(cell))
    if cell.extra == "infrared":
        values[..., 3] = np.where(HOLE, 0, values[..., 3] // 2)
    source, pairs = tmp_path / "source", tmp_path / "pairs"
    good(source, "masks")
    file = place(source / "images", cell)
    stored = saved(file, cell, values)
    image = as_image(file, cell, stored)
    count = image.shape[2] - (cell.extra == "alpha")
    bands = tuple(range(1, min(count, 3) + 1))
    options = SourceOptions(tile_size=32, bands=bands)
    sample = open_source(source, options)[0]
    with Image.open(source / "masks" / "x.png") as picture:
        mask = np.asarray(picture)
    hole = HOLE if cell.holed else np.zeros_like(HOLE)
    assert np.array_equal(sample.image[~hole], image[..., : len(bands)][~hole])
    assert sample.image.dtype == image.dtype and np.isfinite(sample.image).all()
    assert np.array_equal(sample.mask, np.where(hole, 0, mask))
    good(pairs, "label")
    for date in ("A", "B"):
        place(pairs / date, cell).write_bytes(file.read_bytes())
    pair = load_pairs(pairs)[0]
    found = pair.image_t1 if pair.image_t1.ndim == 3 else pair.image_t1[..., None]
    assert found.shape[2] == count and np.array_equal(found[..., : len(bands)][~hole], sample.image[~hole])
    assert np.array_equal(pair.ignored if pair.ignored is not None else np.zeros_like(HOLE), hole)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_masks_of_a_source(cell: Cell, tmp_path: Path) -> None:
    good(tmp_path, "images")
    file = place(tmp_path / "masks", cell)
    colours = cell.bands == 3
    classes = np.arange(1, min(7, cell.largest - 1) + 1 if cell.extra in ("nodata", "transparent") else 5)
    classes = classes[classes <= cell.largest] if len(classes) else np.array([0])
    expected = pattern(cell._replace(bands=1), classes)[..., 0]
    if cell.lossy and not colours:
        expected = expected * 30
    values: Values = LEGEND.colorize(expected.astype(np.uint8)) if colours else pattern(cell, classes)
    values = values if colours or cell.bands > 1 else expected[..., None]
    nodata = min(15, cell.largest) if cell.coding == "palette" or cell.depth in TYPES else 9
    saved(file, cell, values, nodata)
    options = SourceOptions(tile_size=32)
    if cell.lossy:
        refusal = "changes the classes of a mask"
    elif refusal_of_bands(cell):
        refusal = r"mask has \d bands"
    elif colours and cell.depth != "uint8":
        refusal = r"mask colours of \d+ bits"
    elif cell.extra == "nan":
        refusal = "mask value nan is not a class"
    else:
        hole = HOLE if cell.holed else np.zeros_like(HOLE)
        assert np.array_equal(open_source(tmp_path, options).read_mask(0), np.where(hole, 0, expected))
        return
    with pytest.raises((SourceError, LegendError), match=refusal) as caught:
        open_source(tmp_path, options).read_mask(0)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
def test_labels_of_pairs(cell: Cell, tmp_path: Path) -> None:
    good(tmp_path, "A", "B")
    (tmp_path / "legend.json").unlink()
    file = place(tmp_path / "label", cell)
    changed = np.zeros((SIDE, SIDE), bool)
    changed[0:16, 8:24] = True
    high = 255 if cell.lossy else 1
    values = np.zeros((SIDE, SIDE, cell.bands), np.int64)
    values[changed] = high
    if cell.container == "jpeg" and cell.bands == 4:  # CMYK: no ink is white
        values = 255 - values
        values[..., 3] = 0
        values = values.clip(0, 255)
    nodata = min(15, cell.largest) if cell.coding == "palette" or cell.depth in TYPES else 9
    hole = HOLE if cell.holed else np.zeros_like(HOLE)
    if cell.coding == "palette":
        return  # colours: test_rasters.py
    saved(file, cell, values, nodata)
    if refusal_of_bands(cell) or cell.extra == "infrared":
        with pytest.raises(PairsError, match=r"label has \d bands; allowed: one, or red, green, blue"):
            load_pairs(tmp_path)[0]
        return
    try:
        pair = load_pairs(tmp_path)[0]
    except InputError as error:  # no cell is refused without its name
        raise AssertionError(f"{cell}: {error}") from error
    assert np.array_equal(pair.change_mask, changed & ~hole)
    assert np.array_equal(pair.ignored if pair.ignored is not None else np.zeros_like(HOLE), hole)
