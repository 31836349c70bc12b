"""``changeanywhere train critic``: a small segmenter of noisy latents, on those of the tiles that it is given."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from changeanywhere.errors import OutputError
from changeanywhere.models.copies import onto
from changeanywhere.models.critic import Critic, cell_classes, latents_hash
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.folder import schedule_hash
from changeanywhere.progress import Progress, silent
from changeanywhere.seeds import step_seed
from changeanywhere.sources import Source
from changeanywhere.training.batches import mixture_of
from changeanywhere.training.denoiser import draw_noise, find_first_stage, open_first_stage
from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.initialise import initial_schedule, refuse_another_schedule
from changeanywhere.training.latents import LATENTS, LatentCache, build_latent_cache
from changeanywhere.training.loop import train_stage
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import Recipe
from changeanywhere.training.segmenter import segmentation_sum
from changeanywhere.training.stage import Batch, Learner, Stage, learning_rate_factor

WEIGHT_DECAY = 0.01


def train_critic(
    source: Source,
    recipe: Recipe,
    out: Path,
    first_stage_folder: Path | None = None,
    progress: Progress = silent,
    stop: Event | None = None,
) -> Path:
    """Train, or resume, in ``out/training/critic``; returns ``out/critic``, a folder that ``--critic.model`` takes.

    ``first_stage_folder``: default ``out/first_stage``, or that of ``init``. Latents that ``train denoiser`` has left
    in ``out`` are read where they are of the same tiles in the same views; else own ones are encoded, once.
    """
    recipe.check("critic")
    place = find_first_stage(out, first_stage_folder, recipe.init)
    first_stage = open_first_stage(place, source, recipe.data)
    processes = Processes(recipe.run)
    with TrainingFolder(out, "critic", recipe, processes, source.fingerprint()) as folder:
        first_stage.to(processes.device)
        own, others = out / LATENTS["critic"], [out / LATENTS["denoiser"]]
        tiles, views = mixture_of(source, recipe.data), range(recipe.denoiser.views)
        cache = build_latent_cache(own, source, first_stage, views, tiles, processes, progress, others)
        return train_stage(
            CriticTraining(recipe, processes, source, latents_hash(place), cache), folder, progress, stop
        )


class CriticTraining(Stage):
    """A network that reads noisy latents. A batch: ``(latents, classes, timesteps, noise, known)``, the last how many
    cells of all rows of the batch are known, by parts of it: by that a part's loss is divided, so that parts and
    processes add up to the mean of the batch, wherever its known ground lies."""

    name = "critic"

    def __init__(self, recipe: Recipe, processes: Processes, source: Source, latents: str, cache: LatentCache) -> None:
        super().__init__(recipe, processes)
        self.settings, self.cache = recipe.critic, cache
        torch.manual_seed(self.seed)
        channels = int(cache.latents.shape[2])
        self.schedule = initial_schedule(recipe.init)
        self.critic = Critic.fresh(
            self.settings.channels, source.legend, latents, channels, schedule_hash(self.schedule)
        )
        channels_last(self.critic.to(processes.device)).train()
        optimizer = torch.optim.AdamW(self.critic.parameters(), self.settings.learning_rate, weight_decay=WEIGHT_DECAY)
        self.learners = (Learner(self.critic, optimizer, largest_norm=1.0),)
        self.alphas = self.schedule.alphas_cumprod.to(processes.device)

    def learning_rate(self, step: int) -> float:
        """See :class:`Stage`."""
        factor = learning_rate_factor(step, self.num_steps, self.settings.warmup_steps, cosine_decay=True)
        return self.settings.learning_rate * factor

    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        """See :class:`Stage`."""
        for step in range(first_step, self.num_steps):
            latents, masks = self.cache.batch(self.batch_size, self.seed, step, self.rows)
            generator = torch.Generator().manual_seed(step_seed("training.noise", self.seed, step))
            times, noise, _ = draw_noise(
                latents.shape[1:], self.batch_size, self.rows, 0.0, len(self.alphas), generator
            )
            classes = cell_classes(masks, self.critic.legend.num_classes)
            tensors = tuple(onto(tensor, self.processes.device) for tensor in (latents, classes, times, noise))
            known = self.processes.sum((tensors[1] > 0).sum()).clamp(min=1)
            yield *tensors, (known / (self.num_parts * self.processes.count)).expand(len(latents))

    def backward(self, part: Batch, step: int) -> dict[str, Tensor]:
        """Cross-entropy on known cells."""
        latents, classes, times, noise, known = part
        alphas = self.alphas[times].view(-1, 1, 1, 1)
        noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
        with self.processes.accelerator.autocast():
            logits = self.critic(noisy, times)
        loss = segmentation_sum(logits, classes)[0] / known[0]
        self.add_gradients(loss)
        return {"loss": loss}

    def state(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {
            "critic": self.critic.state_dict(),
            "optimizer": self.learners[0].optimizer.state_dict(),
            "latents": self.cache.fingerprint,
            "schedule": self.critic.schedule,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`Stage`. Raises :class:`OutputError` if latents or noise schedule are another model's."""
        if state["latents"] != self.cache.fingerprint:
            raise OutputError(
                f"{self.recipe.data.source}: encoded by another first stage, or seen in other views (denoiser.views), "
                "than the run was begun with; give another --out, or that first stage and those views"
            )
        refuse_another_schedule(state, self.schedule, self.recipe.init)
        self.critic.load_state_dict(state["critic"])
        self.learners[0].optimizer.load_state_dict(state["optimizer"])

    def finish(self, out: Path) -> Path:
        """``out/critic``, in half precision."""
        if self.processes.is_main:
            self.critic.save(out / "critic")
        return out / "critic"
