"""Exemplars: real pixels on changed ground, and blended diffusion that begins from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import changeanywhere as ca
from changeanywhere.cli import run
from changeanywhere.diffusion import exemplars
from changeanywhere.diffusion.blended import Calls
from changeanywhere.diffusion.exemplars import Exemplars, first_calls, paint_from_exemplars
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.place_noise import NoiseStreams
from changeanywhere.diffusion.samplers import build_sampler
from changeanywhere.errors import ConfigError
from changeanywhere.events import EventContext, EventOptions, simulate
from changeanywhere.events.bank import ShapeBank, find_shapes
from changeanywhere.legend import load_legend
from changeanywhere.models.borrowed import DDPMScheduler
from changeanywhere.painters.base import Donors
from changeanywhere.painters.exemplars import GROUND_RING, exemplar_of, strength_of, turned
from changeanywhere.sample import ChangePlan, Normalisation, ShapeDonor, SourceItem, shape_of
from changeanywhere.scenes.exemplars import SceneExemplars, SceneTiles
from changeanywhere.sources import SourceOptions, open_source
from conftest import tiny_model, write_source

MODEL = tiny_model()
MODEL.denoiser.eval()
LEGEND = load_legend("mini")
KNOWN = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
FILLED = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
MASKS = torch.ones(2, 64, 64, dtype=torch.int64)
CHANGE = torch.zeros(2, 64, 64, dtype=torch.bool)
CHANGE[0, 8:24, 8:24] = CHANGE[1, 30:50, 20:44] = True
CELLS = torch.nn.functional.max_pool2d(CHANGE.float().unsqueeze(1), 4).bool()
RING = Sampling.exemplar_ring
TIMESTEPS = [*(int(t) for t in build_sampler("dpmsolver++", MODEL.schedule, 4, torch.device("cpu")).timesteps), 0]
"""Of four calls, and of none."""


def paint(strength: float | torch.Tensor, sampling: Sampling, rows: slice = slice(0, 2)) -> torch.Tensor:
    seeds = list(range(5, 7))[rows]
    whole = torch.full((2, 64, 64), strength) if isinstance(strength, float) else strength
    given = Exemplars(FILLED[rows], whole[rows])
    masks = (MASKS[rows], CHANGE[rows])
    return paint_from_exemplars(MODEL.denoiser, MODEL.schedule, KNOWN[rows], given, masks, seeds, sampling)


@pytest.mark.parametrize("margin", [0, 2])
def test_strength_zero_keeps_the_exemplar_and_the_tail_paints_what_did_not_change(margin: int) -> None:
    result = paint(0.0, Sampling(num_steps=4, free_fraction=0.25, window_margin=margin))
    changed = CELLS.expand_as(result)
    assert torch.equal(result[changed], FILLED[changed])
    assert not torch.equal(result[~changed], KNOWN[~changed])
    still = paint(0.4, Sampling(num_steps=4, free_fraction=0.0, window_margin=margin))
    assert torch.equal(still[~changed], KNOWN[~changed]) and not torch.equal(still[changed], FILLED[changed])


def test_less_strength_stays_closer_to_the_exemplar_and_asks_the_network_less(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = type(MODEL.denoiser).forward

    def counted(self: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(len(x))
        return forward(self, x, *rest)

    monkeypatch.setattr(type(MODEL.denoiser), "forward", counted)
    away, made = [], []
    for strength in (0.15, 0.4, 0.9):
        calls.clear()
        result = paint(strength, Sampling(num_steps=10, free_fraction=0.1, window_margin=2))
        changed = CELLS.expand_as(result)
        away.append(float((result - FILLED)[changed].norm()))
        made.append(sum(calls))
    assert away == sorted(away) and made == sorted(made) and made[0] < made[-1] / 2


@pytest.mark.parametrize("margin", [0, 2])
def test_a_pair_does_not_depend_on_its_batch(margin: int) -> None:
    """Though its classes begin at other calls than those of the pair beside it."""
    strength = torch.full((2, 64, 64), 0.3)
    strength[0, 16:] = 0.8
    strength[1] = 0.5
    sampling = Sampling(num_steps=10, free_fraction=0.2, window_margin=margin)
    together = paint(strength, sampling)
    for row in (0, 1):
        alone = paint(strength, sampling, slice(row, row + 1))
        assert torch.allclose(alone[0], together[row], atol=1e-4)


@pytest.mark.parametrize("margin", [0, 2])
def test_a_tail_that_is_drawn_is_that_of_the_pair_alone(margin: int) -> None:
    sampling = Sampling(num_steps=10, free_fraction=[0.0, 0.6], window_margin=margin)
    together, strength = paint(0.5, sampling), torch.full((2, 64, 64), 0.5)
    own = [sampling.settled(seed) for seed in (5, 6)]
    assert own[0].num_held != own[1].num_held
    for row in (0, 1):
        alone = paint(strength, own[row], slice(row, row + 1))
        assert torch.allclose(alone[0], together[row], atol=1e-4)


@pytest.mark.parametrize("free_fraction", [0.0, 0.2])
@pytest.mark.parametrize(("sampler", "eta"), [("dpmsolver++", 1.0), ("ddim", 0.0)])
def test_windows_that_begin_at_different_calls_are_painted_in_one_batch_as_alone(
    sampler: str, eta: float, free_fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    strength = torch.full((2, 64, 64), 0.3)
    strength[0, 16:] = 0.8
    strength[1] = 0.5
    sampling = Sampling(sampler, num_steps=10, free_fraction=free_fraction, eta=eta, window_margin=2)
    together = paint(strength, sampling)
    monkeypatch.setattr(exemplars, "JOINT_SAMPLERS", ())  # by diffusers' own steps, windows that begin alike alone
    assert torch.allclose(together, paint(strength, sampling), atol=1e-4)


def test_a_cell_begins_at_the_timestep_nearest_to_its_strength() -> None:
    timesteps = [999, 800, 600, 400, 200, 50]
    strength = torch.zeros(1, 4, 32)
    for cell, value in enumerate((1.0, 0.79, 0.52, 0.49, 0.13, 0.03, 0.0)):
        strength[0, :, 4 * cell : 4 * cell + 4] = value
    change = torch.ones(1, 4, 32, dtype=torch.bool)
    first = first_calls(strength, change, timesteps, num_held=6, sampling=Sampling())
    assert first[0, 0, 0, :7].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert first_calls(strength, change, timesteps, 4, Sampling())[0, 0, 0, :7].tolist() == [0, 1, 2, 3, 4, 6, 6]


SHORT = DDPMScheduler(200, 0.0015, 0.0205, "scaled_linear", clip_sample=False)
"""Of a model that was trained with 200 timesteps."""


@pytest.mark.parametrize("sampler", ["dpmsolver++", "unipc", "ddim"])
def test_settings_speak_of_1000_timesteps_whatever_a_model_was_trained_with(sampler: str) -> None:
    """A strength of 0.33 began at the last of 200, from noise alone, and nothing between 200 and 700 was guided."""
    sampling = Sampling(sampler, num_steps=10, eta=0.0, guidance_scale=2.0, guidance_interval=[200, 700])
    begun, guided = [], []
    for schedule in (SHORT, MODEL.schedule):
        moments = exemplars.moments_of(sampling, schedule)
        assert moments[0] > 890 and len(moments) == 10
        begun.append([exemplars.begun_at(strength, moments, sampling) for strength in (0.0, 0.33, 0.6, 1.0)])
        calls = Calls(MODEL.denoiser, schedule, sampling, NoiseStreams([1], KNOWN.shape[1:]))
        assert calls.moments == moments
        guided.append([sampling.guides(moment) for moment in calls.moments])
    assert np.abs(np.subtract(begun[0], begun[1])).max() <= 6 and guided[0] == guided[1] and any(guided[0])
    assert exemplars.moments_of(sampling, MODEL.schedule) == calls.timesteps


def test_less_strength_stays_closer_to_the_exemplar_with_200_timesteps_too() -> None:
    seen: list[int] = []
    sampling = Sampling(num_steps=10, free_fraction=0.1, window_margin=2)
    away = []
    for strength in (0.15, 0.3, 0.9):
        seen.clear()
        given = Exemplars(FILLED, torch.full((2, 64, 64), strength))
        networks = (MODEL.denoiser, SHORT, KNOWN)
        result = paint_from_exemplars(
            *networks, given, (MASKS, CHANGE), [5, 6], sampling, lambda call, x: seen.append(call)
        )
        away.append((seen[0], float((result - FILLED)[CELLS.expand_as(result)].norm())))
    first, far = zip(*away, strict=True)
    assert list(first) == sorted(first, reverse=True) and first[0] > first[1] > 2 and list(far) == sorted(far)


def source_with_texture(folder: Path) -> ca.SourceSample:
    """A tile whose pixels are all different, so that it shows where each came from."""
    write_source(folder, num_tiles=3)
    rng = np.random.default_rng(7)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
            folder / "images" / f"tile_{number}.png"
        )
    return open_source(folder, SourceOptions(tile_size=64))[0]


def plan_of(sample: ca.SourceSample, kind: str, seed: int, **options: Any) -> ChangePlan:
    plan = simulate(sample.mask, LEGEND, seed, kind=kind, options=EventOptions(min_area=16, **options))
    assert plan is not None
    return plan


@pytest.mark.parametrize("options", [{}, {"rotate": "right_angles"}, {"flip": True, "rotate": "right_angles"}])
def test_what_appears_brings_the_pixels_of_its_donor(tmp_path: Path, options: dict[str, Any]) -> None:
    sample = source_with_texture(tmp_path / "source")
    source = open_source(tmp_path / "source", SourceOptions(tile_size=64))
    for seed in range(8):
        plan = plan_of(sample, "appearance", seed, **options)
        (event,) = plan.events
        assert event.donor is not None and event.donor.tile is None
        row, column, height, width = event.donor.box
        given = sample.pixels()[row : row + height, column : column + width]
        given = np.rot90(given, event.donor.turns)
        given = given[:, ::-1] if event.donor.mirrored else given
        exemplar, used = exemplar_of(sample.pixels(), sample, plan, Donors(source, [0, 1, 2]), RING)
        top, left, tall, wide = event.bbox
        shape = plan.change_mask[top : top + tall, left : left + wide]
        assert np.array_equal(exemplar[top : top + tall, left : left + wide][shape], given[shape]) and not used
        untouched = np.ones((64, 64), bool)
        untouched[max(top - RING, 0) : top + tall + RING, max(left - RING, 0) : left + wide + RING] = False
        assert np.array_equal(exemplar[untouched], sample.pixels()[untouched])


def test_a_donor_of_the_bank_brings_its_tile_and_stays_in_its_split(tmp_path: Path) -> None:
    sample = source_with_texture(tmp_path / "source")
    source = open_source(tmp_path / "source", SourceOptions(tile_size=64))
    options = EventOptions(min_area=16, shape_bank=True)
    bank = ShapeBank(find_shapes([source.read_mask(i) for i in range(3)], options, 0), source.read_mask, 8)
    givers = set()
    for seed in range(20):
        plan = simulate(sample.mask, LEGEND, seed, kind="appearance", options=options, context=EventContext(bank=bank))
        assert plan is not None and plan.events[0].donor is not None
        givers.add(plan.events[0].donor.tile)
        _, used = exemplar_of(sample.pixels(), sample, plan, Donors(source, [0, 2]), RING)
        assert {item.key for item in used} <= {"tile_2"}
    assert givers == {0, 1, 2}


@pytest.mark.parametrize("kind", ["disappearance", "conversion", "growth"])
def test_what_vanishes_becomes_ground_of_its_new_class(tmp_path: Path, kind: str) -> None:
    sample = source_with_texture(tmp_path / "source")
    source = open_source(tmp_path / "source", SourceOptions(tile_size=64))
    for seed in range(4):
        plan = plan_of(sample, kind, seed)
        exemplar, _ = exemplar_of(sample.pixels(), sample, plan, Donors(source, [0]), RING)
        for event in plan.events:
            here = (sample.mask == event.to_class) & ~plan.change_mask
            if not here.any():  # a class that only other tiles have
                continue
            own = {tuple(pixel) for pixel in sample.pixels()[here]}
            filled = exemplar[plan.change_mask & (plan.mask_t2 == event.to_class)]
            assert {tuple(pixel) for pixel in filled} <= own
        far = np.ones((64, 64), bool)
        rows, columns = np.nonzero(plan.change_mask)
        for row, column in zip(rows, columns, strict=True):
            far[
                max(row - GROUND_RING, 0) : row + GROUND_RING + 1,
                max(column - GROUND_RING, 0) : column + GROUND_RING + 1,
            ] = 0
        assert np.array_equal(exemplar[far], sample.pixels()[far])


def test_a_turned_and_scaled_donor_has_the_size_of_its_shape() -> None:
    pixels, mask = np.zeros((64, 64, 3), np.float32), np.ones((64, 64), np.uint8)
    mask[20:30, 20:26] = 4
    donor = ShapeDonor(None, (20, 20, 10, 6), turns=1, factor=2.0)
    patch, there, usable = turned(pixels, mask, 4, donor, RING)
    assert patch.shape[:2] == there.shape == usable.shape and usable.all()
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    assert abs(len(rows) - 12) <= 1 and abs(len(columns) - 20) <= 1


def painted_tile(mask: np.ndarray) -> ca.SourceSample:
    """A tile whose ground says what it is: class 4 bright, unknown black, the rest in between."""
    image = np.select([mask == 4, mask != 0], [230, 128], 0).astype(np.uint8)[..., None].repeat(3, 2)
    bands = ("red", "green", "blue")
    return ca.SourceSample(SourceItem("a", "a"), image, mask, bands, Normalisation.eight_bit(), valid=mask != 0)


def with_exemplar(sample: ca.SourceSample, plan: ChangePlan, ring: int = RING) -> np.ndarray:
    """Of a donor in the tile itself; there is no other."""
    made, _ = exemplar_of(sample.pixels(), sample, plan, Donors(None, []), ring)  # type: ignore[arg-type]
    return made[..., 0]


def copied(mask: np.ndarray, donor: ShapeDonor, to: tuple[int, int]) -> ChangePlan:
    """A plan in which the donor's box, all of class 4, appears at ``to``."""
    height, width = donor.box[2:] if donor.turns % 2 == 0 else donor.box[:1:-1]
    after = mask.copy()
    after[to[0] : to[0] + height, to[1] : to[1] + width] = 4
    event = ca.ChangeEvent("appearance", int(mask[to]), 4, (*to, height, width), (0, 0), height * width, donor)
    return ChangePlan(after, (mask != after) & (mask != 0), (event,), 1)


