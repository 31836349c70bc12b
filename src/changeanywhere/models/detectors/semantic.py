"""Semantic change detectors: what has changed, and what it was and is.

``semantic_unet_lite0`` is ours, the plain baseline of the field (SSCD-l of Ding et al. 2022, arXiv:2108.06103) on what
``siam_unet_lite0`` has: a Siamese encoder, one decoder and one head for the classes of either date, and for change a
decoder of its own on both dates' mean and difference.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from changeanywhere.errors import LegendError
from changeanywhere.legend import Legend, load_legend, load_legend_map
from changeanywhere.models.detectors.base import Detector, FCNHead
from changeanywhere.models.detectors.siam_unet import WIDTHS, SiamUNetLite0, blocks, decoded

FIRST_LEGEND = "mini"
"""Of a detector that has been told no other."""


class SemanticDetector(Detector):
    """A detector that also says the class of the ground at each date.

    :meth:`forward` and :meth:`heads` give change alone, as of every detector; a subclass adds
    :meth:`semantic_heads`, and has ``semantic_head``, whose last layer ``conv_seg`` is a 1×1 convolution to the K
    classes of :attr:`legend`.
    """

    semantic_head: FCNHead

    def __init__(self) -> None:
        super().__init__()
        self.legend = load_legend(FIRST_LEGEND)
        """Classes 1…K of the semantic logits, in their order."""

    @abstractmethod
    def semantic_heads(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`Detector.heads`: logits of change ``[B, 2, h, w]``, then of the classes of date 1 and of date 2
        ``[B, K, h, w]``."""

    def semantic_logits(self, image_t1: Tensor, image_t2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images ``[B, in_channels, H, W]`` in [-1, 1] → logits of change ``[B, 2, H, W]``, and of the classes of both
        dates ``[B, K, H, W]`` (channel 0 is class 1: unknown is no class)."""
        change, first, second = self.at_full_size(self.semantic_heads, image_t1, image_t2)
        return change, first, second

    def adopt(self, legend: Legend) -> list[str]:
        """Speak of the classes of ``legend`` from now on; returns those that begin at random.

        A class begins as the mean of the rows of the former classes that mean it, by their names or by one of the
        package's legend maps.
        """
        if legend.classes == self.legend.classes:
            self.legend = legend
            return []
        before = self.semantic_head.conv_seg
        after = nn.Conv2d(before.in_channels, legend.num_classes, 1).to(before.weight.device)
        assert before.bias is not None and after.bias is not None
        sources, fresh = counterparts(self.legend, legend), []
        with torch.no_grad():
            for place, name in enumerate(legend.names):
                if sources[place]:
                    after.weight[place] = before.weight[sources[place]].mean(0)
                    after.bias[place] = before.bias[sources[place]].mean()
                else:
                    fresh.append(name)
        self.semantic_head.conv_seg, self.legend = after, legend
        return fresh


class SemanticUNetLite0(SiamUNetLite0, SemanticDetector):
    """Logits at half the images' size. Its change is that of ``siam_unet_lite0``; an exchange of dates exchanges the
    classes and changes nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.semantic_decoder = blocks(self.backbone.pyramid_channels)
        self.semantic_head = FCNHead(WIDTHS[0], num_classes=self.legend.num_classes)
        self.semantic_head.conv_seg.reset_parameters()

    def semantic_heads(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`SemanticDetector.semantic_heads`."""
        both = self.pyramid_of(first, second)
        one, two = self.semantic_head(decoded(self.semantic_decoder, both)).chunk(2)
        return self.change_of(both), one, two


def counterparts(source: Legend, target: Legend) -> list[list[int]]:
    """For each class of ``target``, the places of the classes of ``source`` that mean it: by a map of the package, else
    by equal names; empty for those that ``source`` does not know."""
    try:
        table = load_legend_map(source, target, None).table
    except LegendError:
        return [[source.names.index(name)] if name in source.names else [] for name in target.names]
    return [[c.index - 1 for c in source.classes if table[c.index] == there.index] for there in target.classes]
