"""Planning by several processes: the same plan, and what one of them meets reaches whoever plans."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from changeanywhere.errors import ChangeAnywhereError, InputError
from changeanywhere.events import EventRequest
from changeanywhere.events.options import EventOptions
from changeanywhere.generation import channel, planners
from changeanywhere.generation.channel import Channel, begin_process
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.planners import Planners, Question
from changeanywhere.generation.prepare import get_plan, job_of
from changeanywhere.generation.tiles import Tiles
from changeanywhere.progress import silent
from changeanywhere.storage import LocalStore
from conftest import write_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source", num_tiles=7)


def options_of(source: Path, out: Path, events: EventOptions) -> GenerateOptions:
    return GenerateOptions(source=source, out=out, num_pairs=60, tile_size=64, seed=3, shard_size=16, events=events)


def tiles_of(source: Path, out: Path) -> Tiles:
    return job_of(options_of(source, out, EventOptions()), LocalStore(out), silent).tiles


def planned(source: Path, out: Path, events: EventOptions) -> dict[str, bytes]:
    store = LocalStore(out)
    get_plan(job_of(options_of(source, out, events), store, silent), store, silent)
    return {name: store.get(name) for name in store.list() if name != "plan/job.json"}


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planners, "WORTH", 8)
    monkeypatch.setattr(planners, "TOGETHER", 3)
    monkeypatch.setattr(planners, "usable_processors", lambda: 2)


@pytest.mark.parametrize(
    "events", [EventOptions(), EventOptions(shape_bank=True)], ids=["plain", "shapes of the source"]
)
def test_several_processes_make_the_plan_of_one(
    events: EventOptions, source: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = planned(source, tmp_path / "alone", events)
    request.getfixturevalue("several")
    begun: list[str] = []
    begin = begin_process

    def noting(module: str, first: Any) -> tuple[Popen[bytes], Channel]:
        begun.append(module)
        return begin(module, first)

    monkeypatch.setattr(channel, "begin_process", noting)
    assert planned(source, tmp_path / "several", events) == alone
    assert begun == ["changeanywhere.generation.planners"] * 2
    assert len([name for name in alone if "shards" in name]) > 2


def questions(count: int) -> list[Question]:
    return [Question(0, number % 7, number, EventRequest()) for number in range(count)]


@pytest.mark.usefixtures("several")
def test_a_tile_that_cannot_be_read_is_said_in_its_own_words(source: Path, tmp_path: Path) -> None:
    tiles = tiles_of(source, tmp_path / "out")
    mask = sorted((source / "masks").iterdir())[2]
    mask.write_bytes(b"no image")
    with Planners(tiles, 3, 60) as answering, pytest.raises(InputError, match=mask.name):
        list(answering.answered(questions(60)))


@pytest.mark.usefixtures("several")
def test_a_process_that_dies_ends_the_planning(source: Path, tmp_path: Path) -> None:
    tiles = tiles_of(source, tmp_path / "out")
    with Planners(tiles, 3, 600) as answering, pytest.raises(ChangeAnywhereError, match="has ended"):
        for asked, _ in answering.answered(questions(600)):
            if asked.round_number == 10:
                os.kill(answering.processes[0].pid, signal.SIGKILL)
    assert all(process.poll() is not None for process in answering.processes)


@pytest.mark.usefixtures("several")
def test_whoever_stops_asking_leaves_no_process_behind(source: Path, tmp_path: Path) -> None:
    tiles = tiles_of(source, tmp_path / "out")
    with Planners(tiles, 3, 600) as answering:
        assert next(answering.answered(questions(600)))[0] == questions(1)[0]
    assert all(process.poll() is not None for process in answering.processes)
