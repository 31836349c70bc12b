"""From a folder of own images of two dates without a mask to a detector and its score: the commands of docs/target.md;
and what the generator's training does with unknown ground and with scenes that are held out."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import BinaryIO

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from changeanywhere.cli import run as command
from changeanywhere.errors import ConfigError, SourceError
from changeanywhere.models.folder import load_first_stage, noise_schedule
from changeanywhere.sources import JoinedSource, SourceOptions, held_out, open_source
from changeanywhere.sources.alone import images_alone
from changeanywhere.sources.layouts import find_layout
from changeanywhere.sources.problems import Problems
from changeanywhere.training.denoiser import build_denoiser, denoising_loss, train_denoiser
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DataRecipe, DenoiserRecipe, Recipe, RunRecipe
from changeanywhere.training.validation import HeldOut, held_out_of
from conftest import write_source
from test_detector_training import write_pairs

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "src" / "changeanywhere" / "assets" / "examples"
DENOISER = DenoiserRecipe(
    channels=[8, 16], layers_per_block=1, attention_levels=[1], head_dim=8, norm_groups=4, mask_channels=4,
    batch_size=2, num_steps=8, learning_rate=1e-2, held_out=0.2, val_every=2, patience=2,
)  # fmt: skip
SMALL = (
    "--data.tile-size 128 --segmenter.crop-size 32 --segmenter.num-steps 4 --segmenter.batch-size 4 "
    "--segmenter.taught-from-step 2 --run.mixed-precision no",
    "",
    "--data.tile-size 128 --denoiser.num-steps 4 --denoiser.val-every 2 --denoiser.batch-size 2 "
    "--run.mixed-precision no",
    "--tile-size 128 --num-pairs 6 --num-steps 2 --targets.no-change 0.5 --targets.ratios '{}'",
    "--pretrain.num-steps 4 --pretrain.batch-size 4 --pretrain.crop-size 64 --pretrain.warmup-steps 1 --candidates 2 "
    "--num-panels 2 --seeds '[0]' --run.num-workers 0",
)
"""Beside the page's commands, of which the test runs every word: what makes them short."""


def documented() -> list[list[str]]:
    """The commands of the page's first block."""
    block = re.search(r"```bash\n(.*?)```", (ROOT / "docs" / "target.md").read_text(), re.S)
    assert block is not None
    lines = block.group(1).replace("\\\n", " ").strip().splitlines()
    return [shlex.split(line) for line in lines]


@pytest.fixture
def two_dates(tmp_path: Path) -> Path:
    """``A/`` and ``B/`` of six places."""
    for date in "AB":
        tiles = write_source(tmp_path / f"tiles_{date}", 6 if date == "A" else 5)
        (tmp_path / "mine").mkdir(exist_ok=True)
        shutil.move(tiles / "images", tmp_path / "mine" / date)
    return tmp_path / "mine"


