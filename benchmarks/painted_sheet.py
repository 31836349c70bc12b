"""Images painted from masks alone, beside the real tiles: evenly spaced validation tiles, not chosen.

    python benchmarks/painted_sheet.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0 \
        --out docs/painted.jpg

Three pictures per tile: the mask, what the model paints from it, the real tile. Recommended settings of the model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from changeanywhere.diffusion.pipeline import ChangePairPipeline, default_device
from changeanywhere.evaluation.of_model import paint, real_tiles
from tiles import add_source, open_tiles


def main(argv: Sequence[str] | None = None) -> None:
    """Write one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    add_source(parser)
    parser.add_argument("--count", type=int, default=24, help="tiles on the sheet")
    parser.add_argument("--side", type=int, default=192, help="px per picture")
    parser.add_argument("--per-row", type=int, default=3, help="tiles side by side")
    parser.add_argument("--out", type=Path, required=True, help="PNG or JPEG file")
    arguments = parser.parse_args(argv)
    pipe = ChangePairPipeline.from_pretrained(arguments.model, str(default_device()))
    source = open_tiles(arguments.source, arguments.licences, pipe.model.tile_size)
    real, masks = real_tiles(source.with_legend(pipe.legend))
    chosen = [int(i) for i in np.unique(np.linspace(0, len(masks) - 1, arguments.count).astype(int))]
    batches = paint(pipe, [masks[i] for i in chosen], [1000 + i for i in chosen])
    painted = [image for batch in batches for image in batch]
    side, per_row = arguments.side, arguments.per_row
    sheet = Image.new("RGB", (per_row * (3 * side + 8), -(-len(chosen) // per_row) * (side + 4)), "white")
    for place, (i, image) in enumerate(zip(chosen, painted, strict=True)):
        row, column = divmod(place, per_row)
        for k, picture in enumerate((pipe.legend.colorize(masks[i]), image, real[i])):
            small = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * (3 * side + 8) + k * side, row * (side + 4)))
    sheet.save(arguments.out, quality=85)
    print(f"{arguments.out}: {sheet.width}x{sheet.height} px, {len(chosen)} tiles")


if __name__ == "__main__":
    main()
