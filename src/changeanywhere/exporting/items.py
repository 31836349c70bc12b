"""What is exported: the pairs of a set by split, in the classes asked for, one after the other. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from changeanywhere.buckets import local_copy
from changeanywhere.errors import EmptySplitError, LegendError, PairsError
from changeanywhere.exporting.options import ExportOptions
from changeanywhere.legend import UNKNOWN, Legend, LegendMap, load_legend, load_legend_map
from changeanywhere.pairs.hub import unpacked
from changeanywhere.pairs.layouts import layout_of, split_folders
from changeanywhere.pairs.names import CHANGE_FOLDER, IGNORE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS
from changeanywhere.pairs.reader import PairDataset, load_pairs
from changeanywhere.pairs.record import transition_rows
from changeanywhere.pairs.semantics import legend_of
from changeanywhere.rasters.facts import Facts, raising
from changeanywhere.rasters.gate import inspect_whole, whole
from changeanywhere.rasters.ground import georef_of
from changeanywhere.sample import ChangePair, GeoReference, change_mask_of, change_transitions

DATES = ("t1", "t2")


@dataclass(frozen=True)
class Item:
    """A pair: pixels as they are stored, masks in the classes to write, and the files where these hold them as they
    are."""

    split: str
    pair: ChangePair
    images: tuple[Path, Path]
    labels: Mapping[str, Path]
    """``label``, ``label1``, ``label2`` → its file, of our own sets whose classes stay."""
    facts: tuple[Facts, Facts]
    """What the files of the images are."""
    leaves_out: bool = False
    """Whether the map of its set makes classes unknown: change from and to them is on ground of which no label
    speaks."""

    @property
    def key(self) -> str:
        return self.pair.key

    @property
    def record(self) -> Mapping[str, Any]:
        """Its line of the metadata; empty where there is none."""
        return self.pair.metadata

    @property
    def notes_ignored(self) -> bool:
        """Whether its set has, or gets by a map, a file for ground of which no label speaks."""
        return self.leaves_out or f"{IGNORE_FOLDER}_file_name" in self.record

    def is_rgb8(self, date: int) -> bool:
        """Whether the file of a date (0 or 1) is a PNG that any reader opens as the same red, green and blue of 8 bits:
        no other bands, no palette, nothing transparent, and not turned."""
        file, facts = self.images[date], self.facts[date]
        plain = (facts.container, facts.dtype, facts.bits, facts.count) == ("PNG", "uint8", 8, 3)
        shown = facts.palette is None and facts.transparent is None and facts.orientation == 1
        return file.suffix.lower() == ".png" and plain and shown

    @property
    def georef(self) -> GeoReference | None:
        """By its line, else by the file of date 1; None without a place."""
        crs, transform = self.record.get("crs"), self.record.get("transform")
        if crs and transform:
            return GeoReference(str(crs), tuple(transform))
        return georef_of(self.facts[0], whole(self.facts[0]))


@dataclass
class SetInfo:
    """What is known of all pairs; counts grow while they pass."""

    name: str
    legend: Legend | None
    """Classes that are written; None where the pairs have no semantic masks."""
    total: int
    splits: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    credits: Counter[str] = field(default_factory=Counter)
    machines: Counter[str] = field(default_factory=Counter)
    """Who labelled tiles, where that were machines."""
    ignored: int = 0
    """Pairs with ground that no label speaks of."""
    noted: int = 0
    """Those of them whose set has a file for it."""
    unlisted: int = 0
    """Pairs of the set that none of its lists names: they are in no split."""
    without: tuple[str, ...] = ()
    """What is in the files and has no names, or not those of both dates, so that no layout gets it; in words."""

    def add(self, item: Item) -> None:
        """Count a pair."""
        self.splits[item.split] += 1
        self.licences[str(item.record.get("licence") or "unknown")] += 1
        for name, counts in (("attribution", self.credits), ("labelled_by", self.machines)):
            if item.record.get(name):
                counts[str(item.record[name])] += 1
        self.ignored += item.pair.ignored is not None
        self.noted += item.pair.ignored is not None and item.notes_ignored


def open_set(options: ExportOptions) -> tuple[SetInfo, Iterator[Item]]:
    """The pairs that ``options`` name, by split. :class:`PairsError` for what is no set of pairs, :class:`LegendError`
    for classes that do not fit."""
    root = unpacked(local_copy(options.pairs))
    sets, unlisted = _by_split(root, options.max_megapixels)
    own = _legends_of(sets)
    legend = next(iter(own.values()), None)
    if options.legend is not None:
        if legend is None:
            raise PairsError(f"{options.pairs}: has no semantic masks with a legend.json; --legend has nothing to map")
        legend = load_legend(options.legend)
    mappings = {split: _mapping(sets[split], theirs, legend, options) for split, theirs in own.items() if legend}
    total = sum(len(pairs) for pairs in sets.values())
    name, without = Path(str(options.pairs)).resolve().name, _nameless(sets.values())
    info = SetInfo(name, legend, total, unlisted=unlisted, without=without)
    return info, _items(sets, mappings, info)


def _by_split(root: Path, max_megapixels: float | None) -> tuple[dict[str, PairDataset], int]:
    """By the set's lists or folders, and how many pairs no list names; a set that names no splits is all ``train``."""
    if layout_of(root) is None and split_folders(root):
        return {split: load_pairs(root, split, max_megapixels) for split in split_folders(root)}, 0
    whole = load_pairs(root, None, max_megapixels)
    layout = layout_of(whole.folder)
    listed = layout.splits(whole.folder) if layout is not None else []
    if not listed:
        return {"train": whole}, 0
    found = {}
    for split in listed:
        try:
            found[split] = load_pairs(root, split, max_megapixels)
        except EmptySplitError:
            continue
    named = {pairs.key_of(n) for pairs in found.values() for n in range(len(pairs))}
    return found, sum(whole.key_of(n) not in named for n in range(len(whole)))