@pytest.mark.slow
def test_five_commands_lead_to_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's examples stand for both: tiles with masks, and one's own images of two dates."""
    for folder in ("MINE/A", "MINE/B", "TILES/images", "TILES/masks"):
        (tmp_path / folder).mkdir(parents=True)
    for file in sorted((EXAMPLES / "images").iterdir())[:8]:
        image, mask = Image.open(file), Image.open(EXAMPLES / "masks" / f"{file.stem}.png")
        for date, corner in (("A", 0), ("B", 8)):
            image.crop((corner, corner, corner + 128, corner + 128)).save(tmp_path / "MINE" / date / f"{file.stem}.png")
        for kind, whole in (("images", image), ("masks", mask)):
            whole.crop((128, 128, 256, 256)).save(tmp_path / "TILES" / kind / f"{file.stem}.png")
    shutil.copyfile(EXAMPLES / "legend.json", tmp_path / "TILES" / "legend.json")
    write_pairs(tmp_path / "FEW", 6)
    monkeypatch.chdir(tmp_path)
    commands = documented()
    assert len(commands) == 5 and all(words[0] == "changeanywhere" for words in commands)
    for words, short in zip(commands, SMALL, strict=True):
        assert command([*words[1:], *shlex.split(short)]) == 0, words
    lines = [json.loads(line) for line in Path("pairs/metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(line["labelled_by"].startswith("segmenter ") for line in lines)
    results = json.loads(Path("runs/score/results.json").read_text())
    assert "mine" in json.dumps(results) and Path("runs/score/table.md").is_file()


def test_images_of_one_name_in_folders_of_two_dates_are_one_scene(two_dates: Path, tmp_path: Path) -> None:
    entries = images_alone(two_dates, Problems(skip=False)).entries
    assert sorted(entry.stem for entry in entries if entry.scene == "tile_3") == ["A__tile_3", "B__tile_3"]
    assert len({entry.scene for entry in entries}) == 6 and len(entries) == 11
    assert command(["label", "--source", str(two_dates), "--out", str(tmp_path / "labelled"), "--flips", "false"]) == 0
    rows = list(csv.DictReader((tmp_path / "labelled" / "provenance.csv").read_text().splitlines()))
    assert {row["scene"] for row in rows if row["patch"].endswith("tile_0")} == {"tile_0"}
    source = open_source(tmp_path / "labelled", SourceOptions(tile_size=64))
    assert len({item.scene for item in source.items}) == 6
    (two_dates / "B").rename(two_dates / "other")
    entries = images_alone(two_dates, Problems(skip=False)).entries
    assert len({entry.scene for entry in entries}) == 11, "two folders are not two dates"


@pytest.mark.parametrize("dates", [("A", "B"), ("T1", "T2")])
def test_labels_beside_images_are_no_images_and_dates_are_found_in_folders_of_splits(
    two_dates: Path, tmp_path: Path, dates: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    root, count = tmp_path / "set", 0
    for split in ("train", "test"):
        for own, date in zip("AB", dates, strict=True):
            shutil.copytree(two_dates / own, root / split / date)
        for folder in ("label", "label1"):
            (root / split / folder).mkdir()
            for file in (two_dates / "A").iterdir():
                Image.new("L", (64, 64)).save(root / split / folder / f"{file.stem}.png")
                count += 1
    Image.new("L", (64, 64)).save(root / "train" / dates[0] / "tile_0_mask.png")
    entries = images_alone(root, Problems(skip=False)).entries
    assert len(entries) == 2 * (6 + 5) and {entry.image.parent.name for entry in entries} == set(dates)
    scenes = {entry.scene for entry in entries}
    assert scenes == {f"{split}/tile_{number}" for split in ("train", "test") for number in range(6)}
    assert command(["label", "--source", str(root), "--out", str(tmp_path / "labelled"), "--flips", "false"]) == 0
    assert f"{count + 1} masks and labels, which are not asked for" in capsys.readouterr().err
    seconds = [entry.second for entry in find_layout(tmp_path / "labelled", Problems(skip=False)).entries]
    assert sum(second is not None for second in seconds) == 2 * (5 + 5), "each other's second date"
    shutil.rmtree(root / "train")
    for date in dates:
        shutil.rmtree(root / "test" / date)
    with pytest.raises(SourceError, match=r"no image in it \(passed over: 12 masks and labels"):
        images_alone(root, Problems(skip=False))


def test_an_image_whose_copy_was_cut_short_is_copied_again(
    two_dates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command_ = [
        "label",
        "--source",
        str(two_dates),
        "--images",
        "copy",
        "--flips",
        "false",
        "--out",
        str(tmp_path / "o"),
    ]

    def cut(source: BinaryIO, target: BinaryIO) -> None:
        target.write(source.read(100))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", cut)
        assert command(command_) != 0
    assert command(command_) == 0
    for file in (two_dates / "A").iterdir():
        assert (tmp_path / "o" / "images" / "A" / file.name).read_bytes() == file.read_bytes()
    assert not list((tmp_path / "o" / "images").rglob(".*"))


def test_unknown_ground_teaches_nothing_but_where_the_mask_is_dropped() -> None:
    torch.manual_seed(0)
    settings = replace(DENOISER, unknown_weight=0.0)
    denoiser, schedule = build_denoiser(settings, 7, 3).eval(), noise_schedule("epsilon")
    latents, noise, steps = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    masks = torch.randint(1, 8, (2, 32, 32))
    masks[:, :, 16:] = 0

    def loss(settings: DenoiserRecipe, noise: torch.Tensor, dropped: bool) -> torch.Tensor:
        rows = torch.full((2,), dropped)
        alphas = schedule.alphas_cumprod[steps].view(-1, 1, 1, 1)  # the noisy latent stays; the target alone differs
        noisy = latents - (1 - alphas).sqrt() / alphas.sqrt() * (noise - known_noise)
        return denoising_loss(denoiser, schedule, noisy, masks, settings, (steps, noise, rows))

    known_noise, other = noise, noise.clone()
    other[:, :, :, 4:] += 1
    with torch.no_grad():
        assert torch.allclose(loss(settings, noise, False), loss(settings, other, False))
        assert not torch.allclose(loss(settings, noise, True), loss(settings, other, True))
        plain, half = (loss(replace(settings, unknown_weight=w), other, False) for w in (1.0, 0.5))
        assert torch.allclose(half, (plain + loss(settings, other, False)) / 2)


def test_scenes_are_held_out_whole(tmp_path: Path) -> None:
    source = open_source(write_source(tmp_path / "source"), SourceOptions(tile_size=32))  # four tiles of each image
    rest, (held,) = held_out(source, 0.2)
    assert len(rest) + len(held) == len(source) == 24 and len(held) == 8
    assert not {item.scene for item in rest.items} & {item.scene for item in held.items}
    assert all(rest.read(place).item == item for place, item in enumerate(rest.items))
    assert (held.read(1).mask == held.read_mask(1)).all() and held.georef(0) is None
    assert [item.key for item in held_out(source, 0.2)[1][0].items] == [item.key for item in held.items]
    joined = JoinedSource([source, source, source], ["tile_0*"], labelled=2)
    rest, parts = held_out(joined, 0.2)
    assert [len(part) for part in parts] == [8, 8] and isinstance(rest, JoinedSource)
    assert rest.sizes == [16, 16, 20] and len(rest.with_masks) == 32
    one = open_source(write_source(tmp_path / "one", 1), SourceOptions(tile_size=32))
    with pytest.raises(SourceError, match=r"one scene, of which none can be held out; set denoiser\.held_out to 0"):
        held_out_of(one, 0.5)


@pytest.fixture
def recipe(tmp_path: Path, tiny_model_folder: Path) -> Recipe:
    source = write_source(tmp_path / "source")
    run = RunRecipe(num_workers=0, log_every=5, save_every=100)
    return Recipe(DataRecipe(source=str(source), tile_size=64), denoiser=DENOISER, run=run, init=str(tiny_model_folder))


def measured(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "training/denoiser/validation.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {f"{file.parent.name}.{k}": v for file in out.rglob("*.safetensors") for k, v in load_file(file).items()}


def test_a_training_ends_when_held_out_scenes_gain_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measurements that are given: the third and the fourth are no better than the second, whose weights are kept."""
    recipe = replace(recipe, denoiser=replace(DENOISER, num_steps=12))
    said = iter([0.5, 0.4, 0.4, 0.6])
    monkeypatch.setattr(HeldOut, "measure", lambda *_: next(said))
    source = open_source(recipe.data.source, SourceOptions(tile_size=64))
    train_denoiser(source, recipe, tmp_path / "run")
    assert [(line["step"], line["best"]) for line in measured(tmp_path / "run")] == [
        (2, 0.5),
        (4, 0.4),
        (6, 0.4),
        (8, 0.4),
    ]
    state = torch.load(tmp_path / "run/training/denoiser/checkpoint.pt", weights_only=True)
    assert state["step"] == 8
    ended = weights(tmp_path / "run" / "model")
    short = replace(recipe, denoiser=replace(DENOISER, num_steps=4))
    said = iter([0.5, 0.4])
    train_denoiser(source, short, tmp_path / "short")
    assert all(torch.equal(value, ended[name]) for name, value in weights(tmp_path / "short" / "model").items())
    train_denoiser(source, recipe, tmp_path / "run")  # it has ended: no step more, no measurement
    assert all(torch.equal(value, ended[name]) for name, value in weights(tmp_path / "run" / "model").items())


