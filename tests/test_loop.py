"""The training loop itself, on a stage that a newcomer could write, and beside the same steps written out by hand."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from changeanywhere.errors import TrainingDivergedError
from changeanywhere.legend import load_legend
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.sources import Source, SourceOptions, open_source
from changeanywhere.training.batches import CropDataset, tiles_of_step
from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.loop import take_step, train_stage
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DataRecipe, Recipe, RunRecipe, SegmenterRecipe
from changeanywhere.training.segmenter import draw_jitter, segmentation_loss, train_segmenter
from changeanywhere.training.stage import Batch, Learner, Stage, learning_rate_factor
from conftest import write_source

SETTINGS = SegmenterRecipe(backbone="unet", crop_size=32, batch_size=4, num_steps=6, learning_rate=0.1, warmup_steps=2)


class Line(Stage):
    """A line through points; a second network gets gradients from the third step on."""

    name = "segmenter"  # borrows a section of the recipe

    def __init__(self, recipe: Recipe, processes: Processes) -> None:
        super().__init__(recipe, processes)
        torch.manual_seed(self.seed)
        self.line, self.late = nn.Linear(1, 1), nn.Linear(1, 1)
        self.learners = (
            Learner(self.line, torch.optim.SGD(self.line.parameters(), 0.1), largest_norm=1.0),
            Learner(self.late, torch.optim.SGD(self.late.parameters(), 0.1), norm_name="late_norm"),
        )
        self.calls: list[str] = []
        self.stop, self.stop_at = Event(), ""

    def learning_rate(self, step: int) -> float:
        return 0.1

    def begin(self) -> None:
        self.calls.append("begin")

    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        for step in range(first_step, self.num_steps):
            x = torch.rand(self.batch_size, 1, generator=torch.Generator().manual_seed(step))
            yield x, 3 * x + 1

    def backward(self, part: Batch, step: int) -> dict[str, Tensor]:
        x, y = part
        loss = (self.line(x) - y).square().mean()
        if step >= 2:
            loss = loss + (self.late(x) - y).square().mean()
        self.add_gradients(loss)
        return {"loss": loss}

    def after_step(self, step: int) -> dict[str, Tensor]:
        self.calls.append(f"step {step}")
        if self.stop_at == self.calls[-1]:
            self.stop.set()
        return {"after": torch.tensor(float(step))}

    def validate(self, done: int, folder: TrainingFolder) -> None:
        self.calls.append(f"validate {done}")

    def state(self) -> dict[str, Any]:
        return {"line": self.line.state_dict(), "late": self.late.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.line.load_state_dict(state["line"])
        self.late.load_state_dict(state["late"])

    def finish(self, out: Path) -> Path:
        self.calls.append("finish")
        return out / "line"


def line(out: Path, **run: Any) -> tuple[Line, TrainingFolder]:
    recipe = Recipe(DataRecipe(source="x"), segmenter=SETTINGS, run=RunRecipe(**({"log_every": 1} | run)))
    processes = Processes(recipe.run)
    return Line(recipe, processes), TrainingFolder(out, "segmenter", recipe, processes, "content")


def test_the_order_of_a_training(tmp_path: Path) -> None:
    stage, folder = line(tmp_path)
    shown: list[tuple[str, int, int]] = []
    assert train_stage(stage, folder, lambda *call: shown.append(call)) == tmp_path / "line"
    steps = [call for i in range(6) for call in (f"step {i}", f"validate {i + 1}")]
    assert stage.calls == ["begin", *steps, "finish"]
    assert [done for _, done, _ in shown] == [1, 2, 3, 4, 5, 6] and shown[-1][0].startswith("segmenter  loss ")
    rows = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 6 and "late_norm" not in rows[1] and "late_norm" in rows[2]


@pytest.mark.numerical
def test_parts_add_up_to_the_batch(tmp_path: Path) -> None:
    whole, parts = line(tmp_path / "a")[0], line(tmp_path / "b", accumulation_steps=4)[0]
    for step, batch in enumerate(whole.batches(0)):
        one, four = take_step(whole, batch, step), take_step(parts, batch, step)
        for name in one:
            torch.testing.assert_close(one[name], four[name])
    for ours, theirs in zip(whole.line.parameters(), parts.line.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert whole.late.weight.grad is not None


def test_who_is_asked_to_stop_leaves_a_checkpoint_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    unbroken, folder = line(tmp_path / "a")
    train_stage(unbroken, folder)
    stopped, folder = line(tmp_path / "b")
    stopped.stop_at = "step 3"
    with pytest.raises(KeyboardInterrupt):
        train_stage(stopped, folder, stop=stopped.stop)
    assert stopped.calls[-2:] == ["step 3", "validate 4"]
    resumed, folder = line(tmp_path / "b")
    resumed.stop_at = "step 5"
    train_stage(resumed, folder, stop=resumed.stop)  # too late: it is done
    assert resumed.calls[0] == "step 4"
    assert torch.equal(unbroken.line.weight, resumed.line.weight) and torch.equal(unbroken.late.bias, resumed.late.bias)


def test_a_loss_that_is_no_number_reaches_no_checkpoint(tmp_path: Path) -> None:
    stage, folder = line(tmp_path, save_every=2, log_every=100)
    nn.init.constant_(stage.late.weight, float("inf"))
    with pytest.raises(TrainingDivergedError, match=r"loss is (nan|inf) at or shortly before step 4"):
        train_stage(stage, folder)
    state = folder.load_checkpoint()
    assert state is not None and state["step"] == 2


def segmenter(folder: Path) -> tuple[Source, Recipe]:
    source = write_source(folder)
    data = DataRecipe(source=str(source), tile_size=64)
    run = RunRecipe(num_workers=0, save_every=2, seed=3)
    recipe = Recipe(data, segmenter=replace(SETTINGS, learning_rate=1e-3), run=run)
    return open_source(source, SourceOptions(tile_size=64)), recipe


@pytest.mark.numerical
def test_a_training_is_its_steps_written_out(tmp_path: Path) -> None:
    """The same bits as one loop without a loop's comforts: what step N does follows from (seed, N) alone."""
    source, recipe = segmenter(tmp_path / "source")
    settings, seed = recipe.segmenter, recipe.run.seed
    trained = Segmenter.load(train_segmenter(source, recipe, tmp_path / "run")).state_dict()

    torch.manual_seed(seed)
    net = channels_last(Segmenter("unet", load_legend("mini"))).train()
    optimizer = torch.optim.AdamW(net.parameters(), settings.learning_rate, weight_decay=0.01)
    crops = CropDataset(source, settings.crop_size, seed)
    for step in range(settings.num_steps):
        factor = learning_rate_factor(step, settings.num_steps, settings.warmup_steps, cosine_decay=True)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
        tiles = tiles_of_step(len(source), settings.batch_size, seed, step)
        images, masks = (torch.stack(t) for t in zip(*(crops[t, step, i] for i, t in enumerate(tiles)), strict=True))
        contrast, shift = draw_jitter(len(images), range(len(images)), settings.colour_jitter, seed, step)
        images = (images * contrast + shift).clamp(-1, 1).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        segmentation_loss(net(images), masks).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    for name, value in net.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_crops_as_they_are(tmp_path: Path) -> None:
    """One view is the ground itself; of eight some are turned or mirrored."""
    source, _ = segmenter(tmp_path / "source")
    whole = torch.from_numpy(source.read(0).mask.astype(np.int64)).unfold(0, 32, 1).unfold(1, 32, 1)

    def untouched(views: int) -> int:
        crops = CropDataset(source, 32, 0, views=views)
        return sum(bool((whole == crops[0, step, 0][1]).all((2, 3)).any()) for step in range(12))

    assert untouched(1) == 12 > untouched(8)


@pytest.mark.numerical
def test_a_resumed_segmenter_ends_in_the_same_bits(tmp_path: Path) -> None:
    source, recipe = segmenter(tmp_path / "source")
    whole = Segmenter.load(train_segmenter(source, recipe, tmp_path / "whole")).state_dict()
    stop = Event()

    def after_three(what: str, done: int, total: int) -> None:
        if done == 3:
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        train_segmenter(source, recipe, tmp_path / "broken", after_three, stop)
    assert torch.load(tmp_path / "broken/training/segmenter/checkpoint.pt", weights_only=True)["step"] == 4
    resumed = Segmenter.load(train_segmenter(source, recipe, tmp_path / "broken")).state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