TURNS: list[dict[str, Any]] = [{}, {"turns": 1}, {"mirrored": True}, {"turns": 3, "mirrored": True}]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("near", ["swath", "neighbour", "notch"])
def test_a_ring_brings_no_fill_and_no_other_object(near: str, turn: dict[str, Any]) -> None:
    """What is beside a donor is no part of it, and ground around its copy is labelled unchanged."""
    mask = np.ones((96, 96), np.uint8)
    mask[30:44, 30:44] = 4
    if near == "swath":
        mask[:, :29] = 0
    elif near == "neighbour":
        mask[30:44, 47:60] = 4
    else:  # beside the donor itself, as where a swath cuts it
        mask[34:40, 20:30] = 0
    sample, plan = painted_tile(mask), copied(mask, ShapeDonor(None, (30, 30, 14, 14), **turn), (70, 70))
    made = with_exemplar(sample, plan)
    assert np.array_equal(made[plan.change_mask], np.full(14 * 14, sample.pixels()[30, 30, 0]))
    assert np.array_equal(made[~plan.change_mask], sample.pixels()[..., 0][~plan.change_mask])


@pytest.mark.parametrize("options", [{"rotate": "any"}, {"scale": (0.7, 1.6)}, {"rotate": "any", "scale": (0.7, 1.6)}])
def test_nor_does_that_of_a_donor_turned_freely_or_scaled(options: dict[str, Any]) -> None:
    mask = np.ones((128, 128), np.uint8)
    mask[:, :40] = 0
    mask[40:60, 41:55] = mask[40:60, 58:70] = 4
    sample, seen = painted_tile(mask), 0
    for seed in range(12):
        plan = simulate(mask, LEGEND, seed, kind="appearance", options=EventOptions(**options))
        if plan is None:
            continue
        made, seen = with_exemplar(sample, plan), seen + 1
        unchanged = ~plan.change_mask & (mask == 1)
        beyond = unchanged & ~ndimage.binary_dilation(plan.change_mask, np.ones((3, 3), bool), 2)  # agree in a px
        assert made[~plan.change_mask & (mask != 0)].min() > -0.01 and made[plan.change_mask].min() > -0.01
        assert made[beyond].max() < 0.1  # of its own edge; of the neighbour 0.4
    assert seen > 6


