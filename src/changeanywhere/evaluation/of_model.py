"""Figures of a model: images painted from masks alone, against the real tiles of those masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from changeanywhere.diffusion.pipeline import ChangePairPipeline, to_uint8
from changeanywhere.evaluation.differences import boundary_contrast
from changeanywhere.evaluation.distances import bootstrap_mean, frechet, kid
from changeanywhere.evaluation.figures import FEWEST, Figure, estimated, share_of_ceiling
from changeanywhere.evaluation.options import EvaluateOptions
from changeanywhere.evaluation.reading import FEATURES, Extractor, Image, Reader, to_tensor
from changeanywhere.evaluation.scores import Confusion, Mask
from changeanywhere.models.first_stage import DOWNSAMPLING
from changeanywhere.models.perceptual import ShiftTolerantLPIPS
from changeanywhere.progress import Progress, silent
from changeanywhere.sample import in_8_bits
from changeanywhere.seeds import stream
from changeanywhere.sources import Source

MIN_JUDGE_IOU = 0.55
"""Below this mean IoU on real images a judge is too weak to speak."""
ASKED_IOU = 0.75
DIVERSITY_MASKS = 24
MIN_REALISM_IMAGES = 1000


def real_tiles(source: Source) -> tuple[list[Image], list[Mask]]:
    """All tiles as 8-bit RGB with their masks."""
    samples = [source.read(i) for i in range(len(source))]
    images = [in_8_bits(sample.pixels()[..., :3]) for sample in samples]
    return images, [sample.mask for sample in samples]


def paint(
    pipe: ChangePairPipeline, masks: list[Mask], seeds: list[int], batch_size: int = 8, num_steps: int | None = None
) -> Iterator[list[Image]]:
    """Images of ``masks``, nothing else given, in batches; ``num_steps``: default the model's."""
    sampling = replace(pipe.default_sampling, free_fraction=0.0)
    if num_steps is not None:
        sampling = replace(sampling, num_steps=num_steps)
    channels = pipe.first_stage.latent_mean.numel()
    for start in range(0, len(masks), batch_size):
        part = torch.from_numpy(np.stack(masks[start : start + batch_size]).astype(np.int64))
        height, width = (side // DOWNSAMPLING for side in part.shape[1:])
        nothing_known = torch.zeros(len(part), channels, height, width)
        everywhere = torch.ones(part.shape, dtype=torch.bool)
        latents = pipe.paint(nothing_known, part, everywhere, seeds[start : start + len(part)], sampling)
        yield list(to_uint8(pipe.decode(latents)[:, :3]))


def evaluate_model(
    pipe: ChangePairPipeline,
    source: Source,
    judge: Reader | None,
    features: Extractor,
    options: EvaluateOptions,
    progress: Progress = silent,
) -> tuple[list[Figure], list[tuple[Mask, Image, Image]]]:
    """Figures, and (mask, real, painted) of the first round of tiles."""
    real, masks = real_tiles(source)
    chosen = [i % len(masks) for i in range(options.num_images)]
    seeds = [options.seed * 1_000_003 + i for i in range(options.num_images)]
    painted: list[Image] = []
    for images in paint(pipe, [masks[i] for i in chosen], seeds, options.batch_size, options.num_steps):
        painted.extend(images)
        progress("painting", len(painted), len(chosen))
    figures = []
    if judge is not None:
        figures += _mask_fidelity(judge, pipe.legend.names, real, masks, painted, [masks[i] for i in chosen])
    figures += _realism(features, real, painted, chosen, options.seed)
    figures += _diversity(pipe, masks, real, painted, options)
    figures += _borders(real, masks, painted, [masks[i] for i in chosen])
    return figures, [(masks[i], real[i], image) for i, image in zip(chosen, painted[: len(masks)], strict=False)]


def _mask_fidelity(
    judge: Reader, names: tuple[str, ...], real: list[Image], masks: list[Mask], painted: list[Image], asked: list[Mask]
) -> list[Figure]:
    section = "mask fidelity, painted from masks alone"
    ours, ceiling = Confusion(len(names)), Confusion(len(names))
    for confusion, images, wanted in ((ceiling, real, masks), (ours, painted, asked)):
        for mask, read in zip(wanted, judge(images), strict=True):
            confusion.add(mask, read)
    classes = ceiling.frequent()
    figures = [
        Figure(
            section,
            "judge's mean IoU on the real tiles",
            ceiling.mean_iou(),
            target=f"at least {MIN_JUDGE_IOU}, else the judge is too weak to speak",
            reached=ceiling.mean_iou() >= MIN_JUDGE_IOU,
            note=f"classes with at least 1 % of the pixels: {', '.join(np.array(names)[classes])}",
        ),
        share_of_ceiling(section, "mean IoU", ours.mean_iou(classes), ceiling.mean_iou(), ASKED_IOU),
    ]
    for name, one, other, frequent in zip(names, ours.iou(), ceiling.iou(), classes, strict=True):
        if frequent:
            figures.append(Figure(section, f"IoU of {name}", float(one), float(other)))
    return [figure.where(*_enough(painted, real)) for figure in figures]


def _enough(painted: Sequence[Image], real: Sequence[Image]) -> list[tuple[int, int, str]]:
    """What a verdict takes."""
    return [(len(painted), FEWEST, "painted images"), (len(real), FEWEST, "real tiles")]


def _realism(
    features: Extractor, real: list[Image], painted: list[Image], mask_of: Sequence[int], seed: int
) -> list[Figure]:
    section = f"realism ({FEATURES})"
    ours, theirs = features(painted), features(real)
    rng = stream("evaluation.masks", seed)
    order = rng.permutation(len(theirs))
    half = len(theirs) // 2
    between = kid(theirs[order[:half]], theirs[order[half:]], seed)
    size = min(half, len(ours))
    note = f"{len(painted)} painted, {len(real)} real images; beside it two halves of the real set"
    if len(painted) < MIN_REALISM_IMAGES:
        note += f"; fewer than {MIN_REALISM_IMAGES:,} painted: a rough figure"
    some = rng.permutation(len(ours))[:size]
    figures = [
        estimated(section, "KID", kid(ours, theirs, seed, groups=np.asarray(mask_of)), between.value, note),
        Figure(
            section,
            "Fréchet distance",
            frechet(ours[some], theirs[order[:size]]),
            frechet(theirs[order[half : half + size]], theirs[order[:size]]),
            note=f"sets of {size}: biased upwards, compare within this line only",
        ),
    ]
    return [figure.where(*_enough(painted, real)) for figure in figures]


def _diversity(
    pipe: ChangePairPipeline, masks: list[Mask], real: list[Image], painted: list[Image], options: EvaluateOptions
) -> list[Figure]:
    """ST-LPIPS between two seeds of one mask; beside it between the real tile and another real tile."""
    number = min(DIVERSITY_MASKS, len(masks), len(painted))
    seeds = [options.seed * 1_000_003 + 500_000 + i for i in range(number)]
    batches = paint(pipe, masks[:number], seeds, options.batch_size, options.num_steps)
    again = [image for images in batches for image in images]
    metric = ShiftTolerantLPIPS()
    with torch.no_grad():
        between = metric(to_tensor(painted[:number]), to_tensor(again)).numpy().astype(float)
        others = metric(to_tensor(real[:number]), to_tensor(real[1:number] + real[:1])).numpy().astype(float)
    note = f"ST-LPIPS, {number} masks; beside it between different real tiles"
    figure = estimated(
        "diversity", "between two seeds of one mask", bootstrap_mean(between, options.seed), others.mean(), note
    )
    return [figure.where((number, FEWEST, "masks"))]


def _borders(real: list[Image], masks: list[Mask], painted: list[Image], asked: list[Mask]) -> list[Figure]:
    """Contrast at the borders of the most frequent class of each mask."""
    contrasts = []
    for images, wanted in ((painted, asked), (real, masks)):
        values = []
        for image, mask in zip(images, wanted, strict=True):
            counts = np.bincount(mask.ravel(), minlength=2)
            counts[0] = 0
            value = boundary_contrast(image, mask == counts.argmax())
            if value is not None:
                values.append(value)
        contrasts.append(float(np.median(values)) if values else float("nan"))
    note = "median of gradient on the border over gradient 4 to 12 px away; edges as sharp as real ones = equal"
    figure = Figure("borders", "contrast at class borders", contrasts[0], contrasts[1], note=note)
    return [figure.where(*_enough(painted, real))]
