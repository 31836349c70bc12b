"""Bi-temporal datasets on disk: writer, reader, splits, card, report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from changeanywhere.check import check_path
from changeanywhere.cli import run as command
from changeanywhere.errors import InputError, LegendError, OutputError, PairsError
from changeanywhere.legend import load_legend
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.names import FileKinds
from changeanywhere.pairs.pictures import outline
from changeanywhere.pairs.record import Finish, Origin, PairRecord, Provenance, record_of
from changeanywhere.pairs.sheet import BORDER, contact_sheet
from changeanywhere.pairs.split import assign_splits
from changeanywhere.pairs.writer import finalise, write_pair
from changeanywhere.preview import draw_pairs
from changeanywhere.sample import ChangeEvent, ChangePair, ChangePlan, Normalisation, SourceItem, change_mask_of
from changeanywhere.storage import LocalStore, atomic_write
from conftest import shared

LEGEND = load_legend("mini")


def make_pair(key: str, seed: int = 0) -> ChangePair:
    rng = np.random.default_rng(seed)
    mask_t1 = np.full((32, 32), 1, np.uint8)
    mask_t1[:2] = 0
    mask_t2 = mask_t1.copy()
    mask_t2[10:20, 8 : 9 + seed] = 4
    images = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    return ChangePair(key, images[0], images[1], change_mask_of(mask_t1, mask_t2), mask_t1, mask_t2)


def make_record(pair: ChangePair, scene: str, split: str) -> PairRecord:
    event = ChangeEvent("appearance", 1, 4, (10, 8, 10, 1), (0, 0), int(pair.change_mask.sum()))
    assert pair.mask_t2 is not None
    plan = ChangePlan(pair.mask_t2, pair.change_mask, (event,), 5)
    item = SourceItem(pair.key, scene, None, "CC0-1.0", 0.5)
    origin = Origin(item, "unit/test", split, ["1", "2", "3"], Normalisation.eight_bit())
    made = Provenance("mini", "abc", {"sampling": {"num_steps": 2}}, {"changeanywhere": "0"})
    return record_of(pair, plan, LEGEND, origin, Finish(), "png", made)


def write_dataset(root: Path, keys: list[str]) -> None:
    records, store = [], LocalStore(root)
    for number, key in enumerate(keys):
        pair = make_pair(key, number % 8)
        write_pair(store, pair, LEGEND)
        records.append(make_record(pair, f"scene{number}", ("train", "val", "test")[number % 3]))
    finalise(store, LEGEND, sorted(records, key=lambda record: record.key))


def test_round_trip(tmp_path: Path) -> None:
    keys = [f"k{i}" for i in range(7)]
    write_dataset(tmp_path, keys)
    pairs = load_pairs(tmp_path)
    for number, key in enumerate(keys):
        pair, original = pairs[number], make_pair(key, number)
        for name in ("image_t1", "image_t2", "change_mask", "mask_t1", "mask_t2"):
            assert np.array_equal(getattr(pair, name), getattr(original, name)), name
        assert pair.metadata["key"] == key
    assert [load_pairs(tmp_path, s).names for s in ("train", "val", "test")] == [
        ("k0.png", "k3.png", "k6.png"), ("k1.png", "k4.png"), ("k2.png", "k5.png"),
    ]  # fmt: skip
    label = Image.open(tmp_path / "label" / "k3.png")
    assert label.mode == "L" and set(np.unique(np.asarray(label))) == {0, 255}
    mask = Image.open(tmp_path / "label2" / "k3.png")
    assert mask.mode == "L" and set(np.unique(np.asarray(mask))) == {0, 1, 4}, "grey, and the numbers are the classes"


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("images", ["png", "geotiff"])
def test_masks_have_a_palette_where_it_is_asked_for_and_are_read_alike(images: Any, tmp_path: Path) -> None:
    pair, read = make_pair("k", 3), []
    for palette in (False, True):
        out = tmp_path / str(palette)
        write_pair(LocalStore(out), pair, LEGEND, FileKinds(images, palette))
        LEGEND.save(out / "legend.json")
        with rasterio.open(next((out / "label2").iterdir())) as file:
            assert [file.colorinterp[0].name] == ["palette" if palette else "gray"]
            if palette:
                assert file.colormap(1)[4][:3] == LEGEND.classes[3].color
        read.append(load_pairs(out)[0])
    assert pair.mask_t2 is not None
    for mask in (read[0].mask_t2, read[1].mask_t2):
        assert mask is not None and np.array_equal(mask, pair.mask_t2)


def test_changes_of_some_classes_alone_count(tmp_path: Path) -> None:
    write_dataset(tmp_path, ["k0", "k1", "k2"])  # bareland becomes building in k1 and k2
    pair, every = load_pairs(tmp_path).counting(["building"])[2], load_pairs(tmp_path)[2]
    assert pair.change_mask.any() and np.array_equal(pair.change_mask, every.change_mask)
    assert not load_pairs(tmp_path).counting(["water", "road"]).subset(["k2.png"])[0].change_mask.any()
    both = load_pairs(tmp_path).counting(["building", "bareland"])[2]
    assert not both.change_mask.any(), "within what counts nothing has changed"
    with pytest.raises(LegendError, match="no class 'hut'; allowed: bareland"):
        load_pairs(tmp_path).counting(["hut"])
    (tmp_path / "label2" / "k1.png").unlink()
    with pytest.raises(PairsError, match=r"k1\.png has no semantic masks"):
        load_pairs(tmp_path).counting(["building"])[1]
    (tmp_path / "legend.json").unlink()
    with pytest.raises(PairsError, match=r"legend\.json: missing"):
        load_pairs(tmp_path).counting(["building"])


def counted_from_zero(root: Path) -> dict[str, np.ndarray]:
    """Field and house as 0 and 1, 255 where nobody knows; what the masks of both dates are in the legend."""
    first = np.full((32, 32), 0, np.uint8)
    first[:4] = 255
    second = first.copy()
    second[8:16, 8:20] = 1
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    label = (first != second).astype(np.uint8) * 255
    for name, array in {"A": images[0], "B": images[1], "label": label, "label1": first, "label2": second}.items():
        (root / name).mkdir(parents=True)
        Image.fromarray(array).save(root / name / "k0.png")
    content = {"name": "two", "first_class": 0, "ignore_index": 255, "classes": ["field", "house"]}
    (root / "legend.json").write_text(json.dumps(content))
    return {name: np.where(mask == 255, 0, mask + 1) for name, mask in (("mask_t1", first), ("mask_t2", second))}


def test_masks_are_read_by_the_numbers_of_their_legend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = counted_from_zero(tmp_path / "set")
    pairs = load_pairs(tmp_path / "set")
    for name, mask in masks.items():
        np.testing.assert_array_equal(getattr(pairs[0], name), mask)
        np.testing.assert_array_equal(load_pairs(tmp_path / "set", as_dict=True)[0][name], mask)
    assert pairs.legend is not None and pairs.legend.names == ("field", "house")
    assert pairs.counting(["house"])[0].change_mask.sum() == 8 * 12
    assert command(["check", str(tmp_path / "set")]) == 0, capsys.readouterr().err
    assert "change masks agree" in capsys.readouterr().out
    mask = np.asarray(Image.open(tmp_path / "set" / "label1" / "k0.png")).copy()
    mask[20, 20] = 2
    Image.fromarray(mask).save(tmp_path / "set" / "label1" / "k0.png")
    with pytest.raises(LegendError, match=r"label1/k0\.png: mask value 2 is outside the legend 'two'; allowed: 0 to 1"):
        load_pairs(tmp_path / "set")[0]


def test_other_numbers_in_the_legend_are_other_content(tmp_path: Path) -> None:
    counted_from_zero(tmp_path)
    before = load_pairs(tmp_path).content_hash()
    legend = json.loads((tmp_path / "legend.json").read_text())
    (tmp_path / "legend.json").write_text(json.dumps(legend | {"ignore_index": [7, 255]}))
    assert load_pairs(tmp_path).content_hash() != before


def test_labels_that_disagree_are_never_written(tmp_path: Path) -> None:
    pair = make_pair("k", 3)
    wrong = pair.change_mask.copy()
    wrong[0, 0] = True
    with pytest.raises(PairsError, match="disagrees with the semantic masks in 1 px"):
        write_pair(
            LocalStore(tmp_path),
            ChangePair("k", pair.image_t1, pair.image_t2, wrong, pair.mask_t1, pair.mask_t2),
            LEGEND,
        )
    assert not list(tmp_path.iterdir())


def test_metadata_opens_as_an_imagefolder(tmp_path: Path) -> None:
    write_dataset(tmp_path, ["b", "a"])
    records = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [r["key"] for r in records] == ["a", "b"]
    for record in records:
        columns = [name for name in record if name.endswith("_file_name")]
        assert columns == ["A_file_name", "B_file_name", "label_file_name", "label1_file_name", "label2_file_name"]
        assert all((tmp_path / record[name]).is_file() for name in columns)
        assert not re.search(r"\d{4}-\d\d-\d\d", json.dumps(record)), "no timestamps"


def test_the_set_opens_by_load_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the library itself; every split under one schema, the one without a change included."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "set"
    records, store = [], LocalStore(out)
    for number, split in enumerate(("train", "val", "test")):
        pair = make_pair(f"k{number}", number)
        record = make_record(pair, f"scene{number}", split)
        if split == "val":
            pair = replace(pair, mask_t2=pair.mask_t1, change_mask=np.zeros_like(pair.change_mask))
            record = replace(record, transitions={}, events=[], change_ratio=0.0)
        write_pair(store, pair, LEGEND)
        records.append(record)
    finalise(store, LEGEND, records)
    opened = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "hf"))
    assert {name: len(rows) for name, rows in opened.items()} == {"train": 1, "validation": 1, "test": 1}
    for name, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        row, pair = opened[name][0], load_pairs(out, split)[0]
        assert pair.mask_t1 is not None and pair.mask_t2 is not None
        assert row["key"] == pair.key and row["licence"] == pair.metadata["licence"]
        assert np.array_equal(np.asarray(row["A"]), pair.image_t1)
        assert np.array_equal(np.asarray(row["B"]), pair.image_t2)
        assert np.array_equal(np.asarray(row["label"]) > 0, pair.change_mask)
        assert np.array_equal(np.asarray(row["label1"]), pair.mask_t1)
        assert np.array_equal(np.asarray(row["label2"]), pair.mask_t2)
        assert json.loads(row["transitions"]) == pair.metadata["transitions"]


def test_rows_of_tables_have_the_same_keys_and_types(tmp_path: Path) -> None:
    write_dataset(tmp_path, ["a", "b", "c"])
    shapes = set()
    for split in ("train", "val", "test"):
        for line in (tmp_path / f"{split}.jsonl").read_text().splitlines():
            shapes.add(tuple((name, type(value)) for name, value in json.loads(line).items()))
    assert len(shapes) == 1 and all(kind in (str, int, float) for _, kind in shapes.pop())


def test_lines_of_the_metadata_become_a_table(tmp_path: Path) -> None:
    """With a pair that has no change, one with nuisances and one with a place: Parquet has no empty objects."""
    arrow = pytest.importorskip("pyarrow.json", reason="pip install 'changeanywhere[parquet]'")
    import pyarrow.parquet as parquet

    store, records = LocalStore(tmp_path), []
    for number, key in enumerate("abc"):
        pair = make_pair(key, number)
        write_pair(store, pair, LEGEND)
        record = make_record(pair, key, "train")
        if number == 0:
            record = replace(record, events=[], transitions={})
        elif number == 1:
            record = replace(
                record, nuisances={"t2": {"haze": 0.1, "noise": 0.01}}, provenance=Provenance("", "", {}, {})
            )
        records.append(record)
    finalise(store, LEGEND, records)
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert len({tuple(line) for line in lines}) == 1, "the same keys in the same order"
    assert [json.loads(json.dumps(PairRecord.from_dict(line).to_dict())) for line in lines] == lines
    table = arrow.read_json(tmp_path / "metadata.jsonl")
    parquet.write_table(table, tmp_path / "metadata.parquet")
    rows = parquet.read_table(tmp_path / "metadata.parquet").to_pylist()
    assert rows[2]["transitions"] == [{"from": "bareland", "to": "building", "pixels": 30}]
    assert rows[1]["nuisances"] == [
        {"date": 2, "name": "haze", "amount": 0.1}, {"date": 2, "name": "noise", "amount": 0.01},
    ]  # fmt: skip


def test_records_of_earlier_editions_are_read(tmp_path: Path) -> None:
    pair = make_pair("k", 3)
    record = replace(make_record(pair, "k", "train"), nuisances={"t1": {"haze": 0.1}})
    old = record.to_dict() | {"transitions": {"bareland->building": 40}, "nuisances": {"t1": {"haze": 0.1}}}
    assert PairRecord.from_dict(old).to_dict() == record.to_dict()


def test_an_empty_split_has_no_table_and_no_place_in_the_card(tmp_path: Path) -> None:
    write_dataset(tmp_path, ["a"])
    there = [split for split in ("train", "val", "test") if (tmp_path / f"{split}.jsonl").exists()]
    assert there == ["train"] and (tmp_path / "README.md").read_text().count("  - split: ") == 1


def test_pairs_as_dictionaries_are_collated(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    write_dataset(tmp_path, ["a", "b", "c"])
    dictionaries: Any = load_pairs(tmp_path, as_dict=True)
    (batch,) = DataLoader(dictionaries, batch_size=3)
    pairs = load_pairs(tmp_path)
    assert batch["key"] == ["a", "b", "c"]
    for n in range(len(pairs)):
        assert np.array_equal(batch["image_t2"][n], pairs[n].image_t2)
        assert np.array_equal(batch["change_mask"][n], pairs[n].change_mask)
        assert bool(batch["seen_t1"][n].all()) and batch["seen_t2"].shape == (3, *pairs[n].change_mask.shape)
        mask = pairs[n].mask_t1
        assert mask is not None and np.array_equal(batch["mask_t1"][n], mask)
    named = load_pairs(tmp_path, as_dict=True, transform=lambda content: content["key"] + "!")
    assert [named[n] for n in range(len(named))] == ["a!", "b!", "c!"]
    with pytest.raises(PairsError, match="transform is given; allowed: with as_dict=True"):
        load_pairs(tmp_path, transform=lambda content: content)  # type: ignore[call-overload]


def test_card_has_front_matter_and_counts(tmp_path: Path) -> None:
    write_dataset(tmp_path, ["a", "b", "c"])
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: cc0-1.0\n") and "train 1, val 1, test 1" in card
    assert "bareland → building" in card and "num_steps" in card


def test_report_is_self_contained_and_escapes(tmp_path: Path) -> None:
    keys = [f"k{i:03}" for i in range(60)] + ["<script>alert(1)</script>".replace("/", "_")]
    write_dataset(tmp_path, keys)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="pair"') == 48
    assert page.count("<script") == page.count("<script>\n") == 1 and "&lt;script&gt;" in page
    assert not re.search(r'(src|href)="(?!data:|#o\d)', page)
    assert len(page) < 6_000_000


def test_report_shows_counts_first_and_every_pair_can_be_chosen(tmp_path: Path) -> None:
    write_dataset(tmp_path, [f"k{i}" for i in range(5)])
    page = (tmp_path / "report.html").read_text()
    write_dataset(tmp_path, [f"k{i}" for i in range(5)])
    assert (tmp_path / "report.html").read_text() == page, "made again: the same bytes"
    body = page[page.index("<h1>") :]
    order = [body.index(each) for each in ("Class transitions", "Change ratio", '<ul class="classes">', 'class="pair"')]
    assert order == sorted(order)
    tags = [
        dict(re.findall(r'data-(\w+)="([^"]*)"', each)) for each in re.findall(r'<figure class="pair"([^>]*)>', body)
    ]
    assert len(tags) == 5 and all({"kind", "split", "change", "ratio"} <= set(each) for each in tags)
    for name in ("change", "kind"):
        (choices,) = re.findall(rf'<select name="{name}".*?</select>', body)
        offered = set(re.findall(r'value="(\d+)"', choices))
        assert offered == {number for each in tags for number in each[name].split()}, "a choice that finds nothing"
    assert body.count("<path id=") * 2 == body.count('<svg class="outline"') == 2 * sum(bool(t["change"]) for t in tags)


@pytest.mark.parametrize("shape", [(40, 30), (300, 600)])
def test_outline_runs_between_changed_and_unchanged_pixels(shape: tuple[int, int]) -> None:
    change = np.random.default_rng(3).random(shape) < 0.01
    change[0, 0] = change[-1, -1] = True
    each = -(-max(shape) // 256)
    high, wide = -(-shape[0] // each), -(-shape[1] // each)
    cells = np.zeros((high + 2, wide + 2), bool)
    for row, column in np.argwhere(change):
        cells[1 + row // each, 1 + column // each] = True
    length = 0
    for left, top, step, run in re.findall(r"M(\d+) (\d+)([hv])(\d+)", outline(change)):
        x, y, n = int(left) // each, int(top) // each, int(run) // each
        beside = (cells[y, x + 1 : x + 1 + n], cells[y + 1, x + 1 : x + 1 + n])
        if step == "v":
            beside = (cells[y + 1 : y + 1 + n, x], cells[y + 1 : y + 1 + n, x + 1])
        assert n > 0 and (beside[0] != beside[1]).all()
        length += n
    assert length == np.count_nonzero(np.diff(cells, axis=0)) + np.count_nonzero(np.diff(cells, axis=1))
    assert outline(np.zeros(shape, bool)) == ""


def test_contact_sheet_shows_evenly_spaced_pairs(tmp_path: Path) -> None:
    write_dataset(tmp_path, [f"k{i}" for i in range(9)])
    sheet = contact_sheet(tmp_path, count=3, side=32, strips_per_row=1)
    (of_legend, rest) = divmod(sheet.height - (18 + 3 * (32 + 4)), 18)
    assert of_legend >= 1 and rest == 0
    shown = np.asarray(sheet)
    for place, key in enumerate(("k0", "k4", "k8")):
        change = np.asarray(Image.open(tmp_path / "label" / f"{key}.png")) > 0
        for column, folder in enumerate("AB"):
            top, left = 18 + place * 36, column * 36
            cell, image = (
                shown[top : top + 32, left : left + 32],
                np.asarray(Image.open(tmp_path / folder / f"{key}.png")),
            )
            assert np.array_equal(cell[change], image[change]), "the line runs outside of what changed"
            drawn = (cell != image).any(-1)
            assert drawn.any() == change.any() and (cell == BORDER).all(-1).any() == change.any()


def test_splits_follow_the_source_or_the_hash_of_the_scene() -> None:
    scenes = {f"s{i}": None for i in range(3000)}
    splits = assign_splits(scenes)
    shares = [sum(s == name for s in splits.values()) / 3000 for name in ("train", "val", "test")]
    assert np.abs(np.array(shares) - [0.8, 0.1, 0.1]).max() < 0.02
    assert all(assign_splits(dict(list(scenes.items())[:10]))[k] == splits[k] for k in list(scenes)[:10])
    assert assign_splits({"a": "train", "b": "val"}) == {"a": "train", "b": "val"}
    assert assign_splits({f"s{i}": "val" for i in range(3000)}) == splits, "one stated split says nothing"
    alone = next(scene for scene, split in splits.items() if split == "test")
    assert assign_splits({alone: None}) == {alone: "train"}
    assert assign_splits({alone: None}, sole_trains=False) == {alone: "test"}


def test_missing_split_is_an_error_never_all_of_it(tmp_path: Path) -> None:
    write_dataset(tmp_path, ["a", "b", "c"])
    (tmp_path / "list" / "val.txt").unlink()
    with pytest.raises(PairsError, match=r"val\.txt: missing"):
        load_pairs(tmp_path, "val")
    (tmp_path / "list" / "test.txt").write_text("z.png\n")
    with pytest.raises(PairsError, match=r"names z\.png"):
        load_pairs(tmp_path, "test")
    (tmp_path / "list" / "train.txt").write_text("")
    with pytest.raises(PairsError, match="is empty"):
        load_pairs(tmp_path, "train")
    (tmp_path / "B" / "a.png").unlink()
    with pytest.raises(PairsError, match=r"B/a\.png: missing"):
        load_pairs(tmp_path)[0]
    with pytest.raises(PairsError, match="no bi-temporal dataset"):
        load_pairs(tmp_path / "A")


def test_a_pair_that_a_list_names_again_is_there_once(tmp_path: Path) -> None:
    """It would count twice, in training and in scores; with and without a suffix it is the same pair."""
    write_dataset(tmp_path, ["a", "b", "c"])
    (tmp_path / "list" / "train.txt").write_text("b.png\na\nb\na.png\nb.png\n")
    train = load_pairs(tmp_path, "train")
    assert train.names == ("b.png", "a") and len(train) == 2
    listing = tmp_path / "few.txt"
    listing.write_text("c\na.png\nc.png\nc\n")
    everything = load_pairs(tmp_path)
    assert everything.listed(listing, "all of it").names == ("c.png", "a.png")
    oscd = tmp_path / "oscd"
    for city in ("abudhabi", "mumbai"):
        for file in (f"Images/{city}/pair/img1.png", f"Images/{city}/pair/img2.png", f"Labels/{city}/cm/cm.png"):
            (oscd / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(oscd / file)
    (oscd / "Images/train.txt").write_text("mumbai,abudhabi,mumbai\n")
    assert load_pairs(oscd, "train").names == ("mumbai", "abudhabi")


def test_read_only_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        atomic_write(tmp_path / "file" / "a.png", b"x")


def test_real_levir_tree() -> None:
    root = shared("data", "cd_pairs", "levir_cd_subset")
    with pytest.raises(PairsError, match="say which"):
        load_pairs(root)
    pairs = load_pairs(root, "test")
    assert len(pairs) == 94
    pair = pairs[3]
    assert pair.image_t1.shape == (256, 256, 3) and pair.change_mask.shape == (256, 256)
    assert pair.mask_t1 is None


WHITE, WATER, GROUND = (255, 255, 255), (0, 0, 255), (128, 128, 128)


@pytest.mark.parametrize(
    ("first", "second", "label"),
    [("time1", "time2", "label"), ("Image1", "Image2", "label"), ("im1", "im2", "label"), ("im1", "im2", "label1")],
)
def test_datasets_of_the_field_in_their_own_folders(tmp_path: Path, first: str, second: str, label: str) -> None:
    """SYSU-CD, S2Looking, WHU-GCD and SECOND; the last names classes by colour and leaves unchanged ground white."""
    changed = np.zeros((16, 16), bool)
    changed[4:9, 2:12] = True
    for split, count in (("train", 3), ("test", 2)):
        for folder in (first, second, label, "label2"):
            (tmp_path / split / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = np.full((16, 16, 3), 10 * i, np.uint8)
            Image.fromarray(image).save(tmp_path / split / first / f"{i}.png")
            Image.fromarray(image + 1).save(tmp_path / split / second / f"{i}.png")
            classes = np.where(changed[..., None], WATER if i else GROUND, WHITE).astype(np.uint8)
            answer = Image.fromarray(classes if label == "label1" else changed.astype(np.uint8) * 255)
            answer.save(tmp_path / split / label / f"{i}.png")
    assert len(load_pairs(tmp_path, "train")) == 3
    with pytest.raises(PairsError, match="no split 'val'; allowed: train, test"):
        load_pairs(tmp_path, "val")
    pairs = load_pairs(tmp_path, "test")
    for pair in (pairs[i] for i in range(len(pairs))):
        assert (pair.change_mask == changed).all() and (pair.image_t2 == pair.image_t1 + 1).all()
        assert pair.mask_t1 is None, "classes of changed ground alone are no semantic mask"
    assert "3 bi-temporal pairs" in check_path(tmp_path) and "2 bi-temporal pairs" in check_path(tmp_path)


def put_pairs(folder: Path, names: str, label: np.ndarray | None = None) -> None:
    """A pair of 32 px for each letter; a corner has changed."""
    values = np.pad(np.full((8, 8), 255, np.uint8), (0, 24)) if label is None else label
    for number, name in enumerate(names):
        for date, content in {"A": np.full((32, 32, 3), number, np.uint8), "B": None, "label": values}.items():
            (folder / date).mkdir(parents=True, exist_ok=True)
            image = np.full((32, 32, 3), 100, np.uint8) if content is None else content
            Image.fromarray(image).save(folder / date / f"{name}.png")


def test_folders_named_as_ours_are_do_not_make_a_set_a_run(tmp_path: Path) -> None:
    """training/ is a split of others, cells/ and plan/ may lie beside anybody's tiles."""
    put_pairs(tmp_path / "pairs" / "training", "abc")
    put_pairs(tmp_path / "pairs" / "validation", "de")
    said = check_path(tmp_path / "pairs")
    assert "3 bi-temporal pairs" in said and "2 bi-temporal pairs" in said
    tiles = tmp_path / "tiles"
    for name, content in {"images": np.zeros((32, 32, 3), np.uint8), "masks": np.ones((32, 32), np.uint8)}.items():
        (tiles / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(content).save(tiles / name / f"{number}.png")
    load_legend("mini").save(tiles / "legend.json")
    for name in ("cells", "plan", "shards", "training"):
        (tiles / name).mkdir()
        (tiles / name / "notes.txt").write_text("mine")
        assert "3 single-date tiles" in check_path(tiles), name


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("training/first_stage/recipe.json", "a training run"),
        ("training/detector/metrics.jsonl", "a training run"),
        ("benchmark.json", "a benchmark, 0 cells finished"),
    ],
)
def test_a_run_is_known_by_what_it_writes_first(file: str, said: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}\n" if file.endswith(".json") else "")
    assert said in check_path(tmp_path)


