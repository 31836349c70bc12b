"""Change maps of pairs and of images of any size, and scores of a detector on labelled pairs."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from torch import Tensor

from changeanywhere.cli import run
from changeanywhere.errors import EmptySplitError, PairsError
from changeanywhere.evaluation.detector_figures import NAMES, detector_figures
from changeanywhere.models.detectors import build_detector
from changeanywhere.models.detectors.folder import load_detector, save_detector
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.unlabelled import UnlabelledPairs, open_images
from changeanywhere.prediction.inputs import open_pairs
from changeanywhere.prediction.options import PredictOptions
from changeanywhere.prediction.windows import Rows, Tiling, rows_of
from changeanywhere.rasters.facts import Window
from changeanywhere.sample import rgb8
from changeanywhere.training.detection import IGNORE, ChangeScores, sum_of
from changeanywhere.training.detector import evaluate_pairs
from changeanywhere.training.pair_batches import decoded
from test_detector_training import write_pairs
from test_evaluation import pictures_of, write_set


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: what it says varies over an image."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("detector") / "net"
    save_detector(build_detector("fc_siam_diff"), "fc_siam_diff", folder)
    return folder


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def probability_of(folder: Path, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """By the network itself, on the whole image."""
    _, net = load_detector(folder)
    dates: list[Tensor] = [
        torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1 for image in (first, second)
    ]
    with torch.no_grad():
        found: np.ndarray = net(*dates).softmax(1)[0, 1].numpy()
    return found


def test_windows_give_back_what_does_not_depend_on_them() -> None:
    """Every pixel once, weights that add up to 1, for sides that the grid fits and that it does not."""
    rng = np.random.default_rng(0)
    for height, width, tiling in ((70, 95, Tiling(32, 8)), (32, 33, Tiling(32, 16)), (20, 200, Tiling(64, 0))):
        truth = rng.random((height, width), dtype=np.float32)
        hidden = rng.random((height, width)) < 0.1
        most = 0

        def read(windows: Any, truth: Any = truth, hidden: Any = hidden) -> Any:
            return [(truth[window.slices], ~hidden[window.slices]) for window in windows]

        found = np.full((height, width), np.nan, np.float32)
        for part in rows_of(height, width, tiling, read):
            rows = slice(part.row, part.row + len(part.probability))
            assert np.isnan(found[rows]).all(), "a row comes once"
            found[rows] = part.probability
            most = max(most, len(part.probability))
            assert np.array_equal(part.valid, ~hidden[rows])
        assert np.abs(found - truth).max() < 1e-5 and most <= tiling.window


def test_seams_are_averaged() -> None:
    """Windows that say 0 and 1 in turn pass into each other over what they share."""
    tiling = Tiling(64, 32)

    def read(windows: Any) -> Any:
        return [(np.full((64, 64), float(window.column // 32 % 2), np.float32), None) for window in windows]

    (part,) = rows_of(64, 128, tiling, read)
    steps = np.abs(np.diff(part.probability[10]))
    assert steps.max() < 0.05 and part.probability[10].max() - part.probability[10].min() > 0.9
    assert isinstance(part, Rows) and Window(0, 0, 1, 1).height == 1


def test_a_folder_of_pairs_with_and_without_labels(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_pairs(tmp_path / "pairs", 3)
    assert run(["predict", "--detector", str(detector), str(pairs / "test"), "--out", str(tmp_path / "out")]) == 0
    assert "predicted 4 pair(s)" in capsys.readouterr().out
    for name in ("test0", "test3"):
        dates = [np.asarray(Image.open(pairs / "test" / date / f"{name}.png")) for date in "AB"]
        truth = probability_of(detector, *dates)
        found = np.asarray(Image.open(tmp_path / "out" / "probability" / f"{name}.png"))
        mask = np.asarray(Image.open(tmp_path / "out" / "change" / f"{name}.png"))
        assert np.abs(found - truth * 255).max() <= 0.51
        assert np.array_equal(mask == 255, truth > 0.5) and set(np.unique(mask)) <= {0, 255}
    rows = table(tmp_path / "out" / "changes.csv")
    assert [row["key"] for row in rows] == ["test0", "test1", "test2", "test3"] and rows[0]["valid_px"] == "4096"
    # no labels: the same maps
    for file in (pairs / "test" / "label").iterdir():
        file.unlink()
    (pairs / "test" / "label").rmdir()
    arguments = [str(pairs), "--split", "test", "--detector", str(detector), "--out", str(tmp_path / "again")]
    assert run(["predict", *arguments]) == 0
    first, again = (sorted((tmp_path / out / "change").iterdir()) for out in ("out", "again"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]
    (pairs / "test" / "B" / "test2.png").unlink()
    assert run(["predict", *arguments]) == 2
    assert re.search(r"B/test2\.png: missing", capsys.readouterr().err)


def write_tifs(folder: Path, height: int, width: int, dtype: str = "uint8") -> list[Path]:
    rng = np.random.default_rng(1)
    files = []
    for date in (1, 2):
        image = rng.integers(1, 255, (3, height, width)).astype(dtype) * (1 if dtype == "uint8" else 40)
        image[:, : height // 4, : width // 3] = 0
        file = folder / f"t{date}.tif"
        with rasterio.open(
            file, "w", driver="GTiff", height=height, width=width, count=3, dtype=dtype, nodata=0, crs="EPSG:32633",
            transform=from_origin(500_000, 5_000_000, 0.5, 0.5), tiled=True, blockxsize=64, blockysize=64,
        ) as target:  # fmt: skip
            target.write(image)
        files.append(file)
    return files


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_two_geotiffs_keep_their_place_and_what_shows_nothing(
    dtype: str, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_tifs(tmp_path, 150, 210, dtype)
    arguments = ["--detector", str(detector), "--window", "64", "--overlap", "24", "--out", str(tmp_path / "out")]
    assert run(["predict", *map(str, files), *arguments]) == 0
    with rasterio.open(tmp_path / "out" / "change.tif") as change, rasterio.open(files[0]) as source:
        assert change.crs == source.crs and change.transform == source.transform and change.shape == source.shape
        assert change.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        mask, seen = change.read(1), change.read_masks(1) > 0
    with rasterio.open(tmp_path / "out" / "probability.tif") as file:
        probability = file.read(1)
        assert file.dtypes == ("float32",) and np.isnan(file.nodata)
    hidden = np.zeros((150, 210), bool)
    hidden[:37, :70] = True
    assert np.array_equal(np.isnan(probability), hidden) and np.array_equal(~seen, hidden)
    assert np.array_equal(mask == 255, np.nan_to_num(probability) > 0.5)
    (row,) = table(tmp_path / "out" / "changes.csv")
    assert int(row["valid_px"]) == 150 * 210 - 37 * 70 and int(row["changed_px"]) == int((mask == 255).sum())
    assert float(row["area_m2"]) == pytest.approx(int(row["changed_px"]) * 0.25, rel=0.01)
    if dtype == "uint8":  # where one window holds the image, it is the network's own answer
        whole = [*arguments[:2], "--out", str(tmp_path / "whole")]
        assert run(["predict", *map(str, files), *whole]) == 0
        with rasterio.open(tmp_path / "whole" / "probability.tif") as file:
            found = file.read(1)
        dates = [rasterio.open(file).read().transpose(1, 2, 0) for file in files]
        assert np.abs(np.where(hidden, 0, found - probability_of(detector, *dates))).max() < 1e-5
    capsys.readouterr()


@pytest.mark.parametrize("nodata", [0, 255])
def test_what_shows_nothing_is_black_in_training_as_in_prediction(nodata: int, tmp_path: Path) -> None:
    """Of the date that shows nothing; the other one is read as it is."""
    files = [tmp_path / folder / "a.tif" for folder in ("A", "B")]
    for file in write_tifs(tmp_path, 80, 96):
        with rasterio.open(file) as source:
            image, profile = source.read(), source.profile | {"nodata": nodata}
        moved = files["t2" in file.name]
        moved.parent.mkdir()
        image[:, :20, :32] = nodata if "t2" in file.name else 7
        with rasterio.open(moved, "w", **profile) as target:
            target.write(image)
    (tmp_path / "label").mkdir()
    Image.fromarray(np.zeros((80, 96), np.uint8)).save(tmp_path / "label" / "a.png")
    first, second, label = decoded(load_pairs(tmp_path), 0, 3)
    unlabelled = UnlabelledPairs([open_images(tmp_path)])[0]
    asked = PredictOptions(detector=tmp_path, inputs=(str(files[0]), str(files[1])), out=tmp_path / "out")
    _, opened = open_pairs(asked, 3)
    predicted = next(opened).read(Window(0, 0, 80, 96))[:2]
    for date, taught, again, read in zip((7, 0), (first, second), rgb8(unlabelled), predicted, strict=True):
        assert (taught[:20, :32] == date).all() and taught[40:].any()
        assert np.array_equal(taught, again)
        assert np.array_equal(np.rint((read.transpose(1, 2, 0) + 1) * 127.5), taught)
    assert (label[:20, :32] == IGNORE).all() and not label[20:].any()


@pytest.mark.parametrize("missing", [np.nan, np.inf, 65535.0])
def test_a_pixel_that_shows_nothing_spoils_no_other(
    missing: float, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_tifs(tmp_path, 80, 96, "float32")
    found = []
    for name in ("whole", "hole"):
        if name == "hole":
            with rasterio.open(files[1], "r+") as target:
                target.nodata = None if missing == np.inf else missing
                target.write(np.full((3, 1, 1), missing, np.float32), window=((60, 61), (70, 71)))
            with rasterio.open(files[0], "r+") as target:
                target.nodata = None
        arguments = ["--detector", str(detector), "--stretch", "[0,100]", "--out", str(tmp_path / name)]
        assert run(["predict", *map(str, files), *arguments]) == 0, capsys.readouterr().err
        with rasterio.open(tmp_path / name / "probability.tif") as file:
            found.append(file.read(1))
    known = np.ones((80, 96), bool)
    known[60, 70] = False
    assert np.array_equal(np.isfinite(found[1]), known)
    (row,) = table(tmp_path / "hole" / "changes.csv")
    assert int(row["valid_px"]) == 80 * 96 - 1 and int(row["changed_px"]) > 0
    far = np.isfinite(found[0])
    far[36:, 46:94] = False
    assert np.abs(found[1] - found[0])[far].max() < 0.02  # what the stretch moves by


def test_a_detector_that_says_nan_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = build_detector("fc_siam_diff")
    with torch.no_grad():
        for weights in net.parameters():
            weights.fill_(3e38)
    save_detector(net, "fc_siam_diff", tmp_path / "net")
    files = write_tifs(tmp_path, 64, 64)
    arguments = ["--detector", str(tmp_path / "net"), "--out", str(tmp_path / "out")]
    assert run(["predict", *map(str, files), *arguments]) == 2
    assert "says NaN of" in capsys.readouterr().err


def test_images_that_are_no_pair_are_one_line(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write_tifs(tmp_path, 64, 64)
    with rasterio.open(second, "r+") as file:
        file.transform = from_origin(500_100, 5_000_000, 0.5, 0.5)
    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(small)
    out = ["--detector", str(detector), "--out", str(tmp_path / "out")]
    cases: list[tuple[list[str], str]] = [
        ([str(first), str(second)], r"t2\.tif: lies on other ground.*rio warp t2\.tif OUT\.tif --like t1\.tif"),
        ([str(first), str(small)], r"small\.png: 64x32 px, .*t1\.tif has 64x64"),
        ([str(first)], "one image; allowed: two, or a folder of pairs"),
        ([str(first), str(second), str(small)], "inputs are 3; allowed: a folder of pairs, or two images"),
        ([str(first), str(first), "--overlap", "400"], "overlap is 400; allowed: 0 to half of window"),
        ([str(first), str(first), "--bands", "[1,2]"], "allowed: 3 of them, which the detector reads"),
        ([str(tmp_path / "absent")], "absent: no such folder"),
    ]
    for arguments, message in cases:
        assert run(["predict", *arguments, *out]) == 2, arguments
        error = capsys.readouterr().err
        assert re.search(message, error), (arguments, error)
        assert "Traceback" not in error


def write_stretched(folder: Path, num_bands: int) -> Path:
    """A pair of 16 bits whose band b spans 1000 b to 1000 b + 999 from 0, and says so as the stretch of its set."""
    rng, lows = np.random.default_rng(0), [1000 * band for band in range(num_bands)]
    image = np.stack([rng.integers(low, low + 1000, (64, 64)) for low in lows]).astype(np.uint16)
    for date in "AB":
        (folder / date).mkdir(parents=True)
        with rasterio.open(
            folder / date / "p.tif", "w", driver="GTiff", height=64, width=64, count=num_bands, dtype="uint16"
        ) as target:
            target.write(image)
    stretch = {"low": lows, "high": [low + 1000 for low in lows]}
    (folder / "metadata.jsonl").write_text(json.dumps({"key": "p", "normalisation": stretch}) + "\n")
    return folder


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("num_bands", "asked"), [(3, None), (3, (3, 2, 1)), (4, None), (4, (4, 1, 4)), (1, None), (1, (1, 1, 1))]
)
def test_the_stretch_of_a_set_goes_with_the_bands_that_are_read(
    num_bands: int, asked: tuple[int, ...] | None, tmp_path: Path
) -> None:
    """Its entries are in the order of the file's bands, whatever is asked for: each band fills -1 to 1."""
    folder = write_stretched(tmp_path / "set", num_bands)
    options = PredictOptions(detector=tmp_path, inputs=(str(folder),), out=tmp_path / "out", bands=asked)
    _, pairs = open_pairs(options, 3)
    for date in next(pairs).read(Window(0, 0, 64, 64))[:2]:
        assert (np.abs(date.mean((1, 2))) < 0.05).all() and (date.std((1, 2)) > 0.5).all()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_bands_that_the_stretch_of_a_set_does_not_speak_of_are_refused(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_stretched(tmp_path / "set", 4)
    stretch = {"low": [0, 0, 0], "high": [1000, 2000, 3000]}
    (folder / "metadata.jsonl").write_text(json.dumps({"key": "p", "normalisation": stretch}) + "\n")
    arguments = ["predict", str(folder), "--detector", str(detector), "--out", str(tmp_path / "out")]
    assert run([*arguments, "--bands", "[4,3,2]"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"A/p\.tif: bands 4, 3, 2 are read, its set has a stretch of 3; allowed: --bands of 1 to 3", error)
    assert run(arguments) == 0


def test_two_pairs_of_one_name_are_refused_before_a_map_is_written(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a.jpg and a.png there would be one map, that of whichever came last."""
    rng = np.random.default_rng(0)
    for name in ("0.png", "a.png", "a.jpg"):
        for date in "AB":
            (tmp_path / "set" / date).mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "set" / date / name)
    out = tmp_path / "out"
    arguments = ["predict", str(tmp_path / "set"), "--detector", str(detector), "--out", str(out)]
    assert run(arguments) == 2
    assert (
        "set: a names two pairs (a.jpg, a.png), of which one map would be left; rename one" in capsys.readouterr().err
    )
    assert not list(out.rglob("*.*"))
    for date in "AB":
        (tmp_path / "set" / date / "a.jpg").rename(tmp_path / "set" / date / "b.jpg")
    assert run(arguments) == 0 and {file.stem for file in (out / "change").iterdir()} == {"0", "a", "b"}


def put_images(root: Path, files: list[str]) -> None:
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(root / file)


OSCD_IMAGES = [f"x - Images/{city}/pair/img{date}.png" for city in ("lima", "paris", "rome") for date in (1, 2)]
SYNTHEWORLD = [f"{folder}/{number}.png" for folder in ("pre_event", "images") for number in range(3)]
CHANGEN2 = [f"{folder}/{number}.png" for folder in ("t1_images", "t2_images") for number in range(3)]
HRSCD_SHEETS = [f"images_{year}/{year}/D14/14-{year}-0{n}-1-LA93.tif" for year in (2006, 2012) for n in range(3)]
FSC_TILES = [f"{folder}/IMG_{number}.tif" for folder in "AB" for number in range(3)]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("files", "label"),
    [
        (OSCD_IMAGES, "x - Train Labels/paris/cm/cm.png"),
        (SYNTHEWORLD, "cd_mask/1.png"),
        (CHANGEN2, "t1_masks/1.png"),
        (HRSCD_SHEETS, "labels_change/D14/14-2012-01-1-LA93.tif"),
        (FSC_TILES, "LBL/LBL_1.tif"),
    ],
    ids=["OSCD", "SyntheWorld", "Changen2", "HRSCD", "FSC"],
)
def test_pairs_without_labels_are_read_where_labels_are_not_asked_for(
    files: list[str], label: str, labelled: bool, tmp_path: Path
) -> None:
    """In every layout, those that have labels for some of their pairs alone among them."""
    put_images(tmp_path, [*files, label] if labelled else files)
    pairs = open_images(tmp_path)
    assert len(pairs) == 3
    assert {image for n in range(3) for image in pairs.images_of(n)} == {tmp_path / file for file in files}
    if labelled:
        assert len(load_pairs(tmp_path)) == 1


def test_splits_of_pairs_without_labels_are_those_that_the_set_says(tmp_path: Path) -> None:
    put_images(tmp_path, [*OSCD_IMAGES, "x - Train Labels/paris/cm/cm.png"])
    for split, cities in (("train", "paris,"), ("test", "lima,rome\n"), ("val", "")):
        (tmp_path / "x - Images" / f"{split}.txt").write_text(cities)
    assert open_images(tmp_path, "test").names == ("lima", "rome")
    assert open_images(tmp_path, "train").names == ("paris",)
    with pytest.raises(EmptySplitError, match="split 'val' is empty"):
        open_images(tmp_path, "val")
    (tmp_path / "x - Images" / "val.txt").write_text("oslo")
    with pytest.raises(PairsError, match=r"oslo.*: missing"):
        open_images(tmp_path, "val")
    whu = [
        f"{year}/whole_image/{split}/image/{year}_{split}.tif" for year in (2012, 2016) for split in ("train", "test")
    ]
    put_images(tmp_path / "whu", whu)
    assert open_images(tmp_path / "whu", "test").names == ("test",)


def test_scores_of_a_detector(detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the benchmark's own reading, by pair and in all; one pair has no change and no F1."""
    root = write_pairs(tmp_path / "pairs", 3)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(root / "test" / "label" / "test1.png")
    arguments = ["--detector", str(detector), str(root), "--split", "test", "--out", str(tmp_path / "out")]
    assert run(["evaluate", *arguments]) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    _, net = load_detector(detector)
    truth = evaluate_pairs(net, load_pairs(root, "test"), 2, torch.device("cpu"))
    assert list(record["pairs"].values()) == [scores.to_dict() for scores in truth]
    positives = sum(scores.true_positives for scores in truth)
    called = positives + sum(scores.false_positives for scores in truth)
    assert record["overall"]["precision"] == pytest.approx(positives / called)
    assert f"{record['overall']['f1']:.4f}" in said and "on 4 pairs" in said
    rows = table(tmp_path / "out" / "evaluation.csv")
    assert [row["key"] for row in rows] == ["test0", "test1", "test2", "test3", "all pairs"]
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert page.count('class="strip"') == 4 and not re.search(r'(src|href)="(?!data:|#o)', page)
    few = "20 pairs with a change are the least, here 3; 5 scenes with a change are the least, here 3"
    assert [figure["verdict"] for figure in record["figures"]] == [f"Too little to tell: {few}."] * 4
    listing = tmp_path / "some.txt"
    listing.write_text("test2\n")
    assert run(["evaluate", *arguments, "--listing", str(listing)]) == 0
    assert "on 1 pairs" in capsys.readouterr().out
    listing.write_text("test2\ntest3\ntest2.png\ntest2\n")  # what is named again counts once, wherever it is counted
    assert run(["evaluate", *arguments, "--listing", str(listing)]) == 0
    assert "on 2 pairs" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["overall"] == sum_of(truth[2:]).to_dict()
    shown = {figure["name"]: figure["value"] for figure in record["figures"]}
    assert shown["F1"] == pytest.approx(record["overall"]["f1"])
    for folder in ("A", "B", "label"):  # two pairs that differ in their suffix
        with Image.open(root / "test" / folder / "test2.png") as image:
            image.save(root / "test" / folder / "test1.tif")
    assert run(["evaluate", *arguments]) == 0
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["overall"] == sum_of([*truth, truth[2]]).to_dict() and {"test1.png", "test1.tif"} < {*record["pairs"]}
    assert run(["evaluate", "--detector", str(tmp_path), str(root), "--out", str(tmp_path / "out")]) == 2


def scores_of(rows: list[tuple[int, int, int, int]]) -> list[ChangeScores]:
    return [ChangeScores(*row) for row in rows]


def test_a_detector_stands_beside_guessing() -> None:
    """One that finds most is better, one that calls at random is not, and few pairs tell nothing."""
    rng = np.random.default_rng(0)
    good = scores_of([(80 + int(n), 20, 20 - int(n), 880) for n in rng.integers(-9, 10, 40)])
    figures = {figure.name: figure for figure in detector_figures(good, [str(n) for n in range(40)])}
    assert {figure.verdict for figure in figures.values()} == {"Higher than guessing, beyond chance."}
    assert list(figures) == ["precision", "recall", "F1", "IoU"]
    for name in ("precision", "recall", "f1", "iou"):
        figure = figures[NAMES[name]]
        assert figure.value == getattr(sum_of(good), name) and figure.ceiling is not None
        assert figure.low is not None and figure.high is not None and figure.low < figure.value < figure.high
    assert figures["precision"].ceiling == figures["IoU"].ceiling == pytest.approx(0.1)
    found = rng.binomial(100, 0.3, 60), rng.binomial(900, 0.3, 60)
    random = scores_of([(int(a), int(b), 100 - int(a), 900 - int(b)) for a, b in zip(*found, strict=True)])
    verdicts = {figure.name: figure.verdict for figure in detector_figures(random, [str(n) for n in range(60)])}
    assert verdicts["precision"] == verdicts["recall"] == "No difference to guessing that this many could show."
    assert {figure.few for figure in detector_figures(good, ["a", "b"] * 20)} == {
        "5 scenes with a change are the least, here 2"
    }
    silent = detector_figures(scores_of([(0, 0, 9, 91)] * 30), [str(n) for n in range(30)])
    said = {figure.name: figure.note for figure in silent if figure.withheld}
    assert said == dict.fromkeys(("precision", "F1"), "withheld: nothing was called changed")


@pytest.mark.parametrize("masked", [True, False])
def test_a_detector_on_a_set_of_16_bits_shows_worst_and_best(
    masked: bool, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, out = write_set(tmp_path / "set", 7, "uint16", masked), tmp_path / "out"
    name, net = load_detector(detector)  # made to call half of the ground changed
    with torch.no_grad():
        logits = net(
            *(torch.from_numpy(date).permute(2, 0, 1)[None] / 127.5 - 1 for date in rgb8(load_pairs(pairs)[0]))
        )
        [each for each in net.parameters() if each.shape == (2,)][-1][1] -= (logits[:, 1] - logits[:, 0]).median()
    save_detector(net, name, tmp_path / "net")
    arguments = ["evaluate", "--detector", str(tmp_path / "net"), str(pairs), "--num-panels", "6", "--out", str(out)]
    assert run(arguments) == 0, capsys.readouterr().err
    page, record = (out / "evaluation.html").read_text(), json.loads((out / "evaluation.json").read_text())
    shown = re.findall(r'<figure class="pair"><figcaption><b>(\w+)</b>', page)
    order = sorted(record["pairs"], key=lambda key: record["pairs"][key]["f1"])
    assert shown[:2] == order[:2] and shown[2:4] == order[:-3:-1] and len(set(shown)) == 6
    assert page.count('class="outline"') == 12 and page.count("prediction against label") == 12
    assert all(60 < image.mean() < 200 for image in pictures_of(page))
