"""Sets whose pairs lie in a file per shard: WebDataset tars and Parquet tables (``generate --format``).

The same bytes at every run: fixed times, owners and order. A pair's files are those of the folder layout, and its line
of the metadata lies beside them, so that a file can be read without the others.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from changeanywhere.buckets import cache_folder, store_at
from changeanywhere.documents import DocumentError, parse_json, to_json
from changeanywhere.errors import ConfigError, EmptySplitError, PairsError
from changeanywhere.help import require_one
from changeanywhere.pairs.codec import decode_image
from changeanywhere.pairs.names import CHANGE_FOLDER, IGNORE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS, SPLITS
from changeanywhere.pairs.record import ALL_FOLDERS, FILE_FOLDERS, PairRecord
from changeanywhere.sample import ChangePair
from changeanywhere.storage import LocalStore, Store, content_hash

CONTAINERS = {"webdataset": ".tar", "parquet": ".parquet"}
FORMATS = ("folder", *CONTAINERS)
PLACE = "data"
"""Folder of the containers of a set."""
COLUMNS = {"A": "image_t1", "B": "image_t2", "label": "change", "label1": "mask_t1", "label2": "mask_t2"}
SOME_COLUMNS = {IGNORE_FOLDER: "ignore"}
"""Folder of a pair's file → its column in a table; those that not every set has."""
WORDS = ("key", "split", "scene", "source", "licence", "kind")
SHUFFLED = 256
"""Pairs of a stream among which the next one is drawn."""
Written = tuple[dict[str, str], PairRecord]
"""Files of a pair with their hashes, and its record."""


@dataclass(frozen=True)
class Packed:
    """A pair as it lies in a container."""

    record: Mapping[str, Any]
    """Its line of the metadata."""
    files: Mapping[str, bytes]
    """Folder → content."""

    @property
    def key(self) -> str:
        return str(self.record["key"])


class Packing:
    """Holds the files of a shard until it is whole: what the writer of pairs puts into, in place of a store."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, name: str, content: bytes) -> None:
        """Hold ``content``."""
        with self._lock:
            self._files[name] = content

    def close(self, store: Store, container: str, number: int, written: Sequence[Written]) -> list[Written]:
        """Write the container of shard ``number``; (its hash, record) of every pair. Nothing for no pairs."""
        name = f"{PLACE}/{number:05d}{CONTAINERS[container]}"
        records = [replace(record, container=name) for _, record in sorted(written, key=lambda each: each[1].key)]
        if not records:
            return []
        packed = [Packed(r.to_dict(), {f: self._files[file] for f, file in r.files.items()}) for r in records]
        content = (_tar if container == "webdataset" else _table)(packed)
        store.put(name, content)
        digests = [{name: content_hash(content)}, *({} for _ in records[1:])]
        return list(zip(digests, records, strict=True))


def check_format(name: str) -> None:
    """:class:`ConfigError` for a format that is none, or whose library is not there."""
    require_one("format", name, FORMATS)
    if name == "parquet":
        _pyarrow()


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("format is 'parquet'; it needs pyarrow: pip install 'changeanywhere[parquet]'") from error
    return pyarrow


def _tar(pairs: Iterable[Packed]) -> bytes:
    """A WebDataset: of each pair ``NAME.a.png``, ``.b``, ``.label``, ``.label1``, ``.label2`` and ``NAME.json``.

    A library takes what stands behind the first point of a name for the kind of file: points of a key become ``-``.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for place, pair in enumerate(pairs):
            stem = pair.key if "." not in pair.key else f"{pair.key.replace('.', '-')}-{place:05d}"
            members = {
                f"{stem}.{folder.lower()}{_suffix(pair, folder)}": content for folder, content in pair.files.items()
            }
            members[f"{stem}.json"] = to_json(pair.record, ensure_ascii=False).encode()
            for name, content in members.items():
                info = tarfile.TarInfo(name)  # time 0, no owner
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _suffix(pair: Packed, folder: str) -> str:
    return Path(str(pair.record[f"{folder}_file_name"])).suffix


