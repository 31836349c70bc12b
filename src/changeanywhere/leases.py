"""Who works on what: a small object per shard, or one per training, so that several processes know of each other.

A lease is no lock: what it guards (a shard, the plan) is written whole and has the same bytes whoever writes it, so the
worst that a lost race can do is work done twice. A lease whose process is dead is taken over at once on the same
machine; one of another machine (or of this one before it was started anew) when it has not been renewed for
:data:`EXPIRES_AFTER` seconds of the observer's clock. Of several who take it over, one gets it.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from changeanywhere.documents import parse_json
from changeanywhere.errors import OutputError
from changeanywhere.machine import read_file, this_machine
from changeanywhere.storage import Store, content_hash, process_is_alive
from changeanywhere.terminal import say

EXPIRES_AFTER = 120.0
"""Seconds without a renewal after which another machine's lease is nobody's."""
RENEWED_EVERY = 30.0
"""Seconds between two renewals."""
POLL = 1.0
"""Seconds between two looks at another machine's lease."""
TOLD_AFTER = 5.0
"""Seconds of waiting after which it is said what is waited for."""

_seen: dict[str, tuple[bytes, float]] = {}
"""Leases of others, by their place: what stood there, and since when, as this process has seen it. Longer than a
:class:`Leases` lasts, of which there may be one for each look."""


@dataclass
class _Held:
    """A lease of ours. Each claim has a token of its own: one that is claimed again is no lease that never moved."""

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    renewals: int = 0

    def content(self) -> bytes:
        own = os.getpid()
        holder = {"machine": this_machine(), "pid": own, "started": _start_of(own), "token": self.token}
        return json.dumps(holder | {"renewals": self.renewals}).encode()

    def wrote(self, content: bytes | None) -> bool:
        """Whether ``content`` is of this very claim."""
        holder = _parsed(content)
        return holder is not None and holder.get("token") == self.token


