"""Training on several processes, in parts, compiled, and from another model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

import same_training
from changeanywhere.cli import run as command
from changeanywhere.errors import ConfigError
from changeanywhere.legend import Legend, LegendClass, load_legend
from changeanywhere.models.first_stage import FirstStage, build_vq_model
from changeanywhere.models.folder import load_model
from changeanywhere.models.perceptual import VGG16_CHANNELS, VGG16_CONVOLUTIONS, VGG16Distance, build_perceptual
from changeanywhere.training.command import open_training_source
from changeanywhere.training.denoiser import build_denoiser, train_denoiser
from changeanywhere.training.first_stage import train_first_stage
from changeanywhere.training.initialise import initial_schedule, initialise_denoiser, initialise_first_stage
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import FirstStageRecipe, Recipe, RunRecipe, SegmenterRecipe
from changeanywhere.training.segmenter import SegmenterTraining, draw_jitter, train_segmenter
from conftest import write_source
from same_training import assert_same_training, metrics, plain_steps
from test_detector_training import write_pairs
from test_training import DENOISER, FIRST_STAGE, recipe, source_of, train_both  # noqa: F401 (fixture)

LAUNCH_TWO = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"),
    *("--mixed_precision", "no", "--main_process_port", "0"),
]
"""``--multi_gpu`` means several processes; ``--cpu`` would start one, whatever ``--num_processes`` says."""
TWO_PROCESSES = [*LAUNCH_TWO, "--module", "changeanywhere"]
ON_CPU = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
RATES = {"first_stage": 0.01, "denoiser": 0.1}
"""Learning rates of plain gradient steps."""


def comparable(recipe: Recipe, **first_stage: Any) -> Recipe:  # noqa: F811
    """With steps that move the weights well beyond the rounding of a float32."""
    return replace(
        recipe,
        first_stage=replace(recipe.first_stage, learning_rate=RATES["first_stage"], **first_stage),
        denoiser=replace(recipe.denoiser, learning_rate=RATES["denoiser"]),
    )


@pytest.mark.numerical
def test_two_processes_take_the_steps_of_one(
    recipe: Recipe,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """accelerate launch with gloo: one log, and in it and in the weights what one process has, but for roundings."""
    recipe = replace(
        recipe,
        first_stage=replace(FIRST_STAGE, batch_size=4, num_steps=4, adversarial_from_step=2),
        denoiser=replace(DENOISER, batch_size=4, num_steps=4),
    )
    recipe = comparable(recipe)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in asdict(recipe).items() if v is not None}))
    for stage in ("first-stage", "denoiser"):
        arguments = [same_training.__file__, "train", stage, "--config", str(file), "--out", str(tmp_path / "two")]
        done = subprocess.run([*LAUNCH_TWO, *arguments], env=ON_CPU, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("finished:") == 1
        assert f"{stage}: 2 processes on cpu" in done.stderr
    plain_steps(monkeypatch)
    train_both(recipe, tmp_path / "one")
    assert_same_training(tmp_path / "one", tmp_path / "two", RATES)


def test_sigterm_stops_all_processes_after_the_same_step(recipe: Recipe, tmp_path: Path) -> None:  # noqa: F811
    recipe = replace(
        recipe,
        first_stage=replace(FIRST_STAGE, num_steps=100_000),
        run=replace(recipe.run, log_every=1, save_every=100_000),
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in asdict(recipe).items() if v is not None}))
    arguments = ["train", "first-stage", "--config", str(file), "--out", str(tmp_path / "run")]
    process = subprocess.Popen([*TWO_PROCESSES, *arguments], env=ON_CPU, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "run" / "training" / "first_stage"
    deadline = time.monotonic() + 120
    while process.poll() is None and not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()  # the launcher hands it on to its processes
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert errors.count("interrupted; what is finished is kept") == 2
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["step"] == len(metrics(folder)) < 100_000
    assert not (folder / "checkpoint.pt.part").exists()


def test_processes_that_did_not_join_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun on a CPU: each would train the whole model, all of them into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were started, but did not join"):
        Processes(RunRecipe())


def test_two_processes_train_a_detector(tmp_path: Path) -> None:
    """Batch statistics are each process's own, so that losses are close to one process's, not equal; it learns."""
    pairs = write_pairs(tmp_path / "pairs")
    arguments = ["train", "detector", "--detector.name", "fc_siam_diff", "--detector.pairs", str(pairs)]
    arguments += ["--detector.crop-size", "64", "--detector.batch-size", "4", "--detector.num-steps", "40"]
    arguments += ["--detector.warmup-steps", "2", "--detector.learning-rate", "3e-3", "--detector.val-every", "20"]
    arguments += ["--run.log-every", "10", "--run.num-workers", "0", "--out", str(tmp_path / "two")]
    done = subprocess.run([*TWO_PROCESSES, *arguments], env=ON_CPU, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "detector: 2 processes on cpu" in done.stderr
    folder = tmp_path / "two" / "training" / "detector"
    assert [row["step"] for row in metrics(folder)] == [10, 20, 30, 40]
    scores = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in scores] == [20, 40] and scores[-1]["f1"] > 0.5
    assert (tmp_path / "two" / "detector_best").is_dir()


def test_a_crop_looks_alike_whichever_process_takes_it(
    recipe: Recipe,  # noqa: F811
    tiny_model_folder: Path,
) -> None:
    """Images and masks of a segmenter's step, with jitter, scale and first stage: two processes see the rows of one."""
    more: dict[str, Any] = {"scale": 0.2, "decoded": 0.5, "first_stage": [str(tiny_model_folder)]}
    segmenter = SegmenterRecipe(backbone="unet", crop_size=32, batch_size=4, num_steps=3, **more)
    recipe = replace(recipe, segmenter=segmenter)

    def batches(rank: int, count: int) -> list[tuple[torch.Tensor, ...]]:
        processes = Processes(recipe.run)
        processes.rank, processes.count = rank, count
        return list(SegmenterTraining(recipe, processes, source_of(recipe)).batches(0))

    shares = [batches(rank, 2) for rank in (0, 1)]
    for whole, *parts in zip(batches(0, 1), *shares, strict=True):
        for one, two in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.allclose(one.float(), torch.stack(two, 1).flatten(0, 1).float(), atol=0.02), (
                "but for roundings of the first stage"
            )
    jitter = draw_jitter(4, range(4), 0.2, 0, 1)
    assert all(len(values.unique()) == 4 for values in jitter), "every crop has its own"