@pytest.mark.numerical
def test_the_best_weights_so_far_outlast_a_break(recipe: Recipe, tmp_path: Path) -> None:
    """In a run that is broken off and goes on; what is held out is never trained on, and measuring moves no weight."""
    source = open_source(recipe.data.source, SourceOptions(tile_size=64))
    patient = replace(recipe, denoiser=replace(DENOISER, patience=0))
    train_denoiser(source, patient, tmp_path / "whole")
    lines = measured(tmp_path / "whole")
    assert [line["step"] for line in lines] == [2, 4, 6, 8] and all(line["tiles"] == 2 for line in lines)
    assert lines[-1]["best"] == min(line["loss"] for line in lines) and len({line["loss"] for line in lines}) == 4

    def after_five(what: str, done: int, total: int) -> None:
        if what.startswith("denoiser") and done == 5:
            stop.set()

    stop = Event()
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(source, patient, tmp_path / "broken", progress=after_five, stop=stop)
    train_denoiser(source, patient, tmp_path / "broken")
    assert measured(tmp_path / "broken") == lines
    whole, broken = (weights(tmp_path / name / "model") for name in ("whole", "broken"))
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())
    rest, _ = held_out(source, DENOISER.held_out)
    alone = replace(patient, denoiser=replace(patient.denoiser, held_out=0.0, val_every=500))
    train_denoiser(rest, alone, tmp_path / "alone")
    averages = [
        torch.load(tmp_path / name / "training/denoiser/checkpoint.pt", weights_only=True)["average"]
        for name in ("whole", "alone")
    ]
    assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())


