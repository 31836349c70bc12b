"""Guidance in one call: what is taught, by whom, and that painting takes half its calls where it may."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from changeanywhere.diffusion.blended import mask_conditions, paint_latents
from changeanywhere.diffusion.options import CriticOptions, Sampling
from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.errors import ConfigError, ModelError, OutputError
from changeanywhere.legend import load_legend
from changeanywhere.models.borrowed import DDPMScheduler
from changeanywhere.models.denoiser import Denoiser
from changeanywhere.models.folder import (
    Model,
    load_first_stage,
    load_model,
    load_schedule,
    noise_schedule,
    save_first_stage,
    save_model,
    schedule_hash,
)
from changeanywhere.progress import silent
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.training import denoiser as training_denoiser
from changeanywhere.training.denoiser import DenoiserTraining, _tiles_of, denoising_loss, train_denoiser
from changeanywhere.training.guidance import Teacher, mixed
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DataRecipe, DenoiserRecipe, Recipe, RunRecipe
from conftest import tiny_model, write_source

SCALE = 2.0
KNOWN = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
MASKS = torch.ones(2, 64, 64, dtype=torch.int64)
MASKS[:, 20:] = 2
CHANGE = torch.zeros(2, 64, 64, dtype=torch.bool)
CHANGE[0, 8:24, 8:24] = CHANGE[1, 30:50, 20:44] = True


class Counted(Denoiser):
    """How many rows each call had, and whether it was that of the taught network."""

    def __init__(self, other: Denoiser) -> None:
        super().__init__(other.unet, other.mask_encoder, other.guided, other.guided_scale)
        self.calls: list[tuple[int, bool]] = []

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor, guided: bool = False
    ) -> torch.Tensor:
        self.calls.append((len(latents), guided))
        return super().forward(latents, timesteps, condition, guided)


def taught_model(seed: int = 0) -> Model:
    """A tiny model with a second denoiser, of other random weights."""
    model = tiny_model()
    torch.manual_seed(seed)
    other = type(model.denoiser.unet)(**{k: v for k, v in model.denoiser.unet.config.items() if k[0] != "_"})
    model.denoiser = Denoiser(model.denoiser.unet, model.denoiser.mask_encoder, other, SCALE).eval()
    return model


def painted(model: Model, denoiser: Denoiser, sampling: Sampling) -> torch.Tensor:
    return paint_latents(denoiser, model.schedule, KNOWN, MASKS, CHANGE, [5, 6], sampling)


@pytest.mark.parametrize("margin", [0, 2])
def test_its_guidance_takes_one_row_a_pair_and_any_other_two(margin: int) -> None:
    model = taught_model()
    counted = Counted(model.denoiser)
    settings = Sampling(num_steps=4, guidance_scale=SCALE, window_margin=margin)
    result = painted(model, counted, settings)
    assert {guided for _, guided in counted.calls} == {True} and max(rows for rows, _ in counted.calls) == 2
    # The taught network is asked, and nothing else: in the place of the other it paints the same without guidance.
    assert model.denoiser.guided is not None
    alone = Denoiser(model.denoiser.guided, model.denoiser.mask_encoder)
    assert torch.equal(result, painted(model, alone, replace(settings, guidance_scale=1.0)))
    counted.calls.clear()
    other = painted(model, counted, replace(settings, guidance_scale=3.0))
    assert max(rows for rows, _ in counted.calls) == 4
    plain = Denoiser(model.denoiser.unet, model.denoiser.mask_encoder)
    assert torch.equal(other, painted(model, plain, replace(settings, guidance_scale=3.0)))
    counted.calls.clear()
    painted(model, counted, replace(settings, guidance_scale=1.0))
    assert {guided for _, guided in counted.calls} == {False} and max(rows for rows, _ in counted.calls) == 2


def test_outside_of_an_interval_the_first_network_is_asked() -> None:
    model = taught_model()
    counted = Counted(model.denoiser)
    painted(model, counted, Sampling(num_steps=8, guidance_scale=SCALE, guidance_interval=[300, 700]))
    assert [guided for _, guided in counted.calls] == [False, False, True, True, True, False, False, False]


def test_a_push_keeps_both_branches() -> None:
    from changeanywhere.diffusion.critic import Pushed
    from changeanywhere.models.critic import Critic

    model = taught_model()
    critic = Critic.fresh([8, 16], model.legend, "")
    pushed = Pushed(model.denoiser, critic, model.schedule, CHANGE[:, None, ::4, ::4], CriticOptions(), Sampling())
    assert len(mask_conditions(model.denoiser, MASKS, SCALE)) == 1
    assert len(mask_conditions(pushed, MASKS, SCALE)) == 2


def test_a_model_with_it_is_written_and_read(tmp_path: Path) -> None:
    model = taught_model()
    save_model(model, tmp_path / "model")
    back = load_model(tmp_path / "model").denoiser
    assert back.guides_itself(SCALE) and not back.guides_itself(3.0)
    assert model.denoiser.guided is not None and back.guided is not None
    for name, value in model.denoiser.guided.state_dict().items():
        assert torch.equal(back.guided.state_dict()[name], value)
    pipe = ChangePairPipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    pipe.save_pretrained(tmp_path / "again")
    assert load_model(tmp_path / "again").denoiser.guides_itself(SCALE)


def test_a_folder_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    save_model(taught_model(), tmp_path / "model")
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    del description["guided_scale"]
    shutil.copytree(tmp_path / "model", tmp_path / "unsaid")
    (tmp_path / "unsaid" / "model.json").write_text(json.dumps(description))
    with pytest.raises(ModelError, match="guided_scale is missing"):
        load_model(tmp_path / "unsaid")
    shutil.rmtree(tmp_path / "model" / "denoiser_guided")
    with pytest.raises(ModelError, match="denoiser_guided"):
        load_model(tmp_path / "model")
    save_model(taught_model(), tmp_path / "other")
    config = tmp_path / "other" / "denoiser_guided" / "config.json"
    config.write_text(config.read_text().replace('"layers_per_block": 1', '"layers_per_block": 2'))
    with pytest.raises(ModelError, match="allowed: the same configuration"):
        load_model(tmp_path / "other")


def test_the_teacher_says_what_two_branches_say(tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, tmp_path)
    teacher = Teacher(str(tmp_path), SCALE, model.legend, torch.device("cpu"))
    times = torch.tensor([100, 800])
    condition = model.denoiser.encode_masks(MASKS)
    with torch.no_grad():
        first = model.denoiser(KNOWN, times, condition)
        second = model.denoiser(KNOWN, times, torch.zeros_like(condition))
    guided, weight = teacher.predict(KNOWN, times, condition)
    torch.testing.assert_close(guided, second + SCALE * (first - second))
    torch.testing.assert_close(weight, 1 / ((first - second).square().mean((1, 2, 3)) + 0.01))
    with torch.no_grad():
        assert not any(each.requires_grad for each in teacher.denoiser.parameters())
    # Without a mask there is nothing to guide by.
    torch.testing.assert_close(teacher.predict(KNOWN, times, torch.zeros_like(condition))[0], second)


def test_half_of_the_masks_hold_a_box_of_another() -> None:
    masks = torch.arange(64)[:, None, None].expand(64, 32, 32).contiguous()
    result = mixed(masks, masks[-1], 64, range(64), seed=1, step=3)
    lent = result != masks
    assert torch.equal(result[lent], masks.roll(1, 0)[lent])
    shares = lent.float().mean((1, 2))
    assert 16 < int((shares > 0).sum()) < 48 and 0.1 < float(shares[shares > 0].mean()) < 0.25
    for each in lent[shares > 0]:  # a box: all of its rows and columns
        rows, columns = each.any(1), each.any(0)
        assert torch.equal(each, rows[:, None] & columns[None])
    assert not torch.equal(mixed(masks, masks[-1], 64, range(64), 1, 4), result)
    for rows in (range(8, 16), range(8), range(9, 10)):
        assert torch.equal(mixed(masks[list(rows)], masks[rows.start - 1], 64, rows, 1, 3), result[list(rows)])


@pytest.mark.parametrize("crop_size", [None, 32])
def test_what_is_taught_is_the_same_with_any_number_of_processes(
    taught_recipe: Recipe, tmp_path: Path, crop_size: int | None
) -> None:
    """Also where each has one row, whose mask is then its neighbour's in a box as ever."""
    source = open_source(taught_recipe.data.source, SourceOptions(tile_size=64))
    recipe = replace(taught_recipe, denoiser=replace(taught_recipe.denoiser, crop_size=crop_size, num_steps=8))
    first_stage, seen = load_model(tmp_path / "init").first_stage, {}
    for count in (1, 2, 4):
        shares = []
        for rank in range(count):
            processes = Processes(recipe.run)
            cache = _tiles_of(recipe, source, first_stage, processes, tmp_path / "run", silent)
            processes.rank, processes.count = rank, count
            training = DenoiserTraining(recipe, processes, source, first_stage, cache)
            shares.append([batch[1] for batch in training.batches(0)])
        seen[count] = [torch.cat(rows) for rows in zip(*shares, strict=True)]
    plain = [cache.batch(4, recipe.run.seed, step, range(4))[1] for step in range(8)]
    assert any(not torch.equal(own, masks) for own, masks in zip(plain, seen[1], strict=True)), "some are mixed"
    for count in (2, 4):
        assert all(torch.equal(one, more) for one, more in zip(seen[1], seen[count], strict=True)), count


