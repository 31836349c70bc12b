"""Figures of a generated set: what its changed and its unchanged ground show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import PairsError
from changeanywhere.evaluation.differences import Difference, boundary_contrast, difference
from changeanywhere.evaluation.distances import HalvesComparison, against_halves, bootstrap_mean
from changeanywhere.evaluation.figures import Figure, share_of_ceiling
from changeanywhere.evaluation.object_sets import readable
from changeanywhere.evaluation.probe import probe_accuracy
from changeanywhere.evaluation.reading import FEATURES, Extractor, Image, Reader
from changeanywhere.evaluation.scores import Confusion, matched_recall, read_instances
from changeanywhere.folders import entries_of
from changeanywhere.models.perceptual import ShiftTolerantLPIPS
from changeanywhere.pairs.labels import LabelReader
from changeanywhere.pairs.layouts import IMAGE_SUFFIXES
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.progress import Progress, silent
from changeanywhere.rasters.facts import raising
from changeanywhere.rasters.gate import read_whole
from changeanywhere.sample import ChangePair, rgb8

ASKED_RECALL = 0.70
MAX_RATIO = 1.5
MAX_PROBE = 0.60
MIN_REAL_AREA = 64
"""Real instances below this area (px) are no reference for borders."""
DIFFERENCES = {
    "colour_shift": "colour shift (ΔE)",
    "gradient_correlation": "gradient correlation",
    "st_lpips": "ST-LPIPS",
}


def evaluate_pairs(
    dataset: PairDataset,
    names: tuple[str, ...],
    judge: Reader | None,
    features: Extractor,
    real_pairs: Path | None,
    max_pairs: int,
    seed: int,
    progress: Progress = silent,
) -> list[Figure]:
    """All figures of a set, from ``max_pairs`` evenly spaced pairs. The real date is the ceiling of the painted one."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, max_pairs).astype(int))
    as_written = [readable(dataset[int(i)]) for i in chosen]
    pairs = [real_first(pair) for pair in as_written]
    figures = []
    if judge is not None:
        figures += _mask_fidelity(pairs, names, judge, seed)
    figures += _seams(pairs)
    if real_pairs is not None:
        figures += _unchanged_ground(pairs, real_pairs, dataset.max_megapixels, seed, progress)
    figures += shortcut(pairs, as_written, features, seed)
    return figures


def real_first(pair: ChangePair) -> ChangePair:
    """The pair with its dates exchanged where the second one is the real one."""
    if pair.metadata.get("real_date", 1) == 1:
        return pair
    return replace(pair, image_t1=pair.image_t2, image_t2=pair.image_t1, mask_t1=pair.mask_t2, mask_t2=pair.mask_t1)


def _mask_fidelity(pairs: list[ChangePair], names: tuple[str, ...], judge: Reader, seed: int) -> list[Figure]:
    section = "mask fidelity of pairs"
    before = judge([pair.image_t1 for pair in pairs])
    after = judge([pair.image_t2 for pair in pairs])
    painted, real = [], []
    unchanged = Confusion(len(names)), Confusion(len(names))
    for number, (pair, read_t1, read_t2) in enumerate(zip(pairs, before, after, strict=True)):
        assert pair.mask_t1 is not None and pair.mask_t2 is not None
        painted += read_instances(pair.mask_t2, read_t2, pair.change_mask, number)
        real += read_instances(pair.mask_t1, read_t1)
        for confusion, read in zip(unchanged, (read_t1, read_t2), strict=True):
            confusion.add(pair.mask_t1, read, ~pair.change_mask)
    figures = []
    ours, ceiling = matched_recall(painted, real)
    if ours:
        note = f"{len(ours)} painted instances; beside it real ones of the same class and size at date 1"
        known = {instance.class_index for instance in real}
        groups = np.array([instance.group for instance in painted if instance.class_index in known])
        estimate = bootstrap_mean(np.array(ours), seed, groups=groups)
        figure = share_of_ceiling(
            section,
            "recall of the new class, changed ground",
            estimate.value,
            float(np.mean(ceiling)),
            ASKED_RECALL,
            note,
        )
        figures.append(Figure(**{**figure.to_dict(), "low": estimate.low, "high": estimate.high}))
        for class_index in sorted({i.class_index for i in painted}):
            some = [i for i in painted if i.class_index == class_index]
            one, other = matched_recall(some, real)
            if one:
                name = f"recall of new {names[class_index - 1]}"
                figures.append(
                    Figure(section, name, float(np.mean(one)), float(np.mean(other)), note=f"{len(one)} instances")
                )
    classes = unchanged[0].frequent()
    figures.append(
        Figure(section, "mean IoU, unchanged ground", unchanged[1].mean_iou(classes), unchanged[0].mean_iou(classes))
    )
    return figures


