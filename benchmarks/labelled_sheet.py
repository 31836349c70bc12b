"""Imagery beside the masks that `changeanywhere label` gave it: evenly spaced tiles, not chosen.

    changeanywhere label --source IMAGES --segmenter mini-segmenter --out first
    changeanywhere label --source IMAGES --segmenter runs/target/segmenter --out second
    python benchmarks/labelled_sheet.py --labelled first second --out labelled.jpg

Per tile the image and a mask of each folder, in the colours of its legend; unknown ground is black. Images of other
than 8 bits are shown as networks see them; one or two bands (--bands 1) in grey, the first of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import changeanywhere as ca
from changeanywhere.errors import ChangeAnywhereError, SourceError
from changeanywhere.sample import SourceSample, in_8_bits

GAP = 8


def main(argv: Sequence[str] | None = None) -> None:
    """Write one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", type=Path, nargs="+", required=True, help="folders that label wrote")
    parser.add_argument("--count", type=int, default=24, help="tiles on the sheet")
    parser.add_argument("--tile-size", type=int, default=256, help="px of a tile, as for generate")
    parser.add_argument("--bands", type=int, nargs="+", help="1-based bands to show; default: the first three")
    parser.add_argument("--side", type=int, default=160, help="px per picture")
    parser.add_argument("--per-row", type=int, default=3, help="tiles side by side")
    parser.add_argument("--out", type=Path, required=True, help="PNG or JPEG file")
    arguments = parser.parse_args(argv)
    try:
        draw(arguments)
    except ChangeAnywhereError as error:
        sys.exit(str(error))


def colours(sample: SourceSample) -> npt.NDArray[np.uint8]:
    """An image of any dtype and number of bands as uint8 ``[H, W, 3]``."""
    shown = in_8_bits(sample.pixels())
    return shown[..., :3] if shown.shape[2] >= 3 else np.repeat(shown[..., :1], 3, 2)


def draw(arguments: argparse.Namespace) -> None:
    """Write the sheet. :class:`SourceError` for folders that cannot be read or share no tile."""
    opened = {"tile_size": arguments.tile_size, "bands": arguments.bands}
    sources = [ca.load_source(folder, **opened) for folder in arguments.labelled]
    places = [{item.key: number for number, item in enumerate(source.items)} for source in sources]
    shared = sorted(set.intersection(*(set(place) for place in places)))
    if not shared:
        folders = ", ".join(map(str, arguments.labelled))
        raise SourceError(f"--labelled {folders}: share no tile; allowed: folders that label made of the same images")
    chosen = [shared[i] for i in np.unique(np.linspace(0, len(shared) - 1, arguments.count).astype(int))]
    side, per_row = arguments.side, min(arguments.per_row, len(chosen))
    width, rows = (1 + len(sources)) * side + GAP, -(-len(chosen) // per_row)
    sheet = Image.new("RGB", (per_row * width, rows * (side + GAP // 2)), "white")
    for number, key in enumerate(chosen):
        samples = [source.read(place[key]) for source, place in zip(sources, places, strict=True)]
        masks = [source.legend.colorize(sample.mask) for source, sample in zip(sources, samples, strict=True)]
        row, column = divmod(number, per_row)
        for k, picture in enumerate((colours(samples[0]), *masks)):
            smooth = Image.Resampling.LANCZOS if k == 0 else Image.Resampling.NEAREST
            small = Image.fromarray(np.ascontiguousarray(picture)).resize((side, side), smooth)
            sheet.paste(small, (column * width + k * side, row * (side + GAP // 2)))
    sheet.save(arguments.out, quality=85)
    print(f"{arguments.out}: {sheet.width}x{sheet.height} px, {len(chosen)} of {len(shared)} tiles")


if __name__ == "__main__":
    main()
