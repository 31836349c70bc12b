"""``changeanywhere train first-stage``: the VQGAN (paper §2.2, §3.1; losses as DESIGN §1 and Esser et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from changeanywhere.errors import ConfigError
from changeanywhere.models.first_stage import FirstStage, build_vq_model, channels_last
from changeanywhere.models.folder import save_first_stage
from changeanywhere.models.linear_start import linear_start
from changeanywhere.models.perceptual import build_perceptual
from changeanywhere.progress import progress_bar
from changeanywhere.sources import Source
from changeanywhere.training.adversarial import PatchDiscriminator, adaptive_weight, discriminator_loss
from changeanywhere.training.batches import crop_batches, loaded
from changeanywhere.training.codebook import perplexity, place_codes, restart_dead_codes
from changeanywhere.training.initialise import initialise_first_stage
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import Recipe
from changeanywhere.training.run import TrainingRun, learning_rate_factor

CODE_PLACEMENT_BATCHES = 16  # latents of so many batches place the codebook
STATISTICS_TILES = 512  # tiles that measure the latents' mean and standard deviation


def chroma(images: Tensor) -> Tensor:
    """Differences of each band to the mean of all: ``[B, C, H, W]`` → same shape. Brightness cancels."""
    return images - images.mean(1, keepdim=True)


class FirstStageTrainer:
    """Networks, optimisers and losses of one run."""

    def __init__(self, recipe: Recipe, image_channels: int, processes: Processes) -> None:
        settings, device = recipe.first_stage, processes.device
        self.settings, self.seed, self.processes = settings, recipe.run.seed, processes
        self.accumulation_steps = recipe.run.accumulation_steps
        torch.manual_seed(self.seed)
        vq_model = build_vq_model(
            settings.channels,
            settings.layers_per_block,
            settings.num_codes,
            settings.latent_channels,
            settings.norm_groups,
            settings.mid_attention,
            image_channels,
        )
        self.first_stage = channels_last(FirstStage(vq_model).to(device))
        self.optimizer = torch.optim.Adam(self.first_stage.parameters(), settings.learning_rate, betas=(0.5, 0.9))
        self.perceptual = None
        if settings.perceptual_weight:
            file = Path(settings.perceptual_weights) if settings.perceptual_weights else None
            self.perceptual = build_perceptual(settings.perceptual_features, file).to(device)
        self.discriminator = PatchDiscriminator(image_channels, settings.discriminator_channels).to(device)
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), settings.learning_rate, betas=(0.5, 0.9)
        )
        for network in filter(None, (self.perceptual, self.discriminator)):
            channels_last(network)
        if recipe.run.compile:
            # The adaptive weight goes backward through the decoder before the loss does: its buffers must outlive that.
            torch._functorch.config.donated_buffer = False
            for network in filter(None, (vq_model.encoder, vq_model.decoder, self.perceptual, self.discriminator)):
                network.compile()
        self.usage = torch.zeros(settings.num_codes, dtype=torch.long, device=device)
        self.codes_placed = False

    def state_dict(self, step: int) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": step,
            "first_stage": self.first_stage.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "usage": self.processes.sum(self.usage),
            "codes_placed": self.codes_placed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Undo :meth:`state_dict`; returns the number of steps done."""
        self.first_stage.load_state_dict(state["first_stage"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        if self.processes.is_main:  # the stored counts are those of all processes
            self.usage.copy_(state["usage"])
        self.codes_placed = bool(state["codes_placed"])
        return int(state["step"])

    def reconstruction_loss(self, images: Tensor, decoded: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """L1, colour and perceptual terms; images ``[B, C, H, W]`` in [-1, 1]."""
        l1 = F.l1_loss(decoded, images)
        mse = (decoded.detach() - images).square().mean((1, 2, 3)).clamp(min=1e-8)
        # Peak to peak is 2 in [-1, 1].
        values = {"l1": l1, "psnr": (10 * torch.log10(4 / mse)).mean()}
        total = l1
        if self.settings.chroma_weight:
            values["chroma"] = F.l1_loss(chroma(decoded), chroma(images))
            total = total + self.settings.chroma_weight * values["chroma"]
        if self.perceptual is not None and step >= self.settings.perceptual_from_step:
            distance = self.perceptual(decoded[:, :3], images[:, :3]).mean()
            values[self.settings.perceptual_features] = distance
            total = total + self.settings.perceptual_weight * distance
        return total, values

    def step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """One optimiser step of autoencoder and, once it takes part, discriminator.

        ``images``: this process's rows of the batch. Returns the terms of the loss, where they were computed.
        """
        adversarial = bool(self.settings.adversarial_weight) and step >= self.settings.adversarial_from_step
        self.optimizer.zero_grad(set_to_none=True)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        parts = [self._accumulate(part, step, adversarial) for part in images.chunk(self.accumulation_steps)]
        values = {name: torch.stack([part[1][name].detach() for part in parts]).mean() for name in parts[0][1]}
        self.processes.average_gradients(self.first_stage.parameters())
        values["gradient_norm"] = torch.nn.utils.clip_grad_norm_(self.first_stage.parameters(), 1.0)
        self.optimizer.step()
        if adversarial:
            self.processes.average_gradients(self.discriminator.parameters())
            norm = torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), math.inf)  # watched, not clipped
            values["discriminator_gradient_norm"] = norm
            self.discriminator_optimizer.step()
        if self.codes_placed and (step + 1) % self.settings.restart_codes_every == 0:
            values |= self._restart_codes(torch.cat([part[0] for part in parts]), step)
        return values

    def _accumulate(self, images: Tensor, step: int, adversarial: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradients of one part of a batch; returns its raw latents and loss terms."""
        settings, first_stage, accelerator = self.settings, self.first_stage, self.processes.accelerator
        with accelerator.autocast():
            raw = first_stage.encode_raw(images)
        codes, codebook_loss = raw, torch.zeros((), device=images.device)
        if self.codes_placed:
            nearest, indices = first_stage.quantise(raw)
            self.usage += torch.bincount(indices.flatten(), minlength=settings.num_codes)
            codebook_loss = F.mse_loss(nearest, raw.detach()) + settings.commitment * F.mse_loss(raw, nearest.detach())
            codes = raw + (nearest - raw).detach()  # straight-through: the decoder's gradient passes the rounding
        with accelerator.autocast():
            decoded = first_stage.decode_codes(codes)
            loss, values = self.reconstruction_loss(images, decoded, step)
        if adversarial:
            self.discriminator.requires_grad_(False)
            with accelerator.autocast():
                generator_loss = -self.discriminator(decoded).float().mean()
            last_layer = first_stage.vq_model.decoder.conv_out.weight
            weight = settings.adversarial_weight * adaptive_weight(loss, generator_loss, last_layer, self.processes)
            loss = loss + weight * generator_loss
            values |= {"adversarial": generator_loss, "adaptive_weight": weight}
        loss = loss + settings.codebook_weight * codebook_loss
        accelerator.backward(loss / self.accumulation_steps)
        values |= {"codebook": codebook_loss, "loss": loss}
        if adversarial:
            self.discriminator.requires_grad_(True)
            with accelerator.autocast():
                real, fake = self.discriminator(images).float(), self.discriminator(decoded.detach()).float()
            values["discriminator"] = discriminator_loss(real, fake)
            accelerator.backward(values["discriminator"] / self.accumulation_steps)
        return raw.detach(), values

    @torch.no_grad()
    def _restart_codes(self, raw: Tensor, step: int) -> dict[str, Tensor]:
        usage = self.processes.sum(self.usage)
        vectors = self.processes.gather(raw).permute(0, 2, 3, 1).reshape(-1, self.settings.latent_channels)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        restarted = restart_dead_codes(self.first_stage.codebook, usage, vectors, generator)
        self.processes.copy_from_main(self.first_stage.codebook.data)
        numbers = {"perplexity": perplexity(usage), "restarted_codes": float(restarted)}
        self.usage.zero_()  # of a single process this is ``usage`` itself
        return {name: torch.tensor(value, device=raw.device) for name, value in numbers.items()}

    @torch.no_grad()
    def place_codebook(self, batches: list[Tensor]) -> None:
        """Put the codes onto the latents of ``batches`` (whole ones: the same in every process) by k-means."""
        with self.processes.accelerator.autocast():
            raw = torch.cat([self.first_stage.encode_raw(images) for images in batches])
        vectors = raw.permute(0, 2, 3, 1).reshape(-1, self.settings.latent_channels)
        codes = place_codes(vectors, self.settings.num_codes, torch.Generator().manual_seed(self.seed))
        self.first_stage.codebook.data.copy_(codes)
        self.processes.copy_from_main(self.first_stage.codebook.data)
        self.codes_placed = True

    @torch.no_grad()
    def measure_latents(self, images: list[Tensor]) -> None:
        """Store mean and standard deviation per latent channel, measured on whole tiles."""
        with self.processes.accelerator.autocast():
            raw = torch.cat([self.first_stage.encode_raw(batch) for batch in images])
        self.first_stage.latent_mean.copy_(raw.mean((0, 2, 3)).view(1, -1, 1, 1))
        self.first_stage.latent_std.copy_(raw.std((0, 2, 3)).view(1, -1, 1, 1))


def train_first_stage(source: Source, recipe: Recipe, out: Path) -> Path:
    """Train, or resume, in ``out/training/first_stage``; returns ``out/first_stage``, the finished folder."""
    recipe.check("first_stage")
    settings, run_settings = recipe.first_stage, recipe.run
    if settings.quantise_from_step >= settings.num_steps:
        raise ConfigError("first_stage.quantise_from_step must be below first_stage.num_steps")
    processes = Processes(run_settings)
    rows = processes.rows(settings.batch_size, run_settings.accumulation_steps)
    run = TrainingRun(out / "training" / "first_stage", "first_stage", recipe, processes, source.fingerprint())
    trainer = FirstStageTrainer(recipe, source.read(0).image.shape[2], processes)
    if recipe.init:
        trainer.codes_placed = initialise_first_stage(trainer.first_stage, recipe.init)
    state = run.load_checkpoint()
    first_step = trainer.load_state_dict(state) if state else 0

    def batches(start: int, stop: int, rows: range) -> Generator[Tensor, None, None]:
        for images, _ in loaded(crop_batches(source, settings, run_settings, start, stop, rows)):
            yield images.to(processes.device, memory_format=torch.channels_last, non_blocking=True)

    whole = range(settings.batch_size)
    if settings.linear_start and first_step == 0 and not recipe.init:
        linear_start(trainer.first_stage.vq_model, torch.cat(list(batches(0, CODE_PLACEMENT_BATCHES, whole))))
    steps = batches(first_step, settings.num_steps, rows)
    with progress_bar(processes.is_main) as bar, run.running(first_step), closing(steps):
        task = bar.add_task("first stage", total=settings.num_steps, completed=first_step)
        for step, images in enumerate(steps, first_step):
            if step >= settings.quantise_from_step and not trainer.codes_placed:
                trainer.place_codebook(list(batches(step, step + CODE_PLACEMENT_BATCHES, whole)))
            factor = learning_rate_factor(step, settings.num_steps, settings.warmup_steps, settings.cosine_decay)
            for optimizer in (trainer.optimizer, trainer.discriminator_optimizer):
                optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
            run.add(trainer.step(images, step))
            log, save = run.due(step, settings.num_steps)
            if log or save:
                values = run.means(step)
                rate = run.log(step, settings.batch_size, values)["images_per_second"]
                bar.update(task, description=f"first stage  L1 {values['l1']:.4f}  {rate:.1f} img/s")
            if save:
                run.save_checkpoint(trainer.state_dict(step + 1))
                run.save_grid(step + 1, _sample_rows(trainer, images))
            bar.advance(task)
    tiles = [source.read(i) for i in range(0, len(source), -(-len(source) // STATISTICS_TILES))]
    pixels = [torch.from_numpy(t.normalisation.apply(t.image).clip(-1, 1)).permute(2, 0, 1) for t in tiles]
    trainer.measure_latents([torch.stack(pixels[i : i + 8]).to(processes.device) for i in range(0, len(pixels), 8)])
    if processes.is_main:
        save_first_stage(trainer.first_stage, out / "first_stage")
    processes.wait()
    return out / "first_stage"


@torch.no_grad()
def _sample_rows(trainer: FirstStageTrainer, images: Tensor) -> list[list[Tensor]]:
    with trainer.processes.accelerator.autocast():
        raw = trainer.first_stage.encode_raw(images[:8])
        codes = trainer.first_stage.quantise(raw)[0] if trainer.codes_placed else raw
        decoded = trainer.first_stage.decode_codes(codes)
    return [list(images[:8]), list(decoded)]
