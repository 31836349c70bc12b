"""The zero- and few-shot protocol on tiny data: cells, lists, tables, resuming, failing."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab

from changeanywhere import leases
from changeanywhere.benchmark import protocol, trainings
from changeanywhere.benchmark.options import BenchmarkOptions, Claims, FlatOptions
from changeanywhere.benchmark.pictures import COLOURS, curves, learning_curves, outcome
from changeanywhere.benchmark.protocol import Benchmark, flags, run_benchmark
from changeanywhere.benchmark.published import read_published
from changeanywhere.benchmark.sharing import alone
from changeanywhere.benchmark.statistics import (
    MIN_SCENES,
    degrees_of_freedom,
    groups_of,
    paired_gain,
    scene_of,
    scenes_of,
    visible_gain,
)
from changeanywhere.benchmark.summary import summarise
from changeanywhere.benchmark.tables import gain_text
from changeanywhere.benchmark.trainings import Cell, is_flat
from changeanywhere.cli import run as command
from changeanywhere.errors import ConfigError, InUseError, ModelError, OutputError, PairsError, ShortfallError
from changeanywhere.evaluation.figures import MIN_TILES
from changeanywhere.legend import load_legend
from changeanywhere.machine import this_machine
from changeanywhere.pairs import load_pairs
from changeanywhere.storage import atomic_write
from changeanywhere.training.detection import ChangeScores
from changeanywhere.training.detector import train_detector
from changeanywhere.training.recipe import DetectorRecipe, Recipe, RunRecipe
from test_detector_training import write_pairs

STEPS = DetectorRecipe(crop_size=64, batch_size=4, num_steps=4, warmup_steps=1)


@pytest.fixture
def options(tmp_path: Path) -> BenchmarkOptions:
    real = write_pairs(tmp_path / "real")
    generated = write_pairs(tmp_path / "generated")
    for folder in ("A", "B", "label"):  # as generate writes it: one folder of all
        shutil.move(generated / "train" / folder, generated / folder)
    tables = tmp_path / "paper.csv"
    tables.write_text(
        "benchmark,labels_percent,detector,pretraining,f1\nsquares,50,FC-EF,none,12.3\nother,50,FC-EF,x,9\n"
    )
    return BenchmarkOptions(
        out=tmp_path / "out", name="squares", pairs=str(real), detectors=["fc_ef"], shares=[0, 50], seeds=[0, 1],
        pretraining={"made": str(generated)}, pretrain=STEPS, finetune=STEPS, run=RunRecipe(num_workers=0),
        learning_rates=[1e-3, 1e-4], candidates=2, paper_tables=tables,
        num_panels=2, baselines=["only-sup"],
    )  # fmt: skip


def begin(benchmark: Benchmark, name: str = "fc_ef-made-000-0") -> None:
    """As a run leaves OUT behind that has finished a cell."""
    benchmark.freeze()
    cell = benchmark.options.out / "cells" / f"{name}.json"
    cell.parent.mkdir(exist_ok=True)
    cell.write_text(json.dumps({"scenes": {scene: [1, 1, 1, 1] for scene in benchmark.scenes}}))


def test_whole_protocol_and_again(options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    records = run_benchmark(options)
    assert [(r["arm"], r["share"], r["seed"]) for r in records] == [
        ("made", 0, 0), ("only-sup", 50, 0), ("made", 50, 0), ("only-sup", 50, 1), ("made", 50, 1),
    ]  # fmt: skip
    test = load_pairs(options.pairs, "test")
    for record in records:
        assert sum(record[k] for k in vars(ChangeScores(0, 0, 0, 0))) == len(test) * 64 * 64
        assert np.sum(list(record["scenes"].values())) == len(test) * 64 * 64
    tuned = [r for r in records if r["share"]]
    assert {r["learning_rate"] for r in tuned} <= {1e-3, 1e-4} and {r["steps"] for r in tuned} == {4}
    trained = {f.parent.name: json.loads(f.read_text()) for f in options.out.glob("training/*/result.json")}
    for arm in ("only-sup", "made"):  # both rates at the first seed, the better one at the second
        assert len([name for name in trained if f"-{arm}-050-0-" in name]) == 2
        assert len([name for name in trained if f"-{arm}-050-1-" in name]) == 1
    assert {len(result["curve"]) for result in trained.values()} == {2}, "every arm has as many candidates"
    assert not list(options.out.rglob("checkpoint.pt")) and (options.out / "plan.md").is_file()
    weights = {folder.parent.name for folder in options.out.glob("training/*/detector")}
    assert weights and all("-050-0-" in name for name in weights), "of the first seed alone"
    table = (options.out / "table.md").read_text()
    assert "| fc_ef | 50 % | only-sup | 2 | 4 | 2 × 2 |" in table and "12.3" in table and "(all changed)" in table
    assert re.search(r"^\| fc_ef \+ made \| [\d.]+ ± [\d.]+ \|", table, re.M), "a row per arm, as in the paper"
    assert "| the paper's fc_ef | 12.3 | - | - | - |" in table and "for all 2 comparisons" in table
    assert "## Zero-shot" in table and "## Many labels" in table and "## Few labels" not in table
    tex = (options.out / "table.tex").read_text()
    assert tex.count(r"\begin{tabular}") == 2 and tex.count(r"\\") == 4 + 6
    assert len((options.out / "cells.csv").read_text().splitlines()) == 1 + len(records)
    for name in ("curves.svg", "learning.svg"):
        assert "polyline" in (options.out / name).read_text()
    with Image.open(options.out / "panels.png") as panels:
        assert panels.size == (5 * 68, 2 * 68)
    lists = {f.name: f.read_text().splitlines() for f in (options.out / "lists").iterdir()}
    assert set(lists) == {"50-seed0.txt", "50-seed1.txt"} and len(lists["50-seed0.txt"]) == 6
    assert lists["50-seed0.txt"] != lists["50-seed1.txt"]

    def never(*_: object) -> None:
        raise AssertionError("finished cells are not trained again")

    monkeypatch.setattr(trainings, "train_detector", never)
    assert run_benchmark(options) == records


def test_several_processes_share_the_cells(
    options: BenchmarkOptions, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command three times: every training once, every cell once, and each sees all scores at its end."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums depend on the number of threads
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=run_benchmark, args=(options,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    told = capfd.readouterr()
    scored = re.findall(r"cell \d of 5: (\S+)", told.out)
    assert set(scored) == {cell.key for cell in Benchmark(options).cells()}
    trained = list(options.out.glob("*/*/result.json"))
    assert told.err.count("from step 0") == len(trained) == 1 + 2 * 2 + 2
    assert not (options.out / "leases").exists()
    shared = {file.name: json.loads(file.read_text()) | {"seconds": 0} for file in options.out.glob("cells/*")}
    shutil.rmtree(options.out)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = run_benchmark(options)
    finally:
        torch.set_num_threads(threads)
    assert [shared[f"{Cell(*(r[k] for k in vars(Cell('', '', 0, 0)))).key}.json"] for r in alone] == [
        r | {"seconds": 0} for r in alone
    ]


def test_three_arms_without_pretraining(options: BenchmarkOptions) -> None:
    """Equal totals, and rounds at the full rate until validation is flat, ended by the schedule of every other arm."""
    flat = FlatOptions(num_steps=2, rounds=3, patience=1, least_gain=0.5)  # nobody gains so much in two steps
    arms = ["only-sup", "scratch-flat", "scratch-equal"]
    alone = replace(options, pretraining={}, baselines=arms, flat=flat, shares=[50], seeds=[0], learning_rates=[1e-3])
    records = {record["arm"]: record for record in run_benchmark(alone)}
    assert {arm: record["steps"] for arm, record in records.items()} == {
        "only-sup": 4, "scratch-equal": 8, "scratch-flat": 3 * 2 + 4,
    }  # fmt: skip
    assert [step for step, _ in records["scratch-flat"]["curve"]] == [2, 4, 6, 8, 10]
    recipe = options.out / "training" / "fc_ef-scratch-flat-050-0-lr0.001-round1" / "training/detector/recipe.json"
    assert json.loads(recipe.read_text())["detector"]["schedule"] == "constant"
    runs = [
        json.loads(file.read_text())["run"] for file in sorted(recipe.parents[3].glob("*flat*/training/*/recipe.json"))
    ]
    assert len(runs) == 4 and len({run["seed"] for run in runs}) == 4, "no round sees again what one before has seen"
    assert not is_flat([0.1], 1, 0.01) and is_flat([0.5, 0.505], 1, 0.01) and not is_flat([0.5, 0.52], 1, 0.01)
    assert not is_flat([0.0, 0.0, 0.0], 2, 0.01), "it has not begun"
    assert not is_flat([0.5, 0.4, 0.6], 2, 0.01) and is_flat([0.5, 0.4, 0.3], 2, 0.01)


@pytest.mark.parametrize(
    "short",
    [
        {"finetune": replace(STEPS, warmup_steps=2), "flat": FlatOptions(num_steps=2)},
        {
            **{"finetune": replace(STEPS, num_steps=5, warmup_steps=4), "flat": FlatOptions(num_steps=4)},
            **{"baselines": ["only-sup"], "until_flat": ["made"]},
        },
        {"finetune": DetectorRecipe(batch_size=4), "finetune_epochs": 10, "warmup_epochs": 2, "flat": FlatOptions(3)},
    ],
)
def test_a_round_that_would_never_reach_the_full_rate_is_refused(
    options: BenchmarkOptions, short: dict[str, Any]
) -> None:
    """Every round warms up anew."""
    asked = replace(options, baselines=["scratch-flat"], shares=[50])
    with pytest.raises(ConfigError, match=r"flat\.num_steps is \d; allowed: more than the \d steps of warm-up"):
        run_benchmark(replace(asked, **short))
    assert not (options.out / "benchmark.json").exists(), "it may be mended in the same folder"
    Benchmark(replace(asked, **short | {"baselines": ["only-sup"], "until_flat": []})).freeze()


def test_rehearsed_arms_are_fine_tuned_until_validation_is_flat_too(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed: dict[str, str | None] = {}

    def noted(recipe: Recipe, out: Path, *more: Any, **beside: Any) -> None:
        rehearsed[out.name] = recipe.detector.rehearsed
        assert ("rehearsed" in beside) == bool(recipe.detector.rehearsed)
        train_detector(recipe, out, *more, **beside)

    monkeypatch.setattr(trainings, "train_detector", noted)
    flat, arms = FlatOptions(num_steps=2, rounds=2), ["made-rehearsed", "made"]
    asked = replace(options, until_flat=arms, rehearsed=["made"], seeds=[0], flat=flat, learning_rates=[], shares=[50])
    records = {record["arm"]: record for record in run_benchmark(asked)}
    assert list(records) == ["only-sup", "made", "made-flat", "made-rehearsed", "made-rehearsed-flat"]
    assert [record["steps"] for record in records.values()] == [4, 4, 8, 4, 8]
    assert {name for name, folder in rehearsed.items() if folder} == {
        name for name in rehearsed if "rehearsed" in name
    } and len(rehearsed) == 1 + 1 + 1 + 3 + 1 + 3
    with pytest.raises(
        ConfigError, match=r"until_flat is \['made-rehearsed'\]; allowed: names of pretraining, pretrained, "
    ):
        replace(options, until_flat=["made-rehearsed"]).check()


def test_pretrained_arms_fine_tuned_until_validation_is_flat_too(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, Path | None] = {}

    def noted(recipe: Recipe, out: Path, *more: Any) -> None:
        begun[out.name] = Path(recipe.init) if recipe.init else None
        train_detector(recipe, out, *more)

    monkeypatch.setattr(trainings, "train_detector", noted)
    flat = FlatOptions(num_steps=2, rounds=2)
    asked = replace(options, until_flat=["made"], seeds=[0], flat=flat, learning_rates=[], rivals=["made-flat"])
    zero, alone, made, until = run_benchmark(asked)
    assert [zero["arm"], alone["arm"], made["arm"], until["arm"]] == ["made", "only-sup", "made", "made-flat"]
    assert (made["steps"], until["steps"]) == (4, 2 * 2 + 4)
    assert until["pretraining_steps"] == made["pretraining_steps"] == 4 and until["pretraining_seed"] == 0
    first, second, last = (folder for name, folder in begun.items() if name.startswith("fc_ef-made-flat-"))
    rounds = [name for name in begun if name.startswith("fc_ef-made-flat-")]
    assert first == options.out / "pretrain" / "fc_ef-made-0" / "detector"
    assert (second, last) == tuple(options.out / "training" / name / "detector" for name in rounds[:2])
    assert "| fc_ef | made-flat | 1 | up to 8 |" in (options.out / "plan.md").read_text()
    refused: tuple[dict[str, Any], ...] = (
        {"until_flat": ["only-sup"]},
        {"until_flat": ["made"], "zero_shot_only": ["made"]},
    )
    for wrong in refused:
        with pytest.raises(ConfigError, match="until_flat"):
            replace(options, **wrong).check()


@pytest.mark.parametrize(("steps", "count"), [(5, 4), (6, 4), (9, 4), (8, 4), (3, 3)])
def test_every_training_has_as_many_candidates_as_the_table_says(
    options: BenchmarkOptions, steps: int, count: int
) -> None:
    tuning = replace(STEPS, num_steps=steps)
    asked = replace(options, shares=[50], seeds=[0], learning_rates=[1e-3], candidates=4, finetune=tuning, num_panels=0)
    for record in run_benchmark(replace(asked, pretraining={})):
        assert record["candidates"] == len(record["curve"]) == count and record["curve"][-1][0] == steps
    assert f"1 × {count} |" in (options.out / "table.md").read_text()
    frozen = json.loads((options.out / "benchmark.json").read_text())["finetune"]
    assert "validations" not in frozen, "folders that were begun before it go on"


def test_lengths_in_epochs_of_the_share(options: BenchmarkOptions) -> None:
    epochs = replace(options, finetune=DetectorRecipe(batch_size=4), finetune_epochs=10, warmup_epochs=2)
    tuning = Benchmark(epochs).trainings.tuning
    assert (tuning(50, 0).num_steps, tuning(50, 0).warmup_steps) == (15, 3), "6 pairs, 4 a step"
    assert (tuning(100, 0).num_steps, tuning(100, 0).warmup_steps) == (30, 6)
    with pytest.raises(ConfigError, match=r"finetune\.num_steps is 4"):
        replace(options, finetune_epochs=10).check()


def test_pretrained_detectors_are_shared_and_handed_in(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = replace(options, pretrain_out=tmp_path / "shared", pretrain_seeds=[3, 4], shares=[0])
    assert [r["seed"] for r in run_benchmark(shared)] == [3, 4]
    assert {f.name for f in (tmp_path / "shared").iterdir()} == {"fc_ef-made-3", "fc_ef-made-4"}
    other = replace(shared, pretrain=replace(STEPS, num_steps=5), out=tmp_path / "other")
    with pytest.raises(ShortfallError, match="was pre-trained otherwise"):
        run_benchmark(other)

    def never(*_: object) -> None:
        raise AssertionError("pre-trained detectors are not trained again")

    monkeypatch.setattr(trainings, "train_detector", never)
    assert len(run_benchmark(replace(shared, out=tmp_path / "second"))) == 2
    given = {"given": str(tmp_path / "shared" / "fc_ef-made-3")}
    third = replace(shared, out=tmp_path / "third", pretraining={}, pretrain_out=None, pretrained=given)
    (record,) = run_benchmark(third)
    assert record["arm"] == "given" and record["pretraining_steps"] == 0 and record["seed"] == 3, "once for two seeds"
    table, plan = ((third.out / f"{name}.md").read_text() for name in ("table", "plan"))
    assert "(one seed: not claimed)" in table and "± 0.0" not in table
    assert "Zero-shot, one pre-training: no gain can be claimed." in plan and "show four times" not in plan
    both = replace(shared, out=tmp_path / "both", pretrained=given, shares=[0, 50], dry_run=True)
    assert run_benchmark(both) == []
    plan = (both.out / "plan.md").read_text()
    assert "One pre-training: no gain can be claimed of given at 50 %." in plan
    assert "that 2 seeds at 2 pre-trainings show" in plan and "corrected for 4 comparisons" in plan
    assert "Zero-shot, one pre-training: no gain can be claimed of given." in plan and "Zero-shot: Gain" in plan
    with pytest.raises(ConfigError, match="no detector; expected"):
        Benchmark(replace(options, pretraining={}, pretrained={"given": str(tmp_path)}))
    with pytest.raises(ConfigError, match="pretrained is"):
        replace(options, pretrained={"made": "x"}).check()


def test_a_plan_before_the_run(options: BenchmarkOptions) -> None:
    dry = replace(options, dry_run=True, step_seconds={"fc_ef": 3600.0}, seeds=[0, 1, 2])
    assert run_benchmark(dry) == [] and not (options.out / "cells").exists()
    plan = (options.out / "plan.md").read_text()
    assert "| fc_ef | pre-training on made | 1 | 4 | 4.00 |" in plan
    assert "| fc_ef | only-sup | 4 | 16 | 16.00 |" in plan, "both rates at the first of three seeds"
    assert "One pre-training: no gain can be claimed." in plan
    other = replace(dry, pretrain_seeds=[0, 1], out=options.out.parent / "other")
    run_benchmark(other)
    plan = (other.out / "plan.md").read_text()
    assert "3 seeds at 2 pre-trainings" in plan and "corrected for 2 comparisons" in plan
    with pytest.raises(ConfigError, match="step_seconds"):
        replace(options, step_seconds={"bit_r18": 1.0}).check()


def test_a_plan_counts_the_trainings_that_only_choose_a_rate(options: BenchmarkOptions) -> None:
    """At another share than is scored, and with more seeds than are scored: what a run makes is what was planned."""
    one = replace(options, pretraining={}, shares=[100], rate_at=50, seeds=[0], num_panels=0)
    few = replace(one, rate_at=None, seeds=[0, 1], seeds_at={100: 1}, rate_seeds=2, out=options.out / "few")
    for asked, count in ((one, 3), (few, 4)):
        run_benchmark(asked)
        assert f"| fc_ef | only-sup | {count} | {4 * count} |" in (asked.out / "plan.md").read_text()
        assert len(list(asked.out.glob("training/*/result.json"))) == count
    made = replace(options, shares=[50], seeds=[0, 1], pretrain_seeds=[0, 1, 2], out=options.out / "made")
    run_benchmark(made)
    assert "| fc_ef | pre-training on made | 2 | 8 |" in (made.out / "plan.md").read_text()
    assert len(list(made.out.glob("pretrain/*/result.json"))) == 2, "two seeds go on from two of the three"


def test_a_plan_says_what_could_be_seen_without_labels(options: BenchmarkOptions) -> None:
    """Gains over calling everything changed are claimed there, with a seed for each pre-training."""
    dry = replace(options, shares=[0], dry_run=True, pretrain_seeds=[0, 1, 2])
    run_benchmark(dry)
    plan = (options.out / "plan.md").read_text()
    assert "Zero-shot: Gain in F1 (points) that 3 pre-trainings show four times in five, corrected for 1" in plan
    assert f"2 → {100 * (visible_gain(0.02, 3, 1) or 0):.1f}" in plan and "nothing to see" not in plan
    alone = replace(dry, pretrain_seeds=[0], out=options.out / "alone")
    run_benchmark(alone)
    assert "Zero-shot, one pre-training: no gain can be claimed." in (alone.out / "plan.md").read_text()
    both = replace(dry, shares=[0, 50], out=options.out / "both")
    run_benchmark(both)
    plan = (both.out / "plan.md").read_text()
    assert "that 2 seeds at 2 pre-trainings show" in plan and "Zero-shot: Gain" in plan
    unclaimed = replace(dry, shares=[0, 50], claims_at=[50], out=options.out / "unclaimed")
    run_benchmark(unclaimed)
    assert "Zero-shot" not in (unclaimed.out / "plan.md").read_text()


def test_fewer_seeds_at_large_shares_and_arms_without_fine_tuning(options: BenchmarkOptions) -> None:
    more = {"made": options.pretraining["made"], "rival": options.pretraining["made"]}
    limited = replace(options, pretraining=more, shares=[0, 50, 100], seeds_at={100: 1}, zero_shot_only=["rival"])
    assert [(c.arm, c.share, c.seed) for c in Benchmark(limited).cells()] == [
        ("made", 0, 0), ("rival", 0, 0),
        ("only-sup", 50, 0), ("made", 50, 0), ("only-sup", 50, 1), ("made", 50, 1),
        ("only-sup", 100, 0), ("made", 100, 0),
    ]  # fmt: skip
    for wrong in ({"seeds_at": {50: 0}}, {"seeds_at": {101: 1}}, {"zero_shot_only": ["nobody"]}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            replace(options, **wrong).check()


def test_rates_may_be_chosen_at_one_share(options: BenchmarkOptions) -> None:
    shares = replace(options, shares=[50, 100], seeds=[0], pretraining={}, rate_at=50)
    assert len({record["learning_rate"] for record in run_benchmark(shares)}) == 1
    trained = {folder.name for folder in (options.out / "training").iterdir()}
    assert {f"fc_ef-only-sup-050-0-lr{rate}" for rate in ("0.001", "0.0001")} < trained and len(trained) == 3
    with pytest.raises(ConfigError, match="rate_at is 0"):
        replace(options, rate_at=0).check()


def test_arms_of_which_some_classes_count(options: BenchmarkOptions) -> None:
    """As LEVIR-CD labels buildings alone; the recipe of the pre-training says so."""
    folder = Path(options.pretraining["made"])
    before, after = (np.full((64, 64), index, np.uint8) for index in (1, 5))  # bareland, all of it green
    after[:8] = 4  # but for a row of buildings
    for name in load_pairs(folder).names:
        for place, mask in (("label1", before), ("label2", after)):
            (folder / place).mkdir(exist_ok=True)
            Image.fromarray(mask).save(folder / place / name)
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(folder / "label" / name)
    load_legend("mini").save(folder / "legend.json")
    asked = replace(options, change_classes={"made": ["building"]})
    protocol = Benchmark(asked)
    changed = protocol.trainings.sets["made"][0].change_mask
    assert changed[:8].all() and not changed[8:].any()
    protocol.trainings.pretrained("fc_ef", "made", 0)
    recipe = json.loads((options.out / "pretrain/fc_ef-made-0/training/detector/recipe.json").read_text())
    assert recipe["detector"]["change_classes"] == ["building"]
    with pytest.raises(ConfigError, match="change_classes"):
        replace(options, change_classes={"nobody": ["building"]}).check()


def test_a_failing_cell_leaves_the_others(options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Benchmark.finish

    def sometimes(self: Benchmark, cell: Cell) -> object:
        if cell.arm == "only-sup":
            raise RuntimeError("out of memory")
        return finish(self, cell)

    monkeypatch.setattr(Benchmark, "finish", sometimes)
    with pytest.raises(
        ShortfallError, match=r"2 of 5 cells failed: fc_ef-only-sup-050-0 \(RuntimeError: out of memory\)"
    ):
        run_benchmark(options)
    assert len(list((options.out / "cells").iterdir())) == 3


@pytest.mark.parametrize("error", [MemoryError("no memory"), OSError(28, "No space left")])
def test_whatever_a_cell_fails_of_leaves_the_others_and_their_tables(
    options: BenchmarkOptions,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def sometimes(recipe: Recipe, out: Path, *more: Any, **beside: Any) -> None:
        if "-050-1-lr" in out.name:
            raise error
        train_detector(recipe, out, *more, **beside)

    monkeypatch.setattr(trainings, "train_detector", sometimes)
    asked = replace(options, pretraining={}, shares=[50], seeds=[0, 1, 2], learning_rates=[], num_panels=0)
    with pytest.raises(ShortfallError, match=rf"1 of 3 cells failed: fc_ef-only-sup-050-1 \({type(error).__name__}"):
        run_benchmark(asked)
    assert [cell["seed"] for cell in json.loads((options.out / "results.json").read_text())["cells"]] == [0, 2]
    file = options.out / "failed" / "fc_ef-only-sup-050-1.txt"
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "failed" in line)
    assert line.startswith(f"fc_ef-only-sup-050-1: failed ({type(error).__name__}") and str(file) in line
    assert "in sometimes" in file.read_text(), "where it failed"
    monkeypatch.setattr(trainings, "train_detector", train_detector)
    assert len(run_benchmark(asked)) == 3 and not file.exists()


def test_a_run_that_an_option_ends_leaves_tables_too(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sometimes(recipe: Recipe, out: Path, *more: Any, **beside: Any) -> None:
        if "-050-1-lr" in out.name:
            raise ConfigError("run.compile is True")
        train_detector(recipe, out, *more, **beside)

    monkeypatch.setattr(trainings, "train_detector", sometimes)
    with pytest.raises(ConfigError, match=r"run\.compile"):
        run_benchmark(replace(options, pretraining={}, shares=[50], seeds=[0, 1, 2], num_panels=0))
    assert [cell["seed"] for cell in json.loads((options.out / "results.json").read_text())["cells"]] == [0]


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        (
            {"backbones": {"siam_unet_lite0": "/no/such/file.pth"}},
            ConfigError,
            r"^backbones: siam_unet_lite0: .*/no/such/file\.pth: no such file",
        ),
        ({"backbones": {"fc_ef": "any.pth"}}, ModelError, r"^backbones: fc_ef: any\.pth: no such file"),
        ({"finetune": replace(STEPS, crop_size=16)}, ConfigError, r"^finetune\.crop_size is 16; allowed: 32 and more"),
        ({"pretrain": replace(STEPS, crop_size=16)}, ConfigError, r"^pretrain\.crop_size is 16; allowed: 32 and more"),
        (
            {"detectors": ["fc_ef", "lightcdnet_s"], "finetune": replace(STEPS, batch_size=1)},
            ConfigError,
            r"^finetune\.batch_size is 1; allowed: 2 and more",
        ),
        ({"detectors": ["fc_ef", "semantic_unet_lite0"]}, ConfigError, r"generated: has no classes of both dates"),
    ],
)
def test_what_a_later_detector_would_say_is_said_first(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], kind: type[Exception], said: str
) -> None:
    """Of a dry run, too; of a detector whose cells are finished nothing is asked."""

    def never(*_: object) -> None:
        raise AssertionError("nothing is trained before")

    monkeypatch.setattr(trainings, "train_detector", never)
    asked = replace(options, **{"detectors": ["fc_ef", "siam_unet_lite0"], **wrong})
    for dry in (False, True):
        with pytest.raises(kind, match=said):
            run_benchmark(replace(asked, dry_run=dry))
    assert not (options.out / "benchmark.json").exists(), "it may be mended in the same folder"
    monkeypatch.setattr(Benchmark, "is_finished", lambda self, cell: True)
    assert run_benchmark(replace(asked, dry_run=True)) == []


@pytest.mark.parametrize(
    ("long", "said"),
    [
        (
            {"finetune": DetectorRecipe(batch_size=4), "finetune_epochs": 50},
            r"finetune\.warmup_steps is 1000; .* fewer steps than the 75 of fine-tuning at 50 % of the labels \(fine",
        ),
        (
            {"finetune": replace(STEPS, warmup_steps=4)},
            r"finetune\.warmup_steps is 4; .* than the 4 of fine-tuning at 50",
        ),
        ({"finetune": DetectorRecipe(batch_size=4, num_steps=4), "warmup_epochs": 3}, r"warmup_epochs is 3; .* are 4"),
        ({"pretrain": replace(STEPS, warmup_steps=1000)}, r"pretrain\.warmup_steps is 1000; .* the 4 of pre-training"),
    ],
)
def test_a_warmup_leaves_steps_at_the_full_rate(options: BenchmarkOptions, long: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_benchmark(replace(options, shares=[50, 100], **long))
    assert not (options.out / "benchmark.json").exists(), "it may be mended in the same folder"
    Benchmark(replace(options, shares=[0], **long | {"pretrain": STEPS})).freeze()


def test_given_lists_and_wrong_input(options: BenchmarkOptions, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    given = replace(options, lists=tmp_path / "lists")
    with pytest.raises(ConfigError, match=r"50\.txt: cannot be read"):
        Benchmark(given).few(50, 0)
    (tmp_path / "lists" / "50.txt").write_text("train1\ntrain2.png\n")
    assert Benchmark(given).few(50, 0).names == ("train1.png", "train2.png")
    dry = replace(given, shares=[50, 100], pretrain_seeds=[0, 1], dry_run=True, out=tmp_path / "dry")
    assert run_benchmark(dry) == []
    plan = (dry.out / "plan.md").read_text()
    assert "One list of labels: no gain can be claimed of made at 50 %." in plan and "that 2 seeds at 2 pre" in plan
    five, ten = (set(Benchmark(options).few(share, 3).names) for share in (25, 50))
    assert five < ten, "smaller lists are parts of larger ones"
    for wrong, message in (
        ({"detectors": ["unet"]}, "detectors is"),
        ({"test_split": "train"}, "test_split is"),
        ({"pretraining": {"only-sup": "x"}}, "pretraining is"),
        ({"rivals": ["unheard-of"]}, "rivals is"),
        ({"paper_tables": tmp_path / "absent.csv"}, r"absent\.csv: cannot be read"),
        ({"paper_tables": tmp_path / "lists" / "50.txt", "name": "x"}, r"50\.txt: not a table of published figures"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_benchmark(replace(options, **wrong))


def test_validation_pairs_are_held_out_where_there_are_none(options: BenchmarkOptions) -> None:
    shutil.rmtree(Path(options.pairs) / "val")
    with pytest.raises(PairsError, match="no split 'val'"):
        Benchmark(options)
    held = Benchmark(replace(options, val_share=25))
    train, val = set(held.train.names), set(held.val.names)
    assert len(val) == 3 and len(train) == 9 and not train & val
    begin(held)
    assert set((options.out / "lists" / "val.txt").read_text().split()) == val
    with pytest.raises(OutputError, match="val_share = 25, asked now: 50"):
        Benchmark(replace(options, val_share=50)).freeze()
    assert set((options.out / "lists" / "val.txt").read_text().split()) == val, "a refused run changes nothing"
    assert set(held.few(100, 0).names) == train, "all of it is all but the held-out pairs"
    with pytest.raises(
        ConfigError, match=r"val_share is 99; allowed: .* pairs to learn from \(it takes 12 of 12 of train"
    ):
        Benchmark(replace(options, val_share=99))


def test_command(options: BenchmarkOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: squares\npairs: {options.pairs}\ndetectors: [fc_ef]\nshares: [100]\nseeds: [0]\n"
        "baselines: [only-sup]\nrun: {num_workers: 0}\n"
        "pretrain: {num_steps: 1}\nfinetune: {crop_size: 64, batch_size: 4, num_steps: 1, warmup_steps: 0}\n"
    )
    assert command(["benchmark", "--config", str(recipe), "--out", str(tmp_path / "out")]) == 0
    assert "| fc_ef | 100 % | only-sup | 1 |" in capsys.readouterr().out
    assert command(["benchmark", "--out", str(tmp_path / "out")]) == 2


def test_constants_flags_and_gains(options: BenchmarkOptions) -> None:
    constants = Benchmark(options).constants()
    assert constants["nothing changed"]["f1"] is None and constants["all changed"]["recall"] == 1
    counts = list(vars(ChangeScores(0, 0, 0, 0)))
    scores = {name: ChangeScores(**{k: found[k] for k in counts}) for name, found in constants.items()}
    assert flags(scores["all changed"])["collapsed"] == "all changed"
    assert flags(scores["nothing changed"])["collapsed"] == "nothing changed"
    assert flags(ChangeScores(10, 5, 5, 80))["collapsed"] is None
    base = {"detector": "d", "share": 5, "precision": 0.5, "recall": 0.5, "iou": 0.5, "collapsed": None}
    cells = [{**base, "arm": "only-sup", "seed": i, "f1": f} for i, f in enumerate((0.3, 0.4, 0.35, 0.5))]
    cells += [{**base, "arm": "far", "seed": i, "f1": f} for i, f in enumerate((0.7, 0.81, 0.74, 0.9))]
    cells += [{**base, "arm": "near", "seed": i, "f1": f} for i, f in enumerate((0.3, 0.5, 0.3, 0.5))]
    rows = {row["arm"]: row["gains"] for row in summarise(cells, Claims(("only-sup", "near")))}
    gain = rows["far"]["only-sup"]
    assert gain["f1"] == pytest.approx(0.4) and gain["certain"] and gain["sound_f1"] == pytest.approx(0.4)
    assert gain["spread"] == pytest.approx(np.std([0.4, 0.41, 0.39, 0.4], ddof=1))
    assert gain["f1_error"] == pytest.approx(gain["spread"] / 2, rel=0.1), "n seeds: spread over the root of n"
    assert gain["interval"][0] == pytest.approx(0.4 - 4.857 * gain["f1_error"], abs=1e-4), (
        "three comparisons, 3 degrees"
    )
    assert not rows["near"]["only-sup"]["certain"] and set(rows["near"]) == {"only-sup"} and not rows["only-sup"]
    elsewhere = {row["arm"]: row["gains"] for row in summarise(cells, Claims(("only-sup",), (10,), ("far",)))}
    assert not elsewhere["far"]["only-sup"]["certain"] and "(not claimed)" in gain_text(elsewhere["far"]["only-sup"])


def cells_by_scene(found: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Of each seed, by how many of 100 changed px of each scene it found; as many are false."""
    made = []
    for seed, counts in enumerate(found):
        scenes = {f"s{i}": [tp, 100 - tp, 100 - tp, 1000] for i, tp in enumerate(counts)}
        made.append({"seed": seed, "f1": sum(counts) / (100 * len(counts)), "scenes": scenes})
    return made


