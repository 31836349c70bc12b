"""Training both stages of a tiny model: it learns, resumes bit for bit, refuses what is wrong."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file

from changeanywhere.cli import run as command
from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.errors import ConfigError, ModelError, OutputError, TrainingDivergedError
from changeanywhere.legend import Legend, LegendClass
from changeanywhere.models.denoiser import Denoiser
from changeanywhere.models.first_stage import build_vq_model
from changeanywhere.models.folder import load_model, noise_schedule
from changeanywhere.models.linear_start import linear_start
from changeanywhere.models.perceptual import ShiftTolerantLPIPS, find_weights
from changeanywhere.sources import Source, SourceOptions, open_source
from changeanywhere.stopping import polite_stop
from changeanywhere.training import loop
from changeanywhere.training.adversarial import PatchDiscriminator, adaptive_weight, discriminator_loss
from changeanywhere.training.batches import dihedral, tiles_of_step
from changeanywhere.training.checks import without_idle
from changeanywhere.training.codebook import perplexity, place_codes, restart_dead_codes
from changeanywhere.training.command import TrainOptions, open_training_source, train
from changeanywhere.training.denoiser import build_denoiser, denoising_loss, draw_noise, train_denoiser
from changeanywhere.training.ema import WeightAverage
from changeanywhere.training.first_stage import CODEBOOK, FirstStageTraining, train_first_stage
from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.initialise import recommended
from changeanywhere.training.latents import LatentCache
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import (
    DataRecipe,
    DenoiserRecipe,
    DetectorRecipe,
    FirstStageRecipe,
    Recipe,
    RunRecipe,
    SegmenterRecipe,
)
from changeanywhere.training.stage import Batch, Stage, learning_rate_factor
from conftest import write_source

FIRST_STAGE = FirstStageRecipe(
    channels=[8, 8, 8], layers_per_block=1, norm_groups=1, mid_attention=False, num_codes=16, linear_start=True,
    crop_size=32, batch_size=2, num_steps=6, learning_rate=1e-3, quantise_from_step=2, chroma_weight=1.0,
    perceptual_weight=0.0, adversarial_from_step=3, discriminator_channels=4, restart_codes_every=2,
)  # fmt: skip
DENOISER = DenoiserRecipe(
    channels=[8, 16], layers_per_block=1, attention_levels=[1], head_dim=8, norm_groups=4, mask_channels=4,
    views=2, batch_size=2, num_steps=6, learning_rate=1e-3, min_snr_gamma=5.0,
)  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    source = write_source(tmp_path / "source")
    return Recipe(
        DataRecipe(source=str(source), tile_size=64),
        FIRST_STAGE,
        DENOISER,
        run=RunRecipe(num_workers=0, log_every=1, save_every=2),
    )


def source_of(recipe: Recipe) -> Source:
    return open_source(recipe.data.source, SourceOptions(tile_size=64))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}.{name}": value
        for file in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def train_both(recipe: Recipe, out: Path) -> dict[str, torch.Tensor]:
    train_first_stage(source_of(recipe), recipe, out)
    train_denoiser(source_of(recipe), recipe, out)
    return weights(out / "model")


@pytest.mark.numerical
def test_interrupted_training_ends_with_the_same_weights(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = train_both(recipe, tmp_path / "unbroken")

    save = TrainingFolder.save_checkpoint

    def save_and_die(self: TrainingFolder, state: dict[str, object]) -> None:
        save(self, state)
        if state["step"] == 4:
            raise KeyboardInterrupt

    for stage in (train_first_stage, train_denoiser):
        monkeypatch.setattr(TrainingFolder, "save_checkpoint", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            stage(source_of(recipe), recipe, tmp_path / "broken")
        monkeypatch.setattr(TrainingFolder, "save_checkpoint", save)
        stage(source_of(recipe), recipe, tmp_path / "broken")
    broken = weights(tmp_path / "broken" / "model")
    assert unbroken.keys() == broken.keys()
    for name, value in unbroken.items():
        assert torch.equal(value, broken[name]), name


def test_sigterm_ends_a_training_after_a_checkpoint_of_its_own(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a scheduler sends when the time is up: the step is finished and kept, between two regular checkpoints."""
    recipe = replace(recipe, run=replace(recipe.run, save_every=100, log_every=100, num_workers=1))
    unbroken = train_both(recipe, tmp_path / "unbroken")
    before, take_step = signal.getsignal(signal.SIGTERM), loop.take_step
    stages: dict[str, Callable[..., Path]] = {"first_stage": train_first_stage, "denoiser": train_denoiser}
    for name, train_it in stages.items():
        steps: list[int] = []

        def step_and_sigterm(stage: Stage, batch: Batch, step: int, steps: list[int] = steps) -> object:
            steps.append(step)
            if len(steps) == 3:
                for worker in active_children():  # the whole job is signalled, reading processes too
                    assert worker.pid is not None
                    os.kill(worker.pid, signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)  # and a launcher hands it on
            return take_step(stage, batch, step)

        monkeypatch.setattr(loop, "take_step", step_and_sigterm)
        with polite_stop() as stop, pytest.raises(KeyboardInterrupt):
            train_it(source_of(recipe), recipe, tmp_path / "broken", stop=stop)
        assert len(steps) == 3 and not active_children(), "reading processes ended with the loop"
        state = torch.load(tmp_path / "broken" / "training" / name / "checkpoint.pt", weights_only=True)
        assert state["step"] == 3
        train_it(source_of(recipe), recipe, tmp_path / "broken")
        assert steps == [0, 1, 2, 3, 4, 5], "the other three"
    assert signal.getsignal(signal.SIGTERM) is before
    broken = weights(tmp_path / "broken" / "model")
    assert all(torch.equal(value, broken[name]) for name, value in unbroken.items())


