"""Datasets of the field in their published layouts, made small; and what ``check`` and ``init`` say of folders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from changeanywhere.cli import run
from changeanywhere.errors import PairsError
from changeanywhere.legend import load_legend
from changeanywhere.pairs import load_pairs
from changeanywhere.sources import SourceOptions, open_source
from conftest import write_source
from test_sources import write_tif

SMALL = SourceOptions(tile_size=64)
RNG = np.random.default_rng(0)


def image_at(path: Path, bands: int = 3) -> None:
    """A small picture in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 255, (bands, 64, 64)).astype(np.uint8)
    if path.suffix == ".jp2":
        write_tif(path, pixels, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")
    elif path.suffix == ".tif":
        write_tif(path, pixels)
    else:
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)


def mask_at(path: Path, highest: int, lowest: int = 1) -> None:
    """A small mask that holds every class from ``lowest`` to ``highest``."""
    values = np.resize(np.arange(lowest, highest + 1, dtype=np.uint8), (64, 64))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        write_tif(path, values[None])
    else:
        Image.fromarray(values).save(path)


def openearthmap(root: Path, with_xbd: bool = True) -> None:
    """Three regions; without xBD one has labels alone, with an empty folder of images or none."""
    for region, numbers in (("aachen", (1, 2)), ("kyoto", (7,)), ("adelaide", (1, 2)), ("joplin", (3,))):
        for number in numbers:
            name = f"{region}_{number}.tif"
            mask_at(root / region / "labels" / name, 8)
            if with_xbd or region not in ("adelaide", "joplin"):
                image_at(root / region / "images" / name)
    if not with_xbd:
        (root / "adelaide" / "images").mkdir()
        (root / "adelaide" / "images" / ".keep").write_text("")
    image_at(root / "kyoto" / "images" / "kyoto_9.tif")  # test: no label
    (root / "train.txt").write_bytes("\ufeffaachen_1.tif\r\nkyoto_7.tif\r\nadelaide_1.tif\r\n".encode())
    (root / "val.txt").write_text("aachen_2.tif\nadelaide_2.tif\n")


def without_xbd(root: Path) -> None:
    """The download that most people have."""
    openearthmap(root, with_xbd=False)


def loveda(root: Path) -> None:
    """Train and Val, Urban and Rural."""
    for top, area in (("Train", "Urban"), ("Train", "Rural"), ("Val", "Urban")):
        image_at(root / top / area / "images_png" / "5.png")
        mask_at(root / top / area / "masks_png" / "5.png", 7)
    image_at(root / "Test" / "Urban" / "images_png" / "9.png")


def flair(root: Path) -> None:
    """Five bands; names of images and masks differ in their beginning."""
    for split, domain, zone, number in (
        ("flair_aerial_train", "D004_2021", "Z1_UN", 1),
        ("flair_aerial_train", "D004_2021", "Z1_UN", 2),
        ("flair_1_aerial_test", "D012_2019", "Z3_AU", 3),
    ):
        image_at(root / split / domain / zone / "img" / f"IMG_{number:06d}.tif", bands=5)
        labels = split.replace("aerial", "labels")
        mask_at(root / labels / domain / zone / "msk" / f"MSK_{number:06d}.tif", 19)


def landcoverai(root: Path) -> None:
    """Whole sheets, masks from 0."""
    for sheet in ("M-33-20-D-c-4-2", "N-34-140-A-b-3-2"):
        image_at(root / "images" / f"{sheet}.tif")
        mask_at(root / "masks" / f"{sheet}.tif", 4, 0)
    (root / "train.txt").write_text("M-33-20-D-c-4-2_0\n")


def landcoverai_tiles(root: Path) -> None:
    """What its split.py makes."""
    for number in range(3):
        image_at(root / "output" / f"M-33-20-D-c-4-2_{number}.jpg")
        mask_at(root / "output" / f"M-33-20-D-c-4-2_{number}_m.png", 4, 0)
    for number, split in enumerate(("train", "val", "test")):
        (root / f"{split}.txt").write_text(f"M-33-20-D-c-4-2_{number}\n")


