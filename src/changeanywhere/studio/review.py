"""Decisions on the pairs of a set: filter, keep, drop, flag, export. They lie beside the pairs, saved at once."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from changeanywhere.documents import DocumentError, read_json_object, to_json
from changeanywhere.errors import InputError, PairsError, require
from changeanywhere.exporting.export import ExportReport, export
from changeanywhere.exporting.options import LAYOUT_NAMES, ExportOptions
from changeanywhere.help import require_one
from changeanywhere.pairs.names import SPLITS
from changeanywhere.pairs.reader import PairDataset, load_pairs
from changeanywhere.pairs.record import ALL_FOLDERS, transitions_of
from changeanywhere.storage import atomic_write
from changeanywhere.studio.keeping import set_folder

FILE = "decisions.json"
DECISIONS = ("keep", "drop", "flag")
ANY = "any"
OPEN = "undecided"
EXPORTS = "exports"
"""Folder below that of the sets: what is exported is no set under review."""
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Filter:
    """Which pairs are looked at."""

    transition: str = ANY
    """``from->to``, or any."""
    split: str = ANY
    low: float = 0.0
    high: float = 100.0
    """Changed ground in per cent, both ends inclusive."""
    fidelity: float = 0.0
    """Least share of changed ground that is read as its new class; 0 takes pairs that nobody read, too."""
    decision: str = ANY
    """One of :data:`DECISIONS`, :data:`OPEN`, or any."""

    @staticmethod
    def of(values: Sequence[Any]) -> Filter:
        """Of the page's fields, in the order above; a number that was emptied bounds nothing."""
        transition, split, low, high, fidelity, decision = values
        return Filter(transition, split, low or 0, 100 if high is None else high, fidelity or 0, decision)

    def check(self) -> None:
        """:class:`ConfigError` naming the first value that is not allowed."""
        rising = 0 <= self.low <= self.high <= 100
        require(rising, "ratio", [self.low, self.high], "two per cents, 0 to 100, rising")
        require(0 <= self.fidelity <= 1, "fidelity", self.fidelity, "0 to 1")


@dataclass(frozen=True)
class Facts:
    """What filters and charts ask of a pair."""

    transitions: tuple[str, ...]
    split: str
    ratio: float
    """Changed ground in per cent."""
    fidelity: float | None


