"""Segmenters and class rasters of others: transformers' models, modules of other packages, folders of predictions."""

from __future__ import annotations

import json
import unicodedata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from PIL import Image
from rasterio.transform import Affine
from torch import Tensor, nn

from changeanywhere.cli import run
from changeanywhere.errors import ConfigError, ModelError
from changeanywhere.labelling import networks
from changeanywhere.labelling.networks import ForeignSegmenter, open_network
from changeanywhere.labelling.options import LabelOptions
from changeanywhere.legend import LegendMap, parse_legend
from changeanywhere.sources import open_source
from changeanywhere.sources.options import SourceOptions

CPU = torch.device("cpu")
MERGED = {"classes": ["building", "ground"]}
MAP = "house: building\nshed: building\nlawn: ground\nclouds: unknown\n"


class SemanticSegmentationTask(nn.Module):
    """As torchgeo's: a module whose call gives logits. (torchgeo needs torchvision, so this stands for it.) Bright is a
    house, dark a lawn."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.model.weight.copy_(torch.tensor([20.0, 20.0, -20.0])[:, None, None, None].expand(3, 3, 1, 1))
            self.model.bias.copy_(torch.tensor([-30.0, -29.0, 30.0]))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Logits at half the size."""
        logits: Tensor = self.model(x[..., ::2, ::2])
        return logits


def stub() -> ForeignSegmenter:
    return ForeignSegmenter(SemanticSegmentationTask(), ["house", "shed", "lawn"], (0, 0, 0), (1, 1, 1))


def tiles(tmp_path: Path, names: tuple[str, ...] = ("a", "b")) -> Path:
    """Dark, with a bright square."""
    folder = tmp_path / "tiles" / "images"
    folder.mkdir(parents=True)
    for name in names:
        image = np.full((64, 64, 3), 30, np.uint8)
        image[16:40, 16:40] = 230
        Image.fromarray(image).save(folder / f"{name}.png")
    return tmp_path / "tiles"


def opened(folder: Path) -> Any:
    return open_source(folder, SourceOptions(tile_size=64))


def test_a_module_of_another_package_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("roofs", "test_foreign_segmenters:stub", networks.GROUP)
    monkeypatch.setattr(networks, "entry_points", lambda group: [entry])
    legend, mapping = tmp_path / "legend.json", tmp_path / "map.yaml"
    legend.write_text(json.dumps(MERGED))
    mapping.write_text(MAP)
    out = tmp_path / "labelled"
    named = ["--legend", str(legend), "--legend-map", str(mapping), "--cleaning.radius", "0"]
    assert run(["label", "--source", str(tiles(tmp_path)), "--segmenter", "roofs", "--out", str(out), *named]) == 0
    source = opened(out)
    mask = source.read(0).mask
    assert source.legend.names == ("building", "ground")
    assert (mask[18:38, 18:38] == 1).all() and (mask[:12] == 2).all() and set(np.unique(mask)) == {1, 2}
    assert source.read(0).item.labelled_by.startswith("roofs ")
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == 2 and "nobody has looked" in page and "building" in page


def test_probabilities_of_classes_that_become_one_add_up_and_unknown_is_what_is_missing() -> None:
    net = ForeignSegmenter(SemanticSegmentationTask(), ["house", "clouds", "lawn"], (0, 0, 0), (1, 1, 1))
    target = parse_legend(MERGED, "here")[0]
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    apart = net(images)
    map_file = {"house": "building", "clouds": "unknown", "lawn": "building"}
    together = net.mapped(LegendMap.from_names(net.legend, target, map_file, "here"))(images)
    assert together.shape == (1, 2, 32, 32)
    torch.testing.assert_close(together[:, 0], apart[:, 0] + apart[:, 2])
    torch.testing.assert_close(together[:, 1], torch.zeros(1, 32, 32))


