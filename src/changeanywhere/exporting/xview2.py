"""xView2 (xBD): buildings before and after, and what became of them. No torch here."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from changeanywhere.errors import LegendError
from changeanywhere.exporting.base import Exporter
from changeanywhere.exporting.items import Item
from changeanywhere.exporting.shapes import Shape, shapes_of
from changeanywhere.sample import ChangeMask

BUILDING = "building"
STANDS, DESTROYED, UNCLASSIFIED = "no-damage", "destroyed", "un-classified"
VALUES = {STANDS: 1, DESTROYED: 4, UNCLASSIFIED: 0}
"""Of the target after."""
GONE = 0.5
"""Share of a building's known pixels that are no building at date 2 from which on it counts as destroyed."""
KNOWN = 0.5
"""Share of a building's pixels whose class at date 2 must be known; with fewer, nobody can tell."""


class XView2(Exporter):
    """Buildings of date 1; those that are none at date 2 are destroyed, and un-classified where their ground is not
    known there. Nothing between is known, and what is new at date 2 has no place in it."""

    name = "xview2"
    what = "xView2 (xBD): buildings of date 1, destroyed where they are gone at date 2"
    carries = frozenset(("images", "instances", "splits"))
    needs_classes = True
    tree = """\
SPLIT/images/KEY_{pre,post}_disaster.png           images; SPLIT is train, hold (val) or test
SPLIT/labels/KEY_{pre,post}_disaster.json          buildings as WKT in px; after: no-damage, destroyed, or
                                                   un-classified: most of its ground is unknown
SPLIT/targets/KEY_{pre,post}_disaster_target.png   before: 1 = building; after: 1 = no damage, 4 = destroyed,
                                                   0 = un-classified, too"""
    load = """\
from torchgeo.datasets import XView2
pairs = XView2("OUT", split="train")
sample = pairs[0]  # image [2, 3, H, W], mask [2, H, W]"""
    reader = "the public rules of its JSON and targets; torchgeo's class needs torchvision"

    def prepare(self) -> None:
        """See :class:`Exporter`."""
        if BUILDING not in self.legend.names:
            raise LegendError(
                f"legend {self.legend.name!r} has no class 'building', the one that xview2 knows; allowed: with "
                f"--legend and --legend-map, which name one ({', '.join(self.legend.names)})"
            )
        self._building = self.legend.index_of(BUILDING)
        self._unclassified = 0

    def lost(self) -> list[str]:
        """See :class:`Exporter`."""
        what = "what became of buildings whose ground is mostly unknown on date 2"
        return [f"{what}: {self._unclassified} are {UNCLASSIFIED}"] if self._unclassified else []

    def add(self, item: Item) -> dict[str, str]:
        """See :class:`Exporter`."""
        folder = {"train": "train", "val": "hold", "test": "test"}[item.split]
        assert item.pair.mask_t1 is not None and item.pair.mask_t2 is not None
        before, after = (mask == self._building for mask in (item.pair.mask_t1, item.pair.mask_t2))
        known = item.pair.mask_t2 != 0
        if item.pair.ignored is not None:
            known &= ~item.pair.ignored
        targets = [before.astype(np.uint8), np.zeros(before.shape, np.uint8)]
        features: list[list[dict[str, Any]]] = [[], []]
        for number, shape in enumerate(shapes_of(targets[0], before)):
            inside = _filled(shape, before.shape)
            subtype = _became(inside, after, known)
            self._unclassified += subtype == UNCLASSIFIED
            targets[1][inside] = VALUES[subtype]
            uid = hashlib.sha256(f"{item.key} {number}".encode()).hexdigest()[:32]
            for date, more in enumerate(({}, {"subtype": subtype})):
                what = {"feature_type": BUILDING, **more, "uid": uid}
                features[date].append({"properties": what, "wkt": shape.wkt})
        files = {}
        for date, when in enumerate(("pre", "post")):
            stem = f"{item.key}_{when}_disaster"
            files["AB"[date]] = self.target.image(f"{folder}/images/{stem}", item, date)
            content = {"features": {"lng_lat": [], "xy": features[date]}, "metadata": _metadata(item, stem)}
            files[f"labels_{when}"] = self.target.put_json(f"{folder}/labels/{stem}.json", content)
            files[f"targets_{when}"] = self.target.put_png(f"{folder}/targets/{stem}_target.png", targets[date])
        return files


def _metadata(item: Item, stem: str) -> dict[str, Any]:
    height, width = item.pair.change_mask.shape
    return {
        "width": width, "height": height, "original_width": width, "original_height": height,
        "img_name": f"{stem}.png", "gsd": item.record.get("gsd_m"), "disaster": "synthetic",
        "disaster_type": "synthetic", "id": item.key,
    }  # fmt: skip


def _became(building: ChangeMask, after: ChangeMask, known: ChangeMask) -> str:
    """What became of a building, by the ground that is known: each bool ``[H, W]``."""
    seen = building & known
    if seen.sum() < KNOWN * building.sum():
        return UNCLASSIFIED
    return DESTROYED if (seen & ~after).sum() >= GONE * seen.sum() else STANDS


def _filled(shape: Shape, size: tuple[int, ...]) -> ChangeMask:
    from rasterio import features

    geometry = {"type": "Polygon", "coordinates": shape.rings}
    filled: ChangeMask = features.rasterize([(geometry, 1)], size, dtype="uint8") > 0
    return filled
