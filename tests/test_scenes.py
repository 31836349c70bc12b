"""Whole scenes: noise by place, windows, planning, files."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import torch
from torch import Tensor

from changeanywhere.cli import run
from changeanywhere.diffusion.canvas import (
    ATTENTIVE_GUARD,
    ATTENTIVE_RAMP,
    GUARD,
    Blend,
    Plane,
    Remembering,
    contrast,
    with_contrast,
)
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.diffusion.place_noise import PlaceNoise, normals, philox
from changeanywhere.diffusion.scene import ScenePainter
from changeanywhere.diffusion.scene_arrays import ArrayScene, pixels_of
from changeanywhere.diffusion.scene_groups import _line
from changeanywhere.errors import ConfigError
from changeanywhere.events import EventOptions
from changeanywhere.legend import load_legend
from changeanywhere.models.first_stage import FirstStage, build_vq_model
from changeanywhere.progress import silent
from changeanywhere.rasters import gate
from changeanywhere.sample import ChangeEvent, Normalisation, change_mask_of
from changeanywhere.scenes import planning
from changeanywhere.scenes.planning import Quotas, ScenePlan, plan_scene
from changeanywhere.scenes.settings import _begun
from changeanywhere.scenes.work import DiskRunner
from changeanywhere.seals import sealed, unsealed
from changeanywhere.storage import LocalStore, file_hash
from conftest import tiny_model
from scene_files import CRS, FILES, PIXEL, colours, command, land_cover, values, write_scene, write_tiff


def test_philox_gives_the_published_words() -> None:
    """Known answers of Random123 (kat_vectors, philox4x32 10)."""
    full = 0xFFFFFFFF
    cases = [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((full,) * 4, (full, full), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, words in cases:
        found = philox([torch.tensor(word) for word in counter], key)
        assert " ".join(f"{int(word):08x}" for word in found) == words


def test_noise_follows_from_the_place_alone() -> None:
    whole = PlaceNoise(7, [(-5, 3)], (3, 40, 50)).draw("known")
    part = PlaceNoise(7, [(5, 13), (0, 3)], (3, 10, 20)).draw("known")
    assert torch.equal(part[0], whole[0, :, 10:20, 10:30])
    assert torch.equal(part[1], whole[0, :, 5:15, :20])
    noise = PlaceNoise(7, [(0, 0)], (3, 200, 200))
    first, second, other = noise.draw("step"), noise.draw("step"), noise.draw("known")
    for one, two in ((first, second), (first, other), (first[:, 0], first[:, 1])):
        assert abs(float((one * two).mean())) < 0.02
    assert abs(float(first.mean())) < 0.02 and abs(float(first.std()) - 1) < 0.02
    rows, columns = torch.arange(4)[:, None], torch.arange(5)[None]
    assert torch.equal(normals(1, "a", 0, rows, columns, 6)[2:5], normals(1, "a", 0, rows, columns, 3, 2))


@pytest.mark.parametrize(
    "plane", [Plane(0, 0, 130, 70, 64), Plane(37, -13, 65, 9, 32, 6, guard=5), Plane(-8, 5, 1, 1, 16)]
)
def test_windows_cover_a_plane_and_weigh_one(plane: Plane) -> None:
    for each in (plane, plane.wide):
        blend = Blend(1, each)
        for corner in each.windows():
            blend.add(corner, torch.full((1, each.side, each.side), 3.0))
        assert torch.allclose(blend.result(), torch.tensor(3.0))
        assert float(blend.share.min()) > 0.999
    corners = {(plane.row + row, plane.column + column) for row, column in plane.windows()}
    half = plane.part((0, 0, max(1, plane.height // 2), plane.width))
    assert {(half.row + row, half.column + column) for row, column in half.windows()} <= corners


@pytest.fixture(scope="module")
def pipeline() -> ChangePairPipeline:
    model = tiny_model()
    model.first_stage.quantises = False
    return ChangePairPipeline(model, torch.device("cpu"))


def scene(height: int = 230, width: int = 310) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], Any]:
    """Image, second mask and change: small changes, one at the border, one larger than a window."""
    mask = land_cover(height, width)
    second = mask.copy()
    second[20:30, 40:60] = np.where(mask[20:30, 40:60] == 1, 5, mask[20:30, 40:60])
    second[70:170, 150:300] = np.where(mask[70:170, 150:300] == 1, 7, mask[70:170, 150:300])
    second[:6, :9] = 2
    return colours(mask), second, change_mask_of(mask, second)


SETTINGS: list[dict[str, Any]] = [
    {"num_steps": 4, "free_fraction": 0.5, "guidance_scale": 2.0, "window_margin": 2},
    {"num_steps": 3, "free_fraction": 0.0},
    {"num_steps": 4, "free_fraction": 0.5, "paste_back": True, "window_margin": 4},
    {"num_steps": 3, "free_fraction": 0.4, "restore_detail": 1.0, "sampler": "ddim", "known_noise": "fresh"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_is_painted_and_what_is_kept(pipeline: ChangePairPipeline, settings: dict[str, Any]) -> None:
    image, mask, change = scene()
    painted = pipeline.paint_scene(image, mask, change, **settings)
    differs = (painted != image).any(2)
    assert differs[change].mean() > 0.9
    if settings["free_fraction"] and not settings.get("paste_back"):
        assert differs.mean() > 0.9
    elif settings.get("paste_back"):
        from scipy import ndimage

        assert not differs[ndimage.distance_transform_edt(~change) >= 8].any()
    else:
        assert not differs.all() and not differs[180:, :60].any()
    exemplar = image.copy()
    exemplar[change] = (200, 30, 30)
    if settings.get("known_noise") == "fresh":
        with pytest.raises(ConfigError, match="exemplar_strength is"):
            pipeline.paint_scene(image, mask, change, exemplar=exemplar, **settings, exemplar_strength={"default": 0.0})
        return
    over = pipeline.paint_scene(
        image, mask, change, exemplar=exemplar, **settings, exemplar_strength={"default": 0.0}, dilate_cells=0
    )
    again = pipeline.paint_scene(
        image, mask, change, exemplar=exemplar, **settings, exemplar_strength={"default": 0.0}, dilate_cells=0
    )
    assert np.array_equal(over, again)
    assert not np.array_equal(over, painted)


class Shuffled(Remembering):
    """Computes units in another order than they are asked for in."""

    def __call__(self, units: Sequence[tuple[str, Callable[[], Tensor]]]) -> Iterator[Tensor]:
        for place in np.random.default_rng(1).permutation(len(units)):
            list(super().__call__([units[place]]))
        return super().__call__(units)


@pytest.mark.parametrize("settings", SETTINGS[:3])
def test_the_order_of_windows_changes_no_byte(
    pipeline: ChangePairPipeline, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask, change = scene()
    usual = pipeline.paint_scene(image, mask, change, **settings)
    monkeypatch.setattr("changeanywhere.diffusion.pipeline.Remembering", Shuffled)
    assert np.array_equal(usual, pipeline.paint_scene(image, mask, change, **settings))


@pytest.mark.numerical
@pytest.mark.parametrize("settings", SETTINGS[:3])
def test_halves_with_their_origins_fit_the_whole(pipeline: ChangePairPipeline, settings: dict[str, Any]) -> None:
    """Beyond what a window reaches over the cut."""
    image, mask, change = scene(160, 640)
    change = change.copy()
    mask = np.where(change & (np.arange(640) >= 200), land_cover(160, 640), mask)
    mask[40:60, 520:540] = 6
    change = change_mask_of(land_cover(160, 640), mask)
    whole = pipeline.paint_scene(image, mask, change, **settings)
    for first, last, inner in ((0, 320, slice(0, 320 - 72)), (320, 640, slice(320 + 72, 640))):
        here = slice(first, last)
        half = pipeline.paint_scene(image[:, here], mask[:, here], change[:, here], origin=(0, first), **settings)
        whole_part, part = whole[:, inner], half[:, inner.start - first : inner.stop - first]
        close = np.abs(whole_part.astype(int) - part).max(2) <= 2
        assert close.mean() >= 0.999


@pytest.mark.parametrize("paste_back", [True, False])
def test_no_noise_is_drawn_twice(
    pipeline: ChangePairPipeline, paste_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a call is given anew, no other call is given, held or free, of small groups, large ones and the plane."""
    image, mask, change = scene()
    drawn: dict[tuple[int, ...], list[tuple[str, int]]] = {}

    def noted(seed: int, stream: str, call: int, rows: Tensor, columns: Tensor, channels: int) -> Tensor:
        for row, column in ((6, 12), (30, 60)):  # a cell of a small change, and one of a large one
            if int(rows.min()) <= row <= int(rows.max()) and int(columns.min()) <= column <= int(columns.max()):
                drawn.setdefault((row, column), []).append((stream, call))
        return normals(seed, stream, call, rows, columns, channels)

    monkeypatch.setattr("changeanywhere.diffusion.place_noise.normals", noted)
    settings: dict[str, Any] = {
        "num_steps": 5,
        "free_fraction": 0.4,
        "sampler": "ddim",
        "eta": 1.0,
        "guidance_scale": 1.0,
    }
    pipeline.paint_scene(image, mask, change, **settings, known_noise="fresh", paste_back=paste_back)
    for place, found in drawn.items():
        assert {call for stream, call in found if stream == "step"} == set(range(5)), place
        assert {call for stream, call in found if stream == "known"} >= {0, 1, 2, 3}, place
    drawn.clear()
    pipeline.paint_scene(image, mask, change, **settings, paste_back=paste_back)  # "fixed" is the same all along
    assert all({call for stream, call in found if stream == "known"} == {0} for found in drawn.values())


