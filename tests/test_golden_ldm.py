"""The blended DDIM run of the published latent-diffusion code family, reproduced (numbers: see golden README).

The networks' weights are imported by a later command; here the sampler itself is held against the reference: with
the recorded noises and the recorded schedule.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from changeanywhere.diffusion.samplers import build_sampler
from changeanywhere.models.folder import noise_schedule

DUMP = Path(__file__).parents[2] / "shared" / "golden" / "ldm" / "tiny_conv_dump.safetensors"
pytestmark = pytest.mark.skipif(not DUMP.is_file(), reason=f"golden numbers are not there: {DUMP}")


def test_schedule_and_timesteps_agree() -> None:
    dump = load_file(DUMP)
    schedule = noise_schedule()
    torch.testing.assert_close(schedule.alphas_cumprod, dump["alphas_cumprod"].float(), rtol=1e-5, atol=1e-7)
    sampler = build_sampler("ddim", schedule, 5, torch.device("cpu"))
    assert sampler.timesteps.tolist() == dump["ddim_timesteps"].flip(0).long().tolist()


def test_ddim_steps_use_the_reference_alphas() -> None:
    """One step from known x and ε must be what DDIM's formula gives with the recorded ᾱ, ᾱ_prev and σ (η = 1)."""
    dump = load_file(DUMP)
    sampler = build_sampler("ddim", noise_schedule(), 5, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    x, eps, noise = (torch.randn(1, 3, 8, 8, generator=generator) for _ in range(3))
    for i, timestep in enumerate(sampler.timesteps):
        k = 4 - i
        a, a_prev, sigma = (dump[n][k].float() for n in ("ddim_alphas", "ddim_alphas_prev", "ddim_sigmas"))
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        expected = a_prev.sqrt() * x0 + (1 - a_prev - sigma**2).sqrt() * eps + sigma * noise
        stepped = sampler.step(eps, timestep, x, eta=1.0, variance_noise=noise).prev_sample
        torch.testing.assert_close(stepped, expected, rtol=1e-4, atol=1e-4)
