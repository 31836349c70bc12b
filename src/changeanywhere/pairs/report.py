"""``report.html``: one self-contained page about a generated dataset, made from the folder alone."""

from __future__ import annotations

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from changeanywhere.documents import to_json
from changeanywhere.legend import Legend
from changeanywhere.pairs.codec import decode_image
from changeanywhere.pairs.containers import get_file
from changeanywhere.pairs.names import CHANGE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS, SPLITS
from changeanywhere.pairs.record import PairRecord
from changeanywhere.pairs.summary import SetSummary
from changeanywhere.shipped import page as filled
from changeanywhere.storage import Store
from changeanywhere.text import visible, xml

MAX_PAIRS = 48  # shown, spread evenly over the set: keeps the page below a few megabytes
SIDE = 256  # px; larger images are shown reduced
HISTOGRAM_BINS = 20


def write_report(store: Store, counts: SetSummary) -> None:
    """Write ``report.html`` from ``metadata.jsonl``, ``legend.json`` and the images."""
    legend = Legend.from_dict(json.loads(store.get("legend.json")), store.describe("legend.json"))
    places = set(np.unique(np.linspace(0, counts.count - 1, min(MAX_PAIRS, counts.count)).astype(int)).tolist())
    with store.open("metadata.jsonl") as lines:
        shown = [PairRecord.from_dict(json.loads(line)) for i, line in enumerate(lines) if i in places]
    page = filled(
        "report",
        title=xml(f"Change-detection pairs: {Path(store.describe()).resolve().name}"),
        facts=_facts(counts),
        classes="".join(class_item(c.name, c.color) for c in legend.classes),
        sheet_note=f"{len(shown)} of {counts.count} pairs, evenly spaced in the order of their keys, not chosen.",
        pairs="".join(_pair(store, record, legend) for record in shown),
        matrix=_matrix(counts.transitions, legend),
        histogram=_histogram(counts.ratios),
        targets=_targets(store),
        made=html.escape(visible(_made(counts.first))),
    )
    store.put("report.html", page.encode())


def _facts(counts: SetSummary) -> str:
    facts = [(str(counts.count), "pairs"), (f"{float(np.median(counts.ratios)):.2%}", "changed pixels (median)")]
    facts += [(str(n), kind) for kind, n in sorted(counts.kinds.items())]
    facts += [(str(counts.splits[name]), name) for name in SPLITS]
    facts += [(str(n), licence) for licence, n in sorted(counts.licences.items())]
    return "".join(f'<div class="fact"><b>{xml(n)}</b>{xml(what)}</div>' for n, what in facts)


def class_item(name: str, color: tuple[int, int, int]) -> str:
    """A class in a legend: its colour and its name."""
    red, green, blue = color
    return f'<li><span class="swatch" style="background:rgb({red},{green},{blue})"></span>{xml(name)}</li>'


def _pair(store: Store, record: PairRecord, legend: Legend) -> str:
    images = {folder: decode_image(get_file(store, record, folder), name) for folder, name in record.files.items()}
    changes = ", ".join(name.replace("->", " → ") for name in record.transitions) or "no change"
    caption = f"<b>{xml(record.key)}</b> · {xml(record.kind)}: {xml(changes)}"
    caption += f" · {record.change_ratio:.2%} changed"
    first, second = (_photo(images[folder], record) for folder in IMAGE_FOLDERS)
    masks = [data_uri(legend.colorize(images[folder]), "PNG") for folder in MASK_FOLDERS]
    change = data_uri((images[CHANGE_FOLDER] > 0).astype(np.uint8) * 255, "PNG")
    cells = [
        _cell(first, "image t1"),
        _cell(masks[0], "mask t1"),
        _cell(masks[1], "mask t2"),
        _cell(change, "change"),
        '<div class="flip" tabindex="0" role="img" aria-label="image t2; focus shows image t1">'
        f'<img src="{second}" alt="image t2"><img class="under" src="{first}" alt=""><small>image t2</small></div>',
    ]
    return f'<figure class="pair"><figcaption>{caption}</figcaption><div class="strip">{"".join(cells)}</div></figure>'


