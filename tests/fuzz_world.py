"""Where the fuzzer works: a small world of files, commands in forked processes, and eyes on what they do.

Watched: exceptions that get out, exit codes and last lines, writes outside of the output folder, network, silence of
more than ten seconds, and, after exit code 0, whether the output is sound by rules of its own (no code of the package).
Runs on any edition of the package: what it imports of it is the command line, and what makes the world.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import os
import re
import resource
import select
import shutil
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

SILENCE, LONGEST, WAITS = 10.0, 30.0, 6
"""Seconds without output or progress after which a command hangs; seconds after which one that goes on is ended. They
are seconds of its own processor: a busy machine is no mistake; on the clock it may take :data:`WAITS` times as long."""
MEMORY = 3 << 30
"""Bytes that a command may take beyond what the fuzzer itself has."""
IMAGE = "an image: "
"""What damage of images begins with."""
Step = list[str] | Callable[[Path], object]
"""A command, or something that happens between two commands."""
Array = npt.NDArray[Any]


@dataclass
class Trial:
    """What is tried. The world is changed already; the last command is the one that is judged by ``refuse``."""

    name: str
    steps: list[Step]
    refuse: bool = False
    """The last command must not end with exit code 0."""
    outputs: tuple[str, ...] = ("out",)
    """Where the commands may write."""
    truth: dict[str, Array] = field(default_factory=dict)
    """Tile → its mask in the classes of the source."""
    pictures: dict[str, Array] = field(default_factory=dict)
    """Tile → its image, where that is copied as it is."""
    says: str = ""
    """What the last command says where its exit code is 0: a pattern."""
    checked: bool = False
    """Images of a set that was finished before are damaged: a run does not look at them, ``check`` has to."""


@dataclass(frozen=True)
class Finding:
    """What went wrong: ``cause`` is the same for the same mistake."""

    cause: str
    detail: str


def snapshot(root: Path, without: tuple[str, ...]) -> dict[str, str]:
    """What lies below ``root``, by name: kind, and hash or target."""
    seen = {}
    for folder, names, files in os.walk(root):
        if Path(folder) == root:
            names[:] = [name for name in names if name not in without]
        for name in (*names, *files):
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                seen[str(path.relative_to(root))] = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
            else:
                seen[str(path.relative_to(root))] = (
                    str(path.readlink()) if stat.S_ISLNK(mode) else oct(stat.S_IFMT(mode))
                )
    return seen


class World:
    """A template that is copied for each trial."""

    def __init__(self, template: Path, place: Path) -> None:
        self.template, self.place = template, place
        self.addresses = place.with_name("addresses")

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Path]:
        """A copy; gone at the end."""
        shutil.copytree(self.template, self.place, symlinks=True)
        (self.place / "tmp").mkdir(exist_ok=True)
        try:
            yield self.place
        finally:
            shutil.rmtree(self.place, ignore_errors=True)

    def judge(self, root: Path, trial: Trial) -> list[Finding]:
        """Run all steps; what was found."""
        found: list[Finding] = []
        for number, step in enumerate(trial.steps):
            if not isinstance(step, list):
                step(root)
                continue
            before = snapshot(root, (*trial.outputs, "tmp"))
            ended = _in_a_fork(root, step, trial.outputs)
            found += ended.findings(step)
            after = snapshot(root, (*trial.outputs, "tmp"))
            changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
            if changed:
                found.append(Finding(f"writes outside of the output folder ({trial.name})", ", ".join(changed[:4])))
            if self.addresses.exists() and self.addresses.stat().st_size:
                found.append(Finding(f"goes to the network ({trial.name})", self.addresses.read_text()[:200]))
                self.addresses.write_text("")
            if number == len(trial.steps) - 1 and ended.code == 0:
                damage = list(_damage(root, step, trial, ended.text))
                if trial.checked and damage and all(what.startswith(IMAGE) for what in damage):
                    damage = _unless_checked(root, step, trial)
                found += [Finding(f"exit code 0 with damaged output ({trial.name})", what) for what in damage]
        return found


@dataclass
class Ended:
    """How a command ended."""

    code: int | None
    """None: it was ended, since it hung (``why``) or went on for long."""
    text: str
    errors: str
    trace: dict[str, str]
    why: str = ""

    def findings(self, step: list[str]) -> list[Finding]:
        """What may not be."""
        command = " ".join(step)[:300]
        if self.why:
            return [Finding(f"hangs in {self.why}", command)]
        if self.code is None:
            return []
        found = []
        if self.trace.get("cause"):
            found.append(Finding(self.trace["cause"], f"{command}: {self.trace['text'][:300]}"))
        elif self.code not in (0, 1, 2):
            found.append(Finding(f"ends with {self.code}", command))
        elif self.code:
            lines = [line for line in self.errors.splitlines() if line.strip()]
            if not lines or not lines[-1].startswith("changeanywhere: error: "):
                found.append(Finding(f"says no error ({step[0]})", f"{command}: {self.errors[-200:]}"))
        if "Traceback (most" in self.errors and not self.trace:
            found.append(Finding(f"prints a traceback ({step[0]})", f"{command}: {self.errors[-300:]}"))
        if "\x1b" in self.text or "\x1b" in self.errors or "\u202e" in self.text + self.errors:
            found.append(Finding(f"commands of a terminal are passed on ({step[0]})", command))
        for access in self.trace.get("access", "").splitlines():
            found.append(Finding(f"audit: {access.split(' ')[0]}", f"{command}: {access}"))
        return found


def _in_a_fork(root: Path, command: list[str], outputs: tuple[str, ...]) -> Ended:
    beat, beaten = os.pipe()
    out, errors, trace = (root.parent / name for name in ("stdout", "stderr", "trace.json"))
    trace.unlink(missing_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.close(beat)
            code = _child(root, command, (out, errors, trace), beaten, outputs)
        finally:
            os._exit(code)
    os.close(beaten)
    ended, why = _watch(pid, beat, (out, errors), root.parent / "stack")
    os.close(beat)
    read = [path.read_bytes().decode("utf-8", "replace") if path.exists() else "" for path in (out, errors)]
    return Ended(ended, read[0], read[1], json.loads(trace.read_text()) if trace.exists() else {}, why)


def _child(
    root: Path, command: list[str], files: tuple[Path, Path, Path], beaten: int, outputs: tuple[str, ...]
) -> int:
    os.setsid()  # its own children end with it
    for number, file in ((1, files[0]), (2, files[1])):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    with (files[2].with_name("stack")).open("w") as stack:
        faulthandler.register(signal.SIGUSR1, file=stack)
        os.chdir(root)
        os.environ["TMPDIR"] = str(root / "tmp")
        import tempfile

        tempfile.tempdir = None
        now = int(re.findall(r"\d+", Path("/proc/self/statm").read_text())[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
        if "torch" in sys.modules:  # OpenMP's threads do not survive a fork: work shared among them would never end
            sys.modules["torch"].set_num_threads(1)
        _beat_at_progress(beaten)
        accesses = _audit(root, outputs)
        found: dict[str, str] = {}
        try:
            from changeanywhere.cli import run

            code = run(command)
        except SystemExit as error:
            code = int(error.code or 0) if error.code is None or isinstance(error.code, int) else 1
        except BaseException as error:
            code = 98
            found = {"cause": _cause(error), "text": f"{type(error).__name__}: {error}"[:400]}
        sys.stdout.flush()
        sys.stderr.flush()
        accesses["on"] = []
        if accesses["found"]:
            found = found | {"cause": found.get("cause", ""), "text": found.get("text", "")}
            found["access"] = "\n".join(accesses["found"][:5])
        if found.get("cause") or found.get("access"):
            files[2].write_text(json.dumps(found))
    return code


def _beat_at_progress(beaten: int) -> None:
    import changeanywhere.cli as cli
    import changeanywhere.progress as progress

    @contextlib.contextmanager
    def bars() -> Iterator[Callable[..., None]]:
        def told(*_: object) -> None:
            os.write(beaten, b".")

        yield told

    for module in (progress, cli):
        if hasattr(module, "shown_progress"):
            setattr(module, "shown_progress", bars)  # noqa: B010


def _audit(root: Path, outputs: tuple[str, ...]) -> dict[str, list[str]]:
    """Note every try to write elsewhere and to reach a network, whether it succeeds or not."""
    state: dict[str, list[str]] = {"on": ["x"], "found": []}
    allowed = [str(root / name) for name in (*outputs, "tmp")] + ["/dev/", "/proc/self/"]

    def is_elsewhere(path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        text = str(Path.cwd() / os.fsdecode(path))
        return not any(text == place or text.startswith(place.rstrip("/") + "/") for place in allowed)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not state["on"]:
            return
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"):
            state["found"].append(f"{event} {str(arguments[-1])[:80]}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC) and is_elsewhere(path):
                state["found"].append(f"open-to-write {path}")
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.symlink", "os.link", "os.rename"):
            places = arguments[1:2] if event in ("os.symlink", "os.link") else arguments[:2]
            for path in places:
                # -1: no folder is given beside the name, as shutil does below what it was told to remove
                if is_elsewhere(path) and (event == "os.rename" or arguments[-1] == -1 or event == "os.truncate"):
                    state["found"].append(f"{event} {path}")

    sys.addaudithook(hook)
    return state


def _cause(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "changeanywhere" in frame.filename]
    last = next((f for f in reversed(frames) if "site-packages" not in f.filename and "tests" not in f.filename), None)
    where = f"{last.filename.rpartition('changeanywhere/')[2]}:{last.name}" if last else "?"
    return f"{type(error).__name__} in {where}"


def _watch(pid: int, beat: int, files: tuple[Path, Path], stack: Path) -> tuple[int | None, str]:
    """Exit code, and where it hung."""
    begun = last = (time.monotonic(), 0.0)
    sizes = [0, 0]
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), ""
        if select.select([beat], [], [], 0.01)[0] and os.read(beat, 65536):
            last = (time.monotonic(), _own_seconds(pid))
        now = [file.stat().st_size if file.exists() else 0 for file in files]
        if now != sizes:
            sizes, last = now, (time.monotonic(), _own_seconds(pid))
        silent = _is_over(pid, last, SILENCE)
        if silent or _is_over(pid, begun, LONGEST):
            where = _where(pid, stack) if silent else ""
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, where


def _is_over(pid: int, since: tuple[float, float], seconds: float) -> bool:
    clock = time.monotonic() - since[0]
    taken = _own_seconds(pid) - since[1]
    asleep = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S" and taken < 0.05
    return clock > seconds and (asleep or clock > WAITS * seconds or taken > seconds)


def _own_seconds(pid: int) -> float:
    """Of a processor, that a process and its ended children took."""
    numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    return sum(map(int, numbers)) / os.sysconf("SC_CLK_TCK")


def _where(pid: int, stack: Path) -> str:
    """Innermost function of the package in which a process is."""
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.3)
    lines = re.findall(r'File "[^"]*changeanywhere/([^"]+)", line \d+ in (\w+)', stack.read_text())
    return ":".join(lines[0]) if lines else "code of a library"


def _unless_checked(root: Path, command: list[str], trial: Trial) -> list[str]:
    """What is wrong with ``check`` where it calls a set sound that is none."""
    out = _out_of(command)
    ended = _in_a_fork(root, ["check", out], trial.outputs)
    found = [finding.detail for finding in ended.findings(["check", out])]
    return found or ([f"check {out} calls it sound: {ended.text[:200]}"] if ended.code == 0 else [])


def _out_of(command: list[str]) -> str:
    return next((each[6:] for each in reversed(command) if each.startswith("--out=")), "out")


def _damage(root: Path, command: list[str], trial: Trial, text: str) -> Iterator[str]:
    """What is wrong with an output that was called done."""
    if trial.refuse:
        yield f"not refused: {' '.join(command)[:200]}"
    if trial.says and not re.search(trial.says, text):
        yield f"says no {trial.says!r}: {text[:300]}"
    if command[0] not in ("generate", "simulate") or "--dry-run" in command or "--help" in command:
        return
    out = root / _out_of(command)
    records = out / ("metadata.jsonl" if command[0] == "generate" else "events.jsonl")
    try:
        pairs = [json.loads(line, parse_constant=_no_number) for line in records.read_text().splitlines()]
        if not pairs:
            yield "no pairs"
        for pair in pairs:
            yield from _damage_of(out, pair, command[0] == "generate", trial)
        if command[0] == "generate":
            listed = [name for split in ("train", "val", "test") for name in _lines(out / "list" / f"{split}.txt")]
            if sorted(listed) != sorted(pair["A_file_name"].rpartition("/")[2] for pair in pairs):
                yield f"lists name {len(listed)} pairs, metadata {len(pairs)}"
            for page in ("README.md", "report.html"):
                if "<script>alert" in (out / page).read_text():
                    yield f"{page} holds a script of somebody else"
    except Exception as error:
        yield f"{type(error).__name__}: {error}"[:200]


def _no_number(name: str) -> float:
    raise ValueError(f"{name} in JSON")


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def _damage_of(out: Path, pair: dict[str, Any], whole: bool, trial: Trial) -> Iterator[str]:
    try:
        yield from (f"{IMAGE}{what}" for what in _damage_of_images(out, pair, whole, trial))
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow says of files that are none of its own
        yield f"{IMAGE}{type(error).__name__}: {error}"[:200]


def _damage_of_images(out: Path, pair: dict[str, Any], whole: bool, trial: Trial) -> Iterator[str]:
    key, tile = pair["key"], pair["source_key"]
    suffix = Path(pair["A_file_name"]).suffix if whole else ".png"
    masks = [np.asarray(Image.open(out / name / f"{key}{suffix}")) for name in ("label1", "label2", "label")]
    changed = (masks[0] > 0) & (masks[1] > 0) & (masks[0] != masks[1])
    if not np.array_equal(masks[2], np.where(changed, 255, 0)):
        yield f"label of {key} is not where its masks differ"
    if whole:
        images = [np.asarray(Image.open(out / name / f"{key}{suffix}")) for name in ("A", "B")]
        if images[0].shape != images[1].shape or images[0].shape[:2] != masks[0].shape:
            yield f"sizes of {key} differ"
        if int(images[1].max()) == int(images[1].min()) != int(images[0].max()):
            yield f"image t2 of {key} is of one colour"
        if tile in trial.pictures and not np.array_equal(images[0], trial.pictures[tile]):
            yield f"image t1 of {key} is not the image of {tile}"
    if tile in trial.truth and not np.array_equal(masks[0], trial.truth[tile]):
        yield f"mask t1 of {key} is not the mask of {tile} in {int((masks[0] != trial.truth[tile]).sum())} px"
