"""One way to the terminal: text of others (names, paths, messages of libraries) shows what it holds and does nothing.

The package prints with ``say`` and ``say_lines``; what libraries print is escaped while a command runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO, cast

from changeanywhere.text import in_a_line, visible

PROGRESS = ("bars", "json", "none")


@dataclass(frozen=True)
class Manner:
    """How a command speaks."""

    progress: str = "bars"
    """One of :data:`PROGRESS`; ``json``: standard error is lines of JSON, for programs."""
    quiet: bool = False
    """Nothing on standard output but what a command was asked to print."""


_manner = [Manner()]
"""The last one counts, in every thread."""


def manner() -> Manner:
    """How the command that runs now speaks."""
    return _manner[-1]


@contextmanager
def speaking(how: Manner) -> Iterator[None]:
    """Until the context ends, :func:`say` and whoever shows progress speak so."""
    _manner.append(how)
    try:
        yield
    finally:
        _manner.pop()


def say(line: object, *, error: bool = False) -> None:
    """A remark: one line on standard output, or on standard error; at once, so that both keep their order."""
    if error and manner().progress == "json":
        say_event("note", message=in_a_line(str(line)))
    elif error or not manner().quiet:
        say_lines(in_a_line(str(line)), error=error)


def say_event(event: str, **content: Any) -> None:
    """One line of JSON on standard error, ``{"event": …}``."""
    say_lines(json.dumps({"event": event, **content}), error=True)


def say_lines(text: str, *, error: bool = False) -> None:
    """What was asked for: text of several lines, in which no name of others has a line break."""
    print(visible(text), file=sys.stderr if error else sys.stdout, flush=True)


class _Escaped:
    """A stream that escapes what is written to it; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.raw = stream

    def write(self, text: str) -> int:
        self.raw.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw(stream: TextIO) -> TextIO:
    """The stream itself, for who draws with a terminal's commands (bars) and escapes the words that go into them."""
    while isinstance(stream, _Escaped):
        stream = stream.raw
    return stream


def escape_streams() -> tuple[TextIO, TextIO]:
    """From now on what is printed, by whom ever, obeys :func:`visible`; returns the streams as they were."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Escaped(raw(stream))) for stream in before)
    return before


@contextmanager
def escaped_streams() -> Iterator[None]:
    """:func:`escape_streams` until the context ends."""
    before = escape_streams()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
