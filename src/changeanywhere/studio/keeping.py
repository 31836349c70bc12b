"""Painted pairs that are kept: a set on disk through the writer of every generated set."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from changeanywhere.documents import parse_json, to_json
from changeanywhere.errors import OutputError, require
from changeanywhere.folders import is_system
from changeanywhere.generation.finish import credited
from changeanywhere.legend import Legend, MaskValues, read_legend
from changeanywhere.pairs.record import ALL_FOLDERS, FILE_FOLDERS, Finish, Origin, PairRecord, Provenance, record_of
from changeanywhere.pairs.writer import finalise, write_pair
from changeanywhere.plain import to_plain
from changeanywhere.sample import ChangePair
from changeanywhere.storage import LocalStore
from changeanywhere.studio.painting import Painted
from changeanywhere.text import is_plain_name

HOW = "is painted by a latent diffusion model under a mask that was drawn, or proposed, in the studio."
LONGEST_NAME = 60
MARKER = ".studio.json"
"""In what the studio made, and written before it: without it nothing is taken away there. In a set it names the pair
that is being added."""
_LOCKS: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)


def set_folder(out: Path, name: str) -> Path:
    """Where the set of a name lies; :class:`ConfigError` for one that is no plain name."""
    sound = is_plain_name(name) and len(name) <= LONGEST_NAME
    require(sound, "set", name[:80], f"letters, digits, _, - and ., up to {LONGEST_NAME} of them")
    return out / name


def keep(folder: Path, painted: Painted, legend: Legend, where: tuple[str, str], model: tuple[str, str]) -> str:
    """Add a pair to the set in ``folder``; returns its key. ``where``: name of its source and its split; ``model``:
    name and hash. The pair's files come first and the lists last: what a crash leaves between is not in the set, and
    goes at the next keep; files of others stay as they are. :class:`OutputError` for a folder that is something else.
    """
    with _LOCKS[folder.resolve()]:
        store = LocalStore(folder)
        records = records_of(store)
        _refuse_foreign(store, legend, records)
        _remove_strays(store, {record.key for record in records})
        key = _next_key(painted.asked.sample.item.key, {record.key for record in records} | _stems_in(store))
        store.put(MARKER, (to_json({"adds": key}) + "\n").encode())
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
    """Of all pairs of a set; none of one that is not there yet. :class:`OutputError` for lines that no set of the
    studio has."""
    if not store.exists("metadata.jsonl"):
        return []
    try:
        lines = store.get("metadata.jsonl").decode().splitlines()
        records = [PairRecord.from_dict(parse_json(line)) for line in lines if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{store.describe('metadata.jsonl')}: damaged ({error}); give another set") from error
    for record in records:
        if record.container or not {*FILE_FOLDERS} <= {*record.files}:
            where = store.describe("metadata.jsonl")
            raise OutputError(f"{where}: pair {record.key} has no files in {', '.join(FILE_FOLDERS)}; give another set")
    return records


def _refuse_foreign(store: LocalStore, legend: Legend, records: list[PairRecord]) -> None:
    if store.exists("plan/plan.json") or store.exists("plan/job.json"):
        raise OutputError(f"{store.describe()}: made by generate, which alone adds pairs to it; give another set")
    found = [name for name in store.list() if not any(is_system(part) for part in name.split("/"))]
    if not records and not store.exists(MARKER) and found:
        raise OutputError(f"{store.describe()}: holds other files ({found[0]}); give another set")
    held, numbers = read_legend(store.root / "legend.json") if records else (legend, MaskValues())
    if held.to_dict() != legend.to_dict() or not numbers.is_plain:  # one legend for its masks and for ours
        raise OutputError(
            f"{store.describe('legend.json')}: has other classes than the model, or other numbers for them; give "
            "another set"
        )


def _remove_strays(store: LocalStore, keys: set[str]) -> None:
    """Files of the pair that the marker names, where a keep was cut short: no line speaks of them. Nobody else's."""
    if not store.exists(MARKER):
        return
    try:
        key = str(parse_json(store.get(MARKER).decode())["adds"])
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{store.describe(MARKER)}: damaged ({error}); delete it, or give another set") from error
    if key not in keys:
        for folder in ALL_FOLDERS:
            store.delete(f"{folder}/{key}.png")


def _stems_in(store: LocalStore) -> set[str]:
    """Of the files that lie where those of pairs go: none is written over."""
    return {Path(name).stem for folder in ALL_FOLDERS for name in store.list(folder)}


def _next_key(tile: str, taken: set[str]) -> str:
    number = 0
    while f"{tile}_{number:03d}" in taken:
        number += 1
    return f"{tile}_{number:03d}"
