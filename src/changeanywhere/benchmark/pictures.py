"""Curves of a benchmark (SVG), and pictures of hits and misses (PNG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage

from changeanywhere.benchmark.options import BenchmarkOptions
from changeanywhere.models.detectors import Detector
from changeanywhere.models.detectors.folder import load_detector
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.sample import rgb8
from changeanywhere.storage import atomic_file
from changeanywhere.text import xml
from changeanywhere.training.detection import IGNORE
from changeanywhere.training.pair_batches import label_of, to_tensors

HIT, MISS, FALSE_ALARM, NOWHERE = (255, 255, 255), (0, 114, 178), (213, 94, 0), (110, 110, 110)
"""Colours that colour-blind readers tell apart; black = unchanged and not called changed."""
COLOURS = (
    *("#483048", "#0000f0", "#f09018", "#30c0f0", "#c03000"),
    *("#789090", "#900090", "#c0a878", "#a848f0", "#781818"),
)
"""Of arms: on white, and apart to readers who lack one kind of cone, too (27 in CIELAB at the least)."""
DASHES = ("", "7 3", "2 2", "9 3 2 3")
"""Of lines, once all colours are taken."""


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

        drawn = [f'<text x="{left}" y="22" font-weight="600">{xml(detector)}</text>']
        for tick in (0, 0.25, 0.5, 0.75, 1):
            drawn.append(f'<path d="M{left} {y(tick):.1f}H{width - 12}" stroke="#ddd"/>')
            drawn.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f}</text>')
        drawn.append(f'<path d="M{left} {y(all_changed):.1f}H{width - 12}" stroke="#999" stroke-dasharray="4 3"/>')
        for place, share in zip(places.values(), shares, strict=True):
            drawn.append(f'<text x="{place:.1f}" y="{base + 18}" text-anchor="middle">{share} %</text>')
        for arm in arms:
            colour, stroke = style_of(arms.index(arm))
            line = sorted((row["share"], row["f1"], row["f1_error"]) for row in own if row["arm"] == arm)
            points = " ".join(f"{places[s]:.1f},{y(f):.1f}" for s, f, _ in line)
            drawn.append(f'<polyline points="{points}" fill="none" {stroke} stroke-width="2"/>')
            for s, f, e in line:
                drawn.append(f'<path d="M{places[s]:.1f} {y(f - e):.1f}V{y(f + e):.1f}" stroke="{colour}"/>')
                drawn.append(f'<circle cx="{places[s]:.1f}" cy="{y(f):.1f}" r="3" fill="{colour}"/>')
        row_number, column = divmod(number, 3)
        parts.append(f'<g transform="translate({column * width},{row_number * height})">{"".join(drawn)}</g>')
    return _page(parts, arms, (min(3, len(detectors)) * width, height * -(-len(detectors) // 3)))


def learning_curves(records: Sequence[Mapping[str, Any]]) -> str:
    """F1 on validation pairs over the steps on labels, a panel per detector and share, a thin line per cell."""
    drawn = [record for record in records if record.get("curve")]
    panels = list(dict.fromkeys((record["detector"], record["share"]) for record in drawn))
    arms = list(dict.fromkeys(record["arm"] for record in drawn))
    width, height, left, base = 360, 240, 44, 200
    parts = []
    for number, (detector, share) in enumerate(panels):
        own = [record for record in drawn if (record["detector"], record["share"]) == (detector, share)]
        most = max(step for record in own for step, _ in record["curve"])
        lines = [f'<text x="{left}" y="22" font-weight="600">{xml(detector)}, {share} %</text>']
        for tick in (0, 0.25, 0.5, 0.75, 1):
            y = base - (base - 40) * tick
            lines.append(f'<path d="M{left} {y:.1f}H{width - 12}" stroke="#ddd"/>')
            lines.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * tick:.0f}</text>')
        lines.append(f'<text x="{width - 12}" y="{base + 18}" text-anchor="end">{most:g} steps</text>')
        for record in own:
            _, stroke = style_of(arms.index(record["arm"]))
            points = " ".join(
                f"{left + (width - left - 12) * step / most:.1f},{base - (base - 40) * f1:.1f}"
                for step, f1 in record["curve"]
            )
            lines.append(f'<polyline points="{points}" fill="none" {stroke} stroke-opacity="0.6"/>')
        row_number, column = divmod(number, 3)
        parts.append(f'<g transform="translate({column * width},{row_number * height})">{"".join(lines)}</g>')
    return _page(parts, arms, (min(3, max(len(panels), 1)) * width, height * -(-len(panels) // 3)))


def style_of(number: int) -> tuple[str, str]:
    """Colour of an arm, and the attributes of its line, by its place among the arms: no two of forty are alike."""
    turn, place = divmod(number, len(COLOURS))
    dashes = DASHES[turn % len(DASHES)]
    return COLOURS[place], f'stroke="{COLOURS[place]}"' + (f' stroke-dasharray="{dashes}"' if dashes else "")


def _page(parts: Sequence[str], arms: Sequence[str], size: tuple[int, int]) -> str:
    """Panels, and below them which line is which arm."""
    legend, row = [], max(2, (size[0] - 44) // 170)
    for i, arm in enumerate(arms):
        x, y = 44 + 170 * (i % row), size[1] + 16 + 18 * (i // row)
        legend.append(f'<path d="M{x} {y - 4}h24" {style_of(i)[1]} stroke-width="3"/>')
        legend.append(f'<text x="{x + 30}" y="{y}">{xml(arm)}</text>')
    width, below = max(size[0], 44 + 170 * min(row, len(arms))), 18 * -(-len(arms) // row)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {size[1] + below + 14}" width="{width}"'
    style = 'font-family="sans-serif" font-size="11"'
    content = "".join((*parts, *legend))
    return f'{head} {style}><rect width="100%" height="100%" fill="white"/>{content}</svg>\n'


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
    nets = [net for r in shared if r["share"] == share if (net := _net_of(options.out / "training", r)) is not None]
    rows = []
    for i in np.unique(np.linspace(0, len(test) - 1, options.num_panels).astype(int)):
        pair = test[int(i)]
        images = list(rgb8(pair))
        inputs = (to_tensors(*rgb8(pair, net.in_channels), pair.change_mask.astype(np.uint8)) for net in nets)
        found = [
            net(first[None], second[None])[0].argmax(0).numpy() == 1
            for net, (first, second, _) in zip(nets, inputs, strict=True)
        ]
        label = np.repeat(pair.change_mask[..., None] * np.uint8(255), 3, 2)
        pictures = [label, *(outcome(f, pair.change_mask) for f in found)]
        for picture in pictures:
            picture[label_of(pair) == IGNORE] = NOWHERE
        framed = [np.pad(picture, ((2, 2), (2, 2), (0, 0)), constant_values=255) for picture in (*images, *pictures)]
        rows.append(np.hstack(framed))
    widest = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    with atomic_file(options.out / "panels.png") as target:
        PillowImage.fromarray(np.vstack(rows)).save(target, "PNG")


def _net_of(training: Path, record: Mapping[str, Any]) -> Detector | None:
    """The network that a cell was scored with; None where its weights were dropped (its seed was not the first one)."""
    cell = f"{record['detector']}-{record['arm']}-{record['share']:03d}-{record['seed']}-lr{record['learning_rate']:g}"
    best = training / cell / "detector_best"
    folder = best if best.is_dir() else training / cell / "detector"
    return load_detector(folder)[1] if folder.is_dir() else None
