"""``changeanywhere train denoiser``: the mask-conditioned UNet on latents (paper §2.2, eq. 4)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from changeanywhere.diffusion.blended import NoiseStreams, sample_latents
from changeanywhere.diffusion.options import Sampling
from changeanywhere.errors import ModelError, OutputError
from changeanywhere.models.denoiser import Denoiser, MaskEncoder, build_unet
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.folder import Model, find_model, load_first_stage, noise_schedule, save_model
from changeanywhere.progress import progress_bar
from changeanywhere.sources import Source
from changeanywhere.training.ema import WeightAverage
from changeanywhere.training.initialise import initialise_denoiser
from changeanywhere.training.latents import LatentCache, build_latent_cache
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DenoiserRecipe, Recipe
from changeanywhere.training.run import TrainingRun, learning_rate_factor

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


def draw_noise(
    shape: torch.Size, batch_size: int, rows: range, mask_dropout: float, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Timesteps int64 ``[rows]``, noise ``[rows, *shape]`` and dropped masks bool ``[rows]`` of a step.

    Drawn for the whole batch on the CPU, then cut: a seed means the same on every device and for any number of
    processes.
    """
    timesteps = torch.randint(steps, (batch_size,), generator=generator)
    noise = torch.randn((batch_size, *shape), generator=generator)
    dropped = torch.rand(batch_size, generator=generator) < mask_dropout
    own = slice(rows.start, rows.stop)
    return timesteps[own], noise[own], dropped[own]


def denoising_loss(
    denoiser: Denoiser,
    schedule: DDPMScheduler,
    latents: Tensor,
    masks: Tensor,
    recipe: DenoiserRecipe,
    timesteps: Tensor,
    noise: Tensor,
    dropped: Tensor,
) -> Tensor:
    """Paper eq. 4 with eq. 2 for the noisy latent; latents ``[B, 3, h, w]``, masks int64 ``[B, H, W]`` → scalar.

    ``timesteps`` int64 ``[B]``, ``noise`` ``[B, 3, h, w]``, ``dropped`` bool ``[B]`` as of :func:`draw_noise`.
    """
    alphas = schedule.alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1)
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


