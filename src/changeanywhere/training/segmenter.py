"""``changeanywhere train segmenter``: the judge of generated images, or the filter of pairs, on real tiles."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.progress import progress_bar
from changeanywhere.sources import Source
from changeanywhere.training.batches import crop_batches, loaded
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import Recipe
from changeanywhere.training.run import TrainingRun, learning_rate_factor

WEIGHT_DECAY = 0.01


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of logits ``[B, K, H, W]`` on known ground of masks int64 ``[B, H, W]`` → scalar."""
    # Unknown is 0 in masks and has no channel: shifted down by one it is -1, which is left out.
    total = F.cross_entropy(logits.float(), masks - 1, ignore_index=-1, reduction="sum")
    return total / (masks > 0).sum().clamp(min=1)  # a batch without known ground teaches nothing, and is no NaN


def jitter_colours(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Contrast and brightness of each image ``[B, C, H, W]`` in [-1, 1], changed by up to ``amount``."""
    factor, shift = (
        ((torch.rand(len(images), 1, 1, 1, generator=generator) * 2 - 1) * amount).to(images) for _ in range(2)
    )
    return (images * (1 + factor) + shift).clamp(-1, 1)


def train_segmenter(source: Source, recipe: Recipe, out: Path) -> Path:
    """Train, or resume, in ``out/training/segmenter``; returns ``out/segmenter``."""
    recipe.check("segmenter")
    settings, run_settings = recipe.segmenter, recipe.run
    processes = Processes(run_settings)
    rows = processes.rows(settings.batch_size, 1)
    run = TrainingRun(out / "training" / "segmenter", "segmenter", recipe, processes, source.fingerprint())
    torch.manual_seed(run_settings.seed)
    net = channels_last(Segmenter(settings.backbone, source.legend, pretrained=True).to(processes.device)).train()
    optimizer = torch.optim.AdamW(net.parameters(), settings.learning_rate, weight_decay=WEIGHT_DECAY)
    state = run.load_checkpoint()
    first_step = 0
    if state:
        net.load_state_dict(state["segmenter"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = int(state["step"])
    batches = crop_batches(source, settings, run_settings, first_step, settings.num_steps, rows)
    with progress_bar(processes.is_main) as bar, run.running(first_step), closing(loaded(batches)) as steps:
        task = bar.add_task("segmenter", total=settings.num_steps, completed=first_step)
        for step, (images, masks) in enumerate(steps, first_step):
            generator = torch.Generator().manual_seed((run_settings.seed * 1_000_003 + step) * 64 + processes.rank)
            images = jitter_colours(images, settings.colour_jitter, generator)
            images = images.to(processes.device, memory_format=torch.channels_last, non_blocking=True)
            factor = learning_rate_factor(step, settings.num_steps, settings.warmup_steps, cosine_decay=True)
            optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
            with processes.accelerator.autocast():
                logits = net(images)
            loss = segmentation_loss(logits, masks.to(processes.device))
            optimizer.zero_grad(set_to_none=True)
            processes.accelerator.backward(loss)
            processes.average_gradients(net.parameters())
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            run.add({"loss": loss, "gradient_norm": norm})
            log, save = run.due(step, settings.num_steps)
            if log or save:
                values = run.means(step)
                rate = run.log(step, settings.batch_size, values)["images_per_second"]
                bar.update(task, description=f"segmenter  loss {values['loss']:.4f}  {rate:.1f} img/s")
            if save:
                run.save_checkpoint(
                    {"step": step + 1, "segmenter": net.state_dict(), "optimizer": optimizer.state_dict()}
                )
            bar.advance(task)
    if processes.is_main:
        net.save(out / "segmenter")
    processes.wait()
    return out / "segmenter"
