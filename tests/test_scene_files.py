"""Files of a scene as others read them: rasterio, GDAL's own programs, a COG validator, STAC's schemas, a GeoPackage
reader; and training pairs cut from it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp

import changeanywhere as ca
from changeanywhere.cli import run
from changeanywhere.legend import load_legend
from changeanywhere.sample import ChangeEvent, change_mask_of
from changeanywhere.scenes.descriptions import PROJECTION, event_features, stac_item
from changeanywhere.scenes.inputs import open_image
from changeanywhere.scenes.work import Parts
from changeanywhere.sources import SourceOptions
from changeanywhere.storage import LocalStore, file_hash
from scene_files import CRS, FILES, PIXEL, colours, command, land_cover, values, write_scene, write_tiff

SCHEMA = Path(__file__).parent / "schemas" / "stac-projection-v2.0.0.json"
"""Of stac-extensions/projection (Apache-2.0), so that no test needs the network."""
MADE = (*FILES, "events.gpkg", "report.html", "item.json", "plan.json", "mask_t1.qml", "mask_t2.qml", "change.qml")
"""All that a finished scene with a GeoPackage is, but for the settings, which name versions."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> dict[str, Path]:
    """Finished scenes by what is special in them; each larger than a block of a COG, so that there are overviews."""
    folder = tmp_path_factory.mktemp("scenes")
    image, mask = write_scene(folder / "in", 560, 600)
    cover = values(mask)[0]
    deep = colours(cover).astype(np.uint16) * 12
    deep[:20, :30] = 65535
    infrared = np.random.default_rng(1).integers(1, 4000, (*cover.shape, 1)).astype(np.uint16)
    bands = write_tiff(folder / "in" / "deep.tif", np.concatenate([deep, infrared], 2), nodata=65535)
    sure = ("--paste-back", "--num-steps", "2", "--events-format", "gpkg")
    assert run(command(image, mask, folder / "out", tiny_model_folder, *sure, "--tiles", "128")) == 0
    assert run(command(bands, mask, folder / "out", tiny_model_folder, *sure)) == 0
    return {"town": folder / "out" / "town", "deep": folder / "out" / "deep", "in": folder / "in"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("which", ["town", "deep"])
def test_a_cog_validator_and_gdalinfo_accept_every_raster(scenes: dict[str, Path], which: str, name: str) -> None:
    from rio_cogeo.cogeo import cog_validate

    path = scenes[which] / name
    is_valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    assert is_valid and not errors and not warnings
    with rasterio.open(path) as raster:
        assert raster.overviews(1) and raster.crs == CRS
        for _, window in raster.block_windows(1):
            raster.read(window=window)
    if shutil.which("gdalinfo") is None:
        pytest.skip("no gdalinfo on this machine (Debian: gdal-bin)")
    found = subprocess.run(["gdalinfo", "-json", "-checksum", path], capture_output=True, text=True)
    assert found.returncode == 0 and not found.stderr.strip(), found.stderr
    facts = json.loads(found.stdout)
    assert facts["size"] == [600, 560] and facts["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    assert facts["metadata"]["IMAGE_STRUCTURE"]["COMPRESSION"] == "DEFLATE"
    assert all(band["block"] == [512, 512] and band["overviews"] for band in facts["bands"])
    if name.startswith("mask"):
        table = facts["bands"][0]["colorTable"]["entries"]
        assert table[1][:3] == list(load_legend("mini").classes[0].color) and facts["bands"][0]["noDataValue"] == 0


def test_stac_accepts_the_item(scenes: dict[str, Path]) -> None:
    import pystac
    from pystac.validation.stac_validator import JsonSchemaSTACValidator

    for which in ("town", "deep"):
        path = scenes[which] / "item.json"
        item = pystac.Item.from_file(str(path))
        validator = JsonSchemaSTACValidator()
        validator.schema_cache[PROJECTION] = json.loads(SCHEMA.read_text())
        assert len(item.validate(validator)) == 2  # the core and the extension
        assert item.bbox is not None and item.geometry is not None
        assert all(Path(asset.get_absolute_href() or "").is_file() for asset in item.assets.values())
        broken = json.loads(path.read_text())
        broken["properties"]["proj:shape"] = "600 x 560"
        with pytest.raises(pystac.errors.STACValidationError):
            pystac.Item.from_dict(broken, href=str(path)).validate(validator)


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("2020:05:06 07:08:09", "2020-05-06T07:08:09Z"),
        ("2020-05-06 07:08:09", "2020-05-06T07:08:09Z"),
        ("2020:05:06 07:08", "2020-05-06T07:08:00Z"),
        ("0000:00:00 00:00:00", None),
        ("2020:13:45 99:00:00", None),
        ("yesterday", None),
    ],
)
def test_the_date_of_an_item_is_a_date_or_none(tmp_path: Path, tag: str, said: str | None) -> None:
    image, _ = write_scene(tmp_path, 40, 40)
    with rasterio.open(image, "r+") as raster:
        raster.update_tags(TIFFTAG_DATETIME=tag)
    item = json.loads(stac_item("town", open_image(image, SourceOptions(bands=(1, 2, 3)), 3), [], {}))
    assert item["properties"]["datetime"] == said


