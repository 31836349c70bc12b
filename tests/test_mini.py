"""The embedded model on the example tiles: what the README promises."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from changeanywhere.diffusion.pipeline import ChangePairPipeline, default_device, default_dtype, to_uint8
from changeanywhere.events import pair_seed, simulate
from changeanywhere.models.folder import find_model
from changeanywhere.sources import open_source

pytestmark = pytest.mark.numerical
EXAMPLES = Path(str(resources.files("changeanywhere") / "assets" / "examples"))
MINI = find_model("mini")


@pytest.fixture(scope="module", params=["float32", "default"])
def pipe(request: pytest.FixtureRequest) -> ChangePairPipeline:
    """In float32, and in what ``generate`` would take here."""
    if request.param == "float32":
        return ChangePairPipeline.from_pretrained("mini", dtype="float32")
    if default_dtype(default_device()) == "float32":
        pytest.skip("the default is float32 here")
    return ChangePairPipeline.from_pretrained("mini")


def psnr(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((first[where].astype(float) - second[where]) ** 2).mean()))


def test_size_and_licence() -> None:
    weights = [file.stat().st_size for file in MINI.rglob("*.safetensors")]
    assert sum(weights) <= 32e6 and max(weights) <= 16e6
    card = (MINI / "README.md").read_text()
    assert "CC0-1.0" in card and "CC-BY-4.0" in card
    source = open_source(EXAMPLES)
    assert 8 <= len(source) <= 12
    assert {item.licence for item in source.items} == {"CC0-1.0", "CC-BY-4.0"}
    assert {item.split for item in source.items} == {"val"}, "never trained on"


def test_reconstruction_keeps_colour_and_detail(pipe: ChangePairPipeline) -> None:
    source = open_source(EXAMPLES)
    images = torch.stack(
        [torch.from_numpy(s.normalisation.apply(s.image)).permute(2, 0, 1) for s in (source[i] for i in range(12))]
    )
    decoded = pipe.decode(pipe.encode(images))
    mse = (decoded - images).square().mean((1, 2, 3))
    assert float((10 * torch.log10(4 / mse)).mean()) > 22
    assert (decoded.mean((2, 3)) - images.mean((2, 3))).abs().max() < 0.06, "no colour cast"


def test_unchanged_ground_survives_without_a_free_tail(pipe: ChangePairPipeline) -> None:
    """Unchanged pixels 16 px and more away from any change: within 0.5 dB of the plain reconstruction of t1."""
    source = open_source(EXAMPLES)
    for index in (1, 8):
        sample = source[index]
        plan = simulate(sample.mask, source.legend, pair_seed(1, sample.item.key, 0))
        assert plan is not None
        painted = pipe(sample.image, plan.mask_t2, plan.change_mask, num_steps=4, free_fraction=0.0, seed=1)
        pixels = torch.from_numpy(sample.normalisation.apply(sample.image)).permute(2, 0, 1)[None]
        plain = to_uint8(pipe.decode(pipe.encode(pixels)))[0]
        far = ndimage.distance_transform_edt(~plan.change_mask) >= 16
        assert psnr(painted, sample.image, far) > psnr(plain, sample.image, far) - 0.5


def test_the_mask_steers_the_pixels(pipe: ChangePairPipeline) -> None:
    """Painted from masks alone, water is darker than bare land (it is in nearly every training tile)."""
    masks = np.full((2, 64, 64), 1, np.uint8)
    masks[1] = pipe.legend.index_of("water")
    painted = pipe(np.zeros((2, 64, 64, 3), np.uint8), masks, np.ones((2, 64, 64), bool), num_steps=10, seed=[0, 0])
    assert painted[0].mean() > painted[1].mean() + 20


def test_guidance_in_one_call_is_near_guidance_in_two() -> None:
    """On ground under its own mask and, in a box, under another tile's, at timesteps of the default settings: what is
    missing is a part of what guidance adds."""
    model, source = ChangePairPipeline.from_pretrained("mini", dtype="float32").model, open_source(EXAMPLES)
    denoiser = model.denoiser
    scale = denoiser.guided_scale
    assert scale is not None and scale == model.defaults["guidance_scale"] and denoiser.guides_itself(scale)
    samples = [source.read(i) for i in range(0, 12, 2)]
    images = torch.from_numpy(np.stack([s.pixels() for s in samples])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([s.mask for s in samples])).long()
    masks[:, 64:160, 96:192] = masks.roll(1, 0)[:, 64:160, 96:192]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        latents, condition = model.first_stage.encode(images), denoiser.encode_masks(masks)
        for timestep in (818, 649, 353, 229, 125):
            alpha, times = model.schedule.alphas_cumprod[timestep], torch.full((len(masks),), timestep)
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * torch.randn(latents.shape, generator=generator)
            first, second = (denoiser(noisy, times, each) for each in (condition, torch.zeros_like(condition)))
            together = second + scale * (first - second)
            missing = (denoiser(noisy, times, condition, True) - together).square().mean()
            assert missing < 0.6 * (first - together).square().mean(), timestep
