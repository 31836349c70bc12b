"""``changeanywhere label``: masks for imagery that has none."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.transform import Affine

import changeanywhere as ca
from changeanywhere.cli import run
from changeanywhere.errors import ConfigError
from changeanywhere.labelling.label import label, label_image
from changeanywhere.labelling.masks import mask_writer
from changeanywhere.labelling.options import CleaningOptions, LabelOptions
from changeanywhere.labelling.reading import open_readers
from changeanywhere.labelling.regions import guided, whole_objects, without_crumbs
from changeanywhere.labelling.windows import CORE, MARGIN, cells
from changeanywhere.legend import Legend, parse_legend
from changeanywhere.rasters.facts import Facts, Window
from changeanywhere.sources.files import read_info, read_mask, read_mask_info

EXAMPLES = Path(__file__).parents[1] / "src" / "changeanywhere" / "assets" / "examples"
RNG = np.random.default_rng(3)


def example(number: int) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(sorted((EXAMPLES / "images").iterdir())[number]).convert("RGB"))


def test_unknown_ground_is_of_no_object_and_lends_its_probability_to_no_class() -> None:
    """A building in unknown ground was one patch with all of it, and a crumb in it became the first class."""
    probabilities, known = np.zeros((2, 40, 40), np.float32), np.zeros((40, 40), bool)
    probabilities[0, 5:20, 5:20], probabilities[1, 30:33, 30:33] = 1, 1
    known[5:20, 5:20] = known[30:33, 30:33] = True
    for confidence in (0.0, 0.5):
        options = CleaningOptions(min_area=16, min_confidence=confidence)
        mask, _ = whole_objects(probabilities, known, options, objects=[1])
        assert (mask[5:20, 5:20] == 1).all() and np.count_nonzero(mask) == 225
    unsure = np.stack([np.full((32, 32), share, np.float32) for share in (0.4, 0.25)])
    smooth = guided(unsure, np.linspace(0, 1, 32, dtype=np.float32)[:, None] * np.ones((1, 32), np.float32), 4)
    np.testing.assert_allclose(smooth, unsure, atol=1e-4)


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, CORE - 1))
@settings(max_examples=60, deadline=None)
def test_cores_cover_an_image_once_and_windows_reach_around_them(height: int, width: int, offset: int) -> None:
    seen = np.zeros((height, width), np.uint8)
    for cell in cells(height, width, offset):
        seen[cell.core.slices] += 1
        for start, length, whole, core in (
            (cell.window.row, cell.window.height, height, (cell.core.row, cell.core.height)),
            (cell.window.column, cell.window.width, width, (cell.core.column, cell.core.width)),
        ):
            assert start == 0 or start <= core[0] - MARGIN
            assert start + length == whole or start + length >= core[0] + core[1] + MARGIN
        inside = np.zeros((cell.window.height, cell.window.width), bool)
        inside[cell.inside] = True
        assert inside.sum() == cell.core.height * cell.core.width
    assert (seen == 1).all()


def test_borders_of_classes_move_to_those_of_the_image() -> None:
    image = np.where(np.arange(64) < 32, 0.2, 0.8).astype(np.float32) * np.ones((64, 1), np.float32)
    off = (np.arange(64) < 29).astype(np.float32) * np.ones((64, 1), np.float32)  # three px beside the edge
    smooth = guided(np.stack([off, 1 - off]), image, 8)
    np.testing.assert_allclose(smooth.sum(0), 1, atol=1e-5)
    assert (smooth[0, :, 31] - smooth[0, :, 32]).min() > 0.5
    assert np.array_equal(guided(np.stack([off, 1 - off]), image, 0)[0], off)


def test_crumbs_and_holes_become_what_surrounds_them_and_nothing_else_changes() -> None:
    mask = np.ones((40, 40), np.uint8)
    mask[5:7, 5:7], mask[20:30, 20:30], mask[24, 24] = 2, 3, 1
    cleaned = without_crumbs(mask, 16)
    assert cleaned[5, 5] == 1 and cleaned[24, 24] == 3
    assert (cleaned == 3).sum() == 100 and set(np.unique(cleaned)) == {1, 3}
    assert np.array_equal(without_crumbs(cleaned, 16), cleaned)
    assert np.array_equal(without_crumbs(mask, 1), mask)


def test_objects_are_kept_or_dropped_whole_and_other_ground_by_the_pixel() -> None:
    probabilities = np.zeros((2, 40, 40), np.float32)
    probabilities[0], probabilities[1] = 0.9, 0.1
    probabilities[:, 20:, :] = 0.48  # unsure ground: 0.48 each of what two classes share, the rest elsewhere
    probabilities[0, 20:, :] = 0.49
    for top, sure in ((4, 0.8), (28, 0.55)):
        probabilities[1, top : top + 8, 10:20] = sure
        probabilities[0, top : top + 8, 10:20] = 1 - sure
    probabilities[:, 30, 12] = 0.46, 0.47  # an unsure pixel inside an object
    options, known = CleaningOptions(min_area=9, min_confidence=0.5, objects=("b",)), np.ones((40, 40), bool)
    mask, sure_of = whole_objects(probabilities, known, options, objects=[2])
    assert (mask[4:12, 10:20] == 2).all() and (mask[28:36, 10:20] == 2).all()
    assert (mask[22:26] == 0).all() and (mask[:3] == 1).all()
    assert sure_of[30, 12] == pytest.approx(0.47)
    higher, _ = whole_objects(probabilities, known, CleaningOptions(min_area=9, min_confidence=0.7), objects=[2])
    assert (higher[28:36, 10:20] == 0).all() and (higher[4:12, 10:20] == 2).all()


def test_where_windows_are_cut_does_not_show() -> None:
    """Two grids half a window apart agree on 99 % of the pixels."""
    whole = np.concatenate([np.concatenate([example(i + 4 * j) for i in range(4)], 1) for j in range(3)])
    height, width = whole.shape[:2]
    options = LabelOptions(source=Path("a"), out=Path("b"), flips=False)
    reader = open_readers(options, torch.device("cpu")).of("a", Path("a"), Facts("PNG", height, width, 3, "uint8", 8))
    facts = Facts("PNG", height, width, 3, "uint8", 8)

    def labelled(offset: int) -> npt.NDArray[np.uint8]:
        result = np.full((height, width), 255, np.uint8)

        def write(window: Window, mask: npt.NDArray[np.uint8]) -> None:
            result[window.slices] = mask

        label_image(
            facts, lambda w: ((whole[w.slices] / 127.5 - 1).astype(np.float32), None), options, reader, write, offset
        )
        return result

    first, second = labelled(0), labelled(CORE // 2)
    assert first.max() <= reader.legend.num_classes and len(np.unique(first)) > 3
    assert (first == second).mean() >= 0.99


@pytest.mark.parametrize(("shown", "count"), [(1.0, 16), (0.5, 8), (0.01, 1)])
def test_margins_of_a_scene_do_not_settle_how_its_ground_is_read(shown: float, count: int) -> None:
    """Of windows that are mostly nodata: none, where there are others."""
    side, seen = 4 * CORE, list[npt.NDArray[np.float32]]()
    valid = np.broadcast_to(np.arange(side) < shown * side, (side, side))
    reader = MagicMock(legend=parse_legend({"classes": ["a", "b"]}, "legend")[0])

    @contextmanager
    def settled(samples: Iterable[npt.NDArray[np.float32]]) -> Iterator[None]:
        seen.extend(samples)
        yield

    reader.settled, reader.read = settled, lambda _, image: np.full((2, *image.shape[:2]), 0.5, np.float32)
    image = np.where(valid, 0.5, -1).astype(np.float32)[..., None].repeat(3, 2)
    options = LabelOptions(source=Path("a"), out=Path("b"), cleaning=CleaningOptions(radius=0, objects=()))
    facts = Facts("PNG", side, side, 3, "uint8", 8)
    label_image(facts, lambda w: (image[w.slices], valid[w.slices]), options, reader, lambda *_: None)
    assert len(seen) == count and (shown < 0.5 or min(float((one > 0).mean()) for one in seen) >= 0.5)
    assert all((one > 0).any() for one in seen)


def labelled_source(tmp_path: Path) -> Path:
    (tmp_path / "tiles" / "images").mkdir(parents=True)
    for number in range(2):
        Image.fromarray(example(number)).save(tmp_path / "tiles" / "images" / f"tile_{number}.png")
    return tmp_path / "tiles"


def test_a_labelled_folder_is_a_source_and_its_pairs_say_who_labelled_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = labelled_source(tmp_path), tmp_path / "labelled"
    rows = (
        "patch,scene,split,licence,gsd_m,attribution\ntile_0,a,train,CC0-1.0,0.6,me\ntile_1,b,train,CC-BY-4.0,0.6,you\n"
    )
    (source / "provenance.csv").write_text(rows)
    command = ["label", "--source", str(source), "--out", str(out), "--flips", "false"]
    assert run(command) == 0
    assert "labelled 2 images" in capsys.readouterr().out
    table = list(csv.DictReader((out / "labels.csv").read_text().splitlines()))
    assert [row["patch"] for row in table] == ["tile_0", "tile_1"]
    opened = ca.load_source(out)
    for row, sample in zip(table, (opened.read(i) for i in range(2)), strict=True):
        assert float(row["known"]) == pytest.approx((sample.mask > 0).mean(), abs=1e-4)
        assert sample.item.labelled_by.startswith("mini-segmenter ") and sample.item.gsd_m == 0.6
    pairs = tmp_path / "pairs"
    assert (
        run(["generate", "--source", str(out), "--out", str(pairs), "--method", "copy_paste", "--num-pairs", "2"]) == 0
    )
    record = json.loads((pairs / "metadata.jsonl").read_text().splitlines()[0])
    assert record["labelled_by"].startswith("mini-segmenter ") and record["attribution"] in ("me", "you", "me; you")
    assert "not drawn by people" in (pairs / "README.md").read_text()


def test_again_it_goes_on_and_other_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = labelled_source(tmp_path), tmp_path / "labelled"
    command = ["label", "--source", str(source), "--out", str(out), "--flips", "false"]
    assert run(command) == 0
    first = {file.name: file.stat().st_mtime_ns for file in (out / "masks").iterdir()}
    (out / "masks" / "tile_1.png").unlink()
    assert run(command) == 0
    again = {file.name: file.stat().st_mtime_ns for file in (out / "masks").iterdir()}
    assert again["tile_0.png"] == first["tile_0.png"] and again["tile_1.png"] != first["tile_1.png"]
    monkeypatch.chdir(tmp_path)
    assert run(["label", "--source", "tiles", "--out", "labelled", "--flips", "false"]) == 0  # the same place
    assert run([*command, "--cleaning.min-area", "5"]) == 2
    assert "begun with other options" in capsys.readouterr().err


def test_a_folder_of_others_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks that people drew lie beside the images: they were written over."""
    data = labelled_source(tmp_path)
    (data / "masks").mkdir()
    Image.fromarray(np.ones((256, 256), np.uint8)).save(data / "masks" / "tile_0.png")
    (data / "legend.json").write_text(json.dumps({"classes": ["forest", "lake"]}))
    before = {file: file.read_bytes() for file in data.rglob("*") if file.is_file()}
    assert run(["label", "--source", str(data / "images"), "--out", str(data)]) == 2
    error = capsys.readouterr().err
    assert "not made by this command; give another --out" in error and len(error.strip().splitlines()) == 1
    assert {file: file.read_bytes() for file in data.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("images", ["link", "copy"])
def test_an_image_that_was_replaced_is_labelled_anew(images: str, tmp_path: Path) -> None:
    source, out = labelled_source(tmp_path), tmp_path / "labelled"
    command = ["label", "--source", str(source), "--out", str(out), "--flips", "false", "--images", images]
    assert run(command) == 0
    first = {file.name: file.stat().st_mtime_ns for file in (out / "masks").iterdir()}
    Image.fromarray(example(3)[:200]).save(source / "images" / "tile_0.png")
    assert run(command) == 0
    for folder in ("images", "masks"):
        with Image.open(out / folder / "tile_0.png") as image:
            assert image.size == (256, 200)
    assert (out / "masks" / "tile_1.png").stat().st_mtime_ns == first["tile_1.png"]
    note = out / "parts" / "tile_1.json"
    note.write_text(json.dumps({k: v for k, v in json.loads(note.read_text()).items() if k != "image"}))
    assert run(command) == 0  # of an edition that did not note it
    assert (out / "masks" / "tile_1.png").stat().st_mtime_ns == first["tile_1.png"]


@pytest.mark.parametrize("images", ["link", "copy"])
def test_an_image_taken_out_of_the_source_leaves_the_labelled_folder(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ground went on training, without its row of provenance; and of a link to nowhere a source is refused."""
    source, out = labelled_source(tmp_path), tmp_path / "labelled"
    Image.fromarray(example(2)).save(source / "images" / "tile_2.png")
    command = ["label", "--source", str(source), "--out", str(out), "--flips", "false", "--images", images]
    assert run(command) == 0
    elsewhere = tmp_path / "tile_1.png"
    (source / "images" / "tile_1.png").rename(elsewhere)
    (source / "images" / "tile_2.png").rename(source / "images" / "tile_2.PNG")
    own = [out / "images" / "mine.png", out / "masks" / "mine.png", out / "images" / "tile_1.txt"]
    for file in own:
        file.write_bytes((out / "masks" / "tile_0.png").read_bytes())
    capsys.readouterr()
    assert run(command) == 0
    said = capsys.readouterr().err
    assert said.count("no longer in the source") == 1 and "2 images" in said
    assert elsewhere.is_file() and all(file.is_file() for file in own)
    for file in own:
        file.unlink()
    assert sorted(file.name for file in out.glob("images/*")) == ["tile_0.png", "tile_2.PNG"]
    assert sorted(file.name for file in out.glob("masks/*")) == ["tile_0.png", "tile_2.png"]
    assert sorted({file.stem for file in out.glob("parts/*")}) == ["tile_0", "tile_2"]
    assert [item.key for item in ca.load_source(out).items] == ["tile_0", "tile_2"]
    assert run(command) == 0 and "no longer" not in capsys.readouterr().err


def test_images_of_one_date_among_two_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs of two dates need both, and hours of labelling lie before the command that says so."""
    source, dates = labelled_source(tmp_path), tmp_path / "dates"
    for place in ("A/tile_0", "B/tile_0", "A/tile_1", "A/tile_2"):
        (dates / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "images" / "tile_0.png", dates / f"{place}.png")
    command = ["label", "--source", str(dates), "--flips", "false"]
    assert run([*command, "--out", str(tmp_path / "labelled")]) == 0
    said = capsys.readouterr().err
    assert "2 images have no second date, the first A/tile_1.png: expected tile_1 in B/ beside it" in said
    (dates / "A/tile_1.png").unlink()
    assert run([*command, "--out", str(tmp_path / "labelled")]) == 0
    said = capsys.readouterr().err
    assert "removed 1 image, with its mask, that is no longer in" in said and "1 image has no second date" in said
    (dates / "A/tile_2.png").unlink()
    assert run([*command, "--out", str(tmp_path / "labelled")]) == 0
    assert "second date" not in capsys.readouterr().err


def test_an_image_taken_out_before_it_was_labelled_leaves_the_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = labelled_source(tmp_path), tmp_path / "labelled"
    command = ["label", "--source", str(source), "--out", str(out), "--flips", "false"]
    with monkeypatch.context() as broken:
        broken.setattr("changeanywhere.labelling.label.label_image", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            label(LabelOptions(source=source, out=out, flips=False))
    assert len(list(out.glob("images/*"))) == 2
    (source / "images" / "tile_1.png").unlink()
    assert run(command) == 0
    assert [file.name for file in out.glob("images/*")] == ["tile_0.png"]
    assert len(ca.load_source(out).items) == 1


def test_a_folder_of_two_linked_into_the_labelled_one_loses_nothing(tmp_path: Path) -> None:
    """Where images/ is the user's own folder, linked, its files are no copies of this command."""
    source, out = labelled_source(tmp_path), tmp_path / "labelled"
    command = ["label", "--source", str(source), "--out", str(out), "--flips", "false", "--images", "copy"]
    assert run(command) == 0
    (out / "images").rename(tmp_path / "elsewhere")
    (out / "images").symlink_to(tmp_path / "elsewhere")
    (source / "images" / "tile_1.png").unlink()
    assert run(command) == 0
    assert (tmp_path / "elsewhere" / "tile_1.png").is_file()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_class_that_is_black_is_not_unknown_ground(suffix: str, tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[8:24], mask[40:50] = 1, 2
    colours = {"lake": [0, 0, 0], "field": [9, 200, 0]}
    classes = [{"index": n, "name": name, "color": colours[name]} for n, name in enumerate(colours, 1)]
    legend, _ = parse_legend({"classes": classes}, "legend")
    image = tmp_path / f"image.{suffix}"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(image)
    for name, written in (("a", mask), ("b", np.zeros_like(mask))):
        file = tmp_path / "masks" / f"{name}.{suffix}"
        with mask_writer(file, read_info(image), legend) as write:
            write(Window(0, 0, 64, 64), written)
        np.testing.assert_array_equal(read_mask(file, Window(0, 0, 64, 64), legend, read_mask_info(file)), written)


def test_a_geotiff_keeps_its_place_and_ground_without_data_stays_unknown(tmp_path: Path) -> None:
    place = Affine(0.6, 0, 400_000, 0, -0.6, 3_000_000)
    image = np.concatenate([np.concatenate([example(0), example(1), example(2)], 1)] * 3)[:700, :750].copy()
    image[:50] = 0
    (tmp_path / "scene").mkdir()
    with rasterio.open(
        tmp_path / "scene" / "big.tif", "w", driver="GTiff", height=700, width=750, count=3, dtype="uint8",
        crs="EPSG:32640", transform=place, nodata=0,
    ) as target:  # fmt: skip
        target.write(image.transpose(2, 0, 1))
    out = tmp_path / "labelled"
    assert run(["label", "--source", str(tmp_path / "scene"), "--out", str(out), "--flips", "false"]) == 0
    with rasterio.open(out / "masks" / "big.tif") as mask:
        assert mask.crs.to_epsg() == 32640 and mask.transform == place and mask.shape == (700, 750)
        labels, colours = mask.read(1), mask.colormap(1)
    assert (labels[:50] == 0).all() and (labels[60:] > 0).mean() > 0.3
    legend = Legend.load(out / "legend.json")
    assert all(colours[c.index][:3] == c.color for c in legend.classes)
    assert len(ca.load_source(out).items) == 9
    assert not list((out / "masks").glob(".*"))


def test_one_pixel_of_nan_leaves_the_rest_labelled(tmp_path: Path) -> None:
    image = example(0).astype(np.float32)
    (tmp_path / "scene").mkdir()
    found = []
    for name in ("whole", "hole"):
        if name == "hole":
            image[30, 40] = np.nan
        with rasterio.open(
            tmp_path / "scene" / "one.tif", "w", driver="GTiff", height=256, width=256, count=3, dtype="float32",
            crs="EPSG:32640", transform=Affine(0.6, 0, 400_000, 0, -0.6, 3_000_000),
        ) as target:  # fmt: skip
            target.write(image.transpose(2, 0, 1))
        out = tmp_path / name
        assert run(["label", "--source", str(tmp_path / "scene"), "--out", str(out), "--flips", "false"]) == 0
        (row,) = csv.DictReader((out / "labels.csv").read_text().splitlines())
        assert 0 < float(row["confidence"]) <= 1
        with rasterio.open(out / "masks" / "one.tif") as mask:
            found.append(mask.read(1))
    assert found[1][30, 40] == 0 and (found[0] > 0).mean() > 0.3
    assert (found[0] == found[1]).mean() > 0.95


def test_confidence_is_of_ground_with_data() -> None:
    """What the segmenter says of the fill of nodata counted as if it were ground."""
    options = LabelOptions(source=Path(), out=Path("o"), cleaning=CleaningOptions(radius=0, objects=()))
    legend = parse_legend({"classes": ["field", "lake"]}, "legend")[0]
    reader = MagicMock(legend=legend, settled=nullcontext)
    reader.read = lambda _, image: np.stack([np.where(image[..., 0] > 0, 0.9, 0.6), np.full(image.shape[:2], 0.1)])
    facts = Facts("TIFF", 64, 96, 3, "uint8", 8)
    image = np.full((64, 96, 3), -1, np.float32)
    image[:, :16] = 1

    def confidence(valid: npt.NDArray[np.bool_] | None) -> float:
        def pixels(window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
            return image[window.slices], None if valid is None else valid[window.slices]

        return label_image(facts, pixels, options, reader, lambda *_: None)[1]

    assert confidence(None) == pytest.approx(0.65, abs=0.005)
    assert confidence(image[..., 0] > 0) == pytest.approx(0.9, abs=0.005)
    assert confidence(np.zeros((64, 96), bool)) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--segmenter", "nothing-here"], "not a readable segmenter"),
        (["--scales", "[0]"], "scales is"),
        (["--images", "move"], "images is"),
        (["--bands", "[1,2]"], "bands is"),
        (["--bands", "[1,2,7]"], "has 3 band"),
        (["--cleaning.min-confidence", "1.5"], "min_confidence"),
    ],
)
def test_wrong_input_is_one_line(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = labelled_source(tmp_path)
    assert run(["label", "--source", str(source), "--out", str(tmp_path / "o"), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1


def test_out_may_not_lie_in_the_source(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="in the source"):
        LabelOptions(source=tmp_path, out=tmp_path / "o").check()
    with pytest.raises(ConfigError, match=r"cleaning\.radius"):
        LabelOptions(source=tmp_path, out=Path("/nowhere/o"), cleaning=CleaningOptions(radius=99)).check()
