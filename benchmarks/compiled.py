"""What torch.compile brings the networks of generate: ms per call, eager and compiled.

python benchmarks/compiled.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.models.first_stage import DOWNSAMPLING


def milliseconds(work: Callable[[], object], repeats: int = 10) -> float:
    """Mean of a call, after two for warming up."""
    for _ in range(2):
        work()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats * 1e3


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    arguments = parser.parse_args(argv)
    pipe = ChangePairPipeline.from_pretrained(arguments.model)
    channels, cells = pipe.first_stage.latent_mean.numel(), pipe.model.tile_size // DOWNSAMPLING

    def unet(batch: int, side: int) -> Callable[[], object]:
        latents, times = torch.randn(batch, channels, side, side), torch.full((batch,), 500)
        masks = torch.ones(batch, 4 * side, 4 * side, dtype=torch.long)
        return lambda: pipe.predict_noise(latents, times, masks)

    latents = torch.randn(4, channels, cells, cells)
    works: dict[str, Callable[[], object]] = {
        f"UNet, 8 tiles of {cells}x{cells} cells": unet(8, cells),
        f"UNet, 2 windows of {cells // 2}x{cells // 2} cells": unet(2, cells // 2),
        "decoder, 4 tiles": lambda: pipe.decode(latents),
    }
    eager = {name: milliseconds(work) for name, work in works.items()}
    started = time.perf_counter()
    pipe.denoiser.unet.compile()
    pipe.first_stage.vq_model.decoder.compile()
    compiled = {name: milliseconds(work) for name, work in works.items()}
    for name in works:
        print(f"{name}: {eager[name]:.0f} ms eager, {compiled[name]:.0f} ms compiled")
    print(f"compiling and timing took {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
