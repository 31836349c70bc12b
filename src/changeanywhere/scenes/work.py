"""Units of a scene's work on disk: what a killed run had computed, the next one takes up."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor

import numpy as np
import torch
from torch import Tensor

from changeanywhere.generation.lanes import ahead
from changeanywhere.progress import Progress
from changeanywhere.storage import LocalStore

DIGEST = 16  # bytes
COUNTED = ("encode", "held", "tail", "decode", "patch")
"""Units that progress counts, by the beginning of their names; others are parts of these."""


class Parts:
    """Arrays by name, each with a hash of its bytes: a torn file is as good as none."""

    def __init__(self, store: LocalStore, folder: str) -> None:
        self._store, self._folder = store, folder

    def get(self, name: str) -> Tensor | None:
        """The array; None where there is none, or a damaged one."""
        try:
            content = self._store.get(self._place(name))
        except OSError:
            return None
        digest, body = content[:DIGEST], content[DIGEST:]
        if hashlib.blake2b(body, digest_size=DIGEST).digest() != digest:
            return None
        return torch.from_numpy(np.load(io.BytesIO(body), allow_pickle=False))

    def put(self, name: str, tensor: Tensor) -> None:
        """Keep an array of a dtype that numpy has."""
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(tensor.numpy()), allow_pickle=False)
        body = buffer.getvalue()
        self._store.put(self._place(name), hashlib.blake2b(body, digest_size=DIGEST).digest() + body)

    def _place(self, name: str) -> str:
        return f"{self._folder}/{name}.part.npy"


class DiskRunner:
    """A :class:`~changeanywhere.diffusion.canvas.Runner` that keeps results in :class:`Parts`.

    ``lanes``: threads, and how many of them, that do units at once; what is a part of a unit is done by its thread.
    After ``stop`` no further unit is begun: :class:`KeyboardInterrupt`.
    """

    def __init__(
        self,
        parts: Parts,
        stop: threading.Event,
        progress: Progress,
        total: int,
        lanes: tuple[Executor, int] | None = None,
    ) -> None:
        self._parts, self._stop, self._progress = parts, stop, progress
        self._total, self._seen, self._lock = total, set[str](), threading.Lock()
        self._lanes, self._within = lanes, threading.local()

    def __call__(self, units: Sequence[tuple[str, Callable[[], Tensor]]]) -> Iterator[Tensor]:
        """See :class:`Runner`."""
        if self._lanes is None or hasattr(self._within, "unit"):
            return map(self._done, units)
        pool, count = self._lanes
        return ahead(pool, self._alone, units, count - 1)

    def _alone(self, unit: tuple[str, Callable[[], Tensor]]) -> Tensor:
        self._within.unit = unit[0]
        try:
            with torch.no_grad():  # a thread's own
                return self._done(unit)
        finally:
            del self._within.unit

    def _done(self, unit: tuple[str, Callable[[], Tensor]]) -> Tensor:
        name, compute = unit
        result = self._parts.get(name)
        if result is None:
            if self._stop.is_set():
                raise KeyboardInterrupt
            result = compute()
            self._parts.put(name, result)
        if name.startswith(COUNTED):
            with self._lock:
                self._seen.add(name)
                self._progress("painting windows", min(len(self._seen), self._total), self._total)
        return result
