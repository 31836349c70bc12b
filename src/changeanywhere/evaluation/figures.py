"""One figure of an evaluation: what was measured, what real data gives, what is asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

from changeanywhere.evaluation.distances import Estimate

NEAR = 0.05
"""Share of real data's value within which a figure without an interval is called about the same."""


@dataclass(frozen=True)
class Figure:
    """``ceiling`` is the same figure on real data, None where there is none; ``target`` says what is asked in words.

    ``value`` is NaN where there is too little to tell, which ``note`` says; ``of`` names the set where several stand
    side by side; ``count`` is how many it was measured on.
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

    @property
    def withheld(self) -> bool:
        """There is too little to tell."""
        return isnan(self.value)

    @property
    def verdict(self) -> str:
        """One plain sentence; it says so where there is too little to tell, or nothing that was asked.

        An interval that holds real data's value is no difference that this many could show.
        """
        if self.withheld:
            return "Too little to tell."
        if self.reached is not None:
            return f"As asked: {self.target}." if self.reached else f"Not as asked: {self.target}."
        if self.ceiling is None:
            return "Nothing is asked of it."
        if self.low is None or self.high is None:
            near = abs(self.value - self.ceiling) <= NEAR * max(abs(self.ceiling), NEAR)
            return "About as real data." if near else f"{self._side} than real data; whether by chance is not known."
        if self.low <= self.ceiling <= self.high:
            return "No difference to real data that this many could show."
        return f"{self._side} than real data, beyond chance."

    @property
    def _side(self) -> str:
        return "Higher" if self.ceiling is not None and self.value > self.ceiling else "Lower"

    def in_words(self) -> str:
        """The value, its interval, real data's beside it, and whether what is asked was reached."""
        if self.withheld:
            return self.note
        text = f"{self.value:.3f}"
        if self.low is not None and self.high is not None:
            text += f" ({self.low:.3f} to {self.high:.3f})"
        if self.ceiling is not None:
            text += f"; real data {self.ceiling:.3f}"
        if self.reached is not None:
            text += f"; {'reached' if self.reached else 'missed'}: {self.target}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """For ``evaluation.json``."""
        return asdict(self)


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
