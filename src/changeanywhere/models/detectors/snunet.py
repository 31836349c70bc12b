"""SNUNet-CD (Fang et al. 2021, doi:10.1109/LGRS.2021.3056416): Siamese UNet++ with ensemble channel attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.models.detectors.base import Detector, FCNHead

LEVELS = 5


class NestedBlock(nn.Module):
    """Two 3×3 convolutions; the first one's output is added before the last ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` → ``[B, outputs, H, W]``."""
        first = self.conv1(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(first)))) + first)


class Up(nn.Module):
    """Twice the size by a transposed convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, 2H, 2W]``."""
        result: Tensor = self.up(x)
        return result


class ChannelAttention(nn.Module):
    """Weights of the channels from their means and maxima, by one small network for both."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // ratio, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // ratio, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → weights ``[B, C, 1, 1]``."""
        pooled = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
        mean, most = (self.fc2(F.relu(self.fc1(p))) for p in pooled)
        return torch.sigmoid(mean + most)


class NestedUNet(nn.Module):
    """Nodes ``conv{level}_{place}``; node (i, j) takes both dates' maps of level i, its own row, and the one below."""

    def __init__(self, base: int) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(LEVELS)]
        for level, width in enumerate(widths):
            self.add_module(f"conv{level}_0", NestedBlock(widths[level - 1] if level else 3, width))
            for place in range(1, LEVELS - level):
                inputs = width * (1 + place) + widths[level + 1]
                self.add_module(f"conv{level}_{place}", NestedBlock(inputs, width))
            for place in range(LEVELS - level) if level else ():
                self.add_module(f"Up{level}_{place}", Up(width))
        self.ca = ChannelAttention(4 * base, 16)
        self.ca1 = ChannelAttention(base, 4)

    def _encode(self, x: Tensor, levels: int) -> list[Tensor]:
        maps = [self.get_submodule("conv0_0")(x)]
        for level in range(1, levels):
            maps.append(self.get_submodule(f"conv{level}_0")(F.max_pool2d(maps[-1], 2)))
        return maps

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two images → ``[B, 4 · base, H, W]``."""
        # As in the reference, the deepest level sees the second image only.
        before, after = self._encode(first, LEVELS - 1), self._encode(second, LEVELS)
        rows = [[a, b] for a, b in zip(before, after, strict=False)]
        below = after
        for place in range(1, LEVELS):
            nodes = []
            for level in range(LEVELS - place):
                up = self.get_submodule(f"Up{level + 1}_{place - 1}")(below[level + 1])
                nodes.append(self.get_submodule(f"conv{level}_{place}")(torch.cat([*rows[level], up], 1)))
            for level, node in enumerate(nodes):
                rows[level].append(node)
            below = nodes
        outputs = rows[0][2:]
        together = torch.cat(outputs, 1)
        within: Tensor = self.ca1(torch.stack(outputs).sum(0))
        attended: Tensor = self.ca(together) * (together + within.repeat(1, 4, 1, 1))
        return attended


class SNUNet(Detector):
    """SNUNet-CD; ``base``: channels of the finest level, 16 or 32."""

    smallest_batch_of_least_crops = 1  # its coarsest map has a sixteenth of the sides

    def __init__(self, base: int) -> None:
        super().__init__()
        self.backbone = NestedUNet(base)
        self.decode_head = FCNHead(4 * base)

    def heads(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Detector.heads`."""
        return (self.decode_head(self.backbone(first, second)),)