class Review:
    """A set and what was decided on its pairs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pairs = load_whole(folder)
        self.numbers = {self.pairs.key_of(i): i for i in range(len(self.pairs))}
        self.facts = {key: _facts(self.pairs.record_of(number)) for key, number in self.numbers.items()}

    @property
    def decisions(self) -> dict[str, str]:
        """By key, as they lie on disk; :class:`PairsError` for a damaged file."""
        file = self.folder / FILE
        if not file.exists():
            return {}
        try:
            found = read_json_object(file).get("decisions")
        except (DocumentError, OSError) as error:
            raise PairsError(f"{file}: damaged ({error}); move it away to begin anew") from error
        if not isinstance(found, dict) or not set(map(str, found.values())) <= set(DECISIONS):
            raise PairsError(f"{file}: damaged (no decisions in it); move it away to begin anew")
        return {str(key): str(value) for key, value in found.items()}

    def decide(self, key: str, decision: str) -> None:
        """Saved, whole, before this returns; others' decisions on other pairs stay."""
        require_one("decision", decision, DECISIONS)
        if key not in self.numbers:
            raise PairsError(f"{self.folder}: no pair {key!r}")
        with _LOCK:
            now = self.decisions | {key: decision}
            atomic_write(self.folder / FILE, (to_json({"decisions": dict(sorted(now.items()))}, 1) + "\n").encode())

    def chosen(self, asked: Filter) -> list[str]:
        """Keys of the pairs that pass, in their order."""
        asked.check()
        decided = self.decisions if asked.decision != ANY else {}
        return [
            key
            for key, facts in self.facts.items()
            if (asked.transition == ANY or asked.transition in facts.transitions)
            and asked.split in (ANY, facts.split)
            and asked.low <= facts.ratio <= asked.high
            and (asked.fidelity == 0 or (facts.fidelity is not None and facts.fidelity >= asked.fidelity))
            and (asked.decision == ANY or decided.get(key, OPEN) == asked.decision)
        ]

    def transitions(self) -> Counter[str]:
        """Pairs by class pair."""
        return Counter(name for facts in self.facts.values() for name in facts.transitions)

    def ratios(self, bins: int = 10) -> list[tuple[float, float, int]]:
        """Pairs by changed ground: low and high end in per cent, count; the ends cover all pairs."""
        found = [facts.ratio for facts in self.facts.values()]
        top = max(1.0, math.ceil(max(found)))
        counts, edges = np.histogram(found, bins, (0.0, top))
        return [(float(a), float(b), int(n)) for (a, b), n in zip(pairwise(edges), counts, strict=True)]

    def export_kept(self, layout: str) -> tuple[Path, ExportReport]:
        """The kept pairs in a layout of ``export``, and where; :class:`InputError` where none is kept. What was
        exported of this set in this layout before goes; :class:`OutputError` where anything else lies in its place."""
        require_one("layout", layout, LAYOUT_NAMES)
        kept = [key for key, decision in self.decisions.items() if decision == "keep" and key in self.numbers]
        if not kept:
            raise InputError("no pair is kept yet: Keep, or the key K, keeps the one that is shown")
        out = self.folder.parent / EXPORTS / f"{self.folder.name}-{layout}"
        out.parent.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=".new-") as place, _LOCK:
            view = Path(place) / self.folder.name
            self._link(kept, view)
            return out, export(ExportOptions(pairs=view, layout=layout, out=out))

    def _link(self, kept: Sequence[str], view: Path) -> None:
        """A set of the kept pairs alone, of links to the files of the whole one."""
        lines: list[str] = []
        listed: dict[str, list[str]] = {split: [] for split in SPLITS}
        (view / "list").mkdir(parents=True)
        for key in sorted(kept):
            record = self.pairs.record_of(self.numbers[key])
            for folder in ALL_FOLDERS:  # those that the pair has: not all have masks, or ground without a label
                if name := record.get(f"{folder}_file_name"):
                    file = self.folder / str(name)
                    (view / folder).mkdir(exist_ok=True)
                    (view / folder / file.name).symlink_to(file.resolve())
            lines.append(to_json(record, ensure_ascii=False))
            listed[record["split"]].append(Path(str(record["A_file_name"])).name)
        (view / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for split, names in listed.items():
            (view / "list" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        if (self.folder / "legend.json").exists():
            (view / "legend.json").symlink_to((self.folder / "legend.json").resolve())


def _facts(record: Mapping[str, Any]) -> Facts:
    fidelity = record.get("fidelity")
    return Facts(
        tuple(transitions_of(record.get("transitions") or {})),
        str(record.get("split", "")),
        100 * float(record.get("change_ratio", 0.0)),
        None if fidelity is None else float(fidelity),
    )


def load_whole(folder: Path) -> PairDataset:
    """All pairs of a set that has a line for each; :class:`PairsError` for what is none."""
    pairs = load_pairs(folder)
    if not isinstance(pairs, PairDataset) or not len(pairs) or not pairs.record_of(0).get("A_file_name"):
        raise PairsError(f"{folder}: no set of pairs with metadata.jsonl and files in folders")
    return pairs


def sets_in(out: Path) -> list[str]:
    """Names of the sets below ``out``."""
    found = sorted(out.glob("*/metadata.jsonl")) if out.is_dir() else []
    return [file.parent.name for file in found if not file.parent.name.startswith(".")]


def open_review(out: Path, name: str) -> Review:
    """The set of a name below ``out``: nothing else on this machine is opened."""
    folder = set_folder(out, name)
    if name not in sets_in(out):
        raise InputError(f"{name}: no set of that name is kept yet")
    return Review(folder)
