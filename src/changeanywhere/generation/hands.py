"""Processes that do the host's part of shards for one device: read, change, exemplars, finish, write. No torch here.

A device that paints hundreds of pairs a second asks for more than one interpreter can read and write. Each process
here runs :func:`.paint_shard` as a thread of the run would; for its painter it has the other end of a socket, at which
this process paints. Leases, stopping and the order of shards stay where they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from changeanywhere.buckets import store_at
from changeanywhere.generation.channel import Channel, GoneError, Pool, other_end, sendable
from changeanywhere.generation.job import Job
from changeanywhere.generation.plan import load_shard, load_summary
from changeanywhere.generation.shard import StoppedError, paint_shard
from changeanywhere.machine import usable_processors
from changeanywhere.painters.base import Batch, Donors, Painter, Painting, Pixels
from changeanywhere.sample import ChangePlan
from changeanywhere.storage import Store

MOST = 14
"""Processes for one device; more had nothing to do where it was tried."""


def hands_for(job: Job, num_shards: int) -> int:
    """How many processes a job's device needs beside this one; 0: on the CPU, where networks take every processor."""
    if job.machine is None or job.machine.device == "cpu":
        return 0
    return max(0, min(usable_processors() - 1, MOST, num_shards))


@dataclass(frozen=True)
class _Paint:
    """Asks for a batch to be painted; its donors are named by the tiles that they belong to."""

    batch: Batch


@dataclass(frozen=True)
class _Painted:
    """Says how many pairs more are painted."""

    count: int


@dataclass(frozen=True)
class _Ended:
    """A shard is whole, or not because of ``error``."""

    error: BaseException | None


class Hands(Pool):
    """``count`` processes that make shards of a job whose painter is in this process."""

    def __init__(self, job: Job, store: Store, count: int) -> None:
        self._tiles = job.tiles
        super().__init__(__name__, (job, job.tiles, store.describe()), count)

    def make(self, number: int, painter: Painter, progress: Callable[[int], object], stop: threading.Event) -> None:
        """As :func:`.paint_shard`, by the next process that has nothing to do."""
        with self.lent(f"shard {number}: a process that read and wrote it") as channel:
            self._make(channel, number, painter, progress, stop)

    def _make(
        self, channel: Channel, number: int, painter: Painter, progress: Callable[[int], object], stop: threading.Event
    ) -> None:
        channel.send(number)
        begun = False
        while not isinstance(what := channel.receive(), _Ended):
            if isinstance(what, _Painted):
                progress(what.count)
            elif stop.is_set() and not begun:
                channel.send(StoppedError())
            else:
                begun = True
                try:
                    batch = self._with_donors(what.batch)
                    answer: Any = _replies(batch, painter.paint(batch))
                except Exception as error:  # whoever asked deals with it
                    answer = sendable(error)
                channel.send(answer)
        if what.error is not None:
            raise what.error

    def _with_donors(self, batch: Batch) -> Batch:
        tiles = self._tiles
        indices = [tiles.source.index_of(sample.item.key) for sample in batch.samples]
        return replace(batch, donors=[Donors(tiles.source, tiles.fellows(index)) for index in indices])


@dataclass(frozen=True)
class _Reply:
    """A painting, without what whoever asked has already."""

    painting: Painting
    has_plan: bool
    has_first: bool


NO_PIXELS: Pixels = np.empty(0, np.float32)
NO_PLAN = ChangePlan(np.empty((0, 0), np.uint8), np.empty((0, 0), np.bool_), (), 0)


def _replies(batch: Batch, paintings: Sequence[Painting]) -> list[_Reply]:
    replies = []
    for painting in paintings:
        has_plan = painting.plan is not batch.plans[painting.place]
        has_first = not np.may_share_memory(painting.image_t1, batch.images)
        plan, first = painting.plan if has_plan else NO_PLAN, painting.image_t1 if has_first else NO_PIXELS
        replies.append(_Reply(replace(painting, plan=plan, image_t1=first), has_plan, has_first))
    return replies


class _Device:
    """The painter, as a process without one sees it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def paint(self, batch: Batch) -> list[Painting]:
        """See :class:`Painter`."""
        self._channel.send(_Paint(replace(batch, donors=(), memo={})))
        answer = self._channel.receive()
        if isinstance(answer, BaseException):
            raise answer
        paintings = []
        for reply in answer:
            painting: Painting = reply.painting
            if not reply.has_plan:
                painting = replace(painting, plan=batch.plans[painting.place])
            if not reply.has_first:
                painting = replace(painting, image_t1=batch.images[batch.rows[painting.place]])
            paintings.append(painting)
        return paintings

    def painted(self, count: int) -> None:
        """Say that ``count`` pairs more are painted."""
        self._channel.send(_Painted(count))


def main(descriptor: str) -> None:
    """What a process does: a shard for every number that comes, until nobody is at the other end."""
    channel = other_end(descriptor)
    try:
        job, tiles, place = channel.receive()
        job, store = job.opened_with(tiles), store_at(Path(place))
        plan, device = load_summary(store), _Device(channel)
        while True:
            number, error = channel.receive(), None
            try:
                shard = load_shard(store, number, plan)
                paint_shard(job, device, shard, store, progress=device.painted, stop=threading.Event())
            except GoneError:
                raise
            except Exception as raised:  # the run deals with it
                error = raised if isinstance(raised, StoppedError) else sendable(raised)
            channel.send(_Ended(error))
    except GoneError:
        return
