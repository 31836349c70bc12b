"""Real second dates: what is painted on them, where nobody knows what they show, and what labels then say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from scipy import ndimage

from changeanywhere.cli import run as command
from changeanywhere.errors import PairsError, SourceError
from changeanywhere.events.ground import describe
from changeanywhere.generation.found import correlation, doubtful, settled, solid, with_found
from changeanywhere.generation.second import (
    SecondDate,
    SecondOptions,
    _reader,
    compare_dates,
    differing,
    disagreeing,
    in_style,
    packed,
    unpacked,
)
from changeanywhere.pairs.containers import stream_pairs
from changeanywhere.pairs.reader import load_pairs
from changeanywhere.pairs.split import assign_splits, stated_splits
from changeanywhere.pairs.writer import check_labels
from changeanywhere.sample import ChangePlan, Normalisation, SourceItem, SourceSample, change_mask_of
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.sources.dates import expected_second
from conftest import write_source
from raster_files import write_tif

HOUSE = slice(36, 60), slice(36, 60)
"""Where every tile differs in earnest at the second date."""
TILES = SourceOptions(tile_size=64)
GENERATE = ["--tile-size", "64", "--num-pairs", "8", "--method", "copy_paste", "--events.min-area", "4"]


def write_dates(folder: Path, count: int = 6) -> Path:
    """Tiles, and the same ground in other light, with something new in :data:`HOUSE`."""
    source = write_source(folder, count)
    (source / "images_t2").mkdir()
    rng = np.random.default_rng(7)
    for file in sorted((source / "images").iterdir()):
        image = np.asarray(Image.open(file).convert("RGB")).astype(np.float64)
        other = image * [0.8, 0.85, 0.9] + 20 + rng.normal(0, 3, image.shape)
        other[HOUSE] = [230, 60, 60]
        Image.fromarray(other.clip(0, 255).astype(np.uint8)).save(source / "images_t2" / f"{file.stem}.png")
    return source


def ground(seed: int = 0, side: int = 128) -> np.ndarray:
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=(side, side)), 4) for _ in range(3)]
    shades = np.stack([field / field.std() for field in fields], 2) * 0.15 + rng.normal(0, 0.02, (side, side, 3))
    return shades.clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize("masks", ["keep", "ignore"])
def test_ground_that_is_the_same_by_whole_cells_is_no_change(masks: str) -> None:
    """Half of the ground is the same, up to no border of cells; masks contradict each other in a part of each cell."""
    item = SourceItem("tile", "tile")
    first, other = ground(0, 64), ground(9, 64)
    other[:, :30] = first[:, :30]
    scale = Normalisation.eight_bit(3)
    one, two = np.full((64, 64), 1, np.uint8), np.full((64, 64), 2, np.uint8)
    one[40:, :20] = 0  # one of them knows nothing
    if masks == "ignore":
        two[:, 2::4], two[:, 3::4] = 1, 1

    def sample(image: np.ndarray, mask: np.ndarray) -> SourceSample:
        return SourceSample(item, ((image + 1) * 127.5).astype(np.uint8), mask, ("1", "2", "3"), scale)

    source = MagicMock(items=(item,))
    source.__len__.return_value = 1
    source.read.return_value, source.read_mask.return_value = sample(first, one), one
    source.read_second.return_value, source.read_second_mask.return_value = sample(other, one), two
    ignored, apart = compare_dates(source, SecondOptions(use="base", masks=masks), lambda *_: None)
    before, after = SecondDate(source, ignored, apart).read_masks(0)
    changed = change_mask_of(before, after)
    assert apart is not None and 0.2 < unpacked(apart[0]).mean() < 0.8
    assert not changed[~unpacked(apart[0])].any() and not (changed & unpacked(ignored[0])).any()
    assert changed.any() == (masks == "keep") and not ((before == 0) != (after == 0)).any()


def write_nodata(folder: Path, one: np.ndarray, two: np.ndarray, masks: list[np.ndarray]) -> Path:
    """A GeoTIFF of 64 px per date, 0 = nodata, and masks of both."""
    for date, image, mask in zip(("A", "B"), (one, two), masks, strict=True):
        for kind, values in (("images", image), ("masks", mask)):
            write_tif(folder / kind / date / "x.tif", values, nodata=0 if kind == "images" else None)
    (folder / "legend.json").write_text(json.dumps({"classes": ["ground", "roof"]}))
    return folder


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("hidden", [0, 1], ids=["A", "B"])
@pytest.mark.parametrize("masks", ["none", "ignore", "keep"])
def test_ground_that_a_date_does_not_show_is_ignored(tmp_path: Path, masks: str, hidden: int, known: bool) -> None:
    """In either order of the dates, though what fills it is as dark as the other date, and whatever the masks say."""
    first = ((ground(3, 64) + 1) * 127.5).clip(1, 255).astype(np.uint8)
    dark = ndimage.gaussian_filter(first.mean(2), 3)
    hole = dark < np.percentile(dark, 20)
    first[hole] = 1 + first[hole] // 12
    dates = [first, (first * 0.9 + 8).clip(1, 255).astype(np.uint8)]
    dates[hidden] = np.where(hole[..., None], 0, dates[hidden])
    classes = np.ones((64, 64), np.uint8) if known else np.where(hole, 0, 1).astype(np.uint8)
    source = open_source(write_nodata(tmp_path, dates[0], dates[1], [classes, classes]), TILES)
    ignored, other = compare_dates(source, SecondOptions(use="base", masks=masks), lambda *_: None)
    second = SecondDate(source, ignored, other)
    assert len(source) == 2
    far = ~ndimage.binary_dilation(hole, iterations=8)
    for index in range(2):
        assert second.ignored(index)[hole].all() and not any(mask[hole].any() for mask in second.read_masks(index))
        assert second.ignored(index)[far].mean() < 0.02, "nothing else: all other ground is the same"
        valid = source.read(index).valid
        assert valid is None or not valid[hole].any()


def test_what_fills_a_hole_says_nothing_of_other_ground() -> None:
    first, rng = ground(), np.random.default_rng(1)
    second = (first * 0.7 + 0.2 + rng.normal(0, 0.02, first.shape)).astype(np.float32)
    shown = np.ones((128, 128), bool)
    shown[:, 20:90] = False
    for fill in ((-1, -1), (-1, 1), (1, 0)):
        one, two = (
            np.where(shown[..., None], image, np.float32(value))
            for image, value in zip((first, second), fill, strict=True)
        )
        alike, differs = correlation(one, two, shown), differing(one, two, 6.0, shown)
        assert (alike[~shown] == -1).all() and alike[shown].min() > 0.85
        assert not differs[~shown].any() and differs.mean() < 0.005
    everywhere = np.ones_like(shown)
    assert np.array_equal(differing(first, second, 2.0, everywhere), differing(first, second, 2.0))
    assert not differing(first, -first, 1.0, ~everywhere).any() and (correlation(first, first, ~everywhere) == -1).all()


def test_light_is_no_difference_and_a_new_roof_is() -> None:
    first = ground()
    slope = np.linspace(-0.1, 0.1, 128)[:, None, None]
    second = (first * 0.7 + 0.2 + slope + np.random.default_rng(1).normal(0, 0.02, first.shape)).astype(np.float32)
    assert differing(first, second, 6.0).mean() < 0.005
    roof = second.copy()
    roof[40:70, 40:70] = [0.9, -0.6, -0.6]
    found = differing(first, roof, 6.0)
    assert found[44:66, 44:66].mean() > 0.9 and found[:30].mean() < 0.02 and found[80:].mean() < 0.02
    assert differing(first, roof, 3.0).sum() >= found.sum()
    assert not differing(first, first, 0.5).any(), "the same image twice"
    specks = second.copy()
    specks[100, 100] = 1
    assert not differing(first, specks, 6.0)[95:105, 95:105].any()
    flat = np.zeros((64, 64, 3), np.float32)
    assert not differing(flat, flat, 1.0).any(), "ground without any contrast"


def test_two_sure_readings_that_differ_are_a_disagreement() -> None:
    one, two = np.full((3, 32, 32), 0.1, np.float32), np.full((3, 32, 32), 0.1, np.float32)
    one[0], two[0] = 0.8, 0.8
    two[:, 8:16, 8:16] = np.array([0.1, 0.8, 0.1])[:, None, None]
    two[:, 20:28, 20:28] = np.array([0.45, 0.55, 0.0])[:, None, None]
    found = disagreeing(one, two)
    assert found[8:16, 8:16].all() and found.sum() == 64


def test_ignored_ground_is_cells_and_fits_in_a_job() -> None:
    where = np.zeros((64, 48), bool)
    where[5, 9] = where[63, 47] = True
    back = unpacked(packed(where))
    assert back[4:8, 8:12].all() and back[60:, 44:].all() and back.sum() == 32 and back.shape == where.shape


def test_a_second_date_lies_beside_the_first(tmp_path: Path) -> None:
    source = open_source(write_dates(tmp_path / "plain"), TILES)
    second = source.read_second(2)
    assert second.date == 2 and second.item == source.items[2] and np.array_equal(second.mask, source.read_mask(2))
    assert (second.image[HOUSE] == [230, 60, 60]).all() and not np.array_equal(second.image, source.read(2).image)
    dates = write_dates(tmp_path / "dates")
    (dates / "images").rename(dates / "A")
    (dates / "images_t2").rename(dates / "B")
    both = open_source(dates, TILES)
    assert len(both) == 6 and np.array_equal(both.read_second(2).image, second.image)
    with pytest.raises(SourceError, match="no image of a second date"):
        open_source(write_source(tmp_path / "one"), TILES).second_hash()
    file = dates / "B" / "tile_3.png"
    Image.open(file).resize((80, 80)).save(file)
    with pytest.raises(SourceError, match=r"tile_3\.png: 80x80 px, but its first date tile_3\.\w+ has 64x64 px"):
        open_source(dates, TILES).second_hash()
    file.unlink()
    with pytest.raises(SourceError, match=r"tile_3\.\w+: no image of a second date; expected tile_3 in B/ beside it"):
        open_source(dates, TILES).second_hash()
    assert open_source(dates, TILES).fingerprint() == both.fingerprint(), "who does not ask needs none"


@pytest.mark.parametrize(
    ("image", "also", "expected"),
    [
        ("images/B/t3.png", "images/A", "t3 in A/ beside it"),
        ("images/A/t3.png", "images/B", "t3 in B/ beside it"),
        ("images/B/north/t3.png", "images/A/north", "north/t3 in A/ beside B/"),
        ("images/b/t3.png", "images/a", "t3 in a/ beside it"),
        ("images/after/t3.png", "images/before", "t3 in before/ beside it"),
        ("images/image2/t3.png", "images/image1", "t3 in image1/ beside it"),
        ("images/B/t3.png", "images", "t3 in A/ beside it"),
        ("images/north/t3.png", "images_t2", "north/t3 in images_t2/ beside images/"),
        ("images/t3.png", "images", "t3 in images_t2/ beside it"),
        ("A/t3.png", "A", "t3 in B/ beside it"),
    ],
)
def test_a_tile_of_one_date_names_the_folder_of_the_other(tmp_path: Path, image: str, also: str, expected: str) -> None:
    (tmp_path / image).parent.mkdir(parents=True)
    (tmp_path / also).mkdir(parents=True, exist_ok=True)
    assert expected_second(tmp_path / image, tmp_path) == expected


def test_a_tile_that_only_one_date_has_is_named_with_the_other_date(tmp_path: Path) -> None:
    image = ((ground(3, 64) + 1) * 127.5).astype(np.uint8)
    source = write_nodata(tmp_path, image, image, [np.ones((64, 64), np.uint8)] * 2)
    for date, other in (("A", "B"), ("B", "A")):
        for kind in ("images", "masks"):
            shutil.copyfile(source / kind / date / "x.tif", source / kind / date / "t3.tif")
        with pytest.raises(
            SourceError, match=rf"t3\.tif: no image of a second date; expected t3 in {other}/ beside it"
        ):
            open_source(source, TILES).second_hash()
        (source / "images" / date / "t3.tif").unlink()
        (source / "masks" / date / "t3.tif").unlink()


def test_tiles_without_a_sound_second_date_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As all that cannot be read: listed, and the rest is painted; the same set goes on by itself."""
    source = write_dates(tmp_path / "source")
    (source / "images_t2/tile_1.png").unlink()
    (source / "images_t2/tile_2.png").write_bytes(b"no image")
    Image.new("RGB", (32, 32)).save(source / "images_t2/tile_3.png")
    given = ["generate", "--source", str(source), *GENERATE, "--second.use", "base", "--out", str(tmp_path / "out")]
    assert command(given) == 2
    assert "tile_1.png: no image of a second date; expected tile_1 in images_t2/" in capsys.readouterr().err
    for _ in range(2):
        assert command([*given, "--on-error", "skip"]) == 0
    lines = (tmp_path / "out/skipped.txt").read_text().splitlines()
    assert ["tile_1" in lines[0], "tile_2" in lines[1] or "tile_2" in lines[2], len(lines)] == [True, True, 3]
    used = {json.loads(line)["source_key"] for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()}
    assert used and not used & {"tile_1", "tile_2", "tile_3"}


