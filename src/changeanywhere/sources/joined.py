"""Several sources as one: tiles with masks, and images without; and a part of one: scenes held out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import accumulate

from changeanywhere.errors import SourceError
from changeanywhere.legend import Mask
from changeanywhere.sample import GeoReference, SourceItem, SourceSample
from changeanywhere.sources.base import Source


class JoinedSource(Source):
    """The tiles of ``parts``, one part after the other, in the legend of the first.

    A key that an earlier part has already gets its part's number behind it; tiles whose name one of ``without`` fits
    (``*`` for anything) are left out of all parts but the first ``labelled``, whose masks are read.
    """

    def __init__(self, parts: Sequence[Source], without: Sequence[str] = (), labelled: int = 1) -> None:
        first = parts[0]
        self.root, self.name, self.legend, self.mapping = first.root, first.name, first.legend, first.mapping
        self.skipped = tuple(line for part in parts for line in part.skipped)
        self.passed = tuple(line for part in parts for line in part.passed)
        self._parts, self._without, self.labelled = tuple(parts), tuple(without), labelled
        self._tiles: list[tuple[int, int]] = []
        items: list[SourceItem] = []
        taken: set[str] = set()
        for number, part in enumerate(parts):
            before = len(items)
            for place, item in enumerate(part.items):
                if number >= labelled and any(fnmatchcase(item.key, pattern) for pattern in without):
                    continue
                key = item.key if item.key not in taken else f"{item.key}_{number}"
                taken.add(key)
                items.append(replace(item, key=key))
                self._tiles.append((number, place))
            if len(items) == before:
                raise SourceError(f"{part.root}: every image is left out by {', '.join(without)}")
        self.items = tuple(items)

    @property
    def parts(self) -> tuple[Source, ...]:
        """What is joined, whole."""
        return self._parts

    @property
    def sizes(self) -> list[int]:
        """Tiles of each part."""
        return [sum(number == of for of, _ in self._tiles) for number in range(len(self._parts))]

    @property
    def starts(self) -> list[int]:
        """Number of each part's first tile."""
        return [0, *accumulate(self.sizes)][:-1]

    @property
    def with_masks(self) -> tuple[SourceItem, ...]:
        """Tiles of the parts whose masks are read."""
        return self.items[: sum(self.sizes[: self.labelled])]

    def held_out(self, share: float) -> tuple[Source, list[Source]]:
        """See :func:`held_out`: of every part whose masks are read."""
        found = [held_out(part, share) for part in self._parts[: self.labelled]]
        rest = [*(kept for kept, _ in found), *self._parts[self.labelled :]]
        return JoinedSource(rest, self._without, self.labelled), [one for _, held in found for one in held]

    def content_hash(self) -> str:
        # Masks of another legend say nothing without their mapping; that of the first part is in the fingerprint.
        first, *others = self._parts
        hashes = [first.content_hash()]
        hashes += [part.content_hash() if part.mapping is None else part.fingerprint() for part in others]
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]

    def read_mask(self, index: int) -> Mask:
        part, place = self._tiles[index]
        return self._parts[part].read_mask(place)

    def stored(self, mask: Mask) -> Mask:
        return self._parts[0].stored(mask)

    def georef(self, index: int) -> GeoReference | None:
        part, place = self._tiles[index]
        return self._parts[part].georef(place)

    def read(self, index: int) -> SourceSample:
        part, place = self._tiles[index]
        return replace(self._parts[part].read(place), item=self.items[index])


class _PartOfSource(Source):
    """Some tiles of a source."""

    def __init__(self, source: Source, places: Sequence[int]) -> None:
        self._source, self._tiles = source, tuple(places)
        self.root, self.name, self.legend, self.mapping = source.root, source.name, source.legend, source.mapping
        self.skipped, self.passed, self.unplaced = source.skipped, source.passed, source.unplaced
        self.items = tuple(source.items[place] for place in places)

    def content_hash(self) -> str:
        return self._source.content_hash()

    def read_mask(self, index: int) -> Mask:
        return self._source.read_mask(self._tiles[index])

    def stored(self, mask: Mask) -> Mask:
        return self._source.stored(mask)

    def georef(self, index: int) -> GeoReference | None:
        return self._source.georef(self._tiles[index])

    def read(self, index: int) -> SourceSample:
        return self._source.read(self._tiles[index])


def held_out(source: Source, share: float) -> tuple[Source, list[Source]]:
    """What is left of ``source``, and tiles of whole scenes that are held out of it: the first scenes, in the order of
    their names' hashes, that hold ``share`` of its tiles together. A source of one scene stays whole, and none is
    held out."""
    if isinstance(source, JoinedSource):
        return source.held_out(share)
    counts = Counter(item.scene for item in source.items)
    ordered = sorted(counts, key=lambda scene: hashlib.sha256(scene.encode()).digest())
    taken: set[str] = set()
    for scene in ordered[:-1]:
        if sum(counts[each] for each in taken) >= share * len(source):
            break
        taken.add(scene)
    if not taken:
        return source, []
    parts = [[place for place, item in enumerate(source.items) if (item.scene in taken) == held] for held in (0, 1)]
    return _PartOfSource(source, parts[0]), [_PartOfSource(source, parts[1])]
