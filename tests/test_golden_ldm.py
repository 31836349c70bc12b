"""The blended DDIM run of the published latent-diffusion code family, reproduced (numbers: see golden README).

Agreement to 1e-4 of the largest absolute value, in float32, with the recorded noises.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from changeanywhere.cli import run
from changeanywhere.diffusion.blended import Cells, sample_latents
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.diffusion.samplers import build_sampler
from changeanywhere.errors import ModelError
from changeanywhere.legend import load_legend
from changeanywhere.models.folder import Model, noise_schedule
from changeanywhere.models.import_ldm import import_ldm

DUMP = Path(__file__).parents[2] / "shared" / "golden" / "ldm" / "tiny_conv_dump.safetensors"
pytestmark = [
    pytest.mark.numerical,
    pytest.mark.skipif(not DUMP.is_file(), reason=f"golden numbers are not there: {DUMP}"),
]


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


CHECKPOINT = DUMP.with_name("tiny_conv.ckpt")
OEM = load_legend("openearthmap")


@pytest.fixture(scope="module")
def dump() -> dict[str, Tensor]:
    return load_file(DUMP)


@pytest.fixture(scope="module")
def model() -> Model:
    return import_ldm(CHECKPOINT, OEM, num_heads=4, use_ema=False)


def assert_agrees(ours: Tensor, reference: Tensor) -> None:
    error = float((ours - reference).abs().max() / reference.abs().max())
    assert error <= 1e-4, f"{error:.2e} relative to the largest value"


@torch.no_grad()
def test_first_stage(model: Model, dump: dict[str, Tensor]) -> None:
    latent = model.first_stage.encode(dump["img"])
    assert_agrees(latent, dump["latent"])
    quantised, codes = model.first_stage.quantise(dump["latent"])
    assert (codes == dump["code_index"].view_as(codes)).float().mean() > 0.999, "codes may differ at ties"
    assert_agrees(quantised, dump["quantised"])
    assert_agrees(model.first_stage.decode_codes(quantised), dump["decoded"])


@torch.no_grad()
def test_denoiser_and_folded_mask_rescaler(model: Model, dump: dict[str, Tensor]) -> None:
    condition = model.denoiser.encode_masks(dump["label"] + 1)  # here 0 is unknown
    assert_agrees(condition, dump["cond"])
    assert_agrees(model.denoiser(dump["x_t"], dump["t"], condition), dump["eps"])


@torch.no_grad()
def test_whole_blended_run(model: Model, dump: dict[str, Tensor]) -> None:
    class Recorded:
        def __init__(self) -> None:
            self.known, self.step = iter(dump["noise_q"]), iter(dump["noise_ddim"])

        def draw(self, purpose: str) -> Tensor:
            return dump["x_T"] if purpose == "start" else next(self.known if purpose == "known" else self.step)

    changed = dump["keep_latent"] == 0
    latents = sample_latents(
        model.denoiser,
        model.schedule,
        dump["label"] + 1,
        dump["latent"],
        Cells(changed, torch.zeros_like(changed)),
        Recorded(),
        Sampling("ddim", num_steps=5, free_fraction=0.3, known_noise="fresh", eta=1.0),
    )
    assert_agrees(latents, dump["ddim_out"])
    assert_agrees(model.first_stage.decode_codes(model.first_stage.quantise(latents)[0]), dump["final_image"])


def test_averaged_weights_are_the_default(model: Model) -> None:
    averaged = import_ldm(CHECKPOINT, OEM, num_heads=4)
    ratio = averaged.denoiser.unet.conv_in.weight / model.denoiser.unet.conv_in.weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.01), rtol=1e-4, atol=1e-4)


def test_command_writes_a_model_that_generate_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    arguments = ["import", "ldm", str(CHECKPOINT), "--legend", "openearthmap", "--out", str(out)]
    assert run(arguments) == 2
    assert "give --num-heads" in capsys.readouterr().err
    assert run([*arguments, "--num-heads", "4"]) == 0
    pipe = ChangePairPipeline.from_pretrained(out, dtype="float32")
    assert pipe.legend == OEM and pipe.default_sampling.num_steps == 200
    with pytest.raises(ModelError, match="masks have 8 classes, legend 'mini' has 7"):
        import_ldm(CHECKPOINT, load_legend("mini"), num_heads=4)
    (tmp_path / "broken.ckpt").write_bytes(CHECKPOINT.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"not a readable checkpoint \(cut off"):
        import_ldm(tmp_path / "broken.ckpt", OEM, num_heads=4)
