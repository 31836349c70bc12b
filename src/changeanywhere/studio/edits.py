"""A second mask in the making: boxes, brush strokes, proposed events, each of which can be undone. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import ConfigError, InputError, require
from changeanywhere.events.engine import EventRequest, simulate
from changeanywhere.events.options import KINDS, EventOptions
from changeanywhere.legend import Legend, Mask
from changeanywhere.sample import ChangeEvent, ChangeMask, ChangePlan, SourceSample, change_mask_of
from changeanywhere.sources import Source

AS_BEFORE = "as it was"
"""What the brush and the box say for ground that is to be as on date 1."""
OPAQUE = 128
"""Alpha from which a stroke counts: its soft rim does not."""
MAX_STEPS = 200


@dataclass(frozen=True)
class Step:
    """A second mask, and what is known of how it came about."""

    mask_t2: Mask
    events: tuple[ChangeEvent, ...] = ()
    """Those whose ground nobody drew over."""
    drawn: bool = False
    """Whether any of it was drawn by hand: its events are then not all there is."""


@dataclass(frozen=True)
class Edit:
    """A tile and the steps of its second mask; every change gives another ``Edit``."""

    sample: SourceSample
    steps: tuple[Step, ...]
    source: Source
    """Which the tile is of: another may be open by the time that this one is painted."""
    place: Path
    """Folder of ``source``, as commands name it."""

    @staticmethod
    def of(sample: SourceSample, source: Source, place: Path) -> Edit:
        """Nothing is changed yet."""
        return Edit(sample, (Step(sample.mask.copy()),), source, place)

    def anew(self) -> Edit:
        """The tile as it was."""
        return Edit.of(self.sample, self.source, self.place)

    @property
    def mask_t2(self) -> Mask:
        """As it is now."""
        return self.steps[-1].mask_t2

    @property
    def change_mask(self) -> ChangeMask:
        """Changed ground, bool ``[H, W]``."""
        return change_mask_of(self.sample.mask, self.mask_t2)

    def undone(self) -> Edit:
        """Without the last step."""
        return replace(self, steps=self.steps[:-1] or self.steps)

    def plan(self, seed: int) -> ChangePlan:
        """What is painted. :class:`InputError` where nothing changes."""
        if not self.change_mask.any():
            raise InputError("nothing changes yet: draw, place a box, or let an event be proposed")
        last = self.steps[-1]
        return ChangePlan(last.mask_t2, self.change_mask, last.events, seed)

    def drawn(self, where: npt.NDArray[np.bool_], classes: Mask) -> Edit:
        """``classes`` on the ground ``where``, both ``[H, W]``; unknown ground stays unknown. 0 in ``classes``: as it
        was on date 1. :class:`InputError` where that changes nothing."""
        given = np.where(classes == 0, self.sample.mask, classes)
        mask = np.where(where & (self.sample.mask != 0), given, self.mask_t2).astype(np.uint8)
        if (mask == self.mask_t2).all():
            raise InputError("that changes nothing: the ground has this class already, or is unknown")
        touched = mask != self.mask_t2
        before, last = self.sample.mask, self.steps[-1]
        whole = (not (touched[e.box] & e.changed(before[e.box], last.mask_t2[e.box])).any() for e in last.events)
        events = tuple(event for event, kept in zip(last.events, whole, strict=True) if kept)
        return self._with(Step(mask, events, True))

    def with_box(self, box: tuple[int, int, int, int], class_index: int) -> Edit:
        """A box (left, top, width, height) in px of one class; :class:`InputError` for one outside of the tile."""
        left, top, width, height = box
        rows, columns = self.sample.mask.shape
        inside = 0 <= left < columns and 0 <= top < rows and 1 <= width <= columns - left and 1 <= height <= rows - top
        if not inside:
            raise InputError(f"box is {left}, {top}, {width} x {height} px; allowed: inside the {columns} x {rows} px")
        where = np.zeros(self.sample.mask.shape, bool)
        where[top : top + height, left : left + width] = True
        return self.drawn(where, np.full(where.shape, class_index, np.uint8))

    def with_strokes(self, layers: list[npt.NDArray[Any]], legend: Legend, before: tuple[int, int, int]) -> Edit:
        """Brush strokes, RGBA ``[h, w, 4]``, of any size of the same shape; every opaque pixel takes the class whose
        colour is the nearest, ``before`` being the colour of ground as it was."""
        where = np.zeros(self.sample.mask.shape, bool)
        classes = np.zeros(self.sample.mask.shape, np.uint8)
        for layer in layers:
            strokes = _resized(np.asarray(layer), where.shape)
            if strokes.ndim != 3 or strokes.shape[2] != 4:
                raise InputError(f"a layer of strokes is {strokes.shape}; allowed: red, green, blue and alpha")
            opaque = strokes[..., 3] >= OPAQUE
            classes[opaque] = snapped(strokes[..., :3][opaque], legend, before)
            where |= opaque
        if not where.any():
            raise InputError("nothing was drawn: choose a colour and draw on the tile first")
        return self.drawn(where, classes)

    def proposed(self, asked: EventRequest, legend: Legend, seed: int) -> Edit:
        """With the simulator's events on the ground that is still as it was; :class:`InputError` where none fit."""
        mask = self.sample.mask
        free = np.where(mask == self.mask_t2, mask, 0).astype(np.uint8)
        options = EventOptions(kinds=KINDS)
        plan = simulate(free, legend, seed, options=options, request=asked)
        if plan is None:
            raise InputError("no such event fits into this tile: ask for another kind, class pair, ratio or seed")
        last = self.steps[-1]
        after = np.where(plan.change_mask, plan.mask_t2, last.mask_t2).astype(np.uint8)
        return self._with(Step(after, (*last.events, *plan.events), last.drawn))

    def _with(self, step: Step) -> Edit:
        return replace(self, steps=(*self.steps, step)[-MAX_STEPS:])


