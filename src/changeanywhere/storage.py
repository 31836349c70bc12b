"""Where results go: whole objects by name, never half of one.

``put`` an object whole, ``get`` it, ask whether it ``exists``, ``list`` what is there: what a local folder and a bucket
both can do, so that whoever writes a dataset need not know which of them it is. Names are relative, with ``/``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, cast

from changeanywhere.errors import OutputError
from changeanywhere.machine import read_file, this_machine
from changeanywhere.regular import open_regular

HASH_PART = 1 << 20
PART = re.compile(r"\..+\.(\d+)(?:@([0-9a-f]{8}))?\.\d+\.part")
"""Name of a temporary file: of what, which process, of which machine, which thread."""
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(/|$)")


class Puts(Protocol):
    """What takes objects."""

    def put(self, name: str, content: bytes) -> None:
        """Make ``content`` the object ``name``, whole, in place of an older one."""
        ...


class Store(Puts, Protocol):
    """A place for objects.

    What cannot be written raises :class:`OutputError`, what is not there ``FileNotFoundError``.
    """

    def put_new(self, name: str, content: bytes) -> bool:
        """:meth:`put` only if there is no such object; False if there is one. Of several at once, one wins."""
        ...

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """:meth:`put` for what is too large to hold: the object appears when the context ends without an error."""
        ...

    def get(self, name: str) -> bytes:
        """The object's content."""
        ...

    def open(self, name: str) -> BinaryIO:
        """The object's content to be read piece by piece; close it."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        ...

    def list(self, folder: str = "") -> list[str]:
        """Names of all objects below ``folder``, sorted."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens if there is none."""
        ...

    def keep(self, names: Iterable[str]) -> None:
        """Return when these objects outlast a power cut: before a marker says that they are there."""
        ...

    def describe(self, name: str = "") -> str:
        """Where the object lies, for messages."""
        ...


class LocalStore:
    """A :class:`Store` in a folder of this machine (or one that it mounts)."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def put(self, name: str, content: bytes) -> None:
        """See :class:`Store`."""
        with atomic_file(self._place(name), lasting=False) as target:
            target.write(content)

    def put_new(self, name: str, content: bytes) -> bool:
        """See :class:`Store`. A hard link to a finished file: it is there whole, or another one was first."""
        path = self._place(name)
        part = part_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _new_file(part) as target:
                target.write(content)
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}); what is finished is kept") from error
        finally:
            with suppress(OSError):  # what stopped the write may stop this too
                part.unlink(missing_ok=True)
        return True

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """See :class:`Store`."""
        with atomic_file(self._place(name)) as target:
            yield target

    def keep(self, names: Iterable[str]) -> None:
        """See :class:`Store`."""
        paths = [self._path(name) for name in names]
        for path in paths:
            _sync(path)
        for folder in {path.parent for path in paths}:
            _sync(folder)

    def get(self, name: str) -> bytes:
        """See :class:`Store`."""
        with self.open(name) as file:
            return file.read()

    def open(self, name: str) -> BinaryIO:
        """See :class:`Store`. ``OSError`` for what is no file: a pipe would be waited for, a device never ends."""
        return open_regular(self._path(name))

    def exists(self, name: str) -> bool:
        """See :class:`Store`."""
        return self._path(name).is_file()

    def list(self, folder: str = "") -> list[str]:
        """See :class:`Store`. What a killed process was writing is no object."""
        return sorted(self.names(folder))

    def names(self, folder: str = "") -> Iterator[str]:
        """What :meth:`list` gives, as it is found: whoever needs one need not wait for all."""
        top = self._path(folder) if folder else self.root
        files = (file for file in top.rglob("*") if file.is_file() and not _is_part(file))
        return (file.relative_to(self.root).as_posix() for file in files)

    def delete(self, name: str) -> None:
        """See :class:`Store`."""
        self._place(name).unlink(missing_ok=True)

    def describe(self, name: str = "") -> str:
        """See :class:`Store`."""
        return str(self._path(name) if name else self.root)

    def _path(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/"):
            raise OutputError(f"{self.root}: {name!r} is no name of an object in it")
        return self.root.joinpath(*parts)

    def _place(self, name: str) -> Path:
        """Where an object is written."""
        path = self._path(name)
        refuse_way_out(self.root, path.parent)
        return path


def refuse_way_out(root: Path, folder: Path) -> None:
    """:class:`OutputError` where links below ``root`` lead ``folder`` out of it; ``root`` itself may be a link."""
    within, real = os.path.realpath(root), os.path.realpath(folder)
    if Path(within) not in (Path(real), *Path(real).parents):
        raise OutputError(f"{folder}: a link leads out of {root}, to {real}; remove it, or give another --out")


def address_of(place: Path | str) -> str | None:
    """The address ``scheme://BUCKET/…`` that a place is, also where ``Path`` made one slash of two; None: a folder."""
    found = ADDRESS.match(str(place))
    if not found:
        return None
    scheme, _, rest = str(place).partition(":")
    return f"{scheme}://{rest.lstrip('/')}"


def shown(place: Path | str) -> str:
    """A place as people write it."""
    return address_of(place) or str(place)


def check_out(out: Path | str, *sources: Path | str | None) -> None:
    """:class:`OutputError` for an output folder that is none of this machine, or that lies in a source: it would be
    taken for tiles when the source is read again."""
    if (address := address_of(out)) is not None:
        raise OutputError(f"out is {address!r}; allowed: a folder of this machine, or one that it mounts")
    if "\0" in str(out):
        raise OutputError(f"out is {str(out)!r}; allowed: a path without null characters")
    _refuse_inside(out, sources)