@pytest.mark.parametrize("turn", TURNS)
def test_a_ring_of_plain_ground_comes_along_as_it_is(turn: dict[str, Any]) -> None:
    mask = np.ones((96, 96), np.uint8)
    mask[30:44, 30:44] = 4
    mask[:, 50:], mask[:16] = 2, 0  # beyond the ring: another class, what was not imaged
    sample = painted_tile(mask)
    noise = np.random.default_rng(3).integers(0, 256, sample.image.shape, dtype=np.uint8)
    sample = replace(sample, image=noise)
    plan = copied(mask, ShapeDonor(None, (30, 30, 14, 14), **turn), (60, 60))
    patch = np.rot90(sample.pixels()[30 - RING : 44 + RING, 30 - RING : 44 + RING], turn.get("turns", 0))
    patch = patch[:, ::-1] if turn.get("mirrored") else patch
    distance = ndimage.distance_transform_edt(~plan.change_mask)[60 - RING : 74 + RING, 60 - RING : 74 + RING]
    share = (1 - distance / (RING + 1)).clip(0, 1).astype(np.float32)[..., None]
    expected = sample.pixels()
    part = expected[60 - RING : 74 + RING, 60 - RING : 74 + RING]
    part[:] = share * patch + (1 - share) * part
    made, _ = exemplar_of(sample.pixels(), sample, plan, Donors(None, []), RING)  # type: ignore[arg-type]
    assert np.array_equal(made, expected)


