"""Files and nothing else: a pipe would be waited for, a device never ends."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, cast


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes; ``OSError`` for what is no file (links are followed)."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return cast(BinaryIO, os.fdopen(number, "rb"))


def read_regular(path: Path) -> bytes:
    """All bytes of a file; ``OSError`` for what is no file."""
    with open_regular(path) as file:
        return file.read()
