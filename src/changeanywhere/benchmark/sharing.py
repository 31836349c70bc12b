"""Several processes on one benchmark: the same command started again, on this machine or another, shares the work.

What is being trained or scored has a lease in OUT/leases. Nobody waits while holding one, so that nobody waits for
ever: what another process has is left to it, and looked at again when nothing else is left to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from changeanywhere.errors import InUseError
from changeanywhere.leases import Leases
from changeanywhere.storage import LocalStore

POLL = 2.0
"""Seconds between two looks at what other processes have, once nothing else is left."""
FREEZING = "benchmark"
"""The lease of who looks at what a folder was begun with, and writes it: for a moment, in which a lease may be held."""


class BusyError(Exception):
    """Another process is at it; the text says who, and where its lease lies."""


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Hold the lease ``name`` in ``folder``, renewed while the context lasts; :class:`BusyError` where another process
    holds it, or is at work behind it."""
    leases = Leases(LocalStore(folder))
    with leases.renewed():
        if not leases.claim(name):
            raise BusyError(leases.told(name))
        try:
            yield
        except InUseError as error:  # its lease was lost, or it was begun by hand
            raise BusyError(str(error)) from error
    _tidy(folder)


@contextmanager
def freezing(folder: Path) -> Iterator[list[str]]:
    """One process after the other, whatever it asks for; gives what others (and this one, in :func:`alone`) are at in
    ``folder`` meanwhile, by the names of their leases."""
    leases = Leases(LocalStore(folder))
    with leases.waited_for(FREEZING, lambda: False):
        yield leases.others()
    _tidy(folder)


def sweep(*folders: Path) -> None:
    """Delete what dead processes left behind. Of another machine's leases this takes a second look, some time after the
    first."""
    for folder in folders:
        if (folder / "leases").is_dir():
            Leases(LocalStore(folder)).sweep()
            _tidy(folder)


def living(folder: Path) -> list[str]:
    """Names of the leases in ``folder`` of processes that may be alive; nothing is written."""
    return Leases(LocalStore(folder)).others() if (folder / "leases").is_dir() else []


def _tidy(folder: Path) -> None:
    with suppress(OSError):  # others hold leases
        (folder / "leases").rmdir()
