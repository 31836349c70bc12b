"""Blended latent diffusion (paper §2.4, eq. 6; DESIGN §4).

Shapes: B pairs, latents ``[B, 3, h, w]``, cell masks bool ``[B, 1, h, w]``, semantic masks int64 ``[B, 4h, 4w]``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from changeanywhere.diffusion.samplers import SAMPLERS, build_sampler, forget_history
from changeanywhere.errors import ConfigError
from changeanywhere.models.denoiser import Denoiser
from changeanywhere.models.first_stage import DOWNSAMPLING

KNOWN_NOISE = ("fresh", "fixed")


@dataclass(frozen=True)
class Sampling:
    """How the second date is painted. The reference setting is 200 DDIM steps, η = 1, fresh noise."""

    sampler: str = "dpmsolver++"
    """``ddim``, ``dpmsolver++`` (2M) or ``unipc``."""
    num_steps: int = 20
    """Denoiser calls."""
    free_fraction: float = 0.1
    """Share of the last steps in which unchanged ground is painted freely under mask t2 (N_min of the paper)."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 = off."""
    known_noise: str = "fixed"
    """Noise on the known latent: ``fresh`` at every step or ``fixed``, one per pair (what ODE solvers assume)."""
    eta: float = 1.0
    """Stochasticity of DDIM: 1 = DDPM-like (reference), 0 = deterministic. Ignored by the other samplers."""
    dilate_cells: int = 0
    """Latent cells (4 px) by which the repainted part reaches over the change mask."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        checks = [
            ("sampler", self.sampler, self.sampler in SAMPLERS, ", ".join(SAMPLERS)),
            ("num_steps", self.num_steps, 1 <= self.num_steps < 1000, "1 to 999"),
            ("free_fraction", self.free_fraction, 0 <= self.free_fraction <= 1, "0 to 1"),
            ("guidance_scale", self.guidance_scale, 0 <= self.guidance_scale <= 30, "0 to 30"),
            ("known_noise", self.known_noise, self.known_noise in KNOWN_NOISE, ", ".join(KNOWN_NOISE)),
            ("eta", self.eta, 0 <= self.eta <= 1, "0 to 1"),
            ("dilate_cells", self.dilate_cells, 0 <= self.dilate_cells <= 16, "0 to 16"),
        ]
        for name, value, allowed, what in checks:
            if not allowed:
                raise ConfigError(f"{name} is {value!r}; allowed: {what}")


class NoiseSource(Protocol):
    """Where a run's noise comes from: ``draw(purpose)`` → ``[B, 3, h, w]`` float32, standard normal."""

    def draw(self, purpose: str) -> Tensor:
        """``purpose``: "start", "known" (on the known latent) or "step" (DDIM's own)."""
        ...


class NoiseStreams:
    """One stream per pair and purpose, seeded by the pair alone, so that batching changes no pair's noise.

    Drawn on the CPU: the same numbers on every device.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        self._seeds, self._shape = list(seeds), tuple(shape)
        self._streams: dict[str, list[torch.Generator]] = {}

    def draw(self, purpose: str) -> Tensor:
        """Next noise of every pair ``[B, *shape]``."""
        if purpose not in self._streams:
            self._streams[purpose] = [_stream(seed, purpose) for seed in self._seeds]
        return torch.stack([torch.randn(self._shape, generator=g) for g in self._streams[purpose]])


def _stream(seed: int, purpose: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def changed_cells(change_masks: Tensor, dilate_cells: int = 0) -> Tensor:
    """Change masks bool ``[B, H, W]`` → cells to repaint bool ``[B, 1, h, w]``, by max-pooling.

    Nearest-neighbour subsampling loses changes under 4 px; max-pooling repaints a cell that any changed pixel touches.
    """
    cells = F.max_pool2d(change_masks.float().unsqueeze(1), DOWNSAMPLING)
    if dilate_cells:
        cells = F.max_pool2d(cells, 2 * dilate_cells + 1, stride=1, padding=dilate_cells)
    return cells > 0


def unknown_cells(masks: Tensor, changed: Tensor) -> Tensor:
    """Cells with unknown ground and no change: kept to the last call. bool ``[B, 1, h, w]``."""
    cells = F.max_pool2d((masks == 0).float().unsqueeze(1), DOWNSAMPLING) > 0
    kept: Tensor = cells & ~changed
    return kept


@torch.no_grad()
def sample_latents(
    denoiser: Denoiser,
    schedule: DDPMScheduler,
    masks_t2: Tensor,
    known: Tensor,
    changed: Tensor,
    unknown: Tensor,
    noise: NoiseSource,
    sampling: Sampling,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Paint ``masks_t2`` ``[B, H, W]`` while the ``known`` latents of t1 hold outside ``changed`` → ``[B, 3, h, w]``.

    Before call i at timestep t_i, while i < int(N·(1 − free_fraction)): x = M ⊙ x + (1 − M) ⊙ q(known, t_i) (eq. 6,
    with one mask M = ``changed``). Afterwards only ``unknown`` cells are still held. With ``free_fraction`` 0 the
    known latent is put back clean at the end; unknown cells always are. ``on_step(i, x)`` sees the input of each call.
    """
    sampler = build_sampler(sampling.sampler, schedule, sampling.num_steps, known.device)
    predict = _guided(denoiser, masks_t2, sampling.guidance_scale)
    alphas = schedule.alphas_cumprod.to(known.device)
    held_calls = int(sampling.num_steps * (1 - sampling.free_fraction))
    known_noise = None
    x = noise.draw("start").to(known)
    for i, timestep in enumerate(sampler.timesteps):
        free = i >= held_calls
        held = unknown if free else ~changed
        if i == held_calls:
            forget_history(sampler)
        if bool(held.any()):
            if known_noise is None or sampling.known_noise == "fresh":
                known_noise = noise.draw("known").to(known)
            alpha = alphas[int(timestep)]
            x = torch.where(held, alpha.sqrt() * known + (1 - alpha).sqrt() * known_noise, x)
        if on_step is not None:
            on_step(i, x)
        prediction = predict(x, timestep.expand(len(x)))
        x = _step(sampler, prediction, timestep, x, sampling.eta, noise)
    put_back = ~changed if sampling.free_fraction == 0 else unknown
    return torch.where(put_back, known, x)


def _guided(denoiser: Denoiser, masks: Tensor, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Prediction under ``masks``; with guidance both branches go through the UNet as one batch."""
    condition = denoiser.encode_masks(masks)
    if scale == 1:
        return lambda x, t: denoiser(x, t, condition)
    null = denoiser.encode_masks(masks, torch.ones(len(masks), dtype=torch.bool, device=masks.device))
    both = torch.cat([condition, null])

    def predict(x: Tensor, timesteps: Tensor) -> Tensor:
        conditional, unconditional = denoiser(torch.cat([x, x]), torch.cat([timesteps, timesteps]), both).chunk(2)
        guided: Tensor = unconditional + scale * (conditional - unconditional)
        return guided

    return predict


def _step(sampler: Any, prediction: Tensor, timestep: Tensor, x: Tensor, eta: float, noise: NoiseSource) -> Tensor:
    previous: Tensor
    if isinstance(sampler, DDIMScheduler):
        step_noise = noise.draw("step").to(x) if eta > 0 else None
        previous = sampler.step(prediction, timestep, x, eta=eta, variance_noise=step_noise).prev_sample
    else:
        previous = sampler.step(prediction, timestep, x).prev_sample
    return previous
