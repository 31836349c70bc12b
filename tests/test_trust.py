"""Model folders that were cut short or tampered with: named, never built, never painted with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import changeanywhere as ca
from changeanywhere.cli import run
from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.errors import InputError, ModelError
from changeanywhere.generation.finish import _check_finite
from changeanywhere.legend import load_legend
from changeanywhere.models.detectors import build_detector
from changeanywhere.models.detectors.folder import load_detector, save_detector
from changeanywhere.models.folder import find_model, load_first_stage, load_model, save_first_stage, save_model
from changeanywhere.models.info import read_info
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.painters.base import Painting
from changeanywhere.sample import ChangePlan
from conftest import tiny_model, write_source

PARTS: dict[str, str] = {
    "model": "denoiser/diffusion_pytorch_model.safetensors",
    "mask encoder": "mask_encoder/diffusion_pytorch_model.safetensors",
    "first stage of a model": "first_stage/diffusion_pytorch_model.safetensors",
    "first stage": "diffusion_pytorch_model.safetensors",
    "segmenter": "model.safetensors",
    "lite0": "model.safetensors",
    "detector": "model.safetensors",
}
LOADERS: dict[str, Callable[[Path], object]] = {
    "first stage": load_first_stage,
    "segmenter": Segmenter.load,
    "lite0": Segmenter.load,
    "detector": load_detector,
}


def write(kind: str, folder: Path) -> Path:
    """A sound folder of a kind."""
    if kind == "first stage":
        save_first_stage(tiny_model().first_stage, folder)
    elif kind in ("segmenter", "lite0"):
        Segmenter("unet" if kind == "segmenter" else "lite0", load_legend("mini")).save(folder)
    elif kind == "detector":
        save_detector(build_detector("fc_ef"), "fc_ef", folder)
    else:
        save_model(tiny_model(), folder)
    return folder


@pytest.mark.parametrize("kind", PARTS)
def test_a_tensor_that_is_missing_extra_misshapen_or_no_number_is_named(tmp_path: Path, kind: str) -> None:
    load = LOADERS.get(kind, load_model)
    file = write(kind, tmp_path / "x") / PARTS[kind]
    sound = {name: value.clone() for name, value in load_file(file).items()}
    load(tmp_path / "x")
    names = [name for name in sound if sound[name].is_floating_point()]
    for name in dict.fromkeys((names[0], names[len(names) // 2], names[-1])):
        holed = sound[name].clone()
        holed.view(-1)[-1] = torch.nan
        for damage, match in (
            ({key: value for key, value in sound.items() if key != name}, f"no {name}, which"),
            (sound | {"more": torch.zeros(1)}, "has more, which"),
            (sound | {name: torch.cat([sound[name], sound[name]])}, f"{name} is "),
            (sound | {name: sound[name].flatten()[None]}, f"{name} is "),
            (sound | {name: holed}, f"{name} is not finite in 1 of"),
            (sound | {name: torch.full_like(sound[name], torch.inf)}, f"{name} is not finite in {holed.numel()} of"),
        ):
            file.unlink()
            save_file(damage, file)
            with pytest.raises(ModelError, match=match) as caught:
                load(tmp_path / "x")
            assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_weights_end_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reported case: generate and check said nothing, and painted with what lay in memory."""
    save_model(tiny_model(), tmp_path / "model")
    file = tmp_path / "model" / PARTS["model"]
    state = load_file(file)
    bias = state.pop("conv_in.bias")
    file.unlink()
    save_file(state, file)
    write_source(tmp_path / "src", num_tiles=2)
    generate = ["generate", "--source", str(tmp_path / "src"), "--model", str(tmp_path / "model"), "--num-pairs", "2"]
    generate += ["--tile-size", "64", "--num-steps", "2", "--events.min-area", "16", "--dtype", "float32"]
    assert run([*generate, "--out", str(tmp_path / "out")]) == 2
    assert "no conv_in.bias" in capsys.readouterr().err
    assert run(["check", str(tmp_path / "model")]) == 2
    assert "no conv_in.bias" in capsys.readouterr().err
    file.unlink()
    save_file(state | {"conv_in.bias": bias * torch.nan}, file)
    assert run([*generate, "--out", str(tmp_path / "nan")]) == 2
    assert "conv_in.bias is not finite" in capsys.readouterr().err
    assert not list((tmp_path / "nan").rglob("*.png"))