def test_scenes_are_drawn_anew_too() -> None:
    """A gain that one scene alone carries is less certain than one of all scenes."""
    cells = cells_by_scene
    before = cells([[50] * 8 for _ in range(6)])
    everywhere = paired_gain(cells([[60 + seed % 2] * 8 for seed in range(6)]), before)
    one_scene = paired_gain(cells([[100] + [54 + seed % 2] * 7 for seed in range(6)]), before)
    assert everywhere is not None and one_scene is not None
    assert everywhere.gain == pytest.approx(one_scene.gain, abs=0.01) and one_scene.error > 3 * everywhere.error
    assert everywhere.is_certain(10) and not one_scene.is_certain(10)
    assert paired_gain(before, [{"seed": 9, "f1": 0.5}]) is None
    assert [scene_of("test_12_0256_0512"), scene_of("00012"), scene_of("x_1", "s")] == ["test_12", "00012", "s"]
    assert len({scene_of(f"test_{scene}_{tile}") for scene in range(1, 129) for tile in range(1, 17)}) == 128, (
        "LEVIR-CD"
    )
    assert scene_of("2016_08_03") == "2016_08_03"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_test_scenes_claim_nothing(count: int) -> None:
    """However sure the seeds are: another scene may say otherwise. Scenes without a change say little more."""
    assert MIN_SCENES == MIN_TILES, "from fewer, evaluate --detector gives no verdict"
    one, two = (cells_by_scene([[tp + seed % 2] * count for seed in range(8)]) for tp in (60, 40))
    for cell in (*one, *two):
        cell["scenes"] |= {f"still{i}": [0, 1, 0, 1000] for i in range(10)}
    gain = paired_gain(one, two)
    assert gain is not None and gain.scenes == count and not gain.is_certain(1) and gain.few_scenes
    base = {"detector": "d", "share": 5, "precision": 0.5, "recall": 0.5, "iou": 0.5, "collapsed": None}
    cells = [{**base, **cell, "arm": arm} for arm, group in (("made", one), ("only-sup", two)) for cell in group]
    (found,) = (row["gains"]["only-sup"] for row in summarise(cells) if row["arm"] == "made")
    assert not found["certain"] and gain_text(found).endswith("(few test scenes: not claimed)")


