"""Sets of the Hugging Face hub and synthetic sets that others published, read as pairs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import changeanywhere as ca
from changeanywhere.cli import run
from changeanywhere.errors import ConfigError, PairsError
from changeanywhere.exporting.export import export
from changeanywhere.exporting.options import ExportOptions
from changeanywhere.pairs.containers import in_cache
from changeanywhere.pairs.hub import columns_of
from raster_files import write_tif
from test_export import originals
from test_export import pairs as pairs  # the fixture

parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'changeanywhere[parquet]'")
import pyarrow  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CHANGEANYWHERE_CACHE", str(place))
    return place


def png(array: np.ndarray) -> bytes:
    target = io.BytesIO()
    Image.fromarray(array).save(target, "PNG")
    return target.getvalue()


def images(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    label = np.zeros((32, 32), np.uint8)
    label[4:14, 5 : 10 + seed] = 255
    return {"A": first, "B": second, "label": label}


@pytest.mark.parametrize("layout", ["huggingface", "torchange"])
def test_what_we_export_as_tables_is_read_back(layout: str, pairs: Path, tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "out"
    export(ExportOptions(pairs=pairs, layout=layout, out=out))
    for split in ("train", "val", "test"):
        ours, theirs = originals(pairs, split), ca.load_pairs(out, split)
        assert len(theirs) == len(ours)
        by_image = {pair.image_t1.tobytes(): pair for pair in ours}
        for pair in (theirs[n] for n in range(len(theirs))):
            own = by_image[pair.image_t1.tobytes()]
            np.testing.assert_array_equal(pair.image_t2, own.image_t2)
            np.testing.assert_array_equal(pair.change_mask, own.change_mask)
    assert len(ca.load_pairs(out)) == 7
    assert len(list((cache / "unpacked").iterdir())) == 1, "unpacked once"


@pytest.mark.parametrize(
    "names", [("imageA", "imageB", "label"), ("image1", "image2", "mask"), ("t1_image", "t2_image", "gt")]
)
@pytest.mark.parametrize(
    "place", ["data/train-00000-of-00002.parquet", "default/train-00000-of-00002.parquet", "train.parquet"]
)
def test_tables_of_others(names: tuple[str, str, str], place: str, tmp_path: Path) -> None:
    for part in range(2):
        rows = []
        for number in range(3):
            found = images(2 * number + part)
            contents = {
                name: {"bytes": png(found[f]), "path": None} for name, f in zip(names, ["A", "B", "label"], strict=True)
            }
            rows.append({"filename": f"../{part}/pair {number}.png", **contents})
        file = tmp_path / "hub" / place.replace("00000-of", f"0000{part}-of")
        if part and "of" not in place:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    pairs = ca.load_pairs(tmp_path / "hub", "train")
    assert len(pairs) == (6 if "of" in place else 3)
    found = images(0)
    np.testing.assert_array_equal(pairs[0].image_t1, found["A"])
    np.testing.assert_array_equal(pairs[0].change_mask, found["label"] > 0)
    with pytest.raises(PairsError, match=r"list/test\.txt: missing"):
        ca.load_pairs(tmp_path / "hub", "test")


def write_list(file: Path, rows: Sequence[Mapping[str, str | None]]) -> None:
    lines = io.StringIO()
    if file.suffix == ".csv":
        table = csv.DictWriter(lines, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    else:
        lines.writelines(f"{json.dumps(row)}\n" for row in rows)
    file.write_text(lines.getvalue())


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_folders_of_images(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 3), ("validation", 1)):
        rows = []
        for number in range(count):
            row = {}
            for name, array in zip(("imageA", "imageB", "label"), images(number).values(), strict=True):
                file = tmp_path / "hub" / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(png(array))
                row[f"{name}_file_name"] = f"{name}/{number}.png"
            rows.append(row)
        write_list(tmp_path / "hub" / split / f"metadata.{kind}", rows)
    train, val = ca.load_pairs(tmp_path / "hub", "train"), ca.load_pairs(tmp_path / "hub", "val")
    assert (len(train), len(val)) == (3, 1)
    np.testing.assert_array_equal(train[2].image_t2, images(2)["B"])
    assert run(["check", str(tmp_path / "hub")]) == 0, capsys.readouterr().err


def write_split(folder: Path, count: int, seed: int, kind: str = "PNG") -> None:
    """``count`` pairs, numbered from 0, in ``folder``."""
    rows = []
    for number in range(count):
        row = {}
        for name, array in zip(("imageA", "imageB", "label"), images(seed + number).values(), strict=True):
            file = folder / name / f"{number}.{kind.lower()}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file, kind)
            row[f"{name}_file_name"] = f"{name}/{file.name}"
        rows.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_pairs_of_one_name_in_two_splits_stay_apart(kind: str, tmp_path: Path) -> None:
    write_split(tmp_path / "hub" / "train", 2, 0, kind)
    write_split(tmp_path / "hub" / "testing", 2, 5, kind)
    for split, seed in (("train", 0), ("test", 5)):
        pairs = ca.load_pairs(tmp_path / "hub", split)
        assert len(pairs) == 2
        for number in range(2):
            np.testing.assert_array_equal(pairs[number].change_mask, images(seed + number)["label"] > 0)


def test_labels_that_are_corrected_are_read_again(tmp_path: Path) -> None:
    write_split(tmp_path / "hub" / "train", 1, 0)
    before = ca.load_pairs(tmp_path / "hub", "train")
    label = tmp_path / "hub" / "train" / "label" / "0.png"
    Image.fromarray(255 - np.array(Image.open(label))).save(label)
    after = ca.load_pairs(tmp_path / "hub", "train")
    np.testing.assert_array_equal(after[0].change_mask, ~before[0].change_mask)
    assert after.content_hash() != before.content_hash()


def test_a_split_that_nobody_knows_is_no_training_split(tmp_path: Path) -> None:
    write_split(tmp_path / "hub" / "train", 1, 0)
    write_split(tmp_path / "hub" / "holdout", 1, 5)
    with pytest.raises(
        PairsError, match=r"holdout/metadata\.jsonl: of which split\? Others are train; names that say it"
    ):
        ca.load_pairs(tmp_path / "hub", "train")


def write_splits(
    root: Path, kind: str, splits: Sequence[str | None], name: str = "pairs", column: str = "split"
) -> Path:
    """A table or a list of pairs 0, 1, … in ``root``, with the split of each in a column."""
    rows: list[dict[str, Any]] = []
    root.mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(splits):
        row: dict[str, Any] = {column: split}
        for what, array in zip(("imageA", "imageB", "label"), images(number).values(), strict=True):
            if kind == "parquet":
                row[what] = {"bytes": png(array), "path": f"{number}.png"}
            else:
                (root / what).mkdir(exist_ok=True)
                (root / what / f"{number}.png").write_bytes(png(array))
                row[f"{what}_file_name"] = f"{what}/{number}.png"
        rows.append(row)
    file = root / (f"{name}.parquet" if kind == "parquet" else f"metadata.{kind}")
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        write_list(file, rows)
    return file


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_says_the_split_of_a_pair(kind: str, tmp_path: Path) -> None:
    """Test rows are no training pairs; what an earlier version unpacked of the same files is not taken."""
    file = write_splits(tmp_path / "hub", kind, ["train", "test", " Validation ", "test"], column="Split")
    stored = [tmp_path / "hub" / what / f"{n}.png" for n in range(4) for what in ("imageA", "imageB", "label")]
    in_cache(tmp_path / "hub", [file, *(stored if kind != "parquet" else [])], lambda store: store.put("A/old", b""))
    for split, numbers in (("train", [0]), ("val", [2]), ("test", [1, 3])):
        pairs = ca.load_pairs(tmp_path / "hub", split)
        assert len(pairs) == len(numbers)
        for pair, number in zip((pairs[n] for n in range(len(pairs))), numbers, strict=True):
            np.testing.assert_array_equal(pair.change_mask, images(number)["label"] > 0)
    report = export(ExportOptions(pairs=tmp_path / "hub", layout="levir", out=tmp_path / "out"))
    assert dict(report.splits) == {"train": 1, "val": 1, "test": 2}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_of_splits_that_cannot_be_told_is_refused(kind: str, tmp_path: Path) -> None:
    line = "row 2" if kind == "parquet" else "line 2"
    write_splits(tmp_path / "word", kind, ["train", "holdout"])
    with pytest.raises(PairsError, match=rf"{kind}: {line} is of split 'holdout'; allowed: dev, .*train"):
        ca.load_pairs(tmp_path / "word", "train")
    write_splits(tmp_path / "none", kind, ["train", None])
    with pytest.raises(PairsError, match=rf"{kind}: {line} has no split, others have; allowed: dev"):
        ca.load_pairs(tmp_path / "none", "train")
    place = tmp_path / "two" if kind == "parquet" else tmp_path / "two" / "train"
    write_splits(place, kind, ["train", "test"], name="train-00000-of-00001")
    with pytest.raises(PairsError, match=rf"{kind}: {line} is of split 'test', its file is named train; mend either"):
        ca.load_pairs(tmp_path / "two", "train")
    write_splits(place, kind, ["train", None], name="train-00000-of-00001")
    assert len(ca.load_pairs(tmp_path / "two", "train")) == 2, "the file says what a row does not"


def test_a_file_without_splits_beside_one_that_tells_them_is_refused(tmp_path: Path) -> None:
    write_splits(tmp_path / "hub", "parquet", ["train", "test"])
    write_splits(tmp_path / "hub", "parquet", [None], name="more", column="area")
    with pytest.raises(PairsError, match=r"more\.parquet: of which split\? Others are told by a column; names that"):
        ca.load_pairs(tmp_path / "hub", "train")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_splits_of_a_list_beside_folders_are_those_of_their_lists(kind: str, tmp_path: Path) -> None:
    """Without lists all of it would be training pairs."""
    splits = {f"line_{number}": {"split": split} for number, split in enumerate(("train", "train", "test"))}
    write_folders(tmp_path / "set", kind, 3, **splits)
    with pytest.raises(
        PairsError, match=rf"metadata\.{kind}: line 3 is of split 'test', .* of 2; write .*list/test\.txt"
    ):
        export(ExportOptions(pairs=tmp_path / "set", layout="levir", out=tmp_path / "out"))
    (tmp_path / "set" / "list").mkdir()
    for split, names in (("train", "0.png\n1.png\n"), ("test", "2\n")):
        (tmp_path / "set" / "list" / f"{split}.txt").write_text(names)
    assert len(ca.load_pairs(tmp_path / "set", "train")) == 2
    (tmp_path / "set" / "list" / "test.txt").write_text("1.png\n")
    with pytest.raises(
        PairsError, match=rf"metadata\.{kind}: line 3 is of split 'test', .* of 2; write .*list/test\.txt"
    ):
        ca.load_pairs(tmp_path / "set", "train")
    write_folders(tmp_path / "whole" / "train", kind, 2, **splits)
    assert len(ca.load_pairs(tmp_path / "whole", "train")) == 2, "the folder says it"


def test_a_list_of_published_synthetic_pairs_may_leave_out_suffixes(tmp_path: Path) -> None:
    syntheworld(tmp_path)
    (root,) = [path.parent for path in tmp_path.rglob("cd_mask")]
    (root / "list").mkdir()
    (root / "list" / "train.txt").write_text("0\n1.png\n")
    assert len(ca.load_pairs(root, "train")) == 2


def test_a_list_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(images(0)["A"]))
    (tmp_path / "hub").mkdir()
    row = {"imageA_file_name": "../secret.png", "imageB_file_name": "../secret.png", "label_file_name": "../secret.png"}
    (tmp_path / "hub" / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(PairsError, match=r"line 1 names '\.\./secret\.png', which is not in"):
        ca.load_pairs(tmp_path / "hub")


def test_a_line_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('["imageA_file_name", "imageB_file_name", "label_file_name"]\n')
    with pytest.raises(PairsError, match="is no JSON object"):
        ca.load_pairs(tmp_path)


def write_folders(root: Path, kind: str = "jsonl", count: int = 3, **other: dict[str, str]) -> None:
    """``A/ B/ label/`` of 0 and 1, and a list of the hub beside them; ``other``: what stands in some lines instead."""
    rows = []
    for number in range(count):
        for folder, array in zip(("A", "B", "label"), images(number).values(), strict=True):
            (root / folder).mkdir(parents=True, exist_ok=True)
            content = (array > 0).astype(np.uint8) if folder == "label" else array
            (root / folder / f"{number}.png").write_bytes(png(content))
        names = {"image1": "A", "image2": "B", "label": "label"}
        row = {f"{name}_file_name": f"{folder}/{number}.png" for name, folder in names.items()}
        rows.append(row | other.get(f"line_{number}", {}))
    write_list(root / f"metadata.{kind}", rows)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_list_of_the_hub_beside_folders_says_what_they_say(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read by their names, under the rule of their own labels, where the list pairs the same files; else refused."""
    write_folders(tmp_path / "set", kind)
    pairs = ca.load_pairs(tmp_path / "set")
    assert [pairs.key_of(n) for n in range(3)] == ["0", "1", "2"] and pairs.record_of(0) == {}
    np.testing.assert_array_equal(pairs[1].change_mask, images(1)["label"] > 0)
    assert run(["check", str(tmp_path / "set")]) == 0, capsys.readouterr().err
    write_folders(tmp_path / "keyed", kind, line_0={"key": "0"}, line_1={"key": "1"}, line_2={"key": "2"})
    assert ca.load_pairs(tmp_path / "keyed")[0].change_mask.any(), "no set of ours, whose labels are 0 and 255"
    write_folders(tmp_path / "crossed", kind, line_1={"image2_file_name": "B/2.png"})
    with pytest.raises(PairsError, match=rf"metadata\.{kind}: line 2 makes a pair of A/1\.png, B/2\.png, label/1\.png"):
        ca.load_pairs(tmp_path / "crossed")
    write_folders(tmp_path / "else", kind, line_0={"image2_file_name": "C/0.png"})
    with pytest.raises(PairsError, match=rf"metadata\.{kind}: line 1 makes a pair of A/0\.png, C/0\.png"):
        ca.load_pairs(tmp_path / "else")
    file = tmp_path / "set" / f"metadata.{kind}"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(PairsError, match=rf"metadata\.{kind}: lists 2 of the 3 pairs in .*, not 2; list all"):
        ca.load_pairs(tmp_path / "set")


