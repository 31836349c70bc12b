"""How well a model's first stage reconstructs tiles: PSNR, colour error (CIEDE2000), ST-LPIPS, codebook perplexity.

    python benchmarks/reconstruction.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0

Beside it the same figures for bicubic reduction by 4 and enlargement by 4. Per group of tiles (the part of the key
before the first "_") and macro-averaged over the groups.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor

from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.models.perceptual import ShiftTolerantLPIPS
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.training.codebook import perplexity

BATCH = 8


def measure(images: Tensor, other: Tensor, metric: ShiftTolerantLPIPS) -> np.ndarray:
    """Per image: PSNR in dB, mean ΔE2000, ST-LPIPS."""
    mse = (images - other).square().mean((1, 2, 3))
    first, second = (rgb2lab(((x + 1) / 2).permute(0, 2, 3, 1).numpy()) for x in (images, other))
    colour = deltaE_ciede2000(first, second).mean((1, 2))
    return np.stack([(10 * torch.log10(4 / mse)).numpy(), colour, metric(images, other).numpy()], 1)


@torch.no_grad()
def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of tiles")
    parser.add_argument("--licences", nargs="*", help="only tiles under these licences")
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    arguments = parser.parse_args()
    pipe = ChangePairPipeline.from_pretrained(arguments.model)
    source = open_source(
        arguments.source, SourceOptions(licences=tuple(arguments.licences) if arguments.licences else None)
    )
    metric = ShiftTolerantLPIPS()
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    usage = torch.zeros(len(pipe.first_stage.codebook), dtype=torch.long)
    for start in range(0, len(source), BATCH):
        samples = [source.read(i) for i in range(start, min(start + BATCH, len(source)))]
        images = torch.from_numpy(np.stack([s.normalisation.apply(s.image).clip(-1, 1) for s in samples]))
        images = images.permute(0, 3, 1, 2)
        latents = pipe.encode(images)
        raw = latents * pipe.first_stage.latent_std + pipe.first_stage.latent_mean
        usage += torch.bincount(pipe.first_stage.quantise(raw)[1].flatten(), minlength=len(usage))
        small = F.interpolate(images, scale_factor=0.25, mode="bicubic", antialias=True)
        bicubic = F.interpolate(small, scale_factor=4, mode="bicubic").clamp(-1, 1)
        ours, theirs = measure(images, pipe.decode(latents).cpu(), metric), measure(images, bicubic, metric)
        for sample, a, b in zip(samples, ours, theirs, strict=True):
            rows[sample.item.key.split("_")[0]].append(np.concatenate([a, b]))
    print(
        "| tiles | PSNR dB | ΔE2000 | ST-LPIPS | bicubic: PSNR dB | ΔE2000 | ST-LPIPS |\n|---|---|---|---|---|---|---|"
    )
    means = {f"{name} ({len(values)})": np.mean(values, 0) for name, values in sorted(rows.items())}
    for name, mean in [*means.items(), ("macro average", np.mean(list(means.values()), 0))]:
        print(f"| {name} | " + " | ".join(f"{v:.2f}" if i % 3 < 2 else f"{v:.4f}" for i, v in enumerate(mean)) + " |")
    print(f"\ncodebook perplexity {perplexity(usage):.0f} of {len(usage)}")


if __name__ == "__main__":
    main()
