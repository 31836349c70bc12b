"""Results of a benchmark on disk: tables (Markdown, CSV, LaTeX), every cell, curves and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from changeanywhere.benchmark.options import SCRATCH, BenchmarkOptions
from changeanywhere.benchmark.paper_shape import constant_cells, latex, score_cells, shaped_tables
from changeanywhere.benchmark.pictures import curves, write_panels
from changeanywhere.benchmark.published import read_published
from changeanywhere.benchmark.summary import SCORES, summarise
from changeanywhere.documents import to_json
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.storage import atomic_write
from changeanywhere.text import csv_cell, markdown

NOTE = (
    "Mean ± standard error over seeds; F1, precision, recall and IoU of the change class in %, each from one\n"
    "confusion matrix over the whole test set. Gains are differences seed by seed (the same labels for\n"
    "every arm); one within two standard errors, or of a single seed, is noise. (Of five seeds, chance alone\n"
    "goes beyond two standard errors one time in nine.) Every arm was pre-trained once: how much another\n"
    "pre-training on the same set would differ is not in the errors."
)
HEADINGS = ("detector", "labels", "pre-trained on", "seeds", "F1", "precision", "recall", "IoU")


def _cells(row: Mapping[str, Any], rivals: Sequence[str]) -> list[str]:
    gains = []
    for other in (SCRATCH, *rivals):
        gain = row["gains"].get(other)
        gains.append("" if gain is None else gain_text(gain))
    collapsed = f"{row['collapsed']} of {row['seeds']}" if row["collapsed"] else ""
    head = [row["detector"], f"{row['share']} %", row["arm"], str(row["seeds"])]
    return [*head, *score_cells(row), *gains, collapsed]


def gain_text(gain: Mapping[str, Any]) -> str:
    """A gain as a table shows it: its standard error, whether it is noise, and how much of it rests on collapses."""
    spread = f" ± {100 * gain['f1_error']:.1f}" if gain["f1_error"] else ""
    text = f"{100 * gain['f1']:+.1f}{spread}{'' if gain['certain'] else ' (within noise)'}"
    if gain["collapsed"]:
        sound = "none is sound" if gain["sound_f1"] is None else f"{100 * gain['sound_f1']:+.1f} where neither has"
        text += f" (collapsed in {gain['collapsed']} pairs of cells: {sound})"
    return text


def write_results(
    options: BenchmarkOptions,
    records: Sequence[Mapping[str, Any]],
    constants: Mapping[str, Mapping[str, float | None]],
    test: PairDataset,
) -> None:
    """``results.json``, ``table.md``, ``table.csv``, ``table.tex``, ``cells.csv``, ``curves.svg``, ``panels.png``.

    Markdown and LaTeX in the shape of the paper's tables; CSV, and the end of the Markdown, a line per arm and share.
    """
    rows = summarise(records, options.rivals)
    paper = read_published(options.paper_tables, options.name)
    headings = (*HEADINGS, *(f"gain over {arm}" for arm in (SCRATCH, *options.rivals)), "collapsed")
    lines = [_cells(row, options.rivals) for row in rows]
    for name, scores in constants.items():
        lines.append([f"({name})", "", "", "", *constant_cells(scores), *[""] * (len(headings) - len(HEADINGS))])
    shaped = shaped_tables(rows, constants, paper)
    page = [f"# {markdown(options.name)}", "", NOTE]
    for title, table in (*shaped, ("Every arm beside training from scratch and its rivals", [list(headings), *lines])):
        page += ["", f"## {title}", "", _line(table[0]), "|---" * len(table[0]) + "|", *map(_line, table[1:])]
    atomic_write(options.out / "table.md", ("\n".join(page) + "\n").encode())
    _write_csv(options.out / "table.csv", [headings, *lines])
    keys = ("detector", "arm", "share", "seed", "learning_rate", *SCORES, "predicted_share", "collapsed")
    _write_csv(options.out / "cells.csv", [keys, *([record.get(key) for key in keys] for record in records)])
    atomic_write(options.out / "table.tex", latex(shaped).encode())
    named = {name: dict(scores) for name, scores in constants.items()}
    content = {"rows": rows, "constants": named, "cells": [dict(record) for record in records]}
    atomic_write(options.out / "results.json", (to_json(content, indent=1) + "\n").encode())
    atomic_write(options.out / "curves.svg", curves(rows, constants["all changed"]["f1"] or 0.0).encode())
    write_panels(options, records, test)


def _write_csv(file: Path, rows: Iterable[Sequence[object]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([csv_cell(cell) for cell in row] for row in rows)
    atomic_write(file, buffer.getvalue().encode())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown, cells)) + " |"