def test_metadata_that_is_nobodys_list_of_pairs_is_refused(tmp_path: Path) -> None:
    write_folders(tmp_path)
    file = tmp_path / "metadata.jsonl"
    file.write_text(json.dumps({"file_name": "A/0.png", "text": "a field"}) + "\n")
    with pytest.raises(PairsError, match=r"metadata\.jsonl: line 1 has no 'key', so it is not of a generated set"):
        ca.load_pairs(tmp_path)
    file.write_text(json.dumps({"key": "0"}) + "\n\n" + json.dumps({"name": "1"}) + "\n")
    with pytest.raises(PairsError, match=r"metadata\.jsonl: damaged \(line 3: no 'key'\)"):
        ca.load_pairs(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "no image", "no pairs"])
def test_damaged_tables_are_one_line(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "hub" / "train.parquet"
    file.parent.mkdir()
    content = {f"image{name}": {"bytes": png(array), "path": "x"} for name, array in images(0).items()}
    row = {"label" if name == "imagelabel" else name: value for name, value in content.items()}
    if damage == "no image":
        row["imageB"] = None  # type: ignore[assignment]
        parquet.write_table(pyarrow.Table.from_pylist([content | {"label": row["label"]}, row]), file)
    elif damage == "no pairs":
        parquet.write_table(pyarrow.table({"text": ["a"], "label": [1]}), file)
    else:
        parquet.write_table(pyarrow.Table.from_pylist([row]), file)
        file.write_bytes(file.read_bytes()[:-40])
    said = {"cut": "not readable as Parquet", "no image": "has no image for B", "no pairs": "no bi-temporal dataset"}
    with pytest.raises((PairsError, ConfigError), match=said[damage]):
        ca.load_pairs(tmp_path / "hub")


def test_columns_need_both_dates_and_a_label() -> None:
    assert columns_of(["imageA", "imageB", "label", "x"]) == {"A": "imageA", "B": "imageB", "label": "label"}
    assert columns_of(["image", "label"]) == {} == columns_of(["image1", "image2"])


def changen2(root: Path) -> np.ndarray:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (2, 32, 32), dtype=np.uint8)
    for number in range(2):
        for date, mask in (("t1", first), ("t2", second)):
            write_tif(root / f"{date}_images" / f"{number}.tif", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            write_tif(root / f"{date}_masks" / f"{number}.tif", mask)
    return np.asarray(first != second)


def hyscdg(root: Path) -> np.ndarray:
    """Painted, class of date 1, class of date 2: what was painted in its own class has not changed."""
    rng = np.random.default_rng(1)
    label = rng.integers(1, 19, (32, 32, 3), dtype=np.uint8)
    label[..., 0] = rng.integers(0, 2, (32, 32))
    label[:16, :, 2] = label[:16, :, 1]
    for number in range(2):
        for folder in "AB":
            write_tif(root / folder / f"IMG_{number:06d}.tif", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        write_tif(root / "LBL" / f"LBL_{number:06d}.tif", label)
    return np.asarray((label[..., 0] > 0) & (label[..., 1] != label[..., 2]))


def syntheworld(root: Path, before: str = "pre_event") -> np.ndarray:
    rng = np.random.default_rng(2)
    label = rng.integers(0, 2, (32, 32), dtype=np.uint8)
    for number in range(2):
        contents = {folder: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for folder in (before, "images")}
        for folder, array in (contents | {"cd_mask": label, "ss_mask": label + 3}).items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f"{number}.png").write_bytes(png(array))
    return label > 0


@pytest.mark.parametrize("make", [changen2, hyscdg, syntheworld, lambda root: syntheworld(root, "small_pre_images")])
def test_published_synthetic_sets(make: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = make(tmp_path)  # type: ignore[operator]
    pairs = ca.load_pairs(tmp_path, "train")
    assert len(pairs) == 2 == len(ca.load_pairs(tmp_path))
    np.testing.assert_array_equal(pairs[1].change_mask, changed)
    assert pairs[0].mask_t1 is None and not np.array_equal(pairs[0].image_t1, pairs[0].image_t2)
    with pytest.raises(PairsError, match="no split 'test'; allowed: train"):
        ca.load_pairs(tmp_path, "test")
    assert run(["check", str(tmp_path)]) == 0, capsys.readouterr().err
    assert f"change ratio {changed.mean():.3f}" in capsys.readouterr().out


def test_masks_have_names_where_there_is_a_legend(tmp_path: Path) -> None:
    changen2(tmp_path)
    content = {"name": "s1", "classes": [{"index": 1, "name": "building", "color": [255, 0, 0]}]}
    (tmp_path / "legend.json").write_text(json.dumps(content))
    pair = ca.load_pairs(tmp_path)[0]
    assert pair.mask_t1 is not None and pair.mask_t2 is not None
    assert not pair.change_mask.any(), "one class, and ground that nobody knows: nothing is known to have changed"
    assert pair.ignored is not None
    np.testing.assert_array_equal(pair.ignored, (pair.mask_t1 == 0) | (pair.mask_t2 == 0))
    assert len(ca.load_pairs(tmp_path).counting(["building"])) == 2


@pytest.mark.parametrize("unknown", [0, 255])
def test_change_of_masks_is_between_two_classes(
    unknown: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ground that is unknown at either date has not changed and is no unchanged ground; by the legend's numbers."""
    changen2(tmp_path)
    bare = ca.load_pairs(tmp_path).content_hash()
    known = np.arange(1, 3) - (unknown != 0)
    first = np.full((32, 32), known[0], np.uint8)
    second = first.copy()
    second[:8], second[8:16], first[16:24] = unknown, known[1], unknown
    for number in range(2):
        write_tif(tmp_path / "t1_masks" / f"{number}.tif", first)
        write_tif(tmp_path / "t2_masks" / f"{number}.tif", second)
    without = ca.load_pairs(tmp_path)
    np.testing.assert_array_equal(without[0].change_mask, first != second)
    content: dict[str, object] = {"name": "s9", "classes": ["ground", "building"]}
    content |= {"first_class": 0, "ignore_index": 255} if unknown else {}
    (tmp_path / "legend.json").write_text(json.dumps(content))
    pairs = ca.load_pairs(tmp_path)
    rows = np.arange(32)[:, None].repeat(32, 1)
    np.testing.assert_array_equal(pairs[0].change_mask, (rows >= 8) & (rows < 16))
    np.testing.assert_array_equal(pairs[0].ignored, (rows < 8) | ((rows >= 16) & (rows < 24)))
    assert len({bare, without.content_hash(), pairs.content_hash()}) == 3, "the legend says what has changed"
    assert run(["check", str(tmp_path)]) == 0, capsys.readouterr().err
    said = " ".join(capsys.readouterr().out.split())
    assert "of two classes; unknown ground is ignored" in said and "50.0% of the ground" in said
    second[:], first[:] = known[0], known[0]
    write_tif(tmp_path / "t1_masks" / "0.tif", first)
    write_tif(tmp_path / "t2_masks" / "0.tif", second)
    assert ca.load_pairs(tmp_path)[0].ignored is None


def test_a_label_of_other_bands_is_refused(tmp_path: Path) -> None:
    hyscdg(tmp_path)
    write_tif(tmp_path / "LBL" / "LBL_000001.tif", np.zeros((32, 32, 2), np.uint8))
    with pytest.raises(PairsError, match=r"LBL_000001\.tif: 2 bands; allowed: three"):
        ca.load_pairs(tmp_path)[1]
