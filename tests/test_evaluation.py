"""Evaluation: every measure on cases whose answer is known, then the command end to end."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from changeanywhere.cli import run as command
from changeanywhere.evaluation.cases import Ranking, groups_of
from changeanywhere.evaluation.differences import Difference, boundary_contrast, difference
from changeanywhere.evaluation.distances import Array, against_halves, bootstrap_mean, bootstrap_of_sums, frechet, kid
from changeanywhere.evaluation.figures import Figure
from changeanywhere.evaluation.of_model import real_tiles
from changeanywhere.evaluation.of_pairs import (
    compare_differences,
    evaluate_pairs,
    read_real_pairs,
    real_first,
    shortcut,
)
from changeanywhere.evaluation.options import EvaluateOptions
from changeanywhere.evaluation.probe import probe_accuracy
from changeanywhere.evaluation.reading import Image as Picture
from changeanywhere.evaluation.reading import load_features, load_judge
from changeanywhere.evaluation.scores import Confusion, ReadInstance, matched_recall, read_instances
from changeanywhere.legend import load_legend
from changeanywhere.models.efficientnet import EfficientNetLite0, find_weights
from changeanywhere.models.perceptual import ShiftTolerantLPIPS
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.pairs import load_pairs
from changeanywhere.sample import ChangePair
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.training.recipe import DataRecipe, Recipe, RunRecipe, SegmenterRecipe
from changeanywhere.training.segmenter import train_segmenter
from conftest import write_source
from raster_files import write_tif


@pytest.mark.numerical
def test_efficientnet_lite0_reproduces_the_reference() -> None:
    """Reference: ``extract_features(...).mean((2, 3))`` of efficientnet-lite-pytorch 0.1.0 on the same images."""
    net = EfficientNetLite0(find_weights()).eval()
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        features, maps = net(images), net.pyramid(images)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 48, 64), (24, 24, 32), (40, 12, 16), (112, 6, 8), (320, 3, 4)]
    np.testing.assert_allclose(features[:, 2], [1.0223, 1.4183], atol=2e-4)
    assert float(features.mean()) == pytest.approx(0.0776, abs=2e-4)


def test_confusion_and_iou() -> None:
    mask = np.array([[1, 1, 2, 2], [1, 1, 2, 0]], np.uint8)
    read = np.array([[1, 1, 2, 1], [1, 2, 2, 3]], np.uint8)
    confusion = Confusion(3)
    confusion.add(mask, read)
    assert confusion.counts.sum() == 7  # unknown ground does not count
    np.testing.assert_allclose(confusion.iou()[:2], [3 / 5, 2 / 4])
    assert np.isnan(confusion.iou()[2])
    assert confusion.mean_iou() == pytest.approx((3 / 5 + 2 / 4) / 2)
    confusion.add(mask, read, np.zeros(mask.shape, bool))
    assert confusion.counts.sum() == 7


def test_recall_is_of_the_eroded_instance_and_matched_by_class_and_size() -> None:
    mask = np.ones((40, 40), np.uint8)
    mask[5:15, 5:15] = 2
    read = mask.copy()
    read[5:7, 5:15] = 1  # wrong on the rim alone
    (house,) = [i for i in read_instances(mask, read) if i.class_index == 2]
    assert house == ReadInstance(2, 100, 1.0)
    read[5:15, 5:10] = 1
    (house,) = [i for i in read_instances(mask, read) if i.class_index == 2]
    assert 0.4 < house.recall < 0.6
    nothing = np.zeros(mask.shape, bool)
    nothing[30:32, 30:32] = True
    assert read_instances(mask, read, nothing) == []  # too small to have an inside
    real = [
        ReadInstance(2, 100, 0.9),
        ReadInstance(2, 110, 0.7),
        *[ReadInstance(2, 5000, 0.1)] * 5,
        ReadInstance(3, 100, 0.2),
    ]
    ours, ceiling = matched_recall([ReadInstance(2, 105, 0.5), ReadInstance(4, 10, 1.0)], real)
    assert ours == [0.5]
    assert ceiling == [pytest.approx((0.9 + 0.7 + 3 * 0.1) / 5)]


def test_kid_is_unbiased_and_sees_a_shift() -> None:
    rng = np.random.default_rng(0)
    draws = [rng.normal(size=(60, 8)) for _ in range(40)]
    values = [kid(a, b, resamples=2).value for a, b in zip(draws[::2], draws[1::2], strict=True)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))  # zero on average: unbiased
    same = kid(draws[0], draws[1])
    assert same.low <= same.value <= same.high and same.low < 0.05
    shifted = kid(draws[0], draws[1] + 1)
    assert shifted.low > same.high

    # The value is the textbook sum over pairs.
    def k(a: Array, b: Array) -> Array:
        return (a @ b.T / 8 + 1) ** 3

    x, y = draws[0], draws[1]
    off = [(k(s, s).sum() - np.trace(k(s, s))) / (60 * 59) for s in (x, y)]
    assert same.value == pytest.approx(off[0] + off[1] - 2 * k(x, y).mean())


def test_frechet_distance_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(200_000, 2))
    second = rng.normal(size=(200_000, 2)) * [2.0, 1.0] + [3.0, 0.0]
    # |Δμ|² + Σ (σ₁ − σ₂)² for commuting covariances.
    assert frechet(first, second) == pytest.approx(9 + 1, rel=0.02)
    assert frechet(first, first) == pytest.approx(0, abs=1e-6)


def test_identical_dates_fail_the_realism_of_unchanged_ground() -> None:
    rng = np.random.default_rng(0)
    real = [Difference(*values) for values in rng.normal([8, 0.6, 0.04], [3, 0.1, 0.01], (150, 3))]
    same = [Difference(0.0, 1.0, 0.0)] * 100
    other_half = [Difference(*values) for values in rng.normal([8, 0.6, 0.04], [3, 0.1, 0.01], (100, 3))]
    assert all(c.ratio > 1.5 for c in compare_differences(same, real, 0).values())
    assert all(c.ratio < 1.5 for c in compare_differences(other_half, real, 0).values())
    assert against_halves(np.zeros(10), np.zeros(10)).distance == 0
    few = [against_halves(rng.normal(size=20), rng.normal(size=400), seed).ratio for seed in range(20)]
    assert 0.8 < np.mean(few) < 1.3, "a small set of the same kind is as near as a half that is as small"


def test_bootstrap_interval_covers_the_mean() -> None:
    hits = 0
    for seed in range(60):
        estimate = bootstrap_mean(np.random.default_rng(seed).normal(size=80), seed, resamples=200)
        hits += estimate.low <= 0 <= estimate.high
    assert 50 <= hits <= 60


def test_intervals_widen_where_entries_come_in_groups() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 6)
    values = rng.normal(size=40)[groups] + 0.1 * rng.normal(size=240)
    alone, together = bootstrap_mean(values), bootstrap_mean(values, groups=groups)
    assert alone.value == together.value
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(6**0.5, rel=0.25)
    images = rng.normal(size=(40, 16))[groups] + 0.1 * rng.normal(size=(240, 16))
    other = rng.normal(size=(100, 16))
    alone, together = kid(images, other), kid(images, other, groups=groups)
    assert alone.value == together.value and together.high - together.low > 1.3 * (alone.high - alone.low)


def test_probe_finds_an_artefact_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    scenes = np.repeat([f"scene_{i}" for i in range(30)], 4)
    place = rng.normal(size=(120, 200))
    first, second = place + 0.1 * rng.normal(size=place.shape), place + 0.1 * rng.normal(size=place.shape)
    assert 0.35 < probe_accuracy(first, second, scenes) < 0.65
    second[:, 7] += 3
    assert probe_accuracy(first, second, scenes) > 0.9


def test_probe_folds_by_scene() -> None:
    """An artefact whose sign is the scene's own tells nothing about other scenes."""
    rng = np.random.default_rng(0)
    scenes = np.repeat([f"scene_{i}" for i in range(30)], 4)
    marks = np.repeat(np.eye(30), 4, axis=0) * 6
    sign = np.repeat(rng.choice([-1, 1], 30), 4)[:, None]
    first, second = (marks * sign * date + 0.1 * rng.normal(size=marks.shape) for date in (-1, 1))
    assert probe_accuracy(first, second, scenes) < 0.65
    assert probe_accuracy(first, second, np.arange(120).astype(str)) > 0.9, "folds by pair would find it"


