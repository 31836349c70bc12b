"""How long runs end on SIGTERM, which cluster schedulers send before they kill, and trainings on Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from changeanywhere.terminal import say_lines

REPEATED_WITHIN = 10.0


REPEATED_KEY = 1.0


@contextmanager
def polite_stop(on_key: bool = False) -> Iterator[threading.Event]:
    """Set by the first SIGTERM; another one, :data:`REPEATED_WITHIN` seconds later or more, interrupts at once.

    Launchers hand on the signal that their processes got from the scheduler already. ``on_key``: Ctrl-C does the same,
    and interrupts when it is pressed again, :data:`REPEATED_KEY` seconds later or more. Only the main thread hears
    signals.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    first: list[float] = []

    def handle(number: int, frame: Any) -> None:
        first.append(time.monotonic())
        if first[-1] - first[0] >= (REPEATED_KEY if number == signal.SIGINT else REPEATED_WITHIN):
            raise KeyboardInterrupt
        if number == signal.SIGINT and not stop.is_set():
            say_lines("\nstopping with a checkpoint after this step; Ctrl-C again: at once, without", error=True)
        stop.set()

    numbers = [signal.SIGTERM, *([signal.SIGINT] if on_key else [])]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