def test_a_tile_whose_twin_has_no_mask_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = ((ground(3, 64) + 1) * 127.5).astype(np.uint8)
    mask = np.ones((64, 64), np.uint8)
    mask[20:36, 24:44] = 2
    source = write_nodata(tmp_path / "source", image, image, [mask] * 2)
    (source / "legend.json").write_text(json.dumps({"classes": ["tree", "building"]}))
    for date in ("A", "B"):
        for kind in ("images", "masks"):
            shutil.copyfile(source / kind / date / "x.tif", source / kind / date / "y.tif")
    (source / "masks/B/y.tif").write_bytes(b"no mask")
    given = ["generate", "--source", str(source), *GENERATE, "--second.use", "base", "--second.masks", "keep"]
    assert command([*given, "--on-error", "skip", "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    skipped = (tmp_path / "out/skipped.txt").read_text()
    assert "masks/B/y.tif: not a readable image" in skipped and "the second date of y.tif has no mask" in skipped
    used = {json.loads(line)["source_key"] for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()}
    assert used == {"A__x", "B__x"}


def test_what_label_makes_of_two_dates_has_both(tmp_path: Path) -> None:
    source = write_dates(tmp_path / "source", 3)
    for folder, content in (("images", "images"), ("masks", "masks"), ("images_t2", "images")):
        for file in sorted((source / folder).iterdir()):
            date = "B" if folder == "images_t2" else "A"
            place = tmp_path / "labelled" / content / date / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
            if date == "B":
                twin = tmp_path / "labelled" / "masks" / "B" / file.name
                twin.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / "masks" / file.name, twin)
    shutil.copyfile(source / "legend.json", tmp_path / "labelled" / "legend.json")
    both = open_source(tmp_path / "labelled", TILES)
    assert len(both) == 6
    for one, two in (("A__tile_1", "B__tile_1"), ("B__tile_1", "A__tile_1")):
        second = both.read_second(both.index_of(one))
        assert np.array_equal(second.image, both.read(both.index_of(two)).image)


@pytest.mark.parametrize("parts", [[""], ["east", "west"], ["train", "val"]])
def test_two_dates_with_a_mask_each_are_one_scene(parts: list[str], tmp_path: Path) -> None:
    """Without provenance.csv: each date was a scene of its own, and one ground lay in two splits."""
    root = tmp_path / "source"
    for part in parts:
        tiles = write_source(tmp_path / f"tiles_{part}", 4)
        for date in ("im1", "im2"):
            shutil.copytree(tiles / "images", root / part / "images" / date)
            shutil.copytree(tiles / "masks", root / part / "masks" / date)
    shutil.copyfile(tiles / "legend.json", root / "legend.json")
    items = open_source(root, TILES).items
    splits = assign_splits(stated_splits(items))
    grounds = {item.key: item.scene for item in items}
    assert len(items) == 8 * len(parts) and len(splits) == 4 * len(parts)
    assert all(scene == grounds[key.replace("im1", "im2")] for key, scene in grounds.items())
    rows = [f"{'/'.join(['im1', f'tile_{n}'])},s{n}" for n in range(4)]
    if parts == [""]:
        (root / "provenance.csv").write_text("\n".join(["patch,scene", *rows]) + "\n")
        scenes = {item.key: item.scene for item in open_source(root, TILES).items}
        assert scenes["im1__tile_2"] == scenes["im2__tile_2"] == "s2", "what provenance.csv says of either date holds"
        rows = [f"im1/tile_{n},s{n},{'val' if n else 'train'}" for n in range(4)]
        (root / "provenance.csv").write_text("\n".join(["patch,scene,split", *rows]) + "\n")
        splits = assign_splits(stated_splits(open_source(root, TILES).items))
        assert splits == {"s0": "train", "s1": "val", "s2": "val", "s3": "val"}, "so does the split"


def write_labelled(folder: Path, count: int = 6) -> Path:
    """Two dates of the same ground with a mask each, as ``label`` writes them: something of another class in
    :data:`HOUSE` at date B, and a strip that nobody knows there."""
    source = write_dates(folder / "source", count)
    for date, images in (("A", "images"), ("B", "images_t2")):
        shutil.copytree(source / images, folder / "labelled" / "images" / date)
        shutil.copytree(source / "masks", folder / "labelled" / "masks" / date)
    shutil.copyfile(source / "legend.json", folder / "labelled" / "legend.json")
    for file in (folder / "labelled" / "masks" / "B").iterdir():
        mask = np.asarray(Image.open(file)).copy()
        mask[HOUSE] = 3 - mask[HOUSE].clip(1, 2)
        mask[:8] = 0
        Image.fromarray(mask).save(file)
    return folder / "labelled"


def labelled_set(tmp_path: Path, masks: str, *more: str) -> Path:
    if not (tmp_path / "labelled").exists():
        write_labelled(tmp_path)
    given = ["generate", "--source", str(tmp_path / "labelled"), *GENERATE, "--second.use", "base"]
    given += ["--second.masks", masks, "--num-pairs", "12", *more]
    assert command([*given, "--out", str(tmp_path / masks)]) == 0
    return tmp_path / masks


@pytest.mark.parametrize("masks", ["keep", "ignore"])
def test_masks_of_both_dates_say_what_changed_between_them(tmp_path: Path, masks: str) -> None:
    out = labelled_set(
        tmp_path,
        masks,
        "--targets.no-change",
        "0.25",
        "--random-order",
        "--second.min-z",
        "900",
        "--second.min-correlation",
        "1",
    )
    source, pairs = open_source(tmp_path / "labelled", TILES), load_pairs(out)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and {line["real_date"] for line in lines} == {1, 2}
    painted = 0
    for number, line in enumerate(lines):
        pair, index = pairs[number], source.index_of(line["source_key"])
        own, other = source.read_mask(index), source.read_second_mask(index)
        assert pair.mask_t1 is not None and pair.mask_t2 is not None and pair.ignored is not None
        images, written = (pair.image_t1, pair.image_t2), (pair.mask_t1, pair.mask_t2)
        (image_t2, first, second) = (images[1], *written) if line["real_date"] == 1 else (images[0], *written[::-1])
        assert pair.ignored[:8].all(), "unknown at one date"
        assert pair.ignored[HOUSE].all() == (masks == "ignore") and not pair.ignored[10:34].any()
        known = ~pair.ignored
        assert np.array_equal(first[known], own[known]) and not first[pair.ignored].any()
        assert np.array_equal(pair.change_mask, known & (first != second))
        real = known & np.all(image_t2 == source.read_second(index).image, 2)
        assert np.array_equal(second[real], (other if masks == "keep" else own)[real]) and real.mean() > 0.5
        painted += int((known & ~real).sum())
        found = [event for event in line["events"] if event["kind"] == "found"]
        assert bool(found) == (masks == "keep") == ("found" in line["kind"])
        assert sum(event["area"] for event in line["events"]) == pair.change_mask.sum(), "every changed px, once"
        assert line["change_ratio"] == pytest.approx(pair.change_mask.mean(), abs=1e-6)
    assert painted, "changes are painted beside those that were found"
    assert sum(line["kind"] == "no_change" for line in lines) == (3 if masks == "ignore" else 0)
    assert command(["check", str(out)]) == 0
    assert ("In 12 pairs changes stand that nobody painted" in (out / "README.md").read_text()) == (masks == "keep")


def test_ground_that_looks_the_same_is_unchanged_whatever_its_masks_say(tmp_path: Path) -> None:
    out = labelled_set(tmp_path, "keep", "--targets.no-change", "1")
    assert json.loads((out / "targets.json").read_text())[0]["target"] == "no change (with changes that were found)"
    source, pairs = open_source(tmp_path / "labelled", TILES), load_pairs(out)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    settled_ = 0
    for number, line in enumerate(lines):
        pair, index = pairs[number], source.index_of(line["source_key"])
        images = source.read(index).pixels(), source.read_second(index).pixels()
        same = ~unpacked(packed(correlation(*images) < 0.3))
        ignored = np.zeros_like(same) if pair.ignored is None else pair.ignored
        assert pair.mask_t1 is not None and pair.mask_t2 is not None
        assert not pair.change_mask[same].any() and np.array_equal(pair.mask_t1[same], pair.mask_t2[same])
        known = same & ~ignored
        settled_ += int((known[:8] & (pair.mask_t1[:8] > 0)).sum())
        house = np.zeros_like(same)
        house[HOUSE] = True
        assert not pair.mask_t1[known & house].any(), "two masks that contradict each other say nothing"
    assert settled_, "what is unknown at one date has the class of the other"
    assert command(["check", str(out)]) == 0


def test_what_was_painted_over_a_change_that_was_found_counts_as_it_ends() -> None:
    first, ground = np.ones((8, 8), np.uint8), np.ones((8, 8), np.uint8)
    first[:2], ground[:2] = 0, 0
    ground[4:6, 2:6] = 2  # a house that came
    painted = ground.copy()
    painted[4:6, 2:4] = 1  # half of it removed again
    painted[4:6, 4:5] = 3  # a part made something else
    painted[7, 0] = 2  # and a house of its own
    change = change_mask_of(ground, painted)
    drawn = (*describe("disappearance", ground, np.where(painted == 1, painted, ground)),)
    drawn += (*describe("conversion", ground, np.where(painted == 3, painted, ground)),)
    drawn += (*describe("appearance", ground, np.where((painted == 2) & change, painted, ground)),)
    plan = with_found(first, ground, ChangePlan(painted, change, drawn, 7))
    assert np.array_equal(plan.change_mask, change_mask_of(first, painted)) and plan.change_mask.sum() == 5
    assert [(event.kind, event.from_class, event.to_class, event.area) for event in plan.events] == [
        ("appearance", 1, 2, 1),
        ("found", 1, 2, 2),
        ("found", 1, 3, 2),
    ]
    assert plan.seed == 7 and np.array_equal(plan.mask_t2, painted)
    same = with_found(ground, ground, ChangePlan(painted, change, drawn, 7))
    assert same.events == drawn and np.array_equal(same.change_mask, change)


def test_where_masks_of_both_dates_leave_no_label() -> None:
    first, second = np.ones((32, 32), np.uint8), np.ones((32, 32), np.uint8)
    second[2:12, 2:12] = 2  # a house that came
    second[20:22, :] = 2  # two outlines of one thing
    first[26:28], second[29:31] = 0, 0
    differs, same = np.zeros((32, 32), bool), np.zeros((32, 32), bool)
    differs[8:16, 8:16] = True
    same[:, 24:] = True
    kept, dropped = (doubtful(differs, first, second, same, keep) for keep in (True, False))
    expected = np.zeros((32, 32), bool)
    expected[8:16, 8:16], expected[2:12, 2:12] = True, False
    for rows in (slice(20, 22), slice(26, 28), slice(29, 31)):
        expected[rows, :24] = True
    assert np.array_equal(kept, expected), "all but the house, and nowhere that is the same"
    expected[2:12, 2:12] = True
    assert np.array_equal(dropped, expected)
    assert np.array_equal(solid(second == 2), np.pad(np.ones((10, 10), bool), ((2, 20), (2, 20))))
    one, two = settled(first, second, kept, same)
    assert not one[kept].any() and not two[kept].any()
    assert np.array_equal(one[same], two[same]), "the same ground has one class"
    assert (one[26:31, 24:] == 1).all() and not one[20:22, 24:].any(), (
        "what one of them knows; nothing where they quarrel"
    )
    assert (one[2:12, 2:12] == 1).all() and (two[2:12, 2:12] == 2).all()
    assert np.array_equal(change_mask_of(one, two), np.pad(np.ones((10, 10), bool), ((2, 20), (2, 20))))


def test_light_does_not_hide_that_the_same_things_stand_there() -> None:
    first = ground()
    haze = (first * 0.6 + 0.3 + np.linspace(-0.1, 0.1, 128)[:, None, None]).astype(np.float32)
    assert correlation(first, haze).min() > 0.85 and correlation(first, first) == pytest.approx(1, abs=1e-6)
    other = haze.copy()
    other[30:80, 30:80] = ground(9)[30:80, 30:80]
    found = correlation(first, other)
    assert found[45:65, 45:65].max() < 0.45 and found[105:].min() > 0.8
    flat = np.zeros((64, 64, 3), np.float32)
    assert np.abs(correlation(flat, flat)).max() < 0.1, "where nothing is to be seen nothing can be the same"


def test_masks_of_both_dates_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_dates(tmp_path / "source")
    given = ["generate", "--source", str(source), *GENERATE, "--second.masks", "keep", "--out", str(tmp_path / "out")]
    assert command([*given, "--second.use", "base"]) == 2
    said = capsys.readouterr().err
    assert "images_t2" in said and "has no mask among the source's; `changeanywhere label`" in said
    assert command([*given, "--second.use", "style"]) == 2
    assert "second.masks is 'keep'; allowed: none, or second.use base" in capsys.readouterr().err


def base_set(tmp_path: Path, *more: str, name: str = "pairs") -> Path:
    source = tmp_path / "source"
    if not source.exists():
        write_dates(source)
    given = ["generate", "--source", str(source), *GENERATE, "--second.use", "base", *more]
    assert command([*given, "--out", str(tmp_path / name)]) == 0
    return tmp_path / name


def test_changes_are_painted_on_the_second_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = base_set(tmp_path, "--targets.no-change", "0.25", "--seed", "3")
    source, pairs = open_source(tmp_path / "source", TILES), load_pairs(out)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert len(pairs) == 8 and {line["second"] for line in lines} == {"base"}
    assert sorted(line["kind"] == "no_change" for line in lines).count(True) == 2
    for number, line in enumerate(lines):
        pair, index = pairs[number], source.index_of(line["source_key"])
        first, second = source.read(index), source.read_second(index)
        assert np.array_equal(pair.image_t1, first.image), "date 1 as it is"
        kept = ~pair.change_mask
        assert np.array_equal(pair.image_t2[kept], second.image[kept]), "what did not change is the second date"
        assert pair.ignored is not None and pair.mask_t1 is not None and pair.mask_t2 is not None
        assert pair.ignored[HOUSE].mean() > 0.9 and pair.ignored.mean() < 0.5
        assert line["ignored_ratio"] == pytest.approx(pair.ignored.mean(), abs=1e-6)
        assert not pair.mask_t1[pair.ignored].any() and not pair.mask_t2[pair.ignored].any()
        known = ~pair.ignored
        assert np.array_equal(pair.mask_t1[known], first.mask[known])
        both = (pair.mask_t1 > 0) & (pair.mask_t2 > 0)
        assert np.array_equal(pair.change_mask, (pair.mask_t1 != pair.mask_t2) & both)
        for folder, allowed in (("label", {0, 255}), ("ignore", {0, 255})):
            assert set(np.unique(np.asarray(Image.open(out / folder / f"{line['key']}.png")))) <= allowed
    assert any(pairs[n].change_mask.any() for n in range(8))
    capsys.readouterr()
    assert command(["check", str(out)]) == 0
    assert "% of the ground" in capsys.readouterr().out
    assert "ignore/" in (out / "README.md").read_text() and "of the ground" in (out / "report.html").read_text()
    again = base_set(tmp_path, "--targets.no-change", "0.25", "--seed", "3", name="again")
    for file in sorted(path for path in out.rglob("*.png")):
        assert file.read_bytes() == (again / file.relative_to(out)).read_bytes()
    assert (out / "metadata.jsonl").read_bytes() == (again / "metadata.jsonl").read_bytes()


def test_losses_and_scores_do_not_know_ignored_ground(tmp_path: Path) -> None:
    import torch

    from changeanywhere.training.detection import IGNORE, scores_of
    from changeanywhere.training.pair_batches import label_of

    out = base_set(tmp_path)
    pair = load_pairs(out)[0]
    assert pair.ignored is not None
    label = label_of(replace(pair, mask_t1=None, mask_t2=None))
    assert (label[pair.ignored] == IGNORE).all() and set(np.unique(label[~pair.ignored])) <= {0, 1}
    truth = torch.from_numpy(label.astype(np.int64))[None]
    everything, elsewhere = torch.ones_like(truth).bool(), torch.from_numpy(~pair.ignored)[None]
    assert scores_of(everything, truth) == scores_of(elsewhere, truth), "called changed there or not, it is all one"
    before = load_pairs(out).content_hash()
    file = out / "ignore" / f"{pair.key}.png"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(file)
    assert load_pairs(out).content_hash() != before and load_pairs(out)[0].ignored is None
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(file)
    with pytest.raises(PairsError, match=r"label value 7; allowed in a generated set: 0 and 255"):
        load_pairs(out)[0]
    file.unlink()
    with pytest.raises(PairsError, match=r"ignore.*missing"):
        load_pairs(out)[0]
    with pytest.raises(PairsError, match=r"have a class in 1 px of ignored ground; allowed: 0"):
        where = np.zeros((4, 4), bool)
        where[0, 0] = True
        check_labels("k", np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8), np.zeros((4, 4), bool), where)


