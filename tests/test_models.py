"""First stage, mask encoder, model folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel

from changeanywhere.errors import ModelError
from changeanywhere.legend import Legend, load_legend
from changeanywhere.models.denoiser import MaskEncoder, one_hot
from changeanywhere.models.detectors import build_detector
from changeanywhere.models.detectors.folder import load_detector, save_detector
from changeanywhere.models.first_stage import nearest_codes
from changeanywhere.models.folder import (
    hash_model,
    load_first_stage,
    load_model,
    noise_schedule,
    save_first_stage,
    save_model,
)
from changeanywhere.models.info import read_info
from changeanywhere.models.segmenter import Segmenter
from conftest import tiny_model


@pytest.mark.numerical
def test_nearest_codes_agree_with_brute_force_across_chunks() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, codes = torch.randn(20_000, 3, generator=generator), torch.randn(64, 3, generator=generator)
    assert torch.equal(nearest_codes(vectors, codes), torch.cdist(vectors, codes).argmin(1))


@pytest.mark.numerical
def test_latents_are_standardised_and_decoding_undoes_it() -> None:
    first_stage = tiny_model().first_stage.eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        raw, latents = first_stage.encode_raw(images), first_stage.encode(images)
        torch.testing.assert_close(latents[:, 1], (raw[:, 1] + 0.2) / 1.5)
        direct = first_stage.decode_codes(first_stage.quantise(raw)[0]).clamp(-1, 1)
        torch.testing.assert_close(first_stage.decode(latents), direct, rtol=1e-4, atol=1e-4)
    assert latents.shape == (2, 3, 8, 8)


def test_unknown_ground_and_dropped_masks_encode_to_zero() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.long)
    masks[1] = 3
    assert one_hot(masks, 7)[0].abs().sum() == 0
    encoder = MaskEncoder(num_classes=7, mask_channels=4)
    features = encoder(masks)
    assert features.shape == (2, 4, 2, 2)
    assert features[0].abs().sum() == 0 < features[1].abs().sum()
    assert encoder(masks, torch.tensor([False, True]))[1].abs().sum() == 0


@pytest.mark.numerical
def test_model_folder_round_trip(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([500])
    masks = torch.randint(0, 8, (1, 32, 32))
    with torch.no_grad():
        before = model.denoiser.eval()(x, t, model.denoiser.encode_masks(masks))
        after = loaded.denoiser(x, t, loaded.denoiser.encode_masks(masks))
    torch.testing.assert_close(before, after)
    assert loaded.legend == model.legend
    assert loaded.mask_dropout == model.mask_dropout
    assert loaded.weights_hash == hash_model(tmp_path)
    torch.testing.assert_close(loaded.first_stage.latent_std, model.first_stage.latent_std)


def test_bands_and_stretch_are_stored_where_they_are_not_the_usual_ones(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "usual")
    assert not {"bands", "stretch"} & json.loads((tmp_path / "usual" / "model.json").read_text()).keys()
    usual = read_info(tmp_path / "usual")
    assert (usual.bands, usual.stretch) == (None, None)
    save_model(replace(tiny_model(), bands=(4, 3, 2), stretch=(1.0, 99.0)), tmp_path / "other")
    model = load_model(tmp_path / "other")
    assert (model.bands, model.stretch) == ((4, 3, 2), (1.0, 99.0))


class Killed(BaseException):
    """Stands for a process that ends between two calls of the system."""


@pytest.mark.parametrize("kind", ["model", "first_stage", "segmenter", "detector"])
def test_a_folder_is_the_old_one_the_new_one_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Killed before each renaming of a save onto an older folder: never half of one and half of the other."""
    folder, replace_path = tmp_path / kind, Path.replace

    def save(value: float) -> None:
        model, segmenter, detector = tiny_model(), Segmenter("unet", load_legend("mini")), build_detector("fc_ef")
        nets: dict[str, torch.nn.Module] = {
            "model": model.denoiser, "first_stage": model.first_stage, "segmenter": segmenter, "detector": detector,
        }  # fmt: skip
        writers: dict[str, Callable[[], None]] = {
            "model": lambda: save_model(model, folder),
            "first_stage": lambda: save_first_stage(model.first_stage, folder),
            "segmenter": lambda: segmenter.save(folder),
            "detector": lambda: save_detector(detector, "fc_ef", folder),
        }
        for parameter in nets[kind].parameters():
            torch.nn.init.constant_(parameter, value)
        writers[kind]()

    def values() -> set[float]:
        loaded: dict[str, Callable[[], torch.nn.Module]] = {
            "model": lambda: load_model(folder).denoiser,
            "first_stage": lambda: load_first_stage(folder),
            "segmenter": lambda: Segmenter.load(folder),
            "detector": lambda: load_detector(folder)[1],
        }
        return {float(number) for parameter in loaded[kind]().parameters() for number in parameter.detach().unique()}

    seen = []
    for renamings in range(20):
        save(1.0)
        (folder / "README.md").write_text("mine")
        moved: list[Path] = []

        def counting(self: Path, target: Path, moved: list[Path] = moved, allowed: int = renamings) -> Path:
            if len(moved) == allowed:
                raise Killed
            moved.append(target)
            return replace_path(self, target)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(Path, "replace", counting)
            save(2.0)
        try:
            seen.append(values())
        except ModelError:
            seen.append(set())
        assert (folder / "README.md").read_text() == "mine"
        assert [path.name for path in tmp_path.iterdir()] == [kind]
        if seen[-1] == {2.0}:
            break
    assert seen[-1] == {2.0} and all(state in ({1.0}, set()) for state in seen[:-1])


def test_weights_are_as_readable_as_other_files(tmp_path: Path) -> None:
    """A folder on a cluster is shared; files made by safetensors itself are their owner's only."""
    save_model(tiny_model(), tmp_path / "model")
    Segmenter("unet", Legend.load(tmp_path / "model" / "legend.json")).save(tmp_path / "segmenter")
    save_detector(build_detector("fc_ef"), "fc_ef", tmp_path / "detector")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert sum(file.suffix == ".safetensors" for file in files) == 5
    (tmp_path / "plain").touch()
    assert {file.stat().st_mode for file in files} == {(tmp_path / "plain").stat().st_mode}


def test_denoiser_loads_with_plain_diffusers(tiny_model_folder: Path) -> None:
    unet = UNet2DModel.from_pretrained(tiny_model_folder / "denoiser")
    assert unet.config.in_channels == 3 + 4


@pytest.mark.numerical
def test_schedule_is_linear_in_the_root() -> None:
    roots = noise_schedule().betas.sqrt()
    torch.testing.assert_close(roots, torch.linspace(0.0015**0.5, 0.0205**0.5, 1000), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("damage", ["missing", "truncated", "version", "classes"])
def test_damaged_model_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    save_model(tiny_model(), tmp_path)
    weights = tmp_path / "denoiser" / "diffusion_pytorch_model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "version":
        content = json.loads((tmp_path / "model.json").read_text())
        (tmp_path / "model.json").write_text(json.dumps(content | {"format_version": 99}))
    else:
        load_legend("openearthmap").save(tmp_path / "legend.json")
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