def test_a_gain_that_is_none_is_seldom_claimed_where_scenes_are_few() -> None:
    """Five scenes that differ, many seeds that do not: five show too little of their variance, and are four degrees of
    freedom. Without either, 8.5 % of these are claimed."""
    rng = np.random.default_rng(0)
    claimed = 0
    for _ in range(200):
        scenes = rng.normal(50, 10, 5)
        cells = cells_by_scene([list(scenes + rng.normal(0, 0.1, 5)) for _ in range(12)])
        gain = paired_gain(cells, cells_by_scene([[50] * 5 for _ in range(12)]))
        assert gain is not None and gain.freedom < 6
        claimed += gain.is_certain(1)
    assert claimed / 200 < 0.06


def test_many_scenes_make_nothing_of_few_pretrainings() -> None:
    """Three seeds that happen to be alike are three all the same."""
    rng = np.random.default_rng(0)
    cells = cells_by_scene([list(rng.normal(60, 10, 40)) for _ in range(3)])
    gain = paired_gain(cells, cells_by_scene([[50] * 40 for _ in range(3)]))
    assert gain is not None and 0 < gain.freedom <= 2


def test_plain_numbers_are_no_tiles_of_one_scene() -> None:
    names = [f"area_1_{number:04d}" for number in range(1, 501)]
    assert scenes_of(names, [None] * 500) == names
    assert set(scenes_of(names, ["here"] * 500)) == {"here"}, "a scene that is recorded is one"
    tiles = [f"town_{row:04d}_0256" for row in (0, 256)]
    assert set(scenes_of(tiles, [None] * 2)) == {"town"}, "and so is one of which tiles say their places"
    assert scenes_of(["test_1_2", "test_1_3", "test_2_1"], [None] * 3) == ["test_1", "test_1", "test_2"]
    assert scenes_of(["test_1_2"], [None]) == ["test_1"]
    assert scene_of("x_1", 4) == "4" and scene_of("x_1", 0) == "0"


