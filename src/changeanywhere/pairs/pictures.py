"""Pictures of pairs for pages: images and masks as data URIs, the border of what changed as a path over both dates."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from changeanywhere.legend import Legend, Mask
from changeanywhere.text import xml

SIDE = 256
"""px; larger images are shown reduced."""
Pixels = npt.NDArray[np.uint8]


def data_uri(pixels: Pixels, kind: str, side: int = SIDE) -> str:
    """uint8 ``[H, W]`` or ``[H, W, 3]`` as ``data:image/…``, its longer side ``side`` at most; ``kind``: JPEG, PNG."""
    return _encoded(PillowImage.fromarray(pixels), kind, side)[0]


def img(pixels: Pixels | PillowImage.Image, kind: str, name: str) -> str:
    """The same as a tag that knows its size, so that a page does not move while it loads."""
    image = pixels if isinstance(pixels, PillowImage.Image) else PillowImage.fromarray(pixels)
    uri, (width, height) = _encoded(image, kind, SIDE)
    return f'<img src="{uri}" width="{width}" height="{height}" alt="{xml(name)}" loading="lazy">'


def _encoded(image: PillowImage.Image, kind: str, side: int) -> tuple[str, tuple[int, int]]:
    if max(image.size) > side:
        smooth = PillowImage.Resampling.LANCZOS if kind == "JPEG" else PillowImage.Resampling.NEAREST
        image.thumbnail((side, side), smooth)
    if kind == "PNG" and image.mode == "RGB":
        image = image.convert("P", palette=PillowImage.Palette.ADAPTIVE)
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}", image.size


def class_item(name: str, color: tuple[int, int, int]) -> str:
    """A class in a legend: its colour and its name."""
    return f"<li>{swatch(color)}{xml(name)}</li>"


def swatch(color: tuple[int, int, int]) -> str:
    """A class's colour alone."""
    red, green, blue = color
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def outline(change: npt.NDArray[np.bool_]) -> str:
    """Border of the changed pixels of ``[H, W]`` as an SVG path in pixels; "" where nothing changed.

    Of larger images the border of what is shown: cells of several pixels, changed where one of them is, so that no
    change is too small to be seen.
    """
    each = -(-max(change.shape) // SIDE)
    high, wide = (-(-n // each) for n in change.shape)
    cells = np.pad(change, ((0, high * each - change.shape[0]), (0, wide * each - change.shape[1])))
    cells = np.pad(cells.reshape(high, each, wide, each).any((1, 3)), 1)
    parts = []
    for edges, step in ((np.diff(cells, axis=0)[:, 1:-1], "h"), (np.diff(cells, axis=1)[1:-1].T, "v")):
        ends = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        starts, stops = np.argwhere(ends == 1) * each, np.argwhere(ends == -1) * each
        for (across, start), (_, stop) in zip(starts.tolist(), stops.tolist(), strict=True):
            place = f"{start} {across}" if step == "h" else f"{across} {start}"
            parts.append(f"M{place}{step}{stop - start}")
    return "".join(parts)


def dates(first: Pixels, second: Pixels, change: npt.NDArray[np.bool_], names: Sequence[str], number: str) -> str:
    """Both dates with the border of the change on each; the second shows the first while it is held or focused.

    ``number`` tells the path from others of the page. Where images are stored as uint8 ``[H, W, 3]``.
    """
    path, size = outline(change), f"0 0 {change.shape[1]} {change.shape[0]}"
    over = ["", ""]
    if path:
        drawn = f'<use class="halo" href="#o{number}"/><use href="#o{number}"/></svg>'
        start = f'<svg class="outline" viewBox="{size}" preserveAspectRatio="none" aria-hidden="true">'
        over = [f'{start}<defs><path id="o{number}" d="{path}"/></defs>{drawn}', f"{start}{drawn}"]
    one, two = (img(image, "JPEG", name) for image, name in zip((first, second), names, strict=True))
    under = one.replace("<img ", '<img class="under" ', 1)
    return (
        f'<div class="date"><div class="view">{one}{over[0]}</div><small>{xml(names[0])}</small></div>'
        f'<div class="date flip" tabindex="0" role="img" aria-label="{xml(names[1])}; focus shows {xml(names[0])}">'
        f'<div class="view">{two}{under}{over[1]}</div><small>{xml(names[1])}</small></div>'
    )


def masks(first: Mask, second: Mask, change: npt.NDArray[np.bool_], legend: Legend) -> str:
    """Both masks and the change, small."""
    shown = [(_coloured(first, legend), "mask t1"), (_coloured(second, legend), "mask t2")]
    return small([*shown, (PillowImage.fromarray(change.astype(np.uint8) * 255), "change")])


def _coloured(mask: Mask, legend: Legend) -> PillowImage.Image:
    """A mask with the legend as its palette: nobody has to count its colours."""
    image = PillowImage.fromarray(mask)
    image.putpalette(legend.palette()[: 1 + max(c.index for c in legend.classes)].tobytes())
    return image


def small(shown: Sequence[tuple[Pixels | PillowImage.Image, str]]) -> str:
    """Masks beside the dates, small: uint8 ``[H, W]`` or ``[H, W, 3]`` and what each is."""
    cells = "".join(f"<div>{img(pixels, 'PNG', name)}<small>{xml(name)}</small></div>" for pixels, name in shown)
    return f'<div class="masks">{cells}</div>'


def photo(image: npt.NDArray[Any], low: Sequence[float], high: Sequence[float]) -> Pixels:
    """First three bands, uint8 ``[H, W, 3]``; other than 8 bits from ``low`` to ``high``, by band."""
    pixels = image if image.ndim == 3 else image[..., None].repeat(3, 2)
    if pixels.dtype != np.uint8:
        ends = np.asarray(low, float), np.asarray(high, float)
        pixels = np.clip((pixels - ends[0]) / (ends[1] - ends[0]) * 255, 0, 255).astype(np.uint8)
    pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., [0, 0, 0]]
    return np.ascontiguousarray(pixels)
