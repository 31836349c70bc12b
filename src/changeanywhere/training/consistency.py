"""Change detectors on pairs without labels, pixel by pixel as FixMatch (Sohn et al. 2020) does it for images.

A teacher reads a pair as it is, turned, cropped and mirrored alone (the weak view); what it is sure of is the label of
the same crop with the colours of each date changed on its own (the strong view). The teacher is a moving average of the
weights (Tarvainen & Valpola 2017) or the network itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset

from changeanywhere.errors import ConfigError, PairsError, require
from changeanywhere.models.detectors import Detector
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.pairs.unlabelled import UnlabelledPairs, open_images
from changeanywhere.sample import ChangePair, rgb8
from changeanywhere.seeds import stream
from changeanywhere.training.batches import StepSampler, outlive_sigterm
from changeanywhere.training.detection import IGNORE
from changeanywhere.training.ema import WeightAverage
from changeanywhere.training.pair_batches import (
    Array,
    Parts,
    RowsOfParts,
    TrainingPairs,
    augment,
    to_tensors,
)
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DetectorRecipe, RunRecipe
from changeanywhere.training.sections import count_beside
from changeanywhere.training.taught import photometric

STRENGTH = 1.0
"""Of the strong view's colours, see :func:`changeanywhere.training.taught.photometric`."""
Place = tuple[int, int, int]
"""Number of a pair, step, row."""


def open_unlabelled(
    recipe: DetectorRecipe, val: Sequence[ChangePair] | PairDataset | None = None
) -> UnlabelledPairs | None:
    """What ``recipe.unlabelled`` names; None where it names nothing. :class:`ConfigError` for a file that is of a
    validation pair too: weights are chosen on pairs that nothing was learned from."""
    split, most = recipe.unlabelled_split, recipe.max_megapixels
    pairs = UnlabelledPairs([open_images(folder, split, most) for folder in recipe.unlabelled])
    if isinstance(val, PairDataset):
        chosen_on = {file.resolve() for number in range(len(val)) for file in val.images_of(number)}
        for number in range(len(pairs)):
            inside, place = pairs.place_of(number)
            for file in inside.images_of(place):
                if file.resolve() in chosen_on:
                    what = "detector.unlabelled has it, which is a validation pair too; give its training split"
                    raise ConfigError(f"{file}: {what} (detector.unlabelled_split)")
    return pairs if len(pairs) else None


def rows_beside(recipe: DetectorRecipe, processes: Processes, kind: str = "unlabelled") -> range:
    """Which of a step's further rows (``unlabelled`` or ``rehearsed``) this process takes; :class:`ConfigError` where
    they cannot be divided."""
    share = recipe.unlabelled_share if kind == "unlabelled" else recipe.rehearsed_share
    count = count_beside(recipe.batch_size, share)
    what = f"a share that gives each of {processes.count} process(es) as many pairs, one or more; this gives {count}"
    require(count > 0 and count % processes.count == 0, f"detector.{kind}_share", share, what)
    return processes.rows(count, 1)


class UnlabelledViews(Dataset[tuple[Tensor, ...]]):
    """Both dates of a crop f32 ``[C, crop, crop]``, a label int64 ``[crop, crop]`` that is 0 where they show ground and
    :data:`IGNORE` elsewhere, and both dates with their colours changed."""

    def __init__(self, pairs: UnlabelledPairs, recipe: DetectorRecipe, seed: int, in_channels: int = 3) -> None:
        self.pairs, self.seed, self.in_channels = pairs, seed, in_channels
        self.recipe = replace(recipe, photometric=False, change_crops=0.0)

    def __getitem__(self, place: Place) -> tuple[Tensor, ...]:
        number, step, row = place
        rng = stream("training.unlabelled", self.seed, step, row)
        arrays = self._decoded(number)
        if min(arrays[2].shape) < self.recipe.crop_size:
            pairs, inside = self.pairs.place_of(number)
            what = f"{arrays[2].shape} px; detector.crop_size is {self.recipe.crop_size}"
            raise PairsError(f"{pairs.images_of(inside)[0]}: {what}")
        weak = to_tensors(*augment(*arrays, self.recipe, rng))
        generators = (torch.Generator().manual_seed(int(rng.integers(2**62))) for _ in range(2))
        strong = (photometric(image, STRENGTH, each) for image, each in zip(weak[:2], generators, strict=True))
        return *weak, *strong

    def _decoded(self, number: int) -> tuple[Array, Array, Array]:
        """Images and that label of a whole pair, decoded once where there is room."""
        pairs, inside = self.pairs.place_of(number)

        def made() -> tuple[Array, Array, Array]:
            pair = self.pairs[number]
            hidden = np.zeros(pair.change_mask.shape, bool) if pair.ignored is None else pair.ignored
            return *rgb8(pair, self.in_channels), np.where(hidden, IGNORE, 0).astype(np.uint8)

        key = str(pairs.folder), pairs.names[inside], self.in_channels, "unlabelled"
        first, second, label = pairs.kept.of(key, made)
        return first, second, label