def test_the_gain_that_could_be_seen_is_seen_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    size = visible_gain(0.05, 8, 12)
    assert size is not None and visible_gain(0.05, 1, 1) is None
    seen = 0
    for _ in range(150):
        cells = [{"seed": s, "f1": 0.5 + d} for s, d in enumerate(rng.normal(size, 0.05, 8))]
        gain = paired_gain(cells, [{"seed": s, "f1": 0.5} for s in range(8)])
        assert gain is not None
        seen += gain.is_certain(12)
    assert 0.68 < seen / 150 < 0.95


def test_seeds_of_one_pretraining_are_drawn_together() -> None:
    """Three pre-trainings of unequal luck: eight seeds are no eight draws of it; one pre-training claims nothing."""
    luck = [0.02, 0.10, 0.18, 0.02, 0.10, 0.18, 0.02, 0.10]
    before = [{"seed": s, "f1": 0.5} for s in range(8)]
    alone = [{"seed": s, "f1": 0.5 + d} for s, d in enumerate(luck)]
    shared = [{**cell, "pretraining_seed": s % 3} for s, cell in enumerate(alone)]
    free, tied = paired_gain(alone, before), paired_gain(shared, before)
    assert free is not None and tied is not None and free.gain == pytest.approx(tied.gain) == pytest.approx(0.09)
    assert (free.seeds, free.pretrainings, free.freedom) == (8, 8, 7) and (tied.pretrainings, tied.freedom) == (3, 2)
    assert free.error == pytest.approx(np.std(luck, ddof=1) / np.sqrt(8), rel=0.05)
    sums = np.array([3 * 0.02, 3 * 0.10, 2 * 0.18]) - np.array([3, 3, 2]) * 0.09
    assert tied.error == pytest.approx(np.sqrt(3 / 2 * (sums**2).sum()) / 8, rel=0.12), "between pre-trainings alone"
    assert free.is_certain(1) and not tied.is_certain(1)
    one = paired_gain([{**cell, "pretraining_seed": 0} for cell in alone], before)
    assert one is not None and one.error == pytest.approx(free.error) and not one.is_certain(1)
    assert one.interval(1) == (float("-inf"), float("inf")) and one.pretrainings == 1
    base = {"detector": "d", "share": 5, "precision": 0.5, "recall": 0.5, "iou": 0.5, "collapsed": None}
    cells = [{**base, **cell, "arm": "only-sup"} for cell in before]
    cells += [{**base, **cell, "arm": "made", "pretraining_seed": 0} for cell in alone]
    (gain,) = (row["gains"]["only-sup"] for row in summarise(cells) if row["arm"] == "made")
    assert gain["interval"] is None and gain_text(gain).endswith("(one pre-training: not claimed)")


