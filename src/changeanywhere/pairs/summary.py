"""What a set of pairs is, counted record by record: memory does not grow with the records themselves."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping

from changeanywhere.pairs.names import SPLITS
from changeanywhere.pairs.record import PairRecord


class SetSummary:
    """Counts over the records of ``metadata.jsonl``."""

    def __init__(self, left_out: Mapping[str, int] | None = None, moved: Mapping[str, int] | None = None) -> None:
        self.count = 0
        self.left_out = dict(left_out or {})
        """Changes that were asked for and not made, and why, with counts."""
        self.moved = dict(moved or {})
        """Changes that were made on a tile with room, not on the one whose turn it was, and why, with counts."""
        self.first: PairRecord | None = None
        """The first record: what all of them share (source, model, settings, versions)."""
        self.kinds: Counter[str] = Counter()
        self.splits: Counter[str] = Counter(dict.fromkeys(SPLITS, 0))
        self.in_tables: Counter[str] = Counter()
        """Pairs by split that lie as files in folders: those that the flat tables name."""
        self.licences: Counter[str] = Counter()
        self.credits: Counter[str] = Counter()
        self.machines: Counter[str] = Counter()
        """Who labelled the tiles of pairs, where that were machines."""
        self.transitions: Counter[str] = Counter()
        """Changed pixels by class transition, "from->to"."""
        self.single: Counter[str] = Counter()
        """Pairs that show this one transition and no other."""
        self.quiet = 0
        """Pairs without a change."""
        self.exchanged = 0
        """Pairs whose second date is the real one."""
        self.seconds: Counter[str] = Counter()
        """Pairs by what a real second date was to them, where there was one."""
        self.ignored = 0.0
        """Sum of the shares of ground that no label speaks of."""
        self.ratios = array("d")
        """Share of changed pixels, by pair."""

    def add(self, record: PairRecord) -> None:
        """Count one record."""
        self.first = self.first or record
        self.kinds[record.kind] += 1
        self.splits[record.split] += 1
        self.in_tables[record.split] += not record.container
        self.licences[record.licence] += 1
        if record.attribution:
            self.credits[record.attribution] += 1
        if record.labelled_by:
            self.machines[record.labelled_by] += 1
        self.exchanged += record.real_date == 2
        if record.second:
            self.seconds[record.second] += 1
        self.ignored += record.ignored_ratio or 0
        self.add_change(record.transitions, record.change_ratio)

    def add_change(self, transitions: Mapping[str, int], ratio: float) -> None:
        """Count the change of a pair alone (``simulate``, whose records have no more)."""
        self.count += 1
        self.transitions.update(transitions)
        self.quiet += not transitions
        if len(transitions) == 1:
            self.single[next(iter(transitions))] += 1
        self.ratios.append(ratio)
