"""``changeanywhere train first-stage``: the VQGAN (paper §2.2, §3.1; losses as DESIGN §1 and Esser et al. 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from changeanywhere.errors import ConfigError
from changeanywhere.models.first_stage import FirstStage, build_vq_model, channels_last
from changeanywhere.models.folder import save_first_stage
from changeanywhere.models.linear_start import linear_start
from changeanywhere.models.perceptual import ShiftTolerantLPIPS
from changeanywhere.progress import progress_bar
from changeanywhere.sources import Source
from changeanywhere.training.adversarial import PatchDiscriminator, adaptive_weight, discriminator_loss
from changeanywhere.training.batches import crop_batches
from changeanywhere.training.codebook import perplexity, place_codes, restart_dead_codes
from changeanywhere.training.recipe import FirstStageRecipe, Recipe
from changeanywhere.training.run import TrainingRun, learning_rate_factor, single_process_accelerator

CODE_PLACEMENT_BATCHES = 16  # latents of so many batches place the codebook
STATISTICS_TILES = 512  # tiles that measure the latents' mean and standard deviation


def chroma(images: Tensor) -> Tensor:
    """Differences of each band to the mean of all: ``[B, C, H, W]`` → same shape. Brightness cancels."""
    return images - images.mean(1, keepdim=True)


class FirstStageTrainer:
    """Networks, optimisers and losses of one run."""

    def __init__(self, recipe: FirstStageRecipe, image_channels: int, device: torch.device, seed: int) -> None:
        self.recipe = recipe
        torch.manual_seed(seed)
        vq_model = build_vq_model(
            recipe.channels,
            recipe.layers_per_block,
            recipe.num_codes,
            recipe.latent_channels,
            recipe.norm_groups,
            recipe.mid_attention,
            image_channels,
        )
        self.first_stage = channels_last(FirstStage(vq_model).to(device))
        self.optimizer = torch.optim.Adam(self.first_stage.parameters(), recipe.learning_rate, betas=(0.5, 0.9))
        self.perceptual = channels_last(ShiftTolerantLPIPS().to(device)) if recipe.perceptual_weight else None
        self.discriminator = channels_last(PatchDiscriminator(image_channels, recipe.discriminator_channels).to(device))
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), recipe.learning_rate, betas=(0.5, 0.9)
        )
        self.usage = torch.zeros(recipe.num_codes, dtype=torch.long, device=device)
        self.codes_placed = False

    def state_dict(self, step: int) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": step,
            "first_stage": self.first_stage.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "usage": self.usage,
            "codes_placed": self.codes_placed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Undo :meth:`state_dict`; returns the number of steps done."""
        self.first_stage.load_state_dict(state["first_stage"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.usage.copy_(state["usage"])
        self.codes_placed = bool(state["codes_placed"])
        return int(state["step"])

    def reconstruction_loss(self, images: Tensor, decoded: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        """L1, colour and perceptual terms; images ``[B, C, H, W]`` in [-1, 1]."""
        l1 = F.l1_loss(decoded, images)
        mse = (decoded.detach() - images).square().mean((1, 2, 3)).clamp(min=1e-8)
        # Peak to peak is 2 in [-1, 1].
        values = {"l1": float(l1.detach()), "psnr": float((10 * torch.log10(4 / mse)).mean())}
        total = l1
        if self.recipe.chroma_weight:
            colour = F.l1_loss(chroma(decoded), chroma(images))
            values["chroma"] = float(colour.detach())
            total = total + self.recipe.chroma_weight * colour
        if self.perceptual is not None and step >= self.recipe.perceptual_from_step:
            distance = self.perceptual(decoded[:, :3], images[:, :3]).mean()
            values["st_lpips"] = float(distance.detach())
            total = total + self.recipe.perceptual_weight * distance
        return total, values

    def step(self, images: Tensor, step: int, accelerator: Accelerator, seed: int) -> dict[str, float]:
        """One optimiser step of autoencoder and, once it takes part, discriminator; returns the loss terms."""
        recipe, first_stage = self.recipe, self.first_stage
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        with accelerator.autocast():
            raw = first_stage.encode_raw(images)
        codes, codebook_loss = raw, torch.zeros((), device=images.device)
        if self.codes_placed:
            nearest, indices = first_stage.quantise(raw)
            self.usage += torch.bincount(indices.flatten(), minlength=recipe.num_codes)
            codebook_loss = F.mse_loss(nearest, raw.detach()) + recipe.commitment * F.mse_loss(raw, nearest.detach())
            codes = raw + (nearest - raw).detach()  # straight-through: the decoder's gradient passes the rounding
        with accelerator.autocast():
            decoded = first_stage.decode_codes(codes)
            loss, values = self.reconstruction_loss(images, decoded, step)
        adversarial = bool(recipe.adversarial_weight) and step >= recipe.adversarial_from_step
        if adversarial:
            with accelerator.autocast():
                generator_loss = -self.discriminator(decoded).float().mean()
            last_layer = first_stage.vq_model.decoder.conv_out.weight
            weight = recipe.adversarial_weight * adaptive_weight(loss, generator_loss, last_layer)
            loss = loss + weight * generator_loss
            values |= {"adversarial": float(generator_loss.detach()), "adaptive_weight": float(weight)}
        loss = loss + recipe.codebook_weight * codebook_loss
        values |= {"codebook": float(codebook_loss.detach()), "loss": float(loss.detach())}
        self.optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        values["gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(first_stage.parameters(), 1.0))
        self.optimizer.step()
        if adversarial:
            values["discriminator"] = self._discriminator_step(images, decoded.detach(), accelerator)
        if self.codes_placed and (step + 1) % recipe.restart_codes_every == 0:
            values["perplexity"] = perplexity(self.usage)
            vectors = raw.detach().permute(0, 2, 3, 1).reshape(-1, recipe.latent_channels)
            values["restarted_codes"] = restart_dead_codes(first_stage.codebook, self.usage, vectors, generator)
            self.usage.zero_()
        return values

    def _discriminator_step(self, images: Tensor, decoded: Tensor, accelerator: Accelerator) -> float:
        with accelerator.autocast():
            loss = discriminator_loss(self.discriminator(images).float(), self.discriminator(decoded).float())
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        self.discriminator_optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def place_codebook(self, batches: list[Tensor], accelerator: Accelerator, seed: int) -> None:
        """Put the codes onto the latents of ``batches`` by k-means."""
        with accelerator.autocast():
            raw = torch.cat([self.first_stage.encode_raw(images) for images in batches])
        vectors = raw.permute(0, 2, 3, 1).reshape(-1, self.recipe.latent_channels)
        codes = place_codes(vectors, self.recipe.num_codes, torch.Generator().manual_seed(seed))
        self.first_stage.codebook.data.copy_(codes)
        self.codes_placed = True

    @torch.no_grad()
    def measure_latents(self, images: list[Tensor], accelerator: Accelerator) -> None:
        """Store mean and standard deviation per latent channel, measured on whole tiles."""
        with accelerator.autocast():
            raw = torch.cat([self.first_stage.encode_raw(batch) for batch in images])
        self.first_stage.latent_mean.copy_(raw.mean((0, 2, 3)).view(1, -1, 1, 1))
        self.first_stage.latent_std.copy_(raw.std((0, 2, 3)).view(1, -1, 1, 1))


def train_first_stage(source: Source, recipe: Recipe, out: Path) -> Path:
    """Train, or resume, in ``out/training/first_stage``; returns ``out/first_stage``, the finished folder."""
    recipe.check()
    if recipe.first_stage.quantise_from_step >= recipe.first_stage.num_steps:
        raise ConfigError("first_stage.quantise_from_step must be below first_stage.num_steps")
    settings, run_settings = recipe.first_stage, recipe.run
    run = TrainingRun(out / "training" / "first_stage", "first_stage", recipe)
    accelerator = single_process_accelerator(run_settings.mixed_precision)
    device = accelerator.device
    trainer = FirstStageTrainer(settings, source.read(0).image.shape[2], device, run_settings.seed)
    state = run.load_checkpoint()
    first_step = trainer.load_state_dict(state) if state else 0

    def batches(start: int, stop: int) -> Any:
        loader = crop_batches(
            source, settings.crop_size, settings.batch_size, run_settings.seed, start, stop, run_settings.num_workers
        )
        for images in loader:
            yield images.to(device, memory_format=torch.channels_last, non_blocking=True)

    if settings.linear_start and first_step == 0:
        linear_start(trainer.first_stage.vq_model, torch.cat(list(batches(0, CODE_PLACEMENT_BATCHES))))
    run.start_clock(first_step)
    with progress_bar() as bar:
        task = bar.add_task("first stage", total=settings.num_steps, completed=first_step)
        for step, images in enumerate(batches(first_step, settings.num_steps), first_step):
            if step >= settings.quantise_from_step and not trainer.codes_placed:
                ahead = list(batches(step, step + CODE_PLACEMENT_BATCHES))
                trainer.place_codebook(ahead, accelerator, run_settings.seed)
            factor = learning_rate_factor(step, settings.num_steps, settings.warmup_steps, settings.cosine_decay)
            for optimizer in (trainer.optimizer, trainer.discriminator_optimizer):
                optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
            values = trainer.step(images, step, accelerator, run_settings.seed)
            run.check_finite(step, values)
            last = step + 1 == settings.num_steps
            if (step + 1) % run_settings.log_every == 0 or last or "perplexity" in values:
                rate = run.log(step, settings.batch_size, values)["images_per_second"]
                bar.update(task, description=f"first stage  L1 {values['l1']:.4f}  {rate:.1f} img/s")
            if (step + 1) % run_settings.save_every == 0 or last:
                run.save_checkpoint(trainer.state_dict(step + 1))
                run.save_grid(step + 1, _sample_rows(trainer, images, accelerator))
            bar.advance(task)
    tiles = [source.read(i) for i in range(0, len(source), -(-len(source) // STATISTICS_TILES))]
    pixels = [torch.from_numpy(t.normalisation.apply(t.image).clip(-1, 1)).permute(2, 0, 1) for t in tiles]
    trainer.measure_latents([torch.stack(pixels[i : i + 8]).to(device) for i in range(0, len(pixels), 8)], accelerator)
    save_first_stage(trainer.first_stage, out / "first_stage")
    return out / "first_stage"


@torch.no_grad()
def _sample_rows(trainer: FirstStageTrainer, images: Tensor, accelerator: Accelerator) -> list[list[Tensor]]:
    with accelerator.autocast():
        raw = trainer.first_stage.encode_raw(images[:8])
        codes = trainer.first_stage.quantise(raw)[0] if trainer.codes_placed else raw
        decoded = trainer.first_stage.decode_codes(codes)
    return [list(images[:8]), list(decoded)]
