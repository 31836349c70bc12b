"""Nothing is written outside of the output folder, and nothing in it that is not ours is emptied."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from changeanywhere.cli import run
from changeanywhere.errors import OutputError
from changeanywhere.leases import Leases
from changeanywhere.storage import LocalStore, atomic_file, atomic_folder, atomic_write, check_out, remove_leftovers
from conftest import write_source

Snapshot = dict[str, bytes]


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder of somebody else, which is as it was at the end."""
    folder = tmp_path / "victim"
    (folder / "sub").mkdir(parents=True)
    (folder / "file").write_bytes(b"precious")
    (folder / "sub" / "00000.json").write_bytes(b"precious too")
    before = of(folder)
    yield folder
    assert of(folder) == before


def of(folder: Path) -> Snapshot:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def command(folder: Path, name: str = "generate", out: str = "out") -> list[str]:
    own = ["--method=copy_paste", "--shard-size=2"] if name == "generate" else []
    return [name, f"--source={folder / 'src'}", f"--out={folder / out}", "--num-pairs=4", "--tile-size=64", *own]


PLACES = ["A", "B", "label", "label1", "label2", "list", "plan", "plan/shards", "shards", "leases"]


@pytest.mark.parametrize("place", PLACES)
def test_folders_that_are_links_lead_nowhere(
    tmp_path: Path, victim: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "src", num_tiles=2)
    link = tmp_path / "out" / place
    assert run(command(tmp_path)) == 0
    for file in sorted(link.rglob("*"), reverse=True) if link.is_dir() else ():
        file.rmdir() if file.is_dir() else file.unlink()
    if link.is_dir():
        link.rmdir()
    link.symlink_to(victim / "sub" if place != "plan" else victim, target_is_directory=True)
    (tmp_path / "out" / "report.html").unlink()
    for file in (tmp_path / "out" / "shards").glob("0000[01].json") if place != "shards" else ():
        file.unlink()
    capsys.readouterr()
    assert run(command(tmp_path)) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "━" not in line)
    assert "link" in line or "damaged" in line or "not a file" in line, line


FILES = [
    *("metadata.jsonl", "legend.json", "README.md", "report.html", "checksums.json", "list/train.txt"),
    *("plan/asked.json", "shards/00000.json", "A/tile_0_0.png", "label/tile_0_0.png", "leases/plan.json"),
    *("leases/set.json", "leases/0.json"),
]


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_links_are_replaced_and_never_followed(tmp_path: Path, victim: Path, name: str) -> None:
    write_source(tmp_path / "src", num_tiles=2)
    out = tmp_path / "out"
    assert run(command(tmp_path)) == 0
    for place in ("report.html", "checksums.json", "shards/00000.json", "shards/00001.json", name):
        (out / place).unlink(missing_ok=True)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).symlink_to(victim / "missing" if name.startswith("leases") else victim / "file")
    assert run(command(tmp_path)) == 0
    assert not (out / name).is_symlink()
    assert run(["check", str(out)]) == 0