def test_on_one_given_list_of_labels_nothing_is_claimed(options: BenchmarkOptions, tmp_path: Path) -> None:
    """Its luck is in every seed: drawn as eight draws, a gain that is none was claimed in 60 % of runs."""
    before = [{"seed": seed, "f1": 0.4 + 0.01 * (seed % 2), "one_list": True} for seed in range(4)]
    better = [{"seed": seed, "f1": 0.6, "one_list": True, "pretraining_seed": seed} for seed in range(4)]
    assert groups_of(list(zip(better, before, strict=True))) == [[0, 1, 2, 3]]
    gain = paired_gain(better, before)
    assert gain is not None and gain.one_list and not gain.freedom and not gain.is_certain(1) and gain.error > 0
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "50.txt").write_text("train1\ntrain2\n")
    asked = replace(options, lists=lists, pretraining={}, baselines=["only-sup", "scratch-equal"], learning_rates=[])
    asked = replace(asked, shares=[50, 100], pretraining=options.pretraining, pretrain_seeds=[0, 1], num_panels=0)
    records = run_benchmark(asked)
    assert all(record.get("one_list", False) == (record["share"] == 50) for record in records)

    def told() -> list[str]:
        lines = (options.out / "table.csv").read_text().splitlines()
        return [line for line in lines if re.match(r"fc_ef,50 %,made,", line)]

    assert told() and told()[0].count("(one list of labels: not claimed)") == 2
    assert "one list" not in "".join(
        line for line in (options.out / "table.csv").read_text().splitlines() if "100 %" in line
    )
    before_this = told()
    for file in (options.out / "cells").iterdir():  # of an earlier edition
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "one_list"}))
    Benchmark(asked).write_results()
    assert told() == before_this


def test_groups_of_pretrainings() -> None:
    def cells(*seeds: int | None) -> list[dict[str, int]]:
        return [{} if seed is None else {"pretraining_seed": seed} for seed in seeds]

    def groups(one: list[dict[str, int]], two: list[dict[str, int]]) -> list[list[int]]:
        return groups_of(list(zip(one, two, strict=True)))

    assert groups(cells(None, None, None), cells(None, None, None)) == [[0], [1], [2]]
    assert groups(cells(0, 1, 0, 1), cells(None, None, None, None)) == [[0, 2], [1, 3]]
    assert groups(cells(0, 1, 0, 1), cells(0, 1, 0, 1)) == [[0, 2], [1, 3]]
    assert groups(cells(0, 1, 2), cells(5, 5, 6)) == [[0, 1], [2]], "the other arm's pre-training ties them"
    assert groups(cells(0, 1, 0, 1), cells(0, 0, 1, 1)) == [[0, 1, 2, 3]]
    values = np.array([1.0, 2.0, 4.0, 7.0])
    assert degrees_of_freedom(values, [[0], [1], [2], [3]]) == 3 and degrees_of_freedom(values, [[0, 1, 2, 3]]) == 0
    # Sums of groups about the mean of 3.5: 3 - 7 and 11 - 7; within: 2 × 0.25 and 2 × 2.25.
    assert degrees_of_freedom(values, [[0, 1], [2, 3]]) == pytest.approx((32 + 5) ** 2 / (32**2 / 1 + 5**2 / 2))
    assert degrees_of_freedom(np.ones(4), [[0, 1], [2, 3]]) == 1


@pytest.mark.parametrize("luck", [0.0, 0.5])
def test_a_gain_that_is_none_is_seldom_claimed_where_pretrainings_are_shared(luck: float) -> None:
    """``luck``: share of the variance that lies between pre-trainings. Drawn as eight seeds, 16 % are claimed."""
    rng = np.random.default_rng(0)
    claimed = 0
    for _ in range(300):
        noise = np.sqrt(luck) * rng.normal(size=3)[np.arange(8) % 3] + np.sqrt(1 - luck) * rng.normal(size=8)
        cells = [{"seed": s, "f1": 0.5 + d, "pretraining_seed": s % 3} for s, d in enumerate(0.05 * noise)]
        gain = paired_gain(cells, [{"seed": s, "f1": 0.5} for s in range(8)])
        assert gain is not None
        claimed += gain.is_certain(1)
    assert claimed / 300 < 0.08


def test_the_gain_that_could_be_seen_at_shared_pretrainings() -> None:
    few, many, none = (visible_gain(0.05, 8, 12, count) for count in (3, 8, 1))
    assert none is None and many == visible_gain(0.05, 8, 12) and few is not None and many is not None and few > many
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(150):
        cells = [{"seed": s, "f1": 0.5 + d, "pretraining_seed": s % 3} for s, d in enumerate(rng.normal(few, 0.05, 8))]
        gain = paired_gain(cells, [{"seed": s, "f1": 0.5} for s in range(8)])
        assert gain is not None
        seen += gain.is_certain(12)
    assert 0.65 < seen / 150 < 0.95


def test_gains_are_differences_seed_by_seed() -> None:
    """What one draw of labels is worth cancels; a seed that one arm lacks counts in no gain."""
    base = {"detector": "d", "share": 5, "precision": 0.5, "recall": 0.5, "iou": 0.5, "collapsed": None}
    cells = [{**base, "arm": "only-sup", "seed": i, "f1": f} for i, f in enumerate((0.3, 0.5, 0.7, 0.1))]
    cells += [{**base, "arm": "better", "seed": i, "f1": f} for i, f in enumerate((0.34, 0.53, 0.75))]
    cells += [{**base, "arm": "elsewhere", "seed": 9, "f1": 0.9}]
    rows = {row["arm"]: row for row in summarise(cells)}
    gain = rows["better"]["gains"]["only-sup"]
    assert gain["f1"] == pytest.approx(0.04) and gain["certain"] and gain["f1_error"] < 0.01 and gain["seeds"] == 3
    assert rows["better"]["f1_error"] > 0.1, "the spread over seeds is far larger than the gain"
    assert rows["elsewhere"]["gains"] == {}


def test_gains_over_collapsed_cells_say_so() -> None:
    base = {"detector": "d", "share": 5, "precision": 0.5, "recall": 0.5, "iou": 0.5}
    cells = [
        {**base, "arm": "only-sup", "seed": seed, "f1": f1, "collapsed": None if f1 else "nothing changed"}
        for seed, f1 in enumerate((None, None, 0.5))
    ]
    cells += [{**base, "arm": "made", "seed": seed, "f1": 0.6, "collapsed": None} for seed in range(3)]
    (gain,) = (row["gains"]["only-sup"] for row in summarise(cells) if row["arm"] == "made")
    assert gain["collapsed"] == 2 and gain["f1"] == pytest.approx(1.3 / 3) and gain["sound_f1"] == pytest.approx(0.1)
    assert "collapsed in 2 pairs of cells: +10.0 where neither has" in gain_text(gain)


def test_other_settings_on_the_same_folder_are_refused(options: BenchmarkOptions, tmp_path: Path) -> None:
    begin(Benchmark(options))
    more = replace(options, pretraining=options.pretraining | {"again": options.pretraining["made"]}, seeds=[0, 1, 2])
    Benchmark(more).freeze()
    for wrong, name in (
        ({"finetune": replace(STEPS, num_steps=5)}, r"finetune\.num_steps = 4, asked now: 5; "),
        ({"rate_at": 50}, "rate_at"),
        ({"pretraining": {"made": options.pairs + "/train"}}, "pretraining of made"),
    ):
        with pytest.raises(OutputError, match=f"was begun with {name}"):
            Benchmark(replace(options, **wrong)).freeze()
    assert json.loads((options.out / "benchmark.json").read_text())["arms"].keys() == {"made", "again"}
    backed = replace(options, detectors=["fc_ef", "bit_r18"], backbones={"bit_r18": "x.pth"})
    Benchmark(backed).freeze()
    with pytest.raises(OutputError, match=r"was begun with backbones of bit_r18 = 'x\.pth', asked now: 'y\.pth'"):
        Benchmark(replace(backed, backbones={"bit_r18": "y.pth"})).freeze()


def test_further_seeds_go_behind_those_that_are_there(options: BenchmarkOptions) -> None:
    """Their places say from which pre-training they go on, and which of them choose the rates."""
    begun = replace(options, seeds=[0, 1, 2, 3], pretrain_seeds=[0, 1, 2])
    begin(Benchmark(begun))
    said = (
        r"out: was begun with --seeds \[0, 1, 2, 3\], asked now: \[2, 3, 4\]; .*: "
        r"ask for --seeds \[0, 1, 2, 3, 4\], or give another --out"
    )
    with pytest.raises(OutputError, match=said):
        Benchmark(replace(begun, seeds=[2, 3, 4])).freeze()
    for seeds in ([1, 0, 2, 3], [0, 1, 3, 2, 4]):
        with pytest.raises(OutputError, match="was begun with --seeds"):
            Benchmark(replace(begun, seeds=seeds)).freeze()
    for seeds in ([0, 1, 2, 3, 4], [0, 1], [0, 1, 2, 3, 4, 5]):
        Benchmark(replace(begun, seeds=seeds)).freeze()
    file = options.out / "benchmark.json"
    noted = json.loads(file.read_text())
    assert noted["seeds"] == [0, 1, 2, 3, 4, 5], "fewer are asked for, and none is forgotten"
    Benchmark(replace(begun, seeds=[7], shares=[0])).freeze()  # without labels none of them is read
    assert json.loads(file.read_text())["seeds"] == noted["seeds"]
    del noted["seeds"]
    file.write_text(json.dumps(noted))  # of a program that did not note them
    Benchmark(replace(begun, seeds=[2, 3])).freeze()
    assert json.loads(file.read_text())["seeds"] == [2, 3]


