"""Shift-tolerant LPIPS (Ghildyal & Liu, ECCV 2022): a perceptual distance, as loss and as metric.

Written from the paper; the weights are those of the package ``stlpips-pytorch`` (BSD; AlexNet, ``vST0.0``), which
is not imported: it needs torchvision and more. Install it with ``pip install --no-deps stlpips-pytorch``.

AlexNet with its strides taken out of the convolutions: each down-sampling is a 3×3 binomial blur with stride 2
behind reflection padding of 2, the pooling before it has stride 1.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.errors import ConfigError

PACKAGE = "stlpips_pytorch"
WEIGHTS = Path("weights/vST0.0/alex_shift_tolerant.pth")


def find_weights() -> Path | None:
    """The weight file of the installed package ``stlpips-pytorch``, None if it is not there."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / WEIGHTS
    return path if path.is_file() else None


def _blur_downsample(x: Tensor) -> Tensor:
    """Anti-aliased stride 2 (Zhang 2019): binomial 3×3, reflection padding 2."""
    channels = x.shape[1]
    row = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = (row[:, None] * row[None, :]).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=channels)


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
                "the perceptual loss needs the ST-LPIPS weights: pip install --no-deps stlpips-pytorch, "
                "or set first_stage.perceptual_weight to 0"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.register_buffer("shift", state["scaling_layer.shift"])
        self.register_buffer("scale", state["scaling_layer.scale"])
        names = ["slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13"]
        self.convolutions = nn.ModuleList()
        for name in names:
            weight, bias = state[f"net.{name}.weight"], state[f"net.{name}.bias"]
            size = weight.shape[2]
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], size, padding=2 if size > 3 else 1)
            conv.load_state_dict({"weight": weight, "bias": bias})
            self.convolutions.append(conv)
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
            # 1e-20 keeps the gradient of the root finite where every channel is zero.
            maps.append(x / ((x.square().sum(1, keepdim=True) + 1e-20).sqrt() + 1e-10))
        return maps

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances ``[B]``."""
        total = torch.zeros(first.shape[0], device=first.device)
        for a, b, head in zip(self.features(first), self.features(second), self.heads, strict=True):
            total = total + F.conv2d((a - b).square(), head).mean((1, 2, 3))
        return total
