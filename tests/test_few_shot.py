"""The few-shot setting of the benchmark: arms that see unlabelled pairs, rivals from machine-labelled ground, and test
scenes that are in nothing."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from changeanywhere.benchmark import apart, trainings
from changeanywhere.benchmark.arms import BASELINES
from changeanywhere.benchmark.options import BenchmarkOptions, Claims, FlatOptions
from changeanywhere.benchmark.protocol import Benchmark, run_benchmark
from changeanywhere.benchmark.summary import is_compared
from changeanywhere.cli import run as command
from changeanywhere.errors import ConfigError, OutputError
from changeanywhere.pairs import load_pairs
from changeanywhere.training.detector import train_detector
from changeanywhere.training.recipe import DetectorRecipe, Recipe, RunRecipe
from conftest import write_source
from test_benchmark import begin, forgotten
from test_detector_training import write_pairs

STEPS = DetectorRecipe(crop_size=32, batch_size=4, num_steps=4, warmup_steps=1)
SURE = replace(STEPS, unlabelled_confidence=0.6)


@pytest.fixture
def options(tmp_path: Path) -> BenchmarkOptions:
    """Real pairs with splits, a set that was made, and two dates of somebody's own."""
    real, made, mine = (write_pairs(tmp_path / name, count) for name, count in (("real", 12), ("made", 6), ("mine", 3)))
    shutil.rmtree(mine / "train" / "label")
    for file in (mine / "train").glob("*/*.png"):  # other ground
        Image.open(file).transpose(Image.Transpose.ROTATE_180).save(file)
    for folder in ("A", "B", "label"):
        shutil.move(made / "train" / folder, made / folder)
    return BenchmarkOptions(
        out=tmp_path / "out", name="squares", pairs=str(real), detectors=["fc_ef"], shares=[50], seeds=[0],
        pretraining={"made": str(made)}, pretrain=STEPS, finetune=SURE, run=RunRecipe(num_workers=0), candidates=2,
        num_panels=0, baselines=["only-sup", "semi-supervised"], semi_supervised=["made"],
        unlabelled=[str(mine / "train")],
    )  # fmt: skip


def plain(options: BenchmarkOptions) -> BenchmarkOptions:
    """Without arms that see unlabelled pairs."""
    return replace(options, baselines=["only-sup"], semi_supervised=[], unlabelled=[], finetune=STEPS)


def test_arms_see_the_same_labels_and_some_see_unlabelled_pairs(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, tuple[Recipe, tuple[str, ...], int]] = {}

    def noted(recipe: Recipe, out: Path, few: Any, *more: Any, **beside: Any) -> None:
        begun[out.name.split("-050")[0]] = (recipe, few and few.names, len(beside.get("unlabelled") or ()))
        train_detector(recipe, out, few, *more, **beside)

    monkeypatch.setattr(trainings, "train_detector", noted)
    records = run_benchmark(options)
    arms = ["only-sup", "semi-supervised", "made", "made-semi"]
    assert [record["arm"] for record in records] == arms
    assert {record["steps"] for record in records} == {4}
    assert {len(record["curve"]) for record in records} == {record["candidates"] for record in records} == {2}
    found = {arm: begun[f"fc_ef-{arm}"] for arm in arms}
    assert len({names for _, names, _ in found.values()}) == 1, "every arm has the labels of its share, and no others"
    assert {arm: count for arm, (_, _, count) in found.items()} == {
        "only-sup": 0, "made": 0, "semi-supervised": 12 + 3, "made-semi": 12 + 3,
    }  # fmt: skip
    beside = [recipe.detector.unlabelled for recipe, _, _ in found.values()]
    assert beside == [[], [options.pairs, *options.unlabelled]] * 2
    assert found["made-semi"][0].init == found["made"][0].init == str(options.out / "pretrain/fc_ef-made-0/detector")
    table = (options.out / "table.md").read_text()
    (row,) = (line for line in table.splitlines() if line.startswith("| fc_ef | 50 % | semi-supervised |"))
    assert "(one seed: not claimed)" in row.split("|")[-5], "its gain over only-sup is shown"
    plan = (options.out / "plan.md").read_text()
    assert "| fc_ef | made-semi | 1 | 4 |" in plan and "what a teacher reads not counted" in plan


