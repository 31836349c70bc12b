"""A whole scene: what it costs beside tiles, how much memory it takes, and whether its windows show.

    python benchmarks/scenes.py mosaic --source ../shared/data/landcover/train --licences CC0-1.0 CC-BY-4.0 --out runs/m
    python benchmarks/scenes.py cost --mosaic runs/m --out runs/m/cost
    python benchmarks/scenes.py seams --scene runs/m/cost/scene/mosaic --out runs/m/worst.png
    python benchmarks/scenes.py random --out runs/random

mosaic  GeoTIFF and mask of --side px from tiles of 256 px, side by side in the order of their keys
cost    processor seconds per megapixel of generate --scene and of generate on the same image in tiles of 256 px, a pair
        each, in turn, --rounds times, with the same share changed by the same kinds of events; largest resident set
seams   mean difference of neighbouring pixels across each border of two windows (in the middle of what they share),
        against lines half a window on, without lines on a joint of the mosaic: ratio of medians, Kolmogorov-Smirnov;
        the same of other lines inside, which no window ends at; a picture of the worst, date 1 and date 2
random  a folder with a model that was never trained, of 4 norm groups and with attention in the middle of both stages
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from scipy import stats

import changeanywhere as ca
from changeanywhere.diffusion.canvas import ATTENTIVE_GUARD, ATTENTIVE_RAMP, GUARD, RAMP, Plane
from changeanywhere.legend import load_legend
from changeanywhere.models.denoiser import Denoiser, MaskEncoder, build_unet
from changeanywhere.models.first_stage import FirstStage, build_vq_model
from changeanywhere.models.folder import Model, noise_schedule, save_model
from changeanywhere.models.info import DOWNSAMPLING, find_model, read_info

TILE = 256
PHASE = 8
"""Lines are compared that lie alike in the blocks of the JPEGs which the mosaic is made of, and in pairs of cells."""
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


@dataclass(frozen=True)
class Cost:
    """Of one run: processor seconds, which other work on the machine changes less than the clock, and what it made."""

    seconds: float
    megapixels: float
    changed: float
    """Share of them."""

    @property
    def each(self) -> float:
        """Seconds per megapixel."""
        return self.seconds / self.megapixels


def cost(place: Path, out: Path, threads: int, rounds: int, more: Sequence[str]) -> None:
    """Tiles and scene in turn: a line for each run, then medians, of as much change by the same kinds of events."""
    image, mask = place / "mosaic.tif", place / "mosaic_mask.tif"
    with rasterio.open(mask) as raster:
        cover = raster.read(1)
    common = ["--num-threads", str(threads), *more]
    source = out / "source"
    for folder, file in (("images", image), ("masks", mask)):
        (source / folder).mkdir(parents=True, exist_ok=True)
        if not (source / folder / "mosaic.tif").exists():
            os.link(file, source / folder / "mosaic.tif")
    if not (source / "legend.json").exists():
        os.link(place / "legend.json", source / "legend.json")
    pairs = round(cover.size / TILE**2)
    found: dict[str, list[Cost]] = {"tiles": [], "scene": []}
    for _ in range(rounds):
        for name in found:
            shutil.rmtree(out / name, ignore_errors=True)
        tiles = ["generate", "--source", str(source), "--out", str(out / "tiles"), "--num-pairs", str(pairs), *common]
        seconds = _run("tiles", tiles)
        lines = (out / "tiles" / "metadata.jsonl").read_text().splitlines()
        share = sum(json.loads(line)["change_ratio"] for line in lines) / len(lines)
        found["tiles"].append(Cost(seconds, pairs * TILE * TILE / 1e6, share))
        of_known = ["--change-share", f"{share / float((cover > 0).mean()):.5f}"]
        scene = ["generate", "--scene", str(image), "--mask", str(mask), "--out", str(out / "scene"), *of_known]
        seconds = _run("scene", [*scene, *common])
        with rasterio.open(out / "scene" / "mosaic" / "change.tif") as raster:
            share = float((raster.read(1) > 0).mean())
        found["scene"].append(Cost(seconds, cover.size / 1e6, share))
    for name, runs in found.items():
        print(
            f"{name}: {runs[0].changed:.2%} changed; processor s per megapixel "
            f"{median(run.each for run in runs):.2f} ({', '.join(f'{run.each:.2f}' for run in runs)}), "
            f"per changed megapixel {median(run.each / run.changed for run in runs):.0f}"
        )
    ratios = [one.each / other.each for one, other in zip(found["scene"], found["tiles"], strict=True)]
    print(f"scene / tiles: {median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


def _run(name: str, arguments: Sequence[str]) -> float:
    """Processor seconds of a command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "changeanywhere", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = used.ru_utime + used.ru_stime
    print(
        f"{name}: {seconds:.1f} processor s ({time.perf_counter() - started:.0f} s in all), "
        f"{used.ru_maxrss / 1e6:.2f} GB, exit {process.returncode}",
        flush=True,
    )
    return seconds


Lines = list[tuple[float, int, int]]
"""Mean absolute difference across a line, its first row and its column."""


