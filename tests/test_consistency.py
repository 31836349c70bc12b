"""Detectors that learn from pairs without labels too: what they see, what is taught, resuming, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from changeanywhere.cli import run as command
from changeanywhere.errors import ConfigError, PairsError
from changeanywhere.models.detectors import build_detector
from changeanywhere.models.detectors.folder import load_detector
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.unlabelled import UnlabelledPairs, open_images
from changeanywhere.training.consistency import Teacher, UnlabelledViews, batches_of_both, weight_at
from changeanywhere.training.detection import IGNORE
from changeanywhere.training.detector import Beside, DetectorTraining, evaluate_detector, train_detector
from changeanywhere.training.loop import take_step
from changeanywhere.training.pair_batches import TrainingPairs, training_batches
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DetectorRecipe, Recipe, RunRecipe
from test_detector_training import write_pairs
from test_semantic import recipe_of, write_set

SETTINGS = DetectorRecipe(
    name="fc_siam_diff", crop_size=64, batch_size=4, num_steps=6, warmup_steps=1, learning_rate=3e-3, val_every=3,
    unlabelled_confidence=0.6, unlabelled_ramp=0.5,
)  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Labelled pairs, and others of which two dates are all that there is."""
    labelled, other = write_pairs(tmp_path / "pairs"), write_pairs(tmp_path / "mine", 5)
    shutil.rmtree(other / "train" / "label")
    settings = replace(SETTINGS, pairs=str(labelled), unlabelled=[str(other / "train")])
    return Recipe(detector=settings, run=RunRecipe(num_workers=0, log_every=1, save_every=2, seed=3))


def test_labels_are_never_opened_and_several_folders_are_one(tmp_path: Path) -> None:
    sets = [open_images(write_pairs(tmp_path / name, count) / "train") for name, count in (("one", 3), ("two", 2))]
    for root in ("one", "two"):
        for file in (tmp_path / root / "train" / "label").iterdir():
            file.write_bytes(b"no image")
    pairs = UnlabelledPairs(sets)
    assert len(pairs) == 5 and [pairs.place_of(n)[1] for n in range(5)] == [0, 1, 2, 0, 1]
    assert np.array_equal(pairs[4].image_t2, np.asarray(Image.open(tmp_path / "two/train/B/train1.png")))
    assert not any(pairs[n].change_mask.any() for n in range(5))
    before = pairs.content_hash()
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path / "two/train/B/train1.png")
    assert pairs.content_hash() != before
    with pytest.raises(PairsError, match=r"B/train1\.png: \(32, 64\) px; date 1 of the pair has \(64, 64\)"):
        pairs[4]


