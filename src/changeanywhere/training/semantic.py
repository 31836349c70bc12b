"""Losses and scores of semantic change detectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from changeanywhere.legend import Legend
from changeanywhere.models.detectors import SemanticDetector
from changeanywhere.models.detectors.semantic import counterparts
from changeanywhere.training.detection import IGNORE, ChangeScores, HardExamples, detection_loss, scores_of

Counts = npt.NDArray[np.int64]
SCORES = ("sek", "f_scd", "miou", "from_to_miou")
"""Names of the scores, in the order in which reports show them …"""
TITLES = ("SeK", "F_scd", "mIoU", "from-to mIoU")
"""… and their titles."""


def at_least_one(count: Tensor) -> Tensor:
    """By how many places a sum over them is divided, where one process has all."""
    return count.clamp(min=1)


def semantic_loss(
    logits: tuple[Tensor, Tensor, Tensor],
    labels: Tensor,
    hard: HardExamples | None = None,
    whole: Callable[[Tensor], Tensor] = at_least_one,
) -> dict[str, Tensor]:
    """Logits of change ``[B, 2, H, W]`` and of classes ``[B, K, H, W]`` of both dates, labels int64 ``[B, 3, H, W]``
    (change with 255 = ignored, classes of both dates with 0 = unknown) → ``loss``, the sum of its three parts.

    As SSCD-l is trained (Ding et al. 2022, arXiv:2108.06103): binary cross-entropy of change; cross-entropy of
    the classes, the mean of both dates, where they are known; consistency of both dates' probabilities p: 1 - cos(p1,
    p2) on unchanged ground, max(0, cos(p1, p2)) on changed ground. Ground without a label of change is in none; ground
    whose known classes contradict the label (a set of which only some classes count) is not in the third.
    ``whole``: :meth:`.Processes.whole`, where each of several has a part of the batch.
    """
    change, classes = labels[:, 0], labels[:, 1:]
    labelled = change != IGNORE
    parts = []
    for date, found in enumerate(logits[1:]):
        known = labelled & (classes[:, date] != 0)
        entropy = F.cross_entropy(found, (classes[:, date] - 1).clamp(min=0), reduction="none")
        parts.append(_mean(entropy, known, whole))
    both = (classes != 0).all(1)
    same = classes[:, 0] == classes[:, 1]
    cosine = F.cosine_similarity(logits[1].softmax(1), logits[2].softmax(1), dim=1)
    agreeing = labelled & ~(both & (same == (change == 1)))
    distance = torch.where(change == 1, cosine.clamp(min=0), 1 - cosine)
    losses = {
        "change_loss": detection_loss(logits[0], change, hard),
        "class_loss": (parts[0] + parts[1]) / 2,
        "consistency_loss": _mean(distance, agreeing, whole),
    }
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def _mean(losses: Tensor, where: Tensor, whole: Callable[[Tensor], Tensor]) -> Tensor:
    """Over the pixels that count; 0 where none does. Without a look at how many: a step is recorded as it is."""
    return (losses * where).sum() / whole(where.sum())


@dataclass(frozen=True)
class SemanticScores:
    """Scores of a whole set, from one confusion matrix that both dates share. None = undefined.

    Sources: SECOND (Yang et al. 2022, arXiv:2010.05687) for mIoU and SeK; Ding et al. 2022
    (arXiv:2108.06103) for F_scd.
    """

    confusion: Counts
    """q int64 ``[K + 1, K + 1]``: what was found × what is, in pixels of either date; 0 = unchanged, 1…K = class of
    changed ground. The class that is found on ground that is called unchanged does not count."""
    from_to: Counts
    """int64 ``[3, K² + 1]``: pixels of each from-to (0 = unchanged, 1 + (from - 1) K + (to - 1)) that are found and
    are, that are found, that are."""

    @property
    def change_ious(self) -> tuple[float | None, float | None]:
        """IoU of unchanged ground, q00 / (Σ_i q_i0 + Σ_j q_0j - q00), and of changed ground whatever its class,
        Σ_{i,j>0} q_ij / (Σ q - q00)."""
        q = self.confusion
        unchanged, changed = int(q[0, 0]), int(q[1:, 1:].sum())
        return _ratio(unchanged, int(q[0].sum() + q[:, 0].sum()) - unchanged), _ratio(changed, int(q.sum()) - unchanged)

    @property
    def miou(self) -> float | None:
        """Mean of the two :attr:`change_ious`: SECOND's mIoU."""
        unchanged, changed = self.change_ious
        return None if unchanged is None or changed is None else (unchanged + changed) / 2

    @property
    def sek(self) -> float | None:
        """Separated kappa: exp(IoU of changed ground - 1) κ, where κ = (ρ - η) / (1 - η) is Cohen's, of q with
        q00 = 0: ρ = Σ q_ii / Σ q, η = Σ_i q_i+ q_+i / (Σ q)². 0 where η = 1: all of one class, that is."""
        q = self.confusion.astype(np.float64)
        q[0, 0] = 0
        total, changed = float(q.sum()), self.change_ious[1]
        if not total or changed is None:
            return None
        chance = float(q.sum(1) @ q.sum(0)) / total**2
        agreed = float(np.trace(q)) / total
        kappa = 0.0 if chance == 1 else (agreed - chance) / (1 - chance)
        return math.exp(changed - 1) * kappa

    @property
    def f_scd(self) -> float | None:
        """F1 of the class of changed ground: harmonic mean of Σ_{i>0} q_ii / Σ_{i>0} Σ_j q_ij and
        Σ_{i>0} q_ii / Σ_i Σ_{j>0} q_ij. None where nothing was called changed, as of F1."""
        q = self.confusion
        right, found, there = int(np.trace(q[1:, 1:])), int(q[1:].sum()), int(q[:, 1:].sum())
        return _ratio(2 * right, found + there) if found and there else None

    @property
    def from_to_miou(self) -> float | None:
        """Mean IoU over the from-tos that are in the labels (unchanged ground is none; a from-to that is found
        and is nowhere counts as the missed one of its pixels alone)."""
        both, found, there = self.from_to[:, 1:].astype(np.float64)
        present = there > 0
        return float((both[present] / (found + there - both)[present]).mean()) if present.any() else None

    def __add__(self, other: SemanticScores) -> SemanticScores:
        return SemanticScores(self.confusion + other.confusion, self.from_to + other.from_to)

    def to_dict(self) -> dict[str, float | None]:
        """The scores, by name."""
        unchanged, changed = self.change_ious
        own = {name: getattr(self, name) for name in SCORES}
        return own | {"iou_unchanged": unchanged, "iou_changed": changed}

    @staticmethod
    def none(num_classes: int) -> SemanticScores:
        """Of no pair."""
        return SemanticScores(
            np.zeros((num_classes + 1, num_classes + 1), np.int64), np.zeros((3, num_classes**2 + 1), np.int64)
        )

    @staticmethod
    def of(change: Tensor, classes: Tensor, labels: Tensor, num_classes: int) -> SemanticScores:
        """What was found: change bool ``[B, H, W]``, classes 1…K int64 ``[B, 2, H, W]``; labels int64 ``[B, 3, H, W]``.

        Ground without a label of change counts nowhere; changed ground whose class at a date is unknown does not count
        at that date, and in no from-to.
        """
        k, truth, there = num_classes, labels[:, 0], labels[:, 1:]
        changed = truth == 1
        found, is_ = classes * change.unsqueeze(1), there * changed.unsqueeze(1)
        counted = (truth != IGNORE).unsqueeze(1) & ~(changed.unsqueeze(1) & (there == 0))
        pairs = torch.bincount((found * (k + 1) + is_)[counted], minlength=(k + 1) ** 2)
        both = counted.all(1)
        codes = [_codes(found, change, k)[both], _codes(is_, changed, k)[both]]
        hits = codes[0][codes[0] == codes[1]]
        rows = [torch.bincount(each, minlength=k**2 + 1) for each in (hits, *codes)]
        return SemanticScores(pairs.view(k + 1, k + 1).cpu().numpy(), torch.stack(rows).cpu().numpy())


