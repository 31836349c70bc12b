"""A set painted on a Ray cluster of several raylets on this machine: the bytes of a local run, whoever dies."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import changeanywhere as ca
from changeanywhere.cli import run
from changeanywhere.models.folder import save_model
from conftest import tiny_model, write_source

ray = pytest.importorskip("ray", reason="pip install 'changeanywhere[ray]'")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
COUNT, SHARD = 200, 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, a tiny net, and the set that threads of one process make."""
    folder = tmp_path_factory.mktemp("ray")
    write_source(folder / "src", num_tiles=8)
    save_model(tiny_model(), folder / "model")
    assert run(arguments(folder, "local")) == 0
    return folder


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    return [
        *("generate", f"--source={folder / 'src'}", f"--model={folder / 'model'}", f"--out={folder / out}"),
        *(f"--num-pairs={COUNT}", "--tile-size=64", "--num-steps=4", "--num-threads=1", "--dtype=float32"),
        *(f"--shard-size={SHARD}", "--batch-size=5", "--events.min-area=16", "--device=cpu", *more),
    ]


def files_of(out: Path) -> dict[str, bytes]:
    skipped = ("asked.json", "report.html")
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in skipped)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without slots, and two nodes of one slot each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    one = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    yield one
    ray.shutdown()
    one.shutdown()


def markers(out: Path) -> int:
    return len(list((out / "shards").glob("*.json")))


def test_a_node_is_killed_and_another_joins(world: Path, cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = world / "cluster"
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
    events: list[int] = []

    def disturb() -> None:
        while markers(out) < 3:
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        events.append(markers(out))
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        events.append(markers(out))

    thread = threading.Thread(target=disturb)
    thread.start()
    code = run(arguments(world, "cluster", "--executor=ray", f"--address={cluster.address}", "--workers=2"))
    thread.join()
    assert code == 0, capsys.readouterr().err
    assert events and events[0] < COUNT // SHARD, "the node died while there was work"
    assert files_of(out) == files_of(world / "local")
    assert f"{COUNT} in the dataset" in capsys.readouterr().out
    assert run(["check", str(out)]) == 0


def actors() -> list[int]:
    """Processes of actors, of clusters that this process started."""
    parents, names = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(place.name)] = (place / "cmdline").read_bytes()
        except OSError:  # gone meanwhile
            continue

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return [pid for pid, name in names.items() if name.startswith(b"ray::Painting") and is_ours(pid)]


def test_a_worker_that_hangs_is_overtaken(
    world: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two stands still in the middle of its shards: the other begins them a second time, and nobody waits."""
    monkeypatch.setattr("changeanywhere.generation.cluster.LEAST_SECONDS", 2.0)
    monkeypatch.setattr("changeanywhere.generation.cluster.SLOW", 2.0)
    out, stopped = world / "hangs", list[int]()
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)

    def disturb() -> None:
        while markers(out) < 6 or not (found := actors()):
            time.sleep(0.05)
        os.kill(found[0], signal.SIGSTOP)
        stopped.append(found[0])

    thread = threading.Thread(target=disturb)
    thread.start()
    code = run(arguments(world, "hangs", "--executor=ray", f"--address={cluster.address}", "--workers=2"))
    thread.join()
    assert code == 0, capsys.readouterr().err
    assert stopped and files_of(out) == files_of(world / "local")


def test_sigterm_ends_it_and_the_same_command_goes_on(world: Path) -> None:
    command = [sys.executable, "-m", "changeanywhere", *arguments(world, "stopped", "--executor=ray", "--workers=2")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ)
    while markers(world / "stopped") < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "interrupted; what is finished is kept" in said, said
    assert 2 <= markers(world / "stopped") < COUNT // SHARD
    assert run(arguments(world, "stopped")) == 0
    assert files_of(world / "stopped") == files_of(world / "local")


@pytest.mark.parametrize("container", ["parquet", "webdataset"])
def test_ray_data_reads_a_finished_set(world: Path, container: str) -> None:
    """Every pair once, with the images that our own reader gives."""
    pytest.importorskip("pyarrow", reason="pip install 'changeanywhere[parquet]'")
    command = ["generate", f"--source={world / 'src'}", f"--out={world / container}", f"--format={container}"]
    command += ["--method=copy_paste", "--num-pairs=8", "--tile-size=64", "--events.min-area=16", "--shard-size=3"]
    assert run(command) == 0
    files = sorted(map(str, (world / container / "data").iterdir()))
    ray.init(num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
    try:
        reader = ray.data.read_parquet if container == "parquet" else ray.data.read_webdataset
        rows = reader(files).take_all()
    finally:
        ray.shutdown()
    second = {pair.key: pair.image_t2 for pair in ca.stream_pairs(world / container)}
    assert len(rows) == len(files) + 5 == 8
    for row in rows:
        packed = container == "parquet"
        image = np.asarray(Image.open(io.BytesIO(row["image_t2"]["bytes"]))) if packed else np.asarray(row["b.png"])
        assert np.array_equal(image, second.pop(row["key"] if packed else row["json"]["key"]))
    assert not second


def test_a_cluster_that_is_not_there_is_one_line(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(world, "nowhere", "--executor=ray", "--address=127.0.0.1:1")) == 2
    assert "no cluster answers there" in capsys.readouterr().err
