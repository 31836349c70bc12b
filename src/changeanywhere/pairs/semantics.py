"""Classes of both dates, as a semantic change detector learns them: full masks, or SECOND's, which name the classes of
changed ground alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from changeanywhere.errors import LegendError, PairsError
from changeanywhere.legend import Legend, LegendClass, Mask, MaskValues, load_legend
from changeanywhere.pairs.layouts import UNCHANGED_WHITE
from changeanywhere.pairs.masks import legend_of_changed
from changeanywhere.pairs.names import MASK_FOLDERS
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.rasters.classes import read_classes
from changeanywhere.rasters.facts import raising
from changeanywhere.rasters.gate import inspect_whole, whole
from changeanywhere.rasters.values import PLAIN
from changeanywhere.regular import read_regular
from changeanywhere.sample import ChangePair

SECOND = "second"
"""Name of the legend of the official download, which brings none."""


def legend_of(pairs: PairDataset) -> Legend | None:
    """The legend in which :func:`classes_of` speaks; None where nothing says what changed ground is."""
    return _stated(pairs)[0]


def classes_of(pairs: PairDataset, number: int, pair: ChangePair) -> tuple[Mask, Mask]:
    """Classes of both dates of ``pair``, the ``number``-th: uint8 ``[H, W]`` in :func:`legend_of`, 0 = not known.

    Raises :class:`PairsError` where the set has none, :class:`LegendError` for a colour or value that is no class.
    """
    if pair.mask_t1 is not None and pair.mask_t2 is not None and pairs.legend is not None:
        return pair.mask_t1, pair.mask_t2
    legend, numbers = _stated(pairs)
    if legend is None:
        raise PairsError(f"{pairs.folder}: {NO_CLASSES}")
    first, second = (_read(pairs, folder, number, legend, numbers) for folder in MASK_FOLDERS)
    for folder, mask in zip(MASK_FOLDERS, (first, second), strict=True):
        if mask.shape != pair.change_mask.shape:
            where = pairs.folder / folder / pairs.names[number]
            raise PairsError(f"{where}: {mask.shape} px, the label has {pair.change_mask.shape}")
    return first, second


def hash_of(pairs: PairDataset) -> str:
    """As ``content_hash``, and of the names and colours of the classes, and of both of SECOND's labels."""
    legend, numbers = _stated(pairs)
    digest = hashlib.sha256(repr((pairs.content_hash(), legend and legend.classes)).encode())
    if legend is not None and pairs.legend is None:
        if not numbers.is_plain:
            digest.update(repr(numbers).encode())
        for name in pairs.names:
            for folder in MASK_FOLDERS:
                file = pairs.find(folder, name)
                digest.update(hashlib.sha256(read_regular(file)).digest() if file else b"none")
    return digest.hexdigest()[:16]


NO_CLASSES = (
    "has no classes of both dates; expected label1/ and label2/ with a legend.json beside them, or SECOND's im1/, "
    "im2/, label1/, label2/"
)


def _stated(pairs: PairDataset) -> tuple[Legend | None, MaskValues]:
    """:func:`legend_of`, and what the numbers in the files of masks mean."""
    if pairs.legend is not None:
        return pairs.legend, pairs.numbers
    if not _names_changed_ground(pairs):
        return None, PLAIN
    legend, numbers = legend_of_changed(pairs.folder)
    return (load_legend(SECOND), PLAIN) if legend is None else (legend, numbers)


def _names_changed_ground(pairs: PairDataset) -> bool:
    return all((pairs.folder / name).is_dir() for name in ("im1", "im2", *MASK_FOLDERS))


def _read(pairs: PairDataset, folder: str, number: int, legend: Legend, numbers: MaskValues) -> Mask:
    """SECOND's rule: white, or in a mask of numbers what is no class (0, ``ignore_index``), is ground that has not
    changed."""
    name = pairs.names[number]
    file = pairs.find(folder, name)
    if file is None:
        raise PairsError(f"{pairs.folder / folder / name}: missing")
    with raising(PairsError):
        facts = inspect_whole(file, pairs.max_megapixels)
        if facts.count <= 2 and (facts.palette is None or not numbers.own_colours):  # no white there
            return read_classes(file, facts, whole(facts), legend, numbers)
        mask = read_classes(file, facts, whole(facts), *_with_unchanged(legend, numbers, file))
    return mask * (mask <= legend.num_classes)


def _with_unchanged(legend: Legend, numbers: MaskValues, file: Path) -> tuple[Legend, MaskValues]:
    """``legend`` and a class more, which is white, under a number that is free."""
    if UNCHANGED_WHITE in (c.color for c in legend.classes):
        raise LegendError(f"{file}: white means unchanged here; in the legend {legend.name!r} it is a class")
    more = LegendClass(legend.num_classes + 1, "unchanged ground", UNCHANGED_WHITE)
    if numbers.of_classes is not None:
        free = max(*numbers.of_classes, *numbers.ignored, 0) + 1
        numbers = replace(numbers, of_classes=(*numbers.of_classes, free))
    return replace(legend, classes=(*legend.classes, more)), numbers
