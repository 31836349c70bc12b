"""Which painted pairs show what their masks say: a second network reads them, and poor ones are scored, dropped or
painted again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from changeanywhere.errors import ConfigError, LegendError
from changeanywhere.legend import Legend, Mask
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.segmenter import SIZE_MULTIPLE, Segmenter
from changeanywhere.sample import ChangeMask, ChangePlan

EROSION = 2
"""Pixels at the border of changed ground that are nobody's; small changes are read whole."""


class FidelityFilter:
    """A segmenter that reads changed ground. :class:`LegendError` if it knows other classes than the model."""

    def __init__(self, folder: Path, legend: Legend, tile_size: int, device: torch.device) -> None:
        self.net = channels_last(Segmenter.load(folder).to(device))
        self.device = device
        if self.net.legend.names != legend.names:
            known, asked = ", ".join(self.net.legend.names), ", ".join(legend.names)
            raise LegendError(f"{folder}: the filter knows {known}; the model has {asked}")
        if tile_size % SIZE_MULTIPLE:
            raise ConfigError(f"tile_size is {tile_size}; the filter allows multiples of {SIZE_MULTIPLE}")
        self.hash = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]

    def scores(self, images: Tensor, plans: Sequence[ChangePlan]) -> list[float | None]:
        """Images ``[B, C, H, W]`` in [-1, 1], red, green, blue first → share of each pair's changed ground that is
        read as its new class; None where nothing changed."""
        pixels = images[:, :3].clamp(-1, 1).to(self.device, memory_format=torch.channels_last)
        read = self.net.read(pixels).cpu().numpy()
        return [
            changed_recall(plan.mask_t2, plan.change_mask, classes) for plan, classes in zip(plans, read, strict=True)
        ]


def changed_recall(mask_t2: Mask, change_mask: ChangeMask, read: np.ndarray) -> float | None:
    """Share of changed ground, without a border of :data:`EROSION` px, where ``read`` is the class of ``mask_t2``."""
    if not change_mask.any():
        return None
    inside = ndimage.binary_erosion(change_mask, iterations=EROSION)
    where = inside if inside.any() else change_mask
    return round(float((read[where] == mask_t2[where]).mean()), 4)
