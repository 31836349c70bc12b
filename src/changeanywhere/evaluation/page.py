"""``evaluation.html``: the figures as tables, pairs (the worst, the best, others), images painted from masks alone,
crops of objects."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from changeanywhere.evaluation.cases import Group, sheets
from changeanywhere.evaluation.figures import Figure
from changeanywhere.evaluation.of_objects import Crops
from changeanywhere.evaluation.of_pairs import Shown
from changeanywhere.evaluation.reading import Image
from changeanywhere.evaluation.scores import Mask
from changeanywhere.legend import Legend
from changeanywhere.pairs.pictures import class_item, data_uri, dates, small
from changeanywhere.shipped import page as filled
from changeanywhere.storage import atomic_write
from changeanywhere.text import visible, xml

MAX_PICTURES = 24
HOVER = "Hover over image t2 (or focus it with Tab, or tap) to see image t1 in its place."


@dataclass(frozen=True)
class Cases:
    """Pairs of a set by groups, their masks in ``legend`` where they have any."""

    legend: Legend | None = None
    groups: Sequence[Group] = ()
    shown: Mapping[int, Shown] = field(default_factory=dict)


@dataclass(frozen=True)
class Pictures:
    """(mask, real image, painted image) per tile, pairs of a set, crops of objects; each where there are any."""

    legend: Legend | None = None
    rows: Sequence[tuple[Mask, Image, Image]] = ()
    cases: Cases = field(default_factory=Cases)
    crops: Crops = field(default_factory=dict)


def write_page(file: Path, figures: Sequence[Figure], pictures: Pictures, options: Mapping[str, str]) -> None:
    """Write the page."""
    page = filled(
        "evaluation",
        sections=tables(figures),
        pairs=_pairs(pictures.cases),
        pictures=_pictures(pictures) + _crops(pictures.crops),
        made=in_lines(options),
    )
    atomic_write(file, page.encode())


def in_lines(options: Mapping[str, str]) -> str:
    """What was asked for, a line each."""
    return html.escape(visible("\n".join(f"{name}: {value}" for name, value in options.items())))


def tables(figures: Sequence[Figure]) -> str:
    """A table for every section of figures."""
    parts = []
    for name, group in groupby(figures, key=lambda figure: figure.section):
        rows = list(group)
        parts.append(_side_by_side(name, rows) if any(figure.of for figure in rows) else _one_by_one(name, rows))
    return "".join(parts)


def _one_by_one(name: str, figures: Sequence[Figure]) -> str:
    """Figures of a section: value, interval, what stands beside it, and one sentence."""
    rows = []
    for figure in figures:
        interval = f"{figure.low:.3f} to {figure.high:.3f}" if figure.low is not None else ""
        ceiling = f"{figure.ceiling:.3f}" if figure.ceiling is not None else ""
        rows.append(
            f'<tr><th scope="row">{xml(figure.name)}<small>{xml(figure.note)}</small></th>'
            f"<td>{_value(figure)}</td><td>{interval}</td><td>{ceiling}</td>{_verdict(figure)}</tr>"
        )
    beside = xml(figures[0].beside)
    head = f"<tr><th></th><th>value</th><th>95 % interval</th><th>{beside}</th><th>in words</th></tr>"
    return f"<h2>{xml(name)}</h2><div class='scroll'><table class='figures'>{head}{''.join(rows)}</table></div>"


def _side_by_side(name: str, figures: Sequence[Figure]) -> str:
    """A row for every figure, a column for every set; real data's value is below each, since each has its own."""
    sets = list(dict.fromkeys(figure.of for figure in figures))
    cells = {(figure.name, figure.of): figure for figure in figures}
    rows = []
    for row in dict.fromkeys(figure.name for figure in figures):
        columns = "".join(_cell(cells.get((row, each))) for each in sets)
        rows.append(f'<tr><th scope="row">{xml(row)}</th>{columns}</tr>')
    head = f"<tr><th></th>{''.join(f'<th>{xml(each)}</th>' for each in sets)}</tr>"
    return f"<h2>{xml(name)}</h2><div class='scroll'><table>{head}{''.join(rows)}</table></div>"


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "<td></td>"
    beside = []
    if figure.low is not None:
        beside.append(f"{figure.low:.3f} to {figure.high:.3f}")
    if figure.ceiling is not None:
        beside.append(f"{figure.beside} {figure.ceiling:.3f}")
    lines = "".join(f"<small>{xml(line)}</small>" for line in [*beside, figure.note])
    return f'<td>{_value(figure)}<small class="{_kind(figure)}">{xml(figure.verdict)}</small>{lines}</td>'


