"""``generate`` and ``simulate`` end to end with a tiny random model: plan, shards, resume, labels, refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import changeanywhere as ca
from changeanywhere.check import check_path
from changeanywhere.cli import run
from changeanywhere.diffusion.options import Sampling
from changeanywhere.errors import ConfigError, OutputError, PairsError, ShortfallError, SourceError
from changeanywhere.events import EventOptions
from changeanywhere.generation import dataset, painting, prepare, shares
from changeanywhere.generation import generate as generation
from changeanywhere.generation import simulate as simulating
from changeanywhere.generation.job import Machine, load_job, refuse_others
from changeanywhere.generation.options import FilterOptions, FinishOptions, GenerateOptions, SimulateOptions
from changeanywhere.generation.painting import build_painter
from changeanywhere.generation.plan import load_shard, load_summary
from changeanywhere.generation.shard import paint_shard
from changeanywhere.generation.shares import plan_set
from changeanywhere.generation.targets import SetTargets
from changeanywhere.legend import load_legend
from changeanywhere.painters.base import Batch, Painting
from changeanywhere.painters.diffusion import DiffusionPainter
from changeanywhere.sample import change_mask_of
from changeanywhere.seals import sealed, unsealed
from changeanywhere.storage import LocalStore
from conftest import tiny_model, write_source


@pytest.fixture
def options(source_folder: Path, tiny_model_folder: Path, tmp_path: Path) -> GenerateOptions:
    return GenerateOptions(
        source=source_folder, out=tmp_path / "out", model=str(tiny_model_folder), num_pairs=7, tile_size=64,
        num_steps=2, shard_size=3, batch_size=2, dtype="float32", num_threads=1, seed=3,
    )  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    skip = {"asked.json"}  # how files looked on this disk
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in skip
    }


def change(options: GenerateOptions, **values: object) -> GenerateOptions:
    return GenerateOptions(**{**vars(options), **values})


def test_dataset_is_complete_and_its_labels_are_true(options: GenerateOptions) -> None:
    report = generation.generate(options)
    assert (report.num_pairs, report.num_new) == (7, 7)
    pairs = ca.load_pairs(options.out)
    assert len(pairs) == 7
    kinds = []
    for pair in (pairs[i] for i in range(7)):
        assert pair.mask_t1 is not None and pair.mask_t2 is not None
        assert np.array_equal(pair.change_mask, change_mask_of(pair.mask_t1, pair.mask_t2))
        assert pair.change_mask.any()
        assert pair.image_t1.shape == pair.image_t2.shape == (64, 64, 3)
        kinds.append(pair.metadata["kind"])
        (event,) = pair.metadata["events"]
        row, column, height, width = event["bbox"]
        assert pair.change_mask.sum() == event["area"]
        assert pair.change_mask[row : row + height, column : column + width].sum() == event["area"]
        original = np.asarray(Image.open(options.source / "images" / f"{pair.metadata['source_key']}.png"))
        assert np.array_equal(pair.image_t1, original)
    assert sorted(kinds) == ["appearance"] * 3 + ["disappearance"] * 4 or kinds.count("appearance") == 4
    lines = [json.loads(line) for line in (options.out / "metadata.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == sorted(line["key"] for line in lines)
    assert (options.out / "report.html").read_text().count('class="pair"') == 7
    assert (options.out / "README.md").read_text().startswith("---\nlicense:")
    listed = [n for s in ("train", "val", "test") for n in (options.out / "list" / f"{s}.txt").read_text().split()]
    assert sorted(listed) == sorted(f"{line['key']}.png" for line in lines)


def test_same_command_again_does_nothing(options: GenerateOptions) -> None:
    generation.generate(options)
    before = tree(options.out)
    assert generation.generate(options).num_new == 0
    assert tree(options.out) == before


@pytest.mark.numerical
def test_interrupted_run_ends_with_the_same_bytes(options: GenerateOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    generation.generate(options)
    unbroken = tree(options.out)
    paint = DiffusionPainter.paint
    for survivors in (1, 3):
        out = options.out.with_name(f"broken_{survivors}")
        calls: list[int] = []

        def dying(
            self: DiffusionPainter, batch: Batch, calls: list[int] = calls, limit: int = survivors
        ) -> list[Painting]:
            calls.append(1)
            if len(calls) > limit:
                raise KeyboardInterrupt
            return paint(self, batch)

        monkeypatch.setattr(DiffusionPainter, "paint", dying)
        with pytest.raises(KeyboardInterrupt):
            generation.generate(change(options, out=out))
        monkeypatch.setattr(DiffusionPainter, "paint", paint)
        report = generation.generate(change(options, out=out))
        assert 0 < report.num_new <= 7
        assert {k: v for k, v in tree(out).items() if k != "report.html"} == {
            k: v for k, v in unbroken.items() if k != "report.html"
        }


def test_a_tile_is_encoded_once_for_all_its_pairs(options: GenerateOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, encode = [], ca.ChangePairPipeline.encode

    def counting(self: ca.ChangePairPipeline, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(ca.ChangePairPipeline, "encode", counting)
    generation.generate(change(options, num_pairs=12, shard_size=4, batch_size=4))  # 6 tiles, 2 pairs each
    assert sizes == [2, 2, 2]


def test_records_come_in_the_order_of_their_keys_from_shards_that_overlap() -> None:
    keys = [["a_0", "a_2", "a_10"], ["a_1_0", "a_1_1"], ["b_0"], ["a_0_0"]]
    read = []

    def of_shard(number: int) -> list[tuple[str, str]]:
        read.append(number)
        return [(key, f"record of {key}") for key in keys[number]]

    merged = dataset.in_key_order([min(names) for names in keys], of_shard)
    assert next(merged) == "record of a_0" and read == [0], "no more is read than may come first"
    assert list(merged) == [f"record of {key}" for key in sorted(n for names in keys for n in names)[1:]]


def test_what_a_killed_process_was_writing_is_swept_away(options: GenerateOptions) -> None:
    generation.generate(options)
    before = tree(options.out)
    dead = subprocess.Popen(["true"])
    dead.wait()
    (options.out / "shards" / "00001.json").unlink()
    ended, alive = (options.out / "label" / f".tile_1_0.png.{pid}.456.part" for pid in (dead.pid, os.getpid()))
    for part in (ended, alive):
        part.write_bytes(b"half")
    generation.generate(options)
    assert alive.exists(), "what a living process writes is left to it"
    alive.unlink()
    assert tree(options.out) == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"files": {}}', None])
def test_a_shard_whose_marker_is_missing_or_damaged_is_made_again(
    options: GenerateOptions, damage: bytes | None
) -> None:
    generation.generate(options)
    before = tree(options.out)
    marker = options.out / "shards" / "00001.json"
    marker.unlink() if damage is None else marker.write_bytes(damage)
    (options.out / "report.html").unlink()
    (options.out / "B" / f"{json.loads(before['shards/00001.json'])['records'][0]['key']}.png").unlink()
    assert generation.generate(options).num_new == 3
    assert tree(options.out) == before


def test_a_marker_is_trusted_and_check_looks_at_the_images(options: GenerateOptions) -> None:
    generation.generate(options)
    victim = sorted((options.out / "B").iterdir())[0]
    victim.unlink()
    assert generation.generate(options).num_new == 0
    with pytest.raises(PairsError, match=rf"{victim.name}: missing; delete .*shards/0000.\.json"):
        check_path(options.out)
    (options.out / "shards" / "00000.json").unlink()
    assert generation.generate(options).num_new == 3
    assert "every image and mask is as it was written" in check_path(options.out)


def test_a_finished_set_of_ten_thousand_is_known_at_once(options: GenerateOptions) -> None:
    """Without torch, without a look at ten thousand images, in less than a second of a core."""
    arguments = [
        *("generate", "--source", str(options.source), "--out", str(options.out), "--model", options.model),
        *("--num-pairs", "7", "--tile-size", "64", "--num-steps", "2", "--shard-size", "3", "--dtype", "float32"),
    ]
    assert run(arguments) == 0
    plan, _ = unsealed((options.out / "plan" / "plan.json").read_bytes())
    plan |= {"num_pairs": 10_000, "first_keys": [f"tile_{n}" for n in range(313)]}
    (options.out / "plan" / "plan.json").write_bytes(sealed(plan))
    for number in range(1, 313):
        shutil.copy(options.out / "shards" / "00000.json", options.out / "shards" / f"{number:05d}.json")
    lines = (options.out / "metadata.jsonl").read_text().splitlines()
    (options.out / "metadata.jsonl").write_text("".join(f"{lines[n % 7]}\n" for n in range(10_000)))
    store = LocalStore(options.out)
    summary = load_summary(store)
    assert summary is not None
    dataset.note_held(store, summary)
    code = (
        "import sys, time\nfrom changeanywhere.cli import run\n"
        f"code = run({arguments!r})\nprint(code, 'torch' in sys.modules, time.process_time())"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    first, *_, last = finished.stdout.splitlines()
    assert first == "nothing to do: all 10000 pairs are there"
    exit_code, torch_came_along, seconds = last.split()
    assert (exit_code, torch_came_along) == ("0", "False") and float(seconds) < 2  # a busy machine counts twice
    mask = options.source / "masks" / "tile_2.png"
    Image.fromarray(np.where(np.asarray(Image.open(mask)) == 4, 3, np.asarray(Image.open(mask)))).save(mask)
    assert run(arguments) == 2, "a corrected mask is noticed"


@pytest.mark.parametrize("begun", ["now", "earlier"])
def test_a_sole_scene_trains_and_a_set_that_was_begun_keeps_its_split(
    begun: str, options: GenerateOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the hash of its one name a whole set was of the split test."""
    source = write_source(options.source.parent / "mosaic", 1, 128)
    for folder in ("images", "masks"):
        (source / folder / "tile_0.png").rename(source / folder / "site.png")
    asked = GenerateOptions(
        source=source, out=options.out, method="copy_paste", num_pairs=4, shard_size=2, tile_size=64
    )
    asked = change(asked, shard_size=2, events=replace(asked.events, min_area=4))
    plan_set(asked)
    said = capsys.readouterr().err
    assert said.count("one scene") == 1 and "train" in said
    job = asked.out / "plan" / "job.json"
    assert unsealed(job.read_bytes())[0]["source"]["sole_trains"] is True
    if begun == "earlier":
        shutil.rmtree(asked.out)
        settings = prepare._settings
        monkeypatch.setattr(prepare, "_settings", lambda *given: replace(settings(*given), sole_trains=False))
        plan_set(asked)
        assert "sole_trains" not in unsealed(job.read_bytes())[0]["source"]
        monkeypatch.setattr(prepare, "_settings", settings)
        capsys.readouterr()
    assert generation.generate(asked).num_new == 4
    assert "one scene" not in capsys.readouterr().err
    splits = {json.loads(line)["split"] for line in (asked.out / "metadata.jsonl").read_text().splitlines()}
    assert splits == {"train" if begun == "now" else "test"}
    assert generation.generate(asked).num_new == 0


