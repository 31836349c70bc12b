"""Several jobs on one set: plan, shares, finish; also when some are killed. The same bytes as one job makes."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from changeanywhere.cli import run
from changeanywhere.errors import ConfigError
from changeanywhere.generation import fidelity
from changeanywhere.generation.shares import Share
from changeanywhere.legend import load_legend
from changeanywhere.models.segmenter import Segmenter
from conftest import write_source
from test_faults import arguments, finish, start, tree


def test_shares_are_every_nth_shard_and_nothing_is_lost() -> None:
    numbers = [0, 1, 2, 5, 7, 8]
    for count in (1, 2, 3, 7):
        parts = [Share(index, count).of(numbers) for index in range(count)]
        assert sorted(number for part in parts for number in part) == numbers
    assert Share.parse(None) == Share(0, 1) and Share.parse("3/8") == Share(3, 8)
    for wrong in ("8/8", "-1/4", "1", "1/0", "a/b", "1/2/3", "", " 1/2", "1/2\n"):
        with pytest.raises(ConfigError, match=r"(?s)shard is .*allowed: I/N with I from 0 to N - 1"):
            Share.parse(wrong)


def test_plan_shares_and_finish_make_what_one_job_makes(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, whole = write_source(tmp_path / "source", num_tiles=10), tmp_path / "out", tmp_path / "whole"
    command = arguments(source, tiny_model_folder, out, 20)[1:]
    assert run(["plan", *command[1:]]) == 0
    assert "planned 20 pairs in 5 shards" in capsys.readouterr().out
    assert json.loads((out / "plan" / "job.json").read_text())["machine"] is None
    assert not list(out.glob("shards/*")) and not (out / "metadata.jsonl").exists()
    assert run(["finish", str(out)]) == 1
    assert "5 of 5 shards are not there (0, 1, 2, 3, 4); generate --shard" in capsys.readouterr().err
    assert run([*command, "--shard", "1/3"]) == 0
    assert "painted 8 pairs" in (said := capsys.readouterr().out) and "3 shards are still open" in said
    assert json.loads((out / "plan" / "job.json").read_text())["machine"]["dtype"] == "float32"
    other = [*command[: command.index("--dtype")], "--dtype", "bfloat16", "--shard", "0/3"]
    assert run(other) == 2, "the first share settled on what the set is painted"
    assert "was made with machine.dtype = 'float32'" in capsys.readouterr().err
    assert run([*command, "--shard", "1/3"]) == 0, "again: nothing of it is open"
    assert run([*command, "--shard", "2/3"]) == 0
    assert not (out / "metadata.jsonl").exists()
    capsys.readouterr()
    assert run([*command, "--shard", "0/3"]) == 0, "the last one makes the lists"
    assert "20 in the dataset" in capsys.readouterr().out
    assert run(arguments(source, tiny_model_folder, whole, 20)[1:]) == 0
    assert tree(out) == tree(whole)
    capsys.readouterr()
    assert run(["finish", str(out)]) == 0
    assert "(20 pairs)" in capsys.readouterr().out
    assert run([*command, "--shard", "2/3"]) == 0
    assert "nothing to do: all 20" in capsys.readouterr().out
    for name in ("metadata.jsonl", "report.html"):
        (out / name).unlink()
    assert run(["finish", str(out)]) == 0
    assert tree(out) == tree(whole), "from the markers alone"


def test_a_place_without_a_plan_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["finish", str(tmp_path)]) == 2
    assert "no plan in it; make one with 'changeanywhere plan'" in capsys.readouterr().err


@pytest.mark.parametrize("infeasible", ["elsewhere", "leave"])
def test_finish_says_what_generate_says(
    infeasible: str, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Changes that found no place end it with 1 once the set is whole, unless they were to be left out."""
    source, out = write_source(tmp_path / "source", num_tiles=4), tmp_path / "out"
    for file in (source / "masks").iterdir():
        Image.fromarray(np.full((64, 64), 1, np.uint8)).save(file)
    mask = np.full((64, 64), 1, np.uint8)
    mask[20:30, 0:10] = 4  # touches the border: can disappear, cannot be copied
    Image.fromarray(mask).save(source / "masks" / "tile_3.png")
    command = [*arguments(source, tiny_model_folder, out, 4)[1:], "--infeasible", infeasible]
    assert run(["plan", *command[1:]]) == 0
    parts = ("--shard", "0/1")
    code = run([*command, *parts])
    said = capsys.readouterr()
    for name in ("metadata.jsonl", "checksums.json"):
        (out / name).unlink()
    for _ in range(2):  # made now, and found finished
        assert run(["finish", str(out)]) == code == (1 if infeasible == "elsewhere" else 0)
        finished = capsys.readouterr()
        assert (out / "metadata.jsonl").exists() and (out / "checksums.json").exists()
        card, page = (out / "README.md").read_text(), (out / "report.html").read_text()
        assert "Left out: " in card and "</b>left out: " in page, "what no tile has room for, too"
        if infeasible == "elsewhere":
            assert "pairs; missing: " in finished.err and "no tile has room for it" in page
            assert finished.err.splitlines()[-1] == said.err.splitlines()[-1]
        else:
            left = [line for line in said.out.splitlines() if line.startswith("left out: ")]
            assert left and left == [line for line in finished.out.splitlines() if line.startswith("left out: ")]
    assert run(command) == code, "the command that made it, too"


def test_finish_says_what_the_filter_dropped(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(self: object, images: object, plans: list[object]) -> list[float]:
        return [0.2, *[0.9] * (len(plans) - 1)]

    monkeypatch.setattr(fidelity.FidelityFilter, "scores", scores)
    Segmenter("unet", load_legend("mini")).save(tmp_path / "reader")
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    command = [*arguments(source, tiny_model_folder, out, 8)[1:], "--filter.model", str(tmp_path / "reader")]
    assert run(command) == 0
    assert "dropped by the filter: 4" in capsys.readouterr().out
    assert run(["finish", str(out)]) == 0
    assert "dropped by the filter: 4" in (said := capsys.readouterr().out) and "(4 pairs)" in said


@pytest.mark.faults
def test_killed_shares_lose_nothing(tmp_path: Path, tiny_model_folder: Path) -> None:
    """Eight processes on 200 pairs, as a SLURM array would start them; five are killed and started again."""
    source, out, whole = write_source(tmp_path / "source", num_tiles=20), tmp_path / "out", tmp_path / "whole"
    command = arguments(source, tiny_model_folder, out, 200)
    assert run(["plan", *command[2:]]) == 0
    shares = {index: start([*command, "--shard", f"{index}/8"]) for index in range(8)}
    killed = 0
    while any(process.poll() is None for process in shares.values()):
        for index, process in list(shares.items()):
            done = len(list((out / "shards").glob("*.json")))
            if process.poll() is None and killed < 5 and done >= 5 * (killed + 1):
                process.send_signal(signal.SIGKILL)
                assert finish(process)[0] == -signal.SIGKILL
                killed += 1
                shares[index] = start([*command, "--shard", f"{index}/8"])
        time.sleep(0.02)
    assert killed == 5
    assert {finish(process)[0] for process in shares.values()} == {0}
    assert run(["finish", str(out)]) == 0
    assert finish(start(arguments(source, tiny_model_folder, whole, 200)), 600)[0] == 0
    assert tree(out) == tree(whole)
