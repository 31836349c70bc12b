"""What decoding a window of a tile's latents alone differs by from decoding all of it.

    python benchmarks/window_decoding.py --source examples

In the middle of windows, beyond --margin cells from borders that are none of the tile's; real latents, float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.models.first_stage import DOWNSAMPLING
from changeanywhere.shipped import find_source
from tiles import add_source, as_tensor, evenly, open_tiles


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    add_source(parser)
    parser.add_argument("--num-tiles", type=int, default=12, help="tiles, evenly spaced")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 48], help="of windows, in cells")
    parser.add_argument("--margin", type=int, default=8, help="cells")
    arguments = parser.parse_args(argv)
    pipe = ChangePairPipeline.from_pretrained(arguments.model, dtype="float32")
    source = open_tiles(Path(find_source(arguments.source)), arguments.licences, pipe.model.tile_size)
    images = as_tensor(evenly(source, arguments.num_tiles))
    latents = torch.cat([pipe.encode(part.contiguous()) for part in images.split(4)])
    whole, cells = torch.cat([pipe.decode(part) for part in latents.split(4)]), latents.shape[-1]
    print("| window, cells | PSNR, median | worst | brightness, of 255, median | worst |\n|---|---|---|---|---|")
    for side in arguments.sides:
        squares, shifts = [], []
        for first in (0, (cells - side) // 2, cells - side):
            window = slice(first, first + side)
            low = arguments.margin if first else 0
            high = side - (arguments.margin if first + side < cells else 0)
            alone = pipe.decode(latents[..., window, window].contiguous())
            inner = slice(DOWNSAMPLING * low, DOWNSAMPLING * high)
            place = slice(DOWNSAMPLING * (first + low), DOWNSAMPLING * (first + high))
            apart = alone[..., inner, inner] - whole[..., place, place]
            squares.append(apart.square().mean((1, 2, 3)))
            shifts.append(127.5 * apart.mean((1, 2, 3)).abs())
        decibels, shift = 10 * torch.log10(4 / torch.cat(squares)), torch.cat(shifts)
        figures = float(decibels.median()), float(decibels.min()), float(shift.median()), float(shift.max())
        print(
            f"| {side} | {figures[0]:.1f} dB | {figures[1]:.1f} dB | {figures[2]:.2f} | {figures[3]:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
