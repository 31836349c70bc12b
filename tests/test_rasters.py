"""The gate for rasters: kinds of files that went into a set wrongly without a word, and what may be opened at all."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine, from_origin

from changeanywhere.check import check_path
from changeanywhere.cli import run
from changeanywhere.errors import LegendError, ModelError, PairsError, SourceError
from changeanywhere.init import InitOptions, init
from changeanywhere.legend import Legend, LegendClass, MaskValues, load_legend, read_legend
from changeanywhere.models.info import ModelInfo, find_model, hash_model, outside_sampling, read_info, sampling_range
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.labels import LabelReader, rule_of
from changeanywhere.pairs.masks import read_mask
from changeanywhere.rasters.gate import read_whole
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.sources.drafts import Seen, draft
from conftest import write_source
from raster_files import write_png, write_tif

LEGEND = load_legend("mini")
SIDE = 64
UTM = "EPSG:32633"
SMALL = SourceOptions(tile_size=SIDE)
RNG = np.random.default_rng(0)
RGB = RNG.integers(1, 255, (SIDE, SIDE, 3)).astype(np.uint8)
CLASSES = np.kron(RNG.integers(1, 8, (8, 8)), np.ones((8, 8))).astype(np.uint8)
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[5:20, 30:50] = True
CHANGED = np.zeros((SIDE, SIDE), bool)
CHANGED[10:40, 20:50] = True
Values = npt.NDArray[Any]
Write = Callable[[Path], Path]


def source_of(folder: Path, image: Write | None = None, mask: Write | None = None) -> Path:
    """A source of one tile; what is not given is as usual."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    (image or (lambda stem: write_png(stem.with_suffix(".png"), RGB)))(folder / "images" / "a")
    (mask or (lambda stem: write_png(stem.with_suffix(".png"), CLASSES)))(folder / "masks" / "a")
    LEGEND.save(folder / "legend.json")
    return folder


