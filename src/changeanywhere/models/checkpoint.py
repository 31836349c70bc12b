"""Weights in other people's files: ``.ckpt``, ``.pth``, ``.pt`` of any trainer, and ``.safetensors``.

Of torch's two formats (zip, and the legacy one: pickles one behind the other) tensors alone are read, by
:mod:`changeanywhere.models.unpickling`, which runs nothing. :class:`ModelError` names what is in the way and
what to do.
"""

from __future__ import annotations

import math
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from changeanywhere.errors import ModelError
from changeanywhere.models.unpickling import (
    ForbiddenError,
    Passed,
    Reader,
    Storage,
    TensorPlace,
    Trace,
    UnreadableError,
    follow,
)

LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
SMALL = 2**20
"""Elements of a tensor that may be more than are stored (one number, repeated)."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "module", "generator")
"""Keys under which trainers put the weights, the likeliest first; else the file is the weights itself."""
PREFIXES = ("module.", "_orig_mod.", "_forward_module.")
"""What wrappers for several devices and for compilation put before every name."""
SAVE_ALONE = "where it comes from, save the weights alone: torch.save({'state_dict': model.state_dict()}, FILE)"
KINDS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; run git lfs pull",
    b"<!DOCTYPE": "a web page, not the file itself; download it again",
    b"<html": "a web page, not the file itself; download it again",
    b"\x1f\x8b": "compressed (gzip); unpack it first",
    b"\x89HDF": "an HDF5 file (Keras?); allowed: files of torch, or .safetensors",
}
"""First bytes of what is often taken for a checkpoint."""


def read_weights_file(file: Path) -> dict[str, Tensor]:
    """Tensors by name, without the prefixes of wrappers. What else the file holds is passed over.

    Raises :class:`ModelError` naming the file, what is in the way, and what to do.
    """
    head = _head(file)
    if file.suffix == ".safetensors" or head[8:10] in (b'{"', b"{}"):
        return _without_prefixes(read_safetensors(file))
    for start, what in KINDS.items():
        if head.startswith(start):
            raise ModelError(f"{file}: {what}")
    trace = Trace()
    try:
        with file.open("rb") as opened:
            content, storages = _opened(opened, head, trace)
            return _without_prefixes(_materialised(_weights_in(content, file, trace.passed), storages, file))
    except ForbiddenError as error:
        raise ModelError(
            f"{file}: names {error}, which no trainer stores beside weights; nothing of it was run. {_alone()}"
        ) from error
    except UnreadableError as error:
        raise ModelError(f"{file}: not a readable checkpoint ({error})") from error
    # RuntimeError: what zipfile says of a compression that it does not know, and of a file behind a password.
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ModelError(f"{file}: not a readable checkpoint ({reason or type(error).__name__})") from error


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Tensors by name; :class:`ModelError` naming the file if it is not one of safetensors."""
    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise ModelError(f"{file}: no such file") from error
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{file}: not a readable file of weights ({' '.join(str(error).split())[:150]})") from error


def _alone() -> str:
    return SAVE_ALONE[0].upper() + SAVE_ALONE[1:]


def _head(file: Path) -> bytes:
    if not file.exists():
        raise ModelError(f"{file}: no such file")
    if not file.is_file():
        raise ModelError(f"{file}: not a file; give the checkpoint itself")
    try:
        with file.open("rb") as opened:
            return opened.read(64)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error


class _Storages(ABC):
    """Numbers of a file, by storage; each is read once."""

    def __init__(self) -> None:
        self._read: dict[str, bytearray] = {}

    def content(self, key: str) -> bytearray:
        """All bytes of a storage."""
        if key not in self._read:
            self._read[key] = self.load(key)
        return self._read[key]

    @abstractmethod
    def load(self, key: str) -> bytearray:
        """Read them; :class:`UnreadableError` where there are none."""


class _ZipStorages(_Storages):
    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__()
        self._archive, self._folder = archive, folder

    def load(self, key: str) -> bytearray:
        """See :class:`_Storages`. Records are stored, not packed: none is larger than the file."""
        try:
            info = self._archive.getinfo(f"{self._folder}data/{key}")
        except KeyError as error:
            raise UnreadableError(f"no record data/{key[:40]} in it: cut off?") from error
        with self._archive.open(info) as record:
            return bytearray(record.read())


