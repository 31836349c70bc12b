"""BIT, bitemporal image transformer (Chen et al. 2021, arXiv 2103.00208): a few tokens carry what both dates mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.models.detectors.base import ConvNormAct, Detector, FCNHead
from changeanywhere.models.detectors.resnet import WIDTHS, ResNet18

CHANNELS, INNER, HEADS, TOKENS, DECODER_DEPTH = 32, 64, 8, 4, 8
UPSAMPLE = 4


class Attention(nn.Module):
    """Multi-head attention of ``x`` to ``reference``; scaled by the input width, as in the reference code."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(CHANNELS, INNER, bias=False) for _ in range(3))
        self.fc_out = nn.Sequential(nn.Linear(INNER, CHANNELS))

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """``[B, N, 32]``, ``[B, M, 32]`` → ``[B, N, 32]``."""
        q, k, v = (
            layer(part).reshape(len(part), -1, HEADS, INNER // HEADS).transpose(1, 2)
            for layer, part in ((self.to_q, x), (self.to_k, reference), (self.to_v, reference))
        )
        attended = F.scaled_dot_product_attention(q, k, v, scale=CHANNELS**-0.5)
        result: Tensor = self.fc_out(attended.transpose(1, 2).flatten(2))
        return result


def _feed_forward() -> nn.Sequential:
    # The identities stand where the reference has dropout of rate 0: parameter names keep their numbers.
    return nn.Sequential(nn.Linear(CHANNELS, INNER), nn.ReLU(), nn.Identity(), nn.Linear(INNER, CHANNELS))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block over the tokens of both dates."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.ff = Attention(), _feed_forward()
        self.norm1, self.norm2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, 8, 32]`` → the same."""
        normed = self.norm1(tokens)
        tokens = self.attn(normed, normed) + tokens
        result: Tensor = self.ff(self.norm2(tokens)) + tokens
        return result


class DecoderBlock(nn.Module):
    """Pixels of one date look at its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.ff = Attention(), _feed_forward()
        self.norm1, self.norm1_, self.norm2 = (nn.LayerNorm(CHANNELS) for _ in range(3))

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """``[B, N, 32]``, ``[B, 4, 32]`` → ``[B, N, 32]``."""
        pixels = self.attn(self.norm1(pixels), self.norm1_(tokens)) + pixels
        result: Tensor = self.ff(self.norm2(pixels)) + pixels
        return result


class BITHead(FCNHead):
    """Tokens of both dates → encoder → each date's pixels → difference → classes."""

    def __init__(self) -> None:
        super().__init__(CHANNELS)
        self.pre_process = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"), ConvNormAct(WIDTHS[2], CHANNELS, 3, norm=False)
        )
        self.conv_att = ConvNormAct(CHANNELS, TOKENS, 1, norm=False)
        self.enc_pos_embedding = nn.Parameter(torch.randn(1, 2 * TOKENS, CHANNELS))
        self.encoder = nn.ModuleList([EncoderBlock()])
        self.decoder = nn.ModuleList(DecoderBlock() for _ in range(DECODER_DEPTH))

    def _tokens(self, x: Tensor) -> Tensor:
        """``[B, 32, h, w]`` → ``[B, 4, 32]``: means over the map, weighted by each token's attention."""
        attention = F.softmax(self.conv_att(x).flatten(2), -1)
        return attention @ x.flatten(2).transpose(1, 2)

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Backbone maps ``[B, 256, H/8, W/8]`` → logits ``[B, 2, H, W]``."""
        maps = [self.pre_process(x) for x in (first, second)]
        tokens = torch.cat([self._tokens(x) for x in maps], 1) + self.enc_pos_embedding
        for block in self.encoder:
            tokens = block(tokens)
        dates = []
        for x, own in zip(maps, tokens.chunk(2, 1), strict=True):
            pixels = x.flatten(2).transpose(1, 2)
            for block in self.decoder:
                pixels = block(pixels, own)
            dates.append(pixels.transpose(1, 2).reshape(x.shape))
        # The 1x1 convolution and the enlargement are both linear: in this order the work is a sixteenth.
        logits = self.classify(torch.abs(dates[0] - dates[1]))
        return F.interpolate(logits, scale_factor=UPSAMPLE, mode="bilinear", align_corners=False)


class BIT(Detector):
    """BIT with a ResNet-18 of three stages (strides 1, 2, 1)."""

    smallest_batch_of_least_crops = 1  # its coarsest map has an eighth of the sides

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet18((1, 2, 1))
        self.decode_head = BITHead()

    def heads(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Detector.heads`."""
        maps = []
        for x in (first, second):
            x = self.backbone.begin(x)
            for number in (1, 2, 3):
                x = self.backbone.stage(number, x)
            maps.append(x)
        return (self.decode_head.compare(maps[0], maps[1]),)