class Oracle:
    """Stands for a denoiser that answers ``target``; notes which masks were dropped."""

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target

    def encode_masks(self, masks: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
        self.dropped = dropped
        return masks

    def __call__(self, noisy: torch.Tensor, timesteps: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.target


@pytest.mark.numerical
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_is_that_of_the_prediction_type(prediction_type: str) -> None:
    """Against diffusers' own velocity, and min-SNR weights (Hang et al. 2023) written out."""
    schedule = noise_schedule(prediction_type)
    latents, noise = torch.randn(2, 4, 3, 8, 8)
    timesteps, dropped = torch.tensor([3, 250, 600, 990]), torch.tensor([True, False, False, True])
    target = noise if prediction_type == "epsilon" else schedule.get_velocity(latents, noise, timesteps)
    masks = torch.zeros(4, 32, 32, dtype=torch.long)

    def loss(answer: torch.Tensor, **settings: Any) -> float:
        oracle = Oracle(answer)
        asked = replace(DenoiserRecipe(prediction_type=prediction_type, loss="l2"), **settings)
        value = denoising_loss(cast(Denoiser, oracle), schedule, latents, masks, asked, (timesteps, noise, dropped))
        assert torch.equal(oracle.dropped, dropped)
        return float(value)

    assert loss(target) == pytest.approx(0, abs=1e-10)
    assert loss(target + 2) == pytest.approx(4, rel=1e-5)
    assert loss(target + 2, loss="l1") == pytest.approx(2, rel=1e-5)
    snr = schedule.alphas_cumprod[timesteps] / (1 - schedule.alphas_cumprod[timesteps])
    weights = snr.clamp(max=5) / (snr + (prediction_type == "v_prediction"))
    assert loss(target + 2, min_snr_gamma=5.0) == pytest.approx(4 * float(weights.mean()), rel=1e-4)


def test_the_finished_model_is_the_average_and_the_rate_follows_its_curve(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipe, denoiser=replace(DENOISER, warmup_steps=3, cosine_decay=True))
    rates, take_step = [], loop.take_step

    def noting_step(stage: Stage, batch: Batch, step: int) -> object:
        values = take_step(stage, batch, step)
        if stage.name == "denoiser":
            rates.append(stage.learners[0].optimizer.param_groups[0]["lr"])
        return values

    monkeypatch.setattr(loop, "take_step", noting_step)
    train_both(recipe, tmp_path)
    expected = [1e-3 * learning_rate_factor(step, 6, 3, True) for step in range(6)]
    assert rates == pytest.approx(expected) and max(rates) < 1e-3 and rates[2] > max(rates[0], rates[5])
    state = torch.load(tmp_path / "training/denoiser/checkpoint.pt", weights_only=True)
    model = load_model(tmp_path / "model").denoiser.state_dict()
    assert all(torch.equal(model[name].half(), value.half()) for name, value in state["average"].items())
    assert not all(torch.equal(model[name].half(), value.half()) for name, value in state["denoiser"].items())


@pytest.mark.numerical
def test_masks_turn_with_their_latents(recipe: Recipe, tmp_path: Path) -> None:
    train_both(replace(recipe, denoiser=replace(DENOISER, views=8)), tmp_path)
    cache = LatentCache(tmp_path / "training/latents", range(8), 6)
    seen = set()
    for step in range(12):
        latents, masks = cache.batch(2, 0, step, range(2))
        for latent, mask, tile in zip(latents.numpy(), masks.numpy(), tiles_of_step(6, 2, 0, step), strict=True):
            (view,) = [v for v in range(8) if np.array_equal(cache.latents[tile, v].astype(np.float32), latent)]
            seen.add(view)
            np.testing.assert_array_equal(mask, dihedral(cache.masks[tile], view))
    assert len(seen) > 4
    resident = LatentCache(tmp_path / "training/latents", range(8), 6)
    resident._keep(torch.device("cpu"))  # as on a GPU
    for step in range(12):
        for one, other in zip(
            resident.batch(4, 0, step, range(1, 4)), cache.batch(4, 0, step, range(1, 4)), strict=True
        ):
            assert torch.equal(one, other)
    first_stage = load_model(tmp_path / "model").first_stage
    sample = source_of(recipe).read(0)
    turned = dihedral(sample.pixels(), 5).transpose(2, 0, 1)
    with torch.no_grad():
        expected = first_stage.encode(torch.from_numpy(np.ascontiguousarray(turned))[None])[0].numpy()
    np.testing.assert_allclose(cache.latents[0, 5].astype(np.float32), expected, atol=0.02)


def test_rows_of_steps_that_are_taken_again_are_dropped(recipe: Recipe, tmp_path: Path) -> None:
    """A kill between a log and a checkpoint."""
    train_both(recipe, tmp_path)
    folder = tmp_path / "training" / "denoiser"
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(state | {"step": 4}, folder / "checkpoint.pt")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # cut off
    train_denoiser(source_of(recipe), recipe, tmp_path)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_other_data_is_refused_and_a_recipe_may_change_before_the_first_checkpoint(
    recipe: Recipe, tmp_path: Path
) -> None:
    wrong = replace(recipe, first_stage=replace(FIRST_STAGE, perceptual_features="vgg16", perceptual_weight=1.0,
                                                perceptual_weights=str(tmp_path / "nothing.pth")))  # fmt: skip
    with pytest.raises(ConfigError, match=r"nothing\.pth"):
        train_first_stage(source_of(wrong), wrong, tmp_path / "run")
    train_both(recipe, tmp_path / "run")  # corrected, in the same folder
    mask = min((Path(recipe.data.source) / "masks").iterdir())
    Image.fromarray(np.where(np.asarray(Image.open(mask)) == 4, 3, np.asarray(Image.open(mask)))).save(mask)
    for train_it in (train_first_stage, train_denoiser):
        with pytest.raises(OutputError, match=r"was started with data\.content"):
            train_it(source_of(recipe), recipe, tmp_path / "run")
    (tmp_path / "run/training/denoiser/recipe.json").write_text("")
    with pytest.raises(OutputError, match=r"recipe.json: damaged"):
        train_denoiser(source_of(recipe), recipe, tmp_path / "run")


def test_settings_that_would_do_nothing_are_refused(recipe: Recipe) -> None:
    wrong: dict[str, Any] = {
        "gradient_clip": 0.0, "min_snr_gamma": 0.0, "attention_levels": [2], "head_dim": 32, "mask_dropout": 1.0,
    }  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=rf"denoiser\.{name} is"):
            replace(recipe, denoiser=replace(DENOISER, **{name: value})).check("denoiser")
    wrong = {"frozen_levels": 6, "scale": -0.1, "decoded": 1.5, "first_stage": [], "colour_jitter": 1.0}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=rf"segmenter\.{name} is"):
            changed = replace(SegmenterRecipe(crop_size=64, decoded=0.5), **{name: value})
            replace(recipe, segmenter=changed).check("segmenter")
    whole: list[dict[str, Any]] = [{"accumulation_steps": 2}, {"compile": True}]
    segmenter, detector = SegmenterRecipe(crop_size=64), DetectorRecipe(pairs="x")
    for stage in ("segmenter", "detector"):
        for setting in whole:
            ((name, value),) = setting.items()
            run = replace(recipe.run, **setting)
            with pytest.raises(ConfigError, match=rf"run\.{name} is {value}; allowed: .*{stage}"):
                replace(recipe, run=run, segmenter=segmenter, detector=detector).check(stage)


