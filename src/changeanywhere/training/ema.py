"""Moving average of the weights: what samples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average whose half-life is a share of the steps so far (Karras et al. 2022, ramp-up).

    So it is warm from the first step, and at the end never remembers more than that share of the run.
    """

    def __init__(self, module: nn.Module, halflife_share: float) -> None:
        self.halflife_share = halflife_share
        self.weights = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """After optimiser step number ``step`` (from 0)."""
        decay = 0.5 ** (1 / max(self.halflife_share * (step + 1), 1e-3))
        values = module.state_dict()
        moving = [name for name, value in values.items() if value.is_floating_point()]
        # All at once: on a GPU a kernel for dozens of them, not one for each.
        torch._foreach_lerp_([self.weights[name] for name in moving], [values[name] for name in moving], 1 - decay)
        for name in values.keys() - set(moving):  # how many batches a normalisation has seen
            self.weights[name].copy_(values[name])

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over averaged weights from a checkpoint."""
        for name, value in weights.items():
            self.weights[name].copy_(value)
