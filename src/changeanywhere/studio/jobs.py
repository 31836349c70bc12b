"""Sets that are made from the page: ``changeanywhere generate`` as a process of its own, so that it can be stopped,
outlasts an error of the page's, and is the command that is shown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from changeanywhere.documents import DocumentError, parse_json, read_json_object, to_json
from changeanywhere.errors import InputError, require
from changeanywhere.events.options import KINDS
from changeanywhere.legend import Legend
from changeanywhere.limits import MAX_SEED
from changeanywhere.studio.edits import class_pair, refuse_empty
from changeanywhere.studio.keeping import set_folder

SHARD = 4
"""Pairs that are finished together: what a stop can cost, and the step in which progress is told."""
MAX_PAIRS = 2000
"""From the page; larger sets are for the command line."""
LOG_LINES = 200
MAX_RUNNING = 2


@dataclass(frozen=True)
class Wanted:
    """What the page asks of a set."""

    name: str
    num_pairs: int
    seed: int
    kind: str = "any"
    before: str = "any"
    after: str = "any"
    share: float = 50.0
    """Per cent of the pairs that show the class pair."""
    filtered: bool = True
    """Whether each pair's changed ground is read, for the filter of the review; none is left out for it."""

    @staticmethod
    def of(values: Sequence[Any]) -> Wanted:
        """Of the page's fields, in the order above. :class:`ConfigError` for a number that was emptied."""
        name, count, seed, kind, before, after, share, read = values
        refuse_empty(("number of pairs", "seed", "share"), (count, seed, share))
        return Wanted(str(name).strip(), int(count), int(seed), kind, before, after, float(share), bool(read))

    def flags(self, legend: Legend, segmenter: str) -> list[str]:
        """Of ``generate``; :class:`ConfigError` naming the first value that is not allowed."""
        require(1 <= self.num_pairs <= MAX_PAIRS, "number of pairs", self.num_pairs, f"1 to {MAX_PAIRS}")
        require(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"0 to {MAX_SEED}")
        require(self.kind in ("any", *KINDS), "kind", self.kind, ", ".join(("any", *KINDS)))
        words = ["--num-pairs", str(self.num_pairs), "--seed", str(self.seed), "--shard-size", str(SHARD)]
        words += [] if self.kind == "any" else ["--events.kinds", f"[{self.kind}]"]
        if class_pair(self.before, self.after, legend) is not None:
            require(0 < self.share <= 100, "share", self.share, "above 0, up to 100 per cent")
            words += ["--targets.class-pairs", to_json({f"{self.before}->{self.after}": self.share / 100})]
        return words + (["--filter.model", segmenter, "--filter.action", "score"] if self.filtered else [])


class Job:
    """One run of the command, and what it said."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.command, self.folder = command, folder
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self.moment = ("starting", 0, 1)
        """What it is at: in words, how many are done, how many there are."""
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "100"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "changeanywhere", *command[1:], "--progress", "json"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                said = self._heard(line.strip())
                if said and said != (self._lines[-1] if self._lines else ""):
                    self._lines.append(said)

    def _heard(self, line: str) -> str:
        """What a line says to people; of events (``--progress json``) the progress is noted."""
        if not line.startswith('{"event"'):
            return line
        try:
            event = parse_json(line)
            if event["event"] == "error":
                return f"error: {event['message']}"
            if event["event"] == "progress":
                self.moment = (str(event["what"]), int(event["done"]), int(event["total"]))
                return "{}: {} of {}".format(*self.moment)
        except (DocumentError, KeyError, TypeError, ValueError):
            return line
        return ""

    @property
    def log(self) -> str:
        """The last lines."""
        return "\n".join(self._lines)

    @property
    def code(self) -> int | None:
        """None while it runs, else its exit code."""
        code = self._process.poll()
        if code is not None:
            self._reader.join(timeout=2)
        return code

    @property
    def progress(self) -> tuple[int, int]:
        """Pairs that are finished, and pairs of the plan; (0, 0) before there is one."""
        plan = self.folder / "plan" / "plan.json"
        try:
            total = int(str(read_json_object(plan).get("num_pairs", 0)))
        except (OSError, DocumentError, ValueError):
            return 0, 0
        shards = self.folder / "shards"
        done = sum(1 for file in shards.glob("*.json") if not file.name.startswith(".")) if shards.is_dir() else 0
        return min(done * SHARD, total), total

    def stop(self) -> None:
        """After the pairs that are being painted; the same command goes on from there."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def end(self, patience: float = 20.0) -> None:
        """The studio closes: wait for a job that was stopped. A second signal would cut its own ending short."""
        try:
            self._process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Jobs:
    """All jobs of a studio, by the set that they make: whoever asks for a set that is being made sees that job."""

    def __init__(self, base: list[str], out: Path, legend: Legend, segmenter: str) -> None:
        self._base, self._out, self._legend, self._segmenter = base, out, legend, segmenter
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def command(self, wanted: Wanted) -> list[str]:
        """Word by word."""
        folder = set_folder(self._out, wanted.name)
        return [
            "changeanywhere",
            "generate",
            *self._base,
            "--out",
            str(folder),
            *wanted.flags(self._legend, self._segmenter),
        ]

    def start(self, wanted: Wanted) -> Job:
        """Begin, or go on with, a set; :class:`InputError` where others are being made already."""
        command = self.command(wanted)
        with self._lock:
            running = {name: job for name, job in self._jobs.items() if job.code is None}
            if wanted.name in running:
                return running[wanted.name]
            if len(running) >= MAX_RUNNING:
                names = ", ".join(sorted(running))
                raise InputError(f"{names} are being made already; wait, or stop one")
            self._jobs[wanted.name] = Job(command, set_folder(self._out, wanted.name))
            return self._jobs[wanted.name]

    def of(self, name: str) -> Job | None:
        """The last job of a set."""
        return self._jobs.get(name)

    def close(self) -> None:
        """Stop all, and wait."""
        for job in list(self._jobs.values()):
            job.stop()
        for job in list(self._jobs.values()):
            job.end()
