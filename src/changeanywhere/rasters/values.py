"""From the numbers in a mask file to classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import LegendError
from changeanywhere.legend import Legend, Mask, MaskValues

PLAIN = MaskValues()
LONGEST_TABLE = 1 << 16


def to_classes(stored: npt.NDArray[Any], legend: Legend, values: MaskValues, path: Path) -> Mask:
    """Whole numbers as in the file ``[H, W]`` → classes uint8. :class:`LegendError` naming file, number and mend."""
    low, high = int(stored.min(initial=0)), int(stored.max(initial=0))
    if values.is_plain:
        if low < 0 or high > legend.num_classes:
            raise _foreign(low if low < 0 else high, legend, values, path)
        return np.ascontiguousarray(stored).astype(np.uint8)
    classes = dict(zip(values.counted(legend.num_classes), range(1, legend.num_classes + 1), strict=True))
    classes = {0: 0} | dict.fromkeys(values.ignored, 0) | classes
    if low < 0 or high >= LONGEST_TABLE:
        raise _foreign(low if low < 0 else high, legend, values, path)
    table = np.full(max(high, *classes) + 1, -1, np.int16)
    table[list(classes)] = list(classes.values())
    found = table[stored.astype(np.int64)]
    if (found < 0).any():
        raise _foreign(int(stored[found < 0].flat[0]), legend, values, path)
    return np.ascontiguousarray(found.astype(np.uint8))


def to_stored(mask: Mask, legend: Legend, values: MaskValues) -> Mask:
    """The way back: classes uint8 ``[H, W]`` → the numbers of files, uint8 ``[H, W]``. :class:`LegendError` for a
    class, or unknown ground, without a number of 8 bits."""
    if values.is_plain:
        return mask
    counted = values.counted(legend.num_classes)
    unknown = [number for number in (0, *values.ignored) if number not in counted]
    numbers = [unknown[0] if unknown else -1, *counted]
    used = [int(index) for index in np.unique(mask)]
    wrong = next((index for index in used if not 0 <= numbers[index] <= 255), None)
    if wrong is not None:
        raise LegendError(f"masks of legend {legend.name!r} have no number of 8 bits for {legend.name_of(wrong)}")
    table = np.zeros(256, np.uint8)
    table[used] = [numbers[index] for index in used]
    return table[mask]


def _foreign(number: int, legend: Legend, values: MaskValues, path: Path) -> LegendError:
    counted = values.counted(legend.num_classes)
    unknown = ", ".join(str(each) for each in sorted({0, *values.ignored} - set(counted)))
    if counted == tuple(range(counted[0], counted[0] + len(counted))):
        allowed = f"{counted[0]} to {counted[-1]} ({legend.names[-1]})"
    else:
        allowed = ", ".join(map(str, counted))
    if values.is_plain:
        allowed = f"0 (unknown) to {counted[-1]} ({legend.names[-1]})"
    elif unknown:
        allowed = f"{allowed}, and {unknown} (unknown)"
    mend = f'; if it means no class: "ignore_index": {number} in the legend, or --ignore-value {number} for a source'
    mend = mend if number > max(counted) else ""
    return LegendError(f"{path}: mask value {number} is outside the legend {legend.name!r}; allowed: {allowed}{mend}")