def _table(pairs: Iterable[Packed]) -> bytes:
    """Parquet: words and numbers as columns, images as Hugging Face's ``{bytes, path}``, the whole line as JSON."""
    arrow, rows = _pyarrow(), list(pairs)
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    columns: dict[str, Any] = {
        name: arrow.array([str(pair.record[name]) for pair in rows], arrow.string()) for name in WORDS
    }
    columns["seed"] = arrow.array([int(pair.record["seed"]) for pair in rows], arrow.uint64())
    columns["change_ratio"] = arrow.array([float(pair.record["change_ratio"]) for pair in rows], arrow.float64())
    images = COLUMNS | {folder: name for folder, name in SOME_COLUMNS.items() if folder in rows[0].files}
    for folder, name in images.items():
        files = [
            {"bytes": pair.files[folder], "path": str(pair.record[f"{folder}_file_name"]).replace("/", "_")}
            for pair in rows
        ]
        columns[name] = arrow.array(files, image)
    lines = [to_json(pair.record, ensure_ascii=False) for pair in rows]
    columns["metadata"] = arrow.array(lines, arrow.string())
    table = arrow.table(columns)
    if _suffix(rows[0], IMAGE_FOLDERS[0]) == ".png":  # what Pillow opens, which is what Hugging Face's images are
        kinds: dict[str, Any] = {
            each.name: {"dtype": str(each.type).replace("double", "float64"), "_type": "Value"} for each in table.schema
        }
        kinds |= {name: {"_type": "Image"} for name in images.values()}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    buffer = io.BytesIO()
    arrow.parquet.write_table(table, buffer, compression="none", row_group_size=64)  # PNG does not get smaller
    return buffer.getvalue()


def read_container(content: bytes, name: str) -> Iterator[Packed]:
    """The pairs of a container, in the order of their keys. :class:`PairsError` for a damaged one."""
    try:
        for pair in _read_tar(content) if name.endswith(".tar") else _read_table(content):
            for folder in pair.files:
                _check_name(str(pair.record[f"{folder}_file_name"]), folder)
            yield pair
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PairsError(f"{name}: damaged ({type(error).__name__}: {' '.join(str(error).split())[:120]})") from error


def _check_name(name: str, folder: str) -> None:
    top, _, rest = name.partition("/")
    if top != folder or not rest or "/" in rest or rest.startswith(".") or "\0" in rest:
        raise ValueError(f"{name!r} is no file of a pair")


def _read_tar(content: bytes) -> Iterator[Packed]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        stem, files = "", dict[str, bytes]()
        for member in tar:
            name, _, kind = member.name.partition(".")
            if name != stem and files:
                yield _of_members(stem, files)
                files = {}
            file = tar.extractfile(member) if member.isreg() else None
            if file is not None:
                stem = name
                files[kind] = file.read()
        if files:
            yield _of_members(stem, files)


def _of_members(stem: str, files: Mapping[str, bytes]) -> Packed:
    if "json" not in files:
        raise DocumentError(f"{stem} has no .json")
    whole = {folder.lower(): folder for folder in ALL_FOLDERS}
    kinds = {whole.get(k.partition(".")[0], k): content for k, content in files.items()}
    folders = [*FILE_FOLDERS, *(folder for folder in SOME_COLUMNS if folder in kinds)]
    return Packed(parse_json(files["json"]), {folder: kinds[folder] for folder in folders})


def _read_table(content: bytes) -> Iterator[Packed]:
    arrow = _pyarrow()
    try:
        groups = arrow.parquet.ParquetFile(io.BytesIO(content))
        there = set(groups.schema_arrow.names)
        images = COLUMNS | {folder: name for folder, name in SOME_COLUMNS.items() if name in there}
        for number in range(groups.num_row_groups):
            for row in groups.read_row_group(number, columns=[*images.values(), "metadata"]).to_pylist():
                yield Packed(parse_json(row["metadata"]), {f: row[name]["bytes"] for f, name in images.items()})
    except arrow.ArrowException as error:
        raise DocumentError(str(error)) from error


def containers_in(store: Store) -> list[str]:
    """Names of the containers of a set; none where its pairs lie in folders."""
    return [name for name in store.list(PLACE) if name.endswith(tuple(CONTAINERS.values()))]


def get_file(store: Store, record: PairRecord, folder: str) -> bytes:
    """A file of a pair, wherever it lies."""
    if not record.container:
        return store.get(record.files[folder])
    return _last(_Held(store), record.container)[record.key][folder]


