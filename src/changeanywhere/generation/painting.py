"""Builds the painter of a job: the method's own, with what reads and reconstructs around it."""

from __future__ import annotations

from dataclasses import replace

import torch

from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.generation.fidelity import FidelityFilter, Filtered
from changeanywhere.generation.job import Job
from changeanywhere.models.info import DOWNSAMPLING
from changeanywhere.painters.base import Painter, PainterSettings
from changeanywhere.painters.checked import Checked
from changeanywhere.painters.diffusion import DiffusionPainter, Reconstructed
from changeanywhere.painters.registry import OWN, find_painter

GPU_BATCHES = (64, 48, 32, 24, 16, 8, 4, 2)


def build_painter(job: Job) -> tuple[Painter, Job]:
    """See :func:`changeanywhere.generation.generate.painter_of`."""
    choice, machine, options = job.painter, job.machine, job.source.options
    assert choice is not None and machine is not None and options.tile_size and options.bands
    legend = job.tiles.source.legend
    kind = find_painter(choice.method)
    settings = PainterSettings(
        model=choice.model,
        legend=legend,
        tile_size=options.tile_size,
        bands=options.bands,
        sampling=job.sampling or Sampling(),
        device=machine.device,
        dtype=machine.dtype,
        compile=machine.compile,
        options=choice.options,
        critic=choice.critic,
    )
    built = kind.build(settings)
    painter: Painter = built if choice.method in OWN else Checked(built, choice.method)
    if not machine.batch_size:
        if isinstance(built, DiffusionPainter):
            size = fitting_batch_size(built.pipeline, settings.sampling, settings.tile_size)
        else:
            size = GPU_BATCHES[-2]
        job = replace(job, machine=replace(machine, batch_size=size)).opened_with(job.tiles)
    finishing = job.finishing
    if finishing.reconstruct_t1:
        if isinstance(built, DiffusionPainter):
            pipeline = built.pipeline
        else:
            pipeline = ChangePairPipeline.from_pretrained(choice.model, machine.device, machine.dtype)
        painter = Reconstructed(painter, pipeline, kind.reconstructs)
    if finishing.filter.model is not None:
        reader = FidelityFilter(finishing.filter.model, legend, settings.tile_size, torch.device(machine.device))
        painter = Filtered(painter, reader, finishing.filter)
    return painter, job


def fitting_batch_size(pipeline: ChangePairPipeline, sampling: Sampling, tile_size: int) -> int:
    """Pairs that a GPU's memory takes at once, found by painting; on the CPU 4 (more is no faster)."""
    side = tile_size // DOWNSAMPLING
    for size in GPU_BATCHES:
        latents = torch.zeros(size, pipeline.first_stage.latent_mean.numel(), side, side)
        masks = torch.zeros(size, tile_size, tile_size, dtype=torch.int64)
        try:
            pipeline.decode(pipeline.paint(latents, masks, masks > 0, range(size), replace(sampling, num_steps=2)))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        return size
    return 1