def _value(figure: Figure) -> str:
    return "withheld" if figure.withheld else f"{figure.value:.3f}"


def _verdict(figure: Figure) -> str:
    return f'<td class="{_kind(figure)}">{xml(figure.verdict)}</td>'


def _kind(figure: Figure) -> str:
    """By which its verdict is coloured."""
    return "open" if figure.few or figure.reached is None else "reached" if figure.reached else "missed"


def _pairs(cases: Cases) -> str:
    if not cases.groups:
        return ""
    legend = cases.legend
    masked = legend is not None and any(shown.pair.mask_t1 is not None for shown in cases.shown.values())
    classes = "".join(class_item(each.name, each.color) for each in legend.classes) if masked and legend else ""
    bar = f'<div class="bar"><ul class="classes">{classes}</ul></div>' if classes else ""
    count = sum(len(group.numbers) for group in cases.groups)
    note = f"{count} pairs. The yellow line is the border of what changed, on both dates. {HOVER}"
    panels = sheets(cases.groups, lambda number: _pair(cases.shown[number], number, legend if masked else None))
    return f"<section><h2>Pairs</h2><p>{note}</p>{bar}{panels}</section>"


def _pair(shown: Shown, number: int, legend: Legend | None) -> str:
    pair, real = shown.pair, shown.pair.metadata.get("real_date")
    names = [f"image t{date}" + (f", {'real' if date == real else 'painted'}" if real else "") for date in (1, 2)]
    images = dates(pair.image_t1, pair.image_t2, pair.change_mask, names, str(number))
    masks = [(pair.change_mask.astype(np.uint8) * 255, "change")]
    if legend is not None and pair.mask_t1 is not None and pair.mask_t2 is not None:
        both = [(legend.colorize(pair.mask_t1), "mask t1"), (legend.colorize(pair.mask_t2), "mask t2")]
        of_judge = [] if shown.read is None else [(legend.colorize(shown.read), "painted, as read")]
        masks = [*both, *(of_judge or masks)]
    said = "".join(f"<span>{xml(each)}</span>" for each in shown.said)
    return (
        f'<figure class="pair"><figcaption><b>{xml(pair.key)}</b>{said}</figcaption>'
        f'<div class="strip">{images}{small(masks)}</div></figure>'
    )


def _crops(crops: Crops) -> str:
    if not crops:
        return ""
    note = (
        "Evenly spaced, not chosen. Below one another in a column: the first set's objects and their real counterparts."
    )
    parts = []
    for name, strips in crops.items():
        rows = "".join(
            f'<tr><th scope="row">{xml(of)}</th><td><img src="{data_uri(strip, "JPEG", strip.shape[1])}" '
            f'alt="{xml(name)}, {xml(of)}"></td></tr>'
            for of, strip in strips.items()
        )
        table = f'<div class="scroll"><table class="crops">{rows}</table></div>'
        parts.append(f"<h2>Objects: new {xml(name)}</h2>{table}")
    return f"<h2>Objects</h2><p>{note}</p>{''.join(parts)}"


def _pictures(pictures: Pictures) -> str:
    if pictures.legend is None or not pictures.rows:
        return ""
    numbers = np.unique(np.linspace(0, len(pictures.rows) - 1, min(MAX_PICTURES, len(pictures.rows))).astype(int))
    items = []
    for number in numbers:
        mask, real, painted = pictures.rows[number]
        cells = [
            ("mask", data_uri(pictures.legend.colorize(mask), "PNG")),
            ("painted from the mask alone", data_uri(painted, "JPEG")),
            ("the real tile", data_uri(real, "JPEG")),
        ]
        items.append(
            '<div class="tiles">'
            + "".join(f'<div><img src="{uri}" alt="{name}"><small>{name}</small></div>' for name, uri in cells)
            + "</div>"
        )
    note = f"<p>{len(numbers)} of {len(pictures.rows)} tiles, evenly spaced, not chosen.</p>"
    return f'<h2>Painted from masks alone</h2>{note}<div class="sheet">{"".join(items)}</div>'
