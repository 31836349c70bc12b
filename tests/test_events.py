"""Change events on the mask alone: what must hold for every mask there is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage

from changeanywhere.errors import ConfigError, LegendError
from changeanywhere.events import KINDS, EventOptions, pair_seed, simulate
from changeanywhere.events.instances import find_instances
from changeanywhere.events.kinds import feasible_places, surrounding_class
from changeanywhere.legend import find_legend, load_legend
from changeanywhere.sample import ChangePlan, change_mask_of
from conftest import shared

Mask = npt.NDArray[np.uint8]
LEGEND = load_legend("mini")
SMALL = EventOptions(min_area=1, max_share=1.0, margin=1)
EIGHT = np.ones((3, 3), bool)


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Noise, 1-pixel-wide tiles, single class, all unknown, and rectangles upon a ground."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    if draw(st.booleans()):
        return draw(hnp.arrays(np.uint8, (height, width), elements=st.integers(0, 7)))
    mask = np.full((height, width), draw(st.integers(0, 7)), np.uint8)
    for _ in range(draw(st.integers(0, 5))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        mask[top : top + draw(st.integers(1, 9)), left : left + draw(st.integers(1, 9))] = draw(st.integers(0, 7))
    return mask


def check_plan(mask: Mask, plan: ChangePlan) -> None:
    """What holds for every kind."""
    (event,) = plan.events
    assert np.array_equal(plan.change_mask, change_mask_of(mask, plan.mask_t2))
    assert np.array_equal(plan.change_mask, mask != plan.mask_t2)
    assert not plan.change_mask[mask == 0].any()
    assert plan.mask_t2.dtype == np.uint8 and plan.mask_t2.shape == mask.shape
    assert event.area == plan.change_mask.sum() > 0
    assert set(mask[plan.change_mask]) == {event.from_class}
    assert set(plan.mask_t2[plan.change_mask]) == {event.to_class}
    rows, columns = np.nonzero(plan.change_mask)
    assert event.bbox == (rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1)


@settings(max_examples=150, deadline=None)
@given(masks(), st.integers(0, 2**63 - 1), st.sampled_from([4, 8]))
def test_appearance(mask: Mask, seed: int, connectivity: int) -> None:
    options = EventOptions(min_area=1, max_share=1.0, margin=1, connectivity=connectivity)
    plan = simulate(mask, LEGEND, seed, kind="appearance", options=options)
    if plan is None:
        return
    check_plan(mask, plan)
    (event,) = plan.events
    grown = ndimage.binary_dilation(np.pad(plan.change_mask, 1), EIGHT)
    assert (np.pad(mask, 1)[grown] == event.from_class).all(), "the margin stays inside the region and the tile"
    structure = EIGHT if connectivity == 8 else None
    labels, _ = ndimage.label(mask == event.from_class, structure)
    assert len(set(labels[plan.change_mask])) == 1, "inside one region"
    donor = np.roll(plan.change_mask, (-event.offset[0], -event.offset[1]), (0, 1))
    assert (mask[donor] == event.to_class).all() and (plan.mask_t2[donor] == event.to_class).all(), "the donor stays"


@settings(max_examples=150, deadline=None)
@given(masks(), st.integers(0, 2**63 - 1), st.sampled_from([4, 8]))
def test_disappearance(mask: Mask, seed: int, connectivity: int) -> None:
    options = EventOptions(min_area=1, max_share=1.0, connectivity=connectivity)
    plan = simulate(mask, LEGEND, seed, kind="disappearance", options=options)
    if plan is None:
        return
    check_plan(mask, plan)
    instances = find_instances(mask, connectivity)
    (whole,) = [i for i in instances if plan.change_mask[i.window][i.shape].any()]
    assert plan.change_mask.sum() == whole.area, "no pixel of the instance remains"


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.bool_, (14, 15)), hnp.arrays(np.bool_, (3, 2)), st.integers(0, 2))
def test_feasible_places_are_exactly_those_of_brute_force(
    region: npt.NDArray[np.bool_], shape: npt.NDArray[np.bool_], margin: int
) -> None:
    region = ndimage.binary_closing(region)
    grown = np.pad(shape, margin)
    grown = ndimage.binary_dilation(grown, EIGHT, iterations=margin) if margin else grown
    expected = [
        (r + margin, c + margin)
        for r in range(region.shape[0] - grown.shape[0] + 1)
        for c in range(region.shape[1] - grown.shape[1] + 1)
        if region[r : r + grown.shape[0], c : c + grown.shape[1]][grown].all()
    ]
    assert [tuple(place) for place in feasible_places(region, shape, margin)] == expected


def test_placing_by_fft_agrees_with_direct_correlation(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    region = ndimage.binary_opening(ndimage.gaussian_filter(rng.normal(size=(80, 90)), 8) > -0.02)
    shape = np.ones((5, 7), bool)
    direct = feasible_places(region, shape, 2)
    monkeypatch.setattr("changeanywhere.events.kinds.FFT_FROM", 0)
    assert len(direct) and np.array_equal(direct, feasible_places(region, shape, 2))


def test_placement_reaches_every_feasible_position() -> None:
    mask = np.full((12, 12), 1, np.uint8)
    mask[1:3, 1:3] = 4
    options = EventOptions(kinds=("appearance",), min_area=1, max_share=1.0, margin=0)
    places = set()
    for seed in range(600):
        plan = simulate(mask, LEGEND, seed, kind="appearance", options=options)
        assert plan is not None
        places.add(plan.events[0].bbox[:2])
    region = mask == 1
    assert places == {tuple(map(int, p)) for p in feasible_places(region, np.ones((2, 2), bool), 0)}


def test_surroundings_by_longest_contact_unknown_excluded() -> None:
    mask = np.full((9, 9), 2, np.uint8)
    mask[:, 5:] = 0
    mask[6:] = 3
    mask[3:6, 3:6] = 4
    (house,) = [i for i in find_instances(mask, 8) if i.class_index == 4]
    assert surrounding_class(mask, house) == 2
    mask[mask == 2] = 0
    mask[mask == 3] = 0
    assert surrounding_class(mask, house) is None


@pytest.mark.parametrize(
    "mask",
    [np.zeros((16, 16), np.uint8), np.full((16, 16), 3, np.uint8), np.ones((1, 1), np.uint8)],
    ids=["unknown", "single class", "one pixel"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_feasible_is_none(mask: Mask, kind: str) -> None:
    assert simulate(mask, LEGEND, 0, kind=kind, options=SMALL) is None


def test_same_seed_same_bytes_in_any_order() -> None:
    rng = np.random.default_rng(1)
    tiles = [ndimage.zoom(rng.integers(1, 8, (6, 6)).astype(np.uint8), 8, order=0) for _ in range(4)]

    def all_plans(order: list[int]) -> dict[int, bytes]:
        plans = {i: simulate(tiles[i], LEGEND, pair_seed(7, f"tile{i}", 0), options=SMALL) for i in order}
        return {i: plan.mask_t2.tobytes() for i, plan in plans.items() if plan is not None}

    forward = all_plans([0, 1, 2, 3])
    assert len(forward) == 4 and forward == all_plans([3, 1, 0, 2])


def test_pair_seed_is_stable() -> None:
    assert pair_seed(1, "dubai_t5p1", 0) == 6866903135350112627
    assert len({pair_seed(s, k, i) for s in (0, 1) for k in "ab" for i in (0, 1)}) == 8


def test_wrong_options_and_masks_are_named() -> None:
    with pytest.raises(ConfigError, match=r"connectivity is 6; allowed: 4, 8"):
        EventOptions(connectivity=6)
    with pytest.raises(ConfigError, match="kind is 'eruption'"):
        simulate(np.ones((4, 4), np.uint8), LEGEND, 0, kind="eruption")
    with pytest.raises(LegendError, match="mask value 8"):
        simulate(np.full((4, 4), 8, np.uint8), LEGEND, 0)


def test_real_masks() -> None:
    folder = shared("data", "landcover", "val", "masks")
    legend = find_legend(folder)
    assert legend is not None
    feasible = dict.fromkeys(KINDS, 0)
    files = sorted(folder.glob("*.png"))[::4]
    for file in files:
        mask = np.asarray(Image.open(file))
        for kind in KINDS:
            plan = simulate(mask, legend, pair_seed(0, file.stem, 0), kind=kind)
            if plan is not None:
                check_plan(mask, plan)
                feasible[kind] += 1
    assert feasible["appearance"] > 0.4 * len(files)
    assert feasible["disappearance"] > 0.7 * len(files)
