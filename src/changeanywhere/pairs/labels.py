"""Change labels of datasets of the field: which values say "changed", by stated rules, told from the whole set.

One file often cannot say: all 1 is "all changed" under 0/1, and "nothing changed" under OSCD's 1/2. So the values of
some files of a set, evenly spaced, give one rule; a file that does not fit it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import PairsError
from changeanywhere.rasters.facts import Facts, Valid, raising
from changeanywhere.rasters.gate import read_whole

SAMPLED = 64
"""Labels of a set that are looked at for its rule."""
IGNORED = (255, 65535)
"""Beside 0 and 1, or 1 and 2: neither changed nor unchanged."""
UNCHANGED_COLOUR = 255
"""SECOND paints unchanged ground white; changed ground has its class's colour."""
NEARER_TO_WHITE = 192
"""Under loss: between white and the half-bright channel that every colour of SECOND has."""
DARK = 32
"""JPEG of 0 and 1: all of it is darker. Beside 0 and 255 alone, values up to this come from no resampling."""

STRAY_PX, STRAY_SHARE = 16, 1e-3
"""Of 1 beside 0 and 255: where no label has more px of it, and all have less than this share of what is 255, the ones
are strays, not the changes of a set that ignores 255."""


@dataclass(frozen=True)
class LabelRule:
    """What the values of labels mean. ``above``: changed is what lies above; else what equals ``changed``, or, where
    that is None, everything but 0."""

    text: str
    changed: float | None = None
    above: float | None = None
    ignored: tuple[float, ...] = ()

    def apply(self, values: npt.NDArray[Any]) -> Valid:
        """Values ``[H, W]`` → changed, bool ``[H, W]``."""
        if self.above is not None:
            return values > self.above
        found: Valid = values != 0 if self.changed is None else values == self.changed
        if self.changed is None:
            found &= ~np.isin(values, self.ignored)
        return found


OWN = LabelRule("0 is unchanged, 255 is changed", changed=255)
"""What this package writes."""


def rule_of(seen: frozenset[float], largest: float) -> LabelRule:
    """The rule for the values ``seen`` in the lossless labels of a set, of a type that reaches ``largest``.

    :class:`PairsError` where none of them fits, without a file: the caller knows which.
    """
    ignored = tuple(sorted(seen & set(IGNORED)))
    rest = seen - set(IGNORED)
    said = f"; {', '.join(f'{value:g}' for value in ignored)} is ignored" if ignored else ""
    if rest <= {0} and len(ignored) <= 1:
        changed = ignored[0] if ignored else 255
        return LabelRule(f"0 is unchanged, {changed:g} is changed", changed=changed)
    if rest <= {0, 1} and len(ignored) <= 1:
        return LabelRule(f"0 is unchanged, 1 is changed{said}", changed=1, ignored=ignored)
    if rest <= {1, 2} and 2 in rest and len(ignored) <= 1:
        return LabelRule(f"1 is unchanged, 2 is changed (OSCD){said}", changed=2, ignored=ignored)
    if any(value != int(value) for value in rest) and min(seen) >= 0 and max(seen) <= 1:
        return LabelRule("above 0.5 is changed (fractions: probabilities, or labels that were resampled)", above=0.5)
    if 0 in seen and len(seen) == 2 and min(seen) == 0:
        value = max(seen)
        return LabelRule(f"0 is unchanged, {value:g} is changed", changed=value)
    shown = ", ".join(f"{value:g}" for value in sorted(seen)[:6])
    if ignored and 0 in rest and 1 < max(rest) <= DARK:
        raise PairsError(
            f"label values {shown}: classes of change with {ignored[0]:g} as ignore, or some strays beside 0 and "
            f"{ignored[0]:g}? save what has changed as 1, the rest as 0, and 255 where neither is known"
        )
    if ignored and max(ignored) == max(seen) <= largest and min(seen) >= 0:
        half = max(ignored) // 2
        return LabelRule(f"above {half:g} is changed ({len(seen)} values: labels that were resampled)", above=half)
    if 0 in seen and min(seen) >= 0 and all(value == int(value) for value in seen):
        return LabelRule(f"0 is unchanged, all other values ({len(seen) - 1} classes of change) are changed")
    raise PairsError(
        f"label values {shown}; allowed: 0 and 1, 0 and 255, 0 and another, 1 and 2, each with 255 as ignore, or all "
        "values from 0 to 255 (half of the range)"
    )


