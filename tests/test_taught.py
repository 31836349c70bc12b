"""Segmenters that go on from another one, learn from several sources, and teach themselves on images without masks."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image

from changeanywhere.cli import run as command
from changeanywhere.errors import ConfigError, OutputError
from changeanywhere.legend import Legend, load_legend
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.training.batches import Mixture, mixture_of
from changeanywhere.training.command import open_training_source
from changeanywhere.training.ema import WeightAverage
from changeanywhere.training.initialise import initialise_segmenter
from changeanywhere.training.recipe import DataRecipe, Recipe, RunRecipe, SegmenterRecipe
from changeanywhere.training.segmenter import train_segmenter
from changeanywhere.training.taught import confidence_at, draw_photometric, taught_loss, taught_masks
from conftest import write_source
from raster_files import write_tif

SETTINGS = SegmenterRecipe(backbone="unet", crop_size=32, batch_size=6, num_steps=6, warmup_steps=0)
TAUGHT = replace(SETTINGS, ema_halflife_share=0.05)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Tiles with masks, and other tiles whose masks are not read."""
    source, images = write_source(tmp_path / "source"), write_source(tmp_path / "target", 4)
    shutil.rmtree(images / "masks")
    settings = replace(SETTINGS, ema_halflife_share=0.05, confidence=[0.2, 0.15], photometric=0.5, taught_from_step=2)
    data = DataRecipe(source=str(source), tile_size=64, images=[str(images)], images_share=0.5)
    return Recipe(data, segmenter=settings, run=RunRecipe(num_workers=0, save_every=2, log_every=1, seed=3))


def test_it_teaches_itself_from_the_step_that_is_named_and_resumes_in_the_same_bits(
    recipe: Recipe, tmp_path: Path
) -> None:
    source = open_training_source(recipe.data)
    whole = Segmenter.load(train_segmenter(source, recipe, tmp_path / "whole")).state_dict()
    log = tmp_path / "whole/training/segmenter/metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    taught = [line["taught_loss"] > 0 and line["taught_ground"] > 0 for line in lines]
    assert taught == [False, False, True, True, True, True]
    stop = Event()

    def after_three(what: str, done: int, total: int) -> None:
        if done == 3:
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        train_segmenter(source, recipe, tmp_path / "broken", after_three, stop)
    resumed = Segmenter.load(train_segmenter(source, recipe, tmp_path / "broken")).state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    plain = replace(recipe, segmenter=replace(recipe.segmenter, confidence=[0.999, 0.999]))
    untaught = Segmenter.load(train_segmenter(source, plain, tmp_path / "untaught")).state_dict()
    assert any(not torch.equal(untaught[name], value) for name, value in whole.items()), "what it teaches is learned"


@pytest.mark.parametrize(("filled", "most"), [(0, 1.0), (32, 0.75), (64, 0.0)])
def test_the_fill_of_nodata_teaches_nothing(filled: int, most: float, recipe: Recipe, tmp_path: Path) -> None:
    """The average may be sure of it, and is of nothing that was there."""
    images = tmp_path / "target" / "images"
    for file in sorted(images.iterdir()):
        pixels = np.maximum(np.asarray(Image.open(file)), 1)
        pixels[:, :filled] = 0
        write_tif(file.with_suffix(".tif"), pixels, nodata=0)
        file.unlink()
    settings = replace(recipe.segmenter, confidence=[0.01, 0.01], taught_from_step=0)
    recipe = replace(recipe, segmenter=settings)
    source = open_training_source(recipe.data)
    train_segmenter(source, recipe, tmp_path / "out")
    log = tmp_path / "out/training/segmenter/metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = [line["taught_ground"] for line in lines]
    assert all((line["taught_loss"] > 0) == (line["taught_ground"] > 0) for line in lines)
    if filled == 32:
        assert 0.2 < np.mean(found) < most
    else:
        assert found == [most] * 6


def test_what_is_taught_is_what_the_average_is_sure_of() -> None:
    torch.manual_seed(0)
    net = Segmenter("unet", load_legend("mini")).train()
    average, crops = WeightAverage(net, 0.05), torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))  # the average remembers what the network was
    kept = Segmenter("unet", load_legend("mini")).eval()
    kept.load_state_dict(average.weights)
    with torch.no_grad():
        found = (kept(crops).softmax(1) + kept(crops.flip(3)).softmax(1).flip(3)) / 2
    sure, classes = found.max(1)
    threshold = float(sure.median())
    masks = taught_masks(net, average, crops, threshold)
    assert net.training and torch.equal(masks > 0, sure >= threshold) and 0 < float((masks > 0).float().mean()) < 1
    assert torch.equal(masks[masks > 0], (classes + 1)[masks > 0])
    assert not taught_masks(net, average, crops, 1.0).any()
    logits = torch.randn(2, 7, 4, 4)
    known = torch.randint(1, 8, (2, 4, 4))
    half = known.clone()
    half[:, :2] = 0
    whole = taught_loss(logits[:, :, 2:], known[:, 2:])
    assert torch.allclose(taught_loss(logits, half), whole / 2), "a share of all ground, taught or not"
    assert [confidence_at(step, 2, 11, [0.9, 0.5]) for step in (2, 6, 10)] == pytest.approx([0.9, 0.7, 0.5])


