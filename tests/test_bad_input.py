"""A corpus of broken input: each ends in one clear line and exit code 2, and nothing outside the output is written."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from changeanywhere.cli import run as command
from changeanywhere.diffusion.options import refuse_index
from changeanywhere.diffusion.pipeline import find_device
from changeanywhere.errors import ConfigError
from conftest import write_source

Spoil = Callable[[Path, Path], None]
"""Breaks (source folder, model folder)."""
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)
MASK = np.ones((64, 64), np.uint8)
JUNK = {
    "empty": b"",
    "text": b"this is no image\n",
    "html": b"<!doctype html><html><body>404 not found</body></html>",
    "json": b'{"type": "FeatureCollection", "features": []}',
    "zip": b"PK\x03\x04" + bytes(100),
    "elf": b"\x7fELF" + bytes(200),
    "pickle": pickle.dumps({"a": 1}),
    "noise": RNG.bytes(500),
}


def encoded(array: np.ndarray, suffix: str) -> bytes:
    if suffix == "tif":
        with rasterio.io.MemoryFile() as memory, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            bands = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
            with memory.open(driver="GTiff", height=64, width=64, count=len(bands), dtype=array.dtype) as file:
                file.write(bands)
            return bytes(memory.read())
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, {"png": "PNG", "jpg": "JPEG"}[suffix])
    return buffer.getvalue()


def put(what: str, suffix: str, content: bytes) -> Spoil:
    """Replace the first image or mask by a file of these bytes."""

    def spoil(source: Path, _: Path) -> None:
        old = min((source / what).iterdir())
        old.unlink()
        old.with_suffix(f".{suffix}").write_bytes(content)

    return spoil


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60,000 px wide and high."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def kinds_of_rasters() -> dict[str, tuple[str, str, bytes]]:
    """Files that are whole, and are refused by name: (images or masks, suffix, content)."""
    picture, masked = Image.fromarray(PIXELS), Image.fromarray(MASK)

    def by_pillow(image: Image.Image, kind: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    def by_gdal(array: np.ndarray, **profile: object) -> bytes:
        with rasterio.io.MemoryFile() as memory, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            bands = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
            side = profile.pop("size", 64)
            with memory.open(
                driver="GTiff", height=side, width=side, count=len(bands), dtype=array.dtype, **profile
            ) as file:
                if side == 64:
                    file.write(bands)
            return bytes(memory.read())

    def placed_and_turned() -> bytes:
        """An orientation beside a CRS: the tag of a flat file is put into a georeferenced one of the same kind."""
        content = bytearray(by_gdal(PIXELS, crs="EPSG:32633", transform=Affine(0.5, 0, 4e5, 0, -0.5, 5e6)))
        (place,) = struct.unpack("<I", content[4:8])
        (count,) = struct.unpack("<H", content[place : place + 2])
        for number in range(count):
            entry = place + 2 + 12 * number
            if content[entry : entry + 2] == struct.pack("<H", 284):  # planar configuration, of which 1 is the default
                content[entry : entry + 12] = struct.pack("<HHII", 274, 3, 1, 6)
        return bytes(content)

    flat = Affine(0.5, 0.5, 4e5, 0.5, 0.5, 5e6)
    vrt = b'<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    one_hot = np.eye(7, dtype=np.uint8)[MASK % 7]
    return {
        **{f"image {suffix} is a VRT": ("images", suffix, vrt) for suffix in ("tif", "png", "jpg")},
        "image is WebP": ("images", "png", by_pillow(picture, "WEBP")),
        "image is JPEG 2000": ("images", "jpg", by_pillow(picture, "JPEG2000")),
        "image is GIF": ("images", "tif", by_pillow(picture, "GIF")),
        "image is CIELab": ("images", "tif", by_pillow(picture.convert("LAB"), "TIFF")),
        "image of two pages": ("images", "tif", by_pillow(picture, "TIFF", save_all=True, append_images=[picture])),
        "image is animated": (
            "images",
            "png",
            by_pillow(picture, "PNG", save_all=True, append_images=[masked.convert("RGB")]),
        ),
        "image is a pointer of LFS": ("images", "tif", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "image in a ZIP": ("images", "png", b"PK\x03\x04" + bytes(80)),
        "image on a line": ("images", "tif", by_gdal(PIXELS, crs="EPSG:32633", transform=flat)),
        "image turned beside a CRS": ("images", "tif", placed_and_turned()),
        "image of one huge block": (
            "images",
            "tif",
            by_gdal(PIXELS, size=30_000, tiled=True, blockxsize=30_000, blockysize=30_000, SPARSE_OK=True),
        ),
        "image is white at 0, signed": (
            "images",
            "tif",
            by_gdal(PIXELS[..., 0].astype(np.int16), photometric="MINISWHITE"),
        ),
        "image of complex numbers": ("images", "tif", by_gdal(PIXELS.astype(np.complex64))),
        "mask is a VRT": ("masks", "tif", vrt),
        "mask is JPEG under PNG": ("masks", "png", by_pillow(masked, "JPEG")),
        "mask is JPEG in TIFF": ("masks", "tif", by_gdal(MASK, compress="jpeg")),
        "mask of LERC with loss": ("masks", "tif", by_gdal(MASK, compress="lerc", MAX_Z_ERROR=1)),
        "mask of lossy WebP": ("masks", "tif", by_gdal(PIXELS, compress="webp", WEBP_LOSSLESS=False)),
        "mask is one-hot": ("masks", "tif", by_gdal(one_hot)),
        "mask is white at 0": ("masks", "tif", by_gdal(MASK, photometric="MINISWHITE")),
        "mask of two bands": ("masks", "tif", by_gdal(np.dstack([MASK, MASK]))),
        "mask of deep colours": ("masks", "tif", by_gdal(PIXELS.astype(np.uint16))),
        "mask of two pages": ("masks", "tif", by_pillow(masked, "TIFF", save_all=True, append_images=[masked])),
        "mask of JPEG in colours": ("masks", "tif", by_gdal(PIXELS, compress="jpeg", photometric="YCBCR")),
        "mask of JPEG 2000": ("masks", "png", by_pillow(masked, "JPEG2000")),
        "mask on a line": ("masks", "tif", by_gdal(MASK, crs="EPSG:32633", transform=flat)),
        "mask in CMYK": ("masks", "tif", by_pillow(Image.fromarray(PIXELS).convert("CMYK"), "TIFF")),
    }


FINE_AS_LABELS = {
    "mask is JPEG under PNG", "mask is JPEG in TIFF", "mask of LERC with loss", "mask of lossy WebP", "mask in CMYK",
    "mask is white at 0", "mask of deep colours", "mask of JPEG in colours",
}  # fmt: skip
"""What a mask cannot be and a change label can: any colour counts, and under loss half of the range decides."""


def labels_of_pairs() -> dict[str, tuple[str, str, bytes]]:
    """What a label of change cannot be."""
    buffer = io.BytesIO()
    Image.fromarray(MASK * 5).save(buffer, "JPEG")
    values = np.resize(np.array([3, 5], np.uint8), (64, 64))
    return {
        "label of 0 and 1 under JPEG": ("masks", "jpg", buffer.getvalue()),
        "label of two strange values": ("masks", "png", encoded(values, "png")),
        "label of other values than the set's": ("masks", "png", encoded(MASK * 7, "png")),
        "label of negative numbers": ("masks", "tif", encoded(np.full((64, 64), -3, np.int16), "tif")),
        "label of another size": ("masks", "png", encoded(np.zeros((32, 64), np.uint8), "png")),
        "label of many bands": ("masks", "tif", encoded(np.zeros((64, 64, 6), np.uint8), "tif")),
        **{f"label is {name}": ("masks", "png", content) for name, content in JUNK.items()},
        **{f"pair is {name}": ("images", "tif", content) for name, content in JUNK.items()},
        "pair of another size": ("images", "png", encoded(PIXELS[:32], "png")),
        "pair that is a bomb": ("images", "png", bomb()),
        "label that is a bomb": ("masks", "png", bomb()),
    }


PAIRS_ALONE = labels_of_pairs()


def text(name: str, content: str) -> Spoil:
    def spoil(source: Path, _: Path) -> None:
        (source / name).write_text(content)

    return spoil


def model_file(name: str, content: bytes | None = None, keep: float = 1.0) -> Spoil:
    def spoil(_: Path, model: Path) -> None:
        file = model / name
        old = file.read_bytes()
        file.write_bytes(old[: int(len(old) * keep)] if content is None else content)

    return spoil


def structure(how: str) -> Spoil:
    def spoil(source: Path, _: Path) -> None:
        images, masks = source / "images", source / "masks"
        first = min(images.iterdir())
        if how == "no images":
            shutil.rmtree(images)
        elif how == "no masks":
            shutil.rmtree(masks)
        elif how == "empty images":
            shutil.rmtree(images)
            images.mkdir()
        elif how == "missing mask":
            (masks / first.name).unlink()
        elif how == "image is a folder":
            first.unlink()
            first.mkdir()
        elif how == "link to itself":
            first.unlink()
            first.symlink_to(first)
        elif how == "link to nowhere":
            first.unlink()
            first.symlink_to(source / "nowhere.png")
        elif how == "two images of one name":
            shutil.copy(first, first.with_suffix(".jpg"))

    return spoil


def cases() -> dict[str, Spoil]:
    found: dict[str, Spoil] = {}
    for what, array in (("images", PIXELS), ("masks", MASK)):
        for suffix in ("png", "tif") if what == "masks" else ("png", "jpg", "tif"):
            whole = encoded(array, suffix)
            for share in (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
                found[f"{what} {suffix} cut at {share}"] = put(what, suffix, whole[: int(len(whole) * share)])
            for name, content in JUNK.items():
                found[f"{what} {suffix} is {name}"] = put(what, suffix, content)
            for seed in range(6):
                noise = np.random.default_rng(seed).bytes(400)
                found[f"{what} {suffix} header and noise {seed}"] = put(what, suffix, whole[:24] + noise)
        found[f"{what} bomb"] = put(what, "png", bomb())
    for size in (16, 32, 63, 65, 128):
        found[f"mask of {size} px"] = put("masks", "png", encoded(np.ones((size, size), np.uint8), "png"))
    for value in (8, 9, 11, 50, 100, 127, 128, 200, 254, 255):
        stray = MASK.copy()
        stray[3, 5] = value
        found[f"mask value {value}"] = put("masks", "png", encoded(stray, "png"))
        found[f"mask value {value} tif"] = put("masks", "tif", encoded(stray, "tif"))
    for colour in ((1, 2, 3), (254, 0, 0), (0, 0, 1), (12, 200, 7)):
        painted = np.zeros((64, 64, 3), np.uint8)
        painted[...] = colour
        found[f"mask colour {colour}"] = put("masks", "png", encoded(painted, "png"))
    found["mask of fractions"] = put("masks", "tif", encoded(np.full((64, 64), 0.5, np.float32), "tif"))
    found["mask of NaN"] = put("masks", "tif", encoded(np.full((64, 64), np.nan, np.float32), "tif"))
    found["mask of negative numbers"] = put("masks", "tif", encoded(np.full((64, 64), -1, np.int16), "tif"))
    found["mask of large numbers"] = put("masks", "tif", encoded(np.full((64, 64), 300, np.uint16), "tif"))
    found["image of one band"] = put("images", "tif", encoded(PIXELS[..., 0], "tif"))
    for name, (what, suffix, content) in kinds_of_rasters().items():
        found[name] = put(what, suffix, content)
    for how in (
        "no images", "no masks", "empty images", "missing mask", "image is a folder", "link to itself",
        "link to nowhere", "two images of one name",
    ):  # fmt: skip
        found[how] = structure(how)
    legends = {
        "no json": "classes: [",
        "a list": "[1, 2]",
        "a number": "7",
        "null": "null",
        "empty": "",
        "no classes": '{"name": "x", "classes": []}',
        "two of one name": json.dumps(
            {
                "name": "x",
                "classes": [
                    {"index": 1, "name": "a", "color": [0, 0, 0]},
                    {"index": 2, "name": "a", "color": [1, 1, 1]},
                ],
            }
        ),
        "no colour": '{"name": "x", "classes": [{"index": 1, "name": "a"}]}',
        "wrong colour": '{"name": "x", "classes": [{"index": 1, "name": "a", "color": [0, 0, 999]}]}',
        "index 0": '{"name": "x", "classes": [{"index": 0, "name": "a", "color": [0, 0, 9]}]}',
        "index 300": '{"name": "x", "classes": [{"index": 300, "name": "a", "color": [0, 0, 9]}]}',
        "foreign names": '{"name": "x", "classes": [{"index": 1, "name": "lava", "color": [0, 0, 9]}]}',
        "index 0 is a class": '{"classes": [{"index": 0, "name": "background"}, {"index": 1, "name": "road"}]}',
        "ignores a class": '{"classes": ["bareland", "road"], "ignore_index": 2}',
        "ignores a word": '{"classes": ["bareland", "road"], "ignore_index": "void"}',
        "counts from two": '{"classes": ["bareland", "road"], "first_class": 2}',
        "colour is a word": '{"classes": [{"index": 1, "name": "road", "color": "grey"}]}',
        "value is a word": '{"classes": [{"index": 1, "name": "road", "value": "one"}]}',
        "names by word": '{"names": {"one": "road"}}',
        "deep": "[" * 3000,
        "bytes": "\udcff".encode("utf-8", "surrogatepass").decode("latin-1"),
    }
    for name, legend in legends.items():
        found[f"legend {name}"] = text("legend.json", legend)
    rows = {
        "row without a patch": "scene,patch\nx\n",
        "other columns": "a,b\n1,2,3\n",
        "row too long": "patch,scene\ntile_0,a,b\n",
        "semicolons": "patch;scene\ntile_0;a\n",
        "open quote": 'patch,scene\n"tile_0,a\n',
        "two columns of one name": "patch,patch\ntile_0,a\n",
        "a huge cell": "patch,scene\ntile_0," + "x" * 200_000 + "\n",
    }
    for name, table in rows.items():
        found[f"provenance {name}"] = text("provenance.csv", table)
    parts = ("denoiser", "first_stage", "mask_encoder")
    for part in parts:
        weights = f"{part}/diffusion_pytorch_model.safetensors"
        for keep in (0.0, 0.001, 0.01, 0.3, 0.9, 0.999):
            found[f"model {part} cut at {keep}"] = model_file(weights, keep=keep)
        for name, content in JUNK.items():
            found[f"model {part} is {name}"] = model_file(weights, content)
    for name in ("model.json", "legend.json", "denoiser/config.json", "first_stage/latent_statistics.json"):
        for junk in ("empty", "text", "json", "noise"):
            found[f"model {name} is {junk}"] = model_file(name, JUNK[junk])
    return found


CASES = cases()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("good"), num_tiles=2)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    files = (file for file in folder.rglob("*") if file.name != "out")
    return {str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None for f in files}


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_exit_code_2(
    name: str, good: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model = tmp_path / "source", tmp_path / "model"
    shutil.copytree(good, source)
    shutil.copytree(tiny_model_folder, model)
    CASES[name](source, model)
    before = snapshot(tmp_path)
    out = tmp_path / "out"
    arguments = ["generate", "--source", str(source), "--model", str(model), "--out", str(out), "--tile-size", "64"]
    code = command([*arguments, "--num-steps", "1", "--events.min-area", "16", "--num-threads", "1"])
    message = capsys.readouterr().err
    errors = [line for line in message.splitlines() if "planning" not in line and "painting" not in line]
    assert code == 2, f"{name}: {code} {message}"
    assert len(errors) == 1 and errors[0].startswith("changeanywhere: error: "), errors
    assert "Traceback" not in message and len(errors[0]) < 700
    assert {k: v for k, v in snapshot(tmp_path).items() if not k.startswith("out/")} == before


WHOLE_SOURCE = ("model ", "legend ", "provenance ", "no images", "no masks", "empty images")


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(WHOLE_SOURCE)])
def test_on_error_skip_goes_on_and_says_what_it_left_out(
    name: str, good: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(good, source)
    CASES[name](source, tiny_model_folder)
    arguments = ["simulate", "--source", str(source), "--out", str(out), "--tile-size", "64", "--num-pairs", "1"]
    assert command([*arguments, "--events.min-area", "16", "--on-error", "skip"]) == 0, capsys.readouterr().err
    assert "left out: 1" in capsys.readouterr().out
    (line,) = (out / "skipped.txt").read_text().splitlines()
    assert line.startswith(str(source))
    assert len(list((out / "label").iterdir())) == 1


PAIR_FOLDERS = {"images": "A", "masks": "label"}
PAIR_CASES = {name: case for name, case in kinds_of_rasters().items() if name not in FINE_AS_LABELS} | PAIRS_ALONE


@pytest.fixture(scope="module")
def good_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, content in {"A": PIXELS, "B": PIXELS[::-1], "label": MASK * 255 * (np.indices((64, 64))[0] > 40)}.items():
        (folder / name).mkdir()
        for number in range(2):
            Image.fromarray(np.ascontiguousarray(content).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", PAIR_CASES)
def test_pairs_are_one_line_and_exit_code_2(
    name: str, good_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what, suffix, content = PAIR_CASES[name]
    pairs = tmp_path / "pairs"
    shutil.copytree(good_pairs, pairs)
    old = pairs / PAIR_FOLDERS[what] / "0.png"
    old.unlink()
    old.with_suffix(f".{suffix}").write_bytes(content)
    before = snapshot(tmp_path)
    assert command(["check", str(pairs)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("changeanywhere: error: ") and len(message) < 700
    assert f"/{PAIR_FOLDERS[what]}/0.{suffix}" in message or "another size" in name
    assert "Traceback" not in message
    assert snapshot(tmp_path) == before


def test_nothing_left_is_an_error_even_with_skip(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(good, source)
    for image in (source / "images").iterdir():
        image.write_bytes(JUNK["noise"])
    arguments = ["simulate", "--source", str(source), "--out", str(tmp_path / "out"), "--tile-size", "64"]
    assert command([*arguments, "--on-error", "skip"]) == 2
    assert "no tile can be read" in capsys.readouterr().err


CONFIGS = {
    "unknown key": "no_such_option: 1\n",
    "wrong type": "num_pairs: many\n",
    "a list": "- 1\n- 2\n",
    "broken yaml": "num_pairs: [1\n",
    "python object": "num_pairs: !!python/object/apply:os.system ['touch HACKED']\n",
    "python name": "source: !!python/name:os.system\n",
    "negative": "num_pairs: -3\n",
    "not a number": "free_fraction: .nan\n",
    "nested wrong": "events: {min_area: tiny}\n",
    "nested unknown": "events: {size: 3}\n",
    "classes twice": "class_names: [a, b]\nlegend: mini\n",
    "classes of one name": "class_names: [a, a]\n",
    "class names are a number": "class_names: 7\n",
    "first class": "first_class: 7\n",
    "ignored below zero": "ignore_value: -1\n",
    "ignored class": "class_names: [a, b]\nignore_value: 2\n",
    "class path": "events: {class_path: os.system, init_args: {command: touch HACKED}}\n",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(
    name: str,
    good: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIGS[name])
    arguments = ["generate", "--config", "config.yaml", "--source", str(good), "--model", str(tiny_model_folder)]
    assert command([*arguments, "--out", "out", "--tile-size", "64", "--num-steps", "1"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "Traceback" not in message
    assert not (tmp_path / "HACKED").exists()


def test_hostile_names_stay_inside(good: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Dots, spaces, newlines and markup in file names: what is written lies in the output folder, and is read back."""
    source, out = tmp_path / "source", tmp_path / "deep" / "out"
    shutil.copytree(good, source)
    names = ["%2e%2e%2fx", "a..b", "-rf", "<script>alert(1)<script>", "ü ü", "x;y&z"]
    first = min((source / "images").iterdir())
    for name in names:
        for folder in ("images", "masks"):
            shutil.copy(source / folder / first.name, source / folder / f"{name}.png")
    arguments = ["generate", "--source", str(source), "--model", str(tiny_model_folder), "--out", str(out)]
    code = command(
        [*arguments, "--tile-size", "64", "--num-steps", "1", "--events.min-area", "16", "--num-threads", "1"]
    )
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"source", "deep"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"out"}
    assert "<script>" not in (out / "report.html").read_text().replace("<script>\n", "")
    records = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    keys = {record["source_key"] for record in records}
    assert len(keys) == len(names) + 2, "each tile keeps a name of its own"
    assert all(key == Path(key).name for key in keys)


