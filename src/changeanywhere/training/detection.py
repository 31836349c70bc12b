"""Losses and scores of change detectors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from changeanywhere.models.detectors import Detector

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


@dataclass(frozen=True)
class ChangeScores:
    """Scores of the change class over a whole set, from one confusion matrix. None = undefined (nothing predicted)."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def precision(self) -> float | None:
        """Share of what was called changed that is."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """Share of what changed that was found."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """Undefined, not 0, where nothing was called changed."""
        if self.precision is None or self.recall is None:
            return None
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    @property
    def iou(self) -> float | None:
        """Intersection over union."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives + self.false_negatives)

    def to_dict(self) -> dict[str, float | None]:
        """Counts and scores."""
        counts: dict[str, float | None] = dict(vars(self))
        return counts | {"f1": self.f1, "precision": self.precision, "recall": self.recall, "iou": self.iou}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def sum_of(parts: Iterable[ChangeScores]) -> ChangeScores:
    """Scores over all parts, from the sum of their counts."""
    counts = [(p.true_positives, p.false_positives, p.false_negatives, p.true_negatives) for p in parts]
    return ChangeScores(*(sum(column) for column in zip(*counts, strict=True))) if counts else ChangeScores(0, 0, 0, 0)


@torch.no_grad()
def score_pairs(
    net: Detector,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    device: torch.device,
    mixed_precision: str = "no",
) -> list[ChangeScores]:
    """Scores of each pair, by ``net``, put into evaluation mode and back, over ``batches`` of (image t1, image t2,
    label).

    ``mixed_precision``: ``no`` or ``bf16``, as of the run that trained it.
    """
    training = net.training
    net.eval()
    counts = []
    for first, second, labels in batches:
        images = (x.to(device, memory_format=torch.channels_last) for x in (first, second))
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16"):
            logits = net(*images)
        counts.append(_counts(logits.argmax(1) == 1, labels.to(device)))
    net.train(training)
    rows = torch.cat(counts).tolist() if counts else []
    return [ChangeScores(*row) for row in rows]


def scores_of(found: Tensor, truth: Tensor) -> list[ChangeScores]:
    """Of each pair: called changed, bool ``[B, H, W]``, against labels int64 ``[B, H, W]`` (0, 1, 255 = ignored)."""
    return [ChangeScores(*row) for row in _counts(found, truth).tolist()]


def _counts(found: Tensor, truth: Tensor) -> Tensor:
    sides = [(found, truth == 1), (found, truth == 0), (~found, truth == 1), (~found, truth == 0)]
    return torch.stack([(one & two).sum((1, 2)) for one, two in sides], 1)
