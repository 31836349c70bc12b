"""Results of a benchmark on disk: tables (Markdown, CSV, LaTeX), every cell, curves and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from changeanywhere.benchmark.options import BenchmarkOptions
from changeanywhere.benchmark.paper_shape import constant_cells, latex, score_cells, shaped_tables
from changeanywhere.benchmark.pictures import curves, learning_curves, write_panels
from changeanywhere.benchmark.published import read_published
from changeanywhere.benchmark.statistics import MIN_SCENES
from changeanywhere.benchmark.summary import ALL_CHANGED, SCORES, comparisons, planned, standard_error, summarise
from changeanywhere.documents import DocumentError, read_json_object, to_json
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.storage import atomic_write
from changeanywhere.text import csv_cell, markdown
from changeanywhere.training.semantic import SCORES as SEMANTIC_SCORES
from changeanywhere.training.semantic import TITLES as SEMANTIC_TITLES

NOTE = (
    "Mean ± standard error over seeds; F1, precision, recall and IoU of the change class in %, each from one\n"
    "confusion matrix over the whole test set. Gains are differences seed by seed (the same labels for\n"
    "every arm), with their standard error over pre-trainings, seeds within them and test scenes drawn\n"
    "together, and the interval that holds for all {count} comparisons at once with 95 % (Bonferroni, Student's\n"
    "t; what is planned and not there yet counts too); a gain whose interval holds 0 is noise. Seeds that share one\n"
    "pre-training, or one given list of labels, share its luck: where all share one, nothing is claimed, nor with\n"
    f"fewer than {MIN_SCENES} test scenes that have a change."
)
SEMANTIC = "Classes of both dates (SeK, F_scd, mIoU of unchanged and changed ground, mIoU of from-tos)"
HEADINGS = (
    *("detector", "labels", "arm", "seeds", "steps on labels", "rates × candidates"),
    *("F1", "precision", "recall", "IoU"),
)


def _cells(row: Mapping[str, Any], references: Sequence[str]) -> list[str]:
    gains = []
    for other in references:
        gain = row["gains"].get(other)
        gains.append("" if gain is None else gain_text(gain))
    collapsed = f"{row['collapsed']} of {row['seeds']}" if row["collapsed"] else ""
    chosen = f"{row['rates']} × {row['candidates']}" if row["candidates"] else "-"
    steps = "-" if row["steps"] is None else f"{row['steps']:,}"
    head = [row["detector"], f"{row['share']} %", row["arm"], str(row["seeds"]), steps, chosen]
    return [*head, *score_cells(row), *gains, collapsed]


def gain_text(gain: Mapping[str, Any]) -> str:
    """A gain as a table shows it: its standard error, its corrected interval, whether it is noise, and how much of it
    rests on collapses."""
    spread = f" ± {100 * gain['f1_error']:.1f}" if gain["f1_error"] else ""
    text = f"{100 * gain['f1']:+.1f}{spread}"
    if gain["interval"] and gain["claimed"]:
        low, high = gain["interval"]
        text += f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    unsure = "within noise" if gain["claimed"] else "not claimed"
    if gain["seeds"] == 1 or gain["pretrainings"] == 1 or gain["few_scenes"]:
        alone = "one list of labels" if gain["one_list"] else "one seed" if gain["seeds"] == 1 else "one pre-training"
        unsure = f"{alone if gain['pretrainings'] == 1 else 'few test scenes'}: not claimed"
    text += "" if gain["certain"] else f" ({unsure})"
    if gain["collapsed"]:
        sound = "none is sound" if gain["sound_f1"] is None else f"{100 * gain['sound_f1']:+.1f} where neither has"
        text += f" (collapsed in {gain['collapsed']} pairs of cells: {sound})"
    return text


def write_results(
    options: BenchmarkOptions,
    records: Sequence[Mapping[str, Any]],
    constants: Mapping[str, Mapping[str, Any]],
    test: PairDataset,
) -> None:
    """``results.json``, ``table.md``, ``table.csv``, ``table.tex``, ``cells.csv``, ``curves.svg``, ``learning.svg``,
    ``panels.png``; where a detector speaks of classes, ``semantic.csv``.

    Markdown and LaTeX in the shape of the paper's tables; CSV, and the end of the Markdown, a line per arm and share.
    """
    references = [*options.references, ALL_CHANGED]
    plan = planned(options)
    rows = summarise([*records, *everything_changed(records, constants["all changed"])], options.claims, plan)
    rows = [row for row in rows if row["arm"] != ALL_CHANGED]
    paper = read_published(options.paper_tables, options.name)
    headings = (*HEADINGS, *(f"gain over {arm}" for arm in references), "collapsed")
    lines = [_cells(row, references) for row in rows]
    for name, scores in constants.items():
        lines.append(
            [f"({name})", "", "", "", "", "", *constant_cells(scores), *[""] * (len(headings) - len(HEADINGS))]
        )
    shaped = shaped_tables(rows, constants, paper)
    count = len(comparisons(plan, options.claims))
    page = [f"# {markdown(options.name)}", "", NOTE.format(count=count), "", *said_of_sets(options)]
    classes = semantic_table(records)
    semantic = [(SEMANTIC, classes)] if classes else []
    for title, table in (*shaped, *semantic, ("Every arm beside its references", [list(headings), *lines])):
        page += ["", f"## {title}", "", _line(table[0]), "|---" * len(table[0]) + "|", *map(_line, table[1:])]
    atomic_write(options.out / "table.md", ("\n".join(page) + "\n").encode())
    _write_csv(options.out / "table.csv", [headings, *lines])
    write_cells(options.out / "cells.csv", records)
    if classes:
        write_semantic_cells(options.out / "semantic.csv", records)
    atomic_write(options.out / "table.tex", latex([*shaped, *semantic]).encode())
    named = {name: {k: v for k, v in scores.items() if k != "scenes"} for name, scores in constants.items()}
    content = {"rows": rows, "constants": named, "cells": [dict(record) for record in records]}
    atomic_write(options.out / "results.json", (to_json(content, indent=1) + "\n").encode())
    atomic_write(options.out / "curves.svg", curves(rows, constants["all changed"]["f1"] or 0.0).encode())
    atomic_write(options.out / "learning.svg", learning_curves(records).encode())
    write_panels(options, records, test)


def write_cells(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A line per cell: detector, arm, share, seed, rate, scores."""
    keys = ("detector", "arm", "share", "seed", "learning_rate", *SCORES, "predicted_share", "collapsed")
    _write_csv(file, [keys, *([record.get(key) for key in keys] for record in records)])


