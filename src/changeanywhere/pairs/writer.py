"""Writes pairs in the layout of a generated dataset (DESIGN, "A generated dataset on disk")."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from changeanywhere.errors import PairsError
from changeanywhere.legend import Legend, Mask
from changeanywhere.pairs.annotations import event_record
from changeanywhere.pairs.card import dataset_card
from changeanywhere.pairs.names import CHANGE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS, SPLITS, SUFFIXES
from changeanywhere.pairs.report import write_report
from changeanywhere.pairs.summary import SetSummary
from changeanywhere.sample import (
    ChangeMask,
    ChangePair,
    ChangePlan,
    GeoReference,
    Image,
    SourceItem,
    change_mask_of,
    change_transitions,
)
from changeanywhere.storage import atomic_file, atomic_write, content_hash

PNG_LEVEL = 3  # zlib: half the time of the default level 6 for files 3 % larger
ImageFormat = Literal["png", "geotiff"]
SHARED = ("model", "model_hash", "settings", "versions")
"""The end of every record: the same in all pairs of a run, and half of its bytes."""
FINAL_FILES = ("metadata.jsonl", "legend.json", "README.md", "report.html", *(f"list/{split}.txt" for split in SPLITS))
"""What is written last, from the records of all pairs."""
Targets = list[tuple[str, float, float]]


def check_labels(key: str, mask_t1: Mask, mask_t2: Mask, change_mask: ChangeMask) -> None:
    """Raise :class:`PairsError` unless the change mask is exactly what the semantic masks say."""
    if not mask_t1.shape == mask_t2.shape == change_mask.shape:
        raise PairsError(f"{key}: masks are {mask_t1.shape}, {mask_t2.shape}, change mask {change_mask.shape} px")
    wrong = int((change_mask != change_mask_of(mask_t1, mask_t2)).sum())
    if wrong:
        raise PairsError(f"{key}: change mask disagrees with the semantic masks in {wrong} px; allowed: 0")


def write_pair(root: Path, pair: ChangePair, legend: Legend, image_format: ImageFormat = "png") -> dict[str, str]:
    """Write all files of a pair; returns relative path → sha256.

    ``png``: 8-bit RGB images. ``geotiff``: bands and dtype of the arrays, CRS and transform of ``pair.georef``; the
    labels are then GeoTIFFs too. Raises :class:`PairsError` where labels and masks disagree, :class:`OutputError`
    where files cannot be written.
    """
    if pair.mask_t1 is None or pair.mask_t2 is None:
        raise PairsError(f"{pair.key}: a generated pair needs both semantic masks")
    check_labels(pair.key, pair.mask_t1, pair.mask_t2, pair.change_mask)
    if pair.image_t1.shape != pair.image_t2.shape or pair.image_t1.shape[:2] != pair.mask_t1.shape:
        shapes = [array.shape for array in (pair.image_t1, pair.image_t2, pair.mask_t1)]
        raise PairsError(f"{pair.key}: image t1, image t2 and mask t1 have the shapes {shapes}")
    suffix = SUFFIXES[image_format]
    files: dict[str, str] = {}
    for folder, image in zip(IMAGE_FOLDERS, (pair.image_t1, pair.image_t2), strict=True):
        content = _png(image) if image_format == "png" else _geotiff(image, pair.georef)
        files[f"{folder}/{pair.key}{suffix}"] = _put(root / folder / f"{pair.key}{suffix}", content)
    files |= write_labels(
        root, pair.key, pair.mask_t1, pair.mask_t2, pair.change_mask, legend, image_format, pair.georef
    )
    return files


def write_labels(
    root: Path,
    key: str,
    mask_t1: Mask,
    mask_t2: Mask,
    change_mask: ChangeMask,
    legend: Legend,
    image_format: ImageFormat = "png",
    georef: GeoReference | None = None,
) -> dict[str, str]:
    """Write ``label/`` (0 or 255), ``label1/`` and ``label2/`` (index, the legend as palette); path → sha256."""
    check_labels(key, mask_t1, mask_t2, change_mask)
    suffix = SUFFIXES[image_format]
    palette = legend.palette()
    change = change_mask.astype(np.uint8) * 255
    contents = {CHANGE_FOLDER: _png(change) if image_format == "png" else _geotiff(change[..., None], georef)}
    for folder, mask in zip(MASK_FOLDERS, (mask_t1, mask_t2), strict=True):
        contents[folder] = _png(mask, palette) if image_format == "png" else _geotiff(mask[..., None], georef, palette)
    return {
        f"{folder}/{key}{suffix}": _put(root / folder / f"{key}{suffix}", content)
        for folder, content in contents.items()
    }


def pair_record(
    pair: ChangePair,
    *,
    legend: Legend,
    item: SourceItem,
    plan: ChangePlan,
    source: str,
    split: str,
    image_format: ImageFormat,
    bands: Sequence[str],
    normalisation: Mapping[str, Any],
    model: str,
    model_hash: str,
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    finishing: Mapping[str, Any],
) -> dict[str, Any]:
    """The pair's line in ``metadata.jsonl``. No timestamps: the same command writes the same bytes.

    ``finishing``: which date is real, nuisances by date, and what the filter said.
    """
    assert pair.mask_t1 is not None and pair.mask_t2 is not None
    folders = (*IMAGE_FOLDERS, CHANGE_FOLDER, *MASK_FOLDERS)
    names = {f"{folder}_file_name": f"{folder}/{pair.key}{SUFFIXES[image_format]}" for folder in folders}
    return {
        "key": pair.key,
        **names,
        "source": source,
        "source_key": item.key,
        "scene": item.scene,
        "split": split,
        "licence": item.licence,
        "attribution": item.attribution,
        "gsd_m": item.gsd_m,
        "crs": pair.georef.crs if pair.georef else None,
        "transform": list(pair.georef.transform) if pair.georef else None,
        "bands": list(bands),
        "normalisation": dict(normalisation),
        "kind": _kind(plan),
        "events": [
            event_record(event, pair.mask_t1, pair.mask_t2, legend, pair.georef, item.gsd_m) for event in plan.events
        ],
        "transitions": change_transitions(pair.mask_t1, pair.mask_t2, legend),
        "change_ratio": round(float(pair.change_mask.mean()), 6),
        "unknown_ratio": round(float((pair.mask_t1 == 0).mean()), 6),
        "seed": plan.seed,
        **finishing,
        "model": model,
        "model_hash": model_hash,
        "settings": dict(settings),
        "versions": dict(versions),
    }


def _kind(plan: ChangePlan) -> str:
    """The kinds of the pair's events; "given" for a user's own second mask, "no_change" where nothing changes."""
    kinds = sorted({event.kind for event in plan.events})
    return "+".join(kinds) if kinds else "given" if plan.change_mask.any() else "no_change"


def finalise(
    root: Path,
    legend: Legend,
    records: Iterable[Mapping[str, Any]],
    reached: Callable[[SetSummary], Targets] = lambda counts: [],
) -> tuple[SetSummary, Targets]:
    """Write ``metadata.jsonl``, ``list/``, ``legend.json``, the dataset card and, last, ``report.html``.

    ``records``: at least one, in the order of their keys; none is kept in memory. ``reached``: (target, share asked,
    share reached) from the counts, written to ``targets.json`` where there are any.
    """
    counts = SetSummary()
    encode = json.JSONEncoder(ensure_ascii=False).encode  # one for all: json.dumps makes a new one at every call
    last: dict[str, Any] = {}
    tail = ""
    with ExitStack() as files:
        lists = {split: files.enter_context(atomic_file(root / "list" / f"{split}.txt")) for split in SPLITS}
        lines = files.enter_context(atomic_file(root / "metadata.jsonl"))
        for record in records:
            counts.add(record)
            name = record["A_file_name"].rpartition("/")[2]
            lists[record["split"]].write(f"{name}\n".encode())
            common = {key: record[key] for key in SHARED}
            if common != last:  # encoded once, not a million times
                last, tail = common, encode(common)[1:]
            own = {key: value for key, value in record.items() if key not in common}
            lines.write(f"{encode(own)[:-1]}, {tail}\n".encode())
    atomic_write(root / "legend.json", (json.dumps(legend.to_dict(), indent=1) + "\n").encode())
    targets = reached(counts)
    write_targets(root, targets)
    atomic_write(root / "README.md", dataset_card(legend, counts).encode())
    write_report(root, counts)
    return counts, targets


def write_targets(root: Path, targets: Targets) -> None:
    """``targets.json``, where there are any."""
    if targets:
        rows = [{"target": name, "asked": asked, "reached": share} for name, asked, share in targets]
        atomic_write(root / "targets.json", (json.dumps(rows, indent=1) + "\n").encode())


def _put(path: Path, content: bytes) -> str:
    atomic_write(path, content)
    return content_hash(content)


def _png(array: Image, palette: npt.NDArray[np.uint8] | None = None) -> bytes:
    image = PillowImage.fromarray(np.ascontiguousarray(array))
    if palette is not None:
        image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def _geotiff(array: Image, georef: GeoReference | None, palette: npt.NDArray[np.uint8] | None = None) -> bytes:
    """``[H, W, C]`` → deflate-compressed GeoTIFF."""
    import warnings

    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile
    from rasterio.transform import Affine

    height, width, count = array.shape
    place: dict[str, Any] = {"crs": georef.crs, "transform": Affine(*georef.transform)} if georef else {}
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a tile without CRS stays without
        with memory.open(
            driver="GTiff", height=height, width=width, count=count, dtype=array.dtype, compress="deflate", **place
        ) as target:
            target.write(array.transpose(2, 0, 1))
            if palette is not None:
                target.write_colormap(1, {i: (*map(int, colour), 255) for i, colour in enumerate(palette)})
        content: bytes = memory.read()
    return content