def test_a_random_order_does_not_hide_a_painted_image() -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(40):
        real, painted = rng.integers(0, 200, (2, 8, 8, 3)).astype(np.uint8)
        painted[0] = 255  # the artefact
        images = (real, painted) if number % 2 else (painted, real)
        nothing = np.zeros((8, 8), np.uint8)
        record = {"scene": f"scene_{number}", "real_date": 1 if number % 2 else 2}
        pairs.append(ChangePair(f"p{number}", *images, nothing > 0, nothing, nothing, record))

    def features(images: Sequence[Picture]) -> Array:
        return np.stack([image.astype(float).mean((1, 2)) for image in images])

    painted, date = shortcut([real_first(pair) for pair in pairs], pairs, features, 0)
    assert "painted image" in painted.name and painted.value > 0.9 and painted.reached is False
    assert "date 2" in date.name and date.value < 0.65 and date.reached is None


@pytest.fixture
def photo() -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=(128, 128, 3)), (2, 2, 0))
    return np.clip(128 + 400 * noise, 0, 255).astype(np.uint8)


def test_differences_on_unchanged_ground(photo: np.ndarray) -> None:
    metric = ShiftTolerantLPIPS()
    change = np.zeros((128, 128), bool)
    change[40:70, 40:70] = True
    same = difference(photo, photo, change, metric)
    assert same is not None
    assert (same.colour_shift, same.st_lpips) == (0, 0) and same.gradient_correlation == pytest.approx(1)
    repainted = photo.copy()
    repainted[40:70, 40:70] = 255  # changed ground does not count
    assert difference(photo, repainted, change, metric) == same
    brighter = difference(photo, np.clip(photo.astype(int) + 30, 0, 255).astype(np.uint8), change, metric)
    assert brighter is not None and brighter.colour_shift > 5 and brighter.gradient_correlation > 0.9
    elsewhere = difference(photo, photo[::-1, ::-1].copy(), change, metric)
    assert elsewhere is not None and elsewhere.gradient_correlation < 0.3 and elsewhere.st_lpips > brighter.st_lpips
    assert difference(photo, photo, np.ones((128, 128), bool), metric) is None


