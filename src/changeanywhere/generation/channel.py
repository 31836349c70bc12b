"""Processes beside this one, each at the other end of a socket. No torch here.

Not those of :mod:`multiprocessing`: they would import the script of whoever calls this package, and run it again where
it has no guard.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np

from changeanywhere.errors import ChangeAnywhereError

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""A process here is one of many: its libraries start no threads of their own."""
START = """import sys; sys.path[:] = sys.argv[3:]
from importlib import import_module
import_module(sys.argv[1]).main(sys.argv[2])"""
SIZES = struct.Struct("<Q")


class GoneError(Exception):
    """Nobody is at the other end of a channel."""


class Channel:
    """One end of a socket: objects pass with their arrays beside them, uncopied but by the socket itself."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, content: Any) -> None:
        """Send an object; :class:`GoneError` where nobody is at the other end."""
        buffers: list[pickle.PickleBuffer] = []
        body = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(body), *(buffer.raw() for buffer in buffers)]
        sizes = b"".join(SIZES.pack(len(part)) for part in parts)
        try:
            self._end.sendall(SIZES.pack(len(parts)) + sizes)
            for part in parts:
                self._end.sendall(part)
        except OSError as error:
            raise GoneError from error

    def receive(self) -> Any:
        """The next object; :class:`GoneError` where nobody is at the other end."""
        (count,) = SIZES.unpack(self._take(SIZES.size))
        sizes = self._take(SIZES.size * count)
        parts = [self._take(SIZES.unpack_from(sizes, SIZES.size * i)[0]) for i in range(count)]
        return pickle.loads(parts[0], buffers=parts[1:])

    def _take(self, size: int) -> memoryview:
        taken = np.empty(size, np.uint8).data
        place = 0
        while place < size:
            try:
                count = self._end.recv_into(taken[place:])
            except OSError as error:
                raise GoneError from error
            if not count:
                raise GoneError
            place += count
        return taken

    def close(self) -> None:
        """Nobody is at this end any more."""
        self._end.close()


def begin_process(module: str, first: Any) -> tuple[subprocess.Popen[bytes], Channel]:
    """A process that runs ``main`` of a module with the number of its end of a channel, on which ``first`` waits."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", START, module, str(theirs.fileno()), *sys.path]
    environment = os.environ | dict.fromkeys(ONE_THREAD, "1")
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
    theirs.close()
    channel = Channel(ours)
    channel.send(first)
    return process, channel


class Pool:
    """``count`` processes that run ``main`` of a module (:func:`begin_process`); they end with the context, where there
    is one, else with this process."""

    def __init__(self, module: str, first: Any, count: int) -> None:
        self._idle: queue.SimpleQueue[Channel] = queue.SimpleQueue()
        self.processes: list[subprocess.Popen[bytes]] = []
        for _ in range(count):
            process, channel = begin_process(module, first)
            self.processes.append(process)
            self._idle.put(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End the processes: each leaves when nobody is at the other end."""
        while not self._idle.empty():
            self._idle.get().close()
        for process in self.processes:
            process.wait()

    @contextmanager
    def lent(self, lost: str) -> Iterator[Channel]:
        """The next process that has nothing to do, waited for; :class:`ChangeAnywhereError`, which begins with
        ``lost``, where it ends meanwhile."""
        channel = self._idle.get()
        try:
            yield channel
        except GoneError as error:
            raise ChangeAnywhereError(f"{lost} has ended (killed, or out of memory?)") from error
        finally:
            self._idle.put(channel)


def other_end(descriptor: str) -> Channel:
    """In such a process: its end. Ctrl-C reaches the whole group; whoever began it says when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Channel(socket.socket(fileno=int(descriptor)))


def sendable(error: BaseException) -> BaseException:
    """``error`` itself where it survives the way, with where it came from; else its words."""
    if not isinstance(error, ChangeAnywhereError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception of any library may refuse, in any way
        return ChangeAnywhereError(f"{type(error).__name__}: {error}")
    return error
