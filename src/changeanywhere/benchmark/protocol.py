"""``changeanywhere benchmark``: the zero- and few-shot protocol (paper §3), cell by cell.

A *cell* is one detector, one arm (from scratch, or pre-trained on one set), one share of the labels, one seed. Each
ends as OUT/cells/….json with the scores of the whole test set; finished cells are skipped, a failing one leaves the
others standing. Few-shot lists are given, or drawn by the seed and written beside the results. The test set selects
nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from changeanywhere.benchmark.options import SCRATCH, BenchmarkOptions
from changeanywhere.benchmark.published import read_published
from changeanywhere.benchmark.tables import write_results
from changeanywhere.diffusion.pipeline import default_device
from changeanywhere.documents import DocumentError, read_json_object, to_json
from changeanywhere.errors import ChangeAnywhereError, ConfigError, OutputError, ShortfallError
from changeanywhere.folders import read_names
from changeanywhere.models.detectors.folder import load_detector
from changeanywhere.models.first_stage import channels_last
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.progress import Progress, silent
from changeanywhere.seeds import HELD_OUT_SEED, stream
from changeanywhere.storage import atomic_write, refuse_way_out
from changeanywhere.training.detection import ChangeScores
from changeanywhere.training.detector import evaluate_detector, select_pairs, train_detector
from changeanywhere.training.pair_batches import label_of
from changeanywhere.training.recipe import DetectorRecipe, Recipe

ALL_CHANGED = 0.95
"""A net that calls more than this share of the ground changed …"""
NOTHING_CHANGED = 0.0005
"""… or less than this has collapsed."""


@dataclass(frozen=True)
class Cell:
    """One training with one score."""

    detector: str
    arm: str
    share: int
    seed: int

    @property
    def key(self) -> str:
        """File name."""
        return f"{self.detector}-{self.arm}-{self.share:03d}-{self.seed}"


class Benchmark:
    """The protocol on one folder."""

    def __init__(self, options: BenchmarkOptions, progress: Progress = silent, stop: Event | None = None) -> None:
        options.check()
        self.options, self.progress, self.stop = options, progress, stop
        self.device = default_device()
        self.train, self.val = self._training_splits()
        self.test = load_pairs(options.pairs, options.test_split, options.finetune.max_megapixels)
        self.sets = {arm: select_pairs(self._pretraining(arm), split=None) for arm in options.pretraining}
        self._rates: dict[tuple[str, int], float] = {}
        for share in (s for s in options.shares if s and options.lists):
            self.few(share, options.seeds[0])  # what is wrong with a list is said before the training

    def freeze(self) -> None:
        """Refuse to mix results of different options in one folder; further arms, detectors, shares and seeds may come.

        Raises :class:`OutputError` naming the difference.
        """
        for name in ("cells", "lists", "pretrain", "training"):
            refuse_way_out(self.options.out, self.options.out / name)
        file, asked = self.options.out / "benchmark.json", json.loads(json.dumps(self.options.frozen()))
        arms = asked.pop("arms")
        before = _noted(file) if file.exists() else asked | {"arms": {}}
        old_arms = before.pop("arms", None)
        if not isinstance(old_arms, dict):
            raise OutputError(f"{file}: damaged (no arms); give another --out")
        old = before | {f"pretraining of {arm}": old_arms[arm] for arm in old_arms.keys() & arms.keys()}
        new = asked | {f"pretraining of {arm}": arms[arm] for arm in old_arms.keys() & arms.keys()}
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                raise OutputError(
                    f"{self.options.out}: was begun with {key} = {old.get(key)!r}, asked now: {new.get(key)!r}; "
                    "give another --out, or the same settings to go on"
                )
        atomic_write(file, (json.dumps(asked | {"arms": old_arms | arms}, indent=1) + "\n").encode())

    def _training_splits(self) -> tuple[PairDataset, PairDataset]:
        """Training and validation pairs; the latter are drawn from the former if the dataset defines none."""
        options = self.options
        train = load_pairs(options.pairs, options.train_split, options.finetune.max_megapixels)
        if not options.val_share:
            return train, load_pairs(options.pairs, options.val_split, options.finetune.max_megapixels)
        held = max(1, round(len(train) * options.val_share / 100))
        order = stream("benchmark.held_out", HELD_OUT_SEED).permutation(
            len(train)
        )  # the same pairs for every seed of the protocol
        names = sorted(train.names[i] for i in order[:held])
        atomic_write(options.out / "lists" / "val.txt", "".join(f"{name}\n" for name in names).encode())
        return train.subset(sorted(set(train.names) - set(names))), train.subset(names)

    def cells(self) -> Iterator[Cell]:
        """All of them, cheap ones first within a detector; zero-shot has one seed, since nothing is drawn."""
        options = self.options
        for detector in options.detectors:
            for share in sorted(options.shares):
                tuned = [arm for arm in self.sets if arm not in options.zero_shot_only]
                for arm in self.sets if share == 0 else (SCRATCH, *tuned):
                    count = 1 if share == 0 else options.seeds_at.get(share, len(options.seeds))
                    for seed in options.seeds[:count]:
                        yield Cell(detector, arm, share, seed)

    def few(self, share: int, seed: int) -> PairDataset:
        """``share`` percent of the training split: a given list, else drawn by ``seed``, and written down."""
        if share == 100:
            return self.train
        given = self.options.lists / f"{share}.txt" if self.options.lists else None
        if given is not None:
            try:
                names = read_names(given)
            except OSError as error:
                raise ConfigError(f"{given}: cannot be read ({error.strerror})") from error
        else:
            count = max(1, round(len(self.train) * share / 100))
            order = stream("benchmark.subset", seed).permutation(len(self.train))
            names = sorted(self.train.names[i] for i in order[:count])  # the 5 % are among the 10 %
            content = "".join(f"{name}\n" for name in names)
            atomic_write(self.options.out / "lists" / f"{share}-seed{seed}.txt", content.encode())
        stems = {Path(name).stem: name for name in self.train.names}
        absent = [name for name in names if Path(name).stem not in stems]
        if absent or not names:
            raise ConfigError(f"{given}: {absent[0] if absent else 'nothing'} is not in the training split")
        return self.train.subset([stems[Path(name).stem] for name in names])

    def _pretraining(self, arm: str) -> DetectorRecipe:
        """How, and on what, this arm is pre-trained."""
        options = self.options
        return replace(options.pretrain, pairs=options.pretraining[arm], change_classes=options.change_classes.get(arm))

    def pretrained(self, detector: str, arm: str) -> Path:
        """The detector, pre-trained on the arm's set: last weights, no selection. Trained at first use."""
        out = self.options.out / "pretrain" / f"{detector}-{arm}"
        if not (out / "detector" / "detector.json").is_file():
            recipe = self._recipe(self._pretraining(arm), detector, self.options.pretraining[arm], seed=0)
            train_detector(recipe, out, self.sets[arm], None, self.progress, self.stop)
        return out / "detector"

    def finish(self, cell: Cell) -> dict[str, Any]:
        """Train and score one cell."""
        started = time.perf_counter()
        if cell.share == 0:
            folder, details = self.pretrained(cell.detector, cell.arm), {}
        elif cell.arm == SCRATCH:
            rate = self._scratch_rate(cell)
            folder, details = self._scratch(cell, rate), {"learning_rate": rate}
        else:
            init = self.pretrained(cell.detector, cell.arm)
            folder, details = self._tune(cell, self.options.finetune, init, "cell"), {}
        scores = self._scores(folder, self.test)
        seconds = round(time.perf_counter() - started, 1)
        return {**vars(cell), **scores.to_dict(), **details, **flags(scores), "seconds": seconds}

    def _scores(self, folder: Path, pairs: PairDataset) -> ChangeScores:
        net = channels_last(load_detector(folder)[1].to(self.device))
        return evaluate_detector(net, pairs, 8, self.device, self.options.run.mixed_precision)

    def _scratch(self, cell: Cell, rate: float) -> Path:
        settings = self.options.finetune
        steps = self.options.pretrain.num_steps + settings.num_steps
        return self._tune(cell, replace(settings, num_steps=steps, learning_rate=rate), None, f"lr{rate:g}")

    def _scratch_rate(self, cell: Cell) -> float:
        """The learning rate with the best validation F1 at the first seed of this detector and share (or of the share
        at which the options want it chosen)."""
        rates = self.options.scratch_learning_rates
        if len(rates) == 1:
            return rates[0]
        share = self.options.scratch_rate_at or cell.share
        if (cell.detector, share) not in self._rates:
            first = replace(cell, seed=self.options.seeds[0], share=share)
            scores = [self._scores(self._scratch(first, rate), self.val).f1 or 0.0 for rate in rates]
            self._rates[cell.detector, share] = rates[int(np.argmax(scores))]
        return self._rates[cell.detector, share]

    def _tune(self, cell: Cell, settings: DetectorRecipe, init: Path | None, what: str) -> Path:
        """Train on the cell's labels; the weights of the best validation F1 (the last ones if nothing was found)."""
        out = self.options.out / "training" / f"{cell.key}-{what}"
        recipe = self._recipe(settings, cell.detector, self.options.pairs, cell.seed, init)
        if not (out / "detector" / "detector.json").is_file():
            train_detector(recipe, out, self.few(cell.share, cell.seed), self.val, self.progress, self.stop)
        best = out / "detector_best"
        return best if (best / "detector.json").is_file() else out / "detector"

    def _recipe(
        self, settings: DetectorRecipe, detector: str, pairs: str, seed: int, init: Path | None = None
    ) -> Recipe:
        # A net that is fine-tuned has its backbone.
        named = replace(
            settings, name=detector, pairs=pairs, backbone_weights=None if init else settings.backbone_weights
        )
        run = replace(self.options.run, seed=seed)
        return Recipe(detector=named, run=run, init=str(init) if init else None)


