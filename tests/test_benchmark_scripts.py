"""The scripts in benchmarks/ run, each on a tiny net and tiles of 64 px: what they print and write, no figures."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from PIL import Image

import changeanywhere as ca
from changeanywhere.cli import run as command
from changeanywhere.errors import SourceError
from changeanywhere.legend import Legend, LegendClass, load_legend
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.shipped import find_source
from conftest import write_source
from raster_files import write_tif

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
RECIPE = {
    "data": {"tile_size": 64},
    "first_stage": {
        "channels": [8, 8, 8], "layers_per_block": 1, "norm_groups": 1, "mid_attention": False, "num_codes": 16,
        "crop_size": 32, "batch_size": 2, "num_steps": 2, "warmup_steps": 0, "discriminator_channels": 4,
        "perceptual_weight": 1.0,
    },
    "denoiser": {
        "channels": [8, 16], "layers_per_block": 1, "attention_levels": [1], "head_dim": 8, "norm_groups": 4,
        "views": 1, "batch_size": 2, "num_steps": 2, "warmup_steps": 0,
    },
    "run": {"num_workers": 0, "log_every": 1, "save_every": 2},
}  # fmt: skip
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Call a script's ``main`` with flags; what it printed."""
    monkeypatch.syspath_prepend(str(SCRIPTS))  # as for ``python benchmarks/NAME.py``
    before, threads = set(sys.modules), torch.get_num_threads()

    def call(name: str, *flags: object) -> str:
        capsys.readouterr()
        importlib.import_module(name).main([str(flag) for flag in flags])
        return capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)
    for name in {file.stem for file in SCRIPTS.glob("*.py")} & (set(sys.modules) - before):
        del sys.modules[name]  # their names are everyday words


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("tiles") / "source", num_tiles=16)


@pytest.fixture(scope="module")
def pairs(tiles: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "pairs"
    ca.generate(tiles, out, model=str(tiny_model_folder), num_pairs=4, tile_size=64, num_steps=2)
    return out


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judge")
    Segmenter("unet", load_legend("mini")).save(folder)
    return folder


@pytest.fixture(scope="module")
def real_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("real"), np.random.default_rng(0)
    for date in ("A", "B"):
        (folder / date).mkdir()
        for number in range(4):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / date / f"{number}.png")
    return folder


@pytest.fixture
def recipe(tiles: Path, tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE | {"data": {"source": str(tiles), "tile_size": 64}}))
    return file


def rows(table: str) -> list[str]:
    """Lines of a Markdown table, without its head."""
    return [line for line in table.splitlines() if line.startswith("| ")][1:]


def test_reading(run: Run) -> None:
    lines = run("reading", "--tiles", 4, "--size", 64, "--repeats", 1).splitlines()
    assert len(lines) == 5 and all(" ms per " in line for line in lines)