def test_temporary_files_are_new_files(tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name can be known beforehand: a link, a pipe or a file that lies there is never opened."""
    monkeypatch.setattr("changeanywhere.storage.part_of", lambda path: path.with_name(".known.1.2.part"))
    store, part = LocalStore(tmp_path / "out"), tmp_path / "out" / ".known.1.2.part"
    part.parent.mkdir()
    for plant in (lambda: part.symlink_to(victim / "file"), lambda: os.mkfifo(part), lambda: part.write_bytes(b"x")):
        plant()
        store.put("b", b"content")
        plant()
        assert store.put_new("c", b"content") and not store.put_new("c", b"other")
        plant()
        atomic_write(tmp_path / "out" / "d", b"content")
        assert [store.get(name) for name in "bcd"] == [b"content"] * 3
        assert not part.exists() and not part.is_symlink()
        store.delete("c")
    part.mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        store.put("b", b"other")
    assert store.get("b") == b"content"


def test_a_folder_that_takes_the_place_of_links(tmp_path: Path, victim: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").symlink_to(victim / "file")
    (model / "denoiser").symlink_to(victim / "sub", target_is_directory=True)
    (model / "README.md").symlink_to(victim / "file")
    with atomic_folder(model, "model.json") as part:
        (part / "denoiser").mkdir()
        (part / "denoiser" / "00000.json").write_bytes(b"new")
        for name in ("model.json", "README.md"):
            (part / name).write_bytes(b"new")
    assert all(content in (b"new", b"") for content in of(model).values())


def test_a_folder_takes_no_folder_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    (model / "scheduler").mkdir(parents=True)
    theirs = model / "scheduler" / "theirs.json"
    theirs.write_bytes(b"theirs")

    def write(content: bytes) -> None:
        with atomic_folder(model, "model.json") as part:
            (part / "scheduler").mkdir()
            (part / "scheduler" / "ours.json").write_bytes(content)
            (part / "model.json").write_bytes(content)

    with pytest.raises(OutputError, match=r"scheduler: holds other files, and no model\.json beside it"):
        write(b"new")
    assert [path.name for path in model.rglob("*")] == ["scheduler", "theirs.json"]
    assert theirs.read_bytes() == b"theirs"
    theirs.unlink()
    write(b"old")
    remove = shutil.rmtree

    def ended(place: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise KeyboardInterrupt
        remove(place, ignore_errors=True)

    with monkeypatch.context() as cut:
        cut.setattr(shutil, "rmtree", ended)
        with pytest.raises(KeyboardInterrupt):
            write(b"new")
    assert not (model / "model.json").exists(), "a crash leaves nothing that could be taken for a model"
    write(b"new")
    assert sorted(path.name for path in model.rglob("*")) == ["model.json", "ours.json", "scheduler"]
    assert (model / "scheduler" / "ours.json").read_bytes() == b"new"


def test_leftovers_are_ours_alone(tmp_path: Path, victim: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    kept = [".draft.part", ".x.y.part", ".a.999999999.b.part", "a.999999999.1.part", ".b.999999999@00000000.1.part"]
    for name in kept:
        (out / name).write_bytes(b"somebody's")
    (out / ".c.999999999.1.part").write_bytes(b"ours")
    (out / ".d.999999999.1.part").symlink_to(victim, target_is_directory=True)
    (out / ".e.999999999.1.part").mkdir()
    (out / "link").symlink_to(victim, target_is_directory=True)
    (victim / ".f.999999999.1.part").write_bytes(b"theirs")
    remove_leftovers(out)
    assert sorted(path.name for path in out.iterdir()) == sorted([*kept, "link"])
    assert (victim / ".f.999999999.1.part").exists()
    (victim / ".f.999999999.1.part").unlink()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name in ("pipe", "zero", "folder", "socket"):
            with pytest.raises(OSError):
                store.get(name)
    (tmp_path / "leases").mkdir()
    os.mkfifo(tmp_path / "leases" / "plan.json")
    with pytest.raises(OSError):
        Leases(store).claim("plan")


@pytest.mark.parametrize("how", ["flag", "equals", "recipe", "merged", "inline", "device", "folder"])
def test_a_recipe_is_a_file_and_opens_no_other(tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "recipe.yaml").write_text(f"config: {tmp_path / 'pipe'}\n")
    (tmp_path / "merged.yaml").write_text(f"<<: [{{config: {tmp_path / 'pipe'}}}]\n")
    given = {
        "flag": ["--config", str(tmp_path / "pipe")],
        "equals": [f"--config={tmp_path / 'pipe'}"],
        "recipe": ["--config", str(tmp_path / "recipe.yaml")],
        "merged": ["--config", str(tmp_path / "merged.yaml")],
        "inline": ["--config", f"config: {tmp_path / 'pipe'}"],
        "device": ["--config", "/dev/zero"],
        "folder": ["--config", str(tmp_path)],
    }[how]
    signal.alarm(20)  # ends a test that waits
    try:
        assert run([*command(tmp_path, "simulate"), *given]) == 2
    finally:
        signal.alarm(0)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "config" in said and "allowed" in said


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", ".", "a/../b"])
def test_names_of_objects(tmp_path: Path, name: str) -> None:
    for act in (LocalStore(tmp_path / "out").get, LocalStore(tmp_path / "out").delete):
        with pytest.raises(OutputError, match="no name of an object"):
            act(name)
    with pytest.raises(OutputError):
        LocalStore(tmp_path / "out").put(name, b"")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("out", ["s3://bucket/set", "gs://b/x", "file:///data/x", "https://a/b", "s3:/b"])
def test_addresses_are_no_folders(
    tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a command writes to folders alone, an address makes no folder of that name."""
    write_source(tmp_path / "src", num_tiles=2)
    monkeypatch.chdir(tmp_path)
    commands = [
        ["train", "segmenter", f"--data.source={tmp_path / 'src'}", f"--out={out}"],
        ["evaluate", "--model=mini", f"--source={tmp_path / 'src'}", f"--out={out}"],
        ["benchmark", "--pairs=x", f"--out={out}"],
        ["import", "opencd", "x.pth", f"--out={out}"],
        ["import", "ldm", "x.ckpt", "--legend=mini", f"--out={out}"],
        ["check", str(tmp_path / "src"), f"--preview={out}.png"],
    ]
    for each in commands:
        assert run(each) == 2, each
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "allowed: a folder of this machine" in said, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


@pytest.mark.parametrize(
    "out",
    ["file:///data/x", "https://a/b", "hdfs://a/b", "s3://", "s3://u:secret@b/x", "s3://b/x?key=secret", "s3://b/../x"],
)
def test_addresses_without_support_are_refused(
    tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "src", num_tiles=2)
    monkeypatch.chdir(tmp_path)
    for each in (command(tmp_path), command(tmp_path, "simulate"), ["finish"], ["check"]):
        place = [*each, f"--out={out}"] if len(each) > 1 else [*each, out]
        assert run(place) == 2, place
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "allowed: " in said and "secret" not in said, said
    assert run(["generate", f"--source={out}", "--out=set"]) == 2
    assert "allowed: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]


@pytest.mark.parametrize("inside", ["src/out", "src/images/out", "src", "link/out", "src/../src/a/b"])
def test_a_source_is_no_place_for_results(tmp_path: Path, inside: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At the first run; the second would read its own results as tiles."""
    write_source(tmp_path / "src", num_tiles=2)
    (tmp_path / "link").symlink_to("src")
    before = of(tmp_path / "src")
    for each in (
        command(tmp_path, out=inside),
        command(tmp_path, "simulate", inside),
        [*command(tmp_path, out=inside), "--dry-run"],
        ["train", "segmenter", f"--data.source={tmp_path / 'src'}", f"--out={tmp_path / inside}"],
        ["evaluate", "--model=mini", f"--source={tmp_path / 'src'}", f"--out={tmp_path / inside}"],
    ):
        assert run(each) == 2, each
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "in the source" in said, said
    assert of(tmp_path / "src") == before
    check_out(tmp_path / "src2", tmp_path / "src")
    check_out(tmp_path / "out", tmp_path / "src", None, "")


def test_files_last_before_their_marker_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a marker names was synchronised before the marker was put in its place, and the marker's folder after it."""
    write_source(tmp_path / "src", num_tiles=2)
    seen: list[tuple[str, str]] = []
    sync, replace, link = os.fsync, Path.replace, os.link

    def synced(number: int) -> None:
        seen.append(("sync", str(Path(f"/proc/self/fd/{number}").readlink())))
        sync(number)

    def replaced(path: Path, target: Path) -> Path:
        seen.append(("put", str(target)))
        return replace(path, target)

    def linked(path: Path, target: Path) -> None:
        seen.append(("put", str(target)))
        link(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(Path, "replace", replaced)
    assert run(command(tmp_path)) == 0
    out = str(tmp_path / "out")
    marker = seen.index(("put", f"{out}/shards/00000.json"))
    images = [what for what in seen if what[0] == "put" and "/tile_0_" in what[1]]
    assert len(images) >= 5
    assert all(seen.index(("sync", image)) < marker for _, image in images)
    assert ("sync", f"{out}/shards/00000.json") in seen[marker:] and ("sync", f"{out}/shards") in seen[marker:]
    plan = seen.index(("put", f"{out}/plan/plan.json"))
    assert seen.index(("sync", f"{out}/plan/shards/00000.json")) < plan < seen.index(("sync", f"{out}/plan/plan.json"))
    with atomic_file(tmp_path / "checkpoint.pt") as target:
        target.write(b"x")
    assert seen[-2] == ("put", str(tmp_path / "checkpoint.pt")) and seen[-1] == ("sync", str(tmp_path))


def test_a_lease_that_is_none_is_nobodys(tmp_path: Path) -> None:
    """A link to somebody's file in its place held a run up for two minutes."""
    victim = tmp_path / "victim"
    victim.write_text("somebody's words")
    (tmp_path / "set" / "leases").mkdir(parents=True)
    (tmp_path / "set" / "leases" / "plan.json").symlink_to(victim)
    started = time.monotonic()
    with Leases(LocalStore(tmp_path / "set")).waited_for("plan", lambda: False) as ours:
        assert ours and time.monotonic() - started < 5
    assert victim.read_text() == "somebody's words"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the kernel says it on Linux alone")
def test_what_a_child_that_ended_was_writing_goes(tmp_path: Path) -> None:
    """Also while its parent has not asked for its end: the number is still taken."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    part = tmp_path / f".1.json.{child.pid}.1.part"
    part.touch()
    remove_leftovers(tmp_path)
    assert part.exists(), "it is alive"
    child.kill()
    end = time.monotonic() + 20
    while part.exists() and time.monotonic() < end:
        remove_leftovers(tmp_path)
        time.sleep(0.01)
    assert not part.exists()
    assert child.wait() != 0
    assert child.stdin is not None
    child.stdin.close()