PLAIN = replace(FIRST_STAGE, linear_start=False, quantise_from_step=0)


@pytest.mark.parametrize(
    ("stage", "changes", "refused"),
    [
        ("first_stage", {"first_stage": replace(PLAIN, perceptual_weights="x.pth")}, "perceptual_weights is 'x.pth'"),
        ("first_stage", {"first_stage": replace(PLAIN, perceptual_features="vgg16")}, "perceptual_features is 'vgg16'"),
        ("first_stage", {"first_stage": replace(PLAIN, perceptual_from_step=2)}, "perceptual_from_step is 2"),
        ("first_stage", {"first_stage": replace(PLAIN, adversarial_weight=0.0)}, "adversarial_from_step is 3"),
        ("first_stage", {"first_stage": replace(PLAIN, codebook_weight=0.0, commitment=0.5)}, "commitment is 0.5"),
        ("first_stage", {"init": "mini", "first_stage": replace(PLAIN, linear_start=True)}, "linear_start is True"),
        ("first_stage", {"init": "mini", "first_stage": replace(PLAIN, quantise_from_step=2)}, "from_step is 2"),
        ("denoiser", {"data": DataRecipe(source="x", legend_map="map.yaml")}, "legend_map is 'map.yaml'"),
        ("segmenter", {"segmenter": SegmenterRecipe(crop_size=64, first_stage=["x"])}, r"first_stage is \['x'\]"),
        ("detector", {"detector": DetectorRecipe(pairs="x", val_split=None, val_every=7)}, "val_every is 7"),
        ("detector", {"init": "x", "detector": DetectorRecipe(pairs="x", backbone_weights="b")}, "weights is 'b'"),
    ],
)  # fmt: skip
def test_options_that_others_switch_off_are_refused(
    recipe: Recipe, stage: str, changes: dict[str, Any], refused: str
) -> None:
    recipe = replace(recipe, **({"first_stage": PLAIN} | changes))
    with pytest.raises(ConfigError, match=f"{refused}, which does nothing while"):
        recipe.check(stage)
    other = "denoiser" if stage == "detector" else "detector"
    replace(recipe, init=None, detector=replace(recipe.detector, pairs="x", val_every=4000)).check(other)


