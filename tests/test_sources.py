"""Single-date sources in their true layouts, from small files and from real ones."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from changeanywhere.errors import ConfigError, LegendError, SourceError
from changeanywhere.legend import load_legend
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.sources.layouts import find_layout
from changeanywhere.sources.problems import Problems
from conftest import shared, write_source

SMALL = SourceOptions(tile_size=64)
PLACE = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_000_000, 0.5, 0.5)}


def write_tif(path: Path, bands: npt.NDArray[np.generic], **profile: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    given = {"driver": "GTiff", **PLACE, **profile}
    with rasterio.open(path, "w", count=count, height=height, width=width, dtype=bands.dtype, **given) as file:
        file.write(bands)
    return path


def test_folder_of_pngs(source_folder: Path) -> None:
    source = open_source(source_folder, SMALL)
    assert len(source) == 6 and source.legend.name == "mini"
    sample = source[2]
    assert sample.item.key == sample.item.scene == "tile_2"
    assert sample.image.shape == (64, 64, 3) and sample.image.dtype == np.uint8
    assert np.array_equal(sample.mask, np.asarray(Image.open(source_folder / "masks" / "tile_2.png")))
    assert sample.normalisation.high == (255.0,) * 3
    assert source.index_of("tile_4") == 4


def test_a_part_of_a_split_is_the_same_everywhere_and_grows(tmp_path: Path) -> None:
    folder = write_source(tmp_path / "source", num_tiles=12)
    with pytest.raises(SourceError, match="splits has val; allowed: nothing: no split is stated"):
        open_source(folder, replace(SMALL, splits={"val": "all"}))
    rows = [f"tile_{i},{'val' if i < 8 else 'train'}" for i in range(12)]
    (folder / "provenance.csv").write_text("\n".join(["patch,split", *rows]))

    def keys(**splits: str | int) -> list[str]:
        return [item.key for item in open_source(folder, replace(SMALL, tile_size=32, splits=splits)).items]

    assert len(keys(val="all")) == 32 and len(keys(train="all", val="all")) == 48
    few, more = keys(val=3), keys(val=5, train=2)
    assert len(few) == 12 and len(more) == 28 and set(few) < set(more), "images, of four tiles each"
    assert sorted({key.partition("_y")[0] for key in few}) == ["tile_2", "tile_4", "tile_5"]
    wrongs: list[tuple[dict[str, str | int], str]] = [
        ({}, "one split and more"),
        ({"dev": 1}, "splits is 'dev'; allowed: train, val, test"),
        ({"val": 0}, r"splits\.val is 0; allowed: all, or a number"),
        ({"val": "some"}, r"splits\.val is 'some'"),
    ]
    for wrong, said in wrongs:
        with pytest.raises(ConfigError, match=said):
            SourceOptions(splits=wrong)


def test_palette_and_coloured_masks_mean_the_same(source_folder: Path) -> None:
    legend = load_legend("mini")
    expected = [open_source(source_folder, SMALL).read_mask(i) for i in range(4)]
    masks = source_folder / "masks"
    palette = Image.fromarray(expected[0])
    palette.putpalette(legend.palette().tobytes())
    palette.save(masks / "tile_0.png")
    Image.fromarray(legend.colorize(expected[1])).save(masks / "tile_1.png")
    rgba = np.dstack([legend.colorize(expected[2]), np.full((64, 64), 255, np.uint8)])
    Image.fromarray(rgba).save(masks / "tile_2.png")
    # A palette in an order of its own: the colours say the class.
    order = np.array([0, 5, 3, 1, 2, 4, 7, 6], np.uint8)
    own = Image.fromarray(np.argsort(order).astype(np.uint8)[expected[3]])
    own.putpalette(legend.palette()[order].tobytes())
    own.save(masks / "tile_3.png")
    source = open_source(source_folder, SMALL)
    for i in range(4):
        assert np.array_equal(source.read_mask(i), expected[i]), i


def test_large_geotiff_is_read_by_window_with_its_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(100, 5000, (4, 150, 200)).astype(np.uint16)
    mask = rng.integers(0, 8, (1, 150, 200)).astype(np.uint8)
    write_tif(tmp_path / "images" / "a.tif", image, tiled=True, blockxsize=64, blockysize=64)
    write_tif(tmp_path / "masks" / "a.tif", mask)
    load_legend("mini").save(tmp_path / "legend.json")
    source = open_source(tmp_path, SourceOptions(tile_size=64, bands=(4, 3, 2)))
    assert len(source) == 3 * 4
    covered = np.zeros((150, 200), bool)
    for sample in (source[i] for i in range(len(source))):
        assert sample.georef is not None and sample.georef.crs == "EPSG:32633"
        column = round((sample.georef.transform[2] - 400_000) / 0.5)
        row = round((5_000_000 - sample.georef.transform[5]) / 0.5)
        assert sample.item.key == f"a_y{row:05d}_x{column:05d}" and sample.item.scene == "a"
        window = (slice(row, row + 64), slice(column, column + 64))
        assert np.array_equal(sample.image, image[[3, 2, 1]][(slice(None), *window)].transpose(1, 2, 0))
        assert np.array_equal(sample.mask, mask[0][window])
        assert sample.item.gsd_m == 0.5 and sample.bands == ("4", "3", "2")
        covered[window] = True
    assert covered.all()
    low, high = sample.normalisation.low, sample.normalisation.high
    np.testing.assert_allclose(low, np.percentile(image[[3, 2, 1]], 2, axis=(1, 2)), rtol=1e-3)
    np.testing.assert_allclose(high, np.percentile(image[[3, 2, 1]], 98, axis=(1, 2)), rtol=1e-3)


def test_nan_and_nodata_become_unknown_ground(tmp_path: Path) -> None:
    image = np.full((3, 64, 64), 5.0, np.float32)
    image[:, :, 32:] = 7.0
    image[1, :4] = np.nan
    write_tif(tmp_path / "images" / "a.tif", image)
    counts = np.full((3, 64, 64), 900, np.uint16)
    counts[:, :6] = 0
    counts[:, 30:] = 1200
    write_tif(tmp_path / "images" / "b.tif", counts, nodata=0)
    for name in "ab":
        write_tif(tmp_path / "masks" / f"{name}.tif", np.ones((1, 64, 64), np.uint8))
    load_legend("mini").save(tmp_path / "legend.json")
    source = open_source(tmp_path, SMALL)
    first, second = source[0], source[1]
    assert np.isfinite(first.image).all()
    assert (first.mask[:4] == 0).all() and (first.mask[4:] == 1).all()
    assert (second.mask[:6] == 0).all() and (second.mask[6:] == 1).all()
    assert np.array_equal(source.read_mask(1), second.mask), "events see the same ground as the pair"


def test_openearthmap_tree(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for region, numbers in (("aachen", (1, 2)), ("kyoto", (7,))):
        for number in numbers:
            name = f"{region}_{number}.tif"
            write_tif(tmp_path / region / "images" / name, rng.integers(0, 255, (3, 64, 64)).astype(np.uint8))
            write_tif(tmp_path / region / "labels" / name, rng.integers(0, 9, (1, 64, 64)).astype(np.uint8))
    write_tif(tmp_path / "kyoto" / "images" / "kyoto_9.tif", np.zeros((3, 64, 64), np.uint8))  # test: no label
    (tmp_path / "train.txt").write_text("aachen_1.tif\nkyoto_7.tif\n")
    (tmp_path / "val.txt").write_text("aachen_2.tif\n")
    source = open_source(tmp_path, SMALL)
    assert {item.key: item.split for item in source.items} == {
        "aachen_1": "train", "aachen_2": "val", "kyoto_7": "train",
    }  # fmt: skip
    assert source.legend == load_legend("openearthmap")
    part = open_source(tmp_path, replace(SMALL, splits={"train": 1, "val": "all"}))
    assert [item.split for item in part.items].count("train") == 1 and "aachen_2" in [item.key for item in part.items]
    with pytest.raises(SourceError, match=r"splits has train: 3; allowed: 1 to 2, or all"):
        open_source(tmp_path, replace(SMALL, splits={"train": 3}))
    with pytest.raises(SourceError, match=r"splits has test; allowed: train \(2 images\), val \(1 images\)"):
        open_source(tmp_path, replace(SMALL, splits={"val": 1, "test": "all"}))
    mapped = source.with_legend(load_legend("mini"))
    assert mapped[0].mask.max() <= 7 and np.array_equal(mapped[0].mask == 0, source[0].mask == 0)


def test_loveda_tree(tmp_path: Path) -> None:
    for top, area in (("Train", "Urban"), ("Train", "Rural"), ("Val", "Urban")):
        for folder, content in (("images_png", (64, 64, 3)), ("masks_png", (64, 64))):
            path = tmp_path / top / area / folder
            path.mkdir(parents=True)
            Image.fromarray(np.full(content, 3, np.uint8)).save(path / "5.png")
    (tmp_path / "Test" / "Urban" / "images_png").mkdir(parents=True)
    source = open_source(tmp_path, SMALL)
    assert {item.key: item.split for item in source.items} == {
        "train_urban_5": "train", "train_rural_5": "train", "val_urban_5": "val",
    }  # fmt: skip
    assert source.legend.name_of(int(source.read_mask(0)[0, 0])) == "road"
    assert len(open_source(tmp_path / "Train", SMALL)) == 2


def test_second_masks_of_several_areas_lie_in_one_folder(tmp_path: Path) -> None:
    for area in ("Urban", "Rural"):
        write_source(tmp_path / "Train" / area, num_tiles=1)
        for kind in ("images", "masks"):
            (tmp_path / "Train" / area / kind).rename(tmp_path / "Train" / area / f"{kind}_png")
    (tmp_path / "mine").mkdir()
    for folder in ("images_png", "masks_png"):
        file = tmp_path / "Train" / "Rural" / folder / "tile_0.png"
        file.rename(file.with_name("other.png"))
    for name in ("tile_0", "other"):
        Image.fromarray(np.ones((64, 64), np.uint8)).save(tmp_path / "mine" / f"{name}.png")
    mine = tmp_path / "mine"
    assert {item.key for item in open_source(tmp_path, SMALL, mine).items} == {
        "train_urban_tile_0",
        "train_rural_other",
    }
    Image.fromarray(np.ones((64, 64), np.uint8)).save(tmp_path / "mine" / "stranger.png")
    with pytest.raises(SourceError, match=r"stranger\.png: has no image"):
        open_source(tmp_path, SMALL, mine)


def test_provenance_gives_scene_split_licence_and_sampling(source_folder: Path) -> None:
    rows = ["patch,split,scene,gsd_m,licence"]
    rows += [f"tile_{i},val,scene_{i // 3},~0.7 (estimated),{'CC0-1.0' if i < 4 else 'secret'}" for i in range(6)]
    (source_folder / "provenance.csv").write_text("\n".join(rows))
    items = open_source(source_folder, SMALL).items
    assert (items[5].scene, items[5].split, items[5].licence, items[5].gsd_m) == ("scene_1", "val", "secret", 0.7)
    assert len(open_source(source_folder, SourceOptions(tile_size=64, licences=("CC0-1.0",)))) == 4
    for options in (SMALL, replace(SMALL, splits={"val": "all"})):
        with pytest.raises(SourceError, match="no tile under the licences MIT"):
            open_source(source_folder, replace(options, licences=("MIT",)))


@pytest.mark.parametrize(("jpeg", "png"), [("jpg", "png"), ("jpg", "PNG"), ("JPG", "png"), ("jpeg", "Tif")])
def test_images_and_masks_of_one_name_in_any_case_of_suffixes(tmp_path: Path, jpeg: str, png: str) -> None:
    for number in range(3):
        Image.fromarray(np.full((64, 64, 3), 100, np.uint8)).save(tmp_path / f"{number}.{jpeg}", "JPEG")
        kind = "TIFF" if png == "Tif" else "PNG"
        Image.fromarray(np.full((64, 64), number, np.uint8)).save(tmp_path / f"{number}.{png}", kind)
    source = open_source(tmp_path, replace(SMALL, class_names=("one", "two")))
    assert [int(source.read_mask(i).max()) for i in range(len(source))] == [0, 1, 2]


def test_provenance_finds_files_by_path_or_by_stem(source_folder: Path) -> None:
    """Names that are not safe as keys, and files in subfolders, keep their rows."""
    for folder in ("images", "masks"):
        (source_folder / folder / "north").mkdir()
        (source_folder / folder / "tile_0.png").rename(source_folder / folder / "north" / "tile_0.png")
        (source_folder / folder / "tile_1.png").rename(source_folder / folder / "tile (1).png")
    rows = ["patch,scene,attribution", "north/tile_0,north,Ada", "tile (1),island,Grace", "tile_2,island"]
    (source_folder / "provenance.csv").write_text("\n".join(rows))
    items = {item.key: (item.scene, item.attribution) for item in open_source(source_folder, SMALL).items}
    assert items["north__tile_0"] == ("north", "Ada") and items["tile_1_"] == ("island", "Grace")
    assert items["tile_2"] == ("island", "") and items["tile_3"] == ("tile_3", "")
    (source_folder / "provenance.csv").write_bytes(b"patch,scene\n\xff,x")
    with pytest.raises(SourceError, match="not readable as UTF-8 CSV"):
        open_source(source_folder, SMALL)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["patch,scene", "t0,a"], r"no row is about a tile of .*as tile_0, found t0"),
        (["patch,split", "tile_0,validation"], r"split is 'validation'; allowed: train, val, test"),
        (["patch,scene,split", "tile_0,a,train", "tile_1,a,val"], r"the scene a is stated to be in train and in val"),
        (["patch,gsd_m", "tile_0,30 cm"], r"gsd_m is '30 cm'; allowed: metres"),
        (["patch,gsd_m", 'tile_0,"0,5"'], r"gsd_m is '0,5'"),
        (["patch,gsd_m", "tile_0,0.0"], r"gsd_m is '0.0'; allowed: metres above 0"),
    ],
)
def test_provenance_that_would_be_misread_is_refused(source_folder: Path, rows: list[str], text: str) -> None:
    (source_folder / "provenance.csv").write_text("\n".join(rows))
    with pytest.raises(SourceError, match=text):
        open_source(source_folder, SMALL)


def test_provenance_is_read_with_suffix_and_in_all_its_ways_of_writing(source_folder: Path) -> None:
    rows = ["patch,scene,split,gsd_m", "tile_0.png,a, Val ,.5", "tile_1,b,,0.3 m", "tile_2,c,train,~0.7 (estimated)"]
    (source_folder / "provenance.csv").write_text("\n".join(rows))
    items = open_source(source_folder, SMALL).items
    assert [(i.scene, i.split, i.gsd_m) for i in items[:4]] == [
        ("a", "val", 0.5), ("b", None, 0.3), ("c", "train", 0.7), ("tile_3", None, None),
    ]  # fmt: skip


def test_provenance_holds_in_every_layout(tmp_path: Path) -> None:
    folder = tmp_path / "LoveDA" / "Train" / "Urban"
    for name in ("images_png", "masks_png"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "images_png" / "7.png")
    Image.fromarray(np.ones((64, 64), np.uint8)).save(folder / "masks_png" / "7.png")
    (tmp_path / "LoveDA" / "provenance.csv").write_text("patch,scene,attribution\n7,nanjing,Wang et al.\n")
    (item,) = open_source(tmp_path / "LoveDA", SMALL).items
    assert (item.scene, item.attribution, item.licence, item.split) == (
        "nanjing", "Wang et al.", "CC-BY-NC-SA-4.0", "train",
    )  # fmt: skip


def test_a_palette_means_the_same_in_every_window(source_folder: Path) -> None:
    """By colour or by index is decided for the whole file; where both readings are possible it is refused."""
    legend = load_legend("mini")
    order = np.array([0, 1, 3, 2, 4, 5, 6, 7], np.uint8)  # road and water exchanged
    palette = legend.palette()[order].copy()
    indices = np.full((64, 128), 2, np.uint8)
    for file in (source_folder / "images").iterdir():
        if file.stem != "tile_0":
            file.unlink()
            (source_folder / "masks" / file.name).unlink()
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(source_folder / "images" / "tile_0.png")

    def save() -> None:
        mask = Image.fromarray(indices)
        mask.putpalette(palette.tobytes())
        mask.save(source_folder / "masks" / "tile_0.png")

    save()
    source = open_source(source_folder, SMALL)
    assert [np.unique(source.read_mask(i)).tolist() for i in range(2)] == [[3], [3]]
    palette[7], indices[0, 100] = (1, 2, 3), 7
    save()
    source = open_source(source_folder, SMALL)
    for window in range(2):
        with pytest.raises(LegendError, match="palette index 2 has the colour of water"):
            source.read_mask(window)


def test_a_palette_with_an_ignored_border_counts_from_0(tmp_path: Path) -> None:
    """As Pascal VOC has it: classes from 0 in the legend's colours, 255 around objects in a colour of its own."""
    classes = [
        {"index": i, "name": n, "color": c} for i, (n, c) in enumerate((("ground", [0, 0, 0]), ("car", [128, 0, 0])))
    ]
    content = {"classes": classes, "first_class": 0, "ignore_index": 255}
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "legend.json").write_text(json.dumps(content))
    indices = np.zeros((64, 64), np.uint8)
    indices[8:24, 8:24], indices[6:8, 6:26] = 1, 255
    mask, palette = Image.fromarray(indices), np.zeros((256, 3), np.uint8)
    palette[1], palette[255] = (128, 0, 0), (224, 224, 192)
    mask.putpalette(palette.tobytes())
    mask.save(tmp_path / "masks" / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "a.png")
    expected = np.where(indices == 255, 0, indices + 1)
    assert np.array_equal(open_source(tmp_path, SMALL).read_mask(0), expected)


