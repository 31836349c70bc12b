"""Folders in which every object of a class is drawn: what lies outside is none of it, and nobody says what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from changeanywhere.cli import run as command
from changeanywhere.errors import ConfigError
from changeanywhere.legend import Legend, load_legend
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.training.batches import NOT_IMAGED, CropDataset
from changeanywhere.training.command import open_training_source
from changeanywhere.training.complete import Complete, none_of_loss
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DataRecipe, Recipe, RunRecipe, SegmenterRecipe
from changeanywhere.training.segmenter import SegmenterTraining, segmentation_loss, train_segmenter
from conftest import write_source

BUILDING = 4
SETTINGS = SegmenterRecipe(
    backbone="unet", crop_size=32, batch_size=6, num_steps=6, warmup_steps=0, scale=0.3, ema_halflife_share=0.05
)


def footprints(folder: Path, count: int = 3) -> Path:
    """One house a tile, in a legend of buildings alone; all other ground is 0."""
    source = write_source(folder, count)
    for file in (source / "masks").iterdir():
        mask = np.zeros(np.asarray(Image.open(file)).shape, np.uint8)
        mask[20:32, 24:40] = 1
        Image.fromarray(mask).save(file)
    Legend("footprints", (replace(load_legend("mini").classes[BUILDING - 1], index=1),)).save(source / "legend.json")
    return source


@pytest.fixture
def data(tmp_path: Path) -> DataRecipe:
    tiles, drawn = write_source(tmp_path / "tiles"), footprints(tmp_path / "footprints")
    return DataRecipe(source=str(tiles), tile_size=64, further=[str(drawn)], complete={str(drawn): ["building"]})


def test_the_loss_pushes_the_class_down_and_says_nothing_of_the_others() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 4, 4, requires_grad=True)
    masks = torch.full((2, 4, 4), -1)
    masks[0, :2] = 0
    masks[1, 0] = 3
    sets = torch.zeros(2, 7, dtype=torch.bool)
    sets[1, BUILDING - 1] = True
    where = masks == -1
    loss = none_of_loss(logits, masks, sets)
    expected = -torch.log1p(-logits.softmax(1)[:, BUILDING - 1][where])
    assert torch.allclose(loss, expected.sum(), rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    of_building = gradient[:, BUILDING - 1]
    assert bool((of_building[where] > 0).all()) and not of_building[~where].any()
    others = torch.cat([gradient[:, : BUILDING - 1], gradient[:, BUILDING:]], 1)
    assert not others.any(), "steps down this loss leave the others' differences, and so their ratios, as they were"
    sure = torch.full((1, 7, 1, 1), -30.0)
    sure[:, BUILDING - 1] = 60.0
    assert float(none_of_loss(sure, torch.full((1, 1, 1), -1), sets)) == pytest.approx(90 - np.log(6), rel=1e-4)
    whole = segmentation_loss(logits, masks, sets)
    known = F.cross_entropy(logits[1, :, 0].T, torch.full((4,), 2), reduction="sum")
    assert torch.allclose(whole, (loss + known) / (where.sum() + 4)), "the mean over all ground that says something"
    plain = F.cross_entropy(logits[1, :, 0].T, torch.full((4,), 2), reduction="sum") / 4
    assert torch.equal(segmentation_loss(logits, masks.clamp(min=0)), plain), "unsaid, such ground is left out"
    two = torch.zeros(3, 7, dtype=torch.bool)
    two[1, 0], two[2, 1:3] = True, True
    both = none_of_loss(logits, torch.where(where, -2, masks), two)
    assert torch.allclose(both, -torch.log1p(-logits.softmax(1)[:, 1:3].sum(1)[where]).sum(), rtol=1e-5)


def test_ground_outside_footprints_is_none_of_them_beyond_the_margin(data: DataRecipe) -> None:
    source = open_training_source(data)
    learned = Complete(source, data).masks(7, source.read_mask(7))
    assert set(np.unique(learned)) == {-1, 0, BUILDING}
    rows, columns = np.nonzero(learned >= 0)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (18, 33, 22, 41), "two px around it say nothing"
    assert (learned == BUILDING).sum() == 12 * 16
    tight = replace(data, complete_margin=0)
    assert set(np.unique(Complete(source, tight).masks(7, source.read_mask(7)))) == {-1, BUILDING}
    own = source.read_mask(0)
    assert np.array_equal(Complete(source, data).masks(0, own), own), "tiles of other folders say what they said"
    for scale in (0.0, 0.5):
        with_it = CropDataset(source, 32, 0, scale, complete=Complete(source, data))
        without = CropDataset(source, 32, 0, scale)
        for row in range(12):
            image, mask = with_it[6 + row % 3, 2, row]
            bare, as_drawn = without[6 + row % 3, 2, row]
            assert torch.equal(image, bare) and torch.equal(mask.clamp(min=0), as_drawn)
            assert bool((mask == -1).any()) and mask.shape == (32, 32) and mask.dtype == torch.int64


def test_ground_that_was_not_imaged_is_nothing_that_is_no_building(data: DataRecipe) -> None:
    for file in (Path(data.further[0]) / "images").iterdir():
        values = np.asarray(Image.open(file).convert("RGBA")).copy()
        values[:, 40:] = 0
        Image.fromarray(values).save(file)
    source = open_training_source(data)
    complete, known, hidden = Complete(source, data), set[int](), 0
    for row in range(12):
        (image, mask), (_, marked) = (
            CropDataset(source, 32, 0, complete=complete, imaged=imaged)[6 + row % 3, 2, row]
            for imaged in (False, True)
        )
        blank = (image == -1).all(0)
        assert not mask[blank].any() and bool((marked[blank] == NOT_IMAGED).all())
        assert torch.equal(mask[~blank], marked[~blank])
        known |= set(mask[~blank].tolist())
        hidden += int(blank.sum())
    assert {-1, BUILDING} <= known and hidden


def test_a_source_of_its_own_may_be_complete_and_a_folder_given_twice_is_so_twice(data: DataRecipe) -> None:
    alone = replace(data, further=[], complete={data.source: ["building", "road"]})
    source = open_training_source(alone)
    complete = Complete(source, alone)
    assert complete.sets.tolist()[1] == [name in ("building", "road") for name in source.legend.names]
    mask = np.zeros((64, 64), np.uint8)
    assert (complete.masks(0, mask) == -1).all()
    twice = replace(data, further=data.further * 2)
    source = open_training_source(twice)
    for tile in (6, 9):
        assert (Complete(source, twice).masks(tile, source.read_mask(tile)) < 0).any()


def test_training_hears_it_and_resumes_and_without_it_nothing_has_changed(data: DataRecipe, tmp_path: Path) -> None:
    images = write_source(tmp_path / "bare", 4)
    data = replace(data, images=[str(images / "images")], images_share=0.4, further_share=0.6)
    settings = replace(SETTINGS, confidence=[0.2, 0.15], taught_from_step=2)
    recipe = Recipe(data, segmenter=settings, run=RunRecipe(num_workers=0, save_every=3, log_every=1, seed=3))
    source = open_training_source(data)
    heard = Segmenter.load(train_segmenter(source, recipe, tmp_path / "heard"))
    deaf_recipe = replace(recipe, data=replace(data, complete={}))
    deaf = Segmenter.load(train_segmenter(source, deaf_recipe, tmp_path / "deaf"))
    assert any(not torch.equal(a, b) for a, b in zip(heard.parameters(), deaf.parameters(), strict=True))
    frozen = json.loads((tmp_path / "heard/training/segmenter/recipe.json").read_text())
    assert frozen["data"]["complete"] == data.complete
    stage = SegmenterTraining(recipe, Processes(recipe.run), source)
    images_, masks, plain, imaged = next(stage.batches(2))
    assert bool((masks < 0).flatten(1).any(1).sum() >= 2), "footprints are in the batch"
    logits = stage.net(images_)
    assert float(stage._taught(logits, torch.full_like(masks, -1), plain, imaged, 2)["taught_ground"]) == 0, (
        "the average teaches nothing on ground of which something is said"
    )
    assert float(stage._taught(logits, torch.zeros_like(masks), plain, imaged, 2)["taught_ground"]) > 0


def test_what_cannot_be_is_one_line(data: DataRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = data.further[0]
    given = [
        "train",
        "segmenter",
        "--data.source",
        data.source,
        "--data.tile-size",
        "64",
        "--data.further",
        f"[{drawn}]",
    ]
    given += ["--segmenter.crop-size", "32", "--segmenter.backbone", "unet", "--out", str(tmp_path / "run")]
    for complete, said in (
        (f"{{{drawn}: [castle]}}", "castle; allowed: what its masks can hold: building"),
        (f"{{{drawn}: [road]}}", "road; allowed: what its masks can hold: building"),
        (f"{{{drawn}: []}}", "no class; allowed"),
        ("{elsewhere: [building]}", "data.complete: elsewhere is not read; allowed: "),
    ):
        assert command([*given, "--data.complete", complete]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error, error
    assert command([*given, "--data.complete-margin", "3"]) == 2
    assert "data.complete_margin is 3, which does nothing while data.complete is {}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"complete_margin is -1; allowed: 0 px and more"):
        Recipe(replace(data, complete_margin=-1), segmenter=SETTINGS).check("segmenter")
    alone = replace(data, source=drawn, further=[], complete={drawn: ["building"]})
    with pytest.raises(ConfigError, match="allowed: fewer than all classes of the legend"):
        Complete(open_training_source(alone), alone)
    assert command(["train", "denoiser", "--data.complete", "{x: [building]}", "--out", str(tmp_path / "run")]) == 2
    assert "--data.complete: train denoiser does not read it" in capsys.readouterr().err
