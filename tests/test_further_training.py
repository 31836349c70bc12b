"""What the second edition adds to training: decoders alone, further images, crops on the device, weights held."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from PIL import Image

from changeanywhere.cli import run
from changeanywhere.errors import ConfigError, SourceError
from changeanywhere.legend import load_legend
from changeanywhere.models.folder import load_first_stage
from changeanywhere.progress import silent
from changeanywhere.sources import JoinedSource, SourceOptions, open_images, open_source
from changeanywhere.training.batches import Mixture, mixture_of, tiles_of_step, turned
from changeanywhere.training.command import open_training_source
from changeanywhere.training.denoiser import _tiles_of
from changeanywhere.training.first_stage import FirstStageTraining, train_first_stage
from changeanywhere.training.live_tiles import MIRRORED, LiveTiles
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DataRecipe, DenoiserRecipe, FirstStageRecipe, Recipe, RunRecipe
from conftest import tiny_model, write_source

DECODER = FirstStageRecipe(
    channels=[8, 8, 8], layers_per_block=1, norm_groups=4, mid_attention=False, num_codes=16, parts="decoder",
    quantise=False, latent_noise=0.1, crop_size=32, batch_size=4, num_steps=6, learning_rate=1e-3,
    perceptual_weight=0.0, adversarial_from_step=1, adversarial_weight=0.5, adaptive_steps=2, ema_halflife_share=0.1,
    discriminator_channels=4,
)  # fmt: skip
DENOISER = DenoiserRecipe(
    channels=[8, 16], layers_per_block=1, attention_levels=[1], head_dim=8, norm_groups=4, mask_channels=4,
    batch_size=4, num_steps=3, crop_size=32, flip="horizontal",
)  # fmt: skip


def images_in(folder: Path, names: list[str]) -> Path:
    rng = np.random.default_rng(7)
    (folder / "images").mkdir(parents=True)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "images" / f"{name}.png")
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    first = tmp_path / "model"
    model = tiny_model()
    from changeanywhere.models.folder import save_model

    save_model(model, first)
    source = write_source(tmp_path / "source")
    further = images_in(tmp_path / "further", ["oslo_1", "oslo_2", "rome_1", "rome_2"])
    return Recipe(
        DataRecipe(source=str(source), tile_size=64, images=[str(further)], images_without=["rome*"]),
        replace(DECODER, num_codes=model.first_stage.codebook.shape[0]),
        DENOISER,
        run=RunRecipe(num_workers=0, log_every=1, save_every=2),
        init=str(first),
    )


def test_a_decoder_alone_leaves_latents_and_codes(recipe: Recipe, tmp_path: Path) -> None:
    source = open_training_source(recipe.data)
    folder = train_first_stage(source, recipe, tmp_path / "run")
    before, after = load_first_stage(Path(str(recipe.init)) / "first_stage"), load_first_stage(folder)
    assert before.quantises and not after.quantises
    moved = {name for name, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[name])}
    assert moved and all(name.startswith(("vq_model.decoder", "vq_model.post_quant_conv")) for name in moved)
    latents = after.encode(torch.rand(1, 3, 32, 32) * 2 - 1)
    exact = after.decode_codes(latents * after.latent_std + after.latent_mean).clamp(-1, 1)
    assert torch.equal(after.decode(latents), exact)
    codes = before.quantise(latents * before.latent_std + before.latent_mean)[0]
    assert torch.equal(before.decode(latents), before.decode_codes(codes).clamp(-1, 1))


def test_an_interrupted_decoder_ends_with_the_same_weights(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from changeanywhere.training.folder import TrainingFolder

    source, save = open_training_source(recipe.data), TrainingFolder.save_checkpoint
    whole = load_first_stage(train_first_stage(source, recipe, tmp_path / "whole")).state_dict()

    def save_and_die(self: TrainingFolder, state: dict[str, object]) -> None:
        save(self, state)
        if state["step"] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingFolder, "save_checkpoint", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train_first_stage(source, recipe, tmp_path / "broken")
    monkeypatch.setattr(TrainingFolder, "save_checkpoint", save)
    broken = load_first_stage(train_first_stage(source, recipe, tmp_path / "broken")).state_dict()
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())


def test_the_adaptive_weight_is_held_once_it_is_measured(recipe: Recipe) -> None:
    training = FirstStageTraining(recipe, Processes(recipe.run), open_training_source(recipe.data))
    training.begin()
    weights = []
    for step, batch in enumerate(training.batches(0)):
        values = training.backward(batch, step)
        training.after_step(step)
        weights.append(float(values.get("adaptive_weight", torch.zeros(()))))
    assert weights[0] == 0 and weights[1] != weights[2]
    assert weights[3:] == [pytest.approx((weights[1] + weights[2]) / 2)] * 3


def test_latent_noise_does_not_depend_on_the_parts_of_a_batch(recipe: Recipe) -> None:
    losses = []
    for parts in (1, 2):
        settings = replace(
            recipe.first_stage, adversarial_weight=0.0, adversarial_from_step=50_001, adaptive_steps=None
        )
        settings = replace(settings, discriminator_channels=64)
        one = replace(recipe, first_stage=settings, run=replace(recipe.run, accumulation_steps=parts))
        training = FirstStageTraining(one, Processes(one.run), open_training_source(one.data))
        training.begin()
        (images,) = next(training.batches(0))
        pieces = images.chunk(parts)
        losses.append(sum(float(training.backward((piece,), 0)["l1"].detach()) for piece in pieces) / parts)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_images_without_masks_are_unknown_ground_and_join_the_tiles(recipe: Recipe, tmp_path: Path) -> None:
    source = open_training_source(recipe.data)
    assert isinstance(source, JoinedSource) and source.sizes == [6, 2] and source.starts == [0, 6]
    assert [item.key for item in source.items[6:]] == ["oslo_1", "oslo_2"]
    assert not source.read_mask(7).any() and source.read(7).item.key == "oslo_2" and source.read_mask(0).any()
    folder = Path(recipe.data.images[0])
    alone = open_images(folder, load_legend("mini"), SourceOptions(tile_size=32))
    assert len(alone) == 16 and alone.read(0).mask.shape == (32, 32)
    twice = JoinedSource([source, open_images(folder, source.legend, SourceOptions(tile_size=64))])
    assert len({item.key for item in twice.items}) == len(twice) == 12
    assert twice.fingerprint() != source.fingerprint()
    with pytest.raises(SourceError, match=r"every image is left out by \*"):
        JoinedSource([source, alone], ["*"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no image in it"):
        open_images(tmp_path / "empty", source.legend)


def test_a_mixture_keeps_its_shares_and_every_part_its_epochs() -> None:
    mixture = Mixture((10, 3), (0.7, 0.3))
    steps = [tiles_of_step(mixture, 8, 1, step) for step in range(40)]
    assert all(len(step) == 8 for step in steps)
    flat = [tile for step in steps for tile in step]
    second = [tile for tile in flat if tile >= 10]
    assert abs(len(second) - 0.3 * len(flat)) <= 1 and set(flat) == set(range(13))
    assert sorted(second[:3]) == [10, 11, 12], "an epoch sees each tile once"
    assert steps == [tiles_of_step(mixture, 8, 1, step) for step in range(40)]


def test_every_folder_of_a_mixture_has_its_share_of_steps_that_are_full() -> None:
    """However many there are; two that were begun go on as they were."""
    rng = np.random.default_rng(5)
    cases = [([0.85, 0.05, 0.05, 0.05], 4), ([0.5, *[0.5 / 3] * 3], 2)]  # of the recipes whose folders were not seen
    for _ in range(25):
        weights = rng.random(int(rng.integers(2, 11))) ** 3 + 1e-3
        cases.append(([float(weight) for weight in weights / weights.sum()], int(rng.choice([1, 2, 3, 4, 8, 16]))))
    for shares, batch_size in cases:
        mixture, num_steps = Mixture((7,) * len(shares), tuple(shares)), 60
        steps = [tiles_of_step(mixture, batch_size, 0, step) for step in range(num_steps)]
        assert {len(step) for step in steps} == {batch_size}, (shares, batch_size)
        numbers = [[tile % 7 for step in steps for tile in step if tile // 7 == part] for part in range(len(shares))]
        for share, seen in zip(shares, numbers, strict=True):
            assert abs(len(seen) - share * num_steps * batch_size) < len(shares), (shares, batch_size)
            epochs = [seen[start : start + 7] for start in range(0, len(seen) - 6, 7)]
            assert all(sorted(epoch) == list(range(7)) for epoch in epochs), "each tile once, none left out"
        if len(shares) == 2:
            taken = [round((step + 1) * batch_size * shares[0]) for step in range(num_steps)]
            assert [sum(tile < 7 for each in steps[: n + 1] for tile in each) for n in range(num_steps)] == taken


def test_the_denoiser_sees_crops_that_turn_with_their_masks(recipe: Recipe, tmp_path: Path) -> None:
    source, processes = open_training_source(recipe.data), Processes(recipe.run)
    first_stage = load_first_stage(Path(str(recipe.init)) / "first_stage")
    live = LiveTiles(source, first_stage, mixture_of(source, recipe.data), 32, (0, MIRRORED), processes)
    latents, masks = live.batch(16, 0, 3, range(16))
    assert latents.shape == (16, 3, 8, 8) and masks.shape == (16, 32, 32) and len(live) == 8
    found, mirrored = 0, 0
    for mask, latent in zip(masks.numpy(), latents, strict=True):
        for tile in range(6):
            whole = source.read(tile)
            for flip in (False, True):
                for top in range(33):
                    rows = whole.mask[top : top + 32]
                    for left in range(33):
                        crop = rows[:, left : left + 32]
                        if np.array_equal(crop[:, ::-1] if flip else crop, mask) and np.ptp(mask):
                            image = whole.pixels()[top : top + 32, left : left + 32]
                            image = image[:, ::-1] if flip else image
                            expected = live.encode(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])[0]
                            if torch.allclose(expected, latent, atol=1e-4):
                                found, mirrored = found + 1, mirrored + flip
    assert found >= 6 and 0 < mirrored < found
    again, _ = live.batch(16, 0, 3, range(4, 8))
    assert torch.allclose(again, latents[4:8], atol=1e-5), "a process's rows are the batch's"


def test_tiles_of_8_and_of_16_bits_are_seen_alike_in_one_source(recipe: Recipe, tmp_path: Path) -> None:
    """Kept as bytes where all have 8 bits; never are bytes taken for pixels in [-1, 1]."""
    deep = write_source(tmp_path / "deep", 2)
    for file in sorted((deep / "images").iterdir()):
        image = np.asarray(Image.open(file)).astype(np.uint16) * 40 + 500
        profile = {"driver": "GTiff", "height": 64, "width": 64, "count": 3, "dtype": "uint16"}
        place = {"crs": "EPSG:32633", "transform": rasterio.Affine(1, 0, 500_000, 0, -1, 5_000_000)}
        with rasterio.open(file.with_suffix(".tif"), "w", **profile, **place) as opened:
            opened.write(image.transpose(2, 0, 1))
        file.unlink()
    processes, first_stage = Processes(recipe.run), load_first_stage(Path(str(recipe.init)) / "first_stage")
    fingerprints = set()
    for further, source_of, kind in (([], recipe.data.source, torch.uint8), ([str(deep)], recipe.data.source, None),
                                     ([], str(deep), None), ([recipe.data.source], str(deep), None)):  # fmt: skip
        data = replace(recipe.data, source=source_of, further=further, images=[], images_without=[])
        source = open_training_source(data)
        live = LiveTiles(source, first_stage, mixture_of(source, data), 32, (0,), processes)
        assert live.images.dtype == (kind or torch.float16)
        fingerprints.add(live.fingerprint)
        for tile in range(len(source)):
            pixels = torch.from_numpy(source.read(tile).pixels()).permute(2, 0, 1)[None]
            expected = first_stage.encode(pixels.to(processes.device)).detach()
            assert torch.allclose(live.examples([tile])[0], expected, atol=0.02), (further, tile)
    assert len(fingerprints) == 4


def test_crops_are_seen_in_as_many_views_as_asked(recipe: Recipe) -> None:
    """Each in one that follows from seed, step and row; mask and latent in the same."""
    source, processes = open_training_source(recipe.data), Processes(recipe.run)
    first_stage, tiles = load_first_stage(Path(str(recipe.init)) / "first_stage"), mixture_of(source, recipe.data)
    whole, one, eight = (LiveTiles(source, first_stage, tiles, None, range(count), processes) for count in (1, 1, 8))
    rows = range(24)
    plain, masks = whole.batch(24, 0, 3, rows)
    latents, seen = eight.batch(24, 0, 3, rows)
    views = set()
    for row in rows:
        fits = [view for view in range(8) if torch.equal(turned(masks[row], view), seen[row])]
        assert fits
        views |= set(fits if len(fits) == 1 else [])
        pixels = whole.images[tiles_of_step(tiles, 24, 0, 3)[row]]
        expected = [eight.encode(turned(pixels, view)[None])[0] for view in fits]
        assert any(torch.allclose(latents[row], each, atol=1e-4) for each in expected)
    assert len(views) >= 6, views
    assert torch.equal(plain, one.batch(24, 0, 3, rows)[0]) and whole.fingerprint == one.fingerprint
    assert eight.fingerprint != one.fingerprint, "what a run saw is not changed on the way"
    assert torch.allclose(eight.batch(24, 0, 3, range(4, 8))[0], latents[4:8], atol=1e-5)
    crops = replace(recipe.denoiser, flip="none", views=8)
    replace(recipe, denoiser=crops).check("denoiser")
    live = _tiles_of(replace(recipe, denoiser=crops), source, first_stage, processes, Path("unread"), silent)
    assert live.fingerprint != LiveTiles(source, first_stage, tiles, 32, (0,), processes).fingerprint


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--first-stage.parts", "decoder"], "first_stage.parts is 'decoder'; allowed: all, unless init"),
        (["--first-stage.parts", "encoder"], "first_stage.parts is 'encoder'; allowed: all, decoder"),
        (["--first-stage.quantise", "false"], "first_stage.quantise is False; allowed: true, unless parts is decoder"),
        (["--first-stage.latent-noise", "0.1"], "first_stage.latent_noise is 0.1; allowed: 0, unless"),
        (["--first-stage.adaptive-steps", "0"], "first_stage.adaptive_steps is 0; allowed: above 0"),
        (["--data.images-share", "0.3"], "data.images_share is 0.3, which does nothing while data.images is []"),
    ],
)
def test_settings_that_cannot_be(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "source")
    given = [
        "train",
        "first-stage",
        "--data.source",
        str(source),
        "--data.tile-size",
        "64",
        "--out",
        str(tmp_path / "x"),
    ]
    assert run([*given, "--first-stage.crop-size", "32", *flags]) == 2
    assert message in capsys.readouterr().err


def test_crops_and_flips_are_checked() -> None:
    for settings, message in (
        (replace(DENOISER, crop_size=40), "crop_size is 40"),
        (replace(DENOISER, flip="up"), "flip is"),
    ):
        with pytest.raises(ConfigError, match=message):
            Recipe(DataRecipe(source="x"), denoiser=settings).check("denoiser")
    with pytest.raises(ConfigError, match=r"views is 2, which does nothing while denoiser\.flip"):
        Recipe(DataRecipe(source="x"), denoiser=replace(DENOISER, views=2)).check("denoiser")


@pytest.mark.parametrize(
    ("tile_size", "changes", "message"),
    [
        (
            48,
            {"channels": [8] * 4},
            r"data\.tile_size is 48; allowed: a multiple of 32, .*denoiser\.channels of 4 levels",
        ),
        (64, {"channels": [8] * 4, "crop_size": 48}, r"denoiser\.crop_size is 48; allowed: a multiple of 32, up to"),
        (64, {"channels": []}, r"denoiser\.channels is \[\]; allowed: 1 to 8 numbers"),
        (64, {"channels": [8] * 9}, r"denoiser\.channels is .*; allowed: 1 to 8 numbers"),
    ],
)
def test_tiles_and_crops_fit_the_depth(tile_size: int, changes: dict[str, object], message: str) -> None:
    settings = replace(DENOISER, flip="none", attention_levels=[], **({"crop_size": None} | changes))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        Recipe(DataRecipe(source="x", tile_size=tile_size), denoiser=settings).check("denoiser")
    Recipe(DataRecipe(source="x", tile_size=64), denoiser=replace(settings, channels=[8] * 4, crop_size=32)).check(
        "denoiser"
    )


@pytest.mark.parametrize("crop_size", [None, 16])
def test_a_group_of_one_value_is_refused(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], crop_size: int | None
) -> None:
    """It ended in torch's traceback in a batch of one, and in a level that says nothing in larger ones."""
    given = {"source": recipe.data.source, "tile_size": 64 if crop_size else 16}
    network = {"channels": [8, 8, 8], "norm_groups": 8, "head_dim": 8, "layers_per_block": 1, "mask_channels": 3}
    steps = {"batch_size": 1, "num_steps": 1, "crop_size": crop_size}
    file = tmp_path / "recipe.yaml"
    content = {"data": given, "denoiser": network | steps, "critic": {"channels": [8, 8, 8], "batch_size": 1}}
    file.write_text(yaml.safe_dump(content))
    command = ["--config", str(file), "--first-stage-from", "mini/first_stage", "--out", str(tmp_path / "run")]
    assert run(["train", "denoiser", *command]) == 2
    error = capsys.readouterr().err
    name = "denoiser.crop_size" if crop_size else "data.tile_size"
    assert f"{name} is 16; allowed: 32 px and more (denoiser.channels of 3 levels" in error and error.count("\n") == 1
    assert run(["train", "critic", *command]) == 2
    error = capsys.readouterr().err
    if crop_size:  # critics read whole tiles
        assert "allowed: 32" not in error
    else:
        assert "data.tile_size is 16; allowed: 32 px and more (critic.channels of 3 levels" in error
    tiny = Recipe(DataRecipe(source="x", tile_size=16), denoiser=DenoiserRecipe(**network))  # type: ignore[arg-type]
    for sound in (
        replace(tiny, data=DataRecipe(source="x", tile_size=32)),
        replace(tiny, denoiser=replace(tiny.denoiser, norm_groups=4)),
        replace(tiny, denoiser=replace(tiny.denoiser, channels=[8, 8])),
    ):
        sound.check("denoiser")
    narrow = replace(tiny.denoiser, channels=[8, 8, 16])  # what comes from above is normalised there, too
    with pytest.raises(ConfigError, match="in 8 groups of one value"):
        replace(tiny, denoiser=narrow).check("denoiser")