@pytest.mark.parametrize("inside", ["", "masks"])
def test_masks_given_for_folders_of_equal_names_are_each_folders_own(tmp_path: Path, inside: str) -> None:
    for number, top in enumerate(("r1", "r2"), 1):
        for folder, image in (("images", Image.new("RGB", (64, 64))), ("masks", Image.new("L", (64, 64), 1))):
            (tmp_path / "tiles" / top / folder).mkdir(parents=True)
            image.save(tmp_path / "tiles" / top / folder / "0001.png")
        own = tmp_path / "given" / top / inside
        own.mkdir(parents=True)
        Image.new("L", (64, 64), 2 + number).save(own / "0001.png")
    (tmp_path / "tiles" / "legend.json").write_text(json.dumps({"classes": ["a", "b", "c", "d"]}))
    source = open_source(tmp_path / "tiles", SMALL, tmp_path / "given")
    found = {item.key: int(source.read_mask(index).max()) for index, item in enumerate(source.items)}
    assert list(found.values()) == [3, 4] and len(found) == 2
    one = tmp_path / "one"
    one.mkdir()
    Image.new("L", (64, 64), 3).save(one / "0001.png")
    with pytest.raises(
        SourceError, match=r"one/0001\.png: would be the mask of .*r1/images/0001\.png and of .*r2/images"
    ):
        open_source(tmp_path / "tiles", SMALL, one)