TAMPERED: list[tuple[str, str, Any]] = [
    ("denoiser/config.json", "in_channels", 10**9),
    ("denoiser/config.json", "block_out_channels", [10**9, 10**9]),
    ("denoiser/config.json", "block_out_channels", []),
    ("denoiser/config.json", "block_out_channels", "88"),
    ("denoiser/config.json", "layers_per_block", 10**6),
    ("denoiser/config.json", "layers_per_block", True),
    ("denoiser/config.json", "layers_per_block", -1),
    ("denoiser/config.json", "norm_num_groups", 0),
    ("denoiser/config.json", "norm_num_groups", 7),
    ("denoiser/config.json", "down_block_types", ["os.system", "DownBlock2D"]),
    ("denoiser/config.json", "down_block_types", ["DownBlock2D"]),
    ("denoiser/config.json", "act_fn", {"a": 1}),
    ("denoiser/config.json", "_class_name", "StableDiffusionPipeline"),
    ("denoiser/config.json", "another", "x"),
    ("denoiser/config.json", "dropout", 2.0),
    ("denoiser/config.json", "out_channels", 4),
    ("first_stage/config.json", "num_vq_embeddings", 10**12),
    ("first_stage/config.json", "latent_channels", 0),
    ("first_stage/config.json", "vq_embed_dim", 4),
    ("first_stage/config.json", "in_channels", 2.5),
    ("first_stage/config.json", "_class_name", None),
    ("first_stage/latent_statistics.json", "latent_std", [1, 0, 1]),
    ("first_stage/latent_statistics.json", "latent_std", [1, 1]),
    ("first_stage/latent_statistics.json", "latent_mean", [1, "x", 1]),
    ("first_stage/latent_statistics.json", "latent_mean", float("nan")),
    ("mask_encoder/config.json", "num_classes", 10**9),
    ("mask_encoder/config.json", "_class_name", "UNet2DModel"),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
    ("scheduler/scheduler_config.json", "beta_start", -1),
    ("scheduler/scheduler_config.json", "beta_schedule", "constant"),
    ("scheduler/scheduler_config.json", "prediction_type", "sample"),
    ("scheduler/scheduler_config.json", "_class_name", "PNDMScheduler"),
    ("model.json", "tile_size", -1),
    ("model.json", "tile_size", "64"),
    ("model.json", "mask_dropout", float("inf")),
    ("model.json", "defaults", [1]),
    ("model.json", "defaults", {"num_steps": 10**9}),
    ("model.json", "defaults", {"num_steps": "8"}),
    ("model.json", "defaults", {"__class__": 1}),
    ("model.json", "bands", [0, 1, 2]),
    ("model.json", "bands", [1, 2]),
    ("model.json", "stretch", [98, 2]),
]


