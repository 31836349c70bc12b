"""Sets as the Hugging Face hub has them: tables with images in them, and folders of images with a ``metadata.jsonl``.

Columns are known by the names that sets of the field use. Which split a pair is of, a column ``split`` says, or the
name of its file or folder. Such a set is unpacked into the cache, once, as folders.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from changeanywhere.documents import DocumentError, parse_json
from changeanywhere.errors import ConfigError, PairsError
from changeanywhere.folders import read_text
from changeanywhere.pairs.containers import as_folder, in_cache
from changeanywhere.pairs.layouts import SPLIT_FOLDERS, trees_of
from changeanywhere.pairs.names import CHANGE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS
from changeanywhere.regular import read_regular
from changeanywhere.storage import LocalStore
from changeanywhere.text import is_plain_name

NAMES = {
    IMAGE_FOLDERS[0]: ("imagea", "image1", "imaget1", "t1image", "a", "im1", "t1", "pre", "before", "preimage"),
    IMAGE_FOLDERS[1]: ("imageb", "image2", "imaget2", "t2image", "b", "im2", "t2", "post", "after", "postimage"),
    CHANGE_FOLDER: ("label", "change", "mask", "changemask", "changelabel", "gt", "groundtruth", "cd", "cdmask"),
    MASK_FOLDERS[0]: ("label1", "labela", "mask1", "maskt1", "t1mask", "maska", "semantic1"),
    MASK_FOLDERS[1]: ("label2", "labelb", "mask2", "maskt2", "t2mask", "maskb", "semantic2"),
}
"""Folder → columns that are it, in small letters without underscores."""
KEYS = ("key", "filename", "name", "id", "imageid")
SPLIT_NAMES = {name: split for split, names in SPLIT_FOLDERS.items() for name in names if name.islower()}
SPLIT_NAMES |= dict.fromkeys(("dev", "eval", "evaluation"), "val")
ALLOWED = ", ".join(sorted(SPLIT_NAMES))
KINDS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"II*\0": ".tif", b"MM\0*": ".tif", b"II+\0": ".tif"}
UNNAMED = ""
METADATA = ("metadata.jsonl", "metadata.csv")
RULES = "the split of a pair may stand in a column"
"""Part of the mark in the cache: what was unpacked by other rules is unpacked again."""


@dataclass(frozen=True)
class Row:
    """A pair of a table or a list."""

    where: str
    """File and line, for error messages."""
    key: str
    split: Any
    """As its column says it; None where there is none, or nothing in it."""
    images: Mapping[str, Any]
    """Folder → content."""


def unpacked(root: Path) -> Path:
    """A set of containers, ours or the hub's, as a folder of images in the cache; anything else as it is."""
    root = as_folder(root)
    return _of_hub(root) if root.is_dir() and not trees_of(root) else root


def _of_hub(root: Path) -> Path:
    """A set of the hub as a folder of images, in the cache; anything else as it is.

    :class:`PairsError` for a set whose columns hold pairs of images, damaged or without a label.
    """
    tables = _tables(root)
    lists = {} if tables else _lists(root)
    if not tables and not lists:
        return root

    found = tables or lists

    def fill(store: LocalStore) -> None:
        taken, listed = set[str](), {split: list[str]() for split in found.values() if split != UNNAMED}
        for file, split in found.items():
            for row in _of_table(file) if tables else _of_list(file, root):
                own = _split_of_row(row, split)
                _unpack(row, own, listed.setdefault(own, []), store, taken)
        for split, names in listed.items():
            store.put(f"list/{split}.txt", "".join(f"{name}\n" for name in names).encode())
        if (root / "legend.json").is_file():
            store.put("legend.json", read_regular(root / "legend.json"))

    used = [*found, *(image for file in lists for image in _named(file, root))]
    return in_cache(root, [*used, *[root / "legend.json"] * (root / "legend.json").is_file()], fill, RULES)


