"""Who paints what on a cluster, without one: lost actors, stragglers, refusals."""

from __future__ import annotations

import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from changeanywhere.cli import run
from changeanywhere.errors import ConfigError
from changeanywhere.generation.carried import packed
from changeanywhere.generation.cluster import LEAST_SECONDS, NAMED, STARTS, Painting, Worker, _connect, _Run
from changeanywhere.generation.job import load_job
from changeanywhere.models.folder import save_model
from changeanywhere.storage import LocalStore
from conftest import tiny_model, write_source


def test_a_straggler_is_begun_twice_once_nothing_waits() -> None:
    now = time.monotonic()
    slow = now - 100 * LEAST_SECONDS
    one, other = Worker(None, 2), Worker(None, 2)
    running: dict[Any, tuple[Worker, int, float]] = {"a": (one, 7, slow), "b": (other, 8, now)}
    assert _Run(deque([1]), running=dict(running), taken=[1.0]).straggler() is None, "others wait"
    assert _Run(deque(), running=dict(running)).straggler() is None, "nothing is known of how long it takes"
    run_ = _Run(deque(), running=dict(running), taken=[1.0])
    assert run_.straggler() == 7
    run_.running["c"] = (other, 7, now)
    assert run_.straggler() is None and run_.copies_of(7) == 2
    assert _Run(deque(), running=dict(running), taken=[1000 * LEAST_SECONDS]).straggler() is None, "all are slow"
    both: dict[Any, tuple[Worker, int, float]] = {"a": (one, 7, slow), "b": (one, 9, slow)}
    assert _Run(deque(), running=both, taken=[1.0], done={7}).straggler() == 9, "who hangs may hold several"


def test_a_second_shard_is_for_who_has_least_and_the_last_ones_for_who_has_nothing() -> None:
    busy, less, idle = Worker(None, 2, shards=[1, 2]), Worker(None, 2, shards=[3]), Worker(None, 2)
    assert _Run(deque(range(9)), [busy, less, idle]).free() is idle
    assert _Run(deque(range(9)), [busy, less]).free() is less
    assert _Run(deque(range(9)), [busy]).free() is None
    assert _Run(deque([7, 8]), [busy, less]).free() is None, "as many as there are workers"
    assert _Run(deque([7, 8]), [busy, idle]).free() is idle
    assert _Run(deque(), [idle, Worker(None, 2, shards=[3])]).free(3) is idle
    assert _Run(deque(), [Worker(None, 2, shards=[3])]).free(3) is None, "nobody helps himself"


class SlowRay:
    """Ray on a machine with much to do."""

    def __init__(self, fails: int) -> None:
        self.calls, self.fails, self.ended = 0, fails, 0

    def init(self, **_: Any) -> None:
        self.calls += 1
        if self.calls <= self.fails:
            raise Exception("The current node timed out during startup.")  # as Ray does

    def shutdown(self) -> None:
        self.ended += 1


def test_a_start_that_takes_too_long_is_tried_again() -> None:
    ray = SlowRay(STARTS - 1)
    _connect(ray, None)
    assert (ray.calls, ray.ended) == (STARTS, STARTS - 1)
    with pytest.raises(ConfigError, match=r"does not start on this machine .*timed out"):
        _connect(SlowRay(STARTS), None)
    ray = SlowRay(1)
    with pytest.raises(ConfigError, match="no cluster answers there"):
        _connect(ray, "auto")
    assert ray.calls == 1


def test_who_was_overtaken_is_not_waited_for() -> None:
    run_ = _Run(deque(), running={"a": (Worker(None, 2), 7, 0.0), "b": (Worker(None, 2), 7, 1.0)})
    assert run_.awaited() and not run_.left_behind()
    del run_.running["b"]
    run_.done.add(7)
    assert not run_.awaited() and run_.left_behind() == {7}


def test_progress_says_how_far_each_has_come() -> None:
    workers = [Worker(None, 2, f"node{n}:1", pairs=10 * n) for n in range(NAMED + 1)]
    assert _Run(deque(), workers[:2]).told() == "2 workers: node0:1 0, node1:1 10"
    assert _Run(deque(), workers).told() == f"{NAMED + 1} workers, 0 to {10 * NAMED} pairs each"
    assert _Run(deque()).told() == "0 workers"


@pytest.mark.parametrize("hands", [0, 2])
def test_what_an_actor_does(hands: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards at once, with processes beside it (as for a GPU) or without, from a model that came with the job: the
    bytes of a run in one process. Told to stop, it begins nothing."""
    monkeypatch.chdir(tmp_path)  # it moves to the folder of the command
    write_source(tmp_path / "src", num_tiles=4)
    save_model(tiny_model(), tmp_path / "model")
    command = ["generate", "--source=src", "--model=model", "--num-pairs=8", "--tile-size=64", "--num-steps=2"]
    command += ["--num-threads=1", "--shard-size=2", "--batch-size=2", "--events.min-area=16", "--device=cpu"]
    assert run([*command, "--out=local"]) == 0
    assert run(["plan", *command[1:], "--out=set"]) == 0
    assert run([*command, "--out=set", "--shard=3/4"]) == 0  # settles the machine
    job = load_job(LocalStore("set"))
    assert job is not None
    models = packed(job)
    (tmp_path / "model").rename(tmp_path / "away")
    actor = Painting("set", str(tmp_path), hands, list(models), *models.values())
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(actor.paint, range(3))) == [2, 2, 2]
    assert actor.paint(3) == 0, "it was there"
    actor.stop()
    Path("set/shards/00002.json").unlink()
    assert actor.paint(2) is None and not Path("set/shards/00002.json").exists()
    assert run(["finish", "set"]) == 1
    (tmp_path / "away").rename(tmp_path / "model")
    assert run([*command, "--out=set"]) == 0
    names = [path.relative_to("local") for path in Path("local").rglob("*") if path.is_file()]
    assert all(
        Path("set", name).read_bytes() == Path("local", name).read_bytes()
        for name in names
        if name.name not in ("asked.json", "report.html")
    )


@pytest.mark.parametrize("flag", ["--address=auto", "--workers=2", "--executor=slurm", "--workers=0"])
def test_options_that_nothing_reads(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", f"--source={tmp_path}", f"--out={tmp_path / 'out'}", flag]) == 2
    assert "allowed" in capsys.readouterr().err


def test_without_ray_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from changeanywhere.generation.cluster import require_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'changeanywhere\[ray\]'"):
        require_ray()
