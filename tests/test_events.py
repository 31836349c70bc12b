"""Change events on the mask alone: what must hold for every mask there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage, signal

from changeanywhere.errors import ConfigError, LegendError
from changeanywhere.events import (
    KINDS,
    PAPER_KINDS,
    EventContext,
    EventOptions,
    EventRequest,
    pair_seed,
    simulate,
)
from changeanywhere.events.appearance import feasible_places
from changeanywhere.events.bank import ShapeBank, find_shapes, references_of
from changeanywhere.events.correlation import correlated
from changeanywhere.events.disappearance import surrounding_class
from changeanywhere.events.instances import find_instances
from changeanywhere.events.transitions import TransitionTable, learn_sizes, learn_table, load_table
from changeanywhere.generation.options import SimulateOptions
from changeanywhere.generation.targets import SetTargets
from changeanywhere.legend import find_legend, load_legend
from changeanywhere.pairs.annotations import coco_annotations, coco_categories, coco_counts, event_record
from changeanywhere.sample import ChangeEvent, ChangePlan, GeoReference, change_mask_of, runs_of, shape_of
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
    assert event.bbox == tuple(int(v) for v in (rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1))


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


@settings(max_examples=80, deadline=None)
@given(st.tuples(*[st.integers(1, 70)] * 4), st.integers(0, 2**32 - 1))
def test_correlation_is_the_one_of_the_library_bit_by_bit(sides: tuple[int, int, int, int], seed: int) -> None:
    rng, (height, width) = np.random.default_rng(seed), (max(sides[:2]), max(sides[2:]))
    image = (rng.random((height, width)) < 0.5).astype(np.float32)
    kernel = rng.random((min(sides[:2]), min(sides[2:]))).astype(np.float32)
    expected = signal.fftconvolve(image, kernel[::-1, ::-1], mode="valid")
    found = correlated(image, kernel)
    assert found.dtype == expected.dtype == np.float32 and found.tobytes() == expected.tobytes()


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
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "conversion"])
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
    feasible = dict.fromkeys(PAPER_KINDS, 0)
    files = sorted(folder.glob("*.png"))[::4]
    for file in files:
        mask = np.asarray(Image.open(file))
        for kind in PAPER_KINDS:
            plan = simulate(mask, legend, pair_seed(0, file.stem, 0), kind=kind)
            if plan is not None:
                check_plan(mask, plan)
                feasible[kind] += 1
    assert feasible["appearance"] > 0.4 * len(files)
    assert feasible["disappearance"] > 0.7 * len(files)


EVERYTHING = EventOptions(
    kinds=KINDS, events_per_pair=(1, 4), min_area=1, max_share=1.0, margin=0, rotate="any", flip=True,
    scale=(0.5, 1.5), group_size=3, fill="nearest", spread=(1, 3),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(masks(), st.integers(0, 2**63 - 1), st.sampled_from([*KINDS, None]), st.booleans())
def test_every_kind_and_any_number_of_events_tells_the_truth(
    mask: Mask, seed: int, kind: str | None, banked: bool
) -> None:
    donor = np.full((12, 12), 1, np.uint8)
    donor[1:3, 1:4] = 3
    donor[6:9, 6:9][np.eye(3, dtype=bool)] = 5
    bank = bank_of(donor, EventOptions(min_area=1)) if banked else None
    plan = simulate(mask, LEGEND, seed, kind=kind, options=EVERYTHING, context=EventContext(bank=bank))
    if plan is None:
        return
    assert np.array_equal(plan.change_mask, mask != plan.mask_t2)
    assert np.array_equal(plan.change_mask, change_mask_of(mask, plan.mask_t2))
    assert ((plan.mask_t2 == 0) == (mask == 0)).all(), "unknown ground is untouched"
    assert sum(event.area for event in plan.events) == plan.change_mask.sum() > 0, "events do not overlap"
    stated = {(event.from_class, event.to_class) for event in plan.events}
    shown = {(int(a), int(b)) for a, b in zip(mask[plan.change_mask], plan.mask_t2[plan.change_mask], strict=True)}
    assert stated == shown
    if kind is not None:
        assert {event.kind for event in plan.events} == {kind}


def scenery() -> Mask:
    """Grass with a road, a pond, two houses and a wood, 128 px."""
    mask = np.full((128, 128), 5, np.uint8)
    mask[:, 60:68] = 2
    mask[90:120, 10:50] = 3
    mask[20:30, 20:32] = 4
    mask[20:36, 40:48] = 4
    mask[10:60, 80:120] = 1
    return mask


def test_conversion_changes_a_whole_region() -> None:
    mask = scenery()
    plan = simulate(mask, LEGEND, 3, kind="conversion", options=EventOptions(kinds=("conversion",), max_share=0.3))
    assert plan is not None
    (whole,) = [i for i in find_instances(mask, 8) if plan.change_mask[i.window][i.shape].any()]
    assert whole.area == plan.change_mask.sum()


@pytest.mark.parametrize(("kind", "grows"), [("growth", True), ("shrinkage", False)])
def test_growth_and_shrinkage_move_one_edge(kind: str, grows: bool) -> None:
    mask = scenery()
    options = EventOptions(kinds=(kind,), spread=(3, 3), max_share=0.5)
    for seed in range(12):
        plan = simulate(mask, LEGEND, seed, kind=kind, options=options)
        assert plan is not None
        (event,) = plan.events
        mover = event.to_class if grows else event.from_class
        before, after = mask == mover, plan.mask_t2 == mover
        assert (after >= before).all() if grows else (after <= before).all()
        reach = ndimage.distance_transform_cdt(~before if grows else before, "chessboard")
        assert reach[plan.change_mask].max() <= 3


def test_rebuild_keeps_the_place() -> None:
    mask = scenery()
    for seed in range(8):
        plan = simulate(mask, LEGEND, seed, kind="rebuild", options=EventOptions(kinds=("rebuild",)))
        assert plan is not None
        houses = plan.mask_t2 == 4
        assert ndimage.label(houses, EIGHT)[1] == 2 and {e.kind for e in plan.events} == {"rebuild"}


def test_nearest_fill_continues_both_sides() -> None:
    mask = np.full((40, 40), 5, np.uint8)
    mask[:, 20:] = 2
    mask[10:30, 10:30] = 4
    options = EventOptions(kinds=("disappearance",), fill="nearest", max_share=0.5)
    plan = next(
        p for s in range(30)
        if (p := simulate(mask, LEGEND, s, kind="disappearance", options=options)) and p.events[0].from_class == 4
    )  # fmt: skip
    expected = np.full((40, 40), 5, np.uint8)
    expected[:, 20:] = 2
    assert np.array_equal(plan.mask_t2, expected)
    assert {(e.from_class, e.to_class) for e in plan.events} == {(4, 2), (4, 5)}


def test_a_group_keeps_its_layout() -> None:
    mask = np.full((64, 64), 1, np.uint8)
    for column in (4, 12, 20):
        mask[4:8, column : column + 4] = 4
    options = EventOptions(kinds=("appearance",), min_area=1, group_size=3, margin=1)
    counts = set()
    for seed in range(30):
        plan = simulate(mask, LEGEND, seed, kind="appearance", options=options)
        assert plan is not None
        labels, count = ndimage.label(plan.change_mask)
        counts.add(count)
        if count > 1:
            starts = sorted(window[1].start for window in ndimage.find_objects(labels))
            assert set(np.diff(starts)) <= {8, 16}
    assert counts == {1, 2, 3}


@given(hnp.arrays(np.uint8, (14, 14), elements=st.integers(0, 3)), st.sampled_from([4, 8]))
def test_a_reference_gives_back_the_very_shape(mask: Mask, connectivity: int) -> None:
    """Even where shapes of one class share a box, and after a job was written and read."""
    options = EventOptions(min_area=1, max_share=1.0, connectivity=connectivity)
    bank = bank_of(mask, options)
    again = ShapeBank(references_of(json.loads(json.dumps(bank.to_dict()))), lambda tile: mask, connectivity)
    whole = [i for i in find_instances(mask, connectivity) if not i.cut]
    for class_index in (1, 2, 3):
        shapes = [i.shape for i in whole if i.class_index == class_index]
        assert again.count_of(class_index) == len(shapes)
        for number, shape in enumerate(shapes):
            assert np.array_equal(again.shape(class_index, number), shape)
            assert again.areas[class_index][number] == shape.sum()


def bank_of(mask: Mask, options: EventOptions) -> ShapeBank:
    return ShapeBank(find_shapes([mask], options, 0), lambda tile: mask, options.connectivity)


def test_shape_bank_brings_a_building_to_bare_ground() -> None:
    bank = bank_of(scenery(), EventOptions())
    bare = np.full((64, 64), 1, np.uint8)
    plans = [simulate(bare, LEGEND, s, kind="appearance", context=EventContext(bank=bank)) for s in range(20)]
    appeared = {p.events[0].to_class for p in plans if p is not None}
    assert 4 in appeared and simulate(bare, LEGEND, 0, kind="appearance") is None


def test_square_metres_take_the_place_of_pixels() -> None:
    options = EventOptions(kinds=("disappearance",), min_area_m2=30.0, max_area_m2=35.0, max_share=1.0)
    plans = [simulate(scenery(), LEGEND, s, options=options, context=EventContext(gsd_m=0.5)) for s in range(10)]
    assert {p.events[0].area for p in plans if p is not None} <= {120, 128}
    assert any(p is not None for p in plans)


def test_transition_table_forbids_and_weighs(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("default: 0\nweights:\n  vegetation_mixed: {building: 2}\nforbid:\n  - [road, '*']\n")
    table = load_table(str(file), LEGEND)
    for seed in range(10):
        plan = simulate(scenery(), LEGEND, seed, kind="appearance", context=EventContext(transitions=table))
        assert plan is not None and (plan.events[0].from_class, plan.events[0].to_class) == (5, 4)
        assert simulate(scenery(), LEGEND, seed, kind="disappearance", context=EventContext(transitions=table)) is None
    assert load_table("default", LEGEND).weight(2, 3) == 0 < load_table("default", LEGEND).weight(1, 4)
    for text, error in [("weights: {bog: {road: 1}}", "'bog' is not a class"), ("[]", "not a transition table"),
                        ("default: -1", "weight -1"), ("forbid: [[road]]", "must be")]:  # fmt: skip
        file.write_text(text)
        with pytest.raises(LegendError, match=error):
            load_table(str(file), LEGEND)


def test_learned_transitions_are_those_of_neighbours() -> None:
    table = learn_table([scenery()], LEGEND)
    assert table.weight(5, 4) > 0 and table.weight(3, 4) == 0


@pytest.mark.parametrize("ratio", [(0.005, 0.02), (0.02, 0.05), (0.05, 0.1), (0.1, 0.25)])
def test_requested_ratio_and_transition_are_kept(ratio: tuple[float, float]) -> None:
    options = EventOptions(kinds=KINDS, max_share=0.25)
    plans = [simulate(scenery(), LEGEND, s, options=options, request=EventRequest(ratio=ratio)) for s in range(10)]
    assert sum(p is not None for p in plans) >= 5
    for plan in plans:
        if plan is not None:
            assert ratio[0] <= plan.change_mask.mean() < ratio[1]
    plan = simulate(scenery(), LEGEND, 0, options=options, request=EventRequest(transition=(1, 4)))
    assert plan is not None and {(e.from_class, e.to_class) for e in plan.events} == {(1, 4)}
    quiet = simulate(scenery(), LEGEND, 0, request=EventRequest(no_change=True))
    assert quiet is not None and not quiet.change_mask.any() and not quiet.events


def test_coco_run_lengths_and_event_geometry() -> None:
    rng = np.random.default_rng(0)
    for shape in [rng.random((5, 4)) > 0.5, np.ones((2, 2), bool), np.zeros((2, 2), bool)]:
        decoded: list[int] = []
        for i, length in enumerate(coco_counts(shape)):
            decoded += [i % 2] * length
        assert np.array_equal(np.array(decoded, bool).reshape(shape.shape, order="F"), shape)
    mask_t1 = np.full((8, 8), 1, np.uint8)
    mask_t2 = mask_t1.copy()
    mask_t2[2:4, 4:8] = 4
    event = ChangeEvent("appearance", 1, 4, (2, 4, 2, 4), (0, 0), 8)
    place = GeoReference("EPSG:32633", (0.5, 0, 1000, 0, -0.5, 2000))
    record = event_record(event, mask_t1, mask_t2, LEGEND, place, 0.5)
    assert (
        record["area_m2"] == 2.0 and record["centroid_px"] == [3.0, 6.0] and record["centroid_crs"] == [1003.0, 1998.5]
    )
    (annotation,) = coco_annotations(1, 7, mask_t1 != mask_t2, mask_t1, mask_t2, coco_categories(LEGEND), LEGEND)
    assert annotation["bbox"] == [4, 2, 4, 2] and annotation["area"] == 8 and annotation["id"] == 7
    label, masks = np.zeros((8, 8), bool), (mask_t1, mask_t2)
    assert coco_annotations(1, 7, label, *masks, coco_categories(LEGEND), LEGEND) == [], "the label says what changed"
    label[3:, 3:] = True
    mask_t2[3, 4] = 0
    (annotation,) = coco_annotations(1, 7, label, *masks, coco_categories(LEGEND), LEGEND)
    assert annotation["bbox"] == [5, 3, 3, 1] and annotation["area"] == 3, "nor is unknown ground in a transition"


def test_every_changed_px_is_of_one_event_where_boxes_overlap() -> None:
    """Rings of growth: each has others in its box, of the same transition as a rule."""
    options = EventOptions(kinds=("growth", "shrinkage"), events_per_pair=(4, 8), min_area=8, max_share=0.05)
    overlapping = 0
    for seed in range(12):
        mask = scenery()
        plan = simulate(mask, LEGEND, seed, options=options)
        assert plan is not None
        owners, loose = np.zeros(mask.shape, int), 0
        for event in plan.events:
            own = event.changed(mask[event.box], plan.mask_t2[event.box])
            assert own.sum() == event.area
            owners[event.box] += own
            loose += int(replace(event, runs="").changed(mask[event.box], plan.mask_t2[event.box]).sum() > event.area)
            row, column, height, width = event.bbox
            left = event.within((row, column, height, max(width // 2, 1)))
            assert np.array_equal(left.changed(mask[left.box], plan.mask_t2[left.box]), own[:, : max(width // 2, 1)])
        overlapping += loose
        assert np.array_equal(owners, plan.change_mask.astype(int))
    assert overlapping, "no two events of a transition share ground of their boxes: nothing was tested"


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_shapes_as_runs_come_back(seed: int, height: int, width: int, share: float) -> None:
    shape = np.random.default_rng(seed).random((height, width)) < share
    assert np.array_equal(shape_of(runs_of(shape), shape.shape), shape)


def test_an_appearance_like_its_donor_seeks_the_same_surroundings() -> None:
    """Houses beside a road: copies come to lie beside roads, not anywhere in the desert."""
    mask = np.full((128, 128), LEGEND.index_of("bareland"), np.uint8)
    mask[20:26] = mask[90:96] = LEGEND.index_of("road")
    for column in (20, 60, 100):
        mask[28:36, column : column + 8] = LEGEND.index_of("building")
    options = EventOptions(kinds=("appearance",), min_area=32, max_share=0.01)

    def roads_around(placement: str) -> list[float]:
        """Px of road within 24 px of each copy."""
        found: list[float] = []
        for seed in range(30):
            plan = simulate(mask, LEGEND, seed, options=replace(options, placement=placement))
            assert plan is not None and plan.events[0].to_class == LEGEND.index_of("building")
            row, column, height, width = plan.events[0].bbox
            around = mask[max(row - 24, 0) : row + height + 24, max(column - 24, 0) : column + width + 24]
            found.append(np.count_nonzero(around == LEGEND.index_of("road")) / around.size)
        return found

    here = mask[4:60, :52]  # around the first house
    asked = np.count_nonzero(here == LEGEND.index_of("road")) / here.size
    anywhere, alike = ([abs(share - asked) for share in roads_around(p)] for p in ("anywhere", "like_donor"))
    assert max(alike) <= 0.04 and np.mean(alike) < np.mean(anywhere) / 1.5
    with pytest.raises(ConfigError, match=r"events\.placement is 'town'; allowed: anywhere, like_donor"):
        EventOptions(placement="town")


def test_a_bank_of_some_tiles_has_their_shapes_alone() -> None:
    masks = [scenery(), np.rot90(scenery()).copy(), scenery().T.copy()]
    options = EventOptions(min_area=16)
    bank = ShapeBank(find_shapes(masks, options, 0), lambda tile: masks[tile], options.connectivity)
    part = bank.of_tiles([0, 2])
    for class_index, references in part.references.items():
        assert references and {one.tile for one in references} <= {0, 2}
        assert references == tuple(one for one in bank.references[class_index] if one.tile != 1)


def test_limits_in_square_metres_hold_for_banks_and_usual_sizes() -> None:
    """They take the place of those in px where the ground sampling is known: smaller objects, or larger ones alone."""
    mask = np.ones((64, 64), np.uint8)
    mask[4:10, 4:9] = 4  # 30 px
    mask[30:50, 30:50] = 4  # 400 px

    def areas(options: EventOptions, gsd_m: float | None) -> tuple[list[int], tuple[int, int]]:
        found = find_shapes([mask], options, 0, [gsd_m])
        return sorted(one.area for one in found[4]), learn_sizes([mask], options, [gsd_m])[4]

    assert areas(EventOptions(), 0.5) == ([400], (400, 400))
    small = EventOptions(min_area_m2=5.0)
    assert areas(small, 0.5) == ([30, 400], (48, 382)) and areas(small, None) == ([400], (400, 400))
    assert areas(EventOptions(min_area_m2=5.0, max_area_m2=20.0), 0.5)[0] == [30]
    assert areas(EventOptions(min_area=16, min_area_m2=60.0), 0.5)[0] == [400]


def test_objects_and_sizes_of_events_can_be_named() -> None:
    """Buildings alone come and go, and their sizes lie where they were asked for, in every band alike."""
    legend = load_legend("openearthmap")
    building, bare = legend.index_of("building"), legend.index_of("bareland")
    mask = np.full((256, 256), bare, np.uint8)
    for row in range(4):
        for column in range(5):
            side = 8 + 4 * column  # 64 to 576 px
            mask[20 + 60 * row : 20 + 60 * row + side, 10 + 48 * column : 10 + 48 * column + side] = building
    mask[:6, 200:] = legend.index_of("road")
    options = EventOptions(objects=("building",), areas=(60, 150, 600), events_per_pair=(3, 3))
    sizes = []
    for seed in range(30):
        plan = simulate(mask, legend, seed, options=options)
        assert plan is not None
        for event in plan.events:
            assert building in (event.from_class, event.to_class) and event.kind in ("appearance", "disappearance")
            assert (event.to_class == building) == (event.kind == "appearance")
            sizes.append(event.area)
    assert all(60 <= size <= 600 for size in sizes)
    assert 0.35 < np.mean(np.array(sizes) <= 150) < 0.65, "two of five objects are small, half of the events"
    asked = EventOptions(areas=(20, 40, 80, 200))
    assert asked.beyond_limits(64 * 64, None) == pytest.approx({"min_area": (1 + 24 / 40) / 3})
    assert asked.beyond_limits(40 * 40, None) == pytest.approx({"min_area": (1 + 24 / 40) / 3})
    assert replace(asked, max_share=0.1).beyond_limits(40 * 40, None)["max_share"] == pytest.approx(40 / 120 / 3)
    metres = replace(asked, min_area_m2=10.0, max_area_m2=25.0)
    assert metres.beyond_limits(64 * 64, 0.5) == pytest.approx({"min_area_m2": 1 / 3, "max_area_m2": 100 / 120 / 3})
    assert metres.beyond_limits(64 * 64, None) == asked.beyond_limits(64 * 64, None)
    assert not EventOptions(areas=(64, 80)).beyond_limits(64 * 64, None) and not EventOptions().beyond_limits(9, None)
    for wrong in ({"areas": (5,)}, {"areas": (9, 9)}, {"areas": (0, 4)}):
        with pytest.raises(ConfigError, match=r"events\.areas"):
            EventOptions(**wrong)


def test_the_paper_may_be_read_otherwise() -> None:
    """An appearance that leaves its place, and a disappearance into any class of the surroundings."""
    legend = load_legend("openearthmap")
    house, tree, bare = (legend.index_of(name) for name in ("building", "tree", "bareland"))
    mask = np.full((96, 96), bare, np.uint8)
    mask[:, 60:] = tree
    mask[40:52, 54:64] = house  # on the edge of both
    only = EventOptions(kinds=("appearance",), objects=("building",), move=True)
    plan = simulate(mask, legend, 0, options=only)
    assert plan is not None and not (plan.mask_t2[40:52, 54:64] == house).all()
    assert np.count_nonzero(plan.mask_t2 == house) == np.count_nonzero(mask == house), "moved, not copied"
    came, *left = plan.events
    assert (came.kind, came.to_class) == ("appearance", house) and came.donor is not None
    assert all((each.kind, each.from_class, each.donor) == ("disappearance", house, None) for each in left) and left
    to_tree = np.zeros((legend.num_classes + 1,) * 2)
    to_tree[bare, house] = to_tree[tree, house] = to_tree[house, tree] = 1
    table = EventContext(transitions=TransitionTable(legend, to_tree))
    for fill, feasible in (("majority", False), ("random", True)):  # there is more bare ground around it
        plans = [simulate(mask, legend, s, options=replace(only, fill=fill), context=table) for s in range(20)]
        assert any(plans) == feasible
        assert {int(each.mask_t2[45, 58]) for each in plans if each is not None} <= {tree}
    vanish = EventOptions(kinds=("disappearance",), objects=("building",), fill="random")
    became = set()
    for seed in range(20):
        plan = simulate(mask, legend, seed, options=vanish)
        assert plan is not None and not (plan.mask_t2 == house).any()
        became.add(int(plan.mask_t2[45, 58]))
    assert became == {bare, tree}
    with pytest.raises(ConfigError, match=r"events\.move"):
        EventOptions(move=True, shape_bank=True)
    moving = SimulateOptions(source=Path("tiles"), out=Path("out"), events=replace(only, fill="random"))
    moving.check()
    pairs = SetTargets(no_change=0.0, ratios={}, class_pairs={"tree->building": 0.5})
    with pytest.raises(ConfigError, match=r"events\.move is True; allowed: false beside targets\.class_pairs"):
        replace(moving, targets=pairs).check()
    grouped = replace(moving, events=EventOptions(shape_bank=True, group_size=3))
    with pytest.raises(ConfigError, match=r"events\.group_size is 3; allowed: 1 with events\.shape_bank, which"):
        grouped.check()
    with pytest.raises(ConfigError, match=r"events\.fill is 'random'; allowed: with one of the kinds"):
        replace(moving, events=replace(only, move=False, fill="random")).check()
