"""Folders as they are found: what lies in them, what is passed over, text with byte-order marks, names as keys.

Symbolic links are followed, never in a circle. Hidden files and what file managers, notebooks and archives leave behind
are no data: they are passed over everywhere.
"""

from __future__ import annotations

import codecs
import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from changeanywhere.regular import read_regular

SYSTEM_NAMES = frozenset((
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
))  # fmt: skip
"""Of files and folders, in small letters."""
LONGEST_KEY = 180
"""Bytes; a file name has 255, and windows, numbers and suffixes are added."""
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""What Excel and Notepad write before a text."""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or none of the user's own."""
    return name.startswith((".", "~$")) or name.lower() in SYSTEM_NAMES


def entries_of(folder: Path, passed: set[Path] | None = None) -> list[Path]:
    """What lies in ``folder`` itself, sorted; hidden and system names go to ``passed``."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not is_system(path.name):
            found.append(path)
        elif passed is not None:
            passed.add(path)
    return found


def folders_of(folder: Path) -> list[Path]:
    """Folders in ``folder``, links to folders among them, sorted."""
    return [path for path in entries_of(folder) if path.is_dir()]


def files_below(folder: Path, passed: set[Path] | None = None) -> list[Path]:
    """Every file below ``folder``, sorted; hidden and system names go to ``passed``.

    A link that leads to a folder in which it lies itself is not followed; a link to nowhere counts as a file.
    """
    return sorted(_below(folder, (folder.resolve(),), passed))


def _below(folder: Path, above: tuple[Path, ...], passed: set[Path] | None) -> Iterator[Path]:
    for path in entries_of(folder, passed):
        if not path.is_dir():
            yield path
            continue
        real = path.resolve()
        if not any(real == place or real in place.parents for place in above):
            yield from _below(path, (*above, real), passed)


def find_folder(root: Path, names: Iterable[str]) -> Path | None:
    """The first of ``names`` that is a folder in ``root``, in any case of letters."""
    present = {path.name.lower(): path for path in reversed(folders_of(root))}
    exact = {path.name: path for path in present.values()}
    return next((found for name in names if (found := exact.get(name) or present.get(name.lower()))), None)


def read_text(file: Path) -> str:
    """Text of a file that people edit: UTF-8 or marked UTF-16, with any line ends. UnicodeDecodeError, OSError."""
    content = read_regular(file)
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    text = content.decode(encoding).removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_names(file: Path) -> list[str]:
    """Lines of a list of names, empty ones left out."""
    return [line.strip() for line in read_text(file).split("\n") if line.strip()]


def composed(name: str) -> str:
    """A name with its accents composed: archives of other systems hold them in two ways."""
    return unicodedata.normalize("NFC", name)


def safe_keys(names: Iterable[str]) -> dict[str, str]:
    """Name → key that is safe as a file name.

    Letters and digits of every script stay, ``/`` becomes ``__``, anything else ``_``. Where two names would become
    one, and where one is too long for a file system, those that were changed get some letters of their hash.
    """
    folded = {name: _folded(name) for name in names}
    owners: dict[str, int] = {}
    for key in folded.values():
        owners[key] = owners.get(key, 0) + 1
    return {
        name: key if (key == name or owners[key] == 1) and len(key.encode()) <= LONGEST_KEY else _marked(name, key)
        for name, key in folded.items()
    }


def _folded(name: str) -> str:
    letters: list[str] = []
    for letter in composed(name).replace("/", "__"):
        kept = letter in "._-" or unicodedata.category(letter)[0] in "LMN"
        if kept or letters[-1:] != ["\0"]:
            letters.append(letter if kept else "\0")
    return "".join(letters).replace("\0", "_")


def _marked(name: str, key: str) -> str:
    mark = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    short = key.encode()[: LONGEST_KEY - 9].decode(errors="ignore")
    return f"{short}_{mark}"
