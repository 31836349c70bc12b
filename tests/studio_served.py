"""A studio that runs as people run it, for tests."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Served:
    """Where it is, and where its sets are."""

    url: str
    out: Path
    seconds: float
    """From the command to the first page."""


@contextmanager
def serving(out: Path, *words: str) -> Iterator[Served]:
    """``changeanywhere studio`` on a free port until the context ends; run beside its sets, so that no page shows where
    they lie."""
    command = [sys.executable, "-m", "changeanywhere", "studio", "--port", "0", "--out", out.name, *words]
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=out.parent
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://[^ ]+", line)
            assert found, line
            with urllib.request.urlopen(found.group()) as page:
                assert b"ChangeAnywhere studio" in page.read()
            yield Served(found.group(), out, time.perf_counter() - started)
        finally:
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=90)
    assert process.returncode == 0 and "studio: ended" in said, said
