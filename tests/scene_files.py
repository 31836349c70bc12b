"""A small scene as files: a GeoTIFF of noise over land cover, its mask as raster and as polygons."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from changeanywhere.legend import load_legend

FILES = ("t1.tif", "t2.tif", "mask_t1.tif", "mask_t2.tif", "change.tif")
CRS, ORIGIN, PIXEL = "EPSG:32640", (320_000.0, 2_780_000.0), 0.6


def land_cover(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Bare land with a road, ponds and houses; some of it unknown."""
    mask = np.ones((height, width), np.uint8)
    mask[:, width // 2 : width // 2 + 8] = 2
    for row in range(10, height - 30, 60):
        for column in range(12, width - 30, 48):
            mask[row : row + 12, column : column + 14] = 4
            mask[row + 26 : row + 38, column + 4 : column + 18] = 3
    mask[-6:, :20] = 0
    return mask


def colours(mask: npt.NDArray[np.uint8], seed: int = 0) -> npt.NDArray[np.uint8]:
    """An image in which the land cover shows."""
    noise = np.random.default_rng(seed).integers(-20, 20, (*mask.shape, 3))
    return np.clip(load_legend("mini").palette()[mask].astype(int) // 2 + 60 + noise, 1, 255).astype(np.uint8)


def write_tiff(path: Path, bands: npt.NDArray[Any], **more: Any) -> Path:
    """``[H, W, C]`` on the grid of the scene."""
    height, width, count = bands.shape
    place = {"crs": CRS, "transform": from_origin(*ORIGIN, PIXEL, PIXEL)} | more
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=bands.dtype, tiled=True, **place
    ) as target:
        target.write(bands.transpose(2, 0, 1))
    return path


def write_scene(folder: Path, height: int = 150, width: int = 190) -> tuple[Path, Path]:
    """Image and mask of 8 bits, and the legend beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    mask = land_cover(height, width)
    load_legend("mini").save(folder / "legend.json")
    image = write_tiff(folder / "town.tif", colours(mask))
    return image, write_tiff(folder / "town_mask.tif", mask[..., None])


def command(image: Path, mask: Path, out: Path, model: Path, *more: str) -> list[str]:
    """A scene with three events under the tiny model."""
    return [
        *("generate", "--scene", str(image), "--mask", str(mask), "--out", str(out), "--model", str(model)),
        *("--num-steps", "4", "--free-fraction", "0.5", "--num-events", "3", "--window", "64"),
        *("--num-threads", "1", *more),
    ]


def values(path: Path) -> npt.NDArray[Any]:
    """All bands of a raster ``[C, H, W]``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        raster = rasterio.open(path)
    with raster:
        found: npt.NDArray[Any] = raster.read()
    return found
