"""Several sources as one: tiles with masks, and images without."""

from __future__ import annotations

import hashlib
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
    (``*`` for anything) are left out of all parts but the first.
    """

    def __init__(self, parts: Sequence[Source], without: Sequence[str] = ()) -> None:
        first = parts[0]
        self.root, self.name, self.legend, self.mapping = first.root, first.name, first.legend, first.mapping
        self.skipped = tuple(line for part in parts for line in part.skipped)
        self.passed = tuple(line for part in parts for line in part.passed)
        self._parts = tuple(parts)
        self._tiles: list[tuple[int, int]] = []
        items: list[SourceItem] = []
        taken: set[str] = set()
        for number, part in enumerate(parts):
            before = len(items)
            for place, item in enumerate(part.items):
                if number and any(fnmatchcase(item.key, pattern) for pattern in without):
                    continue
                key = item.key if item.key not in taken else f"{item.key}_{number}"
                taken.add(key)
                items.append(replace(item, key=key))
                self._tiles.append((number, place))
            if len(items) == before:
                raise SourceError(f"{part.root}: every image is left out by {', '.join(without)}")
        self.items = tuple(items)

    @property
    def sizes(self) -> list[int]:
        """Tiles of each part."""
        return [sum(number == of for of, _ in self._tiles) for number in range(len(self._parts))]

    @property
    def starts(self) -> list[int]:
        """Number of each part's first tile."""
        return [0, *accumulate(self.sizes)][:-1]

    def content_hash(self) -> str:
        return hashlib.sha256(" ".join(part.content_hash() for part in self._parts).encode()).hexdigest()[:16]

    def read_mask(self, index: int) -> Mask:
        part, place = self._tiles[index]
        return self._parts[part].read_mask(place)

    def georef(self, index: int) -> GeoReference | None:
        part, place = self._tiles[index]
        return self._parts[part].georef(place)

    def read(self, index: int) -> SourceSample:
        part, place = self._tiles[index]
        return replace(self._parts[part].read(place), item=self.items[index])
