"""``report.html`` of a scene: one self-contained page with an overview and a swipe between the dates."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.documents import to_json
from changeanywhere.legend import Legend
from changeanywhere.pairs.pictures import class_item, data_uri
from changeanywhere.sample import Normalisation, in_8_bits
from changeanywhere.scenes.descriptions import Feature
from changeanywhere.shipped import page as filled
from changeanywhere.text import visible, xml

SIDE = 1200  # px of the overview
SMALL = 600


def scene_report(
    folder: Path, legend: Legend, bands: tuple[int, ...], stretch: Normalisation, features: Sequence[Feature],
    facts: Sequence[tuple[str, str]], made: dict[str, Any],
) -> bytes:  # fmt: skip
    """The page, from the finished rasters in ``folder`` (read through their overviews)."""
    masks = [_reduced(folder / f"{name}.tif", (1,), SMALL)[0].astype(np.uint8) for name in ("mask_t1", "mask_t2")]
    change = _reduced(folder / "change.tif", (1,), SMALL)[0]
    page = filled(
        "scene",
        title=xml(f"Scene {folder.name}"),
        facts="".join(f'<div class="fact"><b>{xml(value)}</b>{xml(what)}</div>' for value, what in facts),
        first=_photo(folder / "t1.tif", bands, stretch),
        second=_photo(folder / "t2.tif", bands, stretch),
        classes="".join(class_item(c.name, c.color) for c in legend.classes),
        mask_first=data_uri(legend.colorize(masks[0]), "PNG", SMALL),
        mask_second=data_uri(legend.colorize(masks[1]), "PNG", SMALL),
        change=data_uri((change > 0).astype(np.uint8) * 255, "PNG", SMALL),
        rows=_rows(features),
        made=html.escape(visible(to_json(made, indent=1, ensure_ascii=False))),
    )
    return page.encode()


def _reduced(path: Path, bands: tuple[int, ...], side: int) -> npt.NDArray[Any]:
    from changeanywhere.rasters.tiff import opened

    with opened(path) as raster:
        shrink = max(1.0, max(raster.height, raster.width) / side)
        shape = max(1, round(raster.height / shrink)), max(1, round(raster.width / shrink))
        values: npt.NDArray[Any] = raster.read(list(bands), out_shape=(len(bands), *shape))
    return values


def _photo(path: Path, bands: tuple[int, ...], stretch: Normalisation) -> str:
    shown = in_8_bits(stretch.apply(_reduced(path, bands, SIDE).transpose(1, 2, 0)))
    shown = shown[..., :3] if shown.shape[2] >= 3 else shown[..., [0, 0, 0]]
    return data_uri(np.ascontiguousarray(shown), "JPEG", SIDE)


def _rows(features: Sequence[Feature]) -> str:
    sums: dict[str, list[float]] = {}
    for _, fields in features:
        row = sums.setdefault(f"{fields['from_class']} → {fields['to_class']}", [0, 0, 0])
        row[0], row[1], row[2] = row[0] + 1, row[1] + fields["area_px"], row[2] + (fields["area_m2"] or 0)
    known = any(fields["area_m2"] is not None for _, fields in features)
    return "".join(
        f"<tr><td>{xml(name)}</td><td>{count:.0f}</td><td>{pixels:,.0f}</td>"
        f"<td>{f'{area:,.0f}' if known else 'not known'}</td></tr>"
        for name, (count, pixels, area) in sorted(sums.items(), key=lambda item: -item[1][1])
    )