def refuse_empty(names: Iterable[str], values: Iterable[Any]) -> None:
    """:class:`ConfigError` naming the first number field of the page that was emptied."""
    for name, value in zip(names, values, strict=True):
        if value is None:
            raise ConfigError(f"{name} is empty; allowed: a number")


def snapped(colours: npt.NDArray[Any], legend: Legend, before: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Colours ``[N, 3]`` → the classes whose colours are nearest, uint8 ``[N]``; 0: ``before``."""
    table = np.array([before, *(c.color for c in legend.classes)], np.int64)
    far = ((colours[:, None, :].astype(np.int64) - table[None]) ** 2).sum(2)
    nearest: npt.NDArray[np.uint8] = far.argmin(1).astype(np.uint8)
    return nearest


def request_of(kind: str, before: str, after: str, ratio: tuple[float, float], legend: Legend) -> EventRequest:
    """What the page asks of the simulator: "any" is free; ratio in per cent, 0 to 0 is free."""
    low, high = ratio
    require(0 <= low <= high <= 90, "ratio", [low, high], "two per cents, 0 to 90, rising")
    pair = class_pair(before, after, legend)
    return EventRequest(None if kind == "any" else kind, pair, (low / 100, high / 100) if high > 0 else None)


def class_pair(before: str, after: str, legend: Legend) -> tuple[int, int] | None:
    """Two classes of the page's fields, "any" on both: None; :class:`InputError` for anything else."""
    both = (before == "any") == (after == "any")
    require(both, "class pair", f"{before} → {after}", "a class on both sides, or any on both")
    if before == "any":
        return None
    pair = legend.index_of(before), legend.index_of(after)
    require(pair[0] != pair[1], "class pair", f"{before} → {after}", "two classes")
    return pair


def _resized(layer: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The editor may show a tile larger than it is."""
    if layer.shape[:2] == shape or 0 in layer.shape[:2]:
        return layer
    rows = np.arange(shape[0]) * layer.shape[0] // shape[0]
    columns = np.arange(shape[1]) * layer.shape[1] // shape[1]
    return layer[np.ix_(rows, columns)]