def test_an_export_keeps_ignored_ground(tmp_path: Path) -> None:
    out = base_set(tmp_path)
    assert command(["export", str(out), "--layout", "levir", "--out", str(tmp_path / "levir")]) == 0
    before, after = load_pairs(out), load_pairs(tmp_path / "levir")
    for number in range(len(before)):
        one, two = before[number].ignored, after[number].ignored
        assert one is not None and two is not None and np.array_equal(one, two)
    card = (tmp_path / "levir" / "README.md").read_text()
    assert "ground that no label speaks of" in card and "ignore/**" in card and "Not carried" not in card
    row = json.loads((tmp_path / "levir" / "train.jsonl").read_text().splitlines()[0])
    assert (tmp_path / "levir" / row["ignore_file_name"]).is_file()
    assert command(["export", str(out), "--layout", "second", "--out", str(tmp_path / "s")]) == 0
    assert "ground that labels leave out, in 8 pairs" in (tmp_path / "s" / "README.md").read_text()


@pytest.mark.parametrize("container", ["webdataset", "parquet"])
def test_containers_hold_ignored_ground(tmp_path: Path, container: str) -> None:
    if container == "parquet":
        pytest.importorskip("pyarrow")
    plain, packed_ = load_pairs(base_set(tmp_path)), base_set(tmp_path, "--format", container, name=container)
    for number, pair in enumerate(sorted(stream_pairs(packed_), key=lambda pair: pair.key)):
        ignored = plain[number].ignored
        assert pair.key == plain[number].key and pair.ignored is not None and ignored is not None
        assert np.array_equal(pair.ignored, ignored)
    whole = load_pairs(packed_)
    assert len(whole) == 8 and np.array_equal(whole[0].ignored, plain[0].ignored)  # type: ignore[arg-type]