def test_ablation(
    run: Run, tiles: Path, judge: Path, real_pairs: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    flags = ["--source", tiles, "--judge", judge, "--real-pairs", real_pairs, "--model", tiny_model_folder]
    flags += ["--num-pairs", 2, "--num-tiles", 2, "--out", tmp_path]
    images, changed = "dpmsolver++-6-free0-guidance2", "nearest pooling"
    run("ablation", *flags, "--only", images, changed)
    assert len(rows((tmp_path / "images.md").read_text())) == 1
    (row,) = rows((tmp_path / "pairs.md").read_text())
    assert "nearest pooling" in row
    assert run("ablation", *flags, "--only", images, changed) == "", "finished settings are not measured again"


def test_busy(run: Run) -> None:
    said = run("busy", "--num-pairs", 1, "--rounds", 1, "--policies", "default")
    assert "default  beside nothing" in said and "(100% of idle)" in said and said.count("pairs/s") == 2


def test_change_realism(run: Run, pairs: Path, real_pairs: Path) -> None:
    printed = run("change_realism", "--pairs", pairs, "--real-pairs", real_pairs, "--without", "building")
    assert printed.startswith("all pairs (4): {'colour_shift'") and "without building (4)" in printed


@pytest.mark.parametrize("for_real", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled(run: Run, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, for_real: bool) -> None:
    """The quick form compiles nothing."""
    asked: list[object] = []
    if not for_real:
        monkeypatch.setattr(torch.nn.Module, "compile", lambda self: asked.append(self))
    assert run("compiled", "--model", tiny_model_folder).count("ms compiled") == 3
    assert len(asked) == (0 if for_real else 2)


def test_curves(run: Run, tmp_path: Path) -> None:
    for stage, name in (("first_stage", "psnr"), ("denoiser", "loss")):
        folder = tmp_path / "training" / stage
        folder.mkdir(parents=True)
        metrics = [json.dumps({"step": step, name: 1 / step}) for step in range(1, 20)]
        (folder / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
    run("curves", "--run", tmp_path, "--out", tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").read_text().count("<polyline") == 4


def test_detectors(run: Run, pairs: Path) -> None:
    flags = ["--detectors", "fc_ef", "--batch", 1, "--size", 64, "--threads", 1, "--repeats", 1]
    assert len(rows(run("detectors", *flags))) == 1
    assert run("detectors", "--detectors", "--batch", 1, "--size", 64, "--pairs", pairs).count("s per batch") == 3


def test_event_pictures(run: Run, tmp_path: Path) -> None:
    run("event_pictures", "--out", tmp_path / "events.png")
    with Image.open(tmp_path / "events.png") as picture:
        assert picture.width == 3 * (3 * 256 + 4 * 6)


def test_events(run: Run, tmp_path: Path) -> None:
    masks = write_source(tmp_path / "source", size=256, num_tiles=2) / "masks"
    assert len(rows(run("events", "--masks", masks, "--count", 2, "--sizes", 256))) == 2


def test_containers(run: Run, tiles: Path) -> None:
    """Three containers in two places, written and read; two of them streamed."""
    for library in ("moto", "obstore", "pyarrow"):
        pytest.importorskip(library, reason="pip install 'changeanywhere[dev]'")
    flags = ["--source", tiles, "--tile-size", 64, "--pairs", 4, "--shard-size", 2, "--rounds", 1]
    lines = rows(run("containers", *flags))
    assert len(lines) == 6 * 2 + 2 * 2
    assert all(float(cell) > 0 for line in lines for cell in line.split("|")[4:7:2])


def test_executors(run: Run, tiles: Path, tiny_model_folder: Path) -> None:
    """By a command and by Ray."""
    pytest.importorskip("ray", reason="pip install 'changeanywhere[ray]'")
    flags = ["--source", tiles, "--model", tiny_model_folder, "--tile-size", 64, "--pairs", 24, "--shard-size", 2]
    printed = run("executors", *flags, "--num-steps", 40, "--batch-size", 2, "--rounds", 1)
    assert "| ray |" in printed.lower()


def test_generate(run: Run, tiles: Path, tiny_model_folder: Path) -> None:
    flags = ["--source", tiles, "--model", tiny_model_folder, "--pairs", 2, "--reference-pairs", 1, "--rounds", 1]
    assert "times as fast, end to end" in run("generate", *flags)


def test_host_stages(run: Run, tiles: Path, tiny_model_folder: Path) -> None:
    flags = ["--source", tiles, "--model", tiny_model_folder, "--tile-size", 64, "--pairs", 2]
    alone, crew = run("host_stages", *flags, "--processes", 1, "--shard-size", 2).split("| processes |")
    assert [row for row in rows(alone) if row.startswith("| all |")] and "| hash |" in alone
    assert crew.count("| 1 | ") == 1


def test_noise_error(run: Run, tiles: Path, tiny_model_folder: Path) -> None:
    printed = run("noise_error", "--models", tiny_model_folder, "--source", tiles, "--num-tiles", 2)
    assert float(printed.split(": ")[1]) > 0


def test_guided(run: Run) -> None:
    printed = run("guided", "--source", find_source("examples"), "--num-tiles", 2)
    rows = [line.split("|")[1:-1] for line in printed.splitlines()[2:]]
    assert len(rows) == 8 and all(0 < float(share) < 1 for *_, share in rows)


def test_window_decoding(run: Run) -> None:
    rows = run("window_decoding", "--source", "examples", "--num-tiles", 2, "--sides", 48).splitlines()[2:]
    assert len(rows) == 1 and rows[0].startswith("| 48 | ") and "nan" not in rows[0]


def test_painted_sheet(run: Run, tiles: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    flags = ["--model", tiny_model_folder, "--source", tiles, "--count", 2, "--side", 64, "--out", tmp_path / "x.png"]
    assert "2 tiles" in run("painted_sheet", *flags)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width == 3 * (3 * 64 + 8)


def test_labelled_sheet(run: Run, tiles: Path, tmp_path: Path) -> None:
    flags = ["--labelled", tiles, tiles, "--tile-size", 64, "--count", 2, "--side", 64, "--out", tmp_path / "x.png"]
    said = run("labelled_sheet", *flags)
    assert "2 of " in said
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (2 * (3 * 64 + 8), 64 + 4)
        image, first, second = (np.asarray(picture)[:64, 64 * k : 64 * k + 64].astype(int) for k in range(3))
    assert (first == second).all() and (image != first).any()


def test_labelled_sheet_of_other_images(run: Run, tmp_path: Path) -> None:
    """16 bits of one band in grey; folders that share nothing, and bands that are not there, in one line."""
    ramp = np.broadcast_to(np.linspace(1000, 9000, 64).astype(np.uint16)[:, None], (64, 64))
    for folder, name in (("one", "x"), ("two", "y")):
        write_tif(tmp_path / folder / "images" / f"{name}.tif", ramp)
        write_tif(tmp_path / folder / "masks" / f"{name}.tif", np.ones((64, 64), np.uint8))
        (tmp_path / folder / "legend.json").write_text(json.dumps({"classes": ["ground"]}))
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "x.png"
    flags = ["--tile-size", 64, "--side", 64, "--out", out, "--labelled", one]
    assert "1 of 1" in run("labelled_sheet", *flags, "--bands", 1)
    with Image.open(out) as picture:
        image = np.asarray(picture)[:64, :64].astype(int)
    assert (image[..., 0] == image[..., 2]).all() and image[0].max() < 10 and image[-1].min() > 245
    for wrong, said in (([two, "--bands", 1], "share no tile"), ([], "has 1 band")):
        with pytest.raises(SystemExit, match=said):
            run("labelled_sheet", *flags, *wrong)


def test_target_reading(run: Run, judge: Path, tmp_path: Path) -> None:
    """What is counted, on a pair of which every count is known; and a segmenter that reads it."""
    for folder in ("A", "B", "label"):
        (tmp_path / folder).mkdir()
    label = np.zeros((64, 64), np.uint8)
    label[8:16, 8:24] = 255
    for name, there in (("one", label), ("none", 0 * label)):
        Image.fromarray(there).save(tmp_path / "label" / f"{name}.png")
        for date in ("A", "B"):
            Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / date / f"{name}.png")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "test.txt").write_text("one.png\nnone.png\n")
    printed = run("target_reading", "--pairs", tmp_path, "--segmenters", judge)
    assert printed.startswith("1 of 2 pairs change, 128 px of them") and len(rows(printed)) == 3
    assert (
        "| all is building |  | 0.500 | 0.0 % | 100.0 % | 100.0 % | 0.0 % | 0.0 % | 0.0 % | 0.0 % | 0.0 % | 0.0 % |"
        in printed
    )
    script = importlib.import_module("target_reading")
    changed = label > 0
    ring = script.around(changed, 4, 12)
    assert ring[20, 10] and not ring[17, 10] and not ring[changed].any()
    count = script.Count()
    west = np.broadcast_to(np.arange(64) < 16, (64, 64))
    north = np.arange(64)[:, None] < 10
    # Of 128 px that changed 64 are found, 16 of which were there before; 16 * 54 px are said to have changed.
    # Without what looks the same, eight columns of the sixteen, half of them, and none that is right.
    same = np.broadcast_to(np.arange(64) < 8, (64, 64))
    count.add(west & north, west, same, changed, ring, np.ones_like(changed))
    row = count.row("x", "y")
    assert row.startswith("| x | y | 0.444 | 50.0 % | 12.5 % | ") and "| 9.7 % | 5.6 % | 37.5 % |" in row
    assert row.endswith("| 17.1 % | 11.1 % | 37.5 % |")
    assert script.Count().row("x", "y") == "| x | y | - | - | - | 0.0 % | - | 0.0 % | - | - | 0.0 % | - |"


def test_target_reading_of_all_pairs_and_what_it_refuses(
    run: Run, judge: Path, real_pairs: Path, tmp_path: Path
) -> None:
    """Of a folder without lists of splits; of pairs none of which changes; of a segmenter without houses."""
    pairs = tmp_path / "pairs"
    shutil.copytree(real_pairs, pairs)
    (pairs / "label").mkdir()
    for file in (pairs / "A").iterdir():
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(pairs / "label" / file.name)
    printed = run("target_reading", "--pairs", pairs, "--split", "null", "--segmenters", judge)
    assert printed.startswith("0 of 4 pairs change, 0 px of them") and len(rows(printed)) == 3

    def refused(*flags: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            run("target_reading", "--pairs", pairs, *flags)
        said = str(stopped.value)
        assert "\n" not in said
        return said

    assert "test" in refused("--segmenters", judge), "a split that is not there"
    torch.manual_seed(0)
    Segmenter("unet", Legend("bare", (LegendClass(1, "soil", (9, 9, 9)), LegendClass(2, "water", (0, 0, 9))))).save(
        tmp_path / "bare"
    )
    said = refused("--split", "null", "--segmenters", judge, tmp_path / "bare")
    assert f"{tmp_path / 'bare'}: has no class building, but soil, water" in said
    assert str(tmp_path / "none") in refused("--split", "null", "--segmenters", tmp_path / "none")


def test_second_dates(run: Run, tmp_path: Path) -> None:
    """All ground really changed, and next to none of it is called so: what is not ignored is called unchanged."""
    source = write_source(tmp_path / "source", num_tiles=6)
    for folder in ("images", "masks"):
        (source / folder).rename(tmp_path / folder)
        for date in ("A", "B"):
            shutil.copytree(tmp_path / folder, source / folder / date)
    (tmp_path / "labels").mkdir()
    for file in (tmp_path / "masks").iterdir():
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "labels" / file.name)
    flags = ["--source", source, "--tile-size", 64, "--num-pairs", 12, "--method", "copy_paste", "--second.use", "base"]
    assert command([str(flag) for flag in ("generate", *flags, "--out", tmp_path / "pairs")]) == 0
    flags = ["--pairs", tmp_path / "pairs", "--labelled", source, "--labels", tmp_path / "labels", "--tile-size", 64]
    said = run("second_dates", *flags).splitlines()
    # As a training reads it: what is unknown in the mask of date 1 is ignored.
    assert float(said[0].split()[-3].rstrip("%")) < 20 and float(said[2].split("%")[0]) > 50
    assert said[1] == "of other ground 0.0%;", "there is none"
    assert "classes differ on 0.0%" in said[3] and "called changed 100.0% really changed" in said[5]
    flags = [*flags, "--change-classes", "building"]
    assert run("second_dates", *flags).splitlines()[5] != said[5], "fewer changes count"


def test_second_dates_of_tiles_that_were_cut(run: Run, tmp_path: Path) -> None:
    """Images of 96 x 64 px, in folders of other names than A and B: half of each label says that it changed."""
    source = write_source(tmp_path / "source", num_tiles=3)
    for folder in ("images", "masks"):
        (source / folder).rename(tmp_path / folder)
        for date in ("before", "after"):
            (source / folder / date).mkdir(parents=True)
            for file in (tmp_path / folder).iterdir():
                values = np.asarray(Image.open(file))
                wide = Image.fromarray(np.concatenate([values, values[:, :32]], 1))
                wide.save(source / folder / date / f"{file.stem}.png")
    labels = tmp_path / "labels"
    labels.mkdir()
    real = np.zeros((64, 96), np.uint8)
    real[:, 64:] = 255
    for file in (tmp_path / "masks").iterdir():
        Image.fromarray(real).save(labels / f"{file.stem}.png")
    flags = ["--source", source, "--tile-size", 64, "--num-pairs", 12, "--method", "copy_paste", "--second.use", "base"]
    assert command([str(flag) for flag in ("generate", *flags, "--out", tmp_path / "pairs")]) == 0
    flags = ["--pairs", tmp_path / "pairs", "--labelled", source, "--labels", labels, "--tile-size", 64]
    assert len(run("second_dates", *flags).splitlines()) > 5
    script = importlib.import_module("second_dates")
    west, east = (script.label_at(labels, f"after__tile_0_y00000_x{x:05d}", (64, 64)) for x in (0, 32))
    assert not west.any() and np.array_equal(east, real[:, 32:] > 0)
    with pytest.raises(SourceError, match=r"tile_0\.png: 96x64 px, but A__tile_0 is 64x64 px"):
        script.label_at(labels, "A__tile_0", (64, 64))
    with pytest.raises(SourceError, match="north__tile_0: lies in no folder of a date"):
        script.label_at(labels, "north__tile_0", (64, 64))
    (labels / "north").mkdir()
    (labels / "tile_0.png").rename(labels / "north" / "tile_0.png")
    assert script.label_at(labels, "im2__north__tile_0", (64, 96)).any()
    shutil.rmtree(labels)
    with pytest.raises(SystemExit, match="no label of "):
        run("second_dates", *flags)


def test_object_pictures(run: Run, pairs: Path, tmp_path: Path) -> None:
    classes = ["bareland", "road", "water", "building", "vegetation_mixed", "impervious_mixed", "informal_settlement"]
    sheet = tmp_path / "objects.png"
    said = run("object_pictures", "--sets", pairs, pairs, "--classes", *classes, "--least", "1", "--out", sheet)
    with Image.open(sheet) as image:
        assert "objects" in said and image.width > 4 * 128


def test_pictures(run: Run, pairs: Path, tmp_path: Path) -> None:
    run("pictures", "--pairs", pairs, "--count", 2, "--out", tmp_path / "x.png")
    assert (tmp_path / "x.png").is_file()


def test_precision(run: Run, tiny_model_folder: Path) -> None:
    """One process; the table itself needs eight."""
    flags = ["--pairs", 1, "--model", tiny_model_folder]
    assert float(run("precision", *flags, "--measure", "float32")) < 60


def test_profile_generate(run: Run, tiles: Path, recipe: Path) -> None:
    flags = ["--shrink-ceiling", 16, "--processes", 1, "--shard-size", 2]
    printed = run("profile_generate", "--source", tiles, "--config", recipe, "--pairs", 2, "--num-steps", 2, *flags)
    networks, host = printed.split("host alone")
    assert len(rows(networks)) == 10 and "waiting" in networks
    assert [line.split(" | ")[0] for line in rows(host)][-2:] == ["| processes", "| 1"] and "| hash | " in host


def test_recipe_ablation(run: Run, tiles: Path, judge: Path, recipe: Path, tmp_path: Path) -> None:
    flags = ["--config", recipe, "--val", tiles, "--judge", judge, "--first-stage", tmp_path / "finished"]
    flags += ["--denoiser-steps", 1, "--first-stage-steps", 1, "--num-images", 2, "--only", "as in the recipe"]
    assert train("first-stage", recipe, tmp_path / "finished") == 0
    assert train("denoiser", recipe, tmp_path / "finished") == 0
    run("recipe_ablation", *flags, "--out", tmp_path / "out")
    for stage in ("denoiser", "first_stage"):
        assert len(rows((tmp_path / "out" / f"{stage}.md").read_text())) == 1


def train(stage: str, recipe: Path, out: Path) -> int:
    return command(["train", stage, "--config", str(recipe), "--out", str(out)])


def test_segmenters(run: Run, tiles: Path, judge: Path, tiny_model_folder: Path) -> None:
    flags = ["--source", tiles, "--tile-size", 64, "--first-stages", tiny_model_folder]
    printed = run("segmenters", *flags, "--segmenters", judge, "mini-segmenter")
    assert len(rows(printed)) == 6 and printed.count("M parameters") == 2


def test_reconstruction(run: Run, tiles: Path, tiny_model_folder: Path) -> None:
    printed = run("reconstruction", "--source", tiles, "--model", tiny_model_folder)
    assert "macro average" in printed and "codebook perplexity" in printed


@pytest.mark.parametrize(("part", "lines"), {"pairs": 2, "memory": 1, "lines": 1, "pixels": 6}.items())
def test_scale(run: Run, tiles: Path, tiny_model_folder: Path, part: str, lines: int) -> None:
    flags = [
        "--source",
        tiles,
        "--model",
        tiny_model_folder,
        "--num-steps",
        1,
        "--few",
        1,
        "--many",
        2,
        "--tiny-pairs",
        8,
        "--lines",
        6,
    ]
    printed = run("scale", *flags, "--parts", part).splitlines()
    assert [line.split(":")[0] for line in printed] == [part] * lines


def test_shortcut(run: Run, tiles: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    flags = ["--source", tiles, "--model", tiny_model_folder, "--recipe", SCRIPTS.parent / "recipes" / "realistic.yaml"]
    run("shortcut", *flags, "--num-pairs", 4, "--out", tmp_path / "out")
    assert len(rows((tmp_path / "out" / "table.md").read_text())) == 9


@pytest.mark.parametrize("weights", [True, False])
def test_training(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch, weights: bool) -> None:
    """Also where the weights of the perceptual loss, an extra, are not installed."""
    if not weights:
        monkeypatch.setattr("changeanywhere.models.perceptual.find_weights", lambda: None)
    flags = ["--steps", 1, "--shrink-ceiling", 16, "--detector", "fc_ef", "--batch", 2]
    printed = run("training", "--config", recipe, *flags)
    assert len(rows(printed)) == 3 and all(int(row.split("|")[-3].strip(" %")) > 0 for row in rows(printed))
    assert ("without the perceptual loss" in printed) is not weights


def test_unchanged(run: Run, pairs: Path, tiny_model_folder: Path) -> None:
    printed = run("unchanged", "--pairs", pairs, "--model", tiny_model_folder, "--away", 4)
    assert "largest loss of a single pair" in printed


def test_cells(run: Run, tmp_path: Path) -> None:
    """What is finished of a benchmark that still runs: a line a cell, gains where both arms are there."""
    (tmp_path / "out" / "cells").mkdir(parents=True)
    for arm, seed, f1 in (("only-sup", 0, 0.4), ("only-sup", 1, 0.5), ("made", 0, 0.6), ("made", 1, 0.71)):
        record = {"detector": "fc_ef", "arm": arm, "share": 5, "seed": seed, "f1": f1, "precision": f1, "recall": f1}
        record |= {"iou": f1, "collapsed": None, "scenes": {"a": [int(100 * f1), 10, 10, 10]}}
        (tmp_path / "out" / "cells" / f"{arm}-{seed}.json").write_text(json.dumps(record))
    recipe = {"detectors": ["fc_ef"], "pretraining": {"made": "x"}, "baselines": ["only-sup"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    printed = run("cells", tmp_path / "out", "--config", tmp_path / "recipe.yaml", "--to", tmp_path / "cells.csv")
    assert "+20.5" in printed and "few test scenes: not claimed" in printed
    assert "4 cells; intervals for 6 comparisons" in printed, "of all shares that are planned, and over (all changed)"
    lines = (tmp_path / "cells.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith("detector,arm,share,seed,learning_rate,f1")
    zero = {"detector": "fc_ef", "arm": "made", "share": 0, "precision": 0.5, "recall": 0.5, "iou": 0.5}
    for seed in (0, 1):
        scenes = {"a": [60 + seed, 10, 40 - seed, 290]}
        record = zero | {"seed": seed, "f1": 0.7 + 0.01 * seed, "collapsed": None, "scenes": scenes}
        (tmp_path / "out" / "cells" / f"made-000-{seed}.json").write_text(json.dumps(record))
    arguments = ("cells", tmp_path / "out", "--config", tmp_path / "recipe.yaml", "--to", tmp_path / "cells.csv")
    printed = run(*arguments)
    assert "+30.5" in printed.split("| 0 % | made |")[1].split("\n")[0], "calling all changed has F1 of 40"
    lone = run(*arguments, "--compare", "made:only-sup").splitlines()
    assert lone[-2].startswith("fc_ef, 5 %, made over only-sup: +20.5") and "(2 seeds" in lone[-2]
    assert lone[-1] == "intervals for these 1 comparisons"
    with pytest.raises(SystemExit, match=r"--compare made:found: no seed has cells of both"):
        run(*arguments, "--compare", "made:found")
    (tmp_path / "out" / "cells" / "made-000-1.json").write_text(json.dumps(record | {"scenes": {"b": [1, 1, 1, 1]}}))
    with pytest.raises(SystemExit, match=r"made-000-1\.json: was scored on other test scenes"):
        run(*arguments)
    table = (tmp_path / "cells.csv").read_text()
    (tmp_path / "out" / "cells" / "made-000-1.json").write_text('{"arm":')
    with pytest.raises(SystemExit, match=r"made-000-1\.json: damaged \(not JSON"):
        run(*arguments)
    with pytest.raises(SystemExit, match=r"typo: no cells/\*\.json; give the folder of a benchmark"):
        run("cells", tmp_path / "typo", *arguments[2:])
    with pytest.raises(SystemExit, match=r"config is 'nosuch'; allowed: a YAML file, or a recipe of the package"):
        run(*arguments[:2], "--config", "nosuch", *arguments[4:])
    for wrong, said in (("a: [", "not YAML"), ("[1]", "no recipe")):
        (tmp_path / "recipe.yaml").write_text(wrong)
        with pytest.raises(SystemExit, match=rf"recipe\.yaml: {said}"):
            run(*arguments)
    assert (tmp_path / "cells.csv").read_text() == table, "what was published stays"


def test_schedule(run: Run) -> None:
    """Three ways to share a set; none does less than all shards."""
    printed = run("schedule", "--workers", 20, "--shards", 400, "--seconds", 10, "--deaths-per-hour", 1)
    ends = [float(row.split("|")[2]) for row in rows(printed)]
    assert len(ends) == 3 and min(ends) >= 0.99 * 400 * 10 / 20


def test_scenes(run: Run, tmp_path: Path) -> None:
    """The mosaic that the figures of whole scenes are measured on."""
    source = write_source(tmp_path / "tiles", num_tiles=2, size=256)
    run("scenes", "mosaic", "--source", source, "--side", 512, "--out", tmp_path / "mosaic")
    with (
        rasterio.open(tmp_path / "mosaic" / "mosaic.tif") as image,
        rasterio.open(tmp_path / "mosaic" / "mosaic_mask.tif") as mask,
    ):
        assert image.shape == mask.shape == (512, 512) and image.crs == mask.crs
        assert len(np.unique(mask.read(1))) > 1 and image.read().std() > 0


def test_label_grids(run: Run, tmp_path: Path) -> None:
    """An image of several windows: labelled by a process of its own, then by the other grid."""
    source = write_source(tmp_path / "tiles", num_tiles=2, size=256)
    run("scenes", "mosaic", "--source", source, "--side", 768, "--out", tmp_path / "mosaic")
    (tmp_path / "image").mkdir()
    (tmp_path / "mosaic" / "mosaic.tif").rename(tmp_path / "image" / "mosaic.tif")
    flags = ["--source", tmp_path / "image", "--no-flips", "--out", tmp_path / "out"]
    size, memory, shares = run("label_grids", *flags).splitlines()
    assert size.startswith("768 x 768 px") and 0.05 < float(memory.split()[3]) < 4
    assert float(shares.split()[4]) > 90


def test_gpu(run: Run, tmp_path: Path) -> None:
    """Steps end by the clock, and each leaves its line at once; the steps themselves need a GPU to say anything."""
    printed = run("gpu", tmp_path / "out", "--small", "--seconds", 0)
    assert "not begun" in printed and (tmp_path / "out" / "results.md").read_text().count("not begun") >= 5


def test_every_script_is_here() -> None:
    names: Sequence[str] = [f.stem for f in SCRIPTS.glob("*.py") if "def main(" in f.read_text()]
    assert {f"test_{name}" for name in names} <= set(globals())