def test_a_seam_raises_the_contrast_of_the_boundary(photo: np.ndarray) -> None:
    inside = np.zeros((128, 128), bool)
    inside[40:90, 40:90] = True
    plain = boundary_contrast(photo, inside)
    rim = ndimage.binary_dilation(inside) & ~inside
    seam = boundary_contrast(np.where(rim[..., None], 255, photo).astype(np.uint8), inside)
    assert plain is not None and seam is not None
    assert 0.8 < plain < 1.25 and seam > 1.5
    assert boundary_contrast(photo, np.zeros((128, 128), bool)) is None


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    source = write_source(folder / "source")
    recipe = Recipe(
        DataRecipe(source=str(source), tile_size=64),
        segmenter=SegmenterRecipe(
            backbone="unet", crop_size=64, batch_size=4, num_steps=150, warmup_steps=5, learning_rate=3e-3
        ),
        run=RunRecipe(num_workers=0, log_every=10, save_every=10),
    )
    tiles = open_source(source, SourceOptions(tile_size=64))
    train_segmenter(tiles, replace(recipe, segmenter=replace(recipe.segmenter, num_steps=40)), folder / "broken")
    resumed = Segmenter.load(train_segmenter(tiles, recipe, folder / "broken"))
    assert resumed.training is False
    return train_segmenter(tiles, recipe, folder / "run")


@pytest.mark.numerical
def test_segmenter_learns_to_read_classes(judge: Path, tmp_path: Path) -> None:
    net = Segmenter.load(judge)
    tiles = open_source(write_source(tmp_path / "source", num_tiles=3), SourceOptions(tile_size=64))
    confusion = Confusion(tiles.legend.num_classes)
    for i in range(len(tiles)):
        sample = tiles.read(i)
        pixels = torch.from_numpy(sample.normalisation.apply(sample.image)).permute(2, 0, 1)[None]
        confusion.add(sample.mask, net.read(pixels)[0].numpy())
    assert confusion.mean_iou() > 0.6
    assert Segmenter("lite0", net.legend, pretrained=True)(torch.zeros(1, 3, 64, 64)).shape == (1, 7, 64, 64)


