"""Segmenters on ground without masks: colours that a crop might have had, and labels that an average of the weights
gives (self-training: Tarvainen & Valpola 2017, mean teacher; Sohn et al. 2020, FixMatch: taught on the crop as it is,
learned on the crop made hard to read)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from changeanywhere.seeds import stream
from changeanywhere.training.ema import WeightAverage

GAMMA, SATURATION, CONTRAST, BRIGHTNESS, GAIN, NOISE = 0.35, 0.6, 0.35, 0.3, 0.1, 0.04
"""What strength 1 changes, up to this: exponent (logarithm), distance from grey, from the mean, the mean itself, each
band, standard deviation of the noise; images in 0 to 1."""
BLURRED, NOISY, LEAST_SCALE = 0.25, 0.3, 0.45
"""Shares of crops that are made coarser (to this share of their side, at the least) and noisy."""


def draw_photometric(crops: Tensor, rows: range, strength: float, seed: int, step: int) -> Tensor:
    """Crops f32 ``[rows, C, H, W]`` in [-1, 1] of these rows of a step's batch, with colours changed; what happens to a
    row follows from (seed, step, row)."""
    changed = []
    for crop, row in zip(crops, rows, strict=True):
        generator = torch.Generator().manual_seed(int(stream("training.photometric", seed, step, row).integers(2**62)))
        changed.append(photometric(crop, strength, generator))
    return torch.stack(changed)


def photometric(crop: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A crop f32 ``[C, H, W]`` in [-1, 1] with gamma, saturation, contrast, gains, sharpness and noise changed, by
    ``strength`` (0 to 1); drawn from ``generator``."""
    bands, side = crop.shape[0], crop.shape[1:]
    around = ((torch.rand(4 + bands, generator=generator) * 2 - 1) * strength).tolist()
    which, how = (torch.rand(2, generator=generator).tolist() for _ in range(2))
    image = ((crop + 1) / 2).clamp(1e-3, 1) ** math.exp(GAMMA * around[0])
    grey = image.mean(0, keepdim=True)
    image = grey + (image - grey) * (1 + SATURATION * around[1])
    mean = image.mean()
    image = (image - mean) * (1 + CONTRAST * around[2]) + mean * (1 + BRIGHTNESS * around[3])
    image = image * (1 + GAIN * torch.tensor(around[4:])).view(-1, 1, 1)
    if which[0] < BLURRED * strength:
        coarse = [max(8, round(length * (LEAST_SCALE + (1 - LEAST_SCALE) * how[0]))) for length in side]
        small = F.interpolate(image[None], size=coarse, mode="bilinear", antialias=True)
        image = F.interpolate(small, size=tuple(side), mode="bilinear")[0]
    if which[1] < NOISY * strength:
        image = image + torch.randn(image.shape, generator=generator) * (NOISE * how[1])
    return image.clamp(0, 1) * 2 - 1


@torch.no_grad()
def taught_masks(net: nn.Module, average: WeightAverage, crops: Tensor, confidence: float) -> Tensor:
    """What the average reads in crops ``[B, 3, H, W]``, as they are and mirrored: masks int64 ``[B, H, W]``, 0 where no
    class is as probable as ``confidence``."""
    training = net.training
    net.eval()  # with the statistics that the average has gathered, which do not depend on the other crops

    def read(images: Tensor) -> Tensor:
        logits: Tensor = functional_call(net, average.weights, (images,))
        return logits.float().softmax(1)

    found = (read(crops) + read(crops.flip(3)).flip(3)) / 2
    net.train(training)
    sure, classes = found.max(1)
    return torch.where(sure >= confidence, classes + 1, 0)


def taught_loss(logits: Tensor, masks: Tensor, pixels: float | None = None) -> Tensor:
    """Cross-entropy of logits ``[B, K, H, W]`` on masks int64 ``[B, H, W]``, as a share of all ``pixels`` (default:
    those of ``masks``) → scalar: what is taught with little confidence, on little ground, weighs little."""
    pixels = max(masks.numel(), 1) if pixels is None else pixels
    return F.cross_entropy(logits.float(), masks - 1, ignore_index=-1, reduction="sum") / pixels


def confidence_at(step: int, first_step: int, num_steps: int, confidence: Sequence[float]) -> float:
    """The threshold at ``step``: on a straight line from ``first_step`` to the last."""
    share = (step - first_step) / max(num_steps - 1 - first_step, 1)
    return confidence[0] + (confidence[1] - confidence[0]) * share