@pytest.mark.numerical
def test_known_ground_counts_alike_whichever_process_has_it(recipe: Recipe) -> None:  # noqa: F811
    """A segmenter's loss is the mean over the known ground of the batch, of which one process may have nearly all."""
    segmenter = SegmenterRecipe(backbone="unet", crop_size=32, batch_size=4, num_steps=1)
    recipe = replace(recipe, segmenter=segmenter)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    masks = torch.randint(1, 4, (4, 32, 32), generator=torch.Generator().manual_seed(2))
    masks[::2, 2:] = 0
    known, losses, gradients = (masks > 0).sum(), [], []
    for count in (1, 2):
        loss, gradient = 0.0, torch.zeros(())
        for rank in range(count):
            processes = Processes(recipe.run)
            processes.rank, processes.count = rank, count
            processes.sum = lambda tensor: known  # type: ignore[method-assign]  # what they know together
            training = SegmenterTraining(recipe, processes, source_of(recipe))
            training.net.eval()  # as it normalises, each process does for itself
            rows = list(training.rows)
            loss += float(training.backward((images[rows], masks[rows]), 0)["loss"].detach()) / count
            gradient = gradient + torch.cat([p.grad.flatten() for p in training.net.parameters() if p.grad is not None])
        losses.append(loss)
        gradients.append(gradient / count)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)


