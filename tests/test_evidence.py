"""Labelled pairs as evidence: what changed is the class at date 2, was not at date 1, and nothing else is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from changeanywhere.cli import run as command
from changeanywhere.errors import ConfigError, InputError, PairsError, SourceError
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.training.batches import CropDataset
from changeanywhere.training.command import open_training_source
from changeanywhere.training.complete import Complete
from changeanywhere.training.evidence import Evidence
from changeanywhere.training.recipe import DataRecipe, Recipe, RunRecipe, SegmenterRecipe
from changeanywhere.training.segmenter import train_segmenter
from conftest import write_source
from test_detector_training import write_pairs

BUILDING, FIRST = 4, 6  # the first tile of the pairs: six tiles have masks
SETTINGS = SegmenterRecipe(
    backbone="unet", crop_size=32, batch_size=8, num_steps=60, warmup_steps=0, learning_rate=3e-3, colour_jitter=0.0
)


@pytest.fixture
def data(tmp_path: Path) -> DataRecipe:
    pairs = write_pairs(tmp_path / "pairs", 6)
    ignored = pairs / "train" / "ignore"
    ignored.mkdir()
    for number, file in enumerate(sorted((pairs / "train" / "label").iterdir())):
        nobody = np.zeros((64, 64), np.uint8)
        label = np.array(Image.open(file))
        if number == 0:
            nobody[:32] = 255
        Image.fromarray(np.where(nobody > 0, 0, label).astype(np.uint8)).save(file)
        Image.fromarray(nobody).save(ignored / file.name)
    return DataRecipe(
        source=str(write_source(tmp_path / "tiles")),
        tile_size=64,
        evidence={str(pairs): "building"},
        evidence_split="train",
    )


def test_changed_ground_is_the_class_at_date_2_and_none_of_it_at_date_1(data: DataRecipe, tmp_path: Path) -> None:
    source = open_training_source(data)
    complete = Complete(source, data)
    assert len(source) == FIRST + 2 * 6 and complete.sets[1].nonzero().flatten().tolist() == [BUILDING - 1]
    for number, file in enumerate(sorted((tmp_path / "pairs/train/label").iterdir())):
        changed = np.array(Image.open(file)) > 0
        for date, folder, expected in ((1, "A", -1), (2, "B", BUILDING)):
            tile = FIRST + 2 * number + date - 1
            sample = source.read(tile)
            learned = complete.masks(tile, sample.mask)
            assert np.array_equal(learned, np.where(changed, expected, 0))
            shown = np.array(Image.open(tmp_path / "pairs/train" / folder / file.name))
            assert np.array_equal(sample.image, shown) and sample.date == date
    own = source.read_mask(2)
    assert np.array_equal(complete.masks(2, own), own)
    assert {item.scene for item in source.items[FIRST : FIRST + 2]} == {"train0"}, "both dates of a pair are one scene"
    other = open_training_source(replace(data, evidence={next(iter(data.evidence)): "road"}))
    assert source.fingerprint() != other.fingerprint()


def test_a_segmenter_hears_it(data: DataRecipe, tmp_path: Path) -> None:
    """Bright squares are buildings at date 2; the same ground at date 1, and without evidence neither, is not."""

    def read(evidence: dict[str, str]) -> list[float]:
        asked = replace(data, evidence=evidence, evidence_split="train" if evidence else None)
        recipe = Recipe(asked, segmenter=SETTINGS, run=RunRecipe(num_workers=0, seed=1))
        out = tmp_path / f"run{len(evidence)}"
        net = Segmenter.load(train_segmenter(open_training_source(asked), recipe, out)).eval()
        found = []
        for folder in "AB":
            image = np.array(Image.open(tmp_path / "pairs/test" / folder / "test0.png"))
            changed = np.array(Image.open(tmp_path / "pairs/test/label/test0.png")) > 0
            with torch.no_grad():
                pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
                found.append(float(net(pixels).softmax(1)[0, BUILDING - 1][torch.from_numpy(changed)].mean()))
        return found

    before, after = read(data.evidence)
    assert after > 0.5 > 0.2 > before
    assert read({})[1] < after - 0.2, "bright noise is no building to who was not told"


def test_what_cannot_be_is_one_line(data: DataRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = next(iter(data.evidence))
    with pytest.raises(ConfigError, match=r"data\.evidence: .*: castle; allowed: bareland, "):
        open_training_source(replace(data, evidence={folder: "castle"}))
    with pytest.raises(PairsError, match="no such folder"):
        open_training_source(replace(data, evidence={str(tmp_path / "nowhere"): "building"}))
    with pytest.raises(ConfigError, match=r"evidence_split is 'train', which does nothing while data\.evidence"):
        Recipe(replace(data, evidence={}), segmenter=SETTINGS).check("segmenter")
    source = open_training_source(data)
    with pytest.raises(InputError, match=r"train0__t1: 64x64 px; allowed: crop_size, 96 px"):
        CropDataset(source, 96, 0, complete=Complete(source, data))[FIRST, 0, 0]
    with pytest.raises(SourceError, match=r"train0 is uint8 of 3 band\(s\); allowed: 8 bits, with band 4"):
        Evidence(folder, "building", source.legend, "train", (1, 2, 4)).read(0)
    given = ["train", "denoiser", "--data.source", data.source, "--data.evidence", f"{{{folder}: building}}"]
    assert command([*given, "--out", str(tmp_path / "run")]) == 2
    assert "--data.evidence: train denoiser does not read it" in capsys.readouterr().err
