"""What a first stage leaves of real tiles: reading and kernel distance of buildings and roads in their own place.

    python measure_first_stage.py --source DATA/landcover/val --images DATA/unlabelled/ventura_naip/images \
        --towns eureka bishop --judge runs/judge/segmenter --first-stage mini/first_stage --quantise

Instances: buildings are connected areas of 60 to 3,500 px that fit 62 px (at most 240); roads are 64 px windows around
four random road pixels of each tile (at most 240). Reading: the mean share of an instance's pixels that the judge reads
as its class, whole tiles read. Kernel distance (KID, EfficientNet-Lite0 features): 64 px crops enlarged to 128, as they
are and with grey around the object; whole tiles of towns and every second one of --source. Both sets are the same
places, so pairs of a place with itself are left out of all three terms. Intervals: 95 %, bootstrap over tiles.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from changeanywhere.evaluation.reading import load_features, load_judge, to_tensor
from changeanywhere.legend import load_legend
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.folder import load_first_stage
from changeanywhere.sources import SourceOptions, open_source

ROAD, BUILDING, SIDE, RESAMPLES = 2, 4, 64, 200


def corner(row, column):
    return min(max(row - SIDE // 2, 0), 256 - SIDE), min(max(column - SIDE // 2, 0), 256 - SIDE)


def instances(masks):
    """(tile, row, column, object bool ``[64, 64]``) of buildings and of roads."""
    rng = np.random.default_rng(0)
    buildings, roads = [], []
    for tile, mask in enumerate(masks):
        labels, _ = ndimage.label(mask == BUILDING)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            area = (labels[rows, columns] == number).sum()
            if 60 <= area <= 3500 and max(rows.stop - rows.start, columns.stop - columns.start) <= 62:
                y, x = corner((rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2)
                buildings.append((tile, y, x, labels[y : y + SIDE, x : x + SIDE] == number))
    buildings = [buildings[i] for i in rng.permutation(len(buildings))[:240]]
    for tile, mask in enumerate(masks):
        ys, xs = np.nonzero(mask[32:224, 32:224] == ROAD)
        for i in rng.choice(len(ys), 4, replace=False) if len(ys) >= 200 else ():
            there = mask[ys[i] : ys[i] + SIDE, xs[i] : xs[i] + SIDE] == ROAD
            if there.mean() > 0.06:
                roads.append((tile, ys[i], xs[i], there))
    return buildings, [roads[i] for i in rng.permutation(len(roads))[:240]]


def crops(images, places, alone):
    found = []
    for tile, y, x, there in places:
        crop = images[tile][y : y + SIDE, x : x + SIDE]
        crop = np.where(there[..., None], crop, 128).astype(np.uint8) if alone else crop
        found.append(np.asarray(Image.fromarray(crop).resize((128, 128), Image.Resampling.BICUBIC)))
    return found


def interval(draw):
    drawn = [draw() for _ in range(RESAMPLES)]
    return [round(float(v), 4) for v in np.percentile(drawn, [2.5, 97.5])]


def distance(first, second, groups, rng):
    kernels = [(a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((first, first), (second, second), (first, second))]
    group = np.unique(groups, return_inverse=True)[1]

    def of(weights):
        pairs = weights.sum() ** 2 - (weights**2).sum()
        own = weights**2
        return (
            sum(s * (weights @ k @ weights - own @ np.diag(k)) for s, k in zip((1, 1, -2), kernels, strict=True))
            / pairs
        )

    count = group.max() + 1

    def draw():
        return of(np.bincount(rng.integers(count, size=count), minlength=count)[group].astype(float))

    return [round(float(of(np.ones(len(first)))), 4), *interval(draw)]


def reading(read, places, index, rng):
    values = np.array([(read[t][y : y + SIDE, x : x + SIDE][there] == index).mean() for t, y, x, there in places])
    group = np.unique([t for t, *_ in places], return_inverse=True)[1]
    sums, sizes = np.bincount(group, values), np.bincount(group)

    def draw():
        chosen = rng.integers(len(sums), size=len(sums))
        return sums[chosen].sum() / sizes[chosen].sum()

    return [round(float(values.mean()), 4), *interval(draw)]


@torch.no_grad()
def through(first_stage, images, quantise):
    found = []
    for start in range(0, len(images), 4):
        raw = first_stage.encode_raw(to_tensor(images[start : start + 4]))
        decoded = first_stage.decode_codes(first_stage.quantise(raw)[0] if quantise else raw).clamp(-1, 1)
        found += list(((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of labelled tiles, none trained on")
    parser.add_argument("--images", type=Path, help="folder of *.jpg, 256×256 px")
    parser.add_argument("--towns", nargs="*", default=[], help="names before the year: the tiles of --images to take")
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--first-stage", type=Path, required=True)
    parser.add_argument("--quantise", action="store_true")
    arguments = parser.parse_args()
    source = open_source(arguments.source, SourceOptions(licences=("CC0-1.0", "CC-BY-4.0")))
    source = source.with_legend(load_legend("mini"))
    samples = [source.read(i) for i in range(len(source))]
    files = sorted(arguments.images.glob("*.jpg")) if arguments.images else []
    towns = [np.asarray(Image.open(f).convert("RGB")) for f in files if f.name.split("_2")[0] in arguments.towns]
    real = [s.image for s in samples] + towns
    first_stage = channels_last(load_first_stage(arguments.first_stage))
    decoded = through(first_stage, real, arguments.quantise)
    judge = load_judge(arguments.judge, load_legend("mini"), torch.device("cpu"), 8)
    features = load_features(torch.device("cpu"), 16)
    tiles, rng, figures = len(samples), np.random.default_rng(0), {}
    read = judge(real[:tiles]), judge(decoded[:tiles])
    names = ("building", BUILDING), ("road", ROAD)
    for (name, index), places in zip(names, instances([s.mask for s in samples]), strict=True):
        figures[f"{name}: places"] = len(places)
        for kind, classes in zip(("raw", "decoded"), read, strict=True):
            figures[f"{name}: read {kind}"] = reading(classes, places, index, rng)
        for kind, alone in (("whole crop", False), ("object alone", True)):
            both = [features(crops(images, places, alone)) for images in (decoded, real)]
            figures[f"{name}: distance, {kind}"] = distance(*both, [t for t, *_ in places], rng)
    for name, chosen in (("source", range(0, tiles, 2)), ("towns", range(tiles, len(real)))):
        if chosen:
            both = [features([images[i] for i in chosen]) for images in (decoded, real)]
            figures[f"{name}: distance, whole tiles"] = distance(*both, np.arange(len(chosen)), rng)
    psnr = [10 * np.log10(255**2 / ((a.astype(float) - b) ** 2).mean()) for a, b in zip(real, decoded, strict=True)]
    figures["source: PSNR dB"] = round(float(np.mean(psnr[:tiles])), 2)
    if towns:
        figures["towns: PSNR dB"] = round(float(np.mean(psnr[tiles:])), 2)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
