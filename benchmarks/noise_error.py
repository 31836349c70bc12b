"""Mean squared error of the noise that a denoiser finds in real latents: one figure for ε- and v-nets.

    python benchmarks/noise_error.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0

Validation tiles, ten timesteps from 50 to 950, the same noise for every model; their masks as the condition.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from changeanywhere.diffusion.pipeline import ChangePairPipeline, default_device
from changeanywhere.evaluation.of_model import real_tiles
from tiles import add_source, open_tiles

BATCH = 8
TIMESTEPS = range(50, 1000, 100)


@torch.no_grad()
def noise_error(pipe: ChangePairPipeline, images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """Images uint8 ``[H, W, 3]``, masks uint8 ``[H, W]`` in the model's legend."""
    schedule = pipe.model.schedule
    errors = []
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(images), BATCH):
        pixels = torch.from_numpy(np.stack(images[start : start + BATCH])).permute(0, 3, 1, 2) / 127.5 - 1
        latents = pipe.encode(pixels)
        wanted = torch.from_numpy(np.stack(masks[start : start + BATCH]).astype(np.int64))
        for t in TIMESTEPS:
            alpha, sigma = schedule.alphas_cumprod[t].sqrt(), (1 - schedule.alphas_cumprod[t]).sqrt()
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            noisy = alpha * latents + sigma * noise
            found = pipe.predict_noise(noisy, torch.full((len(noisy),), t), wanted)
            errors.append(float((found - noise).square().mean()))
    return float(np.mean(errors))


def main(argv: Sequence[str] | None = None) -> None:
    """A line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["mini"], help="mini or model folders")
    add_source(parser)
    parser.add_argument("--num-tiles", type=int, default=41, help="tiles, evenly spaced")
    arguments = parser.parse_args(argv)
    for model in arguments.models:
        pipe = ChangePairPipeline.from_pretrained(model, str(default_device()))
        source = open_tiles(arguments.source, arguments.licences, pipe.model.tile_size)
        real, masks = real_tiles(source.with_legend(pipe.legend))
        chosen = np.unique(np.linspace(0, len(masks) - 1, arguments.num_tiles).astype(int))
        print(f"{model}: {noise_error(pipe, [real[i] for i in chosen], [masks[i] for i in chosen]):.4f}", flush=True)


if __name__ == "__main__":
    main()
