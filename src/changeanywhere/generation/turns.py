"""One device, several shards at once: batches take turns, those of the first shard before those of the next.

They are painted by the threads that serve, whichever threads ask: OpenMP keeps a team of threads for every thread that
computes, and two teams on one processor wait for each other asleep instead of awake. On the CPU as many serve as the
job has :mod:`lanes <changeanywhere.generation.lanes>`, for a GPU two.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import count

from changeanywhere.painters.base import Batch, Painter, Painting

LOOK = 0.02  # seconds after which a thread that serves looks whether it is to end


class ClosedError(Exception):
    """The device is not served any more: the run has ended."""


class Turns:
    """A painter that several threads share, the lowest shard first: a shard's last files are written while the next
    shard is painted, and a run that is killed has few shards begun."""

    def __init__(self, painter: Painter) -> None:
        self._painter = painter
        self._condition = threading.Condition()
        self._asked: list[tuple[int, int, Batch, Future[list[Painting]]]] = []
        self._order = count()
        self._closed = False

    def of(self, shard: int) -> Painter:
        """The painter as the thread of ``shard`` sees it."""
        return _Turn(self, shard)

    def ask(self, shard: int, batch: Batch) -> Future[list[Painting]]:
        """Have ``batch`` painted when its turn comes."""
        answer: Future[list[Painting]] = Future()
        with self._condition:
            if self._closed:
                raise ClosedError
            heapq.heappush(self._asked, (shard, next(self._order), batch, answer))
            self._condition.notify()
        return answer

    def serve(self, seconds: float) -> None:
        """Paint the next batch in this thread; return without if none is asked for within ``seconds``."""
        with self._condition:
            if not self._condition.wait_for(lambda: bool(self._asked), seconds):
                return
            _, _, batch, answer = heapq.heappop(self._asked)
        try:
            answer.set_result(self._painter.paint(batch))
        except Exception as error:  # whoever asked deals with it
            answer.set_exception(error)
        except BaseException:  # Ctrl-C, in the middle of a batch
            answer.set_exception(ClosedError())
            raise

    @contextmanager
    def served_beside(self, count: int) -> Iterator[None]:
        """``count`` threads more serve: while a GPU computes one batch, the next one is laid before it; on a CPU each
        paints a batch of its own."""
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                self.serve(LOOK)

        beside = [threading.Thread(target=serve, name="serves beside", daemon=True) for _ in range(count)]
        for each in beside:
            each.start()
        try:
            yield
        finally:
            ended.set()
            for each in beside:
                each.join()

    def close(self) -> None:
        """Refuse what is asked and what will be: :class:`ClosedError` for all who wait."""
        with self._condition:
            self._closed = True
            while self._asked:
                heapq.heappop(self._asked)[3].set_exception(ClosedError())


class _Turn:
    def __init__(self, turns: Turns, shard: int) -> None:
        self._turns, self._shard = turns, shard

    def paint(self, batch: Batch) -> list[Painting]:
        return self._turns.ask(self._shard, batch).result()
