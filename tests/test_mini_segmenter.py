"""The embedded segmenter: what it is, what it reads, where its name is taken; crops that pass a first stage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import changeanywhere as ca
from changeanywhere.cli import run as command
from changeanywhere.errors import ModelError, OutputError
from changeanywhere.evaluation.scores import Confusion
from changeanywhere.models.efficientnet import EfficientNetLite1, find_weights
from changeanywhere.models.folder import load_first_stage, load_model
from changeanywhere.models.info import find_model, find_segmenter
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.training.batches import CropDataset, resized
from changeanywhere.training.decoded import Decoded, draw
from changeanywhere.training.recipe import DataRecipe, Recipe, RunRecipe, SegmenterRecipe
from changeanywhere.training.segmenter import train_segmenter
from conftest import write_source

MINI = find_segmenter("mini-segmenter")
EXAMPLES = Path(str(resources.files("changeanywhere") / "assets" / "examples"))
RECIPES = Path(__file__).parents[1] / "recipes"


def test_size_legend_and_licence() -> None:
    net, weights = Segmenter.load(MINI), MINI / "model.safetensors"
    assert weights.stat().st_size <= 10e6
    assert net.legend.names == ca.load_legend("mini").names
    card = (MINI / "README.md").read_text()
    assert "CC0-1.0" in card and "CC-BY-4.0" in card and "Apache-2.0" in card


def test_it_is_not_the_judge() -> None:
    judge, mini = (yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) for name in ("judge", "mini-segmenter"))
    assert mini["segmenter"]["backbone"] == Segmenter.load(MINI).backbone != judge["segmenter"]["backbone"]
    assert mini["run"]["seed"] != judge["run"].get("seed", RunRecipe().seed)
    assert mini["data"]["licences"] == ["CC0-1.0", "CC-BY-4.0"]


@pytest.mark.numerical
def test_it_reads_raw_and_decoded_tiles() -> None:
    """The twelve examples, which it was not trained on."""
    net, first_stage, source = Segmenter.load(MINI), load_model(find_model("mini")).first_stage, open_source(EXAMPLES)
    samples = [source.read(i) for i in range(len(source))]
    images = torch.from_numpy(np.stack([sample.pixels() for sample in samples])).permute(0, 3, 1, 2)
    with torch.no_grad():
        decoded = first_stage.decode(first_stage.encode(images))
    for pixels, floor in ((images, 0.36), (decoded, 0.34)):
        confusion = Confusion(source.legend.num_classes)
        for sample, read in zip(samples, net.read(pixels), strict=True):
            confusion.add(sample.mask, read.numpy())
        assert confusion.mean_iou() > floor


def test_the_filter_takes_it_by_name(source_folder: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    arguments = ["generate", "--source", str(source_folder), "--model", str(tiny_model_folder), "--tile-size", "64"]
    arguments += ["--num-steps", "2", "--num-pairs", "4", "--filter.model", "mini-segmenter"]
    assert command([*arguments, "--filter.action", "score", "--out", str(tmp_path / "set")]) == 0
    pairs = ca.load_pairs(tmp_path / "set")
    scores = [pairs[i].metadata["fidelity"] for i in range(len(pairs))]
    assert len(scores) == 4 and all(0 <= score <= 1 for score in scores)
    job = json.loads((tmp_path / "set" / "plan" / "job.json").read_text())
    assert job["finishing"]["filter"]["model"] == "mini-segmenter", "a name, that holds on every machine"
    assert command([*arguments, "--filter.action", "score", "--out", str(tmp_path / "set")]) == 0, "finished"


def test_whoever_filters_does_not_judge(
    source_folder: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, reader, pairs = tmp_path / "copy", tmp_path / "reader", tmp_path / "pairs"
    shutil.copytree(MINI, copy)
    Segmenter("unet", ca.load_legend("mini")).save(reader)
    ca.generate(source_folder, pairs, model=str(tiny_model_folder), num_pairs=4, tile_size=64, num_steps=2)
    judging = ["evaluate", "--out", str(tmp_path / "out"), "--pairs"]
    for judge in ("mini-segmenter", str(copy)):
        assert command([*judging, str(pairs), "--judge", judge]) == 2
        assert "the package's own segmenter" in capsys.readouterr().err
    assert command(["check", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "--filter.model mini-segmenter" in said and "--judge" not in said
    generating = ["generate", "--source", str(source_folder), "--model", str(tiny_model_folder), "--tile-size", "64"]
    generating += ["--num-steps", "2", "--num-pairs", "4", "--filter.model", str(reader), "--filter.min-score", "0"]
    assert command([*generating, "--out", str(tmp_path / "filtered")]) == 0
    assert command([*judging, str(tmp_path / "filtered"), "--judge", str(reader)]) == 2
    assert "was not filtered" in capsys.readouterr().err


def test_a_segmenter_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(tmp_path / "source")
    arguments = ["generate", "--source", str(source), "--tile-size", "64", "--out", str(tmp_path / "out")]
    assert command([*arguments, "--filter.model", "mini-segmentor"]) == 2
    assert "mini-segmentor: no segmenter" in capsys.readouterr().err


def test_lite1_has_the_shape_of_the_published_file() -> None:
    """Strict loading: every block where the paper's depth has one, none besides."""
    net = EfficientNetLite1(find_weights("lite1")).eval()
    with torch.no_grad():
        maps = net.pyramid(torch.zeros(1, 3, 64, 64))
    assert [tuple(one.shape[1:]) for one in maps] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]


