"""What would end a training later is said before the first one: warm-ups, crops, batches, files of backbones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from changeanywhere.benchmark.options import BenchmarkOptions
from changeanywhere.benchmark.trainings import Cell, Trainings, round_steps
from changeanywhere.errors import ConfigError, ModelError, require
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.training.detector import check_batch, start_detector
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DetectorRecipe


def check_warmups(options: BenchmarkOptions, tuning: Callable[[int, int], DetectorRecipe]) -> None:
    """:class:`ConfigError` where a training, or a round of an arm until flat, would never reach the full rate.

    ``tuning``: fine-tuning at a share of the labels for a seed.
    """
    if options.pretraining:
        steps, warmup = options.pretrain.num_steps, options.pretrain.warmup_steps
        what = f"a warm-up of fewer steps than the {steps} of pre-training"
        require(warmup < steps, "pretrain.warmup_steps", warmup, what)
    arms = (*options.baselines, *options.tuned_arms)
    if not arms:
        return
    learned = {share for share in options.shares if share}
    for share in sorted(learned | ({options.rate_at} if learned and options.rate_at else set())):
        settings = tuning(share, options.seeds[0])
        steps, warmup = settings.num_steps, settings.warmup_steps
        name = "finetune.warmup_steps" if options.warmup_epochs is None else "warmup_epochs"
        value = warmup if options.warmup_epochs is None else options.warmup_epochs
        what = f"a warm-up of fewer steps than the {steps} of fine-tuning at {share} % of the labels"
        what += "" if options.finetune_epochs is None else f" (finetune_epochs is {options.finetune_epochs:g})"
        what += "" if value == warmup else f"; these are {warmup}"
        require(warmup < steps, name, value, what)
        if any(options.way_of(arm).flat for arm in arms):
            round_steps(options, settings)


def check_starts(options: BenchmarkOptions, cells: Sequence[Cell], trainings: Trainings) -> None:
    """What a training behind ``cells`` would say when its turn comes, detector by detector.

    :class:`ConfigError` for a size of crops or batches that a detector cannot learn from, for pairs without the classes
    that it learns, and for a backbone that takes no weights; this or :class:`ModelError` for a file of weights that
    is not there, or does not fit.
    """
    for detector in dict.fromkeys(cell.detector for cell in cells):
        own = [cell for cell in cells if cell.detector == detector]
        for stage, train, fresh, *beside in dict.fromkeys(_starts(options, own, trainings)):
            backbone = options.backbones.get(detector) if fresh else None
            settings = options.pretrain if stage == "pretrain" else options.finetune
            settings = replace(settings, name=detector, pairs=str(train.folder), backbone_weights=backbone)
            try:
                check_batch(start_detector(settings, None, train), settings, Processes(options.run), *beside)
            except (ConfigError, ModelError) as error:
                said = re.sub(r"^detector\.", f"{stage}.", str(error))
                of_file = backbone is not None and backbone in said
                raise type(error)(f"backbones: {detector}: {said}" if of_file else said) from error


def _starts(
    options: BenchmarkOptions, cells: Sequence[Cell], trainings: Trainings
) -> Iterator[tuple[str, PairDataset, bool, bool, bool]]:
    """Of every training behind ``cells``: its stage, on which pairs, whether its weights are fresh, and whether it
    learns from a set that is rehearsed and from unlabelled pairs beside."""
    for cell in cells:
        way = options.way_of(cell.arm)
        if way.origin in trainings.sets:
            yield "pretrain", trainings.sets[way.origin], True, False, False
        if cell.share:
            yield "finetune", trainings.few(100, 0), way.origin is None, way.rehearsed, way.unlabelled
