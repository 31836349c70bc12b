"""One figure of an evaluation: what was measured, what real data gives, what is asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import isnan
from typing import Any

from changeanywhere.evaluation.distances import Estimate
from changeanywhere.evaluation.options import REAL

GUESSING = "guessing"
"""What stands beside a figure that has no ceiling on real data, but a floor."""
NEAR = 0.05
"""Share of real data's value within which a figure without an interval is called about the same."""
FEWEST = 20
"""Images or pairs from which a verdict is given."""
MIN_OBJECTS = 30
"""Fewer objects on a side than this say nothing of a class."""
MIN_TILES = 5
"""From fewer tiles, or scenes, no interval can be drawn."""


@dataclass(frozen=True)
class Figure:
    """``ceiling`` is the same figure on ``beside`` (real data; for a detector, guessing), None where there is none;
    ``target`` says what is asked in words.

    ``value`` is NaN where there is too little to tell, which ``note`` says; where there is too little for a verdict
    alone, ``few`` says how much there is. ``of`` names the set where several stand side by side; ``count`` is how many
    it was measured on.
    """

    section: str
    name: str
    value: float
    ceiling: float | None = None
    low: float | None = None
    high: float | None = None
    target: str = ""
    reached: bool | None = None
    note: str = ""
    of: str = ""
    count: int | None = None
    beside: str = REAL
    few: str = ""

    @property
    def withheld(self) -> bool:
        """There is too little to tell."""
        return isnan(self.value)

    @property
    def verdict(self) -> str:
        """One plain sentence; it says so where there is too little to tell, or nothing that was asked.

        An interval that holds real data's value is no difference that this many could show.
        """
        if self.withheld or self.few:
            return f"Too little to tell: {self.few}." if self.few else "Too little to tell."
        if self.reached is not None:
            return f"As asked: {self.target}." if self.reached else f"Not as asked: {self.target}."
        if self.ceiling is None:
            return "Nothing is asked of it."
        if self.low is None or self.high is None:
            near = abs(self.value - self.ceiling) <= NEAR * max(abs(self.ceiling), NEAR)
            return f"About as {self.beside}." if near else f"{self._side}; whether by chance is not known."
        if self.low <= self.ceiling <= self.high:
            return f"No difference to {self.beside} that this many could show."
        return f"{self._side}, beyond chance."

    @property
    def _side(self) -> str:
        higher = self.ceiling is not None and self.value > self.ceiling
        return f"{'Higher' if higher else 'Lower'} than {self.beside}"

    def where(self, *counts: tuple[int, int, str]) -> Figure:
        """The same, its verdict withheld where one of (how many there are, the fewest, of what) is too small."""
        short = [f"{least} {what} are the least, here {count}" for count, least, what in counts if count < least]
        return replace(self, few="; ".join(short), reached=None) if short else self

    def in_words(self) -> str:
        """The value, its interval, real data's beside it, and whether what is asked was reached."""
        if self.withheld:
            return self.note
        text = f"{self.value:.3f}"
        if self.low is not None and self.high is not None:
            text += f" ({self.low:.3f} to {self.high:.3f})"
        if self.ceiling is not None:
            text += f"; {self.beside} {self.ceiling:.3f}"
        if self.few:
            text += f"; too little for a verdict: {self.few}"
        elif self.reached is not None:
            text += f"; {'reached' if self.reached else 'missed'}: {self.target}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """For ``evaluation.json``: every field, and the verdict."""
        return asdict(self) | {"verdict": self.verdict}


def share_of_ceiling(section: str, name: str, value: float, ceiling: float, asked: float, note: str = "") -> Figure:
    """A figure that should reach the share ``asked`` of its ceiling."""
    return Figure(
        section,
        name,
        value,
        ceiling,
        target=f"at least {asked:.0%} of real",
        reached=value >= asked * ceiling,
        note=note,
    )


def estimated(section: str, name: str, estimate: Estimate, ceiling: float | None = None, note: str = "") -> Figure:
    """A figure with its bootstrap interval."""
    return Figure(section, name, estimate.value, ceiling, estimate.low, estimate.high, note=note)
