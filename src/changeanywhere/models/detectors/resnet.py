"""ResNet-18, variant v1c (He et al. 2015; the stem of three 3×3 convolutions: He et al. 2018, arXiv 1812.01187)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` → ``[B, outputs, H / stride, W / stride]``."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.downsample(x))


class ResNet18(nn.Module):
    """Stages ``layer1 …`` with the given strides; the stem and the pooling after it divide by 4."""

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
            conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*layers)
        before = WIDTHS[0]
        for stage, stride in enumerate(strides, 1):
            width = WIDTHS[stage - 1]
            blocks = nn.Sequential(BasicBlock(before, width, stride), BasicBlock(width, width, 1))
            self.add_module(f"layer{stage}", blocks)
            before = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def begin(self, x: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` → ``[B, 64, H/4, W/4]``."""
        return F.max_pool2d(self.stem(x), 3, stride=2, padding=1)

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Stage ``number``, counted from 1."""
        result: Tensor = self.get_submodule(f"layer{number}")(x)
        return result
