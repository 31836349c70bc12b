"""What every detector is: two images in, change logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.errors import ConfigError
from changeanywhere.models.detectors.pretrained import load_backbone

NUM_CLASSES = 2
"""Logits: channel 0 = unchanged, 1 = changed."""
# ImageNet statistics on 0-255, as published weights expect them.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


Heads = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Normalised images of both dates → logits of each head."""


class Detector(nn.Module, ABC):
    """Base of all detectors.

    A subclass gives :meth:`heads`. Those of this package keep the parameter names of the reference implementation
    (Open-CD), so that its checkpoints load as they are. What the rest of the package must know of a detector stands in
    the attributes below.
    """

    in_channels = 3
    """Bands of an image that it reads: the first so many of a pair's."""
    size_multiple = 32
    """Images are padded to it (bottom and right) before they enter the network."""
    smallest_batch = 1
    """Pairs that a training step must show it at once."""
    smallest_batch_of_least_crops = 2
    """The same where crops are as small as :attr:`size_multiple`: batch normalisation of a map of one cell needs more
    pairs than one. 1 for a detector without such a map."""
    auxiliary_weight = 0.0
    """Weight of the loss of each auxiliary head."""
    channel_mean: tuple[float, ...] = MEAN
    """Mean of each band on 0-255, which normalised images lack."""
    channel_std: tuple[float, ...] = STD
    """Standard deviation of each band on 0-255."""
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", self.channel_mean), ("std", self.channel_std)):
            if len(values) != self.in_channels:
                raise ValueError(f"{type(self).__name__}: channel_{name} needs {self.in_channels} numbers")
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def load_backbone(self, file: Path) -> list[str]:
        """Put the weights of ``file`` into the backbone; returns the names that it did not have.

        Here: into the submodule ``backbone``, see :func:`changeanywhere.models.detectors.pretrained.load_backbone`.
        Raises :class:`ConfigError` where there is none.
        """
        if not hasattr(self, "backbone"):
            raise ConfigError(f"{file}: a {type(self).__name__} has no backbone that takes weights")
        return load_backbone(self, file)

    @abstractmethod
    def heads(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """Normalised images ``[B, in_channels, H, W]``, sides divisible by ``size_multiple`` → logits ``[B, 2, h, w]``
        of the head, then of the auxiliary heads, each at its own resolution."""

    def forward_normalised(self, first: Tensor, second: Tensor) -> Tensor:
        """As :meth:`heads`, the head alone, at the images' size: ``[B, 2, H, W]``."""
        return resize(self.heads(first, second)[0], first.shape[2:])

    def all_logits(self, image_t1: Tensor, image_t2: Tensor) -> list[Tensor]:
        """Images ``[B, in_channels, H, W]`` in [-1, 1] → logits ``[B, 2, H, W]`` of the head, then of the auxiliary
        heads."""
        return self.at_full_size(self.heads, image_t1, image_t2)

    def at_full_size(self, heads: Heads, image_t1: Tensor, image_t2: Tensor) -> list[Tensor]:
        """Images in [-1, 1] → what ``heads`` give of them normalised and padded, at the images' size."""
        height, width = image_t1.shape[2:]
        pad = (0, -width % self.size_multiple, 0, -height % self.size_multiple)
        first, second = (F.pad(self._normalise(image), pad) for image in (image_t1, image_t2))
        padded = first.shape[2:]
        return [resize(logits, padded)[..., :height, :width] for logits in heads(first, second)]

    def forward(self, image_t1: Tensor, image_t2: Tensor) -> Tensor:
        """Images ``[B, in_channels, H, W]`` in [-1, 1] → logits ``[B, 2, H, W]`` (0 = unchanged, 1 = changed)."""
        return self.all_logits(image_t1, image_t2)[0]

    def _normalise(self, image: Tensor) -> Tensor:
        normalised: Tensor = ((image + 1) * 127.5 - self.mean) / self.std
        return normalised


class FCNHead(nn.Module):
    """Dropout of whole channels and a 1×1 convolution to the classes, two of them where nothing else is said; before
    it, optionally, one 3×3 convolution."""

    def __init__(self, channels: int, dropout: float = 0.1, num_convs: int = 0, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in range(num_convs))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def classify(self, features: Tensor) -> Tensor:
        """Features ``[B, C, h, w]`` → logits ``[B, 2, h, w]``."""
        logits: Tensor = self.conv_seg(self.dropout(features))
        return logits

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[B, C, h, w]`` → logits ``[B, 2, h, w]``."""
        for conv in self.convs:
            features = conv(features)
        return self.classify(features)


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation (or a bias instead), ReLU (or nothing)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: bool = True, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not norm)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if norm:
            self.bn = nn.BatchNorm2d(outputs)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` → ``[B, outputs, H, W]``."""
        return self.finish(self.conv(x))

    def finish(self, x: Tensor) -> Tensor:
        """What follows the convolution."""
        x = self.bn(x) if hasattr(self, "bn") else x
        return F.relu(x) if self.act else x


class FusionConv(ConvNormAct):
    """1×1 convolution of several maps, enlarged to the first one's size and concatenated.

    Enlarging is linear and so is the convolution: each map is convolved at its own size and the results are enlarged
    and added, which is the same sum for a fraction of the work.
    """

    def __init__(self, num_maps: int, channels: int, outputs: int) -> None:
        super().__init__(num_maps * channels, outputs, 1)
        self.num_maps = num_maps

    def fuse(self, maps: list[Tensor]) -> Tensor:
        """``num_maps`` maps ``[B, channels, h_i, w_i]``, finest first → ``[B, outputs, h_0, w_0]``."""
        weights = self.conv.weight.chunk(self.num_maps, 1)
        size = maps[0].shape[2:]
        total = F.conv2d(maps[0], weights[0])
        for x, weight in zip(maps[1:], weights[1:], strict=True):
            total = total + resize(F.conv2d(x, weight), size)
        return self.finish(total)


def mix_layers(channels: int, inner: int) -> nn.Sequential:
    """Feed-forward with a depthwise 3×3 convolution, which tells positions where they are (SegFormer's Mix-FFN)."""
    return nn.Sequential(
        nn.Conv2d(channels, inner, 1),
        nn.Conv2d(inner, inner, 3, padding=1, groups=inner),
        nn.GELU(),
        nn.Identity(),  # dropout of rate 0 in the reference
        nn.Conv2d(inner, channels, 1),
    )


def resize(x: Tensor, size: torch.Size) -> Tensor:
    """Bilinear, pixel centres not aligned at the corners."""
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