@pytest.mark.numerical
def test_command_evaluates_a_model_and_a_set(
    judge: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(write_source(tmp_path / "source"))
    model, pairs, out = str(tiny_model_folder), str(tmp_path / "pairs"), tmp_path / "out"
    shape = ["--tile-size", "64"]
    assert command(["generate", "--source", source, "--out", pairs, "--model", model, *shape, "--num-pairs", "6"]) == 0
    for folder in ("A", "B"):
        (tmp_path / "real" / folder).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "real" / folder / f"{i}.png")
    assert len(read_real_pairs(tmp_path / "real")) == 6
    arguments = ["evaluate", "--out", str(out), "--pairs", pairs, "--model", model, "--source", source]
    arguments += ["--judge", str(judge), "--real-pairs", str(tmp_path / "real"), "--num-images", "8"]
    assert command(arguments) == 0
    printed = capsys.readouterr().out
    assert "judge's mean IoU on the real tiles" in printed and "evaluation.html" in printed
    figures = json.loads((out / "evaluation.json").read_text())["figures"]
    assert len({figure["section"] for figure in figures}) >= 6
    page = (out / "evaluation.html").read_text()
    assert page.count("painted from the mask alone") == 12 and "$" not in page.split("<pre>")[0].split("</style>")[1]


def test_tiles_are_read_as_the_options_say(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "source", num_tiles=7)
    (source / "images" / "tile_3.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    arguments = ["evaluate", "--model", str(tiny_model_folder), "--source", str(source), "--out", str(out)]
    arguments += ["--num-images", "4", "--num-steps", "2"]
    assert command(arguments) == 2
    assert "tile_3.png" in capsys.readouterr().err
    given = ["--bands", "[3,2,1]", "--stretch", "[0,100]", "--legend", "mini", "--on-error", "skip"]
    assert command([*arguments, *given]) == 0
    assert "left out: 1 that could not be read" in capsys.readouterr().out
    assert "tile_3.png" in (out / "skipped.txt").read_text()
    record = json.loads((out / "evaluation.json").read_text())
    assert record["options"]["bands"] == "(3, 2, 1)"
    tiles = open_source(source, SourceOptions(tile_size=64, bands=(3, 2, 1), on_error="skip"))
    plain = open_source(source, SourceOptions(tile_size=64, on_error="skip"))
    assert np.array_equal(real_tiles(tiles)[0][0], real_tiles(plain)[0][0][..., ::-1])


@pytest.mark.parametrize(
    ("option", "without"),
    [
        ("--bands [3,2,1]", "source"),
        ("--legend mini", "source"),
        ("--num-images 8", "model"),
        ("--num-steps 8", "model"),
    ],
)
def test_options_that_would_not_be_read_are_refused(
    option: str, without: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["evaluate", "--out", str(tmp_path), "--pairs", "x", *option.split()]) == 2
    assert f"nothing without --{without}" in capsys.readouterr().err
    assert command(["evaluate", "--out", str(tmp_path), "--model", "mini", "--source", "x", "--max-pairs", "3"]) == 2
    assert "max_pairs is 3; allowed: nothing without --pairs" in capsys.readouterr().err


def test_what_cannot_be_evaluated_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["evaluate", "--out", str(tmp_path)]) == 2
    assert "nothing to evaluate" in capsys.readouterr().err
    assert command(["evaluate", "--out", str(tmp_path), "--model", "mini"]) == 2
    assert "--model needs --source" in capsys.readouterr().err
    assert command(["evaluate", "--out", str(tmp_path), "--pairs", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def _set_with_a_border(folder: Path, border: str) -> Path:
    """Four pairs of 128 px with semantic masks; 28 columns of date 2 show nothing, or their label says 255."""
    rng = np.random.default_rng(0)
    legend = load_legend("mini")
    legend.save(folder / "legend.json")
    for number in range(4):
        image = rng.integers(60, 200, (128, 128, 3)).astype(np.uint8)
        first = np.ones((128, 128), np.uint8)
        second = first.copy()
        second[90:120, 4:40] = 2
        changed = (first != second).astype(np.uint8)
        later = image.copy()
        if border != "nothing":
            later[:, 100:] = 0
        if border == "label":
            changed[:, 100:] = 255
        if border == "alpha":
            seen = np.full((128, 128), 255, np.uint8)
            seen[:, 100:] = 0
            later = np.dstack([later, seen])
        for name, content in {"A": image, "B": later, "label": changed, "label1": first, "label2": second}.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(folder / name / f"{number}.png")
    return folder


def _read_by_colour(images: Sequence[Picture]) -> np.ndarray:
    """A judge that takes black for class 3 and all else for class 1."""
    return np.stack([np.where((image == 0).all(-1), 3, 1) for image in images]).astype(np.uint8)


@pytest.mark.parametrize("border", ["label", "alpha"])
def test_ignored_ground_is_unknown_to_every_figure(border: str, tmp_path: Path) -> None:
    """A border that is missing at date 2 alone, said by the label or by alpha, moves no figure of a set."""

    def figures(kind: str) -> dict[str, float]:
        pairs = load_pairs(_set_with_a_border(tmp_path / kind, kind))
        names = load_legend("mini").names
        real = tmp_path / "nothing"
        options = EvaluateOptions(out=tmp_path / "out", pairs=tmp_path / kind, real_pairs=real, max_pairs=4)
        found = evaluate_pairs(pairs, names, _read_by_colour, _brightness, options)
        return {figure.name: figure.value for figure in found.figures}

    def _brightness(images: Sequence[Picture]) -> Array:
        return np.stack([image.astype(float).mean((1, 2)) for image in images])

    whole, holed = figures("nothing"), figures(border)
    assert holed.keys() == whole.keys() and len(whole) >= 5
    for name in ("mean IoU, unchanged ground", "accuracy of telling the painted image from the real one"):
        assert holed[name] == whole[name], name
    assert holed["colour shift (ΔE)"] == pytest.approx(whole["colour shift (ΔE)"], abs=1e-9)
    assert holed["gradient correlation"] == pytest.approx(whole["gradient correlation"], abs=1e-6)
    assert holed["ST-LPIPS"] == pytest.approx(whole["ST-LPIPS"], abs=1e-4)


@pytest.mark.parametrize("border", ["label", "alpha"])
def test_ignored_ground_of_real_pairs_counts_nowhere(border: str, tmp_path: Path) -> None:
    for first, second, left_out in read_real_pairs(_set_with_a_border(tmp_path, border)):
        assert left_out[:, 100:].all() and np.array_equal(first[~left_out], second[~left_out])


def test_a_border_of_ignored_ground_is_no_seam(photo: np.ndarray) -> None:
    inside = np.zeros((128, 128), bool)
    inside[40:90, 40:90] = True
    ignored = np.zeros((128, 128), bool)
    ignored[:, 90:] = True
    black = np.where(ignored[..., None], 0, photo).astype(np.uint8)
    plain, holed = boundary_contrast(photo, inside, ignored), boundary_contrast(black, inside, ignored)
    assert plain == holed and plain is not None and 0.8 < plain < 1.25
    with_seam = boundary_contrast(black, inside)
    assert with_seam is not None and with_seam > 1.5, "without the ignored ground it would be one"
    assert boundary_contrast(black, inside, ~inside | ignored) is None


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        (Figure("s", "n", float("nan"), 0.5, note="3 objects"), "Too little to tell."),
        (Figure("s", "n", 0.5, 0.5, target="at least 0.4", reached=True), "As asked: at least 0.4."),
        (Figure("s", "n", 0.3, 0.5, target="at least 0.4", reached=False), "Not as asked: at least 0.4."),
        (Figure("s", "n", 0.5, 0.55, 0.4, 0.6), "No difference to real data that this many could show."),
        (Figure("s", "n", 0.5, 0.7, 0.4, 0.6), "Lower than real data, beyond chance."),
        (Figure("s", "n", 0.5, 0.51), "About as real data."),
        (Figure("s", "n", 1.2, 0.6), "Higher than real data; whether by chance is not known."),
        (Figure("s", "n", 1.2), "Nothing is asked of it."),
        (Figure("s", "n", 0.5, 0.1, 0.4, 0.6, beside="guessing"), "Higher than guessing, beyond chance."),
        (
            Figure("s", "n", 0.5, 0.5, target="at least 0.4", reached=True).where((3, 20, "pairs"), (9, 5, "scenes")),
            "Too little to tell: 20 pairs are the least, here 3.",
        ),
        (
            Figure("s", "n", 0.5, 0.5, target="at least 0.4", reached=True).where((20, 20, "x")),
            "As asked: at least 0.4.",
        ),
    ],
)
def test_a_figure_says_in_one_sentence_what_it_means(figure: Figure, said: str) -> None:
    assert figure.verdict == said and figure.to_dict()["verdict"] == said
    assert not figure.few or (figure.reached is None and figure.few in figure.in_words())


