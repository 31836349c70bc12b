"""Training of change detectors: augmentation, losses, scores, selection, resuming."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import hsv2rgb, rgb2hsv

from changeanywhere.check import check_path
from changeanywhere.cli import run as command
from changeanywhere.diffusion.pipeline import to_uint8
from changeanywhere.errors import ConfigError, PairsError
from changeanywhere.models.detectors import build_detector
from changeanywhere.models.detectors.folder import load_detector, save_detector
from changeanywhere.models.first_stage import channels_last
from changeanywhere.pairs import load_pairs
from changeanywhere.sample import ChangePair, change_mask_of, in_8_bits, rgb8
from changeanywhere.training.batches import loaded
from changeanywhere.training.detection import ChangeScores, HardExamples, detection_loss
from changeanywhere.training.detector import _hash_of, evaluate_detector, is_due, train_detector
from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.pair_batches import (
    TrainingPairs,
    augment,
    label_of,
    rotated,
    training_batches,
    turn_hue,
    whole_batches,
)
from changeanywhere.training.recipe import DetectorRecipe, Recipe, RunRecipe

UNSELECTED: dict[str, Any] = {"val_split": None, "val_every": DetectorRecipe.val_every}
"""Of a recipe: no validation."""


def write_pairs(root: Path, count: int = 12, size: int = 64) -> Path:
    """Bright squares that are there at the second date only; noise at both."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 4), ("test", 4)):
        for folder in ("A", "B", "label"):
            (root / split / folder).mkdir(parents=True)
        for i in range(number):
            images = rng.integers(40, 90, (2, size, size, 3), dtype=np.uint8)
            label = np.zeros((size, size), np.uint8)
            row, column = rng.integers(0, size - 28, 2)
            label[row : row + 28, column : column + 28] = 255
            images[1][label > 0] += 120
            for folder, array in (("A", images[0]), ("B", images[1]), ("label", label)):
                Image.fromarray(array).save(root / split / folder / f"{split}{i}.png")
    return root


def count(scores: ChangeScores) -> int:
    return scores.true_positives + scores.false_positives + scores.false_negatives + scores.true_negatives


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    detector = DetectorRecipe(
        name="fc_siam_diff", pairs=str(write_pairs(tmp_path / "pairs")), crop_size=64, batch_size=4, num_steps=40,
        warmup_steps=2, learning_rate=3e-3, val_every=20,
    )  # fmt: skip
    return Recipe(detector=detector, run=RunRecipe(num_workers=0, log_every=5, save_every=10))