def test_dates_may_be_exchanged_and_disturbed(tmp_path: Path) -> None:
    out = base_set(tmp_path, "--random-order", "--nuisances.blur", "[1, 1]", "--image-format", "geotiff")
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert {line["real_date"] for line in lines} == {1, 2}
    source, pairs = open_source(tmp_path / "source", TILES), load_pairs(out)
    for number, line in enumerate(lines):
        real = pairs[number].image_t1 if line["real_date"] == 1 else pairs[number].image_t2
        assert np.array_equal(real, source.read(source.index_of(line["source_key"])).image)


def test_what_files_of_both_dates_say_of_their_bands_stays(tmp_path: Path) -> None:
    """Reflectances as whole numbers, whose offset is another at each date: what
    is the same ground has the same physical values, and a set that goes on has the same bytes."""
    source = write_dates(tmp_path / "source")
    said = {"descriptions": ("B03", "B04", "B08"), "units": ("reflectance", "1", "reflectance")}
    for folder, offset in (("images", 0.0), ("images_t2", -0.01)):
        for file in sorted((source / folder).iterdir()):
            three = np.asarray(Image.open(file).convert("RGB")).astype(np.uint16) * 16 + round(-offset * 10_000)
            with rasterio.open(write_tif(file.with_suffix(".tif"), three), "r+") as raster:
                raster.descriptions, raster.units = said["descriptions"], said["units"]
                raster.scales, raster.offsets = (1e-4, 1e-4, 2e-4), (offset,) * 3
                raster.colorinterp = (ColorInterp.green, ColorInterp.red, ColorInterp.nir)
            file.unlink()
    more = ("--image-format", "geotiff", "--bands", "[3,2,1]", "--shard-size", "3")
    out = base_set(tmp_path, *more, "--random-order")
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert {line["real_date"] for line in lines} == {1, 2}
    pairs = load_pairs(out)
    for number, line in enumerate(lines):
        for date, folder in enumerate(("images", "images_t2") if line["real_date"] == 1 else ("images_t2", "images")):
            own, theirs = out / line[f"{'AB'[date]}_file_name"], source / folder / f"{line['source_key']}.tif"
            with rasterio.open(own) as written, rasterio.open(theirs) as read:
                assert written.descriptions == read.descriptions[::-1] and written.units == read.units[::-1]
                assert written.colorinterp == read.colorinterp[::-1]
                values = [
                    raster.read() * np.reshape(raster.scales, (3, 1, 1)) + np.reshape(raster.offsets, (3, 1, 1))
                    for raster in (written, read)
                ]
            kept = ~pairs[number].change_mask
            assert np.allclose(values[0][:, kept], values[1][::-1][:, kept], atol=1e-9)
    before = {file: file.read_bytes() for file in out.glob("[AB]/*.tif")}
    for file in (*before, *out.glob("shards/*.json")):
        file.unlink()
    assert base_set(tmp_path, *more, "--random-order") == out
    assert {file: file.read_bytes() for file in out.glob("[AB]/*.tif")} == before


