"""A whole scene: what it costs beside tiles, how much memory it takes, and whether its windows show.

    python benchmarks/scenes.py mosaic --source ../shared/data/landcover/train --licences CC0-1.0 CC-BY-4.0 --out runs/m
    python benchmarks/scenes.py cost --mosaic runs/m --out runs/m/cost
    python benchmarks/scenes.py seams --scene runs/m/cost/scene/mosaic --out runs/m/worst.png

mosaic  GeoTIFF and mask of --side px from tiles of 256 px, side by side in the order of their keys
cost    processor seconds per megapixel of generate --scene and of generate on the same image in tiles of 256 px, a pair
        each; largest resident set; the share of pixels that changes
seams   mean difference of neighbouring pixels across each border of two windows (in the middle of what they share),
        against lines half a window on: ratio of medians, Kolmogorov-Smirnov; a picture of the worst
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from scipy import stats

import changeanywhere as ca
from changeanywhere.diffusion.canvas import GUARD, RAMP
from changeanywhere.models.info import DOWNSAMPLING, find_model, read_info

TILE = 256
PLACE = {"crs": "EPSG:32640", "transform": from_origin(320_000, 2_780_000, 0.6, 0.6)}


def mosaic(source: Path, licences: Sequence[str] | None, side: int, out: Path) -> None:
    """Write ``mosaic.tif``, ``mosaic_mask.tif`` and the legend into ``out``."""
    tiles = ca.load_source(source, licences=licences)
    out.mkdir(parents=True, exist_ok=True)
    tiles.legend.save(out / "legend.json")
    profile = {"driver": "GTiff", "height": side, "width": side, "dtype": "uint8", "tiled": True, **PLACE}
    with (
        rasterio.open(out / "mosaic.tif", "w", count=3, **profile) as image,
        rasterio.open(out / "mosaic_mask.tif", "w", count=1, **profile) as mask,
    ):
        for number in range((side // TILE) ** 2):
            sample = tiles.read(number % len(tiles))
            row, column = divmod(number, side // TILE)
            window = rasterio.windows.Window(column * TILE, row * TILE, TILE, TILE)
            image.write(sample.image[..., :3].transpose(2, 0, 1), window=window)
            mask.write(sample.mask[None], window=window)


def cost(place: Path, out: Path, threads: int, more: Sequence[str]) -> None:
    """Print one line for the scene and one for tiles."""
    image, mask = place / "mosaic.tif", place / "mosaic_mask.tif"
    with rasterio.open(image) as raster:
        megapixels = raster.height * raster.width / 1e6
    common = ["--num-threads", str(threads), *more]
    scene = ["generate", "--scene", str(image), "--mask", str(mask), "--out", str(out / "scene"), *common]
    per_scene = _run("scene", scene, megapixels)
    source = out / "source"
    for folder, file in (("images", image), ("masks", mask)):
        (source / folder).mkdir(parents=True, exist_ok=True)
        if not (source / folder / "mosaic.tif").exists():
            os.link(file, source / folder / "mosaic.tif")
    if not (source / "legend.json").exists():
        os.link(place / "legend.json", source / "legend.json")
    pairs = round(megapixels * 1e6 / TILE**2)
    tiles = ["generate", "--source", str(source), "--out", str(out / "tiles"), "--num-pairs", str(pairs), *common]
    per_tile = _run("tiles", tiles, pairs * TILE * TILE / 1e6)
    with rasterio.open(out / "scene" / "mosaic" / "change.tif") as raster:
        shares = [float((raster.read(1) > 0).mean())]
    lines = (out / "tiles" / "metadata.jsonl").read_text().splitlines()
    shares.append(sum(json.loads(line)["change_ratio"] for line in lines) / len(lines))
    print(f"scene / tiles: {per_scene / per_tile:.2f}; changed: scene {shares[0]:.2%}, tiles {shares[1]:.2%}")


def _run(name: str, arguments: Sequence[str], megapixels: float) -> float:
    """Processor seconds per megapixel, which other work on the machine changes little."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "changeanywhere", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = used.ru_utime + used.ru_stime
    print(
        f"{name}: {megapixels:.1f} megapixels, {seconds / megapixels:.2f} processor s per megapixel "
        f"({time.perf_counter() - started:.0f} s in all), {used.ru_maxrss / 1e6:.2f} GB, exit {status >> 8}",
        flush=True,
    )
    return seconds / megapixels


def borders(image: npt.NDArray[np.float64], window: int) -> tuple[list[float], list[float], list[tuple[int, int]]]:
    """Of ``[H, W]``: mean absolute difference across each vertical border of two windows, over the length of one, and
    across lines half a stride on; and where the borders are (row, column)."""
    stride = window - (2 * GUARD + RAMP) * DOWNSAMPLING
    middle = RAMP // 2 * DOWNSAMPLING
    across, inside, places = [], [], []
    for row in range(0, image.shape[0] - stride + 1, stride):
        for column in range(stride - middle, image.shape[1] - stride // 2 - 1, stride):
            part = image[row : row + stride]
            across.append(float(np.abs(part[:, column] - part[:, column - 1]).mean()))
            other = column + stride // 2
            inside.append(float(np.abs(part[:, other] - part[:, other - 1]).mean()))
            places.append((row, column))
    return across, inside, places


def seams(scene: Path, window: int, out: Path | None) -> None:
    """Print the comparison; write the border that stands out most from the line inside beside it."""
    with rasterio.open(scene / "t2.tif") as raster:
        pixels = raster.read([1, 2, 3])
    with rasterio.open(scene / "t1.tif") as raster:
        before = raster.read([1, 2, 3]).mean(0)
    image = pixels.mean(0)
    for name, grey in (("t2", image), ("t1", before)):
        found = [borders(grey, window), borders(grey.T, window)]
        across, inside = (np.array(found[0][i] + found[1][i]) for i in (0, 1))
        test = stats.ks_2samp(across, inside)
        print(
            f"{name}: {len(across)} borders, median across {np.median(across):.3f}, inside {np.median(inside):.3f}, "
            f"ratio {np.median(across) / np.median(inside):.3f}, KS {test.statistic:.3f}, p {test.pvalue:.3f}"
        )
        if name == "t2" and out is not None:
            excess = np.array(found[0][0]) / np.maximum(np.array(found[0][1]), 1e-6)
            row, column = found[0][2][int(excess.argmax())]
            left = max(column - 112, 0)
            part = pixels[:, row : row + 224, left : left + 224].transpose(1, 2, 0)
            Image.fromarray(np.ascontiguousarray(part)).save(out)
            print(f"worst: column {column} from row {row}, {excess.max():.2f} times the line inside")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["mosaic", "cost", "seams"])
    parser.add_argument("--source", type=Path)
    parser.add_argument("--licences", nargs="+")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--mosaic", type=Path)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--window", type=int, default=read_info(find_model("mini")).tile_size)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options, more = parser.parse_known_args(argv)
    if options.what == "mosaic":
        mosaic(options.source, options.licences, options.side, options.out)
    elif options.what == "cost":
        cost(options.mosaic, options.out, options.threads, more)
    else:
        seams(options.scene, options.window, options.out)


if __name__ == "__main__":
    main()
