"""How far long work has come: passed in by whoever shows it, never made deep inside."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from changeanywhere.terminal import escape_streams, manner, raw, say_event
from changeanywhere.text import one_line

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how many are done, how many there are), from any thread.

What stands behind two spaces may change from call to call: ``denoiser  loss 0.0939``.
"""

EVENT_SECONDS = 0.5
"""Between two lines of JSON on one kind of work."""


def silent(what: str, done: int, total: int) -> None:
    """A :data:`Progress` that nobody looks at."""


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """As the command was asked to show it: bars, lines of JSON, or not at all."""
    how = manner()
    if how.quiet or how.progress == "none":
        yield silent
    elif how.progress == "json":
        yield _Events()
    else:
        with progress_bars() as show:
            yield show


class _Events:
    """``{"event": "progress", "what": …, "note": …, "done": 3, "total": 16, "seconds": 1.5}``, twice a second."""

    def __init__(self) -> None:
        self._lock, self._started = threading.Lock(), time.perf_counter()
        self._said: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        name, _, note = what.partition("  ")
        with self._lock:  # lines of several threads stay apart
            seconds = time.perf_counter() - self._started
            if done < total and seconds < self._said.get(name, -EVENT_SECONDS) + EVENT_SECONDS:
                return
            self._said[name] = seconds
            say_event("progress", what=name, note=note.strip(), done=done, total=total, seconds=round(seconds, 2))


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """The bars of the command line, on standard error: description, rate, counts, elapsed and remaining time."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Bars(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(file=raw(sys.stderr)))
    begun: dict[str, tuple[Any, float, int]] = {}

    def show(what: str, done: int, total: int) -> None:
        if not begun:
            bars.start()
            escape_streams()  # of those that now print above the bars
        what = escape(one_line(what))
        name = what.split("  ")[0]
        if name not in begun:
            begun[name] = (bars.add_task(what, total=total, completed=done), time.perf_counter(), done)
        task, started, first = begun[name]
        if bars.tasks[task].finished and done < bars.tasks[task].completed:  # the same kind of work begins again
            bars.reset(task)
            started, first = time.perf_counter(), done
            begun[name] = (task, started, first)
        rate = (done - first) / max(time.perf_counter() - started, 1e-9)
        described = f"{what}  {rate:.2f}/s" if done > first else what
        bars.update(task, completed=done, total=total, description=described)

    before = sys.stdout, sys.stderr
    try:
        yield show
    finally:
        if begun:  # a bar that never began leaves no line
            bars.stop()
            sys.stdout, sys.stderr = before
