"""Finished cells of a benchmark, as they are now, into a CSV; and, on the screen, what they say so far.

python benchmarks/cells.py RUN --config benchmark-levir-small --to docs/benchmark-cells.csv
python benchmarks/cells.py RUN --config RECIPE --to CSV --compare painted:plain painted:pasted   # gains over arms
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from changeanywhere.benchmark.arms import BASELINES
from changeanywhere.benchmark.options import BenchmarkOptions
from changeanywhere.benchmark.statistics import COUNTS, paired_gain, require_scenes
from changeanywhere.benchmark.summary import ALL_CHANGED, comparisons, one_list, planned, summarise
from changeanywhere.benchmark.tables import everything_changed, gain_text, write_cells
from changeanywhere.benchmark.trainings import noted
from changeanywhere.documents import DocumentError, parse_yaml
from changeanywhere.errors import ChangeAnywhereError, ConfigError, OutputError
from changeanywhere.shipped import find_recipe
from changeanywhere.training.detection import ChangeScores, sum_of

PLAN = (
    *("detectors", "shares", "pretraining", "pretrained", "baselines", "rivals", "zero_shot_only", "until_flat"),
    *("semi_supervised", "rehearsed", "claims_at", "claims_for", "lists"),
)
"""Of the recipe: which cells there will be, and what is claimed."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a benchmark")
    parser.add_argument("--config", required=True, help="its recipe, a file or a name: it says what is claimed")
    parser.add_argument("--to", type=Path, required=True, help="CSV to write")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="ARM:OTHER", help="gains, in intervals for all of them"
    )
    options = parser.parse_args(arguments)
    try:
        plan = plan_of(options.run, options.config)
        records = cells_of(options.run, plan)
    except ChangeAnywhereError as error:
        sys.exit(str(error))
    order = {arm: number for number, arm in enumerate((*BASELINES, *plan.arms, *plan.tuned_arms))}
    others = sorted({record["detector"] for record in records} - {*plan.detectors})  # of a recipe before this one
    detectors = [*plan.detectors, *others]
    records.sort(key=lambda r: (detectors.index(r["detector"]), r["share"], r["seed"], order.get(r["arm"], len(order))))
    write_cells(options.to, records)
    references = (*plan.references, ALL_CHANGED)
    print("| detector | labels | arm | seeds | steps | F1 |" + "".join(f" gain over {arm} |" for arm in references))
    print("|---" * (6 + len(references)) + "|")
    constants = constant_cells(records)
    for row in summarise([*records, *constants], plan.claims, planned(plan)):
        if row["arm"] == ALL_CHANGED:
            continue
        gains = [gain_text(row["gains"][arm]) if arm in row["gains"] else "-" for arm in references]
        f1 = f"{100 * row['f1']:.1f} ± {100 * row['f1_error']:.1f}"
        cells = [row["detector"], f"{row['share']} %", row["arm"], str(row["seeds"]), str(row["steps"] or "-"), f1]
        print("| " + " | ".join([*cells, *gains]) + " |")
    there = {(cell["detector"], cell["share"], cell["arm"]) for cell in (*records, *constants)}
    print(f"{len(records)} cells; intervals for {len(comparisons({*there, *planned(plan)}, plan.claims))} comparisons")
    for line in compared(records, [asked.partition(":")[::2] for asked in options.compare]):
        print(line)


def plan_of(run: Path, config: str) -> BenchmarkOptions:
    """Which cells there will be, and what is claimed, by a recipe (a file or a name); :class:`ConfigError` where there
    is none."""
    file = Path(config) if Path(config).is_file() else find_recipe(config)
    try:
        recipe = parse_yaml(file.read_bytes())
    except (OSError, DocumentError) as error:
        raise ConfigError(f"{file}: {error}") from error
    if not isinstance(recipe, dict):
        raise ConfigError(f"{file}: no recipe; allowed: one of changeanywhere benchmark")
    return BenchmarkOptions(run, **{name: recipe[name] for name in PLAN if name in recipe})


def cells_of(run: Path, plan: BenchmarkOptions) -> list[dict[str, Any]]:
    """What is finished. :class:`OutputError` for a file that is cut off, cells of other scenes, and where there are
    none."""
    files = {file: noted(file) for file in sorted((run / "cells").glob("*.json"))}
    if not files:
        raise OutputError(f"{run}: no cells/*.json; give the folder of a benchmark that has finished some")
    first: dict[str, Any] = next((record["scenes"] for record in files.values() if "scenes" in record), {})
    for file, record in files.items():
        require_scenes(file, record, first)
    records = [record | ({"one_list": True} if one_list(plan, record["share"]) else {}) for record in files.values()]
    # Earlier editions scored a detector that was handed in once for each seed of pre-training.
    return [one for one in records if one["share"] or one.get("pretraining_seed", one["seed"]) == one["seed"]]


def compared(records: Sequence[Mapping[str, Any]], asked: Sequence[tuple[str, str]]) -> list[str]:
    """Gains of arms over others, at each detector and share where both have cells, in intervals that hold for all of
    them at once."""
    kinds = sorted({(record["detector"], record["share"]) for record in records})
    gains = []
    for names in asked:
        for detector, share in kinds:
            cells = [
                [r for r in records if (r["detector"], r["share"], r["arm"]) == (detector, share, n)] for n in names
            ]
            gain = paired_gain(*cells)
            if gain is not None:
                gains.append((f"{detector}, {share} %, {names[0]} over {names[1]}", gain))
        if not any(told.endswith(f"{names[0]} over {names[1]}") for told, _ in gains):
            sys.exit(f"--compare {names[0]}:{names[1]}: no seed has cells of both; allowed: arms of the run")
    lines = []
    for told, gain in gains:
        low, high = (100 * end for end in gain.interval(len(gains)))
        spread = f"{100 * gain.gain:+.1f} ± {100 * gain.error:.1f} [{low:+.1f}, {high:+.1f}]"
        lines.append(f"{told}: {spread} ({gain.seeds} seeds, {gain.pretrainings} groups)")
    return [*lines, f"intervals for these {len(gains)} comparisons"] if gains else []


def constant_cells(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calling everything changed, by what cells without labels say of the ground of each scene."""
    told = next((record["scenes"] for record in records if record["share"] == 0 and "scenes" in record), None)
    if told is None:
        return []
    named = {scene: dict(zip(COUNTS, counts, strict=True)) for scene, counts in told.items()}
    scores = {
        scene: ChangeScores(
            n["true_positives"] + n["false_negatives"], n["false_positives"] + n["true_negatives"], 0, 0
        )
        for scene, n in named.items()
    }
    scenes = {scene: [getattr(each, count) for count in COUNTS] for scene, each in scores.items()}
    return everything_changed(records, {**sum_of(scores.values()).to_dict(), "scenes": scenes})


if __name__ == "__main__":
    main()
