"""Weights of class transitions: a table of the user's, the default of a legend, or what the source itself suggests.

YAML (class names of the masks' legend)::

    default: 1            # weight of every transition that is not named
    weights:
      bareland: {building: 5, road: 2}
    forbid:
      - [water, building]
      - [road, "*"]       # nothing becomes of roads
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.documents import DocumentError, parse_yaml
from changeanywhere.errors import LegendError
from changeanywhere.events.instances import find_instances
from changeanywhere.events.options import EventOptions
from changeanywhere.folders import read_text
from changeanywhere.legend import Legend, Mask

ANY = "*"
SHIPPED = ("default", "buildings", "houses")
"""Tables of the package: what commonly becomes of what, what a cleared (or built) neighbourhood shows, houses alone."""


@dataclass(frozen=True)
class TransitionTable:
    """``weights`` float ``[K + 1, K + 1]``, row = from, column = to, 0 = forbidden; row and column 0 are unused."""

    legend: Legend
    weights: npt.NDArray[np.float64]

    def weight(self, before: int, after: int) -> float:
        """Weight of one transition."""
        return float(self.weights[before, after])

    def to_dict(self) -> dict[str, dict[str, float]]:
        """From → to → weight, by names, for provenance; equal classes left out."""
        names = self.legend.names
        return {
            a: {b: float(self.weights[i, j]) for j, b in enumerate(names, 1) if i != j} for i, a in enumerate(names, 1)
        }


def load_table(name_or_file: str, legend: Legend) -> TransitionTable:
    """A shipped table (:data:`SHIPPED`, by class names) or a YAML file; :class:`LegendError` naming what is wrong."""
    if name_or_file in SHIPPED:
        text = (resources.files("changeanywhere") / "assets" / "transitions" / f"{name_or_file}.yaml").read_text()
        return parse_table(parse_yaml(text), legend, name_or_file, foreign_names=True)
    try:
        content = parse_yaml(read_text(Path(name_or_file)))
    except OSError as error:
        raise LegendError(f"{name_or_file}: cannot be read ({error.strerror})") from error
    except DocumentError as error:
        raise LegendError(f"{name_or_file}: {error}") from error
    return parse_table(content, legend, name_or_file)


def parse_table(content: Any, legend: Legend, where: str, foreign_names: bool = False) -> TransitionTable:
    """The content of a table file; ``foreign_names``: classes that are not in ``legend`` are passed over."""
    if not isinstance(content, dict) or set(content) - {"default", "weights", "forbid"}:
        raise LegendError(f"{where}: not a transition table; allowed keys: default, weights, forbid")

    def indices(name: Any) -> list[int]:
        if name == ANY:
            return list(range(1, legend.num_classes + 1))
        if name not in legend.names:
            if foreign_names:
                return []
            raise LegendError(
                f"{where}: {name!r} is not a class of legend {legend.name!r}; allowed: {', '.join(legend.names)}"
            )
        return [legend.index_of(name)]

    weights = np.full((legend.num_classes + 1,) * 2, _number(content.get("default", 1), where))
    rows, forbidden = content.get("weights") or {}, content.get("forbid") or []
    if not isinstance(rows, dict) or not isinstance(forbidden, list):
        raise LegendError(f"{where}: weights must be 'class: {{class: number}}', forbid a list of [from, to]")
    for before, row in rows.items():
        if not isinstance(row, dict):
            raise LegendError(f"{where}: weights of {before!r} must be 'class: number' pairs")
        for after, weight in row.items():
            for i in indices(before):
                for j in indices(after):
                    weights[i, j] = _number(weight, where)
    for pair in forbidden:
        if not isinstance(pair, list) or len(pair) != 2:
            raise LegendError(f"{where}: forbid entry {pair!r} must be [from, to]")
        for i in indices(pair[0]):
            weights[i, indices(pair[1])] = 0
    return TransitionTable(legend, weights)


def learn_table(masks: Iterable[Mask], legend: Legend) -> TransitionTable:
    """Weights from what lies next to what: the share of contact between two classes, from → to = who borders whom.

    A class appears upon, and dissolves into, what it borders in the source; pairs that never touch get 0.
    """
    contact = np.zeros((256, 256))
    for mask in masks:
        for first, second in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])):
            touching = (first != second) & (first != 0) & (second != 0)
            np.add.at(contact, (first[touching], second[touching]), 1)
    contact = (contact + contact.T)[: legend.num_classes + 1, : legend.num_classes + 1]
    total = contact.sum()
    return TransitionTable(legend, contact / total * legend.num_classes**2 if total else np.ones_like(contact))


def learn_sizes(
    masks: Iterable[Mask], options: EventOptions, gsds: Iterable[float | None] | None = None
) -> dict[int, tuple[int, int]]:
    """5 % and 95 % quantile of the area of whole instances (px, the smallest of the options and more), by class;
    ``gsds``: metres per px of each mask (None: limits in px)."""
    areas: dict[int, list[int]] = {}
    for mask, gsd_m in zip(masks, gsds or repeat(None), strict=False):
        smallest, _ = options.area_limits(mask.size, gsd_m)
        for instance in find_instances(mask, options.connectivity):
            if not instance.cut and instance.area >= smallest:
                areas.setdefault(instance.class_index, []).append(instance.area)
    return {
        c: (int(np.quantile(found, 0.05)), int(np.ceil(np.quantile(found, 0.95)))) for c, found in sorted(areas.items())
    }


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise LegendError(f"{where}: weight {value!r}; allowed: a number, 0 or more")
    return float(value)
