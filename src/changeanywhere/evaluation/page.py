"""``evaluation.html``: the figures as tables, and what was painted from masks alone beside the real tiles."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path
from string import Template

import numpy as np

from changeanywhere.evaluation.figures import Figure
from changeanywhere.evaluation.reading import Image
from changeanywhere.evaluation.scores import Mask
from changeanywhere.legend import Legend
from changeanywhere.pairs.report import data_uri
from changeanywhere.storage import atomic_write
from changeanywhere.text import visible, xml

MAX_PICTURES = 24


@dataclass(frozen=True)
class Pictures:
    """(mask, real image, painted image) per tile."""

    legend: Legend | None = None
    rows: Sequence[tuple[Mask, Image, Image]] = ()


def write_page(file: Path, figures: Sequence[Figure], pictures: Pictures, options: Mapping[str, str]) -> None:
    """Write the page."""
    template = Template((resources.files("changeanywhere") / "assets" / "evaluation.html").read_text())
    sections = "".join(_section(name, list(rows)) for name, rows in groupby(figures, key=lambda f: f.section))
    made = "\n".join(f"{name}: {value}" for name, value in options.items())
    page = template.substitute(sections=sections, pictures=_pictures(pictures), made=html.escape(visible(made)))
    atomic_write(file, page.encode())


def _section(name: str, figures: Sequence[Figure]) -> str:
    rows = []
    for figure in figures:
        interval = f"{figure.low:.3f} to {figure.high:.3f}" if figure.low is not None else ""
        ceiling = f"{figure.ceiling:.3f}" if figure.ceiling is not None else ""
        verdict = "" if figure.reached is None else "reached" if figure.reached else "missed"
        rows.append(
            f'<tr><th scope="row">{xml(figure.name)}<small>{xml(figure.note)}</small></th>'
            f"<td>{figure.value:.3f}</td><td>{interval}</td><td>{ceiling}</td>"
            f'<td class="{verdict}">{verdict}<small>{xml(figure.target)}</small></td></tr>'
        )
    head = "<tr><th></th><th>value</th><th>95 % interval</th><th>real data</th><th>asked</th></tr>"
    return f"<h2>{xml(name)}</h2><table>{head}{''.join(rows)}</table>"


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