def semantic_table(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Scores in classes of every detector, share and arm that has any, mean ± standard error over seeds in %; empty
    where none has."""
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for record in records:
        if record.get("semantic"):
            groups.setdefault((record["detector"], record["share"], record["arm"]), []).append(record["semantic"])
    lines = []
    for (detector, share, arm), cells in groups.items():
        values = {name: np.array([cell[name] or 0.0 for cell in cells]) for name in SEMANTIC_SCORES}
        shown = [
            f"{100 * v.mean():.1f}" + (f" ± {100 * standard_error(v):.1f}" if len(v) > 1 else "")
            for v in values.values()
        ]
        lines.append([detector, f"{share} %", arm, str(len(cells)), *shown])
    return [["detector", "labels", "arm", "seeds", *SEMANTIC_TITLES], *lines] if lines else []


def write_semantic_cells(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A line per cell with scores in classes."""
    keys = ("detector", "arm", "share", "seed")
    named = [record for record in records if record.get("semantic")]
    names = list(named[0]["semantic"])
    rows = [[*(record[key] for key in keys), *(record["semantic"][name] for name in names)] for record in named]
    _write_csv(file, [[*keys, *names], *rows])


def said_of_sets(options: BenchmarkOptions) -> list[str]:
    """A line per set to pre-train on: whether it was made to be like labels of a target."""
    lines = []
    for arm, folder in options.pretraining.items():
        try:
            targets = read_json_object(Path(folder) / "plan" / "job.json").get("targets")
        except (OSError, DocumentError):  # no set of ours: nothing is known of how it was made
            continue
        like = targets.get("like") if isinstance(targets, dict) else None
        said = f"has change ratios and sizes of objects like {like}" if like else "was made without a label of a target"
        lines.append(f"- the set of {markdown(arm)} {markdown(said)}")
    return lines


def everything_changed(records: Sequence[Mapping[str, Any]], everything: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Calling everything changed, with its scores, as cells beside those without labels, of the same seeds."""
    places = dict.fromkeys((r["detector"], r["seed"]) for r in records if r["share"] == 0)
    return [
        {**everything, "detector": detector, "seed": seed, "share": 0, "arm": ALL_CHANGED} | {"collapsed": None}
        for detector, seed in places
    ]


def _write_csv(file: Path, rows: Iterable[Sequence[object]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([csv_cell(cell) for cell in row] for row in rows)
    atomic_write(file, buffer.getvalue().encode())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown, cells)) + " |"