@pytest.mark.parametrize("settings", [{}, {"window_margin": 4}, {"window_margin": 8, "exemplar_strength": 0.5}])
def test_small_and_large_groups_are_told_apart(pipeline: ChangePairPipeline, settings: dict[str, Any]) -> None:
    """Every changed cell is in a group, and beyond the guard of a window of it, for each kind of calls."""
    image, mask, change = scene()
    view = ArrayScene(pixels_of(image, Normalisation.eight_bit()), mask, change)
    painter = pipeline.scene_painter(view, Sampling(**settings), 0, window=128, size=4, run=Remembering())
    changes = painter.changes
    assert {group.is_small for group in changes.groups} == {True, False}
    covered = np.zeros(changes.changed.shape, bool)
    for group in changes.groups:
        row, column, height, width = group.box
        covered[row : row + height, column : column + width] |= changes.own(group, group.box)
        own, region = changes.own(group), group.region[2:]
        for cover in (group.whole, group.held):
            seen = np.zeros(region, bool)
            for top, left in cover.corners:
                assert 0 <= top <= region[0] - cover.side and 0 <= left <= region[1] - cover.side
                guard = cover.guard
                inner = slice(top + guard, top + cover.side - guard), slice(left + guard, left + cover.side - guard)
                seen[inner] = True
            assert seen[own].all()
        assert group.whole.side == 32 and group.held.side <= 32
    assert np.array_equal(covered, changes.changed)


