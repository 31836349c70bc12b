"""What was labelled, to be looked at: image, classes and confidence side by side, and a page of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from changeanywhere.legend import Legend, Mask
from changeanywhere.pairs.pictures import class_item
from changeanywhere.rasters.facts import Window
from changeanywhere.sample import in_8_bits
from changeanywhere.shipped import page as filled
from changeanywhere.storage import atomic_write
from changeanywhere.text import xml

SIDE = 256
"""Longer side of a picture, px; larger images are shown by every nth pixel."""
SHOWN = 60
"""Images on the page: the third that is least sure, then others, evenly spaced."""
ROWS = 1000
"""Rows of the page's table; labels.csv has all."""

Row = tuple[str, float, float, dict[str, float], Path]
"""Name, share of known ground, confidence, shares by class, file of its strip."""


class Strip:
    """Image, classes and confidence of an image, gathered window by window."""

    def __init__(self, height: int, width: int, legend: Legend) -> None:
        self._every = max(1, -(-max(height, width) // SIDE))
        shape = -(-height // self._every), -(-width // self._every)
        self._parts = [np.zeros((*shape, 3), np.uint8) for _ in range(3)]
        self._colours = np.zeros((256, 3), np.uint8)
        self._colours[: legend.num_classes + 1] = [(0, 0, 0), *(c.color for c in legend.classes)]

    def look(self, window: Window, pixels: npt.NDArray[np.float32], mask: Mask, sure: npt.NDArray[np.float32]) -> None:
        """Pixels f32 ``[h, w, 3]`` in [-1, 1], mask and confidence f32 ``[h, w]`` of a window."""
        every = self._every
        start = -window.row % every, -window.column % every
        picked = slice(start[0], None, every), slice(start[1], None, every)
        rows, columns = -(-window.row // every), -(-window.column // every)
        grey = np.repeat((sure[picked] * 255).astype(np.uint8)[..., None], 3, 2)
        image = in_8_bits(pixels[picked])
        for part, found in zip(self._parts, (image, self._colours[mask[picked]], grey), strict=True):
            height, width = found.shape[:2]
            part[rows : rows + height, columns : columns + width] = found

    def save(self, file: Path) -> None:
        """As one JPEG."""
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate(self._parts, 1)).save(buffer, "JPEG", quality=85, subsampling=0)
        atomic_write(file, buffer.getvalue())


def write_page(
    file: Path,
    title: str,
    called: str,
    rows: Sequence[tuple[str, float, float, dict[str, float], Path]],
    legend: Legend,
) -> None:
    """The page of a folder. A row: name, share of known ground, confidence, shares by class, file of its strip."""
    ordered = sorted(rows, key=lambda row: row[2])
    least = ordered[: SHOWN // 3]
    others = ordered[len(least) :]
    shown = [*least, *others[:: max(1, -(-len(others) // (SHOWN - len(least) or 1)))]]
    page = filled(
        "labels",
        title=xml(title),
        called=xml(called),
        legend="".join(class_item(c.name, c.color) for c in legend.classes) + class_item("unknown", (0, 0, 0)),
        known=_percent(np.mean([row[1] for row in rows])),
        sure=_percent(np.mean([row[2] for row in rows])),
        count=f"{len(rows):,}",
        panels="".join(_panel(*row[:3], row[4]) for row in shown),
        head="".join(f"<th scope=col>{xml(name)}</th>" for name in ("known", "confidence", *legend.names)),
        rows="".join(_row(*row[:4]) for row in ordered[:ROWS]),
        left="" if len(rows) <= ROWS else f"<p>The other {len(rows) - ROWS:,} rows are in labels.csv.</p>",
    )
    atomic_write(file, page.encode())


def _panel(name: str, known: float, sure: float, strip: Path) -> str:
    picture = base64.b64encode(strip.read_bytes()).decode() if strip.is_file() else ""
    said = f"{xml(name)}: confidence {_percent(sure)}, known {_percent(known)}"
    return f'<figure><img alt="image, classes and confidence of {xml(name)}" src="data:image/jpeg;base64,{picture}"><figcaption>{said}</figcaption></figure>'  # noqa: E501


def _row(name: str, known: float, sure: float, shares: dict[str, float]) -> str:
    cells = "".join(f"<td>{_percent(value)}</td>" for value in (known, sure, *shares.values()))
    return f"<tr><th scope=row>{xml(name)}</th>{cells}</tr>"


def _percent(value: float | np.floating) -> str:
    return f"{100 * float(value):.1f} %"
