"""ChangerEx (Fang et al. 2022, arXiv 2209.08290): exchanges between dates, flow dual-alignment fusion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.models.detectors.base import ConvNormAct, Detector, FCNHead, FusionConv, mix_layers
from changeanywhere.models.detectors.resnet import WIDTHS, ResNet18

CHANNELS = 128
EXCHANGES = (None, "columns", "channels", "channels")
"""What the dates exchange after each stage: every second column, every second channel."""


def exchange(first: Tensor, second: Tensor, what: str | None) -> tuple[Tensor, Tensor]:
    """Maps ``[B, C, H, W]`` with every second (0, 2, …) channel or column of the other."""
    if what is None:
        return first, second
    length = first.shape[1] if what == "channels" else first.shape[3]
    shape = (1, -1, 1, 1) if what == "channels" else (1, 1, 1, -1)
    swapped = (torch.arange(length, device=first.device) % 2 == 0).view(shape)
    return torch.where(swapped, second, first), torch.where(swapped, first, second)


class FlowFusion(nn.Module):
    """Each date is warped towards the other by a learned flow; what is left of the difference goes on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        both = 2 * channels
        self.flow_make = nn.Sequential(
            nn.Conv2d(both, both, 5, padding=2, groups=both),
            nn.InstanceNorm2d(both),
            nn.GELU(),
            nn.Conv2d(both, 4, 1, bias=False),
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two maps ``[B, C, h, w]`` → ``[B, 2C, h, w]``."""
        flows = self.flow_make(torch.cat([first, second], 1)).chunk(2, 1)
        return torch.cat([warp(first, flows[0]) - second, warp(second, flows[1]) - first], 1)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """``[B, C, h, w]`` read at positions moved by ``flow`` ``[B, 2, h, w]`` (columns, rows; in half-pixels)."""
    height, width = x.shape[2:]
    # bf16 has 8 bits for a position: of 256 cells it would read some half a cell beside the place that is meant.
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        flow = flow.to(dtype)
        rows, columns = (torch.linspace(-1, 1, length, dtype=dtype, device=x.device) for length in (height, width))
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
        moved = grid + torch.stack([flow[:, 0] / width, flow[:, 1] / height], -1)
        return F.grid_sample(x.to(dtype), moved, align_corners=True).to(x.dtype)


class MixFFN(nn.Module):
    """Feed-forward with a depthwise 3×3 convolution inside and a shortcut around."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = mix_layers(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` → the same."""
        result: Tensor = x + self.layers(x)
        return result


class ChangerHead(FCNHead):
    """Four scales of each date → one map each → aligned difference → classes."""

    def __init__(self) -> None:
        super().__init__(CHANNELS)
        self.convs = nn.ModuleList(ConvNormAct(width, CHANNELS, 1) for width in WIDTHS)
        self.fusion_conv = FusionConv(len(WIDTHS), CHANNELS, CHANNELS // 2)
        self.neck_layer = FlowFusion(CHANNELS // 2)
        self.discriminator = MixFFN(CHANNELS)

    def _merge(self, maps: list[Tensor]) -> Tensor:
        return self.fusion_conv.fuse([conv(x) for conv, x in zip(self.convs, maps, strict=True)])

    def compare(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Four maps of each date → logits ``[B, 2, H/4, W/4]``."""
        fused = self.neck_layer(self._merge(first), self._merge(second))
        return self.classify(self.discriminator(fused))


class ChangerEx(Detector):
    """ChangerEx with a ResNet-18."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet18((1, 2, 2, 2))
        self.decode_head = ChangerHead()

    def heads(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Detector.heads`."""
        x, y = self.backbone.begin(first), self.backbone.begin(second)
        maps: tuple[list[Tensor], list[Tensor]] = ([], [])
        for number, what in enumerate(EXCHANGES, 1):
            x, y = exchange(self.backbone.stage(number, x), self.backbone.stage(number, y), what)
            maps[0].append(x)
            maps[1].append(y)
        return (self.decode_head.compare(*maps),)
