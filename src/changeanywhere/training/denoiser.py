"""``changeanywhere train denoiser``: the mask-conditioned UNet on latents (paper §2.2, eq. 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from changeanywhere.diffusion.blended import NoiseStreams, Sampling, sample_latents
from changeanywhere.errors import ModelError
from changeanywhere.models.denoiser import Denoiser, MaskEncoder, build_unet
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.folder import Model, load_first_stage, noise_schedule, save_model
from changeanywhere.progress import progress_bar
from changeanywhere.sources import Source
from changeanywhere.training.ema import WeightAverage
from changeanywhere.training.latents import LatentCache, build_latent_cache
from changeanywhere.training.recipe import DenoiserRecipe, Recipe
from changeanywhere.training.run import TrainingRun, learning_rate_factor, single_process_accelerator

AUTOCAST_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}
GRID_TILES = 6


def build_denoiser(recipe: DenoiserRecipe, num_classes: int, latent_channels: int) -> Denoiser:
    """Fresh networks for a legend of ``num_classes`` (without unknown)."""
    unet = build_unet(
        recipe.channels,
        recipe.layers_per_block,
        recipe.mask_channels,
        latent_channels,
        recipe.attention_levels,
        recipe.head_dim,
        recipe.norm_groups,
    )
    return Denoiser(unet, MaskEncoder(num_classes=num_classes, mask_channels=recipe.mask_channels))


def denoising_loss(
    denoiser: Denoiser,
    schedule: DDPMScheduler,
    latents: Tensor,
    masks: Tensor,
    recipe: DenoiserRecipe,
    generator: torch.Generator,
) -> Tensor:
    """Paper eq. 4 with eq. 2 for the noisy latent; latents ``[B, 3, h, w]``, masks int64 ``[B, H, W]`` → scalar.

    Random numbers are drawn on the CPU, so that a seed means the same on every device.
    """
    batch, device = latents.shape[0], latents.device
    steps = schedule.config.num_train_timesteps
    timesteps = torch.randint(steps, (batch,), generator=generator).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    dropped = (torch.rand(batch, generator=generator) < recipe.mask_dropout).to(device)
    alphas = schedule.alphas_cumprod.to(device)[timesteps].view(-1, 1, 1, 1)
    noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    target = noise
    if schedule.config.prediction_type == "v_prediction":
        target = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
    predicted = denoiser(noisy, timesteps, denoiser.encode_masks(masks, dropped))
    error = (predicted - target).abs() if recipe.loss == "l1" else (predicted - target).square()
    losses = error.mean((1, 2, 3))
    if recipe.min_snr_gamma is not None:
        snr = (alphas / (1 - alphas)).flatten()
        divisor = snr + 1 if schedule.config.prediction_type == "v_prediction" else snr
        losses = losses * snr.clamp(max=recipe.min_snr_gamma) / divisor
    mean: Tensor = losses.mean()
    return mean


def train_denoiser(source: Source, recipe: Recipe, out: Path, first_stage_folder: Path | None = None) -> Path:
    """Train, or resume, in ``out/training/denoiser``; returns ``out/model``, a folder that ``--model`` takes.

    ``first_stage_folder``: default ``out/first_stage``, where ``train first-stage`` left it.
    """
    recipe.check()
    settings, run_settings = recipe.denoiser, recipe.run
    folder = first_stage_folder or out / "first_stage"
    if not folder.is_dir():
        raise ModelError(f"{folder}: no first stage; run 'changeanywhere train first-stage' with the same --out first")
    run = TrainingRun(out / "training" / "denoiser", "denoiser", recipe)
    accelerator = single_process_accelerator(run_settings.mixed_precision)
    device = accelerator.device
    first_stage = load_first_stage(folder).to(device)
    dtype = AUTOCAST_DTYPES[run_settings.mixed_precision]
    cache = build_latent_cache(out / "training" / "latents", source, first_stage, settings.views, device, dtype)
    torch.manual_seed(run_settings.seed)
    denoiser = build_denoiser(settings, source.legend.num_classes, first_stage.latent_mean.numel())
    denoiser = channels_last(denoiser.to(device))
    average = WeightAverage(denoiser, settings.ema_halflife_share)
    optimizer = torch.optim.AdamW(denoiser.parameters(), settings.learning_rate, weight_decay=0.01)
    schedule = noise_schedule(settings.prediction_type)
    state = run.load_checkpoint()
    first_step = 0
    if state:
        denoiser.load_state_dict(state["denoiser"])
        average.load(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = int(state["step"])

    def finished_model() -> Model:
        averaged = build_denoiser(settings, source.legend.num_classes, first_stage.latent_mean.numel())
        averaged.load_state_dict(average.weights)
        return Model(
            first_stage=first_stage,
            denoiser=averaged.to(device).eval(),
            schedule=schedule,
            legend=source.legend,
            mask_dropout=settings.mask_dropout,
            tile_size=recipe.data.tile_size,
        )

    run.start_clock(first_step)
    smoothed: list[float] = []
    with progress_bar() as bar:
        task = bar.add_task("denoiser", total=settings.num_steps, completed=first_step)
        for step in range(first_step, settings.num_steps):
            latents, masks = (t.to(device) for t in cache.batch(settings.batch_size, run_settings.seed, step))
            factor = learning_rate_factor(step, settings.num_steps, settings.warmup_steps, settings.cosine_decay)
            optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
            generator = torch.Generator().manual_seed(run_settings.seed * 1_000_003 + step)
            with accelerator.autocast():
                loss = denoising_loss(denoiser, schedule, latents, masks, settings, generator)
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(denoiser.parameters(), settings.gradient_clip)
            values = {"loss": float(loss.detach()), "gradient_norm": float(norm)}
            run.check_finite(step, values)
            optimizer.step()
            average.update(denoiser, step)
            smoothed.append(values["loss"])
            last = step + 1 == settings.num_steps
            if (step + 1) % run_settings.log_every == 0 or last:
                values["loss"] = sum(smoothed) / len(smoothed)
                smoothed.clear()
                rate = run.log(step, settings.batch_size, values)["images_per_second"]
                bar.update(task, description=f"denoiser  loss {values['loss']:.4f}  {rate:.1f} tiles/s")
            if (step + 1) % run_settings.save_every == 0 or last:
                run.save_checkpoint(_state(step + 1, denoiser, average, optimizer))
                with accelerator.autocast():
                    run.save_grid(step + 1, _sample_rows(finished_model(), source.legend.palette(), cache))
            bar.advance(task)
    save_model(finished_model(), out / "model", torch.float16)
    return out / "model"


def _state(step: int, denoiser: Denoiser, average: WeightAverage, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "step": step,
        "denoiser": denoiser.state_dict(),
        "average": average.weights,
        "optimizer": optimizer.state_dict(),
    }


@torch.no_grad()
def _sample_rows(model: Model, palette: Any, cache: LatentCache) -> list[list[Tensor]]:
    """Masks, images painted from the masks alone, and the real tiles as the first stage decodes them."""
    tiles = range(0, len(cache.masks), -(-len(cache.masks) // GRID_TILES))
    device = model.first_stage.latent_mean.device
    masks = torch.stack([torch.from_numpy(cache.masks[t].copy()) for t in tiles]).long()
    real = torch.stack([torch.from_numpy(cache.latents[t, 0].astype(np.float32)) for t in tiles]).to(device)
    everywhere = torch.ones_like(real[:, :1], dtype=torch.bool)
    painted = sample_latents(
        model.denoiser,
        model.schedule,
        masks.to(device),
        real,
        everywhere,
        ~everywhere,
        NoiseStreams(list(tiles), real.shape[1:]),
        Sampling(num_steps=20, free_fraction=0.0),
    )
    colours = torch.from_numpy(palette)[masks].permute(0, 3, 1, 2).float() / 127.5 - 1
    return [list(colours), list(model.first_stage.decode(painted)), list(model.first_stage.decode(real))]
