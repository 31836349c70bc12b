"""Sets in tars and tables: the pairs of the folder, the same bytes twice, read back by others."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import changeanywhere as ca
from changeanywhere.cli import run
from changeanywhere.errors import ConfigError, EmptySplitError, PairsError
from changeanywhere.pairs.containers import CONTAINERS, read_container
from conftest import write_source

COUNT = 8


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHANGEANYWHERE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def needs(container: str) -> None:
    if container == "parquet":
        pytest.importorskip("pyarrow", reason="pip install 'changeanywhere[parquet]'")


def arguments(folder: Path, container: str, out: str = "") -> list[str]:
    place = folder / (out or container)
    return [
        *("generate", f"--source={folder / 'src'}", f"--out={place}", f"--format={container}", "--shard-size=3"),
        *("--method=copy_paste", f"--num-pairs={COUNT}", "--tile-size=64", "--events.min-area=16"),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with a key that has points, and the set as a folder."""
    place = tmp_path_factory.mktemp("sets")
    write_source(place / "src", num_tiles=4)
    for kind in ("images", "masks"):
        (place / "src" / kind / "tile_1.png").rename(place / "src" / kind / "tile.1.png")
    assert run(arguments(place, "folder")) == 0
    return place


@pytest.fixture(scope="module", params=sorted(CONTAINERS))
def made(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Path]:
    needs(request.param)
    assert run(arguments(folder, request.param)) == 0
    return request.param, folder