def test_strong_views_are_the_weak_ones_in_other_colours(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs") / "train"
    dark = np.zeros((64, 64, 4), np.uint8)
    dark[:32] = 255  # the lower half is transparent: no ground
    Image.fromarray(dark).save(folder / "A" / "train0.png")
    views = UnlabelledViews(UnlabelledPairs([load_pairs(folder)]), replace(SETTINGS, rotate_degrees=0, flip=False), 0)
    hidden = views[0, 2, 1][2]
    assert (hidden[:32] == 0).all() and (hidden[32:] == IGNORE).all()
    one, two, _, *strong = views[1, 2, 1]
    whole = np.asarray(Image.open(folder / "A" / "train1.png"))
    assert np.array_equal(np.rint((one.numpy().transpose(1, 2, 0) + 1) * 127.5), whole), (
        "the weak view keeps its colours"
    )
    assert all(not torch.equal(a, b) for a, b in zip((one, two), strong, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(views[1, 2, 1], views[1, 2, 1], strict=True))
    assert not torch.equal(views[1, 2, 1][3], views[1, 3, 1][3]), "another step draws anew"
    with pytest.raises(PairsError, match=r"A/train1\.png: \(64, 64\) px; detector\.crop_size is 128"):
        UnlabelledViews(views.pairs, replace(SETTINGS, crop_size=128), 0)[1, 0, 0]


def test_labelled_rows_are_those_of_a_training_without_others(recipe: Recipe) -> None:
    """So that an arm with unlabelled pairs and one without see the same labels in the same steps."""
    settings = replace(recipe.detector, unlabelled_share=1 / 3)
    train, run = load_pairs(settings.pairs, "train"), RunRecipe(num_workers=1)
    alone = training_batches(train, settings, run, 2, range(4))
    pairs = UnlabelledPairs([open_images(settings.unlabelled[0])])
    both = batches_of_both(TrainingPairs(train, settings, run.seed), pairs, run, 2, (range(4), range(2)))
    assert len(alone) == len(both) == settings.num_steps - 2
    for own, beside in zip(alone, both, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own, beside[:3], strict=True))
        assert [len(tensor) for tensor in beside] == [4] * 3 + [2] * 5


def test_what_is_taught_is_what_the_average_is_sure_of() -> None:
    torch.manual_seed(0)
    net = build_detector("fc_siam_diff").train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)  # farther from one half
    first, second = (torch.rand(2, 3, 64, 64) * 2 - 1 for _ in range(2))
    hidden = torch.zeros(2, 64, 64, dtype=torch.long)
    hidden[:, :9] = IGNORE
    kept = build_detector("fc_siam_diff").eval()
    kept.load_state_dict(net.state_dict())
    teachers = {share: Teacher(net, replace(SETTINGS, unlabelled_halflife_share=share)) for share in (0.05, 0.0)}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))  # the average remembers what the network was
        sure, found = kept(first, second).softmax(1).max(1)
    threshold = float(sure.median())
    said = {}
    for share, teacher in teachers.items():
        teacher.confidence = teacher.confidence_changed = threshold
        said[share] = teacher.labels(first, second, hidden)
    assert torch.equal(said[0.05], found.where((sure >= threshold) & (hidden == 0), IGNORE))
    assert not torch.equal(said[0.0], said[0.05]) and net.training, "without an average, the network as it is"
    assert (said[0.05] == 1).any(), "what changed may have a threshold of its own:"
    teachers[0.05].confidence_changed = 1.1
    expected = said[0.05].masked_fill(said[0.05] == 1, IGNORE)
    assert torch.equal(teachers[0.05].labels(first, second, hidden), expected)
    teachers[0.05].confidence_changed = threshold
    two = replace(SETTINGS, unlabelled_confidence=0.9, unlabelled_confidence_changed=0.7)
    assert (Teacher(net, two).confidence, Teacher(net, two).confidence_changed) == (0.9, 0.7)
    assert Teacher(net, replace(two, unlabelled_confidence_changed=None)).confidence_changed == 0.9
    teachers[0.05].follow(9)
    assert not torch.equal(teachers[0.05].labels(first, second, hidden), said[0.05])
    ramp = replace(SETTINGS, unlabelled_weight=2.0, unlabelled_ramp=0.4)
    assert [weight_at(step, 10, ramp) for step in (0, 1, 3, 9)] == [0.5, 1.0, 2.0, 2.0]
    assert weight_at(0, 10, replace(ramp, unlabelled_ramp=0.0)) == 2.0


