"""Pairs per second of generate beside the frozen reference (benchmarks/reference.py), in turn on one machine.

    python benchmarks/generate.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0

Ours: ``changeanywhere generate`` as a user calls it, planning, files and report included; the reference: painting and
files only. Rounds alternate; printed are all rounds and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import changeanywhere as ca
from changeanywhere.events import pair_seed, simulate
from changeanywhere.sample import ChangePlan, SourceSample
from reference import BATCH, Reference
from tiles import add_source, open_tiles


def main(argv: Sequence[str] | None = None) -> None:
    """Print seconds per pair and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    parser.add_argument("--pairs", type=int, default=32, help="pairs per round of ours")
    parser.add_argument("--reference-pairs", type=int, default=8, help="pairs per round of the reference")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each")
    arguments = parser.parse_args(argv)
    reference = Reference(arguments.model)
    tile_size = reference.model.tile_size
    source = open_tiles(arguments.source, arguments.licences, tile_size).with_legend(reference.legend)
    samples: list[SourceSample] = []
    plans: list[ChangePlan] = []
    for index in range(len(source)):
        sample = source.read(index)
        plan = simulate(sample.mask, source.legend, pair_seed(1, sample.item.key, 0))
        if plan is not None and len(samples) < arguments.reference_pairs:
            samples.append(sample)
            plans.append(plan)
    reference.paint(samples[:BATCH], plans[:BATCH])  # warm-up
    ours, theirs = [], []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            reference.run(samples, plans, Path(folder) / "reference")
            theirs.append((time.perf_counter() - started) / len(samples))
            started = time.perf_counter()
            report = ca.generate(
                arguments.source,
                Path(folder) / "ours",
                model=arguments.model,
                num_pairs=arguments.pairs,
                licences=arguments.licences,
                tile_size=tile_size,
                seed=number,
            )
            ours.append((time.perf_counter() - started) / report.num_pairs)
        print(
            f"round {number + 1}: reference {theirs[-1]:.2f} s per pair, generate {ours[-1]:.2f} s per pair", flush=True
        )
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(f"generate is {ratio:.1f} times as fast, end to end")


if __name__ == "__main__":
    main()
