"""A frozen reference for speed: the embedded weights, painted as the published code family does it.

float32, eager, contiguous, 2 threads, batch 4; 200 DDIM steps with η = 1 and fresh noise on the known latent; one
encoding and two decodings per batch (that code decodes once for nothing). Do not make this file faster: ratios are
taken against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler

from changeanywhere.models.folder import find_model, load_model
from changeanywhere.pairs.writer import write_pair
from changeanywhere.sample import ChangePair, ChangePlan, SourceSample
from changeanywhere.storage import LocalStore

NUM_STEPS, ETA, FREE_FRACTION, BATCH, THREADS = 200, 1.0, 0.1, 4, 2


class Reference:
    """Paints pairs one batch after the other and writes them in turn."""

    def __init__(self, model: str) -> None:
        torch.set_num_threads(THREADS)
        self.model = load_model(find_model(model), torch.float32)
        self.first_stage = self.model.first_stage.eval()
        self.denoiser = self.model.denoiser.eval()
        self.legend = self.model.legend

    @torch.no_grad()
    def paint(self, samples: Sequence[SourceSample], plans: Sequence[ChangePlan]) -> np.ndarray:
        """Images t2 uint8 ``[B, H, W, 3]``."""
        pixels = np.stack([s.normalisation.apply(s.image) for s in samples])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        known = self.first_stage.encode(images)
        masks = torch.from_numpy(np.stack([plan.mask_t2 for plan in plans]).astype(np.int64))
        change = torch.from_numpy(np.stack([plan.change_mask for plan in plans])).float().unsqueeze(1)
        change = F.interpolate(change, scale_factor=0.25, mode="nearest")
        sampler = DDIMScheduler.from_config(self.model.schedule.config, clip_sample=False)
        sampler.set_timesteps(NUM_STEPS)
        condition = self.denoiser.encode_masks(masks)
        x = torch.randn_like(known)
        for i, timestep in enumerate(sampler.timesteps):
            if i < int(NUM_STEPS * (1 - FREE_FRACTION)):
                noisy = sampler.add_noise(known, torch.randn_like(known), timestep.expand(len(known)))
                x = change * x + (1 - change) * noisy
            prediction = self.denoiser(x, timestep.expand(len(x)), condition)
            x = sampler.step(prediction, timestep, x, eta=ETA).prev_sample
        self.first_stage.decode(x)
        decoded = self.first_stage.decode(x)
        return decoded.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()

    def run(self, samples: Sequence[SourceSample], plans: Sequence[ChangePlan], out: Path) -> None:
        """Paint and write all of them."""
        for start in range(0, len(samples), BATCH):
            some, changes = samples[start : start + BATCH], plans[start : start + BATCH]
            for sample, plan, image in zip(some, changes, self.paint(some, changes), strict=True):
                first = np.round((sample.normalisation.apply(sample.image) + 1) * 127.5).astype(np.uint8)
                pair = ChangePair(sample.item.key, first, image, plan.change_mask, sample.mask, plan.mask_t2)
                write_pair(LocalStore(out), pair, self.legend)