def pairs_of(folder: Path, label: Values | Write, image: Write | None = None) -> Path:
    """Pairs of one tile; a label that is an array is written as PNG."""
    for name in ("A", "B", "label"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("A", "B"):
        (image or (lambda stem: write_png(stem.with_suffix(".png"), RGB)))(folder / name / "a")
    if callable(label):
        label(folder / "label" / "a")
    else:
        write_png(folder / "label" / "a.png", label, 16 if label.dtype == np.uint16 else 8)
    return folder


def pillow(image: Image.Image, suffix: str, **options: Any) -> Write:
    def write(stem: Path) -> Path:
        image.save(stem.with_suffix(suffix), **options)
        return stem.with_suffix(suffix)

    return write


def tif(values: Values, valid: Values | None = None, **profile: Any) -> Write:
    return lambda stem: write_tif(stem.with_suffix(".tif"), values, valid, **profile)


# Images


INK = Image.fromarray(255 - np.dstack([RGB, np.full((SIDE, SIDE), 255, np.uint8)]), "CMYK")


@pytest.mark.parametrize(
    "write",
    [
        pillow(INK, ".jpg", quality=95),
        pillow(INK, ".jpg", quality=95, subsampling=2),
        pillow(INK, ".tif"),
        pillow(INK, ".tif", compression="tiff_lzw"),
        lambda stem: pillow(INK, ".jpg", quality=95)(stem).rename(stem.with_suffix(".png")),
    ],
    ids=["jpeg", "jpeg subsampled", "tiff", "tiff lzw", "jpeg named png"],
)
def test_cmyk_becomes_rgb(write: Write, tmp_path: Path) -> None:
    image = open_source(source_of(tmp_path / "s", write), SMALL)[0].image
    pair = load_pairs(pairs_of(tmp_path / "p", CHANGED * np.uint8(255), write))[0]
    assert np.abs(image.astype(float).mean((0, 1)) - RGB.mean((0, 1))).max() < 6 and image.shape == (SIDE, SIDE, 3)
    assert np.array_equal(pair.image_t1, image)


@pytest.mark.parametrize("band", [0, 1, 2, 3])
def test_infrared_under_the_tag_of_alpha_hides_nothing(band: int, tmp_path: Path) -> None:
    """As GDAL tags four 8-bit bands; ``band`` 0: not named in ``bands``."""
    infrared = np.where(HOLE, 0, RNG.integers(0, 250, (SIDE, SIDE))).astype(np.uint8)
    four = np.dstack([RGB, infrared])
    folder = source_of(tmp_path / "s", tif(four))
    bands = {0: (1, 2, 3), 1: (4, 1, 2), 2: (4,), 3: (1, 2, 3, 4)}[band]
    sample = open_source(folder, SourceOptions(tile_size=SIDE, bands=bands))[0]
    assert np.array_equal(sample.image, four[..., [b - 1 for b in bands]]) and np.array_equal(sample.mask, CLASSES)
    pair = load_pairs(pairs_of(tmp_path / "p", CHANGED * np.uint8(255), tif(four)))[0]
    assert np.array_equal(pair.image_t1, four) and pair.ignored is None


def test_transparent_ground_of_a_jpeg_2000_is_unknown(tmp_path: Path) -> None:
    with rasterio.Env() as env:
        if "JP2OpenJPEG" not in env.drivers():
            pytest.skip("this GDAL has no JP2OpenJPEG")
    shown, alpha = np.random.default_rng(4).integers(0, 256, (3, 64, 80), np.uint8), np.full((64, 80), 255, np.uint8)
    alpha[:, :30] = 0
    file, colours = tmp_path / "clear.jp2", ["red", "green", "blue", "alpha"]
    plain = write_tif(
        tmp_path / "clear.tif", np.concatenate([shown, alpha[None]]).transpose(1, 2, 0), colorinterp=colours
    )
    rasterio.shutil.copy(plain, file, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    image, valid, facts = read_whole(file)
    assert facts.container == "JPEG 2000" and facts.alpha == 4
    assert valid is not None and np.array_equal(valid, alpha > 0)
    assert np.array_equal(image, shown.transpose(1, 2, 0))


def test_an_alpha_band_that_is_named_is_a_band(tmp_path: Path) -> None:
    alpha = np.where(HOLE, 0, 255).astype(np.uint8)
    folder = source_of(tmp_path, pillow(Image.fromarray(np.dstack([RGB, alpha])), ".png"))
    hidden = open_source(folder, SMALL)[0]
    assert np.array_equal(hidden.mask == 0, HOLE) and (hidden.image[HOLE] == 0).all()
    named = open_source(folder, SourceOptions(tile_size=SIDE, bands=(4, 1, 2)))[0]
    assert np.array_equal(named.image[..., 0], alpha) and np.array_equal(named.mask, CLASSES)


def test_four_bands_are_written_as_bands(tmp_path: Path) -> None:
    from changeanywhere.pairs.codec import encode_geotiff

    for dtype in (np.uint8, np.uint16, np.float32):
        file = tmp_path / f"{np.dtype(dtype)}.tif"
        file.write_bytes(encode_geotiff(np.dstack([RGB, RGB[..., 0]]).astype(dtype), None))
        with rasterio.Env(), pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(file) as raster:
            assert "alpha" not in {meaning.name for meaning in raster.colorinterp}


def test_missing_ground_of_one_band_of_eight_bits_is_a_colour(tmp_path: Path) -> None:
    """255 in one band is a white roof; -9999 in one band is nothing that was measured."""
    values = RGB.copy()
    values[HOLE, 0] = 255
    assert (open_source(source_of(tmp_path / "a", tif(values, nodata=255)), SMALL)[0].mask > 0).all()
    measured = RGB.astype(np.float32)
    measured[HOLE, 0] = -9999
    mask = open_source(source_of(tmp_path / "b", tif(measured, nodata=-9999)), SMALL)[0].mask
    assert np.array_equal(mask == 0, HOLE)
    measured[HOLE] = RGB[HOLE]
    measured[HOLE, 1] = np.inf
    assert np.array_equal(open_source(source_of(tmp_path / "c", tif(measured)), SMALL)[0].mask == 0, HOLE)


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (pillow(Image.fromarray(RGB), ".png", format="WEBP", lossless=True), "WebP"),
        (pillow(Image.fromarray(RGB), ".tif", format="JPEG2000"), "JPEG 2000"),
        (pillow(Image.fromarray(RGB), ".jpg", format="GIF"), "GIF"),
        (pillow(Image.fromarray(RGB), ".png", format="BMP"), "BMP"),
        (
            pillow(Image.fromarray(RGB), ".tif", save_all=True, append_images=[Image.fromarray(RGB)]),
            r"2 images \(pages",
        ),
        (pillow(Image.fromarray(RGB), ".png", save_all=True, append_images=[Image.fromarray(255 - RGB)]), "animated"),
        (pillow(Image.fromarray(RGB).convert("LAB"), ".tif"), "CIELAB"),
        (tif(RGB.astype(np.complex64)), "complex64"),
        (lambda stem: write_png(stem.with_suffix(".png"), np.full((SIDE, SIDE), 5), 8, RGB[0, :2]), "palette index 5"),
    ],
    ids=["webp", "jpeg 2000", "gif", "bmp", "pages", "animated", "lab", "complex", "beyond the palette"],
)
def test_what_is_refused_by_name(write: Write, text: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=text) as caught:
        open_source(source_of(tmp_path / "s", write), SMALL)[0]
    assert "\n" not in str(caught.value) and "allowed" in str(caught.value)
    with pytest.raises(PairsError, match=text):
        load_pairs(pairs_of(tmp_path / "p", CHANGED * np.uint8(255), write))[0]


# Masks


