"""``changeanywhere train segmenter``: the judge of generated images, or the filter of pairs, on real tiles."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.progress import Progress, silent
from changeanywhere.seeds import step_seed
from changeanywhere.sources import Source
from changeanywhere.training.batches import crop_batches, loaded
from changeanywhere.training.decoded import Decoded, content_of, draw
from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.loop import train_stage
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import Recipe
from changeanywhere.training.stage import Batch, Learner, Stage, learning_rate_factor

WEIGHT_DECAY = 0.01


def train_segmenter(
    source: Source, recipe: Recipe, out: Path, progress: Progress = silent, stop: Event | None = None
) -> Path:
    """Train, or resume, in ``out/training/segmenter``; returns ``out/segmenter``."""
    recipe.check("segmenter")
    processes = Processes(recipe.run)
    content = source.fingerprint()
    if recipe.segmenter.decoded:
        content = f"{content}-{content_of(recipe.segmenter.first_stage)}"
    with TrainingFolder(out, "segmenter", recipe, processes, content) as folder:
        return train_stage(SegmenterTraining(recipe, processes, source), folder, progress, stop)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of logits ``[B, K, H, W]`` on known ground of masks int64 ``[B, H, W]`` → scalar."""
    # Unknown is 0 in masks and has no channel: shifted down by one it is -1, which is left out.
    total = F.cross_entropy(logits.float(), masks - 1, ignore_index=-1, reduction="sum")
    return total / (masks > 0).sum().clamp(min=1)  # a batch without known ground teaches nothing, and is no NaN


def draw_jitter(batch_size: int, rows: range, amount: float, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Contrast factor and brightness shift ``[rows, 1, 1, 1]`` of a step's crops, up to ``amount`` from 1 and from 0.

    Drawn for the whole batch, then cut: a row is changed alike whichever process takes it.
    """
    generator = torch.Generator().manual_seed(step_seed("training.jitter", seed, step))
    factor, shift = ((torch.rand(batch_size, 1, 1, 1, generator=generator) * 2 - 1) * amount for _ in range(2))
    own = slice(rows.start, rows.stop)
    return 1 + factor[own], shift[own]


class SegmenterTraining(Stage):
    """A network that reads land cover. A batch: ``(images, masks)``."""

    name = "segmenter"

    def __init__(self, recipe: Recipe, processes: Processes, source: Source) -> None:
        super().__init__(recipe, processes)
        self.settings, self.source = recipe.segmenter, source
        torch.manual_seed(self.seed)
        net = Segmenter(self.settings.backbone, source.legend, pretrained=True)
        if self.settings.frozen_levels:
            net.freeze(self.settings.frozen_levels)
        self.net = channels_last(net.to(processes.device)).train()
        share, names = self.settings.decoded, self.settings.first_stage
        self.decoded = Decoded(names, processes.device) if share else None
        learned = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learned, self.settings.learning_rate, weight_decay=WEIGHT_DECAY)
        self.learners = (Learner(self.net, optimizer, largest_norm=1.0),)

    def learning_rate(self, step: int) -> float:
        """See :class:`Stage`."""
        factor = learning_rate_factor(step, self.num_steps, self.settings.warmup_steps, cosine_decay=True)
        return self.settings.learning_rate * factor

    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        """See :class:`Stage`."""
        crops = crop_batches(
            self.source, self.settings, self.recipe.run, first_step, self.num_steps, self.rows, len(self.source)
        )
        with closing(loaded(crops)) as batches:
            for step, (images, masks) in enumerate(batches, first_step):
                factor, shift = draw_jitter(self.batch_size, self.rows, self.settings.colour_jitter, self.seed, step)
                images, masks = self.processes.put((images * factor + shift).clamp(-1, 1), masks)
                if self.decoded is not None:
                    count = len(self.settings.first_stage)
                    drawn = draw(self.settings.decoded, count, self.batch_size, self.seed, step)
                    images = self.decoded(images, drawn, self.rows)
                yield images, masks

    def backward(self, part: Batch, step: int) -> dict[str, Tensor]:
        """Cross-entropy."""
        images, masks = part
        with self.processes.accelerator.autocast():
            logits = self.net(images)
        loss = segmentation_loss(logits, masks)
        self.add_gradients(loss)
        return {"loss": loss}

    def state(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {"segmenter": self.net.state_dict(), "optimizer": self.learners[0].optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`Stage`."""
        self.net.load_state_dict(state["segmenter"])
        self.learners[0].optimizer.load_state_dict(state["optimizer"])

    def finish(self, out: Path) -> Path:
        """``out/segmenter``."""
        if self.processes.is_main:
            self.net.save(out / "segmenter", self.settings.half_precision)
        return out / "segmenter"
