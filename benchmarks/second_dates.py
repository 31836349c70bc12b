r"""What pairs on real second dates call unchanged that did change: `generate --second.use base` against labels.

    python benchmarks/second_dates.py --pairs base --labelled labelled --labels LEVIR/train/label
    python benchmarks/second_dates.py --pairs found --labelled labelled --labels LEVIR/train/label \
        --change-classes building

Of the ground that changed by the labels of the real pairs (which trained nothing): how much the set ignores, how much
of it is called unchanged, and what the masks of both dates say there. And how much of what is called changed did
change: of a set in which nothing is painted (--second.masks keep --targets.no-change 1) that is what was found.
--change-classes: only changes to or from these count. Training pairs of the set alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import changeanywhere as ca

DATES = {"A": "B", "B": "A"}


def main(argv: Sequence[str] | None = None) -> None:
    """Print a few lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="folder that generate --second.use base wrote")
    parser.add_argument("--labelled", type=Path, required=True, help="its source: what label made of A/ and B/")
    parser.add_argument("--labels", type=Path, required=True, help="folder of change labels, named as the images")
    parser.add_argument("--change-classes", nargs="*", help="classes whose changes count; default: all")
    parser.add_argument("--tile-size", type=int, default=256)
    arguments = parser.parse_args(argv)
    source = ca.load_source(arguments.labelled, tile_size=arguments.tile_size)
    places = {item.key: number for number, item in enumerate(source.items)}
    pairs, counts = ca.load_pairs(arguments.pairs, split="train"), np.zeros(9, np.int64)
    if arguments.change_classes:
        pairs = pairs.counting(arguments.change_classes)
    for number in range(len(pairs)):
        pair = pairs[number]
        date, _, name = pair.metadata["source_key"].partition("__")
        with Image.open(arguments.labels / f"{name}.png") as file:
            real = np.asarray(file.convert("L")) > 127
        ignored = np.zeros_like(real) if pair.ignored is None else pair.ignored
        first, second = (source.read_mask(places[f"{each}__{name}"]) for each in (date, DATES[date]))
        unknown, unchanged = (first == 0) | (second == 0), ~ignored & ~pair.change_mask
        wrong, right = real & unchanged, ~real & unchanged
        apart = (first != second) & ~unknown
        found = (real, real & ignored, wrong, pair.change_mask, wrong & unknown, wrong & apart, right)
        counts += [int(each.sum()) for each in (*found, right & (unknown | apart), real & pair.change_mask)]
    print(f"{len(pairs)} pairs; {told(counts)}")


def told(counts: npt.NDArray[np.int64]) -> str:
    """What the counts of px are, in words."""
    real, ignored, wrong, called, unknown, apart, right, lost, hit = np.maximum(counts, 1).tolist()
    return (
        f"of the ground that really changed {ignored / real:.1%} is ignored,\n"
        f"{wrong / real:.1%} called unchanged, {wrong / called:.2f} times as much as is called changed.\n"
        f"There a mask is unknown on {unknown / wrong:.1%}, classes differ on {apart / wrong:.1%};\n"
        f"so they are on {lost / right:.1%} of the ground that is rightly called unchanged.\n"
        f"Of what is called changed {hit / called:.1%} really changed; {hit / real:.1%} of what did is called so."
    )


if __name__ == "__main__":
    main()