class Leases:
    """The leases of one process on one set."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()

    def claim(self, name: str) -> bool:
        """Take the lease ``name``; False if somebody who may be alive has it."""
        held = _Held()
        content = held.content()
        if not self._store.put_new(_file(name), content) and not self._take_over(name, content):
            return False
        with self._lock:
            self._held[name] = held
        return True

    def release(self, name: str) -> None:
        """Give the lease ``name`` back, if it is ours, and still ours."""
        with self._lock:
            held = self._held.pop(name, None)
            if held is not None and held.wrote(self._get(name)):
                self._store.delete(_file(name))

    def claim_alone(self, name: str) -> str | None:
        """Take the lease ``name``, or say who has it. One of this process is taken over: who had it is not at work.

        Where another machine has it, this waits until it is renewed (somebody is at work) or expires.
        """
        before: bytes | None = None
        waits = Waiting()
        while not self.claim(name):
            content = self._get(name)
            if content is None:  # released this moment
                continue
            holder = _parsed(content) or {}
            if _is_here(holder) and holder.get("pid") == os.getpid():
                self._store.delete(_file(name))
            elif _is_here(holder) or before not in (None, content):
                return _told(holder)
            else:
                before = content
                waits.look(partial(self.told, name))
                time.sleep(POLL)
        return None

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew all that are held, every :data:`RENEWED_EVERY` seconds, until the context ends; then give them back.

        A renewal that cannot be written (a full disk, a service that is away) is made up for by the next; whoever holds
        the lease writes to the same place, and says what is wrong with it. One that somebody has taken over (this
        process was stopped for longer than a lease lasts) is theirs.
        """
        with self._renewing():
            try:
                yield
            finally:
                for name in list(self._held):
                    self.release(name)

    @contextmanager
    def _renewing(self) -> Iterator[None]:
        over = threading.Event()

        def renew() -> None:
            while not over.wait(RENEWED_EVERY):
                with self._lock:
                    for name, held in list(self._held.items()):
                        with suppress(OutputError, OSError):
                            self._renew(name, held)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _renew(self, name: str, held: _Held) -> None:
        held.renewals += 1
        there = self._get(name)
        if there is None:
            self._store.put_new(_file(name), held.content())
        elif held.wrote(there):
            self._store.put(_file(name), held.content())
        else:
            del self._held[name]

    @contextmanager
    def waited_for(self, name: str, done: Callable[[], bool]) -> Iterator[bool]:
        """Hold ``name`` (True), renewed while the context lasts, or wait until another process is ``done`` with what it
        guards (False)."""
        waits = Waiting()
        while not self.claim(name):
            if done():
                yield False
                return
            waits.look(partial(self.told, name))
            time.sleep(0.1)
        with self._renewing():
            try:
                yield True
            finally:
                self.release(name)

    def told(self, name: str) -> str:
        """Who has the lease ``name``, and where it lies, in words for those who wait."""
        who = _told(_parsed(self._get(name)) or {})
        expires = f"a lease that is not renewed for {EXPIRES_AFTER:.0f} s is taken over"
        return f"{self._store.describe(_file(name))}: waiting for {who}, which has this lease; {expires}"

    def others(self) -> list[str]:
        """Names of the leases that somebody has who may be alive, but for what this object holds."""
        names = (PurePosixPath(file).stem for file in self._store.list("leases"))
        there = {name: self._get(name) for name in names if name not in self._held}
        return [name for name, left in there.items() if left is not None and not self._is_abandoned(name, left)]

    def sweep(self) -> None:
        """Delete leases that dead processes left behind."""
        for file in self._store.list("leases"):
            name = PurePosixPath(file).stem
            if file == _file(name):
                self._take_over(name, None)

    def _take_over(self, name: str, content: bytes | None) -> bool:
        """Put ``content`` in the place of a lease that is abandoned (None: leave nothing there); whether that was done.

        Between a look and what follows from it another process may have taken the lease over. So whoever does has, for
        that moment, a lease on the lease that was looked at, and looks again.
        """
        left = self._get(name)
        if left is None:  # released this moment
            if content is None or self._store.put_new(_file(name), content):
                return content is not None
            left = self._get(name)  # None once more: a link to nothing
        if left is not None and not self._is_abandoned(name, left):
            return False
        guard = f"{name}.{content_hash(left or b'')[:12]}"
        if not self._store.put_new(_file(guard), _Held().content()):
            theirs = self._get(guard)
            if theirs is not None and self._is_abandoned(guard, theirs):  # it died at it
                self._store.delete(_file(guard))
            return False
        try:
            if self._get(name) != left:
                return False
            if content is None:
                self._store.delete(_file(name))
            else:
                self._store.put(_file(name), content)
            _seen.pop(self._store.describe(_file(name)), None)
            return True
        finally:
            self._store.delete(_file(guard))

    def _is_abandoned(self, name: str, content: bytes) -> bool:
        now, place = time.monotonic(), self._store.describe(_file(name))
        before, since = _seen.setdefault(place, (content, now))
        if before != content:
            _seen[place] = (content, now)
            since = now
        holder = _parsed(content)
        if holder is None:
            return True  # leases are put whole: what is none (a link to somebody's file) is nobody's
        if _is_here(holder) and not _is_running(holder["pid"], holder["started"]):
            return True
        return now - since > EXPIRES_AFTER

    def _get(self, name: str) -> bytes | None:
        try:
            return self._store.get(_file(name))
        except FileNotFoundError:
            return None


class Waiting:
    """Says once what is waited for, after :data:`TOLD_AFTER` seconds of it."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._said = False

    def look(self, what: str | Callable[[], str]) -> None:
        """Another look was in vain; ``what`` is, or gives, what is said of it."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if not self._said and now - self._since >= TOLD_AFTER:
            self._said = True
            say(what if isinstance(what, str) else what(), error=True)


def _parsed(content: bytes | None) -> dict[str, Any] | None:
    """What a lease says; None of what is none."""
    try:
        holder: Any = None if content is None else parse_json(content)
        if isinstance(holder, dict) and {"machine", "pid", "started"} <= holder.keys():
            return holder | {"pid": int(holder["pid"])}
    except (ValueError, TypeError):
        return None
    return None


def _is_here(holder: dict[str, Any]) -> bool:
    return bool(holder.get("machine") == this_machine())


def _told(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', 0)} on {str(holder.get('machine', '')).partition(' ')[0]}"


def _start_of(pid: int) -> str:
    """When a process began, as the kernel counts it (numbers are used again); "" where that cannot be told, "ended" for
    one that is dead and whose parent has not noticed."""
    parts = read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if len(parts) < 20 else "ended" if parts[0] in "ZX" else parts[19]


def _is_running(pid: int, started: str) -> bool:
    return process_is_alive(str(pid)) and _start_of(pid) == started


def _file(name: str) -> str:
    return f"leases/{name}.json"