def lines(image: npt.NDArray[np.float64], plane: Plane, offset: int, joint: int) -> Lines:
    """Of ``[H, W]``: each vertical line ``offset`` px beside the middle of what two windows of the grid share, as long
    as a window goes on alone; none on a multiple of ``joint``."""
    stride, middle = plane.stride * DOWNSAMPLING, plane.ramp * DOWNSAMPLING // 2
    found = []
    for row in range(0, image.shape[0] - stride + 1, stride):
        for column in range(stride - middle + offset, image.shape[1] - 1, stride):
            if not joint or column % joint:
                part = image[row : row + stride]
                found.append((float(np.abs(part[:, column] - part[:, column - 1]).mean()), row, column))
    return found


def seams(scene: Path, window: int, out: Path | None, joint: int, shared: tuple[int, int]) -> None:
    """Print the comparison; write the border that stands out most from the line inside beside it."""
    images = {}
    for name in ("t1", "t2"):
        with rasterio.open(scene / f"{name}.tif") as raster:
            images[name] = raster.read([1, 2, 3])
    tall, wide = (length // DOWNSAMPLING for length in images["t1"].shape[1:])
    plane = Plane(0, 0, tall, wide, window // DOWNSAMPLING, shared[0], guard=shared[1])
    stride = plane.stride * DOWNSAMPLING
    half = stride // 2 // PHASE * PHASE
    for name, pixels in images.items():
        grey = pixels.mean(0)

        def at(offset: int, grey: npt.NDArray[np.float64] = grey) -> list[Lines]:
            return [lines(each, plane, offset, joint) for each in (grey, grey.T)]

        both = [at(0), at(half)]
        across, inside = (_values(each) for each in both)
        test = stats.ks_2samp(across, inside)
        print(
            f"{name}: {len(across)} borders, median across {np.median(across):.3f}, inside {np.median(inside):.3f}, "
            f"ratio {np.median(across) / np.median(inside):.3f}, KS {test.statistic:.3f}, p {test.pvalue:.3f}"
        )
        reach = plane.ramp * DOWNSAMPLING // 2 + PHASE  # beyond it one window is alone
        others = [_values(at(o)) for o in range(PHASE, stride, PHASE) if reach <= o <= stride - reach and o != half]
        found = [(np.median(other) / np.median(inside), stats.ks_2samp(other, inside).pvalue) for other in others]
        ratios, chances = zip(*found, strict=True)
        print(
            f"{name}: {len(found)} other lines inside against the same: ratio {min(ratios):.3f} to {max(ratios):.3f}, "
            f"p {min(chances):.3f} to {max(chances):.3f}"
        )
        if name == "t2" and out is not None:
            there = {(row, column - half): value for value, row, column in both[1][0]}
            excess = {(r, c): value / max(there[r, c], 1e-6) for value, r, c in both[0][0] if (r, c) in there}
            row, column = max(excess, key=lambda place: excess[place])
            left = min(max(column - half, 0), pixels.shape[2] - 2 * half)
            part = np.concatenate(
                [each[:, row : row + 2 * half, left : left + 2 * half] for each in images.values()], 2
            )
            Image.fromarray(np.ascontiguousarray(part.transpose(1, 2, 0))).save(out)
            print(f"worst: column {column} from row {row}, {excess[row, column]:.2f} times the line inside")


def _values(found: Sequence[Lines]) -> npt.NDArray[np.float64]:
    return np.array([line[0] for some in found for line in some])


def random_model(out: Path) -> None:
    """What windows see of each other is worst where nothing was ever learnt."""
    torch.manual_seed(0)
    vq_model = build_vq_model([16, 16, 16], 1, num_codes=64, norm_groups=4, mid_attention=True)
    first_stage = FirstStage(vq_model, latent_mean=[0.0] * 3, latent_std=[1.0] * 3, quantises=False)
    unet = build_unet([16, 32], 1, mask_channels=4, attention_levels=[1], head_dim=8, norm_groups=4)
    denoiser = Denoiser(unet, MaskEncoder(num_classes=7, mask_channels=4))
    save_model(Model(first_stage, denoiser, noise_schedule(), load_legend("mini"), 0.1, tile_size=128), out)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["mosaic", "cost", "seams", "random"])
    parser.add_argument("--source", type=Path)
    parser.add_argument("--licences", nargs="+")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--mosaic", type=Path)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--window", type=int, default=read_info(find_model("mini")).tile_size)
    parser.add_argument("--joint", type=int, default=TILE, help="side of the mosaic's tiles in px; 0: no mosaic")
    for name, usual, attentive in (("--ramp", RAMP, ATTENTIVE_RAMP), ("--guard", GUARD, ATTENTIVE_GUARD)):
        where = f"cells; of the grid of a first stage that attends: {attentive}"
        parser.add_argument(name, type=int, default=usual, help=where)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options, more = parser.parse_known_args(argv)
    if options.what == "mosaic":
        mosaic(options.source, options.licences, options.side, options.out)
    elif options.what == "cost":
        cost(options.mosaic, options.out, options.threads, options.rounds, more)
    elif options.what == "random":
        random_model(options.out)
    else:
        seams(options.scene, options.window, options.out, options.joint, (options.ramp, options.guard))


if __name__ == "__main__":
    main()