def test_a_flag_may_switch_off_what_the_file_sets(recipe: Recipe) -> None:
    flagged = replace(recipe, first_stage=replace(FIRST_STAGE, adversarial_weight=0.0))
    settled = without_idle(flagged, "first_stage", frozenset({"first_stage.adversarial_weight"}))
    settled.check("first_stage")
    assert settled.first_stage.discriminator_channels == FirstStageRecipe.discriminator_channels
    both = frozenset({"first_stage.adversarial_weight", "first_stage.discriminator_channels"})
    with pytest.raises(ConfigError, match="discriminator_channels is 4, which does nothing while"):
        without_idle(flagged, "first_stage", both).check("first_stage")


@pytest.mark.parametrize(
    ("stage", "flag"),
    [
        ("detector", "denoiser.loss"), ("detector", "data.source"), ("first-stage", "first_stage_from"),
        ("segmenter", "first_stage_from"), ("denoiser", "first_stage.crop_size"), ("denoiser", "run.num_workers"),
        ("first-stage", "run.keep_mib"), ("denoiser", "run.keep_mib"), ("critic", "run.keep_mib"),
        ("segmenter", "run.keep_mib"),
    ],
)  # fmt: skip
def test_flags_of_other_stages_are_refused(stage: str, flag: str, tmp_path: Path) -> None:
    name = flag.replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{name}: train {stage} does not read it; allowed: .*run"):
        train(stage, TrainOptions(tmp_path), given=frozenset({"out", "run.seed", flag}))


