"""Steps as a CUDA graph against steps one by one; and who may be recorded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from changeanywhere.pairs import load_pairs
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.training.batches import drawn_ahead
from changeanywhere.training.denoiser import DenoiserTraining
from changeanywhere.training.detector import DetectorTraining
from changeanywhere.training.latents import build_latent_cache
from changeanywhere.training.loop import take_step
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DenoiserRecipe, DetectorRecipe, Recipe, RunRecipe
from changeanywhere.training.stage import load_optimizer
from changeanywhere.training.step import EAGER_STEPS, RecordedSteps, move, prepare
from conftest import tiny_model, write_source
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


@pytest.mark.parametrize(("begun", "own"), [(None, True), (True, None), (True, True)])
def test_optimisers_resume_as_their_device_wants_them(begun: bool | None, own: bool | None) -> None:
    """A run that began on a CPU and goes on on a GPU, and the other way round: torch puts the counts of steps where the
    groups that it loads say, so that these must be this device's already."""

    def optimiser(fused: bool | None) -> torch.optim.AdamW:
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        return torch.optim.AdamW([weight], 0.1, fused=fused)

    before, after = optimiser(begun), optimiser(own)
    before.step()
    state = before.state_dict()
    state["param_groups"][0]["capturable"] = True  # of a recorded run
    # Where fused, the count is brought to the kind and the device of the kernel, else it is left as it is.
    state["state"][0]["step"] = state["state"][0]["step"].double()
    load_optimizer(after, state)
    (group,), (count,) = after.param_groups, [each["step"] for each in after.state.values()]
    assert (group["fused"], group["capturable"]) == (own, False)
    assert count.dtype == (torch.float32 if own else torch.float64)
    assert state["param_groups"][0]["fused"] == begun, "what was read stays as it is"


def denoiser_training(tmp_path: Path) -> DenoiserTraining:
    size = {"channels": [32, 32], "layers_per_block": 1, "attention_levels": [], "norm_groups": 4, "head_dim": 8}
    settings = DenoiserRecipe(**size, batch_size=4, num_steps=20, warmup_steps=2, mask_dropout=0.3)  # type: ignore[arg-type]
    recipe = Recipe(denoiser=settings, run=RunRecipe(num_workers=0))
    processes, first_stage = Processes(recipe.run), tiny_model().first_stage
    source = open_source(write_source(tmp_path), SourceOptions(tile_size=64))
    folder, net = tmp_path / "latents", first_stage.to(processes.device)
    cache = build_latent_cache(folder, source, net, range(settings.views), len(source), processes)
    cache.keep_on(processes.device)
    return DenoiserTraining(recipe, processes, source, net, cache)


def weights_of(stage: DetectorTraining | DenoiserTraining) -> dict[str, Tensor]:
    """All that a step moves."""
    if isinstance(stage, DetectorTraining):
        return dict(stage.net.state_dict())
    averaged = {f"average.{name}": value for name, value in stage.average.weights.items()}
    return {**stage.denoiser.state_dict(), **averaged}


def test_what_is_drawn_ahead_is_what_is_drawn() -> None:
    here = threading.get_ident()
    for beside in (True, False):
        assert list(drawn_ahead(lambda step: (step, threading.get_ident() == here), range(3, 7), beside)) == [
            (3, True), *((step, not beside) for step in (4, 5, 6))
        ]  # fmt: skip


def test_averaged_weights_belong_to_a_step_of_a_denoiser(tmp_path: Path) -> None:
    stage = denoiser_training(tmp_path)
    assert stage.recordable
    before = {name: value.clone() for name, value in stage.average.weights.items()}
    batch = next(stage.batches(0))
    take_step(stage, batch, 0)
    decay = 0.5 ** (1 / max(stage.settings.ema_halflife_share, 1e-3))
    for name, value in stage.denoiser.state_dict().items():
        torch.testing.assert_close(stage.average.weights[name], before[name].lerp(value, 1 - decay), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: no recorded step was tried")
@pytest.mark.parametrize("begin", [training, denoiser_training])
def test_recorded_steps_end_where_single_ones_do(
    tmp_path: Path, begin: Callable[[Path], DetectorTraining | DenoiserTraining]
) -> None:
    one, other = begin(tmp_path / "one"), begin(tmp_path / "other")
    begun = {name: value.clone() for name, value in weights_of(one).items()}
    recorded, losses = RecordedSteps(other), []
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for step, batch in zip(range(EAGER_STEPS + 6), one.batches(0), strict=False):
            alone, together = take_step(one, batch, step), recorded.take(batch, step)
            losses.append((float(alone["loss"]), float(together["loss"])))
    assert all(a == pytest.approx(b, rel=2e-3) for a, b in losses) and len(set(losses)) > EAGER_STEPS
    # All weights together: Adam makes whole steps of gradients that are nothing but rounding (biases before a norm).
    moved, apart = 0.0, 0.0
    there = weights_of(other)
    for name, value in weights_of(one).items():
        if value.is_floating_point():
            moved += float((value - begun[name]).square().sum())
            apart += float((there[name] - value).square().sum())
        else:
            assert torch.equal(there[name], value), name
    print(f"moved {moved**0.5:.4f}, apart {apart**0.5:.4f}")
    assert moved > 0 and apart <= 0.05**2 * moved
