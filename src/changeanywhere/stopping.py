"""How long runs end on SIGTERM, which cluster schedulers send before they kill."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REPEATED_WITHIN = 10.0


@contextmanager
def polite_stop() -> Iterator[threading.Event]:
    """Set by the first SIGTERM; another one, :data:`REPEATED_WITHIN` seconds later or more, interrupts at once.

    Launchers hand on the signal that their processes got from the scheduler already. Only the main thread hears
    signals.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    first: list[float] = []

    def handle(number: int, frame: Any) -> None:
        first.append(time.monotonic())
        if first[-1] - first[0] >= REPEATED_WITHIN:
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
