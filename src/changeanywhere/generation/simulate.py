"""``changeanywhere simulate``: the same job without a painter: second masks and change masks, no model and no torch.

OUT/label1/KEY.png label2/KEY.png   semantic masks (index PNG, grey unless a palette is asked for)
OUT/label/KEY.png                   change mask, 0 or 255
OUT/events.jsonl                    a line per pair, sorted by key: events with bbox, area in px and m², centroid
OUT/annotations.json                COCO change instances: connected components of each class transition
OUT/transitions.json                weights of transitions and usual sizes, where a table was used or learned
OUT/targets.json                    shares asked and reached, where there are targets
OUT/legend.json
OUT/checksums.json                  of the files above from events.jsonl on; those of the masks stand in shards/N.json
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from changeanywhere.buckets import store_at
from changeanywhere.errors import OutputError, ShortfallError
from changeanywhere.generation.dataset import OF_MASKS, in_key_order, note_held
from changeanywhere.generation.executors import Work
from changeanywhere.generation.executors.threads import ThreadExecutor
from changeanywhere.generation.job import Job
from changeanywhere.generation.options import SimulateOptions
from changeanywhere.generation.plan import PlannedPair, PlanSummary, ShardPlan, change_of, load_shard, load_summary
from changeanywhere.generation.prepare import get_plan, job_of, note_inputs, refuse_foreign
from changeanywhere.generation.shard import marker_name
from changeanywhere.leases import Leases
from changeanywhere.pairs.annotations import coco_annotations, coco_categories, coco_file, event_record
from changeanywhere.pairs.record import transition_rows, transitions_of
from changeanywhere.pairs.summary import SetSummary
from changeanywhere.pairs.writer import Targets, write_labels, write_targets
from changeanywhere.progress import Progress, silent
from changeanywhere.sample import ChangePair, change_transitions
from changeanywhere.seals import sealed, unsealed
from changeanywhere.stopping import polite_stop
from changeanywhere.storage import Store, remove_leftovers, shown


@dataclass(frozen=True)
class SimulateReport:
    """What a call of :func:`simulate_source` did."""

    out: Path
    num_pairs: int
    reached: Targets
    """(target, share asked, share reached)"""
    skipped: Sequence[str]
    """Why tiles were left out, a line each (``on_error: skip``)."""
    left_out: Mapping[str, int]
    """Changes that their tiles have no room for, with counts (``infeasible: leave``)."""


def simulate_source(options: SimulateOptions, progress: Progress = silent) -> SimulateReport:
    """Write the labels of ``options.num_pairs`` changes; masks stay in the source's own legend.

    Raises :class:`InputError` for what the user gave wrong and :class:`ShortfallError`, after writing what could be
    made, if fewer changes are feasible than asked for.
    """
    options.check()
    store = store_at(options.out)
    refuse_foreign(store)
    job = job_of(options, store, progress)
    leases = Leases(store)
    with polite_stop() as stop:
        with leases.waited_for("plan", lambda: load_summary(store) is not None):
            remove_leftovers(options.out)
            plan = get_plan(job, store, progress)
            note_inputs(job, store)
        _write_shards(job, plan, store, leases, stop, progress)
        with leases.waited_for("set", lambda: False):
            reached = _finish(job, plan, store)
            leases.sweep()
            remove_leftovers(options.out)
    left_out = plan.missing if options.infeasible == "leave" else {}
    report = SimulateReport(options.out, plan.num_pairs, reached, job.tiles.skipped, left_out)
    if plan.missing and not left_out:
        parts = ", ".join(f"{count} {kind}" for kind, count in plan.missing.items())
        raise ShortfallError(f"{shown(options.out)}: wrote {plan.num_pairs} pairs; missing: {parts}", report)
    return report


def _write_shards(
    job: Job, plan: PlanSummary, store: Store, leases: Leases, stop: threading.Event, progress: Progress
) -> None:
    open_numbers = [n for n in range(plan.num_shards) if _content(store, n, plan) is None]
    lock, done = threading.Lock(), [plan.num_pairs - len(open_numbers) * job.shard_size]

    def add(count: int) -> None:
        with lock:
            done[0] += count
            progress("writing masks", max(0, done[0]), plan.num_pairs)

    def make(number: int) -> None:
        simulate_shard(job, load_shard(store, number, plan), store, progress=add)

    def is_done(number: int) -> bool:
        return _content(store, number, plan) is not None

    ThreadExecutor().run(open_numbers, Work(make, is_done, time.sleep, lambda: None), leases, stop)


def simulate_shard(job: Job, shard: ShardPlan, store: Store, *, progress: Callable[[int], object]) -> None:
    """Write the masks of a shard and, last, its marker, with its lines of ``events.jsonl`` and its COCO instances."""
    categories = coco_categories(job.tiles.source.legend)
    records, sizes, instances, files = [], [], [], dict[str, str]()
    for pair in shard.pairs:
        record, size, found, written = _one(job, pair, store, categories)
        records.append(record)
        sizes.append(size)
        instances.append(found)
        files |= written
        progress(1)
    content = {"records": records, "sizes": sizes, "instances": instances, "files": files, "plan": shard.seal}
    name, marker = marker_name(shard.number), sealed(content)
    store.keep(files)
    if not store.put_new(name, marker) and _content_of(store, shard.number, shard.seal) is None:
        store.put(name, marker)  # in place of one that is damaged, or of another plan
    store.keep([name])


def _one(
    job: Job, planned: PlannedPair, store: Store, categories: dict[str, int]
) -> tuple[Any, Any, Any, dict[str, str]]:
    """Write one pair's masks; (record, width and height, COCO instances without ids of their own, hashes of files)."""
    tiles = job.tiles
    source, legend = tiles.source, tiles.source.legend
    item, georef = source.items[planned.source_index], source.georef(planned.source_index)
    mask_t1 = source.read_mask(planned.source_index)
    change = change_of(planned, tiles, mask_t1)
    masks, nothing = (mask_t1, change.mask_t2), np.empty((0, 0, 3), np.uint8)
    kinds = job.finishing.files
    written = write_labels(store, ChangePair(planned.key, nothing, nothing, change.change_mask, *masks), legend, kinds)
    record = {
        "key": planned.key,
        "source_key": planned.source_key,
        "scene": item.scene,
        "gsd_m": item.gsd_m,
        "events": [event_record(event, *masks, legend, georef, item.gsd_m) for event in change.events],
        "transitions": transition_rows(change_transitions(*masks, legend)),
        "change_ratio": float(change.change_mask.mean()),
        "seed": planned.seed,
    }
    instances = coco_annotations(0, 0, change.change_mask, *masks, categories, legend)
    return record, list(mask_t1.shape[::-1]), instances, written


