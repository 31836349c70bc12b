"""Change events as geometry: ``events.jsonl`` entries with places on the ground, and COCO change instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from changeanywhere.legend import Legend, Mask
from changeanywhere.sample import ChangeEvent, ChangeMask, GeoReference, change_mask_of, run_lengths

EIGHT = np.ones((3, 3), bool)


def event_record(
    event: ChangeEvent, mask_t1: Mask, mask_t2: Mask, legend: Legend, georef: GeoReference | None, gsd_m: float | None
) -> dict[str, Any]:
    """An event with its area in px and m², its centroid (row, column) in px and, with a CRS, in CRS coordinates."""
    (row, column), changed = event.bbox[:2], event.changed(mask_t1[event.box], mask_t2[event.box])
    rows, columns = np.nonzero(changed)
    centre = (row + float(rows.mean()) + 0.5, column + float(columns.mean()) + 0.5)
    record = event.to_dict(legend) | {
        "area_m2": round(event.area * gsd_m**2, 3) if gsd_m is not None else None,
        "centroid_px": [round(value, 2) for value in centre],
        "centroid_crs": None,
        "crs": georef.crs if georef is not None else None,
    }
    if georef is not None:
        a, b, c, d, e, f = georef.transform
        record["centroid_crs"] = [a * centre[1] + b * centre[0] + c, d * centre[1] + e * centre[0] + f]
    return record


def coco_annotations(
    image_id: int,
    first_id: int,
    changed: ChangeMask,
    mask_t1: Mask,
    mask_t2: Mask,
    categories: Mapping[str, int],
    legend: Legend,
) -> list[dict[str, Any]]:
    """Connected components of each class transition as COCO annotations (uncompressed RLE).

    ``changed``: bool ``[H, W]``, what the label says; of it, ground whose class is unknown on a date, or the same on
    both, is in no annotation. ``categories``: "from->to" → category id. Format: COCO object detection,
    ``segmentation`` as run lengths down the columns, beginning with zeros.
    """
    from scipy import ndimage  # here: records are read by commands that need no scipy

    annotations: list[dict[str, Any]] = []
    changed = changed & change_mask_of(mask_t1, mask_t2)
    codes = np.where(changed, mask_t1.astype(np.int64) * 256 + mask_t2, 0)
    for code in np.unique(codes[changed]):
        name = f"{legend.name_of(int(code) // 256)}->{legend.name_of(int(code) % 256)}"
        labels, _ = ndimage.label(codes == code, EIGHT)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            shape = labels == number
            annotations.append(
                {
                    "id": first_id + len(annotations),
                    "image_id": image_id,
                    "category_id": categories[name],
                    "iscrowd": 0,
                    "area": int(np.count_nonzero(shape)),
                    "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
                    "segmentation": {"size": list(shape.shape), "counts": coco_counts(shape)},
                }
            )
    return annotations


def coco_counts(shape: ChangeMask) -> list[int]:
    """Lengths of alternating runs of 0 and 1 down the columns, first of 0 (COCO's uncompressed RLE)."""
    lengths = run_lengths(shape.ravel(order="F"))
    rest = shape.size - sum(lengths)
    return [*lengths, rest] if rest else lengths


def coco_file(
    images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], categories: Mapping[str, int]
) -> dict[str, Any]:
    """The whole COCO file."""
    return {
        "info": {"description": "change instances between two dates; category = class transition"},
        "images": list(images),
        "annotations": list(annotations),
        "categories": [{"id": number, "name": name, "supercategory": "change"} for name, number in categories.items()],
    }


def coco_categories(legend: Legend) -> dict[str, int]:
    """Ids of all class transitions, "from->to" → 1…K·(K-1)."""
    names = [f"{a}->{b}" for a in legend.names for b in legend.names if a != b]
    return {name: number for number, name in enumerate(names, 1)}