def test_containers_hold_the_pairs_of_the_folder_and_the_same_bytes_twice(
    made: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    container, folder = made
    out = folder / container
    assert run(arguments(folder, container)) == 0 and "nothing to do" in capsys.readouterr().out
    assert run(arguments(folder, container, "again")) == 0
    names = sorted(path.name for path in (out / "data").iterdir())
    assert names == [f"0000{n}{CONTAINERS[container]}" for n in range(3)], "a file per shard"
    assert not (out / "A").exists()
    for name in names:
        assert (out / "data" / name).read_bytes() == (folder / "again" / "data" / name).read_bytes()
    for file in ("list/train.txt", "legend.json"):
        assert (out / file).read_bytes() == (folder / "folder" / file).read_bytes()
    plain, packed = (_records(folder / each) for each in ("folder", container))
    assert [r | {"container": c["container"]} for r, c in zip(plain, packed, strict=True)] == packed
    shutil.rmtree(folder / "again")


def _records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def _same(one: ca.ChangePair, other: ca.ChangePair) -> bool:
    pairs = (
        (getattr(one, n), getattr(other, n)) for n in ("image_t1", "image_t2", "change_mask", "mask_t1", "mask_t2")
    )
    return one.key == other.key and all(np.array_equal(a, b) for a, b in pairs)


def test_our_own_readers(made: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    container, folder = made
    plain, packed = ca.load_pairs(folder / "folder"), ca.load_pairs(folder / container)
    assert len(plain) == len(packed) == COUNT
    assert all(_same(plain[i], packed[i]) for i in range(COUNT))
    assert ca.load_pairs(folder / container, "train").names == ca.load_pairs(folder / "folder", "train").names
    by_key = {pair.key: pair for pair in (plain[i] for i in range(COUNT))}
    streamed = list(ca.stream_pairs(folder / container))
    assert [pair.key for pair in streamed] == sorted(by_key) and all(_same(p, by_key[p.key]) for p in streamed)
    orders = [
        [p.key for p in ca.stream_pairs(folder / container, seed=s, epoch=e)] for s, e in ((1, 0), (1, 0), (1, 1))
    ]
    assert orders[0] == orders[1] != orders[2] and all(sorted(order) == sorted(by_key) for order in orders)
    train = [p.key for p in ca.stream_pairs(folder / container, "train")]
    assert sorted(train) == sorted(Path(n).stem for n in ca.load_pairs(folder / container, "train").names)
    assert run(["check", str(folder / container)]) == 0
    assert f"{COUNT} bi-temporal pairs" in capsys.readouterr().out
    assert "data:image/jpeg" in (folder / container / "report.html").read_text(), "the report shows pairs"
    with pytest.raises(PairsError, match="no containers"):
        ca.stream_pairs(folder / "folder")
    with pytest.raises(ConfigError, match="split is 'training'; allowed: train, val, test"):
        ca.stream_pairs(folder / container, "training")
    empty = next(split for split in ("train", "val", "test") if split not in {p.metadata["split"] for p in streamed})
    with pytest.raises(EmptySplitError, match=f"{container}: split '{empty}' is empty"):
        list(ca.stream_pairs(folder / container, empty))


def test_a_detector_learns_from_any_of_them(made: tuple[str, Path], tmp_path: Path) -> None:
    container, folder = made
    weights = []
    for place in ("folder", container):
        out = tmp_path / place
        recipe = ["--detector.name=fc_ef", f"--detector.pairs={folder / place}", "--detector.train-split=null"]
        recipe += ["--detector.val-split=null", "--detector.crop-size=32", "--detector.batch-size=2"]
        recipe += ["--detector.num-steps=2", "--detector.warmup-steps=0", "--run.num-workers=0", f"--out={out}"]
        assert run(["train", "detector", *recipe]) == 0
        weights.append((out / "detector" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("damage", ["cut", "other", "stranger", "gone"])
def test_damage_is_found(
    made: tuple[str, Path], damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    container, folder = made
    out = tmp_path / "set"
    shutil.copytree(folder / container, out)
    file = out / "data" / f"00001{CONTAINERS[container]}"
    content = file.read_bytes()
    if damage == "stranger":
        file = file.with_name(f"00009{CONTAINERS[container]}")
    file.unlink(missing_ok=True)
    if damage != "gone":
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:-1] + b"x")
    assert run(["check", str(out)]) == 2
    assert str(file) in capsys.readouterr().err
    if damage == "cut":
        shutil.rmtree(out / "plan")
        shutil.rmtree(out / "shards")
        assert run(["check", str(out)]) == 2 and str(file) in capsys.readouterr().err
        with pytest.raises(PairsError, match="damaged"):
            list(ca.stream_pairs(out))


@pytest.mark.parametrize("name", ["../A/x.png", "A/../../x.png", "/A/x.png", "B/x.png", "A/.x.png", "A/"])
def test_names_in_a_container_lead_nowhere(folder: Path, name: str, tmp_path: Path) -> None:
    needs("webdataset")
    assert run(arguments(folder, "webdataset", f"hostile-{abs(hash(name))}")) == 0
    out = folder / f"hostile-{abs(hash(name))}"
    file = out / "data" / "00000.tar"
    changed = io.BytesIO()
    with tarfile.open(file) as before, tarfile.open(fileobj=changed, mode="w") as after:
        for member in before:
            opened = before.extractfile(member)
            assert opened is not None
            content = opened.read()
            if member.name.endswith(".json"):
                content = json.dumps(json.loads(content) | {"A_file_name": name}).encode()
            member.size = len(content)
            after.addfile(member, io.BytesIO(content))
    file.write_bytes(changed.getvalue())
    with pytest.raises(PairsError, match="no file of a pair"):
        ca.load_pairs(out)


def test_webdataset_reads_its_own(folder: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="pip install webdataset")
    if not (folder / "webdataset").is_dir():
        assert run(arguments(folder, "webdataset")) == 0
    files = sorted(map(str, (folder / "webdataset" / "data").glob("*.tar")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the collector
        samples = list(webdataset.WebDataset(files, shardshuffle=False).decode("pil"))
        gc.collect()
    assert len(samples) == COUNT
    plain = {r["key"]: r for r in _records(folder / "folder")}
    for sample in samples:
        key = sample["json"]["key"]
        assert sample["json"]["seed"] == plain.pop(key)["seed"]
        image = np.asarray(Image.open(folder / "folder" / "B" / f"{key}.png"))
        assert np.array_equal(np.asarray(sample["b.png"]), image)
    with tarfile.open(files[0]) as tar:
        assert all((m.mtime, m.uid, m.gid, m.uname, m.mode) == (0, 0, 0, "", 0o644) for m in tar)


def test_pyarrow_pandas_and_datasets_read_theirs(folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'changeanywhere[parquet]'")
    if not (folder / "parquet").is_dir():
        assert run(arguments(folder, "parquet")) == 0
    files = sorted(map(str, (folder / "parquet" / "data").glob("*.parquet")))
    table = parquet.read_table(files[0])
    assert str(table.schema.field("seed").type) == "uint64" and str(table.schema.field("change_ratio").type) == "double"
    row = table.to_pylist()[0]
    assert np.asarray(Image.open(io.BytesIO(row["image_t1"]["bytes"]))).shape == (64, 64, 3)
    datasets = pytest.importorskip("datasets", reason="pip install datasets: Hugging Face's reader is not tried")
    whole = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    assert len(whole) == COUNT and whole[0]["image_t2"].size == (64, 64)
    assert {each["key"] for each in whole} == {r["key"] for r in _records(folder / "folder")}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # two threads silence it by turns
def test_containers_of_geotiffs_and_none_for_a_shard_that_was_dropped(folder: Path) -> None:
    assert run([*arguments(folder, "webdataset", "tifs"), "--image-format=geotiff"]) == 0
    pair = next(ca.stream_pairs(folder / "tifs"))
    assert pair.image_t1.shape == (64, 64, 3) and len(ca.load_pairs(folder / "tifs")) == COUNT
    assert not list(read_container(_empty_tar(), "x.tar"))


def _empty_tar() -> bytes:
    buffer = io.BytesIO()
    tarfile.open(fileobj=buffer, mode="w").close()
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["part-1.tar", "00000.tar"])
def test_tars_of_others_beside_tiles_are_no_sets(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(tmp_path / "src", num_tiles=2)
    (tmp_path / "src" / "data").mkdir()
    with tarfile.open(tmp_path / "src" / "data" / name, "w") as tar:
        for image in sorted((tmp_path / "src" / "images").iterdir()):
            tar.add(image, image.name)
    assert run(["check", str(tmp_path / "src"), "--tile-size=64"]) == 0
    assert "2 tiles" in capsys.readouterr().out


def test_other_formats_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(folder, "zip", "none")) == 2
    assert "format is 'zip'; allowed: folder, webdataset, parquet" in capsys.readouterr().err
    assert run(arguments(folder, "webdataset", "folder")) == 2, "another format on a set that was begun"
    assert "container" in capsys.readouterr().err
    assert os.environ["CHANGEANYWHERE_CACHE"]
