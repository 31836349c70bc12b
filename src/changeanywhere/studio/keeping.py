"""Painted pairs that are kept: a set on disk through the writer of every generated set."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from changeanywhere.documents import parse_json
from changeanywhere.errors import OutputError, require
from changeanywhere.generation.finish import credited
from changeanywhere.legend import Legend, MaskValues, read_legend
from changeanywhere.pairs.names import CHANGE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS
from changeanywhere.pairs.record import Finish, Origin, PairRecord, Provenance, record_of
from changeanywhere.pairs.writer import finalise, write_pair
from changeanywhere.plain import to_plain
from changeanywhere.sample import ChangePair
from changeanywhere.storage import LocalStore
from changeanywhere.studio.painting import Painted
from changeanywhere.text import is_plain_name

HOW = "is painted by a latent diffusion model under a mask that was drawn, or proposed, in the studio."
LONGEST_NAME = 60
FOLDERS = (*IMAGE_FOLDERS, CHANGE_FOLDER, *MASK_FOLDERS)
"""Of a pair's files."""
_LOCKS: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)


def set_folder(out: Path, name: str) -> Path:
    """Where the set of a name lies; :class:`ConfigError` for one that is no plain name."""
    sound = is_plain_name(name) and len(name) <= LONGEST_NAME
    require(sound, "set", name[:80], f"letters, digits, _, - and ., up to {LONGEST_NAME} of them")
    return out / name


def keep(folder: Path, painted: Painted, legend: Legend, where: tuple[str, str], model: tuple[str, str]) -> str:
    """Add a pair to the set in ``folder``; returns its key. ``where``: name of its source and its split; ``model``:
    name and hash. The pair's files come first and the lists last: what a crash leaves between is not in the set, and
    goes at the next keep. :class:`OutputError` for a folder that is something else.
    """
    with _LOCKS[folder.resolve()]:
        store = LocalStore(folder)
        records = records_of(store)
        _refuse_foreign(store, legend, records)
        _remove_strays(store, {record.key for record in records})
        key = _next_key(painted.asked.sample.item.key, {record.key for record in records})
        plan, sample = painted.asked.plan, painted.asked.sample
        pair = ChangePair(
            key, painted.image_t1, painted.image_t2, plan.change_mask, sample.mask, plan.mask_t2, georef=sample.georef
        )
        item = credited(sample.item, painted.donors)
        origin = Origin(item, where[0], where[1], sample.bands, sample.normalisation)
        settings = {"painter": {"method": "diffusion"}, "sampling": to_plain(painted.asked.sampling)}
        provenance = Provenance(model[0], model[1], settings, {"changeanywhere": version("changeanywhere")})
        finish = Finish(fidelity=painted.fidelity, donors=painted.donors, exemplars=painted.exemplars)
        told = replace(plan, events=()) if painted.asked.drawn else plan  # events are all there is, or none
        record = record_of(pair, told, legend, origin, finish, "png", provenance)
        store.keep(write_pair(store, pair, legend))
        finalise(store, legend, sorted([*records, record], key=lambda each: each.key), how=HOW)
    return key


def records_of(store: LocalStore) -> list[PairRecord]:
    """Of all pairs of a set; none of one that is not there yet."""
    if not store.exists("metadata.jsonl"):
        return []
    try:
        lines = store.get("metadata.jsonl").decode().splitlines()
        return [PairRecord.from_dict(parse_json(line)) for line in lines if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{store.describe('metadata.jsonl')}: damaged ({error}); give another set") from error


def _refuse_foreign(store: LocalStore, legend: Legend, records: list[PairRecord]) -> None:
    if store.exists("plan/plan.json") or store.exists("plan/job.json"):
        raise OutputError(f"{store.describe()}: made by generate, which alone adds pairs to it; give another set")
    if not records and any(not name.startswith(tuple(f"{each}/" for each in FOLDERS)) for name in store.list()):
        raise OutputError(f"{store.describe()}: holds other files; give another set")
    held, numbers = read_legend(store.root / "legend.json") if records else (legend, MaskValues())
    if held.to_dict() != legend.to_dict() or not numbers.is_plain:  # one legend for its masks and for ours
        raise OutputError(
            f"{store.describe('legend.json')}: has other classes than the model, or other numbers for them; give "
            "another set"
        )


def _remove_strays(store: LocalStore, keys: set[str]) -> None:
    """Files of pairs that no line speaks of: of a keep that was cut short."""
    for folder in FOLDERS:
        for name in store.list(folder):
            if Path(name).stem not in keys:
                store.delete(name)


def _next_key(tile: str, taken: set[str]) -> str:
    number = 0
    while f"{tile}_{number:03d}" in taken:
        number += 1
    return f"{tile}_{number:03d}"
