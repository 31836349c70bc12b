"""``changeanywhere train first-stage``: the VQGAN (paper §2.2, §3.1; losses as DESIGN §1 and Esser et al. 2021)."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.models.first_stage import FirstStage, build_vq_model, channels_last
from changeanywhere.models.folder import save_first_stage
from changeanywhere.models.linear_start import linear_start
from changeanywhere.models.perceptual import build_perceptual
from changeanywhere.progress import Progress, silent
from changeanywhere.seeds import step_seed
from changeanywhere.sources import Source
from changeanywhere.training.adversarial import PatchDiscriminator, adaptive_weight, discriminator_loss
from changeanywhere.training.batches import crop_batches, loaded, mixture_of
from changeanywhere.training.codebook import perplexity, place_codes, restart_dead_codes
from changeanywhere.training.ema import WeightAverage
from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.initialise import initialise_first_stage
from changeanywhere.training.loop import train_stage
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import Recipe
from changeanywhere.training.stage import Batch, Learner, Stage, learning_rate_factor

CODE_PLACEMENT_BATCHES = 16  # latents of so many batches place the codebook
CODEBOOK = "vq_model.quantize.embedding.weight"
"""Name of the codes among a first stage's weights."""
STATISTICS_TILES = 512  # tiles that measure the latents' mean and standard deviation
STATISTICS_BATCH = 8


def train_first_stage(
    source: Source, recipe: Recipe, out: Path, progress: Progress = silent, stop: Event | None = None
) -> Path:
    """Train, or resume, in ``out/training/first_stage``; returns ``out/first_stage``, the finished folder."""
    recipe.check("first_stage")
    processes = Processes(recipe.run)
    with TrainingFolder(out, "first_stage", recipe, processes, source.fingerprint()) as folder:
        return train_stage(FirstStageTraining(recipe, processes, source), folder, progress, stop)


def chroma(images: Tensor) -> Tensor:
    """Differences of each band to the mean of all: ``[B, C, H, W]`` → same shape. Brightness cancels."""
    return images - images.mean(1, keepdim=True)


