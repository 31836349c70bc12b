"""The samplers that blended generation can use: diffusers schedulers behind one name each."""

from __future__ import annotations

from typing import Any

import torch

from changeanywhere.diffusion.options import SAMPLERS
from changeanywhere.errors import ConfigError
from changeanywhere.help import among
from changeanywhere.models.borrowed import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

SHARED_SETTINGS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
)


SPACING = 1.5
"""Timesteps of DPM-Solver++ fall as (1 − i/N)^SPACING: 1 is even spacing, 2 the quadratic one of DDIM (Song et al.
2021, App. D.2). Even spacing jumps over the low noise at which textures are made; what the exponents buy stands in
docs/quality.md."""


def falling_timesteps(num_steps: int, num_train_timesteps: int) -> list[int]:
    """``num_steps`` timesteps from the last one down, dense towards 0, no two the same."""
    last = num_train_timesteps - 1
    timesteps: list[int] = []
    for i in reversed(range(num_steps)):
        wanted = round(last * (1 - i / num_steps) ** SPACING)
        timesteps.append(max(wanted, timesteps[-1] + 1 if timesteps else 0))
    return timesteps[::-1]


def build_sampler(name: str, schedule: DDPMScheduler, num_steps: int, device: torch.device) -> Any:
    """A fresh scheduler (they keep state between calls) with ``num_steps`` timesteps set.

    ``ddim`` steps like the published latent-diffusion code: even spacing from the start, offset 1, and the final ᾱ
    is ᾱ[0]. The multistep solvers end at zero noise and are of second order; ``dpmsolver++`` has
    :func:`falling_timesteps`, ``unipc`` even ones from T down.
    Raises :class:`ConfigError` for an unknown name or more steps than the model was trained with.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"sampler is {name!r}; allowed: {among(name, SAMPLERS)}")
    limit = schedule.config.num_train_timesteps
    if not 1 <= num_steps < limit:
        raise ConfigError(f"num_steps is {num_steps}; allowed: 1 to {limit - 1}")
    shared = {key: schedule.config[key] for key in SHARED_SETTINGS}
    sampler: Any
    if name == "ddim":
        # diffusers clips samples to [-1, 1] unless told otherwise: latents are not images.
        sampler = DDIMScheduler(
            **shared, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
        )
    elif name == "dpmsolver++":
        sampler = DPMSolverMultistepScheduler(**shared, algorithm_type="dpmsolver++", solver_order=2)
        sampler.set_timesteps(timesteps=falling_timesteps(num_steps, limit), device=device)
        return sampler
    else:
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler  # and scipy.stats with it

        sampler = UniPCMultistepScheduler(**shared, solver_order=2, timestep_spacing="trailing")
    sampler.set_timesteps(num_steps, device=device)
    return sampler