def _legends_of(sets: Mapping[str, PairDataset]) -> dict[str, Legend]:
    """By split, where masks have names: a set without masks, or without names, is exported without classes."""
    return {split: pairs.legend for split, pairs in sets.items() if pairs.legend is not None and pairs.has_masks}


def _nameless(sets: Iterable[PairDataset]) -> tuple[str, ...]:
    """What the files of masks and labels say, and no legend of full masks names."""
    bare = [pairs for pairs in sets if pairs.legend is None]
    found = {
        "semantic masks, whose numbers no legend.json names": any(pairs.has_masks for pairs in bare),
        "classes of changed ground, which its labels name": any(legend_of(pairs) is not None for pairs in bare),
    }
    return tuple(what for what, there in found.items() if there)


def _mapping(pairs: PairDataset, own: Legend, legend: Legend, options: ExportOptions) -> LegendMap | None:
    """From the classes of a split to those that are written; None where they are the same. Splits in folders of their
    own may have legends of their own: the first one's is written, where no other is asked for."""
    if options.legend is None and own.classes == legend.classes:
        return None
    try:
        return load_legend_map(own, legend, options.legend_map)
    except LegendError as error:
        raise LegendError(f"{pairs.folder / 'legend.json'}: {error}") from error


def _items(sets: Mapping[str, PairDataset], mappings: Mapping[str, LegendMap | None], info: SetInfo) -> Iterator[Item]:
    seen: dict[str, tuple[str, str]] = {}
    leaves_out = any(UNKNOWN in mapping.to_dict().values() for mapping in mappings.values() if mapping is not None)
    for split, pairs in sets.items():
        mapping = mappings.get(split)
        for number in range(len(pairs)):
            pair = pairs[number]
            other, name = seen.setdefault(pair.key, (split, pairs.names[number]))
            if other != split:
                raise PairsError(f"{pairs.folder}: {pair.key} is in {other} and in {split}; allowed: one split")
            if name != pairs.names[number]:
                raise PairsError(
                    f"{pairs.folder}: {pair.key} names two pairs ({name}, {pairs.names[number]}); rename one"
                )
            images = pairs.images_of(number)
            with raising(PairsError):
                first, second = (inspect_whole(file, pairs.max_megapixels) for file in images)
            item = Item(split, pair, images, _labels(pairs, number, mapping), (first, second), leaves_out)
            if info.legend is None:
                item = replace(item, pair=replace(pair, mask_t1=None, mask_t2=None))
            elif pair.mask_t1 is None or pair.mask_t2 is None:
                raise PairsError(f"{pairs.folder}: {pair.key} has no semantic masks, other pairs of the set have")
            elif mapping is not None:
                item = replace(item, pair=_mapped(pair, mapping))
            info.add(item)
            yield item


def _mapped(pair: ChangePair, mapping: LegendMap) -> ChangePair:
    """In other classes, and its line with it: transitions, ratios, and the events that still change something. Where
    one of the classes of a change is unknown now, nobody can say what is changed."""
    assert pair.mask_t1 is not None and pair.mask_t2 is not None
    masks, names = (mapping.apply(pair.mask_t1), mapping.apply(pair.mask_t2)), mapping.to_dict()
    change, record = pair.change_mask & change_mask_of(*masks), dict(pair.metadata)
    ignored, gone = pair.ignored, pair.change_mask & ((masks[0] == 0) | (masks[1] == 0))
    if gone.any():
        ignored = gone if ignored is None else ignored | gone
    if record:
        record["transitions"] = transition_rows(change_transitions(*masks, mapping.target))
        record["change_ratio"] = round(float(change.mean()), 6)
        record["unknown_ratio"] = round(float((masks[0] == 0).mean()), 6)
        if ignored is not None:
            record["ignored_ratio"] = round(float(ignored.mean()), 6)
        events = [
            {**event, **{end: names.get(event[end], UNKNOWN) for end in ("from_class", "to_class")}}
            for event in record.get("events", ())
        ]
        record["events"] = [e for e in events if e["from_class"] != e["to_class"] and UNKNOWN not in e.values()]
    return replace(pair, change_mask=change, mask_t1=masks[0], mask_t2=masks[1], metadata=record, ignored=ignored)


def _labels(pairs: PairDataset, number: int, mapping: LegendMap | None) -> dict[str, Path]:
    """Files of labels that may be taken as they are: of a set of ours, which says 0 and 255, in its own classes;
    masks where their numbers are those of the classes, which ``legend.json`` is written with."""
    if mapping is not None or not pairs.record_of(number):
        return {}
    suffix = pairs.images_of(number)[0].suffix
    kinds = (CHANGE_FOLDER, *MASK_FOLDERS) if pairs.numbers.is_plain else (CHANGE_FOLDER,)
    files = {what: pairs.folder / what / f"{pairs.key_of(number)}{suffix}" for what in kinds}
    return {what: file for what, file in files.items() if file.is_file()}


__all__ = ["DATES", "IMAGE_FOLDERS", "Item", "SetInfo", "open_set"]
