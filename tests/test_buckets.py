"""Sets in buckets: the same bytes as in a folder, whatever goes wrong on the way. S3 is moto's, Azure azurite's."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

pytest.importorskip("obstore", reason="pip install 'changeanywhere[cloud]'")
pytest.importorskip("moto", reason="pip install 'changeanywhere[dev]': S3 is moto's")

import changeanywhere as ca
from bucket_server import Azurite, Server, Service, find_azurite, half_upload, lost_answer, slow, unavailable
from changeanywhere import buckets
from changeanywhere.buckets import BucketStore, local_copy, store_at
from changeanywhere.cli import run
from changeanywhere.errors import ConfigError, OutputError
from changeanywhere.leases import Leases
from changeanywhere.models.detectors import build_detector
from changeanywhere.models.detectors.folder import save_detector
from changeanywhere.seals import sealed, unsealed
from changeanywhere.storage import LocalStore, address_of, content_hash, shown
from conftest import write_source

if TYPE_CHECKING:
    from bucket_server import Proxy

Files = dict[str, bytes]
HELD = 600.0
"""Seconds, of which a test needs a fraction: how long it hangs where something never comes."""


@pytest.fixture(scope="module", params=[Server, Azurite], ids=["s3", "az"])
def server(request: pytest.FixtureRequest) -> Iterator[Service]:
    if request.param is Azurite and find_azurite() is None:
        pytest.skip("azurite is not installed; make test-clouds installs it")
    one: Service = request.param()
    yield one
    one.close()


@pytest.fixture
def cloud(server: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    server.faults.clear()
    server.seen.clear()
    return server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHANGEANYWHERE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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


@pytest.mark.parametrize("place", ["memory", "cloud"])
def test_a_store_keeps_its_promises(place: str, cloud: Service) -> None:
    scheme = cloud.scheme if place == "cloud" else place
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


def test_of_many_at_once_one_wins(cloud: Service) -> None:
    store = BucketStore(f"{cloud.scheme}://bucket/race")
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


@pytest.mark.parametrize("place", ["memory", "cloud"])
def test_a_set_in_a_bucket_is_the_set_in_a_folder(
    place: str, cloud: Service, source: Path, local: Files, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made from tiles in a bucket, into a bucket; said to be done the second time; read, checked, damaged, found."""
    scheme = cloud.scheme if place == "cloud" else place
    tiles, out = (
        f"{scheme}://bucket/{scheme}/{source.parent.name}/src",
        f"{scheme}://bucket/sets/{cloud.scheme}-{place}",
    )
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
    assert cloud.secret not in "".join(map(str, made.values()))


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


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained one: what it says of the bytes it reads is compared, not judged."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("detector")
    save_detector(build_detector("fc_ef"), "fc_ef", folder)
    return folder