@pytest.mark.parametrize(("name", "key", "value"), TAMPERED, ids=lambda v: str(v)[:30])
def test_configurations_are_looked_at_before_anything_is_built(
    tmp_path: Path, tiny_model_folder: Path, name: str, key: str, value: object
) -> None:
    save_model(tiny_model(), tmp_path)
    file = tmp_path / name
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "nul", '{"a": NaN}', "[" * 100_000, '{"a": 1' + "0" * 5000 + "}", "\ufeff{}", "\x00"]
)
@pytest.mark.parametrize("name", ["model.json", "denoiser/config.json", "first_stage/latent_statistics.json"])
def test_malformed_json_is_one_line(tmp_path: Path, name: str, content: str) -> None:
    save_model(tiny_model(), tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_descriptions_of_other_folders_are_looked_at(tmp_path: Path) -> None:
    for kind, name, loader in (("segmenter", "backbone", Segmenter.load), ("detector", "name", load_detector)):
        file = write(kind, tmp_path / kind) / f"{kind}.json"
        sound = json.loads(file.read_text())
        for value in (3, None, ["x"], "../../x", "__init__"):
            file.write_text(json.dumps(sound | {name: value}))
            with pytest.raises(InputError) as caught:
                loader(tmp_path / kind)
            assert "\n" not in str(caught.value)
        for content in ("[]", "{}", "x", json.dumps(sound | {"format_version": 2})):
            file.write_text(content)
            with pytest.raises(ModelError, match="not a"):
                loader(tmp_path / kind)


@pytest.mark.parametrize("place", ["../../secret.safetensors", "/etc/passwd", "x.bin", "a/b.safetensors"])
def test_an_index_names_files_of_its_folder_alone(tmp_path: Path, place: str) -> None:
    save_model(tiny_model(), tmp_path)
    index = tmp_path / "denoiser" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": place}}))
    with pytest.raises(ModelError, match=r"names the file .* allowed: \.safetensors in this folder"):
        load_model(tmp_path)


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "x")
    whole = load_model(tmp_path / "x").denoiser.state_dict()
    file = tmp_path / "x" / PARTS["model"]
    state = load_file(file)
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: state[name] for name in own}, file.with_name(part))
    file.unlink()
    mapped = {name: part for part, own in parts.items() for name in own}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": mapped}))
    again = load_model(tmp_path / "x").denoiser.state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_nothing_of_the_machine_is_saved(tmp_path: Path) -> None:
    """A model that was loaded from a folder does not say which."""
    save_model(tiny_model(), tmp_path / "secret-folder")
    for again in ("second", "third"):
        before = {"second": "secret-folder", "third": "second"}[again]
        ChangePairPipeline.from_pretrained(tmp_path / before, dtype="float32").save_pretrained(tmp_path / again)
    save_first_stage(load_model(find_model("mini")).first_stage, tmp_path / "first")
    for file in [*(tmp_path / "third").rglob("*.json"), *(tmp_path / "first").rglob("*.json")]:
        text = file.read_text()
        assert str(tmp_path) not in text and "secret" not in text and "_name_or_path" not in text


def test_sums_that_overflow_are_not_painted(tiny_model_folder: Path) -> None:
    pipe = ChangePairPipeline.from_pretrained(tiny_model_folder, dtype="float32")
    for value in (torch.nan, torch.inf, -torch.inf):
        latents = torch.zeros(2, 3, 8, 8)
        latents[1, 2, 3, 4] = value
        with pytest.raises(ModelError, match="painted latents are not finite"):
            pipe.decode(latents)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("date", [1, 2])
def test_images_are_finite_before_they_are_written(value: float, date: int) -> None:
    images = [np.zeros((8, 8, 3), np.float32) for _ in range(2)]
    plan = ChangePlan(np.zeros((8, 8), np.uint8), np.zeros((8, 8), bool), (), seed=0)
    _check_finite("tile_0", Painting(0, plan, images[0], images[1]))
    images[date - 1][3, 3, 1] = value
    with pytest.raises(ca.errors.ModelError, match=f"tile_0: image t{date} was painted with NaN or infinity"):
        _check_finite("tile_0", Painting(0, plan, images[0], images[1]))


def test_loading_says_nothing(tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for dtype in ("float32", "float16"):
        ChangePairPipeline.from_pretrained(tiny_model_folder, dtype=dtype)
    assert capfd.readouterr() == ("", "")


def test_info_and_model_agree_on_what_is_sound(tiny_model_folder: Path) -> None:
    assert read_info(tiny_model_folder).tile_size == load_model(tiny_model_folder).tile_size == 64
    assert read_info(find_model("mini")).defaults["num_steps"] == 8
