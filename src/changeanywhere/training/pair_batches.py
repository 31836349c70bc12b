"""Pairs for change detectors: labels, paired augmentation, and what a step sees as a function of (seed, step) alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from changeanywhere.errors import PairsError
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.pairs.semantics import classes_of
from changeanywhere.sample import ChangePair, rgb8
from changeanywhere.seeds import stream
from changeanywhere.training.batches import StepSampler, loaded, outlive_sigterm
from changeanywhere.training.detection import IGNORE
from changeanywhere.training.recipe import DetectorRecipe, RunRecipe
from changeanywhere.training.sections import count_beside

Array = npt.NDArray[np.uint8]
CROP_ATTEMPTS = 10
MAX_CLASS_SHARE = 0.75
"""A crop of whose known ground one class takes more, or that knows nothing, is drawn again, :data:`CROP_ATTEMPTS` times
at most; one that knows something is taken before one that knows nothing."""


def label_of(pair: ChangePair) -> Array:
    """uint8 ``[H, W]``: 0, 1, and :data:`IGNORE` where a semantic mask, of either date, is unknown or the label says
    nothing. Whichever date comes first."""
    label = pair.change_mask.astype(np.uint8)
    if pair.ignored is not None:
        label[pair.ignored] = IGNORE
    for mask in (pair.mask_t1, pair.mask_t2):
        if mask is not None:
            label[mask == 0] = IGNORE
    return label


def to_tensors(first: Array, second: Array, label: Array) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 ``[H, W, C]`` → float32 ``[C, H, W]`` in [-1, 1]; label uint8 ``[H, W]`` → int64 ``[H, W]``, with
    classes ``[H, W, 3]`` → ``[3, H, W]``."""
    label = label.transpose(2, 0, 1) if label.ndim == 3 else label
    scaled = [np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / 127.5 - 1 for image in (first, second)]
    return torch.from_numpy(scaled[0]), torch.from_numpy(scaled[1]), torch.from_numpy(label.astype(np.int64))