def test_a_recipe_of_all_stages_is_shared_and_its_flags_are_not(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(asdict(replace(recipe, detector=DetectorRecipe(name="snunet_c16")))))
    arguments = ["train", "first-stage", "--config", str(file), "--out", str(tmp_path / "run")]
    assert command([*arguments, "--denoiser.loss=l2"]) == 2
    assert "--denoiser.loss: train first-stage does not read it" in capsys.readouterr().err
    assert command([*arguments, "--denoiser.los", "l2"]) == 2, "no abbreviations"
    assert command([*arguments, "--first-stage.adversarial-weight", "0"]) == 0
    frozen = json.loads((tmp_path / "run/training/first_stage/recipe.json").read_text())["first_stage"]
    assert frozen["adversarial_from_step"] == FirstStageRecipe.adversarial_from_step


def test_a_damaged_tile_is_one_line_whoever_reads_it(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for image in (Path(recipe.data.source) / "images").iterdir():
        image.write_bytes(image.read_bytes()[:400])
    sections = ["--first-stage.channels", "[8, 8, 8]", "--first-stage.norm-groups", "1", "--first-stage.linear-start"]
    sections += ["--first-stage.crop-size", "32", "--data.tile-size", "64", "--run.num-workers", "1"]
    sections += ["--first-stage.perceptual-weight", "0"]
    out = str(tmp_path / "run")
    assert command(["train", "first-stage", "--data.source", recipe.data.source, *sections, "--out", out]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line]
    assert "not a readable image" in errors[-1] and "Traceback" not in "".join(errors)


@pytest.mark.numerical
def test_command_trains_a_model_that_paints(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    recipe = replace(recipe, run=replace(recipe.run, mixed_precision="bf16"))
    file.write_text(yaml.safe_dump(asdict(recipe)))
    out = str(tmp_path / "run")
    assert command(["train", "denoiser", "--config", str(file), "--out", out]) == 2
    assert "run 'changeanywhere train first-stage'" in capsys.readouterr().err
    assert command(["train", "first-stage", "--config", str(file), "--out", out]) == 0
    assert command(["train", "denoiser", "--config", str(file), "--out", out]) == 0
    assert command(["check", out]) == 0
    assert "generate --model" in capsys.readouterr().out
    pipe = ChangePairPipeline.from_pretrained(tmp_path / "run" / "model", dtype="float32")
    assert pipe.legend.name == "mini" and pipe.model.mask_dropout == 0.1
    painted = pipe(np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), np.uint8), np.ones((64, 64), bool), num_steps=2)
    assert painted.shape == (64, 64, 3)
    metrics = [
        json.loads(line) for line in (tmp_path / "run/training/first_stage/metrics.jsonl").read_text().splitlines()
    ]
    assert {"l1", "psnr", "chroma", "codebook", "perplexity", "adversarial"} <= {k for m in metrics for k in m}
    assert all(m["perplexity"] > 1 for m in metrics if "perplexity" in m), "of code use, before its counts are set back"
    assert list((tmp_path / "run/training/denoiser/samples").glob("*.png"))
    assert command(["train", "first-stage", "--config", str(file), "--out", out, "--first-stage.num-codes", "32"]) == 2
    assert "first_stage.num_codes = 16, now 32" in capsys.readouterr().err


