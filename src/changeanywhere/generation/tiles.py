"""The source of a job, open: tiles, second masks, splits, and what events are drawn with. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from changeanywhere.errors import SourceError
from changeanywhere.events import EventContext, EventOptions
from changeanywhere.generation.second import SecondDate, SecondOptions
from changeanywhere.legend import Legend, LegendMap
from changeanywhere.pairs.split import assign_splits, stated_splits
from changeanywhere.progress import Progress, silent
from changeanywhere.sources import NO_DATES, Source, SourceOptions, open_source

if TYPE_CHECKING:
    from changeanywhere.events.bank import ShapeBank


@dataclass(frozen=True)
class SourceSettings:
    """Which tiles, and what was found there when the job was made."""

    folder: str
    options: SourceOptions
    masks_t2: str | None
    """Folder of the user's own second masks."""
    name: str
    legend: dict[str, Any]
    """The classes that masks are in when they are painted and written."""
    legend_map: dict[str, str] | None
    """Source class → class of ``legend``, as it read on the first day; None: they are the same."""
    fingerprint: str
    """Of tiles, labels and legend: an edited file cannot give one set two meanings."""
    fingerprint_t2: str | None
    """Of the user's own second masks."""
    fingerprint_second: str | None = None
    """Of the images of the second date, where they have a part."""
    sole_trains: bool = False
    """Whether this is one scene, whose pairs are all of the split train; in sets of earlier editions they were of that
    which the hash of its name gave."""


@dataclass(frozen=True)
class Learned:
    """What was read out of all masks once, so that no worker has to read them again."""

    transition_weights: list[list[float]] | None
    """``[K + 1][K + 1]``, row = from; from a table or learned. None: all transitions weigh the same."""
    sizes_px: dict[int, tuple[int, int]]
    """Usual areas of whole objects, by class; empty where none were learned."""
    shapes: dict[int, list[list[int]]] | None
    """The shape bank, as references (see :meth:`ShapeBank.to_dict`)."""
    ignored: list[str] | None = None
    """By tile, where its two real dates differ in earnest (:func:`.second.packed`); None: the second is not shown."""
    other: list[str] | None = None
    """By tile, where they do not show the same; None: the second date's masks do not count."""


@dataclass(frozen=True)
class EventSettings:
    """What events depend on beside mask and seed: the options, and what was learned from the whole source."""

    options: EventOptions
    context: EventContext
    banks: Mapping[str, ShapeBank]
    """Shapes by split: what appears in one must not come from another."""

    def at(self, gsd_m: float | None, split: str) -> EventContext:
        """The context of a tile of this ground sampling and split."""
        return replace(self.context, gsd_m=gsd_m, bank=self.banks.get(split))


@dataclass(frozen=True)
class Tiles:
    """An open source with all that belongs to it."""

    source: Source
    """What changes are drawn on: date 1, or the second date where that is the base."""
    first: Source
    """Date 1."""
    dates: SecondDate | None
    """The second date, where it is shown in any pair."""
    second: Source | None
    """The same tiles with the user's second masks."""
    events: EventSettings
    splits: dict[str, str]
    """Scene → split."""
    of_split: dict[str, list[int]]
    """Split → numbers of its tiles."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """Why tiles were left out, a line each."""
        return tuple(dict.fromkeys((*self.source.skipped, *(self.second.skipped if self.second else ()))))

    def context_of(self, index: int) -> EventContext:
        """What events of tile ``index`` are drawn with."""
        item = self.source.items[index]
        return self.events.at(item.gsd_m, self.splits[item.scene])

    def ground(self, no_change: bool) -> Source:
        """What a pair is painted on; ``no_change``: it is asked to have none."""
        return self.dates if no_change and self.dates is not None else self.source

    def fellows(self, index: int) -> Sequence[int]:
        """Numbers of all tiles in the split of tile ``index``."""
        return self.of_split[self.splits[self.source.items[index].scene]]


def open_tiles(
    settings: SourceSettings,
    learned: Learned,
    events: EventOptions,
    second_date: SecondOptions,
    progress: Progress = silent,
) -> Tiles:
    """Open the source of a job. :class:`SourceError` if it is not what it was when the job was made."""
    legend = Legend.from_dict(settings.legend, f"{settings.folder}: legend of the job")
    mapping = settings.legend_map

    def opened(masks: str | None, fingerprint: str | None, dates: str = NO_DATES) -> Source:
        source = open_source(settings.folder, settings.options, Path(masks) if masks else None, progress, dates)
        if mapping is not None:
            source = source.mapped(LegendMap.from_names(source.legend, legend, mapping, settings.folder))
        if source.fingerprint() != fingerprint:
            raise SourceError(f"{settings.folder}: has changed since the plan was made; give another --out")
        return source

    source = opened(None, settings.fingerprint, second_date.asked)
    if settings.fingerprint_second is not None and source.second_hash() != settings.fingerprint_second:
        raise SourceError(
            f"{settings.folder}: its second dates have changed since the plan was made; give another --out"
        )
    second = opened(settings.masks_t2, settings.fingerprint_t2) if settings.masks_t2 else None
    return gather(source, second, learned, events, second_date, settings.sole_trains)


def gather(
    first: Source,
    second: Source | None,
    learned: Learned,
    events: EventOptions,
    second_date: SecondOptions,
    sole_trains: bool,
) -> Tiles:
    """Put together what belongs to an open source."""
    from changeanywhere.events.bank import ShapeBank, references_of
    from changeanywhere.events.transitions import TransitionTable

    dates = None if learned.ignored is None else SecondDate(first, learned.ignored, learned.other)
    source = dates if dates is not None and second_date.use == "base" else first
    splits = assign_splits(stated_splits(source.items), sole_trains)
    of_split: dict[str, list[int]] = {}
    for index, item in enumerate(source.items):
        of_split.setdefault(splits[item.scene], []).append(index)
    table, banks = None, {}
    if learned.transition_weights is not None:
        table = TransitionTable(source.legend, np.array(learned.transition_weights))
    if learned.shapes is not None:
        references = references_of({str(c): shapes for c, shapes in learned.shapes.items()})
        whole = ShapeBank(references, source.read_mask, events.connectivity)
        banks = {split: whole.of_tiles(own) for split, own in of_split.items()}
    context = EventContext(None, table, learned.sizes_px)
    return Tiles(source, first, dates, second, EventSettings(events, context, banks), splits, of_split)


def learn(source: Source, events: EventOptions, learn_transitions: bool, seed: int) -> Learned:
    """Transitions, sizes and shapes of the whole source, as the options ask for them (every mask is read)."""
    from changeanywhere.events.bank import ShapeBank, find_shapes
    from changeanywhere.events.transitions import learn_sizes, learn_table, load_table

    masks = (source.read_mask(i) for i in range(len(source)))
    table, sizes, shapes, gsds = None, {}, None, [item.gsd_m for item in source.items]
    if learn_transitions:
        table = learn_table(masks, source.legend)
        sizes = learn_sizes((source.read_mask(i) for i in range(len(source))), events, gsds)
    elif events.transitions is not None:
        table = load_table(events.transitions, source.legend)
    if events.shape_bank:
        found = find_shapes((source.read_mask(i) for i in range(len(source))), events, seed, gsds)
        bank = ShapeBank(found, source.read_mask, events.connectivity)
        shapes = {int(c): lists for c, lists in bank.to_dict().items()}
    return Learned(table.weights.tolist() if table else None, sizes, shapes)