def _codes(classes: Tensor, change: Tensor, num_classes: int) -> Tensor:
    """From-to of each pixel, ``[B, H, W]``."""
    return torch.where(change, 1 + (classes[:, 0] - 1) * num_classes + classes[:, 1] - 1, 0)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def in_legend(logits: Tensor, own: Legend, asked: Legend) -> Tensor | None:
    """Logits ``[B, K, H, W]`` of the classes of ``own`` → log-probabilities of those of ``asked``: of those that mean
    one together; None where no class of ``own`` is known there.

    By a legend map of the package or equal names (:func:`counterparts`); classes without counterpart are never found.
    """
    if own.classes == asked.classes:
        return logits
    sources = counterparts(own, asked)
    if not any(sources):
        return None
    none = torch.full_like(logits[:, 0], -math.inf)
    return torch.stack([torch.logsumexp(logits[:, places], 1) if places else none for places in sources], 1)


@torch.no_grad()
def score_classes(
    net: SemanticDetector,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    device: torch.device,
    legend: Legend,
    mixed_precision: str = "no",
) -> tuple[list[ChangeScores], SemanticScores | None]:
    """As :func:`.detection.score_pairs`, over ``batches`` of (image t1, image t2, labels int64 ``[B, 3, H, W]`` in
    ``legend``), and the scores of all of them in classes; None where ``net`` knows none of the legend's."""
    training = net.training
    net.eval()
    scores: list[ChangeScores] = []
    total: SemanticScores | None = SemanticScores.none(legend.num_classes)
    for first, second, labels in batches:
        images = (x.to(device, memory_format=torch.channels_last) for x in (first, second))
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16"):
            change, *classes = net.semantic_logits(*images)
        truth, found = labels.to(device), change.argmax(1) == 1
        scores += scores_of(found, truth[:, 0])
        named = [in_legend(each.float(), net.legend, legend) for each in classes]
        if total is not None and named[0] is not None and named[1] is not None:
            numbers = torch.stack([each.argmax(1) + 1 for each in named if each is not None], 1)
            total = total + SemanticScores.of(found, numbers, truth, legend.num_classes)
        else:
            total = None
    net.train(training)
    return scores, total
