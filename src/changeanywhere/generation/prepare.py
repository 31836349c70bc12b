"""What ``generate`` and ``simulate`` do before the first pair: open, map, plan, lock. No torch here."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from changeanywhere.errors import OutputError
from changeanywhere.events import EventContext
from changeanywhere.events.bank import build_bank
from changeanywhere.events.transitions import learn_sizes, learn_table, load_table
from changeanywhere.generation.options import DEFAULT_SHARD, SimulateOptions
from changeanywhere.generation.plan import (
    DatasetPlan,
    EventSettings,
    load_plan,
    make_plan,
    plan_given,
    save_plan,
)
from changeanywhere.progress import progress_bar, progress_bars
from changeanywhere.sources import Source, open_source
from changeanywhere.sources.options import DEFAULT_TILE_SIZE
from changeanywhere.storage import atomic_write, remove_leftovers


def open_tiles(options: SimulateOptions, masks: Path | None = None) -> Source:
    """The source as the options say; ``masks``: another folder of masks for it."""
    with progress_bars() as progress:
        return open_source(options.source, options.of_source(), masks, progress)


def note_skipped(out: Path, skipped: Sequence[str]) -> None:
    """Write ``skipped.txt``, a line per tile that was left out, if any was."""
    if skipped:
        atomic_write(out / "skipped.txt", "".join(f"{line}\n" for line in skipped).encode())


def plan_settings(options: SimulateOptions, source: Source) -> dict[str, Any]:
    """Everything that the plan depends on, for ``plan/settings.json``."""
    table = load_table(options.events.transitions, source.legend) if options.events.transitions else None
    settings = asdict(options.events) | {
        "targets": asdict(options.targets),
        "learn_transitions": options.learn_transitions,
        "transition_weights": table and table.to_dict(),  # what the file says now: it may be edited
        "legend_map": source.mapping and source.mapping.to_dict(),
        "source_fingerprint": source.fingerprint(),
        "legend": source.legend.to_dict(),
        "num_pairs": options.num_pairs,
        "pairs_per_image": options.pairs_per_image,
        "seed": options.seed,
        "tile_size": options.tile_size or DEFAULT_TILE_SIZE,
        "bands": options.bands,
    }
    return settings


def event_settings(options: SimulateOptions, source: Source) -> EventSettings:
    """Options and, where they ask for it, shapes and transitions of the whole source (every mask is read)."""
    events = options.events
    bank, table, sizes = None, None, {}
    if options.learn_transitions:
        table = learn_table((source.read_mask(i) for i in range(len(source))), source.legend)
        sizes = learn_sizes((source.read_mask(i) for i in range(len(source))), events)
    elif events.transitions is not None:
        table = load_table(events.transitions, source.legend)
    if events.shape_bank:
        bank = build_bank((source.read_mask(i) for i in range(len(source))), events, options.seed)
    return EventSettings(events, EventContext(bank, table, sizes))


def note_transitions(out: Path, events: EventSettings, source: Source) -> None:
    """Write ``transitions.json``, weights and usual sizes, where a table was used or learned."""
    if events.context.transitions is not None:
        sizes = {source.legend.name_of(c): list(limits) for c, limits in events.context.sizes.items()}
        used = {"weights": events.context.transitions.to_dict(), "sizes_px": sizes}
        atomic_write(out / "transitions.json", (json.dumps(used, indent=1) + "\n").encode())


def get_plan(
    options: SimulateOptions,
    settings: Mapping[str, Any],
    source: Source,
    second: Source | None,
    events: EventSettings,
    save: bool,
    shard_size: int = DEFAULT_SHARD,
) -> DatasetPlan:
    """The plan of the output folder, or a new one (saved if ``save``)."""
    plan = load_plan(settings, options.out)
    if save:  # only now is it certain that the folder is ours
        remove_leftovers(options.out)
    if plan is not None:
        return plan
    if second is not None:
        plan = plan_given(source, second, options.seed, shard_size)
    else:
        wanted = options.num_pairs or options.pairs_per_image * len(source)
        with progress_bar() as bar:
            task = bar.add_task("planning changes", total=wanted)
            requests = options.targets.requests(wanted, len(source), options.events.kinds, source.legend, options.seed)
            plan = make_plan(source, requests, options.seed, shard_size, events, lambda: bar.advance(task))
    if save:
        save_plan(plan, settings, options.out)
    return plan


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold ``out`` for this process; :class:`OutputError` if another one does, or if it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / ".lock").open("w")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"{out}: another process is writing to it; wait for it or give another --out") from error
        yield
