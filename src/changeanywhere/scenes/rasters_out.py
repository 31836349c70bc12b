"""Cloud-optimised GeoTIFFs of a scene, written by rows in bounded memory. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import OutputError
from changeanywhere.legend import Legend
from changeanywhere.rasters.tiff import put_meanings
from changeanywhere.rasters.unplaced import unplaced
from changeanywhere.sample import GeoReference, Meaning

BLOCK = 512
CACHE_MB = 64
"""Of GDAL, whose default is a twentieth of the machine."""


@dataclass(frozen=True)
class Raster:
    """What a file holds beside its pixels."""

    height: int
    width: int
    count: int
    dtype: str
    georef: GeoReference | None
    nodata: float | None = None
    legend: Legend | None = None
    """Of a mask: its colours and names."""
    alpha: bool = False
    """Whether the last band is one."""
    masked: bool = False
    """Whether there is a mask band inside."""
    tags: dict[str, str] = field(default_factory=dict)
    meanings: tuple[Meaning, ...] = ()
    """What is said of each band; empty: nothing."""


class RowWriter:
    """Takes rows ``[h, W, C]`` of an open file."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def put(self, row: int, pixels: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None = None) -> None:
        """Write rows from ``row`` on; ``valid`` bool ``[h, W]`` where there is a mask band."""
        from rasterio.windows import Window

        part = Window(0, row, pixels.shape[1], pixels.shape[0])
        self._target.write(np.ascontiguousarray(pixels.transpose(2, 0, 1)), window=part)
        if valid is not None:
            self._target.write_mask(valid, window=part)


@contextmanager
def cog(path: Path, raster: Raster, scratch: Path) -> Iterator[RowWriter]:
    """A cloud-optimised GeoTIFF: tiled, deflated, with overviews; it is there when it is whole. ``scratch``: a folder
    for what is uncompressed meanwhile."""
    import rasterio
    import rasterio.shutil
    from rasterio.errors import RasterioError

    plain, packed = scratch / f"{path.name}.plain.tif", scratch / f"{path.name}.cog.tif"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with (
            rasterio.Env(GDAL_CACHEMAX=CACHE_MB, GDAL_TIFF_INTERNAL_MASK=True, GDAL_PAM_ENABLED="NO"),
            unplaced(),  # a scene without CRS stays without
        ):
            with rasterio.open(plain, "w", **_profile(raster)) as target:
                target.update_tags(**raster.tags)
                if raster.legend is not None:
                    _describe(target, raster.legend)
                if raster.alpha:
                    _mark_alpha(target)
                put_meanings(target, raster.meanings)
                yield RowWriter(target)
            rasterio.shutil.copy(plain, packed, driver="COG", **_options(raster))
        with packed.open("rb+") as file:
            os.fsync(file.fileno())
        packed.replace(path)
    except (OSError, RasterioError) as error:
        raise OutputError(f"{path}: cannot be written ({' '.join(str(error).split())})") from error
    finally:
        for left in (plain, packed):
            left.unlink(missing_ok=True)


def _profile(raster: Raster) -> dict[str, Any]:
    from rasterio.transform import Affine

    georef = raster.georef
    colours = {"photometric": "RGB"} if raster.count >= 3 and raster.dtype == "uint8" else {}
    more = {"ALPHA": "YES" if raster.alpha else "NO"} if raster.count > 3 or raster.alpha else {}
    return {
        "driver": "GTiff",
        "height": raster.height,
        "width": raster.width,
        "count": raster.count,
        "dtype": raster.dtype,
        "nodata": raster.nodata,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "bigtiff": "IF_SAFER",
        **({"crs": georef.crs, "transform": Affine(*georef.transform)} if georef else {}),
        **colours,
        **more,
    }


def _options(raster: Raster) -> dict[str, Any]:
    is_mask = raster.legend is not None or raster.count == 1
    return {
        "compress": "DEFLATE",
        "predictor": "NO" if is_mask and raster.dtype == "uint8" else "YES",
        "blocksize": BLOCK,
        "overview_resampling": "NEAREST" if raster.legend is not None else "AVERAGE" if raster.count > 1 else "NEAREST",
        "bigtiff": "IF_SAFER",
        "num_threads": 1,
    }


def _mark_alpha(target: Any) -> None:
    """Of bands beyond grey or red, green and blue GDAL's ALPHA marks the first, wherever the alpha band stands."""
    from rasterio.enums import ColorInterp

    there = target.colorinterp
    others = (ColorInterp.undefined if each is ColorInterp.alpha else each for each in there[:-1])
    wanted = (*others, ColorInterp.alpha)
    if wanted != there:
        target.colorinterp = wanted


def _describe(target: Any, legend: Legend) -> None:
    """Colours by index, and names as tags: GeoTIFF has no place of its own for names."""
    palette = legend.palette()
    target.write_colormap(
        1, {i: (*map(int, palette[i]), 255 if 0 < i <= legend.num_classes else 0) for i in range(256)}
    )
    names = ",".join(f"{c.index}={c.name}" for c in legend.classes)
    target.update_tags(1, CLASSES=f"0=unknown,{names}")
    target.set_band_description(1, "land cover")
