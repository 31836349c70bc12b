"""Figures of a generated set: what its changed and its unchanged ground show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import PairsError
from changeanywhere.evaluation.cases import Group, Ranking, groups_of
from changeanywhere.evaluation.differences import Difference, boundary_contrast, difference
from changeanywhere.evaluation.distances import HalvesComparison, against_halves, bootstrap_mean, bootstrap_median
from changeanywhere.evaluation.figures import FEWEST, GUESSING, MIN_OBJECTS, MIN_TILES, Figure, share_of_ceiling
from changeanywhere.evaluation.object_sets import readable
from changeanywhere.evaluation.options import EvaluateOptions
from changeanywhere.evaluation.probe import probe_accuracy
from changeanywhere.evaluation.reading import FEATURES, Extractor, Image, Reader
from changeanywhere.evaluation.scores import Confusion, Mask, ReadInstance, matched_recall, read_instances
from changeanywhere.folders import entries_of
from changeanywhere.models.perceptual import ShiftTolerantLPIPS
from changeanywhere.pairs.labels import LabelReader
from changeanywhere.pairs.layouts import IMAGE_SUFFIXES
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.progress import Progress, silent
from changeanywhere.rasters.facts import raising
from changeanywhere.rasters.gate import read_whole
from changeanywhere.sample import ChangePair, rgb8

FIDELITY = "mask fidelity of pairs"
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


@dataclass(frozen=True)
class Shown:
    """A pair of the page: as it was written, what a judge read of its painted image, what is said of it."""

    pair: ChangePair
    read: Mask | None
    said: tuple[str, ...]


@dataclass(frozen=True)
class PairFigures:
    """What was measured on a set, and pairs of it."""

    figures: list[Figure]
    groups: list[Group]
    shown: Mapping[int, Shown]
    """The pairs of the groups, by their number."""


def evaluate_pairs(
    dataset: PairDataset,
    names: tuple[str, ...],
    judge: Reader | None,
    features: Extractor,
    options: EvaluateOptions,
    progress: Progress = silent,
) -> PairFigures:
    """All figures of a set, from ``options.max_pairs`` evenly spaced pairs. The real date is the ceiling of the painted
    one. ``names``: classes of its semantic masks, which a judge needs; without a judge there may be none."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, options.max_pairs).astype(int))
    as_written = [readable(dataset[int(i)], masks=judge is not None) for i in chosen]
    pairs = [real_first(pair) for pair in as_written]
    figures, seed = [], options.seed
    read: Sequence[Mask | None] = [None] * len(pairs)
    recalls: dict[int, float] = {}
    if judge is not None:
        found, recalls, read = _mask_fidelity(pairs, names, judge, seed)
        figures += found
    found, contrasts, real = _seams(pairs, seed)
    figures += found
    if options.real_pairs is not None:
        figures += _unchanged_ground(pairs, options.real_pairs, dataset.max_megapixels, seed, progress)
    figures += shortcut(pairs, as_written, features, seed)
    groups = groups_of(_ranking(pairs, recalls, contrasts, real), len(pairs), options.num_panels)
    shown = {
        number: Shown(as_written[number], read[number], _said(as_written[number], number, recalls, contrasts))
        for group in groups
        for number in group.numbers
    }
    return PairFigures(figures, groups, shown)


def _ranking(
    pairs: Sequence[ChangePair], recalls: Mapping[int, float], contrasts: Mapping[int, float], real: float | None
) -> Ranking:
    """By what a judge read; without one, by how far the border of the change is from a real one."""
    if recalls:  # among pairs of which all or nothing was read, those where more changed come first
        areas = {number: int(pairs[number].change_mask.sum()) for number in recalls}
        values = {number: (recall, (recall - 0.5) * areas[number]) for number, recall in recalls.items()}
        return Ranking("the share of their new objects that the judge reads as the new class", values)
    if real is None:
        by = "the contrast at their change boundary, the lowest best: real borders to hold it against need masks"
        return Ranking(by, {number: (-contrast,) for number, contrast in contrasts.items()})
    far = {number: (-abs(float(np.log(max(value, 1e-6) / real))),) for number, value in contrasts.items()}
    return Ranking(f"how near the contrast at their change boundary is to that of real borders ({real:.3f})", far)


