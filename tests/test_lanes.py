"""Batches painted at once on a CPU: how many, on how many threads, and that no byte follows from it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from changeanywhere.generation import generate as generation
from changeanywhere.generation.job import Job, Machine
from changeanywhere.generation.lanes import Lanes, ahead, lanes_of
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.prepare import job_of
from changeanywhere.models.norms import quick_norms
from changeanywhere.painters.base import Batch, Painting
from changeanywhere.painters.registry import find_painter
from changeanywhere.pairs.names import CHANGE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS
from changeanywhere.progress import silent
from changeanywhere.storage import LocalStore


@pytest.fixture
def options(source_folder: Path, tiny_model_folder: Path, tmp_path: Path) -> GenerateOptions:
    return GenerateOptions(
        source=source_folder, out=tmp_path / "out", model=str(tiny_model_folder), num_pairs=8, tile_size=64,
        num_steps=2, shard_size=8, batch_size=1, dtype="float32", device="cpu", num_threads=1, seed=3,
    )  # fmt: skip


def job_with(options: GenerateOptions, machine: Machine) -> Job:
    return replace(job_of(options, LocalStore(options.out), silent), machine=machine)


@pytest.mark.parametrize(
    ("threads", "lanes"),
    [
        (1, (1, 1)),
        (2, (2, 1)),
        (3, (3, 1)),
        (4, (4, 1)),
        (5, (4, 1)),
        (6, (3, 2)),
        (8, (4, 2)),
        (11, (2, 5)),
        (64, (4, 16)),
    ],
)
def test_threads_are_shared_among_few_batches(options: GenerateOptions, threads: int, lanes: tuple[int, int]) -> None:
    machine = Machine("cpu", "float32", 2, threads, False)
    assert lanes_of(job_with(options, machine)) == Lanes(*lanes)


def test_one_batch_at_a_time_on_a_gpu_compiled_or_by_others(options: GenerateOptions) -> None:
    assert lanes_of(job_with(options, Machine("cuda", "float32", 2, 4, False))) == Lanes(1, 4)
    assert lanes_of(job_with(options, Machine("cpu", "float32", 2, 4, True))) == Lanes(1, 4)
    pasted = replace(options, method="copy_paste", num_steps=None, dtype=None, device=None, num_threads=None)
    assert lanes_of(job_with(pasted, Machine("cpu", "float32", 2, 4, False))) == Lanes(1, 4)


def test_two_lanes_paint_at_once_the_bytes_of_one(options: GenerateOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Any = find_painter("diffusion")
    paint, both, met = kind.paint, threading.Barrier(2), set[int]()

    def meeting(self: Any, batch: Batch) -> list[Painting]:
        if both is not None and not met:
            both.wait(30)  # comes back only where a second batch is painted meanwhile
        met.add(torch.get_num_threads())
        paintings: list[Painting] = paint(self, batch)
        return paintings

    monkeypatch.setattr(kind, "paint", meeting)
    two = generation.generate(replace(options, out=options.out / "two", num_threads=2))
    assert met == {1} and two.num_pairs == 8
    monkeypatch.undo()
    one = generation.generate(replace(options, out=options.out / "one"))
    for folder in (*IMAGE_FOLDERS, *MASK_FOLDERS, CHANGE_FOLDER):
        files = sorted((one.out / folder).iterdir())
        assert len(files) == 8
        for file in files:
            assert file.read_bytes() == (two.out / folder / file.name).read_bytes(), file


def test_what_nobody_asks_for_any_more_is_not_begun() -> None:
    begun, go = [], threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        assert go.wait(30)
        if number == 0:
            raise RuntimeError("the first")
        return number

    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="the first"):
        results = ahead(pool, work, range(9), 3)
        go.set()
        for _ in results:
            pass
    assert 0 in begun and 8 not in begun and len(begun) <= 3


@pytest.mark.parametrize(("channels", "side"), [(64, 8), (64, 20), (128, 31), (64, 40)])
def test_small_maps_in_bfloat16_are_normalised_as_torch_does(channels: int, side: int) -> None:
    torch.manual_seed(side)
    norm = nn.GroupNorm(32, channels).to(torch.bfloat16)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, channels, side, side).mul(3).add(1).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected, names = norm(x), list(norm.state_dict())
        exact = nn.functional.group_norm(x.float(), 32, norm.weight.float(), norm.bias.float())
        found = quick_norms(norm)(x)
        assert type(norm) is not nn.GroupNorm and list(norm.state_dict()) == names
        assert found.dtype == torch.bfloat16 and found.is_contiguous(memory_format=torch.channels_last)
        assert (found.float() - exact).abs().max() <= (expected.float() - exact).abs().max() + 1e-6
        in_full = norm.float()(x.float())
        assert torch.equal(in_full, nn.functional.group_norm(x.float(), 32, norm.weight, norm.bias))