def test_what_is_painted_takes_the_style_of_the_second_date(tmp_path: Path) -> None:
    first = ((ground(3) + 1) / 2).astype(np.float32)
    like = ndimage.gaussian_filter(first * [0.6, 0.7, 0.8] + [0.2, 0.1, 0.0], (1.2, 1.2, 0)).astype(np.float32)
    styled, done = in_style(first, first, like)
    for band in range(3):
        assert np.median(styled[..., band]) == pytest.approx(np.median(like[..., band]), abs=0.01)
        assert styled[..., band].std() == pytest.approx(like[..., band].std(), rel=0.12)
    assert done["style_blur"] > 0.5 and done["style_sharpness"] == 0
    sharp, done = in_style(like, like, first)
    assert done["style_sharpness"] > 0 and done["style_blur"] == 0 and sharp.dtype == np.float32
    same, _ = in_style(first, first, first)
    assert np.abs(same - first).max() < 0.02
    source = write_dates(tmp_path / "source")
    given = ["generate", "--source", str(source), *GENERATE, "--second.use", "style"]
    assert command([*given, "--out", str(tmp_path / "style")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "style/metadata.jsonl").read_text().splitlines()]
    assert {line["second"] for line in lines} == {"style"} and not (tmp_path / "style/ignore").exists()
    assert all({row["name"] for row in line["nuisances"]} >= {"style_gain_1", "style_blur"} for line in lines)
    tiles, pairs = open_source(source, TILES), load_pairs(tmp_path / "style")
    for number, line in enumerate(lines):
        index = tiles.index_of(line["source_key"])
        assert np.array_equal(pairs[number].image_t1, tiles.read(index).image)
        painted, real = (np.median(i, (0, 1)) for i in (pairs[number].image_t2, tiles.read_second(index).image))
        assert painted == pytest.approx(real, abs=6)