@pytest.mark.parametrize("container", ["folder", "webdataset", "parquet"])
def test_who_reads_sets_reads_them_in_a_bucket(
    container: str, cloud: Service, source: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``check``, ``evaluate``, ``predict``, ``evaluate --detector`` and ``train detector`` say of a set in a bucket, in
    any container, what they say of it in a folder."""
    if container == "parquet":
        pytest.importorskip("pyarrow", reason="pip install 'changeanywhere[parquet]'")
    places = {"folder": str(tmp_path / "set"), "bucket": f"{cloud.scheme}://bucket/read/{container}"}
    found: dict[str, Files] = {}
    for name, place in places.items():
        kind = [f"--format={container if name == 'bucket' else 'folder'}"]
        assert run([*arguments(source, place), *kind]) == 0
        assert run(["check", place]) == 0
        here = tmp_path / name
        recipe = ["--detector.name=fc_ef", f"--detector.pairs={place}", "--detector.train-split=null"]
        recipe += ["--detector.val-split=null", "--detector.crop-size=32", "--detector.batch-size=2"]
        recipe += ["--detector.num-steps=2", "--detector.warmup-steps=0", "--run.num-workers=0"]
        assert run(["train", "detector", *recipe, f"--out={here / 'trained'}"]) == 0
        assert run(["evaluate", f"--pairs={place}", f"--out={here / 'evaluated'}"]) == 0, capsys.readouterr().err
        assert run(["predict", f"--detector={detector}", place, f"--out={here / 'predicted'}"]) == 0
        assert run(["evaluate", f"--detector={detector}", place, f"--out={here / 'scored'}"]) == 0
        files = ["trained/detector/model.safetensors", "evaluated/evaluation.csv", "predicted/changes.csv"]
        files += [path.relative_to(here).as_posix() for path in sorted((here / "predicted" / "change").iterdir())]
        files += [path.relative_to(here).as_posix() for path in sorted((here / "scored").glob("*.csv"))]
        found[name] = {each: (here / each).read_bytes() for each in files}
    assert len(found["folder"]) >= 3 + 8 + 1 and found["folder"] == found["bucket"]
    assert json.loads(BucketStore(places["bucket"]).get("plan/job.json"))["container"] == container


FAULTS = {"503": unavailable, "lost answers": lost_answer, "half uploads": half_upload, "timeouts": slow}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_on_the_way_leave_the_same_set(
    name: str, cloud: Service, source: Path, local: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that timed out arrives all the same, after its repetition or before."""
    if name == "timeouts":
        monkeypatch.setattr(buckets, "LONGEST_REQUEST", 1.0)
    out = f"{cloud.scheme}://bucket/faults/{name.replace(' ', '-')}"
    for part in ("leases/", "/A/", "/shards/", "metadata.jsonl", "plan.json", "/label1/", "checksums"):
        cloud.break_next(FAULTS[name], 2, part=part)
    cloud.break_next(unavailable if name == "503" else half_upload, 2, "GET", "shards")
    cloud.break_next(unavailable, 1, *cloud.deletes)
    assert run(arguments(source, out)) == 0
    assert not cloud.faults, "all of them struck"
    made = files_of(out)
    assert made.keys() == local.keys(), "no orphan, no lease that nobody holds"
    assert {n for n in made if made[n] != local[n]} <= set()
    assert run(["check", out]) == 0


@pytest.mark.parametrize("they", ["were as we", "finished after us", "were overwritten", "left half"])
def test_of_two_workers_on_a_shard_one_result_is_left(
    they: str, cloud: Service, source: Path, local: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another worker's marker is there a moment before ours: same bytes, another kind of machine's that wrote its files
    last, the same before ours overwrote them, and one that is no marker at all."""
    out, theirs = f"{cloud.scheme}://bucket/two/{they.replace(' ', '-')}", png_of_another_machine()

    def first(request: Proxy) -> bool:
        store, content = BucketStore(out), request.body
        marker, _ = unsealed(content)
        name = next(name for name in marker["files"] if name.startswith("B/"))
        if they in ("finished after us", "were overwritten"):
            content = sealed(marker | {"files": marker["files"] | {name: content_hash(theirs)}})
        if they == "finished after us":
            store.put(name, theirs)
        cloud.put_beside(request.path, content[:-9] if they == "left half" else content)
        return False

    cloud.break_next(first, 1, part=f"{Path(out).name}/shards/00001")
    assert run(arguments(source, out)) == 0 and not cloud.faults, capsys.readouterr().err
    assert cloud.seen[("PUT", cloud.refused)] >= 1, "the service refused ours"
    made = files_of(out)
    assert made.keys() == local.keys()
    changed = {n.partition("/")[0] for n in made if made[n] != local[n]}
    assert changed == ({"B", "shards", "checksums.json"} if they == "finished after us" else set())
    assert run(["check", out]) == 0, capsys.readouterr().err


def png_of_another_machine() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def test_workers_that_never_agree_are_told(cloud: Service, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"{cloud.scheme}://bucket/never"

    def first(request: Proxy) -> bool:
        marker, _ = unsealed(request.body)
        files = dict.fromkeys(marker["files"], "0" * 64)
        cloud.put_beside(request.path, sealed(marker | {"files": files}))
        return False

    cloud.break_next(first, 100, part="never/shards/00002")
    assert run(arguments(source, out)) == 2
    assert f"{out}/shards/00002.json: other workers write this shard" in capsys.readouterr().err
    assert "shards/00002.json" not in BucketStore(out).list(), "what is not sound is not there"


def test_a_put_whose_answer_is_lost_knows_its_own_object(cloud: Service) -> None:
    store = BucketStore(f"{cloud.scheme}://bucket/lost")
    cloud.break_next(lost_answer, 1, part="lost/lease")
    assert store.put_new("lease", b"mine")
    assert cloud.seen[("PUT", cloud.refused)] == 1, "the service refused the repetition"

    def first(request: Proxy) -> bool:
        cloud.put_beside(request.path, b"theirs")
        return False

    cloud.break_next(first, 1, part="lost/other")
    assert not store.put_new("other", b"mine") and store.get("other") == b"theirs", "one that loses, loses"


def test_two_of_the_same_process_on_a_lease(cloud: Service) -> None:
    one, other = (Leases(BucketStore(f"{cloud.scheme}://bucket/leases-of-two")) for _ in range(2))
    cloud.break_next(lost_answer, 1, part="leases/7")
    assert one.claim("7") and not other.claim("7")
    one.release("7")
    assert other.claim("7")


def test_a_service_that_is_gone_is_one_line(
    cloud: Service, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(buckets, "TRIES", 1)
    monkeypatch.setattr(buckets, "LONGEST_REQUEST", 1.0)
    monkeypatch.setattr(buckets, "LONGEST_WAIT", 2.0)
    cloud.break_next(slow, 2, "PUT", "gone/plan")
    assert run(arguments(source, f"{cloud.scheme}://bucket/gone")) == 2
    assert "cannot be written" in (said := capsys.readouterr().err) and cloud.secret not in said
    cloud.faults.clear()
    assert run(arguments(source, f"{cloud.scheme}://bucket/gone")) == 0
    for name, value in cloud.environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    assert run(arguments(source, f"{cloud.scheme}://bucket/gone-too")) == 2
    said = capsys.readouterr().err
    assert said.rstrip().splitlines()[-1].startswith(f"changeanywhere: error: {cloud.scheme}://bucket/gone-too"), said
    assert run(arguments(f"{cloud.scheme}://bucket/nowhere", source.parent / "out")) == 2


def test_a_copy_fetches_what_changed_and_drops_what_went(cloud: Service, cache: Path) -> None:
    store = BucketStore(f"{cloud.scheme}://bucket/copied")
    for name in ("a/1", "a/2", "b"):
        store.put(name, name.encode())
    copy = local_copy(f"{cloud.scheme}://bucket/copied")
    assert files_of(copy) == {"a/1": b"a/1", "a/2": b"a/2", "b": b"b"} and copy.name == "copied"
    cloud.seen.clear()
    store.put("b", b"B")
    store.delete("a/2")
    (copy / "a" / "1").unlink()
    assert files_of(local_copy(f"{cloud.scheme}://bucket/copied")) == {"a/1": b"a/1", "b": b"B"}
    assert cloud.seen[("GET", 200)] == 3, "a listing and two objects"
    with pytest.raises(OutputError, match="nothing is there"):
        local_copy(f"{cloud.scheme}://bucket/copied/nowhere")


def test_folders_that_a_console_made_are_no_objects_of_a_set(cloud: Service) -> None:
    """Empty objects whose names end in a slash, which listings leave out: with something in them, and without."""
    if cloud.scheme != "s3":
        pytest.skip("Azure's folders are of another kind")
    store = BucketStore("s3://bucket/made")
    for folder in ("", "images/", "masks/", "nothing/"):
        assert cloud.ask("PUT", f"/bucket/made/{folder}", b"", {"Content-Length": "0"})[0] == 200
    store.put("images/a.png", b"a")
    store.put("masks/a.png", b"")
    assert files_of(local_copy("s3://bucket/made")) == {"images/a.png": b"a", "masks/a.png": b""}
    store.put("images/b.png", b"b")
    assert set(files_of(local_copy("s3://bucket/made"))) == {"images/a.png", "images/b.png", "masks/a.png"}


def test_without_the_library_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ConfigError, match=r"pip install 'changeanywhere\[cloud\]'"):
        store_at("s3://bucket/x")


@pytest.mark.faults
def test_killed_workers_leave_one_set(cloud: Service, source: Path, local: Files) -> None:
    """Three processes on one address. No image is stored before one of them that holds a shard is killed: the others
    take its shard over, the set is the same, and no lease outlives its process."""
    out = f"{cloud.scheme}://bucket/killed"
    command = [sys.executable, "-m", "changeanywhere", *arguments(source, out)]
    over = threading.Event()
    cloud.break_next(lambda request: over.wait(HELD) and False, 1000, "PUT", "killed/A")
    environment = os.environ | cloud.environment()
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    workers = {each.pid: each for each in (subprocess.Popen(command, env=environment, **pipes) for _ in range(3))}  # type: ignore[call-overload]
    try:
        killed = workers.pop(holder_of_a_shard(out, workers.values()))
        killed.kill()
        killed.communicate()
        over.set()
        said = {worker.communicate(timeout=HELD)[1]: worker.returncode for worker in workers.values()}
    finally:
        over.set()
        cloud.faults.clear()
        for worker in workers.values():
            worker.kill()
    assert killed.returncode == -signal.SIGKILL and set(said.values()) == {0}, said
    made = files_of(out)
    assert made.keys() == local.keys() and {n for n in made if made[n] != local[n]} <= set()


def holder_of_a_shard(out: str, workers: Iterable[subprocess.Popen[bytes]]) -> int:
    """Number of the process that holds the lease of a shard whose images are on the way, however long that takes here;
    fails where none can come any more."""
    store = BucketStore(out)
    while all(worker.poll() is None for worker in workers):
        for name in store.list("leases"):
            if Path(name).stem.isdigit():
                return int(json.loads(store.get(name))["pid"])
        time.sleep(0.1)
    raise AssertionError("a worker ended before any was killed")
