"""Figures of objects: painted ones beside real ones of the same class and like size, several sets side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from changeanywhere.evaluation.classifier import real_or_painted
from changeanywhere.evaluation.distances import Array, Estimate, bootstrap_mean, bootstrap_median, kid_of_places
from changeanywhere.evaluation.figures import GUESSING, MIN_OBJECTS, MIN_TILES, Figure
from changeanywhere.evaluation.object_sets import Looked, ObjectSet, look
from changeanywhere.evaluation.objects import SHOWN, Spot, counterparts, crops
from changeanywhere.evaluation.options import FIRST_STAGE, REAL
from changeanywhere.evaluation.reading import Extractor, Image
from changeanywhere.seeds import stream

MIN_CROPS = 200
"""Crops on a side from which a classifier is trained."""
MAX_CROPS = 400
"""More are drawn from; the classifier is then no better, only slower."""
HALVINGS = 20
"""Of the real objects, whose mean distance is that of real data."""
ASKED_AUC = 0.70
ALL = "all classes"
PICTURES = 8
"""Crops of a class and set on the page."""

Crops = dict[str, dict[str, Image]]
"""Class → set (and ``real data``) → its crops in one strip."""


@dataclass(frozen=True)
class Compared:
    """Objects of one set and their real counterparts, number by number; ``left_out`` have none."""

    name: str
    painted: Looked
    real: Looked
    left_out: int = 0

    def of_class(self, class_index: int | None) -> Compared:
        """Those of one class; None: all."""
        if class_index is None:
            return self
        chosen = np.flatnonzero(self.real.classes == class_index)
        return replace(self, painted=self.painted.only(chosen), real=self.real.only(chosen))


def compare(
    sets: Mapping[str, ObjectSet], real: ObjectSet, decoded: ObjectSet | None, features: Extractor, seed: int
) -> tuple[list[Compared], list[list[tuple[Spot, Spot]]]]:
    """Each set beside its counterparts, then (``decoded``) the counterparts of the first one through a first stage.

    With the pairs of spots of each set. Sets without a single object with a counterpart are left out.
    """
    found, matched = [], []
    for name, objects in sets.items():
        pairs = counterparts(objects.spots, real.spots, real.masks, stream("evaluation.objects", seed, 2))
        if not pairs:
            continue
        ours, theirs = look(objects, [a for a, _ in pairs], features), look(real, [b for _, b in pairs], features)
        found.append(Compared(name, ours, theirs, len(objects.spots) - len(pairs)))
        matched.append(pairs)
    if decoded is not None and found:
        spots = [b for _, b in matched[0]]
        found.append(Compared(FIRST_STAGE, look(decoded, spots, features), found[0].real))
        matched.append([(b, b) for b in spots])
    return found, matched


def object_figures(compared: Sequence[Compared], names: Sequence[str], seed: int) -> list[Figure]:
    """All figures: of all classes together, then class by class, set beside set."""
    present = sorted({int(c) for each in compared for c in each.real.classes})
    figures = []
    for class_index in (None, *present):
        section = f"objects: {ALL if class_index is None else f'new {names[class_index - 1]}'}"
        parts = [each.of_class(class_index) for each in compared]
        by_set = [_figures(section, part, seed, asked=class_index is None) for part in parts if len(part.real)]
        figures += sorted(
            (figure for figures in by_set for figure in figures),
            key=lambda figure: [other.name for other in by_set[0]].index(figure.name),
        )
    return figures


def _figures(section: str, both: Compared, seed: int, asked: bool) -> list[Figure]:
    painted, real = both.painted, both.real
    tiles = len(set(painted.tiles))
    note = f"{len(painted)} objects on {tiles} tiles"
    if asked and both.left_out:
        note += f"; {both.left_out} more have no real one of like size"
    few = len(painted) < MIN_OBJECTS or min(tiles, len(set(real.tiles))) < MIN_TILES
    blank = Figure(section, "", float("nan"), of=both.name, note=note, count=len(painted))
    withheld = replace(blank, note=f"withheld: {note}; {MIN_OBJECTS} on {MIN_TILES} tiles are the least")
    figures = []
    for kind, ours, theirs in _kinds(both):
        name = f"KID, {kind}"
        if few:
            figures.append(replace(withheld, name=name))
            continue
        estimate = kid_of_places(ours, theirs, (painted.places, real.places), seed)
        ceiling, halves = _between_halves(theirs, real, seed)
        figures.append(_with(replace(blank, name=name, note=f"{note}; {halves}"), estimate, ceiling))
    figures.append(_seam(blank, withheld, both, seed))
    if painted.reading is not None and real.reading is not None:
        named = replace(withheld if few else blank, name="read as its class")
        estimate = bootstrap_mean(painted.reading, seed, groups=painted.tiles)
        figures.append(named if few else _with(named, estimate, float(real.reading.mean())))
    return figures + [_told(blank, kind, both, (ours, theirs), seed, asked) for kind, ours, theirs in _kinds(both)]


def _kinds(both: Compared) -> list[tuple[str, Array, Array]]:
    return [
        ("object alone", both.painted.alone, both.real.alone),
        ("whole crop", both.painted.whole, both.real.whole),
    ]


def _with(figure: Figure, estimate: Estimate, ceiling: float) -> Figure:
    return replace(figure, value=estimate.value, low=estimate.low, high=estimate.high, ceiling=ceiling)


def _between_halves(features: Array, real: Looked, seed: int) -> tuple[float, str]:
    """The distance between two halves of the real objects, by tile: the mean of some halvings, and how far they go."""
    names = np.unique(real.tiles)
    rng = stream("evaluation.objects", seed, 3)
    found = []
    for _ in range(HALVINGS):
        half = np.isin(real.tiles, rng.permutation(names)[: len(names) // 2])
        first, second = ([p for p, chosen in zip(real.places, part, strict=True) if chosen] for part in (half, ~half))
        found.append(kid_of_places(features[half], features[~half], (first, second), seed, resamples=0).value)
    return float(np.mean(found)), f"halves of the real ones: {min(found):.3f} to {max(found):.3f}"


def _seam(blank: Figure, withheld: Figure, both: Compared, seed: int) -> Figure:
    """Over those that have one on both sides: the same shapes, or shapes of like size."""
    name = "seam contrast"
    there = np.flatnonzero(~np.isnan(both.painted.seam) & ~np.isnan(both.real.seam))
    tiles = both.painted.tiles[there]
    note = f"median; {len(there)} objects large enough to have ground on both sides of their border"
    if len(there) < MIN_OBJECTS or len(set(tiles)) < MIN_TILES:
        least = f"{MIN_OBJECTS} on {MIN_TILES} tiles are the least"
        return replace(withheld, name=name, note=f"withheld: {note}; {least}", count=len(there))
    estimate = bootstrap_median(both.painted.seam[there], tiles, seed)
    ceiling = float(np.median(both.real.seam[there]))
    return _with(replace(blank, name=name, note=note, count=len(there)), estimate, ceiling)


def _told(blank: Figure, kind: str, both: Compared, features: tuple[Array, Array], seed: int, asked: bool) -> Figure:
    """How well a classifier tells painted from real; nobody could at 0.5."""
    blank = replace(blank, name=f"real or painted (AUC), {kind}", beside=GUESSING)
    if len(both.painted) < MIN_CROPS:
        note = f"withheld: {len(both.painted)} crops a side; {MIN_CROPS} are the least"
        return replace(blank, note=note)
    chosen = np.sort(stream("evaluation.objects", seed, 4).permutation(len(both.painted))[:MAX_CROPS])
    ours, theirs = both.painted.only(chosen), both.real.only(chosen)
    told = real_or_painted(
        np.concatenate([part[chosen] for part in features]),
        np.arange(2 * len(chosen)) < len(chosen),
        [*ours.scenes, *theirs.scenes],
        [*ours.places, *theirs.places],
        seed,
    )
    if told is None:
        return replace(blank, note="withheld: fewer than three scenes, or no fold with both kinds")
    note = f"{len(chosen)} crops a side, scenes held out"
    if told.learned_from < 0.995:
        note += f"; learned from {told.learned_from:.0%} of the others, which share no tile or donor with the tested"
    figure = replace(_with(blank, told.area, 0.5), note=note, count=len(chosen))
    if not asked or both.name == FIRST_STAGE:
        return figure
    return replace(figure, target=f"at most {ASKED_AUC:.2f}", reached=told.area.value <= ASKED_AUC)


def object_pictures(
    sets: Mapping[str, ObjectSet],
    real: ObjectSet,
    compared: Sequence[Compared],
    matched: Sequence[Sequence[tuple[Spot, Spot]]],
    names: Sequence[str],
) -> Crops:
    """Strips of :data:`PICTURES` crops, evenly spaced, not chosen; the real ones are counterparts of the first set."""
    pictures: Crops = {}
    for number, (each, pairs) in enumerate(zip(compared, matched, strict=True)):
        for class_index in sorted({spot.class_index for _, spot in pairs}):
            of_class = [pair for pair in pairs if pair[1].class_index == class_index]
            some = [of_class[i] for i in np.unique(np.linspace(0, len(of_class) - 1, PICTURES).astype(int))]
            strips = pictures.setdefault(names[class_index - 1], {})
            if number == 0:
                strips[REAL] = _strip(real, [b for _, b in some])
            strips[each.name] = _strip(sets[each.name], [a for a, _ in some])
    return pictures


def _strip(objects: ObjectSet, spots: Sequence[Spot]) -> Image:
    shown: list[npt.NDArray[np.uint8]] = [np.full((SHOWN, SHOWN, 3), 255, np.uint8)] * PICTURES
    shown[: len(spots)] = crops(objects.images, spots, alone=False)
    return np.concatenate(shown, axis=1)