def test_what_fills_a_hole_says_nothing_of_style(tmp_path: Path) -> None:
    first = ((ground(3) + 1) / 2).astype(np.float32)
    like = ndimage.gaussian_filter(first * [0.6, 0.7, 0.8] + [0.2, 0.1, 0.0], (1.2, 1.2, 0)).astype(np.float32)
    shown = np.ones((128, 128), bool)
    shown[:, :40] = False
    blank, dark = (np.where(shown[..., None], image, 0).astype(np.float32) for image in (first, like))
    partly, found = in_style(blank, blank, dark, (shown, shown))
    assert (partly[:, :40] == 0).all(), "what the first date does not show is no ground to be styled"
    alone, expected = in_style(first[:, 40:], first[:, 40:], like[:, 40:])
    assert np.abs(partly[:, 44:] - alone[:, 4:]).max() < 0.02, "the blurred edge apart"
    assert found == pytest.approx(expected, abs=0.05)
    whole, found_whole = in_style(first, first, dark, (None, shown))
    assert found_whole == found and np.abs(whole - in_style(first, first, like)[0]).max() < 0.1
    same, nothing = in_style(first, first, like, (None, np.zeros_like(shown)))
    assert np.array_equal(same, first) and not nothing
    source = write_dates(tmp_path / "source")
    for file in (source / "images_t2").iterdir():  # 40 % of the second date is transparent
        values = np.asarray(Image.open(file).convert("RGBA")).copy()
        values[:, :26] = 0
        Image.fromarray(values).save(file)
    given = ["generate", "--source", str(source), *GENERATE, "--second.use", "style"]
    assert command([*given, "--out", str(tmp_path / "style")]) == 0
    tiles, pairs = open_source(source, TILES), load_pairs(tmp_path / "style")
    for number, line in enumerate((tmp_path / "style/metadata.jsonl").read_text().splitlines()):
        second = tiles.read_second(tiles.index_of(json.loads(line)["source_key"]))
        assert second.valid is not None and second.valid[:, 26:].all() and not second.valid[:, :26].any()
        painted, real = (np.median(image[:, 26:], (0, 1)) for image in (pairs[number].image_t2, second.image))
        assert painted == pytest.approx(real, abs=6)


