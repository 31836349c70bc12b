"""``changeanywhere train denoiser``: the mask-conditioned UNet on latents (paper §2.2, eq. 4)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from threading import Event
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from changeanywhere.diffusion.blended import Cells, sample_latents
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.place_noise import NoiseStreams
from changeanywhere.errors import ModelError, OutputError, require
from changeanywhere.models.borrowed import DDPMScheduler
from changeanywhere.models.copies import onto, pinned
from changeanywhere.models.denoiser import Denoiser, MaskEncoder, build_unet
from changeanywhere.models.first_stage import FirstStage, channels_last
from changeanywhere.models.folder import Model, find_model, load_first_stage, load_model, save_model, schedule_hash
from changeanywhere.models.info import find_folder, sampling_range
from changeanywhere.progress import Progress, silent
from changeanywhere.sample import SourceItem
from changeanywhere.seeds import step_seed
from changeanywhere.sources import JoinedSource, Source
from changeanywhere.terminal import say
from changeanywhere.training.batches import drawn_ahead, mixture_of
from changeanywhere.training.ema import WeightAverage
from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.guidance import Teacher, first_stage_of_teacher, mixed, taught
from changeanywhere.training.initialise import (
    initial_schedule,
    initialise_denoiser,
    recommended,
    refuse_another_denoiser,
    refuse_another_schedule,
)
from changeanywhere.training.latents import LATENTS, LatentCache, build_latent_cache
from changeanywhere.training.live_tiles import MIRRORED, LiveTiles
from changeanywhere.training.loop import train_stage
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DataRecipe, DenoiserRecipe, Recipe
from changeanywhere.training.sections import USUAL_BANDS
from changeanywhere.training.stage import Batch, Learner, Stage, learning_rate_factor, load_optimizer
from changeanywhere.training.validation import HeldOut, held_out_of

PICTURED_TILES = 6
WEIGHT_DECAY = 0.01


def train_denoiser(
    source: Source,
    recipe: Recipe,
    out: Path,
    first_stage_folder: Path | None = None,
    progress: Progress = silent,
    stop: Event | None = None,
) -> Path:
    """Train, or resume, in ``out/training/denoiser``; returns ``out/model``, a folder that ``--model`` takes.

    ``first_stage_folder``: default ``out/first_stage``, where ``train first-stage`` left it, or that of ``init``; with
    ``denoiser.distil_guidance`` that of ``init`` alone.
    """
    recipe.check("denoiser")
    settings, init, held = recipe.denoiser, recipe.init, None
    if init and settings.distil_guidance is not None:
        place = first_stage_of_teacher(init, recipe.data, out / "first_stage", first_stage_folder)
    else:
        place = find_first_stage(out, first_stage_folder, init)
    first_stage = open_first_stage(place, source, recipe.data)
    if init:  # before all tiles are encoded for another network
        fresh = build_denoiser(settings, source.legend.num_classes, first_stage.latent_mean.numel())
        refuse_another_denoiser(fresh, load_model(find_model(init)).denoiser, init)
    processes = Processes(recipe.run)
    with TrainingFolder(out, "denoiser", recipe, processes, source.fingerprint()) as folder:
        first_stage.to(processes.device)
        if settings.held_out:
            source, scenes = held_out_of(source, settings.held_out)
            held = HeldOut(scenes, first_stage, processes, settings.patience)
        cache = _tiles_of(recipe, source, first_stage, processes, out, progress)
        stage = DenoiserTraining(recipe, processes, source, first_stage, cache, held)
        return train_stage(stage, folder, progress, stop)


def _tiles_of(
    recipe: Recipe, source: Source, first_stage: FirstStage, processes: Processes, out: Path, progress: Progress
) -> LatentCache | LiveTiles:
    """Whole tiles, encoded once and kept on the disk; or, where crops are asked for, tiles on the device."""
    settings, tiles = recipe.denoiser, mixture_of(source, recipe.data)
    views = (0, MIRRORED) if settings.flip == "horizontal" else range(settings.views)
    if settings.crop_size is not None:
        return LiveTiles(source, first_stage, tiles, settings.crop_size, views, processes, progress)
    own, others = out / LATENTS["denoiser"], [out / LATENTS["critic"]]
    cache = build_latent_cache(own, source, first_stage, views, tiles, processes, progress, others)
    cache.keep_on(processes.device)
    return cache


def find_first_stage(out: Path, given: Path | None, init: str | None) -> Path:
    """The folder of the first stage: ``given``, else of this run, else of the model that training starts from."""
    candidates = (
        [find_folder(given)] if given else [out / "first_stage", *([find_model(init) / "first_stage"] if init else [])]
    )
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ModelError(
        f"{candidates[0]}: no first stage; run 'changeanywhere train first-stage' with the same --out first"
    )


def open_first_stage(place: Path, source: Source, data: DataRecipe) -> FirstStage:
    """The first stage in ``place``; :class:`ConfigError` where the images of ``source`` have other bands than it
    takes."""
    first_stage = load_first_stage(place)
    takes, found = int(first_stage.vq_model.config.in_channels), source.read(0).image.shape[2]
    bands = list(data.bands or USUAL_BANDS)
    require(found == takes, "data.bands", bands, f"{takes} of them, as many as the first stage in {place} takes")
    return first_stage


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
    drawn: tuple[Tensor, Tensor, Tensor],
    teacher: Teacher | None = None,
) -> Tensor:
    """Paper eq. 4 with eq. 2 for the noisy latent; latents ``[B, 3, h, w]``, masks int64 ``[B, H, W]`` → scalar.

    ``drawn``: timesteps int64 ``[B]``, noise ``[B, 3, h, w]`` and dropped masks bool ``[B]`` of :func:`draw_noise`.
    With a ``teacher`` what is to be predicted is what it says.
    """
    timesteps, noise, dropped = drawn
    alphas = schedule.alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1)
    noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    target = noise
    if schedule.config.prediction_type == "v_prediction":
        target = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
    condition = denoiser.encode_masks(masks, dropped)
    weight = None
    if teacher is not None:
        target, weight = teacher.predict(noisy, timesteps, condition.detach())
    predicted = denoiser(noisy, timesteps, condition)
    error = (predicted - target).abs() if recipe.loss == "l1" else (predicted - target).square()
    if recipe.unknown_weight != 1:
        known = F.avg_pool2d((masks > 0).float().unsqueeze(1), masks.shape[-1] // latents.shape[-1])
        known = torch.where(dropped.view(-1, 1, 1, 1), 1.0, known)  # without a mask all ground is the null condition's
        error = error * (known + recipe.unknown_weight * (1 - known))
    losses = error.mean((1, 2, 3))
    if weight is not None:
        losses = losses * weight
    if recipe.min_snr_gamma is not None:
        snr = (alphas / (1 - alphas)).flatten()
        divisor = snr + 1 if schedule.config.prediction_type == "v_prediction" else snr
        losses = losses * snr.clamp(max=recipe.min_snr_gamma) / divisor
    mean: Tensor = losses.mean()
    return mean


class DenoiserTraining(Stage):
    """UNet and mask encoder, and their moving average. A batch: ``(latents, masks, timesteps, noise, dropped)``."""

    name = "denoiser"

    def __init__(
        self,
        recipe: Recipe,
        processes: Processes,
        source: Source,
        first_stage: FirstStage,
        cache: LatentCache | LiveTiles,
        held: HeldOut | None = None,
    ) -> None:
        super().__init__(recipe, processes)
        self.settings, self.source, self.first_stage, self.cache = recipe.denoiser, source, first_stage, cache
        self.held = held
        settings = recipe.denoiser
        torch.manual_seed(self.seed)
        self.denoiser = channels_last(self._fresh())
        if recipe.run.compile:
            self.denoiser.unet.compile()
        self.average = WeightAverage(self.denoiser, settings.ema_halflife_share)
        fused = processes.device.type == "cuda" or None  # the weights in one kernel, not a few for each of them
        optimizer = torch.optim.AdamW(
            self.denoiser.parameters(), settings.learning_rate, weight_decay=WEIGHT_DECAY, fused=fused
        )
        self.learners = (Learner(self.denoiser, optimizer, settings.gradient_clip),)
        self.schedule = initial_schedule(recipe.init, settings.prediction_type)
        # Where steps read it: a recording copies nothing from the host.
        self.schedule.alphas_cumprod = self.schedule.alphas_cumprod.to(processes.device)
        self.recordable = self.num_parts == 1 and not recipe.run.compile
        self.teacher: Teacher | None = None
        if settings.distil_guidance is not None and recipe.init is not None:
            self.teacher = Teacher(recipe.init, settings.distil_guidance, source.legend, processes.device)
            # The network that was there before goes on reading masks by it.
            self.denoiser.mask_encoder.requires_grad_(False)

    def _fresh(self) -> Denoiser:
        latent_channels = self.first_stage.latent_mean.numel()
        return build_denoiser(self.settings, self.source.legend.num_classes, latent_channels).to(self.processes.device)

    def _averaged(self, weights: Mapping[str, Tensor]) -> Denoiser:
        averaged = self._fresh()
        averaged.load_state_dict(weights)
        return averaged.eval()

    def learning_rate(self, step: int) -> float:
        """See :class:`Stage`."""
        settings = self.settings
        factor = learning_rate_factor(step, settings.num_steps, settings.warmup_steps, settings.cosine_decay)
        return settings.learning_rate * factor

    def begin(self) -> None:
        """From another model: all weights but those of classes that it does not know."""
        init = self.recipe.init
        if init is None:
            return
        taken = initialise_denoiser(self.denoiser, self.source.legend, init)
        if self.processes.is_main:
            say(f"classes known to {init}: {', '.join(taken) or 'none, all start fresh'}", error=True)
        self.average.load(self.denoiser.state_dict())

    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        """See :class:`Stage`."""
        settings, rows, device = self.settings, self.rows, self.processes.device
        num_timesteps = int(self.schedule.config.num_train_timesteps)
        shape = self.cache.latent_shape

        def noise_of(step: int) -> Batch:
            generator = torch.Generator().manual_seed(step_seed("training.noise", self.seed, step))
            drawn = draw_noise(shape, self.batch_size, rows, settings.mask_dropout, num_timesteps, generator)
            return tuple(pinned(tensor, device) for tensor in drawn)

        steps = range(first_step, self.num_steps)
        # A GPU takes a step in the time in which a processor draws the noise of the next one.
        with closing(drawn_ahead(noise_of, steps, device.type == "cuda")) as noises:
            for step, noise in zip(steps, noises, strict=True):
                latents, masks = self.cache.batch(self.batch_size, self.seed, step, rows)
                if self.teacher is not None:
                    masks = mixed(masks, self._before(masks, step), self.batch_size, rows, self.seed, step)
                yield tuple(onto(tensor, device) for tensor in (latents, masks, *noise))

    def _before(self, masks: Tensor, step: int) -> Tensor:
        """The mask ``[H, W]`` of the row of the batch before this process's, whose masks are ``masks``."""
        if len(masks) == self.batch_size:
            return masks[-1]
        row = (self.rows.start - 1) % self.batch_size
        return self.cache.batch(self.batch_size, self.seed, step, range(row, row + 1))[1][0]

    def backward(self, part: Batch, step: int) -> dict[str, Tensor]:
        """The error of the predicted noise."""
        latents, masks, *noise = part
        with self.processes.accelerator.autocast():
            loss = self._loss(self.denoiser, latents, masks, *noise)
        self.add_gradients(loss)
        return {"loss": loss}

    def _loss(self, denoiser: Denoiser, latents: Tensor, masks: Tensor, *drawn: Tensor) -> Tensor:
        timesteps, noise, dropped = drawn
        given = self.schedule, latents, masks, self.settings, (timesteps, noise, dropped), self.teacher
        return denoising_loss(denoiser, *given)

    def after_step(self, step: int) -> dict[str, Tensor]:
        """The average follows."""
        self.average.update(self.denoiser, step)
        return {}

    def validate(self, done: int, folder: TrainingFolder) -> None:
        """The loss of the average on scenes that are held out; the weights of the least are kept."""
        held, settings = self.held, self.settings
        if held is None or (done % settings.val_every and done != self.num_steps):
            return
        averaged = self._averaged(self.average.weights)

        def loss_of(latents: Tensor, masks: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
            kept = torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
            with self.processes.accelerator.autocast():
                return self._loss(averaged, latents, masks, timesteps, noise, kept)

        loss = held.measure(loss_of, int(self.schedule.config.num_train_timesteps))
        held.take(loss, self.average.weights)
        self.ended = held.over
        if self.processes.is_main:
            folder.log_validation(done, {"loss": loss, "best": held.loss, "tiles": len(held)})

    def state(self) -> dict[str, Any]:
        """See :class:`Stage`; ``latents`` says of which first stage they are."""
        return {
            **({} if self.held is None else {"held_out": self.held.state()}),
            "denoiser": self.denoiser.state_dict(),
            "average": self.average.weights,
            "optimizer": self.learners[0].optimizer.state_dict(),
            "latents": self.cache.fingerprint,
            "schedule": schedule_hash(self.schedule),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`Stage`. Raises :class:`OutputError` if latents or noise schedule are another model's."""
        if state.get("latents", self.cache.fingerprint) != self.cache.fingerprint:
            raise OutputError(
                f"{self.recipe.data.source}: encoded by another first stage, or seen in other views, than the run was "
                "begun with (or, where crop_size meets images of 8 and of 16 bits, misread by an earlier edition); "
                "give another --out, or that first stage"
            )
        refuse_another_schedule(state, self.schedule, self.recipe.init)
        self.denoiser.load_state_dict(state["denoiser"])
        self.average.load(state["average"])
        load_optimizer(self.learners[0].optimizer, state["optimizer"])
        if self.held is not None:
            self.held.load_state(state["held_out"])
            self.ended = self.held.over

    def finished_model(self) -> Model:
        """First stage and averaged denoiser, or the average that did best on held out scenes, on the device; or the
        model that it was taught by, with that denoiser beside its own."""
        denoiser = self._averaged((self.held and self.held.weights) or self.average.weights)
        if self.teacher is not None:
            assert self.recipe.init is not None  # says Recipe.check
            return taught(self.recipe.init, denoiser, self.teacher.scale)
        init, dropout, legend = self.recipe.init, self.settings.mask_dropout, self.source.legend
        return Model(
            first_stage=self.first_stage,
            denoiser=denoiser,
            schedule=self.schedule,
            legend=legend,
            mask_dropout=dropout,
            tile_size=self.recipe.data.tile_size,
            defaults=recommended(init, legend, dropout) if init else {},
            bands=self.recipe.data.bands,
            stretch=self.recipe.data.stretch,
            gsd_m=sampling_range(item.gsd_m for item in self._labelled()),
        )

    def _labelled(self) -> Sequence[SourceItem]:
        """Tiles with masks: of further images the model learns no classes."""
        source = self.source
        return source.with_masks if isinstance(source, JoinedSource) else source.items

    def publish(self, out: Path) -> None:
        """``out/model`` as far as it is: ``generate --model`` takes it."""
        if self.processes.is_main:
            model = self.finished_model()
            model.first_stage = deepcopy(model.first_stage)  # saving casts it, and this training goes on with it
            save_model(model, out / "model", torch.float16)

    def finish(self, out: Path) -> Path:
        """``out/model``, in float16."""
        if self.processes.is_main:
            save_model(self.finished_model(), out / "model", torch.float16)
        return out / "model"

    @torch.no_grad()
    def pictures(self, batch: Batch) -> list[list[Tensor]]:
        """Masks, images painted from the masks alone, and the real tiles as the first stage decodes them."""
        cache, model, device = self.cache, self.finished_model(), self.processes.device
        tiles = range(0, len(cache), -(-len(cache) // PICTURED_TILES))
        real, masks = (tensor.to(device) for tensor in cache.examples(tiles))
        everywhere = torch.ones_like(real[:, :1], dtype=torch.bool)
        with self.processes.accelerator.autocast():
            painted = sample_latents(
                model.denoiser,
                model.schedule,
                masks,
                real,
                Cells(changed=everywhere, unknown=~everywhere),
                NoiseStreams(list(tiles), real.shape[1:], real.device),
                Sampling(num_steps=20, free_fraction=0.0, guidance_scale=self.settings.distil_guidance or 1.0),
            )
            images = [list(self.first_stage.decode(latents)) for latents in (painted, real)]
        colours = torch.from_numpy(self.source.legend.palette())[masks.cpu()].permute(0, 3, 1, 2).float() / 127.5 - 1
        return [list(colours), *images]
