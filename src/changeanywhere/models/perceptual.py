"""Perceptual distances, as loss and as metric: shift-tolerant LPIPS (Ghildyal & Liu, ECCV 2022), VGG16 features.

The first is written from the paper; its weights are those of the package ``stlpips-pytorch`` (BSD; AlexNet,
``vST0.0``), which is not imported: it needs torchvision and more. Install it with
``pip install stlpips-pytorch``.

AlexNet with its strides taken out of the convolutions: each down-sampling is a 3×3 binomial blur with stride 2
behind reflection padding of 2, the pooling before it has stride 1.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.errors import ConfigError, ModelError
from changeanywhere.models.checkpoint import read_weights_file
from changeanywhere.models.weights import check_finite, in_words

PACKAGE = "stlpips_pytorch"
WEIGHTS = Path("weights/vST0.0/alex_shift_tolerant.pth")


def find_weights() -> Path | None:
    """The weight file of the installed package ``stlpips-pytorch``, None if it is not there."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / WEIGHTS
    return path if path.is_file() else None


def read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    """A state dict with the entry ``expected``; :class:`ConfigError` naming the file otherwise."""
    try:
        state = read_weights_file(path)
        check_finite(state, path)
    except ModelError as error:
        raise ConfigError(f"not a readable weight file: {error}") from error
    if expected not in state:
        raise ConfigError(f"{path}: has no entry {expected!r}; another network's weights?")
    return state


def _blur_downsample(x: Tensor) -> Tensor:
    """Anti-aliased stride 2 (Zhang 2019): binomial 3×3, reflection padding 2."""
    channels = x.shape[1]
    row = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = (row[:, None] * row[None, :]).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=channels)


def _unit_length(x: Tensor) -> Tensor:
    """Feature maps ``[B, C, h, w]`` with unit length over C."""
    # 1e-20 keeps the gradient of the root finite where every channel is zero.
    return x / ((x.square().sum(1, keepdim=True) + 1e-20).sqrt() + 1e-10)


def build_perceptual(features: str, weights: Path | None = None) -> nn.Module:
    """``st_lpips`` or ``vgg16`` (needs ``weights``): a module ``(first, second) -> [B]``."""
    if features == "vgg16":
        if weights is None:
            raise ConfigError("vgg16 features need a weight file; this package downloads nothing")
        return VGG16Distance(weights)
    return ShiftTolerantLPIPS(weights)


def _check(state: dict[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> None:
    if name not in state or tuple(state[name].shape) != shape:
        found = f"is {in_words(state[name].shape)}" if name in state else "is missing"
        raise ConfigError(f"{path}: {name} {found}; needed: {in_words(shape)}; cut short, or another network's?")


def _convolution(state: dict[str, Tensor], name: str, shape: tuple[int, int, int, int], path: Path) -> nn.Conv2d:
    """A convolution of ``shape`` with weight and bias of ``state``; sides are kept, but for AlexNet's first."""
    outputs, inputs, size, _ = shape
    _check(state, f"{name}.weight", shape, path)
    _check(state, f"{name}.bias", (outputs,), path)
    conv = nn.Conv2d(inputs, outputs, size, padding=2 if size > 3 else 1)
    conv.load_state_dict({"weight": state[f"{name}.weight"], "bias": state[f"{name}.bias"]})
    return conv


ALEXNET = ((64, 11), (192, 5), (384, 3), (256, 3), (256, 3))
"""Channels and kernel of its convolutions."""


class ShiftTolerantLPIPS(nn.Module):
    """Distance of two image batches ``[B, 3, H, W]`` in [-1, 1] → ``[B]``, ≥ 0; smaller is more alike.

    Raises :class:`ConfigError` if the weights are not installed. Parameters are frozen.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        path = weights or find_weights()
        if path is None:
            raise ConfigError(
                "the ST-LPIPS weights are not installed; pip install stlpips-pytorch "
                "(or, in training, set first_stage.perceptual_weight to 0)"
            )
        state = read_weights(path, "scaling_layer.shift")
        for name in ("shift", "scale"):
            _check(state, f"scaling_layer.{name}", (1, 3, 1, 1), path)
        self.register_buffer("shift", state["scaling_layer.shift"])
        self.register_buffer("scale", state["scaling_layer.scale"])
        names = ["slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13"]
        self.convolutions = nn.ModuleList()
        inputs = 3
        for name, (outputs, size) in zip(names, ALEXNET, strict=True):
            self.convolutions.append(_convolution(state, f"net.{name}", (outputs, inputs, size, size), path))
            inputs = outputs
        for i, (outputs, _) in enumerate(ALEXNET):
            _check(state, f"lin{i}.model.1.weight", (1, outputs, 1, 1), path)
        self.heads = nn.ParameterList([state[f"lin{i}.model.1.weight"] for i in range(len(names))])
        self.requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Five feature maps, each normalised to unit length over channels."""
        x = (images - self.shift) / self.scale
        maps = []
        for i, conv in enumerate(self.convolutions):
            if i in (1, 2):
                x = _blur_downsample(F.max_pool2d(x, 3, stride=1))
            x = conv(x)
            x = F.relu(_blur_downsample(x)) if i == 0 else F.relu(x)
            maps.append(_unit_length(x))
        return maps

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances ``[B]``."""
        total = torch.zeros(first.shape[0], device=first.device)
        for a, b, head in zip(self.features(first), self.features(second), self.heads, strict=True):
            total = total + F.conv2d((a - b).square(), head).mean((1, 2, 3))
        return total


VGG16_CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Numbers of the convolutions in torchvision's ``features``, block by block; pooling stands between the blocks."""

VGG16_CHANNELS = (64, 128, 256, 512, 512)


class VGG16Distance(nn.Module):
    """Squared difference of unit-length VGG16 features (last ReLU of each block), without learned weights → ``[B]``.

    ``weights``: a state dict with torchvision's names (``features.0.weight`` …). Images ``[B, 3, H, W]`` in [-1, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path) -> None:
        super().__init__()
        state = read_weights(weights, "features.28.weight")
        self.blocks = nn.ModuleList()
        inputs = 3
        for numbers, outputs in zip(VGG16_CONVOLUTIONS, VGG16_CHANNELS, strict=True):
            block = nn.Sequential()
            for number in numbers:
                block.extend([_convolution(state, f"features.{number}", (outputs, inputs, 3, 3), weights), nn.ReLU()])
                inputs = outputs
            self.blocks.append(block)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Five feature maps of unit length over channels."""
        x = ((images + 1) / 2 - self.mean) / self.std
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(F.max_pool2d(x, 2) if i else x)
            maps.append(_unit_length(x))
        return maps

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances ``[B]``."""
        pairs = zip(self.features(first), self.features(second), strict=True)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)