def _seams(pairs: list[ChangePair]) -> list[Figure]:
    """Contrast at the change boundary of image t2, beside that of real instances of the same classes in image t1."""
    painted, real = [], []
    for pair in pairs:
        assert pair.mask_t1 is not None and pair.mask_t2 is not None
        value = boundary_contrast(pair.image_t2, pair.change_mask, pair.ignored)
        if value is None:
            continue
        painted.append(value)
        for class_index in np.unique(pair.mask_t2[pair.change_mask]):
            region = pair.mask_t1 == class_index
            if region.sum() >= MIN_REAL_AREA:
                reference = boundary_contrast(pair.image_t1, region, pair.ignored)
                if reference is not None:
                    real.append(reference)
    if not painted or not real:
        return []
    note = f"median of gradient on the boundary over gradient 4 to 12 px away; {len(painted)} pairs"
    return [
        Figure("seams", "contrast at the change boundary", float(np.median(painted)), float(np.median(real)), note=note)
    ]


def compare_differences(ours: list[Difference], real: list[Difference], seed: int) -> dict[str, HalvesComparison]:
    """Per kind of difference: distance to the real distribution, beside that between halves of the real one."""
    found = {}
    for name in DIFFERENCES:
        values, reference = (np.array([getattr(d, name) for d in part], float) for part in (ours, real))
        found[name] = against_halves(values, reference, seed)
    return found


def _unchanged_ground(
    pairs: list[ChangePair], real_pairs: Path, max_megapixels: float | None, seed: int, progress: Progress
) -> list[Figure]:
    metric = ShiftTolerantLPIPS()
    real_images = read_real_pairs(real_pairs, max_megapixels)
    measured: tuple[list[Difference], list[Difference]] = ([], [])
    ours = [(p.image_t1, p.image_t2, p.change_mask if p.ignored is None else p.change_mask | p.ignored) for p in pairs]
    done = 0
    for found, images in zip(measured, (ours, real_images), strict=True):
        for first, second, change in images:
            one = difference(first, second, change, metric)
            if one is not None:
                found.append(one)
            done += 1
            progress("unchanged ground", done, len(ours) + len(real_images))
    if not measured[0] or len(measured[1]) < 2:
        raise PairsError(
            f"{real_pairs}: {len(measured[1])} usable real pairs, {len(measured[0])} usable pairs of the set; two real "
            "ones and one of the set are the least (too little unchanged ground counts as unusable)"
        )
    figures = []
    for name, comparison in compare_differences(*measured, seed=seed).items():
        figures.append(
            Figure(
                "realism of unchanged ground (Wasserstein distance to real pairs)",
                DIFFERENCES[name],
                comparison.distance,
                comparison.between_halves,
                target=f"at most {MAX_RATIO} times the distance between two real halves",
                reached=comparison.ratio <= MAX_RATIO,
                note=f"median {np.median([getattr(d, name) for d in measured[0]]):.3f} in {len(measured[0])} pairs, "
                f"{np.median([getattr(d, name) for d in measured[1]]):.3f} in {len(measured[1])} real ones",
            )
        )
    return figures