@pytest.mark.parametrize("words", [
    "generate --source {source} --model {model} --out {out} --num-pairs 2 --tile-size 64",
    "speed --source {source} --tile-size 64",
    "studio --source {source} --out {out}",
])  # fmt: skip
def test_one_gpu_of_several_is_chosen_by_the_environment(
    words: str, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number was taken, and the first GPU painted all the same."""
    source, out = write_source(tmp_path / "source", 2), tmp_path / "out"
    given = [word.format(source=source, model=tiny_model_folder, out=out) for word in words.split()]
    assert command([*given, "--device", "cuda:1"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "device is 'cuda:1'; allowed: cuda, with CUDA_VISIBLE_DEVICES=1 before the command" in said


def test_a_device_has_no_number_above_0() -> None:
    for fine in (None, "cpu", "cuda", "cuda:0", "mps"):
        refuse_index(fine)
    for wrong, allowed in (("cuda:3", "CUDA_VISIBLE_DEVICES=3"), ("mps:1", "allowed: mps$"), ("cuda:10", "=10 before")):
        with pytest.raises(ConfigError, match=allowed):
            refuse_index(wrong)


@pytest.mark.parametrize("words", [
    "evaluate --detector mini-detector {source} --out {out}",
    "predict {source} --detector mini-detector --out {out}",
    "label --source {source} --out {out}",
])  # fmt: skip
def test_who_keeps_no_kind_of_device_computes_on_the_one_that_is_named(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(tmp_path / "source", 2)
    given = [word.format(source=source, out=tmp_path / "out") for word in words.split()]
    assert command([*given, "--device", "cuda:99"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "device is 'cuda:99', which this PyTorch cannot use (" in said
    assert find_device("cpu:0") == torch.device("cpu:0")  # the number goes on to the networks
