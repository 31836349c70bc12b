"""Finished cells of a benchmark, as they are now, into a CSV; and, on the screen, what they say so far.

python benchmarks/cells.py RUN --config benchmark-levir-small --to docs/benchmark-cells.csv
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from changeanywhere.benchmark.arms import BASELINES, SEMI, ways_of
from changeanywhere.benchmark.options import Claims
from changeanywhere.benchmark.summary import summarise
from changeanywhere.benchmark.tables import gain_text, write_cells
from changeanywhere.shipped import find_recipe


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a benchmark")
    parser.add_argument("--config", required=True, help="its recipe, a file or a name: it says what is claimed")
    parser.add_argument("--to", type=Path, required=True, help="CSV to write")
    options = parser.parse_args(arguments)
    config = Path(options.config) if Path(options.config).is_file() else find_recipe(options.config)
    records = [json.loads(file.read_text()) for file in (options.run / "cells").glob("*.json")]
    recipe: dict[str, Any] = yaml.safe_load(config.read_text())
    arms = list(recipe.get("pretraining", {}))
    other_ways = ways_of(arms, *(recipe.get(name, ()) for name in ("until_flat", "semi_supervised", "rehearsed")))
    order = {arm: number for number, arm in enumerate((*BASELINES, *arms, *other_ways))}
    others = sorted({record["detector"] for record in records} - {*recipe["detectors"]})  # of a recipe before this one
    detectors = [*recipe["detectors"], *others]
    records.sort(key=lambda r: (detectors.index(r["detector"]), r["share"], r["seed"], order.get(r["arm"], len(order))))
    write_cells(options.to, records)
    references = (*recipe.get("baselines", [arm for arm in BASELINES if arm != SEMI]), *recipe.get("rivals", ()))
    claims = Claims(references, tuple(recipe.get("claims_at", ())), tuple(recipe.get("claims_for", ())))
    print("| detector | labels | arm | seeds | steps | F1 |" + "".join(f" gain over {arm} |" for arm in references))
    print("|---" * (6 + len(references)) + "|")
    for row in summarise(records, claims):
        gains = [gain_text(row["gains"][arm]) if arm in row["gains"] else "-" for arm in references]
        f1 = f"{100 * row['f1']:.1f} ± {100 * row['f1_error']:.1f}"
        cells = [row["detector"], f"{row['share']} %", row["arm"], str(row["seeds"]), str(row["steps"] or "-"), f1]
        print("| " + " | ".join([*cells, *gains]) + " |")
    print(f"{len(records)} cells")


if __name__ == "__main__":
    main()