def test_bands_and_stretch_are_read_stored_and_taken_over(recipe: Recipe, tmp_path: Path) -> None:
    data = replace(recipe.data, bands=(3, 2, 1), stretch=(1.0, 99.0))
    options = TrainOptions(tmp_path / "run", data=data, first_stage=FIRST_STAGE, denoiser=DENOISER, run=recipe.run)
    seen = open_training_source(data).read(0).image
    np.testing.assert_array_equal(seen, open_training_source(recipe.data).read(0).image[..., ::-1])
    for stage in ("first-stage", "denoiser"):
        train(stage, options)
    model = load_model(tmp_path / "run" / "model")
    assert (model.bands, model.stretch) == ((3, 2, 1), (1.0, 99.0))
    tuned = replace(options, out=tmp_path / "tuned", data=recipe.data, init=str(tmp_path / "run" / "model"))
    described = tmp_path / "run" / "model" / "model.json"
    strengths = {"building": 0.2, "castle": 0.3, "default": 0.6}
    advised = {"num_steps": 5, "guidance_scale": 2.0, "restore_detail": 1.0, "exemplar_strength": strengths}
    described.write_text(json.dumps(json.loads(described.read_text()) | {"defaults": advised}))
    adapted = load_model(train("denoiser", tuned))
    assert adapted.bands == (3, 2, 1)
    assert adapted.defaults == advised | {"exemplar_strength": {"building": 0.2, "default": 0.6}}, "of its classes"
    start = str(tmp_path / "run" / "model")
    unguided = recommended(start, adapted.legend, 0.0)
    assert unguided == {name: value for name, value in adapted.defaults.items() if name != "guidance_scale"}
    other = Legend("other", (LegendClass(1, "moat", (1, 2, 3)),))
    advised = {"exemplar_strength": {"road": 0.3}, "exemplar_ring": 4}
    described.write_text(json.dumps(json.loads(described.read_text()) | {"defaults": advised}))
    assert recommended(start, other, 0.1) == {}


