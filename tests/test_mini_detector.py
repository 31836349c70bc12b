"""The embedded detector: what it is, what it finds, where its name is taken, and what it says of itself."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from safetensors.torch import load_file

import changeanywhere as ca
from changeanywhere.benchmark.trainings import handed_in
from changeanywhere.cli import run
from changeanywhere.errors import ConfigError
from changeanywhere.models.detectors.folder import load_detector, read_purpose
from changeanywhere.models.info import find_detector
from test_detector_training import write_pairs

MINI = find_detector("mini-detector")


def shares(out: Path) -> list[float]:
    """Of the ground of each pair, what was called changed."""
    return [float(line["share"]) for line in csv.DictReader((out / "changes.csv").read_text().splitlines())]


def write_tif(file: Path, image: np.ndarray, gsd: float) -> str:
    transform = from_origin(500_000, 2_000_000, gsd, gsd)
    with rasterio.open(
        file, "w", driver="GTiff", height=image.shape[0], width=image.shape[1], count=3, dtype="uint8",
        crs="EPSG:32643", transform=transform,
    ) as raster:  # fmt: skip
        raster.write(image.transpose(2, 0, 1))
    return str(file)


def test_size_format_and_card() -> None:
    weights, card = MINI / "model.safetensors", (MINI / "README.md").read_text()
    assert weights.stat().st_size <= 15e6
    assert {t.dtype for t in load_file(weights).values()} == {torch.float16, torch.int64}
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card, "the card is of these weights"
    for name in ("CC0-1.0", "CC-BY-4.0", "Apache-2.0", "doi:10.17632/xj2v49zt26.1", "efficientnet-lite0"):
        assert name in card
    name, net = load_detector(Path("mini-detector"))
    assert name == "siam_unet_lite0" and not net.training
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_it_says_what_it_is_not_for_and_the_card_agrees() -> None:
    purpose, card = read_purpose(Path("mini-detector")), (MINI / "README.md").read_text()
    assert purpose.gsd_m == (0.3, 1.0)
    assert purpose.about is not None and "demonstration" in purpose.about and "never a map" in purpose.about
    assert "precision 12 %" in purpose.about and "| precision | **12.0 %** |" in card


@pytest.mark.numerical
def test_it_finds_houses_that_come_and_go(tmp_path: Path) -> None:
    """Pasted ones, on tiles that it was not trained on: two and more times what guessing gets."""
    pairs, out = tmp_path / "pairs", tmp_path / "out"
    command = ["generate", "--config", "houses", "--method", "copy_paste", "--source", "examples", "--num-pairs", "12"]
    assert run([*command, "--out", str(pairs)]) == 0
    assert run(["evaluate", "--detector", "mini-detector", str(pairs), "--out", str(out)]) == 0
    scores = json.loads((out / "evaluation.json").read_text())["overall"]
    changed = scores["true_positives"] + scores["false_negatives"]
    total = changed + scores["false_positives"] + scores["true_negatives"]
    assert scores["f1"] > 2 * (2 * changed / (total + changed)), "all called changed"
    assert scores["recall"] > 0.3


def test_two_images_and_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tile = ca.load_source("examples")[8].image
    files = [str(tmp_path / f"{name}.png") for name in ("one", "two")]
    for file in files:
        Image.fromarray(tile).save(file)
    command = ["predict", "--detector", "mini-detector", *files, "--out", str(tmp_path / "same")]
    assert run(command) == 0
    said = capsys.readouterr()
    assert "mini-detector: a demonstration" in said.out and "ground sampling" not in said.err
    assert shares(tmp_path / "same") == [0.0], "an image beside itself"
    with Image.open(tmp_path / "same" / "change.png") as change:
        assert change.size == tile.shape[1::-1]
    assert run([*command[:-1], str(tmp_path / "quiet"), "--quiet"]) == 0
    assert "demonstration" not in capsys.readouterr().out


def test_two_rasters_that_are_too_coarse_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tile = ca.load_source("examples")[8].image
    for gsd, warned in ((0.5, False), (1.2, False), (10.0, True)):
        files = [write_tif(tmp_path / f"{name}-{gsd}.tif", tile, gsd) for name in ("one", "two")]
        out = tmp_path / f"out-{gsd}"
        assert run(["predict", "--detector", "mini-detector", *files, "--out", str(out)]) == 0
        told = "a ground sampling of 10 m; the detector knows 0.3 to 1 m"
        assert (told in capsys.readouterr().err) is warned
        with rasterio.open(out / "change.tif") as change, rasterio.open(files[0]) as first:
            assert change.crs == first.crs and change.transform == first.transform


def test_it_is_a_start_for_training_and_an_arm_of_a_benchmark(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    command = ["train", "detector", "--init", "mini-detector", "--detector.name", "siam_unet_lite0"]
    command += ["--detector.pairs", str(pairs), "--detector.num-steps", "1", "--detector.crop-size", "32"]
    command += ["--detector.batch-size", "2", "--detector.learning-rate", "1e-9", "--detector.warmup-steps", "0"]
    command += ["--detector.val-split", "null", "--run.num-workers", "0", "--out", str(tmp_path / "run")]
    assert run(command) == 0
    tuned, start = (load_detector(place)[1] for place in (tmp_path / "run" / "detector", MINI))
    for one, other in zip(tuned.parameters(), start.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert read_purpose(tmp_path / "run" / "detector").about is None, "it is another one now"
    assert handed_in("mini-detector", "siam_unet_lite0", 3) == MINI
    with pytest.raises(ConfigError, match="mini-detector: holds a siam_unet_lite0; detectors has changer_ex_r18"):
        handed_in("mini-detector", "changer_ex_r18", 0)


def test_check_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(MINI)]) == 0
    said = capsys.readouterr().out
    assert "a demonstration" in said and f"changeanywhere predict --detector {MINI} T1 T2" in said


def test_wrong_ones_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "a.png", "b.png", "--out", str(tmp_path / "out"), "--detector"]
    assert run([*arguments, "mini-detektor"]) == 2
    assert "mini-detektor: no such detector; allowed: mini-detector, or" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(MINI, copy)
    content = json.loads((copy / "detector.json").read_text())
    wrong = ({"about": 3}, {"about": "x" * 301}, {"gsd_m": [1.0]}, {"gsd_m": [1.0, 0.3]})
    for change in wrong:
        (copy / "detector.json").write_text(json.dumps(content | change))
        assert run([*arguments, str(copy)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"detector.json: {next(iter(change))} is" in said
