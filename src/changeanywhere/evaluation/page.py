"""``evaluation.html``: the figures as tables, images painted from masks alone beside real tiles, crops of objects."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from changeanywhere.evaluation.figures import Figure
from changeanywhere.evaluation.of_objects import Crops
from changeanywhere.evaluation.reading import Image
from changeanywhere.evaluation.scores import Mask
from changeanywhere.legend import Legend
from changeanywhere.pairs.pictures import data_uri
from changeanywhere.shipped import page as filled
from changeanywhere.storage import atomic_write
from changeanywhere.text import visible, xml

MAX_PICTURES = 24


@dataclass(frozen=True)
class Pictures:
    """(mask, real image, painted image) per tile."""

    legend: Legend | None = None
    rows: Sequence[tuple[Mask, Image, Image]] = ()


def write_page(
    file: Path, figures: Sequence[Figure], pictures: Pictures, crops: Crops, options: Mapping[str, str]
) -> None:
    """Write the page."""
    sections = []
    for name, group in groupby(figures, key=lambda figure: figure.section):
        rows = list(group)
        sections.append(_side_by_side(name, rows) if any(figure.of for figure in rows) else _section(name, rows))
    made = "\n".join(f"{name}: {value}" for name, value in options.items())
    page = filled(
        "evaluation",
        sections="".join(sections),
        pictures=_pictures(pictures) + _crops(crops),
        made=html.escape(visible(made)),
    )
    atomic_write(file, page.encode())


def _section(name: str, figures: Sequence[Figure]) -> str:
    rows = []
    for figure in figures:
        interval = f"{figure.low:.3f} to {figure.high:.3f}" if figure.low is not None else ""
        ceiling = f"{figure.ceiling:.3f}" if figure.ceiling is not None else ""
        rows.append(
            f'<tr><th scope="row">{xml(figure.name)}<small>{xml(figure.note)}</small></th>'
            f"<td>{_value(figure)}</td><td>{interval}</td><td>{ceiling}</td>{_verdict(figure)}</tr>"
        )
    head = "<tr><th></th><th>value</th><th>95 % interval</th><th>real data</th><th>in words</th></tr>"
    return f"<h2>{xml(name)}</h2><div class='scroll'><table>{head}{''.join(rows)}</table></div>"


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
        beside.append(f"real data {figure.ceiling:.3f}")
    lines = "".join(f"<small>{xml(line)}</small>" for line in [*beside, figure.verdict, figure.note])
    return f"<td>{_value(figure)}{lines}</td>"


def _value(figure: Figure) -> str:
    return "withheld" if figure.withheld else f"{figure.value:.3f}"


def _verdict(figure: Figure) -> str:
    verdict = "" if figure.reached is None else "reached" if figure.reached else "missed"
    return f'<td class="{verdict or "open"}">{xml(figure.verdict)}</td>'


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
        parts.append(f'<h2>Objects: new {xml(name)}</h2><table class="crops">{rows}</table>')
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
            '<div class="strip">'
            + "".join(f'<div><img src="{uri}" alt="{name}"><small>{name}</small></div>' for name, uri in cells)
            + "</div>"
        )
    note = f"<p>{len(numbers)} of {len(pictures.rows)} tiles, evenly spaced, not chosen.</p>"
    return f'<h2>Painted from masks alone</h2>{note}<div class="sheet">{"".join(items)}</div>'
