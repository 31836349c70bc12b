"""How a job's CPU threads are laid out: some batches at once, each on its share of them.

A window of a latent is small work for a convolution: two threads on one batch take three quarters of the time of one,
two batches of one thread each take half.
"""

from __future__ import annotations

from dataclasses import dataclass

from changeanywhere.generation.job import Job
from changeanywhere.painters.registry import OWN, find_painter

MOST = 4
"""Batches at once: each has its own memory."""


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
    if job.machine.device != "cpu" or job.machine.compile or threads == 1 or not computes:
        return Lanes(1, threads)
    count = max(range(min(threads, MOST), 1, -1), key=lambda lanes: lanes * (threads // lanes))
    return Lanes(count, threads // count)
