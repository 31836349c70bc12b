"""Which of a source's splits are read, and how many images of each."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from changeanywhere.errors import SourceError, require
from changeanywhere.sources.entries import SPLITS, Entry

ALL = "all"


def check_wanted(wanted: Mapping[str, str | int] | None) -> None:
    """:class:`ConfigError` for what is no split, and no number of images."""
    if wanted is None:
        return
    require(bool(wanted), "splits", dict(wanted), "one split and more, as {train: all, val: 500}")
    for name, count in wanted.items():
        require(name in SPLITS, "splits", name, ", ".join(SPLITS))
        number = isinstance(count, int) and not isinstance(count, bool) and count >= 1
        require(number or count == ALL, f"splits.{name}", count, f"{ALL}, or a number of images")


def chosen(root: Path, entries: Sequence[Entry], wanted: Mapping[str, str | int]) -> list[Entry]:
    """The images of these splits, in their order. Where a number is given, those whose names have the smallest hashes:
    the same on every machine, and among those of any larger number.

    :class:`SourceError` for a split that the source does not state, and for more images than it has.
    """
    counts = Counter(entry.split for entry in entries if entry.split is not None)
    stated = ", ".join(f"{name} ({counts[name]} images)" for name in SPLITS if counts[name])
    kept: set[str] = set()
    for name, number in wanted.items():
        own = [entry.stem for entry in entries if entry.split == name]
        allowed = stated or "nothing: no split is stated there (provenance.csv may, in a column split)"
        if not own:
            raise SourceError(f"{root}: splits has {name}; allowed: {allowed}")
        if isinstance(number, int):
            if number > len(own):
                raise SourceError(f"{root}: splits has {name}: {number}; allowed: 1 to {len(own)}, or {ALL}")
            own = sorted(own, key=lambda stem: hashlib.sha256(stem.encode()).digest())[:number]
        kept.update(own)
    return [entry for entry in entries if entry.stem in kept and entry.split in wanted]