def test_rows_of_names_that_end_like_files(source_folder: Path) -> None:
    """An image ``s1.tif.png`` is called ``s1.tif``, as ``label`` writes it."""
    for folder in ("images", "masks"):
        for file in (source_folder / folder).iterdir():
            file.rename(file.with_name(f"{file.stem}.tif.png"))
    rows = ["patch,scene", *(f"tile_{i}.tif,s{i // 2}" for i in range(6))]
    (source_folder / "provenance.csv").write_text("\n".join(rows))
    assert {item.scene for item in open_source(source_folder, SMALL).items} == {"s0", "s1", "s2"}


def test_content_hash_follows_the_files(source_folder: Path) -> None:
    before, fingerprint = (
        getattr(open_source(source_folder, SMALL), name)() for name in ("content_hash", "fingerprint")
    )
    assert before == open_source(source_folder, SMALL).content_hash()
    mask = source_folder / "masks" / "tile_3.png"
    values = np.asarray(Image.open(mask)).copy()
    Image.fromarray(np.where(values == 4, 3, values)).save(mask)
    after = open_source(source_folder, SMALL)
    assert after.content_hash() != before and after.fingerprint() != fingerprint
    other_bands = open_source(source_folder, SourceOptions(tile_size=64, bands=(3, 2, 1)))
    assert other_bands.content_hash() != after.content_hash()