class TrainingPairs(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Augmented pairs: rotation, crop, flips, colours of each date on its own, exchange of dates; in this order."""

    def __init__(
        self,
        pairs: Sequence[ChangePair] | PairDataset,
        recipe: DetectorRecipe,
        seed: int,
        in_channels: int = 3,
        semantic: bool = False,
    ) -> None:
        self.pairs, self.recipe, self.seed, self.in_channels = pairs, recipe, seed, in_channels
        self.semantic = semantic

    def __getitem__(self, place: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
        number, step, row = place
        arrays = decoded(self.pairs, number, self.in_channels, self.semantic)
        if min(arrays[2].shape[:2]) < self.recipe.crop_size:
            raise PairsError(
                f"{self.pairs[number].key}: {arrays[2].shape[:2]} px; detector.crop_size is {self.recipe.crop_size}"
            )
        return to_tensors(*augment(*arrays, self.recipe, stream("training.augment", self.seed, step, row)))


def decoded(
    pairs: Sequence[ChangePair] | PairDataset, number: int, in_channels: int, semantic: bool = False
) -> tuple[Array, Array, Array]:
    """Images uint8 ``[H, W, in_channels]`` and label uint8 ``[H, W]`` of a pair, once decoded where there is room.

    ``semantic``: label uint8 ``[H, W, 3]``, change and the classes of both dates in the set's legend.
    """

    def made() -> tuple[Array, Array, Array]:
        pair = pairs[number]
        return *rgb8(pair, in_channels), labels_of(pairs, number, pair) if semantic else label_of(pair)

    if not isinstance(pairs, PairDataset):
        return made()
    first, second, label = pairs.kept.of((pairs.names[number], in_channels, semantic), made)
    return first, second, label


def labels_of(pairs: Sequence[ChangePair] | PairDataset, number: int, pair: ChangePair) -> Array:
    """uint8 ``[H, W, 3]``: :func:`label_of`, and the classes of both dates, 0 = unknown."""
    if not isinstance(pairs, PairDataset):
        raise PairsError(f"{pair.key}: is in memory, without a legend of its classes; allowed: a set on disk")
    return np.stack([label_of(pair), *classes_of(pairs, number, pair)], -1)


def augment(
    first: Array, second: Array, label: Array, recipe: DetectorRecipe, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """One random view; images uint8 ``[crop, crop, C]``, label uint8 ``[crop, crop]`` or ``[crop, crop, 3]``."""
    if recipe.rotate_degrees and rng.random() < 0.5:
        angle = float(rng.uniform(-recipe.rotate_degrees, recipe.rotate_degrees))
        outside = IGNORE if label.ndim == 2 else (IGNORE, 0, 0)
        label = np.asarray(Image.fromarray(label).rotate(angle, Image.Resampling.NEAREST, fillcolor=outside))
        window = _crop(_change(label), recipe, rng)
        first, second = (rotated(image, angle, window) for image in (first, second))
    else:
        window = _crop(_change(label), recipe, rng)
        first, second = first[window], second[window]
    label = label[window]
    for axis in (0, 1):
        if recipe.flip and rng.random() < 0.5:
            first, second, label = (np.flip(array, axis) for array in (first, second, label))
    if recipe.photometric:
        first, second = (distort_colours(np.ascontiguousarray(image), rng) for image in (first, second))
    if recipe.exchange_dates and rng.random() < 0.5:
        first, second = second, first
        label = label if label.ndim == 2 else label[..., [0, 2, 1]]
    return first, second, label


def _change(label: Array) -> Array:
    return label if label.ndim == 2 else label[..., 0]


def rotated(image: Array, degrees: float, window: tuple[slice, slice]) -> Array:
    """``window`` of uint8 ``[H, W, C]`` turned about its centre, bilinearly, black outside: the crop of what
    ``Image.rotate`` gives, without turning the rest."""
    if image.ndim == 3 and image.shape[2] != 3:  # to Pillow a fourth band is transparency
        return np.stack([rotated(image[..., band], degrees, window) for band in range(image.shape[2])], -1)
    rows, columns = window
    centre = np.array([image.shape[1] / 2, image.shape[0] / 2])
    cosine, sine = math.cos(-math.radians(degrees)), math.sin(-math.radians(degrees))
    turn = np.array([[cosine, sine], [-sine, cosine]])
    x, y = turn @ (np.array([columns.start, rows.start]) - centre) + centre
    size = columns.stop - columns.start, rows.stop - rows.start
    affine = (cosine, sine, float(x), -sine, cosine, float(y))
    return np.asarray(Image.fromarray(image).transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))


def _crop(label: Array, recipe: DetectorRecipe, rng: np.random.Generator) -> tuple[slice, slice]:
    (height, width), size = label.shape, recipe.crop_size
    if recipe.change_crops and rng.random() < recipe.change_crops and (label == 1).any():
        # Any window that holds a changed pixel drawn at random, that pixel anywhere in it.
        places = np.argwhere(label == 1)
        row, column = places[rng.integers(len(places))] - rng.integers(size, size=2)
        top, left = (int(np.clip(at, 0, side - size)) for at, side in ((row, height), (column, width)))
        return slice(top, top + size), slice(left, left + size)
    chosen = slice(0, size), slice(0, size)
    for attempt in range(CROP_ATTEMPTS):
        top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        window = slice(top, top + size), slice(left, left + size)
        counts = np.bincount(label[window].ravel(), minlength=2)[:2]
        if counts.any() or not attempt:
            chosen = window
        if (height, width) == (size, size) or 0 < counts.max() <= MAX_CLASS_SHARE * counts.sum():
            break
    return chosen


def distort_colours(image: Array, rng: np.random.Generator) -> Array:
    """Brightness ±10, contrast, saturation and hue (0.8 to 1.2, 0.8 to 1.2, ±10°), each with probability one half;
    saturation and hue of three bands only."""
    result: npt.NDArray[Any] = image.astype(np.float32)
    if rng.random() < 0.5:
        result = result + rng.uniform(-10, 10)
    if rng.random() < 0.5:
        result = result * rng.uniform(0.8, 1.2)
    result = np.clip(result, 0, 255)
    if image.shape[2] != 3:
        distorted: Array = np.rint(result).astype(np.uint8)
        return distorted
    if rng.random() < 0.5:
        colours = ImageEnhance.Color(Image.fromarray(result.astype(np.uint8)))
        result = np.asarray(colours.enhance(float(rng.uniform(0.8, 1.2))), np.float32)
    if rng.random() < 0.5:
        result = np.asarray(turn_hue(np.rint(result).astype(np.uint8), float(rng.uniform(-10, 10))), np.float32)
    distorted = np.rint(result).astype(np.uint8)
    return distorted


def turn_hue(image: Array, degrees: float) -> Array:
    """uint8 ``[H, W, 3]``; saturation and value stay. In 8 bits (1.4° per step): a tenth of what floating
    point takes, which was a third of a sample's time."""
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    step = round(degrees * 256 / 360)
    turned = hue.point([(level + step) % 256 for level in range(256)])
    return np.asarray(Image.merge("HSV", (turned, saturation, value)).convert("RGB"))


class WholePairs(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Pairs as they are."""

    def __init__(self, pairs: Sequence[ChangePair] | PairDataset, in_channels: int, semantic: bool = False) -> None:
        self.pairs, self.in_channels, self.semantic = pairs, in_channels, semantic

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        return to_tensors(*decoded(self.pairs, number, self.in_channels, self.semantic))


def whole_batches(
    pairs: Sequence[ChangePair] | PairDataset,
    batch_size: int,
    in_channels: int = 3,
    num_workers: int = 0,
    semantic: bool = False,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Whole pairs as they are, in their order, for validation and test; at most ``batch_size`` of one size together.

    What a reading process raises comes as :func:`.batches.loaded` has it: in one line.
    """
    held: list[tuple[Tensor, Tensor, Tensor]] = []
    read = WholePairs(pairs, in_channels, semantic)
    loader = DataLoader(read, batch_size=None, num_workers=num_workers, worker_init_fn=outlive_sigterm)
    with closing(loaded(loader)) as each:
        for tensors in each:
            if held and (len(held) == batch_size or held[0][2].shape != tensors[2].shape):
                yield _stacked(held)
                held = []
            held.append(tensors)
    if held:
        yield _stacked(held)


def _stacked(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    first, second, labels = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
    return first, second, labels


def training_batches(
    pairs: Sequence[ChangePair] | PairDataset,
    recipe: DetectorRecipe,
    run: RunRecipe,
    first_step: int,
    rows: range,
    in_channels: int = 3,
    semantic: bool = False,
) -> DataLoader[tuple[Tensor, Tensor, Tensor]]:
    """Loader of the ``rows`` of each batch from ``first_step`` on."""
    return DataLoader(
        TrainingPairs(pairs, recipe, run.seed, in_channels, semantic),
        batch_sampler=StepSampler(len(pairs), recipe.batch_size, run.seed, first_step, recipe.num_steps, rows),
        num_workers=run.num_workers,
        worker_init_fn=outlive_sigterm,
        pin_memory=torch.cuda.is_available(),
    )


class Parts(Dataset[tuple[Tensor, ...]]):
    """Rows of several kinds, by the kind and the place in a step."""

    def __init__(self, *parts: Dataset[tuple[Tensor, ...]]) -> None:
        self.parts = parts

    def __getitem__(self, place: tuple[int, tuple[int, int, int]]) -> tuple[Tensor, ...]:
        part, inside = place
        return self.parts[part][inside]


class RowsOfParts(Sampler[list[tuple[int, tuple[int, int, int]]]]):
    """The rows of a step from several samplers, one after the other, each with the number of its sampler."""

    def __init__(self, *parts: StepSampler) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, int, int]]]]:
        for rows in zip(*self.parts, strict=True):
            yield [(part, place) for part, places in enumerate(rows) for place in places]

    def __len__(self) -> int:
        return len(self.parts[0])


def batches_beside(
    pairs: TrainingPairs, rehearsed: TrainingPairs, run: RunRecipe, first_step: int, rows: tuple[range, range]
) -> DataLoader[tuple[Tensor, ...]]:
    """As :func:`training_batches`, whose rows stay what they are, with rows of ``rehearsed`` behind them; ``rows``: of
    this process, of either."""
    recipe, seed = pairs.recipe, run.seed
    counts = recipe.batch_size, count_beside(recipe.batch_size, recipe.rehearsed_share)
    samplers = [
        StepSampler(len(part.pairs), count, seed + number, first_step, recipe.num_steps, own)
        for number, (part, count, own) in enumerate(zip((pairs, rehearsed), counts, rows, strict=True))
    ]
    return DataLoader(
        Parts(pairs, rehearsed),
        batch_sampler=RowsOfParts(*samplers),
        num_workers=run.num_workers,
        worker_init_fn=outlive_sigterm,
        pin_memory=torch.cuda.is_available(),
    )
