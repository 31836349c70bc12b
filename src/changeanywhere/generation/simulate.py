"""``changeanywhere simulate``: second masks and change masks, without a model and without torch.

OUT/label1/KEY.png label2/KEY.png   semantic masks (index PNG with palette)
OUT/label/KEY.png                   change mask, 0 or 255
OUT/events.jsonl                    a line per pair, sorted by key: events with bbox, area in px and m², centroid
OUT/annotations.json                COCO change instances: connected components of each class transition
OUT/transitions.json                weights of transitions and usual sizes, where a table was used or learned
OUT/targets.json                    shares asked and reached, where there are targets
OUT/legend.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from changeanywhere.errors import ShortfallError
from changeanywhere.generation.options import SimulateOptions
from changeanywhere.generation.plan import DatasetPlan, EventSettings, change_of
from changeanywhere.generation.prepare import (
    event_settings,
    get_plan,
    locked,
    note_skipped,
    note_transitions,
    open_tiles,
    plan_settings,
)
from changeanywhere.pairs.annotations import coco_annotations, coco_categories, coco_file, event_record
from changeanywhere.pairs.summary import SetSummary
from changeanywhere.pairs.writer import write_labels, write_targets
from changeanywhere.progress import progress_bar
from changeanywhere.sample import change_transitions
from changeanywhere.sources import Source
from changeanywhere.storage import atomic_write


@dataclass(frozen=True)
class SimulateReport:
    """What a call of :func:`simulate_source` did."""

    out: Path
    num_pairs: int
    reached: list[tuple[str, float, float]]
    """(target, share asked, share reached)"""
    skipped: Sequence[str]
    """Why tiles were left out, a line each (``on_error: skip``)."""


def simulate_source(options: SimulateOptions) -> SimulateReport:
    """Write the labels of ``options.num_pairs`` changes; masks stay in the source's own legend.

    Raises :class:`InputError` for what the user gave wrong and :class:`ShortfallError`, after writing what could be
    made, if fewer changes are feasible than asked for.
    """
    options.check()
    source = open_tiles(options)
    settings = event_settings(options, source)
    with locked(options.out):
        plan = get_plan(options, plan_settings(options, source), source, None, settings, save=True)
        note_skipped(options.out, source.skipped)
        records = _write_labels(plan, source, settings, options.out)
        lines = [json.dumps(record) for record in sorted(records, key=lambda r: str(r["key"]))]
        atomic_write(options.out / "events.jsonl", ("\n".join(lines) + "\n").encode())
        source.legend.save(options.out / "legend.json")
        note_transitions(options.out, settings, source)
        counts = SetSummary()
        for record in records:
            counts.add_change(record["transitions"], record["change_ratio"])
        reached = options.targets.reached(counts)
        write_targets(options.out, reached)
    report = SimulateReport(options.out, len(plan.pairs), reached, source.skipped)
    if plan.missing:
        parts = ", ".join(f"{count} {kind}" for kind, count in plan.missing.items())
        raise ShortfallError(f"{options.out}: wrote {len(plan.pairs)} pairs; missing: {parts}", report)
    return report


def _write_labels(plan: DatasetPlan, source: Source, settings: EventSettings, out: Path) -> list[dict[str, Any]]:
    """Masks, change masks and the COCO file; returns the records of ``events.jsonl``."""
    records: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories = coco_categories(source.legend)
    with progress_bar() as bar:
        for pair in bar.track(plan.pairs, description="writing masks"):
            mask_t1 = source.read_mask(pair.source_index)
            change = change_of(pair, source, None, settings)
            masks = (mask_t1, change.mask_t2)
            write_labels(out, pair.key, *masks, change.change_mask, source.legend)
            item, georef = source.items[pair.source_index], source.georef(pair.source_index)
            records.append(
                {
                    "key": pair.key,
                    "source_key": pair.source_key,
                    "scene": item.scene,
                    "gsd_m": item.gsd_m,
                    "events": [
                        event_record(event, *masks, source.legend, georef, item.gsd_m) for event in change.events
                    ],
                    "transitions": change_transitions(*masks, source.legend),
                    "change_ratio": float(change.change_mask.mean()),
                    "seed": pair.seed,
                }
            )
            image = {"id": len(images) + 1, "file_name": f"{pair.key}.png"}
            images.append(image | {"width": mask_t1.shape[1], "height": mask_t1.shape[0]})
            annotations += coco_annotations(
                pair.key, len(images), len(annotations) + 1, *masks, categories, source.legend
            )
    content = coco_file(images, annotations, categories)
    atomic_write(out / "annotations.json", (json.dumps(content) + "\n").encode())
    return records
