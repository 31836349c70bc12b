"""The samplers that blended generation can use: diffusers schedulers behind one name each."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from changeanywhere.diffusion.options import SAMPLERS
from changeanywhere.errors import ConfigError
from changeanywhere.help import among
from changeanywhere.models.borrowed import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from changeanywhere.models.folder import NOISE_SETTINGS

SHARED_SETTINGS = (*NOISE_SETTINGS, "prediction_type")

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
    :func:`falling_timesteps`, ``unipc`` even ones from T down; its attribute ``held`` says which cells of a call its
    corrector leaves as they are.
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
        sampler = _holding_unipc()(**shared, solver_order=2, timestep_spacing="trailing")
    sampler.set_timesteps(num_steps, device=device)
    return sampler


@cache
def _holding_unipc() -> Any:
    """UniPC that leaves ``held`` cells (bool, like its samples; None: none) as they are given.

    Its corrector computes the sample of a call anew, from that of the call before: cells that were replaced in between,
    to be held, would leave q(known, t) for a trajectory of the sampler's own. Elsewhere it is diffusers'.
    """
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler  # and scipy.stats with it

    class HoldingUniPC(UniPCMultistepScheduler):  # type: ignore[misc]
        held: torch.Tensor | None = None

        def multistep_uni_c_bh_update(self, *args: Any, this_sample: torch.Tensor, **named: Any) -> torch.Tensor:
            corrected: torch.Tensor = super().multistep_uni_c_bh_update(*args, this_sample=this_sample, **named)
            return corrected if self.held is None else torch.where(self.held, this_sample, corrected)

    return HoldingUniPC