@pytest.mark.parametrize(
    ("folder", "what"),
    [("real/test", "the test split"), ("real/train", "the training split"), ("generated", "the set of made")],
)
def test_finished_cells_are_believed_of_the_same_pairs_alone(
    options: BenchmarkOptions, folder: str, what: str, tmp_path: Path
) -> None:
    begin(Benchmark(options))
    label = next((tmp_path / folder / "label").iterdir())
    Image.fromarray(255 - np.array(Image.open(label))).save(label)
    with pytest.raises(OutputError, match=f"out: {what} is not what it was .* give another --out"):
        Benchmark(options).freeze()


def forgotten(benchmark: Benchmark, *names: str) -> None:
    """As an earlier edition left ``benchmark.json``, which noted none of these."""
    file = benchmark.options.out / "benchmark.json"
    content = json.loads(file.read_text())
    for name in names:
        del content["contents"][name]
    file.write_text(json.dumps(content))


def test_finished_cells_are_believed_of_the_same_weights_alone(options: BenchmarkOptions, tmp_path: Path) -> None:
    """Of detectors that were handed in, and of backbones from files."""
    given, backbone = tmp_path / "given", tmp_path / "r18.pth"
    given.mkdir()
    (given / "detector.json").write_text('{"name": "fc_ef"}')
    for file in (given / "model.safetensors", backbone):
        file.write_bytes(b"some")
    options = replace(options, pretraining={}, pretrained={"given": str(given)}, backbones={"fc_ef": str(backbone)})
    begin(Benchmark(options), "fc_ef-given-000-0")
    for file, what in ((given / "model.safetensors", "the fc_ef of given"), (backbone, "the backbone of fc_ef")):
        Benchmark(options).freeze()
        file.write_bytes(b"else")
        with pytest.raises(OutputError, match=rf"out: {what} is not what it was \(other weights\); give another --out"):
            Benchmark(options).freeze()
        forgotten(Benchmark(options), what)  # by what they were, nobody knows
        with pytest.raises(OutputError, match=rf"that depend on {what}, .* noted nothing; .* delete .*benchmark\.json"):
            Benchmark(options).freeze()
        file.write_bytes(b"some")
        (options.out / "benchmark.json").unlink()
    Benchmark(options).freeze()
    forgotten(Benchmark(options), "the fc_ef of given")
    (options.out / "cells" / "fc_ef-given-000-0.json").rename(options.out / "cells" / "fc_ef-only-sup-050-0.json")
    Benchmark(options).freeze()  # no cell depends on it
    (given / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read"):
        Benchmark(options).freeze()


def test_finished_cells_are_believed_of_the_list_that_rates_were_chosen_on(
    options: BenchmarkOptions, tmp_path: Path
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "50.txt").write_text("train1\ntrain2\n")
    options = replace(options, pretraining={}, shares=[50], seeds=[0], lists=tmp_path / "lists", rate_at=25)
    with pytest.raises(ConfigError, match=r"25\.txt: cannot be read"):
        Benchmark(options)
    listed, what = tmp_path / "lists" / "25.txt", "the list of 25 %"
    listed.write_text("train3\ntrain4\n")
    run_benchmark(options)
    for noted in (True, False):  # and of an earlier edition, by what the trainings noted
        if not noted:
            forgotten(Benchmark(options), what)
        listed.write_text("train3\ntrain5\n")
        with pytest.raises(OutputError, match=f"{what} is not what it was"):
            run_benchmark(options)
        listed.write_text("train3\ntrain4\n")
        run_benchmark(options)
    assert what in json.loads((options.out / "benchmark.json").read_text())["contents"]


def test_what_nothing_depends_on_may_be_asked_anew(options: BenchmarkOptions, tmp_path: Path) -> None:
    longer = replace(options, finetune=replace(STEPS, num_steps=5))
    run_benchmark(replace(options, dry_run=True))
    noted = options.out / "benchmark.json"
    assert not noted.exists(), "a dry run binds nobody"
    Benchmark(options).freeze()
    Benchmark(replace(options, pretraining={"again": options.pretraining["made"]})).freeze()
    assert json.loads(noted.read_text())["arms"].keys() == {"made", "again"}, "of a process that began just now"
    (options.out / "cells").mkdir()
    Benchmark(longer).freeze()
    assert json.loads(noted.read_text())["finetune"]["num_steps"] == 5
    begin(Benchmark(longer))
    with pytest.raises(OutputError, match=r"was begun with finetune\.num_steps = 5, asked now: 4; give"):
        run_benchmark(replace(options, dry_run=True))
    taken = tmp_path / "generated" / "A" / "train1.png"
    shutil.copyfile(tmp_path / "real" / "test" / "A" / "test1.png", taken)
    other = replace(options, out=tmp_path / "other", shares=[0])
    with pytest.raises(ConfigError, match="leave it out"):
        run_benchmark(other)
    for folder in ("A", "B", "label"):
        (tmp_path / "generated" / folder / "train1.png").unlink()
    assert len(run_benchmark(other)) == 1


def test_recorded_scenes_may_be_numbers_and_must_be_those_of_the_cells(
    options: BenchmarkOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, file = replace(options, shares=[0]), tmp_path / "real" / "test" / "metadata.jsonl"

    def write(*scenes: object) -> None:
        file.write_text("".join(json.dumps({"key": f"test{n}", "scene": s}) + "\n" for n, s in enumerate(scenes)))

    write(4, 4, 0, "x")
    (record,) = run_benchmark(options)
    assert record["scenes"].keys() == {"4", "0", "x"}
    assert "3 test scenes; with fewer than 5 that have a change no gain is claimed" in capsys.readouterr().out
    write(4, 4, 5, "x")
    cell = options.out / "cells" / "fc_ef-made-000-0.json"
    with pytest.raises(OutputError, match=rf"{cell}: was scored on other test scenes \(on 0, .*; delete it, and"):
        run_benchmark(options)
    cell.unlink()
    (record,) = run_benchmark(options)
    assert record["scenes"].keys() == {"4", "5", "x"}


def test_intervals_are_for_all_that_is_planned(options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for what is finished by then: what is declared does not depend on when one looks."""
    whole = Benchmark.finish

    def finish(self: Benchmark, cell: Cell) -> None:
        if cell.seed == 1 or cell.share == 100:
            raise KeyboardInterrupt
        whole(self, cell)

    monkeypatch.setattr(Benchmark, "finish", finish)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(replace(options, shares=[0, 50, 100], claims_at=[50, 100]))
    assert "for all 2 comparisons" in " ".join((options.out / "table.md").read_text().split())
    base = {"detector": "d", "precision": 0.5, "recall": 0.5, "iou": 0.5, "collapsed": None, "share": 5}
    cells = [{**base, "arm": "only-sup", "seed": s, "f1": 0.5} for s in range(4)]
    cells += [{**base, "arm": "made", "seed": s, "f1": 0.6 + 0.01 * s} for s in range(4)]
    plan = [("d", share, arm) for share in (5, 10, 20) for arm in ("made", "only-sup")]

    def interval(asked: list[tuple[str, int, str]]) -> list[float]:
        (row,) = (row for row in summarise(cells, Claims(), asked) if row["arm"] == "made")
        found: list[float] = row["gains"]["only-sup"]["interval"]
        return found

    assert interval(plan)[0] < interval([])[0] < interval([])[1] < interval(plan)[1]


def test_a_run_that_ends_early_leaves_tables_of_what_is_finished(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Benchmark.finish

    def finish(self: Benchmark, cell: Cell) -> None:
        if cell.share:
            raise KeyboardInterrupt
        whole(self, cell)

    monkeypatch.setattr(Benchmark, "finish", finish)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(options)
    assert [cell["arm"] for cell in json.loads((options.out / "results.json").read_text())["cells"]] == ["made"]


def test_an_interrupted_fine_tuning_goes_on_under_another_spelling_of_out(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(options.run, save_every=1)
    asked = replace(
        options, run=run, shares=[50], seeds=[0], learning_rates=[1e-3], baselines=[], out=Path("out21"), num_panels=0
    )
    monkeypatch.chdir(options.out.parent)
    stop = Event()

    def stopped(recipe: Recipe, *given: Any, **beside: Any) -> Path:
        if recipe.init:
            stop.set()
        return train_detector(recipe, *given, **beside)

    monkeypatch.setattr(trainings, "train_detector", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(asked, stop=stop)
    assert list(asked.out.glob("training/*/training/detector/checkpoint.pt"))
    monkeypatch.setattr(trainings, "train_detector", train_detector)
    (record,) = run_benchmark(replace(asked, out=asked.out.absolute()))
    assert record["arm"] == "made"


def test_a_run_that_waits_for_others_can_be_stopped_and_makes_what_they_are_not_at(options: BenchmarkOptions) -> None:
    asked, stop = replace(options, shares=[50], baselines=["only-sup"], pretraining={}, seeds=[0]), Event()
    first = "fc_ef-only-sup-050-0-lr0.001"
    with alone(options.out, first):
        Timer(8, stop.set).start()
        with pytest.raises(KeyboardInterrupt):
            run_benchmark(asked, stop=stop)
    made = sorted(file.parent.name for file in options.out.glob("training/*/result.json"))
    assert made == ["fc_ef-only-sup-050-0-lr0.0001"], "the other rate"


def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells without a training."""

    def finish(self: Benchmark, cell: Cell) -> None:
        atomic_write(self.options.out / "cells" / f"{cell.key}.json", b"{}")

    monkeypatch.setattr(Benchmark, "finish", finish)
    monkeypatch.setattr(protocol, "POLL", 0.1)


def test_what_a_machine_that_is_gone_was_at_is_taken_over(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or this one, before it was started anew."""
    quickly(monkeypatch)
    monkeypatch.setattr(leases, "EXPIRES_AFTER", 1.0)
    monkeypatch.setattr(leases, "TOLD_AFTER", 0.0)
    stop = Event()
    benchmark = Benchmark(replace(options, shares=[50], pretraining={}, seeds=[0]), stop=stop)
    (cell,) = benchmark.cells()
    lease = options.out / "leases" / f"{cell.key}.json"
    holder = {"machine": "othernode boot pid:[1]", "pid": 4242, "started": "1", "token": "t", "renewals": 3}
    atomic_write(lease, json.dumps(holder).encode())
    timer = Timer(60, stop.set)
    timer.start()
    assert protocol._finish_all(benchmark, [cell]) == [] and benchmark.is_finished(cell)
    timer.cancel()
    told = capsys.readouterr().err
    assert told.count("waiting for process 4242 on othernode") == 1 and str(lease) in told
    assert not lease.parent.exists()


def test_a_training_that_another_process_is_at_is_no_failure(
    options: BenchmarkOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly(monkeypatch)
    finish, refused = Benchmark.finish, list[str]()

    def busy(self: Benchmark, cell: Cell) -> None:
        if cell.key not in refused:
            refused.append(cell.key)
            raise InUseError("out: process 7 on far is training in it")
        finish(self, cell)

    monkeypatch.setattr(Benchmark, "finish", busy)
    benchmark = Benchmark(replace(options, shares=[50], pretraining={}))
    cells = list(benchmark.cells())
    assert protocol._finish_all(benchmark, cells) == [] and len(refused) == len(cells) == 2
    assert all(map(benchmark.is_finished, cells))


def test_what_dead_processes_left_is_swept_where_pretrainings_are_shared_too(
    options: BenchmarkOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly(monkeypatch)
    monkeypatch.setattr(Benchmark, "write_results", lambda self: [])
    asked = replace(options, pretrain_out=tmp_path / "shared")
    dead = {"machine": this_machine(), "pid": 2**22 + 1, "started": "1", "token": "t", "renewals": 3}
    for folder in (asked.out, tmp_path / "shared"):
        atomic_write(folder / "leases" / "gone.json", json.dumps(dead).encode())
    run_benchmark(asked)
    assert not list(tmp_path.glob("*/leases"))


def test_a_folder_is_begun_while_somebody_is_at_it(options: BenchmarkOptions, tmp_path: Path) -> None:
    """Pre-training into a shared folder leaves nothing in OUT for hours."""
    options = replace(options, pretrain_out=tmp_path / "shared")
    longer, file = replace(options, finetune=replace(STEPS, num_steps=5)), options.out / "benchmark.json"
    first = Benchmark(options)
    first.freeze()
    with alone(options.out, "fc_ef-made-050-0"):
        before = file.read_bytes()
        said = r"finetune\.num_steps = 4, asked now: 5; .*at work there: .*fc_ef-made-050-0\.json; if none is"
        with pytest.raises(OutputError, match=said):
            Benchmark(longer).freeze()
        with pytest.raises(OutputError, match=said):
            Benchmark(longer).freeze(write=False)
        assert file.read_bytes() == before
        Benchmark(options).freeze()  # the same command shares it
        first.confirm()
    assert not (options.out / "leases").exists()
    late = Benchmark(options)
    late.freeze()
    Benchmark(longer).freeze()  # nobody is at it any more
    with (
        alone(options.out, "fc_ef-made-050-0"),
        pytest.raises(ConfigError, match=r"was begun with finetune\.num_steps = 5, asked now: 4"),
    ):
        late.finish(Cell("fc_ef", "made", 50, 0))  # it would be a cell of other options


def test_cells_are_held_to_the_options_they_were_made_with(
    options: BenchmarkOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Benchmark, "score", lambda self, cell: {"scenes": {scene: [1, 1, 1, 1] for scene in self.scenes}}
    )
    monkeypatch.setattr(trainings.Trainings, "forget", lambda self, cell: None)
    benchmark, cell = Benchmark(options), Cell("fc_ef", "made", 50, 0)
    benchmark.finish(cell)
    more = replace(options, shares=[0, 50, 100], seeds=[0, 1, 2], detectors=["fc_ef", "bit_r18"])
    again = replace(options, pretraining=options.pretraining | {"again": options.pretraining["made"]})
    for further in (more, again):
        assert len(Benchmark(further).finished()) == 1
    moved = replace(options, out=tmp_path / "moved", pairs=str(shutil.copytree(options.pairs, tmp_path / "copy")))
    shutil.copytree(options.out / "cells", moved.out / "cells")
    assert len(Benchmark(moved).finished()) == 1, "made on another machine, where the data lies elsewhere"
    (options.out / "benchmark.json").unlink()
    for other in (replace(options, candidates=1), replace(options, pretrain=replace(STEPS, num_steps=5))):
        with pytest.raises(
            OutputError, match=r"fc_ef-made-050-0\.json: was scored with other options, .* delete it and"
        ):
            Benchmark(other).finished()
    file = options.out / "cells" / f"{cell.key}.json"
    record = json.loads(file.read_text())
    del record["frozen"]  # of an earlier edition
    file.write_text(json.dumps(record))
    assert len(Benchmark(replace(options, candidates=1)).finished()) == 1


def uncompressed(root: Path) -> None:
    for file in sorted(root.rglob("*.png")):
        if file.parent.name != "label":
            Image.open(file).save(file.with_suffix(".tif"))
            file.unlink()


@pytest.mark.parametrize(
    ("folder", "what"),
    [
        ("real/test", "the test split"),
        ("real/train", "the training split"),
        ("generated", "the set of made"),
        ("further", "the unlabelled pairs of .*further"),
    ],
)
def test_finished_cells_are_believed_of_the_same_images_alone(
    options: BenchmarkOptions, folder: str, what: str, tmp_path: Path
) -> None:
    """Images without compression have one size, whatever they show."""
    for root in (tmp_path / "real", tmp_path / "generated"):
        uncompressed(root)
    shutil.copytree(tmp_path / "generated", tmp_path / "further")
    for image in [*(tmp_path / "further" / "A").iterdir(), *(tmp_path / "further" / "B").iterdir()]:
        Image.fromarray(np.array(Image.open(image)) ^ 1).save(image)  # else those of the training split, passed over
    baselines = ["only-sup", "semi-supervised"]
    options = replace(options, unlabelled=[str(tmp_path / "further")], baselines=baselines)
    begin(Benchmark(options))
    file = options.out / "benchmark.json"
    noted = json.loads(file.read_text())
    assert all(found.startswith("bytes:") for found in noted["contents"].values())
    found = Benchmark(options)
    assert found.contents == Benchmark(options).contents
    image = next((tmp_path / folder / "A").iterdir())
    facts = image.stat()
    Image.fromarray(255 - np.array(Image.open(image))).save(image)
    os.utime(image, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as cp -p leaves it
    assert image.stat().st_size == facts.st_size
    with pytest.raises(OutputError, match=f"out: {what} is not what it was .* give another --out"):
        Benchmark(options).freeze()
    sized = {name: content.sized for name, content in found.contents.items()}
    file.write_text(json.dumps(noted | {"contents": sized}))  # of an earlier edition, which cannot know
    Benchmark(options).freeze()
    assert json.loads(file.read_text())["contents"].keys() == sized.keys()
    assert all(found.startswith("bytes:") for found in json.loads(file.read_text())["contents"].values())
    label = next((tmp_path / "real/test/label").iterdir())
    Image.fromarray(255 - np.array(Image.open(label))).save(label)
    file.write_text(json.dumps(noted | {"contents": sized}))
    with pytest.raises(OutputError, match="the test split is not what it was"):
        Benchmark(options).freeze()


def test_shared_pretrainings_are_of_the_same_backbone_and_classes(
    options: BenchmarkOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(recipe: Recipe, out: Path, *_: Any) -> None:
        atomic_write(out / "detector" / "detector.json", b"{}")

    monkeypatch.setattr(trainings, "train_detector", trained)
    backbone = tmp_path / "r18.pth"
    backbone.write_bytes(b"some")
    shared = tmp_path / "shared"
    options = replace(options, pretrain_out=shared, backbones={"bit_r18": str(backbone)}, detectors=["bit_r18"])

    def pretrained(detector: str = "bit_r18", **other: Any) -> Path:
        asked = replace(options, out=tmp_path / "second", **other)
        return Benchmark(asked).trainings.pretrained(detector, "made", 0)

    note = pretrained().parent / "result.json"
    moved = tmp_path / "moved.pth"
    shutil.copy(backbone, moved)
    pretrained(backbones={"bit_r18": str(moved)})
    moved.write_bytes(b"else")
    with pytest.raises(OutputError, match="was pre-trained otherwise \\(another backbone, see result"):
        pretrained(backbones={"bit_r18": str(moved)})
    with pytest.raises(OutputError, match="another backbone"):
        pretrained(backbones={})
    made = load_pairs(tmp_path / "generated")
    earlier = {"recipe": json.loads(note.read_text())["recipe"], "pairs": made.content_hash()}
    note.write_text(json.dumps(earlier))
    pretrained()  # of an earlier edition
    note.write_text(json.dumps(earlier | {"pairs": "0" * 16}))
    with pytest.raises(OutputError, match="other pairs"):
        pretrained()
    semantic, classes = {"backbones": {}, "detectors": ["semantic_unet_lite0"]}, "before"
    monkeypatch.setattr(trainings, "hash_of_classes", lambda pairs: classes)
    pretrained("semantic_unet_lite0", **semantic)
    classes = "after"
    with pytest.raises(OutputError, match="other classes"):
        pretrained("semantic_unet_lite0", **semantic)


def test_panels_of_pairs_of_several_sizes_and_of_weights_that_are_gone(options: BenchmarkOptions) -> None:
    def cropped(image: Image.Image) -> Image.Image:
        return image.crop((0, 0, 64, 48))

    for name in ("A", "B", "label"):
        file = sorted((Path(options.pairs) / "test" / name).iterdir())[-1]
        cropped(Image.open(file)).save(file)
    file = sorted((Path(options.pairs) / "test" / "label").iterdir())[0]
    label = np.array(Image.open(file)) // 255
    label[:10] = 255  # nobody knows
    Image.fromarray(label).save(file)
    run_benchmark(replace(options, shares=[50], baselines=["only-sup"]))
    with Image.open(options.out / "panels.png") as panels:
        assert panels.size == (5 * 68, 68 + 52)
        found = np.array(panels)[2:66, 3 * 68 + 2 : 4 * 68 - 2]
    assert (found[:10] == found[0, 0]).all() and len({tuple(pixel) for pixel in found.reshape(-1, 3)}) > 1
    gone = replace(options, shares=[50], baselines=["only-sup"], seeds=[1, 0])  # seed 1 has no weights any more
    assert len(Benchmark(gone).write_results()) == 4


def test_what_would_do_nothing_is_refused(options: BenchmarkOptions) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"pretrain": replace(STEPS, train_list="x.txt")}, "pretrain.train_list is 'x.txt'"),
        ({"finetune": replace(STEPS, change_classes=["building"])}, "finetune.change_classes is"),
        ({"pretrain": replace(STEPS, backbone_weights="r18.pth")}, "pretrain.backbone_weights is 'r18.pth'"),
        ({"learning_rates": [1e-3], "rate_at": 50}, "rate_at is 50"),
        ({"backbones": {"bit_r18": "x"}}, "backbones is ['bit_r18']"),
        ({"baselines": ["scratch"]}, "baselines is ['scratch']"),
        ({"finetune": replace(STEPS, learning_rate=0.0)}, "finetune.learning_rate is 0.0"),
        *(({name: [0, 0]}, f"{name} is") for name in ("seeds", "pretrain_seeds")),
        *(({name: ["only-sup", "only-sup"]}, f"{name} is") for name in ("baselines", "rivals")),
        ({"learning_rates": [1e-3, 1e-3]}, "learning_rates is"),
        ({"seeds_at": {50: 3}}, "seeds_at is {50: 3}; allowed: 1 to 100: 1 to 2"),
        ({"seeds_at": {0: 1}}, "seeds_at is {0: 1}; allowed: 1 to 100"),
        ({"seeds_at": {33: 1}}, "seeds_at is [33]; allowed: some of shares"),
        ({"pretraining": {}, "pretrain_out": Path("x")}, "pretrain_out is 'x'; allowed: nothing without pretraining"),
        ({"zero_shot_only": ["made"], "shares": [50]}, "zero_shot_only is ['made']; allowed: nothing where 0"),
        ({"pretraining": {}, "shares": [0]}, "shares is [0]; allowed: some with an arm: 0 needs pretraining or pre"),
        ({"pretraining": {}, "baselines": []}, "shares is [0, 50]; allowed: some with an arm"),
        ({"val_split": "train"}, "val_split is 'train'; allowed: a split apart from train_split"),
        ({"run": RunRecipe(seed=3)}, "run.seed is 3"),
        ({"finetune": replace(STEPS, learning_rate=0.01)}, "finetune.learning_rate is 0.01"),
        ({"finetune": replace(STEPS, val_split=None)}, "finetune.val_split is None; allowed: nothing, the protocol"),
        ({"val_share": 10, "val_split": "test2"}, "val_split is 'test2'"),
        ({"rehearsed": ["made"], "finetune": replace(STEPS, rehearsed_share=0.01)}, "finetune.rehearsed_share is 0.01"),
        ({"rehearsed": ["made"], "detectors": ["semantic_unet_lite0"]}, "detectors is ['semantic_unet_lite0']"),
    ]
    for wrong, message in refused:
        with pytest.raises(ConfigError, match=re.escape(message)):
            replace(options, **wrong).check()


DICHROMATS = {
    "nobody": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""What is left of linear RGB (Machado, Oliveira and Fernandes 2009)."""


@pytest.mark.parametrize("who", DICHROMATS)
def test_arms_are_told_apart_by_their_lines(who: str) -> None:
    rgb = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in ("#ffffff", *COLOURS)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(DICHROMATS[who]).T).clip(0, 1)
    seen = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = rgb2lab(seen[None])[0]
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1)[np.triu_indices(len(lab), 1)]
    assert distances.min() > 25


def test_no_two_arms_have_one_line() -> None:
    """The recipe that ships has eight arms."""
    names = [f"arm{number}" for number in range(23)]
    rows = [{"detector": "x", "arm": arm, "share": s, "f1": 0.5, "f1_error": 0.1} for arm in names for s in (5, 10)]
    records = [{"detector": "x", "arm": arm, "share": 5, "curve": [[1, 0.1], [2, 0.2]]} for arm in names]
    for page in (curves(rows, 0.1), learning_curves(records)):
        lines = re.findall(
            r'<polyline points="[^"]*" fill="none" (stroke="#\w+"(?: stroke-dasharray="[\d ]+")?) ', page
        )
        legend = re.findall(r'h24" (stroke="#\w+"(?: stroke-dasharray="[\d ]+")?) ', page)
        assert len(set(lines)) == len(names) and lines == legend


def test_outcomes_in_colour() -> None:
    prediction, label = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    picture = outcome(prediction, label)
    assert len({tuple(pixel) for pixel in picture[0]}) == 4 and not picture[0, 3].any()


def test_without_a_share_of_labels_no_other_split_is_needed(options: BenchmarkOptions) -> None:
    for split in ("train", "val"):
        shutil.rmtree(Path(options.pairs) / split)
    with pytest.raises(PairsError, match="no split 'train'"):
        Benchmark(options)
    records = run_benchmark(replace(options, shares=[0]))
    assert [(cell["arm"], cell["share"]) for cell in records] == [("made", 0)]
    whole = replace(options, pairs=f"{options.pairs}/test", test_split=None, shares=[0], out=options.out / "whole")
    assert [cell["f1"] for cell in run_benchmark(whole)] == [records[0]["f1"]]
    with pytest.raises(ConfigError, match=r"test_split is None; allowed: a split apart; null with shares \[0\]"):
        replace(whole, shares=[0, 5]).check()


@pytest.mark.parametrize("name", ["benchmark-paper", "benchmark-levir-small", "benchmark-target"])
def test_recipes_are_sound(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They parse and pass every check; what stops them here is that the dataset is elsewhere."""
    recipe = Path(__file__).parents[1] / "recipes" / f"{name}.yaml"
    missing = str(tmp_path / "missing")
    arguments = ["benchmark", "--config", str(recipe), "--pairs", missing, "--out", str(tmp_path / "out")]
    arguments += ["--pretraining", "{mine: x}"] if name == "benchmark-target" else []
    assert command(arguments) == 2
    assert capsys.readouterr().err == f"changeanywhere: error: {missing}: no such folder\n"


def commands() -> list[str]:
    """Those of the documentation, and of the Makefile's targets."""
    root, found = Path(__file__).parents[1], list[str]()
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            found += block.replace("\\\n", " ").splitlines()
    if shutil.which("make") is not None:
        targets = ["benchmark", "benchmark-ablation", "benchmark-sztaki"]
        made = subprocess.run(
            ["make", "-n", "-o", "install", *targets], cwd=root, capture_output=True, text=True, check=True
        )
        found += made.stdout.replace("\\\n", " ").splitlines()
    return [line for line in found if "changeanywhere benchmark " in line]


def test_commands_of_the_pages_and_of_the_makefile_are_sound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They override what they share a recipe for."""
    checked = list[BenchmarkOptions]()

    def check(options: BenchmarkOptions, *_: object) -> list[dict[str, Any]]:
        options.check()
        checked.append(options)
        raise ConfigError("sound")

    monkeypatch.setattr(protocol, "run_benchmark", check)
    asked = commands()
    for line in asked:
        words = shlex.split(line, comments=True)
        words = words[words.index("benchmark") :]
        command([*words, *([] if "--out" in words else ["--out", str(tmp_path)])])
        assert len(checked) == asked.index(line) + 1, line
    assert len(checked) >= 10


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"SECOND,5\n", r"paper\.csv, line 2: has no detector; allowed: a value"),
        (b"other,5\n\nSECOND,5,FC-EF,none\n", r"paper\.csv, line 4: has no f1; allowed: a value"),
        (b"SECOND,five,FC-EF,none,1\n", r"paper\.csv, line 2: labels_percent is 'five'; allowed: 0 to 100"),
        (b"SECOND,500,FC-EF,none,1\n", r"labels_percent is '500'; allowed: 0 to 100"),
        (b'SECOND,5,"FC-EF,none,1\n', r"paper\.csv, line 2: not readable as CSV"),
        (
            b"SECOND,5,FC-EF,none,1,2\n",
            r"line 2: has more values than there are columns; put one",
        ),
        (b"SECOND,5,FC\xff,none,1\n", r"paper\.csv: not readable as UTF-8 .*; save it as UTF-8"),
        (b"SECOND,5," + b"x" * 200_000 + b",none,1\n", r"paper\.csv, line 2: not readable as CSV"),
    ],
)
def test_a_table_of_published_figures_that_is_none_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "paper.csv"
    file.write_bytes(b"benchmark,labels_percent,detector,pretraining,f1\n" + content)
    with pytest.raises(ConfigError, match=said) as raised:
        read_published(file, "SECOND")
    assert "\n" not in str(raised.value)
    for head in (b"", b"benchmark,detector\nSECOND,x\n"):
        file.write_bytes(head)
        with pytest.raises(ConfigError, match=r"no column \w+\); its first line must name benchmark, labels_percent"):
            read_published(file, "SECOND")


def test_the_papers_figures_ship() -> None:
    """Tables 1 to 5, each cell as printed."""
    found = {name: read_published(Path("package"), name) for name in ("SECOND", "SYSU-CD", "LEVIR-CD")}
    assert [len(cells) for cells in found.values()] == [88, 88, 0]
    (cell,) = (c for c in found["SECOND"] if c.is_of("bit_r18") and c.share == 0)
    assert cell.scores == ("47.54", "37.92", "63.73", "31.19") and cell.pretraining == "Ce-100K"
    for name in ("fc_ef", "fc_siam_conc", "snunet_c16", "lightcdnet_b", "changer_ex_r18", "changeformer_mit-b1"):
        assert sum(c.is_of(name) for c in found["SYSU-CD"]) == 11, name
