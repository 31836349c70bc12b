"""Milliseconds to read a tile (image, mask and valid ground) from PNG, JPEG and GeoTIFF files, small and large.

    python benchmarks/reading.py [--tiles 64] [--size 256] [--repeats 5]

Writes its own files into a temporary folder. Time of the processor, the best of ``repeats``: on a shared machine other
clocks measure the neighbours.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from changeanywhere.legend import load_legend
from changeanywhere.pairs import load_pairs
from changeanywhere.sources import SourceOptions, open_source

PLACE = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_000_000, 0.5, 0.5)}
KINDS = ("png", "jpg", "tif", "large tif")


def write_tif(path: Path, bands: npt.NDArray[Any], **profile: Any) -> None:
    """``[C, H, W]`` as a GeoTIFF with a place on the ground."""
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **PLACE, **profile
    ) as file:
        file.write(bands)


def make_source(folder: Path, kind: str, tiles: int, size: int) -> None:
    """A folder of ``tiles`` tiles of ``size`` px; "large tif": one file that is cut into about as many."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    load_legend("mini").save(folder / "legend.json")
    side = size * max(1, round(tiles**0.5)) if kind == "large tif" else size
    for number in range(1 if kind == "large tif" else tiles):
        mask = np.kron(rng.integers(1, 8, (side // 16, side // 16)), np.ones((16, 16))).astype(np.uint8)
        noise = rng.integers(0, 40, (side, side, 3))
        image = (mask[..., None] * 25 + noise).astype(np.uint8)
        if "tif" in kind:
            more: dict[str, Any] = {"tiled": True, "blockxsize": 256, "blockysize": 256} if kind != "tif" else {}
            write_tif(folder / "images" / f"{number}.tif", image.transpose(2, 0, 1), compress="deflate", **more)
            write_tif(folder / "masks" / f"{number}.tif", mask[None], compress="deflate", **more)
        else:
            Image.fromarray(image).save(folder / "images" / f"{number}.{kind}")
            Image.fromarray(mask).save(folder / "masks" / f"{number}.png")


def make_pairs(folder: Path, source: Path) -> None:
    """The images of ``source`` as both dates, with labels of 0 and 255."""
    for name in ("A", "B", "label"):
        (folder / name).mkdir(parents=True)
    for image in (source / "images").iterdir():
        for date in ("A", "B"):
            (folder / date / image.name).write_bytes(image.read_bytes())
        with Image.open(source / "masks" / f"{image.stem}.png") as mask:
            label = (np.asarray(mask) > 5).astype(np.uint8) * 255
        Image.fromarray(label).save(folder / "label" / f"{image.stem}.png")


def milliseconds(read: Any, count: int, repeats: int) -> float:
    """Best time per call of ``read(i)`` over ``i < count``."""
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        for i in range(count):
            read(i)
        best = min(best, (time.process_time() - started) / count * 1000)
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=64)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        for kind in KINDS:
            folder = Path(scratch) / kind.replace(" ", "_")
            make_source(folder, kind, options.tiles, options.size)
            opened = SourceOptions(tile_size=options.size)
            opening = milliseconds(lambda _, f=folder, o=opened: open_source(f, o), 1, options.repeats)
            source = open_source(folder, opened)
            reading = milliseconds(source.read, len(source), options.repeats)
            print(f"{kind:10} {reading:6.2f} ms per tile, opening {opening / len(source):6.2f} ms per tile")
        make_pairs(Path(scratch) / "pairs", Path(scratch) / "png")
        pairs = load_pairs(Path(scratch) / "pairs")
        print(f"{'png pairs':10} {milliseconds(pairs.__getitem__, len(pairs), options.repeats):6.2f} ms per pair")


if __name__ == "__main__":
    main()
