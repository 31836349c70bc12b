"""Scenes that a denoiser is not trained on: how well its average finds noise in them, and which weights did best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from changeanywhere.errors import SourceError
from changeanywhere.models.first_stage import FirstStage
from changeanywhere.sources import Source, held_out
from changeanywhere.training.processes import Processes

MOST_TILES = 64
"""Evenly spaced over those that are held out."""
AT_ONCE = 8
TIMESTEPS = 4
"""In how much noise each tile is looked at: a quarter of the schedule apart, at other places for every tile."""
SEED = 0
"""The same noise at every measurement, and for every seed of a training."""


def held_out_of(source: Source, share: float) -> tuple[Source, list[Source]]:
    """As :func:`changeanywhere.sources.held_out`; :class:`SourceError` where there is nothing that could be."""
    rest, held = held_out(source, share)
    if not held:
        raise SourceError(f"{source.root}: one scene, of which none can be held out; set denoiser.held_out to 0")
    return rest, held


class HeldOut:
    """Latents and masks of held out tiles, and the best weights so far."""

    def __init__(self, sources: Sequence[Source], first_stage: FirstStage, processes: Processes, patience: int) -> None:
        self._processes, self._patience = processes, patience
        places = [(source, index) for source in sources for index in range(len(source))]
        samples = [source.read(index) for source, index in places[:: -(-len(places) // MOST_TILES)]]
        images = torch.from_numpy(np.stack([sample.pixels() for sample in samples])).permute(0, 3, 1, 2)
        with torch.no_grad(), processes.accelerator.autocast():
            encoded = [first_stage.encode(*processes.put(part.contiguous())) for part in images.split(AT_ONCE)]
        self._latents = torch.cat(encoded).float()
        masks = np.stack([sample.mask for sample in samples]).astype(np.int64)
        self._masks = torch.from_numpy(masks).to(processes.device)
        self.loss, self.waited = float("inf"), 0
        self.weights: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._masks)

    @torch.no_grad()
    def measure(self, loss_of: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], num_timesteps: int) -> float:
        """Mean of ``loss_of(latents, masks, timesteps, noise)`` over tiles and noises."""
        generator = torch.Generator().manual_seed(SEED)
        total = torch.zeros((), device=self._processes.device)
        count = len(self)
        for number in range(TIMESTEPS):
            noise = torch.randn(self._latents.shape, generator=generator)
            steps = ((torch.arange(count) / count + number) * num_timesteps / TIMESTEPS).long()
            for rows in torch.arange(count).split(AT_ONCE):
                drawn = (each[rows].to(self._processes.device) for each in (steps, noise))
                total += loss_of(self._latents[rows], self._masks[rows], *drawn) * len(rows)
        return float(self._processes.mean(total[None] / (count * TIMESTEPS)))

    def take(self, loss: float, weights: Mapping[str, Tensor]) -> None:
        """Note a measurement; its weights are kept if they are the best."""
        if loss < self.loss:
            self.loss, self.waited = loss, 0
            self.weights = {name: value.detach().clone() for name, value in weights.items()}
        else:
            self.waited += 1

    @property
    def over(self) -> bool:
        """Whether patience is at its end."""
        return 0 < self._patience <= self.waited

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"loss": self.loss, "waited": self.waited, "weights": self.weights}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state`."""
        self.loss, self.waited = float(state["loss"]), int(state["waited"])
        weights = state["weights"]
        self.weights = weights and {name: value.to(self._processes.device) for name, value in weights.items()}
