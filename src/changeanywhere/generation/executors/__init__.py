"""Who runs the shards: threads of this process; a cluster joins by keeping :class:`Executor`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from changeanywhere.leases import Leases


@dataclass(frozen=True)
class Work:
    """What is done with a shard, by number."""

    make: Callable[[int], None]
    """Makes it whole."""
    is_done: Callable[[int], bool]
    """Whether it is there, whoever made it."""
    serve: Callable[[float], object]
    """Called again and again in the caller's own thread while shards are made, with the seconds it may wait: where a
    device wants to be used by one thread."""
    close: Callable[[], object]
    """Called where a run ends in an error: what is asked of ``serve`` is refused from here on."""


class Executor(Protocol):
    """Runs work on shards that several processes share."""

    def run(self, shards: Sequence[int], work: Work, leases: Leases, stop: threading.Event) -> None:
        """Return when every one of ``shards`` is done, by this process or by another.

        Of each shard, the one who has its lease makes it. After ``stop`` no shard is begun, those begun are finished,
        and :class:`KeyboardInterrupt` is raised. What ``make`` raises ends the run in the same way and is raised.
        """
        ...
