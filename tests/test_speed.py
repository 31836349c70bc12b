"""``changeanywhere speed``: what it says adds up, and it leaves nothing behind."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from changeanywhere.cli import run
from changeanywhere.generation.speed import NETWORKS, STAGES, SpeedOptions, measure_speed


def test_stages_add_up_and_nothing_is_kept(
    tiny_model_folder: Path, source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    options = SpeedOptions(
        model=str(tiny_model_folder), source=source_folder, tile_size=64, num_pairs=8, rounds=2, num_steps=3
    )
    speed = measure_speed(options)
    assert tuple(speed.seconds) == STAGES and all(seconds > 0 for seconds in speed.seconds.values())
    assert speed.ceiling == pytest.approx(speed.at_once / sum(speed.seconds[name] for name in NETWORKS))
    assert speed.pairs_per_second > 0 and 1 <= speed.calls <= 3 * 2
    assert "changeanywhere 0." in speed.machine["versions"] and "3 steps" in speed.machine["model"]
    assert not list((tmp_path / "temporary").iterdir())


def test_more_steps_take_longer_and_only_where_they_should(tiny_model_folder: Path, source_folder: Path) -> None:
    few, many = (
        measure_speed(
            SpeedOptions(model=str(tiny_model_folder), source=source_folder, tile_size=64, num_pairs=4, num_steps=n)
        )
        for n in (2, 20)
    )
    assert many.calls > 4 * few.calls and many.seconds["denoising"] > 3 * few.seconds["denoising"]
    assert many.ceiling < few.ceiling


def test_the_command_prints_a_table(
    tiny_model_folder: Path, source_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--model",
        str(tiny_model_folder),
        "--source",
        str(source_folder),
        "--tile-size",
        "64",
        "--num-pairs",
        "4",
        "--rounds",
        "1",
    ]
    assert run(["speed", *flags]) == 0
    said = capsys.readouterr().out
    rows = re.findall(r"^\| ([a-z ]+) \| ([\d.]+) \| (\d+)% \|$", said, re.MULTILINE)
    assert [row[0] for row in rows] == list(STAGES) and 97 <= sum(int(row[2]) for row in rows) <= 103
    assert re.search(r"whole command: [\d.]+ pairs/s", said) and re.search(r"alone: [\d.]+ pairs/s", said)
    assert run(["speed", "--rounds", "0"]) == 2 and run(["speed", "--source", "nowhere"]) == 2
