"""COCO: instances of change, and the land cover of both dates as panoptic segments. No torch here."""

from __future__ import annotations

from typing import Any

import numpy as np

from changeanywhere.exporting.base import Exporter
from changeanywhere.exporting.items import DATES, Item
from changeanywhere.legend import Legend, Mask
from changeanywhere.pairs.annotations import EIGHT, coco_annotations, coco_categories, coco_counts
from changeanywhere.sample import change_mask_of

CHANGED = "change"


class Coco(Exporter):
    """Annotations of a split are held until it is whole: JSON has no other way."""

    name = "coco"
    what = "COCO instances of change, and panoptic land cover of both dates"
    carries = frozenset(("images", "change", "semantic", "instances", "splits"))
    tree = """\
t1/SPLIT/KEY.png  t2/SPLIT/KEY.png   images; SPLIT is train, val or test
annotations/change_SPLIT.json        instances on t2 (file_name; file_name_t1 beside): connected ground of one class
                                     transition, as run lengths; categories "from->to", or "change" without classes;
                                     not where a class is unknown, or the same on both dates
annotations/panoptic_{t1,t2}_SPLIT.json, panoptic/{t1,t2}/SPLIT/KEY.png   connected land cover, unknown is void"""
    load = """\
from pycocotools.coco import COCO
changes = COCO("OUT/annotations/change_train.json")
for image in changes.loadImgs(changes.getImgIds()):
    instances = changes.loadAnns(changes.getAnnIds(image["id"]))
    masks = [changes.annToMask(instance) for instance in instances]  # uint8 [H, W]"""
    reader = "`pycocotools`; panoptic files by their public rule (id = R + 256 G + 65536 B)"

    def prepare(self) -> None:
        """See :class:`Exporter`."""
        legend = self.info.legend
        self._categories = {CHANGED: 1} if legend is None else coco_categories(legend)
        self._images: dict[str, list[dict[str, Any]]] = {}
        self._changes: dict[str, list[dict[str, Any]]] = {}
        self._panoptic: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._without = 0

    def add(self, item: Item) -> dict[str, str]:
        """See :class:`Exporter`."""
        split, pair, legend = item.split, item.pair, self.info.legend
        files = {
            w: self.target.image(f"{d}/{split}/{item.key}", item, n)
            for n, (w, d) in enumerate(zip("AB", DATES, strict=True))
        }
        images, changes = self._images.setdefault(split, []), self._changes.setdefault(split, [])
        height, width = pair.change_mask.shape
        number = len(images) + 1
        images.append(
            {
                "id": number,
                "file_name": files["B"],
                "file_name_t1": files["A"],
                "width": width,
                "height": height,
                "key": item.key,
                "licence": str(item.record.get("licence") or "unknown"),
            }
        )
        if legend is None or pair.mask_t1 is None or pair.mask_t2 is None:
            changes += _instances(pair.change_mask, number, len(changes) + 1)
            return files
        masks = pair.mask_t1, pair.mask_t2
        self._without += bool((pair.change_mask & ~change_mask_of(*masks)).any())
        changes += coco_annotations(number, len(changes) + 1, pair.change_mask, *masks, self._categories, legend)
        for date, mask in zip(DATES, masks, strict=True):
            files[f"panoptic_{date}"] = name = f"panoptic/{date}/{split}/{item.key}.png"
            ids, segments = _segments(mask)
            self.target.put_png(name, np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8))
            entry = {"image_id": number, "file_name": f"{item.key}.png", "segments_info": segments}
            self._panoptic.setdefault((date, split), []).append(entry)
        return files

    def lost(self) -> list[str]:
        """See :class:`Exporter`."""
        what = "changed ground whose class is unknown on a date, or the same on both"
        return [f"{what}, in {self._without} pairs: it is in no instance"] if self._without else []

    def finish(self) -> None:
        """Write the annotations."""
        for split, images in self._images.items():
            head = {"info": {"description": f"{self.info.name}: instances of change"}, "images": images}
            names = [{"id": n, "name": name, "supercategory": CHANGED} for name, n in self._categories.items()]
            content = head | {"annotations": self._changes[split], "categories": names}
            self.target.put_json(f"annotations/change_{split}.json", content)
        for (date, split), entries in self._panoptic.items():
            key = "file_name" if date == "t2" else "file_name_t1"
            images = [{**image, "file_name": image[key]} for image in self._images[split]]
            content = {"images": images, "annotations": entries, "categories": _classes(self.legend)}
            self.target.put_json(f"annotations/panoptic_{date}_{split}.json", content)


def _classes(legend: Legend) -> list[dict[str, Any]]:
    return [{"id": c.index, "name": c.name, "isthing": 0, "color": list(c.color)} for c in legend.classes]


def _instances(changed: np.ndarray[Any, np.dtype[np.bool_]], image: int, first: int) -> list[dict[str, Any]]:
    from scipy import ndimage

    labels, _ = ndimage.label(changed, EIGHT)
    found: list[dict[str, Any]] = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        shape = labels == number
        found.append(
            {
                "id": first + len(found),
                "image_id": image,
                "category_id": 1,
                "iscrowd": 0,
                "area": int(shape.sum()),
                "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
                "segmentation": {"size": list(shape.shape), "counts": coco_counts(shape)},
            }
        )
    return found


def _segments(mask: Mask) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[dict[str, Any]]]:
    """Ids ``[H, W]`` of connected ground of one class, 0 = unknown, and what is known of each."""
    from scipy import ndimage

    ids, segments = np.zeros(mask.shape, np.int64), list[dict[str, Any]]()
    for value in np.unique(mask[mask > 0]).tolist():
        labels, count = ndimage.label(mask == value, EIGHT)
        ids[labels > 0] = labels[labels > 0] + len(segments)
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
            segments.append(
                {"id": len(segments) + 1, "category_id": value, "area": int(areas[number]), "bbox": box, "iscrowd": 0}
            )
    return ids, segments