def flags(scores: ChangeScores) -> dict[str, Any]:
    """Share of the ground that is called changed, and whether that means that the net has collapsed."""
    known = scores.true_positives + scores.false_positives + scores.false_negatives + scores.true_negatives
    share = (scores.true_positives + scores.false_positives) / max(known, 1)
    collapsed = "all changed" if share > ALL_CHANGED else "nothing changed" if share < NOTHING_CHANGED else None
    return {"predicted_share": share, "collapsed": collapsed}


def constant_scores(pairs: PairDataset) -> dict[str, ChangeScores]:
    """What predicting "changed" everywhere, or nowhere, scores."""
    changed = unchanged = 0
    for i in range(len(pairs)):
        label = label_of(pairs[i])
        changed += int((label == 1).sum())
        unchanged += int((label == 0).sum())
    return {
        "all changed": ChangeScores(changed, unchanged, 0, 0),
        "nothing changed": ChangeScores(0, 0, changed, unchanged),
    }


def _noted(file: Path) -> dict[str, Any]:
    """What a run before wrote; :class:`OutputError` where it is damaged."""
    try:
        return read_json_object(file)
    except (OSError, DocumentError) as error:
        raise OutputError(f"{file}: damaged ({error}); delete it, and what it held is measured again") from error


def run_benchmark(
    options: BenchmarkOptions, progress: Progress = silent, stop: Event | None = None
) -> list[dict[str, Any]]:
    """All cells, then tables, curves and panels. Raises :class:`ShortfallError` at the end if a cell failed.

    Once ``stop`` is set the training at work ends with a checkpoint, in a :class:`KeyboardInterrupt`.
    """
    benchmark = Benchmark(options, progress, stop)
    benchmark.freeze()
    read_published(options.paper_tables, options.name)  # what is wrong with it is said before the training, not after
    records, failed = [], []
    cells = list(benchmark.cells())
    for number, cell in enumerate(cells, 1):
        file = options.out / "cells" / f"{cell.key}.json"
        if file.is_file():
            records.append(_noted(file))
            continue
        print(f"cell {number} of {len(cells)}: {cell.key}", flush=True)
        try:
            record = benchmark.finish(cell)
        except (ChangeAnywhereError, RuntimeError) as error:
            if isinstance(error, ConfigError):
                raise
            failed.append(f"{cell.key} ({' '.join(str(error).split())[:200]})")
            continue
        atomic_write(file, (to_json(record, indent=1) + "\n").encode())
        records.append(record)
    constants = {name: scores.to_dict() for name, scores in constant_scores(benchmark.test).items()}
    write_results(options, records, constants, benchmark.test)
    if failed:
        raise ShortfallError(f"{options.out}: {len(failed)} of {len(cells)} cells failed: {'; '.join(failed)}")
    return records