class FirstStageTraining(Stage):
    """Autoencoder with a codebook, and the discriminator that it plays against. A batch: ``(images,)``."""

    name, headline = "first_stage", "l1"

    def __init__(self, recipe: Recipe, processes: Processes, source: Source) -> None:
        super().__init__(recipe, processes)
        self.settings, self.source = recipe.first_stage, source
        self.only_decoder = recipe.first_stage.parts == "decoder"
        self._noise_used = 0
        """Rows of a step's noise that its parts have taken."""
        settings, device, image_channels = recipe.first_stage, processes.device, source.read(0).image.shape[2]
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
        self.first_stage = channels_last(FirstStage(vq_model, quantises=settings.quantise).to(device))
        self.perceptual = None
        if settings.perceptual_weight:
            file = Path(settings.perceptual_weights) if settings.perceptual_weights else None
            self.perceptual = channels_last(build_perceptual(settings.perceptual_features, file).to(device))
        self.discriminator = channels_last(
            PatchDiscriminator(image_channels, settings.discriminator_channels).to(device)
        )
        optimizers = [
            torch.optim.Adam(weights, settings.learning_rate, betas=(0.5, 0.9))
            for weights in (self._trained(), self.discriminator.parameters())
        ]
        self.learners = (
            Learner(self.first_stage, optimizers[0], largest_norm=1.0),
            Learner(self.discriminator, optimizers[1], norm_name="discriminator_gradient_norm"),
        )
        if recipe.run.compile:
            self._compile()
        share = settings.ema_halflife_share
        self.average = WeightAverage(self.first_stage, share) if share else None
        self.usage = torch.zeros(settings.num_codes, dtype=torch.long, device=device)
        self.adaptive = torch.zeros(2, device=device)
        """Sum and count of the adaptive weights that were measured, where they are to be held."""
        self.codes_placed = False
        self._latents: list[Tensor] = []
        """Raw latents of the step, for codes that are out of use."""

    def _trained(self) -> list[nn.Parameter]:
        """Of the decoder alone, the others frozen; or all."""
        model = self.first_stage.vq_model
        if self.only_decoder:
            model.requires_grad_(False)
            for part in (model.post_quant_conv, model.decoder):
                part.requires_grad_(True)
        return [parameter for parameter in self.first_stage.parameters() if parameter.requires_grad]

    def _compile(self) -> None:
        # The adaptive weight goes backward through the decoder before the loss does: its buffers must outlive that.
        torch._functorch.config.donated_buffer = False
        model = self.first_stage.vq_model
        for network in filter(None, (model.encoder, model.decoder, self.perceptual, self.discriminator)):
            network.compile()

    def learning_rate(self, step: int) -> float:
        """See :class:`Stage`."""
        settings = self.settings
        factor = learning_rate_factor(step, settings.num_steps, settings.warmup_steps, settings.cosine_decay)
        return settings.learning_rate * factor

    def begin(self) -> None:
        """From another model, whose codes are in place; or as plain reduction and enlargement."""
        if self.recipe.init:
            initialise_first_stage(self.first_stage, self.recipe.init)
            self.codes_placed = True
        elif self.settings.linear_start:
            linear_start(self.first_stage.vq_model, torch.cat(self._whole_batches(0)))
        if self.average is not None:
            self.average.load(self.first_stage.state_dict())

    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        """See :class:`Stage`."""
        return self._crops(first_step, self.num_steps, self.rows)

    def _crops(self, start: int, stop: int, rows: range) -> Generator[Batch, None, None]:
        tiles = mixture_of(self.source, self.recipe.data)
        crops = crop_batches(self.source, self.settings, self.recipe.run, start, stop, rows, tiles)
        with closing(loaded(crops)) as batches:
            for images, _ in batches:
                yield self.processes.put(images)

    def _whole_batches(self, start: int) -> list[Tensor]:
        """Images of all rows of some steps: the same in every process."""
        crops = self._crops(start, start + CODE_PLACEMENT_BATCHES, range(self.batch_size))
        return [images for (images,) in crops]

    def backward(self, part: Batch, step: int) -> dict[str, Tensor]:
        """L1, colour, perceptual, codebook and, once it takes part, adversarial loss (and the discriminator's own)."""
        settings, first_stage, accelerator = self.settings, self.first_stage, self.processes.accelerator
        (images,) = part
        if step >= settings.quantise_from_step and not self.codes_placed:
            self._place_codebook(step)
        with accelerator.autocast(), torch.set_grad_enabled(not self.only_decoder):
            raw = first_stage.encode_raw(images)
        codes, codebook_loss = self._codes(raw, step)
        with accelerator.autocast():
            decoded = first_stage.decode_codes(codes)
            loss, values = self.reconstruction_loss(images, decoded, step)
        adversarial = bool(settings.adversarial_weight) and step >= settings.adversarial_from_step
        if adversarial:
            generator_loss, weight = self._generator_loss(loss, decoded, step)
            loss = loss + weight * generator_loss
            values |= {"adversarial": generator_loss, "adaptive_weight": weight}
        if not self.only_decoder:
            loss = loss + settings.codebook_weight * codebook_loss
            values["codebook"] = codebook_loss
        self.add_gradients(loss)
        values["loss"] = loss
        if adversarial:
            values["discriminator"] = self._discriminator_loss(images, decoded.detach())
            self.add_gradients(values["discriminator"])
        self._latents.append(raw.detach())
        return values

    def _codes(self, raw: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What the decoder sees of raw latents ``[B, D, h, w]``, and the codebook loss, scalar."""
        settings, nothing = self.settings, torch.zeros((), device=raw.device)
        if not settings.quantise:
            return self._noised(raw, step), nothing
        if not self.codes_placed:
            return raw, nothing
        nearest, indices = self.first_stage.quantise(raw)
        self.usage += torch.bincount(indices.flatten(), minlength=settings.num_codes)
        loss = F.mse_loss(nearest, raw.detach()) + settings.commitment * F.mse_loss(raw, nearest.detach())
        # Straight-through: the decoder's gradient passes the rounding.
        return raw + (nearest - raw).detach(), loss

    def _noised(self, raw: Tensor, step: int) -> Tensor:
        """With noise of up to ``latent_noise`` standard deviations, another amount for every crop."""
        if not self.settings.latent_noise:
            return raw
        generator = torch.Generator().manual_seed(step_seed("training.noise", self.seed, step))
        shape = (self.batch_size, *raw.shape[1:])
        amount = self.settings.latent_noise * torch.rand((self.batch_size, 1, 1, 1), generator=generator)
        noise = (amount * torch.randn(shape, generator=generator))[self.rows.start : self.rows.stop]
        part = noise[self._noise_used : self._noise_used + len(raw)]
        self._noise_used = (self._noise_used + len(raw)) % len(noise)
        return raw + self.first_stage.latent_std * part.to(raw)

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

    def _generator_loss(self, loss: Tensor, decoded: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """How fake the discriminator finds the images, and the weight of that beside ``loss``, scalars."""
        settings = self.settings
        self.discriminator.requires_grad_(False)
        with self.processes.accelerator.autocast():
            generator_loss = -self.discriminator(decoded).float().mean()
        self.discriminator.requires_grad_(True)
        measured = settings.adaptive_steps
        if measured is not None and step >= settings.adversarial_from_step + measured:
            return generator_loss, settings.adversarial_weight * self.adaptive[0] / self.adaptive[1]
        last_layer = self.first_stage.vq_model.decoder.conv_out.weight
        weight = adaptive_weight(loss, generator_loss, last_layer, self.processes)
        if measured is not None:
            self.adaptive += torch.stack([weight, torch.ones_like(weight)])
        return generator_loss, settings.adversarial_weight * weight

    def _discriminator_loss(self, images: Tensor, decoded: Tensor) -> Tensor:
        with self.processes.accelerator.autocast():
            real, fake = self.discriminator(images).float(), self.discriminator(decoded).float()
        return discriminator_loss(real, fake)

    @torch.no_grad()
    def after_step(self, step: int) -> dict[str, Tensor]:
        """The average follows; codes that were not used for a while begin anew on latents of this step."""
        if self.average is not None:
            self.average.update(self.first_stage, step)
        latents, self._latents = self._latents, []
        if self.only_decoder or not self.codes_placed or (step + 1) % self.settings.restart_codes_every:
            return {}
        usage = self.processes.sum(self.usage)
        generator = torch.Generator().manual_seed(step_seed("training.noise", self.seed, step))
        vectors = self._vectors(self.processes.gather(torch.cat(latents)))
        restarted = restart_dead_codes(self.first_stage.codebook, usage, vectors, generator)
        self._moved(restarted)
        numbers = {"perplexity": perplexity(usage), "restarted_codes": float(len(restarted))}
        self.usage.zero_()  # of a single process this is ``usage`` itself
        return {name: torch.tensor(value, device=vectors.device) for name, value in numbers.items()}

    @torch.no_grad()
    def _place_codebook(self, step: int) -> None:
        """Put the codes onto the latents of the steps that begin, by k-means."""
        codes = place_codes(
            self._vectors(self._encode(self._whole_batches(step))),
            self.settings.num_codes,
            torch.Generator().manual_seed(self.seed),
        )
        self.first_stage.codebook.data.copy_(codes)
        self._moved(torch.arange(len(codes), device=codes.device))
        self.codes_placed = True

    def _moved(self, codes: Tensor) -> None:
        """What follows when these codes, int64 ``[N]``, were put elsewhere in one go: every process has the main one's,
        and the average has them too, or it would hold them between their old place and the new, where no latent lies.
        """
        codebook = self.first_stage.codebook.data
        self.processes.copy_from_main(codebook)
        if self.average is not None:
            self.average.weights[CODEBOOK][codes] = codebook[codes]

    def _vectors(self, raw: Tensor) -> Tensor:
        """Raw latents ``[B, D, h, w]`` → ``[N, D]``."""
        return raw.permute(0, 2, 3, 1).reshape(-1, self.settings.latent_channels)

    def _encode(self, batches: list[Tensor]) -> Tensor:
        with self.processes.accelerator.autocast():
            return torch.cat([self.first_stage.encode_raw(images) for images in batches])

    @torch.no_grad()
    def pictures(self, batch: Batch) -> list[list[Tensor]]:
        """Originals above, reconstructions below."""
        (images,) = batch
        with self.processes.accelerator.autocast():
            raw = self.first_stage.encode_raw(images[:8])
            codes = self.first_stage.quantise(raw)[0] if self.codes_placed and self.settings.quantise else raw
            decoded = self.first_stage.decode_codes(codes)
        return [list(images[:8]), list(decoded)]

    def state(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {
            "first_stage": self.first_stage.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.learners[0].optimizer.state_dict(),
            "discriminator_optimizer": self.learners[1].optimizer.state_dict(),
            "usage": self.processes.sum(self.usage),
            "codes_placed": self.codes_placed,
            "adaptive": self.adaptive,
            "average": None if self.average is None else self.average.weights,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`Stage`."""
        self.first_stage.load_state_dict(state["first_stage"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.learners[0].optimizer.load_state_dict(state["optimizer"])
        self.learners[1].optimizer.load_state_dict(state["discriminator_optimizer"])
        if self.processes.is_main:  # the stored counts are those of all processes
            self.usage.copy_(state["usage"])
        self.codes_placed = bool(state["codes_placed"])
        if "adaptive" in state:  # younger than some checkpoints
            self.adaptive.copy_(state["adaptive"])
        if self.average is not None:
            self.average.load(state["average"])

    def finish(self, out: Path) -> Path:
        """``out/first_stage``, with mean and standard deviation of its latents, measured on whole tiles (or, where the
        encoder stood still, those that it had)."""
        if self.average is not None:
            self.first_stage.load_state_dict(self.average.weights)
        if not self.only_decoder:
            self._measure_latents()
        if self.processes.is_main:
            save_first_stage(self.first_stage, out / "first_stage")
        return out / "first_stage"

    @torch.no_grad()
    def _measure_latents(self) -> None:
        source = self.source
        tiles = [source.read(i) for i in range(0, len(source), -(-len(source) // STATISTICS_TILES))]
        pixels = [torch.from_numpy(tile.pixels()).permute(2, 0, 1) for tile in tiles]
        starts = range(0, len(pixels), STATISTICS_BATCH)
        device = self.processes.device
        raw = self._encode([torch.stack(pixels[i : i + STATISTICS_BATCH]).to(device) for i in starts])
        self.first_stage.latent_mean.copy_(raw.mean((0, 2, 3)).view(1, -1, 1, 1))
        self.first_stage.latent_std.copy_(raw.std((0, 2, 3)).view(1, -1, 1, 1))
