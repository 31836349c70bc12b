"""Sets in other layouts, each read back by its reader, or by that reader's public rules where it cannot be installed
here: torchgeo, Open-CD and torchange need torchvision, of which there is no build beside our torch; no code of
ultralytics is used."""

from __future__ import annotations

import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from PIL import Image
from rasterio import features

import changeanywhere as ca
from changeanywhere.cli import run
from changeanywhere.errors import LegendError, OutputError, PairsError
from changeanywhere.exporting import renewed
from changeanywhere.exporting.export import export
from changeanywhere.exporting.options import IN_TABLES, LAYOUT_NAMES, ExportOptions
from changeanywhere.exporting.registry import EXPORTERS
from changeanywhere.exporting.shapes import shapes_of
from changeanywhere.legend import load_legend
from changeanywhere.pairs.names import SPLITS, FileKinds
from changeanywhere.pairs.semantics import classes_of
from changeanywhere.pairs.writer import finalise, write_pair
from changeanywhere.sample import ChangePair, GeoReference, change_mask_of, rgb8
from changeanywhere.storage import LocalStore, part_of
from test_detector_training import write_pairs
from test_pairs import counted_from_zero, make_record

LEGEND = load_legend("mini")
BUILDING, ROAD, UNKNOWN = LEGEND.index_of("building"), LEGEND.index_of("road"), 0
HUB = {"train": "train", "val": "validation", "test": "test"}


def make_pair(key: str, seed: int) -> ChangePair:
    """Buildings that vanish and appear, one with a yard in it, a road that stays, a strip of unknown ground."""
    rng = np.random.default_rng(seed)
    first = np.full((48, 40), 1, np.uint8)
    first[:2] = UNKNOWN
    first[30:34] = ROAD
    first[5:12, 4:14] = BUILDING
    second = first.copy()
    second[5:12, 4:14] = 5
    second[15:27, 8 : 20 + seed] = BUILDING
    second[18:22, 13:16] = 1  # a yard
    second[38:41, 30:33] = BUILDING
    second[41:44, 33:36] = BUILDING  # touches it by a corner
    images = rng.integers(0, 256, (2, 48, 40, 3), dtype=np.uint8)
    return ChangePair(key, images[0], images[1], change_mask_of(first, second), first, second)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pairs, the last without a change; three splits, two licences."""
    root = tmp_path_factory.mktemp("made") / "set"
    records, store = [], LocalStore(root)
    for number in range(7):
        pair = make_pair(f"k {number}.x", number)
        record = make_record(pair, f"scene{number}", SPLITS[number % 3])
        if number == 6:
            pair = replace(pair, mask_t2=pair.mask_t1, change_mask=np.zeros_like(pair.change_mask))
            record = replace(record, events=[], transitions={}, change_ratio=0.0)
        write_pair(store, pair, LEGEND)
        licence = "CC-BY-4.0" if number % 2 else "CC0-1.0"
        records.append(replace(record, licence=licence, attribution="A. Mapper" if number % 2 else ""))
    finalise(store, LEGEND, records)
    return root


def originals(root: Path, split: str | None) -> list[ChangePair]:
    found = ca.load_pairs(root, split)
    return [found[n] for n in range(len(found))]


def exported(pairs: Path, layout: str, out: Path, **more: Any) -> Path:
    if layout == "taco":
        pytest.importorskip("tacotoolbox", reason="pip install 'changeanywhere[taco]'")
    elif layout in IN_TABLES:
        pytest.importorskip("pyarrow", reason="pip install 'changeanywhere[parquet]'")
    report = export(ExportOptions(pairs=pairs, layout=layout, out=out, **more))
    assert dict(report.splits) == {"train": 3, "val": 2, "test": 2}
    return out


def array(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image)


def masks_of(pair: ChangePair) -> tuple[np.ndarray, np.ndarray]:
    assert pair.mask_t1 is not None and pair.mask_t2 is not None
    return pair.mask_t1, pair.mask_t2


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_licences_credits_and_classes_go_along(layout: str, pairs: Path, tmp_path: Path) -> None:
    out = exported(pairs, layout, tmp_path / "out")
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [p.key for split in SPLITS for p in originals(pairs, split)]
    by_key = {json.loads(line)["key"]: json.loads(line) for line in (pairs / "metadata.jsonl").read_text().splitlines()}
    for line in lines:
        for name in ("licence", "attribution", "split", "transitions", "scene", "settings"):
            assert line[name] == by_key[line["key"]][name]
        files = [value for name, value in line.items() if name.endswith("_file_name")]
        assert files and all((out / name).is_file() for name in files)
    card = (out / "README.md").read_text()
    assert "CC-BY-4.0: 3 pairs" in card and "CC0-1.0: 4 pairs" in card and "credit: A. Mapper (3 pairs)" in card
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "other"
    legend = json.loads((out / "legend.json").read_text())
    assert [c["name"] for c in legend["classes"]] == list(LEGEND.names)
    assert (legend == LEGEND.to_dict()) is (layout != "second"), "white roads mean unchanged in SECOND"
    assert not list(out.rglob(".*")), "nothing unfinished stays"


@pytest.mark.parametrize("layout", ["levir", "torchgeo", "opencd", "whu-gcd", "second"])
def test_folders_are_read_back_by_our_reader(layout: str, pairs: Path, tmp_path: Path) -> None:
    out = exported(pairs, layout, tmp_path / "out")
    for split in SPLITS:
        truth = originals(pairs, split)
        if layout == "torchgeo":
            whole = ca.load_pairs(out)
            found = [whole[n] for n, name in enumerate(whole.names) if name.startswith(f"{split}_")]
        else:
            found = originals(out, split)
        assert len(found) == len(truth)
        for one, other in zip(truth, found, strict=True):
            assert np.array_equal(one.image_t1, other.image_t1) and np.array_equal(one.image_t2, other.image_t2)
            assert np.array_equal(one.change_mask, other.change_mask)
            if layout == "levir":
                assert all(map(np.array_equal, masks_of(one), masks_of(other))) and one.metadata["seed"] == 5


def test_levir_again_is_the_same_set(pairs: Path, tmp_path: Path) -> None:
    out = exported(pairs, "levir", tmp_path / "out")
    for file in sorted(pairs.rglob("*")):
        name = file.relative_to(pairs)
        if file.is_file() and name.parts[0] in ("A", "B", "label", "label1", "label2", "list"):
            assert file.read_bytes() == (out / name).read_bytes(), name


def test_levir_opens_by_load_dataset_as_the_set_does(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    out = exported(pairs, "levir", tmp_path / "out")
    for split in SPLITS:
        assert (out / f"{split}.jsonl").read_bytes() == (pairs / f"{split}.jsonl").read_bytes()
    opened = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in opened.items()} == {"train": 3, "validation": 2, "test": 2}
    assert np.array_equal(np.asarray(opened["test"][0]["label2"]), masks_of(originals(pairs, "test")[0])[1])


@pytest.mark.parametrize("container", ["webdataset", "parquet"])
def test_sets_in_containers_are_exported_as_those_in_folders(
    container: str, source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'changeanywhere[parquet]'")
    monkeypatch.setenv("CHANGEANYWHERE_CACHE", str(tmp_path / "cache"))
    command = ["generate", "--source", str(source_folder), "--tile-size", "64", "--method", "copy_paste"]
    for form in ("folder", container):
        out = str(tmp_path / form)
        assert run([*command, "--num-pairs", "4", "--format", form, "--out", out]) == 0
        assert run(["export", out, "--layout", "opencd", "--out", f"{out}-opencd"]) == 0
    files = sorted(file.relative_to(tmp_path / "folder-opencd") for file in (tmp_path / "folder-opencd").rglob("*.png"))
    assert len(files) == 4 * 5
    for name in files:
        one, other = (tmp_path / f"{form}-opencd" / name for form in ("folder", container))
        assert one.read_bytes() == other.read_bytes()


def test_second_names_classes_of_changed_ground_by_official_colours(pairs: Path, tmp_path: Path) -> None:
    """SECOND's rule: white is unchanged, each colour one class."""
    out = exported(pairs, "second", tmp_path / "out", legend="second")
    colours = {c.name: c.color for c in load_legend("second").classes}
    assert colours["water"] == (0, 0, 255) and colours["building"] == (128, 0, 0)
    same = {"bareland": "ground", "building": "building", "road": "ground", "vegetation_mixed": "low_vegetation"}
    for split in SPLITS:
        for pair in originals(pairs, split):
            labels = [array(out / split / f"label{date}" / f"{pair.key}.png") for date in (1, 2)]
            masks = masks_of(pair)
            names = [[same.get(LEGEND.name_of(value), "") for value in range(8)] for _ in masks]
            changed = pair.change_mask & (np.array(names[0])[masks[0]] != np.array(names[1])[masks[1]])
            for label, mask in zip(labels, masks, strict=True):
                assert (label[~changed] == 255).all()
                for value in np.unique(mask[changed]):
                    where = changed & (mask == value)
                    assert (label[where] == colours[same[LEGEND.name_of(int(value))]]).all()


