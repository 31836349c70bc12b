"""What happens to painted pairs before they are written: nuisances, paste-back, order of dates, fidelity filter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.registration import phase_cross_correlation

import changeanywhere as ca
from changeanywhere.errors import ConfigError, OutputError, ShortfallError
from changeanywhere.events import EventOptions
from changeanywhere.generation import fidelity
from changeanywhere.generation import finish as finishing
from changeanywhere.generation import generate as run
from changeanywhere.generation.fidelity import changed_recall
from changeanywhere.generation.nuisances import NuisanceOptions, disturb
from changeanywhere.generation.options import FilterOptions, GenerateOptions
from changeanywhere.generation.shares import plan_set
from changeanywhere.generation.targets import SetTargets
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.pairs.split import assign_splits, stated_splits
from conftest import write_source


@pytest.fixture
def options(tiny_model_folder: Path, tmp_path: Path) -> GenerateOptions:
    source = write_source(tmp_path / "source")
    return GenerateOptions(
        source=source, out=tmp_path / "out", model=str(tiny_model_folder), num_pairs=12, tile_size=64, num_steps=2,
        num_threads=1, dtype="float32", batch_size=3, events=EventOptions(min_area=16),
    )  # fmt: skip


@pytest.fixture
def photo() -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(96, 96, 3)), (2, 2, 0))
    return np.clip(0.4 + 1.2 * smooth, 0.05, 0.8).astype(np.float32)


def disturbed(photo: np.ndarray, **amounts: float) -> np.ndarray:
    return disturb(photo, amounts, None, np.random.default_rng(3))


def test_every_nuisance_does_what_its_unit_says(photo: np.ndarray) -> None:
    assert np.array_equal(disturbed(photo), photo)
    ratio = disturbed(photo, illumination=0.2).mean((0, 1)) / photo.mean((0, 1))
    assert np.allclose(ratio, 1.2, atol=0.01)
    ratio = disturbed(photo, white_balance=0.1).mean((0, 1)) / photo.mean((0, 1))
    assert np.all(np.abs(ratio - 1) <= 0.101) and ratio.std() > 0.01
    shadow = disturbed(photo, shadow=0.5) / photo
    assert 0.1 < (shadow < 0.75).mean() < 0.4 and shadow.min() >= 0.499 and (shadow > 0.99).mean() > 0.5
    assert np.allclose(disturbed(photo, haze=0.4).std(), 0.6 * photo.std(), rtol=0.02)
    moved = disturbed(photo, misregistration=1.5)
    inside = (slice(8, -8), slice(8, -8))
    grey = [image.mean(2)[inside] - image.mean() for image in (photo, moved)]
    shift, *_ = phase_cross_correlation(*grey, upsample_factor=20, normalization=None)
    assert np.hypot(*shift) == pytest.approx(1.5, abs=0.3)
    # Noise of scale 2 px under a Gaussian of 2 px: variances add up, gradients fall with their ratio, to a half.
    gradients = [np.diff(image, axis=0).std() for image in (photo, disturbed(photo, blur=2))]
    assert gradients[1] / gradients[0] == pytest.approx(0.5, abs=0.05)
    assert (disturbed(photo, noise=0.02) - photo).std() == pytest.approx(0.02, rel=0.05)
    error = np.abs(disturbed(photo, jpeg=60) - photo).mean()
    assert 1 / 255 < error < np.abs(disturbed(photo, jpeg=5) - photo).mean()
    other = np.clip(photo * [0.5, 1, 1.2] + 0.1, 0, 1).astype(np.float32)
    towards = disturb(photo, {"season": 0.5}, other.reshape(-1, 3), np.random.default_rng(0))
    assert np.allclose(towards.mean((0, 1)), (photo.mean((0, 1)) + other.mean((0, 1))) / 2, atol=0.01)


def test_what_fills_a_tile_counts_for_no_nuisance(photo: np.ndarray) -> None:
    shown = np.ones((96, 96), bool)
    shown[:, 40:] = False
    blank = np.where(shown[..., None], photo, 0).astype(np.float32)
    other = np.clip(photo * [0.5, 1, 1.2] + 0.1, 0, 1).astype(np.float32).reshape(-1, 3)
    for amounts in ({"season": 0.5}, {"haze": 0.4}, {"season": 0.3, "haze": 0.2, "illumination": 0.1}):
        rngs = [np.random.default_rng(0) for _ in range(3)]
        partly = disturb(blank, amounts, other, rngs[0], shown)
        alone = disturb(photo[:, :40], amounts, other, rngs[1])
        assert np.allclose(partly[shown], alone.reshape(-1, 3), atol=1e-5)
        assert np.abs(disturb(blank, amounts, other, rngs[2])[shown] - partly[shown]).max() > 0.02
    flat = np.where(shown[..., None], np.float32(0.5), np.float32(0))
    for amounts in ({"blur": 3.0}, {"misregistration": 2.5}):
        seen = disturb(flat, amounts, None, np.random.default_rng(0), shown)[shown]
        assert np.allclose(seen, 0.5, atol=1e-3), "black beside the ground does not run into it"
    for everywhere in (np.ones_like(shown), None):
        same = disturb(photo, {"season": 0.5, "haze": 0.3}, other, np.random.default_rng(0), everywhere)
        assert np.array_equal(same, disturb(photo, {"season": 0.5, "haze": 0.3}, other, np.random.default_rng(0)))
    assert np.array_equal(disturb(blank, {"season": 1.0}, other[:0], np.random.default_rng(0)), blank)


def test_a_season_is_of_another_tile_of_the_same_split(
    options: GenerateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = list[tuple[str, str]]()
    finish: Any = finishing.finish

    def watched(dates: finishing.Dates, *rest: Any) -> finishing.Finished:
        own, other = dates.sample_t1.item.key, rest[-1]

        def noted(rng: np.random.Generator) -> np.ndarray:
            pixels: np.ndarray = other(rng)
            taken.append((own, found[pixels.tobytes()]))
            return pixels

        finished: finishing.Finished = finish(dates, *rest[:-1], noted)
        return finished

    tiles = ca.load_source(options.source, tile_size=64)
    shares = [(tiles.read(index).pixels() + 1) / np.float32(2) for index in range(len(tiles))]
    found = {each.reshape(-1, 3).tobytes(): item.key for each, item in zip(shares, tiles.items, strict=True)}
    splits = assign_splits(stated_splits(tiles.items))
    split_of = {item.key: splits[item.scene] for item in tiles.items}
    monkeypatch.setattr(finishing, "finish", watched)
    run.generate(replace(options, nuisances=NuisanceOptions(season=[0.5, 0.5])))
    assert len(taken) == 12 and all(split_of[own] == split_of[other] for own, other in taken)
    sole = [split for split in set(splits.values()) if list(split_of.values()).count(split) == 1]
    assert all((own != other) == (split_of[own] not in sole) for own, other in taken)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (NuisanceOptions(dates="first"), "nuisances.dates is 'first'; allowed: second, both"),
        (NuisanceOptions(blur=[2, 1]), "nuisances.blur is"),
        (NuisanceOptions(jpeg=[1, 2, 3]), "nuisances.jpeg is"),
    ],
)
def test_ranges_are_checked(options: GenerateOptions, wrong: NuisanceOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run.generate(replace(options, nuisances=wrong))


def test_nuisances_are_recorded_and_stay_within_their_ranges(options: GenerateOptions) -> None:
    wanted = NuisanceOptions(dates="both", season=[0, 0.3], illumination=[-0.1, 0.1], jpeg=[70, 90], noise=[0, 0.01])
    run.generate(replace(options, nuisances=wanted))
    run.generate(replace(options, out=options.out.with_name("again"), nuisances=wanted, batch_size=3))
    pairs, again = ca.load_pairs(options.out), ca.load_pairs(options.out.with_name("again"))
    amounts = set()
    for i in range(len(pairs)):
        assert np.array_equal(pairs[i].image_t2, again[i].image_t2)
        for date in ("t1", "t2"):
            rows = [row for row in pairs[i].metadata["nuisances"] if f"t{row['date']}" == date]
            found = {row["name"]: row["amount"] for row in rows}
            assert set(found) == {"season", "illumination", "jpeg", "noise"}
            assert 70 <= found["jpeg"] <= 90 and -0.1 <= found["illumination"] <= 0.1
            amounts.add(found["jpeg"])
    assert len(amounts) == 24  # every image draws its own


def original(options: GenerateOptions, pair: ca.ChangePair) -> np.ndarray:
    return np.asarray(Image.open(options.source / "images" / f"{pair.metadata['source_key']}.png"))


def test_order_of_dates_is_exchanged_with_masks_and_events(options: GenerateOptions) -> None:
    run.generate(replace(options, random_order=True))
    run.generate(replace(options, out=options.out.with_name("plain")))
    pairs, plain = ca.load_pairs(options.out), ca.load_pairs(options.out.with_name("plain"))
    exchanged = 0
    for i in range(len(pairs)):
        pair, before = pairs[i], plain[i]
        assert before.metadata["real_date"] == 1
        real = pair.image_t1 if pair.metadata["real_date"] == 1 else pair.image_t2
        assert np.array_equal(real, original(options, pair))
        event, event_before = pair.metadata["events"][0], before.metadata["events"][0]
        if pair.metadata["real_date"] == 2:
            exchanged += 1
            assert pair.mask_t1 is not None and before.mask_t2 is not None
            assert np.array_equal(pair.image_t1, before.image_t2) and np.array_equal(pair.mask_t1, before.mask_t2)
            assert (event["from_class"], event["to_class"]) == (event_before["to_class"], event_before["from_class"])
            assert {event["kind"], event_before["kind"]} == {"appearance", "disappearance"}
        else:
            assert event == event_before and np.array_equal(pair.image_t2, before.image_t2)
    assert 2 <= exchanged <= 10


def test_paste_back_keeps_pixels_of_unchanged_ground(options: GenerateOptions) -> None:
    run.generate(replace(options, paste_back=True))
    for pair in (pairs := ca.load_pairs(options.out))[0], pairs[1]:
        far = ndimage.distance_transform_edt(~pair.change_mask) >= 8
        assert np.array_equal(pair.image_t1[far], pair.image_t2[far])
        assert not np.array_equal(pair.image_t1[pair.change_mask], pair.image_t2[pair.change_mask])


@pytest.mark.numerical
@pytest.mark.usefixtures("unquantised")
def test_reconstructed_first_date_is_what_the_first_stage_gives_back(options: GenerateOptions) -> None:
    run.generate(replace(options, reconstruct_t1=True))
    pair = ca.load_pairs(options.out)[0]
    pipe = ca.ChangePairPipeline.from_pretrained(options.model, device="cpu", dtype="float32")
    pixels = torch.from_numpy(original(options, pair).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    decoded = pipe.decode(pipe.encode(pixels))[0].permute(1, 2, 0).numpy()
    expected = np.rint((decoded.clip(-1, 1) + 1) * 127.5)
    assert np.abs(pair.image_t1 - expected).max() <= 1 and not np.array_equal(pair.image_t1, original(options, pair))


def test_share_that_is_read_as_the_new_class() -> None:
    mask, change = np.ones((32, 32), np.uint8), np.zeros((32, 32), bool)
    change[8:20, 8:20] = True
    mask[change] = 4
    read = np.where(change, 4, 1)
    assert changed_recall(mask, change, read) == 1
    read[8:10] = read[18:20] = 1  # the border is nobody's
    assert changed_recall(mask, change, read) == 1
    read[8:14, 8:20] = 1
    assert changed_recall(mask, change, read) == 0.5
    assert changed_recall(mask, np.zeros_like(change), read) is None


@pytest.fixture
def reader(options: GenerateOptions, tmp_path: Path) -> Path:
    """A segmenter with random weights."""
    Segmenter("unet", ca.load_legend("mini")).save(tmp_path / "reader")
    return tmp_path / "reader"


def test_filter_scores_drops_and_paints_again(
    options: GenerateOptions, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a reader that finds every other painting poor."""
    calls = []

    def scores(self: object, images: object, plans: list[ca.ChangePlan]) -> list[float | None]:
        calls.append(len(plans))
        first_time = sum(calls) <= 3 * len(calls) and len(plans) == 3
        return [0.2 if first_time and i == 1 else 0.9 for i in range(len(plans))]

    monkeypatch.setattr(fidelity.FidelityFilter, "scores", scores)
    out = options.out
    plain = run.generate(options)
    dropped = run.generate(replace(options, out=out.with_name("drop"), filter=FilterOptions(reader)))
    assert (plain.num_dropped, dropped.num_dropped, dropped.num_pairs) == (0, 4, 8)
    assert len(list((out.with_name("drop") / "A").iterdir())) == 8
    scored = FilterOptions(reader, action="score")
    assert run.generate(replace(options, out=out.with_name("score"), filter=scored)).num_pairs == 12
    again = FilterOptions(reader, action="resample")
    assert run.generate(replace(options, out=out.with_name("again"), filter=again)).num_pairs == 12
    before, marked, painted = (ca.load_pairs(out.with_name(name)) for name in ("out", "score", "again"))
    assert sorted(marked[i].metadata["fidelity"] for i in range(12)) == [0.2] * 4 + [0.9] * 8
    for i in range(12):
        repainted = painted[i].metadata["attempt"] == 1
        assert repainted == (marked[i].metadata["fidelity"] == 0.2)
        assert np.array_equal(painted[i].image_t2, before[i].image_t2) != repainted
        assert before[i].metadata["fidelity"] is None


