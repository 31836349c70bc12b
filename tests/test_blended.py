"""Blended sampling (paper eq. 6): what is held, what is painted, and what must not depend on what."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from changeanywhere.diffusion import samplers
from changeanywhere.diffusion.blended import Calls, Cells, changed_cells, paint_latents, sample_latents, unknown_cells
from changeanywhere.diffusion.exemplars import Exemplars, first_calls, paint_from_exemplars
from changeanywhere.diffusion.options import SAMPLERS, Sampling
from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.diffusion.place_noise import NoiseStreams, PlaceNoise, normals
from changeanywhere.diffusion.samplers import SHARED_SETTINGS, build_sampler, falling_timesteps
from changeanywhere.diffusion.windows import change_windows
from changeanywhere.errors import ConfigError, InputError
from changeanywhere.models.borrowed import DDIMScheduler, DDPMScheduler
from changeanywhere.models.denoiser import Denoiser
from changeanywhere.models.folder import noise_schedule
from conftest import tiny_model

pytestmark = pytest.mark.numerical
MODEL = tiny_model()
MODEL.denoiser.eval()
KNOWN = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
MASKS = torch.randint(1, 8, (2, 32, 32), generator=torch.Generator().manual_seed(2))
CHANGE = torch.zeros(2, 32, 32, dtype=torch.bool)
CHANGE[:, 8:20, 8:20] = True
CHANGED = changed_cells(CHANGE)
NOTHING = torch.zeros_like(CHANGED)


def run(sampling: Sampling, unknown: Tensor = NOTHING, seeds: tuple[int, ...] = (1, 2), **kwargs: Any) -> Tensor:
    rows = slice(0, len(seeds))
    return sample_latents(
        MODEL.denoiser, MODEL.schedule, MASKS[rows], KNOWN[rows], Cells(CHANGED[rows], unknown[rows]),
        NoiseStreams(seeds, KNOWN.shape[1:]), sampling, **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++", "unipc"])
@pytest.mark.parametrize("known_noise", ["fresh", "fixed"])
def test_without_free_tail_the_known_latent_comes_back_clean(sampler: str, known_noise: str) -> None:
    result = run(Sampling(sampler, num_steps=6, free_fraction=0.0, known_noise=known_noise))
    outside = ~CHANGED.expand_as(KNOWN)
    assert torch.equal(result[outside], KNOWN[outside])
    assert torch.isfinite(result).all()
    assert not torch.allclose(result[~outside], KNOWN[~outside])


def test_held_cells_are_the_noised_known_latent_until_the_free_tail() -> None:
    """int(N·(1 − free_fraction)) calls see q(known, t); the calls after that do not."""
    seen: list[Tensor] = []
    sampling = Sampling("ddim", num_steps=10, free_fraction=0.35, known_noise="fixed")
    run(sampling, on_step=lambda i, x: seen.append(x.clone()))
    noise = NoiseStreams((1, 2), KNOWN.shape[1:]).draw("known")
    outside = ~CHANGED.expand_as(KNOWN)
    alphas = MODEL.schedule.alphas_cumprod
    held = []
    for i, x in enumerate(seen):
        alpha = alphas[1000 // 10 * (9 - i) + 1]
        expected = alpha.sqrt() * KNOWN + (1 - alpha).sqrt() * noise
        held.append(torch.allclose(x[outside], expected[outside], atol=1e-5))
    assert held == [True] * 6 + [False] * 4


def test_fresh_noise_differs_from_call_to_call() -> None:
    seen: list[Tensor] = []
    run(Sampling("ddim", 4, 0.0, known_noise="fresh"), on_step=lambda i, x: seen.append(x.clone()))
    outside = ~CHANGED.expand_as(KNOWN)
    alphas = MODEL.schedule.alphas_cumprod[[751, 501]]
    noises = [(x - a.sqrt() * KNOWN) / (1 - a).sqrt() for x, a in zip(seen, alphas, strict=False)]
    assert not torch.allclose(noises[0][outside], noises[1][outside], atol=0.1)


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
def test_unknown_ground_is_kept_through_the_free_tail(sampler: str) -> None:
    unknown = NOTHING.clone()
    unknown[:, :, :, 7] = True
    result = run(Sampling(sampler, num_steps=6, free_fraction=0.5), unknown)
    assert torch.equal(result[..., 7], KNOWN[..., 7])
    assert not torch.allclose(result[..., 0], KNOWN[..., 0])


def test_a_pair_does_not_depend_on_its_batch() -> None:
    together = run(Sampling("ddim", num_steps=4, free_fraction=0.25, known_noise="fresh"))
    alone = run(Sampling("ddim", num_steps=4, free_fraction=0.25, known_noise="fresh"), seeds=(1,))
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_noise_of_a_tile_is_that_of_its_place_in_a_world_of_its_seed() -> None:
    """One generator for tiles and scenes; all pairs at once (as on a GPU) draw what each draws alone."""
    seeds = [5, 2**63 + 9, 0]
    drawn = NoiseStreams(seeds, (3, 6, 5)).draw("known")
    for seed, own in zip(seeds, drawn, strict=True):
        assert torch.equal(own, PlaceNoise(seed, [(0, 0)], (3, 6, 5)).draw("known")[0])
    rows, columns = torch.arange(6)[:, None], torch.arange(5)[None]
    signed = torch.tensor([5, 9 - 2**63, 0]).view(-1, 1, 1)
    torch.testing.assert_close(normals(signed, "known", 0, rows, columns, 3).transpose(0, 1), drawn, rtol=0, atol=1e-6)


def test_streams_of_different_purposes_are_different() -> None:
    streams = NoiseStreams([5], (3, 4, 4))
    assert not torch.allclose(streams.draw("start"), streams.draw("known"))
    again = NoiseStreams([5], (3, 4, 4))
    again.draw("known")
    assert torch.equal(again.draw("start"), NoiseStreams([5], (3, 4, 4)).draw("start"))


def test_guidance_one_is_the_conditional_prediction_and_others_move_it() -> None:
    plain = run(Sampling("ddim", 4, 0.0))
    assert not torch.allclose(plain, run(Sampling("ddim", 4, 0.0, guidance_scale=3.0)))


def test_max_pooling_keeps_a_single_changed_pixel() -> None:
    change = torch.zeros(1, 32, 32, dtype=torch.bool)
    change[0, 13, 6] = True
    cells = changed_cells(change)
    assert cells.sum() == 1
    assert cells[0, 0, 3, 1]
    assert changed_cells(change, dilate_cells=1).sum() == 9


def test_changed_cells_are_never_unknown_cells() -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.long)
    masks[0, 0, 0] = 1
    change = torch.zeros(1, 8, 8, dtype=torch.bool)
    change[0, 0, 0] = True
    changed = changed_cells(change)
    assert unknown_cells(masks, changed).flatten().tolist() == [False, True, True, True]


def test_windows_hold_the_change_and_lie_inside() -> None:
    changed = torch.zeros(4, 1, 64, 32, dtype=torch.bool)
    changed[0, :, 0:3, 30:32] = True  # a corner
    changed[1, :, 20:50, 3:9] = True  # longer than the tile is wide
    changed[3, :, 40, 16] = True
    windows = change_windows(changed, margin=4, multiple=4)
    assert [w.index for w in windows] == [0, 1, 3], "a pair without a change has no window"
    for window in windows:
        assert window.of(changed).sum() == changed[window.index].sum()
        assert 0 <= window.row <= 64 - window.height and 0 <= window.column <= 32 - window.width
    assert [(w.height, w.width) for w in windows] == [(16, 16), (48, 32), (16, 16)]


def test_a_window_as_large_as_the_tile_changes_nothing() -> None:
    sampling = Sampling(num_steps=6, free_fraction=0.0, guidance_scale=2.0)
    whole = run(sampling)
    torch.testing.assert_close(run(replace(sampling, window_margin=8)), whole, rtol=1e-4, atol=1e-5)


def test_windows_paint_the_change_and_leave_the_rest() -> None:
    known = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    masks = torch.randint(1, 8, (2, 64, 64), generator=torch.Generator().manual_seed(4))
    changed = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    changed[0, :, 2:5, 2:4] = True  # pair 1 does not change

    def paint(sampling: Sampling) -> Tensor:
        nothing = torch.zeros_like(changed)
        noise = NoiseStreams((1, 2), known.shape[1:])
        return sample_latents(MODEL.denoiser, MODEL.schedule, masks, known, Cells(changed, nothing), noise, sampling)

    held = paint(Sampling(num_steps=5, free_fraction=0.0, window_margin=2))
    outside = ~changed.expand_as(known)
    assert torch.equal(held[outside], known[outside])
    assert not torch.allclose(held[~outside], known[~outside])
    assert not torch.equal(paint(Sampling(num_steps=5, free_fraction=0.4, window_margin=2))[1], known[1])


def test_windows_need_noise_that_is_the_same_at_every_call() -> None:
    with pytest.raises(ConfigError, match="window_margin is 8; allowed: 0 with known_noise fresh"):
        Sampling(known_noise="fresh", window_margin=8).check()
    with pytest.raises(ConfigError, match="window_margin"):
        Sampling("ddim", window_margin=8).check()
    Sampling("ddim", eta=0.0, window_margin=8).check()
    for noisy in (Sampling(known_noise="fresh", exemplar_strength=0.5), Sampling("ddim", exemplar_strength=0.5)):
        with pytest.raises(ConfigError, match=r"exemplar_strength is 0\.5; allowed: 1 with known_noise fresh"):
            noisy.check()


@pytest.mark.usefixtures("unquantised")
def test_pipeline_on_arrays_single_and_batch() -> None:
    pipe = ChangePairPipeline(tiny_model())
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    mask, change = MASKS.numpy().astype(np.uint8), CHANGE.numpy()
    batch = pipe(image, mask, change, num_steps=3, seed=[7, 8])
    single = pipe(image[0], mask[0], change[0], num_steps=3, seed=7)
    assert batch.shape == (2, 32, 32, 3) and single.shape == (32, 32, 3) and batch.dtype == np.uint8
    assert np.abs(batch[0].astype(int) - single).max() <= 1
    assert np.array_equal(single, pipe(image[0], mask[0], change[0], num_steps=3, seed=7))


def test_painting_tells_each_call_and_stops_where_it_is_told() -> None:
    """Whoever looks on changes nothing, and what he raises ends the painting before the next call."""
    pipe = ChangePairPipeline(tiny_model())
    seen: list[int] = []

    class StopError(Exception):
        pass

    def on_step(call: int, x: Tensor) -> None:
        seen.append(call)
        if len(seen) == 8:
            raise StopError

    sampling = Sampling("dpmsolver++", num_steps=5, free_fraction=0.4, known_noise="fixed", window_margin=8)
    given = (KNOWN[:1], MASKS[:1], CHANGE[:1], [1], sampling)
    assert torch.equal(pipe.paint(*given, on_step), pipe.paint(*given))
    assert seen == [0, 1, 2, 3, 4]
    with pytest.raises(StopError):
        pipe.paint(*given, on_step)
    assert seen[5:] == [0, 1, 2]


def test_pipeline_refuses_what_does_not_fit() -> None:
    pipe = ChangePairPipeline(tiny_model(mask_dropout=0.0))
    image, mask, change = np.zeros((32, 32, 3), np.uint8), np.ones((32, 32), np.uint8), np.zeros((32, 32), bool)
    with pytest.raises(ConfigError, match="guidance_scale"):
        pipe(image, mask, change, guidance_scale=2.0)
    with pytest.raises(ConfigError, match="num_steps"):
        pipe(image, mask, change, num_steps=0)
    with pytest.raises(ConfigError, match="unknown setting 'steps'"):
        pipe(image, mask, change, steps=4)
    for idle in ({"exemplar_strength": 0.2}, {"exemplar_strength": {"default": 0.2}}, {"exemplar_ring": 9}):
        with pytest.raises(ConfigError, match=r"exemplar_\w+ is .*; arrays bring no exemplar"):
            pipe(image, mask, change, **idle)
    assert np.array_equal(pipe(image, mask, change, exemplar_strength=1), pipe(image, mask, change))
    with pytest.raises(InputError, match="mask value 9"):
        pipe(image, mask * 9, change)
    with pytest.raises(InputError, match="multiples of 8"):
        pipe(image[:30], mask[:30], change[:30])
    with pytest.raises(InputError, match="uint8"):
        pipe(image.astype(np.float32), mask, change)


@pytest.mark.parametrize("seed", [[1], [1, 2], [1, 2, 3, 4], np.arange(4), 1.5, [1.5, 2, 3], "abc"])
def test_seeds_are_one_number_or_as_many_as_there_are_images(seed: Any) -> None:
    pipe, pick = ChangePairPipeline(tiny_model()), [0, 1, 0]
    images = np.zeros((3, 32, 32, 3), np.uint8)
    masks, change = MASKS.numpy().astype(np.uint8)[pick], CHANGE.numpy()[pick]
    with pytest.raises(InputError, match=r"seed is .*; allowed: a whole number, or 3, one per image"):
        pipe(images, masks, change, num_steps=1, seed=seed)
    with pytest.raises(InputError, match=r"seed is .*; allowed: a whole number, or 2, one per image"):
        pipe.paint(KNOWN, MASKS, CHANGE, [1, 2, 3], Sampling(num_steps=1))
    if np.ndim(seed) == 0 or len(seed) > 1:
        with pytest.raises(InputError, match=r"seed is .*; allowed: a whole number"):
            pipe.paint_scene(images[0], masks[0], change[0], num_steps=1, seed=seed)
    alike: list[Any] = [5, np.int64(5), [5, 6, 7], np.arange(5, 8)]
    painted = [pipe(images, masks, change, num_steps=1, seed=each) for each in alike]
    assert all(np.array_equal(painted[0], each) for each in painted)


def test_what_a_model_recommends_of_exemplars_is_nothing_to_arrays() -> None:
    """It may rule out settings that are given, though arrays bring no exemplar."""
    model, pipe = tiny_model(), ChangePairPipeline(tiny_model())
    model.defaults |= {"exemplar_strength": {"default": 0.4}, "exemplar_ring": 9}
    recommending = ChangePairPipeline(model)
    arrays = (np.zeros((32, 32, 3), np.uint8), MASKS[0].numpy().astype(np.uint8), CHANGE[0].numpy())
    for settings in ({"sampler": "ddim"}, {"known_noise": "fresh"}, {"exemplar_strength": 1.0}):
        expected = pipe(*arrays, num_steps=2, **cast(Any, settings))
        assert np.array_equal(recommending(*arrays, num_steps=2, **cast(Any, settings)), expected), settings


@pytest.mark.parametrize("named", [{"sampler": "ddim"}, {"known_noise": "fresh"}, {"sampler": "ddim", "eta": 0.5}])
def test_what_a_sampler_that_is_given_cannot_do_is_left_out_where_the_model_alone_asks_for_it(
    named: dict[str, Any],
) -> None:
    """As `mini` recommends windows and exemplars; what the caller gives is refused as ever."""
    pipe = ChangePairPipeline(tiny_model())
    recommended = {"window_margin": 8, "exemplar_strength": {"default": 0.4}, "exemplar_ring": 9, "dilate_cells": 1}
    base = Sampling(**recommended)  # type: ignore[arg-type]
    assert base.changed(named) == Sampling(dilate_cells=1, **named)
    assert base.left_out(named) == ["window_margin", "exemplar_strength"]
    for name, value in (("window_margin", 8), ("exemplar_strength", 0.4)):
        with pytest.raises(ConfigError, match=f"{name} is {value}"):
            base.changed(named | {name: value}).check()
    for fitting in ({}, {"sampler": "unipc"}, {"sampler": "ddim", "eta": 0.0}, {"window_margin": 0}):
        assert base.left_out(fitting) == [] and base.said_of_left_out(fitting) == ""
        assert base.changed(fitting) == Sampling(**(recommended | fitting))  # type: ignore[arg-type]
    whole = Sampling(exemplar_strength=1.0)
    assert whole.changed(named).exemplar_strength == 1.0, "nothing but noise: as it was begun"
    pipe.model.defaults |= recommended
    arrays = (np.zeros((32, 32, 3), np.uint8), MASKS[0].numpy().astype(np.uint8), CHANGE[0].numpy())
    assert pipe(*arrays, num_steps=2, **named).shape == (32, 32, 3)
    assert pipe.paint_scene(*arrays, num_steps=2, **named).shape == (32, 32, 3)
    with pytest.raises(ConfigError, match=r"exemplar_strength is .*; allowed: 1 with"):
        pipe.paint_scene(*arrays, exemplar=arrays[0], num_steps=2, **named)
    with pytest.raises(ConfigError, match="window_margin is 4; allowed: 0 with"):
        pipe(*arrays, num_steps=2, window_margin=4, **named)


def test_without_guidance_the_interval_that_a_model_recommends_is_none() -> None:
    pipe = ChangePairPipeline(tiny_model())
    pipe.model.defaults |= {"guidance_scale": 2.0, "guidance_interval": [200, 700]}
    arrays = (np.zeros((32, 32, 3), np.uint8), MASKS[0].numpy().astype(np.uint8), CHANGE[0].numpy())
    assert pipe(*arrays, num_steps=2, guidance_scale=1.0).shape == (32, 32, 3)
    with pytest.raises(ConfigError, match="guidance_interval"):
        pipe(*arrays, num_steps=2, guidance_scale=1.0, guidance_interval=[1, 2])


def test_predict_noise_converts_v() -> None:
    model = tiny_model()
    pipe = ChangePairPipeline(model)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([400])
    raw = pipe.predict_noise(x, t, MASKS[:1])
    model.schedule.register_to_config(prediction_type="v_prediction")
    alpha = model.schedule.alphas_cumprod[400]
    torch.testing.assert_close(pipe.predict_noise(x, t, MASKS[:1]), alpha.sqrt() * raw + (1 - alpha).sqrt() * x)


class Oracle:
    """Knows the clean latent, and answers in the parametrisation of the schedule."""

    size_multiple = 16

    def __init__(self, clean: Tensor, prediction_type: str) -> None:
        self.clean, self.prediction_type = clean, prediction_type

    def encode_masks(self, masks: Tensor, dropped: Tensor | None = None) -> Tensor:
        return masks.unsqueeze(1)

    def __call__(self, x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        alpha: Tensor = MODEL.schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noise = (x - alpha.sqrt() * self.clean) / (1 - alpha).sqrt()
        if self.prediction_type == "epsilon":
            return noise
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * self.clean


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("dpmsolver++", 0.0), ("unipc", 0.0)])
def test_a_perfect_denoiser_paints_the_clean_latent(prediction_type: str, sampler: str, eta: float) -> None:
    clean = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    result = sample_latents(
        cast(Denoiser, Oracle(clean, prediction_type)), noise_schedule(prediction_type), MASKS, KNOWN,
        Cells(CHANGED, NOTHING),
        NoiseStreams((1, 2), KNOWN.shape[1:]), Sampling(sampler, 20, 0.25, eta=eta, known_noise="fixed"),
    )  # fmt: skip
    # DDIM ends at ᾱ[0], one step before clean.
    assert (result - clean).abs().max() < (0.2 if sampler == "ddim" else 1e-3)


def one_step(calls: Calls, held: Tensor, wanted: Tensor, noise: Tensor, call: int) -> Tensor:
    """From q(held, t) of ``call`` to the next, towards ``wanted``, which the network sees in everything: one and the
    same for every solver and order."""
    alphas = [MODEL.schedule.alphas_cumprod[calls.timesteps[at]] for at in (call, call + 1)]
    (alpha, sigma), (after, less) = ((a.sqrt(), (1 - a).sqrt()) for a in alphas)
    moved: Tensor = less / sigma * calls.noised(held, noise, call) + (after - alpha * less / sigma) * wanted
    return moved


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("free_fraction", [0.1, 0.5])
def test_what_was_held_is_one_step_from_the_known_latent_where_the_tail_begins(
    sampler: str, free_fraction: float
) -> None:
    """Whatever the sampler remembers of the calls before; what was never held goes its own way from the start."""
    clean = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    sampling = Sampling(sampler, 20, free_fraction, eta=0.0)
    oracle, seen = cast(Denoiser, Oracle(clean, "epsilon")), dict[int, Tensor]()
    streams = NoiseStreams((1, 2), KNOWN.shape[1:])
    calls, noise = Calls(oracle, MODEL.schedule, sampling, streams), streams.draw("known")
    sample_latents(
        oracle, MODEL.schedule, MASKS, KNOWN, Cells(CHANGED, NOTHING), NoiseStreams((1, 2), KNOWN.shape[1:]), sampling,
        lambda call, x: seen.update({call: x.clone()}),
    )  # fmt: skip
    outside, first = ~CHANGED.expand_as(KNOWN), sampling.num_held
    expected = one_step(calls, KNOWN, clean, noise, first - 1)
    torch.testing.assert_close(seen[first][outside], expected[outside], atol=2e-4, rtol=1e-4)
    start = NoiseStreams((1, 2), KNOWN.shape[1:]).draw("start")
    alphas = [float(MODEL.schedule.alphas_cumprod[calls.timesteps[at]]) for at in (0, first)]
    own = ((1 - alphas[1]) / (1 - alphas[0])) ** 0.5
    painted = own * start + (alphas[1] ** 0.5 - alphas[0] ** 0.5 * own) * clean
    torch.testing.assert_close(seen[first][~outside], painted[~outside], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_ground_of_a_later_start_begins_at_its_exemplar(sampler: str) -> None:
    clean, made = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))
    strength = torch.full((2, 32, 32), 1.0)
    strength[:, :, 16:] = 0.3
    sampling = Sampling(sampler, 20, 0.0, eta=0.0, exemplar_strength=0.3)
    oracle, seen = cast(Denoiser, Oracle(clean, "epsilon")), dict[int, Tensor]()
    paint_from_exemplars(
        oracle, MODEL.schedule, KNOWN, Exemplars(made, strength), (MASKS, CHANGE), [1, 2], sampling,
        lambda call, x: seen.update({call: x.clone()}),
    )  # fmt: skip
    streams = NoiseStreams((1, 2), KNOWN.shape[1:])
    calls, noise = Calls(oracle, MODEL.schedule, sampling, streams), streams.draw("known")
    starts = first_calls(strength, CHANGE, calls.timesteps, sampling.num_held, sampling)
    late = int(starts[CHANGED].max())
    assert 0 < late < sampling.num_held
    cells = (CHANGED & (starts == late)).expand_as(KNOWN)
    expected = one_step(calls, made, clean, noise, late - 1)
    torch.testing.assert_close(seen[late][cells], expected[cells], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("sampling", [
    Sampling("ddim", 10, [0.0, 0.5], known_noise="fresh"),
    Sampling("ddim", 10, [0.0, 0.5], known_noise="fixed", eta=0.0, window_margin=1),
    Sampling("dpmsolver++", 10, [0.0, 0.5], known_noise="fixed", guidance_scale=2.0),
    Sampling("unipc", 10, [0.0, 0.5], known_noise="fixed"),
], ids=["together", "windows", "dpmsolver++", "unipc"])  # fmt: skip
def test_each_pair_has_the_free_tail_that_its_seed_draws(sampling: Sampling) -> None:
    """In whatever company it is painted: as if it were painted alone, with that number."""
    seeds, pick = [3, 4, 5, 6, 7, 3], torch.tensor([0, 1, 0, 1, 1, 0])
    masks, known, change = MASKS[pick].clone(), KNOWN[pick], CHANGE[pick]
    masks[1, 24:] = 0  # unknown ground is kept to the end
    paint = partial(paint_latents, MODEL.denoiser, MODEL.schedule)
    together = paint(known, masks, change, seeds, sampling)
    tails = [sampling.settled(seed).free_fraction for seed in seeds]
    assert len({sampling.settled(seed).num_held for seed in seeds}) > 2 and tails[0] == tails[-1]
    for row, (seed, tail) in enumerate(zip(seeds, tails, strict=True)):
        one = slice(row, row + 1)
        alone = paint(known[one], masks[one], change[one], [seed], replace(sampling, free_fraction=tail))
        assert torch.allclose(together[one], alone, atol=1e-4), row
        other = paint(known[one], masks[one], change[one], [seed], replace(sampling, free_fraction=0.8))
        assert not torch.allclose(together[one], other, atol=1e-2)


def test_a_pair_that_draws_no_tail_gets_the_known_latent_back() -> None:
    sampling = Sampling("ddim", 6, [0.0, 0.0], known_noise="fresh")
    result = paint_latents(MODEL.denoiser, MODEL.schedule, KNOWN, MASKS, CHANGE, [1, 2], sampling)
    outside = ~CHANGED.expand_as(KNOWN)
    assert torch.equal(result[outside], KNOWN[outside]) and not torch.equal(result[~outside], KNOWN[~outside])


@pytest.mark.parametrize("num_steps", [*range(1, 26), 40, 50, 100, 200, 250, 500, 999])
def test_the_tail_begins_at_the_call_that_the_numbers_say(num_steps: int) -> None:
    """As written, in decimals: not as their product happens to be rounded."""
    for percent in range(101):
        exact = num_steps * (100 - percent) // 100
        assert Sampling(num_steps=num_steps, free_fraction=percent / 100).num_held == exact, percent
        thousandth = num_steps * (10_000 - percent) // 10_000
        assert Sampling(num_steps=num_steps, free_fraction=percent / 10_000).num_held == thousandth, percent
    for calls in range(num_steps + 1):
        assert Sampling(num_steps=num_steps, free_fraction=calls / num_steps).num_held == num_steps - calls


@pytest.mark.parametrize("wrong", [[0.3, 0.0], [0.1], [0.0, 0.1, 0.2], [0.0, 1.5], 1.5])
def test_a_free_tail_is_a_number_or_two(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"free_fraction is .*; allowed: 0 to 1, or \[low, high\]"):
        Sampling(free_fraction=wrong).check()
    with pytest.raises(ConfigError, match="allowed: one number"):
        _ = Sampling(free_fraction=[0.0, 0.3]).num_held


@given(st.integers(1, 999))
def test_timesteps_fall_and_are_dense_towards_low_noise(num_steps: int) -> None:
    timesteps = falling_timesteps(num_steps, 1000)
    assert len(timesteps) == num_steps and timesteps[0] == 999 and timesteps[-1] >= 0
    gaps = -np.diff(timesteps)
    assert (gaps >= 1).all(), "a scheduler tells its steps by their timesteps: no two may be the same"
    if 3 <= num_steps <= 25:
        assert (np.diff(gaps) <= 1).all() and gaps[0] > gaps[-1], "up to rounding each step is shorter than the last"


def test_the_solver_takes_these_timesteps_and_ends_clean() -> None:
    sampler = build_sampler("dpmsolver++", noise_schedule(), 8, torch.device("cpu"))
    assert sampler.timesteps.tolist() == falling_timesteps(8, 1000)
    assert float(sampler.sigmas[-1]) == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_number_of_steps_has_as_many_timesteps_over_the_whole_trajectory(name: str) -> None:
    schedule = noise_schedule()
    for num_steps in range(1, 1000):
        timesteps = build_sampler(name, schedule, num_steps, torch.device("cpu")).timesteps.tolist()
        falling = all(now > then for now, then in pairwise(timesteps))
        assert len(timesteps) == num_steps and falling and timesteps[-1] >= 0, num_steps
        widest = max((now - then for now, then in pairwise(timesteps)), default=1000)
        assert 1000 - 2 * widest <= timesteps[0] < 1000, "no more than a step of the trajectory is left out"


def test_unipc_takes_the_timesteps_of_diffusers_wherever_these_are_as_many_as_asked_for() -> None:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    schedule, right = noise_schedule(), 0
    kept = {key: schedule.config[key] for key in SHARED_SETTINGS}
    theirs = UniPCMultistepScheduler(**kept, solver_order=2, timestep_spacing="trailing")
    for num_steps in range(1, 1000):
        theirs.set_timesteps(num_steps)
        ours = build_sampler("unipc", schedule, num_steps, torch.device("cpu"))
        assert torch.equal(ours.timesteps, theirs.timesteps[:num_steps])
        assert torch.equal(ours.sigmas[:-1], theirs.sigmas[:num_steps]) and float(ours.sigmas[-1]) == 0
        right += len(theirs.timesteps) == num_steps
    assert right == 937


@pytest.mark.parametrize("num_steps", [60, 61])
def test_unipc_ends_on_what_is_left_when_all_noise_is_gone(num_steps: int) -> None:
    """With a network that knows the noise: 61 steps once ended in noise, at an extra timestep of -1."""
    schedule = noise_schedule()
    sampler = build_sampler("unipc", schedule, num_steps, torch.device("cpu"))
    clean, x = torch.full((1, 3, 4, 4), 0.5), torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for timestep in sampler.timesteps:
        alpha = schedule.alphas_cumprod[int(timestep)]
        x = sampler.step((x - alpha.sqrt() * clean) / (1 - alpha).sqrt(), timestep, x).prev_sample
    assert torch.allclose(x, clean, atol=1e-3)


def test_ddim_steps_as_diffusers_does_where_that_covers_the_trajectory() -> None:
    """To the last bit: all N that divide 1000 among them."""
    schedule = noise_schedule()
    kept = {key: schedule.config[key] for key in SHARED_SETTINGS}
    own = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    x, epsilon, noise = torch.randn(3, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for num_steps in [n for n in range(1, 1000) if 1000 % n == 0] + [3, 12, 30]:
        theirs = DDIMScheduler(**kept, **own)
        theirs.set_timesteps(num_steps)
        ours = build_sampler("ddim", schedule, num_steps, torch.device("cpu"))
        assert torch.equal(ours.timesteps, theirs.timesteps)
        for timestep in [*ours.timesteps[:: max(1, num_steps // 10)].tolist(), 1]:
            stepped = [s.step(epsilon, timestep, x, eta=1.0, variance_noise=noise).prev_sample for s in (ours, theirs)]
            assert torch.equal(*stepped), (num_steps, timestep)


@pytest.mark.parametrize("num_steps", [60, 400, 501, 999])
def test_ddim_goes_from_each_timestep_to_the_next(num_steps: int) -> None:
    """With a network that knows the noise, every sample is q(clean, t) of the next timestep."""
    schedule = noise_schedule()
    sampler = build_sampler("ddim", schedule, num_steps, torch.device("cpu"))
    clean, noise = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    alphas = [schedule.alphas_cumprod[t] for t in [*sampler.timesteps.tolist(), 0]]
    x = alphas[0].sqrt() * clean + (1 - alphas[0]).sqrt() * noise
    for timestep, alpha in zip(sampler.timesteps, alphas[1:], strict=True):
        x = sampler.step(noise, timestep, x, eta=0.0).prev_sample
        assert torch.allclose(x, alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, atol=1e-3), int(timestep)


@pytest.mark.parametrize("made", [[999, 500, -1], [999, 500, 500], [999, 500], [1000, 500, 0]])
def test_a_sampler_with_other_timesteps_than_were_asked_for_is_refused(
    made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplers, "even_timesteps", lambda *_: made)
    with pytest.raises(ConfigError, match=r"num_steps is 3, of which ddim makes \d timesteps from"):
        build_sampler("ddim", noise_schedule(), 3, torch.device("cpu"))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_step_on_the_noise_of_the_models_schedule(name: str) -> None:
    """Also of one that ends in noise alone (Lin et al. 2024), and of betas that were given one by one."""
    zero, given_ones = DDPMScheduler(rescale_betas_zero_snr=True), [0.001 + 1e-5 * i for i in range(1000)]
    for schedule in (zero, DDPMScheduler(trained_betas=given_ones)):
        sampler = build_sampler(name, schedule, 8, torch.device("cpu"))
        # The solvers put 2^-24 in the place of 0.
        assert torch.allclose(sampler.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(sampler.alphas_cumprod, noise_schedule().alphas_cumprod, rtol=1e-5, atol=1e-7)
