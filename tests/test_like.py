"""Sets like a labelled few of a target: change ratios and sizes measured on labels, asked of the simulator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from changeanywhere.cli import run as command
from changeanywhere.errors import ConfigError
from changeanywhere.events import EventOptions
from changeanywhere.generation.like import _strata, like_pairs
from changeanywhere.generation.targets import SetTargets
from changeanywhere.pairs.reader import PairDataset
from conftest import write_source

SIDES = ((), (), (10,), (12, 12), (12, 16), (16, 16, 10))
"""Squares of each pair, px; the first two do not change."""


def write_target(root: Path) -> Path:
    """Six pairs of 64 px with squares that are there at the second date."""
    for folder in ("A", "B", "label", "list"):
        (root / folder).mkdir(parents=True)
    for number, sides in enumerate(SIDES):
        label = np.zeros((64, 64), np.uint8)
        for place, side in enumerate(sides):
            label[2 + 20 * place : 2 + 20 * place + side, 4 : 4 + side] = 255
        for folder, array in (("A", np.zeros((64, 64, 3), np.uint8)), ("B", label[..., None].repeat(3, 2))):
            Image.fromarray(array).save(root / folder / f"{number}.png")
        Image.fromarray(label).save(root / "label" / f"{number}.png")
    (root / "list" / "train.txt").write_text("".join(f"{number}.png\n" for number in range(6)))
    return root


def test_what_is_measured(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target")
    targets, events = like_pairs(SetTargets(like=str(target)), EventOptions())
    assert targets.no_change == pytest.approx(1 / 3, abs=1e-5)
    assert sum(targets.ratios.values()) == pytest.approx(2 / 3, abs=1e-5) and len(targets.ratios) == 2
    edges = [float(edge) for text in targets.ratios for edge in text.split("-")]
    low, high = edges[0], edges[-1]
    assert low <= 100 / 4096 and high > (2 * 256 + 100) / 4096
    assert events.areas[0] >= 100 and events.areas[-1] <= 256
    assert targets.like is not None and targets.like.startswith("target: 6 labels of ")
    listing = tmp_path / "few.txt"
    listing.write_text("2.png\n3.png\n")
    few, _ = like_pairs(SetTargets(like=str(target), like_list=str(listing)), EventOptions())
    assert few.no_change == 0 and few.like is not None and ": 2 labels of " in few.like


def test_equal_ratios_have_the_share_that_they_have() -> None:
    """Strata whose ends are one were merged, and the rest shared evenly; tiny ratios asked for nothing."""
    tied = _strata(np.array([0.01] * 6 + [0.2, 0.3]), 1.0)
    assert [*tied.values()] == pytest.approx([0.75, 0.25], abs=1e-5)
    high = _strata(np.array([0.1, 0.2] + [0.3] * 6), 0.8)
    assert sum(high.values()) == pytest.approx(0.8, abs=1e-5) and [*high.values()][-1] >= 0.6
    assert [*_strata(np.linspace(0.01, 0.3, 12), 1.0).values()] == [0.25] * 4
    tiny = _strata(np.array([1.0e-5, 1.2e-5]), 0.5)
    assert tiny == {"0.00000-0.00002": 0.5}


def test_what_is_refused(tmp_path: Path) -> None:
    target = str(write_target(tmp_path / "target"))
    (tmp_path / "quiet.txt").write_text("0\n1\n")
    (tmp_path / "absent.txt").write_text("9.png\n")
    for given, events, message in (
        (SetTargets(like=target, no_change=0.1), EventOptions(), "targets.no_change is 0.1"),
        (SetTargets(like=target), EventOptions(areas=(1, 2)), "events.areas is"),
        (SetTargets(like=target, like_list=str(tmp_path / "quiet.txt")), EventOptions(), "pairs of which some change"),
        (
            SetTargets(like=target, like_list=str(tmp_path / "absent.txt")),
            EventOptions(),
            r"absent.txt: 9.png is not",
        ),
        (SetTargets(like=target, like_list=str(tmp_path / "no.txt")), EventOptions(), r"no.txt: cannot be read"),
    ):
        with pytest.raises(ConfigError, match=message):
            like_pairs(given, events)
    with pytest.raises(ConfigError, match=r"targets\.like_list is 'x'"):
        SetTargets(like_list="x").check()


def test_a_set_is_made_like_its_target_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write_source(tmp_path / "source"), write_target(tmp_path / "target")
    out = tmp_path / "out"
    arguments = [
        "simulate", "--source", str(source), "--out", str(out), "--num-pairs", "12", "--targets.like", str(target),
        "--events.shape-bank", "--legend", "mini", "--tile-size", "64",
    ]  # fmt: skip
    assert command(arguments) == 0, capsys.readouterr().err
    rows = {row["target"]: row for row in json.loads((out / "targets.json").read_text())}
    assert len(rows) == 3 and all(abs(row["asked"] - row["reached"]) < 0.05 for row in rows.values())
    records = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    areas = [event["area"] for record in records for event in record["events"]]
    assert areas and max(areas) <= 256 and min(areas) >= 64
    job = json.loads((out / "plan" / "job.json").read_text())
    assert job["targets"]["like"].startswith("target: 6 labels") and job["events"]["areas"]
    assert command(arguments) == 0, "the same command finds it finished"
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(target / "label" / "0.png")
    assert command(arguments) == 2 and "was made with" in capsys.readouterr().err


def test_sizes_that_limits_keep_events_from_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Objects of 100 to 256 px are asked for, and none below 200 px is drawn."""
    source, target, out = write_source(tmp_path / "source"), write_target(tmp_path / "target"), tmp_path / "out"
    arguments = [
        "simulate", "--source", str(source), "--num-pairs", "6", "--legend", "mini", "--tile-size", "64",
        "--events.shape-bank",
    ]  # fmt: skip
    like = ["--targets.like", str(target), "--out", str(out)]
    assert command([*arguments, *like]) == 0
    assert "never drawn" not in capsys.readouterr().err
    assert len(rows_of(out)) == 3, "as there was"
    bounded = [*arguments, "--events.min-area", "200", "--events.areas"]
    assert command([*bounded, "[100, 150, 250, 300]", "--out", str(tmp_path / "sizes")]) == 0
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if "never drawn" in line]
    assert said == [
        f"{source}: of the sizes that events.areas asks for 50% (below events.min_area, 200 px) are never drawn"
    ]
    (row,) = rows_of(tmp_path / "sizes")
    assert row == {"target": "sizes asked for that events.min_area allows (200 px)", "asked": 1.0, "reached": 0.5}
    assert "asked 100.0%, reached 50.0%" in captured.out


def rows_of(folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads((folder / "targets.json").read_text())
    return rows


@pytest.mark.parametrize(
    ("content", "words"), [(b"\xff\xfe\xd8", "not readable"), (b"", "is empty"), (b"x\n", "x is not in")]
)
def test_a_list_of_labels_that_is_none_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    target = PairDataset(tmp_path, ["a.png", "b.png"])
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        target.listed(tmp_path / "list.txt", "the target")
    (tmp_path / "list.txt").write_text("b\n")
    assert target.listed(tmp_path / "list.txt", "the target").names == ("b.png",)
