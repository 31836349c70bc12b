"""Objects: found, matched and measured on images whose answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from changeanywhere.cli import run as command
from changeanywhere.evaluation.classifier import real_or_painted
from changeanywhere.evaluation.distances import Array, bootstrap_median, kid_of_places
from changeanywhere.evaluation.figures import Figure
from changeanywhere.evaluation.object_sets import ObjectSet, gather, painted_objects, places_of
from changeanywhere.evaluation.objects import GREY, Spot, counterparts, crops, find_spots, readings, seams
from changeanywhere.evaluation.of_first_stage import first_stage_figures
from changeanywhere.evaluation.of_objects import compare, object_figures
from changeanywhere.evaluation.options import FIRST_STAGE
from changeanywhere.evaluation.reading import Image
from changeanywhere.evaluation.scores import Mask
from changeanywhere.pairs import load_pairs
from conftest import write_source

NAMES = ("ground", "building")
Change = Callable[[Image, Mask], Image]


def rng(number: int = 0) -> np.random.Generator:
    return np.random.default_rng(number)


def test_objects_are_found_whole_cut_and_filled() -> None:
    mask = np.ones((128, 128), np.uint8)
    mask[10:20, 100:112] = 2  # whole
    mask[60:66] = 3  # a road: windows on it
    mask[100:104, 100:104] = 2  # too small
    mask[90:120, 3:20] = 0  # unknown ground is no object
    spots = find_spots(mask, 7, rng())
    (house,) = [spot for spot in spots if spot.class_index == 2]
    assert (house.tile, house.row, house.column, house.area, house.whole) == (7, 0, 64, 120, True)
    assert np.array_equal(house.there, house.of(mask) == 2)
    road = [spot for spot in spots if spot.class_index == 3]
    assert len(road) == 4 and all(not spot.whole and spot.area == 6 * 64 for spot in road)
    assert {spot.class_index for spot in spots} == {1, 2, 3} and not any(spot.filled for spot in spots)
    # A pond that became bare land lies in bare land; its shape is that of what changed.
    changed = np.zeros(mask.shape, bool)
    changed[30:45, 30:45] = True
    (pond,) = find_spots(mask, 0, rng(), changed)
    assert pond.filled and pond.area == 225 and pond.class_index == 1
    assert find_spots(mask[:32, :32], 0, rng())[0].there.shape == (32, 32), "a small tile is its own window"


def spot(area: int, class_index: int = 2, whole: bool = True, filled: bool = False) -> Spot:
    there = np.zeros((64, 64), bool)
    there.flat[:area] = True
    return Spot(0, 0, 0, class_index, there, whole, filled)


def test_counterparts_have_the_class_and_nearly_the_size() -> None:
    pool = [spot(100), spot(210), spot(400), spot(100, 3), spot(100, whole=False)]
    masks = [np.ones((64, 64), np.uint8)]
    painted = [spot(110), spot(190), spot(3000), spot(120, 4)]
    found = counterparts(painted, pool, masks, rng())
    assert [(a.area, b.area, b.whole) for a, b in found] == [(110, 100, True), (190, 210, True)]
    twice = counterparts([spot(100), spot(101)], [spot(100)], masks, rng())
    assert len(twice) == 1, "a real object stands for one painted one"


def test_filled_ground_is_held_against_ground_of_its_class() -> None:
    mask = np.full((96, 96), 2, np.uint8)
    mask[20:60, 30:80] = 1
    there = np.zeros((64, 64), bool)
    there[20:30, 25:38] = True
    shape = Spot(0, 0, 0, 1, there, True, filled=True)
    for number in range(5):
        ((_, ground),) = counterparts([shape], [], [np.full((96, 96), 2, np.uint8), mask], rng(number))
        assert ground.tile == 1 and np.array_equal(ground.there, shape.there)
        assert (ground.of(mask)[ground.there] == 1).all()
    assert counterparts([spot(4000, class_index=1, filled=True)], [], [mask], rng()) == []


def test_crops_and_readings() -> None:
    image = rng().integers(0, 255, (80, 80, 3)).astype(np.uint8)
    there = np.zeros((64, 64), bool)
    there[20:40, 20:40] = True
    house = Spot(3, 8, 8, 2, there, True)
    whole, alone = (crops({3: image}, [house], alone)[0] for alone in (False, True))
    assert whole.shape == (128, 128, 3)
    assert (alone[:30] == GREY).all() and np.abs(alone[50:70, 50:70].astype(int) - whole[50:70, 50:70]).max() <= 1
    read = np.ones((80, 80), np.uint8)
    read[28:38, 28:48] = 2  # its upper half
    assert readings({3: read}, [house]) == pytest.approx([0.5])


def test_kid_of_places_is_the_sum_over_pairs_of_other_places() -> None:
    x, y = rng().normal(size=(12, 4)), rng(1).normal(size=(10, 4))
    places = [(f"t{i // 3}",) for i in range(12)], [(f"t{i // 2}", f"u{i}") for i in range(10)]

    def mean(a: Array, b: Array, of_a: Sequence[tuple[str, ...]], of_b: Sequence[tuple[str, ...]]) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not set(of_a[i]) & set(of_b[j])]
        return float(np.mean([(a[i] @ b[j] / 4 + 1) ** 3 for i, j in pairs]))

    expected = mean(x, x, places[0], places[0]) + mean(y, y, places[1], places[1]) - 2 * mean(x, y, *places)
    found = kid_of_places(x, y, places)
    assert found.value == pytest.approx(expected) and found.low <= found.value <= found.high
    assert np.isnan(kid_of_places(x, y, ([("one",)] * 12, [("one",)] * 10)).value)


def test_a_set_that_meets_itself_is_at_distance_zero() -> None:
    """Places alike within, as neighbours are: without leaving those out the set would be nearer than zero to itself."""
    places = [(f"t{i // 4}",) for i in range(160)]
    values = []
    for number in range(30):
        of_place = rng(number).normal(size=(40, 8)).repeat(4, 0)
        x = of_place + 0.3 * rng(number + 100).normal(size=(160, 8))
        values.append(kid_of_places(x, x, (places, places), resamples=0).value)
    assert abs(np.mean(values)) < 1e-9
    other = kid_of_places(x, x + 1, (places, places))
    assert other.low > 0.1


def test_median_and_its_interval() -> None:
    values = rng().normal(3, 1, 400)
    alone = bootstrap_median(values, np.arange(400))
    together = bootstrap_median(np.repeat(values[:100], 4), np.repeat(np.arange(100), 4))
    assert alone.low < 3 < alone.high and alone.high - alone.low < together.high - together.low
    assert bootstrap_median(values, np.arange(400)) == alone


def crowd(shift: float, of_scene: float = 0.0) -> tuple[Array, npt.NDArray[np.bool_], list[str], list[tuple[str, ...]]]:
    """200 real and 200 painted crops in ten scenes; painted ones shifted, or by scene, in a way of its own."""
    features = rng().normal(size=(400, 60))
    painted = np.arange(400) % 2 == 0
    scenes = [f"scene_{i // 40}" for i in range(400)]
    features[painted, :10] += shift
    sign = rng(1).choice([-1, 1], 10)
    for i in np.flatnonzero(painted):
        features[i, 20 + i // 40] += of_scene * sign[i // 40]
    return features, painted, scenes, [(f"tile_{i // 4}",) for i in range(400)]


def test_the_classifier_tells_what_holds_for_other_scenes() -> None:
    nothing, something, of_scene = (real_or_painted(*crowd(*given)) for given in ((0.0,), (1.5,), (0.0, 6.0)))
    assert nothing is not None and something is not None and of_scene is not None
    assert nothing.area.low < 0.5 < nothing.area.high and 0.4 < nothing.area.value < 0.6
    assert something.area.value > 0.95 and something.learned_from == 1
    assert of_scene.area.value < 0.65, "what marks a scene's own painted crops says nothing of other scenes"
    features, painted, scenes, places = crowd(1.5)
    assert real_or_painted(features, painted, ["a", "b"] * 200, places) is None
    assert real_or_painted(features, painted, scenes, places) == something
    everywhere = [(*place, "everywhere") if there else place for place, there in zip(places, painted, strict=True)]
    assert real_or_painted(features, painted, scenes, everywhere) is None, "no painted crop is left to learn from"


def test_a_pasted_object_does_not_meet_itself_among_the_real_ones() -> None:
    """Painted crops that are real ones of other scenes, seen again: nobody can tell, and who has seen them as real is
    worse than that."""
    features, painted, scenes, places = crowd(0.0)
    for i in np.flatnonzero(painted):
        donor = int(rng(int(i)).choice(np.flatnonzero(~painted & (np.array(scenes) != scenes[i]))))
        features[i] = features[donor]
        places[i] = (*places[i], places[donor][0])
    seen = real_or_painted(features, painted, scenes, [place[:1] for place in places])
    apart = real_or_painted(features, painted, scenes, places)
    assert seen is not None and apart is not None
    assert seen.learned_from == 1 and 0.3 < apart.learned_from < 0.8
    assert seen.area.high < 0.45
    assert apart.area.low < 0.5 < apart.area.high


def town(number: int, change: Change | None = None, tiles: int = 40) -> ObjectSet:
    """Tiles of textured ground with four roofs, whose images ``change`` alters."""
    shown = []
    for tile in range(tiles):
        draw = rng(1000 * number + tile)
        mask = np.ones((128, 128), np.uint8)
        for row, column in ((4, 4), (4, 70), (70, 4), (70, 70)):
            height, width = draw.integers(14, 30, 2)
            mask[row + 10 : row + 10 + height, column + 10 : column + 10 + width] = 2
        texture = ndimage.gaussian_filter(draw.normal(size=(128, 128, 3)), (1, 1, 0)) * 60
        image = np.clip(texture + np.where(mask == 2, 150, 100)[..., None], 0, 255).astype(np.uint8)
        image = image if change is None else change(image, mask)
        shown.append((image, mask, mask == 2, (f"{number}_{tile}",), f"scene_{tile % 8}"))
    return gather(shown, lambda images: np.stack([np.where(i[..., 0] > 125, 2, 1) for i in images]).astype(np.uint8), 0)


def blurred(image: Image, mask: Mask) -> Image:
    soft = ndimage.gaussian_filter(image.astype(float), (1.5, 1.5, 0))
    return np.where((mask == 2)[..., None], soft, image).astype(np.uint8)


def seamed(image: Image, mask: Mask) -> Image:
    rim = ndimage.binary_dilation(mask == 2) & (mask != 2)
    return np.where(rim[..., None], 0, image).astype(np.uint8)


def plain(images: Sequence[Image]) -> Array:
    """Colours, edges and their spread: enough to see blur and seams, and quick."""
    found = []
    for image in images:
        grey = image.astype(float).mean(2) / 64
        edges = np.abs(np.diff(grey, axis=0))
        quantiles = np.percentile(edges, [50, 75, 90, 95, 99])
        found.append([grey.mean() - 2, grey.std(), *(4 * quantiles)])
    return np.array(found)


def measured(**sets: ObjectSet) -> dict[tuple[str, str], Figure]:
    compared, _ = compare(sets, town(0), None, plain, 0)
    figures = object_figures(compared, NAMES, 0)
    return {(figure.name, figure.of): figure for figure in figures if figure.section == "objects: new building"}


def test_blur_and_seams_are_seen_and_more_of_the_same_is_not() -> None:
    figures = measured(same=town(1), soft=town(2, blurred), rim=town(3, seamed))
    for kind in ("object alone", "whole crop"):
        same, soft = (figures[f"KID, {kind}", of] for of in ("same", "soft"))
        assert same.low is not None and same.low < 0.01 and soft.low is not None and same.high is not None
        assert soft.low > max(same.high, 0), kind
        assert same.ceiling is not None and abs(same.ceiling) < soft.value / 5
    assert figures["KID, whole crop", "rim"].value > 5 * abs(figures["KID, whole crop", "same"].value)
    contrast = {of: figures["seam contrast", of] for of in ("same", "rim")}
    assert contrast["same"].ceiling == pytest.approx(contrast["same"].value, rel=0.1)
    assert contrast["rim"].value > 1.3 * contrast["same"].value
    reading = figures["read as its class", "same"]
    assert reading.ceiling is not None and reading.value == pytest.approx(reading.ceiling, abs=0.05)
    assert all(f.count is not None and f.count >= 30 for f in figures.values())


def test_the_classifier_is_asked_where_there_are_two_hundred_crops() -> None:
    real = town(0, tiles=60)
    compared, _ = compare({"same": town(1, tiles=60), "soft": town(2, blurred, tiles=60)}, real, real, plain, 0)
    figures = [figure for figure in object_figures(compared, NAMES, 0) if figure.section == "objects: all classes"]
    told = {figure.of: figure for figure in figures if figure.name == "real or painted (AUC), object alone"}
    assert 0.4 < told["same"].value < 0.6 and told["same"].reached is True
    assert told["soft"].value > 0.9 and told["soft"].reached is False
    assert told[FIRST_STAGE].value == pytest.approx(0.5) and told[FIRST_STAGE].reached is None
    floor = [figure for figure in figures if figure.of == FIRST_STAGE and figure.name == "KID, whole crop"]
    assert floor[0].value == pytest.approx(0, abs=1e-9), "nothing was lost"
    again, _ = compare({"same": town(1, tiles=60)}, real, None, plain, 0)
    assert object_figures(again, NAMES, 0)[0] == next(f for f in figures if f.of == "same"), "the same each time"


def test_few_objects_are_withheld() -> None:
    few = town(1, tiles=7)
    figures = measured(few=replace(few, spots=few.spots[:28]), one_place=replace(town(2), places=[("here",)] * 40))
    for name in ("KID, object alone", "KID, whole crop", "seam contrast", "read as its class"):
        for of in ("few", "one_place"):
            assert figures[name, of].withheld and "withheld" in figures[name, of].in_words()
    assert figures["real or painted (AUC), whole crop", "few"].withheld
    compared, matched = compare({"none": replace(few, spots=[])}, town(0), None, plain, 0)
    assert compared == [] and matched == [] and object_figures(compared, NAMES, 0) == []


def test_what_a_first_stage_leaves() -> None:
    real = town(0, tiles=12)
    soft = town(0, blurred, tiles=12)
    section = "first stage: real building in place"

    def of(decoded: ObjectSet) -> dict[tuple[str, str], Figure]:
        return {(f.section, f.name): f for f in first_stage_figures(real, decoded, NAMES, plain, 0)}

    kept, lost = of(real), of(soft)
    assert kept[section, "KID, whole crop"].value == pytest.approx(0, abs=1e-9)
    assert lost[section, "KID, whole crop"].value > 0.01 and lost[section, "KID, object alone"].value > 0.01
    assert kept[section, "read as its class, over raw"].value == 1
    tiles = "first stage: real tiles, encoded and decoded"
    assert kept[tiles, "PSNR (dB)"].value > 100 and 15 < lost[tiles, "PSNR (dB)"].value < 50
    assert kept[tiles, "ST-LPIPS"].value == 0 < lost[tiles, "ST-LPIPS"].value
    darker = {tile: (image * 0.5).astype(np.uint8) for tile, image in real.images.items()}
    unread = replace(real, images=darker, read={tile: np.ones_like(mask) for tile, mask in enumerate(real.masks)})
    assert of(unread)[section, "read as its class, over raw"].reached is False


def test_seams_are_those_of_objects_that_have_an_inside() -> None:
    objects = town(0, tiles=2)
    values = seams(objects.images, objects.masks, objects.spots)
    assert (
        len(values) == 8 and np.isnan(seams(objects.images, [np.zeros((128, 128), np.uint8)] * 2, objects.spots)).all()
    )
    assert not np.isnan(values).any()
    thin = np.zeros((64, 64), bool)
    thin[10:13, 5:50] = True
    assert np.isnan(seams(objects.images, objects.masks, [Spot(0, 0, 0, 2, thin, True)])).all()


def test_places_are_the_tile_and_its_donors() -> None:
    record = {"source_key": "a", "donors": [{"key": "b", "split": "val", "licence": "CC0-1.0"}, "c"]}
    assert places_of(record, "pair") == ("a", "b", "c") and places_of({}, "pair") == ("pair",)


@pytest.mark.numerical
def test_command_puts_sets_side_by_side(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model = str(write_source(tmp_path / "source")), str(tiny_model_folder)
    generate = ["generate", "--source", source, "--tile-size", "64", "--num-pairs", "8"]
    assert command([*generate, "--model", model, "--out", str(tmp_path / "painted")]) == 0
    assert command([*generate, "--method", "copy_paste", "--out", str(tmp_path / "pasted")]) == 0
    tiles = {f"tile_{number}" for number in range(6)}
    found = painted_objects(load_pairs(tmp_path / "pasted"), 8, None, 0)
    assert found.spots and {place for places in found.places for place in places} <= tiles
    out = tmp_path / "out"
    arguments = ["evaluate", "--out", str(out), "--pairs", str(tmp_path / "painted"), "--source", source]
    arguments += ["--also", f"{{copy-paste: {tmp_path / 'pasted'}}}"]
    assert command([*arguments, "--model", model, "--num-images", "0"]) == 0
    printed = capsys.readouterr().out
    assert "PSNR (dB)" in printed and "KID, whole crop, copy-paste: withheld" in printed
    figures = json.loads((out / "evaluation.json").read_text())["figures"]
    columns = {figure["of"] for figure in figures if figure["section"] == "objects: all classes"}
    assert columns == {"painted", "copy-paste", "first stage"}
    assert all(figure["value"] is None for figure in figures if "withheld" in figure["note"])
    page = (out / "evaluation.html").read_text()
    assert "<th>copy-paste</th>" in page and 'class="crops"' in page
    rows = (out / "evaluation.csv").read_text().splitlines()
    assert len(rows) == len(figures) + 1 and rows[0].startswith("section,name,value,ceiling")
    assert command([*arguments, "--legend", "nothing_there"]) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--pairs x --also {a:y}", "nothing without --source"),
        ("--model mini --source x --also {a:y}", "nothing without --pairs"),
        ("--pairs x --source y --also {x:z}", "names other than"),
        ("--pairs x --source y --also {real data:z}", "names other than"),
        ("--pairs x --source y --num-images 8", "nothing without --model"),
        ("--model mini --source y --num-images 0 --num-steps 2", "nothing without images to paint"),
        ("--model mini --source y --num-images 2", "0, or 4 and more"),
    ],
)
def test_options_of_objects(given: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [word.replace("_", " ").replace(":", ": ") for word in given.replace("real data", "real_data").split()]
    assert command(["evaluate", "--out", str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err