def test_a_ring_takes_nothing_of_what_stands_or_appears_beside_it() -> None:
    """A second event whose donor stands beside what the first shows, and a copy beside an instance of its class."""
    mask = np.ones((96, 96), np.uint8)
    mask[20:34, 20:34] = mask[60:74, 20:34] = 4
    mask[60:74, 55:60] = 0
    sample = painted_tile(mask)
    first = copied(mask, ShapeDonor(None, (20, 20, 14, 14)), (60, 37))
    second = copied(first.mask_t2, ShapeDonor(None, (60, 20, 14, 14)), (20, 70))
    third = copied(second.mask_t2, ShapeDonor(None, (20, 20, 14, 14)), (77, 37))
    events = (*first.events, *second.events, *third.events)
    plan = ChangePlan(third.mask_t2, mask != third.mask_t2, events, 1)
    made, pixels = with_exemplar(sample, plan), sample.pixels()[..., 0]
    assert np.array_equal(made[plan.mask_t2 == 4], np.full(5 * 14 * 14, pixels[20, 20]))
    assert np.array_equal(made[plan.mask_t2 != 4], pixels[plan.mask_t2 != 4])


def test_nor_does_that_of_a_donor_in_a_scene() -> None:
    mask = np.ones((300, 320), np.uint8)
    mask[:, :29] = 0
    mask[30:44, 30:44] = mask[30:44, 47:60] = 4
    sample = painted_tile(mask)
    image = SimpleNamespace(
        path=Path("town.tif"),
        shape=mask.shape,
        bands=(1, 2, 3),
        normalisation=sample.normalisation,
        filled=lambda window: sample.image[window.slices],
    )
    plan = copied(mask, ShapeDonor(None, (30, 30, 14, 14)), (250, 260))
    tiles = SceneTiles(image, mask, LEGEND)  # type: ignore[arg-type]
    scene = SceneExemplars(tiles, (mask, plan.mask_t2), plan.events, 1, RING)
    box = (220, 220, 64, 64)
    made = scene.over(sample.pixels()[220:284, 220:284], box, box)[..., 0]
    expected = np.where(plan.mask_t2 == 4, sample.pixels()[30, 30, 0], sample.pixels()[..., 0])
    assert np.array_equal(made, expected[220:284, 220:284])


