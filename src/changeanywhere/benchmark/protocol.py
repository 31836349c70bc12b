"""``changeanywhere benchmark``: the zero- and few-shot protocol (paper §3), cell by cell.

A *cell* is one detector, one arm (up to four without pre-training, one or more per set or handed-in detector), one
share of the labels, one seed. Each ends as OUT/cells/….json with the scores of the whole test set; finished cells are
skipped, a failing one leaves the others standing (OUT/failed/….txt says why), and several processes share them
(:mod:`.sharing`). What can be known to fail is said before the first one (:mod:`.ahead`). Every arm chooses among the
same learning rates and the same number of weights on validation pairs. Few-shot lists are given, or drawn by the seed
and written beside the results. The test set selects nothing, and its scenes are in nothing that is learned from
(:mod:`.apart`).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

from changeanywhere.benchmark.ahead import check_starts, check_warmups
from changeanywhere.benchmark.apart import Looked, each_once, refuse_test_scenes
from changeanywhere.benchmark.frozen import Content, contents_of, digest_of, freeze
from changeanywhere.benchmark.options import BenchmarkOptions
from changeanywhere.benchmark.plan import write_plan
from changeanywhere.benchmark.published import read_published
from changeanywhere.benchmark.sharing import POLL, BusyError, alone, sweep
from changeanywhere.benchmark.statistics import COUNTS, MIN_SCENES, require_scenes, scenes_of
from changeanywhere.benchmark.summary import comparisons, one_list, planned
from changeanywhere.benchmark.tables import write_results
from changeanywhere.benchmark.trainings import Cell, Trainings, handed_in, noted
from changeanywhere.diffusion.pipeline import default_device
from changeanywhere.documents import to_json
from changeanywhere.errors import ChangeAnywhereError, ConfigError, OutputError, ShortfallError, require
from changeanywhere.leases import Waiting
from changeanywhere.models.detectors.folder import load_detector
from changeanywhere.models.first_stage import channels_last
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.pairs.unlabelled import UnlabelledPairs, open_images
from changeanywhere.progress import Progress, silent
from changeanywhere.seeds import HELD_OUT_SEED, stream
from changeanywhere.storage import atomic_write, refuse_way_out
from changeanywhere.terminal import say
from changeanywhere.training.detection import ChangeScores, sum_of
from changeanywhere.training.detector import evaluate_classes, select_pairs, shared_files
from changeanywhere.training.pair_batches import label_of
from changeanywhere.training.semantic import SemanticScores

ALL_CHANGED = 0.95
"""A net that calls more than this share of the ground changed …"""
NOTHING_CHANGED = 0.0005
"""… or less than this has collapsed."""


class Benchmark:
    """The protocol on one folder."""

    def __init__(self, options: BenchmarkOptions, progress: Progress = silent, stop: Event | None = None) -> None:
        options.check()
        self.options, self.progress, self.stop = options, progress, stop
        self.overtaken = self._confirmed = False
        self.device = default_device()
        kept = options.run.keep_mib
        self.test = load_pairs(options.pairs, options.test_split, options.finetune.max_megapixels).keeping(kept)
        self.train, self.val = (pairs.keeping(kept) for pairs in self._training_splits())
        sets: dict[str, PairDataset] = {}
        further = [open_images(folder, None, options.finetune.max_megapixels) for folder in options.unlabelled]
        further = each_once(options.out, self.train, list(zip(options.unlabelled, further, strict=True)))
        self.unlabelled = UnlabelledPairs([self.train, *further]) if options.unlabelled_arms else None
        self.trainings = Trainings(options, self.few, self.val, sets, self.unlabelled, progress, stop)
        for arm in options.pretraining:
            sets[arm] = select_pairs(self.trainings.pretraining(arm), split=None).keeping(kept)
        for place in options.pretrained.values():
            for detector, seed in product(options.detectors, options.pretrain_seeds):
                handed_in(place, detector, seed)
        for share in self._listed_shares():
            self.few(share, options.seeds[0])  # what is wrong with a list is said before the training

    def _listed_shares(self) -> list[int]:
        """Shares whose lists are given: those with cells, and the one at which rates are chosen."""
        options = self.options
        asked = {*options.shares, *([options.rate_at] if any(options.shares) and options.rate_at else [])}
        return sorted(share for share in asked if share and options.lists)

    def refuse_test_scenes(self) -> None:
        """:class:`ConfigError` where a scene of the test split is in another split, among unlabelled pairs or behind a
        set that is pre-trained on; and where one of the validation split is in the training split, or a file of it in a
        set that is rehearsed."""
        both, own = ("test", "val"), self.options.pairs
        # Validation pairs may stand behind a set that is pre-trained on: they select, and no more. Somebody's further
        # pairs have no reason to hold them; nor has a training split that is apart from them by what the dataset says.
        looked = [Looked(f"pretraining {arm}", pairs, by_record=True) for arm, pairs in self.trainings.sets.items()]
        if self.unlabelled is not None:
            named = zip(self.options.unlabelled, self.unlabelled.sets[1:], strict=True)
            looked += [Looked(f"unlabelled {folder}", pairs, False, both) for folder, pairs in named]
        if any(self.options.shares):
            against = ("test",) if self.options.val_share else both
            looked.append(Looked(f"training split of {own}", self.train, False, against, names=False))
            looked.append(Looked(f"validation split of {own}", self.val, by_record=False, names=False))
        for arm in self.options.rehearsed:  # learned from while weights are chosen, not before
            shared = shared_files(self.trainings.sets[arm], self.val)
            if shared:
                raise ConfigError(f"rehearsed {arm}: {shared[0]} is in the validation split too; leave it out")
        refuse_test_scenes(self.options.out, {"train": self.train, "val": self.val, "test": self.test}, looked)

    def freeze(self, write: bool = True) -> None:
        """Refuse to mix results of different options, or data, in one folder; further arms, detectors and shares may
        come, and further seeds behind those that are there. ``write``: note down what they are, for all that comes.

        Raises :class:`OutputError` naming the difference; :class:`ConfigError` for a warm-up that is too long.
        """
        options = self.options
        for name in ("cells", "failed", "lists", "pretrain", "training", "leases"):
            refuse_way_out(options.out, options.out / name)
        check_warmups(options, self.trainings.tuning)
        seeds = options.seeds if any(options.shares) else []  # without labels none is read
        freeze(options.out, options.frozen() | {"seeds": seeds}, self.contents, options.arms, write)
        if write and options.val_share and len(self.val):
            _write_list(options.out / "lists" / "val.txt", self.val.names)

    @cached_property
    def contents(self) -> dict[str, Content]:
        """All data that cells depend on, by what it is called in ``benchmark.json``."""
        return contents_of(self.options, self._data(), self.unlabelled)

    def confirm(self) -> None:
        """With a cell's lease in hand, look once whether what was frozen still stands: from then on it will.
        :class:`ConfigError` where another command was quicker to begin, with other options."""
        if self._confirmed:
            return
        try:
            self.freeze()
        except OutputError as error:  # no other cell would be made either, and what is there is not ours
            self.overtaken = True
            raise ConfigError(str(error)) from error
        self._confirmed = True

    def digest_of(self, cell: Cell) -> str:
        """Of the options and the data that a cell depends on."""
        return digest_of(self.options.frozen(), self.contents, cell, self.options.way_of(cell.arm).origin)

    def _data(self) -> dict[str, PairDataset]:
        """The pairs that cells depend on, by what they are called in ``benchmark.json``."""
        own = {"the training split": self.train, "the validation split": self.val} if any(self.options.shares) else {}
        own |= {"the test split": self.test}
        given = {f"the list of {share} %": self.few(share, 0) for share in self._listed_shares()}
        return own | given | {f"the set of {arm}": pairs for arm, pairs in self.trainings.sets.items()}

    def _training_splits(self) -> tuple[PairDataset, PairDataset]:
        """Training and validation pairs, none where nothing is trained on labels; validation pairs are drawn from the
        others if the dataset defines none."""
        options = self.options
        if not any(options.shares):
            return self.test.subset([]), self.test.subset([])
        train = load_pairs(options.pairs, options.train_split, options.finetune.max_megapixels)
        if not options.val_share:
            return train, load_pairs(options.pairs, options.val_split, options.finetune.max_megapixels)
        held = max(1, round(len(train) * options.val_share / 100))
        left = f"a share that leaves pairs to learn from (it takes {held} of {len(train)} of {options.train_split})"
        require(held < len(train), "val_share", options.val_share, left)
        # The same pairs for every seed of the protocol.
        order = stream("benchmark.held_out", HELD_OUT_SEED).permutation(len(train))
        names = sorted(train.names[i] for i in order[:held])
        return train.subset(sorted(set(train.names) - set(names))), train.subset(names)

    def cells(self) -> Iterator[Cell]:
        """All of them, cheap ones first within a detector, and seed by seed, so that what is finished can be compared.
        Zero-shot has a seed for each pre-training, since nothing else is drawn: one where a detector that was handed in
        is the same for several."""
        options = self.options
        for detector in options.detectors:
            for share in sorted(options.shares):
                seeds = options.pretrain_seeds if share == 0 else options.seeds[: options.count_of_seeds(share)]
                for seed in seeds:
                    for arm in options.arms_at(share):
                        if share or self.trainings.first_alike(detector, arm, seed) == seed:
                            yield Cell(detector, arm, share, seed)

    def few(self, share: int, seed: int) -> PairDataset:
        """``share`` percent of the training split: a given list, else drawn by ``seed``, and written down."""
        if share == 100:
            return self.train
        if self.options.lists is not None:
            return self.train.listed(self.options.lists / f"{share}.txt", "the training split")
        count = max(1, round(len(self.train) * share / 100))
        order = stream("benchmark.subset", seed).permutation(len(self.train))
        names = sorted(self.train.names[i] for i in order[:count])  # the 5 % are among the 10 %
        _write_list(self.options.out / "lists" / f"{share}-seed{seed}.txt", names)
        return self.train.subset(names)

    def is_finished(self, cell: Cell) -> bool:
        """Whether the cell has its score."""
        return (self.options.out / "cells" / f"{cell.key}.json").is_file()

    def finish(self, cell: Cell) -> None:
        """Train and score one cell, and write its score down. Where several processes share OUT it is called with the
        cell's lease in hand (:func:`alone`), by which the others see that the folder is begun."""
        self.confirm()
        record = self.score(cell) | {"frozen": self.digest_of(cell)}
        atomic_write(self.options.out / "cells" / f"{cell.key}.json", (to_json(record, indent=1) + "\n").encode())
        _failure(self.options.out, cell).unlink(missing_ok=True)
        if not self.options.keep_weights and cell.seed != self.options.seeds[0]:
            self.trainings.forget(cell)

    def score(self, cell: Cell) -> dict[str, Any]:
        """Train and score one cell."""
        started = time.perf_counter()
        options, origin = self.options, self.options.way_of(cell.arm).origin
        made_here = origin in options.pretraining
        details: dict[str, Any] = {"pretraining_steps": options.pretrain.num_steps if made_here else 0}
        if cell.share == 0:
            folder = self.trainings.pretrained(cell.detector, cell.arm, cell.seed)
        else:
            trained = self.trainings.of(cell)
            folder = trained.folder
            details |= {"learning_rate": trained.learning_rate, "steps": trained.steps, "validation_f1": trained.best}
            details |= {"candidates": trained.candidates, "rates": len(options.rates), "curve": trained.curve}
        if one_list(options, cell.share):
            details["one_list"] = True
        if origin:  # of the pre-training that it goes on from: seeds that share one are drawn together
            seed = self.trainings.seed_of_pretraining(cell.seed) if cell.share else cell.seed
            details["pretraining_seed"] = self.trainings.first_alike(cell.detector, origin, seed)
        scores, classes = self._scores(folder, self.test)
        whole = sum_of(scores)
        if classes is not None:
            details["semantic"] = classes.to_dict()
        seconds = round(time.perf_counter() - started, 1)
        scenes = self._by_scene(scores)
        return {**vars(cell), **whole.to_dict(), **details, **flags(whole), "seconds": seconds, "scenes": scenes}

    def _scores(self, folder: Path, pairs: PairDataset) -> tuple[list[ChangeScores], SemanticScores | None]:
        net = channels_last(load_detector(folder)[1].to(self.device))
        run = self.options.run
        return evaluate_classes(net, pairs, 8, self.device, run.mixed_precision, run.num_workers)

    @cached_property
    def scenes(self) -> list[str]:
        """The scene of each test pair."""
        numbers = range(len(self.test))
        recorded = [self.test.record_of(number).get("scene") for number in numbers]
        return scenes_of([self.test.key_of(number) for number in numbers], recorded)

    def _by_scene(self, scores: list[ChangeScores]) -> dict[str, list[int]]:
        """Counts of the test pairs, added up by scene."""
        found: dict[str, list[int]] = {}
        for scene, one in zip(self.scenes, scores, strict=True):
            counts = found.setdefault(scene, [0] * len(COUNTS))
            for place, count in enumerate(COUNTS):
                counts[place] += getattr(one, count)
        return found

    def finished(self) -> list[dict[str, Any]]:
        """Scores of the cells that are finished. Raises :class:`OutputError` for one that was scored on other scenes
        than the test split has now: no gain could be taken scene by scene; and for one of other options or data."""
        cells = {self.options.out / "cells" / f"{cell.key}.json": cell for cell in self.cells()}
        records = {file: noted(file) for file in cells if file.is_file()}
        for file, record in records.items():
            require_scenes(file, record, set(self.scenes))
            digest, trained = self.digest_of(cells[file]), self.options.out / "training" / f"{cells[file].key}-*"
            if record.get("frozen", digest) != digest:  # earlier editions wrote none
                what = "was scored with other options, or other data"
                raise OutputError(f"{file}: {what}; delete it and {trained} to make it anew, or give another --out")
            if one_list(self.options, cells[file].share):  # cells of earlier editions do not say so
                record["one_list"] = True
        return list(records.values())

    def write_results(self) -> list[dict[str, Any]]:
        """Tables, curves and panels of the cells that are finished, which are returned."""
        records = self.finished()
        if records:
            write_results(self.options, records, self.constants(), self.test)
        return records

    def constants(self) -> dict[str, dict[str, Any]]:
        """What predicting "changed" everywhere, or nowhere, scores: as :class:`ChangeScores` has it, and by scene."""
        labels = [label_of(self.test[i]) for i in range(len(self.test))]
        areas = [(int((label == 1).sum()), int((label == 0).sum())) for label in labels]
        kinds = {
            "all changed": [ChangeScores(changed, unchanged, 0, 0) for changed, unchanged in areas],
            "nothing changed": [ChangeScores(0, 0, changed, unchanged) for changed, unchanged in areas],
        }
        return {name: {**sum_of(s).to_dict(), "scenes": self._by_scene(s)} for name, s in kinds.items()}


