"""What ``check`` says of tiles and pairs: figures over what was read, and warnings with the option that mends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.legend import Legend, Mask

MUCH_UNKNOWN = 0.5
"""Share of unknown ground from which on it is worth a warning."""
MUCH_CHANGED = 0.5


@dataclass
class ClassShares:
    """Pixels by class over several masks."""

    legend: Legend
    pixels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    masks_with: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    num_masks: int = 0
    empty: list[str] = field(default_factory=list)
    """Keys of masks without any class."""

    def add(self, key: str, mask: Mask) -> None:
        """Count one more."""
        counts = np.bincount(mask.ravel(), minlength=256)[:256]
        self.pixels += counts
        self.masks_with += counts > 0
        self.num_masks += 1
        if not counts[1:].any():
            self.empty.append(key)

    def share(self, index: int) -> float:
        """Of all pixels."""
        return float(self.pixels[index] / max(1, self.pixels.sum()))

    @property
    def never(self) -> list[str]:
        """Names of classes that no mask holds."""
        return [c.name for c in self.legend.classes if not self.pixels[c.index]]

    def lines(self) -> list[str]:
        """A table: unknown first, then the classes in their order."""
        names = ["unknown", *self.legend.names]
        width = max(map(len, ("class", *names)))
        rows = [
            f"  {name:<{width}}  {self.share(index):>7.1%}  {self.masks_with[index]:>5} of {self.num_masks}"
            for index, name in enumerate(names)
        ]
        return [f"  {'class':<{width}}  {'share':>7}  {'masks':>5}", *rows]


@dataclass
class BandFigures:
    """Least, mean and greatest value per band over several images."""

    low: npt.NDArray[np.float64] | None = None
    high: npt.NDArray[np.float64] | None = None
    total: npt.NDArray[np.float64] | None = None
    num_pixels: int = 0
    dtypes: set[str] = field(default_factory=set)

    def add(self, image: npt.NDArray[Any], where: npt.NDArray[np.bool_] | None = None) -> None:
        """One more image ``[H, W]`` or ``[H, W, C]``, its pixels ``where`` (None: all); of other bands than the first,
        it is not counted."""
        self.dtypes.add(str(image.dtype))
        flat = image.reshape(image.shape[0] * image.shape[1], -1).astype(np.float64)
        flat = flat if where is None else flat[where.ravel()]
        if not len(flat):
            return
        low, high, total = flat.min(0), flat.max(0), flat.sum(0)
        if self.low is None or self.high is None or self.total is None:
            self.low, self.high, self.total = low, high, total
        elif len(low) == len(self.low):
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
            self.total = self.total + total
        else:
            return
        self.num_pixels += len(flat)

    def lines(self, names: Sequence[str] = ()) -> list[str]:
        """A table, a line per band."""
        if self.low is None or self.high is None or self.total is None:
            return []
        rows = [f"  {'band':<5} {'min':>9} {'mean':>9} {'max':>9}   {', '.join(sorted(self.dtypes))}"]
        for i, (low, high, total) in enumerate(zip(self.low, self.high, self.total, strict=True)):
            name = names[i] if i < len(names) else str(i + 1)
            rows.append(f"  {name:<5} {low:>9.5g} {total / self.num_pixels:>9.5g} {high:>9.5g}")
        return rows

    def constant(self, names: Sequence[str]) -> list[str]:
        """Bands that have one value everywhere."""
        if self.low is None or self.high is None:
            return []
        same = [i for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)) if low == high]
        return [names[i] if i < len(names) else str(i + 1) for i in same]


def beside(first: BandFigures, second: BandFigures) -> list[str]:
    """Tables of both dates beside each other."""
    left, right = first.lines(), second.lines()
    if len(left) != len(right):
        return ["  date 1", *left, "  date 2", *right]
    width = max(map(len, left), default=0)
    heads = [f"  {'date 1':<{width}} date 2"]
    return heads + [f"{one:<{width}}  {other[7:]}" for one, other in zip(left, right, strict=True)]


def warnings_of(shares: ClassShares, bands: BandFigures, names: Sequence[str], zero_is_unknown: bool) -> list[str]:
    """What looks like a mistake in tiles, each with the option that mends it."""
    found = []
    unknown, never = shares.share(0), shares.never
    if unknown > MUCH_UNKNOWN and zero_is_unknown:
        found.append(
            f"class 0 covers {unknown:.0%} and counts as unknown ground, where nothing is drawn; if it is a class: "
            "--first-class 0, with a legend or --class-names that begin with it"
        )
    elif unknown > MUCH_UNKNOWN:
        found.append(f"{unknown:.0%} of the ground is unknown; is --ignore-value (or ignore_index) the right number?")
    if shares.empty:
        first = f"{shares.empty[0]}{', …' if len(shares.empty) > 1 else ''}"
        found.append(
            f"{len(shares.empty)} of {shares.num_masks} masks hold no class at all ({first}); leave them out, or is "
            "their 0 a class (--first-class 0)?"
        )
    if never and len(never) < shares.legend.num_classes:
        listed = ", ".join(never[:6]) + (", …" if len(never) > 6 else "")
        shifted = never == [shares.legend.names[-1]] and unknown > 0 and zero_is_unknown
        mend = "; if masks count from 0: --first-class 0" if shifted else "; is it the right --legend?"
        found.append(f"never seen in {shares.num_masks} masks: {listed}{mend}")
    constant = bands.constant(names)
    if constant:
        found.append(f"band {', '.join(constant)} has one value everywhere; choose others with --bands")
    return found


def warnings_of_pairs(ratios: Sequence[float], ignored: Sequence[float], elsewhere: Sequence[str]) -> list[str]:
    """What looks like a mistake in labels of change, and in where the files of a pair lie."""
    found = _of_labels(ratios)
    if ignored and float(np.mean(ignored)) > MUCH_UNKNOWN:
        found.append(
            f"{np.mean(ignored):.0%} of the ground is ignored (alpha, nodata, or 255 in the labels); if it is "
            "unchanged ground, save the labels without alpha, as 0 and 255"
        )
    if elsewhere:
        found.append(
            f"{len(elsewhere)} of {len(ratios)} pairs have a file that lies on other ground than date 1 (CRS or "
            f"transform), the first {elsewhere[0]}; warp it onto date 1 (gdalwarp) unless its place is wrong"
        )
    return found


def _of_labels(ratios: Sequence[float]) -> list[str]:
    mean = float(np.mean(ratios)) if ratios else 0.0
    if ratios and not any(ratios):
        return [f"none of the {len(ratios)} labels read holds a change; are they the right folder?"]
    if mean > MUCH_CHANGED:
        return [f"{mean:.0%} of the ground is changed; are the labels inverted (changed should be 255 or 1)?"]
    return []


def aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    """``name  value`` lines, values below each other; empty values left out."""
    width = max(len(name) for name, value in rows if value)
    return [f"{name:<{width}}  {value}" for name, value in rows if value]


def percent(share: float) -> str:
    """For running text."""
    return f"{share:.1%}"
