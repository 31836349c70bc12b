"""Masks per second of the change-event simulator on one core, per kind and tile size.

    python benchmarks/events.py --masks ../shared/data/landcover/train/masks

Larger tiles are mosaics of the given ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from changeanywhere.events import PAPER_KINDS, EventOptions, pair_seed, simulate
from changeanywhere.legend import find_legend


def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=Path, required=True, help="folder of 256x256 index PNGs, with a legend above")
    parser.add_argument("--count", type=int, default=256, help="masks per size")
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 512, 1024, 2048], help="px, multiples of 256")
    arguments = parser.parse_args(argv)
    legend = find_legend(arguments.masks)
    if legend is None:
        parser.error("no legend.json or classes.json in the folder or above it")
    files = sorted(arguments.masks.glob("*.png"))
    rng = np.random.default_rng(0)
    print("| tile | kind | masks/s | ms per mask | times the size before | feasible | median change ratio |")
    print("|---" * 7 + "|")
    before: dict[str, float] = {}
    for size in arguments.sizes:
        per_side = size // 256
        masks = []
        for _ in range(max(16, arguments.count // per_side**2)):
            chosen = rng.choice(len(files), per_side**2)
            tiles = [np.asarray(Image.open(files[i])) for i in chosen]
            rows = [np.concatenate(tiles[r * per_side : (r + 1) * per_side], 1) for r in range(per_side)]
            masks.append(np.concatenate(rows, 0))
        for kind in PAPER_KINDS:
            started = time.perf_counter()
            plans = [
                simulate(mask, legend, pair_seed(0, str(i), 0), kind=kind, options=EventOptions())
                for i, mask in enumerate(masks)
            ]
            rate = len(masks) / (time.perf_counter() - started)
            ratios = [plan.change_mask.mean() for plan in plans if plan is not None]
            median = f"{np.median(ratios):.3%}" if ratios else "-"
            growth = f"{before[kind] / rate:.1f}" if kind in before else "-"
            before[kind] = rate
            shown = f"{size}x{size} | {kind} | {rate:.3g} | {1000 / rate:.3g} | {growth}"
            print(f"| {shown} | {len(ratios) / len(masks):.1%} | {median} |")


if __name__ == "__main__":
    main()