@pytest.mark.parametrize("settings", [SETTINGS[1], {"num_steps": 3, "free_fraction": 0.4, "guidance_scale": 1.0}])
def test_groups_that_begin_in_one_cell_are_told_apart(
    pipeline: ChangePairPipeline, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change in the corner that another one goes around: boxes may nest, and begin together."""
    mask = land_cover(250, 250)
    second = mask.copy()
    rows, columns = np.mgrid[:250, :250]
    second[abs(rows + columns - 220) < 12] = 5
    second[:12, :12] = 6
    image, change = colours(mask), change_mask_of(mask, second)
    view = ArrayScene(pixels_of(image, Normalisation.eight_bit()), second, change)
    painter = pipeline.scene_painter(view, Sampling(**settings, exemplar_strength=None), 0, size=4, run=Remembering())
    assert [(group.box[:2], group.is_small) for group in painter.changes.groups] == [((0, 0), True), ((0, 0), False)]
    painted = pipeline.paint_scene(image, second, change, **settings)
    monkeypatch.setattr(ScenePainter, "_name", lambda self, batch: f"{[group.number for group in batch.groups]}")
    assert np.array_equal(painted, pipeline.paint_scene(image, second, change, **settings))


def test_what_windows_disagree_in_keeps_its_contrast() -> None:
    """Means of two windows of independent detail are too smooth by √2; where one window is alone nothing is touched."""
    noise = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 120, 160, generator=noise) for _ in range(2))
    share = torch.linspace(0, 1, 160).clamp(0.25, 0.75).sub(0.25).mul(2).expand(120, 160)
    mixed = share * first + (1 - share) * second
    wanted = share * contrast(first) + (1 - share) * contrast(second)
    shared = (2 - 2 * (share.square() + (1 - share).square())).clamp(0, 1)
    found = with_contrast(mixed, wanted, shared)
    alone = shared[0] == 0
    assert torch.equal(found[..., alone], mixed[..., alone])
    middle = slice(70, 90)
    assert float(mixed[..., middle].std()) < 0.75 and 0.9 < float(found[..., middle].std()) < 1.05


def test_windows_of_a_first_stage_that_attends_do_not_show() -> None:
    """Of networks that were never trained, in which padding reaches farthest: no column or row of cells of the grid of
    windows has steeper pixels than others."""
    torch.manual_seed(0)
    vq_model = build_vq_model([16, 16, 16], 1, num_codes=64, norm_groups=4, mid_attention=True)
    first_stage = FirstStage(vq_model, latent_mean=[0.0] * 3, latent_std=[1.0] * 3, quantises=False)
    model = replace(tiny_model(), first_stage=first_stage, tile_size=128)
    pipeline = ChangePairPipeline(model, torch.device("cpu"))
    grain = np.random.default_rng(0).integers(0, 256, (324, 324, 3)).astype(np.uint8)
    nothing = np.zeros(grain.shape[:2], np.uint8)
    settings: dict[str, Any] = {"num_steps": 1, "free_fraction": 0.0001, "exemplar_strength": None}
    painted = pipeline.paint_scene(grain, nothing, nothing.astype(bool), **settings)[2:-2, 2:-2].astype(float).mean(2)
    stride = (32 - 2 * ATTENTIVE_GUARD - ATTENTIVE_RAMP) * 4
    for each in (painted, painted.T):
        steps = np.abs(np.diff(each, axis=1)).mean(0)
        by_cell = steps[: len(steps) // stride * stride].reshape(-1, stride // 4, 4).mean((0, 2))
        assert by_cell.max() < 1.15 * np.median(by_cell), by_cell / np.median(by_cell)


@pytest.mark.parametrize("side", [16, 24, 40, 64])
def test_windows_along_a_line_are_few_and_show_all(side: int) -> None:
    for length, margin in itertools.product(range(1, 300), (2, 8)):
        line = _line(length, side, 6, margin, GUARD)
        assert line[0] <= -GUARD and line[-1] + side >= length + GUARD
        assert all(first < second and second - first <= side - 6 for first, second in itertools.pairwise(line))
        assert len(line) == 1 or (len(line) - 1) * (side - 6) + 6 < length + 2 * GUARD


def test_events_are_whole_and_keep_their_shares() -> None:
    """No event is cut by a window of the plan: every change ends where its instance ends, or lies within its ground."""
    mask = land_cover(1500, 1700)
    second = mask.copy()
    legend = load_legend("mini")
    options = EventOptions(kinds=("appearance", "disappearance"))
    pairs = {"water->bareland": 0.25}
    plan = plan_scene(mask, second, legend, options, Quotas(None, 40, pairs), (3, PIXEL), silent)
    assert len(plan.events) == 40 and plan.missing == 0
    change = change_mask_of(mask, second)
    assert plan.changed == change.sum() == sum(event.area for event in plan.events)
    assert {event.area for event in plan.events} == {168}  # houses 12 x 14, ponds 12 x 14: nothing but whole ones
    names = [(legend.name_of(e.from_class), legend.name_of(e.to_class)) for e in plan.events]
    assert names.count(("water", "bareland")) >= 10
    for event in plan.events:
        row, column, height, width = event.bbox
        assert change[row : row + height, column : column + width].sum() == event.area
    again = mask.copy()
    assert plan_scene(mask, again, legend, options, Quotas(None, 40, pairs), (3, PIXEL), silent) == plan
    assert np.array_equal(again, second)
    shared = mask.copy()
    by_share = plan_scene(mask, shared, legend, options, Quotas(0.004, None, {}), (3, None), silent)
    assert 0.003 * by_share.known < by_share.changed <= 0.004 * by_share.known


@pytest.mark.parametrize("quotas", [Quotas(None, 20, {}), Quotas(0.02, None, {})], ids=["events", "share"])
def test_transitions_without_a_place_leave_it_to_others(quotas: Quotas) -> None:
    """Whatever their share; the scene is full when no transition has a place, and what is missing is said."""
    mask, legend = land_cover(500, 600), load_legend("mini")

    def planned(pairs: dict[str, float]) -> tuple[ScenePlan, list[str]]:
        second = mask.copy()
        plan = plan_scene(mask, second, legend, EventOptions(), replace(quotas, class_pairs=pairs), (0, PIXEL), silent)
        return plan, [f"{legend.name_of(e.from_class)}->{legend.name_of(e.to_class)}" for e in plan.events]

    nowhere = "vegetation_mixed->building"  # there is none of it
    plan, names = planned({nowhere: 0.2, "bareland->water": 0.6})
    made = len(names) if quotas.num_events is None else quotas.num_events
    assert len(names) >= 15 and plan.missing_pairs == {nowhere: (0, made // 5)}
    assert plan.missing == 0 if quotas.num_events else plan.missing < 0.1 * plan.changed
    assert names.count("bareland->water") >= 0.6 * made
    alone, names = planned({nowhere: 0.5, "bareland->water": 0.5})
    assert set(names) == {"bareland->water"} and alone.missing_pairs[nowhere][1] == len(names) // 2
    if quotas.num_events:  # nothing at all is said as it was
        none, names = planned({nowhere: 1.0})
        assert not names and none.missing == 20 and not none.missing_pairs


Place = Callable[[bool, int], int]
"""Whether an event is of bareland->building, and how many there are → its area; 0: it finds no place."""


def _planned(monkeypatch: pytest.MonkeyPatch, quotas: Quotas, place: Place) -> tuple[ScenePlan, list[bool], list[bool]]:
    """A plan of 1000 x 1000 px whose events find the places that ``place`` says; whether each attempt was of
    bareland->building, and whether it found one."""
    legend, of_pair, found = load_legend("mini"), list[bool](), list[bool]()
    first, second = legend.index_of("bareland"), legend.index_of("building")

    def one(mask_t1: Any, mask_t2: Any, what: Any, limits: Any, rng: Any) -> list[ChangeEvent]:
        allowed = limits[2]
        pair = allowed(second, first) == 0
        area = place(pair, sum(found))
        area = 0 if area > limits[1] else area
        of_pair.append(pair)
        found.append(area > 0)
        return [ChangeEvent("appearance", first, second, (0, 0, 1, 1), (0, 0), area)] if area else []

    monkeypatch.setattr(planning, "_one", one)
    mask = np.ones((1000, 1000), np.uint8)
    return plan_scene(mask, mask.copy(), legend, EventOptions(), quotas, (0, None), silent), of_pair, found


SHARED = {"bareland->building": 0.5}


@pytest.mark.parametrize("quotas", [Quotas(None, 100, {}), Quotas(0.1, None, {})], ids=["events", "share"])
@pytest.mark.parametrize("pairs", [{}, SHARED, SHARED | {"bareland->water": 0.25, "water->bareland": 0.25}])
def test_a_full_scene_is_given_up_as_soon_with_class_pairs_as_without(
    quotas: Quotas, pairs: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _, found = _planned(
        monkeypatch, replace(quotas, class_pairs=pairs), lambda pair, made: 1000 if made < 12 else 0
    )
    assert len(plan.events) == 12 and len(found) == 12 + planning.HOPELESS
    assert plan.missing == (88 if quotas.num_events else 100_000 - 12_000) and not plan.missing_pairs


@pytest.mark.parametrize("quotas", [Quotas(None, 100, SHARED), Quotas(0.1, None, SHARED)], ids=["events", "share"])
def test_a_transition_that_runs_out_of_places_leaves_its_share_to_others(
    quotas: Quotas, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, of_pair, found = _planned(monkeypatch, quotas, lambda pair, made: 1000 if not pair or made < 10 else 0)
    assert len(plan.events) == 100 and plan.missing == 0
    assert plan.missing_pairs == {"bareland->building": (5, 50)}
    assert sum(of_pair) == 5 + planning.HOPELESS and len(found) == 100 + planning.HOPELESS


def test_a_transition_that_does_not_fit_into_the_last_of_the_area_is_not_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its events are large; those of the others go on where it has no place any more."""
    for large in (7_000, 9_500):
        plan, _, _ = _planned(monkeypatch, Quotas(0.1, None, SHARED), lambda pair, made: large if pair else 150)  # noqa: B023
        assert plan.missing < 0.1 * 100_000 and not plan.missing_pairs, large
    never, _, _ = _planned(monkeypatch, Quotas(0.1, None, SHARED), lambda pair, made: 0 if pair else 900)
    assert never.missing_pairs == {"bareland->building": (0, len(never.events) // 2)}


def test_a_transition_that_is_missing_is_said(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, mask = write_scene(tmp_path / "in", 70, 130)
    more = ("--paste-back", "--num-steps", "1", "--class-pairs", '{"vegetation_mixed->building": 0.4}')
    for _ in range(2):  # when it is made, and when all is there
        assert run(command(image, mask, tmp_path / "out", tiny_model_folder, *more)) == 1
        said = "1 of 1 events of class_pairs 'vegetation_mixed->building' found no place"
        assert said in capsys.readouterr().err
    store = LocalStore(tmp_path / "out" / "town")
    assert unsealed(store.get("plan.json"))[0]["missing_pairs"] == {"vegetation_mixed->building": [0, 1]}


def test_a_scene_from_end_to_end(tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask = write_scene(tmp_path / "in")
    out = tmp_path / "out"
    assert run(command(image, mask, out, tiny_model_folder)) == 0
    folder = out / "town"
    first, second = values(folder / "t1.tif"), values(folder / "t2.tif")
    assert np.array_equal(first, values(image)) and second.shape == first.shape
    mask_t1, mask_t2, change = (values(folder / f"{name}.tif")[0] for name in ("mask_t1", "mask_t2", "change"))
    assert np.array_equal(mask_t1, values(mask)[0])
    assert np.array_equal(change > 0, change_mask_of(mask_t1, mask_t2)) and change.any()
    assert (first != second).any(0).mean() > 0.9
    for name in FILES:
        with rasterio.open(folder / name) as raster, rasterio.open(image) as source:
            assert raster.crs == source.crs and raster.transform == source.transform
            assert raster.profile["tiled"] and raster.compression.name == "deflate"
    with rasterio.open(folder / "mask_t1.tif") as raster:
        assert raster.nodata == 0 and raster.colormap(1)[1][:3] == load_legend("mini").classes[0].color
        assert "1=bareland" in raster.tags(1)["CLASSES"]
    features = json.loads((folder / "events.geojson").read_text())["features"]
    assert len(features) == 3
    areas = [feature["properties"]["area_px"] for feature in features]
    assert sum(areas) == (change > 0).sum()
    assert features[0]["properties"]["area_m2"] == pytest.approx(areas[0] * PIXEL**2, rel=0.01)
    item = json.loads((folder / "item.json").read_text())
    assert item["properties"]["proj:code"] == CRS
    assert all((folder / asset["href"]).is_file() for asset in item["assets"].values())
    assert "bareland" in (folder / "mask_t2.qml").read_text()
    assert (folder / "report.html").read_text().count("data:image/") == 5
    assert not (folder / "parts").exists()
    capsys.readouterr()
    assert run(command(image, mask, out, tiny_model_folder)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run(command(image, mask, out, tiny_model_folder, "--seed", "5")) == 2
    assert "seed = 0" in capsys.readouterr().err


def test_a_legend_or_table_that_was_edited_is_told(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the mask, or named; folders that were begun before these were kept go on."""
    image, mask = write_scene(tmp_path / "in")
    legend, table = tmp_path / "in" / "legend.json", tmp_path / "table.yaml"
    table.write_text("forbid: [[water, building]]")
    again = command(image, mask, tmp_path / "out", tiny_model_folder, "--events.transitions", str(table))
    assert run(again) == 0
    text = legend.read_text()
    legend.write_text(text.replace('"water"', '"x"').replace('"bareland"', '"water"').replace('"x"', '"bareland"'))
    capsys.readouterr()
    assert run(again) == 2
    assert "was made with legends.mask.names = ['bareland'," in capsys.readouterr().err
    legend.write_text(text)
    table.write_text("forbid: [[bareland, building]]")
    assert run(again) == 2
    assert "was made with transitions.bareland.building = 1.0, asked now: 0.0" in capsys.readouterr().err
    store = LocalStore(tmp_path / "out" / "town")
    old, _ = unsealed(store.get("scene.json"))
    del old["legends"], old["transitions"], old["events"]["areas"]
    store.put("scene.json", sealed(old))
    assert run(again) == 0 and "nothing to do" in capsys.readouterr().out


def test_given_second_masks_and_pasted_ground(tmp_path: Path, tiny_model_folder: Path) -> None:
    image, mask = write_scene(tmp_path / "in")
    after = values(mask)[0].copy()
    after[40:60, 30:50] = 4
    second = write_tiff(tmp_path / "in" / "after.tif", after[..., None])
    arguments = command(image, mask, tmp_path / "out", tiny_model_folder, "--mask-t2", str(second), "--paste-back")
    del arguments[arguments.index("--num-events") : arguments.index("--num-events") + 2]
    assert run(arguments) == 0
    folder = tmp_path / "out" / "town"
    change = values(folder / "change.tif")[0] > 0
    assert np.array_equal(change, change_mask_of(values(mask)[0], after))
    differs = (values(folder / "t1.tif") != values(folder / "t2.tif")).any(0)
    assert differs[change].mean() > 0.9 and not differs[80:].any()
    kinds = {f["properties"]["kind"] for f in json.loads((folder / "events.geojson").read_text())["features"]}
    assert kinds == {"given"}


def test_other_bands_dtype_and_nodata_are_kept(tmp_path: Path, tiny_model_folder: Path) -> None:
    _, mask = write_scene(tmp_path / "in")
    cover = values(mask)[0]
    rgb = colours(cover).astype(np.uint16) * 12
    infrared = np.random.default_rng(1).integers(1, 4000, (*cover.shape, 1)).astype(np.uint16)
    bands = np.concatenate([rgb, infrared], 2)
    bands[:20, :30] = 65535
    image = write_tiff(tmp_path / "in" / "deep.tif", bands, nodata=65535)
    assert run(command(image, mask, tmp_path / "out", tiny_model_folder, "--other-bands", "nodata")) == 0
    folder = tmp_path / "out" / "deep"
    first, second = values(folder / "t1.tif"), values(folder / "t2.tif")
    change = values(folder / "change.tif")[0] > 0
    assert first.dtype == second.dtype == np.uint16 and np.array_equal(first, bands.transpose(2, 0, 1))
    assert (second[:, :20, :30] == 65535).all() and not change[:20, :30].any()
    assert (second[3][change] == 65535).all() and np.array_equal(second[3][~change], first[3][~change])
    assert not (second[:3, 20:] == 65535).any()
    with rasterio.open(folder / "t2.tif") as raster:
        assert raster.nodata == 65535 and raster.tags()["CHANGEANYWHERE_PAINTED_BANDS"] == "1,2,3"


def test_transparent_ground_is_unknown_and_stays(tmp_path: Path, tiny_model_folder: Path) -> None:
    _, mask = write_scene(tmp_path / "in")
    cover = values(mask)[0]
    alpha = np.full((*cover.shape, 1), 255, np.uint8)
    alpha[:, :90] = 0
    more = {"photometric": "RGB", "alpha": "YES"}
    image = write_tiff(tmp_path / "in" / "ortho.tif", np.concatenate([colours(cover), alpha], 2), **more)
    assert run(command(image, mask, tmp_path / "out", tiny_model_folder)) == 0
    folder = tmp_path / "out" / "ortho"
    first, second = values(folder / "t1.tif"), values(folder / "t2.tif")
    assert not values(folder / "mask_t1.tif")[0, :, :90].any() and values(folder / "mask_t1.tif")[0, :, 90:].any()
    change = values(folder / "change.tif")[0] > 0
    assert change.any() and not change[:, :90].any()
    assert np.array_equal(first[:, :, :90], second[:, :, :90]) and np.array_equal(first[3], second[3])


def test_a_band_that_is_not_painted_hides_no_ground(tmp_path: Path, tiny_model_folder: Path) -> None:
    _, mask = write_scene(tmp_path / "in")
    cover = values(mask)[0]
    heights = np.full((*cover.shape, 1), 5, np.float32)
    heights[:, :90] = np.nan
    bands = np.concatenate([colours(cover).astype(np.float32), heights], 2)
    image = write_tiff(tmp_path / "in" / "heights.tif", bands, nodata=np.nan)
    assert run(command(image, mask, tmp_path / "out", tiny_model_folder)) == 0
    folder = tmp_path / "out" / "heights"
    assert np.array_equal(values(folder / "mask_t1.tif")[0], cover)
    first, second = values(folder / "t1.tif"), values(folder / "t2.tif")
    assert (first[:3, :, :90] != second[:3, :, :90]).any(0).mean() > 0.9
    assert np.array_equal(first[3], second[3], equal_nan=True)


def test_a_scene_of_floats_with_holes_is_painted_around_them(tmp_path: Path, tiny_model_folder: Path) -> None:
    """Exemplars are made of ground that was measured."""
    _, mask = write_scene(tmp_path / "in")
    cover = values(mask)[0]
    bands = colours(cover).astype(np.float32)
    rows, columns = np.random.default_rng(0).integers(0, 140, (2, 60))
    bands[rows, columns] = np.nan
    image = write_tiff(tmp_path / "in" / "dots.tif", bands, nodata=np.nan)
    more = ("--exemplar-strength", "0.5", "--tiles", "64", "--image-format", "geotiff")
    assert run(command(image, mask, tmp_path / "out", tiny_model_folder, *more)) == 0
    folder = tmp_path / "out" / "dots"
    second, hole = values(folder / "t2.tif"), np.zeros(cover.shape, bool)
    hole[rows, columns] = True
    assert np.array_equal(np.isnan(second), np.broadcast_to(hole, second.shape))
    assert not values(folder / "change.tif")[0][hole].any()
    for file in (folder / "tiles").glob("[AB]/*.tif"):
        assert np.isfinite(values(file)).all()


def indexed(folder: Path, kind: str) -> tuple[Path, np.ndarray, np.ndarray]:
    """An image whose nodata is a stored number that is shown as another; what is shown, and where it is missing."""
    cover = values(write_scene(folder)[1])[0]
    missing = np.zeros(cover.shape, bool)
    missing[:30, :50] = True
    if kind == "white":  # 0 is white
        grey = colours(cover)[..., 0].clip(1, 250)
        stored = np.where(missing, 3, grey)[..., None].astype(np.uint8)
        stored[40, 60] = 255 - 3  # is shown as 3
        path = write_tiff(folder / "i.tif", stored, photometric="MINISWHITE", nodata=3)
        return path, np.repeat(255 - stored, 3, 2), missing
    if kind == "bits":
        stored = np.where(missing, 15, colours(cover)[..., 0] // 18).astype(np.uint8)[..., None]
        path = write_tiff(folder / "i.tif", stored, nbits=4, nodata=15)
        return path, np.repeat(stored * 17, 3, 2), missing
    table = np.random.default_rng(2).integers(0, 256, (200, 3))
    table[7] = 200, 200, 200  # a colour that is the number of the index without data
    stored = (np.arange(cover.size).reshape(cover.shape) % 199).astype(np.uint8)
    stored[missing] = 200 if kind == "palette" else 199
    with rasterio.open(
        folder / "i.tif", "w", driver="GTiff", height=150, width=190, count=1, dtype="uint8", crs=CRS,
        nodata=stored[0, 0], transform=rasterio.transform.from_origin(320_000, 2_780_000, PIXEL, PIXEL),
    ) as target:  # fmt: skip
        target.write_colormap(1, {n: (*map(int, colour), 255) for n, colour in enumerate([*table, (0, 0, 0)])})
        target.write(stored, 1)
    return folder / "i.tif", np.array([*table, (0, 0, 0)], np.uint8)[stored], missing


@pytest.mark.parametrize("kind", ["palette", "white", "bits"])
def test_missing_ground_is_told_in_the_values_that_are_shown(
    kind: str, tmp_path: Path, tiny_model_folder: Path
) -> None:
    image, shown, missing = indexed(tmp_path / "in", kind)
    more = [] if kind == "palette" else ["--bands", "[1,1,1]"]
    assert run(command(image, tmp_path / "in" / "town_mask.tif", tmp_path / "out", tiny_model_folder, *more)) == 0
    for name in ("t1.tif", "t2.tif"):
        with rasterio.open(tmp_path / "out" / "i" / name) as raster:
            assert np.array_equal(raster.dataset_mask() == 0, missing), name
            pixels = raster.read()
        if name == "t1.tif":
            assert np.array_equal(pixels, shown.transpose(2, 0, 1)[: len(pixels)])


def test_every_folder_of_scenes_holds_one(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, mask = write_scene(tmp_path / "in")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    image.rename(tmp_path / "a" / "town.tif")
    scenes = f"{tmp_path / 'a'},{tmp_path / 'b'}"
    arguments = command(image, mask, tmp_path / "out", tiny_model_folder)
    arguments[arguments.index("--scene") + 1], arguments[arguments.index("--mask") + 1] = scenes, f"{mask},{mask}"
    assert run(arguments) == 2
    assert f"{tmp_path / 'b'}: no image in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--layer", "foo"], "layer is 'foo'; allowed: with masks of polygons"),
        (["--class-field", "bar"], "class_field is 'bar'; allowed: with masks of polygons"),
        (["--resample-mask"], "resample_mask is True; allowed: with a raster on another grid than its image"),
    ],
)
def test_what_would_do_nothing_is_refused_and_was_no_difference(
    more: list[str], said: str, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, mask = write_scene(tmp_path / "in")
    arguments = command(image, mask, tmp_path / "out", tiny_model_folder)
    assert run([*arguments, *more]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out" / "town").exists()
    assert run([*arguments, *more, "--dry-run"]) == 2
    if more[0] == "--layer":  # a folder begun when it was taken
        assert run(arguments) == 0
        store = LocalStore(tmp_path / "out" / "town")
        old, _ = unsealed(store.get("scene.json"))
        store.put("scene.json", sealed({**old, "reading": {**old["reading"], "layer": "foo", "resample_mask": True}}))
        capsys.readouterr()
        assert run(arguments) == 0 and "nothing to do" in capsys.readouterr().out


def test_batches_painted_at_once_change_no_byte(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, mask = write_scene(tmp_path / "in", 200, 260)
    done, threads, meet = DiskRunner._done, set[int](), threading.Barrier(2)

    def meeting(self: DiskRunner, unit: tuple[str, Any]) -> Any:
        if unit[0].startswith("encode") and len(threads) < 2:
            threads.add(threading.get_ident())
            meet.wait(60)  # comes back only where a second unit is done meanwhile
        return done(self, unit)

    monkeypatch.setattr(DiskRunner, "_done", meeting)
    assert run(command(image, mask, tmp_path / "two", tiny_model_folder, "--num-threads", "2")) == 0
    assert len(threads) == 2
    monkeypatch.undo()
    assert run(command(image, mask, tmp_path / "one", tiny_model_folder, "--num-threads", "1")) == 0
    for name in FILES:
        assert file_hash(tmp_path / "one" / "town" / name) == file_hash(tmp_path / "two" / "town" / name), name


class EndedError(BaseException):
    """What no program catches."""


def test_a_scene_goes_on_where_it_was_begun(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On another machine, whose fastest device is another; one that is missing is named."""
    image, mask = write_scene(tmp_path / "in", 70, 130)
    words = command(image, mask, tmp_path / "out", tiny_model_folder)
    assert run([*command(image, mask, tmp_path / "whole", tiny_model_folder), "--device", "cpu"]) == 0
    told, pixels = set[tuple[bool, bool]](), ScenePainter._pixels

    def ended(*given: Any) -> Tensor:
        told.add((torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32))
        raise EndedError

    monkeypatch.setattr(ScenePainter, "_pixels", ended)
    with pytest.raises(EndedError):
        run([*words, "--device", "cpu"])
    assert told == {(True, False)}  # float32 in full, and the same twice
    monkeypatch.setattr(ScenePainter, "_pixels", pixels)
    store = LocalStore(tmp_path / "out" / "town")
    begun = unsealed(store.get("scene.json"))[0]
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    store.put("scene.json", sealed({**begun, "machine": {**begun["machine"], "device": missing}}))
    capsys.readouterr()
    for more in ([], ["--dry-run"]):
        assert run([*words, *more]) == 2
        said = f"{store.root}: was begun on device '{missing}', which this machine or its PyTorch does not have"
        assert said in capsys.readouterr().err
    store.put("scene.json", sealed(begun))
    monkeypatch.setattr("changeanywhere.diffusion.pipeline.default_device", lambda: torch.device(missing))
    assert run(words) == 0
    assert file_hash(store.root / "t2.tif") == file_hash(tmp_path / "whole" / "town" / "t2.tif")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--legend-map", "moon.yaml"], "moon"),
        (["--window", "72"], "window is 72"),
        (["--other-bands", "nodata"], "other_bands is 'nodata'"),
        (["--class-pairs", '{"bareland->moon": 0.5}'], "bareland->moon"),
        (["elsewhere"], "does not lie in the image"),
    ],
)
def test_what_was_wrong_can_be_put_right(
    wrong: list[str], said: str, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the same folder, as long as there is no plan; then settings are what they are."""
    image, mask = write_scene(tmp_path / "in", 70, 130)
    words, cover = command(image, mask, tmp_path / "out", tiny_model_folder, "--num-steps", "1"), values(mask)[0]
    if wrong == ["elsewhere"]:
        write_tiff(mask, cover[..., None], transform=rasterio.transform.from_origin(9e5, 9e5, PIXEL, PIXEL))
        words, wrong = [*words, "--resample-mask"], []
    if wrong[:1] == ["--legend-map"]:
        (tmp_path / "moon.yaml").write_text("moon: bareland")
        wrong = ["--legend-map", str(tmp_path / "moon.yaml")]
    assert run([*words, *wrong]) == 2
    assert said in capsys.readouterr().err
    if not wrong:
        write_tiff(mask, np.pad(cover, 1)[..., None], transform=rasterio.transform.from_origin(
            320_000 - PIXEL, 2_780_000 + PIXEL, PIXEL, PIXEL))  # fmt: skip
    assert run(words) == 0, capsys.readouterr().err
    (tmp_path / "out" / "town" / "plan.json").unlink()
    assert run([*words, "--seed", "7"]) == 2
    assert "was made with seed = 0" in capsys.readouterr().err


@pytest.mark.faults
def test_a_killed_scene_ends_in_the_same_bytes(tmp_path: Path, tiny_model_folder: Path) -> None:
    """SIGKILL at ten moments, SIGTERM at one."""
    image, mask = write_scene(tmp_path / "in", 200, 260)
    more = ("--events-format", "gpkg", "--tiles", "64")
    arguments = command(image, mask, tmp_path / "killed", tiny_model_folder, *more)
    assert run(command(image, mask, tmp_path / "whole", tiny_model_folder, *more)) == 0
    windows = tmp_path / "killed" / "town" / "parts" / "painted"
    for number in range(1, 12):
        process = subprocess.Popen([sys.executable, "-m", "changeanywhere", *arguments], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if windows.is_dir() and len(list(windows.iterdir())) >= number:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM if number == 11 else signal.SIGKILL)
        process.communicate()
    assert run(arguments) == 0
    names = (*FILES, "events.gpkg", "report.html", "item.json", "plan.json", "tiles/metadata.jsonl")
    for name in names:
        assert file_hash(tmp_path / "killed" / "town" / name) == file_hash(tmp_path / "whole" / "town" / name), name


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb"])
def test_polygons(tmp_path: Path, suffix: str) -> None:
    """In another CRS, overlapping: the smallest is on top; what is under none is unknown."""
    pytest.importorskip("pyogrio")
    import pyogrio
    import shapely
    from rasterio.warp import transform

    from changeanywhere.scenes.inputs import open_image, read_land_cover
    from changeanywhere.scenes.options import SceneOptions

    image, _ = write_scene(tmp_path, 100, 120)
    boxes = {(0, 0, 120, 90): "bareland", (10, 10, 40, 30): "water", (20, 15, 30, 25): "building"}
    shapes = []
    with rasterio.open(image) as raster:
        for left, top, right, bottom in boxes:
            corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
            places = [raster.transform @ corner for corner in corners]
            xs, ys = transform(CRS, "EPSG:4326", [p[0] for p in places], [p[1] for p in places])
            shapes.append(shapely.Polygon(list(zip(xs, ys, strict=True))))
    # The small ones first in the file: it is the area that says which is on top.
    order = [2, 1, 0]
    path = tmp_path / f"cover{suffix}"
    pyogrio.raw.write(
        path,
        np.array([shapely.to_wkb(shapes[i]) for i in order], object),
        [np.array([list(boxes.values())[i] for i in order], object)],
        ["landcover"],
        geometry_type="Polygon",
        crs="EPSG:4326",
    )
    options = SceneOptions(scene=(str(image),), mask=(str(path),), out=tmp_path / "out")
    opened = open_image(image, options.of_source(), 3)
    found = np.zeros((100, 120), np.uint8)
    legend = load_legend("mini")
    read_land_cover(path, opened, legend, options, found)
    expected = np.zeros((100, 120), np.uint8)
    for (left, top, right, bottom), name in boxes.items():
        expected[top:bottom, left:right] = legend.index_of(name)
    assert (found == expected).mean() > 0.995


def write_polygons(path: Path, areas: list[Any], classes: list[Any], crs: str = CRS) -> Path:
    """Areas (shapely) with a field ``class``."""
    pytest.importorskip("pyogrio")
    import pyogrio
    import shapely

    values_of = np.array(classes, object if any(isinstance(each, str) for each in classes) else None)
    kind = "Unknown" if len({area.geom_type for area in areas}) > 1 else areas[0].geom_type
    shapes = np.array([shapely.to_wkb(area) for area in areas], object)
    path.unlink(missing_ok=True)
    pyogrio.raw.write(path, shapes, [values_of], ["class"], geometry_type=kind, crs=crs)
    return path


def cover_of(image: Path, mask: Path, **options: Any) -> np.ndarray:
    """The land cover that a scene has, in the legend ``mini``."""
    from changeanywhere.scenes.inputs import open_image, read_land_cover
    from changeanywhere.scenes.options import SceneOptions

    asked = SceneOptions(scene=(str(image),), mask=(str(mask),), out=image.parent / "out", **options)
    opened = open_image(image, asked.of_source(), 3)
    found = np.zeros(opened.shape, np.uint8)
    read_land_cover(mask, opened, load_legend("mini"), asked, found)
    return found


def ground(left: float, top: float, right: float, bottom: float, crs: str = CRS) -> Any:
    """A box in px of the scene, as an area of a CRS."""
    import shapely
    from rasterio.warp import transform_geom

    x, y = 320_000.0, 2_780_000.0
    box = shapely.box(x + left * PIXEL, y - bottom * PIXEL, x + right * PIXEL, y - top * PIXEL)
    return box if crs == CRS else shapely.geometry.shape(transform_geom(CRS, crs, shapely.geometry.mapping(box)))


@pytest.mark.parametrize("around", [(-180, -90, 180, 90), (30, 5, 180, 75), (-180, -60, 180, 80), (50, 20, 60, 30)])
def test_polygons_as_large_as_a_continent_lie_where_they_lie(around: tuple[float, ...], tmp_path: Path) -> None:
    import shapely

    image, _ = write_scene(tmp_path, 100, 120)
    areas = [shapely.box(*around), ground(10, 10, 40, 30, "EPSG:4326")]
    found = cover_of(image, write_polygons(tmp_path / "world.gpkg", areas, [3, 4], "EPSG:4326"))
    expected = np.full((100, 120), 3, np.uint8)
    expected[10:30, 10:40] = 4
    assert np.array_equal(found, expected)


def test_of_a_region_only_what_lies_around_the_image_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shapely

    from changeanywhere.scenes import vectors

    image, _ = write_scene(tmp_path, 100, 120)
    cells = [shapely.box(x, y, x + 0.5, y + 0.5) for x in np.arange(50, 60, 0.5) for y in np.arange(20, 30, 0.5)]
    path = write_polygons(tmp_path / "region.gpkg", cells, [1 + n % 4 for n in range(len(cells))], "EPSG:4326")
    moved, points = vectors._moved, []

    def counted(polygons: Any, facts: Any) -> Any:
        result = moved(polygons, facts)
        points.append(int(shapely.get_num_coordinates(result).sum()))
        return result

    monkeypatch.setattr(vectors, "_moved", counted)
    found = cover_of(image, path)
    assert found.all() and points[0] < 200  # of 400 cells of 50 km, each with as many pieces of 10 m as fit


def test_polygons_across_the_end_of_the_longitudes(tmp_path: Path) -> None:
    import shapely
    from rasterio.transform import from_origin
    from rasterio.warp import transform

    load_legend("mini").save(tmp_path / "legend.json")
    (east,), (north,) = transform("EPSG:4326", "EPSG:32660", [180.0], [1.0])
    place = {"crs": "EPSG:32660", "transform": from_origin(east - 60, north + 30, 1, 1)}
    image = write_tiff(tmp_path / "sea.tif", colours(land_cover(100, 120)), **place)
    sides = [shapely.box(179, 0, 180, 2), shapely.box(-180, 0, -179, 2)]
    for areas in (sides, [shapely.box(179, 0, 180, 2), shapely.box(180, 0, 181, 2)]):  # files count as they like
        found = cover_of(image, write_polygons(tmp_path / "sides.gpkg", areas, [3, 4], "EPSG:4326"))
        assert (found[:, :59] == 3).all() and (found[:, 62:] == 4).all()


@pytest.mark.parametrize("crs", [CRS, "EPSG:4326"])
def test_pieces_of_a_multipolygon_count_by_themselves(crs: str, tmp_path: Path) -> None:
    import shapely

    image, _ = write_scene(tmp_path, 100, 120)
    houses = shapely.MultiPolygon([ground(4 + 14 * n, 8, 14 + 14 * n, 18, crs) for n in range(8)])
    field = ground(0, 0, 32, 24, crs)  # smaller than all houses together
    found = cover_of(image, write_polygons(tmp_path / "town.gpkg", [houses, field], [4, 3], crs))
    assert (found == 4).sum() == 800 and (found == 3).sum() == 32 * 24 - 200


def test_polygons_without_a_class_are_unknown_whatever_classes_count_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from changeanywhere.errors import SourceError

    image, _ = write_scene(tmp_path, 100, 120)
    names = load_legend("mini").names
    areas = [ground(0, 0, 120, 100), ground(10, 10, 40, 30)]
    for first in (0, 1):
        path = write_polygons(tmp_path / "empty.gpkg", areas, [first + 2.0, np.nan])
        found = cover_of(image, path, class_names=names, first_class=first)
        assert (found[10:30, 10:40] == 0).all() and (found[40:] == 3).all()
    path = write_polygons(tmp_path / "named.gpkg", areas, ["water", " "])
    assert (cover_of(image, path)[10:30, 10:40] == 0).all()
    for value in (np.inf, 2.5):
        path = write_polygons(tmp_path / "odd.gpkg", areas, [1.0, value])
        with pytest.raises(SourceError, match=r"field class holds .* allowed: names of classes, or whole numbers"):
            cover_of(image, path)


@pytest.mark.parametrize("degrees", [0, 30, 90, 180])
@pytest.mark.parametrize("mirrored", [1, -1])
def test_land_cover_on_grids_that_are_not_north_up(degrees: int, mirrored: int, tmp_path: Path) -> None:
    """By polygons in both kinds of CRS, and by a raster; the command is named where what it makes would be taken."""
    from rasterio.transform import Affine, from_origin

    from changeanywhere.errors import SourceError

    _, mask = write_scene(tmp_path, 100, 120)
    grid = Affine.translation(320_030, 2_779_970) @ Affine.rotation(degrees) @ Affine.scale(PIXEL, -PIXEL * mirrored)
    image = write_tiff(tmp_path / "turned.tif", colours(land_cover(60, 70)), transform=grid)
    columns, rows = ~from_origin(320_000, 2_780_000, PIXEL, PIXEL) @ (
        grid @ tuple(np.meshgrid(np.arange(70) + 0.5, np.arange(60) + 0.5))
    )
    expected = np.where((columns >= 20) & (columns < 60) & (rows >= 30) & (rows < 70), 4, 1)
    for crs in (CRS, "EPSG:4326"):
        areas = [ground(-200, -200, 400, 400, crs), ground(20, 30, 60, 70, crs)]
        found = cover_of(image, write_polygons(tmp_path / "cover.gpkg", areas, [1, 4], crs))
        assert (found != expected).mean() < 0.002
    with pytest.raises(SourceError, match="another grid") as refused:
        cover_of(image, mask)
    north_up = degrees == 0 and mirrored == 1
    assert "give --resample-mask" in str(refused.value) and ("gdalwarp" in str(refused.value)) == north_up
    cover = values(mask)[0]
    inside = (columns >= 0) & (columns < 120) & (rows >= 0) & (rows < 100)
    places = np.floor(rows).astype(int).clip(0, 99), np.floor(columns).astype(int).clip(0, 119)
    found = cover_of(image, mask, resample_mask=True)
    assert (found != np.where(inside, cover[places], 0)).mean() < 0.002


def test_of_a_large_mask_only_what_the_image_shows_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rasterio.transform import from_origin
    from rasterio.warp import calculate_default_transform, reproject

    from changeanywhere.scenes import inputs
    from changeanywhere.sources.files import read_mask

    image, mask = write_scene(tmp_path, 150, 190)
    cover = np.zeros((900, 1000), np.uint8)
    cover[400:550, 500:690] = values(mask)[0]
    wide = write_tiff(
        tmp_path / "wide.tif", cover[..., None],
        transform=from_origin(320_000 - 500 * PIXEL, 2_780_000 + 400 * PIXEL, PIXEL, PIXEL),
    )  # fmt: skip
    px = []

    def counted(path: Path, window: Any, *more: Any) -> Any:
        px.append(window.height * window.width)
        return read_mask(path, window, *more)

    monkeypatch.setattr(inputs, "read_mask", counted)
    monkeypatch.setattr(inputs, "BLOCK", 64)
    assert np.array_equal(cover_of(image, wide, resample_mask=True), values(mask)[0])
    assert sum(px) < 3 * 150 * 190 and max(px) < 100 * 100
    with rasterio.open(wide) as source:
        place, width, height = calculate_default_transform(CRS, "EPSG:4326", 1000, 900, *source.bounds)
        degrees = np.zeros((height, width), np.uint8)
        reproject(cover, degrees, src_transform=source.transform, src_crs=CRS, dst_transform=place, dst_crs="EPSG:4326")
    there = write_tiff(tmp_path / "there.tif", degrees[..., None], transform=place, crs="EPSG:4326")
    assert (cover_of(image, there, resample_mask=True) == values(mask)[0]).mean() > 0.9
    monkeypatch.setattr(inputs, "MASK_PX", 400)  # of a mask that is much finer than the image, a part at a time
    px.clear()
    assert np.array_equal(cover_of(image, wide, resample_mask=True), values(mask)[0]) and max(px) <= 400


def test_masks_of_another_grid_are_refused_or_resampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rasterio.transform import from_origin

    from changeanywhere.errors import SourceError
    from changeanywhere.scenes.inputs import open_image, read_land_cover
    from changeanywhere.scenes.options import SceneOptions

    image, mask = write_scene(tmp_path, 100, 120)
    coarse = values(mask)[0][::2, ::2]
    half = write_tiff(
        tmp_path / "half.tif", coarse[..., None], transform=from_origin(320_000, 2_780_000, 2 * PIXEL, 2 * PIXEL)
    )
    options = SceneOptions(scene=(str(image),), mask=(str(half),), out=tmp_path / "out")
    opened = open_image(image, options.of_source(), 3)
    found = np.zeros((100, 120), np.uint8)
    with pytest.raises(SourceError, match=r"another grid.*--resample-mask, or: gdalwarp -r near -t_srs EPSG:32640 -te"):
        read_land_cover(half, opened, load_legend("mini"), options, found)
    asked = SceneOptions(scene=(str(image),), mask=(str(half),), out=tmp_path / "out", resample_mask=True)
    read_land_cover(half, opened, load_legend("mini"), asked, found)
    assert np.array_equal(found, coarse.repeat(2, 0).repeat(2, 1))


def test_dry_run_writes_nothing(tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask = write_scene(tmp_path / "in")
    assert run(command(image, mask, tmp_path / "out", tiny_model_folder, "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "190 x 150 px" in said and "3 events" in said and "windows" in said and "MB" in said
    assert not (tmp_path / "out").exists()
    sizes = ("--dry-run", "--events.areas", "[50, 100, 150]", "--events.min-area", "75")
    assert run(command(image, mask, tmp_path / "out", tiny_model_folder, *sizes)) == 0
    assert "asks for 25% (below events.min_area, 75 px) are never drawn" in capsys.readouterr().err


def test_a_finished_scene_is_known_without_its_device_and_without_listing_it(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image, mask = write_scene(tmp_path / "in", 70, 130)
    words = command(image, mask, tmp_path / "out", tiny_model_folder, "--paste-back", "--num-steps", "1")
    assert run([*words, "--device", "cpu"]) == 0
    store = LocalStore(tmp_path / "out" / "town")
    begun = unsealed(store.get("scene.json"))[0]
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    store.put("scene.json", sealed({**begun, "machine": {**begun["machine"], "device": missing}}))
    names = LocalStore.names
    monkeypatch.setattr(
        LocalStore, "names", lambda *given: names(*given) if given[1:] == ("leases",) else pytest.fail("listed")
    )
    for more, said in (([], "changed; nothing to do, all is there"), (["--dry-run"], "changed; nothing to do, all")):
        capsys.readouterr()
        assert run([*words, *more]) == 0
        assert said in capsys.readouterr().out


def test_what_makes_a_scene_begun(tmp_path: Path) -> None:
    """Masks without a plan are made anew; a plan, or any file that follows from one, is not."""
    store = LocalStore(tmp_path / "town")
    content = {"seed": 3}
    for name, begun in (
        ("scene.json", False), ("parts/mask_t1.npy", False), ("leases/scene", False), ("tiles/A/a.png", True),
        ("plan.json", True), ("t1.tif", True),
    ):  # fmt: skip
        store.put("scene.json", sealed(content))
        if name != "scene.json":
            store.put(name, b"")
        assert _begun(store) == (content if begun else None), name
        if begun:
            store.delete(name)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--mask-t2", "nowhere.tif", "--paste-back"], "mask_t2"),
        (["--num-events", "0"], "num_events"),
        (["--change-share", "0.1"], "change_share"),
        (["--class-pairs", '{"bareland->moon": 0.5}'], "bareland->moon"),
        (["--window", "72"], "window is 72"),
        (["--other-bands", "nodata"], "other_bands"),
        (["--eta", "0.5"], "eta"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    image, mask = write_scene(tmp_path / "in")
    assert run(command(image, mask, tmp_path / "out", tiny_model_folder, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and error.startswith("changeanywhere: error:")


def test_the_gate_reads_what_is_written(tmp_path: Path, tiny_model_folder: Path) -> None:
    """A finished scene is a source of its own."""
    image, mask = write_scene(tmp_path / "in")
    assert run(command(image, mask, tmp_path / "out", tiny_model_folder)) == 0
    for name in FILES:
        facts = gate.inspect(tmp_path / "out" / "town" / name)
        assert (facts.height, facts.width) == (150, 190)
