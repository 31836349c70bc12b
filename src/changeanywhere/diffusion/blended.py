"""Blended latent diffusion (paper §2.4, eq. 6; DESIGN §4).

Shapes: B pairs, latents ``[B, 3, h, w]``, cell masks bool ``[B, 1, h, w]``, semantic masks int64 ``[B, 4h, 4w]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.place_noise import NoiseStreams
from changeanywhere.diffusion.samplers import build_sampler, per_mille
from changeanywhere.diffusion.windows import change_windows, cut
from changeanywhere.models.borrowed import DDIMScheduler, DDPMScheduler
from changeanywhere.models.copies import onto
from changeanywhere.models.denoiser import Denoiser
from changeanywhere.models.first_stage import DOWNSAMPLING

OnStep = Callable[[int, Tensor], None]
"""Sees the number of each call and its input ``[B, 3, h, w]``, before the call."""


class NoiseSource(Protocol):
    """Where a run's noise comes from: ``draw(purpose)`` → ``[B, 3, h, w]`` float32, standard normal."""

    def draw(self, purpose: str) -> Tensor:
        """``purpose``: "start", "known" (on the known latent) or "step" (DDIM's own)."""
        ...


def changed_cells(change_masks: Tensor, dilate_cells: int = 0) -> Tensor:
    """Change masks bool ``[B, H, W]`` → cells to repaint bool ``[B, 1, h, w]``, by max-pooling.

    Nearest-neighbour subsampling loses changes under 4 px; max-pooling repaints a cell that any changed pixel touches.
    """
    cells = F.max_pool2d(change_masks.float().unsqueeze(1), DOWNSAMPLING)
    if dilate_cells:
        cells = F.max_pool2d(cells, 2 * dilate_cells + 1, stride=1, padding=dilate_cells)
    return cells > 0


def unknown_cells(masks: Tensor, changed: Tensor) -> Tensor:
    """Cells with unknown ground and no change: kept to the last call. bool ``[B, 1, h, w]``."""
    cells = F.max_pool2d((masks == 0).float().unsqueeze(1), DOWNSAMPLING) > 0
    kept: Tensor = cells & ~changed
    return kept


@dataclass(frozen=True)
class Cells:
    """What of the latents is painted and what is kept: bool ``[B, 1, h, w]`` each."""

    changed: Tensor
    """Painted from the first call on."""
    unknown: Tensor
    """Kept to the last call."""

    def held(self, num_held: Sequence[int]) -> Held:
        """What is held while, and after, each pair's free tail begins at a call of its own."""
        until = onto(torch.tensor(num_held), self.changed.device).view(-1, 1, 1, 1)
        return Held(~self.changed, self.unknown, until, max(num_held))


@dataclass(frozen=True)
class Held:
    """Cells that are held: ``before`` the call ``until`` ``[B, 1, 1, 1]`` of a pair, and ``after``; bool
    ``[B, 1, h, w]``."""

    before: Tensor
    after: Tensor
    until: Tensor
    last: int
    """The largest of ``until``."""

    def at(self, call: int) -> Tensor:
        """Those of a call."""
        return torch.where(self.until > call, self.before, self.after) if call < self.last else self.after


@torch.no_grad()
def paint_latents(
    denoiser: Denoiser,
    schedule: DDPMScheduler,
    latents_t1: Tensor,
    masks_t2: Tensor,
    change_masks: Tensor,
    seeds: Sequence[int],
    sampling: Sampling,
    on_step: OnStep | None = None,
) -> Tensor:
    """Latents of date 1 → latents of date 2, ``[B, 3, h, w]``, on the device of ``latents_t1``.

    ``masks_t2`` int64 and ``change_masks`` bool ``[B, H, W]``; ``seeds`` one per pair: its noise does not depend on
    its batch. ``on_step(i, x)`` sees the input of each call. Where ``free_fraction`` is a range, each pair's tail is
    drawn from its seed; with ``window_margin``, or a multistep sampler, pairs whose tails begin alike go together.
    """
    if isinstance(sampling.free_fraction, list) and (sampling.window_margin or sampling.sampler != "ddim"):

        def paint(rows: list[int], own: Sampling) -> Tensor:
            given = denoiser.of_rows(rows), schedule, latents_t1[rows], masks_t2[rows], change_masks[rows]
            return paint_latents(*given, [seeds[row] for row in rows], own, on_step)

        return by_tail(paint, seeds, sampling)
    masks_t2, change_masks = onto(masks_t2, latents_t1.device), onto(change_masks, latents_t1.device)
    changed = changed_cells(change_masks, sampling.dilate_cells)
    cells = Cells(changed, unknown_cells(masks_t2, changed))
    noise = NoiseStreams(seeds, latents_t1.shape[1:], latents_t1.device)
    if not isinstance(sampling.free_fraction, list):
        return sample_latents(denoiser, schedule, masks_t2, latents_t1, cells, noise, sampling, on_step)
    held = cells.held([sampling.settled(seed).num_held for seed in seeds])
    calls = Calls(denoiser, schedule, sampling, noise, on_step)
    known_noise = noise.draw("known").to(latents_t1) if sampling.known_noise == "fixed" else None
    conditions = mask_conditions(denoiser, masks_t2, sampling.guidance_scale)
    x = noise.draw("start").to(latents_t1)
    x = calls.run(range(sampling.num_steps), x, latents_t1, known_noise, held, conditions)
    return torch.where(held.at(sampling.num_steps - 1), latents_t1, x)