class _LegacyStorages(_Storages):
    def __init__(self, file: BinaryIO, places: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self._file, self._places = file, places

    def load(self, key: str) -> bytearray:
        """See :class:`_Storages`."""
        if key not in self._places:
            raise UnreadableError(f"no storage {key[:40]} in it: cut off?")
        start, size = self._places[key]
        self._file.seek(start)
        return bytearray(self._file.read(size))


def _opened(file: BinaryIO, head: bytes, trace: Trace) -> tuple[Any, _Storages]:
    if head.startswith(b"PK"):
        return _opened_zip(file, trace)
    if head[257:262] == b"ustar" or head.startswith((b"sys_info", b"storages")):
        raise UnreadableError("a tar file of torch before 0.1.10; load and save it with a younger torch")
    return _opened_legacy(file, trace)


def _opened_zip(file: BinaryIO, trace: Trace) -> tuple[Any, _Storages]:
    if not zipfile.is_zipfile(file):
        raise UnreadableError("cut off: the end of the file is missing; copy or download it again")
    archive = zipfile.ZipFile(file)
    names = Counter(info.filename for info in archive.infolist())
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or max(names.values()) > 1:
        raise UnreadableError("a zip file without data.pkl, or with several; allowed: what torch.save writes")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in names:
        raise UnreadableError("a TorchScript archive; load it with torch.jit.load and save its state_dict()")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise UnreadableError("a packed zip file; allowed: what torch.save writes")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise UnreadableError("numbers in big-endian order; save it on another machine")
    with archive.open(pickles[0]) as record:
        content = follow(Reader(record), trace)  # type: ignore[arg-type]
    return content, _ZipStorages(archive, folder)


def _opened_legacy(file: BinaryIO, trace: Trace) -> tuple[Any, _Storages]:
    """Magic number, version, machine, content, keys; then of each storage its size and its numbers."""
    reader = Reader(file)
    try:
        magic = follow(reader, Trace())
    except UnreadableError as error:
        raise UnreadableError("neither a zip file of torch nor one of its older format") from error
    if magic != LEGACY_MAGIC or follow(reader, Trace()) != LEGACY_VERSION:
        raise UnreadableError(f"a pickle, but not one of torch.save; {SAVE_ALONE}")
    machine = follow(reader, Trace())
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise UnreadableError("numbers in big-endian order; save it on another machine")
    content = follow(reader, trace)
    keys = follow(reader, Trace())
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UnreadableError("no list of storages")
    return content, _LegacyStorages(file, _legacy_places(file, keys, trace.storages))


def _legacy_places(file: BinaryIO, keys: list[str], storages: Mapping[str, Storage]) -> dict[str, tuple[int, int]]:
    """Storage → (first byte, number of bytes). How wide a number is stands where a storage is named."""
    widths = {key: _width(storage) for key, storage in storages.items()}
    places: dict[str, tuple[int, int]] = {}
    end = file.seek(0, 1)
    size = file.seek(0, 2)
    for key in keys:
        file.seek(end)
        count = int.from_bytes(file.read(8), "little", signed=True)
        if key not in widths:
            raise UnreadableError("a storage whose numbers are of an unknown kind")
        if count < 0 or end + 8 + count * widths[key] > size:
            raise UnreadableError("cut off, or damaged: a storage goes beyond the end of the file")
        places[key] = end + 8, count * widths[key]
        end += 8 + count * widths[key]
    return places


def _width(storage: Storage) -> int:
    if not storage.dtype:
        raise UnreadableError("a storage without a kind of numbers")
    dtype: torch.dtype = getattr(torch, storage.dtype)
    return dtype.itemsize


def _weights_in(content: Any, file: Path, passed: list[str]) -> dict[str, TensorPlace]:
    """The dict of tensors that is the weights: the file itself, or what stands under one of :data:`WRAPPERS`."""
    for key in (None, *WRAPPERS):
        found = content.get(key) if key is not None and isinstance(content, dict) else content
        for inner in (found, found.get("state_dict") if isinstance(found, dict) else None):
            if isinstance(inner, dict):
                places = {name: value for name, value in inner.items() if isinstance(value, TensorPlace)}
                named = {name: place for name, place in places.items() if isinstance(name, str)}
                if named and (key is not None or not any(isinstance(content.get(w), dict) for w in WRAPPERS)):
                    return named
    whole = [each for each in (content, *_under_wrappers(content)) if isinstance(each, Passed)]
    if whole:
        raise ModelError(f"{file}: holds a whole {whole[0].name}, which would have to be run. {_alone()}")
    stored = f"; it holds {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) and content else ""
    first = f"; the first thing that is no tensor is a {passed[0]}" if passed else ""
    raise ModelError(f"{file}: has no state_dict of tensors{stored}{first}. {_alone()}")


def _under_wrappers(content: Any) -> list[Any]:
    return [content[key] for key in WRAPPERS if key in content] if isinstance(content, dict) else []


def _materialised(places: Mapping[str, TensorPlace], storages: _Storages, file: Path) -> dict[str, Tensor]:
    try:
        return {name: _tensor(place, storages) for name, place in places.items()}
    except UnreadableError as error:
        raise ModelError(f"{file}: not a readable checkpoint ({error})") from error


def _tensor(place: TensorPlace, storages: _Storages) -> Tensor:
    dtype = getattr(torch, place.storage.dtype) if place.storage.dtype else None
    if dtype is None:
        raise UnreadableError("a tensor without a kind of numbers")
    count = math.prod(place.size)
    if not count:
        return torch.empty(place.size, dtype=dtype)
    content = storages.content(place.storage.key)
    stored = len(content) // dtype.itemsize
    last = place.offset + sum((n - 1) * step for n, step in zip(place.size, place.stride, strict=True))
    if last >= stored:
        raise UnreadableError(f"a tensor of {'x'.join(map(str, place.size))} goes beyond its {stored} stored numbers")
    if count > max(stored, SMALL):
        raise UnreadableError(f"a tensor of {count} numbers of which {stored} are stored")
    flat = torch.frombuffer(content, dtype=dtype, count=stored)
    return flat.as_strided(place.size, place.stride, place.offset)


def _without_prefixes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        while any(name.startswith(prefix) for prefix in PREFIXES):
            name = name.partition(".")[2]
        result[name] = value
    return result
