"""LightCDNet (Xing et al. 2023, doi:10.1109/LGRS.2023.3304309): early fusion, ShuffleNet blocks, deep supervision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.models.detectors.base import ConvNormAct, Detector, FCNHead, resize

WIDTHS = {"s": (24, 48, 96, 192), "b": (24, 116, 232, 464), "l": (24, 176, 352, 704)}
FUSION_BLOCKS = {"s": 4, "b": 8, "l": 16}
STAGE_BLOCKS = (4, 8, 4)
TAPS = (3, 11, 15)
"""Stages whose maps go on. The reference counts without the attention modules between the stages, so that the last
three (16 to 18) reach no output; they are kept for its checkpoints."""
NECK_CHANNELS = 48


def conv_norm(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias, batch normalisation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def shuffle(x: Tensor) -> Tensor:
    """Channels of both halves in turn."""
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


class ShuffleBlock(nn.Module):
    """ShuffleNet v2 unit (Ma et al. 2018): half of the channels pass, or both branches halve the size."""

    def __init__(self, inputs: int, outputs: int, downsample: bool = False) -> None:
        super().__init__()
        half, stride = outputs // 2, 2 if downsample else 1
        self.downsample = downsample
        if downsample:
            self.branch1 = nn.Sequential(
                *conv_norm(inputs, inputs, 3, 2, inputs), *conv_norm(inputs, half), nn.ReLU(inplace=True)
            )
        self.branch2 = nn.Sequential(
            *conv_norm(inputs if downsample else half, half),
            nn.ReLU(inplace=True),
            *conv_norm(half, half, 3, stride, half),
            *conv_norm(half, half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` → ``[B, outputs, H or H/2, W or W/2]``."""
        if self.downsample:
            return shuffle(torch.cat([self.branch1(x), self.branch2(x)], 1))
        kept, changed = x.chunk(2, 1)
        return shuffle(torch.cat([kept, self.branch2(changed)], 1))