def test_events_are_valid_polygons(tmp_path: Path) -> None:
    """Px that touch at corners alone, as edges of houses that are turned have them."""
    shapely = pytest.importorskip("shapely", reason="pip install 'changeanywhere[scenes]'")
    image, _ = write_scene(tmp_path, 40, 40)
    before = np.ones((40, 40), np.uint8)
    after = np.where(np.random.default_rng(0).random((40, 40)) < 0.4, 4, 1).astype(np.uint8)
    event = ChangeEvent("appearance", 1, 4, (0, 0, 40, 40), (0, 0), int((after == 4).sum()))
    scene = open_image(image, SourceOptions(bands=(1, 2, 3)), 3)
    for world in (True, False):
        ((geometry, fields),) = event_features([event], (before, after), scene, load_legend("mini"), world)
        placed = shapely.from_geojson(json.dumps(geometry))
        assert placed.is_valid, shapely.is_valid_reason(placed)
        assert fields["area_px"] == event.area
    assert placed.area == pytest.approx(event.area * PIXEL**2)


def test_others_read_the_geopackage(scenes: dict[str, Path]) -> None:
    import pyogrio
    import shapely

    path = scenes["town"] / "events.gpkg"
    meta, _, shapes, columns = pyogrio.raw.read(path, layer="events")
    assert meta["crs"] == CRS and meta["geometry_type"] == "MultiPolygon" and len(shapes) == 3
    fields = dict(zip(meta["fields"], columns, strict=True))
    geometries = shapely.from_wkb(shapes)
    assert shapely.is_valid(geometries).all()
    change = values(scenes["town"] / "change.tif")[0] > 0
    assert fields["area_px"].sum() == change.sum()
    assert shapely.area(geometries) == pytest.approx(fields["area_px"] * PIXEL**2, rel=1e-6)
    assert fields["area_m2"] == pytest.approx(shapely.area(geometries), rel=0.01)
    assert set(fields["to_class"]) <= {*load_legend("mini").names}
    rows, columns_of = np.nonzero(change)
    with rasterio.open(scenes["town"] / "change.tif") as raster:
        centres = shapely.points(*(raster.transform @ (columns_of + 0.5, rows + 0.5)))
    assert shapely.contains(shapely.union_all(geometries), centres).all()
    with sqlite3.connect(path) as table:
        assert table.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert table.execute("SELECT last_change FROM gpkg_contents").fetchone() == ("1970-01-01T00:00:00.000Z",)
    table.close()
    if shutil.which("ogrinfo") is None:
        pytest.skip("no ogrinfo on this machine (Debian: gdal-bin)")
    found = subprocess.run(["ogrinfo", "-ro", "-so", path, "events"], capture_output=True, text=True)
    assert found.returncode == 0 and not found.stderr.strip() and "Feature Count: 3" in found.stdout


