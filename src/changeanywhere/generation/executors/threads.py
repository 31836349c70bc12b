"""Shards on threads of this process: while the files of one are written, the next one is read and painted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from changeanywhere.generation.executors import Work
from changeanywhere.leases import Leases

WORKERS = 2
SERVED = 0.02  # seconds between two looks at what is finished, while nothing is asked for
WAIT = 0.2  # seconds between two looks at shards that others hold


class ThreadExecutor:
    """See :class:`Executor`."""

    def __init__(self, workers: int = WORKERS) -> None:
        self._workers = workers

    def run(self, shards: Sequence[int], work: Work, leases: Leases, stop: threading.Event) -> None:
        """See :class:`Executor`."""
        waiting, others = deque(shards), list[int]()
        running = set[Future[None]]()

        def one(number: int) -> None:
            try:
                if not work.is_done(number):  # another process may have finished it between two looks
                    work.make(number)
            finally:
                leases.release(str(number))

        with ThreadPoolExecutor(self._workers) as pool, leases.renewed():
            try:
                while running or ((waiting or others) and not stop.is_set()):
                    while waiting and len(running) < self._workers and not stop.is_set():
                        number = waiting.popleft()
                        if leases.claim(str(number)):
                            running.add(pool.submit(one, number))
                        elif not work.is_done(number):
                            others.append(number)
                    if running:
                        work.serve(SERVED)
                        for future in [future for future in running if future.done()]:
                            running.remove(future)
                            future.result()
                    elif others and not stop.wait(WAIT):  # theirs; if their process dies, ours
                        waiting, others = deque(number for number in others if not work.is_done(number)), []
            except BaseException:
                stop.set()
                work.close()
                raise
        if stop.is_set():
            raise KeyboardInterrupt
