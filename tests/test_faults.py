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
from pathlib import Path

import numpy as np
import pytest

from changeanywhere.cli import run
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
    """Every file but the report, which names the folder."""
    files = (f for f in folder.rglob("*") if f.is_file() and f.name not in ("report.html", ".lock"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def kill_when_it_works(command: list[str], out: Path, delay: float, markers: int) -> bool:
    """SIGKILL ``delay`` seconds after it took the folder, with ``markers`` shards or more; False if it ended first."""
    lock = out / ".lock"
    before = lock.stat().st_mtime_ns if lock.exists() else 0
    process = start(command)
    while process.poll() is None and not (lock.exists() and lock.stat().st_mtime_ns > before):
        time.sleep(0.002)
    begun = time.monotonic()
    while process.poll() is None:
        if time.monotonic() - begun >= delay and len(list((out / "shards").glob("*.json"))) >= markers:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    return finish(process)[0] == -signal.SIGKILL


def kill_at_random(tmp_path: Path, model: Path, num_pairs: int, num_kills: int) -> None:
    """Kills alternate between any moment from taking the folder to the lists, and just after a shard was finished."""
    source = write_source(tmp_path / "source", num_tiles=10)
    whole = tmp_path / "whole"
    process = start(arguments(source, model, whole, num_pairs))
    while not (whole / ".lock").exists():
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


def test_two_processes_on_one_folder(tmp_path: Path, tiny_model_folder: Path) -> None:
    source, out = write_source(tmp_path / "source", num_tiles=10), tmp_path / "out"
    first = start(arguments(source, tiny_model_folder, out, 40))
    while first.poll() is None and not (out / "plan" / "settings.json").exists():
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGSTOP)  # holds the folder for as long as the second one looks
    code, errors = finish(start(arguments(source, tiny_model_folder, out, 40)))
    os.kill(first.pid, signal.SIGCONT)
    assert code == 2 and errors.count("\n") == 1 and "another process" in errors
    assert finish(first)[0] == 0


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

    def open_on_a_full_disk(path: Path, *mode: str, **options: object) -> object:
        file = opened(path, *mode, **options)
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
