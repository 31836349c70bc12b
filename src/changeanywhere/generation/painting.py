"""Builds the painter of a job: the method's own, with what reads and reconstructs around it."""

from __future__ import annotations

from dataclasses import replace

import torch

from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.generation.fidelity import FidelityFilter, Filtered
from changeanywhere.generation.job import Job
from changeanywhere.models.info import DOWNSAMPLING, find_folder
from changeanywhere.painters.base import Painter, PainterSettings
from changeanywhere.painters.checked import Checked
from changeanywhere.painters.diffusion import DiffusionPainter, Reconstructed
from changeanywhere.painters.registry import OWN, find_painter
from changeanywhere.storage import address_of

GPU_BATCHES = (64, 48, 32, 24, 16, 8, 4, 2)
PROBED = 4
"""Pairs by which the memory of one is measured."""
MEMORY_SHARE = 0.6
"""Of what is free: what the calls of a batch keep between them, workspaces and fragments have the rest."""


def build_painter(job: Job) -> tuple[Painter, Job]:
    """See :func:`changeanywhere.generation.generate.painter_of`."""
    choice, machine, options = job.painter, job.machine, job.source.options
    assert choice is not None and machine is not None and options.tile_size and options.bands
    legend = job.tiles.source.legend
    kind = find_painter(choice.method)
    at_address = choice.method not in OWN and address_of(choice.model) is not None
    settings = PainterSettings(
        model=str(find_folder(choice.model)) if at_address else choice.model,  # others' painters know no addresses
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
    """Pairs that a GPU's memory takes at once, from what single calls of the networks take."""
    device = pipeline.device
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + held
    each = memory_per_pair(pipeline, sampling, tile_size)
    return next((size for size in GPU_BATCHES if size * each <= MEMORY_SHARE * free), 1)


def memory_per_pair(pipeline: ChangePairPipeline, sampling: Sampling, tile_size: int) -> float:
    """Bytes of a GPU that the largest call needs for a pair: encoder, denoiser or decoder, on whole tiles."""
    device, side = pipeline.device, tile_size // DOWNSAMPLING
    bands, channels = pipeline.first_stage.vq_model.config.in_channels, pipeline.first_stage.latent_mean.numel()
    branches = 1 if sampling.guidance_scale == 1 else 2
    count, before = PROBED * branches, torch.cuda.memory_allocated(device)
    latents = torch.zeros(count, channels, side, side, device=device)
    masks = torch.zeros(count, tile_size, tile_size, dtype=torch.int64)
    torch.cuda.reset_peak_memory_stats(device)
    pipeline.encode(torch.zeros(PROBED, bands, tile_size, tile_size))
    pipeline.predict_noise(latents, torch.zeros(count, dtype=torch.int64), masks)
    pipeline.decode(latents[:PROBED])
    return (torch.cuda.max_memory_allocated(device) - before) / PROBED
