"""Which pairs of a set are shown: the worst and the best by one figure, and others that nobody chose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """Pairs by one figure."""

    by: str
    """The figure, in words that follow "by"."""
    values: Mapping[int, tuple[float, ...]]
    """Number of a pair → its value, the higher the better, then what decides among equals; pairs without a value are
    not ranked."""


@dataclass(frozen=True)
class Group:
    """Pairs under one heading."""

    title: str
    note: str
    numbers: tuple[int, ...]


def groups_of(ranking: Ranking, total: int, shown: int) -> list[Group]:
    """``shown`` of ``total`` pairs: a third the worst, a third the best, the others evenly spaced over the rest.

    No pair stands in two groups; of few that are ranked, the worse half are the worst.
    """
    order = sorted(ranking.values, key=lambda number: (ranking.values[number], number))
    third = shown // 3
    worst = order[: min(-(-len(order) // 2), third)]
    best = order[::-1][: min(len(order) - len(worst), third)]
    rest = sorted(set(range(total)) - {*worst, *best})
    few = min(shown - len(worst) - len(best), len(rest))
    others = [rest[int(i)] for i in np.linspace(0, len(rest) - 1, few).round()]
    ranked = f"{len(order)} of {total} pairs are ranked by {ranking.by}."
    found = [
        Group("Worst", f"Worst first. {ranked}", tuple(worst)),
        Group("Best", f"Best first. {ranked}", tuple(best)),
        Group("Others", "Evenly spaced in the order of their keys, not chosen.", tuple(others)),
    ]
    return [group for group in found if group.numbers]


def sheets(groups: Sequence[Group], panel: Callable[[int], str]) -> str:
    """HTML of the groups; ``panel`` gives that of a pair."""
    return "".join(
        f'<h3>{group.title}</h3><p>{group.note}</p><div class="pairs">{"".join(map(panel, group.numbers))}</div>'
        for group in groups
    )