def test_sets_of_the_first_edition_are_read_and_not_continued(options: GenerateOptions) -> None:
    generation.generate(options)
    (options.out / "plan" / "settings.json").write_text('{"settings": {}, "missing": {}}')
    pairs = [{"key": f"k{n}", "shard": n // 3} for n in range(7)]
    (options.out / "plan" / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    shutil.rmtree(options.out / "plan" / "shards")
    for name in ("job.json", "plan.json", "asked.json"):
        (options.out / "plan" / name).unlink()
    assert len(ca.load_pairs(options.out)) == 7
    assert "a generated dataset" in check_path(options.out)
    with pytest.raises(OutputError, match=r"was begun by changeanywhere 0\.1.*give another --out"):
        generation.generate(options)


def test_a_job_is_all_that_a_worker_needs(options: GenerateOptions) -> None:
    """Read from its file, in a process that has not seen the options, with what was learned in it."""
    asked = change(options, events=EventOptions(shape_bank=True), learn_transitions=True)
    generation.generate(asked)
    store = LocalStore(options.out)
    before, job = tree(options.out), load_job(store)
    assert job is not None and job.learned.shapes and job.learned.transition_weights
    (options.out / "shards" / "00001.json").unlink()
    shutil.rmtree(options.out / "B")
    painter, job = build_painter(job)
    for number in range(3):
        paint_shard(job, painter, load_shard(store, number), store, progress=lambda count: None, stop=Event())
    assert tree(options.out) == before


def test_other_settings_on_the_same_folder_are_refused(options: GenerateOptions) -> None:
    generation.generate(options)
    with pytest.raises(OutputError, match=r"num_steps = 2, asked now: 3"):
        generation.generate(change(options, num_steps=3))
    with pytest.raises(OutputError, match="seed = 3, asked now: 4"):
        generation.generate(change(options, seed=4))


@pytest.mark.numerical
@pytest.mark.parametrize(("begun", "here"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_set_begun_on_the_other_kind_of_machine_is_finished_alike_and_says_so(
    options: GenerateOptions, begun: str, here: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line; and the precision, here then every byte, is that of the machine which began it."""
    options = change(options, dtype=None, device="cpu")

    def paint_on_a_machine_of(dtype: str) -> list[str]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: dtype == "bfloat16")
        (options.out / "shards" / "00001.json").unlink(missing_ok=True)
        assert generation.generate(options).num_new >= 3
        return [line for line in capsys.readouterr().err.splitlines() if "begun in" in line]

    assert paint_on_a_machine_of(begun) == []
    before = tree(options.out)
    (line,) = paint_on_a_machine_of(here)
    assert line.startswith(f"{options.out}: begun in {begun}") and f"default is {here}" in line
    assert ("slowly" in line) == (here == "float32")
    assert tree(options.out) == before
    prepare._machine(options, frozenset({"device"}), Machine("cpu", begun, 2, 1, False))
    assert "begun in" not in capsys.readouterr().err, "a painter that reads no dtype has no default either"
    assert paint_on_a_machine_of(begun) == []
    for asked, refused in ((begun, False), (here, True)):  # who says it knows it
        given = change(options, dtype=asked)
        with pytest.raises(OutputError, match=r"was made with machine\.dtype") if refused else nullcontext():
            generation.generate(given)
        assert "begun in" not in capsys.readouterr().err


def test_foreign_folder_is_refused_and_left_as_it_is(options: GenerateOptions) -> None:
    options.out.mkdir()
    for name in ("thesis.tex", ".another.png.1.2.part"):
        (options.out / name).write_text("precious")
    with pytest.raises(OutputError, match="not empty"):
        generation.generate(options)
    assert len(tree(options.out)) == 2


def test_an_edited_table_or_legend_map_is_another_setting(options: GenerateOptions, tmp_path: Path) -> None:
    table, mapping = tmp_path / "table.yaml", tmp_path / "map.yaml"
    table.write_text("default: 1\n")
    names = load_legend("mini").names
    mapping.write_text("".join(f"{name}: {name}\n" for name in names))
    edited = change(options, events=EventOptions(transitions=str(table)), legend_map=mapping)
    generation.generate(edited)
    table.write_text("default: 1\nforbid: [[bareland, road]]\n")
    with pytest.raises(OutputError, match=r"was made with learned\.transition_weights"):
        generation.generate(edited)
    table.write_text("default: 1\n")
    mapping.write_text(mapping.read_text().replace("road: road", "road: bareland"))
    with pytest.raises(OutputError, match=r"was made with source\.legend_map\.road"):
        generation.generate(edited)


def test_what_does_not_fit_the_machine_or_the_model_is_said_first(options: GenerateOptions) -> None:
    for wrong, message in (
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"device": "cuda:99"}, "device is 'cuda:99'"),
        ({"bands": [1]}, r"bands is \[1\]; this model takes 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            generation.generate(change(options, **wrong))
        assert not options.out.exists()


def test_a_plan_without_pairs_says_the_same_again(options: GenerateOptions) -> None:
    for file in (options.source / "masks").iterdir():
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(file)
    for _ in range(2):
        with pytest.raises(ShortfallError, match="no change is feasible"):
            generation.generate(options)


def test_credit_goes_into_records_and_card(options: GenerateOptions) -> None:
    rows = ["patch,licence,attribution", *(f"tile_{i},CC-BY-4.0,Ada Lovelace" for i in range(6))]
    (options.source / "provenance.csv").write_text("\n".join(rows))
    generation.generate(change(options, method="copy_paste", num_steps=None, dtype=None, num_threads=None))
    card = (options.out / "README.md").read_text()
    assert "- credit: Ada Lovelace (7 pairs)" in card and "pasted on changed ground" in card
    assert '"attribution": "Ada Lovelace"' in (options.out / "metadata.jsonl").read_text()


def test_default_makes_one_pair_of_each_kind_per_tile(options: GenerateOptions) -> None:
    generation.generate(change(options, num_pairs=None))
    records = [json.loads(line) for line in (options.out / "metadata.jsonl").read_text().splitlines()]
    assert len(records) == 12
    assert {(r["source_key"], r["kind"]) for r in records} == {
        (f"tile_{i}", kind) for i in range(6) for kind in ("appearance", "disappearance")
    }


def test_own_second_masks(options: GenerateOptions, tmp_path: Path) -> None:
    masks = tmp_path / "mine"
    masks.mkdir()
    for number in (0, 2):
        mask = np.asarray(Image.open(options.source / "masks" / f"tile_{number}.png")).copy()
        mask[40:50, 20:30] = 4
        mask[-3:] = 5  # unknown at t1: must stay unknown
        Image.fromarray(mask).save(masks / f"tile_{number}.png")
    report = generation.generate(change(options, masks_t2=masks, num_pairs=None))
    assert report.num_pairs == 2
    pairs = ca.load_pairs(options.out)
    for pair in (pairs[0], pairs[1]):
        assert pair.mask_t2 is not None
        assert pair.change_mask.sum() == 100 and pair.change_mask[40:50, 20:30].all()
        assert (pair.mask_t2[-3:] == 0).all()
    Image.fromarray(mask).save(masks / "stranger.png")
    with pytest.raises(SourceError, match=r"stranger.png: has no image"):
        generation.generate(change(options, masks_t2=masks, num_pairs=None, out=tmp_path / "other"))
    with pytest.raises(ConfigError, match="without num_pairs and targets"):
        generation.generate(change(options, masks_t2=masks, out=tmp_path / "third"))


def test_shortfall_is_said_with_counts_after_writing_what_is_possible(options: GenerateOptions) -> None:
    for file in (options.source / "masks").iterdir():
        Image.fromarray(np.full((64, 64), 1, np.uint8)).save(file)
    mask = np.full((64, 64), 1, np.uint8)
    mask[20:30, 0:10] = 4  # touches the border: can disappear, cannot be copied
    Image.fromarray(mask).save(options.source / "masks" / "tile_3.png")
    with pytest.raises(ShortfallError, match=r"2 of 4 pairs; missing: 2 appearance \(no tile has room for it\)"):
        generation.generate(change(options, num_pairs=4))
    assert len(ca.load_pairs(options.out)) == 2
    with pytest.raises(ShortfallError, match="2 of 4 pairs") as caught:
        generation.generate(change(options, num_pairs=4, layout="opencd"))
    assert isinstance(caught.value.report, generation.GenerateReport)
    exported = caught.value.report.exported
    assert exported is not None and len(list(exported.glob("*/A/*.png"))) == 2


def test_a_tile_without_room_keeps_its_turn(
    options: GenerateOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the paper counts: one appearance and one disappearance of each image, where they are feasible."""
    mask = np.full((64, 64), 1, np.uint8)
    mask[20:30, 0:10] = 4  # touches the border: can disappear, cannot be copied
    Image.fromarray(mask).save(options.source / "masks" / "tile_3.png")
    each = {(f"tile_{i}", kind) for i in range(6) for kind in ("appearance", "disappearance")}

    def made(**values: object) -> tuple[generation.GenerateReport, Counter[tuple[str, str]]]:
        report = generation.generate(change(options, num_pairs=None, **values))
        lines = [json.loads(line) for line in (report.out / "metadata.jsonl").read_text().splitlines()]
        return report, Counter((line["source_key"], line["kind"]) for line in lines)

    usual, kinds = made(out=tmp_path / "elsewhere")
    assert not usual.left_out and kinds.total() == 12 and kinds.keys() == each - {("tile_3", "appearance")}
    what = "appearance (its tile has no room for it)"
    card, page = (tmp_path / "elsewhere" / name for name in ("README.md", "report.html"))
    assert f"Moved to a tile with room: 1 {what}." in card.read_text()
    assert f"<b>1</b>moved to a tile with room: {what}" in page.read_text() and "Left out" not in card.read_text()
    report, kinds = made(infeasible="leave")
    assert kinds == Counter(each - {("tile_3", "appearance")})
    assert report.left_out == {what: 1} and made(infeasible="leave")[0].left_out == {what: 1}
    assert f"<b>1</b>left out: {what}" in (options.out / "report.html").read_text()
    assert "Left out: 1 appearance" in (options.out / "README.md").read_text()
    assert "oved to a tile" not in (options.out / "README.md").read_text() + (options.out / "report.html").read_text()
    with pytest.raises(OutputError, match="infeasible = 'leave', asked now: 'elsewhere'"):
        made()
    words = ["simulate", "--source", str(options.source), "--tile-size", "64", "--infeasible", "leave"]
    assert run([*words, "--out", str(tmp_path / "masks")]) == 0
    said = capsys.readouterr().out
    assert f"left out: 1 {what}" in said and "wrote the masks of 11 pairs" in said
    with pytest.raises(ConfigError, match="infeasible is 'away'; allowed: elsewhere, leave"):
        made(infeasible="away")


def test_a_set_of_some_splits_says_so_and_goes_on(options: GenerateOptions, tmp_path: Path) -> None:
    rows = [f"tile_{i},{'val' if i < 4 else 'train'}" for i in range(6)]
    (options.source / "provenance.csv").write_text("\n".join(["patch,split", *rows]))
    free = {"method": "copy_paste", "num_steps": None, "dtype": None, "num_threads": None, "num_pairs": None}
    given = change(options, splits={"train": "all", "val": 2}, **free)
    assert generation.generate(given).num_pairs == 8
    records = [json.loads(line) for line in (options.out / "metadata.jsonl").read_text().splitlines()]
    assert Counter(record["split"] for record in records) == {"train": 4, "val": 4}
    assert records[0]["settings"]["source"]["splits"] == {"train": "all", "val": 2}
    (options.out / "shards" / "00001.json").unlink()
    assert generation.generate(given).num_new == 3, "from its job.json, as it was chosen"
    with pytest.raises(OutputError, match=r"source\.options\.splits\.val = 2, asked now: 3"):
        generation.generate(replace(given, splits={"train": "all", "val": 3}))
    with pytest.raises(ConfigError, match="nothing beside masks_t2"):
        generation.generate(replace(given, num_pairs=None, masks_t2=options.source / "masks", out=tmp_path / "given"))


@pytest.mark.parametrize("strength", [None, 0.5])
def test_a_free_tail_drawn_by_pair_is_in_its_record(
    options: GenerateOptions, strength: float | None, tmp_path: Path
) -> None:
    given = change(options, free_fraction=[0.0, 0.6], num_steps=8, exemplar_strength=strength)
    generation.generate(given)
    records = [json.loads(line) for line in (options.out / "metadata.jsonl").read_text().splitlines()]
    tails = [record["free_fraction"] for record in records]
    assert len(set(tails)) == 7 and all(0 <= tail <= 0.6 for tail in tails)
    assert records[0]["settings"]["sampling"]["free_fraction"] == [0.0, 0.6]
    drawn = [Sampling(free_fraction=[0.0, 0.6]).settled(record["seed"]).free_fraction for record in records]
    assert tails == drawn, "of the pair's seed"
    pairs = ca.load_pairs(options.out)
    assert [pairs[i].metadata["free_fraction"] for i in range(7)] == tails
    generation.generate(change(given, batch_size=7, out=tmp_path / "other"))
    again = [json.loads(line) for line in (tmp_path / "other" / "metadata.jsonl").read_text().splitlines()]
    assert [record["free_fraction"] for record in again] == tails
    generation.generate(change(given, free_fraction=0.3, out=tmp_path / "fixed"))
    assert '"free_fraction": 0.3' in (tmp_path / "fixed" / "metadata.jsonl").read_text()
    assert "free_fraction" not in json.loads((tmp_path / "fixed" / "shards" / "00000.json").read_text())["records"][0]


@pytest.mark.parametrize("command", ["simulate", "plan", "generate"])
def test_two_commands_that_begin_at_once_are_one_set_or_refused(
    command: str, options: GenerateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each found the place empty; the one that plans first says what is in it."""
    masks = SimulateOptions(source=options.source, out=options.out, num_pairs=7, tile_size=64, legend="mini")
    does: dict[str, tuple[Any, Any, Any]] = {
        "simulate": (simulating, simulating.simulate_source, masks),
        "plan": (shares, plan_set, options),
        "generate": (generation, generation.generate, options),
    }
    module, do, one = does[command]
    other, same = replace(one, events=replace(one.events, fill="nearest")), one
    for second, refused in ((other, True), (same, False)):
        shutil.rmtree(options.out, ignore_errors=True)

        before: dict[str, bytes] = {}

        def beside(*given: Any, before: dict[str, bytes] = before) -> Any:
            job = prepare.job_of(*given)
            monkeypatch.setattr(module, "job_of", prepare.job_of)
            do(one)  # while this one read the source
            before.update(tree_of(options.out))
            return job

        monkeypatch.setattr(module, "job_of", beside)
        with pytest.raises(OutputError, match=r"was made with events\.fill") if refused else nullcontext():
            do(second)
        assert before and {name: content for name, content in tree_of(options.out).items() if name in before} == before


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file, by its place."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_set_whose_groups_did_nothing_goes_on_without_them(options: GenerateOptions) -> None:
    """Earlier editions took ``group_size`` beside a bank of shapes, and drew one shape at a time."""
    given = change(options, events=replace(options.events, shape_bank=True))
    plan_set(given)
    store = LocalStore(options.out)
    job = load_job(store)
    assert job is not None
    job = replace(job, events=replace(job.events, group_size=3))
    name = job.save(store)
    for file in (options.out / "plan").rglob("*.json"):  # as if they had been made of it
        content, _ = unsealed(file.read_bytes())
        if "job" in content:
            file.write_bytes(sealed(content | {"job": name}, indent=1))
    assert generation.generate(given).num_new > 0
    assert generation.generate(given).num_new == 0 and (again := load_job(store)) is not None
    assert again.events == job.events and again.machine is not None, "as its plan names it"


def test_corrected_labels_are_another_source(options: GenerateOptions, tmp_path: Path) -> None:
    """Else the set would say that there is nothing to do, or mix old and new labels."""
    generation.generate(options)
    mask = options.source / "masks" / "tile_2.png"
    Image.fromarray(np.where(np.asarray(Image.open(mask)) == 4, 3, np.asarray(Image.open(mask)))).save(mask)
    with pytest.raises(OutputError, match=r"was made with source\.fingerprint"):
        generation.generate(options)
    second = tmp_path / "mine"
    second.mkdir()
    Image.fromarray(np.full((64, 64), 3, np.uint8)).save(second / "tile_0.png")
    given = change(options, masks_t2=second, num_pairs=None, out=tmp_path / "given")
    generation.generate(given)
    Image.fromarray(np.full((64, 64), 4, np.uint8)).save(second / "tile_0.png")
    with pytest.raises(OutputError, match=r"was made with source\.fingerprint_t2"):
        generation.generate(given)


def test_skipped_masks_of_either_date_are_listed(options: GenerateOptions, tmp_path: Path) -> None:
    second = tmp_path / "mine"
    shutil.copytree(options.source / "masks", second)
    (second / "tile_1.png").write_bytes(b"no image")
    (options.source / "masks" / "tile_4.png").write_bytes(b"no image")
    report = generation.generate(change(options, masks_t2=second, num_pairs=None, on_error="skip"))
    listed = (options.out / "skipped.txt").read_text()
    assert report.num_pairs == 4 and "mine/tile_1.png" in listed and "masks/tile_4.png" in listed
    assert len(report.skipped) == listed.count("\n")


def test_what_was_learned_and_reached_is_said_by_both_commands(
    options: GenerateOptions, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    common = ["--source", str(options.source), "--tile-size", "64", "--num-pairs", "4", "--events.min-area", "16"]
    paint = ["--model", options.model, "--num-steps", "2", "--num-threads", "1", "--dtype", "float32"]
    for command, more in (("simulate", []), ("generate", paint)):
        out = tmp_path / command
        shares = ["--targets.no-change", "0.5"]
        assert run([command, *common, *more, *shares, "--learn-transitions", "--out", str(out)]) == 0
        learned = json.loads((out / "transitions.json").read_text())
        assert learned["weights"]["bareland"]["road"] > 0
        (row,) = json.loads((out / "targets.json").read_text())
        assert row["asked"] == row["reached"] == 0.5
        assert "no change: asked 50.0%, reached 50.0%" in capsys.readouterr().out
        impossible = [
            "--targets.class-pairs",
            '{"informal_settlement->water": 0.5}',
            "--out",
            str(tmp_path / f"{command}x"),
        ]
        assert run([command, *common, *more, *impossible]) == 1
        assert "informal_settlement->water: asked 50.0%, reached 0.0%" in capsys.readouterr().out


def test_dry_run_writes_nothing(options: GenerateOptions) -> None:
    plan = generation.dry_run(options)
    assert plan.num_pairs == 7 and plan.seconds > 0
    assert not options.out.exists()
    generation.generate(options)
    folders = ("A", "B", "label", "label1", "label2")
    written = sum(file.stat().st_size for folder in folders for file in (options.out / folder).iterdir())
    assert plan.num_bytes == pytest.approx(written, rel=0.2)
    again = generation.dry_run(options)
    assert (again.num_bytes, again.seconds) == (0, 0), "nothing is left to do"


def test_geotiff_keeps_bands_dtype_and_place(options: GenerateOptions, tmp_path: Path) -> None:
    import rasterio
    from rasterio.transform import from_origin

    source = tmp_path / "sixteen"
    (source / "images").mkdir(parents=True)
    (source / "masks").mkdir()
    rng = np.random.default_rng(0)
    mask = np.asarray(Image.open(options.source / "masks" / "tile_0.png"))
    place = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_000_000, 0.5, 0.5)}
    with rasterio.open(
        source / "images" / "a.tif", "w", driver="GTiff", height=64, width=128, count=4, dtype="uint16", **place
    ) as file:
        file.write(rng.integers(200, 4000, (4, 64, 128)).astype(np.uint16))
    Image.fromarray(np.hstack([mask, mask])).save(source / "masks" / "a.png")
    (source / "legend.json").write_text((options.source / "legend.json").read_text())
    generation.generate(change(options, source=source, image_format="geotiff", bands=[4, 3, 2], num_pairs=4))
    (record,) = [
        r for r in map(json.loads, (options.out / "metadata.jsonl").read_text().splitlines())
        if r["source_key"] == "a_y00000_x00064" and r["kind"] == "appearance"
    ]  # fmt: skip
    with (
        rasterio.open(options.out / record["B_file_name"]) as second,
        rasterio.open(source / "images" / "a.tif") as all_,
    ):
        assert second.dtypes[0] == "uint16" and second.count == 3 and second.crs.to_epsg() == 32633
        assert second.transform.c == 400_000 + 64 * 0.5
        with rasterio.open(options.out / record["A_file_name"]) as first:
            window = rasterio.windows.Window(64, 0, 64, 64)
            assert np.array_equal(first.read(), all_.read([4, 3, 2], window=window))
    assert record["gsd_m"] == 0.5
    assert (options.out / "report.html").is_file()
    with rasterio.open(options.out / record["label2_file_name"]) as label:
        assert label.crs.to_epsg() == 32633 and label.transform.c == 400_000 + 64 * 0.5
    # Pixels that are put back are the file's own, beyond the stretch too.
    pasted = change(
        options, source=source, image_format="geotiff", bands=[4, 3, 2], num_pairs=4, paste_back=True,
        out=tmp_path / "pasted",
    )  # fmt: skip
    generation.generate(pasted)
    pairs = ca.load_pairs(tmp_path / "pasted")
    for i in range(len(pairs)):
        far = ndimage.distance_transform_edt(~pairs[i].change_mask) >= 8
        assert far.any() and np.array_equal(pairs[i].image_t1[far], pairs[i].image_t2[far])


def test_cli_exit_codes_and_single_lines(
    options: GenerateOptions, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    common = ["--source", str(options.source), "--model", options.model, "--tile-size", "64", "--num-steps", "2"]
    assert run(["generate", *common, "--out", str(options.out), "--num-pairs", "2"]) == 0
    assert "painted 2 pairs" in capsys.readouterr().out
    assert run(["generate", *common, "--out", str(options.out), "--num-pairs", "2"]) == 0
    assert "nothing to do: all 2 pairs are there" in capsys.readouterr().out
    for arguments, text in [
        (["generate", *common], "required: out"),
        (["generate", *common, "--out", str(tmp_path / "x"), "--nonsense", "1"], "nonsense"),
        (
            ["generate", *common, "--out", str(tmp_path / "x"), "--num-pairs", "many"],
            "num_pairs is 'many'; allowed: int or nothing",
        ),
        (["generate", *common, "--out", str(tmp_path / "x"), "--free-fraction", "2"], "free_fraction is 2.0"),
        (["generate", *common, "--out", str(options.out), "--num-pairs", "3"], "num_pairs = 2, asked now: 3"),
        (["generate", "--source", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")], "nowhere: no such folder"),
        (["invent"], "unknown command"),
    ]:
        assert run(arguments) == 2, arguments
        error = capsys.readouterr().err.strip()
        assert text in error.splitlines()[-1] and "Traceback" not in error
    assert run(["check", str(options.out)]) == 0
    assert "every image and mask is as it was written" in capsys.readouterr().out
    (options.out / "list" / "train.txt").unlink()
    assert run(["check", str(options.out)]) == 2
    assert "train.txt: missing; the same generate command makes it again" in capsys.readouterr().err
    assert run(["generate", *common, "--out", str(options.out), "--num-pairs", "2"]) == 0
    assert run(["check", str(options.out)]) == 0
    (options.out / "B" / sorted(p.name for p in (options.out / "B").iterdir())[0]).write_bytes(b"cut")
    assert run(["check", str(options.out)]) == 2
    for folder in (options.source, Path(options.model)):
        assert run(["check", str(folder)]) == 0


def test_config_file_and_flags(options: GenerateOptions, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"source: {options.source}\nmodel: {options.model}\ntile_size: 64\nnum_steps: 2\nnum_pairs: 5\n"
        "events:\n  min_area: 80\n"
    )
    out = tmp_path / "configured"
    assert run(["generate", "--num-pairs", "2", "--config", str(config), "--out", str(out)]) == 0
    assert len(ca.load_pairs(out)) == 2
    assert json.loads((out / "plan" / "job.json").read_text())["events"]["min_area"] == 80
    config.write_text("sauce: here\n")
    assert run(["generate", "--config", str(config), "--out", str(out)]) == 2
    assert "sauce" in capsys.readouterr().err


def test_simulate_writes_masks_that_generate_would_use(options: GenerateOptions, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    arguments = ["--source", str(options.source), "--tile-size", "64", "--num-pairs", "7", "--seed", "3"]
    assert run(["simulate", *arguments, "--out", str(out)]) == 0
    generation.generate(options)
    for name in ("label", "label1", "label2"):
        assert tree(out / name) == tree(options.out / name)
    records = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert len(records) == 7 and all(record["events"] for record in records)


def test_targets_stand_beside_what_was_reached(options: GenerateOptions) -> None:
    targets = SetTargets(no_change=0.25, class_pairs={"bareland->building": 0.5})
    generation.generate(change(options, num_pairs=8, targets=targets))
    records = [json.loads(line) for line in (options.out / "metadata.jsonl").read_text().splitlines()]
    assert sum(record["kind"] == "no_change" for record in records) == 2
    assert (
        sum([(t["from"], t["to"]) for t in record["transitions"]] == [("bareland", "building")] for record in records)
        >= 4
    )
    assert "Asked and reached" in (options.out / "report.html").read_text()
    impossible = SetTargets(class_pairs={"informal_settlement->water": 0.5})
    with pytest.raises(ShortfallError, match=r"2 informal_settlement->water \(no tile has informal_settlement\)"):
        generation.generate(change(options, out=options.out.with_name("y"), num_pairs=4, targets=impossible))
    nonsense = SetTargets(class_pairs={"bog->road": 1.0})
    with pytest.raises(ConfigError, match="'bog->road'"):
        generation.generate(change(options, out=options.out.with_name("x"), targets=nonsense))


def test_learned_transitions_are_not_left_out_in_silence(options: GenerateOptions, tmp_path: Path) -> None:
    arguments = ["simulate", "--source", str(options.source), "--tile-size", "64", "--num-pairs", "3"]
    for first, then in (([], ["--learn-transitions"]), (["--learn-transitions"], [])):
        out = tmp_path / f"begun{len(first)}"
        assert run([*arguments, *first, "--out", str(out)]) == 0
        assert run([*arguments, *then, "--out", str(out)]) == 2 and run([*arguments, *first, "--out", str(out)]) == 0


def test_several_events_fill_a_ratio_and_quiet_pairs_do_not(options: GenerateOptions) -> None:
    targets = SetTargets(no_change=0.5, ratios={"0-0.9": 0.5})
    events = EventOptions(events_per_pair=(2, 2), min_area=4)
    report = generation.generate(change(options, num_pairs=8, targets=targets, events=events))
    assert {name: reached for name, _, reached in report.reached} == {"no change": 0.5, "change ratio 0-0.9": 0.5}
    lines = [json.loads(line) for line in (options.out / "metadata.jsonl").read_text().splitlines()]
    assert {len(line["events"]) for line in lines} == {0, 2}


def test_learned_priors_are_written(options: GenerateOptions, tmp_path: Path) -> None:
    out = tmp_path / "learned"
    arguments = ["--source", str(options.source), "--tile-size", "64", "--num-pairs", "3", "--learn-transitions"]
    assert run(["simulate", *arguments, "--out", str(out)]) == 0
    learned = json.loads((out / "transitions.json").read_text())
    assert learned["weights"]["bareland"]["road"] > 0 == learned["weights"]["road"]["water"]
    assert learned["sizes_px"]["building"] == [100, 100]


def test_two_processes_on_one_folder(options: GenerateOptions) -> None:
    """Both take shards of one set, and each comes back when it is whole."""
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(generation.generate, [change(options, num_pairs=12, shard_size=1)] * 2))
    assert sum(report.num_new for report in reports) == 12 and [report.num_pairs for report in reports] == [12, 12]
    assert all(report.num_new for report in reports), "one of them did nothing"
    alone = change(options, num_pairs=12, shard_size=1, out=options.out.with_name("alone"))
    generation.generate(alone)
    without_page = [{k: v for k, v in tree(out).items() if k != "report.html"} for out in (options.out, alone.out)]
    assert without_page[0] == without_page[1]


def test_options_are_checked(options: GenerateOptions) -> None:
    with pytest.raises(ConfigError, match=r"filter\.model is missing"):
        change(options, filter=FilterOptions(action="resample")).check()
    for name, value in [("batch_size", 0), ("image_format", "bmp"), ("tile_size", 50), ("num_pairs", 0)]:
        with pytest.raises(ConfigError, match=name):
            change(options, **{name: value}).check()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("unquantised")
def test_compiled_networks_paint_the_same(options: GenerateOptions) -> None:
    generation.generate(options)
    compiled = change(options, out=options.out.with_name("compiled"), compile=True)
    generation.generate(compiled)
    plain, fast = ca.load_pairs(options.out), ca.load_pairs(compiled.out)
    assert len(plain) == len(fast)
    for before, after in ((plain[i], fast[i]) for i in range(len(plain))):
        assert np.array_equal(before.change_mask, after.change_mask)
        assert np.abs(before.image_t2.astype(int) - after.image_t2).max() <= 1


def test_the_largest_batch_that_fits_follows_from_what_a_pair_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = ca.ChangePairPipeline(tiny_model())
    free = int(9.9 / painting.MEMORY_SHARE)
    monkeypatch.setattr(painting, "memory_per_pair", lambda *rest: 1.0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    assert painting.fitting_batch_size(pipe, Sampling(), 32) == 8, "nine pairs fit"


def test_a_batch_that_memory_does_not_take_is_painted_in_halves(
    options: GenerateOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says so; the pairs are those of the smaller batch."""
    whole = DiffusionPainter._paint
    generation.generate(change(options, batch_size=1))
    expected = {name: content for name, content in tree(options.out).items() if name.startswith(("A/", "B/", "label"))}
    shutil.rmtree(options.out)
    sizes = []

    def paint(self: DiffusionPainter, batch: Batch) -> list[Painting]:
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, batch)

    monkeypatch.setattr(DiffusionPainter, "_paint", paint)
    capsys.readouterr()
    generation.generate(change(options, batch_size=3))
    said = capsys.readouterr().err
    assert said.count("out of memory") == 2 and "with 3 pairs at once; painting 2 from here on" in said
    assert sizes == [3, 2, *[1] * 7]
    assert expected.items() <= tree(options.out).items()

    def never(self: DiffusionPainter, batch: Batch) -> list[Painting]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DiffusionPainter, "_paint", never)
    shutil.rmtree(options.out)
    with pytest.raises(ConfigError, match="has no memory for one pair"):
        generation.generate(change(options, batch_size=1))


def test_a_job_from_before_an_option_was_there_is_read_with_its_default() -> None:
    from changeanywhere.plain import from_plain, to_plain

    content = to_plain(Sampling(num_steps=7))
    del content["guidance_interval"]
    assert from_plain(Sampling, content) == Sampling(num_steps=7)
    with pytest.raises(ValueError, match=r"Sampling\.of_tomorrow is unknown"):
        from_plain(Sampling, content | {"of_tomorrow": 1})
    with pytest.raises(ValueError, match=r"FinishOptions\.path is missing"):
        from_plain(FinishOptions, {})


def test_a_set_begun_with_palettes_is_not_continued_in_grey(options: GenerateOptions) -> None:
    """Jobs older than the option say nothing of it: their masks have palettes."""
    generation.generate(options)
    file = options.out / "plan" / "job.json"
    content, _ = unsealed(file.read_bytes())
    del content["finishing"]["mask_palette"]
    file.write_bytes(sealed(content, indent=1))
    begun, store = load_job(LocalStore(options.out)), LocalStore(options.out)
    assert begun is not None
    asked = replace(begun, finishing=options.finishing)
    with pytest.raises(OutputError, match=r"finishing\.mask_palette = True, asked now: False"):
        refuse_others(begun, asked, store)
    refuse_others(begun, replace(begun, finishing=replace(options, mask_palette=True).finishing), store)


def test_a_sampler_that_is_named_leaves_out_what_the_model_recommends_and_it_cannot_do(
    source_folder: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said, and what was used stands in the metadata; what is given with it is refused."""
    model = shutil.copytree(tiny_model_folder, tmp_path / "model")
    description = json.loads((model / "model.json").read_text())
    description["defaults"] |= {"window_margin": 8, "exemplar_strength": {"default": 0.4}, "num_steps": 2}
    (model / "model.json").write_text(json.dumps(description))
    command = ["generate", "--source", str(source_folder), "--model", str(model), "--tile-size", "64"]
    command += ["--num-pairs", "1", "--out", str(tmp_path / "out"), "--sampler", "ddim"]
    assert run([*command, "--window-margin", "8"]) == 2
    assert "window_margin is 8; allowed: 0 with known_noise fresh" in capsys.readouterr().err
    assert run(command) == 0
    said = "sampler ddim: painted without window_margin 8 and exemplar_strength {'default': 0.4}, which the model"
    assert said in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "metadata.jsonl").read_text().splitlines()[0])
    used = record["settings"]["sampling"]
    assert (used["sampler"], used["window_margin"], used.get("exemplar_strength")) == ("ddim", 0, None)