@pytest.fixture
def taught_recipe(tmp_path: Path) -> Recipe:
    """For a tiny model in ``tmp_path/init``."""
    data = DataRecipe(source=str(write_source(tmp_path / "source")), tile_size=64)
    source = open_source(data.source, SourceOptions(tile_size=64))
    model = replace(tiny_model(), legend=source.legend)
    with torch.no_grad():
        model.denoiser.mask_encoder.conv.weight *= 10  # random weights hardly listen to a mask
    save_model(model, tmp_path / "init")
    denoiser = load_model(tmp_path / "init").denoiser
    config = denoiser.unet.config
    settings = DenoiserRecipe(
        channels=list(config.block_out_channels), layers_per_block=config.layers_per_block, head_dim=8,
        attention_levels=[i for i, kind in enumerate(config.down_block_types) if kind.startswith("Attn")],
        norm_groups=config.norm_num_groups, mask_channels=denoiser.mask_encoder.config.mask_channels,
        batch_size=4, num_steps=80, learning_rate=1e-3, loss="l2", distil_guidance=SCALE, cosine_decay=True,
    )  # fmt: skip
    return Recipe(data, denoiser=settings, run=RunRecipe(num_workers=0), init=str(tmp_path / "init"))


def test_what_is_taught_comes_nearer_to_guidance_and_leaves_its_teacher_alone(
    taught_recipe: Recipe, tmp_path: Path
) -> None:
    source = open_source(taught_recipe.data.source, SourceOptions(tile_size=64))
    folder = train_denoiser(source, taught_recipe, tmp_path / "run")
    init, model = load_model(tmp_path / "init"), load_model(folder)
    for name, value in init.denoiser.state_dict().items():
        torch.testing.assert_close(model.denoiser.state_dict()[name], value, atol=1e-3, rtol=1e-3)  # in float16
    assert model.denoiser.guides_itself(SCALE) and model.mask_dropout == init.mask_dropout
    teacher = Teacher(str(tmp_path / "init"), SCALE, source.legend, torch.device("cpu"))
    latents = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    masks = torch.from_numpy(source.read(0).mask).long()[None].expand(16, -1, -1)
    drawn = torch.arange(16) * 60 + 20, torch.randn_like(latents), torch.zeros(16, dtype=torch.bool)
    assert model.denoiser.guided is not None
    taught = Denoiser(model.denoiser.guided, model.denoiser.mask_encoder)
    with torch.no_grad():
        errors = [
            float(denoising_loss(each, noise_schedule(), latents, masks, taught_recipe.denoiser, drawn, teacher))
            for each in (taught, init.denoiser)
        ]
    assert errors[0] < 0.6 * errors[1], errors


