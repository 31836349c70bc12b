"""A legend for a folder without one, drafted from the numbers or colours that its masks hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from changeanywhere.errors import InputError, SourceError
from changeanywhere.legend import MAX_CLASSES, Legend, MaskValues, load_legend, parse_legend
from changeanywhere.rasters import gate
from changeanywhere.rasters.classes import declared
from changeanywhere.rasters.facts import raising
from changeanywhere.sources.entries import Entry
from changeanywhere.sources.files import read_info

MAX_MASKS = 64
"""Masks that are looked at, evenly spaced."""
IGNORED = 255
OF_OPTION = 12
"""A message that proposes names for more classes than these would be no line any more."""


@dataclass
class Seen:
    """What masks hold: pixels by number, or by colour; and in how many masks that was found."""

    numbers: dict[int, int] = field(default_factory=dict)
    colours: dict[tuple[int, int, int], int] = field(default_factory=dict)
    num_masks: int = 0
    ignored: bool = False
    """A file says that :data:`IGNORED` is no class: it is its nodata, or stands in ground that it hides."""

    def share(self, number: int) -> float:
        """Of all pixels."""
        return self.numbers.get(number, 0) / max(1, sum(self.numbers.values()))

    def add(self, file: Path) -> None:
        """Look at one more mask; :class:`SourceError` for one that no legend could be made for."""
        values, palette, ignored = _read(file)
        self.num_masks += 1
        self.ignored |= ignored
        if values.ndim == 2 or palette is not None:
            if values.ndim == 1 and palette is not None:
                used, counts = np.unique(values, return_counts=True)
                pixels = palette[np.minimum(used, len(palette) - 1)]
            else:
                pixels, counts = np.unique(values[:, :3], axis=0, return_counts=True)
            for colour, count in zip(pixels, counts, strict=True):
                key = (int(colour[0]), int(colour[1]), int(colour[2]))
                self.colours[key] = self.colours.get(key, 0) + int(count)
        else:
            used, counts = np.unique(values, return_counts=True)
            strange = used[~(np.isfinite(used) & (used == np.rint(used)))]
            if strange.size:
                raise SourceError(f"{file}: mask holds {strange[0]}, which is no number of a class")
            for number, count in zip(used, counts, strict=True):
                self.numbers[int(number)] = self.numbers.get(int(number), 0) + int(count)
        if max(len(self.numbers), len(self.colours)) > MAX_CLASSES:
            raise SourceError(f"{file}: with it masks hold more than {MAX_CLASSES} numbers or colours; is it an image?")


def _read(file: Path) -> tuple[Any, Any, bool]:
    """Numbers ``[N]`` or colours ``[N, C]`` as they are stored, but for transparent and nodata pixels; a palette's
    colours; whether numbers have :data:`IGNORED` for such pixels."""
    facts = read_info(file)
    with raising(SourceError):
        values, valid = gate.read_stored(file, facts, gate.whole(facts), None)
    valid = declared(values[..., 0], valid, facts)
    shown = values.reshape(-1, values.shape[2]) if valid is None else values[valid]
    if facts.count > 2 and facts.palette is None:
        return shown, None, False
    if facts.palette is not None:
        return shown[:, 0], facts.palette.colours, False
    hidden = valid is not None and bool((values[..., 0][~valid] == IGNORED).any())
    return shown[:, 0], None, hidden or IGNORED in facts.nodata[:1]


def look_at(entries: Sequence[Entry]) -> Seen:
    """What the masks of a layout hold, from up to :data:`MAX_MASKS` of them; unreadable ones are passed over."""
    seen = Seen()
    first: InputError | None = None
    masks = [entry.mask for entry in entries if entry.mask is not None]
    for mask in masks[:: -(-len(masks) // MAX_MASKS)]:
        try:
            seen.add(mask)
        except InputError as error:
            first = first or error
    if not seen.num_masks and first is not None:
        raise first
    return seen


def draft(seen: Seen, name: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Content of a ``legend.json`` for what was seen. Names are ``class_N`` where none are given.

    0 is unknown ground, unless 255 stands beside it, if only as a file's nodata: then masks count from 0, and 255 is
    what has no class.
    """
    if seen.colours and not seen.numbers:
        colours = sorted(colour for colour in seen.colours if colour != (0, 0, 0))
        given = names or [f"class_{index}" for index in range(1, len(colours) + 1)]
        if len(given) != len(colours):
            raise SourceError(
                f"masks hold {len(colours)} colours beside black, and {len(given)} class names were given"
            )
        return _coloured(name, dict(zip(colours, given, strict=True)), names is None)
    numbers = sorted({*seen.numbers, *[IGNORED] * seen.ignored})
    ignored = IGNORED in numbers and len(numbers) > 2 and numbers[-2] < MAX_CLASSES
    counted = [number for number in numbers if number in seen.numbers and not (ignored and number == IGNORED)]
    first = 0 if ignored and 0 in counted else 1
    counted = [number for number in counted if number >= first]
    dense = not counted or (counted[0] >= 0 and counted[-1] < first + max(2 * len(counted), len(counted) + 8))
    stored = list(range(first, counted[-1] + 1)) if dense and counted else counted
    if names is not None and len(names) != len(stored):
        raise SourceError(f"masks hold {len(stored)} classes ({_listing(counted)}), and {len(names)} names were given")
    content: dict[str, Any] = {"name": name}
    if first == 0:
        content["first_class"] = 0
    if ignored:
        content["ignore_index"] = IGNORED
    classes = []
    for place, number in enumerate(stored):
        entry: dict[str, Any] = {"index": place + first, "name": names[place] if names else f"class_{number}"}
        if not dense:
            entry["value"] = number
        classes.append(entry)
    content["classes"] = classes or [{"index": 1, "name": "class_1"}]
    return content


