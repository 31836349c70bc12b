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

from changeanywhere.errors import require
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.segmenter import DECODER_CHANNELS, Segmenter
from changeanywhere.progress import Progress, silent
from changeanywhere.seeds import step_seed
from changeanywhere.sources import Source
from changeanywhere.terminal import say
from changeanywhere.training.batches import NOT_IMAGED, crop_batches, loaded, mixture_of
from changeanywhere.training.complete import SAME, Complete, none_of_loss, same_loss
from changeanywhere.training.decoded import Decoded, content_of, draw
from changeanywhere.training.ema import WeightAverage
from changeanywhere.training.folder import TrainingFolder
from changeanywhere.training.initialise import initialise_segmenter
from changeanywhere.training.loop import train_stage
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import Recipe
from changeanywhere.training.stage import Batch, Learner, Stage, learning_rate_factor
from changeanywhere.training.taught import confidence_at, draw_photometric, taught_loss, taught_masks

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


def segmentation_loss(logits: Tensor, masks: Tensor, sets: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits ``[B, K, H, W]`` on known ground of masks int64 ``[B, H, W]`` → scalar; with the ``sets``
    of :class:`Complete`, the mean of it, of :func:`none_of_loss` and of :func:`same_loss`."""
    total, count = segmentation_sum(logits, masks, sets)
    return total / count.clamp(min=1)  # a batch without known ground teaches nothing, and is no NaN


def segmentation_sum(logits: Tensor, masks: Tensor, sets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What :func:`segmentation_loss` is the mean of: the sum, and the number of places that are known."""
    # Unknown is 0 in masks and has no channel: shifted down by one it is -1, which is left out.
    total = F.cross_entropy(logits.float(), masks.clamp(min=0) - 1, ignore_index=-1, reduction="sum")
    count = (masks > 0).sum()
    if sets is not None:
        same, places = same_loss(logits, masks, sets)
        total = total + none_of_loss(logits, masks, sets) + same
        count = ((masks > -SAME) & (masks != 0)).sum() + places
    return total, count


def draw_jitter(batch_size: int, rows: range, amount: float, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Contrast factor and brightness shift ``[rows, 1, 1, 1]`` of a step's crops, up to ``amount`` from 1 and from 0.

    Drawn for the whole batch, then cut: a row is changed alike whichever process takes it.
    """
    generator = torch.Generator().manual_seed(step_seed("training.jitter", seed, step))
    factor, shift = ((torch.rand(batch_size, 1, 1, 1, generator=generator) * 2 - 1) * amount for _ in range(2))
    own = slice(rows.start, rows.stop, rows.step)
    return 1 + factor[own], shift[own]


class SegmenterTraining(Stage):
    """A network that reads land cover. A batch: ``(images, masks)``, and with ``data.images`` the crops as they were
    before their colours were changed, for the average of the weights to read, and what of them was imaged."""

    name = "segmenter"
    dealt = True  # crops without masks stand behind the others, and the backbone normalises what it sees together

    def __init__(self, recipe: Recipe, processes: Processes, source: Source) -> None:
        super().__init__(recipe, processes)
        self.settings, self.source = recipe.segmenter, source
        torch.manual_seed(self.seed)
        net = Segmenter(self.settings.backbone, source.legend, pretrained=True)
        if self.settings.frozen_levels:
            net.freeze(self.settings.frozen_levels)
        self.net = channels_last(net.to(processes.device)).train()
        self._check_batch()
        halflife = self.settings.ema_halflife_share
        self.average = WeightAverage(self.net, halflife) if halflife else None
        self.taught = bool(recipe.data.images)
        self.complete = Complete(source, recipe.data) if recipe.data.complete or recipe.data.evidence else None
        self.sets = None if self.complete is None else self.complete.sets.to(processes.device)
        share, names = self.settings.decoded, self.settings.first_stage
        self.decoded = Decoded(names, processes.device) if share else None
        learned = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learned, self.settings.learning_rate, weight_decay=WEIGHT_DECAY)
        self.learners = (Learner(self.net, optimizer, largest_norm=1.0),)

    def _check_batch(self) -> None:
        """:class:`ConfigError` where a process sees one crop whose coarsest map is one cell: batch normalisation, which
        the backbone of random weights and one that is frozen do without, has nothing to normalise by."""
        side, least = Segmenter.size_multiple, 2 * self.processes.count
        settled = self.settings.backbone == "unet" or self.settings.frozen_levels == len(DECODER_CHANNELS) + 1
        enough = self.settings.crop_size > side or self.batch_size >= least or settled
        what = f"{least} and more for {self.processes.count} process(es) at a crop_size of {side}"
        require(enough, "segmenter.batch_size", self.batch_size, what)

    def learning_rate(self, step: int) -> float:
        """See :class:`Stage`."""
        factor = learning_rate_factor(step, self.num_steps, self.settings.warmup_steps, cosine_decay=True)
        return self.settings.learning_rate * factor

    def begin(self) -> None:
        """From another segmenter: all weights but those of classes that it does not know."""
        init = self.recipe.init
        if init is None:
            return
        taken = initialise_segmenter(self.net, init)
        if self.processes.is_main:
            say(f"classes known to {init}: {', '.join(taken) or 'none, all start fresh'}", error=True)
        if self.average is not None:
            self.average.load(self.net.state_dict())

    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        """See :class:`Stage`."""
        tiles = mixture_of(self.source, self.recipe.data)
        place = self.source, self.settings, self.recipe.run, first_step, self.num_steps, self.rows
        crops = crop_batches(*place, tiles, self.complete)
        with closing(loaded(crops)) as batches:
            for step, (plain, masks) in enumerate(batches, first_step):
                imaged = masks != NOT_IMAGED
                masks = masks.where(imaged, 0)
                factor, shift = draw_jitter(self.batch_size, self.rows, self.settings.colour_jitter, self.seed, step)
                images = (plain * factor + shift).clamp(-1, 1)
                if self.settings.photometric:
                    images = draw_photometric(images, self.rows, self.settings.photometric, self.seed, step)
                images, masks = self.processes.put(images, masks)
                if self.decoded is not None:
                    count = len(self.settings.first_stage)
                    drawn = draw(self.settings.decoded, count, self.batch_size, self.seed, step)
                    images = self.decoded(images, drawn, self.rows)
                yield (images, masks, *(self.processes.put(plain, imaged) if self.taught else ()))

    def backward(self, part: Batch, step: int) -> dict[str, Tensor]:
        """Cross-entropy; where a crop has no mask, on what the average is sure of in it."""
        images, masks, *plain = part
        with self.processes.accelerator.autocast():
            logits = self.net(images)
        total, count = segmentation_sum(logits, masks, self.sets)
        # Of the whole batch: gradients are averaged over the processes, whose rows may know more or less.
        loss = total / self.processes.whole(count)
        said = {"loss": loss}
        if plain:
            said |= self._taught(logits, masks, plain[0], plain[1], step)
            loss = loss + said["taught_loss"]
        self.add_gradients(loss)
        return said

    def _taught(self, logits: Tensor, masks: Tensor, plain: Tensor, imaged: Tensor, step: int) -> dict[str, Tensor]:
        """The loss on crops of which no mask says anything, and the share of their ground that the average is sure
        of; the fill of what was not imaged is none."""
        assert self.average is not None  # a recipe with images is refused without one
        bare = (masks == 0).flatten(1).all(1)
        settings, nothing = self.settings, {"taught_loss": logits.sum() * 0, "taught_ground": logits.new_zeros(())}
        if step < settings.taught_from_step:
            return nothing
        # Of the whole batch, as for the loss on masks: a process may have more such crops than another, or none.
        whole = int(self.processes.sum(bare.sum())) * masks[0].numel() / self.processes.count
        if not bool(bare.any()):
            return nothing
        threshold = confidence_at(step, settings.taught_from_step, self.num_steps, settings.confidence)
        with self.processes.accelerator.autocast():
            found = taught_masks(self.net, self.average, plain[bare], threshold)
        found = found.where(imaged[bare], 0)
        return {
            "taught_loss": taught_loss(logits[bare], found, whole),
            "taught_ground": (found > 0).float().sum() / whole,
        }

    def after_step(self, step: int) -> dict[str, Tensor]:
        """The average follows."""
        if self.average is not None:
            self.average.update(self.net, step)
        return {}

    def state(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        average = {} if self.average is None else {"average": self.average.weights}
        return {"segmenter": self.net.state_dict(), "optimizer": self.learners[0].optimizer.state_dict(), **average}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See :class:`Stage`."""
        self.net.load_state_dict(state["segmenter"])
        self.learners[0].optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load(state["average"])

    def finish(self, out: Path) -> Path:
        """``out/segmenter``."""
        if self.processes.is_main:
            if self.average is not None:
                self.net.load_state_dict(self.average.weights)
            self.net.save(out / "segmenter", self.settings.half_precision)
        return out / "segmenter"
