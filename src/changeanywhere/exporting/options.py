"""Options of ``changeanywhere export``, and the names of layouts. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from changeanywhere.errors import require
from changeanywhere.help import choose, require_one
from changeanywhere.limits import check_limits
from changeanywhere.storage import check_out

LAYOUT_NAMES = (
    *("levir", "second", "opencd", "torchgeo", "huggingface", "torchange", "whu-gcd"),
    *("xview2", "coco", "yolo-seg", "taco"),
)
IN_TABLES = ("huggingface", "torchange", "taco")
"""Whose images lie inside files of their own: nothing can be linked."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of ``changeanywhere export``."""

    pairs: Path
    """Folder of pairs: a generated set, or any dataset that load_pairs reads; the same without the flag's name."""
    layout: str = field(metadata=choose(LAYOUT_NAMES))
    """Layout to write; docs/layouts.md says what each can carry."""
    out: Path
    """Folder to write: a new or empty one, or one of an earlier export, whose files go when the new one is whole; other
    files in it stay."""
    link: bool = False
    """Link files that stay as they are (symbolic links) in place of copying them."""
    legend: str | None = None
    """Classes to write: a legend of the package (second has SECOND's official classes and colours) or a file; default:
    those of the pairs."""
    legend_map: Path | None = None
    """YAML file 'class of the pairs: class to write, or unknown'; changes within one class to write are none any
    more, those from or to unknown are left out."""
    max_megapixels: float | None = None
    """Largest image that is read, in millions of px of 8-bit RGB; default: 512, of PNG and JPEG 178."""

    def check(self, inside: bool = False) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed, or that would do nothing. ``inside``:
        ``out`` may lie in ``pairs``."""
        check_limits(self)
        require_one("layout", self.layout, LAYOUT_NAMES)
        idle = self.link and self.layout in IN_TABLES
        require(not idle, "link", True, f"false with {self.layout}, whose images lie inside its own files")
        alone = self.legend_map is None or self.legend is not None
        require(alone, "legend_map", self.legend_map, "with legend, whose classes it leads to")
        check_out(self.out, None if inside else self.pairs)
