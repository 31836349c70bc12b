"""Writes pairs in the layout of a generated dataset (DESIGN, "A generated dataset on disk")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import BinaryIO

import numpy as np

from changeanywhere.documents import to_json
from changeanywhere.errors import PairsError
from changeanywhere.legend import Legend, Mask
from changeanywhere.pairs.card import dataset_card
from changeanywhere.pairs.codec import encode_geotiff, encode_png
from changeanywhere.pairs.names import (
    CHANGE_FOLDER,
    IGNORE_FOLDER,
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    PLAIN,
    SPLITS,
    SUFFIXES,
    FileKinds,
    table_name,
)
from changeanywhere.pairs.record import PairRecord, Provenance
from changeanywhere.pairs.report import write_report
from changeanywhere.pairs.summary import SetSummary
from changeanywhere.sample import ChangeMask, ChangePair, change_mask_of
from changeanywhere.storage import Puts, Store, content_hash

Targets = list[tuple[str, float, float]]


def check_labels(
    key: str, mask_t1: Mask, mask_t2: Mask, change_mask: ChangeMask, ignored: ChangeMask | None = None
) -> None:
    """Raise :class:`PairsError` unless the change mask is exactly what the semantic masks say, and they say nothing of
    ``ignored`` ground."""
    if not mask_t1.shape == mask_t2.shape == change_mask.shape:
        raise PairsError(f"{key}: masks are {mask_t1.shape}, {mask_t2.shape}, change mask {change_mask.shape} px")
    wrong = int((change_mask != change_mask_of(mask_t1, mask_t2)).sum())
    if wrong:
        raise PairsError(f"{key}: change mask disagrees with the semantic masks in {wrong} px; allowed: 0")
    if ignored is not None:
        if ignored.shape != mask_t1.shape:
            raise PairsError(f"{key}: masks are {mask_t1.shape}, ignored ground {ignored.shape} px")
        spoken = int((ignored & ((mask_t1 != 0) | (mask_t2 != 0))).sum())
        if spoken:
            raise PairsError(f"{key}: semantic masks have a class in {spoken} px of ignored ground; allowed: 0")


def write_pair(store: Puts, pair: ChangePair, legend: Legend, kinds: FileKinds = PLAIN) -> dict[str, str]:
    """Write all files of a pair; returns name → sha256.

    Raises :class:`PairsError` where labels and masks disagree, :class:`OutputError`
    where files cannot be written.
    """
    if pair.mask_t1 is None or pair.mask_t2 is None:
        raise PairsError(f"{pair.key}: a generated pair needs both semantic masks")
    check_labels(pair.key, pair.mask_t1, pair.mask_t2, pair.change_mask, pair.ignored)
    if pair.image_t1.shape != pair.image_t2.shape or pair.image_t1.shape[:2] != pair.mask_t1.shape:
        shapes = [array.shape for array in (pair.image_t1, pair.image_t2, pair.mask_t1)]
        raise PairsError(f"{pair.key}: image t1, image t2 and mask t1 have the shapes {shapes}")
    suffix = SUFFIXES[kinds.images]
    files: dict[str, str] = {}
    images = (pair.image_t1, pair.image_t2)
    for folder, image, said in zip(IMAGE_FOLDERS, images, pair.meanings, strict=True):
        content = encode_png(image) if kinds.images == "png" else encode_geotiff(image, pair.georef, meanings=said)
        name, digest = _put(store, f"{folder}/{pair.key}{suffix}", content)
        files[name] = digest
    return files | write_labels(store, pair, legend, kinds)


def write_labels(store: Puts, pair: ChangePair, legend: Legend, kinds: FileKinds = PLAIN) -> dict[str, str]:
    """Write ``label/`` (0 or 255), ``label1/`` and ``label2/`` (index, grey or with the legend as palette), and
    ``ignore/`` (0 or 255) of a pair that has ``ignored``; name → sha256.

    Raises as :func:`write_pair` does; the images are not looked at.
    """
    if pair.mask_t1 is None or pair.mask_t2 is None:
        raise PairsError(f"{pair.key}: a generated pair needs both semantic masks")
    check_labels(pair.key, pair.mask_t1, pair.mask_t2, pair.change_mask, pair.ignored)
    suffix, georef = SUFFIXES[kinds.images], pair.georef
    palette = legend.palette() if kinds.palette else None
    change = pair.change_mask.astype(np.uint8) * 255
    arrays: dict[str, tuple[Mask, Mask | None]] = {CHANGE_FOLDER: (change, None)}
    arrays |= {folder: (mask, palette) for folder, mask in zip(MASK_FOLDERS, (pair.mask_t1, pair.mask_t2), strict=True)}
    if pair.ignored is not None:
        arrays[IGNORE_FOLDER] = pair.ignored.astype(np.uint8) * 255, None
    contents = {
        folder: encode_png(array, colours)
        if kinds.images == "png"
        else encode_geotiff(array[..., None], georef, colours)
        for folder, (array, colours) in arrays.items()
    }
    return dict(_put(store, f"{folder}/{pair.key}{suffix}", content) for folder, content in contents.items())


def finalise(
    store: Store,
    legend: Legend,
    records: Iterable[PairRecord],
    reached: Callable[[SetSummary], Targets] = lambda counts: [],
    how: str = "",
    left_out: Mapping[str, int] | None = None,
    moved: Mapping[str, int] | None = None,
) -> tuple[SetSummary, Targets]:
    """Write ``metadata.jsonl``, ``list/``, the tables of splits, ``legend.json``, the card and, last, ``report.html``.

    ``records``: at least one, in the order of their keys; none is kept in memory. ``reached``: (target, share asked,
    share reached) from the counts, written to ``targets.json`` where there are any. ``how`` the other date comes about,
    for the card. ``left_out``: changes that were not made, ``moved`` those made on another tile than the
    one whose turn it was, and why, with counts, for card and report.
    """
    counts = SetSummary(left_out, moved)
    last: Provenance | None = None
    tail = ""
    with ExitStack() as files:
        lists = {split: files.enter_context(store.create(f"list/{split}.txt")) for split in SPLITS}
        tables: dict[str, BinaryIO] = {}  # none of an empty split: no reader of tables takes it
        lines = files.enter_context(store.create("metadata.jsonl"))
        for record in records:
            counts.add(record)
            name = record.files["A"].rpartition("/")[2]
            lists[record.split].write(f"{name}\n".encode())
            if not record.container:
                if record.split not in tables:
                    tables[record.split] = files.enter_context(store.create(table_name(record.split)))
                tables[record.split].write(f"{to_json(record.flat(), ensure_ascii=False)}\n".encode())
            if record.provenance is not last:  # encoded once, not a million times
                last, tail = record.provenance, to_json(record.provenance.to_dict(), ensure_ascii=False)[1:]
            lines.write(f"{to_json(record.own(), ensure_ascii=False)[:-1]}, {tail}\n".encode())
    store.put("legend.json", (to_json(legend.to_dict(), indent=1) + "\n").encode())
    targets = reached(counts)
    write_targets(store, targets)
    store.put("README.md", dataset_card(legend, counts, how).encode())
    write_report(store, counts)
    return counts, targets


def write_targets(store: Store, targets: Targets) -> None:
    """``targets.json``, where there are any."""
    if targets:
        rows = [{"target": name, "asked": asked, "reached": share} for name, asked, share in targets]
        store.put("targets.json", (to_json(rows, indent=1) + "\n").encode())


def _put(store: Puts, name: str, content: bytes) -> tuple[str, str]:
    store.put(name, content)
    return name, content_hash(content)