def columns_of(names: Iterable[str]) -> dict[str, str]:
    """Folder → the column that is it; empty unless both dates and what has changed are there."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower().removesuffix("_file_name")): name for name in names}
    found = {}
    for folder, words in NAMES.items():
        name = next((plain[word] for word in words if word in plain), None)
        if name is not None:
            found[folder] = name
    return found if {*IMAGE_FOLDERS, CHANGE_FOLDER} <= set(found) else {}


def split_column(names: Iterable[str]) -> str | None:
    """The column that says of which split a pair is."""
    return next((name for name in names if name.strip().lower() == "split"), None)


def _tables(root: Path) -> dict[Path, str]:
    """Parquet files of pairs, in ``root`` or a folder of it → the split that all of theirs are of, or UNNAMED."""
    files = sorted([*root.glob("*.parquet"), *root.glob("*/*.parquet")])
    if not files:
        return {}
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ConfigError(f"{root}: tables; they need pyarrow: pip install 'changeanywhere[parquet]'") from error
    found, telling = dict[Path, str](), set[Path]()
    for file in files:
        try:
            names = parquet.read_schema(file).names
        except (OSError, ValueError) as error:
            raise PairsError(f"{file}: not readable as Parquet ({' '.join(str(error).split())[:120]})") from error
        if columns_of(names):
            found[file] = split_of(file.stem) or split_of(file.parent.name) or UNNAMED
            if split_column(names):
                telling.add(file)
    return _named_splits(found, telling)


def _lists(root: Path) -> dict[Path, str]:
    """Metadata of folders of images, in ``root`` or a folder of it, whose columns are pairs → the split that all of
    theirs are of, or UNNAMED."""
    found, telling = dict[Path, str](), set[Path]()
    for folder in [root, *sorted(folder for folder in root.iterdir() if folder.is_dir())]:
        for name in METADATA:
            if (folder / name).is_file():
                row = next(rows_of(folder / name), None)
                if row is not None and columns_of(name for name in row if name.endswith("_file_name")):
                    found[folder / name] = split_of(folder.name) or UNNAMED
                    if split_column(row):
                        telling.add(folder / name)
                break
    return _named_splits(found, telling)


def _named_splits(found: Mapping[Path, str], telling: set[Path]) -> dict[Path, str]:
    """Files that say no split, neither by name nor, as those ``telling`` do, in a column, are training pairs where no
    file does; :class:`PairsError` where others do."""
    unnamed = [file for file, split in found.items() if split == UNNAMED and file not in telling]
    if unnamed and (telling or len(unnamed) < len(found)):
        others = dict.fromkeys(split or "told by a column" for file, split in found.items() if file not in unnamed)
        raise PairsError(f"{unnamed[0]}: of which split? Others are {', '.join(others)}; names that say it: {ALLOWED}")
    return {file: "train" if file in unnamed else split for file, split in found.items()}


def split_said(value: Any, where: str) -> str | None:
    """The split that a column says; None for nothing. :class:`PairsError` for a word that is none."""
    word = "" if value is None else str(value).strip()
    if word and word.lower() not in SPLIT_NAMES:
        raise PairsError(f"{where} is of split {word[:40]!r}; allowed: {ALLOWED}")
    return SPLIT_NAMES[word.lower()] if word else None


def _split_of_row(row: Row, of_file: str) -> str:
    """As its column says, else as its file does; :class:`PairsError` where neither does, or both, and not the same."""
    said = split_said(row.split, row.where)
    if said and of_file != UNNAMED and said != of_file:
        raise PairsError(f"{row.where} is of split {str(row.split)[:40]!r}, its file is named {of_file}; mend either")
    if not said and of_file == UNNAMED:
        raise PairsError(f"{row.where} has no split, others have; allowed: {ALLOWED}")
    return said or of_file


def split_of(name: str) -> str | None:
    """``train-00000-of-00002`` → train."""
    return SPLIT_NAMES.get(re.split(r"[-_.\d]", name.lower())[0])


def _of_table(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(file)
        columns = columns_of(table.schema_arrow.names)
        keys = [name for name in table.schema_arrow.names if name.lower().replace("_", "") in KEYS]
        split = split_column(table.schema_arrow.names)
        wanted = [*columns.values(), *keys, *[split] * bool(split)]
        rows = (row for batch in table.iter_batches(batch_size=16, columns=wanted) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            images = {folder: row[name] for folder, name in columns.items()}
            first = images[IMAGE_FOLDERS[0]]
            path = first.get("path") if isinstance(first, dict) else None
            contents = {f: v["bytes"] if isinstance(v, dict) else v for f, v in images.items()}
            key = str(next((row[name] for name in keys), None) or path or "")
            yield Row(f"{file}: row {number}", key, row[split] if split else None, contents)
    except (pyarrow.ArrowException, OSError, KeyError, TypeError) as error:
        raise PairsError(f"{file}: damaged ({type(error).__name__}: {' '.join(str(error).split())[:120]})") from error


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """Lines of a list, JSON or CSV, by column; :class:`PairsError` for a damaged one."""
    try:
        lines = read_text(file).splitlines()
        if file.suffix == ".csv":
            yield from csv.DictReader(lines)
        else:
            for line in lines:
                if line.strip():
                    row = parse_json(line)
                    if not isinstance(row, dict):
                        raise DocumentError(f"{line[:40]!r} is no JSON object")
                    yield row
    except (OSError, UnicodeError, DocumentError, csv.Error) as error:
        raise PairsError(f"{file}: damaged ({error})") from error


def _of_list(file: Path, root: Path) -> Iterator[Row]:
    for number, (row, columns, images) in enumerate(_files_of(file, root), 1):
        contents = {}
        for folder, image in images.items():
            try:
                contents[folder] = read_regular(image)
            except OSError as error:
                raise PairsError(f"{image}: {error.strerror}, but line {number} of {file} names it") from error
        key, split = str(row.get("key") or row[columns[IMAGE_FOLDERS[0]]] or ""), split_column(row)
        yield Row(f"{file}: line {number}", key, row[split] if split else None, contents)


def _files_of(file: Path, root: Path) -> Iterator[tuple[dict[str, Any], dict[str, str], dict[str, Path]]]:
    """Rows of a list, their columns by folder, and the files that these name."""
    inside = root.resolve()
    for number, row in enumerate(rows_of(file), 1):
        columns = columns_of(name for name in row if name.endswith("_file_name"))
        images = {folder: (file.parent / str(row[name])).resolve() for folder, name in columns.items()}
        for folder, image in images.items():
            if not image.is_relative_to(inside):
                named = str(row[columns[folder]])[:80]
                raise PairsError(f"{file}: line {number} names {named!r}, which is not in {root}")
        if not columns:
            raise PairsError(f"{file}: line {number} has no images of both dates and a label")
        yield row, columns, images


def _named(file: Path, root: Path) -> Iterator[Path]:
    """Every file that a list names and that is there: what is in the cache is of these."""
    return (image for _, _, images in _files_of(file, root) for image in images.values() if image.is_file())


def _unpack(row: Row, split: str, names: list[str], store: LocalStore, taken: set[str]) -> None:
    """The images of a pair under its own name where that is plain and not ``taken`` by one before, in any split, else
    under its number; the name joins the ``names`` of its split."""
    name = Path(row.key).stem
    if not is_plain_name(name) or name in taken:
        name = f"{split}_{len(names):06d}"
    while name in taken:
        name += "_"
    for folder, content in row.images.items():
        if not isinstance(content, bytes):
            raise PairsError(f"{store.describe()}: pair {len(names)} of {split} has no image for {folder}")
        kind = next((kind for start, kind in KINDS.items() if content.startswith(start)), ".png")
        store.put(f"{folder}/{name}{kind}", content)
    taken.add(name)
    names.append(name)
