"""This machine, as its processes see it: who it is, and how many processors a process may use. No torch here."""

from __future__ import annotations

import math
import os
import platform
from functools import lru_cache
from pathlib import Path

QUOTAS = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
"""Where a container's share of the processors stands, in the second and in the first version of control groups."""


@lru_cache(maxsize=1)
def this_machine() -> str:
    """This machine as process numbers mean it: its name, its boot, its space of process numbers."""
    return " ".join([platform.node(), read_file("/proc/sys/kernel/random/boot_id"), _namespace()])


def usable_processors() -> int:
    """Processors that this process may use: of the machine, of its affinity (batch systems set it), of its container's
    share. Never of the load of the moment, since plans freeze what follows from it."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(count, _share())))


def _share() -> float:
    """Of a container, in processors; infinite without a limit."""
    words = read_file(QUOTAS[0]).split() or [read_file(QUOTAS[1]), read_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us")]
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
        return int(words[0]) / int(words[1])
    return math.inf


def quiet_threads() -> None:
    """Let threads that wait sleep (before torch is imported; what the user set stays).

    Spinning ones take from a busy processor what the thread they wait for needs (``benchmarks/busy.py``).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def read_file(file: str) -> str:
    """Of a file of the system; "" where there is none."""
    try:
        return Path(file).read_text().strip()
    except OSError:  # not Linux
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