@pytest.mark.parametrize("use", ["none", "base"])
def test_ground_that_was_not_imaged_has_no_haze_and_no_grain(tmp_path: Path, use: str) -> None:
    """It was grey, and another grey at each date, in pairs whose dates were disturbed."""
    source = write_dates(tmp_path / "source")
    for folder, edge in (("images", 20), ("images_t2", 30)):
        for file in (source / folder).iterdir():
            values = np.asarray(Image.open(file).convert("RGBA")).copy()
            values[:, :edge] = 0
            Image.fromarray(values).save(file)
    given = ["generate", "--source", str(source), *GENERATE, "--second.use", use, "--out", str(tmp_path / "out")]
    disturbed = ["--nuisances.haze", "[0.3, 0.4]", "--nuisances.noise", "[0.02, 0.03]", "--nuisances.dates", "both"]
    assert command([*given, *disturbed, "--random-order"]) == 0
    edges = set()
    lines = (tmp_path / "out/metadata.jsonl").read_text().splitlines()
    pairs = load_pairs(tmp_path / "out")
    for number, line in enumerate(lines):
        pair = pairs[number]
        dark = [20, 20 if use == "none" else 30]
        if json.loads(line)["real_date"] == 2:
            dark.reverse()
        for image, edge in zip((pair.image_t1, pair.image_t2), dark, strict=True):
            assert not image[:, :edge].any() and image[:, edge:].mean(2).min() > 0
        edges.add(tuple(dark))
    assert len(edges) == (1 if use == "none" else 2)


