"""A detector that learns from a few labels keeps a set in sight: rows of both in every step, one loss, one result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from changeanywhere.errors import ConfigError
from changeanywhere.models.detectors.folder import load_detector
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.unlabelled import UnlabelledPairs
from changeanywhere.training.detector import Beside, DetectorTraining, train_detector
from changeanywhere.training.pair_batches import TrainingPairs
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DetectorRecipe, Recipe, RunRecipe
from test_detector_training import write_pairs
from test_semantic import write_set

SETTINGS = DetectorRecipe(
    name="fc_ef", crop_size=32, batch_size=2, num_steps=6, warmup_steps=1, learning_rate=3e-3, val_every=3
)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    settings = replace(
        SETTINGS, pairs=str(write_pairs(tmp_path / "few", 3)), rehearsed=str(write_set(tmp_path / "set"))
    )
    run = RunRecipe(num_workers=0, log_every=1, save_every=2, seed=3)
    return Recipe(detector=replace(settings, rehearsed_classes=["red"]), run=run)


def training(recipe: Recipe) -> DetectorTraining:
    settings = recipe.detector
    rehearsed = load_pairs(settings.rehearsed, "train").counting(settings.rehearsed_classes or [])
    few = load_pairs(settings.pairs, "train")
    return DetectorTraining(recipe, Processes(recipe.run), few, None, Beside(None, rehearsed))


def test_a_step_has_the_rows_that_it_had_and_those_of_the_set_behind_them(recipe: Recipe) -> None:
    stage = training(replace(recipe, detector=replace(recipe.detector, rehearsed_share=0.6)))
    few, rehearsed = stage.train, stage.beside.rehearsed
    assert rehearsed is not None
    alone = DetectorTraining(recipe, stage.processes, few, None)
    first = TrainingPairs(rehearsed, recipe.detector, recipe.run.seed + 1)
    seen = set()
    for both, one in zip(stage.batches(2), alone.batches(2), strict=True):
        assert [len(tensor) for tensor in both] == [5, 5, 5]
        for tensor, own in zip(both, one, strict=True):
            assert torch.equal(tensor[:2], own), "the rows of the labels are those of a training without"
        seen.add(both[0][2:].sum().item())
    assert len(seen) == 4, "every step shows others"
    order = [first[number, 2, row] for number in range(len(rehearsed)) for row in range(3)]
    both = next(iter(stage.batches(2)))
    assert all(any(torch.equal(both[0][2 + row], one[0]) for one in order) for row in range(3))


def test_its_classes_count_and_it_resumes_in_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    whole = load_detector(train_detector(recipe, tmp_path / "whole"))[1].state_dict()
    short = replace(recipe, detector=replace(recipe.detector, num_steps=6))

    def after_four(what: str, done: int, total: int) -> None:
        if done == 4:
            stop.set()

    stop = Event()
    with pytest.raises(KeyboardInterrupt):
        train_detector(short, tmp_path / "parts", progress=after_four, stop=stop)
    parts = load_detector(train_detector(short, tmp_path / "parts"))[1].state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    for other in (
        replace(recipe.detector, rehearsed="", rehearsed_classes=None),
        replace(recipe.detector, rehearsed_classes=None),
        replace(recipe.detector, rehearsed_share=0.75),
    ):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        found = load_detector(train_detector(replace(recipe, detector=other), out))[1].state_dict()
        assert any(not torch.equal(whole[name], found[name]) for name in whole)


def test_pairs_that_are_handed_over_are_rehearsed(recipe: Recipe, tmp_path: Path) -> None:
    """Whether or not the recipe names a set, as unlabelled pairs are."""
    rehearsed = load_pairs(recipe.detector.rehearsed, "train").counting(["red"])
    named = load_detector(train_detector(recipe, tmp_path / "named"))[1].state_dict()
    nameless = replace(recipe, detector=replace(recipe.detector, rehearsed="", rehearsed_classes=None))
    given = load_detector(train_detector(nameless, tmp_path / "given", rehearsed=rehearsed))[1].state_dict()
    assert all(torch.equal(named[name], given[name]) for name in named)
    content = json.loads((tmp_path / "given/training/detector/recipe.json").read_text())["data"]["content"]
    assert content.endswith(rehearsed.content_hash())
    unlabelled = UnlabelledPairs([rehearsed])
    with pytest.raises(ConfigError, match=r"rehearsed is .*; allowed: nothing beside unlabelled pairs"):
        train_detector(nameless, tmp_path / "both", unlabelled=unlabelled, rehearsed=rehearsed)


def test_what_cannot_be_is_one_line(recipe: Recipe, tmp_path: Path) -> None:
    settings = recipe.detector
    for wrong, said in (
        (replace(settings, rehearsed_share=1.0), r"detector\.rehearsed_share is 1\.0; allowed: between 0 and 1"),
        (replace(settings, rehearsed="", rehearsed_share=0.7), "rehearsed_classes is .* does nothing while"),
        (replace(settings, unlabelled=[settings.pairs]), r"detector\.rehearsed is .*; allowed: nothing beside"),
    ):
        with pytest.raises(ConfigError, match=said):
            replace(recipe, detector=wrong).check("detector")
    with pytest.raises(ConfigError, match=r"rehearsed_share is 0\.1; allowed: a share that gives each of 1 process"):
        training(replace(recipe, detector=replace(settings, rehearsed_share=0.1)))
    named = replace(settings, name="semantic_unet_lite0", pairs=settings.rehearsed)
    with pytest.raises(ConfigError, match="none: classes of both dates are learned in one legend"):
        train_detector(replace(recipe, detector=named), tmp_path / "semantic")


def test_a_note_of_the_run_says_so(recipe: Recipe, tmp_path: Path) -> None:
    train_detector(recipe, tmp_path / "run")
    kept = json.loads((tmp_path / "run/training/detector/recipe.json").read_text())
    assert kept["detector"]["rehearsed_classes"] == ["red"]


@pytest.mark.parametrize("handed", [False, True])
def test_pairs_that_choose_weights_are_not_rehearsed(recipe: Recipe, tmp_path: Path, handed: bool) -> None:
    """Not at either date, whichever is whose first: here a pair of the set is a validation pair the other way round."""
    val, shared = Path(recipe.detector.pairs) / "val", tmp_path / "shared"
    for folder, origin in (("A", "B"), ("B", "A"), ("label", "label")):
        (shared / "train" / folder).mkdir(parents=True)
        for name in ("val0.png", "val1.png"):
            (shared / "train" / folder / name).symlink_to(val / origin / name)
    asked = replace(recipe.detector, rehearsed=str(shared), rehearsed_classes=None)
    said = rf"val0\.png: is of a rehearsed pair \(detector\.rehearsed is {shared}\) and of a validation pair .* of 2;"
    given: dict[str, Any] = {}
    if handed:
        few, held = (load_pairs(recipe.detector.pairs, split) for split in ("train", "val"))
        given = {"train": few, "val": held, "rehearsed": load_pairs(shared, "train")}
    with pytest.raises(ConfigError, match=said):
        train_detector(replace(recipe, detector=asked), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    chosen = replace(asked, val_split=None, val_every=DetectorRecipe().val_every, num_steps=1)
    train_detector(replace(recipe, detector=chosen), tmp_path / "unselected")
