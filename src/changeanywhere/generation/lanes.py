"""How a job's CPU threads are laid out: some batches at once, each on its share of them.

A window of a latent is small work for a convolution: two threads on one batch take three quarters of the time of one,
two batches of one thread each take half.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TypeVar

from changeanywhere.generation.job import Job
from changeanywhere.painters.registry import OWN, find_painter

MOST = 4
"""Batches at once: each has its own memory."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lanes:
    """``count`` batches at once, ``threads`` of the CPU for each."""

    count: int
    threads: int


def lanes_of(job: Job) -> Lanes:
    """Those of a job: they follow from what it froze, since sums depend on the threads of a batch in the last bits.

    On a GPU one batch is painted after the other, and painters of other packages are never asked for two at once;
    neither is a compiled network, which is compiled by whoever calls it first.
    """
    if job.machine is None or job.painter is None:
        return Lanes(1, 1)
    threads, method = job.machine.num_threads, job.painter.method
    computes = method in OWN and "num_threads" in find_painter(method).reads
    if job.machine.device != "cpu" or job.machine.compile or not computes:
        return Lanes(1, threads)
    return laid_out(threads)


def laid_out(threads: int) -> Lanes:
    """So many threads of a CPU."""
    count = max(range(min(threads, MOST), 1, -1), key=lambda lanes: lanes * (threads // lanes), default=1)
    return Lanes(count, threads // count)


def ahead(executor: Executor, work: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """``work`` of every item, in order, begun ``depth`` items before it is asked for; what is not begun when nobody
    asks any more never is."""
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(work, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