@pytest.mark.numerical
def test_two_processes_teach_themselves_as_one_does(
    recipe: Recipe,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a segmenter learns from images without masks weighs alike, whichever process has how many of them."""
    bare = write_source(tmp_path / "bare", 4)
    shutil.rmtree(bare / "masks")
    segmenter = SegmenterRecipe(
        backbone="unet", crop_size=32, batch_size=6, num_steps=5, warmup_steps=0, learning_rate=0.05,
        ema_halflife_share=0.05, taught_from_step=1, confidence=[0.2, 0.15],
    )  # fmt: skip
    data = replace(recipe.data, images=[str(bare)], images_share=0.5)
    recipe = replace(recipe, data=data, segmenter=segmenter, run=replace(recipe.run, log_every=1))
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({name: asdict(recipe)[name] for name in ("data", "segmenter", "run")}))
    arguments = [same_training.__file__, "train", "segmenter", "--config", str(file), "--out", str(tmp_path / "two")]
    done = subprocess.run([*LAUNCH_TWO, *arguments], env=ON_CPU, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    plain_steps(monkeypatch)
    train_segmenter(open_training_source(data), recipe, tmp_path / "one")
    taught = [row["taught_loss"] > 0 for row in metrics(tmp_path / "one" / "training" / "segmenter")]
    assert taught == [False, True, True, True, True]
    assert_same_training(tmp_path / "one", tmp_path / "two", {"segmenter": 0.05})


@pytest.mark.parametrize("further", [[], ["further"]])
def test_every_process_has_its_share_of_crops_with_and_without_masks(
    recipe: Recipe,  # noqa: F811
    tmp_path: Path,
    further: list[str],
) -> None:
    bare = write_source(tmp_path / "bare", 4)
    shutil.rmtree(bare / "masks")
    folders = [str(write_source(tmp_path / name, 3)) for name in further]
    data = replace(recipe.data, images=[str(bare)], images_share=0.5, further=folders)
    segmenter = SegmenterRecipe(
        backbone="unet", crop_size=32, batch_size=8, num_steps=4, ema_halflife_share=0.05, taught_from_step=1
    )
    recipe = replace(recipe, data=data, segmenter=segmenter)
    seen = []
    for rank in range(4):
        processes = Processes(recipe.run)
        processes.rank, processes.count = rank, 4
        training = SegmenterTraining(recipe, processes, open_training_source(data))
        seen.append(list(training.rows))
        for _, masks, *_ in training.batches(0):
            assert [bool(mask.any()) for mask in masks] == [True, False]
    assert sorted(row for rows in seen for row in rows) == list(range(8))
    assert list(Processes(recipe.run).rows(8, 1, dealt=True)) == list(range(8)), "one process: as they stand"


def test_processes_gather_one_normalisation() -> None:
    """Each saw other rows: what is saved, and what teaches, are the statistics of all of them."""
    processes = Processes(RunRecipe())
    processes.count = 2
    other = torch.tensor([1.0, 3.0, 5.0, 7.0])
    processes.sum = lambda tensor: tensor + other  # type: ignore[method-assign]
    norms = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2).eval(), torch.nn.GroupNorm(1, 2))
    processes.average_statistics(norms)
    found = {name: value.tolist() for name, value in norms.state_dict().items() if "running" in name}
    assert found["0.running_mean"] == [0.5, 1.5] and found["0.running_var"] == [3.0, 4.0]
    assert found["1.running_mean"] == [0, 0] and found["1.running_var"] == [1, 1], "what is frozen stays"


@pytest.mark.numerical
def test_accumulating_gradients_changes_memory_and_not_the_result(
    recipe: Recipe,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain_steps(monkeypatch)
    # Without the adversarial loss, whose weight is a ratio of norms; what belongs to it is at its default.
    off = {name: getattr(FirstStageRecipe, name) for name in ("adversarial_from_step", "discriminator_channels")}
    recipe = comparable(recipe, adversarial_weight=0.0, **off)
    train_both(recipe, tmp_path / "whole")
    train_both(replace(recipe, run=replace(recipe.run, accumulation_steps=2)), tmp_path / "parts")
    assert_same_training(tmp_path / "whole", tmp_path / "parts", RATES)
    with pytest.raises(ConfigError, match=r"batch_size 2 is not divisible by 1 processes x run.accumulation_steps 3"):
        train_first_stage(
            source_of(recipe), replace(recipe, run=replace(recipe.run, accumulation_steps=3)), tmp_path / "x"
        )


@pytest.mark.numerical
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compiled_training_learns_the_same(
    recipe: Recipe,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain_steps(monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # ten bits of mantissa would be another training
    recipe = comparable(recipe)
    train_both(recipe, tmp_path / "plain")
    train_both(replace(recipe, run=replace(recipe.run, compile=True)), tmp_path / "compiled")
    assert_same_training(tmp_path / "plain", tmp_path / "compiled", RATES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_compiled_training_is_refused_on_a_cpu(recipe: Recipe, tmp_path: Path) -> None:  # noqa: F811
    """The compiled backward pass loses gradients there: nothing is trained rather than half a network."""
    stages: tuple[Callable[..., Path], ...] = (train_first_stage, train_denoiser)
    for stage in stages:
        with pytest.raises(ConfigError, match=r"run\.compile is true; allowed on a CPU: false"):
            stage(source_of(recipe), replace(recipe, run=replace(recipe.run, compile=True)), tmp_path / "run")
        train_both(recipe, tmp_path / "run")


@pytest.mark.numerical
def test_fine_tuning_keeps_classes_by_name_and_bands_by_number(recipe: Recipe, tmp_path: Path) -> None:  # noqa: F811
    train_both(recipe, tmp_path / "old")
    old = load_model(tmp_path / "old" / "model")
    names = ["water", "orchard", "building", "crops", "swamp"]
    legend = Legend("other", tuple(LegendClass(i + 1, name, (i, i, i)) for i, name in enumerate(names)))
    source = write_source(tmp_path / "other", legend=legend)
    tuned = replace(
        recipe,
        data=replace(recipe.data, source=str(source)),
        denoiser=replace(DENOISER, num_steps=1, learning_rate=1e-12),
        init=str(tmp_path / "old" / "model"),
    )
    train_denoiser(source_of(tuned), tuned, tmp_path / "new")  # the first stage is the old model's
    new = load_model(tmp_path / "new" / "model")
    assert new.legend.names == tuple(names)
    rows = {c.name: old.denoiser.mask_encoder.conv.weight[:, c.index - 1] for c in old.legend.classes}
    weight = new.denoiser.mask_encoder.conv.weight
    torch.testing.assert_close(weight[:, 0], rows["water"], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(weight[:, 2], rows["building"], atol=1e-3, rtol=1e-2)
    assert min(float((weight[:, 1] - row).detach().abs().max()) for row in rows.values()) > 0.01
    torch.testing.assert_close(new.denoiser.unet.conv_in.weight, old.denoiser.unet.conv_in.weight, atol=1e-3, rtol=1e-2)

    assert tuned.init is not None
    four = build_four_band_first_stage()
    assert initialise_first_stage(four, tuned.init)
    images = torch.rand(1, 4, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(four.encode(images), old.first_stage.encode(images[:, :3]))
        ours, theirs = four.decode(four.encode(images)), old.first_stage.decode(four.encode(images))
    torch.testing.assert_close(ours[:, :3], theirs)

    taken = initialise_denoiser(build_denoiser(DENOISER, 5, 3), legend, tuned.init)
    assert taken == ["water", "building"]
    wider = build_denoiser(replace(DENOISER, channels=[8, 32]), 5, 3)
    with pytest.raises(ConfigError, match="has another architecture than the recipe's denoiser"):
        initialise_denoiser(wider, legend, tuned.init)
    for other, said in (
        (replace(DENOISER, head_dim=4), r"attention_head_dim is 8, not 4 \(denoiser\.head_dim\)"),
        (replace(DENOISER, norm_groups=2), r"norm_num_groups is 4, not 2 \(denoiser\.norm_groups\)"),
    ):  # of the same shapes
        with pytest.raises(ConfigError, match=f"has another architecture than the recipe's denoiser: {said}"):
            initialise_denoiser(build_denoiser(other, 5, 3), legend, tuned.init)
        with pytest.raises(ConfigError, match=said):  # before tiles are encoded, or anything is written
            train_denoiser(source_of(tuned), replace(tuned, denoiser=other), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match=r"norm_num_groups is 1, not 2 \(first_stage\.norm_groups\)"):
        initialise_first_stage(FirstStage(build_vq_model([8, 8, 8], 1, 16, 3, 2, False)), tuned.init)
    with pytest.raises(ConfigError, match=r"but .* predicts 'epsilon'"):
        initial_schedule(tuned.init, "v_prediction")


def build_four_band_first_stage() -> FirstStage:
    return FirstStage(build_vq_model([8, 8, 8], 1, 16, 3, 1, False, image_channels=4)).eval()


@pytest.mark.numerical
def test_vgg16_distance_is_the_one_of_its_definition(tmp_path: Path) -> None:
    """Against the same network written as one plain chain of torchvision's layer numbers."""
    torch.manual_seed(0)
    state, channels = {}, 3
    for width, numbers in zip(VGG16_CHANNELS, VGG16_CONVOLUTIONS, strict=True):
        for number in numbers:
            state[f"features.{number}.weight"] = torch.randn(width, channels, 3, 3) / (3 * channels**0.5)
            state[f"features.{number}.bias"] = torch.randn(width) / 10
            channels = width
    torch.save(state, tmp_path / "vgg.pth")
    metric = build_perceptual("vgg16", tmp_path / "vgg.pth")
    assert isinstance(metric, VGG16Distance)

    def chain(images: torch.Tensor) -> list[torch.Tensor]:
        x = (images * 0.5 + 0.5 - metric.mean) / metric.std
        taps = []
        for number in range(30):  # torchvision: convolution, ReLU, …, pooling at 4, 9, 16, 23
            if f"features.{number}.weight" in state:
                x = F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1)
            elif number in (4, 9, 16, 23):
                x = F.max_pool2d(x, 2)
            else:
                x = x.relu()
            if number in (3, 8, 15, 22, 29):
                taps.append(F.normalize(x, dim=1))
        return taps

    first, second = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    expected = sum((a - b).square().sum(1).mean((1, 2)) for a, b in zip(chain(first), chain(second), strict=True))
    torch.testing.assert_close(metric(first, second), expected, rtol=1e-4, atol=1e-6)
    assert float(metric(first, first).abs().max()) == 0
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="not a readable weight file"):
        build_perceptual("vgg16", tmp_path / "bad.pth")
    with pytest.raises(ConfigError, match="downloads nothing"):
        build_perceptual("vgg16")


