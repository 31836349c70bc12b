"""Whether changes find a place, asked of many tiles at once: what planning computes. No torch here.

An answer follows from the tile, the request and the pair's seed alone, so that processes may share the questions; they
come back in the order in which they were asked.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from subprocess import Popen
from types import TracebackType
from typing import Self

from changeanywhere.errors import ChangeAnywhereError
from changeanywhere.events import EventRequest, simulate
from changeanywhere.generation.channel import Channel, GoneError, begin_process, other_end, sendable
from changeanywhere.generation.tiles import Tiles
from changeanywhere.machine import usable_processors
from changeanywhere.seeds import pair_seed

MOST = 14
WORTH = 256
"""Questions for which a process is worth its start: an answer takes some milliseconds, the start a second."""
TOGETHER = 32
"""Questions that a process is asked at once."""


@dataclass(frozen=True)
class Question:
    """Has the tile ``index`` a place for ``request`` in round ``round_number``?"""

    place: int
    """Of the tile in the order of planning."""
    index: int
    round_number: int
    request: EventRequest


def is_feasible(tiles: Tiles, seed: int, asked: Question) -> bool:
    """The answer, by trying it."""
    source, events = tiles.source, tiles.events
    number = pair_seed(seed, source.items[asked.index].key, asked.round_number)
    mask, context = source.read_mask(asked.index), tiles.context_of(asked.index)
    options = events.options
    return simulate(mask, source.legend, number, options=options, context=context, request=asked.request) is not None


class Planners:
    """Processes that answer; none where there are too few questions for them, or one processor."""

    def __init__(self, tiles: Tiles, seed: int, num_questions: int) -> None:
        count = min(usable_processors(), MOST, num_questions // WORTH)
        self._tiles, self._seed, self._count = tiles, seed, count if count > 1 else 0
        self._idle: queue.SimpleQueue[Channel] = queue.SimpleQueue()
        self.processes: list[Popen[bytes]] = []

    def __enter__(self) -> Self:
        for _ in range(self._count):
            process, channel = begin_process(__name__, (self._tiles, self._seed))
            self.processes.append(process)
            self._idle.put(channel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End the processes: each leaves when nobody is at the other end."""
        while not self._idle.empty():
            self._idle.get().close()
        for process in self.processes:
            process.wait()

    def answered(self, questions: Iterable[Question]) -> Iterator[tuple[Question, bool]]:
        """Every question with its answer, in their order; few are asked ahead."""
        if not self._count:
            yield from ((asked, is_feasible(self._tiles, self._seed, asked)) for asked in questions)
            return
        pending: deque[tuple[tuple[Question, ...], Future[list[bool]]]] = deque()
        with ThreadPoolExecutor(self._count) as pool:
            left = iter(questions)
            while some := tuple(islice(left, TOGETHER)):
                pending.append((some, pool.submit(self._ask, some)))
                if len(pending) > 2 * self._count:
                    yield from _oldest(pending)
            while pending:
                yield from _oldest(pending)

    def _ask(self, some: tuple[Question, ...]) -> list[bool]:
        channel = self._idle.get()
        try:
            channel.send(some)
            answer = channel.receive()
        except GoneError as error:
            raise ChangeAnywhereError("a process that planned has ended (killed, or out of memory?)") from error
        finally:
            self._idle.put(channel)
        if isinstance(answer, BaseException):
            raise answer
        found: list[bool] = answer
        return found


def _oldest(pending: deque[tuple[tuple[Question, ...], Future[list[bool]]]]) -> Iterator[tuple[Question, bool]]:
    some, answers = pending.popleft()
    return zip(some, answers.result(), strict=True)


def main(descriptor: str) -> None:
    """What a process does: answers for every few questions that come, until nobody is at the other end."""
    channel = other_end(descriptor)
    try:
        tiles, seed = channel.receive()
        while True:
            some = channel.receive()
            try:
                channel.send([is_feasible(tiles, seed, asked) for asked in some])
            except GoneError:
                raise
            except Exception as error:  # whoever asked deals with it
                channel.send(sendable(error))
    except GoneError:
        return
