"""Steps as a CUDA graph against steps one by one; and who may be recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from changeanywhere.pairs import load_pairs
from changeanywhere.training.detector import DetectorTraining
from changeanywhere.training.loop import take_step
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DetectorRecipe, Recipe, RunRecipe
from changeanywhere.training.step import EAGER_STEPS, RecordedSteps, move, prepare
from test_detector_training import write_pairs

RECIPE = Recipe(detector=DetectorRecipe(name="fc_siam_diff", crop_size=64, batch_size=4, num_steps=20, warmup_steps=2))


def training(tmp_path: Path, recipe: Recipe = RECIPE) -> DetectorTraining:
    pairs = load_pairs(write_pairs(tmp_path), "train")
    named = replace(recipe, detector=replace(recipe.detector, pairs=str(tmp_path)), run=RunRecipe(num_workers=0))
    return DetectorTraining(named, Processes(named.run), pairs, None)


def test_a_step_is_its_preparation_and_its_move(tmp_path: Path) -> None:
    one, other = training(tmp_path / "one"), training(tmp_path / "other")
    for step, batch in zip(range(2), one.batches(0), strict=False):
        values = take_step(one, batch, step)
        prepare(other, step)
        assert move(other, batch, step).keys() == values.keys() == {"loss", "gradient_norm"}
    pairs = zip(one.net.state_dict().values(), other.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_what_is_counted_on_the_host_is_not_recorded(tmp_path: Path) -> None:
    assert training(tmp_path).recordable
    hard = replace(RECIPE, detector=replace(RECIPE.detector, hard_examples=True))
    assert not training(tmp_path / "hard", hard).recordable


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: no recorded step was tried")
def test_recorded_steps_end_where_single_ones_do(tmp_path: Path) -> None:
    one, other = training(tmp_path / "one"), training(tmp_path / "other")
    begun = {name: value.clone() for name, value in one.net.state_dict().items()}
    recorded, losses = RecordedSteps(other), []
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for step, batch in zip(range(EAGER_STEPS + 6), one.batches(0), strict=False):
            alone, together = take_step(one, batch, step), recorded.take(batch, step)
            losses.append((float(alone["loss"]), float(together["loss"])))
    assert all(a == pytest.approx(b, rel=2e-3) for a, b in losses) and len(set(losses)) > EAGER_STEPS
    # All weights together: Adam makes whole steps of gradients that are nothing but rounding (biases before a norm).
    moved, apart = 0.0, 0.0
    for name, value in one.net.state_dict().items():
        if value.is_floating_point():
            moved += float((value - begun[name]).square().sum())
            apart += float((other.net.state_dict()[name] - value).square().sum())
        else:
            assert torch.equal(other.net.state_dict()[name], value), name
    print(f"moved {moved**0.5:.4f}, apart {apart**0.5:.4f}")
    assert moved > 0 and apart <= 0.05**2 * moved