def test_frozen_levels_stay_as_they_are() -> None:
    """Weights and statistics of the two finest levels; the next level learns."""
    net = Segmenter("lite1", ca.load_legend("mini"))
    net.freeze(2)
    net.train()
    before = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 0.01)
    net(torch.rand(2, 3, 64, 64) * 2 - 1).square().mean().backward()
    optimizer.step()
    after = net.encoder.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {
        name for name in before if name.startswith(("_conv_stem.", "_bn0.", *(f"_blocks.{i}." for i in range(4))))
    }
    assert frozen <= same and not any(name.startswith("_blocks.4.") for name in same)


def test_half_precision_is_half_the_size_and_reads_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Segmenter("unet", ca.load_legend("mini")).eval()
    net.save(tmp_path / "whole")
    net.save(tmp_path / "half", half_precision=True)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert 0.5 <= sizes[1] / sizes[0] < 0.52
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(net(images), Segmenter.load(tmp_path / "half")(images), atol=0.02)


def test_decoded_crops_are_what_the_first_stage_makes_of_them(tiny_model_folder: Path) -> None:
    names = ["mini", str(tiny_model_folder / "first_stage")]
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    decoded = Decoded(names, torch.device("cpu"))
    drawn = draw(0.5, 2, 16, 3, 0)
    result = decoded(images, drawn, range(16))
    seen = set()
    for row in range(16):
        if not drawn.passes[row]:
            assert torch.equal(result[row], images[row])
            continue
        seen.add((drawn.first_stage[row], drawn.quantised[row]))
        first_stage = decoded.first_stages[drawn.first_stage[row]]
        with torch.no_grad():
            raw = first_stage.encode_raw(images[row : row + 1])
            codes = first_stage.quantise(raw)[0] if drawn.quantised[row] else raw
            expected = first_stage.decode_codes(codes).clamp(-1, 1)[0]
        near = (result[row] - expected).abs() <= 0.1  # rounded to bfloat16 a code may be its neighbour's
        assert near.float().mean() > 0.97 and not torch.equal(result[row], images[row])
    assert len(seen) == 4, "both first stages, quantised and not"
    counts = [sum(draw(0.25, 2, 64, 0, step).passes) for step in range(20)]
    assert 0.2 < sum(counts) / (20 * 64) < 0.3


def test_a_scaled_crop_keeps_image_and_mask_together(source_folder: Path) -> None:
    source = open_source(source_folder, SourceOptions(tile_size=64))
    plain, scaled = CropDataset(source, 32, 0), CropDataset(source, 32, 0, scale=0.5)
    colours = source.legend.palette()
    for row in range(6):
        image, mask = scaled[row, 0, row]
        assert image.shape == (3, 32, 32) and mask.shape == (32, 32) and mask.dtype == torch.int64
        # Colours of this source follow the mask, with noise: they still do where the mask is of one class.
        for label in mask.unique().tolist():
            where = mask == label
            if label and where.sum() > 60:
                grey = (image[:, where].mean(1) + 1) * 127.5
                assert np.allclose(grey.numpy(), colours[label] // 2 + 60, atol=25)
    assert any(not torch.equal(plain[0, 0, row][0], scaled[0, 0, row][0]) for row in range(4))
    image, mask = plain[0, 0, 0]
    assert resized(image, mask, (32, 32))[0] is image, "a crop of its own size is nobody's business"


def test_training_on_decoded_crops_resumes_and_knows_its_first_stage(tiny_model_folder: Path, tmp_path: Path) -> None:
    source, other = write_source(tmp_path / "source"), tmp_path / "other"
    shutil.copytree(tiny_model_folder, other)
    settings = SegmenterRecipe(
        backbone="unet", crop_size=32, batch_size=4, num_steps=6, decoded=0.5, first_stage=[str(other)], scale=0.2,
        half_precision=True,
    )  # fmt: skip
    recipe = Recipe(
        DataRecipe(source=str(source), tile_size=64), segmenter=settings, run=RunRecipe(num_workers=0, save_every=3)
    )
    tiles = open_source(source, SourceOptions(tile_size=64))
    whole = Segmenter.load(train_segmenter(tiles, recipe, tmp_path / "whole")).state_dict()
    train_segmenter(tiles, replace(recipe, segmenter=replace(settings, num_steps=3)), tmp_path / "broken")
    state = torch.load(tmp_path / "broken/training/segmenter/checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    second = train_segmenter(tiles, recipe, tmp_path / "broken")
    for name, value in Segmenter.load(second).state_dict().items():
        assert value.shape == whole[name].shape and bool(torch.isfinite(value).all())
    moved = shutil.copytree(other, tmp_path / "moved")
    train_segmenter(tiles, replace(recipe, segmenter=replace(settings, first_stage=[str(moved)])), tmp_path / "broken")
    file = other / "first_stage" / "latent_statistics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"latent_mean": [0, 0, 0]}))
    with pytest.raises(OutputError, match=r"data\.content"):
        train_segmenter(tiles, recipe, tmp_path / "broken")
    wrong = replace(recipe, segmenter=replace(settings, first_stage=[str(tmp_path / "source")]))
    with pytest.raises(ModelError, match="no first stage"):
        train_segmenter(tiles, wrong, tmp_path / "never")
    assert load_first_stage(tiny_model_folder / "first_stage") is not None