@pytest.mark.parametrize("name", ["fc_ef", "snunet_c16", "lightcdnet_s"])
def test_gradients_are_those_of_both_losses(recipe: Recipe, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nets with one head and with several: where nothing is sure the step is that of the labels alone; what batch
    normalisation gathers always is, since strong views are normalised by themselves."""
    settings = replace(recipe.detector, name=name, unlabelled_confidence=0.5 + 1e-6)
    pairs = UnlabelledPairs([open_images(settings.unlabelled[0])])
    weights: list[list[Tensor]] = []
    gathered: list[list[Tensor]] = []
    for sure in (True, False, None):
        training = DetectorTraining(
            replace(recipe, detector=settings),
            Processes(recipe.run),
            load_pairs(settings.pairs, "train"),
            None,
            Beside() if sure is None else Beside(pairs),
        )
        if sure is False:
            monkeypatch.setattr(Teacher, "labels", lambda self, first, second, hidden: torch.full_like(hidden, IGNORE))
        values = take_step(training, next(training.batches(0)), 5)
        if sure is not None:
            assert bool(values["unlabelled_loss"] > 0) == bool(values["unlabelled_ground"] > 0) == sure
        weights.append([p.detach().clone() for p in training.net.parameters()])
        gathered.append([b for name, b in training.net.named_buffers() if name.endswith(("mean", "var"))])
        assert gathered[-1] and all(
            norm.momentum == 0.1 for norm in training.net.modules() if isinstance(norm, torch.nn.BatchNorm2d)
        )
    assert any(not torch.equal(a, b) for a, b in zip(*weights[:2], strict=True))
    for alone, beside in ((weights[2], weights[1]), (gathered[2], gathered[0]), (gathered[2], gathered[1])):
        for a, b in zip(alone, beside, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_it_resumes_in_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, detector=replace(recipe.detector, name="fc_ef", crop_size=32, batch_size=2))
    whole = load_detector(train_detector(recipe, tmp_path / "whole"))[1].state_dict()
    rows = [json.loads(row) for row in (tmp_path / "whole/training/detector/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and all({"unlabelled_ground", "unlabelled_changed"} <= row.keys() for row in rows)
    stop = Event()

    def after_three(what: str, done: int, total: int) -> None:
        if done == 3:
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        train_detector(recipe, tmp_path / "broken", progress=after_three, stop=stop)
    broken = load_detector(train_detector(recipe, tmp_path / "broken"))[1].state_dict()
    assert all(torch.equal(broken[key], value) for key, value in whole.items())


@pytest.mark.slow
@pytest.mark.numerical
def test_pairs_without_labels_teach(tmp_path: Path) -> None:
    """Squares that are learned from one label in 60 steps; beside it eleven pairs without."""
    pairs = write_pairs(tmp_path / "pairs")
    (tmp_path / "one.txt").write_text("train0\n")
    settings = replace(SETTINGS, pairs=str(pairs), num_steps=60, val_split=None, val_every=DetectorRecipe.val_every)
    settings = replace(settings, train_list=str(tmp_path / "one.txt"), unlabelled=[str(pairs / "train")])
    found = train_detector(Recipe(detector=settings, run=RunRecipe(num_workers=0)), tmp_path / "out")
    scores = evaluate_detector(load_detector(found)[1], load_pairs(pairs, "test"), 4, torch.device("cpu"))
    assert scores.f1 is not None and scores.f1 > 0.8


def test_what_is_not_allowed_is_one_line(recipe: Recipe, tmp_path: Path) -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"unlabelled_share": 1.0}, r"detector\.unlabelled_share is 1\.0; allowed: between 0 and 1"),
        ({"unlabelled_share": 0.05}, r"detector\.unlabelled_share is 0\.05; allowed: .* this gives 0"),
        ({"unlabelled_weight": 0.0}, r"detector\.unlabelled_weight is 0\.0; allowed: above 0"),
        ({"unlabelled_ramp": 1.5}, r"detector\.unlabelled_ramp is 1\.5; allowed: 0 to 1"),
        ({"unlabelled_confidence": 0.5}, r"detector\.unlabelled_confidence is 0\.5; allowed: above 0\.5"),
        ({"unlabelled_confidence_changed": 0.5}, r"detector\.unlabelled_confidence_changed is 0\.5; allowed: above"),
        ({"unlabelled_halflife_share": 0.2}, r"detector\.unlabelled_halflife_share is 0\.2; allowed: 0 to 0\.1"),
        ({"unlabelled": []}, r"unlabelled_ramp is 0\.5, which does nothing while detector\.unlabelled is \[\]"),
        ({"unlabelled_split": "all"}, "no split 'all'|does not say|all"),
        ({"unlabelled": [str(tmp_path / "absent")]}, "absent: no such folder"),
    )
    for change, message in wrong:
        with pytest.raises((ConfigError, PairsError), match=message):
            train_detector(replace(recipe, detector=replace(recipe.detector, **change)), tmp_path / "out")
    val = str(Path(recipe.detector.pairs) / "val")
    with pytest.raises(ConfigError, match=r"val0\.png: detector\.unlabelled has it, which is a validation pair too"):
        train_detector(replace(recipe, detector=replace(recipe.detector, unlabelled=[val])), tmp_path / "out")


def test_pairs_that_are_none_open_no_others(recipe: Recipe, tmp_path: Path) -> None:
    """What was handed in is taken, not what the recipe names."""
    with pytest.raises(ConfigError, match=r"unlabelled is 0; allowed: one pair or more"):
        train_detector(recipe, tmp_path / "out", unlabelled=UnlabelledPairs([]))


def test_a_semantic_detector_takes_none(tmp_path: Path) -> None:
    asked = recipe_of(write_set(tmp_path / "set", 2))
    settings = replace(asked.detector, unlabelled=[str(tmp_path / "set" / "train")])
    with pytest.raises(ConfigError, match=r"detector\.unlabelled is .*; allowed: none: classes of both dates"):
        train_detector(replace(asked, detector=settings), tmp_path / "out")


def test_command(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "detector", "--out", str(tmp_path / "out"), "--detector.pairs", recipe.detector.pairs]
    arguments += ["--detector.name", "fc_ef", "--detector.crop-size", "64", "--detector.num-steps", "1"]
    arguments += ["--detector.unlabelled", f"[{recipe.detector.unlabelled[0]}]", "--run.num-workers", "0"]
    assert command([*arguments, "--detector.unlabelled-weight", "0.5"]) == 0
    assert "finished:" in capsys.readouterr().out
    frozen = json.loads((tmp_path / "out/training/detector/recipe.json").read_text())
    assert frozen["detector"]["unlabelled"] == recipe.detector.unlabelled and "-" in frozen["data"]["content"]