@pytest.mark.parametrize("shown", [1, 2, 3, 12, 30])
@pytest.mark.parametrize("ranked", [0, 1, 2, 3, 9, 25])
def test_worst_best_and_others_are_different_pairs(ranked: int, shown: int) -> None:
    rng = np.random.default_rng(ranked)
    values = {int(number): (float(rng.random()),) for number in rng.permutation(25)[:ranked]}
    groups = {group.title: group.numbers for group in groups_of(Ranking("it", values), 25, shown)}
    numbers = [number for some in groups.values() for number in some]
    assert len(numbers) == len(set(numbers)) == min(shown, 25)
    worst, best = groups.get("Worst", ()), groups.get("Best", ())
    assert len(worst) == min(shown // 3, -(-ranked // 2)) and len(best) == min(shown // 3, ranked // 2)
    order = sorted(values, key=lambda number: values[number])
    assert list(worst) == order[: len(worst)] and list(best) == order[::-1][: len(best)]
    assert list(groups.get("Others", ())) == sorted(groups.get("Others", ()))


def test_an_interval_of_sums_holds_the_share_that_they_were_drawn_with() -> None:
    def share(counts: Array) -> Array:
        return counts[..., 0] / counts[..., 1]

    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(50, 400, 60)
        counts = np.stack([rng.binomial(sizes, 0.3), sizes], 1).astype(float)
        estimate = bootstrap_of_sums(counts, share, np.arange(60), seed, 300)
        assert estimate.value == pytest.approx(counts[:, 0].sum() / counts[:, 1].sum())
        hits += estimate.low <= 0.3 <= estimate.high
    assert 50 <= hits <= 60
    nothing = bootstrap_of_sums(np.zeros((3, 2)), lambda counts: counts[..., 0] * np.nan, np.arange(3))
    assert np.isnan(nothing.value) and np.isnan(nothing.low)


def write_set(folder: Path, count: int, dtype: str = "uint8", masked: bool = True) -> Path:
    """Pairs of 96 px as generate writes them: new houses, the later ones with a bright rim, which is a seam; of other
    than 8 bits four bands as GeoTIFF, with the stretch of the set."""
    rng = np.random.default_rng(0)
    legend, factor = load_legend("mini"), 1 if dtype == "uint8" else 40
    lines = []
    for number in range(count):
        ground = ndimage.gaussian_filter(rng.normal(size=(96, 96, 4)), (2, 2, 0))
        image = np.clip(120 + 400 * ground, 1, 250).astype(int)
        first = np.ones((96, 96), np.uint8)
        first[60:90, 10:40] = 2
        second = first.copy()
        second[10 : 40 + number % 3, 30:60] = 2
        later = np.clip(image + rng.integers(-4, 5, image.shape), 1, 250)
        rim = ndimage.binary_dilation(first != second) & (first == second)
        later[rim] = np.clip(later[rim] + 8 * number, 1, 250)
        content = {"A": image, "B": later, "label": (first != second) * 255}
        content |= {"label1": first, "label2": second} if masked else {}
        for name, array in content.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            if name in ("A", "B") and dtype != "uint8":
                write_tif(folder / name / f"p{number:02}.tif", (array * factor).astype(dtype))
                continue
            pixels = array[..., :3] if name in ("A", "B") else array
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"p{number:02}.png")
        stretch = {"low": [0.0] * 4, "high": [255.0 * factor] * 4}
        record = {"key": f"p{number:02}", "scene": f"s{number}", "real_date": 1, "normalisation": stretch}
        lines.append(json.dumps(record))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    if masked:
        legend.save(folder / "legend.json")
    return folder


