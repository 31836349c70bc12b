"""Whether changes find a place, asked of many tiles at once: what planning computes. No torch here.

An answer follows from the tile, the request and the pair's seed alone, so that processes may share the questions; they
come back in the order in which they were asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from changeanywhere.events import EventRequest, simulate
from changeanywhere.generation.channel import GoneError, Pool, other_end, sendable
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


class Planners(Pool):
    """Processes that answer; none where there are too few questions for them, or one processor."""

    def __init__(self, tiles: Tiles, seed: int, num_questions: int) -> None:
        count = min(usable_processors(), MOST, num_questions // WORTH)
        self._tiles, self._seed = tiles, seed
        super().__init__(__name__, (tiles, seed), count if count > 1 else 0)

    def answered(self, questions: Iterable[Question]) -> Iterator[tuple[Question, bool]]:
        """Every question with its answer, in their order; few are asked ahead."""
        if not self.processes:
            yield from ((asked, is_feasible(self._tiles, self._seed, asked)) for asked in questions)
            return
        pending: deque[tuple[tuple[Question, ...], Future[list[bool]]]] = deque()
        with ThreadPoolExecutor(len(self.processes)) as pool:
            left = iter(questions)
            while some := tuple(islice(left, TOGETHER)):
                pending.append((some, pool.submit(self._ask, some)))
                if len(pending) > 2 * len(self.processes):
                    yield from _oldest(pending)
            while pending:
                yield from _oldest(pending)

    def _ask(self, some: tuple[Question, ...]) -> list[bool]:
        with self.lent("a process that planned") as channel:
            channel.send(some)
            answer = channel.receive()
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