def test_classes_that_become_one_change_no_more(pairs: Path, tmp_path: Path) -> None:
    legend, names = tmp_path / "two.json", tmp_path / "map.yaml"
    legend.write_text(json.dumps({"classes": [{"index": 1, "name": "built"}, {"index": 2, "name": "open"}]}))
    built = ("building", "road", "impervious_mixed", "informal_settlement", "vegetation_mixed")
    names.write_text("".join(f"{name}: {'built' if name in built else 'open'}\n" for name in LEGEND.names))
    out = exported(pairs, "opencd", tmp_path / "out", legend=str(legend), legend_map=names)
    (pair, *_) = originals(pairs, "train")
    masks = [np.isin(mask, [LEGEND.index_of(name) for name in built]) for mask in masks_of(pair)]
    label = array(out / "train" / "label" / f"{pair.key}.png")
    assert np.array_equal(label == 255, pair.change_mask & (masks[0] != masks[1])) and (label == 255).any()
    assert np.array_equal(label == 255, pair.change_mask) is False, "the building that became vegetation"
    line = json.loads((out / "metadata.jsonl").read_text().splitlines()[0])
    changed = int((label == 255).sum())
    assert [(row["from"], row["to"]) for row in line["transitions"]] == [("open", "built")]
    assert line["transitions"][0]["pixels"] == changed and line["change_ratio"] == round(changed / label.size, 6)
    assert [(event["from_class"], event["to_class"]) for event in line["events"]] == [("open", "built")]
    mask = array(out / "train" / "label1" / f"{pair.key}.png")
    assert np.array_equal(mask, np.where(masks_of(pair)[0] == 0, 0, np.where(masks[0], 1, 2)))


def test_torchgeo_by_its_rules(pairs: Path, tmp_path: Path) -> None:
    """LEVIRCD: files of three folders by the beginning of their names, sorted; labels converted to L, clamped to 1."""
    out = exported(pairs, "torchgeo", tmp_path / "out")
    for split in SPLITS:
        files = [sorted((out / folder).glob(f"{split}*.png")) for folder in ("A", "B", "label", "label1", "label2")]
        truth = originals(pairs, split)
        assert {len(each) for each in files} == {len(truth)}
        for pair, first, second, label, *masks in zip(truth, *files, strict=True):
            assert np.array_equal(np.asarray(Image.open(first).convert("RGB")), pair.image_t1)
            assert np.array_equal(np.asarray(Image.open(second).convert("RGB")), pair.image_t2)
            clamped = np.asarray(Image.open(label).convert("L")).clip(0, 1)
            assert np.array_equal(clamped, pair.change_mask)
            assert all(np.array_equal(array(file), mask) for file, mask in zip(masks, masks_of(pair), strict=True))


def test_opencd_by_its_rules(pairs: Path, tmp_path: Path) -> None:
    """The configuration as Python, files joined from prefix and suffix, labels as grey, below and from 128 on."""
    out = exported(pairs, "opencd", tmp_path / "out")
    text = (out / "opencd_data.py").read_text().replace("{{ fileDirname }}", str(out))
    config: dict[str, Any] = {}
    exec(compile(text, "opencd_data.py", "exec"), config)
    for split in SPLITS:
        data = config[f"{split}_dataloader"]["dataset"]
        assert data["type"] == "BaseSCDDataset" and data["metainfo"]["semantic_classes"] == LEGEND.names
        assert len(data["metainfo"]["semantic_palette"]) == len(LEGEND.names)
        places = {name: Path(data["data_root"]) / prefix for name, prefix in data["data_prefix"].items()}
        listed = sorted(file.name for file in places["img_path_from"].iterdir())
        assert listed == sorted(file.name for file in places["img_path_to"].iterdir())
        for pair, name in zip(originals(pairs, split), listed, strict=True):
            assert np.array_equal(array(places["img_path_to"] / name), pair.image_t2)
            label = np.asarray(Image.open(places["seg_map_path"] / name).convert("L"))
            assert np.array_equal(label >= 128, pair.change_mask) and data["format_seg_map"] == "to_binary"
            for which, mask in zip(("from", "to"), masks_of(pair), strict=True):
                grey = np.asarray(Image.open(places[f"seg_map_path_{which}"] / name).convert("L"))
                reduced = np.where(grey == 0, 255, grey - 1)  # reduce_semantic_zero_label
                assert np.array_equal(reduced, np.where(mask == 0, 255, mask - 1))
    assert config["crop_size"] == (40, 40) and config["train_dataloader"]["sampler"]["shuffle"] is True


@pytest.fixture
def listed(pairs: Path, tmp_path: Path) -> Callable[..., Path]:
    """The set with other lists: split → numbers of pairs."""

    def make(**splits: Sequence[int]) -> Path:
        root = tmp_path / "listed" / "-".join(splits)
        shutil.copytree(pairs, root)
        for split in SPLITS:
            (root / "list" / f"{split}.txt").write_text("".join(f"k {n}.x.png\n" for n in splits.get(split, ())))
        return root

    return make


OPENCD_BASES = {
    *("norm_cfg", "data_preprocessor", "model", "default_scope", "env_cfg", "vis_backends", "visualizer"),
    *("log_processor", "log_level", "load_from", "resume", "tta_model", "optimizer", "optim_wrapper"),
    *("param_scheduler", "train_cfg", "val_cfg", "test_cfg", "default_hooks"),
}
"""What changer_r18.py, default_runtime.py and schedule_40k.py define: mmengine refuses a base that does, too."""


