"""The trainings behind the cells of a benchmark: pre-training, fine-tuning, and from scratch in three lengths.

Every training ends in OUT/training/…/result.json: its steps, its validations, the best of them. Weights are there until
their cell has been scored.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from changeanywhere.benchmark.arms import EQUAL
from changeanywhere.benchmark.content import ContentHashes, differing
from changeanywhere.benchmark.options import BESIDE, BenchmarkOptions, unread
from changeanywhere.benchmark.sharing import BusyError, alone
from changeanywhere.documents import DocumentError, read_json_object
from changeanywhere.errors import ConfigError, OutputError, require
from changeanywhere.models.configuration import read_object
from changeanywhere.models.detectors import names_classes
from changeanywhere.models.info import find_detector
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.pairs.semantics import hash_of as hash_of_classes
from changeanywhere.pairs.unlabelled import UnlabelledPairs
from changeanywhere.plain import to_plain
from changeanywhere.progress import Progress, silent
from changeanywhere.seeds import stream
from changeanywhere.storage import atomic_write, file_hash
from changeanywhere.training.detector import train_detector
from changeanywhere.training.recipe import DetectorRecipe, Recipe


@dataclass(frozen=True)
class Cell:
    """One detector, one arm, one share of the labels, one seed: one score."""

    detector: str
    arm: str
    share: int
    seed: int

    @property
    def key(self) -> str:
        """File name."""
        return f"{self.detector}-{self.arm}-{self.share:03d}-{self.seed}"


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    folder: Path
    """Of the best weights on validation pairs, the last ones where none found anything."""
    learning_rate: float
    steps: int
    """On labels, all rounds together."""
    best: float
    """F1 on validation pairs."""
    candidates: int
    """Among so many weights the best were chosen."""
    curve: list[list[float]]
    """(steps so far, F1 on validation pairs) of every validation, those that select and those that only watch."""


class Trainings:
    """Makes trainings, or finds them finished, below the folder of a benchmark."""

    def __init__(
        self,
        options: BenchmarkOptions,
        few: Callable[[int, int], PairDataset],
        val: PairDataset,
        sets: dict[str, PairDataset],
        unlabelled: UnlabelledPairs | None = None,
        progress: Progress = silent,
        stop: Event | None = None,
    ) -> None:
        self.options, self.few, self.val, self.sets, self.unlabelled = options, few, val, sets, unlabelled
        self.progress, self.stop = progress, stop
        self._rates: dict[tuple[str, str, int], float] = {}
        self._notes: dict[str, dict[str, str | None]] = {}

    def pretraining(self, arm: str) -> DetectorRecipe:
        """How, and on what, this arm is pre-trained."""
        options = self.options
        return replace(options.pretrain, pairs=options.pretraining[arm], change_classes=options.change_classes.get(arm))

    def seed_of_pretraining(self, seed: int) -> int:
        """From which pre-training a seed of fine-tuning goes on: they take turns."""
        return pretraining_of(self.options, seed)

    def first_alike(self, detector: str, arm: str, seed: int) -> int:
        """The first seed of pre-training with the weights of ``seed``: a detector that was handed in may be one for all
        seeds."""
        place = self.options.pretrained.get(arm)
        if place is None:
            return seed
        found = handed_in(place, detector, seed)
        seeds = (other for other in self.options.pretrain_seeds if handed_in(place, detector, other) == found)
        return next(seeds, seed)

    def pretrained(self, detector: str, arm: str, seed: int) -> Path:
        """The detector, pre-trained on the arm's set with ``seed``: last weights, no selection. Trained at first use,
        or as it was handed in."""
        options = self.options
        if arm in options.pretrained:
            return handed_in(options.pretrained[arm], detector, seed)
        root = options.pretrain_out or options.out / "pretrain"
        recipe = self._recipe(self.pretraining(arm), detector, seed, None)
        note = {"recipe": plain_recipe(recipe), **self._content_of(arm, detector)}
        out, sized = root / f"{detector}-{arm}-{seed}", self.sets[arm].content_hash
        if not _is_pretrained(out, note, sized):
            with alone(root, out.name):
                if not _is_pretrained(out, note, sized):  # another process may have ended it meanwhile
                    train_detector(recipe, out, self.sets[arm], None, self.progress, self.stop)
                    atomic_write(out / "result.json", (json.dumps(note, indent=1) + "\n").encode())
                    _drop_checkpoint(out)
        return out / "detector"

    def _content_of(self, arm: str, detector: str) -> dict[str, str | None]:
        """Hashes of what a pre-training reads: pairs, their classes (None where the detector learns none), the file of
        the backbone (None where it is the package's)."""
        key = f"{detector}-{arm}"
        if key not in self._notes:
            pairs, file = self.sets[arm], Path(self.options.backbones.get(detector) or "")
            classes = hash_of_classes(pairs) if names_classes(detector) else None
            backbone = file_hash(file)[:16] if file.is_file() else None
            hashed = ContentHashes(self.options.out).of(pairs)
            self._notes[key] = {"pairs": hashed, "classes": classes, "backbone": backbone}
        return self._notes[key]

    def of(self, cell: Cell) -> Trained:
        """The training of a cell at the rate of its arm."""
        return self._at_rate(cell, self.rate(cell))

    def rate(self, cell: Cell) -> float:
        """The learning rate with the best F1 on validation pairs, on average over the first seeds of this detector, arm
        and share (or of the share at which the options want it chosen)."""
        options, firsts = self.options, choosing(self.options, cell)
        if not firsts:
            return options.rates[0]
        group = cell.detector, cell.arm, firsts[0].share
        if group not in self._rates:
            best = self._best_of([(first, rate) for rate in options.rates for first in firsts])
            scores = np.reshape(best, (len(options.rates), len(firsts))).mean(1)
            self._rates[group] = options.rates[int(np.argmax(scores))]
        return self._rates[group]

    def _best_of(self, tried: list[tuple[Cell, float]]) -> list[float]:
        """F1 on validation pairs of each; where others are at some of them the rest is made all the same, and then
        :class:`BusyError` raised."""
        best, busy = list[float](), None
        for cell, rate in tried:
            try:
                best.append(self._at_rate(cell, rate).best)
            except BusyError as error:
                busy = error
        if busy is not None:
            raise busy
        return best

    def tuning(self, share: int, seed: int) -> DetectorRecipe:
        """Fine-tuning at a share: its lengths in steps."""
        return lengths(self.options, len(self.few(share, seed)))

    def forget(self, cell: Cell) -> None:
        """Drop the weights of a cell that has been scored; what they were worth stays."""
        for folder in (self.options.out / "training").glob(f"{cell.key}-*"):
            for name in ("detector", "detector_best"):
                with suppress(FileNotFoundError):
                    shutil.rmtree(folder / name)

    def _at_rate(self, cell: Cell, rate: float) -> Trained:
        settings = replace(self.tuning(cell.share, cell.seed), learning_rate=rate)
        way = self.options.way_of(cell.arm)
        seed = self.seed_of_pretraining(cell.seed)
        init = None if way.origin is None else self.pretrained(cell.detector, way.origin, seed)
        if way.flat:
            return self._until_flat(cell, settings, init)
        if cell.arm == EQUAL:
            settings = replace(settings, num_steps=self.options.pretrain.num_steps + settings.num_steps)
        return self._train(cell, settings, init, f"lr{rate:g}")

    def _until_flat(self, cell: Cell, settings: DetectorRecipe, init: Path | None) -> Trained:
        """Rounds at a constant rate after a warm-up each, the first from ``init``, each from the last one's weights,
        watched by one validation; then, once the best F1 has gained nothing for some rounds, the schedule and the
        choice that every other arm has."""
        flat, what = self.options.flat, f"lr{settings.learning_rate:g}"
        steps = round_steps(self.options, settings)
        watched: list[float] = []
        before = init
        curve: list[list[float]] = []
        while len(watched) < flat.rounds and not is_flat(watched, flat.patience, flat.least_gain):
            constant = replace(settings, num_steps=steps, schedule="constant")
            one = self._train(cell, constant, before, f"{what}-round{len(watched)}", len(watched), candidates=1)
            curve.append([steps * (len(watched) + 1), one.best])
            watched.append(one.best)
            before = one.folder.parent / "detector"
        last = self._train(cell, settings, before, what, len(watched))
        done = steps * len(watched)
        return replace(last, steps=done + last.steps, curve=[*curve, *([done + s, f1] for s, f1 in last.curve)])

    def _train(
        self,
        cell: Cell,
        settings: DetectorRecipe,
        init: Path | None,
        what: str,
        stage: int = 0,
        candidates: int | None = None,
    ) -> Trained:
        """One training on the cell's labels, which ends in ``result.json``; ``stage``: how many went before it, none of
        whose crops and colours come again."""
        out = self.options.out / "training" / f"{cell.key}-{what}"
        settings = validated(settings, candidates or self.options.candidates)
        settings = self._seeing(replace(settings, pairs=self.options.pairs), cell.arm)
        if not self._is_trained(out, cell):
            with alone(self.options.out, out.name):
                if not self._is_trained(out, cell):
                    seed = int(stream("benchmark.stage", cell.seed, stage).integers(2**31)) if stage else cell.seed
                    self._end(self._recipe(settings, cell.detector, seed, init), out, cell)
        note, best = noted(out / "result.json"), out / "detector_best"
        folder = best if (best / "detector.json").is_file() else out / "detector"
        curve = note["curve"]
        return Trained(folder, settings.learning_rate, note["steps"], note["best"], len(curve), curve)

    def _seeing(self, settings: DetectorRecipe, arm: str) -> DetectorRecipe:
        """With the folders of unlabelled pairs, or the set that is rehearsed, for an arm that learns from them beside
        its labels; else with nothing of the kind."""
        options, way, read = self.options, self.options.way_of(arm), dict[str, Any]()
        if way.unlabelled:
            read["unlabelled"] = [options.pairs, *options.unlabelled]
        if way.rehearsed and way.origin:
            read = {"rehearsed": options.pretraining[way.origin]}
            read["rehearsed_classes"] = options.change_classes.get(way.origin)
        blank = {name: getattr(DetectorRecipe(), name) for name in unread(read)}
        return replace(settings, **blank, **read)

    def _end(self, recipe: Recipe, out: Path, cell: Cell) -> None:
        few, beside = self.few(cell.share, cell.seed), dict[str, Any]()
        if recipe.detector.unlabelled:
            beside["unlabelled"] = self.unlabelled
        if recipe.detector.rehearsed:
            beside["rehearsed"] = self.sets[str(self.options.way_of(cell.arm).origin)]
        train_detector(recipe, out, few, self.val, self.progress, self.stop, **beside)
        rows = validations(out)
        best = max([f1 for _, f1 in rows], default=0.0)
        result = {"steps": recipe.detector.num_steps, "best": best, "curve": rows}
        atomic_write(out / "result.json", (json.dumps(result) + "\n").encode())
        _drop_checkpoint(out)

    def _is_trained(self, out: Path, cell: Cell) -> bool:
        """Its weights are needed until the cell has its score."""
        there = (out / "detector" / "detector.json").is_file() or self._is_known(cell)
        return there and (out / "result.json").is_file()

    def _is_known(self, cell: Cell) -> bool:
        """Whether the cell has its score: its weights are not needed again."""
        return (self.options.out / "cells" / f"{cell.key}.json").is_file()

    def _recipe(self, settings: DetectorRecipe, detector: str, seed: int, init: Path | None) -> Recipe:
        # A net that goes on from another has its backbone.
        weights = None if init else self.options.backbones.get(detector)
        named = replace(settings, name=detector, backbone_weights=weights)
        return Recipe(
            detector=named, run=replace(self.options.run, seed=seed), init=str(init) if init is not None else None
        )


def pretraining_of(options: BenchmarkOptions, seed: int) -> int:
    """The seed of the pre-training from which a seed of fine-tuning goes on."""
    place = options.seeds.index(seed) if seed in options.seeds else seed
    return options.pretrain_seeds[place % len(options.pretrain_seeds)]


def choosing(options: BenchmarkOptions, cell: Cell) -> list[Cell]:
    """The cells that are trained at every rate to choose that of ``cell``: they may be none of those that are scored.
    Empty where there is one rate."""
    if len(options.rates) == 1:
        return []
    share = options.rate_at or cell.share
    return [replace(cell, share=share, seed=seed) for seed in options.seeds[: options.rate_seeds]]


def _is_pretrained(out: Path, note: dict[str, Any], sized: Callable[[], str]) -> bool:
    """Whether ``out`` holds what ``note`` says (``sized``: :func:`differing`); :class:`OutputError` where it holds
    something else."""
    file = out / "result.json"
    if not ((out / "detector" / "detector.json").is_file() and file.is_file()):
        return False
    other = differing(noted(file), note, sized)
    if other:
        raise OutputError(f"{out}: was pre-trained otherwise ({other}, see result.json); give another pretrain_out")
    return True


def grown_seeds(out: Path, before: object, asked: list[int]) -> list[int]:
    """Seeds of a folder that was begun with the seeds ``before`` (None: none are known) and is asked for those of
    ``asked``: the longer list, of which the other must be the beginning. A seed's place in it says from which
    pre-training it goes on, and the first seeds choose the rates.

    Raises :class:`OutputError` with both lists.
    """
    old = asked if before is None else before
    if not isinstance(old, list):
        raise OutputError(f"{out / 'benchmark.json'}: damaged (seeds); give another --out")
    shared = min(len(old), len(asked))
    if old[:shared] != asked[:shared]:
        further = [seed for seed in asked if seed not in old]
        raise OutputError(
            f"{out}: was begun with --seeds {old}, asked now: {asked}; places in the list decide from which "
            f"pre-training a seed goes on, and which seeds choose rates: ask for --seeds {[*old, *further]}, or give "
            "another --out (the same command, started several times, shares the work)"
        )
    return max(old, asked, key=len)


def lengths(options: BenchmarkOptions, num_pairs: int) -> DetectorRecipe:
    """Fine-tuning on so many pairs: epochs, where they are asked for, in steps."""
    settings = options.finetune
    per_epoch = num_pairs / settings.batch_size
    if options.finetune_epochs is not None:
        settings = replace(settings, num_steps=max(1, round(options.finetune_epochs * per_epoch)))
    if options.warmup_epochs is not None:
        settings = replace(settings, warmup_steps=round(options.warmup_epochs * per_epoch))
    return settings


def round_steps(options: BenchmarkOptions, tuning: DetectorRecipe) -> int:
    """Steps of a round of ``scratch-flat``; :class:`ConfigError` where its warm-up leaves none at the full rate."""
    steps, warmup = options.flat.num_steps or tuning.num_steps, tuning.warmup_steps
    what = f"more than the {warmup} steps of warm-up with which each round begins"
    require(steps > warmup, "flat.num_steps", steps, what)
    return steps


def validated(settings: DetectorRecipe, candidates: int) -> DetectorRecipe:
    """The same training with so many validations, or one at each of its steps where it has fewer."""
    count = min(candidates, settings.num_steps)
    every = -(-settings.num_steps // count)
    if -(-settings.num_steps // every) == count:
        return replace(settings, val_every=every)
    return replace(settings, validations=count)


def is_flat(watched: list[float], patience: int, least_gain: float) -> bool:
    """Whether the last ``patience`` values are no better than the best before them. A net that has found nothing yet
    has not begun to be flat."""
    if len(watched) <= patience or not max(watched[:-patience]):
        return False
    return max(watched[-patience:]) < max(watched[:-patience]) + least_gain


def handed_in(place: str, detector: str, seed: int) -> Path:
    """A detector's folder in ``place``: itself, or below it by the detector's name, or by name and seed; or the one of
    the package."""
    root = find_detector(place)
    for folder in (root / detector / str(seed), root / f"{detector}-{seed}", root / detector, root):
        for found in (folder, folder / "detector"):
            if (found / "detector.json").is_file():
                name = read_object(found / "detector.json").get("name")
                if name != detector:  # it would be scored under another's name
                    raise ConfigError(f"{place}: holds a {str(name)[:80]}; detectors has {detector}")
                return found
    raise ConfigError(f"{place}: no detector; expected detector.json here, or in {detector}/ (or {detector}/SEED/)")


def validations(out: Path) -> list[list[float]]:
    """(step, F1) of a training's validations; 0 where nothing was found."""
    file = out / "training" / "detector" / "validation.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [[row["step"], row["f1"] or 0.0] for row in rows]


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a pre-training depends on, as JSON has it."""
    content: dict[str, Any] = to_plain(recipe.detector)
    # Where it lies, and what changes no weight; what pre-training does not read.
    for name in ("pairs", "max_megapixels", "val_every", "validations", *BESIDE):
        del content[name]
    return content | {"seed": recipe.run.seed, "mixed_precision": recipe.run.mixed_precision}


def noted(file: Path) -> dict[str, Any]:
    """What a run before wrote; :class:`OutputError` where it is damaged."""
    try:
        return read_json_object(file)
    except (OSError, DocumentError) as error:
        raise OutputError(f"{file}: damaged ({error}); delete it, and what it held is measured again") from error


def _drop_checkpoint(out: Path) -> None:
    """Of a finished training: several times its weights."""
    (out / "training" / "detector" / "checkpoint.pt").unlink(missing_ok=True)