LOSSY: dict[str, Write] = {
    "jpeg in tiff": tif(CLASSES, compress="jpeg"),
    "ycbcr jpeg in tiff": tif(LEGEND.colorize(CLASSES), compress="jpeg", photometric="YCBCR"),
    "lerc": tif(CLASSES, compress="lerc", MAX_Z_ERROR=1),
    "lerc_deflate": tif(CLASSES, compress="lerc_deflate", MAX_Z_ERROR=2),
    "webp in tiff": tif(LEGEND.colorize(CLASSES), compress="webp", WEBP_LOSSLESS=False),
    "jpeg named png": pillow(Image.fromarray(CLASSES), ".png", format="JPEG"),
    "jpeg named tif": pillow(Image.fromarray(CLASSES), ".tif", format="JPEG"),
}


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_mask_is_refused_wherever_it_hides(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="changes the classes of a mask; allowed: PNG, or TIFF without loss"):
        open_source(source_of(tmp_path, mask=LOSSY[name]), SMALL)


ORDER = np.array([0, 5, 3, 1, 2, 4, 7, 6], np.uint8)
OWN_ORDER = np.argsort(ORDER).astype(np.uint8)[CLASSES]
OWN_PALETTE = LEGEND.palette()[ORDER]


def _palette_tif(stem: Path) -> Path:
    image = Image.fromarray(OWN_ORDER)
    image.putpalette(OWN_PALETTE.tobytes())
    image.save(stem.with_suffix(".tif"))
    return stem.with_suffix(".tif")


@pytest.mark.parametrize(
    "write",
    [
        _palette_tif,
        tif(OWN_ORDER, palette=OWN_PALETTE),
        tif(OWN_ORDER, palette=OWN_PALETTE, photometric="PALETTE", compress="lzw"),
        tif(OWN_ORDER, palette=OWN_PALETTE, nbits=4),
        lambda stem: write_png(stem.with_suffix(".png"), OWN_ORDER, 4, OWN_PALETTE),
        tif(LEGEND.colorize(CLASSES)),
        tif(LEGEND.colorize(CLASSES), compress="webp", WEBP_LOSSLESS=True),
    ],
    ids=["pillow tiff", "late palette", "lzw", "4 bits", "png of 4 bits", "rgb tiff", "lossless webp in tiff"],
)
def test_the_colour_says_the_class_in_every_container(write: Write, tmp_path: Path) -> None:
    assert np.array_equal(open_source(source_of(tmp_path, mask=write), SMALL).read_mask(0), CLASSES)


def one_hot(bands: int, high: int) -> Values:
    return np.stack([(CLASSES % bands == band) * np.uint8(high) for band in range(bands)], axis=-1)


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (tif(one_hot(7, 1)), "mask has 7 bands"),
        (tif(one_hot(3, 1)), r"one per class \(one-hot\)"),
        (tif(one_hot(4, 1)), "mask has 4 bands"),
        (tif(one_hot(4, 255)), "mask has 4 bands"),
        (tif(one_hot(2, 1)), "mask has 2 bands"),
        (tif(LEGEND.colorize(CLASSES).astype(np.uint16)), "mask colours of 16 bits"),
        (tif(CLASSES, photometric="MINISWHITE"), "0 is white"),
        (tif(CLASSES.astype(np.float32) + 0.5), "is not a class"),
        (tif(CLASSES.astype(np.int16) - 9), "is outside the legend"),
    ],
)
def test_masks_that_are_refused_by_name(mask: Write, text: str, tmp_path: Path) -> None:
    with pytest.raises((SourceError, LegendError), match=text):
        open_source(source_of(tmp_path, mask=mask), SMALL).read_mask(0)


def test_nan_that_is_nodata_is_unknown(tmp_path: Path) -> None:
    values = np.where(HOLE, np.nan, CLASSES).astype(np.float32)
    mask = open_source(source_of(tmp_path / "a", mask=tif(values, nodata=np.nan)), SMALL).read_mask(0)
    assert np.array_equal(mask, np.where(HOLE, 0, CLASSES))
    with pytest.raises(LegendError, match="mask value nan is not a class"):
        open_source(source_of(tmp_path / "b", mask=tif(values)), SMALL).read_mask(0)


BLACK_TOO = Legend("black too", (LegendClass(1, "background", (0, 0, 0)), LegendClass(2, "building", (255, 0, 0))))