def test_colours_follow_from_the_row_and_leave_the_ground_where_it_is() -> None:
    crops = torch.linspace(-1, 1, 4 * 3 * 32 * 32).view(4, 3, 32, 32)
    seen = draw_photometric(crops, range(4), 1.0, 5, 9)
    assert torch.equal(seen[2:], draw_photometric(crops[2:], range(2, 4), 1.0, 5, 9)), "rows of the batch"
    assert not torch.equal(seen, draw_photometric(crops, range(4), 1.0, 5, 10))
    assert torch.allclose(draw_photometric(crops, range(4), 0.0, 5, 9), crops, atol=0.003), "strength 0: nothing"
    assert float(seen.min()) >= -1 and float(seen.max()) <= 1 and seen.shape == crops.shape
    house = torch.full((16, 3, 32, 32), -0.5)
    house[:, :, 8:24, 8:24] = 0.6
    changed = draw_photometric(house, range(16), 1.0, 0, 0).mean(1)
    assert bool((changed[:, 12:20, 12:20].mean((1, 2)) > changed[:, :4].mean((1, 2)) + 0.2).all())
    assert float(changed.std(0).mean()) > 0.05


def test_a_segmenter_goes_on_from_another_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Classes by name, in whatever order; the others fresh; another backbone is one line."""
    torch.manual_seed(1)
    old, legend = Segmenter("unet", load_legend("mini")), load_legend("mini")
    old.save(tmp_path / "old")
    classes = [*reversed(legend.classes[:4])]
    named = [replace(c, index=index + 1) for index, c in enumerate(classes)]
    other = Legend("other", (*named, replace(legend.classes[4], index=5, name="glacier")))
    net = Segmenter("unet", other)
    fresh = net.decoder.head.weight.detach().clone()
    assert initialise_segmenter(net, str(tmp_path / "old")) == [c.name for c in classes]
    for c in named:
        row = legend.index_of(c.name) - 1
        assert torch.equal(net.decoder.head.weight[c.index - 1], old.decoder.head.weight[row])
    assert torch.equal(net.decoder.head.weight[4], fresh[4])
    assert torch.equal(net.encoder.state_dict()["levels.0.0.0.weight"], old.encoder.state_dict()["levels.0.0.0.weight"])
    with pytest.raises(ConfigError, match=r"segmenter\.backbone is 'unet', but mini-segmenter is a lite1"):
        initialise_segmenter(Segmenter("unet", legend), "mini-segmenter")
    source = write_source(tmp_path / "source")
    small = "--data.tile-size 64 --segmenter.crop-size 32 --segmenter.num-steps 1 --segmenter.batch-size 2"
    given = ["train", "segmenter", "--data.source", str(source), *small.split(), "--segmenter.learning-rate", "1e-9"]
    given += ["--init", "mini-segmenter", "--segmenter.backbone"]
    assert command([*given, "lite1", "--segmenter.frozen-levels", "5", "--out", str(tmp_path / "run")]) == 0
    assert "classes known to mini-segmenter: bareland, road" in capsys.readouterr().err
    begun, embedded = (Segmenter.load(place) for place in (tmp_path / "run/segmenter", _embedded()))
    assert torch.allclose(begun.decoder.head.weight, embedded.decoder.head.weight, atol=1e-6)
    assert command([*given, "unet", "--out", str(tmp_path / "x")]) == 2
    assert "segmenter.backbone is 'unet', but mini-segmenter is a lite1" in capsys.readouterr().err


def _embedded() -> Path:
    from changeanywhere.models.info import find_segmenter

    return find_segmenter("mini-segmenter")


def test_further_tiles_bring_masks_in_the_classes_of_the_first(recipe: Recipe, tmp_path: Path) -> None:
    """Footprints alone: their numbers are the source's class of the same name, the rest is unknown."""
    footprints = write_source(tmp_path / "footprints", 3)
    for file in (footprints / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) == 4).astype(np.uint8)).save(file)
    building = load_legend("mini").classes[3]
    Legend("footprints", (replace(building, index=1),)).save(footprints / "legend.json")
    data = replace(recipe.data, further=[str(footprints)], further_share=0.25)
    source = open_training_source(data)
    assert source.sizes == [6, 3, 4] and len(source.with_masks) == 9  # type: ignore[attr-defined]
    assert set(np.unique(source.read(7).mask)) == {0, 4} and not source.read(9).mask.any()
    mixture = mixture_of(source, data)
    assert isinstance(mixture, Mixture) and mixture.shares == pytest.approx((0.375, 0.125, 0.5))
    alone = replace(data, images=[])
    mixture = mixture_of(open_training_source(alone), alone)
    assert isinstance(mixture, Mixture) and mixture.shares == pytest.approx((0.75, 0.25))
    everything = replace(recipe, data=data)
    assert Segmenter.load(train_segmenter(source, everything, tmp_path / "run")).legend == load_legend("mini")