def _write_list(file: Path, names: Sequence[str]) -> None:
    atomic_write(file, "".join(f"{name}\n" for name in names).encode())


def flags(scores: ChangeScores) -> dict[str, Any]:
    """Share of the ground that is called changed, and whether that means that the net has collapsed."""
    known = scores.true_positives + scores.false_positives + scores.false_negatives + scores.true_negatives
    share = (scores.true_positives + scores.false_positives) / max(known, 1)
    collapsed = "all changed" if share > ALL_CHANGED else "nothing changed" if share < NOTHING_CHANGED else None
    return {"predicted_share": share, "collapsed": collapsed}


def run_benchmark(
    options: BenchmarkOptions, progress: Progress = silent, stop: Event | None = None
) -> list[dict[str, Any]]:
    """All cells, then tables, curves and panels. Raises :class:`ShortfallError` at the end if a cell failed, whatever
    it failed of; an option that is not allowed ends the run. Where it is stopped, or ends in an error, tables, curves
    and panels are of the cells that are finished by then.

    Once ``stop`` is set the training at work ends with a checkpoint, in a :class:`KeyboardInterrupt`.
    """
    benchmark = Benchmark(options, progress, stop)
    benchmark.refuse_test_scenes()
    unfinished = [cell for cell in benchmark.cells() if not benchmark.is_finished(cell)]
    check_starts(options, unfinished, benchmark.trainings)
    benchmark.freeze(write=not options.dry_run)
    benchmark.finished()  # what is wrong with it is said before the training, not after
    write_plan(options, list(benchmark.cells()), benchmark.trainings)
    scenes = len(set(benchmark.scenes))
    if scenes < MIN_SCENES and comparisons(planned(options), options.claims):
        least = f"with fewer than {MIN_SCENES} that have a change"
        say(f"{options.pairs}: {scenes} test scenes; {least} no gain is claimed")
    if options.dry_run:
        return []
    read_published(options.paper_tables, options.name)  # what is wrong with it is said before the training, not after
    cells = list(benchmark.cells())
    shared = options.out, options.pretrain_out or options.out / "pretrain"
    sweep(*shared)
    try:
        failed = _finish_all(benchmark, cells)
    finally:
        if not benchmark.overtaken:
            records = benchmark.write_results()
    sweep(*shared)
    if failed:
        raise ShortfallError(f"{options.out}: {len(failed)} of {len(cells)} cells failed: {'; '.join(failed)}")
    return records


