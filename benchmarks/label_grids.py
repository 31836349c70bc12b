"""A large image through `changeanywhere label`: how much memory it takes, and whether the cutting of windows shows.

    python benchmarks/scenes.py mosaic --source TILES --side 10000 --out runs/big
    mkdir runs/big/image && mv runs/big/mosaic.tif runs/big/image
    python benchmarks/label_grids.py --source runs/big/image --out runs/big/labelled

`label` runs as a process of its own, whose largest resident set is printed. Then the same image is labelled by a grid
of windows that is moved by half a window (half of what is kept of one), and both masks are compared, pixel by pixel.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from changeanywhere.labelling.label import label_image
from changeanywhere.labelling.options import LabelOptions
from changeanywhere.labelling.reading import open_readers
from changeanywhere.labelling.windows import CORE
from changeanywhere.rasters.facts import Window
from changeanywhere.rasters.gate import inspect, read_image, read_stored, read_stretch


def command(options: LabelOptions) -> list[str]:
    """The run whose memory is measured."""
    flags = ["--source", str(options.source), "--segmenter", str(options.segmenter), "--out", str(options.out)]
    return [sys.executable, "-m", "changeanywhere", "label", *flags, *([] if options.flips else ["--flips=false"])]


def agreement(image: Path, mask: Path, options: LabelOptions) -> tuple[float, float]:
    """Shares of the pixels of ``mask``, and of those of them that have a class, on which the moved grid agrees."""
    facts, of_mask = inspect(image), inspect(mask)
    reader = open_readers(options, torch.device("cpu")).of(image.stem, image, facts)
    normalisation = read_stretch(image, options.bands, options.stretch, None)
    counts = np.zeros((2, 2), np.int64)

    def pixels(window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
        values, valid = read_image(image, facts, window, options.bands)
        return normalisation.apply(values).clip(-1, 1), valid

    def compare(window: Window, found: npt.NDArray[np.uint8]) -> None:
        before = read_stored(mask, of_mask, window, (1,))[0][..., 0]
        for row, among in enumerate((np.ones_like(before, bool), before > 0)):
            counts[row] += int(((before == found) & among).sum()), int(among.sum())

    label_image(facts, pixels, options, reader, compare, offset=CORE // 2)
    return float(counts[0, 0] / counts[0, 1]), float(counts[1, 0] / max(counts[1, 1], 1))


def main(argv: Sequence[str] | None = None) -> None:
    """Print three lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with one GeoTIFF")
    parser.add_argument("--segmenter", type=Path, default=Path("mini-segmenter"), help="mini-segmenter or a folder")
    parser.add_argument("--no-flips", action="store_true", help="read every window once, not in four mirrorings")
    parser.add_argument("--out", type=Path, required=True, help="folder that label writes")
    arguments = parser.parse_args(argv)
    (image,) = sorted(arguments.source.glob("*.tif"))
    flips = not arguments.no_flips
    options = LabelOptions(source=arguments.source, out=arguments.out, segmenter=arguments.segmenter, flips=flips)
    facts, begun = inspect(image), time.perf_counter()
    subprocess.run(command(options), check=True, stdout=subprocess.DEVNULL)
    took, largest = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"{facts.height} x {facts.width} px labelled in {took:.0f} s, flips {flips}")
    print(f"largest resident set {largest / 2**20:.2f} GiB")
    of_all, of_known = agreement(image, arguments.out / "masks" / f"{image.stem}.tif", options)
    print(f"two grids agree on {100 * of_all:.2f} % of the pixels, on {100 * of_known:.2f} % of those with a class")


if __name__ == "__main__":
    main()
