"""Names of files and folders of a generated dataset (docs/architecture.md, "On disk")."""

from __future__ import annotations

IMAGE_FOLDERS = ("A", "B")
CHANGE_FOLDER = "label"
MASK_FOLDERS = ("label1", "label2")
SPLITS = ("train", "val", "test")
SUFFIXES = {"png": ".png", "geotiff": ".tif"}
FINAL_FILES = ("metadata.jsonl", "legend.json", "README.md", "report.html", *(f"list/{split}.txt" for split in SPLITS))
"""What is written last, from the records of all pairs."""
CHECKSUMS = "checksums.json"
"""Of lists and metadata; written after them."""


def table_name(split: str) -> str:
    """The flat table of a split in the root of a set: what Hugging Face ``load_dataset`` reads."""
    return f"{split}.jsonl"