def test_a_training_goes_on_only_where_labels_of_further_tiles_mean_the_same_classes(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither another mapping of the further folder's classes nor another order of them is in its files' masks."""
    further, mini = write_source(tmp_path / "further", 3), load_legend("mini")
    ground, grove = (replace(each, name=f"their {each.name}") for each in mini.classes[:2])
    own = (ground, grove, *mini.classes[2:])
    Legend("theirs", own).save(further / "legend.json")
    mapping = tmp_path / "map.yaml"
    names = {name: name for name in mini.names}

    def mapped(first: str, second: str) -> None:
        lines = names | {ground.name: first, grove.name: second}
        mapping.write_text("".join(f"{name}: {to}\n" for name, to in lines.items()))

    data = replace(recipe.data, further=[str(further)], model_legend="mini", legend_map=str(mapping))
    mapped(*mini.names[:2])
    begun = open_training_source(data)
    train_segmenter(begun, replace(recipe, data=data), tmp_path / "run")
    mapped(*mini.names[1::-1])
    swapped = open_training_source(data)
    assert not np.array_equal(begun.read(7).mask, swapped.read(7).mask) and begun.items == swapped.items
    with pytest.raises(OutputError, match=r"was started with data\.content"):
        train_segmenter(swapped, replace(recipe, data=data), tmp_path / "run")
    mapped(*mini.names[:2])
    assert open_training_source(data).fingerprint() == begun.fingerprint()
    turned = (replace(grove, index=1), replace(ground, index=2), *own[2:])
    Legend("theirs", turned).save(further / "legend.json")
    reordered = open_training_source(data)
    assert not np.array_equal(begun.read(7).mask, reordered.read(7).mask)
    with pytest.raises(OutputError, match=r"was started with data\.content"):
        train_segmenter(reordered, replace(recipe, data=data), tmp_path / "run")


def test_parts_that_are_read_as_they_are_have_the_hash_that_they_had(recipe: Recipe, tmp_path: Path) -> None:
    """So that what was begun with images, or with further tiles in the same legend, goes on."""
    further = write_source(tmp_path / "further", 3)
    for data in (recipe.data, replace(recipe.data, further=[str(further)])):
        source = open_training_source(data)
        hashes = " ".join(part.content_hash() for part in source.parts)  # type: ignore[attr-defined]
        assert source.content_hash() == hashlib.sha256(hashes.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"segmenter": replace(SETTINGS, photometric=1.5)}, r"segmenter\.photometric is 1.5; allowed: 0 to 1"),
        ({"segmenter": SETTINGS}, r"ema_halflife_share is 0.0; allowed: above 0 to 0.1 \(the average teaches"),
        ({"segmenter": replace(SETTINGS, ema_halflife_share=0.2)}, "ema_halflife_share is 0.2"),
        ({"segmenter": replace(TAUGHT, taught_from_step=6)}, "taught_from_step is 6; allowed: below"),
        ({"segmenter": replace(TAUGHT, confidence=[1.0])}, r"confidence is \[1.0\]; allowed: two numbers"),
        ({"data": DataRecipe(source="x", tile_size=64)}, r"taught_from_step is 2, which does nothing while"),
        ({"data": DataRecipe(source="x", further_share=0.1)}, r"further_share is 0.1; allowed: with data.further"),
        ({"data": DataRecipe(source="x", further=["y"], further_share=1.0)}, r"data\.further_share is 1.0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(recipe: Recipe, changes: dict[str, object], refused: str) -> None:
    wrong = replace(recipe, **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=refused):
        wrong.check("segmenter")


@pytest.mark.parametrize(
    ("backbone", "frozen", "breaks"), [("lite0", 0, True), ("lite0", 5, False), ("unet", 0, False)]
)
def test_one_crop_of_one_cell_is_too_few(tmp_path: Path, backbone: str, frozen: int, breaks: bool) -> None:
    """For a backbone that normalises over the batch, unless it keeps what it has gathered."""
    settings = replace(SETTINGS, backbone=backbone, frozen_levels=frozen, batch_size=1, num_steps=1)
    source = write_source(tmp_path / "source")
    recipe = Recipe(DataRecipe(source=str(source), tile_size=64), segmenter=settings, run=RunRecipe(num_workers=0))
    tiles = open_training_source(recipe.data)
    if breaks:
        with pytest.raises(ConfigError, match=r"segmenter\.batch_size is 1; allowed: 2 and more for 1 process.* of 32"):
            train_segmenter(tiles, recipe, tmp_path / "out")
    for enough in (
        replace(settings, batch_size=2),
        replace(settings, crop_size=64),
        *([] if breaks else [settings]),
    ):
        out = tmp_path / f"{enough.batch_size}-{enough.crop_size}"
        train_segmenter(tiles, replace(recipe, segmenter=enough), out)