def test_launched_process_without_room_for_its_share_says_so(
    recipe: Recipe,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in asdict(recipe).items() if v is not None}))
    arguments = ["train", "first-stage", "--config", str(file), "--out", str(tmp_path / "run")]
    assert command([*arguments, "--run.accumulation-steps", "4"]) == 2
    assert "over all processes" in capsys.readouterr().err
    assert Processes(RunRecipe()).count == 1


@pytest.mark.slow
@pytest.mark.parametrize("channels", ["[128, 512, 1024]", "[128, 256, 512]"])
def test_paper_recipe_takes_two_steps(tmp_path: Path, channels: str) -> None:
    """Full-size networks on small tiles, batch 2: both widths of the first stage, then the denoiser."""
    source = write_source(tmp_path / "source", legend=load_legend("mini"))
    file = Path(__file__).parent.parent / "recipes" / "paper.yaml"
    arguments = ["--config", str(file), "--data.source", str(source), "--data.tile-size", "64", "--out", str(tmp_path)]
    small = ["--first-stage.crop-size", "64", "--first-stage.batch-size", "2", "--first-stage.num-steps", "2"]
    small += ["--first-stage.channels", channels, "--first-stage.adversarial-from-step", "1", "--run.num-workers", "0"]
    assert command(["train", "first-stage", *arguments, *small]) == 0
    assert command(["train", "denoiser", *arguments, "--denoiser.batch-size", "2", "--denoiser.num-steps", "2"]) == 0
    model = load_model(tmp_path / "model")
    assert model.first_stage.codebook.shape == (8192, 3)
    assert sum(p.numel() for p in model.denoiser.unet.parameters()) > 50e6