def geonrw(root: Path) -> None:
    """Images, heights and masks of a city in one folder."""
    for city, place in (("aachen", "288_5628"), ("herne", "374_5710")):
        image_at(root / city / f"{place}_rgb.jp2")
        write_tif(root / city / f"{place}_dem.tif", np.zeros((1, 64, 64), np.float32))
        mask_at(root / city / f"{place}_seg.tif", 10)


def dfc2022(root: Path) -> None:
    """Masks named after Urban Atlas; val has none."""
    name = "06-2014-0994-6311-LA93-0M50-E080"
    for city in ("Nice", "Nantes_Saint-Nazaire"):
        image_at(root / "labeled_train" / city / "BDORTHO" / f"{name}{city[1]}.tif")
        mask_at(root / "labeled_train" / city / "UrbanAtlas" / f"{name}{city[1]}_UA2012.tif", 15)
    image_at(root / "val" / "Lille" / "BDORTHO" / "59-2014-0694.tif")


SOURCES = {
    "openearthmap": (openearthmap, "openearthmap", {"train", "val", None}, 6),
    "openearthmap without xbd": (without_xbd, "openearthmap", {"train", "val"}, 3),
    "loveda": (loveda, "loveda", {"train", "val"}, 3),
    "flair": (flair, "flair", {"train", "test"}, 3),
    "landcoverai": (landcoverai, "landcoverai", {None}, 2),
    "landcoverai tiles": (landcoverai_tiles, "landcoverai", {"train", "val", "test"}, 3),
    "geonrw": (geonrw, "geonrw", {"train", "test"}, 2),
    "dfc2022": (dfc2022, "dfc2022", {None}, 2),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources_of_the_field(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, legend, splits, count = SOURCES[name]
    tree = tmp_path / "tree"
    make(tree)
    source = open_source(tree, SMALL)
    assert (source.legend, len(source)) == (load_legend(legend), count)
    assert {item.split for item in source.items} == splits
    assert set(np.unique(source.read_mask(0))) == {*range(1, source.legend.num_classes + 1)}
    assert all(source.read(i).image.shape == (64, 64, 3) for i in range(count))
    assert run(["check", str(tree)]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    # Trees whose images are georeferenced are told where the embedded model does not know their ground sampling.
    assert [line for line in warnings if "ground sampling" not in line] == []
    assert bool(warnings) == (name in {"flair", "geonrw"})
    out = ["--out", str(tmp_path / "out"), "--tile-size", "64", "--num-pairs", "1", "--events.min-area", "8"]
    assert run(["simulate", "--source", str(tree), *out, "--events.kinds", "[rebuild]"]) in (0, 1)


def test_labels_without_an_image_are_left_out_with_a_count_in_training_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_xbd(tmp_path / "oem")
    assert run(["check", str(tmp_path / "oem")]) == 0
    assert "3 masks without an image, 1 images without a mask" in capsys.readouterr().out
    training = ["train", "segmenter", "--data.source", str(tmp_path / "oem"), "--data.tile-size", "64"]
    training += ["--segmenter.crop-size", "64", "--segmenter.num-steps", "1", "--segmenter.batch-size", "1"]
    assert run([*training, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert "3 masks without an image" in capsys.readouterr().err


def test_a_name_tells_what_flair_and_its_scenes_are(tmp_path: Path) -> None:
    flair(tmp_path)
    items = open_source(tmp_path, SMALL).items
    assert {(item.key, item.scene, item.licence, item.gsd_m) for item in items} == {
        ("IMG_000001", "D004_2021", "etalab-2.0", 0.2),
        ("IMG_000002", "D004_2021", "etalab-2.0", 0.2),
        ("IMG_000003", "D012_2019", "etalab-2.0", 0.2),
    }


@pytest.mark.parametrize("domain", ["D012_2019", "D02A_2019", "D091_2021", "D2B_2020"])
def test_zones_of_a_domain_of_flair_stay_together(domain: str, tmp_path: Path) -> None:
    for number, zone in enumerate(("Z1_UN", "Z2_NN", "Z3_AU")):
        image_at(tmp_path / "flair_aerial_train" / domain / zone / "img" / f"IMG_{number:06d}.tif", bands=5)
        mask_at(tmp_path / "flair_labels_train" / domain / zone / "msk" / f"MSK_{number:06d}.tif", 19)
    assert {item.scene for item in open_source(tmp_path, SMALL).items} == {domain}


# Pairs


def labels() -> npt.NDArray[np.uint8]:
    """Changed in a corner of 600 px."""
    label = np.zeros((64, 64), np.uint8)
    label[:20, :30] = 255
    return label


def label_at(path: Path, content: npt.NDArray[np.uint8]) -> None:
    """A label in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(content).save(path)


def plain_pairs(first: str, second: str, label: str, suffix: str = ".png") -> object:
    """Three folders of equal names in each split."""

    def make(root: Path) -> None:
        for split in ("train", "test"):
            for number in range(2):
                image_at(root / split / first / f"{number}{suffix}")
                image_at(root / split / second / f"{number}{suffix}")
                label_at(root / split / label / f"{number}{suffix}", labels())

    return make


def second(root: Path) -> None:
    """Colours of classes on changed ground, white elsewhere; the folders of its download."""
    classes = np.where(labels()[..., None] > 0, (0, 128, 0), (255, 255, 255)).astype(np.uint8)
    for split in ("SECOND_train_set", "test"):
        for number in range(2):
            for folder in ("im1", "im2"):
                image_at(root / split / folder / f"{number:05d}.png")
            for folder in ("label1", "label2"):
                label_at(root / split / folder / f"{number:05d}.png", classes)


def oscd(root: Path) -> None:
    """Cities; images, train labels and test labels in folders of their own, lists with commas."""
    name = "Onera Satellite Change Detection dataset"
    for city, kind in (("abudhabi", "Train"), ("beihai", "Train"), ("brasilia", "Test"), ("norcia", "")):
        for date in (1, 2):
            image_at(root / f"{name} - Images" / city / "pair" / f"img{date}.png")
            image_at(root / f"{name} - Images" / city / f"imgs_{date}_rect" / "B02.tif", bands=1)
        if kind:
            label_at(root / f"{name} - {kind} Labels" / city / "cm" / "cm.png", labels())
            write_tif(root / f"{name} - {kind} Labels" / city / "cm" / f"{city}-cm.tif", labels()[None] // 255 + 1)
    (root / f"{name} - Images" / "train.txt").write_text("abudhabi,beihai")
    (root / f"{name} - Images" / "test.txt").write_text("brasilia")


def hrscd(root: Path) -> None:
    """Names that hold the year; land cover beside the changes."""
    for place in ("0415-6890", "0420-6895"):
        for year, taken, ending in (("2006", "2005", ""), ("2012", "2012", "-0M50-E080")):
            name = f"14-{taken}-{place}-LA93{ending}.tif"
            image_at(root / f"images_{year}" / year / "D14" / name)
            mask_at(root / f"labels_land_cover_{year}" / year / "D14" / name, 5)
        target = root / "labels_change" / "change" / "D14" / f"14-2012-{place}-LA93-0M50-E080.tif"
        write_tif(target, labels()[None] // 255)


def whu(root: Path) -> None:
    """Whole images of both years and splits."""
    for split in ("train", "test"):
        for year in ("2012", "2016"):
            image_at(root / year / "whole_image" / split / "image" / f"{year}_{split}.tif")
            write_tif(root / year / "whole_image" / split / "label" / f"{year}_{split}.tif", labels()[None])
        write_tif(root / "change_label" / split / "change_label.tif", labels()[None])


def whu_first(root: Path) -> None:
    """One image of each year."""
    for year in ("before", "after"):
        image_at(root / year / f"{year}.tif")
        write_tif(root / year / f"{year}_label.tif", labels()[None])
    write_tif(root / "change label" / "change_label.tif", labels()[None])


PAIRS = {
    "LEVIR-CD+": plain_pairs("A", "B", "label"),
    "WHU-CD tiles": plain_pairs("A", "B", "label", ".tif"),
    "SYSU-CD": plain_pairs("time1", "time2", "label"),
    "S2Looking": plain_pairs("Image1", "Image2", "label"),
    "CDD": plain_pairs("A", "B", "OUT", ".png"),
    "DSIFN": plain_pairs("t1", "t2", "mask"),
    "SECOND": second,
    "OSCD": oscd,
    "HRSCD": hrscd,
    "WHU-CD": whu,
    "WHU-CD, first edition": whu_first,
}
NO_SPLITS = ("HRSCD", "WHU-CD, first edition")


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_the_field(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PAIRS[name](tmp_path)  # type: ignore[operator]
    for split in (None,) if name in NO_SPLITS else ("train", "test"):
        pairs = load_pairs(tmp_path, split)
        assert len(pairs) == {"OSCD": {"train": 2, "test": 1}, "WHU-CD": {"train": 1, "test": 1}}.get(name, {}).get(
            split or "", 1 if "first" in name else 2
        )
        for i in range(len(pairs)):
            assert pairs[i].change_mask.sum() == 600 and pairs[i].image_t1.shape == (64, 64, 3)
            assert not np.array_equal(pairs[i].image_t1, pairs[i].image_t2) and pairs[i].mask_t1 is None
    assert run(["check", str(tmp_path), "--preview", str(tmp_path / "p.png")]) == 0, capsys.readouterr().err
    assert "change ratio 0.146" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["without pictures", "one city without", "all"])
def test_the_thirteen_bands_of_oscd_are_named(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pictures are read by name, the bands passed over by name, and bands alone refused by name."""
    oscd(tmp_path)
    (images,) = tmp_path.glob("*Images")
    for city in ("abudhabi", "beihai", "brasilia", "norcia"):
        if kind == "without pictures" or (kind, city) == ("one city without", "norcia"):
            shutil.rmtree(images / city / "pair")
    code = run(["check", str(tmp_path)])
    said = "".join(capsys.readouterr())
    if kind == "without pictures":
        assert code == 2 and "OSCD's thirteen bands without pair/img1.png and pair/img2.png" in said
        with pytest.raises(PairsError, match="abudhabi: OSCD's thirteen bands"):
            load_pairs(tmp_path)
        return
    assert code == 0, said
    if kind == "all":
        assert "1 cities without labels (norcia), the thirteen bands of 4 cities (imgs_1_rect, imgs_2_rect)" in said
    else:
        assert "of 3 cities" in said and "1 cities of bands without pair/img1 and img2 (norcia)" in said


@pytest.mark.parametrize(("folder", "missing"), [("B", True), ("label", True), ("B", False), ("label", False)])
def test_no_file_of_a_set_is_dropped_without_a_word(
    folder: str, missing: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain_pairs("A", "B", "label")(tmp_path)  # type: ignore[operator]
    if missing:
        (tmp_path / "train" / folder / "1.png").unlink()
        assert run(["check", str(tmp_path)]) == 2
        assert f"{folder}/1.png: missing" in capsys.readouterr().err
    else:
        shutil.copy(tmp_path / "train" / folder / "1.png", tmp_path / "train" / folder / "7.png")
        assert run(["check", str(tmp_path)]) == 0
        assert f"1 of {folder}/ without an image in A/ (7)" in capsys.readouterr().out


def test_a_download_with_folders_around_it_says_where_the_pairs_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain_pairs("A", "B", "OUT")(tmp_path / "Real" / "subset")  # type: ignore[operator]
    plain_pairs("A", "B", "OUT")(tmp_path / "Model" / "with_shift")  # type: ignore[operator]
    with pytest.raises(PairsError, match=r"give one of Model/with_shift, Real/subset"):
        load_pairs(tmp_path)
    assert run(["check", str(tmp_path)]) == 2
    assert "check one of" in capsys.readouterr().err


# check and init


def test_check_says_what_was_understood(source_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source_folder / "masks" / "Thumbs.db").write_bytes(b"x")
    assert run(["check", str(source_folder), "--preview", str(source_folder / "p.png"), "--model", "mini"]) == 0
    said = capsys.readouterr().out
    for text in (
        "6 single-date tiles of 64 px", "images/ with masks/, equal names", "7 classes", "sampling", "CRS", "1 hidden",
        "unknown", "4.7%", "building", "6 of 6", "band", "uint8", "never seen in 6 masks", "as mini of mini",
        "picture:",
    ):  # fmt: skip
        assert text in said, text
    with Image.open(source_folder / "p.png") as picture:
        assert picture.size[0] > 700 and picture.size[1] > 800


@pytest.mark.parametrize(
    ("value", "where", "text"),
    [
        (0, slice(None, 48), r"class 0 covers 80% and counts as unknown ground.*--first-class 0"),
        (0, slice(None), "2 of 2 masks hold no class at all"),
        (1, slice(None, -4), "never seen in 2 masks: water, building, .* is it the right --legend"),
    ],
)
def test_check_warns_with_the_option_that_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: int, where: slice, text: str
) -> None:
    write_source(tmp_path, num_tiles=2)
    for file in (tmp_path / "masks").iterdir():
        mask = np.array(Image.open(file))
        mask[where] = value
        Image.fromarray(mask).save(file)
    assert run(["check", str(tmp_path)]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert any(re.search(text, line) for line in warnings), warnings


def test_previews_are_refused_where_there_is_nothing_to_draw(
    tmp_path: Path, source_folder: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", str(tiny_model_folder), "--preview", str(tmp_path / "p.png")]) == 2
    assert "holds neither tiles nor whole pairs" in capsys.readouterr().err
    assert run(["check", str(source_folder), "--preview", "p.jpg"]) == 2
    assert "preview is 'p.jpg'; allowed: a file that ends in .png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "text", "drafted"),
    [
        ({0: 0, 1: 1, 2: 2, 3: 3, 4: 4}, "masks hold 0 to 4: save", ["class_1", "class_2", "class_3", "class_4"]),
        ({0: 255, 1: 0, 2: 1, 3: 2, 4: 3}, '"first_class": 0, "ignore_index": 255', [f"class_{i}" for i in range(4)]),
        ({0: 0, 1: 10, 2: 20, 3: 30, 4: 200}, "masks hold 0, 10, 20, 30, 200; changeanywhere init",
         ["class_10", "class_20", "class_30", "class_200"]),
        ({0: 0, 1: 255, 2: 255, 3: 255, 4: 0}, "masks hold 0, 255; changeanywhere init", ["class_255"]),
    ],
)  # fmt: skip
def test_a_legend_is_proposed_and_drafted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], numbers: dict[int, int], text: str, drafted: list[str]
) -> None:
    root = write_source(tmp_path / "mine", num_tiles=2)
    for file in (root / "masks").iterdir():
        table = np.zeros(256, np.uint8)
        table[list(numbers)] = list(numbers.values())
        Image.fromarray(table[np.array(Image.open(file))]).save(file)
    (root / "legend.json").unlink()
    assert run(["check", str(root)]) == 2
    message = capsys.readouterr().err
    assert text in message and message.count("\n") == 1 and len(message) < 800
    assert run(["init", str(root)]) == 0
    said = capsys.readouterr().out
    assert "wrote" in said and "legend_map.yaml" in said
    source = open_source(root, SMALL)
    assert list(source.legend.names) == drafted
    assert sum(len(np.unique(source.read_mask(i))) for i in range(2)) >= 2 * len(set(drafted))
    (root / "legend_map.yaml").write_text("".join(f"{name}: water\n" for name in drafted))
    assert run(["check", str(root), "--legend-map", str(root / "legend_map.yaml")]) == 0
    assert run(["init", str(root)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_legend_is_drafted_from_colours_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_source(tmp_path / "mine", num_tiles=2)
    for file in (root / "masks").iterdir():
        Image.fromarray(load_legend("mini").colorize(np.array(Image.open(file)))).save(file)
    (root / "legend.json").unlink()
    assert run(["init", str(root), "--class-names", "a,b,c"]) == 2
    assert "masks hold 4 colours beside black, and 3 class names" in capsys.readouterr().err
    assert run(["init", str(root), "--class-names", "lake,bare,roof,street"]) == 0
    content = json.loads((root / "legend.json").read_text())
    assert {entry["name"]: tuple(entry["color"]) for entry in content["classes"]}["lake"] == (0, 69, 255)
    assert len(np.unique(open_source(root, SMALL).read_mask(0))) == 5


def test_init_refuses_what_needs_no_draft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loveda(tmp_path)
    assert run(["init", str(tmp_path)]) == 2
    assert "is loveda, whose legend comes with it" in capsys.readouterr().err