@pytest.mark.parametrize("file", ["plan/job.json", "plan/plan.json", "shards/00000.json"])
def test_what_is_left_of_a_generated_set_is_named(file: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("{}\n")
    with pytest.raises(InputError, match=r"plan|job"):
        check_path(tmp_path)


def test_strays_do_not_turn_what_a_label_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0, 1 and 255: the last is ignored ground, unless what is 1 is too little to be of a set's changes."""
    put_pairs(tmp_path / "set", "abcd", np.pad(np.full((24, 32), 255, np.uint8), ((0, 8), (0, 0))))
    label = np.asarray(Image.open(tmp_path / "set" / "label" / "b.png")).copy()
    label[31, 31] = 1
    Image.fromarray(label).save(tmp_path / "set" / "label" / "b.png")
    assert command(["check", str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    assert re.search(r"label/b\.png: label value 1 in 1 px beside 0 and 255 in 3,072: a stray\?", error), error
    with pytest.raises(PairsError, match="a stray"):
        load_pairs(tmp_path / "set")[0]
    label[24:, :10] = 1
    Image.fromarray(label).save(tmp_path / "set" / "label" / "b.png")
    pairs = load_pairs(tmp_path / "set")
    assert pairs.label_rule == "0 is unchanged, 1 is changed; 255 is ignored"
    assert [int(pairs[n].change_mask.sum()) for n in range(4)] == [0, 81, 0, 0]


def test_check_says_which_pairs_two_splits_name(tmp_path: Path) -> None:
    put_pairs(tmp_path, "abcd")
    (tmp_path / "list").mkdir()
    for split, names in {"train": "a\nb.png\n", "val": "c\n", "test": "b\nd\n"}.items():
        (tmp_path / "list" / f"{split}.txt").write_text(names)
    assert "warning: 1 pair is in the lists of train and test (b): " in check_path(tmp_path)
    (tmp_path / "list" / "test.txt").write_text("d\n")
    assert "in the lists of" not in check_path(tmp_path)


def test_check_counts_images_that_no_pair_is_made_of(tmp_path: Path) -> None:
    """Those of other kinds, and those in folders below the ones that are read."""
    put_pairs(tmp_path, "ab")
    (tmp_path / "A" / "more").mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "A" / "more" / "c.png")
    for date in "AB":
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / date / "d.webp")
        (tmp_path / date / "notes.txt").write_text("mine")
    said = check_path(tmp_path)
    assert "2 bi-temporal pairs" in said
    assert "2 images of A/ that are not read (d.webp), 1 image of B/ that is not read (d.webp)" in said


def test_a_preview_stretches_both_dates_alike(tmp_path: Path) -> None:
    """What has not changed looks the same, however bright what has changed is."""
    first = np.random.default_rng(0).integers(800, 1200, (256, 256, 3), dtype=np.uint16)
    second = first.copy()
    second[:100] = 9000
    changed = (first != second).any(axis=-1)
    draw_pairs([ChangePair("k", first, second, changed)], None, tmp_path / "preview.png")
    with Image.open(tmp_path / "preview.png") as picture:
        sheet = np.array(picture)
    one, two = (sheet[36:, left : left + 256][150:256] for left in (6, 268))
    assert np.array_equal(one, two) and one.std() > 0


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 255), ("uint16", 65535), ("float32", np.nan)])
def test_what_shows_no_ground_is_black_in_a_preview_and_said_in_dictionaries(
    dtype: str, nodata: float, tmp_path: Path
) -> None:
    ground = np.random.default_rng(0).integers(60, 180, (3, 256, 256)).astype(dtype)
    hidden = {"A": np.s_[:100], "B": np.s_[:50]}
    for folder, rows in hidden.items():
        values = ground.copy()
        values[:, rows] = nodata
        profile = {"driver": "GTiff", "width": 256, "height": 256, "count": 3, "dtype": dtype, "nodata": nodata}
        profile |= {"crs": "EPSG:32633", "transform": rasterio.Affine(1, 0, 5e5, 0, -1, 5e6)}
        (tmp_path / folder).mkdir()
        with rasterio.open(tmp_path / folder / "a.tif", "w", **profile) as file:
            file.write(values)
    (tmp_path / "label").mkdir()
    Image.fromarray(np.zeros((256, 256), np.uint8)).save(tmp_path / "label" / "a.png")
    draw_pairs([load_pairs(tmp_path)[0]], None, tmp_path / "preview.png")
    with Image.open(tmp_path / "preview.png") as picture:
        sheet = np.array(picture.convert("RGB"))
    one, two = (sheet[36:, left : left + 256][:256] for left in (6, 268))
    assert not one[:100].any() and not two[:50].any()
    assert np.array_equal(one[100:], two[100:]) and one[100:].std() > 20  # stretched to the ground
    content = load_pairs(tmp_path, as_dict=True)[0]
    for name, rows in (("seen_t1", hidden["A"]), ("seen_t2", hidden["B"])):
        expected = np.ones((256, 256), np.uint8)
        expected[rows] = 0
        assert content[name].dtype == np.uint8 and np.array_equal(content[name], expected)
