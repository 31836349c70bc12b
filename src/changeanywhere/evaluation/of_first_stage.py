"""Figures of a first stage: what encoding and decoding leaves of real tiles and of the objects in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from changeanywhere.evaluation.distances import bootstrap_mean, kid_of_places
from changeanywhere.evaluation.figures import FEWEST, MIN_OBJECTS, MIN_TILES, Figure, estimated
from changeanywhere.evaluation.object_sets import MAX_OBJECTS, Looked, ObjectSet, look
from changeanywhere.evaluation.reading import Extractor, to_tensor
from changeanywhere.models.perceptual import ShiftTolerantLPIPS
from changeanywhere.seeds import stream

ASKED_READING = 0.85


@torch.no_grad()
def first_stage_figures(
    real: ObjectSet, decoded: ObjectSet, names: Sequence[str], features: Extractor, seed: int
) -> list[Figure]:
    """``decoded``: the same tiles and objects as ``real``, encoded and decoded; nothing is painted."""
    section = "first stage: real tiles, encoded and decoded"
    metric = ShiftTolerantLPIPS()
    noise, distance = [], []
    for number, image in real.images.items():
        first, second = (to_tensor([each]) for each in (image, decoded.images[number]))
        error = max(float((first - second).square().mean()), 1e-10)  # 106 dB: the same to the last bit
        noise.append(10 * np.log10(4 / error))
        distance.append(float(metric(first, second)))
    note = f"mean of {len(noise)} tiles"
    figures = [
        estimated(section, "PSNR (dB)", bootstrap_mean(np.array(noise), seed), note=note),
        estimated(section, "ST-LPIPS", bootstrap_mean(np.array(distance), seed), 0.0, note),
    ]
    figures = [replace(figure, count=len(noise)).where((len(noise), FEWEST, "tiles")) for figure in figures]
    rng = stream("evaluation.objects", seed, 5)
    for class_index in sorted({spot.class_index for spot in real.spots}):
        spots = [spot for spot in real.spots if spot.class_index == class_index]
        spots = [spots[i] for i in sorted(rng.permutation(len(spots))[:MAX_OBJECTS])]
        both = look(decoded, spots, features), look(real, spots, features)
        figures += _of_class(f"first stage: real {names[class_index - 1]} in place", *both, seed)
    return figures


def _of_class(section: str, decoded: Looked, real: Looked, seed: int) -> list[Figure]:
    tiles = len(set(real.tiles))
    note = f"{len(real)} objects on {tiles} tiles"
    blank = Figure(section, "", float("nan"), note=note, count=len(real))
    if len(real) < MIN_OBJECTS or tiles < MIN_TILES:
        least = f"{MIN_OBJECTS} on {MIN_TILES} tiles are the least"
        return [replace(blank, name="KID and reading", note=f"withheld: {note}; {least}")]
    figures = []
    if decoded.reading is not None and real.reading is not None:
        figures.append(_reading(blank, decoded, real, seed))
    for kind, ours, theirs in (
        ("whole crop", decoded.whole, real.whole),
        ("object alone", decoded.alone, real.alone),
    ):
        estimate = kid_of_places(ours, theirs, (decoded.places, real.places), seed)
        figures.append(replace(estimated(section, f"KID, {kind}", estimate, 0.0, note), count=len(real)))
    return figures


def _reading(blank: Figure, decoded: Looked, real: Looked, seed: int) -> Figure:
    """The mean share of an object that is read as its class, over that of the raw one: 1 = nothing is lost."""
    assert decoded.reading is not None and real.reading is not None
    groups = np.unique(real.tiles, return_inverse=True)[1]
    sums = [np.bincount(groups, reading) for reading in (decoded.reading, real.reading)]
    name, raw = "read as its class, over raw", float(real.reading.mean())
    if raw == 0:
        return replace(blank, name=name, note=f"withheld: the judge reads none of the raw ones; {blank.note}")
    chosen = stream("evaluation.share", seed).integers(groups.max() + 1, size=(1000, groups.max() + 1))
    ours, theirs = (each[chosen].sum(1) for each in sums)
    low, high = np.percentile(ours[theirs > 0] / theirs[theirs > 0], [2.5, 97.5])
    value = float(decoded.reading.mean()) / raw
    return replace(
        blank,
        name=name,
        value=value,
        ceiling=1.0,
        low=float(low),
        high=float(high),
        target=f"at least {ASKED_READING:.0%} of raw",
        reached=value >= ASKED_READING,
        note=f"raw {raw:.3f}, decoded {value * raw:.3f}; {blank.note}",
    )