def test_ground_that_is_most_likely_unknown_stays_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a class that the map calls unknown, whatever is likely beside it."""
    monkeypatch.setattr(networks, "entry_points", lambda group: [EntryPoint("roofs", "x:y", group)])
    monkeypatch.setattr(EntryPoint, "load", lambda self: stub)
    legend, mapping = tmp_path / "legend.json", tmp_path / "map.yaml"
    legend.write_text(json.dumps(MERGED))
    mapping.write_text("house: unknown\nshed: unknown\nlawn: ground\n")
    out = tmp_path / "labelled"
    named = ["--legend", str(legend), "--legend-map", str(mapping)]
    assert run(["label", "--source", str(tiles(tmp_path)), "--segmenter", "roofs", "--out", str(out), *named]) == 0
    mask = opened(out).read(0).mask
    assert (mask[20:36, 20:36] == 0).all() and (mask[:8] == 2).all()


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 3)])
def test_what_gives_no_logits_of_its_classes_is_named(shape: tuple[int, ...]) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(shape)

    with pytest.raises(ModelError, match="expected logits"):
        ForeignSegmenter(Other(), ["a", "b", "c"])(torch.zeros(1, 3, 32, 32))


def test_a_package_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(networks, "entry_points", lambda group: [EntryPoint("broken", "no.such:thing", group)])
    with pytest.raises(ConfigError, match="segmenter 'broken'"):
        open_network(LabelOptions(source=tmp_path, out=tmp_path / "o", segmenter=Path("broken")), CPU)


def test_class_rasters_of_another_model_are_cleaned_and_marked(tmp_path: Path, capsys: Any) -> None:
    source, rasters, out = tiles(tmp_path), tmp_path / "predicted", tmp_path / "labelled"
    rasters.mkdir()
    for file in ("a.png", "b_mask.png"):
        mask = np.full((64, 64), 3, np.uint8)
        mask[16:40, 16:40], mask[50, 50], mask[60:, 60:] = 1, 2, 0  # a house, a crumb, ground without a class
        Image.fromarray(mask).save(rasters / file)
    command = ["label", "--source", str(source), "--predictions", str(rasters), "--out", str(out)]
    assert run(command) == 2 and "legend.json" in capsys.readouterr().err
    (rasters / "legend.json").write_text(json.dumps({"classes": ["house", "shed", "lawn"]}))
    assert run(command) == 0
    source_of = opened(out)
    for number in range(2):
        sample = source_of.read(number)
        assert (sample.mask[18:38, 18:38] == 1).all() and sample.mask[50, 50] == 3 and sample.mask[63, 63] == 0
        assert sample.item.labelled_by.startswith("predictions predicted ")
    assert run([*command, "--flips", "false"]) == 2 and "flips" in capsys.readouterr().err
    (rasters / "b_mask.png").unlink()
    again = [*command[:-1], str(tmp_path / "again")]
    assert run(again) == 2 and "no class raster" in capsys.readouterr().err
    Image.fromarray(mask[:32]).save(rasters / "b.png")
    assert run([*command[:-1], str(tmp_path / "third")]) == 2 and "resample" in capsys.readouterr().err


def test_footprints_in_unknown_ground_stay_whole(tmp_path: Path) -> None:
    """Their class is the first, and the one whose objects are kept or dropped whole."""
    source, rasters, out = tiles(tmp_path), tmp_path / "predicted", tmp_path / "labelled"
    rasters.mkdir()
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 16:40] = 1
    for name in ("a", "b"):
        Image.fromarray(mask).save(rasters / f"{name}.png")
    (rasters / "legend.json").write_text(json.dumps({"classes": ["building"]}))
    assert run(["label", "--source", str(source), "--predictions", str(rasters), "--out", str(out)]) == 0
    assert np.array_equal(np.asarray(Image.open(out / "masks" / "a.png")), mask)


@pytest.mark.parametrize("change", ["map", "legend"])
def test_rasters_that_mean_something_else_now_are_not_mixed(change: str, tmp_path: Path, capsys: Any) -> None:
    source, rasters, out = tiles(tmp_path), tmp_path / "predicted", tmp_path / "labelled"
    rasters.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.full((64, 64), 2, np.uint8)).save(rasters / f"{name}.png")
    legend, mapping, merged = rasters / "legend.json", tmp_path / "map.yaml", tmp_path / "merged.json"
    legend.write_text(json.dumps({"classes": ["house", "lawn"]}))
    mapping.write_text("house: building\nlawn: ground\n")
    merged.write_text(json.dumps(MERGED))
    command = ["label", "--source", str(source), "--predictions", str(rasters), "--out", str(out)]
    command += ["--legend", str(merged), "--legend-map", str(mapping)] if change == "map" else []
    assert run(command) == 0
    (out / "masks" / "b.png").unlink()
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    if change == "map":
        mapping.write_text("house: building\nlawn: unknown\n")
    else:
        legend.write_text(json.dumps({"classes": ["lawn", "house"]}))
    capsys.readouterr()
    assert run(command) == 2
    assert "begun with other classes or another legend map" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    mapping.write_text("house: building\nlawn: ground\n")
    legend.write_text(json.dumps({"classes": ["house", "lawn"]}))
    begun = json.loads((out / "label.json").read_text())
    del begun["meaning"]  # as an earlier edition wrote it
    (out / "label.json").write_text(json.dumps(begun))
    assert run(command) == 0


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_class_rasters_are_found_under_any_form_of_their_accents(form: Any, tmp_path: Path) -> None:
    """As archives of a Mac have them, and as others have."""
    source, rasters = tiles(tmp_path, (unicodedata.normalize("NFD", "dé"),)), tmp_path / "predicted"
    rasters.mkdir()
    (rasters / "legend.json").write_text(json.dumps({"classes": ["house", "lawn"]}))
    Image.fromarray(np.full((64, 64), 2, np.uint8)).save(rasters / f"{unicodedata.normalize(form, 'dé')}.png")
    assert run(["label", "--source", str(source), "--predictions", str(rasters), "--out", str(tmp_path / "out")]) == 0


def test_a_class_raster_of_other_ground_is_refused(tmp_path: Path, capsys: Any) -> None:
    images, rasters = tmp_path / "tiles" / "images", tmp_path / "predicted"
    images.mkdir(parents=True)
    rasters.mkdir()
    (rasters / "legend.json").write_text(json.dumps({"classes": ["house", "lawn"]}))
    for file, east, bands in ((images / "a.tif", 500_000, 3), (rasters / "a.tif", 600_000, 1)):
        place = {"crs": "EPSG:32614", "transform": Affine(0.5, 0, east, 0, -0.5, 4_000_000)}
        with rasterio.open(file, "w", "GTiff", 64, 64, bands, dtype="uint8", **place) as opened_file:
            opened_file.write(np.ones((bands, 64, 64), np.uint8))
    command = [
        "label",
        "--source",
        str(tmp_path / "tiles"),
        "--predictions",
        str(rasters),
        "--out",
        str(tmp_path / "o"),
    ]
    assert run(command) == 2
    assert "predicted/a.tif: lies on other ground than its image" in capsys.readouterr().err


def segformer(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
    torch.manual_seed(0)
    settings = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[4, 2], hidden_sizes=[8, 16], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
        id2label={0: "house", 1: "shed", 2: "lawn"}, label2id={"house": 0, "shed": 1, "lawn": 2},
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(settings).save_pretrained(folder)
    return folder


def test_a_transformers_model_labels(tmp_path: Path, capsys: Any) -> None:
    folder = segformer(tmp_path / "net")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}))
    net, called = open_network(LabelOptions(source=tmp_path, out=tmp_path / "o", segmenter=folder), CPU)
    images = torch.rand(1, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        found = net(images)
        own = net.net((images + 1) / 2).logits.softmax(1)
    assert found.shape == (1, 3, 64, 96) and net.legend.names == ("house", "shed", "lawn") and called.startswith("net ")
    torch.testing.assert_close(found.sum(1), torch.ones(1, 64, 96))
    torch.testing.assert_close(F.avg_pool2d(found, 4), own, rtol=0, atol=0.05)
    out = tmp_path / "labelled"
    sure = ["--cleaning.min-confidence", "0"]
    assert run(["label", "--source", str(tiles(tmp_path)), "--segmenter", str(folder), "--out", str(out), *sure]) == 0
    assert (opened(out).read(0).mask > 0).all()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert run(["label", "--source", str(tmp_path / "tiles"), "--segmenter", str(folder), "--out", "x"]) == 2
    assert "can run code" in capsys.readouterr().err


def test_other_models_of_transformers_are_refused(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    command = ["label", "--source", str(tiles(tmp_path)), "--segmenter", str(tmp_path / "net"), "--out", "x"]
    assert run(command) == 2 and "ForSemanticSegmentation" in capsys.readouterr().err
    legend = ["--legend", "mini", "--segmenter", "mini-segmenter"]
    assert run(["label", "--source", str(tmp_path / "tiles"), *legend, "--out", "x"]) == 2
    assert "legend is mini" in capsys.readouterr().err