def by_tail(paint: Callable[[list[int], Sampling], Tensor], seeds: Sequence[int], sampling: Sampling) -> Tensor:
    """Latents of all pairs, painted together where their tails, drawn from ``seeds``, begin at the same call:
    ``paint(rows, settings)`` → ``[len(rows), 3, h, w]``."""
    groups: dict[int, list[int]] = {}
    own = [sampling.settled(seed) for seed in seeds]
    for row, settings in enumerate(own):
        groups.setdefault(settings.num_held, []).append(row)
    order = [row for rows in groups.values() for row in rows]
    painted = torch.cat([paint(rows, own[rows[0]]) for rows in groups.values()])
    return painted[[order.index(row) for row in range(len(order))]]


@torch.no_grad()
def sample_latents(
    denoiser: Denoiser,
    schedule: DDPMScheduler,
    masks_t2: Tensor,
    known: Tensor,
    cells: Cells,
    noise: NoiseSource,
    sampling: Sampling,
    on_step: OnStep | None = None,
) -> Tensor:
    """Paint ``masks_t2`` ``[B, H, W]`` while the ``known`` latents of t1 hold where nothing changed → ``[B, 3, h, w]``.

    Before call i at timestep t_i, while i < int(N·(1 − free_fraction)): x = M ⊙ x + (1 − M) ⊙ q(known, t_i) (eq. 6,
    with one mask M = ``cells.changed``). Afterwards only unknown cells are still held. With ``free_fraction`` 0 the
    known latent is put back clean at the end; unknown cells always are. ``on_step(i, x)`` sees the input of each call.

    With ``window_margin`` the held calls go to a window around each change alone: outside of it, and in pairs without
    a change, x is q(known, t) whatever the network says.
    """
    changed, unknown = cells.changed, cells.unknown
    conditions = mask_conditions(denoiser, masks_t2, sampling.guidance_scale)
    known_noise = noise.draw("known").to(known) if sampling.known_noise == "fixed" else None
    calls = Calls(denoiser, schedule, sampling, noise, on_step)
    held_calls = range(sampling.num_held)
    x = noise.draw("start").to(known)
    if not sampling.window_margin:
        x = calls.run(held_calls, x, known, known_noise, ~changed, conditions)
    elif held_calls:
        assert known_noise is not None  # says Sampling.check
        started, x = x, calls.noised(known, known_noise, len(held_calls))
        multiple = denoiser.size_multiple // DOWNSAMPLING
        windows = change_windows(changed, sampling.window_margin, multiple)
        for size in sorted({(window.height, window.width) for window in windows}):
            some = [window for window in windows if (window.height, window.width) == size]
            first, here, its_noise, held = (cut(tensor, some) for tensor in (started, known, known_noise, ~changed))
            there = [cut(condition, some) for condition in conditions]
            painted = calls.run(held_calls, first, here, its_noise, held, there)
            for window, part in zip(some, painted, strict=True):
                window.of(x).copy_(part)
    x = calls.run(range(len(held_calls), sampling.num_steps), x, known, known_noise, unknown, conditions)
    put_back = ~changed if sampling.num_held == sampling.num_steps else unknown
    return torch.where(put_back, known, x)


