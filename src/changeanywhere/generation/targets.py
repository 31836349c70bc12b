"""What a whole set should look like: shares of no-change pairs, change-ratio strata, class pairs. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import ConfigError, require
from changeanywhere.events import EventRequest
from changeanywhere.legend import Legend
from changeanywhere.pairs.names import FOUND
from changeanywhere.pairs.summary import SetSummary
from changeanywhere.seeds import stream


@dataclass(frozen=True)
class Requests:
    """A request for every place in a plan, two bytes each: ``distinct[codes[i]]``."""

    distinct: Sequence[EventRequest]
    codes: npt.NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.codes)

    def part(self, start: int, stop: int) -> list[EventRequest]:
        """Those of the places ``start`` to ``stop``."""
        return [self.distinct[code] for code in self.codes[start:stop]]


@dataclass(frozen=True)
class SetTargets:
    """Shares are of all pairs of the set; what they leave free is drawn without a condition."""

    no_change: float = 0.0
    """Share of pairs without any change."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Share of pairs by change ratio, as "low-high": share; e.g. {"0.005-0.02": 0.25, "0.02-0.05": 0.25}."""
    class_pairs: dict[str, float] = field(default_factory=dict)
    """Share of pairs by the one class transition they show, as "from->to": share."""
    like: str | None = None
    """Folder of labelled pairs: shares without change, change ratios and sizes of objects are to be as theirs (in place
    of ``no_change``, ``ratios`` and ``events.areas``; sizes within ``events.min_area`` and the other limits). Labels
    alone are read. Never give a test set."""
    like_split: str | None = "train"
    """Split of ``like``; null = all pairs."""
    like_list: str | None = None
    """File of names: only these pairs of the split, as in a few-shot run."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        for name in ("like_split", "like_list"):
            value = getattr(self, name)
            read = self.like is not None or value == getattr(SetTargets(), name)
            require(read, f"targets.{name}", value, "with targets.like, which reads it")
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

    def requests(self, num_pairs: int, num_tiles: int, kinds: Sequence[str], legend: Legend, seed: int) -> Requests:
        """One request per place in the plan (round after round over the tiles).

        Where nothing else is asked the kinds take turns, over the tiles of a round and over the rounds of a tile.
        """
        self.check()
        rng = stream("plan.targets", seed)
        quiet = round(self.no_change * num_pairs)
        ratios = [_ratio(text) for text in self.ratios]
        pairs = [_class_pair(text, legend) for text in self.class_pairs]
        ratio_of = _spread(list(self.ratios.values()), num_pairs, quiet, rng)
        pair_of = _spread(list(self.class_pairs.values()), num_pairs, quiet, rng)
        places = np.arange(num_pairs)
        if not (quiet or ratios or pairs):
            turns = (places % num_tiles + places // num_tiles) % len(kinds)
            return Requests([EventRequest(kind) for kind in kinds], turns.astype(np.uint16))
        asked = list(kinds) if not (ratios or pairs) else [None]
        distinct = [EventRequest(no_change=True)]
        distinct += [EventRequest(k, p, r) for k in asked for p in (None, *pairs) for r in (None, *ratios)]
        kind_of = np.arange(num_pairs - quiet) % len(asked)
        changing = 1 + (kind_of * (1 + len(pairs)) + pair_of + 1) * (1 + len(ratios)) + ratio_of + 1
        codes = np.concatenate([changing, np.zeros(quiet, np.int64)]).astype(np.uint16)
        return Requests(distinct, codes[rng.permutation(num_pairs)])

    def reached(self, counts: SetSummary) -> list[tuple[str, float, float]]:
        """(what, share asked, share reached) for every target."""
        count = max(counts.count, 1)
        rows = []
        if self.no_change:
            rows.append(("no change", self.no_change, counts.quiet / count))
        ratios = np.asarray(counts.ratios)
        for text, share in self.ratios.items():
            low, high = _ratio(text)
            rows.append(
                (f"change ratio {text}", share, int(((low <= ratios) & (ratios < high) & (ratios > 0)).sum()) / count)
            )
        for text, share in self.class_pairs.items():
            rows.append((text, share, counts.single[text] / count))
        if any(FOUND in kind.split("+") for kind in counts.kinds):
            # What was asked is of what is painted, what is reached of whole pairs: readers must know why they differ.
            rows = [(f"{name} (with changes that were found)", share, reached) for name, share, reached in rows]
        return rows


def _spread(shares: Sequence[float], num_pairs: int, quiet: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which of the shares each of the ``num_pairs - quiet`` changing pairs takes, in random order; -1: none of them."""
    numbers = np.repeat(np.arange(len(shares)), [round(share * num_pairs) for share in shares])[: num_pairs - quiet]
    numbers = np.concatenate([numbers, np.full(num_pairs - quiet - len(numbers), -1)]).astype(np.int64)
    return numbers[rng.permutation(len(numbers))]


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
