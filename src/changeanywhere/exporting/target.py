"""Where it is exported to: files written whole, copied or linked. No torch here."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from changeanywhere.documents import to_json
from changeanywhere.errors import OutputError
from changeanywhere.exporting.items import Item
from changeanywhere.pairs.codec import encode_geotiff, encode_png
from changeanywhere.sample import rgb8
from changeanywhere.storage import atomic_write

Bytes = npt.NDArray[np.uint8]


@dataclass
class Target:
    """A folder."""

    root: Path
    link: bool = False

    def put(self, name: str, content: bytes) -> str:
        """Write a file whole; gives its name back."""
        self._clear(self.root / name)
        atomic_write(self.root / name, content)
        return name

    def put_json(self, name: str, content: Any) -> str:
        """JSON in one line."""
        return self.put(name, (to_json(content, ensure_ascii=False) + "\n").encode())

    def put_png(self, name: str, array: Bytes) -> str:
        """``[H, W]`` or ``[H, W, 3]``."""
        return self.put(name, encode_png(array))

    def take(self, name: str, source: Path) -> str:
        """``source`` as it is, linked or copied."""
        place = self.root / name
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._clear(place)
            if self.link:
                place.symlink_to(source.resolve())
            else:
                part = place.with_name(f".{place.name}.{os.getpid()}.part")
                shutil.copyfile(source, part)
                part.replace(place)
        except OSError as error:
            raise OutputError(f"{place}: cannot be written ({error.strerror})") from error
        return name

    @staticmethod
    def _clear(place: Path) -> None:
        """A link leads to the pairs themselves, and a list may name a pair twice: nothing is written through it."""
        if place.is_symlink():
            place.unlink()

    def image(self, stem: str, item: Item, date: int, keep: bool = False) -> str:
        """Image of a date (0 or 1) as ``STEM.png``: as it is where it is one of 8-bit red, green and blue, else made
        so. ``keep``: whatever file it is, with its own suffix."""
        source = item.images[date]
        if keep or item.is_rgb8(date):
            return self.take(f"{stem}{source.suffix.lower()}", source)
        return self.put_png(f"{stem}.png", rgb8(item.pair)[date])

    def change(self, stem: str, item: Item, largest: int = 255, keep: bool = False) -> str:
        """Change label, 0 or ``largest``, as a grey PNG; ``keep``: a GeoTIFF where the pair is one."""
        source = item.labels.get("label")
        if source is not None and largest == 255 and (keep or source.suffix == ".png"):
            return self.take(f"{stem}{source.suffix}", source)
        return self._label(stem, item, item.pair.change_mask.astype(np.uint8) * np.uint8(largest), keep)

    def mask(self, stem: str, item: Item, date: int, keep: bool = False) -> str:
        """Semantic mask of a date (0 or 1), its numbers as grey; ``keep``: a GeoTIFF where the pair is one."""
        source = item.labels.get(f"label{date + 1}")
        if source is not None and (source.suffix != ".png" if keep else True) and self._is_grey(source, keep):
            return self.take(f"{stem}{source.suffix}", source)
        mask = (item.pair.mask_t1, item.pair.mask_t2)[date]
        assert mask is not None
        return self._label(stem, item, mask, keep)

    def ignored(self, stem: str, item: Item) -> str:
        """Ground of which no label speaks, 0 or 255; a GeoTIFF where the pair is one."""
        ignored = item.pair.ignored
        where = np.zeros(item.pair.change_mask.shape, bool) if ignored is None else ignored
        return self._label(stem, item, where.astype(np.uint8) * np.uint8(255), keep=True)

    @staticmethod
    def _is_grey(source: Path, keep: bool) -> bool:
        if source.suffix != ".png":
            return keep
        with PillowImage.open(source, formats=("PNG",)) as image:
            return image.mode == "L"

    def _label(self, stem: str, item: Item, array: Bytes, keep: bool) -> str:
        if keep and item.images[0].suffix.lower() in (".tif", ".tiff"):
            return self.put(f"{stem}.tif", encode_geotiff(array[..., None], item.georef))
        return self.put_png(f"{stem}.png", array)