def pictures_of(page: str) -> list[np.ndarray]:
    """Every JPEG of a page, as it is shown."""
    found = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


@pytest.mark.parametrize(("dtype", "masked"), [("uint8", True), ("uint16", True), ("uint8", False), ("uint16", False)])
def test_the_page_of_a_set_shows_its_worst_and_its_best_pairs(
    dtype: str, masked: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, out = write_set(tmp_path / "set", 9, dtype, masked), tmp_path / "out"
    assert command(["evaluate", "--pairs", str(pairs), "--out", str(out), "--num-panels", "6"]) == 0
    capsys.readouterr()
    page = (out / "evaluation.html").read_text()
    shown = re.findall(r'<figure class="pair"><figcaption><b>(\w+)</b>', page)
    assert len(shown) == len(set(shown)) == 6 and page.count("<h3>") == 3
    assert set(shown[:2]) <= {"p06", "p07", "p08"}, "the brightest rims are the worst"
    assert set(shown[2:4]) <= {"p00", "p01", "p02", "p03"}
    assert "9 of 9 pairs are ranked by" in page and page.count("20 pairs are the least, here 9") >= 2
    assert ("mask t1" in page) == masked and not re.search(r'(src|href)="(?!data:|#)', page)
    for image in pictures_of(page):  # in the set's stretch: neither black nor white
        assert image.shape == (96, 96, 3) and 60 < image.mean() < 200 and image.std() > 10
    figures = json.loads((out / "evaluation.json").read_text())["figures"]
    assert all(figure["verdict"] for figure in figures)
    assert "verdict" in (out / "evaluation.csv").read_text().splitlines()[0]
    assert command(["evaluate", "--pairs", str(pairs), "--out", str(out), "--num-panels", "0"]) == 0
    assert 'class="pair"' not in (out / "evaluation.html").read_text()


def test_without_masks_there_is_nothing_for_a_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write_set(tmp_path / "set", 4, masked=False)
    arguments = ["evaluate", "--pairs", str(pairs), "--out", str(tmp_path / "out"), "--source", "examples"]
    assert command(arguments) == 2
    assert "has no legend.json and no semantic masks; allowed: without --source" in capsys.readouterr().err


def test_pairs_of_several_sizes_are_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Networks take images of one size at a time; each is read as it would be alone."""
    folder = write_set(tmp_path / "set", 4)
    for number, side in enumerate((64, 96, 75, 75)):
        for file in folder.glob(f"*/p{number:02}.png"):
            Image.open(file).crop((0, 0, side, side)).save(file)
    torch.manual_seed(0)
    Segmenter("unet", load_legend("mini")).save(tmp_path / "judge")
    arguments = ["evaluate", "--pairs", str(folder), "--out", str(tmp_path / "out"), "--judge", str(tmp_path / "judge")]
    assert command(arguments) == 0, capsys.readouterr().err
    images = [np.asarray(Image.open(folder / "A" / f"p{number:02}.png")) for number in range(4)]
    device = torch.device("cpu")
    read = load_judge(tmp_path / "judge", load_legend("mini"), device, 3)
    features = load_features(device, 3)
    for many, one in zip(read(images), images, strict=True):
        assert many.shape == one.shape[:2] and (many == next(iter(read([one])))).mean() > 0.999
    assert np.allclose(features(images), np.concatenate([features([one]) for one in images]), atol=1e-4)


def test_a_judge_ranks_pairs_by_what_it_reads(tmp_path: Path) -> None:
    """New houses of half of the pairs are black, which this judge reads as something else."""
    pairs = load_pairs(write_set(tmp_path / "set", 8))
    for number in range(0, 8, 2):
        file = tmp_path / "set" / "B" / f"p{number:02}.png"
        pixels = np.asarray(Image.open(file)).copy()
        pixels[10:43, 30:60] = 0
        Image.fromarray(pixels).save(file)

    def judge(images: Sequence[Picture]) -> np.ndarray:
        return np.stack([np.where((image == 0).all(-1), 3, 2) for image in images]).astype(np.uint8)

    def features(images: Sequence[Picture]) -> Array:
        return np.stack([image.astype(float).mean((1, 2)) for image in images])

    options = EvaluateOptions(out=tmp_path / "out", pairs=tmp_path / "set", num_panels=8)
    found = evaluate_pairs(pairs, load_legend("mini").names, judge, features, options)
    groups = {group.title: group for group in found.groups}
    assert {number % 2 for number in groups["Worst"].numbers} == {0}
    assert {number % 2 for number in groups["Best"].numbers} == {1} and "judge reads" in groups["Best"].note
    worst = found.shown[groups["Worst"].numbers[0]]
    assert worst.read is not None and (worst.read == 3).any() and any("0% of its new" in each for each in worst.said)
