"""``changeanywhere simulate``: second masks and change masks, without a model and without torch.

OUT/label1/KEY.png label2/KEY.png   semantic masks (index PNG with palette)
OUT/label/KEY.png                   change mask, 0 or 255
OUT/events.jsonl                    a line per pair, sorted by key
OUT/legend.json
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from changeanywhere.errors import ShortfallError
from changeanywhere.generation.options import SimulateOptions
from changeanywhere.generation.plan import change_of
from changeanywhere.generation.prepare import get_plan, locked, open_tiles, plan_settings
from changeanywhere.pairs.layout import atomic_write
from changeanywhere.pairs.writer import write_labels
from changeanywhere.progress import progress_bar
from changeanywhere.sample import change_transitions


@dataclass(frozen=True)
class SimulateReport:
    """What a call of :func:`simulate_source` did."""

    out: Path
    num_pairs: int


def simulate_source(options: SimulateOptions) -> SimulateReport:
    """Write the labels of ``options.num_pairs`` changes; masks stay in the source's own legend.

    Raises :class:`InputError` for what the user gave wrong and :class:`ShortfallError`, after writing what could be
    made, if fewer changes are feasible than asked for.
    """
    options.check()
    source = open_tiles(options)
    with locked(options.out):
        plan = get_plan(options, plan_settings(options, source), source, None, save=True)
        records: list[dict[str, Any]] = []
        with progress_bar() as bar:
            for pair in bar.track(plan.pairs, description="writing masks"):
                mask_t1 = source.read_mask(pair.source_index)
                change = change_of(pair, source, None, options.events)
                write_labels(options.out, pair.key, mask_t1, change.mask_t2, change.change_mask, source.legend)
                records.append(
                    {
                        "key": pair.key,
                        "source_key": pair.source_key,
                        "kind": pair.kind,
                        "events": [event.to_dict(source.legend) for event in change.events],
                        "transitions": change_transitions(mask_t1, change.mask_t2, source.legend),
                        "change_ratio": float(change.change_mask.mean()),
                        "seed": pair.seed,
                    }
                )
        lines = [json.dumps(record) for record in sorted(records, key=lambda r: str(r["key"]))]
        atomic_write(options.out / "events.jsonl", ("\n".join(lines) + "\n").encode())
        source.legend.save(options.out / "legend.json")
    if plan.missing:
        parts = ", ".join(f"{count} {kind}" for kind, count in plan.missing.items())
        raise ShortfallError(f"{options.out}: wrote {len(plan.pairs)} pairs; no tile has room for the other {parts}")
    return SimulateReport(options.out, len(plan.pairs))