def test_pairs_without_a_change_are_two_real_dates_where_that_is_asked(tmp_path: Path) -> None:
    source = write_dates(tmp_path / "source")
    given = ["generate", "--source", str(source), *GENERATE, "--second.use", "style", "--second.no-change"]
    given += ["--targets.no-change", "0.5"]
    assert command([*given, "--out", str(tmp_path / "pairs")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "pairs/metadata.jsonl").read_text().splitlines()]
    assert sorted(line["second"] for line in lines) == ["base"] * 4 + ["style"] * 4
    tiles, pairs = open_source(source, TILES), load_pairs(tmp_path / "pairs")
    for number, line in enumerate(lines):
        pair, index = pairs[number], tiles.index_of(line["source_key"])
        quiet = line["second"] == "base"
        assert quiet == (line["kind"] == "no_change") == (pair.ignored is not None) == (line["ignored_ratio"] > 0)
        if quiet:
            assert np.array_equal(pair.image_t2, tiles.read_second(index).image) and not pair.change_mask.any()


def test_diffusion_paints_on_the_second_date_and_a_segmenter_compares_once(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from changeanywhere.legend import load_legend
    from changeanywhere.models.segmenter import Segmenter

    torch.manual_seed(0)
    net = Segmenter("unet", load_legend("mini"))
    source, out = write_dates(tmp_path / "source"), tmp_path / "pairs"
    pixels = torch.from_numpy(open_source(source, TILES).read(0).pixels()).permute(2, 0, 1)[None]
    with torch.no_grad():  # sure of itself, and moved by colours: another class wherever a feature passes its mean
        head = net.eval().decoder.head
        assert head.bias is not None
        head.bias.sub_(net(pixels).mean((0, 2, 3)))
        for values in (head.weight, head.bias):
            values.mul_(300)
    net.save(tmp_path / "reader")
    given = ["generate", "--source", str(source), "--model", str(tiny_model_folder), "--tile-size", "64"]
    given += ["--num-pairs", "4", "--num-steps", "2", "--events.min-area", "4", "--paste-back", "--second.use", "base"]
    plain = tmp_path / "plain"
    assert command([*given, "--out", str(plain)]) == 0
    given += ["--second.segmenter", str(tmp_path / "reader"), "--second.min-z", "900"]
    assert command([*given, "--out", str(out)]) == 0
    job = json.loads((out / "plan/job.json").read_text())
    assert len(job["learned"]["ignored"]) == 6 and job["segmenter_hash"]
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    settings = lines[0]["settings"]["second"]
    assert settings["segmenter"] == "reader" and str(tmp_path) not in json.dumps(lines)
    tiles, pairs = open_source(source, TILES), load_pairs(out)
    read = _reader(tmp_path / "reader")
    for number, line in enumerate(lines):
        pair, index = pairs[number], tiles.index_of(line["source_key"])
        first, second = tiles.read(index), tiles.read_second(index)
        expected = unpacked(packed(disagreeing(read(first.pixels()), read(second.pixels()))))
        found = np.zeros_like(expected) if pair.ignored is None else pair.ignored
        assert np.array_equal(found, expected), "no difference is 900 deviations large: the segmenter alone says"
        far = ndimage.distance_transform_edt(~pair.change_mask) > 8
        assert np.array_equal(pair.image_t1, first.image) and np.array_equal(pair.image_t2[far], second.image[far])
        assert not np.array_equal(pair.image_t2[pair.change_mask], second.image[pair.change_mask])
    assert any(pairs[number].ignored is not None for number in range(4))
    (tmp_path / "reader").rename(tmp_path / "elsewhere")
    (out / "report.html").unlink()
    given[given.index(str(tmp_path / "reader"))] = str(tmp_path / "elsewhere")
    capsys.readouterr()
    assert command([*given, "--out", str(out)]) == 0, "where the segmenter lies is no part of the job"
    assert "comparing dates" not in capsys.readouterr().err
    assert command([*given, "--dry-run", "--out", str(tmp_path / "dry")]) == 0
    assert "of the ground differs between the real dates and gets no label" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--second.use both", "second.use is 'both'; allowed: none, base, style"),
        ("--second.min-z 3", "second.min_z is 3.0; allowed: with second.use base, or second.no_change"),
        ("--second.use base --second.min-z 0", "second.min_z is 0"),
        ("--second.use base --second.no-change", "second.no_change is True; allowed: with second.use style"),
        ("--second.use style --second.no-change", "second.no_change is True; allowed: with targets.no_change"),
        ("--second.use style --nuisances.blur [1,1]", "second.use is 'style'; allowed: without nuisances"),
        ("--second.use base --reconstruct-t1", "reconstruct_t1 is True; allowed: false beside a second date"),
        ("--second.use base --second.segmenter nowhere", "nowhere"),
        ("--second.use base", "no image of a second date; expected tile_0 in images_t2/"),
    ],
)
def test_what_cannot_be_is_one_line(flags: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_dates(tmp_path / "source") if flags != "--second.use base" else write_source(tmp_path / "source")
    method = ["--method", "diffusion"] if "reconstruct" in flags else []
    given = ["generate", "--source", str(source), *GENERATE, *method, *flags.split(), "--out", str(tmp_path / "x")]
    assert command(given) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_a_set_is_held_to_its_second_dates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = base_set(tmp_path)
    given = ["generate", "--source", str(tmp_path / "source"), *GENERATE, "--out", str(out), "--second.use"]
    assert command([*given, "base", "--second.min-z", "5"]) == 2
    assert "second.min_z = 4.0, asked now: 5.0" in capsys.readouterr().err
    shutil.rmtree(out / "shards")
    file = tmp_path / "source/images_t2/tile_1.png"
    Image.new("RGB", (64, 64), (9, 200, 9)).save(file)
    assert command([*given, "base"]) == 2
    assert "fingerprint_second" in capsys.readouterr().err
