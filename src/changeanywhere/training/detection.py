"""Losses of change detectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

IGNORE = 255
"""Label of pixels that count in no loss and no score."""


@dataclass(frozen=True)
class HardExamples:
    """Online hard example mining: only pixels whose true class gets less than ``threshold``, at least ``min_kept``."""

    threshold: float
    min_kept: int
    """Pixels per image."""


OHEM = HardExamples(0.7, 100_000)
"""What the reference configurations of ChangerEx and LightCDNet use."""


def detection_loss(logits: Tensor, labels: Tensor, hard: HardExamples | None = None) -> Tensor:
    """Cross-entropy of logits ``[B, 2, h, w]``, enlarged to labels int64 ``[B, H, W]`` (0, 1, 255 = ignored) → scalar.

    Divided by the number of *all* pixels, ignored ones included, as the reference does.
    """
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, size=tuple(labels.shape[1:]), mode="bilinear", align_corners=False)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    if hard is not None:
        losses = losses * _hard_pixels(logits.detach(), labels, hard)
    return losses.sum() / labels.numel()


def _hard_pixels(logits: Tensor, labels: Tensor, hard: HardExamples) -> Tensor:
    """bool ``[B, H, W]``: known pixels below the threshold, which is raised until enough pixels lie below it."""
    known = labels != IGNORE
    probability = logits.softmax(1).gather(1, labels.where(known, 0).unsqueeze(1)).squeeze(1)
    ordered = probability[known].sort().values
    if not len(ordered):
        return known
    kept = min(hard.min_kept * len(labels), len(ordered) - 1)
    return known & (probability < max(float(ordered[kept]), hard.threshold))
