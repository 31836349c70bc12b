"""What a denoiser that guides in one call misses of what guidance adds, by timestep.

    python benchmarks/guided.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0

Validation tiles under their own masks, half of which hold a box of another tile's, as in its training; mean squares of
the predictions' differences. 1: as far away as no guidance at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.training.guidance import mixed
from tiles import add_source, as_tensor, evenly, open_tiles

TIMESTEPS = (999, 818, 649, 494, 353, 229, 125, 44)
"""Of the eight calls of the embedded model."""


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="mini or a model folder that has denoiser_guided")
    add_source(parser)
    parser.add_argument("--num-tiles", type=int, default=16, help="tiles, evenly spaced")
    arguments = parser.parse_args(argv)
    model = ChangePairPipeline.from_pretrained(arguments.model, dtype="float32").model
    denoiser, scale = model.denoiser, model.denoiser.guided_scale
    if scale is None:
        parser.error(f"{arguments.model} has no denoiser_guided")
    source = open_tiles(arguments.source, arguments.licences, model.tile_size).with_legend(model.legend)
    samples = evenly(source, arguments.num_tiles)
    masks = torch.from_numpy(np.stack([sample.mask for sample in samples])).long()
    latents = torch.cat([model.first_stage.encode(part.contiguous()) for part in as_tensor(samples).split(4)])
    condition = denoiser.encode_masks(mixed(masks, masks[-1], len(masks), range(len(masks)), seed=0, step=0))
    print("| timestep | guidance adds | missing | share |\n|---|---|---|---|")
    for timestep in TIMESTEPS:
        alpha, generator = model.schedule.alphas_cumprod[timestep], torch.Generator().manual_seed(timestep)
        noise = torch.randn(latents.shape, generator=generator)
        noisy, times = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, torch.full((len(latents),), timestep)
        first, second = (denoiser(noisy, times, each) for each in (condition, torch.zeros_like(condition)))
        together = second + scale * (first - second)
        added = float((first - together).square().mean())
        missing = float((denoiser(noisy, times, condition, True) - together).square().mean())
        print(f"| {timestep} | {added:.4f} | {missing:.4f} | {missing / added:.2f} |", flush=True)


if __name__ == "__main__":
    main()
