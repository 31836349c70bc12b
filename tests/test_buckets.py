"""Sets in buckets: the same bytes as in a folder, whatever goes wrong on the way. S3 is moto's, on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("obstore", reason="pip install 'changeanywhere[cloud]'")
pytest.importorskip("moto", reason="pip install 'changeanywhere[dev]': S3 is moto's")

import changeanywhere as ca
from bucket_server import half_upload, lost_answer, slow, unavailable
from changeanywhere import buckets
from changeanywhere.buckets import BucketStore, local_copy, store_at
from changeanywhere.cli import run
from changeanywhere.errors import ConfigError, OutputError
from changeanywhere.leases import Leases
from changeanywhere.storage import LocalStore, address_of, shown
from conftest import write_source

if TYPE_CHECKING:
    from bucket_server import Server

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    from bucket_server import Server

    one = Server()
    yield one
    one.close()


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    for name, value in environment_of(server).items():
        monkeypatch.setenv(name, value)
    server.faults.clear()
    server.seen.clear()
    return server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHANGEANYWHERE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def environment_of(server: Server) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "very-secret-key", "AWS_REGION": "us-east-1"}
    return keys | {"AWS_ENDPOINT_URL": server.address, "AWS_ALLOW_HTTP": "true"}


def arguments(source: Path | str, out: Path | str) -> list[str]:
    events = ["--num-pairs=8", "--tile-size=64", "--events.min-area=16", "--shard-size=2"]
    return ["generate", f"--source={source}", f"--out={out}", "--method=copy_paste", *events]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles") / "src"
    write_source(folder, num_tiles=4)
    return folder


@pytest.fixture(scope="module")
def local(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What a run in a folder makes."""
    out = tmp_path_factory.mktemp("local") / "set"
    assert run(arguments(source, out)) == 0
    return files_of(out)


def files_of(place: Path | str) -> Files:
    """All but what says where a set lies, when its files were read, or what its folder is called."""
    store = store_at(place)
    names = [name for name in store.list() if name not in ("plan/asked.json", "report.html")]
    return {name: store.get(name) for name in names}


def put_source(source: Path, address: str) -> None:
    store = BucketStore(address)
    for name in LocalStore(source).list():
        store.put(name, (source / name).read_bytes())


@pytest.mark.parametrize("place", ["s3://b/x/y", "s3:/b/x/y", Path("s3://b/x/y")])
def test_an_address_stays_one_when_it_is_a_path(place: Path | str) -> None:
    assert address_of(place) == "s3://b/x/y" == shown(place)
    assert address_of("some/folder") is None and address_of("C:folder") is None


@pytest.mark.parametrize("scheme", ["memory", "s3"])
def test_a_store_keeps_its_promises(scheme: str, s3: Server) -> None:
    store = store_at(f"{scheme}://bucket/promises")
    assert isinstance(store, BucketStore) and not store.list() and not store.exists("a")
    for missing in (store.get, store.open):
        with pytest.raises(FileNotFoundError):
            missing("a")
    store.delete("a")
    store.put("a", b"1")
    store.put("a", b"2")
    assert store.get("a") == b"2" and store.exists("a") and not store.exists("aa")
    assert store.put_new("b/c", b"mine") and not store.put_new("b/c", b"yours") and store.get("b/c") == b"mine"
    with store.create("large") as target:
        target.write(b"x" * (1 << 20))
    with store.open("large") as file:
        assert file.read() == b"x" * (1 << 20)
    with pytest.raises(RuntimeError), store.create("half") as target:
        target.write(b"x")
        raise RuntimeError
    assert store.list() == ["a", "b/c", "large"] and store.list("b") == ["b/c"]
    store_at(f"{scheme}://bucket/promises-of-another").put("a", b"")
    assert store.list() == ["a", "b/c", "large"], "names of one begin the names of the other"
    for name in ("../x", "/x", ""):
        with pytest.raises(OutputError, match="no name of an object"):
            store.put(name, b"")
    for name in store.list():
        store.delete(name)
    assert not store.list()


