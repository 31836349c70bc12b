"""FC-EF, FC-Siam-conc, FC-Siam-diff (Daudt et al. 2018, arXiv 1810.08462): small U-Nets, early or Siamese fusion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.models.detectors.base import Detector, FCNHead

WIDTHS = (16, 32, 64, 128)
DEPTHS = (2, 2, 3, 3)
"""Channels and convolutions of the four stages."""
DROPOUT = 0.2


class FullyConvolutional(nn.Module):
    """Encoder ``conv11 … conv43`` and decoder ``upconv4, conv43d … conv11d`` (stage, place; d = decoder)."""

    def __init__(self, in_channels: int, num_skips: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(DROPOUT)
        before = in_channels
        for stage, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True), 1):
            for place in range(1, depth + 1):
                self._add(f"{stage}{place}", nn.Conv2d(before, width, 3, padding=1), width)
                before = width
        for stage in (4, 3, 2, 1):
            width, depth = WIDTHS[stage - 1], DEPTHS[stage - 1]
            up = nn.ConvTranspose2d(width, width, 3, padding=1, stride=2, output_padding=1)
            self.add_module(f"upconv{stage}", up)
            before = width * (1 + num_skips)
            for place in range(depth, 0, -1):
                after = WIDTHS[max(stage - 2, 0)] if place == 1 else width
                conv = nn.ConvTranspose2d(before, after, 3, padding=1)
                self._add(f"{stage}{place}d", conv, None if (stage, place) == (1, 1) else after)
                before = after

    def _add(self, name: str, conv: nn.Module, norm: int | None) -> None:
        self.add_module(f"conv{name}", conv)
        if norm is not None:
            self.add_module(f"bn{name}", nn.BatchNorm2d(norm))

    def _block(self, name: str, x: Tensor) -> Tensor:
        x = self.get_submodule(f"bn{name}")(self.get_submodule(f"conv{name}")(x))
        dropped: Tensor = self.dropout(F.relu(x))
        return dropped

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """→ the four stages' maps, and the last one halved."""
        skips = []
        for stage, depth in enumerate(DEPTHS, 1):
            for place in range(1, depth + 1):
                x = self._block(f"{stage}{place}", x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        return skips, x

    def decode(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Deepest map and what joins each stage → ``[B, 16, H, W]``."""
        for stage in (4, 3, 2, 1):
            x = torch.cat([self.get_submodule(f"upconv{stage}")(x), skips[stage - 1]], 1)
            for place in range(DEPTHS[stage - 1], 0, -1):
                last = (stage, place) == (1, 1)
                x = self.get_submodule("conv11d")(x) if last else self._block(f"{stage}{place}d", x)
        return x


class FCEF(Detector):
    """Early fusion: both images enter as one of six channels."""

    smallest_batch_of_least_crops = 1  # its coarsest map has a sixteenth of the sides

    def __init__(self) -> None:
        super().__init__()
        self.backbone = FullyConvolutional(6, 1)
        self.decode_head = FCNHead(WIDTHS[0])

    def heads(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Detector.heads`."""
        skips, deepest = self.backbone.encode(torch.cat([first, second], 1))
        return (self.decode_head(self.backbone.decode(deepest, skips)),)


class FCSiam(Detector):
    """Siamese: ``concatenate`` joins both dates' maps to the decoder, else their absolute differences."""

    smallest_batch_of_least_crops = 1  # its coarsest map has a sixteenth of the sides

    def __init__(self, concatenate: bool) -> None:
        super().__init__()
        self.concatenate = concatenate
        self.backbone = FullyConvolutional(3, 2 if concatenate else 1)
        self.decode_head = FCNHead(WIDTHS[0])

    def heads(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Detector.heads`; the deepest map is the second date's."""
        skips, _ = self.backbone.encode(first)
        other, deepest = self.backbone.encode(second)
        if self.concatenate:
            joined = [torch.cat(pair, 1) for pair in zip(skips, other, strict=True)]
        else:
            joined = [torch.abs(a - b) for a, b in zip(skips, other, strict=True)]
        return (self.decode_head(self.backbone.decode(deepest, joined)),)