def test_a_donor_is_its_own_shape_and_not_all_of_its_class_in_its_box() -> None:
    """Turned freely, a house in the empty corner of a bar's box moved the box of both, and the roof beside its mask."""
    mask = np.full((192, 192), 1, np.uint8)
    for step in range(60):
        mask[20 + step : 26 + step, 20 + step : 26 + step] = 4
    bar = mask.copy()
    mask[24:36, 64:78] = 4
    shares = []
    for seed in range(60):
        options = EventOptions(rotate="any", min_area=200)
        plan = simulate(mask, LEGEND, seed, kind="appearance", options=options)
        if plan is None or plan.events[0].donor is None or plan.events[0].donor.box[2] < 50:
            continue
        donor = plan.events[0].donor
        assert np.array_equal(shape_of(donor.runs, donor.box[2:]), (bar == 4)[20:85, 20:85])
        shares.append(float((with_exemplar(painted_tile(mask), plan)[plan.change_mask] > 0.4).mean()))
        if len(shares) >= 6:
            break
    assert len(shares) == 6 and min(shares) > 0.8


def test_strengths_by_class_by_range_and_for_all() -> None:
    mask = np.array([[1, 4], [4, 2]], np.uint8)
    plan = ChangePlan(mask, mask > 0, (), seed=3)
    by_class = strength_of({"building": 0.25, "default": 0.5}, plan, LEGEND)[mask]
    assert by_class.tolist() == [[0.5, 0.25], [0.25, 0.5]]
    assert strength_of({"building": 0.25}, plan, LEGEND)[LEGEND.index_of("road")] == 1
    drawn = [strength_of([0.2, 0.4], replace(plan, seed=seed), LEGEND)[1] for seed in range(50)]
    assert 0.2 <= min(drawn) < 0.25 and 0.35 < max(drawn) <= 0.4
    for wrong in (1.5, [0.4, 0.2], {"building": -1.0}):
        with pytest.raises(ConfigError, match="exemplar_strength is"):
            Sampling(exemplar_strength=wrong).check()