def test_what_is_measured_does_not_change_from_time_to_time(recipe: Recipe) -> None:
    source = open_source(recipe.data.source, SourceOptions(tile_size=64))
    first_stage = load_first_stage(Path(str(recipe.init)) / "first_stage")
    held = HeldOut(held_out(source, 0.2)[1], first_stage, Processes(recipe.run), 0)
    seen: list[torch.Tensor] = []

    def loss_of(latents: torch.Tensor, masks: torch.Tensor, steps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        assert latents.shape == noise.shape == (2, 3, 16, 16) and masks.shape == (2, 64, 64)
        seen.append(steps)
        return (latents * noise).mean() + steps.float().mean()

    assert held.measure(loss_of, 1000) == held.measure(loss_of, 1000)
    assert torch.cat(seen[:4]).tolist() == [0, 125, 250, 375, 500, 625, 750, 875]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"unknown_weight": 1.5}, r"denoiser\.unknown_weight is 1.5; allowed: 0 to 1"),
        ({"held_out": 1.0}, r"denoiser\.held_out is 1.0; allowed: 0 to below 1"),
        ({"val_every": 0}, r"denoiser\.val_every is 0; allowed: above 0"),
        ({"held_out": 0.0, "val_every": 500}, "patience is 2, which does nothing while denoiser.held_out is 0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(recipe: Recipe, changes: dict[str, float], refused: str) -> None:
    wrong = replace(recipe, denoiser=replace(DENOISER, **changes))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=refused):
        wrong.check("denoiser")