@pytest.mark.parametrize("scale", [None, SCALE])
def test_weights_of_another_model_go_on_learning_at_its_noise(
    taught_recipe: Recipe, tmp_path: Path, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-tuned or taught guidance: they know no other schedule, and the model is written with the one they saw."""
    init = load_model(tmp_path / "init")
    usual = init.schedule.config
    given = {"num_train_timesteps": 1000, "beta_schedule": usual.beta_schedule, "clip_sample": False}
    init.schedule = DDPMScheduler(**given, beta_start=0.00085, beta_end=0.012, prediction_type=usual.prediction_type)
    save_model(init, tmp_path / "init")
    settings = replace(taught_recipe.denoiser, distil_guidance=scale, num_steps=2)
    recipe, seen = replace(taught_recipe, denoiser=settings), list[DDPMScheduler]()

    def noted(denoiser: Denoiser, schedule: DDPMScheduler, *rest: object) -> torch.Tensor:
        seen.append(schedule)
        return denoising_loss(denoiser, schedule, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training_denoiser, "denoising_loss", noted)
    source = open_source(recipe.data.source, SourceOptions(tile_size=64))
    folder = train_denoiser(source, recipe, tmp_path / "run")
    assert len(seen) == 2
    for schedule in (*seen, load_schedule(folder)):
        assert torch.equal(schedule.alphas_cumprod, init.schedule.alphas_cumprod)
    # A run of an edition that did not ask saw the usual noise: it does not go on under another.
    checkpoint = tmp_path / "run/training/denoiser/checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    assert state.pop("schedule") == schedule_hash(init.schedule) != schedule_hash(noise_schedule())
    torch.save(state, checkpoint)
    with pytest.raises(OutputError, match="has another noise schedule than the one that the run was begun with"):
        train_denoiser(source, recipe, tmp_path / "run")


def test_what_cannot_be_taught_is_refused(taught_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"distil_guidance is 2\.0; allowed: above 1 to 1000, with init"):
        replace(taught_recipe, init=None).check("denoiser")
    with pytest.raises(ConfigError, match="distil_guidance is 1; allowed"):
        replace(taught_recipe, denoiser=replace(taught_recipe.denoiser, distil_guidance=1)).check("denoiser")
    with pytest.raises(ConfigError, match=r"batch_size is 1; allowed: 2 and more with denoiser\.distil_guidance"):
        replace(taught_recipe, denoiser=replace(taught_recipe.denoiser, batch_size=1)).check("denoiser")
    model = load_model(tmp_path / "init")
    with pytest.raises(ConfigError, match="has other classes than the tiles"):
        Teacher("mini", SCALE, load_legend("landcoverai"), torch.device("cpu"))
    save_model(replace(model, mask_dropout=0.0), tmp_path / "undropped")
    with pytest.raises(ConfigError, match="without mask dropout"):
        Teacher(str(tmp_path / "undropped"), SCALE, model.legend, torch.device("cpu"))


def test_it_is_taught_on_the_latents_of_its_teacher(taught_recipe: Recipe, tmp_path: Path) -> None:
    """The model is written with the first stage of init: another one's latents it would never see."""
    recipe = replace(taught_recipe, denoiser=replace(taught_recipe.denoiser, num_steps=1))
    source = open_source(recipe.data.source, SourceOptions(tile_size=64))
    own = tmp_path / "init" / "first_stage"
    with pytest.raises(ConfigError, match=r"first_stage_from is .*; allowed: none with denoiser\.distil_guidance"):
        train_denoiser(source, recipe, tmp_path / "run", own)
    with pytest.raises(ConfigError, match=r"data\.bands is \[3, 2, 1\]; allowed: \[1, 2, 3\] with denoiser\.distil"):
        train_denoiser(source, replace(recipe, data=replace(recipe.data, bands=(3, 2, 1))), tmp_path / "run")
    stretched = replace(recipe, data=replace(recipe.data, stretch=(5, 95)))
    with pytest.raises(ConfigError, match=r"data\.stretch is \[5, 95\]; allowed: \[2\.0, 98\.0\] with denoiser"):
        train_denoiser(source, stretched, tmp_path / "run")
    save_model(replace(load_model(tmp_path / "init"), stretch=(5.0, 95.0)), tmp_path / "stretched")
    train_denoiser(source, replace(stretched, init=str(tmp_path / "stretched")), tmp_path / "as_taught")
    with pytest.raises(ConfigError, match=r"data\.stretch is \[2\.0, 98\.0\]; allowed: \[5\.0, 95\.0\] with denoiser"):
        train_denoiser(source, replace(recipe, init=str(tmp_path / "stretched")), tmp_path / "run")
    first_stage = load_first_stage(own)
    with torch.no_grad():
        first_stage.vq_model.decoder.conv_out.weight += 1.0  # another decoder: the same latents
    save_first_stage(first_stage, tmp_path / "run" / "first_stage")
    written = load_first_stage(train_denoiser(source, recipe, tmp_path / "run") / "first_stage")
    before = load_first_stage(own)
    torch.testing.assert_close(
        written.vq_model.decoder.conv_out.weight, before.vq_model.decoder.conv_out.weight, atol=1e-3, rtol=1e-3
    )
    with torch.no_grad():
        first_stage.vq_model.encoder.conv_in.weight *= 2.0
    save_first_stage(first_stage, tmp_path / "other" / "first_stage")
    with pytest.raises(ConfigError, match=r"first_stage: has other latents than the first stage of .*another --out"):
        train_denoiser(source, recipe, tmp_path / "other")
    assert not (tmp_path / "other" / "training").exists()


def test_a_teacher_that_learned_with_dropout_gives_a_folder_that_loads(taught_recipe: Recipe, tmp_path: Path) -> None:
    """What its configuration says beside its function is said of both networks."""
    place = tmp_path / "init" / "denoiser" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"dropout": 0.1, "sample_size": 16}))
    recipe = replace(taught_recipe, denoiser=replace(taught_recipe.denoiser, num_steps=1))
    source = open_source(recipe.data.source, SourceOptions(tile_size=64))
    assert load_model(train_denoiser(source, recipe, tmp_path / "run")).denoiser.guides_itself(SCALE)