class Calls:
    """The sampler's calls of one run, on whole tiles or on windows of them."""

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: DDPMScheduler,
        sampling: Sampling,
        noise: NoiseSource,
        on_step: OnStep | None = None,
    ) -> None:
        self._denoiser, self._schedule, self._sampling = denoiser, schedule, sampling
        self._noise, self._on_step = noise, on_step
        # On the CPU: a scheduler that looks its timesteps up on a GPU makes the host wait at every call.
        self.timesteps = [int(t) for t in self.sampler().timesteps]
        self.moments = [per_mille(t, schedule) for t in self.timesteps]
        self._alphas = [float(schedule.alphas_cumprod[t]) for t in self.timesteps]

    @property
    def is_single_step(self) -> bool:
        """Whether a step of the sampler looks at nothing but the call before it."""
        return self._sampling.sampler == "ddim"

    def sampler(self) -> Any:
        """A fresh one (they keep state)."""
        return build_sampler(self._sampling.sampler, self._schedule, self._sampling.num_steps, torch.device("cpu"))

    def noised(self, known: Tensor, noise: Tensor, call: int) -> Tensor:
        """q(known, t) at the timestep of ``call``; the clean latent after the last one."""
        if call == len(self.timesteps):
            return known.clone()
        alpha = self._alphas[call]
        noisy: Tensor = alpha**0.5 * known + (1 - alpha) ** 0.5 * noise
        return noisy

    def run(
        self,
        calls: range,
        x: Tensor,
        known: Tensor,
        known_noise: Tensor | None,
        held: Tensor | Held,
        conditions: list[Tensor],
    ) -> Tensor:
        """These calls, ``held`` cells replaced before each. A multistep sampler begins at first order: what came
        before belongs to another trajectory."""
        sampler = self.sampler()
        cells = held if isinstance(held, Tensor) else held.before
        some_held = bool(calls) and bool(cells.any())
        for call in calls:
            if some_held:
                fixed = self._noise.draw("known").to(known) if known_noise is None else known_noise
                here = held if isinstance(held, Tensor) else held.at(call)
                x = torch.where(here, self.noised(known, fixed, call), x)
                sampler.held = here  # read by the one sampler that goes back to the call before
            self.tell(call, x)
            timestep = sampler.timesteps[call]
            prediction = self.predict(x, call, conditions)
            x = _step(sampler, prediction, timestep, x, self._sampling.eta, self._noise)
        return x

    def tell(self, call: int, x: Tensor) -> None:
        """Whoever looks on sees the input of a call, and may end the run by raising."""
        if self._on_step is not None:
            self._on_step(call, x)

    def predict(self, x: Tensor, call: int, conditions: Sequence[Tensor]) -> Tensor:
        """What the network says of ``x`` at a call, guided where that call is."""
        times = torch.full((len(x),), self.timesteps[call], device=x.device)
        guided = self._sampling.guides(self.moments[call])
        return self._predict(x, times, list(conditions if guided else conditions[:1]), guided)

    def _predict(self, x: Tensor, times: Tensor, conditions: list[Tensor], guided: bool) -> Tensor:
        """With guidance both branches go through the UNet as one batch, unless one network says what both do."""
        if len(conditions) == 1:
            given = x, times, conditions[0]
            alone: Tensor = self._denoiser(*given, True) if guided else self._denoiser(*given)
            return alone
        both = self._denoiser(torch.cat([x, x]), torch.cat([times, times]), torch.cat(conditions))
        conditional, unconditional = both.chunk(2)
        together: Tensor = unconditional + self._sampling.guidance_scale * (conditional - unconditional)
        return together


def mask_conditions(denoiser: Denoiser, masks: Tensor, scale: float) -> list[Tensor]:
    """What the masks say and, with guidance that the denoiser has not learned, the null condition:
    ``[B, mask_channels, h, w]`` each."""
    conditions = [denoiser.encode_masks(masks)]
    if scale != 1 and not denoiser.guides_itself(scale):
        conditions.append(torch.zeros_like(conditions[0]))  # of an all-zero one-hot, by a convolution without bias
    return conditions


def _step(sampler: Any, prediction: Tensor, timestep: Tensor, x: Tensor, eta: float, noise: NoiseSource) -> Tensor:
    previous: Tensor
    if isinstance(sampler, DDIMScheduler):
        step_noise = noise.draw("step").to(x) if eta > 0 else None
        previous = sampler.step(prediction, timestep, x, eta=eta, variance_noise=step_noise).prev_sample
    else:
        previous = sampler.step(prediction, timestep, x).prev_sample
    return previous
