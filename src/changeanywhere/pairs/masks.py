"""Semantic masks of pairs, in the classes of the legend beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from changeanywhere.errors import PairsError
from changeanywhere.legend import Legend, Mask, MaskValues, read_legend
from changeanywhere.rasters.classes import check_mask, read_classes
from changeanywhere.rasters.facts import raising
from changeanywhere.rasters.gate import inspect_whole, read_stored, whole
from changeanywhere.rasters.values import PLAIN

LEGEND = "legend.json"


def legend_in(folder: Path) -> tuple[Legend | None, MaskValues]:
    """The legend of a set's folder, and what the numbers in its masks mean; None where there is no ``legend.json``."""
    file = folder / LEGEND
    return read_legend(file) if file.is_file() else (None, PLAIN)


def legend_of_changed(folder: Path) -> tuple[Legend | None, MaskValues]:
    """As :func:`legend_in`, of labels that name classes of changed ground: splits of SECOND share one above them."""
    legend, numbers = legend_in(folder)
    return (legend, numbers) if legend is not None else legend_in(folder.parent)


def class_of_zero(folder: Path) -> str:
    """The class that has the number 0 in such labels; empty where 0 is none."""
    legend, numbers = legend_of_changed(folder)
    counted = () if legend is None else numbers.counted(legend.num_classes)
    return legend.names[counted.index(0)] if legend is not None and 0 in counted else ""


def read_mask(path: Path, legend: Legend | None, numbers: MaskValues, max_megapixels: float | None) -> Mask:
    """Semantic mask uint8 ``[H, W]``: in ``legend`` where the set has one, ``numbers`` being what the file's own mean;
    else indices as they are stored. :class:`PairsError` and :class:`LegendError` name file and value."""
    with raising(PairsError):
        facts = inspect_whole(path, max_megapixels)
        if legend is not None:
            return read_classes(path, facts, whole(facts), legend, numbers)
        check_mask(path, facts)
        if facts.count > 2 and facts.palette is None:
            raise PairsError(f"{path}: a mask in colours; put the set's legend.json beside {path.parent.name}/")
        values, valid = read_stored(path, facts, whole(facts), None)
    indices = values[..., 0] if valid is None else np.where(valid, values[..., 0], 0)
    if indices.min(initial=0) < 0 or indices.max(initial=0) > 255 or (indices % 1).any():
        raise PairsError(f"{path}: mask values {indices.min():g} to {indices.max():g}; allowed: whole numbers 0 to 255")
    return np.ascontiguousarray(indices).astype(np.uint8)
