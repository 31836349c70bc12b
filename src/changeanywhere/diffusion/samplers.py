"""The samplers that blended generation can use: diffusers schedulers behind one name each."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from itertools import pairwise
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

PER_MILLE = 1000
"""Timesteps of settings (guidance_interval, critic.until, strength × 1000) are of this many, whatever number of them a
model was trained with."""


def per_mille(timestep: int, schedule: DDPMScheduler) -> float:
    """A timestep of ``schedule`` as settings speak of it, of :data:`PER_MILLE`."""
    return timestep * PER_MILLE / int(schedule.config.num_train_timesteps)


def falling_timesteps(num_steps: int, num_train_timesteps: int) -> list[int]:
    """``num_steps`` timesteps from the last one down, dense towards 0, no two the same."""
    last = num_train_timesteps - 1
    timesteps: list[int] = []
    for i in reversed(range(num_steps)):
        wanted = round(last * (1 - i / num_steps) ** SPACING)
        timesteps.append(max(wanted, timesteps[-1] + 1 if timesteps else 0))
    return timesteps[::-1]


def even_timesteps(num_steps: int, num_train_timesteps: int) -> list[int]:
    """``num_steps`` timesteps down to 1, no two the same, that of the published latent-diffusion code where these reach
    the start of the trajectory: T // N apart. Where a step or more would be missing there, as evenly as may be over
    all of it."""
    gap, missing = divmod(num_train_timesteps, num_steps)
    rising = [gap * i if missing < gap else num_train_timesteps * i // num_steps for i in range(num_steps)]
    return [timestep + 1 for timestep in reversed(rising)]


def build_sampler(name: str, schedule: DDPMScheduler, num_steps: int, device: torch.device) -> Any:
    """A fresh scheduler (they keep state between calls) with ``num_steps`` timesteps set.

    ``ddim`` steps like the published latent-diffusion code: :func:`even_timesteps`, and the final ᾱ is ᾱ[0]. The
    multistep solvers end at zero noise and are of second order; ``dpmsolver++`` has :func:`falling_timesteps`,
    ``unipc`` even ones from T down; its attribute ``held`` says which cells of a call its corrector leaves as they are.
    Raises :class:`ConfigError` for an unknown name, for as many steps as the model was trained with or more, and where
    the timesteps are not ``num_steps`` of the model's own, all different: a call more or less paints noise.
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
        sampler = EvenDDIM(**shared, clip_sample=False, set_alpha_to_one=False)
        sampler.set_timesteps(num_steps, device=device)
    elif name == "dpmsolver++":
        sampler = DPMSolverMultistepScheduler(**shared, algorithm_type="dpmsolver++", solver_order=2)
        sampler.set_timesteps(timesteps=falling_timesteps(num_steps, limit), device=device)
    else:
        sampler = _holding_unipc()(**shared, solver_order=2, timestep_spacing="trailing")
        sampler.set_timesteps(num_steps, device=device)
    timesteps = {int(timestep) for timestep in sampler.timesteps}
    if not len(timesteps) == len(sampler.timesteps) == num_steps or min(timesteps) < 0 or max(timesteps) >= limit:
        raise ConfigError(
            f"num_steps is {num_steps}, of which {name} makes {len(sampler.timesteps)} timesteps from "
            f"{max(timesteps)} to {min(timesteps)}; allowed: as many as are asked for, all different, 0 to {limit - 1}"
        )
    return sampler


class EvenDDIM(DDIMScheduler):  # type: ignore[misc]
    """DDIM over :func:`even_timesteps`. diffusers' own goes T // N back at every step, which leaves the start of the
    trajectory out where N does not divide T: of 501 steps the first would be at 501, of 999."""

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """As diffusers' own, but for where the timesteps lie."""
        super().set_timesteps(num_inference_steps, device=device)
        timesteps = even_timesteps(num_inference_steps, self.config.num_train_timesteps)
        self.timesteps = torch.tensor(timesteps, device=device)
        self._gaps = {now: now - then for now, then in pairwise([*timesteps, 0])}

    def step(self, model_output: torch.Tensor, timestep: int, *args: Any, **named: Any) -> Any:
        """As diffusers' own, to the timestep that comes next; after the last one to ᾱ[0]."""
        # It goes back by num_train_timesteps // num_inference_steps: a fraction makes that this gap, whatever it is.
        self.num_inference_steps = Fraction(self.config.num_train_timesteps, self._gaps[int(timestep)])
        return super().step(model_output, timestep, *args, **named)


@cache
def _holding_unipc() -> Any:
    """UniPC that leaves ``held`` cells (bool, like its samples; None: none) as they are given.

    Its corrector computes the sample of a call anew, from that of the call before: cells that were replaced in between,
    to be held, would leave q(known, t) for a trajectory of the sampler's own. Elsewhere it is diffusers'.
    """
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler  # and scipy.stats with it

    class HoldingUniPC(UniPCMultistepScheduler):  # type: ignore[misc]
        held: torch.Tensor | None = None
        timesteps: torch.Tensor
        sigmas: torch.Tensor

        def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
            super().set_timesteps(num_inference_steps, device=device)
            # Counted in fractions from T down to 0, for which 61 times 1000/61 leave room: an extra timestep of -1.
            self.timesteps = self.timesteps[:num_inference_steps]
            self.sigmas = torch.cat([self.sigmas[:num_inference_steps], self.sigmas[-1:]])
            self.num_inference_steps = num_inference_steps

        def multistep_uni_c_bh_update(self, *args: Any, this_sample: torch.Tensor, **named: Any) -> torch.Tensor:
            corrected: torch.Tensor = super().multistep_uni_c_bh_update(*args, this_sample=this_sample, **named)
            return corrected if self.held is None else torch.where(self.held, this_sample, corrected)

    return HoldingUniPC
