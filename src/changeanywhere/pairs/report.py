"""``report.html``: one self-contained page about a generated dataset, made from the folder alone."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from changeanywhere.documents import to_json
from changeanywhere.legend import Legend
from changeanywhere.pairs.codec import decode_image
from changeanywhere.pairs.containers import get_file
from changeanywhere.pairs.names import CHANGE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS, SPLITS
from changeanywhere.pairs.pictures import class_item, dates, masks, photo, swatch
from changeanywhere.pairs.record import PairRecord
from changeanywhere.pairs.summary import SetSummary
from changeanywhere.shipped import page as filled
from changeanywhere.storage import Store
from changeanywhere.text import visible, xml

MAX_PAIRS = 48  # shown, spread evenly over the set: keeps the page below a few megabytes
HISTOGRAM_BINS = 20


def write_report(store: Store, counts: SetSummary) -> None:
    """Write ``report.html`` from ``metadata.jsonl``, ``legend.json`` and the images."""
    legend = Legend.from_dict(json.loads(store.get("legend.json")), store.describe("legend.json"))
    places = set(np.unique(np.linspace(0, counts.count - 1, min(MAX_PAIRS, counts.count)).astype(int)).tolist())
    with store.open("metadata.jsonl") as lines:
        shown = [PairRecord.from_dict(json.loads(line)) for i, line in enumerate(lines) if i in places]
    filters = Filters(shown)
    with ThreadPoolExecutor() as pool:  # most of it is reading and writing images, which holds no lock
        pairs = list(pool.map(lambda at: _pair(store, at[1], legend, filters, at[0]), enumerate(shown)))
    page = filled(
        "report",
        title=xml(f"Change-detection pairs: {Path(store.describe()).resolve().name}"),
        facts=_facts(counts),
        classes="".join(class_item(c.name, c.color) for c in legend.classes),
        sheet_note=f"{len(shown)} of {counts.count} pairs, evenly spaced in the order of their keys, not chosen.",
        controls=filters.controls(),
        pairs="".join(pairs),
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
    facts += [(str(n), f"left out: {what}") for what, n in counts.left_out.items()]
    facts += [(str(n), f"moved to a tile with room: {what}") for what, n in counts.moved.items()]
    if counts.seconds["base"]:
        facts += [(str(counts.seconds["base"]), "on a real second date")]
        facts += [(f"{counts.ignored / counts.count:.1%}", "of the ground without a label (ignore/)")]
    if counts.seconds["style"]:
        facts += [(str(counts.seconds["style"]), "in the style of a real second date")]
    return "".join(f'<div class="fact"><b>{xml(n)}</b>{xml(what)}</div>' for n, what in facts)


def _pair(store: Store, record: PairRecord, legend: Legend, filters: Filters, number: int) -> str:
    images = {folder: decode_image(get_file(store, record, folder), name) for folder, name in record.files.items()}
    ends = (record.normalisation.get("low", ()), record.normalisation.get("high", ()))
    first, second = (photo(images[folder], *ends) for folder in IMAGE_FOLDERS)
    before, after = (images[folder] for folder in MASK_FOLDERS)
    change = images[CHANGE_FOLDER] > 0
    painted = "painted on a real image" if record.second == "base" else "painted"
    names = [f"image t{date}, {'real' if date == record.real_date else painted}" for date in (1, 2)]
    said = f"<b>{xml(record.key)}</b> {_changes(record, legend)}"
    said += f"<span>{record.change_ratio:.2%} changed · {xml(record.kind)} · {xml(record.split)}</span>"
    if record.fidelity is not None:
        said += f"<span>{record.fidelity:.0%} of it reads as its new class</span>"
    return (
        f'<figure class="pair" {filters.marks(record)}><figcaption>{said}</figcaption><div class="strip">'
        f"{dates(first, second, change, names, str(number))}{masks(before, after, change, legend)}</div></figure>"
    )


def _changes(record: PairRecord, legend: Legend) -> str:
    """Its transitions, most changed pixels first, with the colours of the classes."""
    colours = {each.name: swatch(each.color) for each in legend.classes}
    found = []
    for name in sorted(record.transitions, key=lambda name: (-record.transitions[name], name)):
        before, _, after = name.partition("->")
        found.append(f"<span>{colours.get(before, '')}{xml(before)} → {colours.get(after, '')}{xml(after)}</span>")
    return "".join(found) or "<span>no change</span>"


class Filters:
    """What the pairs that are shown can be chosen and sorted by."""

    def __init__(self, records: Sequence[PairRecord]) -> None:
        changed = Counter[str]()
        for record in records:
            changed.update(record.transitions)
        self.transitions = [name for name, _ in sorted(changed.items(), key=lambda item: (-item[1], item[0]))]
        self.kinds = sorted({record.kind for record in records})
        self.splits = list(dict.fromkeys(record.split for record in sorted(records, key=_place_of_split)))
        self.judged = any(record.fidelity is not None for record in records)

    def marks(self, record: PairRecord) -> str:
        """Attributes of a pair: numbers alone, so that no name means anything to the page."""
        numbers = " ".join(str(self.transitions.index(name)) for name in record.transitions)
        marks = {
            "kind": self.kinds.index(record.kind),
            "split": self.splits.index(record.split),
            "change": numbers,
            "ratio": record.change_ratio,
        }
        if record.fidelity is not None:
            marks["fidelity"] = record.fidelity
        return " ".join(f'data-{name}="{value}"' for name, value in marks.items())

    def controls(self) -> str:
        """The choices, of which a page without scripts shows none."""
        changes = [name.replace("->", " → ") for name in self.transitions]
        found = [_choice("change", "all changes", changes), _choice("kind", "all kinds", self.kinds)]
        if len(self.splits) > 1:
            found.append(_choice("split", "all splits", self.splits))
        orders = {"": "in order of keys", "-ratio": "most changed first", "ratio": "least changed first"}
        orders |= {"fidelity": "least true to its mask first"} if self.judged else {}
        options = "".join(f'<option value="{value}">{name}</option>' for value, name in orders.items())
        return "".join(found) + f'<select name="order" aria-label="order">{options}</select>'


def _place_of_split(record: PairRecord) -> int:
    return SPLITS.index(record.split) if record.split in SPLITS else len(SPLITS)


def _choice(name: str, everything: str, values: Sequence[str]) -> str:
    options = "".join(f'<option value="{number}">{xml(value)}</option>' for number, value in enumerate(values))
    return f'<select name="{name}" aria-label="{name}"><option value="">{everything}</option>{options}</select>'


def _matrix(transitions: Counter[str], legend: Legend) -> str:
    total = sum(transitions.values()) or 1
    largest = max(transitions.values(), default=1)
    head = "".join(f'<th scope="col">{xml(name).replace("_", "_<wbr>")}</th>' for name in legend.names)
    rows = []
    for before in legend.names:
        cells = []
        for after in legend.names:
            count = transitions[f"{before}->{after}"]
            shade = f' style="background:rgba(var(--heat),{0.08 + 0.42 * count / largest:.2f})"' if count else ""
            cells.append(f"<td{shade}>{f'{count / total:.1%}<small>{count:,} px</small>' if count else ''}</td>")
        rows.append(f'<tr><th scope="row">{xml(before).replace("_", "_<wbr>")}</th>{"".join(cells)}</tr>')
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
        f'<svg class="bins" viewBox="0 0 {width} {height}" role="img" aria-label="histogram of the change ratio">'
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
