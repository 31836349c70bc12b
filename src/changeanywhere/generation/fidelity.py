"""Which painted pairs show what their masks say: a second network reads them, and poor ones are scored, dropped or
painted again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from changeanywhere.errors import ConfigError, LegendError
from changeanywhere.generation.options import FilterOptions
from changeanywhere.legend import Legend, Mask
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.info import find_segmenter
from changeanywhere.models.segmenter import SIZE_MULTIPLE, Segmenter
from changeanywhere.painters.base import Batch, Painter, Painting
from changeanywhere.sample import ChangeMask, ChangePlan
from changeanywhere.seeds import pair_seed

EROSION = 2
"""Pixels at the border of changed ground that are nobody's; small changes are read whole."""


class FidelityFilter:
    """A segmenter (a name or folder) that reads changed ground. :class:`LegendError` if it knows other classes than the
    model."""

    def __init__(self, model: Path, legend: Legend, tile_size: int, device: torch.device) -> None:
        self.net = channels_last(Segmenter.load(find_segmenter(model)).to(device))
        self.device = device
        if self.net.legend.names != legend.names:
            known, asked = ", ".join(self.net.legend.names), ", ".join(legend.names)
            raise LegendError(f"{model}: the filter knows {known}; the model has {asked}")
        if tile_size % SIZE_MULTIPLE:
            raise ConfigError(f"tile_size is {tile_size}; the filter allows multiples of {SIZE_MULTIPLE}")

    def scores(self, images: Tensor, plans: Sequence[ChangePlan]) -> list[float | None]:
        """Images ``[B, C, H, W]`` in [-1, 1], red, green, blue first → share of each pair's changed ground that is
        read as its new class; None where nothing changed."""
        pixels = images[:, :3].clamp(-1, 1).to(self.device, memory_format=torch.channels_last)
        read = self.net.read(pixels).cpu().numpy()
        return [
            changed_recall(plan.mask_t2, plan.change_mask, classes) for plan, classes in zip(plans, read, strict=True)
        ]


class Filtered:
    """A painter whose poor pairs are marked, left out, or painted again with other noise, as the options say."""

    def __init__(self, painter: Painter, reader: FidelityFilter, options: FilterOptions) -> None:
        self._painter, self._reader, self._options = painter, reader, options

    def paint(self, batch: Batch) -> list[Painting]:
        """See :class:`Painter`."""
        kept = {painting.place: painting for painting in self._scored(self._painter.paint(batch))}
        for attempt in range(1, self._options.attempts if self._options.action == "resample" else 1):
            poor = [place for place, painting in kept.items() if self._is_poor(painting)]
            if not poor:
                break
            seeds = [pair_seed(batch.seeds[place], "attempt", attempt) for place in poor]
            for other in self._scored(self._painter.paint(batch.again(poor, seeds))):
                place = poor[other.place]
                if (other.score or 0) > (kept[place].score or 0):  # whole: with its own plan and donors
                    kept[place] = replace(other, place=place, attempt=attempt)
        if self._options.action == "score":
            return list(kept.values())
        return [painting for painting in kept.values() if not self._is_poor(painting)]

    def _scored(self, paintings: list[Painting]) -> list[Painting]:
        if not paintings:
            return []
        images = np.stack([painting.image_t2 for painting in paintings])
        scores = self._reader.scores(
            torch.from_numpy(images).permute(0, 3, 1, 2), [painting.plan for painting in paintings]
        )
        return [replace(painting, score=score) for painting, score in zip(paintings, scores, strict=True)]

    def _is_poor(self, painting: Painting) -> bool:
        return painting.score is not None and painting.score < self._options.min_score


def changed_recall(mask_t2: Mask, change_mask: ChangeMask, read: np.ndarray) -> float | None:
    """Share of changed ground, without a border of :data:`EROSION` px, where ``read`` is the class of ``mask_t2``."""
    if not change_mask.any():
        return None
    inside = ndimage.binary_erosion(change_mask, iterations=EROSION)
    where = inside if inside.any() else change_mask
    return round(float((read[where] == mask_t2[where]).mean()), 4)