@pytest.mark.numerical
@pytest.mark.parametrize("steps", [1, 2, 5, 6, 9, 10, 17, 300, 1003])
def test_validations_are_as_many_as_asked_for(steps: int) -> None:
    for count in range(1, min(steps, 12) + 1):
        settings = DetectorRecipe(pairs="x", num_steps=steps, validations=count)
        due = [done for done in range(1, steps + 1) if is_due(done, steps, settings)]
        assert len(due) == count and due[-1] == steps
        spaces = np.diff([0, *due])
        assert spaces.max() - spaces.min() <= 1
        if steps % count == 0:
            assert due == list(range(steps // count, steps + 1, steps // count))
    for wrong, said in ((steps + 1, "1 to detector.num_steps"), (0, "1 to")):
        with pytest.raises(ConfigError, match=rf"validations is {wrong}; allowed: {said}"):
            Recipe(detector=DetectorRecipe(pairs="x", num_steps=steps, validations=wrong)).check("detector")
    both = DetectorRecipe(pairs="x", num_steps=steps, validations=1, val_every=3)
    with pytest.raises(ConfigError, match=r"val_every is 3, which does nothing while detector\.validations"):
        Recipe(detector=both).check("detector")


def test_a_detector_learns_and_the_best_one_is_kept(recipe: Recipe, tmp_path: Path) -> None:
    train_detector(recipe, tmp_path / "out")
    test = load_pairs(recipe.detector.pairs, "test")
    _, net = load_detector(tmp_path / "out" / "detector")
    scores = evaluate_detector(net, test, 2, torch.device("cpu"))
    assert scores.f1 is not None and scores.f1 > 0.8
    assert (
        sum((scores.true_positives, scores.false_positives, scores.false_negatives, scores.true_negatives)) == 4 * 64**2
    )
    rows = [json.loads(line) for line in (tmp_path / "out/training/detector/validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20, 40]
    val = load_pairs(recipe.detector.pairs, "val")
    # In the layout and the batches of the training: in others a pixel between both classes may fall to the other one.
    best = channels_last(load_detector(tmp_path / "out" / "detector_best")[1])
    scores = evaluate_detector(best, val, recipe.detector.batch_size, torch.device("cpu"))
    assert scores.f1 == max(row["f1"] or 0 for row in rows)


@pytest.mark.numerical
def test_resumed_training_ends_in_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    short = replace(recipe, detector=replace(recipe.detector, num_steps=20, **UNSELECTED))
    whole = load_detector(train_detector(short, tmp_path / "whole"))[1].state_dict()

    class StopError(Exception):
        pass

    def dying(self: TrainingFolder, state: dict[str, object]) -> None:
        save(self, state)
        raise StopError

    save = TrainingFolder.save_checkpoint
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        patch.setattr(TrainingFolder, "save_checkpoint", dying)
        train_detector(short, tmp_path / "broken")
    broken = load_detector(train_detector(short, tmp_path / "broken"))[1].state_dict()
    assert all(torch.equal(broken[key], value) for key, value in whole.items())


def test_fine_tuning_starts_from_a_folder_and_few_shot_from_a_list(recipe: Recipe, tmp_path: Path) -> None:
    folder = train_detector(
        replace(recipe, detector=replace(recipe.detector, num_steps=2, **UNSELECTED)), tmp_path / "a"
    )
    (tmp_path / "few.txt").write_text("train3.png\ntrain7\n")
    few = replace(recipe.detector, num_steps=1, learning_rate=1e-12, **UNSELECTED, train_list=str(tmp_path / "few.txt"))
    tuned = train_detector(replace(recipe, detector=few, init=str(folder)), tmp_path / "b")
    before, after = (load_detector(path)[1] for path in (folder, tuned))
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, msg=name)
    with pytest.raises(ConfigError, match=r"is a fc_siam_diff; detector\.name is fc_ef"):
        train_detector(replace(recipe, detector=replace(few, name="fc_ef"), init=str(folder)), tmp_path / "c")
    assert not (tmp_path / "c/training/detector/leases").exists(), "what is refused holds nothing"
    (tmp_path / "few.txt").write_text("nothere\n")
    with pytest.raises(ConfigError, match="nothere is not in split 'train'"):
        train_detector(replace(recipe, detector=few), tmp_path / "d")


def test_a_missing_split_or_list_is_an_error(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="no split 'all'"):
        train_detector(replace(recipe, detector=replace(recipe.detector, train_split="all")), tmp_path / "a")
    with pytest.raises(ConfigError, match="cannot be read"):
        train_detector(replace(recipe, detector=replace(recipe.detector, train_list="none.txt")), tmp_path / "b")


@pytest.mark.parametrize("train_split", ["val", None])
def test_pairs_that_choose_weights_do_not_teach(train_split: str | None, recipe: Recipe, tmp_path: Path) -> None:
    pairs = Path(recipe.detector.pairs)
    if train_split is None:  # all of a flat folder, of which its list of validation pairs is a part
        pairs = pairs / "train"
        (pairs / "list").mkdir()
        (pairs / "list" / "val.txt").write_text("train3.png\ntrain5.png\n")
    asked = replace(recipe.detector, pairs=str(pairs), train_split=train_split)
    count = 2 if train_split is None else 4
    message = (
        rf"train_split is {train_split or 'null'}\) and of a validation pair .*, one of {count}; allowed: two splits"
    )
    with pytest.raises(ConfigError, match=message):
        train_detector(replace(recipe, detector=asked), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_trains_a_detector(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "detector", "--out", str(tmp_path / "out"), "--detector.pairs", recipe.detector.pairs]
    arguments += ["--detector.name", "lightcdnet_s", "--detector.crop-size", "64", "--detector.num-steps", "1"]
    assert command([*arguments, "--run.num-workers", "0", "--detector.hard-examples"]) == 0
    assert "finished:" in capsys.readouterr().out
    assert load_detector(tmp_path / "out" / "detector")[0] == "lightcdnet_s"


def test_eight_bits_are_one_rule_for_arrays_and_tensors() -> None:
    """Every level survives, halves go to even, what lies outside is clipped, no data is black."""
    levels = np.arange(256, dtype=np.float32)
    assert np.array_equal(in_8_bits(levels / 127.5 - 1), levels)
    halves = (levels[:-1] + 0.5) / np.float32(127.5) - 1
    assert np.abs(in_8_bits(halves) - (levels[:-1] + 0.5)).max() == 0.5
    pixels = np.random.default_rng(0).uniform(-1.2, 1.2, (1, 3, 64, 64)).astype(np.float32)
    pixels[0, 0, 0] = halves[:64]
    assert np.array_equal(in_8_bits(pixels.transpose(0, 2, 3, 1)), to_uint8(torch.from_numpy(pixels)))
    assert in_8_bits(np.array([-9.0, 9.0, np.nan, np.inf], np.float32)).tolist() == [0, 255, 0, 255]


def test_both_dates_and_the_label_are_moved_together() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random((96, 96)) < 0.4).astype(np.uint8)
    first = np.repeat(label[..., None] * 200, 3, 2).astype(np.uint8)
    second = 200 - first
    recipe = DetectorRecipe(crop_size=64, rotate_degrees=0, photometric=False)
    for seed in range(5):
        a, b, c = augment(first, second, label, recipe, np.random.default_rng([seed, 0]))
        assert a.shape == b.shape == (64, 64, 3) and np.array_equal(a[..., 0], c * 200) and np.array_equal(b, 200 - a)
    recipe = replace(recipe, rotate_degrees=180)
    views = [augment(first, second, label, recipe, np.random.default_rng([seed, 0]))[2] for seed in range(12)]
    assert any((view == 255).any() for view in views), "corners that a rotation uncovers do not count"
    recipe = replace(recipe, photometric=True, rotate_degrees=0)
    a, b, c = augment(first, first, label, recipe, np.random.default_rng([3, 0]))
    assert not np.array_equal(a, b), "colours change for each date on its own"
    recipe = DetectorRecipe(crop_size=64, rotate_degrees=0, photometric=False, flip=False, exchange_dates=True)
    swaps = [augment(first, second, label, recipe, np.random.default_rng([seed, 0])) for seed in range(20)]
    shares = np.mean([np.array_equal(a[..., 0], c * 200) for a, _, c in swaps])
    assert 0.2 < shares < 0.8


def test_ground_that_is_unknown_at_a_date_is_no_label_whichever_comes_first() -> None:
    first, second = (np.array([row], np.uint8) for row in ([1, 1, 0, 2, 0], [1, 0, 1, 1, 0]))
    image = np.zeros((1, 5, 3), np.uint8)
    for one, other in ((first, second), (second, first)):
        pair = ChangePair("key", image, image, change_mask_of(one, other), one, other)
        assert label_of(pair).tolist() == [[0, 255, 255, 1, 255]]
        assert label_of(replace(pair, mask_t2=None)).tolist()[0][4] == 255
    known = ChangePair("key", image, image, first == 2, np.ones_like(first), np.ones_like(first))
    hashes = [_hash_of([each], Recipe()) for each in (known, replace(known, mask_t2=second))]
    assert hashes[0] != hashes[1], "a training does not go on where other ground counts"


def test_masks_without_a_legend_say_nothing_of_what_is_unknown(tmp_path: Path) -> None:
    """0 may be unchanged there, as it usually is in numbers of SECOND's classes."""
    folder = write_pairs(tmp_path / "pairs", 2) / "train"
    for number in ("1", "2"):
        shutil.copytree(folder / "label", folder / f"label{number}")
    pair = load_pairs(folder)[0]
    assert pair.mask_t1 is None and set(np.unique(label_of(pair))) == {0, 1}


def test_names_in_lists_keep_their_dots(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", 3) / "train"
    for place in ("A", "B", "label"):
        for number, file in enumerate(sorted((folder / place).iterdir())):
            file.rename(file.with_name(f"s1.0_{number}{file.suffix}"))
    (tmp_path / "few.txt").write_text("s1.0_2\ns1.0_0.png\n")
    listed = load_pairs(folder).listed(tmp_path / "few.txt", "it")
    assert [listed.key_of(number) for number in range(2)] == ["s1.0_2", "s1.0_0"]


def test_crops_are_not_sought_where_nothing_is_known() -> None:
    label = np.zeros((256, 256), np.uint8)
    label[:, 150:], label[100:110, :10] = 255, 1
    image, recipe = np.zeros((256, 256, 3), np.uint8), DetectorRecipe(crop_size=64, rotate_degrees=0, photometric=False)
    crops = [augment(image, image, label, recipe, np.random.default_rng(seed))[2] for seed in range(200)]
    assert not any((crop == 255).all() for crop in crops), "of windows at random, more than a fifth"
    assert len(augment(image, image, np.full_like(label, 255), recipe, np.random.default_rng(0))[2]) == 64


@pytest.mark.numerical
def test_loss_ignores_unknown_ground_and_easy_pixels() -> None:
    logits = torch.zeros(1, 2, 4, 4)
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, :2] = 255
    assert float(detection_loss(logits, labels)) == pytest.approx(np.log(2) / 2)
    logits[0, 0, 2] = 9  # easy: the right class gets all
    hard = float(detection_loss(logits, labels, HardExamples(0.7, 1)))
    assert hard == pytest.approx(4 * np.log(2) / 16)
    nothing = detection_loss(logits, torch.full_like(labels, 255), HardExamples(0.7, 1))
    assert float(nothing) == 0


def test_scores_are_undefined_where_nothing_is_predicted() -> None:
    nothing = ChangeScores(0, 0, 5, 95)
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.iou) == (None, 0, None, 0)
    some = ChangeScores(4, 1, 1, 94)
    assert (some.precision, some.recall, some.f1) == (0.8, 0.8, 0.8) and some.iou == pytest.approx(4 / 6)


def test_pairs_of_several_sizes_are_scored(tmp_path: Path) -> None:
    small, large = (load_pairs(write_pairs(tmp_path / str(size), size=size), "test") for size in (64, 96))
    pairs = [small[0], large[0], small[1]]
    assert count(evaluate_detector(build_detector("fc_ef"), pairs, 2, torch.device("cpu"))) == 2 * 64**2 + 96**2


def test_scores_of_a_detector_leave_ignored_pixels_out(tmp_path: Path) -> None:
    pairs = load_pairs(write_pairs(tmp_path / "pairs"), "test")
    chosen = [replace(pairs[0], mask_t1=np.zeros((64, 64), np.uint8)), pairs[1]]
    scores = evaluate_detector(build_detector("fc_ef"), chosen, 1, torch.device("cpu"))
    assert count(scores) == 64**2


def test_turned_hue_keeps_value_and_saturation_and_agrees_with_floating_point() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    turned = turn_hue(image, 8.4)  # six steps of 8 bits: 8.44°
    hsv = rgb2hsv(image)
    hsv[..., 0] = (hsv[..., 0] + 6 / 256) % 1
    error = np.abs(turned - hsv2rgb(hsv) * 255)
    assert error.max() <= 12 and error.mean() < 1
    assert np.array_equal(turned.max(-1), image.max(-1)), "the value is the largest band"
    assert np.abs(turn_hue(image, 0).astype(int) - image).max() <= 6


def test_other_dtypes_go_through_their_stretch() -> None:
    grey, deep = np.full((8, 8), 100, np.uint8), np.full((8, 8, 4), 1500, np.uint16)
    pair = ChangePair(
        "k", grey, deep, np.zeros((8, 8), bool), metadata={"normalisation": {"low": [1000] * 4, "high": [2000] * 4}}
    )
    first, second = rgb8(pair)
    assert first.shape == second.shape == (8, 8, 3) and (first == 100).all() and (np.abs(second - 127.5) < 1).all()
    with pytest.raises(PairsError, match="k: images are uint16"):
        rgb8(replace(pair, metadata={}))


def test_bad_input_in_a_worker_process_is_one_line(tmp_path: Path) -> None:
    pairs = load_pairs(write_pairs(tmp_path), "train")
    batches = training_batches(pairs, DetectorRecipe(crop_size=128, num_steps=1), RunRecipe(num_workers=1), 0, range(1))
    with pytest.raises(PairsError) as caught:
        list(loaded(batches))
    assert str(caught.value).endswith("(64, 64) px; detector.crop_size is 128") and "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_validation_pair_is_one_line(recipe: Recipe, num_workers: int) -> None:
    """Whoever reads whole pairs: validation, evaluation and benchmark read them alike."""
    pairs = load_pairs(recipe.detector.pairs, "val")
    file = pairs.images_of(1)[1]
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(PairsError) as caught:
        list(whole_batches(pairs, 2, num_workers=num_workers))
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_a_set_without_validation_pairs_trains_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pairs(tmp_path / "pairs") / "train"
    (folder / "list").mkdir()
    (folder / "list" / "train.txt").write_text("".join(f"{f.name}\n" for f in (folder / "A").iterdir()))
    (folder / "list" / "val.txt").write_text("")
    detector = DetectorRecipe(name="fc_ef", pairs=str(folder), crop_size=64, batch_size=2, num_steps=1)
    train_detector(Recipe(detector=detector, run=RunRecipe(num_workers=0)), tmp_path / "out")
    assert "split 'val' is empty: no weights are selected" in capsys.readouterr().err
    assert (tmp_path / "out" / "detector").is_dir()


def test_weights_that_find_nothing_are_not_the_best(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    for label in (pairs / "val" / "label").iterdir():
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(label)
    detector = DetectorRecipe(name="fc_ef", pairs=str(pairs), crop_size=64, batch_size=2, num_steps=2, val_every=1)
    train_detector(Recipe(detector=detector, run=RunRecipe(num_workers=0)), tmp_path / "out")
    assert (tmp_path / "out" / "detector").is_dir() and not (tmp_path / "out" / "detector_best").exists()


def test_the_best_of_an_earlier_training_is_not_that_of_this_one(tmp_path: Path) -> None:
    """Started over, where nothing is found or nobody looks; a training that goes on keeps it."""
    out, still = tmp_path / "out", write_pairs(tmp_path / "pairs")
    detector = DetectorRecipe(name="fc_ef", pairs=str(still), crop_size=64, batch_size=2, num_steps=2, val_split=None)
    recipe = Recipe(detector=detector, run=RunRecipe(num_workers=0, save_every=1))
    for left in ("folder", "link"):
        train_detector(recipe, out)
        save_detector(build_detector("fc_siam_diff"), "fc_siam_diff", out / "detector_best")
        train_detector(replace(recipe, detector=replace(detector, num_steps=3)), out)
        assert (out / "detector_best" / "detector.json").is_file(), "it resumed"
        if left == "link":
            (out / "detector_best").rename(out / "elsewhere")
            (out / "detector_best").symlink_to("elsewhere")
        (out / "training" / "detector" / "checkpoint.pt").unlink()
        train_detector(recipe, out)
        assert not (out / "detector_best").exists() and (out / "detector").is_dir()
        (out / "training" / "detector" / "checkpoint.pt").unlink()
    assert (out / "elsewhere" / "detector.json").is_file(), "what a link leads to is somebody's"


def test_lightcdnet_needs_two_pairs(tmp_path: Path) -> None:
    detector = DetectorRecipe(name="lightcdnet_s", pairs=str(write_pairs(tmp_path)), crop_size=64, batch_size=1)
    with pytest.raises(ConfigError, match=r"detector\.batch_size is 1"):
        train_detector(Recipe(detector=detector), tmp_path / "out")


def test_only_the_crop_is_turned() -> None:
    image = np.random.default_rng(5).integers(0, 256, (70, 90, 3), np.uint8)
    for degrees, window in ((33.3, (slice(10, 58), slice(30, 78))), (-151.0, (slice(0, 70), slice(0, 90)))):
        whole = np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR))
        difference = np.abs(rotated(image, degrees, window).astype(int) - whole[window])
        assert difference.max() <= 1 and difference.mean() < 0.01


def test_a_pair_is_decoded_once_while_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = load_pairs(write_pairs(tmp_path), "train").keeping(1)
    views = TrainingPairs(pairs.subset(pairs.names[:2]), DetectorRecipe(crop_size=64), seed=0)
    once = views[0, 7, 0]
    shutil.rmtree(tmp_path / "train")
    assert all(torch.equal(a, b) for a, b in zip(once, views[0, 7, 0], strict=True))
    with pytest.raises(PairsError):
        views[1, 7, 0]
    assert 2**20 - pairs.kept.bytes_left == 64 * 64 * 7, "one memory for all subsets"


def test_check_names_networks_and_their_runs(tmp_path: Path) -> None:
    detector = DetectorRecipe(name="fc_ef", pairs=str(write_pairs(tmp_path / "pairs")), crop_size=64, num_steps=1)
    train_detector(Recipe(detector=detector, run=RunRecipe(num_workers=0)), tmp_path / "out")
    for folder in (tmp_path / "out", tmp_path / "out" / "detector"):
        assert "--detector.name fc_ef --detector.pairs DIR" in check_path(folder)
    (tmp_path / "out" / "detector" / "detector.json").write_text("{")
    with pytest.raises(PairsError, match=r"detector\.json: damaged"):
        check_path(tmp_path / "out" / "detector")
