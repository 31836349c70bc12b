"""How much of the unchanged ground survives: PSNR of image t2 against image t1, beside the plain reconstruction of t1.

    python benchmarks/unchanged.py --pairs OUT [--model mini] [--away 16]

Counted are pixels at least ``--away`` px from any change. Mean over pairs, in dB; also per pair the largest loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from changeanywhere.diffusion.pipeline import ChangePairPipeline, to_uint8
from changeanywhere.pairs import load_pairs


def psnr(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8], where: npt.NDArray[np.bool_]) -> float:
    """dB over the pixels ``where``, peak 255."""
    error = (first[where].astype(float) - second[where]) ** 2
    return float(10 * np.log10(255**2 / max(error.mean(), 1e-9)))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="folder that generate wrote (PNG)")
    parser.add_argument("--model", default="mini", help="the model that painted it")
    parser.add_argument("--away", type=int, default=16, help="px from any change")
    arguments = parser.parse_args(argv)
    pipe = ChangePairPipeline.from_pretrained(arguments.model)
    rows = []
    dataset = load_pairs(arguments.pairs)
    for i in range(len(dataset)):
        pair = dataset[i]
        far = ndimage.distance_transform_edt(~pair.change_mask) >= arguments.away
        if far.sum() < 1000:
            continue
        pixels = torch.from_numpy(pair.image_t1.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        plain = to_uint8(pipe.decode(pipe.encode(pixels)))[0]
        rows.append((psnr(pair.image_t2, pair.image_t1, far), psnr(plain, pair.image_t1, far)))
    painted, plain_psnr = np.array(rows).T
    print(f"{len(rows)} pairs; unchanged ground at least {arguments.away} px from any change")
    print(f"image t2 against image t1:         {painted.mean():.2f} dB")
    print(f"reconstruction of t1 against t1:   {plain_psnr.mean():.2f} dB")
    print(f"largest loss of a single pair:     {(plain_psnr - painted).max():.2f} dB")


if __name__ == "__main__":
    main()