def test_generate_with_exemplars(source_folder: Path, tiny_model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    rows = ["patch,licence", *(f"tile_{i},licence-{i}" for i in range(6))]
    (source_folder / "provenance.csv").write_text("\n".join(rows))
    given = ["--source", str(source_folder), "--model", str(tiny_model_folder), "--tile-size", "64", "--num-steps", "4"]
    given += ["--events.shape-bank", "--num-pairs", "8", "--dtype", "float32", "--seed", "2"]
    strength = ["--exemplar-strength", '{"building": 0.2, "default": 0.5}']
    out = tmp_path / "out"
    assert run(["generate", *given, *strength, "--out", str(out)]) == 0
    records = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert all(r["settings"]["sampling"]["exemplar_strength"] == {"building": 0.2, "default": 0.5} for r in records)
    with_donors = [r for r in records if r["donors"]]
    assert with_donors, "shapes of the bank bring other tiles' pixels"
    for record in records:
        appearing = {event["to_class"] for event in record["events"]}
        assert {how["class"] for how in record["exemplars"]} == appearing
        for how in record["exemplars"]:
            assert how["strength"] == (0.2 if how["class"] == "building" else 0.5)
            assert how["timestep"] in TIMESTEPS and abs(how["timestep"] - 1000 * how["strength"]) == min(
                abs(time - 1000 * how["strength"]) for time in TIMESTEPS
            )
        assert all(donor["split"] == record["split"] for donor in record["donors"])
        assert all(donor["licence"] == f"licence-{donor['key'][5:]}" for donor in record["donors"])
    for record in with_donors:
        named = [record["source_key"], *(donor["key"] for donor in record["donors"])]
        assert record["licence"] == " AND ".join(dict.fromkeys(f"licence-{key[5:]}" for key in named))
    again = tmp_path / "again"
    assert run(["generate", *given, *strength, "--out", str(again), "--batch-size", "3"]) == 0
    pure = tmp_path / "pure"
    assert run(["generate", *given, "--out", str(pure)]) == 0
    for one, same, other in zip(*(ca.load_pairs(folder) for folder in (out, again, pure)), strict=True):
        assert np.array_equal(one.mask_t2, same.mask_t2) and np.array_equal(one.mask_t2, other.mask_t2)
        assert np.abs(one.image_t2.astype(int) - same.image_t2).max() <= 2, "whatever its batch"
        assert not np.array_equal(one.image_t2, other.image_t2)
    capsys.readouterr()
    turned = [*given, "--events.rotate", "right_angles", "--out", str(tmp_path / "turned")]
    assert run(["generate", *turned, *strength]) == 0
    assert "events.rotate right_angles turns shadows with the objects that cast them" in capsys.readouterr().err
    assert run(["generate", *turned[:-1], str(tmp_path / "turned_pure")]) == 0
    assert "shadows" not in capsys.readouterr().err
    assert run(["generate", *given, "--exemplar-strength", '{"castle": 0.2}', "--out", str(tmp_path / "x")]) == 2
    assert "exemplar_strength is ['castle']; allowed: default, bareland" in capsys.readouterr().err
    wrong = ["--method", "copy_paste", "--exemplar-strength", "0.5"]
    assert (
        run(["generate", "--source", str(source_folder), *wrong, "--out", str(tmp_path / "y"), "--tile-size", "64"])
        == 2
    )
    assert "exemplar_strength is 0.5; allowed: with a method that reads it" in capsys.readouterr().err


def test_a_ring_is_as_wide_as_asked(tmp_path: Path) -> None:
    sample = source_with_texture(tmp_path / "source")
    source = open_source(tmp_path / "source", SourceOptions(tile_size=64))
    plan = plan_of(sample, "appearance", 3)
    top, left, tall, wide = plan.events[0].bbox
    for ring in (0, 3, 9):
        exemplar, _ = exemplar_of(sample.pixels(), sample, plan, Donors(source, [0]), ring)
        changed = np.abs(exemplar - sample.pixels()).max(2) > 1e-6
        around = np.zeros((64, 64), bool)
        around[max(top - ring, 0) : top + tall + ring, max(left - ring, 0) : left + wide + ring] = True
        assert not changed[~around].any()
        assert (changed & ~plan.change_mask).any() == (ring > 0)


def test_guidance_in_an_interval_is_guidance_at_its_calls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from changeanywhere.diffusion.blended import paint_latents

    base = Sampling(num_steps=8, guidance_scale=2.0)
    seen: list[tuple[int, int]] = []
    predict = Calls._predict

    def watched(
        self: Calls, x: torch.Tensor, times: torch.Tensor, conditions: list[torch.Tensor], guided: bool
    ) -> torch.Tensor:
        seen.append((int(times[0]), len(conditions)))
        return predict(self, x, times, conditions, guided)

    monkeypatch.setattr(Calls, "_predict", watched)

    def painted(sampling: Sampling) -> torch.Tensor:
        sampling.check()
        return paint_latents(MODEL.denoiser, MODEL.schedule, KNOWN, MASKS, CHANGE, [5, 6], sampling)

    everywhere = painted(base)
    seen.clear()
    some = painted(replace(base, guidance_interval=[300, 700]))
    assert {300 <= time <= 700 for time, count in seen if count == 2} == {True}
    assert {300 <= time <= 700 for time, count in seen if count == 1} == {False}
    assert torch.equal(painted(replace(base, guidance_interval=[0, 1000])), everywhere)
    assert not torch.equal(some, everywhere)
    with pytest.raises(ConfigError, match="guidance_interval is"):
        Sampling(guidance_scale=2.0, guidance_interval=[700, 300]).check()
    with pytest.raises(ConfigError, match="guidance_interval is"):
        Sampling(guidance_interval=[300, 700]).check()


def test_what_a_given_setting_switches_off_goes_back_to_its_default() -> None:
    model = Sampling(guidance_scale=2.0, guidance_interval=[200, 700], exemplar_strength=0.2, exemplar_ring=9)
    plain = model.changed({"guidance_scale": 1.0, "exemplar_strength": 1.0})
    plain.check()
    assert plain.guidance_interval is None and plain.exemplar_ring == RING and not plain.from_exemplars
    with pytest.raises(ConfigError, match="guidance_interval is"):
        model.changed({"guidance_scale": 1.0, "guidance_interval": [1, 2]}).check()
    assert model.changed({"num_steps": 4}).guidance_interval == [200, 700]


def test_ground_of_a_mask_that_the_user_brought_is_filled_with_its_new_class(source_folder: Path) -> None:
    """No event speaks of it, and what were left as date 1 would shine through a strength below 1."""
    source = open_source(source_folder, SourceOptions(tile_size=64))
    sample = source.read(1)
    mask_t2 = sample.mask.copy()
    mask_t2[40:52, 20:34] = 3
    mask_t2[50:60, 48:60] = 4
    change = (sample.mask != 0) & (sample.mask != mask_t2)
    plan = ChangePlan(np.where(sample.mask == 0, 0, mask_t2).astype(np.uint8), change, (), 7)
    filled, _ = exemplar_of(sample.pixels(), sample, plan, Donors(source, range(len(source))), RING)
    for class_index in (3, 4):
        own, new = sample.pixels()[sample.mask == class_index], filled[change & (mask_t2 == class_index)]
        there = sample.pixels()[change & (mask_t2 == class_index)]
        assert np.abs(new.mean(0) - own.mean(0)).max() < 0.05 < np.abs(there.mean(0) - own.mean(0)).max()


@pytest.mark.parametrize("corner", [(2, 2), (2, 120), (120, 2), (60, 60), (118, 118)])
def test_ground_may_come_from_a_smaller_tile(source_folder: Path, tmp_path: Path, corner: tuple[int, int]) -> None:
    """A large event of a scene, in its surroundings, takes ground from tiles of the scene."""
    givers = open_source(source_folder, SourceOptions(tile_size=64))
    large = write_source(tmp_path / "large", num_tiles=1, size=160)
    for mask in (large / "masks").iterdir():  # nothing of class 3 in it
        Image.fromarray(np.ones((160, 160), np.uint8)).save(mask)
    sample = open_source(large, SourceOptions(tile_size=160)).read(0)
    mask_t2 = sample.mask.copy()
    mask_t2[corner[0] : corner[0] + 40, corner[1] : corner[1] + 38] = 3
    change = sample.mask != mask_t2
    plan = ChangePlan(mask_t2, change, (), 7)
    filled, used = exemplar_of(sample.pixels(), sample, plan, Donors(givers, range(len(givers))), RING)
    assert used, "from another tile"
    assert (filled[change] != sample.pixels()[change]).any(1).mean() > 0.95


def test_painting_from_exemplars_tells_each_call_and_stops_where_it_is_told() -> None:
    for sampler in ("dpmsolver++", "unipc"):  # windows together, and by where they begin
        seen: list[int] = []

        def on_step(call: int, x: torch.Tensor, seen: list[int] = seen) -> None:
            seen.append(call)
            if len(seen) == 2:
                raise KeyError

        sampling = Sampling(sampler, num_steps=6, free_fraction=0.2, window_margin=2)
        strengths = torch.full((1, 64, 64), 0.6)
        given = (MODEL.denoiser, MODEL.schedule, KNOWN[:1], Exemplars(FILLED[:1], strengths))
        with pytest.raises(KeyError):
            paint_from_exemplars(*given, (MASKS[:1], CHANGE[:1]), [1], sampling, on_step)
        assert len(seen) == 2 and seen == sorted(seen)