def _said(
    pair: ChangePair, number: int, recalls: Mapping[int, float], contrasts: Mapping[int, float]
) -> tuple[str, ...]:
    said = [f"{pair.change_mask.mean():.2%} changed"]
    if number in recalls:
        said.append(f"{recalls[number]:.0%} of its new objects read as their class")
    if number in contrasts:
        said.append(f"contrast at the boundary {contrasts[number]:.3f}")
    return tuple(said)


def real_first(pair: ChangePair) -> ChangePair:
    """The pair with its dates exchanged where the second one is the real one."""
    if pair.metadata.get("real_date", 1) == 1:
        return pair
    images, masks = (pair.image_t2, pair.image_t1), (pair.mask_t2, pair.mask_t1)
    seen = pair.seen[1], pair.seen[0]
    return replace(pair, image_t1=images[0], image_t2=images[1], mask_t1=masks[0], mask_t2=masks[1], seen=seen)


def _mask_fidelity(
    pairs: list[ChangePair], names: tuple[str, ...], judge: Reader, seed: int
) -> tuple[list[Figure], dict[int, float], list[Mask]]:
    """Figures, the mean recall of each pair's new objects where it has any, and what was read of painted images."""
    before, after = (judge([getattr(pair, name) for pair in pairs]) for name in ("image_t1", "image_t2"))
    painted, real = [], []
    unchanged = Confusion(len(names)), Confusion(len(names))
    for number, (pair, read_t1, read_t2) in enumerate(zip(pairs, before, after, strict=True)):
        assert pair.mask_t1 is not None and pair.mask_t2 is not None
        painted += read_instances(pair.mask_t2, read_t2, pair.change_mask, number)
        real += read_instances(pair.mask_t1, read_t1)
        for confusion, read in zip(unchanged, (read_t1, read_t2), strict=True):
            confusion.add(pair.mask_t1, read, ~pair.change_mask)
    figures = _recalls(painted, real, names, seed)
    classes = unchanged[0].frequent()
    beside, ours = (confusion.mean_iou(classes) for confusion in unchanged)
    note = f"{len(pairs)} pairs"
    iou = Figure(FIDELITY, "mean IoU, unchanged ground", ours, beside, note=note, count=len(pairs))
    figures.append(iou.where((len(pairs), FEWEST, "pairs")))
    by_pair: dict[int, list[float]] = {}
    for instance in painted:
        by_pair.setdefault(instance.group, []).append(instance.recall)
    return figures, {number: float(np.mean(some)) for number, some in by_pair.items()}, list(after)


def _recalls(painted: list[ReadInstance], real: list[ReadInstance], names: tuple[str, ...], seed: int) -> list[Figure]:
    """Recall of the new class, of all painted instances and class by class, beside real ones of like size."""
    known = {instance.class_index for instance in real}
    figures = []
    for class_index in (None, *sorted({instance.class_index for instance in painted})):
        some = [i for i in painted if class_index in (None, i.class_index) and i.class_index in known]
        ours, ceiling = matched_recall(some, real)
        if not ours:
            continue
        groups = np.array([instance.group for instance in some])
        estimate, beside = bootstrap_mean(np.array(ours), seed, groups=groups), float(np.mean(ceiling))
        if class_index is None:
            note = f"{len(ours)} painted instances; beside it real ones of the same class and size at date 1"
            name = "recall of the new class, changed ground"
            figure = share_of_ceiling(FIDELITY, name, estimate.value, beside, ASKED_RECALL, note)
        else:
            name, note = f"recall of new {names[class_index - 1]}", f"{len(ours)} instances"
            figure = Figure(FIDELITY, name, estimate.value, beside, note=note)
        figure = replace(figure, low=estimate.low, high=estimate.high, count=len(ours))
        figures.append(figure.where((len(ours), MIN_OBJECTS, "objects"), (len(set(groups)), MIN_TILES, "pairs")))
    return figures


