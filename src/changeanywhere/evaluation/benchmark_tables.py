"""Results of a benchmark as tables (Markdown, CSV, LaTeX), curves (SVG) and pictures of hits and misses (PNG)."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage

from changeanywhere.evaluation.benchmark_options import SCRATCH, BenchmarkOptions
from changeanywhere.evaluation.paper_tables import (
    SCORES,
    constant_cells,
    latex,
    read_published,
    score_cells,
    shaped_tables,
)
from changeanywhere.models.detectors import Detector
from changeanywhere.models.detectors.folder import load_detector
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.sample import rgb8
from changeanywhere.storage import atomic_write
from changeanywhere.training.pair_batches import to_tensors

HIT, MISS, FALSE_ALARM = (255, 255, 255), (0, 114, 178), (213, 94, 0)
"""Colours that colour-blind readers tell apart; black = unchanged and not called changed."""
NOTE = (
    "Mean ± standard error over seeds; F1, precision, recall and IoU of the change class in %, each from one\n"
    "confusion matrix over the whole test set. Gains are differences seed by seed (the same labels for\n"
    "every arm); one within two standard errors, or of a single seed, is noise. (Of five seeds, chance alone\n"
    "goes beyond two standard errors one time in nine.) Every arm was pre-trained once: how much another\n"
    "pre-training on the same set would differ is not in the errors."
)
COLOURS = ("#444444", "#0b62c4", "#c4560b", "#2a8a4a", "#8a2a6a", "#b59a00", "#20a5b0")


def summarise(records: Sequence[Mapping[str, Any]], rivals: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row per detector, share and arm: mean and standard error over seeds; gains in F1 over training from scratch
    and over the arms named in ``rivals``.

    Gains are taken seed by seed: with one seed every arm is tuned on the same labels, so that what one draw of labels
    is worth cancels. A gain is *certain* where the mean difference exceeds two standard errors of the differences. An
    undefined score (nothing predicted) counts as 0 in means and is flagged as collapsed; a gain that rests on such
    cells says so, and what it is without them.
    """
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["detector"], record["share"], record["arm"]].append(record)
    rows = []
    for (detector, share, arm), cells in groups.items():
        row: dict[str, Any] = {"detector": detector, "share": share, "arm": arm, "seeds": len(cells)}
        for score in SCORES:
            values = np.array([cell[score] or 0.0 for cell in cells])
            row[score] = float(values.mean())
            row[f"{score}_error"] = standard_error(values)
        row["collapsed"] = sum(cell["collapsed"] is not None for cell in cells)
        others = {other: groups.get((detector, share, other)) for other in (SCRATCH, *rivals) if other != arm}
        gains = {other: _gain(cells, before) for other, before in others.items() if before}
        row["gains"] = {other: gain for other, gain in gains.items() if gain} if arm != SCRATCH else {}
        rows.append(row)
    return rows


