"""Contact sheets: pairs as rows of pictures, for eyes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from changeanywhere.legend import Legend
from changeanywhere.pairs.reader import load_pairs
from changeanywhere.sample import ChangePair

GAP = 4
HEADINGS = ("image t1", "mask t1", "mask t2", "change", "image t2")
HEADING_HEIGHT = 18


def contact_sheet(folder: Path, count: int, side: int = 160, strips_per_row: int = 2) -> Image.Image:
    """``count`` pairs of a generated dataset, evenly spaced in the order of their keys: t1, masks, change, t2."""
    legend, dataset = Legend.load(folder / "legend.json"), load_pairs(folder)
    places = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    strips = [_strip(dataset[int(i)], legend, side) for i in places]
    return _arrange(strips, strips_per_row, side)


def _strip(pair: ChangePair, legend: Legend, side: int) -> list[Image.Image]:
    assert pair.mask_t1 is not None and pair.mask_t2 is not None
    masks = [Image.fromarray(legend.colorize(mask)) for mask in (pair.mask_t1, pair.mask_t2)]
    change = Image.fromarray((pair.change_mask * 255).astype(np.uint8)).convert("RGB")
    first, second = (Image.fromarray(np.ascontiguousarray(i[..., :3])) for i in (pair.image_t1, pair.image_t2))
    smooth, sharp = Image.Resampling.LANCZOS, Image.Resampling.NEAREST
    cells = ((first, smooth), (masks[0], sharp), (masks[1], sharp), (change, sharp), (second, smooth))
    return [image.resize((side, side), how) for image, how in cells]


def _arrange(strips: Sequence[Sequence[Image.Image]], per_row: int, side: int) -> Image.Image:
    cell, strip_width = side + GAP, (side + GAP) * len(HEADINGS) + 3 * GAP
    rows = -(-len(strips) // per_row)
    sheet = Image.new("RGB", (strip_width * min(per_row, len(strips)), rows * cell + HEADING_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    for number, strip in enumerate(strips):
        row, place = divmod(number, per_row)
        for column, image in enumerate(strip):
            left = place * strip_width + column * cell
            sheet.paste(image, (left, row * cell + HEADING_HEIGHT))
            if row == 0:
                draw.text((left + 2, 3), HEADINGS[column], fill="black")
    return sheet
