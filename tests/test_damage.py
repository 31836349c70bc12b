"""Damage of a set, file by file: found by the run that would build on it and by ``check``, never explained away."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from changeanywhere.cli import run
from changeanywhere.documents import DocumentError
from changeanywhere.errors import SourceError
from changeanywhere.seals import sealed, unsealed
from changeanywhere.sources import SourceOptions, open_source
from conftest import write_source

Files = dict[str, bytes]


def arguments(folder: Path, command: str = "generate") -> list[str]:
    own = ["--method=copy_paste", "--shard-size=4"] if command == "generate" else []
    return [command, f"--source={folder / 'src'}", f"--out={folder / 'out'}", "--num-pairs=8", "--tile-size=64", *own]


@pytest.fixture(scope="module", params=["generate", "simulate"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A sound set beside its source."""
    folder = tmp_path_factory.mktemp(request.param) / "case"
    write_source(folder / "src", num_tiles=4)
    assert run(arguments(folder, request.param)) == 0
    return request.param, folder


@pytest.fixture
def copied(made: tuple[str, Path], tmp_path: Path) -> tuple[str, Path]:
    """The same, to be damaged; its own source, since jobs name it."""
    shutil.copytree(made[1], tmp_path / "case")
    return made[0], tmp_path / "case"


def files_of(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("asked.json", "report.html")
    }


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_a_line(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join(lines[:1] + lines[2:])


def other_digit(content: bytes) -> bytes:
    """One digit more than it was, in the middle: still JSON, still a number."""
    place = next(i for i in range(len(content) // 2, len(content)) if content[i : i + 1].isdigit())
    digit = b"2" if content[place : place + 1] == b"1" else b"1"
    return content[:place] + digit + content[place + 1 :]


DAMAGES: list[Callable[[bytes], bytes]] = [cut, other_digit, lambda _: b"", lambda _: b"[]", lambda _: b"{}"]
RECORDS = {"generate": "metadata.jsonl", "simulate": "events.jsonl"}


@pytest.mark.parametrize("damage", DAMAGES, ids=["cut", "digit", "empty", "list", "object"])
@pytest.mark.parametrize("name", ["plan/job.json", "plan/plan.json", "plan/shards/00000.json"])
def test_damage_of_job_and_plan(
    copied: tuple[str, Path], name: str, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    command, folder = copied
    file = folder / "out" / name
    file.write_bytes(damage(file.read_bytes()))
    for name in ("report.html", "checksums.json"):  # the set is to be finished again
        (folder / "out" / name).unlink(missing_ok=True)
    before = files_of(folder / "out")
    for again in (arguments(folder, command), ["check", str(folder / "out")]):
        capsys.readouterr()
        assert run(again) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and str(file) in lines[0], lines
    assert files_of(folder / "out") == before, "nothing is written over what is damaged"


@pytest.mark.parametrize("damage", DAMAGES, ids=["cut", "digit", "empty", "list", "object"])
def test_damage_of_a_marker_makes_its_shard_again(
    copied: tuple[str, Path], damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    command, folder = copied
    before = files_of(folder / "out")
    marker = folder / "out" / "shards" / "00000.json"
    marker.write_bytes(damage(marker.read_bytes()))
    assert run(["check", str(folder / "out")]) == 2
    assert str(marker) in capsys.readouterr().err
    assert run(arguments(folder, command)) == 0, "a set that was finished is looked at all the same"
    assert files_of(folder / "out") == before
    assert run(["check", str(folder / "out")]) == 0


def test_a_finished_set_that_lost_its_last_file_is_damaged(
    copied: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not unfinished, which would let check pass over whatever else is wrong with it."""
    command, folder = copied
    last = folder / "out" / ("report.html" if command == "generate" else "annotations.json")
    last.unlink()
    assert run(["check", str(folder / "out")]) == 2
    assert str(last) in capsys.readouterr().err
    assert run(arguments(folder, command)) == 0 and run(["check", str(folder / "out")]) == 0


@pytest.mark.parametrize("damage", [cut, without_a_line, other_digit, lambda _: b""], ids=["cut", "line", "digit", "0"])
@pytest.mark.parametrize("name", ["records", "list/train.txt", "legend.json"])
def test_damage_of_lists_and_metadata(
    copied: tuple[str, Path], name: str, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    command, folder = copied
    out, before = folder / "out", files_of(folder / "out")
    if name == "list/train.txt" and command == "simulate":
        pytest.skip("simulate writes no lists")
    file = out / RECORDS.get(command, "") if name == "records" else out / name
    file.write_bytes(damage(file.read_bytes()))
    if file.read_bytes() == before[file.relative_to(out).as_posix()]:
        pytest.skip("nothing of the kind in this file")
    assert run(["check", str(out)]) == 2
    assert file.name in capsys.readouterr().err
    if command == "generate":  # simulate makes them again at every run
        assert run(arguments(folder)) == 2
        assert str(file) in capsys.readouterr().err
        (out / "checksums.json").unlink()
    assert run(arguments(folder, command)) == 0
    assert files_of(out) == before


def test_damage_of_checksums(copied: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    command, folder = copied
    before = files_of(folder / "out")
    for content in (b"", b"[]", b"{}", sealed({"plan": "0" * 64, "files": {}}), sealed({"files": []})):
        (folder / "out" / "checksums.json").write_bytes(content)
        assert run(["check", str(folder / "out")]) == 2
        assert "checksums.json" in capsys.readouterr().err
        assert run(arguments(folder, command)) == 0
        assert files_of(folder / "out") == before


def test_damage_of_images_is_found_by_check(copied: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    command, folder = copied
    for name in ("A", "B", "label", "label1", "label2") if command == "generate" else ("label", "label1", "label2"):
        file = sorted((folder / "out" / name).iterdir())[-1]
        content = file.read_bytes()
        for damaged in (cut(content), content[:-1] + b"\0", b""):
            file.write_bytes(damaged)
            assert run(["check", str(folder / "out")]) == 2
            assert f"{file}: not the bytes that were written" in capsys.readouterr().err
        file.unlink()
        assert run(["check", str(folder / "out")]) == 2
        assert f"{file}: missing" in capsys.readouterr().err
        file.write_bytes(content)
        stranger = file.with_name("stranger.png")
        stranger.write_bytes(content)
        assert run(["check", str(folder / "out")]) == 2
        assert f"{stranger}: no shard" in capsys.readouterr().err
        stranger.unlink()
    assert run(["check", str(folder / "out")]) == 0


def test_sound_files_of_another_set_are_told_apart(
    copied: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole by themselves, and of other seeds: a marker, a shard's plan, a plan, a job."""
    command, folder = copied
    other = [*arguments(folder, command), "--seed=9"]
    other[2] = f"--out={folder / 'other'}"
    assert run(other) == 0
    for name in ("shards/00000.json", "plan/shards/00000.json", "plan/plan.json", "plan/job.json", "checksums.json"):
        mine = (folder / "out" / name).read_bytes()
        shutil.copy(folder / "other" / name, folder / "out" / name)
        capsys.readouterr()
        assert run(["check", str(folder / "out")]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and Path(name).name in said.replace("job.json", "job.json plan.json")
        (folder / "out" / name).write_bytes(mine)
    assert run(["check", str(folder / "out")]) == 0


def test_the_place_of_the_source_is_no_part_of_the_chain(copied: tuple[str, Path]) -> None:
    command, folder = copied
    moved = folder / "elsewhere" / "case" / "src"
    moved.parent.mkdir(parents=True)
    (folder / "src").rename(moved)
    again = [each.replace(f"{folder / 'src'}", f"{moved}") for each in arguments(folder, command)]
    (folder / "out" / "checksums.json").unlink()
    (folder / "out" / "shards" / "00000.json").unlink()
    assert run(again) == 0
    new = [each.replace(f"{folder / 'out'}", f"{folder / 'new'}") for each in again]
    assert run(new) == 0
    before, after = files_of(folder / "out"), files_of(folder / "new")
    assert {name for name in before if before[name] != after.get(name)} == {"plan/job.json"}


def test_pairs_that_no_filter_dropped_are_missed(copied: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The reported case was "dropped by the filter: 1", of a set without a filter."""
    command, folder = copied
    if command == "simulate":
        pytest.skip("has no filter")
    marker = folder / "out" / "shards" / "00001.json"
    content, _ = unsealed(marker.read_bytes())
    del content["records"][1]
    marker.write_bytes(sealed(content))
    assert run(["check", str(folder / "out")]) == 2
    assert "no filter dropped it" in capsys.readouterr().err
    (folder / "out" / "checksums.json").unlink()
    assert run(arguments(folder)) == 2
    assert "no filter dropped any" in capsys.readouterr().err


def test_a_plan_of_an_edition_without_seals_goes_on(copied: tuple[str, Path]) -> None:
    command, folder = copied
    out = folder / "out"
    pictures = {name: content for name, content in files_of(out).items() if name.endswith(".png")}
    for file in (*(out / "plan").rglob("*.json"), *(out / "shards").iterdir()):
        if file.name != "asked.json":
            content, _ = unsealed(file.read_bytes())
            for key in ("job",) if "plan" in file.parts[-3:-1] and file.name != "job.json" else ("plan",):
                content.pop(key, None)
            file.write_text(json.dumps(content))
    (out / "shards" / "00000.json").unlink()
    (out / "checksums.json").unlink()
    assert run(arguments(folder, command)) == 0
    assert run(["check", str(out)]) == 0
    assert {name: content for name, content in files_of(out).items() if name.endswith(".png")} == pictures


def test_a_mask_that_is_edited_while_a_run_reads_it(tmp_path: Path) -> None:
    write_source(tmp_path / "src", num_tiles=2)
    source = open_source(tmp_path / "src", SourceOptions(tile_size=64))
    file = tmp_path / "src" / "masks" / "tile_1.png"
    content = file.read_bytes()
    source.read(1)
    source.fingerprint()
    source.read(1)
    times = file.stat()
    edited = np.asarray(Image.open(file)).copy()
    edited[30:34, 2:5] = 3
    Image.fromarray(edited).save(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as some editors and copies do
    for read in (source.read, source.read_mask):
        with pytest.raises(SourceError, match=r"tile_1\.png: was edited while the run went on"):
            read(1)
    source.read(0)
    file.write_bytes(content)  # put back: other times, same bytes
    source.read(1)
    (tmp_path / "src" / "images" / "tile_0.png").write_bytes(content)
    with pytest.raises(SourceError):
        source.read(0)


@pytest.mark.parametrize("content", [{"a": 1}, {"a": {"b": [1, 2.5, "ü"]}, "seal": 1}, {"a": "x" * 300}])
@pytest.mark.parametrize("indent", [None, 1])
def test_seals(content: dict[str, object], indent: int | None) -> None:
    data = sealed({key: value for key, value in content.items() if key != "seal"}, indent)
    found, seal = unsealed(data)
    assert found == {key: value for key, value in content.items() if key != "seal"} and len(seal) == 64
    assert json.loads(data)["seal"] == seal
    for place in range(len(data) - 3):
        for byte in (b"0", b"1", b" ", b'"'):
            changed = data[:place] + byte + data[place + 1 :]
            if changed == data or not changed.strip():
                continue
            try:
                again, other = unsealed(changed)
            except DocumentError:
                continue
            assert again == found and other == seal, changed  # a space for a space before the seal