@dataclass
class LabelReader:
    """Reads the labels of one set; ``files`` gives some of them, evenly spaced, and is called once."""

    files: Callable[[], Sequence[Path]]
    colours: bool = False
    """SECOND: unchanged ground is white, and colours name the classes of what has changed."""
    rule: LabelRule | None = None
    """None: not told yet."""
    max_megapixels: float | None = None
    """Bound of :func:`.gate.read_whole`."""
    zero_is: Callable[[], str] = str
    """Of labels that name classes: the class that the set's legend gives the number 0; empty for none. Asked of labels
    in numbers alone, where 0 is unchanged ground."""
    _seen: frozenset[float] = field(default_factory=frozenset)
    _kinds: frozenset[str] = field(default_factory=frozenset)

    @property
    def told(self) -> str:
        """The rule in words. Raises :class:`PairsError` where the labels fit none."""
        rule = self._rule()
        counted = {"values"} if self.colours else {"values", "colours"}
        parts = [rule.text] if not self._kinds or counted & self._kinds else []
        if "lossy" in self._kinds:
            parts.append("above half of the range is changed in lossy files")
        if "colours" in self._kinds and self.colours:
            parts.append("white is unchanged, any other colour is changed")
        return "; ".join(parts)

    def read(self, file: Path) -> tuple[Valid, Valid | None]:
        """Changed ground, bool ``[H, W]``, and ground that is neither (nodata, ignored); None: there is none."""
        values, kind, valid, facts = self._values(file)
        if kind == "colours" and self.colours:
            changed = np.any(values < NEARER_TO_WHITE if facts.lossy else values != UNCHANGED_COLOUR, axis=-1)
            return without(changed, None if valid is None else ~valid)
        if values.ndim == 3:
            values = values.max(axis=-1)  # any colour counts
        if kind == "lossy":
            if 0 < values.max(initial=0) <= DARK:
                raise PairsError(
                    f"{file}: a lossy label of values up to {values.max()}; 0/1 labels do not outlive JPEG: save them "
                    "as PNG"
                )
            return without(values > 127, None if valid is None else ~valid)
        rule = self._rule()
        found = _unique(values if valid is None else values[valid])
        if not found <= self._seen and rule is not OWN:
            rule = self._fitting(file, found, facts)
        elif rule is OWN and not found <= {0, 255}:
            raise PairsError(f"{file}: label value {max(found - {0, 255}):g}; allowed in a generated set: 0 and 255")
        ignored = None if valid is None else ~valid
        if rule.ignored:
            more = np.isin(values, rule.ignored)
            ignored = more if ignored is None else ignored | more
        return without(rule.apply(values), ignored)

    def _fitting(self, file: Path, found: frozenset[float], facts: Facts) -> LabelRule:
        """The set's rule for a file with values that were not seen; refused where they would change the rule."""
        rule = self._rule()
        try:
            wider = rule_of(self._seen | found, _largest(facts))
        except PairsError as error:
            raise PairsError(f"{file}: {error}") from error
        same = (wider.changed, wider.above, wider.ignored) == (rule.changed, rule.above, rule.ignored)
        if not same and self._seen - {0}:
            strange = ", ".join(f"{value:g}" for value in sorted(found - self._seen)[:6])
            raise PairsError(f"{file}: label values {strange}, where in this set {rule.text}; save all labels alike")
        self.rule, self._seen = wider, self._seen | found
        return wider

    def _rule(self) -> LabelRule:
        if self.rule is not None:
            return self.rule
        seen: frozenset[float] = frozenset()
        kinds, largest, last = set(), 255.0, None
        strange: Path | None = None
        ones: dict[Path, int] = {}
        high = 0
        for file in self.files():
            values, kind, valid, facts = self._values(file)
            kinds.add(kind)
            if kind == "values" or (kind == "colours" and not self.colours):
                values = values.max(axis=-1) if values.ndim == 3 else values
                found = _unique(values if valid is None else values[valid])
                largest, last = _largest(facts), file
                seen |= found
                ones |= {file: int((values == 1).sum())} if 1 in found else {}
                high += int(np.isin(values, IGNORED).sum()) if not found.isdisjoint(IGNORED) else 0
                strange = strange or (None if _fits(found, largest) else file)
        try:
            self.rule = rule_of(seen, largest)
        except PairsError as error:
            raise PairsError(f"{strange or last}: {error}") from error
        if self.rule.changed == 1 and self.rule.ignored:
            _refuse_strays(ones, high, self.rule.ignored[0])
        self._seen, self._kinds = seen, frozenset(kinds)
        return self.rule

    def _values(self, file: Path) -> tuple[npt.NDArray[Any], str, Valid | None, Facts]:
        """Values ``[H, W]`` or, where colours differ, ``[H, W, 3]``; "values", "colours" or "lossy"; where valid."""
        with raising(PairsError):
            values, valid, facts = read_whole(file, self.max_megapixels)
        if values.ndim == 3:
            if values.shape[2] != 3:
                raise PairsError(f"{file}: label has {values.shape[2]} bands; allowed: one, or red, green, blue")
            if not self.colours and not (values != values[..., :1]).any():
                values = values[..., 0]
        if facts.scale > 1:
            values = values // values.dtype.type(facts.scale)  # 1, 2 and 4 bits: as stored
        lossy = facts.lossy and not (self.colours and values.ndim == 3)
        if self.colours and values.ndim == 2 and (name := self.zero_is()):
            raise PairsError(
                f"{file}: label in numbers, of which 0 is unchanged ground; in the legend 0 is {name}; save classes as "
                "1 to K and unchanged ground as 0, or both dates in the legend's colours and white"
            )
        return values, "lossy" if lossy else "colours" if values.ndim == 3 else "values", valid, facts