class Scale(nn.Module):
    """One learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))


class CrissCross(nn.Module):
    """Attention of every pixel to its row and column (Huang et al. 2019, arXiv 1811.11721)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(channels, channels // 8, 1)
        self.key_conv = nn.Conv2d(channels, channels // 8, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = Scale()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → the same."""
        query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        height = x.shape[2]
        # The pixel itself stands in its row and in its column; it counts once.
        itself = torch.full((height,), float("-inf"), dtype=x.dtype, device=x.device).diag()
        itself = torch.nan_to_num(itself, nan=0.0, neginf=float("-inf"))
        columns = torch.einsum("bchw,bciw->bhwi", query, key) + itself[:, None, :]
        rows = torch.einsum("bchw,bchj->bhwj", query, key)
        attention = F.softmax(torch.cat([columns, rows], -1), -1)
        out = torch.einsum("bciw,bhwi->bchw", value, attention[..., :height])
        out = out + torch.einsum("bchj,bhwj->bchw", value, attention[..., height:])
        return self.gamma.scale * out + x


class RecurrentCrissCross(nn.Module):
    """Twice: every pixel reaches every other one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cca = CrissCross(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → the same."""
        result: Tensor = self.cca(self.cca(x))
        return result


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → the same."""
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return normed.permute(0, 3, 1, 2)


class TimeAttention(nn.Module):
    """Weights of each date's channels from both dates' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 16, 8)
        self.mlp = nn.Sequential(
            *conv_norm(2 * channels, inner), nn.ReLU(), nn.Conv2d(inner, 2 * channels, 1, bias=False)
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two maps ``[B, C, H, W]`` → both, weighted, ``[B, 2C, H, W]``."""
        both = torch.cat([first, second], 1)
        weights = torch.sigmoid(self.mlp(both.mean((2, 3), keepdim=True)))
        return both * weights + both


class Fusion(nn.Module):
    """Both dates through shuffle blocks, then into one map."""

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.stages = nn.Sequential(
            nn.Sequential(*conv_norm(channels, wide), nn.ReLU()),
            *(ShuffleBlock(wide, wide) for _ in range(num_blocks)),
        )
        self.single_conv = nn.Sequential(*conv_norm(wide, channels), nn.ReLU())
        self.time_attn = TimeAttention(channels)
        self.final_conv = nn.Sequential(*conv_norm(2 * channels, channels), nn.ReLU())

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two maps ``[B, C, H, W]`` → one."""
        first, second = (x + self.single_conv(self.stages(x)) for x in (first, second))
        result: Tensor = self.final_conv(shuffle(self.time_attn(first, second)))
        return result


class Backbone(nn.Module):
    """Maps at 1/2, 1/4, 1/8, 1/16 of the size."""

    def __init__(self, size: str) -> None:
        super().__init__()
        widths = WIDTHS[size]
        self.conv1 = nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), ChannelNorm(widths[0]), nn.GELU())
        self.fusion_conv = Fusion(widths[0], FUSION_BLOCKS[size])
        stages: list[nn.Module] = []
        for before, width, blocks in zip(widths, widths[1:], STAGE_BLOCKS, strict=False):
            stages.append(ShuffleBlock(before, width, downsample=True))
            stages += [ShuffleBlock(width, width) for _ in range(blocks - 1)]
            stages.append(RecurrentCrissCross(width))
        self.stages = nn.Sequential(*stages)

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Two images ``[B, 3, H, W]`` → four maps."""
        x = self.fusion_conv(self.conv1(first), self.conv1(second))
        maps = [x]
        for number in range(TAPS[-1] + 1):
            x = self.stages[number](x)
            if number in TAPS:
                maps.append(x)
        return maps


class Neck(nn.Module):
    """Feature pyramid (Lin et al. 2017), nearest-neighbour enlargement."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvNormAct(w, NECK_CHANNELS, 1, norm=False, act=False) for w in widths)
        self.fpn_convs = nn.ModuleList(
            ConvNormAct(NECK_CHANNELS, NECK_CHANNELS, 3, norm=False, act=False) for _ in widths
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Four maps → four of 48 channels."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for fine in range(len(laterals) - 2, -1, -1):
            size = tuple(laterals[fine].shape[2:])
            laterals[fine] = laterals[fine] + F.interpolate(laterals[fine + 1], size=size, mode="nearest")
        return [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=True)]


class PyramidHead(FCNHead):
    """Every scale's map, enlarged and added."""

    def __init__(self, num_scales: int) -> None:
        super().__init__(NECK_CHANNELS, dropout=0.0)
        self.scale_heads = nn.ModuleList(
            nn.Sequential(ConvNormAct(NECK_CHANNELS, NECK_CHANNELS, 1)) for _ in range(num_scales)
        )

    def merge(self, maps: list[Tensor]) -> Tensor:
        """Maps ``[B, 48, h_i, w_i]`` → logits ``[B, 2, h_0, w_0]``."""
        total = self.scale_heads[0](maps[0])
        for head, x in zip(list(self.scale_heads)[1:], maps[1:], strict=True):
            total = total + resize(head(x), total.shape[2:])
        return self.classify(total)


class LightCDNet(Detector):
    """``size``: s, b or l."""

    auxiliary_weight = 0.4
    smallest_batch = 2  # pooled features are normalised over the batch

    def __init__(self, size: str) -> None:
        super().__init__()
        widths = WIDTHS[size]
        self.backbone = Backbone(size)
        self.neck = Neck(widths)
        self.decode_head = PyramidHead(len(widths))
        self.auxiliary_head = FCNHead(widths[0], dropout=0.0, num_convs=1)

    def heads(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Detector.heads`; the auxiliary head reads the finest map."""
        maps = self.backbone(first, second)
        return self.decode_head.merge(self.neck(maps)), self.auxiliary_head(maps[0])