def _coloured(name: str, names: dict[tuple[int, int, int], str], guess: bool) -> dict[str, Any]:
    """Classes by colour; ``guess``: under the names of a built-in legend that has all of the colours."""
    known: dict[tuple[int, int, int], str] = {}
    for builtin in ("openearthmap", "loveda") if guess else ():
        legend = load_legend(builtin)
        if {c.color for c in legend.classes} >= set(names):
            known = {c.color: c.name for c in legend.classes}
            break
    classes = [
        {"index": index, "name": known.get(colour, given), "color": list(colour)}
        for index, (colour, given) in enumerate(names.items(), 1)
    ]
    return {"name": name, "classes": classes or [{"index": 1, "name": "class_1"}]}


def parsed(content: dict[str, Any], where: str) -> tuple[Legend, MaskValues]:
    """The draft as a legend."""
    return parse_legend(content, where)


def proposal(root: Path, entries: Sequence[Entry]) -> str:
    """What to do where no legend is found, in a line, from what the masks hold."""
    init = f"changeanywhere init {root} drafts legend.json"
    try:
        seen = look_at(entries)
        content = draft(seen, root.resolve().name)
    except InputError:
        return f"give --legend NAME or FILE, or --class-names; {init}"
    if not seen.numbers:
        return f"masks hold {len(seen.colours)} colours; {init}"
    names = [entry["name"] for entry in content["classes"]]
    held = f"masks hold {_listing(sorted({*seen.numbers, *[IGNORED] * seen.ignored}))}"
    if any("value" in entry for entry in content["classes"]) or len(names) > OF_OPTION:
        return f"{held}; {init}"
    short = {key: value for key, value in content.items() if key != "name"} | {"classes": names}
    return f"{held}: save {json.dumps(short)} as legend.json with names of yours; {init}"


def _listing(numbers: Sequence[int]) -> str:
    """``0 to 6 and 255``; the first eight where they are scattered."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [
        f"{low}" if low == high else f"{low} to {high}" if high > low + 1 else f"{low}, {high}" for low, high in runs
    ]
    return ", ".join(words[:8]) + (", …" if len(words) > 8 else "")
