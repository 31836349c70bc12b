"""Every kind of change event on one real tile, before and after: the picture in docs/events.md.

python benchmarks/event_pictures.py --out docs/events.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from changeanywhere.events import KINDS, EventContext, EventOptions, EventRequest, pair_seed, simulate
from changeanywhere.events.bank import ShapeBank, find_shapes
from changeanywhere.sources import open_source

SIDE, GAP, TITLE = 256, 6, 18


def main(argv: Sequence[str] | None = None) -> None:
    """Write one PNG: per kind the mask at date 1, the mask at date 2 and the changed pixels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tile", default="mumbai_tile_1-22_6", help="key of an example tile")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    source = open_source(Path(str(resources.files("changeanywhere") / "assets" / "examples")))
    mask = source.read_mask(source.index_of(arguments.tile))
    shapes = find_shapes((source.read_mask(i) for i in range(len(source))), EventOptions(), 0)
    bank = EventContext(bank=ShapeBank(shapes, source.read_mask, EventOptions().connectivity))
    rows = [(kind, EventOptions(kinds=(kind,), min_area=300), EventContext()) for kind in KINDS]
    rows += [
        ("appearance, shape bank, any rotation", EventOptions(("appearance",), min_area=300, rotate="any"), bank),
        ("appearance of a group of up to 4", EventOptions(("appearance",), group_size=4), EventContext()),
        ("all kinds, 5-10 % changed", EventOptions(KINDS, max_share=0.25), bank),
    ]
    columns = 3
    cell = (3 * SIDE + 4 * GAP, SIDE + TITLE + GAP)
    sheet = Image.new("RGB", (columns * cell[0], -(-len(rows) // columns) * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, options, context) in enumerate(rows):
        request = EventRequest(ratio=(0.05, 0.10)) if len(options.kinds) > 1 else None
        plan = simulate(
            mask, source.legend, pair_seed(arguments.seed, title, 0), options=options, context=context, request=request
        )
        top, left = number // columns * cell[1], number % columns * cell[0]
        draw.text((left, top + 2), title if plan is not None else f"{title}: not feasible here", fill="black")
        if plan is None:
            continue
        pictures = (source.legend.colorize(mask), source.legend.colorize(plan.mask_t2), plan.change_mask * 255)
        for place, picture in enumerate(pictures):
            image = Image.fromarray(np.asarray(picture, np.uint8)).convert("RGB")
            image = image.resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(image, (left + place * (SIDE + GAP), top + TITLE))
    sheet.save(arguments.out)
    print(f"{arguments.out}: {sheet.width}x{sheet.height} px")


if __name__ == "__main__":
    main()