def read_bands(path: Path, max_megapixels: float | None) -> tuple[Valid, Valid | None]:
    """Changed ground by a label of three bands (painted, class of date 1, class of date 2), and ground without data."""
    with raising(PairsError):
        values, valid, facts = read_whole(path, max_megapixels)
    if values.ndim != 3 or values.shape[2] != 3 or facts.lossy:
        found = f"{values.shape[2]} bands" if values.ndim == 3 and values.shape[2] != 3 else "one band or loss"
        raise PairsError(f"{path}: {found}; allowed: three without loss: what was painted, classes of both dates")
    changed: Valid = (values[..., 0] > 0) & (values[..., 1] != values[..., 2])
    return (changed, None) if valid is None else (changed & valid, ~valid)


def read_ignored(file: Path, max_megapixels: float | None = None) -> Valid:
    """Ground of which no label speaks, by a file of 0 and 255: bool ``[H, W]``."""
    return LabelReader(list, rule=OWN, max_megapixels=max_megapixels).read(file)[0]


def _refuse_strays(ones: Mapping[Path, int], high: int, ignored: float) -> None:
    """:class:`PairsError` where the 1s, px by label, are a few beside what is ``ignored``, px in all."""
    total = sum(ones.values())
    if ones and max(ones.values()) <= STRAY_PX and total < STRAY_SHARE * high:
        raise PairsError(
            f"{min(ones)}: label value 1 in {total:,} px beside 0 and {ignored:g} in {high:,}: a stray? It would make "
            f"{ignored:g} ignored ground, and 1 all that has changed; save labels of 0 and {ignored:g} without it"
        )


def _fits(seen: frozenset[float], largest: float) -> bool:
    """Whether the values of one label follow a rule by themselves."""
    try:
        rule_of(seen, largest)
    except PairsError:
        return False
    return True


def without(changed: Valid, ignored: Valid | None) -> tuple[Valid, Valid | None]:
    if ignored is None or not ignored.any():
        return changed, None
    return changed & ~ignored, ignored


def _unique(values: npt.NDArray[Any]) -> frozenset[float]:
    low, high = values == 0, values == 255
    if (low | high).all():  # most labels are these
        return frozenset(value for value, found in ((0.0, low), (255.0, high)) if found.any())
    if values.dtype == np.uint8:  # ten times as fast as sorting them
        return frozenset(map(float, np.flatnonzero(np.bincount(values.ravel(), minlength=1))))
    return frozenset(map(float, np.unique(values)[:70_000]))


def _largest(facts: Facts) -> float:
    kind = np.dtype(facts.dtype)
    return float(np.iinfo(kind).max) if kind.kind in "ui" else 1.0