class DenoiserTrainer:
    """Network, moving average and optimiser of one run."""

    def __init__(self, recipe: Recipe, num_classes: int, latent_channels: int, processes: Processes) -> None:
        settings = recipe.denoiser
        self.settings, self.seed, self.processes = settings, recipe.run.seed, processes
        self.accumulation_steps = recipe.run.accumulation_steps
        torch.manual_seed(self.seed)
        denoiser = build_denoiser(settings, num_classes, latent_channels)
        self.denoiser = channels_last(denoiser.to(processes.device))
        if recipe.run.compile:
            self.denoiser.unet.compile()
        self.average = WeightAverage(self.denoiser, settings.ema_halflife_share)
        self.optimizer = torch.optim.AdamW(self.denoiser.parameters(), settings.learning_rate, weight_decay=0.01)
        self.schedule = noise_schedule(settings.prediction_type)

    def state_dict(self, step: int) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": step,
            "denoiser": self.denoiser.state_dict(),
            "average": self.average.weights,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Undo :meth:`state_dict`; returns the number of steps done."""
        self.denoiser.load_state_dict(state["denoiser"])
        self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def step(self, latents: Tensor, masks: Tensor, rows: range, step: int) -> dict[str, Tensor]:
        """One optimiser step on these rows of the batch; returns loss and gradient norm, where they were computed."""
        settings, processes = self.settings, self.processes
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        num_timesteps = int(self.schedule.config.num_train_timesteps)
        noise = draw_noise(
            latents.shape[1:], settings.batch_size, rows, settings.mask_dropout, num_timesteps, generator
        )
        tensors = [t.to(processes.device, non_blocking=True) for t in (latents, masks, *noise)]
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in zip(*(t.chunk(self.accumulation_steps) for t in tensors), strict=True):
            latents, masks, *noise_of_part = part
            with processes.accelerator.autocast():
                loss = denoising_loss(self.denoiser, self.schedule, latents, masks, settings, *noise_of_part)
            processes.accelerator.backward(loss / self.accumulation_steps)
            losses.append(loss.detach())
        processes.average_gradients(self.denoiser.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), settings.gradient_clip)
        self.optimizer.step()
        self.average.update(self.denoiser, step)
        return {"loss": torch.stack(losses).mean(), "gradient_norm": norm}


def find_first_stage(out: Path, given: Path | None, init: str | None) -> Path:
    """The folder of the first stage: ``given``, else of this run, else of the model that training starts from."""
    candidates = [given] if given else [out / "first_stage", *([find_model(init) / "first_stage"] if init else [])]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ModelError(
        f"{candidates[0]}: no first stage; run 'changeanywhere train first-stage' with the same --out first"
    )


def train_denoiser(source: Source, recipe: Recipe, out: Path, first_stage_folder: Path | None = None) -> Path:
    """Train, or resume, in ``out/training/denoiser``; returns ``out/model``, a folder that ``--model`` takes.

    ``first_stage_folder``: default ``out/first_stage``, where ``train first-stage`` left it, or that of ``init``.
    """
    recipe.check("denoiser")
    settings, run_settings = recipe.denoiser, recipe.run
    folder = find_first_stage(out, first_stage_folder, recipe.init)
    processes = Processes(run_settings)
    rows = processes.rows(settings.batch_size, run_settings.accumulation_steps)
    run = TrainingRun(out / "training" / "denoiser", "denoiser", recipe, processes, source.fingerprint())
    first_stage = load_first_stage(folder).to(processes.device)
    cache = build_latent_cache(out / "training" / "latents", source, first_stage, settings.views, processes)
    trainer = DenoiserTrainer(recipe, source.legend.num_classes, first_stage.latent_mean.numel(), processes)
    state = run.load_checkpoint()
    if state and state.get("latents", cache.fingerprint) != cache.fingerprint:
        raise OutputError(f"{out}: another first stage than the run was begun with")
    if recipe.init and state is None:
        taken = initialise_denoiser(trainer.denoiser, trainer.schedule, source.legend, recipe.init)
        if processes.is_main:
            print(f"classes known to {recipe.init}: {', '.join(taken) or 'none, all start fresh'}", file=sys.stderr)
        trainer.average.load(trainer.denoiser.state_dict())
    first_step = trainer.load_state_dict(state) if state else 0

    def finished_model() -> Model:
        averaged = build_denoiser(settings, source.legend.num_classes, first_stage.latent_mean.numel())
        averaged.load_state_dict(trainer.average.weights)
        return Model(
            first_stage=first_stage,
            denoiser=averaged.to(processes.device).eval(),
            schedule=trainer.schedule,
            legend=source.legend,
            mask_dropout=settings.mask_dropout,
            tile_size=recipe.data.tile_size,
        )

    with progress_bar(processes.is_main) as bar, run.running(first_step):
        task = bar.add_task("denoiser", total=settings.num_steps, completed=first_step)
        for step in range(first_step, settings.num_steps):
            latents, masks = cache.batch(settings.batch_size, run_settings.seed, step, rows)
            factor = learning_rate_factor(step, settings.num_steps, settings.warmup_steps, settings.cosine_decay)
            trainer.optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
            run.add(trainer.step(latents, masks, rows, step))
            log, save = run.due(step, settings.num_steps)
            if log or save:
                values = run.means(step)
                rate = run.log(step, settings.batch_size, values)["images_per_second"]
                bar.update(task, description=f"denoiser  loss {values['loss']:.4f}  {rate:.1f} tiles/s")
            if save:
                run.save_checkpoint(trainer.state_dict(step + 1) | {"latents": cache.fingerprint})
                if processes.is_main:
                    with processes.accelerator.autocast():
                        run.save_grid(step + 1, _sample_rows(finished_model(), source.legend.palette(), cache))
            bar.advance(task)
    if processes.is_main:
        save_model(finished_model(), out / "model", torch.float16)
    processes.wait()
    return out / "model"


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
