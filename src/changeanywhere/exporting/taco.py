"""TACO: one file for the cloud, a folder of five files per pair, with metadata as a table. No torch here."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from changeanywhere.documents import to_json
from changeanywhere.errors import ConfigError, OutputError
from changeanywhere.exporting.base import Exporter
from changeanywhere.exporting.items import Item
from changeanywhere.pairs.codec import encode_png

FILE = "pairs.tacozip"
SPLITS = {"train": "train", "val": "validation", "test": "test"}
SCRATCH = ".taco.part"


class Taco(Exporter):
    """Written by tacotoolbox, read by tacoreader."""

    name = "taco"
    what = "TACO: one file with a table of metadata, read by range requests"
    carries = frozenset(("images", "bands", "change", "semantic", "splits", "metadata"))
    tree = """\
pairs.tacozip   a FOLDER per pair with image_t1, image_t2 (PNG or GeoTIFF), change (PNG, 0 or 255), mask_t1, mask_t2;
                columns split, scene, source, licence, attribution, kind, change_ratio, metadata (the line as JSON)"""
    load = """\
import tacoreader
pairs = tacoreader.load("OUT/pairs.tacozip").data  # a table: id, split, licence, …
pair = pairs.read(0)  # a table: image_t1, image_t2, change, mask_t1, mask_t2
import rasterio
image = rasterio.open(pair.read("image_t1")).read()  # by GDAL, whatever file it is"""
    reader = "`tacoreader`"

    def prepare(self) -> None:
        """See :class:`Exporter`. :class:`ConfigError` where tacotoolbox is not there."""
        try:
            import tacotoolbox.datamodel
        except ImportError as error:
            raise ConfigError("layout is 'taco'; it needs tacotoolbox: pip install 'changeanywhere[taco]'") from error
        self._box: Any = tacotoolbox
        self._samples: list[Any] = []
        self._ids: dict[str, str] = {}
        self._scratch = self.target.root / SCRATCH

    def add(self, item: Item) -> dict[str, str]:
        """See :class:`Exporter`."""
        model, pair, record = self._box.datamodel, item.pair, item.record
        parts: dict[str, Path] = {"image_t1": item.images[0], "image_t2": item.images[1]}
        change = pair.change_mask.astype(np.uint8) * np.uint8(255)
        parts["change"] = self._file(item, "change", change)
        if self.info.legend is not None:
            for name, mask in (("mask_t1", pair.mask_t1), ("mask_t2", pair.mask_t2)):
                assert mask is not None
                parts[name] = self._file(item, name, mask)
        name = re.sub(r"[:/\\]", "-", item.key).lstrip("_") or "pair"
        if self._ids.setdefault(name, item.key) != item.key:
            raise OutputError(f"{item.key}: would be {name} in a TACO, as {self._ids[name]} is; rename one")
        files = [model.Sample(id=what, path=file.resolve()) for what, file in parts.items()]
        sample = model.Sample(id=name, path=model.Tortilla(samples=files))
        words = {word: str(record.get(word) or "") for word in ("scene", "source", "licence", "attribution", "kind")}
        more = {"change_ratio": float(pair.change_mask.mean()), "metadata": to_json(record, ensure_ascii=False)}
        sample.extend_with({"split": SPLITS[item.split], "key": item.key, **words, **more})
        self._samples.append(sample)
        return {"taco": FILE}

    def _file(self, item: Item, what: str, array: np.ndarray[Any, np.dtype[np.uint8]]) -> Path:
        place = self._scratch / what / f"{len(self._samples):07d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode_png(array))
        return place

    def finish(self) -> None:
        """Write the container."""
        model, name = self._box.datamodel, re.sub(r"[^a-z0-9_-]", "-", self.info.name.lower()) or "pairs"
        credits = list(self.info.credits) or ["unknown"]
        taco = model.Taco(
            tortilla=model.Tortilla(samples=self._samples),
            id=name,
            dataset_version="1.0.0",
            description=f"{self.info.name}: images of two dates with change masks. Licence and credit by pair.",
            licenses=sorted(self.info.licences),
            providers=[{"name": credit, "roles": ["producer"]} for credit in credits],
            tasks=["semantic-segmentation"],
        )
        file = self._scratch / FILE
        self._box.create(taco, file, split_size=None)
        (self.target.root / FILE).unlink(missing_ok=True)
        file.replace(self.target.root / FILE)

    def close(self) -> None:
        """See :class:`Exporter`."""
        self._samples = []
        shutil.rmtree(self._scratch, ignore_errors=True)
