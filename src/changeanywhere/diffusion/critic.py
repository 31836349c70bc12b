"""What a critic (:mod:`changeanywhere.models.critic`) does while latents are painted: it chooses among several starts
by what they would show, and it pushes early calls towards what the mask asks for.

Neither touches the sampler. A start is a seed: each is painted in a few calls, read, and the best is painted in full.
The push is a denoiser whose prediction has moved (classifier guidance, Dhariwal & Nichol 2021), with a length that is
chosen instead of one that follows from the critic's confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from changeanywhere.diffusion.blended import changed_cells
from changeanywhere.diffusion.options import CriticOptions, Sampling
from changeanywhere.diffusion.samplers import per_mille
from changeanywhere.models.borrowed import DDPMScheduler
from changeanywhere.models.critic import Critic, cell_classes
from changeanywhere.models.denoiser import Denoiser, one_hot
from changeanywhere.seeds import pair_seed

Paint = Callable[[Sequence[int], Sampling], Tensor]
"""Seeds, one per pair, and settings → latents of date 2 ``[B, 3, h, w]``."""


def best_seeds(
    paint: Paint,
    critic: Critic,
    masks: tuple[Tensor, Tensor],
    seeds: Sequence[int],
    sampling: Sampling,
    options: CriticOptions,
) -> list[int]:
    """Of ``options.starts`` seeds per pair, its own first, the one whose painting in ``options.calls`` calls shows most
    of the new classes. ``masks``: mask t2 int64 and change mask bool, ``[B, H, W]``."""
    draft = replace(sampling, num_steps=options.calls, free_fraction=0.0)
    best, score = list(seeds), torch.full((len(seeds),), -1.0)
    for start in range(options.starts):
        tried = [seed if start == 0 else pair_seed(seed, "start", start) for seed in seeds]
        found = shown(critic, paint(tried, draft), masks).cpu()
        best = [new if better else old for new, old, better in zip(tried, best, found > score, strict=True)]
        score = torch.maximum(score, found)
    return best


@torch.no_grad()
def shown(critic: Critic, latents: Tensor, masks: tuple[Tensor, Tensor]) -> Tensor:
    """Mean probability that the critic gives the classes of mask t2 on changed cells of clean ``latents`` → f32
    ``[B]``; 0 for a pair without a change."""
    masks_t2, change_masks = (mask.to(latents.device) for mask in masks)
    classes = cell_classes(masks_t2, critic.legend.num_classes)
    where = changed_cells(change_masks)[:, 0] & (classes > 0)
    times = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    likely = critic(latents, times).softmax(1).gather(1, (classes - 1).clamp(min=0).unsqueeze(1))[:, 0]
    score: Tensor = (likely * where).sum((1, 2)) / where.sum((1, 2)).clamp(min=1)
    return score


class Pushed(Denoiser):
    """A denoiser whose estimate of the clean latent is moved, at early calls, along the critic's gradient.

    What is wanted travels with the condition, as further channels, so that windows cut both alike; under the null
    condition of guidance it is nothing.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        critic: Critic,
        schedule: DDPMScheduler,
        changed: Tensor,
        options: CriticOptions,
        sampling: Sampling,
    ) -> None:
        """``changed``: cells of the batch bool ``[B, 1, h, w]``, on which the critic is heard. ``sampling``: of
        whose calls a guided one multiplies the difference to the null condition, and so the push, afterwards."""
        super().__init__(denoiser.unet, denoiser.mask_encoder)
        self.critic, self._changed = critic, changed
        self._until, self._length, self._sampling = options.until, options.push, sampling
        self._schedule, self._alphas = schedule, schedule.alphas_cumprod
        self._predicts_v = schedule.config.prediction_type == "v_prediction"

    def of_rows(self, rows: Sequence[int]) -> Pushed:
        """See :class:`Denoiser`."""
        some = copy(self)
        some._changed = self._changed[list(rows)]
        return some

    def encode_masks(self, masks: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Condition ``[B, mask_channels + K, h, w]``: the last K say which class is wanted in changed cells."""
        condition = super().encode_masks(masks, dropped)
        count = self.critic.legend.num_classes
        wanted = one_hot(cell_classes(masks, count), count) * self._changed
        if dropped is not None:
            wanted = wanted * (~dropped).view(-1, 1, 1, 1)
        return torch.cat([condition, wanted.to(condition)], 1)

    def forward(self, latents: Tensor, timesteps: Tensor, condition: Tensor, guided: bool = False) -> Tensor:
        """See :class:`Denoiser`; guidance stays in two branches, of which one is pushed."""
        count = self.critic.legend.num_classes
        condition, wanted = condition[:, :-count], condition[:, -count:].float()
        prediction = super().forward(latents, timesteps, condition)
        timestep = int(timesteps[0])
        moment = per_mille(timestep, self._schedule)
        if moment < self._until or not bool(wanted.any()):
            return prediction
        multiplied = max(self._sampling.guidance_scale, 1.0) if self._sampling.guides(moment) else 1.0
        push = self._length / multiplied * self._direction(latents, timesteps, wanted)
        # The clean estimate moves by sigma × push: x0 = alpha x − sigma v, or (x − sigma eps) / alpha.
        alpha = float(self._alphas[timestep]) ** 0.5
        return prediction - (push if self._predicts_v else alpha * push)

    def _direction(self, latents: Tensor, timesteps: Tensor, wanted: Tensor) -> Tensor:
        """Gradient of the log-probability of what is wanted, of root mean square 1 over a row's wanted cells."""
        with torch.enable_grad():
            x = latents.detach().float().requires_grad_(True)
            loss = (F.log_softmax(self.critic(x, timesteps), 1) * wanted).sum()
            (gradient,) = torch.autograd.grad(loss, x)
        where = wanted.sum(1, keepdim=True)
        gradient = gradient * where
        size = (gradient.square().sum((1, 2, 3)) / where.sum((1, 2, 3)).clamp(min=1) / gradient.shape[1]).sqrt()
        return gradient / size.clamp(min=1e-12).view(-1, 1, 1, 1)