def _content(store: Store, number: int, plan: PlanSummary) -> dict[str, Any] | None:
    """Of the marker of a shard; None if there is none, or it is damaged or of another plan."""
    return _content_of(store, number, load_shard(store, number, plan).seal if plan.seal else "")


def _content_of(store: Store, number: int, shard: str) -> dict[str, Any] | None:
    try:
        content, _ = unsealed(store.get(marker_name(number)))
    except (OSError, ValueError):
        return None
    known = set(content) - {"plan", "files"} == {"records", "sizes", "instances"}
    return content if known and shard in ("", content.get("plan")) else None


def _sound(store: Store, number: int, plan: PlanSummary) -> dict[str, Any]:
    content = _content(store, number, plan)
    if content is None:
        raise OutputError(f"{store.describe(marker_name(number))}: damaged; the same command again makes it anew")
    return content


def _finish(job: Job, plan: PlanSummary, store: Store) -> Targets:
    """Everything about the whole set, from the markers; shares reached."""
    counts = SetSummary()

    def read(number: int) -> list[tuple[str, dict[str, Any]]]:
        return [(record["key"], record) for record in _sound(store, number, plan)["records"]]

    with store.create("events.jsonl") as lines:
        for record in in_key_order(plan.first_keys, read):
            lines.write((json.dumps(record) + "\n").encode())
    for number in range(plan.num_shards):
        for record in _sound(store, number, plan)["records"]:
            counts.add_change(transitions_of(record["transitions"]), record["change_ratio"])
    _write_annotations(job, plan, store)
    legend = job.tiles.source.legend
    store.put("legend.json", (json.dumps(legend.to_dict(), indent=1) + "\n").encode())
    reached = job.reached(counts)
    write_targets(store, reached)
    note_held(store, plan, OF_MASKS)
    return reached


def _write_annotations(job: Job, plan: PlanSummary, store: Store) -> None:
    """``annotations.json``, piece by piece: a list of a hundred thousand images is never held."""
    shards = range(plan.num_shards)
    whole = coco_file([], [], coco_categories(job.tiles.source.legend))
    head, _, tail = json.dumps(whole).partition('"images": [], "annotations": []')

    def images() -> Iterator[dict[str, Any]]:
        number = 0
        for content in (_sound(store, shard, plan) for shard in shards):
            for record, (width, height) in zip(content["records"], content["sizes"], strict=True):
                number += 1
                yield {"id": number, "file_name": f"{record['key']}.png", "width": width, "height": height}

    def instances() -> Iterator[dict[str, Any]]:
        image = number = 0
        for content in (_sound(store, shard, plan) for shard in shards):
            for found in content["instances"]:
                image += 1
                for instance in found:
                    number += 1
                    yield instance | {"id": number, "image_id": image}

    with store.create("annotations.json") as target:
        target.write(f'{head}"images": ['.encode())
        for separator, entry in _separated(images()):
            target.write((separator + json.dumps(entry)).encode())
        target.write(b'], "annotations": [')
        for separator, entry in _separated(instances()):
            target.write((separator + json.dumps(entry)).encode())
        target.write(f"]{tail}\n".encode())


def _separated(entries: Iterator[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, entry in enumerate(entries):
        yield ", " if number else "", entry