def check_place(out: Path | str, *sources: Path | str | None) -> None:
    """:func:`check_out` for what can be written to a bucket, too."""
    address = address_of(out)
    if address is None:
        check_out(out, *sources)
        return
    for source in (address_of(each) for each in sources if each):
        if source and f"{address}/".startswith(f"{source.rstrip('/')}/"):
            raise OutputError(f"out is {address!r}, in the source {source}; allowed: an address outside of it")


def _refuse_inside(out: Path | str, sources: Iterable[Path | str | None]) -> None:
    real = Path(os.path.realpath(out))
    for source in sources:
        place = Path(os.path.realpath(source)) if source and "\0" not in str(source) else None
        if place is not None and (real == place or place in real.parents):
            raise OutputError(f"out is {str(out)!r}, in the source {source}; allowed: a folder outside of it")


@contextmanager
def atomic_file(path: Path, lasting: bool = True) -> Iterator[BinaryIO]:
    """Write what becomes ``path`` in one step at the end, so that a crash leaves the old file or the new, never half.

    ``lasting``: at the end it outlasts a power cut. A link in its place is replaced, never followed. Raises
    :class:`OutputError` where it cannot be written (read-only folder, full disk).
    """
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _new_file(part) as target:
            yield target
            if lasting:
                target.flush()
                os.fsync(target.fileno())
        part.replace(path)
        if lasting:
            _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):  # what stopped the write may stop this too
            part.unlink()
        if isinstance(error, OSError):
            raise OutputError(f"{path}: cannot be written ({error.strerror}); what is finished is kept") from error
        raise


def _new_file(part: Path) -> BinaryIO:
    """A file that was not there: neither a link nor anything else is opened in its place."""
    try:
        return cast(BinaryIO, part.open("xb"))
    except FileExistsError:  # the name is this thread's own: left by an earlier write of it, or put there
        part.unlink()
        return cast(BinaryIO, part.open("xb"))


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def atomic_write(path: Path, content: bytes) -> None:
    """:func:`atomic_file` for content that is at hand."""
    with atomic_file(path) as target:
        target.write(content)


@contextmanager
def atomic_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A folder to fill; at the end what is in it takes the place of what has its names in ``folder``.

    ``marker`` names the file without which the folder is nothing: it goes first and comes back last, so that a crash
    leaves the old contents, the new, or nothing that could be taken for either. Files of other names stay. Raises
    :class:`OutputError` where it cannot be written, and where a folder would be replaced although there is no marker:
    it is somebody else's.
    """
    part, swapping = part_of(folder), folder / f".{marker}.swap"
    try:
        part.mkdir(parents=True)
        yield part
        for file in part.rglob("*"):
            _sync(file)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / marker).is_file() and not swapping.is_file():
            _refuse_to_replace(folder, marker, part)
        swapping.unlink(missing_ok=True)  # a link is not followed
        swapping.touch()  # a crash from here on leaves no marker, and what lies there is ours all the same
        (folder / marker).unlink(missing_ok=True)
        for new in sorted(part.iterdir(), key=lambda path: path.name == marker):
            old = folder / new.name
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            elif new.is_dir():  # it takes no file's place, and no link's
                old.unlink(missing_ok=True)
            if new.name == marker:
                _sync(folder)
            new.replace(old)
        swapping.unlink()
        _sync(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refuse_to_replace(folder: Path, marker: str, part: Path) -> None:
    for new in sorted(part.iterdir()):
        old = folder / new.name
        if new.is_dir() and old.is_dir() and not old.is_symlink() and any(old.iterdir()):
            raise OutputError(f"{old}: holds other files, and no {marker} beside it; give another folder")


def part_of(path: Path) -> Path:
    """Where this thread writes what becomes ``path``: beside it, by a name that :func:`remove_leftovers` knows."""
    return path.with_name(f".{path.name}.{os.getpid()}@{_tag()}.{threading.get_native_id()}.part")


@lru_cache(maxsize=1)
def _tag() -> str:
    return content_hash(this_machine().encode())[:8]


def _is_part(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".part"


def remove_leftovers(root: Path) -> None:
    """Delete what killed processes of this machine were writing when they died; what a live one writes stays.

    A bucket has no such leftovers: objects are put whole.
    """
    if address_of(root) is not None:
        return
    for part in list(root.rglob(".*.part")):  # one may lie in another, which goes before
        found = PART.fullmatch(part.name)
        if found and found.group(2) in (None, _tag()) and not process_is_alive(found.group(1)):
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)


def process_is_alive(number: str) -> bool:
    """Whether this machine runs a process of that number; True where that cannot be told. One that has ended and whose
    parent has not noticed is not alive."""
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):  # no number at all, or somebody else's process
        return True
    return read_file(f"/proc/{number}/stat").rpartition(")")[2].split()[:1] not in (["Z"], ["X"])


def content_hash(content: bytes) -> str:
    """sha256, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with open_regular(path) as file:
        return hash_of(file)


def hash_of(file: BinaryIO) -> str:
    """sha256 of what is left to read, hexadecimal."""
    seen = hashlib.sha256()
    while part := file.read(HASH_PART):
        seen.update(part)
    return seen.hexdigest()
