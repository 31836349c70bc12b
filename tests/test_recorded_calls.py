"""Calls of a denoiser by recordings, with ones that are no CUDA graphs; with such ones in tests/test_gpu.py."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from changeanywhere.models.recorded import EAGER_CALLS, ROWS, Call, Recordings, plain
from conftest import tiny_model

UNET = tiny_model().denoiser.unet.eval()


class Taken:
    """Recordings that answer in one piece of memory, as graphs do, and note what was recorded."""

    def __init__(self, off: float = 0.0) -> None:
        self.sizes: list[tuple[int, ...]] = []
        self.played, self._off, self._busy = 0, off, threading.Lock()

    def __call__(self, network: nn.Module, inputs: Tensor, timesteps: Tensor) -> Call:
        self.sizes.append(tuple(inputs.shape))
        answer = plain(network, inputs, timesteps) * 0

        def play(inputs: Tensor, timesteps: Tensor) -> Tensor:
            assert self._busy.acquire(blocking=False), "two at once would overwrite one another"
            self.played += 1
            assert inputs.shape == self.sizes[self.sizes.index(tuple(inputs.shape))]
            answer.copy_(plain(network, inputs, timesteps) + self._off)
            self._busy.release()
            return answer

        return play


def given(rows: int, side: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 7, side, side, generator=generator), torch.randint(0, 1000, (rows,), generator=generator)


@torch.no_grad()
def test_each_size_is_recorded_once_with_rows_added() -> None:
    taken = Taken()
    recordings = Recordings(UNET, taken)
    for number in range(EAGER_CALLS + 3):
        for rows, side in ((1, 8), (5, 8), (6, 8), (7, 16)):
            inputs, times = given(rows, side, number)
            said = recordings(inputs, times)
            torch.testing.assert_close(said, plain(UNET, inputs, times), atol=1e-4, rtol=1e-4)
            assert said.shape == (rows, 3, side, side)
    assert sorted(taken.sizes) == [(1, 7, 8, 8), (6, 7, 8, 8), (8, 7, 16, 16)], "five rows are six with one added"
    assert taken.played > 3 * 3


@torch.no_grad()
def test_answers_outlast_the_next_call_and_threads_take_turns() -> None:
    taken = Taken()
    recordings = Recordings(UNET, taken)
    for _ in range(EAGER_CALLS):
        recordings(*given(4, 8))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda seed: recordings(*given(4, 8, seed)), range(40)))
    for seed, answer in enumerate(answers):
        torch.testing.assert_close(answer, plain(UNET, *given(4, 8, seed)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_recording_that_says_something_else_is_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    taken = Taken(off=1e-3)
    recordings = Recordings(UNET, taken)
    for _ in range(EAGER_CALLS + 2):
        torch.testing.assert_close(recordings(*given(2, 8)), plain(UNET, *given(2, 8)), atol=1e-6, rtol=1e-6)
        recordings(*given(2, 16))
    assert len(taken.sizes) == 2 and taken.played == 2
    assert capsys.readouterr().err.count("a recording fails (it says something else)") == 1


@torch.no_grad()
def test_a_device_that_cannot_record_is_called_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    def refuses(*_: object) -> Call:
        raise torch.OutOfMemoryError("no memory for a graph")

    recordings = Recordings(UNET, refuses)
    for _ in range(EAGER_CALLS + 2):
        torch.testing.assert_close(recordings(*given(2, 8)), plain(UNET, *given(2, 8)), atol=1e-6, rtol=1e-6)
    assert capsys.readouterr().err.count("no memory for a graph") == 1


def test_few_numbers_of_rows_and_none_much_larger_than_asked() -> None:
    assert ROWS[:7] == (1, 2, 3, 4, 6, 8, 12)
    assert all(larger <= 1.5 * (smaller + 1) for smaller, larger in pairwise(ROWS))
