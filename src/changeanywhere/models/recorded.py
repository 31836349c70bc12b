"""Calls of a denoiser on a GPU as CUDA graphs, one for each size of its input.

A small network keeps a GPU busy for a moment, and the processor needs far longer to ask for its hundreds of kernels one
by one. Recorded once, they are asked for together. Windows come in a few sizes, but in any number: rows are added until
it is one of a few, and left out of the answer.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from changeanywhere.terminal import say

EAGER_CALLS = 2
"""Of each size, before it is recorded: libraries choose their kernels."""
ROWS = tuple(sorted({base << power for power in range(11) for base in (2, 3)} | {1}))
"""Numbers of rows that are recorded: 1, 2, 3, 4, 6, 8, 12, …: a third more than asked for, at most."""
MOST = 96
"""Recordings of a network; other sizes are called as they come."""
Call = Callable[[Tensor, Tensor], Tensor]
"""Inputs ``[N, C, h, w]`` and timesteps int64 ``[N]`` → prediction; it is overwritten by the next call of any size."""


class Recordings:
    """A UNet by recordings; it is not trained, and its weights stay where they are.

    Several threads may call: they take turns, on one stream. Where a recording fails, or differs by a bit from the call
    that it is one of, that size is called as it comes, and one line says so.
    """

    def __init__(self, network: nn.Module, record: Callable[[nn.Module, Tensor, Tensor], Call] | None = None) -> None:
        """``record``: a call that says what the network says of inputs of this size; default: a CUDA graph."""
        self._network, self._record = network, record or _Graphs()
        self._calls: dict[tuple[Any, ...], Call | int] = {}
        self._lock, self._told = threading.Lock(), False

    @torch.no_grad()
    def __call__(self, inputs: Tensor, timesteps: Tensor) -> Tensor:
        """As the network: inputs ``[N, C, h, w]``, timesteps int64 ``[N]`` → ``[N, 3, h, w]``."""
        count = len(inputs)
        more = ROWS[bisect_left(ROWS, count)] - count if count <= ROWS[-1] else 0
        inputs = functional.pad(inputs, (0, 0, 0, 0, 0, 0, 0, more)).contiguous(memory_format=torch.channels_last)
        timesteps = functional.pad(timesteps, (0, more))
        with self._lock:
            return self._called(inputs, timesteps)[:count]

    def _called(self, inputs: Tensor, timesteps: Tensor) -> Tensor:
        key = tuple(inputs.shape), inputs.dtype
        known = self._calls.get(key, 0)
        if callable(known):
            return known(inputs, timesteps).clone()
        said = plain(self._network, inputs, timesteps)
        self._calls[key] = known + 1
        if known + 1 == EAGER_CALLS and sum(map(callable, self._calls.values())) < MOST:
            self._note(key, inputs, timesteps, said)
        return said

    def _note(self, key: tuple[Any, ...], inputs: Tensor, timesteps: Tensor, said: Tensor) -> None:
        """Record what was ``said`` just now, and keep it if it says the same again."""
        try:
            call = self._record(self._network, inputs, timesteps)
            trouble = "" if torch.equal(call(inputs, timesteps), said) else "it says something else"
        except RuntimeError as error:  # of memory, too: the call itself went well
            trouble = " ".join(str(error).split())[:120]
        if not trouble:
            self._calls[key] = call
        elif not self._told:
            self._told = True
            say(f"denoiser {tuple(inputs.shape)}: a recording fails ({trouble}); called kernel by kernel", error=True)


def plain(network: nn.Module, inputs: Tensor, timesteps: Tensor) -> Tensor:
    """The network itself."""
    said: Tensor = network(inputs, timesteps).sample
    return said


class _Graphs:
    """Records CUDA graphs that share their memory, since one is played after the other."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, network: nn.Module, inputs: Tensor, timesteps: Tensor) -> Call:
        """One graph, of the size of ``inputs``."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        lies, times = torch.empty_like(inputs).copy_(inputs), timesteps.clone()
        graph = torch.cuda.CUDAGraph()
        # Watched in this thread alone: others copy to the device meanwhile, which a recording forbids.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            said = plain(network, lies, times)

        def play(inputs: Tensor, timesteps: Tensor) -> Tensor:
            lies.copy_(inputs)
            times.copy_(timesteps)
            graph.replay()
            return said

        return play
