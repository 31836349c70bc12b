"""Masks as they are labelled, window by window: a GeoTIFF on the image's grid, or a PNG."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from changeanywhere.legend import Legend, Mask
from changeanywhere.pairs.codec import encode_png
from changeanywhere.rasters.facts import Facts, Window
from changeanywhere.rasters.unplaced import unplaced
from changeanywhere.storage import atomic_write

BLOCK = 256


@contextmanager
def mask_writer(file: Path, facts: Facts, legend: Legend) -> Iterator[Callable[[Window, Mask], None]]:
    """Gives what takes a window and its mask; ``file`` appears when the context ends without an error."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".tif":
        with _geotiff(file, facts, legend) as write:
            yield write
        return
    whole = np.zeros((facts.height, facts.width), np.uint8)

    def put(window: Window, mask: Mask) -> None:
        whole[window.slices] = mask

    yield put
    atomic_write(file, encode_png(whole, legend.palette()))


@contextmanager
def _geotiff(file: Path, facts: Facts, legend: Legend) -> Iterator[Callable[[Window, Mask], None]]:
    import rasterio
    from rasterio.windows import Window as RasterWindow

    place: dict[str, Any] = {} if facts.crs is None else {"crs": facts.crs, "transform": facts.transform}
    part = file.with_name(f".{file.stem}.{os.getpid()}.part.tif")
    try:
        with (
            unplaced(),  # an image without CRS stays without
            rasterio.open(
                part,
                "w",
                driver="GTiff",
                height=facts.height,
                width=facts.width,
                count=1,
                dtype="uint8",
                compress="deflate",
                tiled=True,
                blockxsize=BLOCK,
                blockysize=BLOCK,
                bigtiff="if_safer",
                **place,
            ) as target,
        ):
            target.write_colormap(1, {c.index: (*c.color, 255) for c in legend.classes})

            def put(window: Window, mask: Mask) -> None:
                where = RasterWindow(window.column, window.row, window.width, window.height)
                target.write(mask, 1, window=where)

            yield put
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
