"""Segmentation networks that read land cover from an image: the *judge* of generated images, and the filter.

Several architectures, so that whoever filters pairs is not the one who judges them: ``lite0`` (EfficientNet-Lite0 with
ImageNet weights, batch normalisation, depthwise convolutions) and ``unet`` (plain convolutions, group normalisation,
from random weights) end in the same top-down decoder (U-Net, Ronneberger et al. 2015); ``lite1`` (EfficientNet-Lite1
with ImageNet weights of its own) ends in a feature pyramid (Lin et al. 2017), whose maps are added, not joined.

SEGMENTER/segmenter.json      format, backbone
SEGMENTER/legend.json         what its classes are
SEGMENTER/model.safetensors   weights
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from changeanywhere.errors import ModelError
from changeanywhere.legend import Legend
from changeanywhere.models.checkpoint import read_safetensors
from changeanywhere.models.configuration import read_description
from changeanywhere.models.efficientnet import EfficientNetLite0, EfficientNetLite1, find_weights
from changeanywhere.models.weights import load_weights
from changeanywhere.storage import atomic_folder

FORMAT, FORMAT_VERSION = "changeanywhere-segmenter", 1
DECODER_CHANNELS = (32, 48, 64, 96)
PYRAMID_WIDTH = 64
GROUPS = 8
SIZE_MULTIPLE = 32
"""Of heights and widths: the coarsest map has a thirty-second of the image's."""


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(GROUPS, outputs), nn.ReLU()
    )


class PlainEncoder(nn.Module):
    """Feature maps at strides 2, 4, 8, 16, 32 with :attr:`pyramid_channels`."""

    pyramid_channels = (24, 32, 64, 96, 160)

    def __init__(self) -> None:
        super().__init__()
        outputs = self.pyramid_channels
        self.levels = nn.ModuleList(
            nn.Sequential(_block(a, b, stride=2), _block(b, b)) for a, b in zip((3, *outputs), outputs, strict=False)
        )

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Images ``[B, 3, H, W]`` in [-1, 1] → five maps."""
        maps = [images]
        for level in self.levels:
            maps.append(level(maps[-1]))
        return maps[1:]


class Decoder(nn.Module):
    """Coarse to fine: enlarge, join with the encoder's map, convolve; logits at the input's size."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        below = [*DECODER_CHANNELS[1:], channels[-1]]
        self.levels = nn.ModuleList(
            _block(b + c, d) for b, c, d in zip(below, channels[:-1], DECODER_CHANNELS, strict=True)
        )
        self.head = nn.Conv2d(DECODER_CHANNELS[0], num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Five maps, fine to coarse → logits ``[B, K, 2h, 2w]`` for the finest map's ``h, w``."""
        x = maps[-1]
        for level, skip in zip(reversed(self.levels), reversed(maps[:-1]), strict=True):
            x = level(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], 1))
        logits: Tensor = F.interpolate(self.head(x), scale_factor=2, mode="bilinear", align_corners=False)
        return logits


class FeaturePyramid(nn.Module):
    """Coarse to fine: every map to :data:`PYRAMID_WIDTH` channels, the enlarged coarser one added, convolved; at half
    the image's size with fewer channels, since most of the work would lie there. Logits at the input's size."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        widths = [PYRAMID_WIDTH // 2, *[PYRAMID_WIDTH] * (len(channels) - 1)]
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c, width in zip(channels, widths, strict=True))
        self.smooth = nn.ModuleList(_block(width, width) for width in widths)
        self.narrow = nn.Conv2d(PYRAMID_WIDTH, widths[0], 1)
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Five maps, fine to coarse → logits ``[B, K, 2h, 2w]`` for the finest map's ``h, w``."""
        x = self.smooth[-1](self.lateral[-1](maps[-1]))
        for level in range(len(maps) - 2, -1, -1):
            below = x if level else self.narrow(x)
            enlarged = F.interpolate(below, size=maps[level].shape[2:], mode="bilinear", align_corners=False)
            x = self.smooth[level](self.lateral[level](maps[level]) + enlarged)
        logits: Tensor = F.interpolate(self.head(x), scale_factor=2, mode="bilinear", align_corners=False)
        return logits


