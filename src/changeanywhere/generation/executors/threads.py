"""Shards on threads of this process: while the files of one are written, the next one is read and painted."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from changeanywhere.generation.leases import Leases

WORKERS = 2
WAIT = 0.2  # seconds between two looks at shards that others hold


class ThreadExecutor:
    """See :class:`Executor`."""

    def __init__(self, workers: int = WORKERS) -> None:
        self._workers = workers

    def run(
        self,
        shards: Sequence[int],
        work: Callable[[int], None],
        is_done: Callable[[int], bool],
        leases: Leases,
        stop: threading.Event,
    ) -> None:
        """See :class:`Executor`."""
        waiting, running = deque(shards), set[Future[None]]()
        others: list[int] = []

        def one(number: int) -> None:
            try:
                if not is_done(number):  # another process may have finished it between two looks
                    work(number)
            finally:
                leases.release(str(number))

        with ThreadPoolExecutor(self._workers) as pool, leases.renewed():
            try:
                while (waiting or running or others) and not stop.is_set():
                    while waiting and len(running) < self._workers:
                        number = waiting.popleft()
                        if leases.claim(str(number)):
                            running.add(pool.submit(one, number))
                        elif not is_done(number):
                            others.append(number)
                    if running:
                        finished, running = wait(running, timeout=WAIT, return_when=FIRST_COMPLETED)
                        for future in finished:
                            future.result()
                    elif others:  # theirs; if their process dies, ours
                        time.sleep(WAIT)
                        waiting, others = deque(number for number in others if not is_done(number)), []
            except BaseException:
                stop.set()
                raise
            for future in running:
                future.result()
        if stop.is_set():
            raise KeyboardInterrupt