def test_the_whole_way_by_the_command_line(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Decoder, then a denoiser on crops with unlabelled tiles, then a pair."""
    from dataclasses import asdict

    file, out = tmp_path / "recipe.yaml", tmp_path / "run"
    sections = {name: asdict(getattr(recipe, name)) for name in ("first_stage", "denoiser", "run")}
    data = {name: getattr(recipe.data, name) for name in ("source", "tile_size", "images", "images_without")}
    file.write_text(yaml.safe_dump({"data": data, "init": recipe.init, **sections}))
    assert run(["train", "first-stage", "--config", str(file), "--out", str(out)]) == 0
    file.write_text(yaml.safe_dump({"data": data, **sections}))
    assert run(["train", "denoiser", "--config", str(file), "--out", str(out)]) == 0
    pairs = ["generate", "--model", str(out / "model"), "--source", recipe.data.source, "--tile-size", "64"]
    assert run([*pairs, "--num-pairs", "1", "--num-steps", "2", "--out", str(tmp_path / "pairs")]) == 0
    assert not load_first_stage(out / "model" / "first_stage").quantises
    assert open_source(recipe.data.source, SourceOptions(tile_size=64)).legend.num_classes
    capsys.readouterr()


def test_a_recipe_that_a_flag_cuts_short_places_its_codes_half_way(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mini = str(Path(__file__).parents[1] / "recipes" / "mini.yaml")
    given = ["train", "first-stage", "--config", mini, "--data.source", recipe.data.source, "--data.licences", "null"]
    given += ["--data.model-legend", "null", "--data.tile-size", "64", "--first-stage.crop-size", "64"]
    assert run([*given, "--first-stage.num-steps", "1", "--out", str(tmp_path / "short")]) == 0
    assert "quantise_from_step is 2000 in the recipe, beyond the 1 steps asked for: 0 here" in capsys.readouterr().err
    asked = ["--first-stage.quantise-from-step", "5"]
    assert run([*given, *asked, "--first-stage.num-steps", "1", "--out", str(tmp_path / "asked")]) == 2
    assert "first_stage.quantise_from_step is 5; allowed: below first_stage.num_steps" in capsys.readouterr().err
