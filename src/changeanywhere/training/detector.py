"""``changeanywhere train detector``: pre-training, fine-tuning, training from scratch; the reference's recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from changeanywhere.errors import ConfigError, EmptySplitError, require
from changeanywhere.models.detectors import Detector, SemanticDetector, build_detector, names_classes
from changeanywhere.models.detectors.folder import load_detector, save_detector
from changeanywhere.models.first_stage import channels_last
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.pairs.semantics import NO_CLASSES, hash_of, legend_of
from changeanywhere.pairs.unlabelled import UnlabelledPairs
from changeanywhere.progress import Progress, silent
from changeanywhere.sample import ChangePair
from changeanywhere.seeds import step_seed
from changeanywhere.terminal import say
from changeanywhere.training.batches import loaded
from changeanywhere.training.consistency import (
    Teacher,
    batches_of_both,
    open_unlabelled,
    rows_beside,
    statistics_kept,
    weight_at,
)
from changeanywhere.training.detection import IGNORE, OHEM, ChangeScores, detection_loss, score_pairs, sum_of
from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.loop import train_stage
from changeanywhere.training.pair_batches import TrainingPairs, batches_beside, training_batches, whole_batches
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DetectorRecipe, Recipe
from changeanywhere.training.sections import count_beside
from changeanywhere.training.semantic import SemanticScores, score_classes, semantic_loss
from changeanywhere.training.stage import Batch, Learner, Stage, load_optimizer

Pairs = Sequence[ChangePair] | PairDataset


@dataclass(frozen=True)
class Beside:
    """What a detector learns from beside its pairs."""

    unlabelled: UnlabelledPairs | None = None
    rehearsed: PairDataset | None = None


def train_detector(
    recipe: Recipe,
    out: Path,
    train: Pairs | None = None,
    val: Pairs | None = None,
    progress: Progress = silent,
    stop: Event | None = None,
    unlabelled: UnlabelledPairs | None = None,
    rehearsed: PairDataset | None = None,
) -> Path:
    """Train, or resume, in ``out/training/detector``; returns ``out/detector`` (the last weights).

    With validation pairs the weights of the best F1 are kept apart in ``out/detector_best``. Default of ``train``,
    ``val``, ``unlabelled`` and ``rehearsed``: what the recipe names.
    """
    recipe.check("detector")
    settings = recipe.detector
    if train is None:
        train = select_pairs(settings, settings.train_split, settings.train_list).keeping(recipe.run.keep_mib)
        val = _validation_pairs(settings)
        val = val and val.keeping(recipe.run.keep_mib)
        if val is not None:
            split = f"a training pair (detector.train_split is {settings.train_split or 'null'})"
            _refuse_shared(train, val, settings, split, "two splits that share none")
    content = _hash_of(train, recipe)
    if unlabelled is None:
        unlabelled = open_unlabelled(settings, val)
    if unlabelled is not None:
        require(len(unlabelled) > 0, "unlabelled", 0, "one pair or more")
        content = f"{content}-{unlabelled.content_hash()}"
        for pairs in unlabelled.sets:  # one memory for all that is decoded
            pairs.kept = train.kept if isinstance(train, PairDataset) else pairs.kept
    if rehearsed is None and settings.rehearsed:
        rehearsed = _rehearsed_pairs(settings).keeping(recipe.run.keep_mib)
    if rehearsed is not None:
        require(unlabelled is None, "rehearsed", str(rehearsed.folder), "nothing beside unlabelled pairs")
        if isinstance(val, PairDataset):
            named = f"a rehearsed pair (detector.rehearsed is {settings.rehearsed or rehearsed.folder})"
            _refuse_shared(rehearsed, val, settings, named, "a set that shares none")
        content = f"{content}-{_hash_of(rehearsed, recipe)}"
    processes, beside = Processes(recipe.run), Beside(unlabelled, rehearsed)
    validation = "none" if val is None else _hash_of(val, recipe)
    with TrainingFolder(out, "detector", recipe, processes, content, validation) as folder:
        return train_stage(DetectorTraining(recipe, processes, train, val, beside), folder, progress, stop)


def select_pairs(recipe: DetectorRecipe, split: str | None, listing: str | None = None) -> PairDataset:
    """A split of ``recipe.pairs``, or the part of it that the file ``listing`` names."""
    pairs = load_pairs(recipe.pairs, split, recipe.max_megapixels)
    if recipe.change_classes:
        pairs = pairs.counting(recipe.change_classes)
    return pairs if listing is None else pairs.listed(Path(listing), f"split {split!r} of {recipe.pairs}")


def _rehearsed_pairs(settings: DetectorRecipe) -> PairDataset:
    named = replace(settings, pairs=settings.rehearsed, change_classes=settings.rehearsed_classes)
    return select_pairs(named, "train")


def _validation_pairs(settings: DetectorRecipe) -> PairDataset | None:
    """None where the recipe wants none, and, said aloud, where a set of few scenes has none."""
    if settings.val_split is None:
        return None
    try:
        return select_pairs(settings, settings.val_split)
    except EmptySplitError as error:
        say(f"{error}: no weights are selected, the last ones are the result", error=True)
        return None


def shared_files(learned: PairDataset, val: PairDataset) -> list[Path]:
    """A file of each pair of ``learned`` that is of a pair of ``val`` too, at either date."""
    chosen_on = {file.resolve() for number in range(len(val)) for file in val.images_of(number)}
    pairs = (learned.images_of(number) for number in range(len(learned)))
    return [found[0] for files in pairs if (found := [file for file in files if file.resolve() in chosen_on])]


def _refuse_shared(learned: PairDataset, val: PairDataset, settings: DetectorRecipe, what: str, mend: str) -> None:
    """Weights are chosen on pairs that nothing was learned from; ``what`` a pair of ``learned`` is, by its setting."""
    shared = shared_files(learned, val)
    if shared:
        raise ConfigError(
            f"{shared[0]}: is of {what} and of a validation pair (detector.val_split is {settings.val_split}), one of "
            f"{len(shared)}; allowed: {mend}, or detector.val_split null: no weights are selected"
        )


def _hash_of(pairs: Pairs, recipe: Recipe) -> str:
    """Of the pairs in their order and of their labels: another one would change every step, or which weights are
    chosen."""
    if isinstance(pairs, PairDataset):
        return hash_of(pairs) if names_classes(recipe.detector.name) else pairs.content_hash()
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(repr((pair.key, pair.change_mask.shape)).encode())
        digest.update(pair.change_mask.tobytes())
        unknown = [mask == 0 for mask in (pair.mask_t1, pair.mask_t2) if mask is not None]
        digest.update(np.logical_or.reduce(unknown).tobytes() if unknown else b"")
    return digest.hexdigest()[:16]


def start_detector(recipe: DetectorRecipe, init: str | None, train: Pairs = ()) -> Detector:
    """Random weights, those of ``init`` (a detector folder), or a backbone from a file; a semantic change detector in
    the classes of ``train``."""
    net = _started(recipe, init)
    if isinstance(net, SemanticDetector):
        legend = legend_of(train) if isinstance(train, PairDataset) else None
        if legend is None:
            raise ConfigError(f"{recipe.pairs}: {NO_CLASSES}, from which a {recipe.name} learns")
        fresh = net.adopt(legend)
        if init is not None and fresh:
            say(f"{init}: knows nothing of {', '.join(fresh)}; these classes begin at random")
    return net


def _started(recipe: DetectorRecipe, init: str | None) -> Detector:
    if init is None:
        net = build_detector(recipe.name)
        if recipe.backbone_weights is not None:
            net.load_backbone(Path(recipe.backbone_weights))
        return net
    name, net = load_detector(Path(init))
    if name != recipe.name:
        raise ConfigError(f"{init}: is a {name}; detector.name is {recipe.name}")
    return net


def check_batch(
    net: Detector, settings: DetectorRecipe, processes: Processes, rehearsed: bool = False, unlabelled: bool = False
) -> None:
    """:class:`ConfigError` where crops, or a process's rows of a batch, are too few for ``net`` to normalise by;
    ``rehearsed``, ``unlabelled``: what it learns from beside the labelled pairs."""
    side, least, what = net.size_multiple, net.smallest_batch, f"for {processes.count} process(es) of a {settings.name}"
    require(settings.crop_size >= side, "detector.crop_size", settings.crop_size, f"{side} and more")
    if settings.crop_size == side and not rehearsed:  # pairs that are rehearsed are normalised with them
        least = max(least, net.smallest_batch_of_least_crops)
        what += f" at a crop_size of {side}" if least > net.smallest_batch else ""
    least *= processes.count
    require(settings.batch_size >= least, "detector.batch_size", settings.batch_size, f"{least} and more {what}")
    views = count_beside(settings.batch_size, settings.unlabelled_share) if unlabelled else least
    what = f"a share that gives {least} unlabelled pairs and more {what}"  # they are normalised by themselves
    require(not 0 < views < least, "detector.unlabelled_share", settings.unlabelled_share, what)


def evaluate_detector(
    net: Detector,
    pairs: Pairs,
    batch_size: int,
    device: torch.device,
    mixed_precision: str = "no",
    num_workers: int = 0,
) -> ChangeScores:
    """Scores over whole pairs, which ``num_workers`` processes read."""
    return sum_of(evaluate_pairs(net, pairs, batch_size, device, mixed_precision, num_workers))


def evaluate_pairs(
    net: Detector,
    pairs: Pairs,
    batch_size: int,
    device: torch.device,
    mixed_precision: str = "no",
    num_workers: int = 0,
) -> list[ChangeScores]:
    """Scores of each pair, in their order."""
    batches = whole_batches(pairs, batch_size, net.in_channels, num_workers)
    return score_pairs(net, batches, device, mixed_precision)


def evaluate_classes(
    net: Detector,
    pairs: Pairs,
    batch_size: int,
    device: torch.device,
    mixed_precision: str = "no",
    num_workers: int = 0,
) -> tuple[list[ChangeScores], SemanticScores | None]:
    """As :func:`evaluate_pairs`, and the scores of all pairs in the classes of their set; None of a detector of change
    alone, for pairs without classes, and where the detector knows none of these."""
    legend = legend_of(pairs) if isinstance(net, SemanticDetector) and isinstance(pairs, PairDataset) else None
    if legend is None or not isinstance(net, SemanticDetector):
        return evaluate_pairs(net, pairs, batch_size, device, mixed_precision, num_workers), None
    batches = whole_batches(pairs, batch_size, net.in_channels, num_workers, semantic=True)
    return score_classes(net, batches, device, legend, mixed_precision)


def is_due(done: int, num_steps: int, settings: DetectorRecipe) -> bool:
    """Whether there is a validation after ``done`` of ``num_steps``: every ``val_every`` steps and at the end, or
    ``validations`` of them, number i at i / validations of the steps, rounded."""
    count = settings.validations
    if count is None:
        return done % settings.val_every == 0 or done == num_steps
    number = round(done * count / num_steps)
    return number >= 1 and (2 * number * num_steps + count) // (2 * count) == done


class DetectorTraining(Stage):
    """A change detector. A batch: ``(image t1, image t2, label)``, rehearsed pairs behind the others; the label of a
    semantic one has classes too. With unlabelled pairs what :class:`.consistency.UnlabelledViews` gives stands behind
    these."""

    name = "detector"

    def __init__(
        self,
        recipe: Recipe,
        processes: Processes,
        train: Pairs,
        val: Pairs | None,
        beside: Beside = Beside(),
    ) -> None:
        super().__init__(recipe, processes)
        self.settings, self.train, self.val, self.beside = recipe.detector, train, val, beside
        settings = recipe.detector
        torch.manual_seed(self.seed)
        net = start_detector(settings, recipe.init, train)
        check_batch(net, settings, processes, beside.rehearsed is not None, beside.unlabelled is not None)
        self.net, self.semantic = channels_last(net.to(processes.device)).train(), isinstance(net, SemanticDetector)
        # Fused: on a CPU too the update takes about half the time.
        fused = processes.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(
            self.net.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
        )
        # Not clipped, but watched: a step that breaks the weights must not reach a checkpoint.
        self.learners = (Learner(self.net, optimizer),)
        self.teacher = None if beside.unlabelled is None else self._teacher()
        if beside.rehearsed is not None:
            one = "none: classes of both dates are learned in one legend"
            require(not self.semantic, "detector.rehearsed", settings.rehearsed, one)
            self.rows_beside = rows_beside(settings, processes, "rehearsed")
        # Hard examples are counted on the host, and the weight of what is taught changes with the step.
        self.recordable = not settings.hard_examples and self.num_parts == 1 and self.teacher is None
        self.best = 0.0  # weights that find nothing are never the best ones

    def _teacher(self) -> Teacher:
        rest = "none: classes of both dates are learned from labels alone"
        require(not self.semantic, "detector.unlabelled", self.settings.unlabelled, rest)
        self.rows_beside = rows_beside(self.settings, self.processes)
        return Teacher(self.net, self.settings)

    @property
    def title(self) -> str:
        """See :class:`Stage`."""
        return self.settings.name

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a straight line to 0 (the reference's polynomial of power 1), or as it is."""
        settings = self.settings
        warmup = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
        decay = 1 - step / settings.num_steps if settings.schedule == "linear" else 1.0
        return settings.learning_rate * (warmup * decay)

    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        """See :class:`Stage`."""
        run, channels = self.recipe.run, self.net.in_channels
        views: Iterable[Batch]
        unlabelled, rehearsed = self.beside.unlabelled, self.beside.rehearsed
        labelled = TrainingPairs(self.train, self.settings, run.seed, channels, self.semantic)
        if unlabelled is not None:
            views = batches_of_both(labelled, unlabelled, run, first_step, (self.rows, self.rows_beside))
        elif rehearsed is not None:
            # Another seed: of a set with as many pairs a step would see the same crops.
            further = TrainingPairs(rehearsed, self.settings, run.seed + 1, channels, self.semantic)
            views = batches_beside(labelled, further, run, first_step, (self.rows, self.rows_beside))
        else:
            views = training_batches(self.train, self.settings, run, first_step, self.rows, channels, self.semantic)
        with closing(loaded(views)) as batches:
            for batch in batches:
                yield self.processes.put(*batch)

    def seed_step(self, step: int) -> None:
        """See :class:`Stage`."""
        torch.manual_seed(step_seed("training.dropout", self.seed, step, self.processes.rank))

    def backward(self, part: Batch, step: int) -> dict[str, Tensor]:
        """Cross-entropy of the head, and of auxiliary heads with their weight; :func:`semantic_loss`; with unlabelled
        pairs the head's cross-entropy on what the teacher is sure of, as a share of all their pixels."""
        first, second, labels, *beside = part
        hard = OHEM if self.settings.hard_examples else None
        if isinstance(self.net, SemanticDetector):
            with self.processes.accelerator.autocast():
                change, one, two = self.net.semantic_logits(first, second)
            losses = semantic_loss((change.float(), one.float(), two.float()), labels, hard, self.processes.whole)
            self.add_gradients(losses["loss"])
            return losses
        with self.processes.accelerator.autocast():
            heads = self.net.all_logits(first, second)
        loss = detection_loss(heads[0].float(), labels, hard)
        for logits in heads[1:]:
            loss = loss + self.net.auxiliary_weight * detection_loss(logits.float(), labels)
        said = {"loss": loss}
        if beside:
            with self.processes.accelerator.autocast(), statistics_kept(self.net):
                strong = self.net.all_logits(*beside[3:])[0]
            said |= self._taught(strong, beside)
            loss = loss + weight_at(step, self.num_steps, self.settings) * said["unlabelled_loss"]
        self.add_gradients(loss)
        return said

    def _taught(self, logits: Tensor, beside: list[Tensor]) -> dict[str, Tensor]:
        """The loss on the strong views, the share of ground that the teacher is sure of, and what of that it calls
        changed."""
        assert self.teacher is not None  # rows without a label are not read without one
        first, second, hidden = beside[:3]
        with self.processes.accelerator.autocast():
            found = self.teacher.labels(first, second, hidden)
        sure = (found != IGNORE).float().sum()
        return {
            "unlabelled_loss": detection_loss(logits.float(), found),
            "unlabelled_ground": sure / found.numel(),
            "unlabelled_changed": (found == 1).float().sum() / sure.clamp(min=1),
        }

    def after_step(self, step: int) -> dict[str, Tensor]:
        """The teacher follows."""
        if self.teacher is not None:
            self.teacher.follow(step)
        return {}

    def validate(self, done: int, folder: TrainingFolder) -> None:
        """Score on validation pairs; the best weights so far are kept. The test set is never looked at."""
        if self.val is None or not is_due(done, self.num_steps, self.settings) or not self.processes.is_main:
            return
        precision = self.processes.accelerator.mixed_precision
        by_pair, classes = evaluate_classes(
            self.net, self.val, self.batch_size, self.processes.device, precision, self.recipe.run.num_workers
        )
        scores = sum_of(by_pair)
        folder.log_validation(done, scores.to_dict() | (classes.to_dict() if classes else {}))
        if (scores.f1 or 0.0) > self.best:
            self.best = scores.f1 or 0.0
            save_detector(self.net, self.settings.name, folder.best)

    def state(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        optimizer = self.learners[0].optimizer
        state = {"detector": self.net.state_dict(), "optimizer": optimizer.state_dict(), "best": self.best}
        average = self.teacher and self.teacher.average
        return state | ({"teacher": average.weights} if average else {})

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`Stage`."""
        self.net.load_state_dict(state["detector"])
        load_optimizer(self.learners[0].optimizer, state["optimizer"])
        self.best = float(state["best"])
        if self.teacher is not None and self.teacher.average is not None:
            self.teacher.average.load(state["teacher"])

    def finish(self, out: Path) -> Path:
        """``out/detector``, the last weights."""
        if self.processes.is_main:
            save_detector(self.net, self.settings.name, out / "detector")
        return out / "detector"
