"""Real processes, really killed: whatever happens, the same command completes the set to the same bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from changeanywhere.cli import run
from changeanywhere.storage import LocalStore
from conftest import write_source

PROGRAM = str(Path(sys.executable).parent / "changeanywhere")


def arguments(source: Path, model: Path, out: Path, num_pairs: int) -> list[str]:
    shape = ["--tile-size", "64", "--num-steps", "2", "--shard-size", "4", "--batch-size", "2", "--num-threads", "1"]
    named = ["--source", str(source), "--model", str(model), "--out", str(out), "--num-pairs", str(num_pairs)]
    return [PROGRAM, "generate", *named, *shape, "--events.min-area", "16", "--dtype", "float32"]


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str]:
    """Exit code and what stands on stderr."""
    _, errors = process.communicate(timeout=timeout)
    return process.returncode, errors


def tree(folder: Path) -> dict[str, str]:
    """Every file but the report, which names the folder, and what notes how files looked on this disk."""
    files = (f for f in folder.rglob("*") if f.is_file() and f.name not in ("report.html", "asked.json"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def kill_when_it_works(command: list[str], out: Path, delay: float, markers: int) -> bool:
    """SIGKILL ``delay`` seconds after its first lease, with ``markers`` shards or more; False if it ended first."""
    leases = out / "leases"
    before = leases.stat().st_mtime_ns if leases.exists() else 0
    process = start(command)
    while process.poll() is None and not (leases.exists() and leases.stat().st_mtime_ns > before):
        time.sleep(0.002)
    begun = time.monotonic()
    while process.poll() is None:
        if time.monotonic() - begun >= delay and len(list((out / "shards").glob("*.json"))) >= markers:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    return finish(process)[0] == -signal.SIGKILL


def kill_at_random(tmp_path: Path, model: Path, num_pairs: int, num_kills: int) -> None:
    """Kills alternate between any moment from the first lease to the lists, and just after a shard was finished."""
    source = write_source(tmp_path / "source", num_tiles=10)
    whole = tmp_path / "whole"
    process = start(arguments(source, model, whole, num_pairs))
    while not (whole / "leases").exists():
        time.sleep(0.002)
    begun = time.monotonic()
    assert finish(process, 600)[0] == 0
    length = time.monotonic() - begun
    num_shards = len(list((whole / "shards").glob("*.json")))
    rng = np.random.default_rng(0)
    killed = between = 0
    for round_number in range(100):
        out = tmp_path / f"broken{round_number}"
        for attempt in range(5):
            before = len(list((out / "shards").glob("*.json")))
            moment = (0.0, before + 1) if attempt % 2 == 0 else (float(rng.uniform(0, length)), 0)
            if not kill_when_it_works(arguments(source, model, out, num_pairs), out, *moment):
                break  # it was faster: the set is complete
            killed += 1
            between += 0 < len(list((out / "shards").glob("*.json"))) < num_shards
            if killed == num_kills:
                break
        code, errors = finish(start(arguments(source, model, out, num_pairs)), 600)
        assert code == 0, errors
        assert tree(out) == tree(whole)
        if killed == num_kills:
            assert between >= num_kills / 3, "kills that hit a set half done"
            return
    raise AssertionError(f"{killed} kills in a hundred runs")


def test_a_killed_run_is_completed_to_the_same_bytes(tmp_path: Path, tiny_model_folder: Path) -> None:
    kill_at_random(tmp_path, tiny_model_folder, num_pairs=24, num_kills=3)


@pytest.mark.faults
def test_fifty_kills(tmp_path: Path, tiny_model_folder: Path) -> None:
    kill_at_random(tmp_path, tiny_model_folder, num_pairs=200, num_kills=50)


def test_a_polite_kill_finishes_the_shard(tmp_path: Path, tiny_model_folder: Path) -> None:
    source, out = write_source(tmp_path / "source", num_tiles=10), tmp_path / "out"
    process = start(arguments(source, tiny_model_folder, out, 40))
    while process.poll() is None and not list((out / "shards").glob("*.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    message = [line for line in errors.splitlines() if "error" in line]
    assert code == 1 and len(message) == 1 and "interrupted" in message[0]
    assert "Traceback" not in errors
    finished = [json.loads(marker.read_text())["files"] for marker in sorted((out / "shards").glob("*.json"))]
    assert 0 < len(finished) < 10, "stopped in the middle"
    written = {str(f.relative_to(out)) for name in ("A", "B", "label") for f in (out / name).iterdir()}
    named = {name for files in finished for name in files if name.split("/")[0] in ("A", "B", "label")}
    assert written == named, "no file without its marker: the shard that was being painted is whole"


def test_two_processes_share_a_set_and_one_is_killed(tmp_path: Path, tiny_model_folder: Path) -> None:
    """The survivor paints what the other had not begun, and takes over at once what it had."""
    source, out = write_source(tmp_path / "source", num_tiles=10), tmp_path / "out"
    command = arguments(source, tiny_model_folder, out, 40)
    first = start(command)
    while first.poll() is None and not any(file.stem.isdigit() for file in (out / "leases").glob("*.json")):
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)  # with a shard in its hands
    held = [file.stem for file in (out / "leases").glob("*.json") if file.stem.isdigit()]
    assert held
    second = start(command)
    while second.poll() is None and len(list((out / "shards").glob("*.json"))) < 10 - len(held):
        time.sleep(0.02)
    assert second.poll() is None, "it waits for the shards of the other one"
    first.kill()
    code, errors = finish(second)
    assert code == 0, errors
    assert finish(first)[0] == -signal.SIGKILL
    assert finish(start(arguments(source, tiny_model_folder, tmp_path / "whole", 40)))[0] == 0
    assert tree(out) == tree(tmp_path / "whole")


def in_a_fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a copy of this process: it has torch at hand already. Its exit code, -9 when it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at_call(command: list[str], number: int, after: bool) -> bool:
    """Run ``command``, killed before or after its storage call ``number``; False if it makes fewer."""

    def work() -> None:
        calls = count()

        def dying(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(store: LocalStore, *rest: object) -> object:
                due = next(calls) == number
                if due and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                try:
                    return method(store, *rest)
                finally:  # of a call that finds nothing, too
                    if due:
                        os.kill(os.getpid(), signal.SIGKILL)

            return call

        for name in ("put", "put_new", "delete", "get", "exists", "list", "keep"):
            setattr(LocalStore, name, dying(getattr(LocalStore, name)))
        whole = LocalStore.create

        @contextmanager
        def create(store: LocalStore, name: str) -> Iterator[Any]:
            due = next(calls) == number
            with whole(store, name) as target:
                yield target
                if due and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
            if due:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(LocalStore, "create", create)  # noqa: B010
        run(command)

    return in_a_fork(work) == -signal.SIGKILL


def kill_at_storage_calls(tmp_path: Path, model: Path, every: int) -> int:
    """Killed at every ``every``-th call, before it and after it; each set is then finished, and is the same."""
    source, whole = write_source(tmp_path / "source", num_tiles=4), tmp_path / "whole"
    assert run(arguments(source, model, whole, 6)[1:]) == 0
    kills = 0
    for number in range(0, 1000, every):
        for after in (False, True):
            out = tmp_path / f"killed_{number}_{after}"
            command = arguments(source, model, out, 6)[1:]
            if not killed_at_call(command, number, after):
                assert tree(out) == tree(whole)
                return kills
            kills += 1
            assert run(command) == 0
            assert tree(out) == tree(whole), f"killed {'after' if after else 'before'} storage call {number}"
    raise AssertionError("no end")


def test_killed_at_some_storage_calls(tmp_path: Path, tiny_model_folder: Path) -> None:
    assert kill_at_storage_calls(tmp_path, tiny_model_folder, every=13) >= 6


@pytest.mark.faults
def test_killed_before_and_after_every_storage_call(tmp_path: Path, tiny_model_folder: Path) -> None:
    assert kill_at_storage_calls(tmp_path, tiny_model_folder, every=1) >= 100


def test_a_source_file_that_vanishes_loses_nothing(tmp_path: Path, tiny_model_folder: Path) -> None:
    source, out = write_source(tmp_path / "source", num_tiles=10), tmp_path / "out"
    process = start(arguments(source, tiny_model_folder, out, 40))
    while process.poll() is None and not list((out / "shards").glob("*.json")):
        time.sleep(0.02)
    image = sorted((source / "images").iterdir())[-1]
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])  # cut, as by a full disk
    code, errors = finish(process)
    assert code == 2 and image.name in errors and "Traceback" not in errors
    image.write_bytes(content)
    for folder in (out, tmp_path / "whole"):
        assert finish(start(arguments(source, tiny_model_folder, folder, 40)))[0] == 0
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("room", [0, 7, 23, 60])
def test_a_full_disk_loses_nothing(
    room: int,
    tmp_path: Path,
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After ``room`` files every write fails half way, as on a full disk."""
    source, out = write_source(tmp_path / "source", num_tiles=10), tmp_path / "out"
    written, opened = [], Path.open

    def open_on_a_full_disk(path: Path, *mode: Any, **options: Any) -> object:
        file: Any = opened(path, *mode, **options)
        if path.suffix == ".part":
            written.append(path)
            if len(written) > room:
                file.write(b"half")
                file.close()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file

    command = arguments(source, tiny_model_folder, out, 12)[1:]
    with monkeypatch.context() as full:
        full.setattr(Path, "open", open_on_a_full_disk)
        assert run(command) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(message) == 1 and "No space left on device" in message[0] and len(written) > room
    assert not list(out.rglob("*.part")), "nothing half written stays behind"
    assert run(command) == 0
    assert run(arguments(source, tiny_model_folder, tmp_path / "whole", 12)[1:]) == 0
    assert tree(out) == tree(tmp_path / "whole")