@pytest.mark.parametrize("write", [
    lambda path, rgb, shown: write_png(path.with_suffix(".png"), np.dstack([rgb, shown * np.uint8(255)])),
    lambda path, rgb, shown: tif(np.dstack([rgb, shown * np.uint8(255)]), photometric="RGB", alpha="yes")(path),
    lambda path, rgb, shown: tif(np.where(shown[..., None], rgb, 7).astype(np.uint8), nodata=7)(path),
], ids=["png", "tiff", "nodata"])  # fmt: skip
def test_ground_that_a_coloured_mask_does_not_show_is_unknown_where_black_is_a_class(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    classes = np.where(CHANGED, 2, 1).astype(np.uint8)
    path = write(tmp_path / "a", BLACK_TOO.colorize(classes), ~HOLE)
    found = read_mask(path, BLACK_TOO, MaskValues(own_colours=True), None)
    assert np.array_equal(found, np.where(HOLE, 0, classes))


def test_black_that_is_nodata_is_unknown_where_black_is_a_class(tmp_path: Path) -> None:
    classes = np.where(CHANGED, 2, 1).astype(np.uint8)
    for nodata, expected in ((None, classes), (0, np.where(CHANGED, 2, 0))):
        path = tif(BLACK_TOO.colorize(classes), nodata=nodata)(tmp_path / f"{nodata}")
        assert np.array_equal(read_mask(path, BLACK_TOO, MaskValues(own_colours=True), None), expected)


def test_a_legend_is_drafted_from_ground_that_masks_show(tmp_path: Path) -> None:
    seen = Seen()
    seen.add(tif(np.where(HOLE, 99, CLASSES).astype(np.uint8), nodata=99)(tmp_path / "a"))
    assert sorted(seen.numbers) == [1, 2, 3, 4, 5, 6, 7]
    colours = np.where(HOLE[..., None], 9, LEGEND.colorize(CLASSES))
    seen.add(write_png(tmp_path / "b.png", np.dstack([colours, ~HOLE * 255]).astype(np.uint8)))
    assert set(seen.colours) == {c.color for c in LEGEND.classes}
    with pytest.raises(SourceError, match="mask holds nan"):
        seen.add(tif(np.where(HOLE, np.nan, CLASSES).astype(np.float32))(tmp_path / "c"))


COUNTED = [("class_0", 0), ("class_1", 1), ("class_2", 2)]


@pytest.mark.parametrize("write", [
    lambda path: tif(np.where(HOLE, 255, CLASSES % 3).astype(np.uint8))(path),
    lambda path: tif(np.where(HOLE, 255, CLASSES % 3).astype(np.uint8), nodata=255)(path),
    lambda path: tif((CLASSES % 3).astype(np.uint8), nodata=255)(path),
    lambda path: tif(np.where(HOLE, 255, CLASSES % 3).astype(np.uint8), valid=~HOLE)(path),
], ids=["said by nothing", "nodata", "nodata of no pixel", "mask band"])  # fmt: skip
def test_a_legend_is_drafted_from_0_where_255_is_no_class(write: Write, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_png(tmp_path / "images" / "a.png", RGB)
    write(tmp_path / "masks" / "a")
    with pytest.raises(SourceError, match=r"masks hold 0 to 2, 255: save .*\"first_class\": 0, \"ignore_index\": 255"):
        open_source(tmp_path, SMALL)
    init(InitOptions(path=tmp_path))
    legend, numbers = read_legend(tmp_path / "legend.json")
    assert list(zip(legend.names, numbers.counted(3), strict=True)) == COUNTED and numbers.ignored == (255,)
    mask = open_source(tmp_path, SMALL).read_mask(0)
    assert np.array_equal(mask[~HOLE], (CLASSES % 3 + 1)[~HOLE])


def test_255_that_is_nodata_is_no_class_beside_0_alone(tmp_path: Path) -> None:
    seen = Seen()
    seen.add(tif(np.where(HOLE, 255, 0).astype(np.uint8), nodata=255)(tmp_path / "a"))
    assert [entry["name"] for entry in draft(seen, "x")["classes"]] == ["class_1"]


# Labels


FAR = CHANGED.astype(np.uint8)
SOFT = np.asarray(Image.fromarray(FAR * 255).resize((48, 48), Image.Resampling.BILINEAR).resize((64, 64)))


@pytest.mark.parametrize(
    ("label", "expected", "text"),
    [
        (FAR, FAR, "0 is unchanged, 1 is changed"),
        (FAR * 255, FAR, "0 is unchanged, 255 is changed"),
        (FAR + 1, FAR, r"1 is unchanged, 2 is changed \(OSCD\)"),
        (FAR * 128, FAR, "0 is unchanged, 128 is changed"),
        (np.where(HOLE, 255, FAR), FAR * ~HOLE, "1 is changed; 255 is ignored"),
        (np.where(HOLE, 255, FAR + 1), FAR * ~HOLE, r"\(OSCD\); 255 is ignored"),
        (SOFT, SOFT > 127, "above 127 is changed"),
        (FAR * (1 + CLASSES), FAR, "all other values .7 classes of change. are changed"),
        (FAR.astype(np.uint16) * 65535, FAR, "65535 is changed"),
        (np.zeros_like(FAR), FAR * 0, "0 is unchanged"),
        (np.dstack([FAR * 0, FAR * 0, FAR * 255]), FAR, "0 is unchanged, 255 is changed"),
        (np.dstack([FAR * 30, FAR * 0, FAR * 80]), FAR, "0 is unchanged, 80 is changed"),
    ],
)
def test_labels_by_stated_rules(label: Values, expected: Values, text: str, tmp_path: Path) -> None:
    pairs = load_pairs(pairs_of(tmp_path, label))
    pair = pairs[0]
    assert np.array_equal(pair.change_mask, expected.astype(bool))
    assert (pair.ignored is not None) == ("ignored" in text)
    assert re.search(text, check_path(tmp_path))


@pytest.mark.parametrize(
    "colours",
    [[(255, 255, 255), (0, 0, 0)], [(0, 0, 0), (255, 255, 255)], [(0, 0, 0), (0, 0, 255)], [(9, 9, 9), (0, 0, 0)]],
)
def test_palettes_of_labels_and_images_are_expanded(colours: list[tuple[int, int, int]], tmp_path: Path) -> None:
    table = np.array(colours, np.uint8)
    white = int(table.max(axis=1).argmax())
    indices = np.where(CHANGED, white, 1 - white)

    def write(stem: Path) -> Path:
        return write_png(stem.with_suffix(".png"), indices, 1, table)

    pair = load_pairs(pairs_of(tmp_path, write, write))[0]
    assert np.array_equal(pair.change_mask, CHANGED)
    assert np.array_equal(pair.image_t1, table[indices])


@pytest.mark.parametrize("quality", [50, 75, 95, 100])
def test_lossy_labels_by_half_of_the_range(quality: int, tmp_path: Path) -> None:
    write = pillow(Image.fromarray(FAR * 255), ".jpg", quality=quality)
    assert np.array_equal(load_pairs(pairs_of(tmp_path / "a", write))[0].change_mask, CHANGED)
    lerc = tif(FAR * np.uint8(255), compress="lerc", MAX_Z_ERROR=3)
    assert np.array_equal(load_pairs(pairs_of(tmp_path / "b", lerc))[0].change_mask, CHANGED)
    dark = pillow(Image.fromarray(FAR * 8), ".jpg", quality=quality)
    with pytest.raises(PairsError, match="do not outlive JPEG"):
        load_pairs(pairs_of(tmp_path / "c", dark))[0]


def test_one_rule_holds_for_a_whole_set(tmp_path: Path) -> None:
    """A label of 1 alone: all changed under 0/1, nothing under OSCD's 1/2; one that fits neither is refused."""
    pairs_of(tmp_path, FAR + 1)
    for folder in ("A", "B", "label"):
        shutil.copy(tmp_path / folder / "a.png", tmp_path / folder / "b.png")
    write_png(tmp_path / "label" / "b.png", np.ones((SIDE, SIDE)))
    assert not load_pairs(tmp_path)[1].change_mask.any()
    assert not load_pairs(tmp_path).subset(["b.png"])[0].change_mask.any(), "a part of a set keeps its rule"
    write_png(tmp_path / "label" / "a.png", FAR)
    assert load_pairs(tmp_path)[1].change_mask.all()
    reader = LabelReader(lambda: [tmp_path / "label" / "a.png"])
    assert reader.told == "0 is unchanged, 1 is changed"
    write_png(tmp_path / "label" / "b.png", FAR * 255)
    with pytest.raises(PairsError, match=r"b\.png: label values 255, where in this set 0 is unchanged, 1 is changed"):
        reader.read(tmp_path / "label" / "b.png")


@pytest.mark.parametrize("values", [{0, 1, 2, 255}, {0, 7, 255}, {0, 1, 2, 3, 4, 255}, {0, 2, 65535}])
def test_classes_beside_an_ignored_value_are_refused_not_guessed(values: set[int], tmp_path: Path) -> None:
    """As labels of damage have them: above half of the range would turn what is ignored into what has changed."""
    kind = np.uint16 if 65535 in values else np.uint8
    label = np.resize(np.array(sorted(values), kind), (SIDE, SIDE))
    with pytest.raises(PairsError, match=r"or some strays beside 0 and (255|65535).*save what has changed as 1"):
        load_pairs(pairs_of(tmp_path, label))[0]


@pytest.mark.parametrize("low", [-1, -255, -3])
def test_negative_labels_are_refused(low: int, tmp_path: Path) -> None:
    """0 and -1 once read as "0 is unchanged, 0 is changed"."""
    with pytest.raises(PairsError, match=f"label values {low}, 0; allowed"):
        load_pairs(pairs_of(tmp_path, tif(FAR.astype(np.int16) * low)))[0]


@pytest.mark.parametrize("which", ["B", "label"])
@pytest.mark.parametrize("crs", [UTM, "EPSG:32634"])
def test_check_warns_where_files_of_a_pair_lie_on_other_ground(
    which: str, crs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pairs_of(tmp_path, tif(FAR), tif(RGB))
    assert run(["check", str(folder)]) == 0 and "other ground" not in capsys.readouterr().out
    moved = from_origin(400_000 + (50 if crs == UTM else 0), 5_000_000, 0.5, 0.5)
    write_tif(folder / which / "a.tif", RGB if which == "B" else FAR, crs=crs, transform=moved)
    assert run(["check", str(folder)]) == 0
    said = capsys.readouterr().out
    assert (
        f"1 of 1 pairs have a file that lies on other ground than date 1 (CRS or transform), the first {folder}" in said
    )


def test_check_warns_where_most_of_the_ground_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels of drawing programs: what is drawn is opaque, all else transparent."""
    drawn = np.dstack([FAR * 255, FAR * 0, FAR * 0, FAR * 255])
    assert run(["check", str(pairs_of(tmp_path, pillow(Image.fromarray(drawn), ".png")))]) == 0
    assert "warning: 78% of the ground is ignored (alpha, nodata, or 255" in capsys.readouterr().out


def test_other_kinds_of_files_in_a_set_of_pairs_are_named(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match=r"A: holds no image; allowed: \.png, \.jpg"):
        load_pairs(pairs_of(tmp_path, FAR, pillow(Image.fromarray(RGB), ".bmp")))


def test_the_picture_of_an_mpo_is_read(tmp_path: Path) -> None:
    def mpo(stem: Path) -> Path:
        more = [Image.fromarray(RGB[::2, ::2].copy())]
        Image.fromarray(RGB).save(stem.with_suffix(".jpg"), "MPO", save_all=True, append_images=more, quality=95)
        return stem.with_suffix(".jpg")

    image = open_source(source_of(tmp_path / "s", mpo), SMALL)[0].image
    assert image.shape == RGB.shape and np.abs(image.astype(float).mean((0, 1)) - RGB.mean((0, 1))).max() < 3
    with pytest.raises(SourceError, match="JPEG changes the classes of a mask"):
        open_source(source_of(tmp_path / "m", mask=mpo), SMALL)


def test_label_values_without_a_rule_are_refused() -> None:
    with pytest.raises(PairsError, match="label values 3, 5; allowed: 0 and 1"):
        rule_of(frozenset({3.0, 5.0}), 255)


# Ground


def turned(degrees: float, step: float = 0.5) -> Affine:
    return Affine.translation(400_000, 5_000_000) @ Affine.rotation(degrees) @ Affine.scale(step, -step)


@pytest.mark.parametrize(
    ("crs", "transform", "metres"),
    [
        (UTM, from_origin(400_000, 5_000_000, 0.5, 0.5), 0.5),
        (UTM, turned(30), 0.5),
        (UTM, turned(90), 0.5),
        (UTM, Affine(0.5, 0.3, 4e5, 0, -0.5, 5e6), 0.5),
        (UTM, Affine(0.5, 0, 4e5, 0, 0.5, 5e6), 0.5),
        (UTM, from_origin(400_000, 5_000_000, 0.5, 2.0), 1.0),
        ("EPSG:32633+5773", from_origin(400_000, 5_000_000, 0.3, 0.3), 0.3),
        ("EPSG:2229", from_origin(6_400_000, 1_800_000, 1.0, 1.0), 0.3048),
        ("EPSG:3857", from_origin(1_113_194, 8_399_737, 1.0, 1.0), 0.5),
        ("EPSG:3857", from_origin(1_113_194, 0, 1.0, 1.0), 1.0),
        ("EPSG:4326", from_origin(15.0, 60.0, 1e-5, 1e-5), 1.11531 * 0.70790),
        ("EPSG:4326", from_origin(15.0, 0.0, 1e-5, 1e-5), 1.10946),
        ("EPSG:4979", from_origin(15.0, 0.0, 1e-5, 1e-5), 1.10946),
        ('LOCAL_CS["site",UNIT["metre",1]]', from_origin(0, 0, 2.0, 2.0), None),
    ],
)
def test_square_metres_of_every_grid(crs: str, transform: Affine, metres: float | None, tmp_path: Path) -> None:
    source = open_source(source_of(tmp_path, tif(RGB, crs=crs, transform=transform)), SMALL)
    found = source.items[0].gsd_m
    assert found == metres if metres is None else found == pytest.approx(metres, rel=0.003)


@pytest.mark.parametrize("bent", [0.0, 30.0])
def test_control_points_alone(bent: float, tmp_path: Path) -> None:
    """As a transform where one fits them, else no place."""
    points = [
        GroundControlPoint(row, column, 4e5 + 0.5 * column + (bent if row == column == 64 else 0), 5e6 - 0.5 * row)
        for row in (0, 64)
        for column in (0, 64)
    ]
    file = tmp_path / "images" / "a.tif"
    source_of(tmp_path, tif(RGB))
    with rasterio.open(
        file, "w", driver="GTiff", count=3, height=SIDE, width=SIDE, dtype="uint8", gcps=points, crs=UTM
    ) as raster:
        raster.write(RGB.transpose(2, 0, 1))
    source = open_source(tmp_path, SMALL)
    assert source.items[0].gsd_m == (None if bent else pytest.approx(0.5))
    assert (source.georef(0) is None) == bool(bent)


@pytest.mark.parametrize(
    ("crs", "moved", "fits"),
    [
        ("EPSG:32633+5773", 0.0, True),
        ("EPSG:25833", 0.0, True),
        ("EPSG:32633+5773", 0.6, False),
        ("EPSG:32634", 0.0, False),
    ],
)
def test_image_and_mask_are_compared_on_the_ground(crs: str, moved: float, fits: bool, tmp_path: Path) -> None:
    there = from_origin(400_000 + moved, 5_000_000, 0.5, 0.5)
    folder = source_of(tmp_path, tif(RGB), tif(CLASSES, crs=crs, transform=there))
    if fits:
        assert len(open_source(folder, SMALL)) == 1
        return
    with pytest.raises(SourceError, match="lies elsewhere"):
        open_source(folder, SMALL)


@pytest.mark.parametrize("numbers", [(0, 0, 4e5, 0, 0, 5e6), (0.5, 0.5, 4e5, 0.5, 0.5, 5e6)])
def test_a_transform_that_maps_to_a_line_is_refused(numbers: tuple[float, ...], tmp_path: Path) -> None:
    folder = source_of(tmp_path, tif(RGB, transform=Affine(*numbers)))
    with pytest.raises(SourceError, match="maps all pixels to one line"):
        open_source(folder, SMALL)


def test_a_model_says_its_ground_sampling(tmp_path: Path) -> None:
    mini = read_info(find_model("mini"))
    assert mini.gsd_m == (0.5, 0.7)
    assert outside_sampling(mini, [0.5, 0.6, None]) is None and outside_sampling(mini, [None]) is None
    warning = outside_sampling(mini, [10.0, 0.5])
    assert warning is not None and "1 of 2 tiles have a ground sampling of 10 m; the model knows 0.5 to 0.7" in warning
    assert "0.1 to 10 m" in (outside_sampling(mini, [10.0, 0.1]) or "")
    assert sampling_range([0.5, 0.30001, 1]) == (0.3, 1.0) and sampling_range([0.5, None]) is None
    copy = Path(shutil.copytree(find_model("mini"), tmp_path / "m"))
    file = copy / "model.json"
    file.write_text(file.read_text().replace("0.7", "0.9"))
    assert hash_model(copy) == mini.weights_hash == hash_model(find_model("mini"))
    file.write_text(file.read_text().replace("0.9", '"wide"'))
    with pytest.raises(ModelError):
        read_info(copy)
    ten = tif(RGB, transform=from_origin(400_000, 5_000_000, 10, 10))
    assert "ground sampling of 10 m" in check_path(source_of(tmp_path / "s", ten))
    assert isinstance(mini, ModelInfo)


def test_generate_warns_outside_the_ground_sampling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = source_of(tmp_path / "s", tif(RGB, transform=from_origin(400_000, 5_000_000, 10, 10)))
    for folder_of in ("images", "masks"):
        write_png(folder / folder_of / "b.png", RGB if folder_of == "images" else CLASSES)
    command = ["--source", str(folder), "--tile-size", "64", "--num-pairs", "1", "--out", str(tmp_path / "out")]
    limits = ["--events.min-area", "4", "--events.min-area-m2", "5"]
    run(["generate", *command, *limits, "--dry-run"])
    said = capsys.readouterr().err
    assert "1 of 1 tiles have a ground sampling of 10 m; the model knows 0.5 to 0.7 m" in said
    assert "1 of 2 tiles have no known ground sampling; limits in m2 do not hold" in said


# Trust


def vrt(target: str) -> str:
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename relativeToVRT="0">{target}'
        f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    return f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}">{bands}</VRTDataset>'


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
@pytest.mark.parametrize("kind", ["file", "address", "service"])
def test_nothing_points_elsewhere(kind: str, suffix: str, tmp_path: Path) -> None:
    secret = write_png(tmp_path / "secret.png", np.full((SIDE, SIDE, 3), 123))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/beacon"
        content = {
            "file": vrt(str(secret)),
            "address": vrt(f"/vsicurl/{address}"),
            "service": f"<GDAL_WMS><Service name='TMS'><ServerUrl>{address}</ServerUrl></Service></GDAL_WMS>",
        }[kind]

        def write(stem: Path) -> Path:
            stem.with_suffix(suffix).write_text(content)
            return stem

        with pytest.raises(SourceError, match="can point to other places"):
            open_source(source_of(tmp_path / "s", write), SMALL)
        with pytest.raises(PairsError, match="can point to other places"):
            load_pairs(pairs_of(tmp_path / "p", FAR, write))[0]
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("side", ["a.tif.ovr", "a.tif.aux.xml", "a.tif.msk"])
def test_side_files_are_not_opened(side: str, tmp_path: Path) -> None:
    folder = source_of(tmp_path, tif(RGB.astype(np.uint16)))
    before = open_source(folder, SMALL)[0].image
    (folder / "images" / side).write_text(vrt("/vsicurl/http://127.0.0.1:9/x"))
    os.utime(folder / "images" / "a.tif", (1, 1))  # what was kept of it is of no use any more
    if side.endswith(".msk"):  # it would be lost without a word
        with pytest.raises(SourceError, match="has a mask beside it"):
            open_source(folder, SMALL)
    else:
        assert np.array_equal(open_source(folder, SMALL)[0].image, before)


def test_pipes_and_folders_are_no_files(tmp_path: Path) -> None:
    folder = source_of(tmp_path)
    file = folder / "images" / "a.png"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(SourceError, match="a folder, pipe or device, not a file"):
        open_source(folder, SMALL)


def huge(suffix: str) -> Write:
    """A header of 60,000 (TIFF: 20,000) px a side over next to nothing."""

    def write(stem: Path) -> Path:
        file = stem.with_suffix(suffix)
        if suffix == ".tif":
            file.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(
                file, "w", driver="GTiff", count=3, height=20_000, width=20_000, dtype="uint8", tiled=True,
                blockxsize=20_000, blockysize=20_000,
                compress="deflate", SPARSE_OK=True, **{"crs": UTM, "transform": turned(0)},
            ):  # fmt: skip
                pass
        else:
            write_png(file, RGB)
            content = bytearray(file.read_bytes())
            content[16:24] = (60_000).to_bytes(4, "big") * 2
            file.write_bytes(bytes(content))
        return file

    return write


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sizes_are_bounded_before_memory_is_taken(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"(3600|400) megapixels at once; allowed: 178\).*or raise max_megapixels"):
        open_source(source_of(tmp_path / "s", huge(suffix)), SMALL)
    with pytest.raises(PairsError, match="megapixels at once"):
        load_pairs(pairs_of(tmp_path / "p", FAR, huge(suffix)))[0]


def sparse(side: int, bands: int, dtype: str) -> Write:
    """A tiled TIFF of a few KB that says it is ``side`` px wide and high: no block of it is large."""

    def write(stem: Path) -> Path:
        file = stem.with_suffix(".tif")
        more: dict[str, Any] = {
            "tiled": True,
            "blockxsize": 512,
            "blockysize": 512,
            "SPARSE_OK": True,
            "BIGTIFF": "YES",
        }
        with rasterio.open(
            file, "w", driver="GTiff", count=bands, height=side, width=side, dtype=dtype, crs=UTM,
            transform=turned(0), **more,
        ):  # fmt: skip
            pass
        return file

    return write


SPARSE = [(60_000, 3, "uint8", "3600"), (40_000, 1, "uint8", "533"), (12_000, 4, "float32", "768")]


@pytest.mark.parametrize(("side", "bands", "dtype", "megapixels"), SPARSE)
@pytest.mark.parametrize("where", ["image", "label"])
def test_a_file_of_pairs_is_bounded_as_it_is_read_whole(
    where: str, side: int, bands: int, dtype: str, megapixels: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sparse(side, bands, dtype)
    pairs_of(tmp_path, FAR if where == "image" else file, file if where == "image" else None)
    assert run(["check", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"as much as {megapixels} megapixels of 8-bit RGB, read whole; allowed: 512)" in said
    with pytest.raises(PairsError, match="or raise max_megapixels"):
        load_pairs(tmp_path)[0]


def test_the_bound_of_pairs_can_be_lowered_and_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By every command that reads pairs; a tile of 64 px counts as 0.004 megapixels."""
    folder = pairs_of(tmp_path / "p", FAR, tif(RGB))
    for bound, code in (("0.001", 2), ("5000", 0)):
        assert run(["check", str(folder), "--max-megapixels", bound]) == code
        assert (f"allowed: {bound}" in capsys.readouterr().err) == (code == 2)
    training = ["train", "detector", "--detector.pairs", str(folder), "--detector.name", "fc_siam_diff"]
    training += ["--detector.train-split", "null", "--detector.val-split", "null", "--detector.crop-size", "64"]
    training += ["--detector.max-megapixels", "0.001", "--detector.num-steps", "1", "--run.num-workers", "0"]
    assert run([*training, "--out", str(tmp_path / "run")]) == 2
    assert "allowed: 0.001" in capsys.readouterr().err
    LEGEND.save(folder / "legend.json")
    for name in ("label1", "label2"):
        write_png(folder / name / "a.png", np.where(CHANGED, 1 + (name == "label2"), 1))
    judged = ["evaluate", "--pairs", str(folder), "--out", str(tmp_path / "e"), "--max-megapixels", "0.001"]
    assert run(judged) == 2
    assert "allowed: 0.001" in capsys.readouterr().err


def test_the_bound_can_be_lowered_and_raised(tmp_path: Path) -> None:
    folder = write_source(tmp_path, num_tiles=1)
    with pytest.raises(SourceError, match=r"64x64 px are 0 megapixels at once; allowed: 0\.001"):
        open_source(folder, SourceOptions(tile_size=64, max_megapixels=0.001))
    assert len(open_source(folder, SourceOptions(tile_size=64, max_megapixels=5000)))
