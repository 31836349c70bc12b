"""How well a model's first stage reconstructs tiles: PSNR, SSIM, colour error, ST-LPIPS, codebook use.

    python benchmarks/reconstruction.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0

Colour error: mean CIEDE2000 difference. SSIM: Wang et al. 2004, Gaussian window, mean over bands. Beside it the same
figures for bicubic reduction by 4 and enlargement by 4. Per group of tiles (the part of the key before the first "_")
and macro-averaged over the groups.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity
from torch import Tensor

from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.models.perceptual import ShiftTolerantLPIPS
from changeanywhere.training.codebook import perplexity
from tiles import add_source, open_tiles

BATCH = 8


def measure(images: Tensor, other: Tensor, metric: ShiftTolerantLPIPS) -> np.ndarray:
    """Per image: PSNR in dB, SSIM, mean ΔE2000, ST-LPIPS."""
    mse = (images - other).square().mean((1, 2, 3))
    first, second = (((x + 1) / 2).permute(0, 2, 3, 1).numpy() for x in (images, other))
    colour = deltaE_ciede2000(rgb2lab(first), rgb2lab(second)).mean((1, 2))
    settings = {"channel_axis": -1, "data_range": 1, "gaussian_weights": True, "use_sample_covariance": False}
    ssim = [structural_similarity(a, b, **settings) for a, b in zip(first, second, strict=True)]
    return np.stack([(10 * torch.log10(4 / mse)).numpy(), ssim, colour, metric(images, other).numpy()], 1)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    arguments = parser.parse_args(argv)
    pipe = ChangePairPipeline.from_pretrained(arguments.model)
    source = open_tiles(arguments.source, arguments.licences, pipe.model.tile_size)
    metric = ShiftTolerantLPIPS()
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    usage = torch.zeros(len(pipe.first_stage.codebook), dtype=torch.long)
    for start in range(0, len(source), BATCH):
        samples = [source.read(i) for i in range(start, min(start + BATCH, len(source)))]
        images = torch.from_numpy(np.stack([s.pixels() for s in samples]))
        images = images.permute(0, 3, 1, 2)
        latents = pipe.encode(images)
        raw = latents * pipe.first_stage.latent_std + pipe.first_stage.latent_mean
        usage += torch.bincount(pipe.first_stage.quantise(raw)[1].flatten(), minlength=len(usage))
        small = F.interpolate(images, scale_factor=0.25, mode="bicubic", antialias=True)
        bicubic = F.interpolate(small, scale_factor=4, mode="bicubic").clamp(-1, 1)
        ours, theirs = measure(images, pipe.decode(latents).cpu(), metric), measure(images, bicubic, metric)
        for sample, a, b in zip(samples, ours, theirs, strict=True):
            rows[sample.item.key.split("_")[0]].append(np.concatenate([a, b]))
    columns = ["PSNR dB", "SSIM", "ΔE2000", "ST-LPIPS"]
    print("| tiles | " + " | ".join([*columns, *(f"bicubic: {name}" for name in columns)]) + " |\n|" + "---|" * 9)
    means = {f"{name} ({len(values)})": np.mean(values, 0) for name, values in sorted(rows.items())}
    for name, mean in [*means.items(), ("macro average", np.mean(list(means.values()), 0))]:
        print(f"| {name} | " + " | ".join(f"{v:.2f}" if i % 2 == 0 else f"{v:.3f}" for i, v in enumerate(mean)) + " |")
    print(f"\ncodebook perplexity {perplexity(usage):.0f} of {len(usage)}")


if __name__ == "__main__":
    main()
