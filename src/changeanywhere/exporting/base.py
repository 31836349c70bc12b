"""What every layout is: pairs in, files out. No torch here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from changeanywhere.errors import ConfigError
from changeanywhere.exporting.items import Item, SetInfo
from changeanywhere.exporting.target import Target
from changeanywhere.legend import Legend

CARRIED = {
    "images": "both images",
    "bands": "other bands and data types, CRS and transform inside the images",
    "change": "change mask",
    "semantic": "semantic masks of both dates",
    "ignored": "ground that no label speaks of",
    "changed classes": "classes of changed ground",
    "instances": "instances",
    "splits": "splits",
    "metadata": "metadata inside its own files",
}
"""What a layout may carry → in words. ``metadata.jsonl``, ``legend.json`` and the card lie beside all of them."""


class Exporter(ABC):
    """One layout. It is made once per export, gets every pair in turn, and is told when that was the last."""

    name: ClassVar[str]
    what: ClassVar[str]
    """In a line: whose layout it is."""
    carries: ClassVar[frozenset[str]]
    """Of :data:`CARRIED`."""
    tree: ClassVar[str]
    """How its files lie."""
    load: ClassVar[str]
    """Python that loads it, from the folder ``OUT``."""
    reader: ClassVar[str]
    """Which reader it is held to in our tests, and how."""
    needs_classes: ClassVar[bool] = False
    """Whether nothing can be written without semantic masks."""

    def __init__(self, target: Target, info: SetInfo) -> None:
        self.target, self.info = target, info
        if self.needs_classes and info.legend is None:
            raise ConfigError(
                f"layout is {self.name!r}; it needs semantic masks with a legend.json, {info.name} has none"
            )
        self.prepare()

    @property
    def legend(self) -> Legend:
        """Of a layout that needs classes."""
        assert self.info.legend is not None
        return self.info.legend

    def prepare(self) -> None:  # noqa: B027 - few layouts need it, nor the next two
        """Before the first pair: refuse what cannot be written, open what stays open."""

    @abstractmethod
    def add(self, item: Item) -> dict[str, str]:
        """Write a pair; what → the file it is in, for its line of the metadata."""

    def finish(self) -> None:  # noqa: B027
        """After the last pair."""

    def close(self) -> None:  # noqa: B027
        """In any case: nothing unfinished stays behind."""

    def lost(self) -> list[str]:
        """What of the pairs that were written had no place, in words."""
        return []

    def front_matter(self) -> list[str]:
        """Lines for the head of the card, YAML."""
        return []
