"""Names of files and folders of a generated dataset (docs/architecture.md, "On disk")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

IMAGE_FOLDERS = ("A", "B")
CHANGE_FOLDER = "label"
MASK_FOLDERS = ("label1", "label2")
IGNORE_FOLDER = "ignore"
"""255 where no label speaks of the ground: in sets with real second dates, where both semantic masks are 0 there, and
in exports whose map makes classes unknown, where one is."""
FOUND = "found"
"""Kind of a change that nobody simulated: masks of two real dates say it."""
SPLITS = ("train", "val", "test")
ImageFormat = Literal["png", "geotiff"]
SUFFIXES = {"png": ".png", "geotiff": ".tif"}
FINAL_FILES = ("metadata.jsonl", "legend.json", "README.md", "report.html", *(f"list/{split}.txt" for split in SPLITS))
"""What is written last, from the records of all pairs."""
CHECKSUMS = "checksums.json"
"""Of lists and metadata; written after them."""


def table_name(split: str) -> str:
    """The flat table of a split in the root of a set: what Hugging Face ``load_dataset`` reads."""
    return f"{split}.jsonl"


@dataclass(frozen=True)
class FileKinds:
    """What a pair's files are."""

    images: ImageFormat = "png"
    """``png``: 8-bit RGB. ``geotiff``: bands and dtype of the arrays, CRS and transform; labels are GeoTIFFs too."""
    palette: bool = False
    """Whether semantic masks carry the legend's colours as palette; else they are grey, and only ``legend.json`` has
    the colours: readers of Open-CD and others turn palettes into brightness."""


PLAIN = FileKinds()
