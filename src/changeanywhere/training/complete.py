"""What is less than a class, and more than nothing: ground that is none of some classes (unknown ground of folders in
which every object of these is drawn, and date 1 of ground that became one), and ground that is one of them at both
dates or at neither."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from changeanywhere.errors import ConfigError
from changeanywhere.legend import Mask
from changeanywhere.sample import SourceSample
from changeanywhere.sources import JoinedSource, Source
from changeanywhere.training.evidence import Evidence
from changeanywhere.training.recipe import DataRecipe

SAME = 1000
"""A learned mask is -(SAME + s) on ground of which the classes of set s are at both dates, or at neither."""


class Complete:
    """What ``data.complete`` and ``data.evidence`` say of the tiles of ``source``, as a training opened it.

    :class:`ConfigError` naming a folder that is none of ``data.source`` and ``data.further``, or a class that its masks
    cannot hold, or beside which no class is left.
    """

    def __init__(self, source: Source, data: DataRecipe) -> None:
        parts = source.parts if isinstance(source, JoinedSource) else (source,)
        self._starts = source.starts if isinstance(source, JoinedSource) else [0]
        self._margin, self._set_of_part = data.complete_margin, [0] * len(parts)
        folders = [Path(folder) for folder in (data.source, *data.further)]
        rows = [torch.zeros(source.legend.num_classes, dtype=torch.bool)]
        for folder, names in data.complete.items():
            places = [place for place, each in enumerate(folders) if each == Path(folder)]
            if not places:
                allowed = ", ".join(str(each) for each in folders)
                raise ConfigError(f"data.complete: {folder} is not read; allowed: {allowed}")
            for place in places:
                rows.append(_none_of(folder, names, parts[place]))
                self._set_of_part[place] = len(rows) - 1
        self._parts = parts
        for place, part in enumerate(parts):
            if isinstance(part, Evidence):
                rows.append(torch.tensor([name == part.became for name in source.legend.names]))
                self._set_of_part[place] = len(rows) - 1
        self.sets = torch.stack(rows)
        """bool ``[S + 1, K]``: the classes of set 1…S, one for each complete folder and each of evidence; 0 has
        none."""

    def masks(self, tile: int, mask: Mask) -> npt.NDArray[np.int64]:
        """The mask ``[H, W]`` of a tile as it is learned from: -s on ground that is none of the classes of set s.

        In a complete folder that is unknown ground more than ``data.complete_margin`` px from these classes.
        """
        learned = mask.astype(np.int64)
        number = self._set_of_part[self._part_of(tile)]
        if number:
            none = mask == 0
            drawn = np.isin(mask, np.flatnonzero(self.sets[number].numpy()) + 1)
            if self._margin and drawn.any():
                none &= ndimage.distance_transform_edt(~drawn) > self._margin
            learned[none] = -number
        return learned

    def dates(self, tile: int) -> list[tuple[SourceSample, npt.NDArray[np.int64]]]:
        """Both dates of a tile that is evidence, each with its mask ``[H, W]`` as it is learned from; [] of others.

        Where something changed, date 2 is the class and date 1 none of it (-s); where the label says that nothing did,
        both are -(SAME + s).
        """
        place = self._part_of(tile)
        part, number = self._parts[place], self._set_of_part[place]
        if not isinstance(part, Evidence):
            return []
        first, second, known = part.read_both(tile - self._starts[place])
        other = np.where(known, -(SAME + number), 0)
        return [
            (sample, np.where(sample.mask > 0, learned, other).astype(np.int64))
            for sample, learned in ((first, -number), (second, second.mask.astype(np.int64)))
        ]

    def _part_of(self, tile: int) -> int:
        return int(np.searchsorted(self._starts, tile, side="right")) - 1


def _none_of(folder: str, names: Sequence[str], part: Source) -> Tensor:
    """Of each class of the legend, whether it is one of ``names``."""
    reached = None if part.mapping is None else set(part.mapping.table[[c.index for c in part.mapping.source.classes]])
    drawn = [c.name for c in part.legend.classes if reached is None or c.index in reached]
    wrong = [name for name in names if name not in drawn]
    if wrong or not names:
        found = wrong[0] if wrong else "no class"
        raise ConfigError(f"data.complete: {folder}: {found}; allowed: what its masks can hold: {', '.join(drawn)}")
    chosen = torch.tensor([name in names for name in part.legend.names])
    if chosen.all():
        raise ConfigError(f"data.complete: {folder}: {', '.join(names)}; allowed: fewer than all classes of the legend")
    return chosen


def none_of_loss(logits: Tensor, masks: Tensor, sets: Tensor) -> Tensor:
    """Sum of -log(1 - p(classes of set s)) where masks int64 ``[B, H, W]`` are -s, of logits ``[B, K, H, W]`` → scalar.

    Its gradient reaches the logits of these classes alone: which of the others it is, nobody said.
    ``sets``: bool ``[S + 1, K]``, of :class:`Complete`.
    """
    where = (masks < 0) & (masks > -SAME)
    return F.softplus(_log_odds(logits, where, sets[-masks[where]])).sum()


def same_loss(logits: Tensor, masks: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log(p₁p₂ + (1 - p₁)(1 - p₂)) over ground that is -(SAME + s) at both dates, p of the classes of set s,
    and how much ground that is.

    The upper half of a crop is date 1 and the lower one date 2 (:class:`~.batches.CropDataset`): the likelihood of a
    label that says no change, of two dates that are read each for itself. Arguments as of :func:`none_of_loss`.
    """
    half = masks.shape[1] // 2
    upper, lower = masks[:, :half], masks[:, half : 2 * half]
    where = (upper <= -SAME) & (lower <= -SAME)
    inside = sets[-upper[where] - SAME]
    one, two = (_log_odds(dates, where, inside) for dates in (logits[:, :, :half], logits[:, :, half : 2 * half]))
    return (F.softplus(one) + F.softplus(two) - F.softplus(one + two)).sum(), where.sum()


def _log_odds(logits: Tensor, where: Tensor, inside: Tensor) -> Tensor:
    """log(p / (1 - p)) of the classes ``inside`` ``[N, K]``, at each of the N places of ``where``."""
    scores = logits.float().movedim(1, -1)[where]
    of_set = scores.masked_fill(~inside, -torch.inf).logsumexp(1)
    return of_set - scores.detach().masked_fill(inside, -torch.inf).logsumexp(1)