def read_real_pairs(
    folder: Path, max_megapixels: float | None = None
) -> list[tuple[Image, Image, npt.NDArray[np.bool_]]]:
    """``A/`` and ``B/`` with equal stems, and ``label/`` where there is one; else nothing changed.

    Ground that is ignored counts as changed: what is measured on unchanged ground leaves both out.
    """
    found, labels = [], folder / "label"
    told = LabelReader(
        lambda: [file for file in entries_of(labels) if file.suffix.lower() in IMAGE_SUFFIXES],
        max_megapixels=max_megapixels,
    )
    for file in entries_of(folder / "A"):
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        (first, unseen), (second, unseen_t2) = (
            _read(each, max_megapixels) for each in (file, _same_stem(folder / "B", file.stem))
        )
        if first.shape != second.shape:
            raise PairsError(f"{file}: {first.shape[:2]} px, image B has {second.shape[:2]}")
        changed = np.zeros(first.shape[:2], bool)
        if labels.is_dir():
            changed, ignored = told.read(_same_stem(labels, file.stem))
            changed = changed if ignored is None else changed | ignored
        if changed.shape != first.shape[:2]:
            raise PairsError(f"{file}: {first.shape[:2]} px, its label has {changed.shape}")
        found.append((first, second, changed | unseen | unseen_t2))
    if not found:
        raise PairsError(f"{folder}: no image pairs; expected A/ and B/ with equal file names")
    return found


def _same_stem(folder: Path, stem: str) -> Path:
    for suffix in IMAGE_SUFFIXES:
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise PairsError(f"{folder / stem}: missing")


def _read(file: Path, max_megapixels: float | None) -> tuple[Image, npt.NDArray[np.bool_]]:
    """uint8 ``[H, W, 3]``, and where it shows nothing, bool ``[H, W]``."""
    with raising(PairsError):
        image, valid, _ = read_whole(file, max_megapixels)
    nothing = np.zeros(image.shape[:2], bool)
    pair = ChangePair(file.name, image, image, nothing)
    return rgb8(pair)[0], nothing if valid is None else ~valid


def _without_ignored(pair: ChangePair, name: str) -> Image:
    """An image of ``pair``, black where ignored in both: a border of one date alone tells nothing of its pixels."""
    image: Image = getattr(pair, name)
    return image if pair.ignored is None else np.where(pair.ignored[..., None], 0, image).astype(np.uint8)


def shortcut(pairs: list[ChangePair], as_written: list[ChangePair], features: Extractor, seed: int) -> list[Figure]:
    """On pairs without change where the set has them, else on all. ``pairs``: the same with the real date first."""
    still = [i for i, pair in enumerate(pairs) if not pair.change_mask.any()]
    chosen = still if len(still) >= 20 else list(range(len(pairs)))
    scenes = np.array([str(pairs[i].metadata.get("scene", pairs[i].key)) for i in chosen])
    if len(np.unique(scenes)) < 2:
        return []
    note = f"linear probe on {FEATURES}; {len(chosen)} pairs {'without change' if chosen is still else 'of all kinds'}"

    def told(some: list[ChangePair]) -> float:
        first, second = ([_without_ignored(some[i], name) for i in chosen] for name in ("image_t1", "image_t2"))
        return probe_accuracy(features(first), features(second), scenes, seed)

    accuracy = told(pairs)
    figures = [
        Figure(
            "artefact shortcut",
            "accuracy of telling the painted image from the real one",
            accuracy,
            0.5,
            target=f"at most {MAX_PROBE:.0%}",
            reached=accuracy <= MAX_PROBE,
            note=note,
        )
    ]
    if any(pair.metadata.get("real_date", 1) != 1 for pair in as_written):  # else the same
        figures.append(
            Figure(
                "artefact shortcut",
                "accuracy of telling date 2 from date 1",
                told(as_written),
                0.5,
                note=f"{note}; the order of dates is random, so that being painted says nothing about the date",
            )
        )
    return figures
