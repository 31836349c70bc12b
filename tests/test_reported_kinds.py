"""Kinds of input that users have reported, at the command line: what the reports show, and siblings that no report has.

The other kinds have tables where they belong: CMYK, near infrared, palettes, lossy masks and labels in
``test_rasters.py``; hidden files and names in ``test_folders.py``; checkpoints in ``test_checkpoints.py``.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine, from_origin

from changeanywhere.cli import run
from changeanywhere.legend import load_legend
from conftest import write_source
from raster_files import write_png, write_tif
from test_folders import write_pair_folders
from test_official import SOURCES

SIDE = 64
RNG = np.random.default_rng(0)
UTM = "EPSG:32633"
SIMULATE = ["--tile-size", "64", "--events.min-area", "16", "--events.kinds", "[disappearance]", "--num-pairs", "1"]


def one_building(folder: Path, crs: str | None, transform: Affine | None) -> Path:
    """A tile of bare land with one building of 12 x 18 px, in a GeoTIFF beside a mask without a place."""
    mask = np.ones((SIDE, SIDE), np.uint8)
    mask[20:32, 30:48] = 4
    image = RNG.integers(1, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        write_tif(folder / "images" / "a.tif", image, crs=crs, transform=transform)
    write_png(folder / "masks" / "a.png", mask)
    load_legend("mini").save(folder / "legend.json")
    return folder


def placed(degrees: float, across: float, down: float, x: float = 4e5, y: float = 5e6) -> Affine:
    return Affine.translation(x, y) @ Affine.rotation(degrees) @ Affine.scale(across, down)


# Square metres


@pytest.mark.parametrize(
    ("crs", "transform", "pixel"),
    [
        (UTM, placed(45, 0.5, -0.25), 0.125),
        (UTM, placed(-7, 0.6, 0.6), 0.36),
        (UTM, placed(180, 0.5, -0.5), 0.25),
        (UTM, Affine(0.5, 0.2, 4e5, 0.1, -0.5, 5e6), 0.27),
        ("EPSG:32633+5773", placed(90, 0.5, -0.5), 0.25),
        ("EPSG:2229", placed(20, 2.0, -2.0, 6.4e6, 1.8e6), 4 * 0.3048006**2),
        ("EPSG:3857", from_origin(-6_000_000, -5_621_521, 1.0, 1.0), 0.5),
        ("EPSG:4326", from_origin(15.0, 60.0, 1e-5, 5e-6), 0.5577 * 0.5570),
    ],
    ids=[
        "rotated oblong",
        "rotated south-up",
        "upside down",
        "sheared",
        "compound",
        "feet turned",
        "mercator",
        "degrees",
    ],
)
def test_an_event_has_the_square_metres_of_its_ground(
    crs: str, transform: Affine, pixel: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = one_building(tmp_path / "s", crs, transform), tmp_path / "out"
    least = ["--events.min-area-m2", "5"]
    assert run(["simulate", "--source", str(folder), "--out", str(out), *SIMULATE, *least]) == 0, capsys.readouterr()
    (event,) = json.loads((out / "events.jsonl").read_text())["events"]
    assert event["area"] == 216 and event["area_m2"] == pytest.approx(216 * pixel, rel=0.005)
    more = ["--events.min-area-m2", str(216 * pixel * 1.1)]  # nothing is so large: the limit is held
    assert run(["simulate", "--source", str(folder), "--out", str(tmp_path / "no"), *SIMULATE, *more]) == 1


@pytest.mark.parametrize(
    ("crs", "transform", "note"),
    [
        (None, None, ""),
        (UTM, Affine.identity(), "a.tif: a CRS, but no transform"),
        ('LOCAL_CS["site",UNIT["metre",1]]', from_origin(0, 0, 2.0, 2.0), ""),
    ],
    ids=["none", "half a place", "local"],
)
@pytest.mark.parametrize("limit", ["min", "max"])
def test_square_metres_without_a_ground_are_refused(
    crs: str | None, transform: Affine | None, note: str, limit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = one_building(tmp_path / "s", crs, transform)
    out = ["--out", str(tmp_path / "out")]
    for command in ("simulate", "generate"):
        limits = [f"--events.{limit}-area-m2", "50"]
        assert run([command, "--source", str(folder), *out, *SIMULATE, *limits]) == 2
        said = capsys.readouterr().err
        assert f"events.{limit}_area_m2 is 50.0; allowed: where the ground sampling is known" in said
        assert (f"{folder}: 1 images count as without a place on the ground, the first {note}" in said) == bool(note)
    assert not (tmp_path / "out" / "plan").exists()
    assert run(["check", str(folder), "--tile-size", "64"]) == 0
    said = capsys.readouterr().out
    assert ("warning: 1 images count as without a place" in said) == bool(note) and note in said
    (folder / "provenance.csv").write_text("patch,gsd_m\na,0.5\n")  # the mend that the message names
    limits = [f"--events.{limit}-area-m2", "54"]
    assert run(["simulate", "--source", str(folder), *out, *SIMULATE, *limits]) == 0, capsys.readouterr().err


# Byte-order marks


MARKED = {"utf-8": b"\xef\xbb\xbf", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
NAMES = list(load_legend("mini").names)


def _check_of_names(folder: Path, write: Callable[[str, str], Path], name: str) -> tuple[list[str], str]:
    (folder / "legend.json").unlink()
    lists = {"classes.txt": "\r\n".join(NAMES), "legend.yaml": f"classes: [{', '.join(NAMES)}]\r\n"}
    lists["classes.json"] = json.dumps(NAMES)
    write(name, lists[name])
    return ["check", str(folder)], f"{folder.name} ({folder / name}): 7 classes"


def _config(folder: Path, write: Callable[[str, str], Path], _: str) -> tuple[list[str], str]:
    text = f"tile_size: 64\r\nnum_pairs: 1\r\nsource: {folder}\r\nevents: {{min_area: 16}}\r\n"
    return ["simulate", "--config", str(write("c.yaml", text)), "--out", str(folder.parent / "o")], "masks of 1 pairs"


def _map(folder: Path, write: Callable[[str, str], Path], _: str) -> tuple[list[str], str]:
    file = write("m.yaml", "".join(f"{name}: {name}\r\n" for name in NAMES))
    return ["check", str(folder), "--legend-map", str(file)], "as mini of mini"


def _provenance(folder: Path, write: Callable[[str, str], Path], _: str) -> tuple[list[str], str]:
    write("provenance.csv", "patch,scene,split\r\ntile_0,hier,val\r\ntile_1,da,train\r\n")
    return ["check", str(folder)], "tiles by split: train 1, val 1"


def _transitions(folder: Path, write: Callable[[str, str], Path], _: str) -> tuple[list[str], str]:
    file = write("t.yaml", "default: 1.0\r\nweights: {building: {road: 5}}\r\n")
    out = ["--out", str(folder.parent / "o"), "--tile-size", "64", "--num-pairs", "1", "--events.min-area", "16"]
    return ["simulate", "--source", str(folder), "--events.transitions", str(file), *out], "masks of 1 pairs"


TEXTS: dict[str, Callable[[Path, Callable[[str, str], Path], str], tuple[list[str], str]]] = {
    "classes.txt": _check_of_names,
    "legend.yaml": _check_of_names,
    "classes.json": _check_of_names,
    "configuration": _config,
    "legend map": _map,
    "provenance": _provenance,
    "transitions": _transitions,
}


@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("kind", TEXTS)
def test_a_mark_before_any_text_is_passed_over(
    kind: str, encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_source(tmp_path / "s", num_tiles=3)

    def write(name: str, text: str) -> Path:
        (folder / name).write_bytes(MARKED[encoding] + text.encode(encoding))
        return folder / name

    arguments, expected = TEXTS[kind](folder, write, kind)
    assert run(arguments) == 0, capsys.readouterr().err
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("encoding", MARKED)
def test_a_mark_before_the_lists_of_pairs(encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pair_folders(tmp_path / "p", ("ü.png", "1.png", "2.png"))
    (folder / "list").mkdir()
    for split, names in (("train", "ü.png\r\n2.png\r\n"), ("val", "1.png\r\n"), ("few", "ü.png\r\n")):
        (folder / "list" / f"{split}.txt").write_bytes(MARKED[encoding] + names.encode(encoding))
    training = ["train", "detector", "--detector.pairs", str(folder), "--detector.name", "fc_siam_diff"]
    training += ["--detector.crop-size", "64", "--detector.num-steps", "1", "--detector.batch-size", "1"]
    training += ["--detector.val-every", "1", "--detector.warmup-steps", "0", "--run.num-workers", "0"]
    training += ["--detector.train-list", str(folder / "list" / "few.txt"), "--out", str(tmp_path / "run")]
    assert run(training) == 0, capsys.readouterr().err


# Labels and images of official trees that come without their counterpart


def _is_mask(file: Path) -> bool:
    return any(word in str(file).lower() for word in ("masks", "labels", "msk", "_seg", "ua2012", "_m."))


@pytest.mark.parametrize("lost", ["image", "mask"])
@pytest.mark.parametrize("name", [name for name in SOURCES if name != "openearthmap without xbd"])
def test_official_trees_are_read_without_what_was_not_downloaded(
    name: str, lost: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, *_, count = SOURCES[name]
    root = tmp_path / "tree"
    make(root)
    files = [file for file in sorted(root.rglob("*")) if file.suffix in (".tif", ".png", ".jpg", ".jp2")]
    usable = [f for f in files if "_dem" not in f.name and not {"Test", "val"} & set(f.relative_to(root).parts)]
    usable = [file for file in usable if file.name != "kyoto_9.tif"]
    next(f for f in usable if _is_mask(f.relative_to(root)) == (lost == "mask")).unlink()
    said = "1 masks without an image" if lost == "image" else f"{1 + (name == 'openearthmap')} images without a mask"
    assert run(["check", str(root), "--tile-size", "64"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert f"{count - 1} single-date tiles" in printed and said in printed
    out = ["--out", str(tmp_path / "out"), "--tile-size", "64", "--num-pairs", "1", "--events.min-area", "8"]
    assert run(["simulate", "--source", str(root), *out, "--events.kinds", "[rebuild]"]) in (0, 1)
    assert said in capsys.readouterr().err


def test_an_official_tree_of_which_nothing_is_left_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SOURCES["loveda"][0](tmp_path)
    for folder in list(tmp_path.glob("*/*/masks_png")):
        shutil.rmtree(folder)
        folder.mkdir()
    assert run(["check", str(tmp_path)]) == 2
    said: Any = capsys.readouterr().err
    assert said.count("\n") == 1 and "images without a mask" in said


def test_check_finds_a_list_that_names_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("A", "B", "label", "list"):
        (tmp_path / "p" / folder).mkdir(parents=True)
    for folder in ("A", "B"):
        Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "p" / folder / "x.png")
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(tmp_path / "p" / "label" / "x.png")
    (tmp_path / "p" / "list" / "train.txt").write_text("x.png\n")
    (tmp_path / "p" / "list" / "test.txt").write_text("")
    assert run(["check", str(tmp_path / "p")]) == 0
    (tmp_path / "p" / "list" / "val.txt").write_text("ghost\n")
    capsys.readouterr()
    assert run(["check", str(tmp_path / "p")]) == 2
    assert "val.txt: names ghost, which is not in" in capsys.readouterr().err