def _seams(pairs: list[ChangePair], seed: int) -> tuple[list[Figure], dict[int, float], float | None]:
    """Contrast at the change boundary of image t2, beside that of real instances of the same classes in image t1; of
    each pair that has one; and that of real ones, None without masks."""
    painted: dict[int, float] = {}
    real = []
    for number, pair in enumerate(pairs):
        value = boundary_contrast(pair.image_t2, pair.change_mask, pair.ignored)
        if value is None:
            continue
        painted[number] = value
        if pair.mask_t1 is None or pair.mask_t2 is None:
            continue
        for class_index in np.unique(pair.mask_t2[pair.change_mask]):
            region = pair.mask_t1 == class_index
            if region.sum() >= MIN_REAL_AREA:
                reference = boundary_contrast(pair.image_t1, region, pair.ignored)
                if reference is not None:
                    real.append(reference)
    masked = any(pair.mask_t1 is not None for pair in pairs)
    if not painted or (masked and not real):
        return [], painted, None
    note = f"median of gradient on the boundary over gradient 4 to 12 px away; {len(painted)} pairs"
    note += "" if masked else "; real borders to stand beside it need semantic masks"
    values, ceiling = np.array(list(painted.values())), float(np.median(real)) if real else None
    figure = Figure("seams", "contrast at the change boundary", float(np.median(values)), ceiling, note=note)
    scenes = np.array([scene_of(pairs[number]) for number in painted])
    if len(set(scenes)) > 1:
        estimate = bootstrap_median(values, scenes, seed)
        figure = replace(figure, low=estimate.low, high=estimate.high)
    counts = [(len(painted), FEWEST, "pairs"), (len(set(scenes)), MIN_TILES, "scenes")]
    counts += [(len(real), FEWEST, "real borders")] if masked else []
    return [replace(figure, count=len(painted)).where(*counts)], painted, ceiling


def scene_of(pair: ChangePair) -> str:
    """Its scene by its record, else itself."""
    return str(pair.metadata.get("scene", pair.key))


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
    counts = [(len(measured[0]), FEWEST, "pairs"), (len(measured[1]), FEWEST, "real pairs")]
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
                count=len(measured[0]),
            ).where(*counts)
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
    scenes = np.array([scene_of(pairs[i]) for i in chosen])
    if len(np.unique(scenes)) < 2:
        return []
    counts = [(len(chosen), FEWEST, "pairs"), (len(np.unique(scenes)), MIN_TILES, "scenes")]
    note = f"linear probe on {FEATURES}; {len(chosen)} pairs {'without change' if chosen is still else 'of all kinds'}"

    def told(some: list[ChangePair]) -> float:
        first, second = ([_without_ignored(some[i], name) for i in chosen] for name in ("image_t1", "image_t2"))
        return probe_accuracy(features(first), features(second), scenes, seed)

    accuracy = told(pairs)
    blank = Figure("artefact shortcut", "", accuracy, 0.5, note=note, count=len(chosen), beside=GUESSING)
    figures = [
        replace(
            blank,
            name="accuracy of telling the painted image from the real one",
            target=f"at most {MAX_PROBE:.0%}",
            reached=accuracy <= MAX_PROBE,
        ).where(*counts)
    ]
    if any(pair.metadata.get("real_date", 1) != 1 for pair in as_written):  # else the same
        date = replace(
            blank,
            name="accuracy of telling date 2 from date 1",
            value=told(as_written),
            note=f"{note}; the order of dates is random, so that being painted says nothing about the date",
        )
        figures.append(date.where(*counts))
    return figures