@dataclass(frozen=True)
class Backbone:
    """How a segmenter of a name is built."""

    encoder: Callable[[bool], PlainEncoder | EfficientNetLite0 | EfficientNetLite1]
    """True: with weights that were trained elsewhere, where there are any."""
    decoder: Callable[[Sequence[int], int], Decoder | FeaturePyramid]


BACKBONES = {
    "lite0": Backbone(lambda pretrained: EfficientNetLite0(find_weights("lite0") if pretrained else None), Decoder),
    "lite1": Backbone(
        lambda pretrained: EfficientNetLite1(find_weights("lite1") if pretrained else None), FeaturePyramid
    ),
    "unet": Backbone(lambda pretrained: PlainEncoder(), Decoder),
}


class Segmenter(nn.Module):
    """Images ``[B, 3, H, W]`` in [-1, 1], sides divisible by :attr:`size_multiple` → logits ``[B, K, H, W]``.

    Channel k is class k + 1. Raises ``KeyError`` for a backbone that is not in :data:`BACKBONES`.
    """

    size_multiple = SIZE_MULTIPLE

    def __init__(self, backbone: str, legend: Legend, pretrained: bool = False) -> None:
        super().__init__()
        self.backbone, self.legend = backbone, legend
        self.encoder = BACKBONES[backbone].encoder(pretrained)
        self.decoder = BACKBONES[backbone].decoder(self.encoder.pyramid_channels, legend.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, K, H, W]``."""
        logits: Tensor = self.decoder(self.encoder.pyramid(images))
        return logits

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Most likely class of every pixel: int64 ``[B, H, W]``, 1…K."""
        classes: Tensor = self(images).argmax(1) + 1
        return classes

    def freeze(self, levels: int) -> None:
        """Keep the finest ``levels`` of a backbone that was trained elsewhere as they are."""
        if isinstance(self.encoder, PlainEncoder):
            raise ValueError("a backbone of random weights has nothing to keep")
        self.encoder.freeze(levels)

    def save(self, folder: Path, half_precision: bool = False) -> None:
        """Write a segmenter folder, whole; ``half_precision``: kernels in float16, which halves it (normalisations and
        biases, few and of any size, stay as they are)."""
        weights = {k: v.contiguous() for k, v in self.state_dict().items()}
        if half_precision:
            weights = {k: v.half() if v.dim() == 4 else v for k, v in weights.items()}
        description = {"format": FORMAT, "format_version": FORMAT_VERSION, "backbone": self.backbone}
        with atomic_folder(folder, "segmenter.json") as part:
            self.legend.save(part / "legend.json")
            (part / "model.safetensors").write_bytes(save(weights))
            (part / "segmenter.json").write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Segmenter:
        """Read a segmenter folder; :class:`ModelError` naming it if it is not one."""
        description = read_description(folder / "segmenter.json", FORMAT, FORMAT_VERSION)
        backbone = description.get("backbone")
        if not isinstance(backbone, str) or backbone not in BACKBONES:
            raise ModelError(f"{folder}: not a readable segmenter (backbone {backbone!r:.80}; {', '.join(BACKBONES)})")
        net = cls(backbone, Legend.load(folder / "legend.json"))
        file = folder / "model.safetensors"
        load_weights(net, read_safetensors(file), file, "the segmenter")
        return net.eval()


def of_any_size(net: nn.Module, images: Tensor) -> Tensor:
    """What ``net`` gives for images ``[B, C, H, W]`` of any size, continued at their right and lower border →
    ``[B, K, H, W]``."""
    height, width = images.shape[2:]
    padded = F.pad(images, (0, -width % SIZE_MULTIPLE, 0, -height % SIZE_MULTIPLE), mode="replicate")
    found: Tensor = net(padded.contiguous(memory_format=torch.channels_last))
    return found[..., :height, :width]
