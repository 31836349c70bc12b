"""Processes that read and write for a device: the same bytes, the same errors, the same ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from changeanywhere.errors import ChangeAnywhereError, ModelError
from changeanywhere.events.options import EventOptions
from changeanywhere.generation import generate as generation
from changeanywhere.generation.hands import Hands
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.plan import load_shard
from changeanywhere.generation.prepare import get_plan, job_of
from changeanywhere.painters.base import Batch, Painting
from changeanywhere.painters.diffusion import DiffusionPainter
from changeanywhere.progress import silent
from changeanywhere.storage import LocalStore


@pytest.fixture
def options(source_folder: Path, tiny_model_folder: Path, tmp_path: Path) -> Callable[[str], GenerateOptions]:
    def of(name: str) -> GenerateOptions:
        return GenerateOptions(
            source=source_folder,
            out=tmp_path / name,
            model=str(tiny_model_folder),
            num_pairs=7,
            num_steps=2,
            tile_size=64,
            shard_size=2,
            batch_size=2,
            seed=3,
            exemplar_strength=0.5,
            reconstruct_t1=name == "reconstructed",
            events=EventOptions(shape_bank=name == "shapes of the source"),
        )

    return of


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "asked.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def set_hands(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(generation, "hands_for", lambda job, num_shards: count)


@pytest.mark.parametrize("name", ["plain", "reconstructed", "shapes of the source"])
def test_the_same_bytes(
    name: str, options: Callable[[str], GenerateOptions], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = options(name)
    generation.generate(asked)
    alone = tree(asked.out)
    asked.out.rename(tmp_path / "alone")
    set_hands(monkeypatch, 2)
    assert generation.generate(asked).num_new == 7
    assert tree(asked.out) == alone


def test_an_error_of_the_painter_ends_the_run_as_it_is(
    options: Callable[[str], GenerateOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_hands(monkeypatch, 2)

    def paint(self: DiffusionPainter, batch: Batch) -> list[Painting]:
        raise ModelError("this model is damaged")

    with monkeypatch.context() as patch, pytest.raises(ModelError, match=r"^this model is damaged$"):
        patch.setattr(DiffusionPainter, "paint", paint)
        generation.generate(options("out"))
    assert generation.generate(options("out")).num_pairs == 7


def test_an_error_in_a_process_ends_the_run_as_it_is(
    options: Callable[[str], GenerateOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_hands(monkeypatch, 1)
    asked = options("out")

    def paint(self: DiffusionPainter, batch: Batch) -> list[Painting]:
        return [
            Painting(i, plan, batch.images[0], batch.images[0] * float("nan")) for i, plan in enumerate(batch.plans)
        ]

    monkeypatch.setattr(DiffusionPainter, "paint", paint)
    with pytest.raises(ModelError, match="was painted with NaN"):
        generation.generate(asked)


class _Still:
    def __init__(self, asked: Callable[[], object]) -> None:
        self._asked = asked

    def paint(self, batch: Batch) -> list[Painting]:
        self._asked()
        return [Painting(i, plan, batch.images[0], batch.images[0]) for i, plan in enumerate(batch.plans)]


def test_a_killed_process_is_said_in_one_line(options: Callable[[str], GenerateOptions]) -> None:
    asked = options("out")
    store = LocalStore(asked.out)
    job = job_of(asked, store, silent)
    get_plan(job, store, silent)
    with Hands(job, store, 1) as hands:
        painter = _Still(lambda: os.kill(hands.processes[0].pid, signal.SIGKILL))
        with pytest.raises(ChangeAnywhereError, match=r"^shard 0: a process that read and wrote it has ended"):
            hands.make(0, painter, lambda count: None, threading.Event())


def test_nothing_is_begun_after_stop_and_what_is_begun_is_finished(
    options: Callable[[str], GenerateOptions],
) -> None:
    asked = options("out")
    store, stop = LocalStore(asked.out), threading.Event()
    job = job_of(asked, store, silent)
    get_plan(job, store, silent)
    painted: list[int] = []
    with Hands(job, store, 1) as hands:
        hands.make(0, _Still(stop.set), painted.append, stop)  # asked to stop while it is painted
        assert sum(painted) == len(load_shard(store, 0).pairs)
        with pytest.raises(Exception, match=r"^$") as stopped:
            hands.make(1, _Still(lambda: None), painted.append, stop)
        assert stopped.typename == "StoppedError"
    assert (asked.out / "shards" / "00000.json").is_file() and not (asked.out / "shards" / "00001.json").exists()
