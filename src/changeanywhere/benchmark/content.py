"""Pairs by all bytes of their files. ``content_hash`` takes images by their sizes, since sets may be large; but images
without compression have one size whatever they show, and cells stand for years.

Images are read once: a set is known again by names, sizes and times of its images (OUT/images.json), as a build tool
looks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from changeanywhere.documents import DocumentError, read_json_object
from changeanywhere.errors import ConfigError
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.pairs.unlabelled import UnlabelledPairs
from changeanywhere.storage import atomic_write, file_hash

FILE = "images.json"
KIND = "bytes:"
"""What a hash of this kind begins with; earlier editions noted ``content_hash`` as it is."""
Facts = tuple[str, int, int, int]
"""Path, size, and when content and file itself were changed (ns): a copy may keep the first time, never the second."""


class ContentHashes:
    """Hashes of pairs, with what a benchmark in ``out`` has read before."""

    def __init__(self, out: Path) -> None:
        self._file = out / FILE
        self._read: dict[Facts, str] = {}

    def of(self, pairs: PairDataset) -> str:
        """``content_hash`` and the bytes of all images: :data:`KIND` and 16 hexadecimal digits."""
        return self._of(pairs.content_hash(), [pairs])

    def of_unlabelled(self, pairs: UnlabelledPairs) -> str:
        """:meth:`of` pairs without labels."""
        return self._of(pairs.content_hash(), pairs.sets)

    def _of(self, content: str, sets: Iterable[PairDataset]) -> str:
        files = [file for pairs in sets for number in range(len(pairs)) for file in pairs.images_of(number)]
        return KIND + hashlib.sha256(f"{content} {self._of_images(files)}".encode()).hexdigest()[:16]

    def _of_images(self, files: list[Path]) -> str:
        facts = [facts_of(file) for file in files]
        state = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        known = self._before()
        if state not in known:
            digest = hashlib.sha256()
            for file, each in zip(files, facts, strict=True):
                if each not in self._read:  # parts of a set are asked for, too
                    self._read[each] = _hash_of(file)
                digest.update(self._read[each].encode())
            known[state] = digest.hexdigest()
            atomic_write(self._file, (json.dumps(self._before() | known, indent=1) + "\n").encode())
        return known[state]

    def _before(self) -> dict[str, str]:
        try:
            found = read_json_object(self._file)
        except (OSError, DocumentError):  # nothing there, or nothing that can be believed
            return {}
        return {state: digest for state, digest in found.items() if isinstance(digest, str)}


def differing(noted: Mapping[str, Any], note: Mapping[str, Any], sized: Callable[[], str]) -> str:
    """What a pre-training with ``noted`` has other than ``note`` says, in words; "" for nothing.

    ``sized`` gives the hash of its pairs as earlier editions noted it. They noted neither the classes nor the backbone,
    and are believed.
    """
    before, now = dict(noted), dict(note)
    if not str(before.get("pairs")).startswith(KIND):
        now["pairs"] = sized()
    if now["backbone"] is not None and before.get("backbone") == now["backbone"]:  # wherever its file lies
        before["recipe"], now["recipe"] = ({**each["recipe"], "backbone_weights": None} for each in (before, now))
    told = {"backbone": "another backbone", "classes": "other classes", "pairs": "other pairs"}
    other = [part for part in (*told, "recipe") if part in before or part not in ("backbone", "classes")]
    return next((told.get(part, "other settings") for part in other if before.get(part) != now[part]), "")


def facts_of(file: Path) -> Facts:
    """What a file is known again by, without reading it."""
    facts = file.stat()
    return str(file), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _hash_of(file: Path) -> str:
    try:
        return file_hash(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
