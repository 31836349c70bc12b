"""Blended diffusion that begins from exemplars: changed ground from q(exemplar, t) instead of from noise.

After SDEdit (Meng et al. 2022) for the start, and paper §2.4 for what is held. The paper paints changed ground from
pure noise; that is strength 1. Shapes as in :mod:`.blended`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from changeanywhere.diffusion.blended import Calls, OnStep, by_tail, changed_cells, mask_conditions, unknown_cells
from changeanywhere.diffusion.joint import JOINT_SAMPLERS, Begins, Windows, paint_jointly
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.place_noise import NoiseStreams
from changeanywhere.diffusion.samplers import PER_MILLE, build_sampler, per_mille
from changeanywhere.diffusion.windows import LatentWindow, change_windows, cut
from changeanywhere.models.borrowed import DDPMScheduler
from changeanywhere.models.copies import onto
from changeanywhere.models.denoiser import Denoiser
from changeanywhere.models.first_stage import DOWNSAMPLING


@dataclass(frozen=True)
class Exemplars:
    """Latents ``[B, 3, h, w]`` of images in which changed ground shows its new class, and the strength f32
    ``[B, H, W]`` with which it is painted over: 0 keeps the exemplar as it is, 1 begins from noise."""

    latents: Tensor
    strength: Tensor


@dataclass(frozen=True)
class _Scene:
    """All that a call needs, of the whole batch."""

    target: Tensor
    """What is held, clean: the exemplar on changed cells, date 1 elsewhere."""
    noise: Tensor | None
    changed: Tensor
    start: Tensor
    """First call that paints a cell, int64 ``[B, 1, h, w]``; ``num_steps``: none does."""
    conditions: list[Tensor]


@torch.no_grad()
def paint_from_exemplars(
    denoiser: Denoiser,
    schedule: DDPMScheduler,
    known: Tensor,
    exemplars: Exemplars,
    masks: tuple[Tensor, Tensor],
    seeds: Sequence[int],
    sampling: Sampling,
    on_step: OnStep | None = None,
) -> Tensor:
    """Latents ``known`` of date 1 → latents of date 2, ``[B, 3, h, w]``, on the device of ``known``.

    ``masks``: mask t2 int64 and change mask bool, ``[B, H, W]``. A changed cell is held at q(exemplar, t) until the
    call whose timestep, of 1000, is nearest to strength × 1000, and painted from there on; everything else is held as
    in :func:`.sample_latents`. Cells of less strength wait for their call while others are painted around them. Calls
    before the first start of a pair are not made for it. Strengths below the free tail begin with the tail, or never.
    ``on_step(i, x)`` sees the input of each call, which is that of windows alone while they are painted. Where
    ``free_fraction`` is a range, pairs whose tails begin at the same call go together.
    """
    if isinstance(sampling.free_fraction, list):

        def paint(rows: list[int], own: Sampling) -> Tensor:
            some = Exemplars(exemplars.latents[rows], exemplars.strength[rows])
            its_masks, its_seeds = (masks[0][rows], masks[1][rows]), [seeds[row] for row in rows]
            given = denoiser.of_rows(rows), schedule, known[rows], some, its_masks
            return paint_from_exemplars(*given, its_seeds, own, on_step)

        return by_tail(paint, seeds, sampling)
    # What is painted when and where is settled on the CPU: a device asked for it would be waited for.
    where, masks_t2 = changed_cells(masks[1].cpu(), sampling.dilate_cells), onto(masks[0], known.device)
    streams = NoiseStreams(seeds, known.shape[1:], known.device)
    calls = Calls(denoiser, schedule, sampling, streams, on_step)
    num_held = sampling.num_held
    start = first_calls(exemplars.strength.cpu(), masks[1].cpu(), calls.moments, num_held, sampling)
    start = torch.where(where, start, sampling.num_steps)
    changed = onto(where, known.device)
    scene = _Scene(
        target=torch.where(changed, exemplars.latents.to(known.device), known),
        noise=streams.draw("known").to(known) if sampling.known_noise == "fixed" else None,
        changed=changed,
        start=onto(start, known.device),
        conditions=mask_conditions(denoiser, masks_t2, sampling.guidance_scale),
    )
    x = calls.noised(scene.target, _noise(scene, streams), num_held)
    margin, multiple = sampling.window_margin, denoiser.size_multiple // DOWNSAMPLING
    windows = change_windows(where, margin, multiple) if margin else _whole_tiles(where)
    jointly = scene.noise is not None and sampling.sampler in JOINT_SAMPLERS and sampling.is_deterministic
    for begins, some in _alike(windows, start, num_held, jointly):
        painted = _paint_windows(calls, scene, (begins, num_held), some, streams, jointly)
        for window, part in zip(some, painted, strict=True):
            window.of(x).copy_(part)
    unknown = unknown_cells(masks_t2, changed)
    never = changed & (scene.start == sampling.num_steps)
    x = calls.run(range(num_held, sampling.num_steps), x, scene.target, scene.noise, unknown | never, scene.conditions)
    put_back = ~changed | never if num_held == sampling.num_steps else unknown | never
    return torch.where(put_back, scene.target, x)


def first_calls(
    strength: Tensor, change_masks: Tensor, moments: Sequence[float], num_held: int, sampling: Sampling
) -> Tensor:
    """First call of each cell, int64 ``[B, 1, h, w]``: the one whose timestep, of 1000, is nearest to
    strength × 1000; ``moments``: of all calls (:func:`.per_mille`).

    Where classes of several strengths meet in a cell, the largest counts. ``num_steps``: none.
    """
    pixels = torch.where(change_masks, strength, 0).unsqueeze(1)
    cells = F.max_pool2d(pixels, DOWNSAMPLING)
    if sampling.dilate_cells:
        reach = sampling.dilate_cells
        cells = F.max_pool2d(cells, 2 * reach + 1, stride=1, padding=reach)
    return _call_of(cells, moments, num_held)


def _call_of(strength: Tensor, moments: Sequence[float], num_held: int) -> Tensor:
    """Nearest call of each strength, int64 of the same shape."""
    # After the last call the sample is clean: timestep 0.
    times = torch.tensor([*moments, 0], device=strength.device, dtype=torch.float32)
    nearest = (strength.unsqueeze(-1) * PER_MILLE - times).abs().argmin(-1)
    nearest = torch.where(strength >= 1, 0, nearest)
    inside_tail = nearest > num_held
    halfway = (num_held + len(moments)) / 2
    return torch.where(inside_tail, torch.where(nearest < halfway, num_held, len(moments)), nearest)


def moments_of(sampling: Sampling, schedule: DDPMScheduler) -> list[float]:
    """Timesteps, of 1000, of the calls that ``sampling`` makes."""
    sampler = build_sampler(sampling.sampler, schedule, sampling.num_steps, torch.device("cpu"))
    return [per_mille(int(t), schedule) for t in sampler.timesteps]


def begun_at(strength: float, moments: Sequence[float], sampling: Sampling) -> int:
    """Timestep, of 1000, at which ground of this strength begins to be painted; 0: it stays the exemplar that it is."""
    return round([*moments, 0][int(_call_of(torch.tensor(strength), moments, sampling.num_held))])


def _paint_windows(
    calls: Calls,
    scene: _Scene,
    when: tuple[Begins, int],
    windows: list[LatentWindow],
    streams: NoiseStreams,
    jointly: bool,
) -> Tensor:
    """The held calls on windows of one size: ``when`` their cells begin, and the end of those calls."""
    begins, num_held = when
    target, changed, start = (cut(tensor, windows) for tensor in (scene.target, scene.changed, scene.start))
    conditions = [cut(condition, windows) for condition in scene.conditions]
    noise = None if scene.noise is None else cut(scene.noise, windows)
    if jointly and noise is not None:
        return paint_jointly(calls, Windows(target, noise, changed, start, conditions), begins, num_held)
    starts = (*begins.calls[0], num_held)
    x = calls.noised(target, cut(_noise(scene, streams), windows), starts[0])
    for begin, end in pairwise(starts):
        held = ~changed | (start > begin)
        x = calls.run(range(begin, end), x, target, noise, held, conditions)
    return x


def _alike(
    windows: Iterable[LatentWindow], start: Tensor, num_held: int, jointly: bool
) -> list[tuple[Begins, list[LatentWindow]]]:
    """Windows by size and, unless ``jointly``, by the calls at which their cells begin: a solver begins anew at each of
    these. The earliest first; windows in which nothing begins before the tail are left out."""
    groups: dict[tuple[Any, ...], list[tuple[tuple[int, ...], LatentWindow]]] = {}
    for window in windows:
        begins = tuple(sorted({int(call) for call in window.of(start).unique() if int(call) < num_held}))
        if begins:
            key = (window.height, window.width) if jointly else (window.height, window.width, begins)
            groups.setdefault(key, []).append((begins, window))
    found = []
    for key in sorted(groups):
        own = sorted(groups[key], key=lambda each: (each[0][0], each[1].index))
        found.append((Begins([begins for begins, _ in own]), [window for _, window in own]))
    return found


def _whole_tiles(changed: Tensor) -> list[LatentWindow]:
    height, width = changed.shape[2:]
    return [LatentWindow(i, 0, 0, height, width) for i in range(len(changed)) if bool(changed[i].any())]


def _noise(scene: _Scene, streams: NoiseStreams) -> Tensor:
    return streams.draw("known").to(scene.target) if scene.noise is None else scene.noise
