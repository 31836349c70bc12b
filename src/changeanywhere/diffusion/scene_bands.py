"""A painted scene from top to bottom, in bands: windows and patches put together, and how much of date 1 stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from changeanywhere.diffusion.canvas import Blend, contrast, weights, with_contrast
from changeanywhere.diffusion.scene import Batch, ScenePainter
from changeanywhere.diffusion.scene_groups import BAND, Group, Pixels, in_pixels
from changeanywhere.diffusion.scene_windows import CODES
from changeanywhere.models.info import DOWNSAMPLING

FEATHER = 8
"""Pixels from the change over which painted ground passes into pasted ground."""
TRACE = 1e-3
"""Share below which a place is not covered."""


@dataclass(frozen=True)
class Band:
    """Rows of a second date."""

    row: int
    image: Pixels
    """float32 ``[h, W, C]`` in [-1, 1]."""
    share: Pixels
    """Of ``image`` in the result, float32 ``[h, W]``; where it is 0, date 1 stays bit for bit."""


def paint_everywhere(painter: ScenePainter) -> Iterator[Band]:
    """All of the scene with its free tail: unchanged ground gets another light, and is no date 1 any more."""
    plane, (height, width) = painter.plane, painter.view.shape
    weight = weights(plane, DOWNSAMPLING)
    rows: _Rows | None = None
    done = 0
    for (row, column), part in painter.whole():
        if rows is None or rows.top != row * DOWNSAMPLING:
            shape = len(part), plane.side * DOWNSAMPLING, plane.width * DOWNSAMPLING
            following = _Rows(row * DOWNSAMPLING, shape, painter.is_attentive)
            if rows is not None:
                following.take_over(rows)
                yield from rows.finished(done, min(following.top, height), width)
                done = max(done, following.top)
            rows = following
        rows.add(column * DOWNSAMPLING, part.float() / CODES, weight)
    assert rows is not None
    yield from rows.finished(done, height, width)


class _Rows:
    """Sums of a row of windows that begins at pixel row ``top``; with ``contrast`` also those of the windows' own."""

    def __init__(self, top: int, shape: tuple[int, int, int], keeps_contrast: bool) -> None:
        self.top, self._keeps = top, keeps_contrast
        self._sums = {name: torch.zeros(shape) for name in ("pixels", "contrast")[: 1 + keeps_contrast]}
        self._sums |= {name: torch.zeros(1, *shape[1:]) for name in ("weight", "square")[: 1 + keeps_contrast]}

    def take_over(self, before: _Rows) -> None:
        """What the row before gives to this one."""
        for name, own in self._sums.items():
            shared = before.top + own.shape[1] - self.top
            own[:, :shared] = before._sums[name][:, -shared:]

    def add(self, left: int, part: Tensor, weight: Tensor) -> None:
        """A window ``[C, side, side]`` whose first pixel column is ``left``; what lies beyond is cut off."""
        side, width = part.shape[2], self._sums["weight"].shape[2]
        into, of = slice(max(left, 0), min(left + side, width)), slice(max(-left, 0), min(side, width - left))
        given = {"pixels": part * weight, "weight": weight[None]}
        if self._keeps:
            given |= {"contrast": contrast(part) * weight, "square": weight[None].square()}
        for name, own in self._sums.items():
            own[..., into] += given[name][..., of]

    def finished(self, first: int, last: int, width: int) -> Iterator[Band]:
        """Pixel rows ``first`` to ``last`` of the scene, to which no other window gives."""
        if first >= last:
            return
        sums = {name: own[:, first - self.top : last - self.top, :width] for name, own in self._sums.items()}
        total = sums["weight"].clamp(min=1e-9)
        pixels = sums["pixels"] / total
        if self._keeps:
            shared = (2 - 2 * sums["square"] / total.square()).clamp(0, 1)
            pixels = with_contrast(pixels, sums["contrast"] / total, shared)
        image = pixels.permute(1, 2, 0).clamp(-1, 1).numpy().astype(np.float32)
        yield Band(first, image, np.ones(image.shape[:2], np.float32))


def paint_changes(painter: ScenePainter, paste_back: bool) -> Iterator[Band]:
    """What changed, and date 1 bit for bit around it: beyond 8 px of the change (``paste_back``), or beyond the windows
    that were painted."""
    height, width = painter.view.shape
    for _ in painter.patches(painter.batches):
        pass  # all are painted, whichever band needs them first
    loaded: dict[int, Tensor] = {}
    for top in range(0, height, BAND):
        rows = min(BAND, height - top)
        here = [n for n, batch in enumerate(painter.batches) if any(_reaches(g, top, rows) for g in batch.groups)]
        loaded = {n: loaded[n] if n in loaded else next(iter(painter.patches([painter.batches[n]]))) for n in here}
        yield _composed(painter, [(painter.batches[n], loaded[n]) for n in here], (top, rows, width), paste_back)


def _reaches(group: Group, top: int, rows: int) -> bool:
    row, _, tall, _ = in_pixels(group.region)
    return row < top + rows and row + tall > top


def _composed(
    painter: ScenePainter, patches: Sequence[tuple[Batch, Tensor]], band: tuple[int, int, int], paste_back: bool
) -> Band:
    top, rows, width = band
    total, share = np.zeros((rows, width), np.float32), np.zeros((rows, width), np.float32)
    channels = patches[0][1].shape[1] if patches else 1
    image = np.zeros((rows, width, channels), np.float32)
    for group, patch in ((g, p) for batch, parts in patches for g, p in zip(batch.groups, parts, strict=True)):
        row, column, tall, wide = in_pixels(group.region)
        first, last = max(row, top), min(row + tall, top + rows)
        left, right = max(column, 0), min(column + wide, width)
        if first >= last or left >= right:
            continue
        of = (slice(first - row, last - row), slice(left - column, right - column))
        into = (slice(first - top, last - top), slice(left, right))
        weight = _weight_of(painter, group, paste_back)[of]
        image[into] += weight[..., None] * patch[:, *of].permute(1, 2, 0).float().numpy() / CODES
        total[into] += weight
        share[into] = np.maximum(share[into], weight)
    image /= np.maximum(total, 1e-9)[..., None]
    return Band(top, image, share)


def _weight_of(painter: ScenePainter, group: Group, paste_back: bool) -> Pixels:
    """How much of a group's patch is in the result: float32 of its region, 0 on ground of other groups."""
    others = np.kron(painter.changes.others(group), np.ones((DOWNSAMPLING, DOWNSAMPLING), bool))
    changed = painter.view.change(in_pixels(group.region)) & ~others
    weight = np.clip(1 - ndimage.distance_transform_edt(~changed) / FEATHER, 0, 1).astype(np.float32)
    if not paste_back:  # all that the windows show, and what changed wholly, also where it is near their border
        blend = Blend(1, painter.part_of(group), DOWNSAMPLING)
        side = group.whole.side * DOWNSAMPLING
        for corner in group.whole.corners:
            blend.add(corner, torch.zeros(1, side, side))
        covered = blend.share.numpy()
        weight = np.maximum(weight, np.where(covered > TRACE, covered, 0).astype(np.float32))
    result: Pixels = np.where(others, np.float32(0), weight)
    return result
