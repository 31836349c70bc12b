"""Files that must stay what they were when a run looked at them first.

A plan holds to its masks by their bytes, but a run takes hours: a mask that is edited meanwhile would give one half of
a set another meaning than the other.
"""

from __future__ import annotations

from pathlib import Path

from changeanywhere.errors import SourceError
from changeanywhere.sources.files import digest

Looks = tuple[int, ...]


class Unchanged:
    """Hashes of files, and how the files looked when they were taken."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[Looks, str]] = {}
        self._sizes: dict[Path, int] = {}

    def digest(self, path: Path) -> str:
        """Hash of a file that is not to change from now on."""
        looks = _looks(path)  # before: an edit while it is read shows then
        self._seen[path] = looks, digest(path)
        return self._seen[path][1]

    def size(self, path: Path) -> int:
        """Bytes of a file whose size is not to change from now on."""
        self._sizes[path] = path.stat().st_size
        return self._sizes[path]

    def check(self, path: Path) -> None:
        """After reading: :class:`SourceError` where the file is not what it was: by its looks, then by its bytes."""
        looks, before = self._seen.get(path, (None, ""))
        edited = path in self._sizes and path.stat().st_size != self._sizes[path]
        if looks is not None and (now := _looks(path)) != looks:
            edited = digest(path) != before
            if not edited:
                self._seen[path] = now, before
        if edited:
            raise changed(path)


def changed(path: Path) -> SourceError:
    """What is said of a file that is not what it was."""
    return SourceError(
        f"{path}: was edited while the run went on; put the old file back, and the same command goes on, or give "
        "another --out"
    )


def _looks(path: Path) -> Looks:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