def test_a_legend_in_the_folder_says_that_it_is_no_openearthmap(tmp_path: Path) -> None:
    for region in ("aachen", "kyoto"):
        write_source(tmp_path / region)
        (tmp_path / region / "masks").rename(tmp_path / region / "labels")
        for file in (tmp_path / region).glob("*/*.png"):
            file.rename(file.with_name(f"{region}_{file.stem[-1]}.tif"))  # a PNG by content; names are what counts here
        (tmp_path / region / "legend.json").unlink()
    assert find_layout(tmp_path, Problems(skip=False)).legend == "openearthmap"
    load_legend("mini").save(tmp_path / "legend.json")
    layout = find_layout(tmp_path, Problems(skip=False))
    assert layout.legend is None and {entry.licence for entry in layout.entries} == {"unknown"}


def test_folders_of_splits_are_no_openearthmap(tmp_path: Path) -> None:
    """Its legend would be given to anybody's tiles; equal names in two splits are two tiles."""
    for split in ("train", "valid"):
        write_source(tmp_path / split, num_tiles=2)
        (tmp_path / split / "masks").rename(tmp_path / split / "labels")
    source = open_source(tmp_path, SMALL)
    assert source.legend.name == "mini" and {item.licence for item in source.items} == {"unknown"}
    assert {item.key: item.split for item in source.items} == {
        "train__tile_0": "train", "train__tile_1": "train", "valid__tile_0": "val", "valid__tile_1": "val",
    }  # fmt: skip
    for file in (tmp_path / "valid").glob("*/*.png"):
        file.rename(file.with_name(f"val_{file.name}"))
    assert [item.key for item in open_source(tmp_path, SMALL).items] == [
        "tile_0", "tile_1", "val_tile_0", "val_tile_1",
    ]  # fmt: skip


