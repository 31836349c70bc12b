"""Windows of one size in one batch, also where they begin to be painted at different calls.

A multistep solver begins anew where a cell of a window does; windows that begin at different calls are therefore at
different orders of the solver in one and the same call. Both orders are computed for all of them, which costs nothing
beside the network, and each window takes its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from changeanywhere.diffusion.blended import Calls
from changeanywhere.models.copies import onto

JOINT_SAMPLERS = ("ddim", "dpmsolver++")
"""Those whose steps may be taken window by window; the others' windows are painted together where they begin alike."""


@dataclass(frozen=True)
class Begins:
    """At which calls cells of each window begin, by window: sorted, none empty, the earliest windows first."""

    calls: Sequence[Sequence[int]]

    def under_way(self, call: int) -> int:
        """How many windows are painted in ``call``: the first ones."""
        return sum(own[0] <= call for own in self.calls)

    def anew(self, num_calls: int, device: torch.device) -> Tensor:
        """bool ``[num_calls, N, 1, 1, 1]``: whether a window's solver begins anew at a call. One transfer."""
        table = torch.zeros(num_calls, len(self.calls), dtype=torch.bool)
        for window, own in enumerate(self.calls):
            table[list(own), window] = True
        return onto(table, device).view(num_calls, -1, 1, 1, 1)


@dataclass(frozen=True)
class Windows:
    """What the calls need of windows of one size: ``[N, ..., h, w]`` each."""

    target: Tensor
    """What is held, clean."""
    noise: Tensor
    changed: Tensor
    start: Tensor
    """First call that paints a cell."""
    conditions: Sequence[Tensor]


def paint_jointly(calls: Calls, windows: Windows, begins: Begins, num_held: int) -> Tensor:
    """The held calls → latents ``[N, 3, h, w]``. Before each, cells that wait or are kept are held at q(target, t)."""
    sampler, target, noise = calls.sampler(), windows.target, windows.noise
    anew = begins.anew(num_held, target.device)
    earlier, x = torch.zeros_like(target), target[:0]
    for call in range(begins.calls[0][0], num_held):
        count = begins.under_way(call)
        known = calls.noised(target[:count], noise[:count], call)
        held = ~windows.changed[:count] | (windows.start[:count] > call)
        begun = len(x)
        x = torch.cat([torch.where(held[:begun], known[:begun], x), known[begun:]])  # who begins is at q(target, t)
        calls.tell(call, x)
        prediction = calls.predict(x, call, [condition[:count] for condition in windows.conditions])
        if calls.is_single_step:
            x = sampler.step(prediction, sampler.timesteps[call], x, eta=0.0).prev_sample
        else:
            x = _second_order(sampler, prediction, x, earlier, anew[call, :count], call)
    return x


def _second_order(sampler: Any, prediction: Tensor, x: Tensor, earlier: Tensor, anew: Tensor, call: int) -> Tensor:
    """A step of DPM-Solver++ (2M), of first order for rows that begin ``anew``, and where the solver ends.

    ``earlier``: the clean estimates of the call before, which become those of this one.
    """
    sampler._step_index = call
    clean = sampler.convert_model_output(prediction, sample=x)
    stepped: Tensor = sampler.dpm_solver_first_order_update(clean, sample=x)
    if call < len(sampler.timesteps) - 1:  # the last step goes to zero noise, which the second order cannot
        second = sampler.multistep_dpm_solver_second_order_update([earlier[: len(x)], clean], sample=x)
        stepped = torch.where(anew, stepped, second)
    earlier[: len(x)] = clean
    return stepped