def test_tiles_for_training_are_cut_from_the_scene(
    scenes: dict[str, Path], tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = scenes["town"] / "tiles"
    pairs = ca.load_pairs(tiles)
    assert len(pairs) == 16  # 4 by 4 of 128 px in 560 by 600
    whole = {name: values(scenes["town"] / f"{name}.tif") for name in ("t1", "t2", "mask_t1", "mask_t2", "change")}
    records = [json.loads(line) for line in (tiles / "metadata.jsonl").read_text().splitlines()]
    for record in records:
        row, column = (int(number) for number in record["key"].split("_")[1:])
        part = (slice(row, row + 128), slice(column, column + 128))
        for folder, name in (("A", "t1"), ("B", "t2")):
            pixels = values(tiles / record[f"{folder}_file_name"])
            assert np.array_equal(pixels, whole[name][:, *part])
        assert np.array_equal(values(tiles / record["label_file_name"])[0], whole["change"][0][part])
        assert np.array_equal(values(tiles / record["label2_file_name"])[0], whole["mask_t2"][0][part])
        assert sum(event["area"] for event in record["events"]) == (whole["change"][0][part] > 0).sum()
        assert record["split"] == "train" and record["scene"] == "town" and record["crs"] == CRS
        assert record["transform"][2] == pytest.approx(320_000 + column * PIXEL)
    assert {record["kind"] == "no_change" for record in records} == {True, False}
    assert (tiles / "list" / "train.txt").read_text().count("\n") == 16
    assert run(["check", str(tiles)]) == 0
    # Finished scenes are cut, and cut again, without painting.
    out = tmp_path / "out"
    shutil.copytree(scenes["town"].parent, out)
    again = command(scenes["in"] / "town.tif", scenes["in"] / "town_mask.tif", out, tiny_model_folder, "--paste-back")
    again += ["--num-steps", "2", "--events-format", "gpkg", "--tiles"]
    capsys.readouterr()
    assert run([*again, "128"]) == 0 and "nothing to do" in capsys.readouterr().out
    assert run([*again, "64"]) == 2 and "asked now: 64" in capsys.readouterr().err
    shutil.rmtree(out / "town" / "tiles")
    assert run([*again, "256", "--image-format", "geotiff"]) == 0
    assert len(ca.load_pairs(out / "town" / "tiles")) == 4
    with rasterio.open(next((out / "town" / "tiles" / "B").iterdir())) as raster:
        assert raster.crs == CRS and raster.count == 3
    shutil.rmtree(out / "town" / "tiles")
    assert run([*again, "600"]) == 2 and "tiles is 600" in capsys.readouterr().err
    theirs = out / "town" / "tiles" / "A" / "theirs.png"  # whoever cut tiles of that scene before
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    assert run([*again, "256"]) == 2 and "holds A/theirs.png" in capsys.readouterr().err
    assert theirs.read_bytes() == b"theirs"


@pytest.mark.parametrize("name", ["parts", "leases"])
def test_folders_of_others_in_a_scenes_place_stay(
    name: str, scenes: dict[str, Path], tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "out" / "town" / name / "theirs.pdf"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    words = command(scenes["in"] / "town.tif", scenes["in"] / "town_mask.tif", tmp_path / "out", tiny_model_folder)
    code = run([*words, "--num-steps", "1"])
    assert theirs.read_bytes() == b"theirs"
    assert code == (0 if name == "leases" else 2), capsys.readouterr().err


def test_what_an_image_says_of_its_bands_stays(tmp_path: Path, tiny_model_folder: Path) -> None:
    """Of reflectances as whole numbers, as Sentinel-2 has them; of values that are shown as others, by these."""
    _, mask = write_scene(tmp_path / "in", 70, 130)
    cover = land_cover(70, 130)
    deep = np.concatenate([colours(cover), cover[..., None]], 2).astype(np.uint16) * 12
    image = write_tiff(tmp_path / "in" / "deep.tif", deep)
    grey = write_tiff(tmp_path / "in" / "grey.tif", colours(cover)[..., :1] // 18, nbits=4, photometric="MINISWHITE")
    said = {
        "descriptions": ("B04", "B03", None, "height"),
        "units": ("reflectance", "reflectance", None, "m"),
        "scales": (1e-4, 1e-4, 1.0, 0.5),
        "offsets": (-0.1, -0.1, 0.0, 20.0),
    }
    with rasterio.open(image, "r+") as raster:
        for name, value in said.items():
            setattr(raster, name, tuple(each or "" for each in value) if name == "units" else value)
        raster.colorinterp = seen = (ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.nir)
    with rasterio.open(grey, "r+") as raster:
        raster.scales, raster.offsets = (0.5,), (2.0,)
        stored = raster.read()
    more = ("--paste-back", "--num-steps", "1")
    tiled = ("--bands", "[3,2,1]", "--tiles", "64", "--image-format", "geotiff")
    assert run(command(image, mask, tmp_path / "out", tiny_model_folder, *more, *tiled)) == 0
    assert run(command(grey, mask, tmp_path / "out", tiny_model_folder, *more, "--bands", "[1,1,1]")) == 0
    for date in ("t1.tif", "t2.tif"):
        with rasterio.open(tmp_path / "out" / "deep" / date) as raster:
            assert {name: getattr(raster, name) for name in said} == said, date
            assert raster.colorinterp == seen
        with rasterio.open(tmp_path / "out" / "grey" / date) as raster:
            value = raster.read() * raster.scales[0] + raster.offsets[0]
        if date == "t1.tif":
            assert np.allclose(value, stored * 0.5 + 2.0)
    tiles = [*(tmp_path / "out" / "deep" / "tiles").glob("[AB]/*.tif")]
    for file in tiles:
        with rasterio.open(file) as raster:
            assert {name: getattr(raster, name) for name in said} == {name: each[2::-1] for name, each in said.items()}
            assert raster.colorinterp == seen[2::-1]
    assert len(tiles) == 4


@pytest.mark.parametrize(("dtype", "others"), [("uint16", 0), ("uint8", 1), ("uint16", 1)])
def test_the_alpha_band_stays_the_alpha_band(dtype: str, others: int, tmp_path: Path, tiny_model_folder: Path) -> None:
    """Behind bands that are no colours, too: GDAL would mark the first of these."""
    _, mask = write_scene(tmp_path / "in", 70, 130)
    cover = land_cover(70, 130)
    largest = np.iinfo(dtype).max
    alpha = np.full((70, 130, 1), largest)
    alpha[:, :40] = 0
    bands = [colours(cover).astype(int) * (largest // 255), *[cover[..., None]] * others, alpha]
    image = write_tiff(tmp_path / "in" / "ortho.tif", np.concatenate(bands, 2).astype(dtype))
    with rasterio.open(image, "r+") as raster:
        raster.colorinterp = (*raster.colorinterp[:-1], ColorInterp.alpha)
    with rasterio.open(image) as raster:
        assert [each.name for each in raster.colorinterp].index("alpha") == 3 + others
    assert run(command(image, mask, tmp_path / "out", tiny_model_folder, "--num-steps", "1")) == 0
    for date in ("t1.tif", "t2.tif"):
        with rasterio.open(tmp_path / "out" / "ortho" / date) as raster:
            assert [each.name == "alpha" for each in raster.colorinterp] == [False] * (3 + others) + [True], date


class KilledError(BaseException):
    """What no program catches."""


def test_a_scene_that_ends_at_any_window_goes_on_to_the_same_bytes(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short form of ``test_scenes.test_a_killed_scene_ends_in_the_same_bytes``: ended in every third
    unit of work, half of which leave a torn file behind."""
    image, mask = write_scene(tmp_path / "in", 70, 130)
    more = ("--events-format", "gpkg", "--tiles", "64")
    assert run(command(image, mask, tmp_path / "whole", tiny_model_folder, *more)) == 0
    put, written, ends = Parts.put, list[str](), list[str]()

    def torn(self: Parts, name: str, tensor: Any) -> None:
        put(self, name, tensor)
        written.append(name)
        if len(written) % 3 == 0:
            ends.append(name)
            if len(ends) % 2:
                place = tmp_path / "ended" / "town" / "parts" / "painted" / f"{name}.part.npy"
                place.write_bytes(place.read_bytes()[: 50 * len(ends)])
            raise KilledError

    monkeypatch.setattr(Parts, "put", torn)
    ended = command(image, mask, tmp_path / "ended", tiny_model_folder, *more)
    for _ in range(100):
        try:
            assert run(ended) == 0
            break
        except KilledError:
            continue
    assert len(ends) >= 3
    for name in (*MADE, *(f"tiles/{each}" for each in ("metadata.jsonl", "tiles.json", "report.html"))):
        here, there = tmp_path / "ended" / "town" / name, tmp_path / "whole" / "town" / name
        assert file_hash(here) == file_hash(there), name
    assert not (tmp_path / "ended" / "town" / "parts").exists()


def test_what_an_older_edition_had_painted_is_not_taken_up(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts had names that two of them could share."""
    image, mask = write_scene(tmp_path / "in", 70, 130)
    assert run(command(image, mask, tmp_path / "whole", tiny_model_folder)) == 0
    put = Parts.put

    def ended(self: Parts, name: str, tensor: torch.Tensor) -> None:
        put(self, name, tensor)
        if name.startswith("decode"):
            raise KilledError

    monkeypatch.setattr(Parts, "put", ended)
    arguments = command(image, mask, tmp_path / "out", tiny_model_folder)
    with pytest.raises(KilledError):
        run(arguments)
    monkeypatch.undo()
    store = LocalStore(tmp_path / "out" / "town")
    painted, older = Parts(store, "parts/painted"), Parts(store, "parts/windows")
    for file in (store.root / "parts" / "painted").iterdir():
        name = file.name.removesuffix(".part.npy")
        found = painted.get(name)
        assert found is not None
        older.put(name, torch.zeros_like(found))
        file.unlink()
    assert run(arguments) == 0
    assert file_hash(store.root / "t2.tif") == file_hash(tmp_path / "whole" / "town" / "t2.tif")


def test_events_of_second_masks_reach_the_geopackage(tmp_path: Path, tiny_model_folder: Path) -> None:
    import pyogrio

    image, mask = write_scene(tmp_path / "in", 100, 130)
    after = land_cover(100, 130)
    after[40:60, 90:94] = after[56:60, 90:110] = 4
    after[42:48, 100:106] = 4  # in the box of the other, of the same transition where the ground is
    second = write_tiff(tmp_path / "in" / "after.tif", after[..., None])
    arguments = command(image, mask, tmp_path / "out", tiny_model_folder, "--mask-t2", str(second), "--paste-back")
    del arguments[arguments.index("--num-events") : arguments.index("--num-events") + 2]
    assert run([*arguments, "--events-format", "gpkg"]) == 0
    meta, _, _, columns = pyogrio.raw.read(tmp_path / "out" / "town" / "events.gpkg")
    fields = dict(zip(meta["fields"], columns, strict=True))
    assert set(fields["kind"]) == {"given"}
    assert fields["area_px"].sum() == change_mask_of(land_cover(100, 130), after).sum()
