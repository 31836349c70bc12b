"""Legends and the mappings between them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from changeanywhere.errors import LegendError
from changeanywhere.legend import Legend, builtin_legends, find_legend, load_legend, load_legend_map, parse_legend
from changeanywhere.rasters.values import to_classes, to_stored
from changeanywhere.sample import Normalisation, change_mask_of, change_transitions
from conftest import shared


def test_builtin_legends_have_the_official_classes() -> None:
    names = {"openearthmap", "loveda", "mini", "flair", "landcoverai", "geonrw", "dfc2022", "second"}
    assert set(builtin_legends()) == names
    oem = load_legend("openearthmap")
    assert oem.names[0] == "bareland" and oem.names[7] == "building" and oem.num_classes == 8
    assert oem.classes[5].color == (0, 69, 255)
    assert load_legend("loveda").names[0] == "background"
    assert load_legend("mini").names == (
        "bareland", "road", "water", "building", "vegetation_mixed", "impervious_mixed", "informal_settlement",
    )  # fmt: skip


def test_openearthmap_colours_are_those_of_the_real_files() -> None:
    real = find_legend(shared("data", "landcover", "val"))
    assert real is not None and real.num_classes == 11
    assert real.classes[:8] == load_legend("openearthmap").classes


def test_round_trip(tmp_path: Path) -> None:
    legend = load_legend("mini")
    legend.save(tmp_path / "legend.json")
    assert Legend.load(tmp_path / "legend.json") == legend
    assert find_legend(tmp_path / "deep" / "deeper") == legend


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "not JSON"),
        ("[]", "not a legend"),
        ({"classes": [{"index": 1, "name": "a", "color": [1, 2]}]}, r"color \[r, g, b\]"),
        ({"classes": [{"index": 2, "name": "a", "color": [1, 2, 3]}]}, "without gaps"),
        ({"classes": [{"index": 1, "name": "unknown", "color": [1, 2, 3]}]}, "named 'unknown'"),
        ({"classes": [{"index": i, "name": "a", "color": [i, 2, 3]} for i in (1, 2)]}, "more than once"),
        ({"classes": []}, "0 classes"),
        ({"classes": [{"index": i, "name": f"c{i}", "value": 5} for i in (1, 2)]}, "the value 5; allowed: 0 to 65535"),
        ({"classes": [{"index": 1, "name": "a", "value": -3}]}, "the value -3"),
    ],
)
def test_bad_legend_files(tmp_path: Path, content: object, text: str) -> None:
    file = tmp_path / "legend.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(LegendError, match=text):
        Legend.load(file)


@pytest.mark.parametrize("nobody", [-100, -1, [-1, 255]])
def test_a_number_that_no_mask_holds_is_ignored_by_none(tmp_path: Path, nobody: object) -> None:
    """-100 is what PyTorch ignores by default."""
    content = {"classes": [{"index": 1, "name": "a", "value": 5}, {"index": 2, "name": "b", "value": 9}]}
    legend, values = parse_legend(content | {"ignore_index": nobody}, "legend.json")
    assert values.ignored == ((255,) if isinstance(nobody, list) else ())
    found = to_classes(np.array([[5, 9, 0]], np.uint8), legend, values, tmp_path / "m.png")
    assert found.tolist() == [[1, 2, 0]]
    with pytest.raises(LegendError, match="7"):
        to_classes(np.array([[5, 7, 0]], np.uint8), legend, values, tmp_path / "m.png")


def test_check_names_file_and_value() -> None:
    with pytest.raises(LegendError, match=r"a\.png: mask value 9 is outside the legend 'mini'"):
        load_legend("mini").check(np.array([[0, 9]], np.uint8), "a.png")


def test_packaged_map_is_picked_up_by_names() -> None:
    mapping = load_legend_map(load_legend("openearthmap"), load_legend("mini"), None)
    assert mapping.to_dict()["tree"] == "vegetation_mixed"
    assert mapping.apply(np.array([[0, 1, 4, 6, 8, 7]], np.uint8)).tolist() == [[0, 1, 2, 3, 4, 5]]
    loveda = load_legend_map(load_legend("loveda"), load_legend("openearthmap"), None).to_dict()
    assert loveda["background"] == "unknown" and loveda["forest"] == "tree"


def test_every_class_without_counterpart_is_named(tmp_path: Path) -> None:
    source, target = load_legend("mini"), load_legend("openearthmap")
    with pytest.raises(LegendError, match="vegetation_mixed, impervious_mixed, informal_settlement"):
        load_legend_map(source, target, None)
    file = tmp_path / "map.yaml"
    file.write_text("bareland: bareland\nroad: street\n")
    with pytest.raises(LegendError, match=r"map.yaml: no counterpart for water, building"):
        load_legend_map(source, target, file)
    names = dict.fromkeys(source.names, "unknown") | {"road": "street"}
    file.write_text(json.dumps(names))
    with pytest.raises(LegendError, match="road → 'street' is not a class"):
        load_legend_map(source, target, file)
    file.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(LegendError, match="not YAML"):
        load_legend_map(source, target, file)


def test_classes_go_back_to_the_numbers_of_files(tmp_path: Path) -> None:
    mask = np.array([[0, 1], [2, 1]], np.uint8)
    for content, expected in (
        (["a", "b"], [[0, 1], [2, 1]]),
        ({"classes": ["a", "b"], "first_class": 0, "ignore_index": 255}, [[255, 0], [1, 0]]),
        ({"classes": [{"index": i, "name": f"c{i}", "value": 7 * i} for i in (1, 2)]}, [[0, 7], [14, 7]]),
    ):
        legend, values = parse_legend(content, "legend.json")
        stored = to_stored(mask, legend, values)
        assert stored.tolist() == expected and stored.dtype == np.uint8
        assert np.array_equal(to_classes(stored, legend, values, tmp_path / "m.png"), mask)
    legend, values = parse_legend({"classes": ["a", "b"], "first_class": 0}, "legend.json")
    with pytest.raises(LegendError, match="no number of 8 bits for unknown"):
        to_stored(mask, legend, values)
    assert to_stored(mask[1:], legend, values).tolist() == [[1, 0]]


def test_normalisation_is_invertible() -> None:
    stretch = Normalisation((100.0, 50.0), (4000.0, 60.0))
    image = np.random.default_rng(0).integers(0, 5000, (8, 9, 2)).astype(np.uint16)
    assert np.array_equal(stretch.invert(stretch.apply(image), np.uint16), image)
    eight = Normalisation.eight_bit()
    assert eight.apply(np.array([[[0, 127.5, 255]]], np.float32)).tolist() == [[[-1, 0, 1]]]


def test_change_mask_ignores_unknown_ground_of_either_date() -> None:
    first, second = np.array([[1, 0, 1, 2]], np.uint8), np.array([[2, 1, 0, 2]], np.uint8)
    assert change_mask_of(first, second).tolist() == [[True, False, False, False]]
    assert change_transitions(first, second, load_legend("mini")) == {"bareland->road": 1}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_what_shows_nothing_is_the_dark_end(dtype: str) -> None:
    """Also of a stretch that begins below what the dtype holds."""
    image = np.full((2, 2, 1), 100, dtype)
    valid = np.array([[True, False], [True, True]])
    stretch = Normalisation((-50.0,), (200.0,))
    shown = stretch.apply(stretch.filled(image, valid))[..., 0]
    assert shown[0, 1] == shown.min() and shown[0, 1] < shown[0, 0] == stretch.apply(image)[0, 0, 0]
    assert stretch.filled(image, None) is image