def _side_by_side(rows: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Three tensors of the labelled rows, then five of the others."""
    kinds = ([row for row in rows if len(row) == count] for count in (3, 5))
    return tuple(torch.stack(column) for kind in kinds for column in zip(*kind, strict=True))


def batches_of_both(
    views: TrainingPairs, unlabelled: UnlabelledPairs, run: RunRecipe, first_step: int, rows: tuple[range, range]
) -> DataLoader[tuple[Tensor, ...]]:
    """As :func:`.pair_batches.training_batches`, whose rows stay what they are, with those of
    :class:`UnlabelledViews` behind them; ``rows``: of this process, labelled ones and others."""
    recipe, seed = views.recipe, run.seed
    beside = count_beside(recipe.batch_size, recipe.unlabelled_share)
    sizes = (len(views.pairs), recipe.batch_size), (len(unlabelled), beside)
    # Orders of their own: where all labels are used, a step would show the same pairs twice.
    samplers = [
        StepSampler(number, batch, seed + part, first_step, recipe.num_steps, own)
        for part, ((number, batch), own) in enumerate(zip(sizes, rows, strict=True))
    ]
    return DataLoader(
        Parts(views, UnlabelledViews(unlabelled, recipe, seed, views.in_channels)),
        batch_sampler=RowsOfParts(*samplers),
        collate_fn=_side_by_side,
        num_workers=run.num_workers,
        worker_init_fn=outlive_sigterm,
        pin_memory=torch.cuda.is_available(),
    )


@contextmanager
def statistics_kept(net: Detector) -> Iterator[None]:
    """What batch normalisation of ``net`` gathers stays as it is. Strong views are normalised by themselves and leave
    no trace in what predictions are normalised by: their colours are none that a pair to be read has."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class Teacher:
    """Says what changed in pairs without labels, as far as it is sure."""

    def __init__(self, net: Detector, recipe: DetectorRecipe) -> None:
        halflife = recipe.unlabelled_halflife_share
        self.net, self.confidence = net, recipe.unlabelled_confidence
        changed = recipe.unlabelled_confidence_changed
        self.confidence_changed = self.confidence if changed is None else changed
        self.average = WeightAverage(net, halflife) if halflife else None

    @torch.no_grad()
    def labels(self, first: Tensor, second: Tensor, hidden: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [-1, 1] and ``hidden`` int64 ``[B, H, W]``, :data:`IGNORE` where nothing is seen
        → int64 ``[B, H, W]``: 0, 1, and :data:`IGNORE` there and where neither is as probable as it must be."""
        training = self.net.training
        self.net.eval()  # with gathered statistics, which do not depend on the other crops
        weights = {} if self.average is None else self.average.weights
        logits: Tensor = functional_call(self.net, weights, (first, second))
        self.net.train(training)
        sure, found = logits.float().softmax(1).max(1)
        needed = torch.where(found == 1, self.confidence_changed, self.confidence)
        return torch.where((sure >= needed) & (hidden != IGNORE), found, IGNORE)

    def follow(self, step: int) -> None:
        """After optimiser step number ``step``."""
        if self.average is not None:
            self.average.update(self.net, step)


def weight_at(step: int, num_steps: int, recipe: DetectorRecipe) -> float:
    """Of the loss on unlabelled pairs at ``step``, counted from 0."""
    rising = recipe.unlabelled_ramp * num_steps
    return recipe.unlabelled_weight * min(1.0, (step + 1) / max(rising, 1.0))