def _cell(uri: str, name: str) -> str:
    return f'<div><img src="{uri}" alt="{name}" loading="lazy"><small>{name}</small></div>'


def _photo(image: npt.NDArray[Any], record: PairRecord) -> str:
    """First three bands as JPEG; other than 8 bits through the recorded stretch."""
    pixels = image if image.ndim == 3 else image[..., None].repeat(3, 2)
    if pixels.dtype != np.uint8:
        low, high = (np.asarray(record.normalisation[end], float) for end in ("low", "high"))
        pixels = np.clip((pixels - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    return data_uri(np.ascontiguousarray(pixels[..., :3]), "JPEG")


def data_uri(pixels: npt.NDArray[np.uint8], kind: str, side: int = SIDE) -> str:
    image = PillowImage.fromarray(pixels)
    if max(image.size) > side:
        smooth = PillowImage.Resampling.LANCZOS if kind == "JPEG" else PillowImage.Resampling.NEAREST
        image.thumbnail((side, side), smooth)
    if kind == "PNG":
        image = image.convert("P", palette=PillowImage.Palette.ADAPTIVE)
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85, optimize=kind == "PNG")
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _matrix(transitions: Counter[str], legend: Legend) -> str:
    total = sum(transitions.values()) or 1
    largest = max(transitions.values(), default=1)
    head = "".join(f'<th scope="col">{xml(name)}</th>' for name in legend.names)
    rows = []
    for before in legend.names:
        cells = []
        for after in legend.names:
            count = transitions[f"{before}->{after}"]
            shade = f' style="background:rgba(var(--heat),{0.08 + 0.42 * count / largest:.2f})"' if count else ""
            cells.append(f"<td{shade}>{f'{count / total:.1%}<br>{count:,} px' if count else ''}</td>")
        rows.append(f'<tr><th scope="row">{xml(before)}</th>{"".join(cells)}</tr>')
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _histogram(ratios: Sequence[float]) -> str:
    """Inline SVG; the axis ends at the largest ratio."""
    top = max(max(ratios), 0.01)
    counts, edges = np.histogram(ratios, HISTOGRAM_BINS, (0, top))
    width, height, left, base = 640, 220, 40, 180
    span = width - left - 24
    step = span / HISTOGRAM_BINS
    bars = []
    for i, count in enumerate(counts):
        tall = 160 * count / counts.max()
        label = f"<title>{edges[i]:.1%} to {edges[i + 1]:.1%}: {count} pairs</title>"
        x, y = left + i * step + 1, base - tall
        bars.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{step - 2:.1f}" height="{tall:.1f}">{label}</rect>')
    ticks = [
        f'<text x="{left + i / 4 * span:.0f}" y="{base + 16}" text-anchor="middle">{top * i / 4:.1%}</text>'
        for i in range(5)
    ]
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="histogram of the change ratio">'
        f'<line x1="{left}" y1="{base}" x2="{left + span}" y2="{base}"/>{"".join(bars)}{"".join(ticks)}'
        f'<text x="{left - 6}" y="26" text-anchor="end">{counts.max()}</text>'
        f'<text x="{left - 6}" y="{base}" text-anchor="end">0</text>'
        f'<text x="{(width + left) / 2:.0f}" y="{base + 34}" text-anchor="middle">share of changed pixels</text></svg>'
    )


def _targets(store: Store) -> str:
    """What was asked of the set beside what it is, from ``targets.json``; empty without one."""
    if not store.exists("targets.json"):
        return ""
    rows = "".join(
        f'<tr><th scope="row">{xml(row["target"])}</th><td>{row["asked"]:.1%}</td><td>{row["reached"]:.1%}</td></tr>'
        for row in json.loads(store.get("targets.json"))
    )
    return f"<h2>Asked and reached</h2><table><tr><th></th><th>asked</th><th>reached</th></tr>{rows}</table>"


def _made(record: PairRecord | None) -> str:
    assert record is not None  # a set has at least one pair
    shown = {"source": record.source, "bands": record.bands, "normalisation": record.normalisation}
    return to_json(shown | record.provenance.to_dict(), indent=1)