@pytest.mark.parametrize("splits", [("train",), ("val",), ("train", "test"), SPLITS])
def test_opencd_says_what_to_set_where_splits_have_no_pairs(
    splits: Sequence[str], listed: Callable[..., Path], tmp_path: Path
) -> None:
    root = listed(**{split: [n] for n, split in enumerate(splits)})
    export(ExportOptions(pairs=root, layout="opencd", out=tmp_path / "out"))
    text = (tmp_path / "out" / "opencd_data.py").read_text()
    config: dict[str, Any] = {}
    exec(compile(text, "opencd_data.py", "exec"), config)
    assert not OPENCD_BASES & config.keys()
    own: dict[str, Any] = {}  # the lines for the user's own configuration, as they stand in the head
    exec("\n".join(line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   ")), own)
    unset = {
        "train": {"train_cfg", "optim_wrapper", "param_scheduler"}, "val": {"val_cfg"}, "test": {"test_cfg"},
    }  # fmt: skip
    missing = set().union(*(unset[split] for split in SPLITS if split not in splits))
    assert {name for name, value in own.items() if value is None} == missing and len(own["_base_"]) == 4
    for split in SPLITS:
        assert (config[f"{split}_dataloader"] is None) is (split not in splits)


def test_yolo_names_training_and_validation_whatever_splits_there_are(
    listed: Callable[..., Path], tmp_path: Path
) -> None:
    """ultralytics asks for both, and for images where val points; paths are those beside the file."""
    for splits, val in ((("train",), "train"), (("train", "test"), "train"), (("test",), "test"), (SPLITS, "val")):
        out = tmp_path / "-".join(splits)
        root = listed(**{split: [n] for n, split in enumerate(splits)})
        export(ExportOptions(pairs=root, layout="yolo-seg", out=out))
        text = (out / "data.yaml").read_text()
        data = yaml.safe_load(text)
        assert data["train"] == "images/train" and data["val"] == f"images/{val}" and "path" not in data
        assert ("test" in data) is ("test" in splits) and (out / data["val"]).is_dir()
        assert ("no validation pairs" in text) is ("val" not in splits)


def test_pairs_that_no_list_names_are_told(
    listed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layout in ("levir", "coco"):
        out = tmp_path / layout
        assert run(["export", str(listed(train=[0, 3], val=[1])), "--layout", layout, "--out", str(out)]) == 0
        assert f"{layout} has no place for 4 pairs that no list of the set names" in capsys.readouterr().out
        assert "Not carried: 4 pairs that no list" in (out / "README.md").read_text()
        shutil.rmtree(tmp_path / "listed")
    report = export(
        ExportOptions(
            pairs=listed(**{s: range(n, 7, 3) for n, s in enumerate(SPLITS)}), layout="levir", out=tmp_path / "whole"
        )
    )
    assert report.lost == ()


def test_two_pairs_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second would be written over the first."""
    root = write_pairs(tmp_path / "levir", 3) / "val"
    image = next((root / "A").iterdir())
    for date in "AB":
        with Image.open(root / date / image.name) as opened:
            opened.save(root / date / f"{image.stem}.tif")
    assert run(["export", str(root), "--layout", "whu-gcd", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"val: {image.stem} names two pairs ({image.stem}.png, {image.stem}.tif); rename one" in error
    assert not (tmp_path / "out").exists()


def test_huggingface_by_its_library(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    out = exported(pairs, "huggingface", tmp_path / "out")
    opened = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert isinstance(opened, datasets.DatasetDict) and isinstance(opened["train"].features["imageA"], datasets.Image)
    for split in SPLITS:
        for row, pair in zip(opened[HUB[split]], originals(pairs, split), strict=True):
            assert np.array_equal(np.asarray(row["imageA"]), pair.image_t1)
            assert np.array_equal(np.asarray(row["imageB"]), pair.image_t2)
            assert np.array_equal(np.asarray(row["label"]), pair.change_mask * np.uint8(255))
            for name, mask in zip(("labelA", "labelB"), masks_of(pair), strict=True):
                assert np.array_equal(np.asarray(row[name]), mask)
            assert row["key"] == pair.key and row["licence"] == pair.metadata["licence"]
            assert json.loads(row["transitions"]) == pair.metadata["transitions"]
            assert json.loads(row["metadata"]) == pair.metadata


def test_torchange_by_its_rules(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HFBitemporalDataset: one split after the other by load_dataset, in numpy, by these names."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    out = exported(pairs, "torchange", tmp_path / "out")
    for split in SPLITS:
        rows = datasets.load_dataset(str(out), split=HUB[split], cache_dir=str(tmp_path / "cache")).with_format("numpy")
        for number, pair in enumerate(originals(pairs, split)):
            row = rows[number]
            assert np.array_equal(row["t1_image"], pair.image_t1) and np.array_equal(row["t2_image"], pair.image_t2)
            assert np.array_equal(row["change_mask"], pair.change_mask) and row["change_mask"].dtype == np.uint8
            assert np.array_equal(row["t1_mask"], masks_of(pair)[0]) and np.array_equal(
                row["t2_mask"], masks_of(pair)[1]
            )
            assert str(row["image_name"]) == f"{pair.key}.png"


def test_coco_by_pycocotools(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    out = exported(pairs, "coco", tmp_path / "out")
    for split in SPLITS:
        changes = coco.COCO(str(out / "annotations" / f"change_{split}.json"))
        images, truth = changes.loadImgs(changes.getImgIds()), originals(pairs, split)
        assert [image["key"] for image in images] == [pair.key for pair in truth]
        for image, pair in zip(images, truth, strict=True):
            assert np.array_equal(array(out / image["file_name"]), pair.image_t2)
            assert np.array_equal(array(out / image["file_name_t1"]), pair.image_t1)
            found = np.zeros(pair.change_mask.shape, int)
            for instance in changes.loadAnns(changes.getAnnIds(image["id"])):
                mask = changes.annToMask(instance) > 0
                found += mask
                before, after = changes.loadCats(instance["category_id"])[0]["name"].split("->")
                values = masks_of(pair)
                assert (values[0][mask] == LEGEND.index_of(before)).all() and instance["area"] == mask.sum()
                assert (values[1][mask] == LEGEND.index_of(after)).all()
            assert np.array_equal(found, pair.change_mask), "every changed pixel in one instance"
        for date, number in (("t1", 0), ("t2", 1)):
            content = json.loads((out / "annotations" / f"panoptic_{date}_{split}.json").read_text())
            for entry, pair in zip(content["annotations"], truth, strict=True):
                red, green, blue = (
                    array(out / "panoptic" / date / split / entry["file_name"]).astype(int).transpose(2, 0, 1)
                )
                ids = red + 256 * green + 65536 * blue
                mask = np.zeros(ids.shape, np.uint8)
                for segment in entry["segments_info"]:
                    mask[ids == segment["id"]] = segment["category_id"]
                    assert segment["area"] == (ids == segment["id"]).sum()
                assert np.array_equal(mask, masks_of(pair)[number])
            assert [c["name"] for c in content["categories"]] == list(LEGEND.names)
    capsys.readouterr()


def test_yolo_by_its_rules(pairs: Path, tmp_path: Path) -> None:
    """A line per polygon: class, then shares of the sides; filled, these are the changed ground of date 2's class."""
    out = exported(pairs, "yolo-seg", tmp_path / "out")
    data = yaml.safe_load((out / "data.yaml").read_text())
    assert [data["names"][n] for n in range(len(data["names"]))] == list(LEGEND.names)
    for split in SPLITS:
        for pair in originals(pairs, split):
            image = out / data[split] / f"{pair.key}.png"
            assert np.array_equal(array(image), pair.image_t2)
            label = out / "labels" / split / f"{pair.key}.txt"
            height, width = pair.change_mask.shape
            found = np.zeros((height, width), np.uint8)
            for line in label.read_text().splitlines():
                number, *values = line.split()
                points = [(float(x) * width, float(y) * height) for x, y in zip(values[::2], values[1::2], strict=True)]
                polygon = {"type": "Polygon", "coordinates": [[*points, points[0]]]}
                found[features.rasterize([(polygon, 1)], (height, width)) > 0] = int(number) + 1
            assert np.array_equal(found, np.where(pair.change_mask, masks_of(pair)[1], 0))


def test_xview2_by_its_rules(pairs: Path, tmp_path: Path) -> None:
    """Buildings of date 1 as WKT and as a target; those that are gone are destroyed (4), the others stand (1)."""
    shapely = pytest.importorskip("shapely")
    out = exported(pairs, "xview2", tmp_path / "out")
    for split, folder in (("train", "train"), ("val", "hold"), ("test", "test")):
        for pair in originals(pairs, split):
            before, after = (mask == BUILDING for mask in masks_of(pair))
            targets = [array(out / folder / "targets" / f"{pair.key}_{w}_disaster_target.png") for w in ("pre", "post")]
            assert np.array_equal(targets[0], before) and np.array_equal(targets[1] > 0, before)
            assert np.array_equal(targets[1] == 4, before & ~after)
            content = [
                json.loads((out / folder / "labels" / f"{pair.key}_{w}_disaster.json").read_text())
                for w in ("pre", "post")
            ]
            shapes = [shapely.from_wkt(f["wkt"]) for f in content[0]["features"]["xy"]]
            filled = (
                features.rasterize([(shape, 1) for shape in shapes], before.shape) if shapes else np.zeros(before.shape)
            )
            assert np.array_equal(filled, before)
            subtypes = [f["properties"]["subtype"] for f in content[1]["features"]["xy"]]
            assert subtypes == (["no-damage"] if pair.key.startswith("k 6") else ["destroyed"])
            assert [f["properties"]["uid"] for f in content[0]["features"]["xy"]] == [
                f["properties"]["uid"] for f in content[1]["features"]["xy"]
            ]


@pytest.fixture
def unsure(tmp_path: Path) -> Path:
    """Pairs of others with classes: unknown ground on date 2, and masks that say what the label does not."""
    first = np.full((32, 32), 1, np.uint8)
    first[2:10, 2:10] = first[2:10, 20:28] = first[20:28, 20:28] = BUILDING
    second = np.where(first == BUILDING, np.uint8(1), first)
    second[2:10, 2:7] = 0  # most of a building
    second[20:28, 20:23] = 0  # some of another
    second[20:28, 25:28] = BUILDING
    second[12:16, 2:10] = ROAD  # the label says nothing of it
    label = np.zeros((32, 32), bool)
    label[2:10, 2:10] = label[2:10, 20:28] = label[20:28, 2:6] = True  # the last has one class on both dates
    root = tmp_path / "unsure"
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    images = {"A": image, "B": image, "label": label * np.uint8(255), "label1": first, "label2": second}
    for folder, content in images.items():
        (root / folder).mkdir(parents=True)
        Image.fromarray(content).save(root / folder / "k.png")
    (root / "legend.json").write_text(json.dumps(LEGEND.to_dict()))
    return root


def test_unknown_ground_is_no_label_and_instances_are_what_the_label_says(
    unsure: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ca.load_pairs(unsure)[0]
    first, second = masks_of(pair)
    for layout in ("coco", "yolo-seg", "xview2"):
        assert run(["export", str(unsure), "--layout", layout, "--out", str(tmp_path / layout)]) == 0
    told = capsys.readouterr().out
    assert "changed ground whose class is unknown on a date, or the same on both, in 1 pairs: it is in no inst" in told
    assert "yolo-seg has no place for changed ground whose class on date 2 is unknown, in 1 pairs: it is in no" in told
    assert "what became of buildings whose ground is mostly unknown on date 2: 1 are un-classified" in told
    assert "mostly unknown" in (tmp_path / "xview2" / "README.md").read_text()
    content = json.loads((tmp_path / "coco" / "annotations" / "change_train.json").read_text())
    told_areas = sum(instance["area"] for instance in content["annotations"])
    assert told_areas == (pair.change_mask & change_mask_of(first, second)).sum() == 3 * 8 + 64
    found = np.zeros((32, 32), np.uint8)
    for line in (tmp_path / "yolo-seg" / "labels" / "train" / "k.txt").read_text().splitlines():
        number, *values = line.split()
        points = [(float(x) * 32, float(y) * 32) for x, y in zip(values[::2], values[1::2], strict=True)]
        polygon = {"type": "Polygon", "coordinates": [[*points, points[0]]]}
        found[features.rasterize([(polygon, 1)], (32, 32)) > 0] = int(number) + 1
    assert np.array_equal(found, np.where(pair.change_mask, second, 0))


def test_second_says_changed_ground_of_unknown_class_in_black(unsure: Path, tmp_path: Path) -> None:
    pair = ca.load_pairs(unsure)[0]
    export(ExportOptions(pairs=unsure, layout="second", out=tmp_path / "out"))
    label = array(tmp_path / "out" / "train" / "label2" / "k.png")
    assert np.array_equal((label == 0).all(-1), pair.change_mask & (masks_of(pair)[1] == 0))
    assert np.array_equal(originals(tmp_path / "out", "train")[0].change_mask, pair.change_mask)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255)])
def test_a_class_in_a_colour_that_second_needs_gets_another(
    colour: tuple[int, int, int], unsure: Path, tmp_path: Path
) -> None:
    """Unknown ground would be read as the class that is black."""
    content = LEGEND.to_dict()
    content["classes"] = [{**c, "color": [9, 9, 9 + n]} for n, c in enumerate(content["classes"])]
    content["classes"][BUILDING - 1]["color"] = list(colour)
    (unsure / "legend.json").write_text(json.dumps(content))
    pair = ca.load_pairs(unsure)[0]
    export(ExportOptions(pairs=unsure, layout="second", out=tmp_path / "out"))
    found = ca.load_pairs(tmp_path / "out", "train")
    for mask, truth in zip(classes_of(found, 0, found[0]), masks_of(pair), strict=True):
        assert np.array_equal(mask, np.where(pair.change_mask, truth, 0))


def test_xview2_judges_buildings_by_known_ground(unsure: Path, tmp_path: Path) -> None:
    """Of three buildings one is hidden for the most part, one is gone; of the third's known ground most stands."""
    first = masks_of(ca.load_pairs(unsure)[0])[0]
    export(ExportOptions(pairs=unsure, layout="xview2", out=tmp_path / "out"))
    content = json.loads((tmp_path / "out" / "train" / "labels" / "k_post_disaster.json").read_text())
    subtypes = [f["properties"]["subtype"] for f in content["features"]["xy"]]
    assert sorted(subtypes) == ["destroyed", "no-damage", "un-classified"]
    before, after = (
        array(tmp_path / "out" / "train" / "targets" / f"k_{when}_disaster_target.png") for when in ("pre", "post")
    )
    assert np.array_equal(before, first == BUILDING)
    assert set(np.unique(after[2:10, 2:10])) == {0} and set(np.unique(after[2:10, 20:28])) == {4}
    assert set(np.unique(after[20:28, 20:28])) == {1}


def test_a_map_of_classes_makes_no_change_that_the_label_does_not_say(unsure: Path, tmp_path: Path) -> None:
    pair = ca.load_pairs(unsure)[0]
    export(ExportOptions(pairs=unsure, layout="opencd", out=tmp_path / "out", legend="mini"))
    label = array(tmp_path / "out" / "train" / "label" / "k.png") > 0
    assert np.array_equal(label, pair.change_mask & change_mask_of(*masks_of(pair)))


def test_taco_by_tacoreader(pairs: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("tacoreader")
    out = exported(pairs, "taco", tmp_path / "out")
    table = reader.load(str(out / "pairs.tacozip")).data
    rows = table.to_arrow().to_pylist() if hasattr(table, "to_arrow") else table._data.to_pylist()
    truth = [(split, pair) for split in SPLITS for pair in originals(pairs, split)]
    assert [row["key"] for row in rows] == [pair.key for _, pair in truth]
    for number, (row, (split, pair)) in enumerate(zip(rows, truth, strict=True)):
        assert row["split"] == HUB[split] and row["licence"] == pair.metadata["licence"]
        assert json.loads(row["metadata"]) == pair.metadata
        inside = table.read(number)
        for name, answer in (
            ("image_t1", pair.image_t1), ("image_t2", pair.image_t2), ("change", pair.change_mask * np.uint8(255)),
            ("mask_t1", masks_of(pair)[0]), ("mask_t2", masks_of(pair)[1]),
        ):  # fmt: skip
            with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(inside.read(name)) as file:
                found = file.read()
            assert np.array_equal(found[0] if answer.ndim == 2 else found.transpose(1, 2, 0), answer), name


def test_splits_that_a_download_has_in_its_own_files_are_kept(tmp_path: Path) -> None:
    """OSCD: its lists lie beside the cities, not in list/."""
    for city in ("abudhabi", "rennes"):
        for name, values in (("pair/img1", 3), ("pair/img2", 3), ("cm/cm", 0)):
            file = tmp_path / "oscd" / "Images" / city / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((16, 16, 3) if values else (16, 16), np.uint8)).save(file)
    for split, city in (("train", "abudhabi"), ("test", "rennes")):
        (tmp_path / "oscd" / "Images" / f"{split}.txt").write_text(city)
    report = export(ExportOptions(pairs=tmp_path / "oscd", layout="levir", out=tmp_path / "out"))
    assert dict(report.splits) == {"train": 1, "test": 1}


@pytest.mark.parametrize("layout", sorted(set(LAYOUT_NAMES) - set(IN_TABLES)))
def test_links_lead_to_the_pairs_and_are_never_written_through(layout: str, pairs: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in pairs.rglob("*") if file.is_file()}
    out = exported(pairs, layout, tmp_path / "out", link=True)
    links = [file for file in out.rglob("*") if file.is_symlink()]
    assert links and all(pairs in file.resolve().parents for file in links)
    copied = exported(pairs, layout, tmp_path / "copied")
    for file in (file for file in copied.rglob("*") if file.is_file()):
        assert not file.is_symlink() and file.read_bytes() == (out / file.relative_to(copied)).read_bytes()
    exported(pairs, layout, tmp_path / "out", legend="mini" if layout != "second" else "second")
    assert before == {file: file.read_bytes() for file in pairs.rglob("*") if file.is_file()}


def test_pairs_of_others_without_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LEVIR's own folders: splits kept; what needs classes is refused in a line."""
    root = write_pairs(tmp_path / "levir", 3)
    for layout in ("opencd", "coco", "yolo-seg", "torchange"):
        assert run(["export", str(root), "--layout", layout, "--out", str(tmp_path / layout)]) == 0
        assert "wrote 11 pairs (train 3, val 4, test 4)" in capsys.readouterr().out
    truth, found = originals(root, "val"), originals(tmp_path / "opencd", "val")
    assert all(np.array_equal(a.change_mask, b.change_mask) for a, b in zip(truth, found, strict=True))
    text = (tmp_path / "opencd" / "opencd_data.py").read_text()
    assert "'BaseCDDataset'" in text and "semantic" not in text.replace("cat_max", "")
    assert yaml.safe_load((tmp_path / "yolo-seg" / "data.yaml").read_text())["names"] == {0: "change"}
    for arguments, message in (
        (["--layout", "second"], "layout is 'second'; it needs semantic masks"),
        (["--layout", "pascal"], "layout is 'pascal'; allowed: levir, second"),
        (["--layout", "huggingface", "--link"], "link is True; allowed: false with huggingface"),
        (["--layout", "levir", "--legend", "mini"], "has no semantic masks with a legend.json"),
        (["--layout", "levir", "--legend-map", "x.yaml"], "legend_map is .*; allowed: with legend"),
    ):
        assert run(["export", str(root), *arguments, "--out", str(tmp_path / "no")]) == 2
        assert re.search(message, capsys.readouterr().err)
    assert run(["export", str(root), "--layout", "levir", "--out", str(root / "train" / "again")]) == 2


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_of_an_earlier_export_nothing_stays(layout: str, pairs: Path, tmp_path: Path) -> None:
    """Readers glob: a pair of the earlier set would be one of the new."""
    small = tmp_path / "small" / pairs.name
    shutil.copytree(pairs, small)
    for split in SPLITS:
        (small / "list" / f"{split}.txt").write_text("k 0.x.png\n" if split == "train" else "")
    exported(pairs, layout, tmp_path / "out")
    for out in (tmp_path / "out", tmp_path / "fresh"):
        export(ExportOptions(pairs=small, layout=layout, out=out))
    again, fresh = files_of(tmp_path / "out"), files_of(tmp_path / "fresh")
    assert again.keys() == fresh.keys()
    assert [name for name in fresh if fresh[name] != again[name] and not name.endswith(".tacozip")] == []
    head, *names = map(json.loads, again["exported.jsonl"].splitlines())
    assert head == {"changeanywhere": "export", "layout": layout, "whole": True}
    assert sorted([*names, "exported.jsonl"]) == sorted(again)
    folders = [folder for folder in (tmp_path / "out").rglob("*") if folder.is_dir()]
    assert all(any(folder.iterdir()) for folder in folders), "nor an empty folder of it"


def test_another_layout_takes_the_place_of_an_earlier_export_and_other_files_stay(pairs: Path, tmp_path: Path) -> None:
    out, mine = exported(pairs, "yolo-seg", tmp_path / "out"), tmp_path / "mine"
    mine.mkdir()
    (mine / "k 0.x.png").write_bytes(b"mine")
    own = {"labels/train.cache": b"cache", "runs/best.pt": b"weights", "notes.txt": b"notes"}
    for name, content in own.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(content)
    exported(pairs, "torchgeo", out)
    exported(pairs, "torchgeo", tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh") | own
    shutil.rmtree(out / "A")
    (out / "A").symlink_to(mine)  # its files are not those that were listed
    with pytest.raises(OutputError, match="a link leads out of"):
        exported(pairs, "torchgeo", out)
    assert (mine / "k 0.x.png").read_bytes() == b"mine" and (out / "README.md").is_file()


def test_folders_that_hold_anything_else_are_refused(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing in them is touched."""
    out = tmp_path / "out"
    command = ["export", str(pairs), "--layout", "whu-gcd", "--out", str(out)]
    out.mkdir()
    (out / ".DS_Store").touch()  # as good as empty
    assert run(command) == 0
    (out / ".DS_Store").unlink()
    listing = (out / "exported.jsonl").read_bytes()
    first = files_of(out)
    capsys.readouterr()
    for damage, message in (
        (None, r"out: holds 'README.md', which no export lists; allowed: a folder that is new or empty, or that"),
        (b"", r"exported.jsonl: damaged \("),
        (listing + b'"../mine.png"\n', r"exported.jsonl: damaged \(not the list of an export\)"),
        (listing + b'"/mine.png"\n', r"exported.jsonl: damaged \(not the list of an export\)"),
        (listing[:-4], r"exported.jsonl: damaged \(not JSON"),
    ):
        (out / "exported.jsonl").unlink()
        if damage is not None:
            (out / "exported.jsonl").write_bytes(damage)
        before = files_of(out)
        assert run(command) == 2
        error = capsys.readouterr().err
        assert re.search(message, error) and error.count("\n") == 1
        assert files_of(out) == before
        (out / "exported.jsonl").write_bytes(listing)
    (out / "train" / "A").mkdir()
    (out / "train" / "A" / "k 0.x.png").write_bytes(b"mine")
    assert run([*command, "--layout", "opencd"]) == 2
    assert "A/k 0.x.png: no export wrote it, and it is in the way" in capsys.readouterr().err
    assert files_of(out) == first | {"train/A/k 0.x.png": b"mine"}
    (tmp_path / "file").touch()
    assert run([*command[:-1], str(tmp_path / "file")]) == 2 and "is no folder; allowed" in capsys.readouterr().err


def test_an_export_that_fails_leaves_the_earlier_one_as_it_was(pairs: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / pairs.name
    shutil.copytree(pairs, broken)
    (broken / "B" / "k 5.x.png").write_bytes(b"damaged")
    first = files_of(exported(pairs, "coco", tmp_path / "out"))
    for out in ("out", "new"):
        with pytest.raises(PairsError, match=r"k 5\.x\.png"):
            export(ExportOptions(pairs=broken, layout="coco", out=tmp_path / out))
    assert files_of(tmp_path / "out") == first and not (tmp_path / "new").exists()


KILLED = """
import os, sys
from pathlib import Path
from changeanywhere.cli import run
from changeanywhere.exporting import renewed
moves, left = Path.replace, [int(sys.argv[1])]
def replace(self, target):
    if left[0] == 0 and "exported.jsonl" not in str(target):
        os._exit(9)
    left[0] -= 1
    return moves(self, target)
Path.replace = replace
run(sys.argv[2:])
"""


@pytest.mark.parametrize("moves", [0, 9, 60, 75])
@pytest.mark.parametrize("again", [False, True])
def test_a_killed_export_is_not_whole_and_the_same_command_ends_it(
    moves: int, again: bool, pairs: Path, tmp_path: Path
) -> None:
    """Killed while files are written (39, each by a move of its own), and while they take their places."""
    out = tmp_path / "out"
    if again:
        exported(pairs, "torchgeo", out)
    before = files_of(out) if again else {}
    command = ["export", str(pairs), "--layout", "opencd", "--out", str(out)]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(moves), *command], check=False)
    assert killed.returncode == 9
    found = {name: content for name, content in files_of(out).items() if not name.startswith(".export.")}
    assert (found != before) is (moves > 40)
    if moves > 40:
        assert json.loads(found["exported.jsonl"].splitlines()[0])["whole"] is False and "README.md" not in found
    assert run(command) == 0
    assert files_of(out) == files_of(exported(pairs, "opencd", tmp_path / "fresh"))


def test_two_exports_into_one_folder_at_once_are_kept_apart(pairs: Path, tmp_path: Path) -> None:
    """What another process, or another machine, is writing there; ours of a killed process of our number goes."""
    first = files_of(exported(pairs, "coco", tmp_path / "out"))
    with renewed.renewed(tmp_path / "out", "levir"), pytest.raises(OutputError, match="another export is writing"):
        in_thread(lambda: exported(pairs, "opencd", tmp_path / "out"))
    left = part_of(tmp_path / "new" / renewed.MARK)
    (left / "A").mkdir(parents=True)
    assert files_of(exported(pairs, "coco", tmp_path / "new")) == first
    (tmp_path / "new" / ".export.1@00000000.1.part").mkdir()
    with pytest.raises(OutputError, match=r"\.export\.1@00000000\.1\.part: another .* delete this folder"):
        exported(pairs, "coco", tmp_path / "new")
    assert files_of(tmp_path / "new") == first


def in_thread(work: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.parametrize("missing", [False, True])
def test_splits_with_legends_of_their_own_are_written_in_one(missing: bool, tmp_path: Path) -> None:
    """Numbers of the second split are those of its own legend: by name they become the first one's, or are refused."""
    counted_from_zero(tmp_path / "set" / "train")
    stored = counted_from_zero(tmp_path / "set" / "val")
    for file in [*(tmp_path / "set" / "val").glob("*/k0.png")]:
        file.rename(file.with_name("k1.png"))
    file = tmp_path / "set" / "val" / "legend.json"
    swapped = ["house", "moor" if missing else "field"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": "other", "classes": swapped}))
    options = ExportOptions(pairs=tmp_path / "set", layout="levir", out=tmp_path / "out")
    if missing:
        with pytest.raises(LegendError, match=r"set/val/legend\.json: .* no counterpart for moor"):
            export(options)
        return
    export(options)
    first, second = (masks_of(ca.load_pairs(tmp_path / "out", split)[0]) for split in ("train", "val"))
    for name, found, of_val in zip(("mask_t1", "mask_t2"), first, second, strict=True):
        assert np.array_equal(found, stored[name])
        assert np.array_equal(of_val, np.array([0, 2, 1])[stored[name]])


@pytest.mark.parametrize("ours", [False, True])
def test_masks_that_count_from_zero_are_written_as_classes(ours: bool, pairs: Path, tmp_path: Path) -> None:
    """Of others' pairs, and of a set of ours whose masks somebody saved anew: what is written counts from 1."""
    if ours:
        shutil.copytree(pairs, tmp_path / "set")
        for file in [*(tmp_path / "set").glob("label[12]/*.png")]:
            Image.fromarray(array(file) - np.uint8(1)).save(file)  # unknown becomes 255
        content = json.loads((pairs / "legend.json").read_text()) | {"first_class": 0, "ignore_index": 255}
        for each in content["classes"]:
            each["index"] -= 1
        (tmp_path / "set" / "legend.json").write_text(json.dumps(content))
        expected = [masks_of(pair) for split in SPLITS for pair in originals(pairs, split)]
        names = list(LEGEND.names)
    else:
        found = counted_from_zero(tmp_path / "set")
        expected, names = [(found["mask_t1"], found["mask_t2"])], ["field", "house"]
    export(ExportOptions(pairs=tmp_path / "set", layout="levir", out=tmp_path / "out"))
    written = [masks_of(pair) for split in SPLITS for pair in (originals(tmp_path / "out", split) if ours else [])]
    written = written or [masks_of(ca.load_pairs(tmp_path / "out")[0])]
    for truth, masks in zip(expected, written, strict=True):
        assert all(np.array_equal(one, two) for one, two in zip(truth, masks, strict=True))
    legend = json.loads((tmp_path / "out" / "legend.json").read_text())
    assert [each["name"] for each in legend["classes"]] == names and "first_class" not in legend
    if not ours:
        export(ExportOptions(pairs=tmp_path / "set", layout="coco", out=tmp_path / "coco"))
        entries = json.loads((tmp_path / "coco" / "annotations" / "change_train.json").read_text())
        (entry,) = entries["annotations"]
        assert {each["id"]: each["name"] for each in entries["categories"]}[entry["category_id"]] == "field->house"


def test_generate_exports_what_it_made(source_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--source", str(source_folder), "--out", str(tmp_path / "set"), "--tile-size", "64"]
    command += ["--method", "copy_paste", "--num-pairs", "4", "--layout", "opencd"]
    assert run(command) == 0
    assert "as opencd, exported from it: " in capsys.readouterr().out
    place = tmp_path / "set" / "layouts" / "opencd"
    assert sum(len(originals(place, split)) for split in SPLITS if (place / split).is_dir()) == 4
    assert (
        run(["check", str(tmp_path / "set")]) == 0
        and "every image and mask is as it was written" in capsys.readouterr().out
    )
    assert run(command) == 0 and "nothing to do" in capsys.readouterr().out
    assert run([*command[:-1], "nonsense"]) == 2
    assert run(["plan", *command[1:]]) == 2 and "layout is 'opencd'" in capsys.readouterr().err


def test_shapes_are_exact_with_holes_and_corners() -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(1, 4, (30, 25)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    where = rng.random(values.shape) < 0.8
    found = np.zeros(values.shape, np.uint8)
    for shape in shapes_of(values, where):
        ring = {"type": "Polygon", "coordinates": [shape.one_ring()]}
        inside = features.rasterize([(ring, 1)], values.shape) > 0
        assert not found[inside].any()
        found[inside] = shape.value
    assert np.array_equal(found, np.where(where, values, 0))


@pytest.fixture
def tifs(tmp_path: Path) -> Path:
    """One pair of four bands of 16 bits, with a place."""
    rng, pair, root = np.random.default_rng(0), make_pair("k", 2), tmp_path / "tifs"
    images = rng.integers(0, 3000, (2, 48, 40, 4)).astype(np.uint16)
    place = GeoReference("EPSG:32633", (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0))
    pair = replace(pair, image_t1=images[0], image_t2=images[1], georef=place)
    write_pair(LocalStore(root), pair, LEGEND, FileKinds("geotiff"))
    record = replace(
        make_record(pair, "s", "train"), files={f: f"{f}/k.tif" for f in ("A", "B", "label", "label1", "label2")},
        crs=place.crs, transform=list(place.transform), normalisation={"low": [0.0] * 4, "high": [3000.0] * 4},
    )  # fmt: skip
    finalise(LocalStore(root), LEGEND, [record])
    return root


def test_other_bands_and_places_stay_where_a_layout_carries_them(tifs: Path, tmp_path: Path) -> None:
    """Else images are of 8 bits, by their set's stretch."""
    truth = ca.load_pairs(tifs)[0]
    again = tmp_path / "levir"
    for legend in (None, "mini"):  # as they are, and through a map of every class to itself
        export(ExportOptions(pairs=tifs, layout="levir", out=again, legend=legend))
        pair = ca.load_pairs(again, "train")[0]
        assert pair.image_t2.dtype == np.uint16 and np.array_equal(pair.image_t2, truth.image_t2)
        assert all(map(np.array_equal, masks_of(pair), masks_of(truth)))
        with rasterio.open(again / "label1" / "k.tif") as file, rasterio.open(tifs / "A" / "k.tif") as first:
            assert file.crs == first.crs and file.transform == first.transform
    export(ExportOptions(pairs=tifs, layout="opencd", out=tmp_path / "opencd"))
    image = array(tmp_path / "opencd" / "train" / "B" / "k.png")
    assert np.array_equal(image, rgb8(truth)[1]) and image.shape == (48, 40, 3)
    assert np.array_equal(array(tmp_path / "opencd" / "train" / "label2" / "k.png"), masks_of(truth)[1])
    line = json.loads((tmp_path / "opencd" / "metadata.jsonl").read_text())
    assert line["crs"] == "EPSG:32633" and line["B_file_name"] == "train/B/k.png"
    reader = pytest.importorskip("tacoreader")
    export(ExportOptions(pairs=tifs, layout="taco", out=tmp_path / "taco"))
    inside = reader.load(str(tmp_path / "taco" / "pairs.tacozip")).data.read(0)
    with rasterio.open(inside.read("image_t2")) as file:
        assert np.array_equal(file.read().transpose(1, 2, 0), truth.image_t2) and file.crs.to_epsg() == 32633


def write_set(root: Path, count: int = 3, legend: bool = True, **images: np.ndarray) -> Path:
    """Pairs of others with masks: a building comes, and a stretch of road; ``images``: other files of all pairs."""
    for number in range(count):
        pair = make_pair(f"p{number}", number)
        stored: dict[str, Any] = {
            "A": pair.image_t1,
            "B": pair.image_t2,
            "label1": pair.mask_t1,
            "label2": pair.mask_t2,
        }
        stored |= {"label": pair.change_mask * np.uint8(255), **images}
        for folder, content in stored.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(root / folder / f"{pair.key}.png")
    if legend:
        (root / "legend.json").write_text(json.dumps(LEGEND.to_dict()))
    return root


@pytest.mark.parametrize("ours", [False, True])
def test_changes_of_classes_that_a_map_makes_unknown_are_left_out(ours: bool, pairs: Path, tmp_path: Path) -> None:
    """Nobody can say of them what has changed: no layout writes them as unchanged without a word."""
    root = pairs if ours else write_set(tmp_path / "set")
    names = tmp_path / "map.yaml"
    names.write_text("".join(f"{name}: {'unknown' if name == 'building' else name}\n" for name in LEGEND.names))
    options = ExportOptions(pairs=root, layout="whu-gcd", out=tmp_path / "whu", legend="mini", legend_map=names)
    changed = 6 if ours else 3
    left = f"ground that labels leave out, in {changed} pairs: it is written as unchanged"
    assert export(options).lost == ("semantic masks of unchanged ground", left)
    assert f"Not carried: {left}" in (tmp_path / "whu" / "README.md").read_text()
    assert export(replace(options, layout="levir", out=tmp_path / "levir")).lost == ()
    for split in SPLITS if ours else (None,):
        for before, after in zip(originals(root, split), originals(tmp_path / "levir", split), strict=True):
            gone = before.change_mask & ((masks_of(before)[0] == BUILDING) | (masks_of(before)[1] == BUILDING))
            assert np.array_equal(gone, np.zeros_like(gone) if after.ignored is None else after.ignored)
            assert np.array_equal(after.change_mask, before.change_mask & ~gone)
            if ours and gone.any():
                assert after.metadata["ignored_ratio"] == round(float(gone.mean()), 6)
    assert run(["check", str(tmp_path / "levir")]) == 0


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("folders", [("label1", "label2"), ("label2",)])
def test_a_pair_without_masks_is_told_whichever_it_is(number: int, folders: Sequence[str], tmp_path: Path) -> None:
    """The masks of the others are not dropped in silence."""
    root = write_set(tmp_path / "set")
    for folder in folders:
        (root / folder / f"p{number}.png").unlink()
    with pytest.raises(PairsError, match=rf"p{number} has no semantic masks, other pairs of the set have"):
        export(ExportOptions(pairs=root, layout="levir", out=tmp_path / "out"))


def test_masks_and_classes_that_no_legend_of_masks_names_are_told(tmp_path: Path) -> None:
    root = write_set(tmp_path / "bare", legend=False)
    report = export(ExportOptions(pairs=root, layout="levir", out=tmp_path / "levir"))
    assert report.lost == ("semantic masks, whose numbers no legend.json names",)
    colours = load_legend("second").classes
    for number in range(2):
        pair = make_pair(f"s{number}", number)
        labels = [np.full((*pair.change_mask.shape, 3), 255, np.uint8) for _ in range(2)]
        for label, one in zip(labels, colours, strict=False):
            label[pair.change_mask] = one.color
        stored = {"im1": pair.image_t1, "im2": pair.image_t2, "label1": labels[0], "label2": labels[1]}
        for folder, content in stored.items():
            (tmp_path / "second" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(tmp_path / "second" / folder / f"{pair.key}.png")
    for layout in ("levir", "coco", "opencd"):
        out = tmp_path / f"of second {layout}"
        report = export(ExportOptions(pairs=tmp_path / "second", layout=layout, out=out))
        assert report.lost == ("classes of changed ground, which its labels name",)


def other_pngs() -> dict[str, Image.Image]:
    rng = np.random.default_rng(0)
    rgb = rng.integers(1, 256, (48, 40, 3), dtype=np.uint8)
    alpha = np.full((48, 40, 1), 255, np.uint8)
    alpha[:9] = 0
    transparent = Image.fromarray(rgb)
    transparent.info["transparency"] = tuple(map(int, rgb[0, 0]))
    return {
        "alpha": Image.fromarray(np.concatenate([rgb, alpha], -1)),
        "palette": Image.fromarray(rgb).quantize(16),
        "grey": Image.fromarray(rgb[..., 0]),
        "one bit": Image.fromarray(rgb[..., 0] > 99),
        "transparent": transparent,
    }


@pytest.mark.parametrize("kind", [*other_pngs(), "rgb"])
def test_pngs_are_written_as_8_bit_red_green_and_blue(kind: str, tmp_path: Path) -> None:
    """Readers open palettes and alpha each in its own way, and cut more bits off; what is so already stays as it is."""
    root = write_set(tmp_path / "set", 1)
    file = root / "B" / "p0.png"
    if kind != "rgb":
        picture = other_pngs()[kind]
        more = {"transparency": picture.info["transparency"]} if kind == "transparent" else {}
        picture.save(file, **more)
    truth = rgb8(ca.load_pairs(root)[0])[1]
    export(ExportOptions(pairs=root, layout="whu-gcd", out=tmp_path / "folders"))
    written = tmp_path / "folders" / "train" / "im2" / "p0.png"
    assert (written.read_bytes() == file.read_bytes()) is (kind == "rgb")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'changeanywhere[parquet]'")
    export(ExportOptions(pairs=root, layout="huggingface", out=tmp_path / "tables"))
    (row,) = parquet.read_table(tmp_path / "tables" / "data" / "train.parquet").to_pylist()
    for content in (written, io.BytesIO(row["imageB"]["bytes"])):
        with Image.open(content) as image:
            assert image.mode == "RGB" and "transparency" not in image.info
            assert np.array_equal(np.asarray(image), truth)


@pytest.mark.parametrize("layout", ["whu-gcd", "coco", "huggingface"])
def test_pngs_of_16_bits_need_a_stretch_as_tiffs_do(layout: str, tmp_path: Path) -> None:
    if layout in IN_TABLES:
        pytest.importorskip("pyarrow", reason="pip install 'changeanywhere[parquet]'")
    deep = np.random.default_rng(0).integers(0, 5000, (48, 40), dtype=np.uint16)
    root = write_set(tmp_path / "set", 1, A=deep, B=deep)
    with pytest.raises(PairsError, match="p0: images are uint16; allowed: uint8, or a set with its stretch"):
        export(ExportOptions(pairs=root, layout=layout, out=tmp_path / "out"))
    (root / "metadata.jsonl").write_text(json.dumps({"key": "p0", "normalisation": {"low": [0.0], "high": [5000.0]}}))
    export(ExportOptions(pairs=root, layout=layout, out=tmp_path / "out"))
    if layout == "whu-gcd":
        image = array(tmp_path / "out" / "train" / "im1" / "p0.png")
        assert image.dtype == np.uint8 and np.array_equal(image, rgb8(ca.load_pairs(root)[0])[0])


def test_labels_of_others_lie_where_their_images_do(tmp_path: Path) -> None:
    """A GIS puts them onto each other; a layout of PNGs says the place in its metadata."""
    pair, root = make_pair("k", 2), tmp_path / "set"
    place: dict[str, Any] = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 5e6)}
    masks = masks_of(pair)
    stored = {"A": pair.image_t1, "B": pair.image_t2, "label": pair.change_mask[..., None] * np.uint8(255)}
    stored |= {f"label{date}": masks[date - 1][..., None] for date in (1, 2)}
    for folder, content in stored.items():
        (root / folder).mkdir(parents=True)
        shape: dict[str, Any] = {"height": 48, "width": 40, "count": content.shape[2], "dtype": "uint8"}
        with rasterio.open(root / folder / "k.tif", "w", driver="GTiff", **shape, **place) as file:
            file.write(content.transpose(2, 0, 1))
    (root / "legend.json").write_text(json.dumps(LEGEND.to_dict()))
    for layout in ("levir", "opencd"):
        export(ExportOptions(pairs=root, layout=layout, out=tmp_path / layout))
        line = json.loads((tmp_path / layout / "metadata.jsonl").read_text())
        assert line["crs"] == "EPSG:32633" and line["transform"] == list(place["transform"])[:6]
    for folder in stored:
        with rasterio.open(tmp_path / "levir" / folder / "k.tif") as file:
            assert file.crs.to_epsg() == 32633 and file.transform == place["transform"]
    export(ExportOptions(pairs=tmp_path / "levir", layout="levir", out=tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "metadata.jsonl").read_text())["crs"] == "EPSG:32633"


def test_the_page_of_layouts_is_current() -> None:
    docs = Path(__file__).parents[1] / "docs"
    page = runpy.run_path(str(docs / "layouts_reference.py"))
    assert (docs / "layouts.md").read_text() == page["layouts"](), "make reference"


def test_every_layout_says_what_it_is() -> None:
    assert tuple(EXPORTERS) == LAYOUT_NAMES
    for exporter in EXPORTERS.values():
        assert exporter.what and exporter.tree and exporter.reader and "OUT" in exporter.load
        compile(exporter.load, exporter.name, "exec")
