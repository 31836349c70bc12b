"""Adapter: the change models of torchgeo (0.8) as detectors, with random weights; torchgeo is imported when one is
built.

They are the entry points ``torchgeo_…`` of this package and are offered where torchgeo is installed. It requires
torchvision, which this package does without: what is tested here are stand-ins with the same signatures.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from changeanywhere.errors import ConfigError
from changeanywhere.models.detectors.base import NUM_CLASSES, Detector


class TorchGeo(Detector):
    """A model of torchgeo: images ``[B, 2, C, H, W]`` → change ``[B, 1 or 2, H, W]``, with ImageNet's statistics.

    ``net``, the model itself, keeps its names: ``net.load_state_dict`` takes torchgeo's weights.
    """

    stacked = True
    """Whether dates have an axis of their own; else they follow each other along the bands."""
    auxiliary_weight = 1.0

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def heads(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Detector.heads`. ChangeStar's second head is that of the dates in the other order."""
        dates = (first, second)
        found = self.net(torch.stack(dates, 1) if self.stacked else torch.cat(dates, 1))
        if isinstance(found, Tensor):
            return (self._two(found),)
        if "bi_change_logit" in found:  # ChangeStar in training
            return tuple(self._two(logits) for logits in found["bi_change_logit"].unbind(1))
        return (self._two(torch.logit(found["change_prob"].float(), eps=1e-6)),)

    def _two(self, logits: Tensor) -> Tensor:
        """Logits of one class (its sigmoid is the probability) → of two (their softmax is the same)."""
        if logits.shape[1] not in (1, NUM_CLASSES):
            name = type(self.net).__name__
            raise ConfigError(f"torchgeo's {name} has {logits.shape[1]} classes; allowed: 1 (change) or 2")
        return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


class TorchGeoBTC(TorchGeo):
    """BTC normalises by itself: images in [0, 1], dates along the bands."""

    stacked = False
    channel_mean = (0.0, 0.0, 0.0)
    channel_std = (255.0, 255.0, 255.0)


def fc_siam_conc() -> Detector:
    """FC-Siam-conc on a ResNet-34 (torchgeo's default encoder)."""
    return TorchGeo(_models().FCSiamConc(encoder_weights=None, classes=1))


def fc_siam_diff() -> Detector:
    """FC-Siam-diff on a ResNet-34."""
    return TorchGeo(_models().FCSiamDiff(encoder_weights=None, classes=1))


def changestar_farseg() -> Detector:
    """ChangeStar on FarSeg with a ResNet-50; of its heads that of change alone is trained."""
    return TorchGeo(_models().ChangeStarFarSeg(backbone="resnet50", classes=1, backbone_pretrained=False))


def changevit() -> Detector:
    """ChangeViT on a ViT-S of patches of 16 px."""
    return TorchGeo(_models().ChangeViT("vit_small_patch16_224", pretrained=False))


def btc() -> Detector:
    """BTC on a Swin-T."""
    return TorchGeoBTC(_models().BTC("swin_tiny", backbone_pretrained=False, classes=1))


def _models() -> Any:
    return import_module("torchgeo.models")