def _gain(cells: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean difference in F1, and its standard error, over the seeds that both arms have."""
    own, other = ({cell["seed"]: cell for cell in group} for group in (cells, before))
    both = [(own[seed], other[seed]) for seed in own if seed in other]
    if not both:
        return {}
    differences = np.array([(one["f1"] or 0.0) - (two["f1"] or 0.0) for one, two in both])
    sound = [d for d, pair in zip(differences, both, strict=True) if not any(cell["collapsed"] for cell in pair)]
    gain, error = float(differences.mean()), standard_error(differences)
    return {
        "f1": gain,
        "f1_error": error,
        "certain": len(differences) > 1 and abs(gain) > 2 * error,
        "collapsed": len(both) - len(sound),
        "sound_f1": float(np.mean(sound)) if sound else None,
    }


def standard_error(values: np.ndarray) -> float:
    """Of the mean; 0 where there is one value only (then nothing is claimed)."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _cells(row: Mapping[str, Any], rivals: Sequence[str]) -> list[str]:
    gains = []
    for other in (SCRATCH, *rivals):
        gain = row["gains"].get(other)
        gains.append("" if gain is None else _gain_text(gain))
    collapsed = f"{row['collapsed']} of {row['seeds']}" if row["collapsed"] else ""
    head = [row["detector"], f"{row['share']} %", row["arm"], str(row["seeds"])]
    return [*head, *score_cells(row), *gains, collapsed]


def _gain_text(gain: Mapping[str, Any]) -> str:
    spread = f" ± {100 * gain['f1_error']:.1f}" if gain["f1_error"] else ""
    text = f"{100 * gain['f1']:+.1f}{spread}{'' if gain['certain'] else ' (within noise)'}"
    if gain["collapsed"]:
        sound = "none is sound" if gain["sound_f1"] is None else f"{100 * gain['sound_f1']:+.1f} where neither has"
        text += f" (collapsed in {gain['collapsed']} pairs of cells: {sound})"
    return text


HEADINGS = ("detector", "labels", "pre-trained on", "seeds", "F1", "precision", "recall", "IoU")


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
    markdown = [f"# {options.name}", "", NOTE]
    for title, table in (*shaped, ("Every arm beside training from scratch and its rivals", [list(headings), *lines])):
        markdown += ["", f"## {title}", "", _line(table[0]), "|---" * len(table[0]) + "|", *map(_line, table[1:])]
    atomic_write(options.out / "table.md", ("\n".join(markdown) + "\n").encode())
    _write_csv(options.out / "table.csv", [headings, *lines])
    keys = ("detector", "arm", "share", "seed", "learning_rate", *SCORES, "predicted_share", "collapsed")
    _write_csv(options.out / "cells.csv", [keys, *([record.get(key) for key in keys] for record in records)])
    atomic_write(options.out / "table.tex", latex(shaped).encode())
    named = {name: dict(scores) for name, scores in constants.items()}
    content = {"rows": rows, "constants": named, "cells": [dict(record) for record in records]}
    atomic_write(options.out / "results.json", (json.dumps(content, indent=1) + "\n").encode())
    atomic_write(options.out / "curves.svg", curves(rows, constants["all changed"]["f1"] or 0.0).encode())
    write_panels(options, records, test)


def _write_csv(file: Path, rows: Iterable[Sequence[object]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    atomic_write(file, buffer.getvalue().encode())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def curves(rows: Sequence[Mapping[str, Any]], all_changed: float) -> str:
    """F1 over the share of labels, a panel per detector, a line per arm with its standard errors (paper, Fig. 2)."""
    detectors, arms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("detector", "arm"))
    width, height, left, base = 360, 240, 44, 200
    parts = []
    for number, detector in enumerate(detectors):
        own = [row for row in rows if row["detector"] == detector]
        shares = sorted({row["share"] for row in own})
        places = {share: left + (width - left - 20) * (i + 0.5) / len(shares) for i, share in enumerate(shares)}

        def y(f1: float) -> float:
            return base - (base - 40) * f1

        drawn = [f'<text x="{left}" y="22" font-weight="600">{detector}</text>']
        for tick in (0, 0.25, 0.5, 0.75, 1):
            drawn.append(f'<path d="M{left} {y(tick):.1f}H{width - 12}" stroke="#ddd"/>')
            drawn.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f}</text>')
        drawn.append(f'<path d="M{left} {y(all_changed):.1f}H{width - 12}" stroke="#999" stroke-dasharray="4 3"/>')
        for place, share in zip(places.values(), shares, strict=True):
            drawn.append(f'<text x="{place:.1f}" y="{base + 18}" text-anchor="middle">{share} %</text>')
        for arm in arms:
            colour = COLOURS[arms.index(arm) % len(COLOURS)]
            line = sorted((row["share"], row["f1"], row["f1_error"]) for row in own if row["arm"] == arm)
            points = " ".join(f"{places[s]:.1f},{y(f):.1f}" for s, f, _ in line)
            drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            for s, f, e in line:
                drawn.append(f'<path d="M{places[s]:.1f} {y(f - e):.1f}V{y(f + e):.1f}" stroke="{colour}"/>')
                drawn.append(f'<circle cx="{places[s]:.1f}" cy="{y(f):.1f}" r="3" fill="{colour}"/>')
        row_number, column = divmod(number, 3)
        parts.append(f'<g transform="translate({column * width},{row_number * height})">{"".join(drawn)}</g>')
    legend_y = height * -(-len(detectors) // 3) + 16
    for i, arm in enumerate(arms):
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<circle cx="{left + 170 * i}" cy="{legend_y - 4}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + 170 * i + 10}" y="{legend_y}">{arm}</text>')
    total = (min(3, len(detectors)) * width, legend_y + 16)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total[0]} {total[1]}" width="{total[0]}"'
    style = 'font-family="sans-serif" font-size="11"'
    return f'{head} {style}><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'


def outcome(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """bool ``[H, W]`` each → uint8 ``[H, W, 3]``: hits white, misses blue, false alarms orange."""
    picture = np.zeros((*label.shape, 3), np.uint8)
    picture[prediction & label], picture[~prediction & label], picture[prediction & ~label] = HIT, MISS, FALSE_ALARM
    return picture


@torch.no_grad()
def write_panels(options: BenchmarkOptions, records: Sequence[Mapping[str, Any]], test: PairDataset) -> None:
    """A row per test pair: date 1, date 2, label, then the outcome of every fine-tuned arm of the first detector, at
    the smallest share above 0, first seed."""
    detector = options.detectors[0]
    shared = [r for r in records if r["detector"] == detector and r["share"] > 0 and r["seed"] == options.seeds[0]]
    if not shared or not options.num_panels:
        return
    share = min(r["share"] for r in shared)
    nets = [_net_of(options.out / "training", record) for record in shared if record["share"] == share]
    rows = []
    for i in np.unique(np.linspace(0, len(test) - 1, options.num_panels).astype(int)):
        pair = test[int(i)]
        images = list(rgb8(pair))
        first, second, _ = to_tensors(images[0], images[1], pair.change_mask.astype(np.uint8))
        found = [net(first[None], second[None])[0].argmax(0).numpy() == 1 for net in nets]
        label = np.repeat(pair.change_mask[..., None] * np.uint8(255), 3, 2)
        pictures = [*images, label, *(outcome(f, pair.change_mask) for f in found)]
        rows.append(np.hstack([np.pad(picture, ((2, 2), (2, 2), (0, 0)), constant_values=255) for picture in pictures]))
    PillowImage.fromarray(np.vstack(rows)).save(options.out / "panels.png")


def _net_of(training: Path, record: Mapping[str, Any]) -> Detector:
    """The network that a cell was scored with."""
    what = f"lr{record['learning_rate']:g}" if "learning_rate" in record else "cell"
    cell = f"{record['detector']}-{record['arm']}-{record['share']:03d}-{record['seed']}-{what}"
    best = training / cell / "detector_best"
    return load_detector(best if best.is_dir() else training / cell / "detector")[1]
