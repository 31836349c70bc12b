"""Contact sheets: pairs as rows of pictures, for eyes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from changeanywhere.legend import Legend
from changeanywhere.pairs.reader import load_pairs
from changeanywhere.sample import ChangePair, rgb8

GAP = 4
LINE = 18
"""Height of a line of text, px."""
HEADINGS = ("image t1", "image t2", "masks, change")
BORDER, HALO = (255, 224, 0), (40, 40, 40)
"""Of what changed, on both dates."""
SQUARE = np.ones((3, 3), bool)
ITEM = 150
"""Width of a class in the legend, px."""


def contact_sheet(folder: Path, count: int, side: int = 160, strips_per_row: int = 2) -> Image.Image:
    """``count`` pairs of a generated dataset, evenly spaced in the order of their keys: both dates with the border of
    what changed, and at half the size the masks and the change; the classes below."""
    legend, dataset = Legend.load(folder / "legend.json"), load_pairs(folder)
    places = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    strips = [_strip(dataset[int(i)], legend, side) for i in places]
    return _arrange(strips, strips_per_row, side, legend)


def _strip(pair: ChangePair, legend: Legend, side: int) -> list[Image.Image]:
    assert pair.mask_t1 is not None and pair.mask_t2 is not None
    half = (side - GAP) // 2
    small = Image.new("RGB", (side, side), "white")
    change = np.repeat((pair.change_mask * 255).astype(np.uint8)[..., None], 3, 2)
    for number, pixels in enumerate((legend.colorize(pair.mask_t1), legend.colorize(pair.mask_t2), change)):
        place = (number % 2 * (half + GAP), number // 2 * (half + GAP))
        small.paste(Image.fromarray(pixels).resize((half, half), Image.Resampling.NEAREST), place)
    dates = [_outlined(image, pair.change_mask, side) for image in rgb8(pair)]
    return [*dates, small]


def _outlined(image: npt.NDArray[np.uint8], change: npt.NDArray[np.bool_], side: int) -> Image.Image:
    """The image at ``side`` px with a line around what changed, one dark px outside of one yellow px."""
    shown = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    inner = np.asarray(Image.fromarray(change).convert("L").resize((side, side), Image.Resampling.BOX)) > 0
    bordered, haloed = (ndimage.binary_dilation(inner, SQUARE, iterations=reach) for reach in (1, 2))
    pixels = np.array(shown)
    pixels[haloed & ~bordered] = HALO
    pixels[bordered & ~inner] = BORDER
    return Image.fromarray(pixels)


def _arrange(strips: Sequence[Sequence[Image.Image]], per_row: int, side: int, legend: Legend) -> Image.Image:
    cell, strip_width = side + GAP, (side + GAP) * len(HEADINGS) + 3 * GAP
    rows, width = -(-len(strips) // per_row), strip_width * min(per_row, len(strips))
    in_line = max(1, width // ITEM)
    bottom = rows * cell + LINE
    sheet = Image.new("RGB", (width, bottom + -(-legend.num_classes // in_line) * LINE), "white")
    draw = ImageDraw.Draw(sheet)
    for number, strip in enumerate(strips):
        row, place = divmod(number, per_row)
        for column, image in enumerate(strip):
            left = place * strip_width + column * cell
            sheet.paste(image, (left, row * cell + LINE))
            if row == 0:
                draw.text((left + 2, 3), HEADINGS[column], fill="black")
    for number, each in enumerate(legend.classes):
        left, top = number % in_line * ITEM + 2, bottom + number // in_line * LINE + 2
        draw.rectangle((left, top, left + 12, top + 12), fill=each.color, outline="black")
        draw.text((left + 18, top), each.name.encode("latin-1", "replace").decode("latin-1")[:21], fill="black")
    return sheet