@pytest.mark.parametrize("planned", [False, True])
def test_a_filter_may_lie_elsewhere_when_a_set_goes_on(
    planned: bool, options: GenerateOptions, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights say which one it is, before the first shard and after it."""
    monkeypatch.setattr(fidelity.FidelityFilter, "scores", lambda self, images, plans: [0.9] * len(plans))
    options = replace(options, shard_size=4)
    begun = replace(options, filter=FilterOptions(reader))
    assert plan_set(begun).num_pairs == 12 if planned else run.generate(replace(begun, shard="0/2")).num_open
    moved = reader.rename(reader.with_name("elsewhere"))
    report = run.generate(replace(options, filter=FilterOptions(moved)))
    assert report.num_pairs == 12 and report.num_new > 0
    named = {str(record["finishing"]["filter"]["model"]) for record in map(provenance_of, lines_of(options.out))}
    assert named <= {"reader", "elsewhere"}, "by name, as the other networks: a set holds no places of a machine"
    Segmenter("unet", ca.load_legend("mini")).save(reader)
    with pytest.raises(OutputError, match=r"was made with finishing\.filter"):
        run.generate(replace(options, filter=FilterOptions(reader)))
    with pytest.raises(OutputError, match=r"was made with finishing\.filter\.model = '.*', asked now: None"):
        run.generate(options)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def provenance_of(record: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = record["settings"]
    return settings


def test_a_filter_that_drops_everything_says_so(
    options: GenerateOptions, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its random weights may read a pair rightly, all of it; which ones do hangs on the tests before this one.
    monkeypatch.setattr(fidelity.FidelityFilter, "scores", lambda self, images, plans: [0.9] * len(plans))
    with pytest.raises(ShortfallError, match="the filter dropped all 12 pairs"):
        run.generate(replace(options, filter=FilterOptions(reader, min_score=1.0)))
    with pytest.raises(ConfigError, match=r"filter\.action is 'keep'; allowed: score, drop, resample"):
        run.generate(replace(options, filter=FilterOptions(reader, action="keep")))


@pytest.mark.numerical
@pytest.mark.usefixtures("unquantised")
def test_a_rival_passes_the_first_stage_where_date_1_does(options: GenerateOptions) -> None:
    """Else the look alone, soft or sharp, would tell its dates apart."""
    quiet = SetTargets(no_change=1.0)
    run.generate(replace(options, method="copy_paste", num_steps=None, reconstruct_t1=True, targets=quiet))
    pairs = ca.load_pairs(options.out)
    for i in range(len(pairs)):
        apart = np.abs(pairs[i].image_t1.astype(int) - pairs[i].image_t2)
        assert apart.max() <= 1, "decoded once per tile at date 1, once per pair at date 2: sums of other batches"


def pasting(options: GenerateOptions, method: str) -> GenerateOptions:
    """Without what only a network reads."""
    return replace(options, method=method, num_steps=None, dtype=None, num_threads=None)


@pytest.mark.parametrize("method", ["copy_paste", "patch_exchange"])
def test_pixels_of_other_tiles_bring_their_licence_and_stay_in_their_split(
    options: GenerateOptions, method: str
) -> None:
    rows = ["patch,scene,split,licence,attribution"]
    rows += [f"tile_{i},s{i},{'train' if i < 3 else 'val'},licence-{i},author {i}" for i in range(6)]
    (options.source / "provenance.csv").write_text("\n".join(rows))
    run.generate(pasting(options, method))
    pairs = ca.load_pairs(options.out)
    given = 0
    for i in range(len(pairs)):
        record = pairs[i].metadata
        numbers = [int(record["source_key"][5:]), *(int(donor["key"][5:]) for donor in record["donors"])]
        assert len({number < 3 for number in numbers}) == 1, "a validation scene's pixels in a training pair"
        assert record["licence"] == " AND ".join(dict.fromkeys(f"licence-{n}" for n in numbers))
        assert record["attribution"] == "; ".join(dict.fromkeys(f"author {n}" for n in numbers))
        given += len(numbers) > 1
    assert given > 2


def test_windows_of_one_tile_alone_change_places(options: GenerateOptions) -> None:
    for folder in ("images", "masks"):
        for file in sorted((options.source / folder).iterdir())[1:]:
            file.unlink()
    run.generate(replace(pasting(options, "patch_exchange"), num_pairs=4))
    pairs = ca.load_pairs(options.out)
    assert not any(pairs[number].metadata["donors"] for number in range(len(pairs)))
    assert any(not np.array_equal(pairs[number].image_t1, pairs[number].image_t2) for number in range(len(pairs)))


@pytest.mark.parametrize("method", ["copy_paste", "recolour", "patch_exchange"])
def test_rivals_change_only_changed_ground(options: GenerateOptions, method: str) -> None:
    run.generate(pasting(options, method))
    run.generate(replace(pasting(options, method), out=options.out.with_name("again")))
    pairs, again = ca.load_pairs(options.out), ca.load_pairs(options.out.with_name("again"))
    source = ca.load_source(options.source, tile_size=64)
    for i in range(len(pairs)):
        pair = pairs[i]
        assert np.array_equal(pair.image_t2, again[i].image_t2)
        assert pair.mask_t1 is not None and pair.mask_t2 is not None
        if method != "patch_exchange":
            assert np.array_equal(pair.image_t1[~pair.change_mask], pair.image_t2[~pair.change_mask])
        if method == "patch_exchange" or not pair.change_mask.any():
            continue
        # tiles are painted by class: a pixel of the new class has its class's colour
        wanted = int(pair.mask_t2[pair.change_mask][0])
        chosen = pair.change_mask & (pair.mask_t2 == wanted)
        colours = np.concatenate([t.image[t.mask == wanted] for t in (source[j] for j in range(len(source)))])
        assert np.abs(pair.image_t2[chosen].mean(0) - colours.mean(0)).max() < 25
    assert any(pairs[i].change_mask.any() for i in range(len(pairs)))
    with pytest.raises(ConfigError, match="method is 'magic'"):
        run.generate(replace(options, method="magic"))
