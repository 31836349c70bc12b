"""Who works on what: a small object per shard, or one per training, so that several processes know of each other.

A lease is no lock: what it guards (a shard, the plan) is written whole and has the same bytes whoever writes it, so the
worst that a lost race can do is work done twice. A lease whose process is dead is taken over at once on the same
machine; one of another machine when it has not been renewed for :data:`EXPIRES_AFTER` seconds of the observer's clock.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any

from changeanywhere.documents import parse_json
from changeanywhere.errors import OutputError
from changeanywhere.machine import read_file, this_machine
from changeanywhere.storage import Store, process_is_alive

EXPIRES_AFTER = 120.0
"""Seconds without a renewal after which another machine's lease is nobody's."""
RENEWED_EVERY = 30.0
"""Seconds between two renewals."""
POLL = 1.0
"""Seconds between two looks at another machine's lease."""


class Leases:
    """The leases of one process on one set."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._token = uuid.uuid4().hex
        self._held: dict[str, int] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def claim(self, name: str) -> bool:
        """Take the lease ``name``; False if somebody who may be alive has it."""
        file = _file(name)
        if not self._store.put_new(file, self._content(0)):
            if not self._is_abandoned(file):
                return False
            self._store.delete(file)
            if not self._store.put_new(file, self._content(0)):
                return False
        with self._lock:
            self._held[name] = 0
        return True

    def release(self, name: str) -> None:
        """Give the lease ``name`` back, if it is ours."""
        with self._lock:
            if self._held.pop(name, None) is not None:
                self._store.delete(_file(name))

    def claim_alone(self, name: str) -> str | None:
        """Take the lease ``name``, or say who has it. One of this process is taken over: who had it is not at work.

        Where another machine has it, this waits until it is renewed (somebody is at work) or expires.
        """
        file = _file(name)
        before: bytes | None = None
        while not self.claim(name):
            try:
                content = self._store.get(file)
                holder: Any = parse_json(content)
                machine, pid = str(holder["machine"]), int(holder["pid"])
            except FileNotFoundError:  # released this moment
                continue
            except (ValueError, KeyError, TypeError):
                content, machine, pid = b"", "", 0
            if machine == this_machine() and pid == os.getpid():
                self._store.delete(file)
            elif machine == this_machine() or before not in (None, content):
                return f"process {pid} on {machine.partition(' ')[0]}"
            else:
                before = content
                time.sleep(POLL)
        return None

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew all that are held, every :data:`RENEWED_EVERY` seconds, until the context ends.

        A renewal that cannot be written (a full disk, a service that is away) is made up for by the next; whoever holds
        the lease writes to the same place, and says what is wrong with it.
        """
        over = threading.Event()

        def renew() -> None:
            while not over.wait(RENEWED_EVERY):
                with self._lock:
                    for name in self._held:
                        self._held[name] += 1
                        with suppress(OutputError):
                            self._store.put(_file(name), self._content(self._held[name]))

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            for name in list(self._held):
                self.release(name)

    @contextmanager
    def waited_for(self, name: str, done: Callable[[], bool]) -> Iterator[bool]:
        """Hold ``name`` (True), or wait until another process is ``done`` with what it guards (False)."""
        while not self.claim(name):
            if done():
                yield False
                return
            time.sleep(0.1)
        try:
            yield True
        finally:
            self.release(name)

    def sweep(self) -> None:
        """Delete leases that dead processes left behind."""
        for file in self._store.list("leases"):
            if file == _file(PurePosixPath(file).stem) and self._is_abandoned(file):
                self._store.delete(file)

    def _is_abandoned(self, file: str) -> bool:
        try:
            content = self._store.get(file)
        except FileNotFoundError:  # released this moment
            return True
        now = time.monotonic()
        before, since = self._seen.setdefault(file, (content, now))
        if before != content:
            self._seen[file] = (content, now)
            return False
        try:
            holder: Any = parse_json(content)
            here = holder["machine"] == this_machine()
            if here and not _is_running(holder["pid"], holder["started"]):
                return True
        except (ValueError, KeyError, TypeError):
            return True  # leases are put whole: what is none (a link to somebody's file) is nobody's
        return now - since > EXPIRES_AFTER

    def _content(self, renewals: int) -> bytes:
        own = os.getpid()
        holder = {"machine": this_machine(), "pid": own, "started": _start_of(own), "token": self._token}
        return json.dumps(holder | {"renewals": renewals}).encode()


def _start_of(pid: int) -> str:
    """When a process began, as the kernel counts it (numbers are used again); "" where that cannot be told, "ended" for
    one that is dead and whose parent has not noticed."""
    parts = read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if len(parts) < 20 else "ended" if parts[0] in "ZX" else parts[19]


def _is_running(pid: int, started: str) -> bool:
    return process_is_alive(str(pid)) and _start_of(pid) == started


def _file(name: str) -> str:
    return f"leases/{name}.json"
