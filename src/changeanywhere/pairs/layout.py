"""Names of files and folders of a bi-temporal dataset, and how files are written."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from changeanywhere.errors import OutputError

IMAGE_FOLDERS = ("A", "B")
CHANGE_FOLDER = "label"
MASK_FOLDERS = ("label1", "label2")
SPLITS = ("train", "val", "test")
SUFFIXES = {"png": ".png", "geotiff": ".tif"}


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write what becomes ``path`` in one step at the end, so that a crash leaves the old file or the new, never half.

    Raises :class:`OutputError` where it cannot be written (read-only folder, full disk).
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as target:
            yield target
        part.replace(path)
    except OSError as error:
        with suppress(OSError):  # what stopped the write may stop this too
            part.unlink()
        raise OutputError(f"{path}: cannot be written ({error.strerror}); what is finished is kept") from error


def atomic_write(path: Path, content: bytes) -> None:
    """:func:`atomic_file` for content that is at hand."""
    with atomic_file(path) as target:
        target.write(content)


def remove_leftovers(root: Path) -> None:
    """Delete what a killed process was writing when it died. Only for who holds the folder."""
    for part in root.rglob(".*.part"):
        part.unlink(missing_ok=True)


def content_hash(content: bytes) -> str:
    """sha256, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    return content_hash(path.read_bytes())
