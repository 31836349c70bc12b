"""Differences of unchanged ground against real pairs, with and without the tiles that are mostly one class.

    python benchmarks/change_realism.py --pairs SET --real-pairs ../shared/data/naip_bitemporal --without water

Real pairs that show no open water are no measure for tiles of nothing but water. Prints, for all pairs and for those in
which the class covers less than --share of the ground at date 1, the Wasserstein distance of each kind of difference to
the real ones over that between two halves of the real ones (at most 1.5 is what `evaluate` asks).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from changeanywhere.evaluation.differences import difference
from changeanywhere.evaluation.of_pairs import compare_differences, read_real_pairs
from changeanywhere.legend import Legend
from changeanywhere.models.perceptual import ShiftTolerantLPIPS
from changeanywhere.pairs import load_pairs


def main(argv: Sequence[str] | None = None) -> None:
    """Two lines: all pairs, and those that are left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="a generated set")
    parser.add_argument("--real-pairs", type=Path, required=True, help="A/ and B/ of real, mostly unchanged pairs")
    parser.add_argument("--without", required=True, help="class whose tiles are left out")
    parser.add_argument("--share", type=float, default=0.8, help="from this share of the ground on")
    arguments = parser.parse_args(argv)
    index = Legend.load(arguments.pairs / "legend.json").index_of(arguments.without)
    metric = ShiftTolerantLPIPS()
    real = [d for a, b, c in read_real_pairs(arguments.real_pairs) if (d := difference(a, b, c, metric)) is not None]
    pairs = load_pairs(arguments.pairs)
    ours, kept = [], []
    for pair in (pairs[i] for i in range(len(pairs))):
        found = difference(pair.image_t1, pair.image_t2, pair.change_mask, metric)
        if found is None or pair.mask_t1 is None:
            continue
        ours.append(found)
        if (pair.mask_t1 == index).mean() < arguments.share:
            kept.append(found)
    for name, part in (("all pairs", ours), (f"without {arguments.without}", kept)):
        ratios = {kind: round(c.ratio, 2) for kind, c in compare_differences(part, real, seed=0).items()}
        print(f"{name} ({len(part)}): {ratios}")


if __name__ == "__main__":
    main()
