"""Who runs the shards: threads of this process; a cluster joins by keeping :class:`Executor`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from changeanywhere.generation.leases import Leases


class Executor(Protocol):
    """Runs work on shards that several processes share."""

    def run(
        self,
        shards: Sequence[int],
        work: Callable[[int], None],
        is_done: Callable[[int], bool],
        leases: Leases,
        stop: threading.Event,
    ) -> None:
        """Return when every one of ``shards`` is done, by this process (``work``) or by another.

        ``work`` makes a shard whole; of each shard, the one who has its lease does it. After ``stop`` no shard is
        begun, those begun are finished, and :class:`KeyboardInterrupt` is raised. What ``work`` raises ends the run in
        the same way and is raised.
        """
        ...
