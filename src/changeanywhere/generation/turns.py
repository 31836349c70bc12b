"""One device, several shards at once: batches take turns, those of the first shard before those of the next."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from changeanywhere.painters.base import Batch, Painter, Painting


class Turns:
    """A painter that several threads share. Its device is used by one at a time, the lowest shard first: a shard's last
    files are written while the next shard is painted, and a run that is killed has few shards begun."""

    def __init__(self, painter: Painter) -> None:
        self._painter = painter
        self._condition = threading.Condition()
        self._waiting: list[int] = []
        self._busy = False

    def of(self, shard: int) -> Painter:
        """The painter as the thread of ``shard`` sees it."""
        return _Turn(self, shard)

    @contextmanager
    def taken(self, shard: int) -> Iterator[Painter]:
        """Hold the device."""
        with self._condition:
            self._waiting.append(shard)
            self._condition.wait_for(lambda: not self._busy and shard == min(self._waiting))
            self._waiting.remove(shard)
            self._busy = True
        try:
            yield self._painter
        finally:
            with self._condition:
                self._busy = False
                self._condition.notify_all()


class _Turn:
    def __init__(self, turns: Turns, shard: int) -> None:
        self._turns, self._shard = turns, shard

    def paint(self, batch: Batch) -> list[Painting]:
        with self._turns.taken(self._shard) as painter:
            return painter.paint(batch)
