"""Several processes on one benchmark: the same command started again, on this machine or another, shares the work.

What is being trained or scored has a lease in OUT/leases. Nobody waits while holding one, so that nobody waits for
ever: what another process has is left to it, and looked at again when nothing else is left to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from changeanywhere.leases import Leases
from changeanywhere.storage import LocalStore

POLL = 2.0
"""Seconds between two looks at what other processes have, once nothing else is left."""


class BusyError(Exception):
    """Another process is at it."""


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Hold the lease ``name`` in ``folder``, renewed while the context lasts; :class:`BusyError` where another process
    holds it."""
    leases = Leases(LocalStore(folder))
    with leases.renewed():
        if not leases.claim(name):
            raise BusyError(name)
        yield
    with suppress(OSError):  # others hold leases
        (folder / "leases").rmdir()
