"""ChangeFormer (Bandara & Patel 2022, arXiv 2201.01293) as Open-CD builds it: a Siamese Mix Transformer (SegFormer,
Xie et al. 2021, arXiv 2105.15203), concatenated maps, the SegFormer head."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from changeanywhere.models.detectors.base import ConvNormAct, Detector, FCNHead, FusionConv, mix_layers

HEADS, PATCHES, STRIDES, REDUCTIONS = (1, 2, 5, 8), (7, 3, 3, 3), (4, 2, 2, 2), (8, 4, 2, 1)
BLOCKS = 2
MLP_RATIO = 4
DROP_PATH = 0.1
EPS = 1e-6
HEAD_CHANNELS = 256


class DropPath(nn.Module):
    """Leaves a whole branch out, per sample, with probability ``p`` (Huang et al. 2016)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """``[B, …]`` → the same."""
        if not self.training or self.p == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.p
        return x * kept / (1 - self.p)


def to_map(tokens: Tensor, size: torch.Size) -> Tensor:
    """``[B, hw, C]`` → ``[B, C, h, w]``."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *size)


class PatchEmbedding(nn.Module):
    """Overlapping patches → tokens."""

    def __init__(self, inputs: int, width: int, patch: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(inputs, width, patch, stride, patch // 2)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        """``[B, C, H, W]`` → tokens ``[B, hw, width]`` and (h, w)."""
        x = self.projection(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2:]


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from a map reduced by ``reduction``."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.reduction = reduction
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width, EPS)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """``[B, hw, width]`` → the same."""
        reference = x
        if self.reduction > 1:
            reference = self.sr(to_map(x, size))
            reference = self.norm(reference.flatten(2).transpose(1, 2))
        result: Tensor = self.attn(x, reference, reference, need_weights=False)[0]
        return result


class MixFFN(nn.Module):
    """Feed-forward with a depthwise 3×3 convolution, which tells tokens where they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = mix_layers(width, width * MLP_RATIO)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """``[B, hw, width]`` → the same."""
        result: Tensor = self.layers(to_map(x, size))
        return result.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attn = EfficientAttention(width, heads, reduction)
        self.ffn = MixFFN(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """``[B, hw, width]`` → the same."""
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        result: Tensor = x + self.drop_path(self.ffn(self.norm2(x), size))
        return result


class MixTransformer(nn.Module):
    """Four stages: ``layers.i`` = patch embedding, blocks, norm. ``width``: channels per attention head (32, 64)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widths = [width * heads for heads in HEADS]
        total = BLOCKS * len(HEADS)
        rates = [DROP_PATH * i / (total - 1) for i in range(total)]
        self.layers = nn.ModuleList()
        before = 3
        for stage, (own, heads) in enumerate(zip(self.widths, HEADS, strict=True)):
            blocks = nn.ModuleList(
                Block(own, heads, REDUCTIONS[stage], rates[BLOCKS * stage + i]) for i in range(BLOCKS)
            )
            embedding = PatchEmbedding(before, own, PATCHES[stage], STRIDES[stage])
            self.layers.append(nn.ModuleList([embedding, blocks, nn.LayerNorm(own, EPS)]))
            before = own
        self.apply(_initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Image ``[B, 3, H, W]`` → four maps at 1/4, 1/8, 1/16, 1/32."""
        maps = []
        for stage in self.layers:
            embedding, blocks, norm = cast(nn.ModuleList, stage)
            tokens, size = embedding(x)
            for block in cast(nn.ModuleList, blocks):
                tokens = block(tokens, size)
            x = to_map(norm(tokens), size)
            maps.append(x)
        return maps


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class SegformerHead(FCNHead):
    """Four scales → one map → classes."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__(HEAD_CHANNELS)
        self.convs = nn.ModuleList(ConvNormAct(width, HEAD_CHANNELS, 1) for width in widths)
        self.fusion_conv = FusionConv(len(widths), HEAD_CHANNELS, HEAD_CHANNELS)

    def merge(self, maps: list[Tensor]) -> Tensor:
        """Four maps → logits ``[B, 2, H/4, W/4]``."""
        return self.classify(self.fusion_conv.fuse([conv(x) for conv, x in zip(self.convs, maps, strict=True)]))


class ChangeFormer(Detector):
    """``width``: 32 = MiT-B0, 64 = MiT-B1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = MixTransformer(width)
        self.decode_head = SegformerHead([2 * w for w in self.backbone.widths])

    def heads(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Detector.heads`."""
        maps = zip(self.backbone(first), self.backbone(second), strict=True)
        return (self.decode_head.merge([torch.cat(pair, 1) for pair in maps]),)