class _Held:
    """A store as a key of a cache: two of the same place are one."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __hash__(self) -> int:
        return hash(self.store.describe())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.store.describe() == self.store.describe()


@lru_cache(maxsize=1)  # what is shown comes in the order of the shards
def _last(held: _Held, name: str) -> dict[str, Mapping[str, bytes]]:
    return {pair.key: pair.files for pair in read_container(held.store.get(name), held.store.describe(name))}


def _are_ours(file: Path) -> bool:
    """Whether a container is one that ``generate`` writes: tables of others have other columns, tars other files."""
    if file.suffix != CONTAINERS["parquet"]:
        return file.stem.isdecimal() if (kinds := _kinds_in(file)) is None else {"a", "b", "label"} <= kinds
    arrow = _pyarrow()
    try:
        return {*COLUMNS.values(), "metadata"} <= set(arrow.parquet.read_schema(file).names)
    except (arrow.ArrowException, OSError) as error:
        raise PairsError(f"{file}: damaged ({type(error).__name__}: {' '.join(str(error).split())[:120]})") from error


def _kinds_in(file: Path) -> set[str] | None:
    """Of the first pair that may lie in a tar: what stands behind the first point of its files' names, up to the next;
    None where the tar is damaged."""
    try:
        with tarfile.open(file, mode="r:") as tar:
            names = [member.name for member in islice(tar, len(ALL_FOLDERS) + 1)]
    except (tarfile.TarError, OSError):
        return None
    return {name.partition(".")[2].partition(".")[0] for name in names}


def as_folder(root: Path) -> Path:
    """A set of containers as a folder of images, in the cache, once; anything else as it is."""
    store = LocalStore(root)
    found = containers_in(store) if not (root / IMAGE_FOLDERS[0]).is_dir() and (root / PLACE).is_dir() else []
    if not found or not _are_ours(root / found[0]):
        return root
    others = [n for n in store.list() if n.partition("/")[0] in ("metadata.jsonl", "legend.json", "list")]

    def fill(target: LocalStore) -> None:
        for name in found:
            for pair in read_container(store.get(name), store.describe(name)):
                for folder, content in pair.files.items():
                    target.put(str(pair.record[f"{folder}_file_name"]), content)
        for name in others:
            target.put(name, store.get(name))

    return in_cache(root, [root / name for name in (*found, *others)], fill)


def in_cache(root: Path, used: Sequence[Path], fill: Callable[[LocalStore], None], rules: str = "") -> Path:
    """A folder of the cache named as ``root`` is, which ``fill`` makes of the files ``used``, once for each state of
    theirs, and for the ``rules`` that it follows, where it once followed others."""
    looks = [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in used]
    mark = hashlib.sha256(json.dumps([str(root.resolve()), looks, *[rules] * bool(rules)]).encode()).hexdigest()[:16]
    place = cache_folder() / "unpacked" / mark
    if not place.is_dir():
        part = place.with_name(f".{mark}.{os.getpid()}.part")
        try:
            fill(LocalStore(part / root.resolve().name))
            if not place.is_dir():  # another process was as fast
                part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return place / root.resolve().name


def stream_pairs(
    place: str | Path, split: str | None = None, seed: int | None = None, epoch: int = 0
) -> Iterator[ChangePair]:
    """The pairs of a set of containers, one container after another, from a folder or an address, without a copy.

    ``split``: "train", "val" or "test"; :class:`ConfigError` for another. ``seed``: containers in an order that follows
    from it and ``epoch``, and pairs drawn among :data:`SHUFFLED` at hand; None: as they lie. Masks are those that
    ``generate`` wrote, 1…K of the set's legend and 0 = unknown: a ``legend.json`` that was given other numbers since
    holds for :func:`load_pairs` alone. Raises :class:`PairsError` where there is no container, and, as it goes, for a
    damaged one and, at the end, for a split without pairs.
    """
    if split is not None:
        require_one("split", split, SPLITS)
    store = store_at(place)
    names = containers_in(store)
    if not names:
        raise PairsError(f"{store.describe()}: holds no containers in {PLACE}/; load_pairs reads folders")
    return _streamed(store, names, split, None if seed is None else np.random.default_rng([seed, epoch]))


def _streamed(
    store: Store, names: list[str], split: str | None, chance: np.random.Generator | None
) -> Iterator[ChangePair]:
    if chance is not None:
        chance.shuffle(names)
    held: list[Packed] = []
    found = False
    for name in names:
        for pair in read_container(store.get(name), store.describe(name)):
            if split is not None and pair.record["split"] != split:
                continue
            found = True
            if chance is None:
                yield _decoded(pair)
                continue
            held.append(pair)
            if len(held) >= SHUFFLED:
                yield _decoded(held.pop(int(chance.integers(len(held)))))
    while held and chance is not None:
        yield _decoded(held.pop(int(chance.integers(len(held)))))
    if split is not None and not found:
        raise EmptySplitError(f"{store.describe()}: split {split!r} is empty")


def _decoded(pair: Packed) -> ChangePair:
    arrays = {f: decode_image(content, str(pair.record[f"{f}_file_name"])) for f, content in pair.files.items()}
    first, second = (arrays[folder] for folder in IMAGE_FOLDERS)
    mask_t1, mask_t2 = (arrays[folder] for folder in MASK_FOLDERS)
    ignored = arrays[IGNORE_FOLDER] > 0 if IGNORE_FOLDER in arrays else None
    record = dict(pair.record)
    return ChangePair(pair.key, first, second, arrays[CHANGE_FOLDER] > 0, mask_t1, mask_t2, record, ignored=ignored)