def test_of_many_at_once_one_wins(s3: Server) -> None:
    store = BucketStore("s3://bucket/race")
    won: list[int] = []

    def claim(number: int) -> None:
        if store.put_new("lease", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.get("lease") == str(won[0]).encode()


@pytest.mark.parametrize("scheme", ["memory", "s3"])
def test_a_set_in_a_bucket_is_the_set_in_a_folder(
    scheme: str, s3: Server, source: Path, local: Files, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made from tiles in a bucket, into a bucket; said to be done the second time; read, checked, damaged, found."""
    tiles, out = f"{scheme}://bucket/{scheme}/{source.parent.name}/src", f"{scheme}://bucket/sets/{scheme}"
    put_source(source, tiles)
    assert run(arguments(tiles, out)) == 0
    made = files_of(out)
    assert {name for name in made if made[name] != local[name]} <= {"plan/job.json"}
    assert (
        json.loads(made["plan/job.json"])["source"]["fingerprint"]
        == json.loads(local["plan/job.json"])["source"]["fingerprint"]
    )
    said = capsys.readouterr().out
    assert f"dataset: {out}\n" in said and f"report:  {out}/report.html" in said
    assert run(arguments(tiles, out)) == 0 and "nothing to do: all 8" in capsys.readouterr().out
    assert run(["check", out]) == 0
    said = capsys.readouterr().out
    assert f"{out}: a generated dataset; every image and mask is as it was written" in said and str(cache) not in said
    assert len(ca.load_pairs(out)) == 8
    store = BucketStore(out)
    store.put("B/tile_0_0.png", store.get("A/tile_1_0.png"))
    assert run(["check", out]) == 2
    assert f"{out}/B/tile_0_0.png: not the bytes that were written" in capsys.readouterr().err
    store.put("strange/thing", b"")
    assert run([*arguments(tiles, f"{scheme}://bucket/sets")]) == 2, "somebody's objects are there"
    assert "not made by this command" in capsys.readouterr().err
    assert run(arguments(tiles, f"{tiles}/out")) == 2 and "in the source" in capsys.readouterr().err
    assert "very-secret-key" not in "".join(map(str, made.values()))


def test_simulate_plan_shares_and_finish_in_a_bucket(
    source: Path, local: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    out = "memory://bucket/shares"
    assert run(["plan", *arguments(source, out)[1:]]) == 0
    for share in (1, 0):
        assert run([*arguments(source, out), f"--shard={share}/2"]) == 0
    assert run(["finish", out]) == 0 and f"dataset: {out} (8 pairs)" in capsys.readouterr().out
    assert files_of(out).keys() == local.keys() and files_of(out)["metadata.jsonl"] == local["metadata.jsonl"]
    simulated = [*arguments(source, "memory://bucket/masks")]
    assert run(["simulate", *simulated[1:3], *simulated[4:7]]) == 0
    assert run(["check", "memory://bucket/masks"]) == 0


FAULTS = {"503": unavailable, "lost answers": lost_answer, "half uploads": half_upload}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_on_the_way_leave_the_same_set(name: str, s3: Server, source: Path, local: Files) -> None:
    out = f"s3://bucket/faults/{name.replace(' ', '-')}"
    for part in ("leases/", "/A/", "/shards/", "metadata.jsonl", "plan.json", "/label1/", "checksums"):
        s3.break_next(FAULTS[name], 2, part=part)
    s3.break_next(unavailable if name == "503" else half_upload, 2, "GET", "shards")
    s3.break_next(unavailable, 1, "POST", "delete")
    assert run(arguments(source, out)) == 0
    assert not s3.faults, "all of them struck"
    made = files_of(out)
    assert made.keys() == local.keys(), "no orphan, no lease that nobody holds"
    assert {n for n in made if made[n] != local[n]} <= set()
    assert run(["check", out]) == 0


def test_a_put_whose_answer_is_lost_knows_its_own_object(s3: Server) -> None:
    store = BucketStore("s3://bucket/lost")
    s3.break_next(lost_answer, 1, part="lost/lease")
    assert store.put_new("lease", b"mine")
    assert s3.seen[("PUT", 412)] == 1, "the service refused the repetition"
    s3.break_next(lambda request: bool(s3.ask("PUT", request.path, b"theirs", {})) and False, 1, part="lost/other")
    assert not store.put_new("other", b"mine") and store.get("other") == b"theirs", "one that loses, loses"


def test_two_of_the_same_process_on_a_lease(s3: Server) -> None:
    one, other = (Leases(BucketStore("s3://bucket/leases-of-two")) for _ in range(2))
    s3.break_next(lost_answer, 1, part="leases/7")
    assert one.claim("7") and not other.claim("7")
    one.release("7")
    assert other.claim("7")


def test_a_service_that_is_gone_is_one_line(
    s3: Server, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(buckets, "TRIES", 1)
    monkeypatch.setattr(buckets, "LONGEST_REQUEST", 1.0)
    monkeypatch.setattr(buckets, "LONGEST_WAIT", 2.0)
    s3.break_next(slow, 2, "PUT", "gone/plan")
    assert run(arguments(source, "s3://bucket/gone")) == 2
    assert "cannot be written" in (said := capsys.readouterr().err) and "very-secret" not in said
    s3.faults.clear()
    assert run(arguments(source, "s3://bucket/gone")) == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert run(arguments(source, "s3://bucket/gone-too")) == 2
    said = capsys.readouterr().err
    assert said.rstrip().splitlines()[-1].startswith("changeanywhere: error: s3://bucket/gone-too"), said
    assert run(arguments("s3://bucket/nowhere", source.parent / "out")) == 2


def test_a_copy_fetches_what_changed_and_drops_what_went(s3: Server, cache: Path) -> None:
    store = BucketStore("s3://bucket/copied")
    for name in ("a/1", "a/2", "b"):
        store.put(name, name.encode())
    copy = local_copy("s3://bucket/copied")
    assert files_of(copy) == {"a/1": b"a/1", "a/2": b"a/2", "b": b"b"} and copy.name == "copied"
    s3.seen.clear()
    store.put("b", b"B")
    store.delete("a/2")
    (copy / "a" / "1").unlink()
    assert files_of(local_copy("s3://bucket/copied")) == {"a/1": b"a/1", "b": b"B"}
    assert s3.seen[("GET", 200)] == 3, "a listing and two objects"
    with pytest.raises(OutputError, match="nothing is there"):
        local_copy("s3://bucket/copied/nowhere")


def test_without_the_library_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ConfigError, match=r"pip install 'changeanywhere\[cloud\]'"):
        store_at("s3://bucket/x")


@pytest.mark.faults
def test_killed_workers_leave_one_set(s3: Server, source: Path, local: Files, tmp_path: Path) -> None:
    """Three processes on one address, one of them killed: the same set, and no lease outlives its process."""
    out = "s3://bucket/killed"
    command = [sys.executable, "-m", "changeanywhere", *arguments(source, out)]
    s3.break_next(slow, 6, "PUT", "killed/A")
    environment = os.environ | environment_of(s3)
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(3)
    ]
    deadline = time.monotonic() + 90
    while not BucketStore(out).list("A") and time.monotonic() < deadline:
        time.sleep(0.1)
    workers[0].send_signal(signal.SIGKILL)
    codes = [(worker.communicate()[1], worker.returncode)[1] for worker in workers]
    assert codes[0] == -signal.SIGKILL and codes[1:] == [0, 0]
    made = files_of(out)
    assert made.keys() == local.keys() and {n for n in made if made[n] != local[n]} <= set()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
