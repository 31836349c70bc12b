"""Parquet tables that ``datasets.load_dataset`` opens: Hugging Face's names, and torchange's. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from changeanywhere.documents import to_json
from changeanywhere.errors import ConfigError
from changeanywhere.exporting.base import Exporter
from changeanywhere.exporting.items import Item
from changeanywhere.pairs.codec import encode_png
from changeanywhere.pairs.names import SPLITS
from changeanywhere.sample import rgb8

HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}
ROWS = 64
"""Pairs of a row group: what is held at once."""


class Tables(Exporter):
    """A table per split in ``data/``."""

    columns: ClassVar[Mapping[str, str]]
    """What is written → column: A, B, label, label1, label2, and words of the record."""
    largest: ClassVar[int] = 255
    """What says changed."""

    def prepare(self) -> None:
        """See :class:`Exporter`. :class:`ConfigError` where pyarrow is not there."""
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ConfigError(
                f"layout is {self.name!r}; it needs pyarrow: pip install 'changeanywhere[parquet]'"
            ) from error
        self._arrow = pyarrow
        self._rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self._writers: dict[str, tuple[Path, Any]] = {}
        image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        kinds = {"change_ratio": pyarrow.float64(), "gsd_m": pyarrow.float64(), "real_date": pyarrow.int64()}
        fields, features = [], {}
        for what, column in self._columns().items():
            is_image = what in IMAGES
            kind = image if is_image else kinds.get(what, pyarrow.string())
            fields.append((column, kind))
            words = {"dtype": str(kind).replace("double", "float64"), "_type": "Value"}
            features[column] = {"_type": "Image"} if is_image else words
        self._schema = pyarrow.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})

    def _columns(self) -> dict[str, str]:
        semantic = self.info.legend is not None
        return {what: name for what, name in self.columns.items() if semantic or what not in ("label1", "label2")}

    def add(self, item: Item) -> dict[str, str]:
        """See :class:`Exporter`."""
        self._rows[item.split].append({name: self._value(item, what) for what, name in self._columns().items()})
        if len(self._rows[item.split]) == ROWS:
            self._flush(item.split)
        return {"table": self._name(item.split)}

    def _value(self, item: Item, what: str) -> Any:
        if what in IMAGES:
            return {"bytes": self._bytes(item, what), "path": f"{item.key}.png"}
        record = item.record
        if what == "key":
            return item.key
        if what == "file":
            return f"{item.key}.png"
        if what == "change_ratio":
            return float(item.pair.change_mask.mean())
        if what in ("gsd_m", "real_date"):
            return record.get(what) or (0.0 if what == "gsd_m" else 0)
        if what in ("transitions", "metadata"):
            return to_json(record.get("transitions", []) if what == "transitions" else record, ensure_ascii=False)
        return str(record.get(what) or "")

    def _bytes(self, item: Item, what: str) -> bytes:
        if what in ("A", "B"):
            date = "AB".index(what)
            return item.images[date].read_bytes() if item.is_rgb8(date) else encode_png(rgb8(item.pair)[date])
        if what == "label":
            return encode_png(item.pair.change_mask.astype(np.uint8) * np.uint8(self.largest))
        mask = item.pair.mask_t1 if what == "label1" else item.pair.mask_t2
        assert mask is not None
        return encode_png(mask)

    def _name(self, split: str) -> str:
        return f"data/{HUB_SPLITS[split]}.parquet"

    def _flush(self, split: str) -> None:
        arrow = self._arrow
        if split not in self._writers:
            place = self.target.root / self._name(split)
            place.parent.mkdir(parents=True, exist_ok=True)
            part = place.with_name(f".{place.name}.{os.getpid()}.part")
            self._writers[split] = part, arrow.parquet.ParquetWriter(part, self._schema, compression="none")
        self._writers[split][1].write_table(arrow.Table.from_pylist(self._rows[split], self._schema))
        self._rows[split] = []

    def finish(self) -> None:
        """See :class:`Exporter`."""
        for split, rows in self._rows.items():
            if rows:
                self._flush(split)
        for split, (part, writer) in self._writers.items():
            writer.close()
            part.replace(self.target.root / self._name(split))
        self._writers = {}

    def close(self) -> None:
        """See :class:`Exporter`."""
        for part, writer in self._writers.values():
            writer.close()
            part.unlink(missing_ok=True)

    def front_matter(self) -> list[str]:
        """The tables, for ``load_dataset``."""
        lines = ["configs:", "- config_name: default", "  data_files:"]
        for split in SPLITS:
            if self.info.splits[split]:
                lines += [f"  - split: {HUB_SPLITS[split]}", f"    path: {self._name(split)}"]
        return lines


IMAGES = ("A", "B", "label", "label1", "label2")


class HuggingFace(Tables):
    """Names of the hub's change-detection sets."""

    name = "huggingface"
    what = "Parquet tables for Hugging Face datasets, with features and a card"
    carries = frozenset(("images", "change", "semantic", "splits", "metadata"))
    columns: ClassVar[Mapping[str, str]] = {
        "key": "key", "A": "imageA", "B": "imageB", "label": "label", "label1": "labelA", "label2": "labelB",
        "scene": "scene", "source": "source", "licence": "licence", "attribution": "attribution", "kind": "kind",
        "crs": "crs", "gsd_m": "gsd_m", "real_date": "real_date", "change_ratio": "change_ratio",
        "transitions": "transitions", "metadata": "metadata",
    }  # fmt: skip
    tree = """\
data/{train,validation,test}.parquet   imageA imageB label labelA labelB as images (label 0 or 255); key, scene,
                                       licence, attribution, …; metadata: the pair's whole line, as JSON
README.md                              card whose configs name the tables"""
    load = """\
from datasets import load_dataset
pairs = load_dataset("OUT", split="train")  # or without split: a DatasetDict
row = pairs[0]  # imageA imageB label labelA labelB: Pillow images
licence, transitions = row["licence"], row["transitions"]"""
    reader = "`datasets.load_dataset`"


class Torchange(Tables):
    """What torchange's ``HFBitemporalDataset`` asks of a row."""

    name = "torchange"
    what = "Parquet tables with the columns that torchange's HFBitemporalDataset reads"
    carries = frozenset(("images", "change", "semantic", "splits"))
    largest = 1
    columns: ClassVar[Mapping[str, str]] = {
        "A": "t1_image", "B": "t2_image", "label1": "t1_mask", "label2": "t2_mask", "label": "change_mask",
        "file": "image_name",
    }  # fmt: skip
    tree = """\
data/{train,validation,test}.parquet   t1_image t2_image t1_mask t2_mask (0 = unknown) change_mask (0, 1)
                                       image_name"""
    load = """\
import albumentations as A
from albumentations.pytorch import ToTensorV2
from torchange.data.bitemporal import HFBitemporalDataset
pairs = HFBitemporalDataset(dict(hf_repo_name="OUT", splits=["train"], transform=A.Compose([ToTensorV2()])))
images, answer = pairs[0]  # [6, H, W]; answer["masks"]: date 1, date 2, change"""
    reader = "its rules (rows of `load_dataset` in numpy format, by these names); torchange needs torchvision"