def _wrong_size(folder: Path) -> None:
    Image.fromarray(np.ones((32, 64), np.uint8)).save(folder / "masks" / "tile_1.png")


def _jpeg_mask(folder: Path) -> None:
    (folder / "masks" / "tile_1.png").rename(folder / "masks" / "tile_1.jpg")


def _mask_elsewhere(folder: Path) -> None:
    for name in ("images", "masks"):
        (folder / name / "tile_1.png").unlink()
    write_tif(folder / "images" / "tile_1.tif", np.zeros((3, 64, 64), np.uint8))
    moved = from_origin(400_000, 5_000_000 + 0.5, 0.5, 0.5)
    write_tif(folder / "masks" / "tile_1.tif", np.ones((1, 64, 64), np.uint8), transform=moved)


def _infinite_mask(folder: Path) -> None:
    (folder / "masks" / "tile_1.png").unlink()
    write_tif(folder / "masks" / "tile_1.tif", np.full((1, 64, 64), np.inf, np.float32))


def _foreign_value(folder: Path) -> None:
    Image.fromarray(np.full((64, 64), 200, np.uint8)).save(folder / "masks" / "tile_1.png")


def _foreign_colour(folder: Path) -> None:
    Image.fromarray(np.full((64, 64, 3), 77, np.uint8)).save(folder / "masks" / "tile_1.png")