def test_the_semi_supervised_rival_may_be_trained_until_validation_is_flat(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rounds, each beside the unlabelled pairs; held against the baselines that see labels alone."""
    begun: dict[str, tuple[Recipe, int]] = {}

    def noted(recipe: Recipe, out: Path, *more: Any, **beside: Any) -> None:
        begun[out.name.split("-050-0-lr0.001")[1]] = recipe, len(beside.get("unlabelled") or ())
        train_detector(recipe, out, *more, **beside)

    monkeypatch.setattr(trainings, "train_detector", noted)
    baselines, finetune = ["semi-supervised-flat"], replace(SURE, learning_rate=1e-3)
    options = replace(
        options, baselines=baselines, pretraining={}, semi_supervised=[], finetune=finetune, shares=[50],
        flat=FlatOptions(rounds=2, patience=1, least_gain=0.9),
    )  # fmt: skip
    (record,) = run_benchmark(options)
    assert record["arm"] == "semi-supervised-flat" and record["steps"] == 4 * len(begun) == 12
    assert [*begun] == ["-round0", "-round1", ""] and {count for _, count in begun.values()} == {12 + 3}
    inits = [recipe.init for recipe, _ in begun.values()]
    assert inits[0] is None and [Path(str(init)).parent.name[-7:] for init in inits[1:]] == ["-round0", "-round1"]
    assert "until validation is flat" in (options.out / "plan.md").read_text()
    claims = Claims(tuple(BASELINES))
    compared = [other for other in BASELINES if is_compared("semi-supervised-flat", other)]
    assert compared == ["only-sup", "scratch-flat", "scratch-equal"] and not claims.hold(50, "semi-supervised-flat")


def test_an_arm_may_rehearse_the_set_of_its_pretraining(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same labels and steps as without; the set beside them is its own."""
    begun: dict[str, tuple[Recipe, Any]] = {}

    def noted(recipe: Recipe, out: Path, *more: Any, **beside: Any) -> None:
        begun[out.name.split("-050")[0]] = recipe, beside.get("rehearsed")
        train_detector(recipe, out, *more, **beside)

    monkeypatch.setattr(trainings, "train_detector", noted)
    options = replace(options, rehearsed=["made"], finetune=replace(SURE, rehearsed_share=0.75))
    records = run_benchmark(options)
    assert [record["arm"] for record in records][-1] == "made-rehearsed" and {r["steps"] for r in records} == {4}
    found = {name: (recipe.detector.rehearsed, recipe.detector.rehearsed_share) for name, (recipe, _) in begun.items()}
    assert found.pop("fc_ef-made-rehearsed") == (options.pretraining["made"], 0.75)
    assert set(found.values()) == {("", 0.5)} and len(found) == 5
    pairs = {name: rehearsed for name, (_, rehearsed) in begun.items() if rehearsed is not None}
    assert list(pairs) == ["fc_ef-made-rehearsed"] and len(pairs["fc_ef-made-rehearsed"]) == 6
    assert begun["fc_ef-made-rehearsed"][0].init == begun["fc_ef-made"][0].init
    assert "| fc_ef | made-rehearsed | 1 | 4 |" in (options.out / "plan.md").read_text()
    with pytest.raises(OutputError, match=r"was begun with settings of made-rehearsed = 0\.75"):
        Benchmark(replace(options, finetune=replace(SURE, rehearsed_share=0.5))).freeze()
    for changed, message in (
        (replace(options, rehearsed=["nobody"]), r"rehearsed is \['nobody'\]"),
        (replace(options, rehearsed=[]), r"finetune\.rehearsed_share is 0\.75; allowed: its default"),
        (replace(options, finetune=replace(SURE, rehearsed="x")), r"finetune\.rehearsed is 'x'; .* protocol"),
        (replace(options, finetune=replace(SURE, rehearsed_share=1.0)), r"finetune\.rehearsed_share is 1\.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            changed.check()


def test_what_chooses_weights_is_not_rehearsed(options: BenchmarkOptions) -> None:
    """Said before any training; a set that is pre-trained on alone may hold it."""
    file = Path(options.pretraining["made"]) / "B" / "train1.png"
    file.unlink()
    file.symlink_to(Path(options.pairs) / "val" / "A" / "val1.png")
    Benchmark(plain(options)).refuse_test_scenes()
    with pytest.raises(
        ConfigError, match=r"rehearsed made: .*train1\.png is in the validation split too; leave it out"
    ):
        Benchmark(replace(options, rehearsed=["made"])).refuse_test_scenes()


def test_they_may_be_added_to_a_folder_that_was_begun_without_them(options: BenchmarkOptions) -> None:
    Benchmark(plain(options)).freeze()
    begun = json.loads((options.out / "benchmark.json").read_text())
    assert not [
        name
        for stage in ("pretrain", "finetune")
        for name in begun[stage]
        if "unlabelled" in name or "rehearsed" in name
    ]
    Benchmark(options).freeze()
    begin(Benchmark(options), "fc_ef-only-sup-050-0")
    arms = json.loads((options.out / "benchmark.json").read_text())["arms"]
    assert arms.keys() == {"made", "semi-supervised", "made-semi"}
    Benchmark(plain(options)).freeze()
    wrongs: tuple[dict[str, Any], ...] = ({"finetune": replace(SURE, unlabelled_weight=0.5)}, {"unlabelled": []})
    for wrong in wrongs:
        with pytest.raises(OutputError, match="was begun with settings of made-semi"):
            Benchmark(replace(options, **wrong)).freeze()


def test_what_would_do_nothing_is_refused(options: BenchmarkOptions) -> None:
    alone = plain(options)
    for changed, message in (
        (replace(alone, unlabelled=["x"]), r"unlabelled is \['x'\]; allowed: nothing without an arm that sees it"),
        (replace(alone, finetune=SURE), r"finetune\.unlabelled_confidence is 0\.6; allowed: its default"),
        (replace(options, pretrain=SURE), r"pretrain\.unlabelled_confidence is 0\.6; allowed: its default"),
        (replace(options, finetune=replace(SURE, unlabelled=["x"])), r"finetune\.unlabelled is \['x'\]; .* protocol"),
        (replace(options, finetune=replace(SURE, unlabelled_ramp=2.0)), r"finetune\.unlabelled_ramp is 2\.0"),
        (replace(options, semi_supervised=["nobody"]), r"semi_supervised is \['nobody'\]"),
        (replace(options, zero_shot_only=["made"]), r"semi_supervised is \['made'\]; .* -semi is free"),
        (replace(alone, claims_for=["semi-supervised"]), "claims_for is"),
        (replace(options, pretraining={"semi-supervised": "x"}), "pretraining is"),
    ):
        with pytest.raises(ConfigError, match=message):
            changed.check()
    replace(options, claims_for=["semi-supervised", "made-semi"], rivals=["made-semi"]).check()
    replace(options, baselines=["semi-supervised-flat"], claims_for=["semi-supervised-flat"]).check()


def test_test_images_are_known_by_their_pixels(options: BenchmarkOptions) -> None:
    """Whatever they are called and stored as, on either date; among unlabelled pairs and in a set to pre-train on."""
    Benchmark(options).refuse_test_scenes()
    image = Image.open(Path(options.pairs) / "test" / "B" / "test2.png")
    for folder, where in ((options.unlabelled[0], "unlabelled "), (options.pretraining["made"], "pretraining made")):
        (file,) = (Path(folder) / "A").glob("train1.*")
        kept = file.read_bytes()
        file.unlink()
        image.save(file.with_suffix(".tif"), compression="tiff_lzw")
        shutil.move(Path(folder) / "B" / file.name, Path(folder) / "B" / f"{file.stem}.tif")
        Image.open(Path(folder) / "B" / f"{file.stem}.tif").save(Path(folder) / "B" / f"{file.stem}.tif")
        with pytest.raises(
            ConfigError, match=rf"^{where}.*train1\.tif is .*test2\.png of the test split; leave it out$"
        ):
            Benchmark(options).refuse_test_scenes()
        file.with_suffix(".tif").unlink()
        file.write_bytes(kept)
        Benchmark(options).refuse_test_scenes()
    with pytest.raises(ConfigError, match="of the val split"):
        shutil.copyfile(Path(options.pairs) / "val/A/val1.png", Path(options.unlabelled[0]) / "A" / "train1.png")
        Benchmark(options).refuse_test_scenes()


@pytest.mark.parametrize(("learns", "held"), [("train", "test"), ("train", "val"), ("val", "test")])
def test_splits_of_the_dataset_are_held_against_each_other(options: BenchmarkOptions, learns: str, held: str) -> None:
    """Whether an arm sees unlabelled pairs or none does: a tile that is saved twice."""
    options = plain(options)
    Benchmark(options).refuse_test_scenes()
    file = Path(options.pairs) / learns / "B" / f"{learns}1.png"
    shutil.copyfile(Path(options.pairs) / held / "A" / f"{held}2.png", file)
    split = {"train": "training", "val": "validation"}[learns]
    with pytest.raises(
        ConfigError, match=rf"^{split} split of {options.pairs}: {file} is .*{held}2\.png of the {held} split; leave it"
    ):
        run_benchmark(options)
    assert not (options.out / "training").exists()
    Benchmark(replace(options, shares=[0])).refuse_test_scenes()  # nothing is learned from it
    if learns == "train" and held == "val":  # drawn from it: one image may be of many of its pairs
        shutil.rmtree(Path(options.pairs) / "val")
        shutil.copyfile(file, file.with_name("train2.png"))
        Benchmark(replace(options, val_share=50)).refuse_test_scenes()


def test_splits_that_share_a_line_are_refused(options: BenchmarkOptions, tmp_path: Path) -> None:
    """And each image is read once."""
    root = tmp_path / "one"
    (root / "list").mkdir(parents=True)
    for folder in ("A", "B", "label"):
        (root / folder).mkdir()
        for split in ("train", "val", "test"):
            for file in (Path(options.pairs) / split / folder).iterdir():
                shutil.copyfile(file, root / folder / file.name)
    names = {split: [f"{split}{n}.png" for n in range(4)] for split in ("train", "val", "test")}
    options = replace(plain(options), pairs=str(root))

    def write() -> None:
        for split, lines in names.items():
            (root / "list" / f"{split}.txt").write_text("\n".join(lines))

    write()
    read: list[Path] = []
    whole = apart.pixel_hash

    def noted(file: Path, max_megapixels: float | None) -> str | None:
        read.append(file)
        return whole(file, max_megapixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "pixel_hash", noted)
        Benchmark(options).refuse_test_scenes()
    assert len(read) == len(set(read)) == 3 * 8 + 2 * 6
    names["val"].append("test3.png")
    write()
    with pytest.raises(ConfigError, match=r"^validation split of .*/A/test3\.png is in the test split too; leave it"):
        Benchmark(options).refuse_test_scenes()


def test_unlabelled_pairs_of_the_training_split_are_there_once(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known by their pixels, in another format and under other names, too; a pair with one date of another is none of
    them. Looked at once."""
    real, mine = Path(options.pairs) / "train", Path(options.unlabelled[0])
    for date in "AB":
        Image.open(real / date / "train4.png").save(mine / date / "elsewhere.tif")
        shutil.copyfile(real / date / "train5.png", mine / date / "half.png")
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(mine / date / "nothing.png")
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(mine / date / "again.png")
    Image.open(real / "B" / "train6.png").save(mine / "B" / "half.png")
    asked = replace(options, unlabelled=[str(mine), str(real)])
    told = f"unlabelled {mine}: 1 of 7 pairs are in the training split"
    for _ in range(2):
        protocol = Benchmark(asked)
        pairs = protocol.unlabelled
        assert pairs is not None and [len(part) for part in pairs.sets] == [12, 6, 0]
        said = capsys.readouterr().out
        assert told in said and f"unlabelled {real}: 12 of 12 pairs" in said
        protocol.refuse_test_scenes()
        monkeypatch.setattr(apart, "pixel_hash", lambda *_: pytest.fail("looked at again"))
    assert pairs is not None
    first, second = pairs[12], pairs[len(pairs) - 1]
    assert first.image_t1.shape == second.image_t1.shape == (64, 64, 3)
    with pytest.raises(ConfigError, match=r"unlabelled is .*each one once"):
        replace(options, unlabelled=[str(mine)] * 2).check()


def test_unlabelled_pairs_are_those_that_finished_cells_saw(options: BenchmarkOptions) -> None:
    options = replace(options, pretraining={}, semi_supervised=[])
    run_benchmark(options)
    what = f"the unlabelled pairs of {options.unlabelled[0]}"
    folder = Path(options.unlabelled[0])
    other = {date: Image.open(folder / date / "train1.png").transpose(Image.Transpose.ROTATE_90) for date in "AB"}
    for noted in (True, False):  # and of an earlier edition, by what the trainings noted
        if not noted:
            forgotten(Benchmark(options), what)
        for date, image in other.items():
            image.save(folder / date / "more.png")
        with pytest.raises(OutputError, match=rf"out: {what} is not what it was \(other images\); give another --out"):
            run_benchmark(options)
        for date in other:
            (folder / date / "more.png").unlink()
        run_benchmark(options)
    forgotten(Benchmark(options), what)
    shutil.rmtree(options.out / "training")
    with pytest.raises(OutputError, match=rf"has results that depend on {what}, of which an earlier edition noted"):
        run_benchmark(options)
    Benchmark(plain(options)).freeze()


def test_ground_of_one_colour_is_nobodys_scene(options: BenchmarkOptions) -> None:
    for folder in (Path(options.pairs) / "test", Path(options.unlabelled[0])):
        (first,) = (name for name in sorted((folder / "A").iterdir()) if name.stem.endswith("1"))
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(first)
    Benchmark(options).refuse_test_scenes()


def test_scenes_are_known_by_name_where_names_tell(options: BenchmarkOptions) -> None:
    made, real = Path(options.pretraining["made"]), Path(options.pairs)
    records = [{"key": f"train{n}", "source_key": f"A__train{n}", "scene": f"train{n}"} for n in range(6)]

    def write(**changed: Any) -> None:
        lines = [records[0] | changed, *records[1:]]
        (made / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    write()
    Benchmark(options).refuse_test_scenes()
    for changed in (
        {"source_key": "B__test3"},
        {"scene": "city/test3"},
        {"donors": [{"key": "train9"}, {"key": "A__test3_0000_0064"}]},
        {"donors": ["train9", "A__test3_0000_0064"]},  # as first editions have them
    ):
        write(**changed)
        with pytest.raises(ConfigError, match=r"train0\.png is of test3, as test3 of the test split is; leave it out"):
            Benchmark(options).refuse_test_scenes()
        (options.out / apart.SEEN).unlink(missing_ok=True)
    oddities: tuple[dict[str, Any], ...] = (
        {"donors": 3, "scene": 4},
        {"donors": [7, None]},
        {"donors": {"key": 3}, "source_key": []},
    )
    for odd in oddities:
        write(**odd)
        Benchmark(options).refuse_test_scenes()
    write(scene="city/test3")
    for date in "AB":  # names that the training split bears too tell nothing
        shutil.copyfile(real / "train" / date / "train1.png", real / "train" / date / "test3.png")
    shutil.copyfile(real / "train" / "label" / "train1.png", real / "train" / "label" / "test3.png")
    Benchmark(options).refuse_test_scenes()
    assert not apart._names_in("0001") and apart._names_in("a/B__town_7_0256_0512") == {"town_7_0256_0512", "town_7"}


def test_it_is_looked_at_once(options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    Benchmark(options).refuse_test_scenes()

    def never(*_: object) -> None:
        raise AssertionError("looked at again")

    monkeypatch.setattr(apart, "held_of", never)
    Benchmark(options).refuse_test_scenes()
    Benchmark(plain(options)).refuse_test_scenes()
    image = Path(options.unlabelled[0]) / "A" / "train0.png"
    Image.open(image).transpose(Image.Transpose.ROTATE_90).save(image)
    with pytest.raises(AssertionError, match="looked at again"):
        Benchmark(options).refuse_test_scenes()


def test_the_command_says_so_in_one_line(options: BenchmarkOptions, capsys: pytest.CaptureFixture[str]) -> None:
    test = str(Path(options.pairs) / "test")
    words = ["benchmark", "--pairs", options.pairs, "--baselines", "semi-supervised", "--unlabelled", f"[{test}]"]
    assert command([*words, "--shares", "[50]", "--out", str(options.out)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"changeanywhere: error: unlabelled {test}: ") and told.count("\n") == 1
    assert not (options.out / "training").exists()


@pytest.mark.parametrize(
    ("method", "how"), [("copy_paste", "{}"), ("patch_exchange", "{}"), ("patch_exchange", "{within: 1}")]
)
def test_rivals_come_from_the_same_machine_labelled_dates(
    options: BenchmarkOptions, tmp_path: Path, method: str, how: str
) -> None:
    """As ``label`` leaves both dates of an unlabelled pair: two tiles of one scene, with the segmenter's name."""
    source = tmp_path / "labelled"
    for date in "AB":
        tiles = write_source(tmp_path / date, 4)
        for folder in ("images", "masks"):
            (source / folder / date).mkdir(parents=True)
            for file in (tiles / folder).iterdir():
                shutil.move(file, source / folder / date / file.name)
    shutil.copyfile(tmp_path / "A" / "legend.json", source / "legend.json")
    with (source / "provenance.csv").open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["patch", "scene", "labelled_by"])
        rows.writerows([f"{date}/tile_{n}", f"tile_{n}", "segmenter x"] for date in "AB" for n in range(4))
    arguments = ["generate", "--source", str(source), "--out", str(tmp_path / "set"), "--method", method]
    assert command([*arguments, "--num-pairs", "8", "--tile-size", "64", "--painter-options", how]) == 0
    records = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert {record["labelled_by"] for record in records} == {"segmenter x"}
    assert {record["scene"] for record in records} <= {f"tile_{n}" for n in range(4)}
    pairs = load_pairs(tmp_path / "set")
    assert len(pairs) == 8 and any(record["donors"] for record in records) == (how == "{}")
    assert np.mean([pair.change_mask.any() for pair in (pairs[n] for n in range(8))]) >= 0.5
    if how != "{}":  # windows that change places bring no pixel that was not there
        changed = [pairs[n] for n in range(8) if pairs[n].change_mask.any()]
        for pair in changed:
            first, second = (set(map(tuple, i.reshape(-1, 3))) for i in (pair.image_t1, pair.image_t2))
            assert second <= first
    rival = replace(plain(options), pretraining={"rival": str(tmp_path / "set")}, shares=[0, 50], rivals=["rival"])
    assert [record["arm"] for record in run_benchmark(rival)] == ["rival", "only-sup", "rival"]
    (held,) = (Path(options.pairs) / "test" / "A").glob("test0.png")
    for date in "AB":  # now one of its scenes is of the test split
        shutil.move(Path(options.pairs) / "test" / date / held.name, Path(options.pairs) / "test" / date / "tile_1.png")
    shutil.move(Path(options.pairs) / "test/label/test0.png", Path(options.pairs) / "test/label/tile_1.png")
    with pytest.raises(ConfigError, match=r"is of tile_1, as tile_1 of the test split is"):
        run_benchmark(replace(rival, out=tmp_path / "other"))
