"""Where results go: whole objects by name, never half of one.

``put`` an object whole, ``get`` it, ask whether it ``exists``, ``list`` what is there: what a local folder and a bucket
both can do, so that whoever writes a dataset need not know which of them it is. Names are relative, with ``/``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from changeanywhere.errors import OutputError


class Store(Protocol):
    """A place for objects.

    What cannot be written raises :class:`OutputError`, what is not there ``FileNotFoundError``.
    """

    def put(self, name: str, content: bytes) -> None:
        """Make ``content`` the object ``name``, whole, in place of an older one."""
        ...

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

    def describe(self, name: str = "") -> str:
        """Where the object lies, for messages."""
        ...


class LocalStore:
    """A :class:`Store` in a folder of this machine (or one that it mounts)."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def put(self, name: str, content: bytes) -> None:
        """See :class:`Store`."""
        atomic_write(self._path(name), content)

    def put_new(self, name: str, content: bytes) -> bool:
        """See :class:`Store`. A hard link to a finished file: it is there whole, or another one was first."""
        path = self._path(name)
        part = _part_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
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
        with atomic_file(self._path(name)) as target:
            yield target

    def get(self, name: str) -> bytes:
        """See :class:`Store`."""
        return self._path(name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        """See :class:`Store`."""
        return self._path(name).open("rb")

    def exists(self, name: str) -> bool:
        """See :class:`Store`."""
        return self._path(name).is_file()

    def list(self, folder: str = "") -> list[str]:
        """See :class:`Store`. What a killed process was writing is no object."""
        top = self._path(folder) if folder else self.root
        files = (file for file in top.rglob("*") if file.is_file() and not _is_part(file))
        return sorted(file.relative_to(self.root).as_posix() for file in files)

    def delete(self, name: str) -> None:
        """See :class:`Store`."""
        self._path(name).unlink(missing_ok=True)

    def describe(self, name: str = "") -> str:
        """See :class:`Store`."""
        return str(self._path(name) if name else self.root)

    def _path(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/"):
            raise OutputError(f"{self.root}: {name!r} is no name of an object in it")
        return self.root.joinpath(*parts)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write what becomes ``path`` in one step at the end, so that a crash leaves the old file or the new, never half.

    Raises :class:`OutputError` where it cannot be written (read-only folder, full disk).
    """
    part = _part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as target:
            yield target
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):  # what stopped the write may stop this too
            part.unlink()
        if isinstance(error, OSError):
            raise OutputError(f"{path}: cannot be written ({error.strerror}); what is finished is kept") from error
        raise


def atomic_write(path: Path, content: bytes) -> None:
    """:func:`atomic_file` for content that is at hand."""
    with atomic_file(path) as target:
        target.write(content)


@contextmanager
def atomic_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A folder to fill; at the end what is in it takes the place of what has its names in ``folder``.

    ``marker`` names the file without which the folder is nothing: it goes first and comes back last, so that a crash
    leaves the old contents, the new, or nothing that could be taken for either. Files of other names stay. Raises
    :class:`OutputError` where it cannot be written.
    """
    part = _part_of(folder)
    try:
        part.mkdir(parents=True)
        yield part
        folder.mkdir(parents=True, exist_ok=True)
        (folder / marker).unlink(missing_ok=True)
        for new in sorted(part.iterdir(), key=lambda path: path.name == marker):
            old = folder / new.name
            if old.is_dir():
                shutil.rmtree(old)
            new.replace(old)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")


def _is_part(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".part"


def remove_leftovers(root: Path) -> None:
    """Delete what killed processes of this machine were writing when they died; what a live one writes stays."""
    for part in root.rglob(".*.part"):
        if not process_is_alive(part.name.rsplit(".", 3)[1]):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def process_is_alive(number: str) -> bool:
    """Whether this machine runs a process of that number; True where that cannot be told."""
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):  # no number at all, or somebody else's process
        return True
    return True


def content_hash(content: bytes) -> str:
    """sha256, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    return content_hash(path.read_bytes())