def _no_mask(folder: Path) -> None:
    (folder / "masks" / "tile_1.png").unlink()


def _no_image(folder: Path) -> None:
    (folder / "images" / "tile_1.png").unlink()


def _truncated(folder: Path) -> None:
    file = folder / "images" / "tile_1.png"
    file.write_bytes(file.read_bytes()[:900])


def _empty_file(folder: Path) -> None:
    (folder / "images" / "tile_1.png").write_bytes(b"")


def _no_legend(folder: Path) -> None:
    (folder / "legend.json").unlink()


def _truncated_tif(folder: Path) -> None:
    (folder / "images" / "tile_1.png").unlink()
    file = write_tif(folder / "images" / "tile_1.tif", np.random.default_rng(0).random((3, 64, 64)))
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_wrong_size, r"tile_1.png: 64x64 px, but its mask tile_1.png has 64x32 px"),
        (_jpeg_mask, r"tile_1.jpg: JPEG changes the classes of a mask; allowed: .png and .tif"),
        (_mask_elsewhere, r"tile_1.tif: lies elsewhere than its image tile_1.tif"),
        (_infinite_mask, r"tile_1.tif: mask value inf is not a class"),
        (_foreign_value, r"tile_1.png: mask value 200 is outside the legend 'mini'; allowed: 0"),
        (_foreign_colour, r"tile_1.png: mask colour \(77, 77, 77\) is not in the legend"),
        (_no_mask, "tile_1.png: has no mask"),
        (_no_image, "tile_1.png: has no image"),
        (_truncated, "tile_1.png: not a readable image"),
        (_empty_file, "tile_1.png: not a readable image"),
        (_truncated_tif, "tile_1.tif: not a readable raster"),
        (_no_legend, "give --legend"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_input_is_one_line_with_the_file(source_folder: Path, damage: object, text: str) -> None:
    damage(source_folder)  # type: ignore[operator]
    with pytest.raises((SourceError, LegendError), match=text) as caught:
        source = open_source(source_folder, SMALL)
        for i in range(len(source)):
            source.read(i)
    assert "\n" not in str(caught.value)


def test_other_refusals(source_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"64x64 px is smaller than a tile of 256x256"):
        open_source(source_folder)
    with pytest.raises(SourceError, match="has 3 band"):
        open_source(source_folder, SourceOptions(tile_size=64, bands=(4, 3, 2)))
    (tmp_path / "void").mkdir()
    with pytest.raises(SourceError, match="no layout recognised; looked for"):
        open_source(tmp_path / "void")
    with pytest.raises(SourceError, match="no such folder"):
        open_source(tmp_path / "nowhere")


def test_real_tiles_open_quickly_and_read() -> None:
    root = shared("data", "landcover", "val")
    started = time.perf_counter()
    source = open_source(root)
    assert (time.perf_counter() - started) / len(source) < 0.01
    assert len(source) == 194 and source.legend.num_classes == 11
    mapped = source.with_legend(load_legend("mini"))
    sample = mapped.read(mapped.index_of("dubai_t5p1_y0000x0000"))
    assert sample.item.scene == "dubai_tile5" and sample.item.licence == "CC0-1.0" and sample.mask.max() <= 7
    assert len(open_source(root, SourceOptions(licences=("CC0-1.0",)))) == 120


def test_real_geotiffs(tmp_path: Path) -> None:
    folder = shared("data", "geotiff_example")
    for name in ("austin_29", "tyrolw_57"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        shutil.copy(folder / f"oem_{name}_rgb.tif", tmp_path / "images" / f"{name}.tif")
        shutil.copy(folder / f"oem_{name}_mask.tif", tmp_path / "masks" / f"{name}.tif")
    source = open_source(tmp_path, SourceOptions(legend="openearthmap"))
    assert {item.scene for item in source.items} == {"austin_29", "tyrolw_57"} and len(source) > 4
    sample = source[0]
    assert sample.image.shape == (256, 256, 3) and sample.georef is not None
    with rasterio.open(tmp_path / "images" / "austin_29.tif") as whole:
        assert sample.georef.transform == tuple(whole.transform)[:6]
    assert 0 < len(np.unique(sample.mask)) <= 9


def test_real_four_band_image(tmp_path: Path) -> None:
    folder = shared("data", "geotiff_example")
    with rasterio.open(folder / "naip_claremont_2016_18.tif") as file:
        height, width, bands = file.height, file.width, file.read()
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    shutil.copy(folder / "naip_claremont_2016_18.tif", tmp_path / "images" / "n.tif")
    Image.fromarray(np.ones((height, width), np.uint8)).save(tmp_path / "masks" / "n.png")
    sample = open_source(tmp_path, SourceOptions(legend="mini", bands=(4, 1, 2)))[0]
    assert np.array_equal(sample.image, bands[[3, 0, 1], :256, :256].transpose(1, 2, 0))


def test_write_source_helper_uses_the_legend(tmp_path: Path) -> None:
    source = open_source(write_source(tmp_path / "s"), SMALL)
    assert {0, 1, 2, 3, 4} == set(np.unique(source.read_mask(0)))
