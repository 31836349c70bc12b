"""``changeanywhere train detector``: pre-training, fine-tuning, training from scratch; the reference's recipe."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from changeanywhere.errors import ConfigError, EmptySplitError
from changeanywhere.models.detectors import Detector, build_detector
from changeanywhere.models.detectors.folder import load_detector, save_detector
from changeanywhere.models.detectors.pretrained import load_backbone
from changeanywhere.models.first_stage import channels_last
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.progress import progress_bar
from changeanywhere.sample import ChangePair
from changeanywhere.training.batches import loaded
from changeanywhere.training.detection import OHEM, ChangeScores, detection_loss, score_detector
from changeanywhere.training.pair_batches import training_batches, whole_batches
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DetectorRecipe, Recipe
from changeanywhere.training.run import TrainingRun, append_line

Pairs = Sequence[ChangePair] | PairDataset


def start_detector(recipe: DetectorRecipe, init: str | None) -> Detector:
    """Random weights, those of ``init`` (a detector folder), or a backbone from a file."""
    if init is None:
        net = build_detector(recipe.name)
        if recipe.backbone_weights is not None:
            load_backbone(net, Path(recipe.backbone_weights))
        return net
    name, net = load_detector(Path(init))
    if name != recipe.name:
        raise ConfigError(f"{init}: is a {name}; detector.name is {recipe.name}")
    return net


def select_pairs(recipe: DetectorRecipe, split: str | None, listing: str | None = None) -> PairDataset:
    """A split of ``recipe.pairs``, or the part of it that the file ``listing`` names."""
    pairs = load_pairs(recipe.pairs, split)
    if recipe.change_classes:
        pairs = pairs.counting(recipe.change_classes)
    if listing is None:
        return pairs
    try:
        names = [line.strip() for line in Path(listing).read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"{listing}: cannot be read ({error.strerror})") from error
    stems = {Path(name).stem: name for name in pairs.names}
    absent = [name for name in names if Path(name).stem not in stems]
    if absent or not names:
        what = f"{absent[0]} is not in split {split!r} of {recipe.pairs}" if absent else "is empty"
        raise ConfigError(f"{listing}: {what}")
    return pairs.subset([stems[Path(name).stem] for name in names])


def _hash_of(pairs: Pairs) -> str:
    """Of the names of the pairs, in their order: another one would change every step."""
    names = pairs.names if isinstance(pairs, PairDataset) else [pair.key for pair in pairs]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _validation_pairs(settings: DetectorRecipe) -> PairDataset | None:
    """None where the recipe wants none, and, said aloud, where a set of few scenes has none."""
    if settings.val_split is None:
        return None
    try:
        return select_pairs(settings, settings.val_split)
    except EmptySplitError as error:
        print(f"{error}: no weights are selected, the last ones are the result", file=sys.stderr)
        return None


def train_detector(recipe: Recipe, out: Path, train: Pairs | None = None, val: Pairs | None = None) -> Path:
    """Train, or resume, in ``out/training/detector``; returns ``out/detector`` (the last weights).

    With validation pairs the weights of the best F1 are kept apart in ``out/detector_best``.
    """
    recipe.check("detector")
    settings, run_settings = recipe.detector, recipe.run
    if train is None:
        train = select_pairs(settings, settings.train_split, settings.train_list)
        val = _validation_pairs(settings)
    processes = Processes(run_settings)
    rows = processes.rows(settings.batch_size, 1)
    if settings.name.startswith("lightcdnet") and len(rows) < 2:
        raise ConfigError(
            f"detector.batch_size is {settings.batch_size} for {processes.count} process(es); {settings.name} needs "
            "two pairs in each: it normalises pooled features over the batch"
        )
    run = TrainingRun(out / "training" / "detector", "detector", recipe, processes, _hash_of(train))
    torch.manual_seed(run_settings.seed)
    net = channels_last(start_detector(settings, recipe.init).to(processes.device)).train()
    # Fused: on a CPU too the update takes about half the time.
    fused = processes.device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(
        net.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
    )
    state = run.load_checkpoint()
    first_step, best = 0, 0.0  # weights that find nothing are never the best ones
    if state:
        net.load_state_dict(state["detector"])
        optimizer.load_state_dict(state["optimizer"])
        first_step, best = int(state["step"]), float(state["best"])
    batches = training_batches(train, settings, run_settings, first_step, rows)
    with progress_bar(processes.is_main) as bar, run.running(first_step), closing(loaded(batches)) as steps:
        task = bar.add_task("detector", total=settings.num_steps, completed=first_step)
        for step, batch in enumerate(steps, first_step):
            torch.manual_seed((run_settings.seed * 1_000_003 + step) * 64 + processes.rank)  # dropout
            optimizer.param_groups[0]["lr"] = settings.learning_rate * poly(step, settings)
            loss = _loss(net, batch, settings, processes)
            optimizer.zero_grad(set_to_none=True)
            processes.accelerator.backward(loss)
            processes.average_gradients(net.parameters())
            # Not clipped, but watched: a step that breaks the weights must not reach a checkpoint.
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), math.inf)
            optimizer.step()
            run.add({"loss": loss, "gradient_norm": norm})
            log, save = run.due(step, settings.num_steps)
            if log or save:
                values = run.means(step)
                rate = run.log(step, settings.batch_size, values)["images_per_second"]
                bar.update(task, description=f"{settings.name}  loss {values.get('loss', 0):.4f}  {rate:.1f} pairs/s")
            if val is not None and ((step + 1) % settings.val_every == 0 or step + 1 == settings.num_steps):
                best = _validate(net, settings, val, processes, out, step, best)
            if save:
                run.save_checkpoint(
                    {"step": step + 1, "detector": net.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
                )
            bar.advance(task)
    if processes.is_main:
        save_detector(net, settings.name, out / "detector")
    processes.wait()
    return out / "detector"


def poly(step: int, settings: DetectorRecipe) -> float:
    """Linear warm-up, then a straight line to 0 (the reference's polynomial of power 1)."""
    warmup = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    return warmup * (1 - step / settings.num_steps)


def _loss(net: Detector, batch: Sequence[Tensor], settings: DetectorRecipe, processes: Processes) -> Tensor:
    first, second = (x.to(processes.device, memory_format=torch.channels_last, non_blocking=True) for x in batch[:2])
    labels = batch[2].to(processes.device, non_blocking=True)
    with processes.accelerator.autocast():
        heads = net.all_logits(first, second)
    loss = detection_loss(heads[0].float(), labels, OHEM if settings.hard_examples else None)
    for logits in heads[1:]:
        loss = loss + net.auxiliary_weight * detection_loss(logits.float(), labels)
    return loss


def evaluate_detector(
    net: Detector, pairs: Pairs, batch_size: int, device: torch.device, mixed_precision: str = "no"
) -> ChangeScores:
    """Scores over whole pairs."""
    return score_detector(net, whole_batches(pairs, batch_size), device, mixed_precision)


def _validate(
    net: Detector, settings: DetectorRecipe, val: Pairs, processes: Processes, out: Path, step: int, best: float
) -> float:
    """Score on validation pairs; the best weights so far are kept. The test set is never looked at."""
    if not processes.is_main:
        return best
    precision = processes.accelerator.mixed_precision
    scores = evaluate_detector(net, val, settings.batch_size, processes.device, precision)
    append_line(out / "training" / "detector" / "validation.jsonl", {"step": step + 1, **scores.to_dict()})
    if (scores.f1 or 0.0) <= best:
        return best
    save_detector(net, settings.name, out / "detector_best")
    return scores.f1 or 0.0