def test_a_tile_that_is_left_out_is_listed(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = min((Path(recipe.data.source) / "images").iterdir())
    image.write_bytes(image.read_bytes()[:400])
    data = replace(recipe.data, on_error="skip")
    train("first-stage", TrainOptions(tmp_path / "run", data=data, first_stage=FIRST_STAGE, run=recipe.run))
    assert "left out: 1 that could not be read" in capsys.readouterr().err
    assert image.name in (tmp_path / "run" / "skipped.txt").read_text()


@pytest.mark.numerical
def test_latents_are_standardised_by_the_training_set(recipe: Recipe, tmp_path: Path) -> None:
    train_both(recipe, tmp_path / "run")
    latents = np.load(tmp_path / "run/training/latents/latents.npy").astype(np.float32)
    assert latents.shape == (6, 2, 3, 16, 16)
    np.testing.assert_allclose(latents[:, 0].mean((0, 2, 3)), 0, atol=0.05)
    np.testing.assert_allclose(latents[:, 0].std((0, 2, 3)), 1, atol=0.05)
    assert load_model(tmp_path / "run" / "model").first_stage.latent_std.min() > 0


def test_nan_stops_with_the_last_checkpoint_intact(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_first_stage(source_of(recipe), recipe, tmp_path)
    original = denoising_loss

    calls = []

    def poisoned(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        loss = original(*arguments)
        return loss * float("nan") if len(calls) == 5 else loss

    monkeypatch.setattr("changeanywhere.training.denoiser.denoising_loss", poisoned)
    recipe = replace(recipe, run=replace(recipe.run, log_every=100))
    with pytest.raises(TrainingDivergedError, match="loss is nan at or shortly before step 6"):
        train_denoiser(source_of(recipe), recipe, tmp_path)
    state = torch.load(tmp_path / "training/denoiser/checkpoint.pt", weights_only=True)
    assert state["step"] == 4
    assert all(torch.isfinite(v).all() for v in state["denoiser"].values())


def test_refusals(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no first stage"):
        train_denoiser(source_of(recipe), recipe, tmp_path)
    with pytest.raises(ConfigError, match=r"denoiser.loss is 'l3'; allowed: l1, l2"):
        replace(recipe, denoiser=replace(DENOISER, loss="l3")).check()
    with pytest.raises(ConfigError, match=r"first_stage.channels is \[8, 8\]"):
        replace(recipe, first_stage=replace(FIRST_STAGE, channels=[8, 8])).check()
    train_first_stage(source_of(recipe), recipe, tmp_path)
    (tmp_path / "training/first_stage/checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        train_first_stage(source_of(recipe), recipe, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        TrainingFolder(tmp_path / "file" / "run", "first_stage", recipe, Processes(RunRecipe()), "content")


@pytest.mark.numerical
def test_denoiser_learns_to_paint_what_the_mask_says(tmp_path: Path) -> None:
    """Constant latents per class: after a few hundred steps the prediction depends on the mask."""
    torch.manual_seed(0)
    denoiser = build_denoiser(replace(DENOISER, mask_dropout=0.1), num_classes=2, latent_channels=3)
    optimizer = torch.optim.AdamW(denoiser.parameters(), 3e-3)
    schedule = noise_schedule()
    masks = torch.ones(8, 32, 32, dtype=torch.long)
    masks[:, :, 16:] = 2
    latents = F.max_pool2d(masks.float().unsqueeze(1), 4).expand(-1, 3, -1, -1) * 2 - 3
    losses = []
    for step in range(150):
        noise = draw_noise(latents.shape[1:], 8, range(8), 0.1, 1000, torch.Generator().manual_seed(step))
        loss = denoising_loss(denoiser, schedule, latents, masks, DENOISER, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([900])
    with torch.no_grad():
        one, two = (denoiser(x, t, denoiser.encode_masks(torch.full((1, 32, 32), c))) for c in (1, 2))
    # More noise is seen in x where a lower clean value is expected: class 1 has the lower one.
    assert (one - two).mean() > 0.01


def test_batches_depend_on_seed_and_step_alone_and_cover_every_epoch() -> None:
    batches = [tiles_of_step(10, 4, 7, step) for step in range(5)]
    drawn = [tile for batch in batches for tile in batch]
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))
    assert batches[3] == tiles_of_step(10, 4, 7, 3) != tiles_of_step(10, 4, 8, 3)


def test_eight_views_are_different_and_the_first_is_the_tile() -> None:
    image = np.arange(12).reshape(2, 2, 3)
    assert len({dihedral(image, view).tobytes() for view in range(8)}) == 8
    assert np.array_equal(dihedral(image, 0), image)


@pytest.mark.numerical
def test_ema_halflife_is_a_share_of_the_steps() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    average = WeightAverage(module, 0.1)
    for step in range(1000):
        if step == 900:
            torch.nn.init.ones_(module.weight)
        average.update(module, step)
    # The half-life is 90 to 100 steps over the last 100: half of the way from 0 to 1 and a little more.
    assert 0.5 < float(average.weights["weight"]) < 0.55


@pytest.mark.numerical
def test_the_average_holds_codes_where_they_were_put(recipe: Recipe) -> None:
    """Not between there and where they began: few steps follow a late placement, or a restart."""
    settings = replace(FIRST_STAGE, ema_halflife_share=0.1, quantise_from_step=4, restart_codes_every=6, num_steps=6,
                       perceptual_weight=0.0, adversarial_weight=0.0)  # fmt: skip
    recipe = replace(recipe, first_stage=settings)
    training = FirstStageTraining(recipe, Processes(recipe.run), source_of(recipe))
    training.begin()
    assert training.average is not None
    begun = training.first_stage.state_dict()
    assert all(torch.equal(value, begun[name]) for name, value in training.average.weights.items())
    distances = []
    for step, batch in enumerate(training.batches(0)):
        if step == 4:
            training._place_codebook(step)
            assert torch.equal(training.average.weights[CODEBOOK], training.first_stage.codebook)
        values = loop.take_step(training, batch, step)
        moved = training.average.weights[CODEBOOK] - training.first_stage.codebook
        distances.append(float(moved.detach().abs().max()))
    assert values["restarted_codes"] > 0
    assert max(distances[4:]) < 3 * settings.learning_rate, "as far as steps have moved the codes since"
    assert set(training.average.weights) == set(training.first_stage.state_dict())


def test_codebook_tools() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = centres.repeat_interleave(50, 0) + 0.1 * torch.randn(150, 2, generator=generator)
    codes = place_codes(vectors, 12, generator)
    assert torch.cdist(centres, codes).min(1).values.max() < 0.2
    usage = torch.tensor([3, 0, 5, 0])
    codebook = torch.zeros(4, 2)
    assert restart_dead_codes(codebook, usage, vectors + 100, generator).tolist() == [1, 3]
    assert codebook[[0, 2]].abs().sum() == 0 and (codebook[[1, 3]] > 50).all()
    assert perplexity(torch.tensor([5, 5, 5, 5])) == pytest.approx(4)
    assert perplexity(torch.tensor([9, 0, 0, 0])) == pytest.approx(1)


@pytest.mark.numerical
def test_adversarial_parts() -> None:
    net = PatchDiscriminator(3, 4)
    assert net(torch.zeros(2, 3, 64, 64)).shape[:2] == (2, 1)
    assert float(discriminator_loss(torch.full((4,), 2.0), torch.full((4,), -2.0))) == 0
    assert float(discriminator_loss(torch.zeros(4), torch.zeros(4))) == 1
    weight = torch.ones(3, requires_grad=True)
    ratio = adaptive_weight((6 * weight).sum(), (2 * weight).sum(), weight, Processes(RunRecipe()))
    assert float(ratio) == pytest.approx(3, rel=1e-3)


def test_learning_rate() -> None:
    assert learning_rate_factor(0, 100, 10, False) == pytest.approx(0.1)
    assert learning_rate_factor(50, 100, 10, False) == 1
    assert learning_rate_factor(100, 100, 0, True) == pytest.approx(0.02)


@pytest.mark.numerical
def test_linear_start_is_a_plain_reduction_and_enlargement() -> None:
    torch.manual_seed(0)
    model = build_vq_model([8, 16, 16], 1, num_codes=8, norm_groups=1, mid_attention=False)
    images = F.interpolate(torch.rand(4, 3, 8, 8) * 2 - 1, scale_factor=8, mode="bicubic").clamp(-1, 1)
    linear_start(model, images)
    with torch.no_grad():
        latents = model.encode(images).latents
        decoded = model.decode(latents, force_not_quantize=True).sample
    means = F.avg_pool2d(images, 4)
    assert F.mse_loss(latents, means) < 0.1 * means.square().mean()
    assert F.mse_loss(decoded, images) < 0.15 * images.square().mean()
    with pytest.raises(ConfigError, match="norm_groups 1"):
        linear_start(build_vq_model([8, 8, 8], 1, 8, norm_groups=2), images)


@pytest.mark.numerical
@pytest.mark.skipif(find_weights() is None, reason="stlpips-pytorch is not installed")
def test_shift_tolerant_lpips_reproduces_the_reference() -> None:
    """Reference: ``LPIPS(net="alex", variant="shift_tolerant")`` of stlpips-pytorch 0.0.2 on the same images."""
    metric = ShiftTolerantLPIPS()
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(3, 3, 128, 96, generator=generator) * 2 - 1
    second = (first + 0.3 * torch.randn(first.shape, generator=generator)).clamp(-1, 1)
    np.testing.assert_allclose(metric(first, second), [0.0059538, 0.0059584, 0.0055686], rtol=1e-3)
    assert float(metric(first, first).abs().max()) == 0
    flat = torch.zeros(1, 3, 64, 64, requires_grad=True)
    metric(flat, flat + 0.1).sum().backward()
    assert flat.grad is not None and torch.isfinite(flat.grad).all()