def _finish_all(benchmark: Benchmark, cells: Sequence[Cell]) -> list[str]:
    """Every cell that is not finished, but for those that other processes are at; returns which failed, and why."""
    failed, pending, stop = [], list(enumerate(cells, 1)), benchmark.stop or Event()
    waiting, last = Waiting(), ""
    while pending:
        busy = list[tuple[int, Cell]]()
        for number, cell in pending:
            if benchmark.is_finished(cell):
                continue
            if stop.is_set():  # asked for between two trainings, or while others are waited for
                raise KeyboardInterrupt
            try:
                with alone(benchmark.options.out, cell.key):
                    if not benchmark.is_finished(cell):
                        say(f"cell {number} of {len(cells)}: {cell.key}")
                        benchmark.finish(cell)
            except BusyError as error:
                busy.append((number, cell))
                last = str(error)
            except ConfigError:  # no other cell would be made as it was asked
                raise
            except Exception as error:
                failed.append(_failed(benchmark.options.out, cell, error))
        if len(busy) == len(pending):  # all that is left is with others
            waiting.look(f"{len(pending)} of {len(cells)} cells are with others; {last}")
            stop.wait(POLL)
        pending = busy
    return failed


def _failure(out: Path, cell: Cell) -> Path:
    """File that says why a cell failed."""
    return out / "failed" / f"{cell.key}.txt"


def _failed(out: Path, cell: Cell, error: Exception) -> str:
    """Say in one line that a cell failed, and keep where; returns its name, and why."""
    why = " ".join(str(error).split())[:200]
    if not isinstance(error, ChangeAnywhereError):
        why = f"{type(error).__name__}: {why}" if why else type(error).__name__
    file = _failure(out, cell)
    with suppress(OSError, ChangeAnywhereError):  # the disk may be what it failed of
        atomic_write(file, "".join(traceback.format_exception(error)).encode())
    say(f"{cell.key}: failed ({why}); more in {file}" if file.is_file() else f"{cell.key}: failed ({why})", error=True)
    return f"{cell.key} ({why})"
