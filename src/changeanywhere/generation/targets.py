"""What a whole set should look like: shares of no-change pairs, change-ratio strata, class pairs. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from changeanywhere.errors import ConfigError
from changeanywhere.events import EventRequest
from changeanywhere.legend import Legend
from changeanywhere.pairs.summary import SetSummary


@dataclass(frozen=True)
class SetTargets:
    """Shares are of all pairs of the set; what they leave free is drawn without a condition."""

    no_change: float = 0.0
    """Share of pairs without any change."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Share of pairs by change ratio, as "low-high": share; e.g. {"0.005-0.02": 0.25, "0.02-0.05": 0.25}."""
    class_pairs: dict[str, float] = field(default_factory=dict)
    """Share of pairs by the one class transition they show, as "from->to": share."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        if not 0 <= self.no_change <= 1:
            raise ConfigError(f"targets.no_change is {self.no_change}; allowed: 0 to 1")
        for name, shares in (("ratios", self.ratios), ("class_pairs", self.class_pairs)):
            total = sum(shares.values())
            if any(share < 0 for share in shares.values()) or total + self.no_change > 1 + 1e-9:
                raise ConfigError(
                    f"targets.{name} with no_change add up to {total + self.no_change:g}; allowed: up to 1"
                )
        for text in self.ratios:
            _ratio(text)

    def requests(
        self, num_pairs: int, num_tiles: int, kinds: Sequence[str], legend: Legend, seed: int
    ) -> list[EventRequest]:
        """One request per place in the plan (round after round over the tiles).

        Where nothing else is asked the kinds take turns, over the tiles of a round and over the rounds of a tile.
        """
        self.check()
        rng = np.random.default_rng([seed, 23])
        quiet = round(self.no_change * num_pairs)
        ratios: list[Any] = _spread({_ratio(t): share for t, share in self.ratios.items()}, num_pairs, quiet, rng)
        pairs: list[Any] = _spread(
            {_class_pair(t, legend): share for t, share in self.class_pairs.items()}, num_pairs, quiet, rng
        )
        if not (quiet or self.ratios or self.class_pairs):
            return [EventRequest(kinds[(i % num_tiles + i // num_tiles) % len(kinds)]) for i in range(num_pairs)]
        conditional = bool(self.ratios or self.class_pairs)
        changing = [
            EventRequest(None if conditional else kinds[i % len(kinds)], pairs[i], ratios[i])
            for i in range(num_pairs - quiet)
        ]
        together = changing + [EventRequest(no_change=True)] * quiet
        return [together[i] for i in rng.permutation(num_pairs)]

    def reached(self, counts: SetSummary) -> list[tuple[str, float, float]]:
        """(what, share asked, share reached) for every target."""
        count = max(counts.count, 1)
        rows = []
        if self.no_change:
            rows.append(("no change", self.no_change, counts.quiet / count))
        ratios = np.asarray(counts.ratios)
        for text, share in self.ratios.items():
            low, high = _ratio(text)
            rows.append((f"change ratio {text}", share, int(((low <= ratios) & (ratios < high)).sum()) / count))
        for text, share in self.class_pairs.items():
            rows.append((text, share, counts.single[text] / count))
        return rows


def _spread(shares: Mapping[Any, float], num_pairs: int, quiet: int, rng: np.random.Generator) -> list[Any]:
    """A value for each of the ``num_pairs - quiet`` changing pairs, in random order; None where nothing is asked."""
    values = [value for value, share in shares.items() for _ in range(round(share * num_pairs))]
    values = values[: num_pairs - quiet]
    values += [None] * (num_pairs - quiet - len(values))
    return [values[i] for i in rng.permutation(len(values))]


def _ratio(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split("-"))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise ConfigError(f"targets.ratios has {text!r}; allowed: 'low-high' with 0 <= low < high <= 1")
    return low, high


def _class_pair(text: str, legend: Legend) -> tuple[int, int]:
    names = text.split("->")
    if len(names) != 2 or names[0] == names[1] or not set(names) <= set(legend.names):
        raise ConfigError(f"targets.class_pairs has {text!r}; allowed: 'from->to' of {', '.join(legend.names)}")
    return legend.index_of(names[0]), legend.index_of(names[1])
