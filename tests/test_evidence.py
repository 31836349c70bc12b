"""Labelled pairs as evidence: what changed is the class at date 2 and was not at date 1; what did not is as it was."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from changeanywhere.cli import run as command
from changeanywhere.errors import ConfigError, InputError, PairsError, SourceError
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.sources import JoinedSource
from changeanywhere.training.batches import CropDataset
from changeanywhere.training.command import open_training_source
from changeanywhere.training.complete import SAME, Complete, same_loss
from changeanywhere.training.evidence import Evidence
from changeanywhere.training.recipe import DataRecipe, Recipe, RunRecipe, SegmenterRecipe
from changeanywhere.training.segmenter import segmentation_loss, train_segmenter
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


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_crops_of_two_dates_reach_every_row(data: DataRecipe, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_training_source(data)
    complete = Complete(source, data)
    (before, _), (after, _) = complete.dates(FIRST)
    rows = np.arange(64)[:, None].repeat(64, 1)
    monkeypatch.setattr(complete, "dates", lambda tile: [(before, rows), (after, rows)])
    crops = CropDataset(source, 64, 0, scale, complete=complete)
    seen = [crops[FIRST, step, 0][1] for step in range(200)]
    assert all(torch.equal(mask[:32], mask[32:]) for mask in seen), "the same ground at both dates"
    assert min(int(mask.min()) for mask in seen) == 0 and max(int(mask.max()) for mask in seen) == 63


def test_changed_ground_is_the_class_at_date_2_and_none_of_it_at_date_1(data: DataRecipe, tmp_path: Path) -> None:
    source = open_training_source(data)
    complete = Complete(source, data)
    assert len(source) == FIRST + 6 and complete.sets[1].nonzero().flatten().tolist() == [BUILDING - 1]
    for number, file in enumerate(sorted((tmp_path / "pairs/train/label").iterdir())):
        changed = np.array(Image.open(file)) > 0
        nobody = np.array(Image.open(tmp_path / "pairs/train/ignore" / file.name)) > 0
        dates = complete.dates(FIRST + number)
        for (sample, learned), date, folder, expected in zip(dates, (1, 2), "AB", (-1, BUILDING), strict=True):
            assert np.array_equal(learned, np.where(nobody, 0, np.where(changed, expected, -SAME - 1)))
            shown = np.array(Image.open(tmp_path / "pairs/train" / folder / file.name))
            assert np.array_equal(sample.image, shown) and sample.date == date and sample.item.scene == f"train{number}"
        part = source.parts[1] if isinstance(source, JoinedSource) else source
        assert np.array_equal(part.read(number).image, dates[0][0].image)
        assert np.array_equal(part.read_second(number).image, dates[1][0].image)
        assert np.array_equal(part.read_mask(number) > 0, changed & ~nobody)
    own = source.read_mask(2)
    assert np.array_equal(complete.masks(2, own), own) and complete.dates(2) == []
    other = open_training_source(replace(data, evidence={next(iter(data.evidence)): "road"}))
    assert source.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("scale", [0.0, 0.4])
def test_a_crop_has_one_ground_at_both_dates(data: DataRecipe, scale: float, tmp_path: Path) -> None:
    """The first date above, the second below it; where the label changes, it changes in both halves at one place."""
    for file in (tmp_path / "pairs/train/A").iterdir():
        shutil.copyfile(file, tmp_path / "pairs/train/B" / file.name)
    source = open_training_source(data)
    crops = CropDataset(source, 32, 0, scale, complete=Complete(source, data))
    said = 0
    for step in range(24):
        image, mask = crops[FIRST + 1, step, 0]
        assert image.shape == (3, 32, 32) and mask.shape == (32, 32)
        above, below = mask[:16], mask[16:]
        assert torch.equal(above == -1, below == BUILDING) and torch.equal(above == -SAME - 1, below == -SAME - 1)
        assert ((above == -1) | (above == -SAME - 1)).all()
        said += int((above == -1).sum())
        assert torch.equal(image[:, :16], image[:, 16:]), "the same picture twice"
    assert said


def test_no_change_is_the_class_twice_or_never() -> None:
    sets = torch.zeros(2, 7, dtype=torch.bool)
    sets[1, BUILDING - 1] = True
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 4, 3, requires_grad=True)
    masks = torch.zeros(2, 4, 3, dtype=torch.long)
    masks[0, 0, :2] = masks[0, 2, :2] = -SAME - 1  # two places of the first crop, rows 0 and 2 of it
    masks[1, 1, 2] = -SAME - 1  # its other date is unknown
    masks[1, 0, 0], masks[1, 2, 0] = -1, BUILDING
    loss, count = same_loss(logits, masks, sets)
    p = logits.softmax(1)[:, BUILDING - 1]
    one, two = p[0, 0, :2], p[0, 2, :2]
    assert int(count) == 2 and torch.allclose(loss, -(one * two + (1 - one) * (1 - two)).log().sum(), rtol=1e-5)
    changed = -(1 - p[1, 0, 0]).log() - p[1, 2, 0].log()
    assert torch.allclose(segmentation_loss(logits, masks, sets).detach(), (loss + changed).detach() / 4, rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, BUILDING - 1, (0, 2), :2].abs().min() > 0 and not gradient[1].any()
    assert not gradient[:, [k for k in range(7) if k != BUILDING - 1]].any(), "which other class, nobody said"
    nothing, none = same_loss(logits, torch.zeros_like(masks), sets)
    assert float(nothing.detach()) == 0 and int(none) == 0


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
    flat, lists = tmp_path / "flat", tmp_path / "flat" / "list"
    shutil.copytree(Path(folder) / "train", flat)
    assert len(open_training_source(replace(data, evidence={str(flat): "building"}, evidence_split=None))) == FIRST + 6
    lists.mkdir()
    (lists / "test.txt").write_text("train0.png\n")
    with pytest.raises(
        ConfigError, match=r"flat has a test split, which would teach too; say which teaches \(data\.ev"
    ):
        open_training_source(replace(data, evidence={str(flat): "building"}, evidence_split=None))
    with pytest.raises(ConfigError, match=r"evidence_split is 'train', which does nothing while data\.evidence"):
        Recipe(replace(data, evidence={}), segmenter=SETTINGS).check("segmenter")
    source = open_training_source(data)
    with pytest.raises(InputError, match=r"train0: 64x64 px; allowed: crop_size, 96 px"):
        CropDataset(source, 96, 0, complete=Complete(source, data))[FIRST, 0, 0]
    with pytest.raises(SourceError, match=r"train0 is uint8 of 3 band\(s\); allowed: 8 bits, with band 4"):
        Evidence(folder, "building", source.legend, "train", (1, 2, 4)).read(0)
    given = ["train", "denoiser", "--data.source", data.source, "--data.evidence", f"{{{folder}: building}}"]
    assert command([*given, "--out", str(tmp_path / "run")]) == 2
    assert "--data.evidence: train denoiser does not read it" in capsys.readouterr().err
