"""A model, a source and settings: paints planned pairs.

read: tiles, events  ─►  paint: encode ─► blended diffusion ─► decode ─► filter  ─►  finish: pairs with their records
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from changeanywhere.diffusion.blended import Sampling
from changeanywhere.diffusion.pipeline import ChangePairPipeline, default_dtype, find_device
from changeanywhere.errors import ConfigError
from changeanywhere.events import pair_seed
from changeanywhere.generation.fidelity import FidelityFilter
from changeanywhere.generation.finish import Finished, exchange, finish
from changeanywhere.generation.nuisances import Pixels
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.plan import PlannedPair, change_of, settings_of
from changeanywhere.generation.prepare import event_settings, open_tiles, plan_settings
from changeanywhere.generation.rivals import Donors, paint_rival
from changeanywhere.models.first_stage import DOWNSAMPLING
from changeanywhere.pairs.split import assign_splits
from changeanywhere.pairs.writer import pair_record
from changeanywhere.sample import ChangePair, ChangePlan, SourceItem, SourceSample
from changeanywhere.sources.options import DEFAULT_BANDS, DEFAULT_STRETCH, DEFAULT_TILE_SIZE

CPU_BATCH = 4
GPU_BATCHES = (64, 48, 32, 24, 16, 8, 4, 2)
SAMPLING_FIELDS = tuple(asdict(Sampling()))


@dataclass(frozen=True)
class Batch:
    """What is painted together."""

    pairs: list[PlannedPair]
    samples: list[SourceSample]
    plans: list[ChangePlan]
    pixels: Tensor
    """The tiles, each once: f32 ``[N, C, H, W]`` in [-1, 1]."""
    rows: list[int]
    """Row in ``pixels`` of each pair's tile."""


@dataclass
class Painting:
    """One pair on its way: what is asked, what is real, what was painted."""

    planned: PlannedPair
    sample: SourceSample
    plan: ChangePlan
    image_t1: Tensor
    """f32 ``[C, H, W]`` in [-1, 1]."""
    image_t2: Tensor
    score: float | None = None
    """Share of changed ground that the filter reads as its new class."""
    attempt: int = 0
    """Which painting was kept, counted from 0."""
    donors: Sequence[SourceItem] = ()
    """Other tiles whose pixels are in it (``copy_paste``, ``patch_exchange``)."""


class Painter:
    """A model, a source and a plan: paints planned pairs."""

    def __init__(self, options: GenerateOptions) -> None:
        options.check()
        self.options = options
        tile_size = options.tile_size or DEFAULT_TILE_SIZE
        tiles = open_tiles(options)  # before the model: cheap, and most mistakes are here
        begun = settings_of(options.out)
        self.num_threads = int(options.num_threads or begun.get("num_threads") or os.cpu_count() or 1)
        torch.set_num_threads(self.num_threads)
        device = find_device(options.device)
        self.dtype = str(options.dtype or begun.get("dtype") or default_dtype(device))
        self.pipeline = ChangePairPipeline.from_pretrained(options.model, str(device), self.dtype)
        given = {name: getattr(options, name, None) for name in SAMPLING_FIELDS}
        self.sampling = replace(
            self.pipeline.default_sampling, **{name: value for name, value in given.items() if value is not None}
        )
        self.pipeline.check_sampling(self.sampling)
        if options.compile:
            self.pipeline.denoiser.unet.compile()
        self.batch_size = int(
            options.batch_size or begun.get("batch_size") or fitting_batch_size(self.pipeline, self.sampling, tile_size)
        )
        channels, bands = self.pipeline.first_stage.vq_model.config.in_channels, options.bands or DEFAULT_BANDS
        if len(bands) != channels:
            raise ConfigError(f"bands is {list(bands)}; this model takes {channels}")
        if options.image_format == "png" and channels != 3:
            raise ConfigError(f"image_format is 'png'; allowed for a model of {channels} band(s): geotiff")
        multiple = self.pipeline.denoiser.size_multiple
        if tile_size % multiple:
            raise ConfigError(f"tile_size is {tile_size}; this model allows multiples of {multiple}")
        self.source = tiles.with_legend(self.pipeline.legend, options.legend_map)
        self.second = (
            open_tiles(options, options.masks_t2).with_legend(self.pipeline.legend, options.legend_map)
            if options.masks_t2
            else None
        )
        self.skipped = tuple(dict.fromkeys((*self.source.skipped, *(self.second.skipped if self.second else ()))))
        self.filter = (
            FidelityFilter(options.filter.model, self.pipeline.legend, tile_size, device)
            if options.filter.model
            else None
        )
        if options.nuisances.jpeg != [0, 0] and self.pipeline.first_stage.vq_model.config.in_channels != 3:
            raise ConfigError(f"nuisances.jpeg is {options.nuisances.jpeg}; allowed for images of three bands only")
        self.events = event_settings(options, self.source)
        self.splits = assign_splits({item.scene: item.split for item in self.source.items})
        self._of_split: dict[str, list[int]] = {}
        for index, item in enumerate(self.source.items):
            self._of_split.setdefault(self.splits[item.scene], []).append(index)
        self.settings = asdict(self.sampling) | {
            "image_format": options.image_format,
            "device": device.type,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "num_threads": self.num_threads,
            "compile": options.compile,
            "stretch": list(options.stretch or DEFAULT_STRETCH),
            "method": options.method,
            "reconstruct_t1": options.reconstruct_t1,
            "paste_back": options.paste_back,
            "random_order": options.random_order,
            "nuisances": asdict(options.nuisances),
            "filter": None if self.filter is None else asdict(options.filter) | {"model": self.filter.hash},
        }
        self.versions = {name: metadata.version(name) for name in ("changeanywhere", "torch", "diffusers", "numpy")}

    def frozen_settings(self) -> dict[str, Any]:
        """Everything that the dataset's bytes depend on."""
        return (
            plan_settings(self.options, self.source)
            | {"shard_size": self.options.shard_size}
            | self.settings
            | {
                "model_hash": self.pipeline.model.weights_hash,
                "masks_t2": self.second and self.second.fingerprint(),
            }
        )

    def read(self, pairs: Sequence[PlannedPair]) -> Batch:
        """Tiles and changes of one batch. Runs on a thread ahead of the device."""
        tiles = {pair.source_index: self.source.read(pair.source_index) for pair in pairs}
        plans = [change_of(pair, self.source, self.second, self.events) for pair in pairs]
        images = np.stack([s.pixels() for s in tiles.values()])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        if self.pipeline.device.type == "cuda":
            pixels = pixels.pin_memory()
        order = {index: row for row, index in enumerate(tiles)}
        rows = [order[pair.source_index] for pair in pairs]
        return Batch(list(pairs), [tiles[pair.source_index] for pair in pairs], plans, pixels, rows)

    def paint(self, batch: Batch) -> list[Painting]:
        """Paint and filter one batch; pairs that the filter drops are left out."""
        samples, plans, pixels = batch.samples, batch.plans, batch.pixels
        donors: list[list[SourceItem]] = [[] for _ in samples]
        needed = self.options.method == "diffusion" or self.options.reconstruct_t1
        latents = self.pipeline.encode(pixels) if needed else None  # once per tile, however many pairs it has
        if self.options.reconstruct_t1 and latents is not None:
            pixels = self.pipeline.decode(latents).cpu()
        if self.options.method == "diffusion" and latents is not None:
            latents = latents[batch.rows]
            painted = self._draw(latents, plans, [pair.seed for pair in batch.pairs])
        else:
            givers = [Donors(self.source, self._of_split[self.splits[sample.item.scene]]) for sample in samples]
            rivals = [paint_rival(self.options.method, *job) for job in zip(samples, plans, givers, strict=True)]
            donors = [giver.used for giver in givers]
            plans = [plan for _, plan in rivals]
            painted = torch.from_numpy(np.stack([image for image, _ in rivals])).permute(0, 3, 1, 2)
            if self.options.reconstruct_t1:  # else date 1 alone would have the first stage's look
                painted = self.pipeline.decode(self.pipeline.encode(painted)).cpu()
        parts = zip(batch.pairs, samples, plans, pixels[batch.rows], painted, strict=True)
        paintings = [Painting(*part, donors=own) for part, own in zip(parts, donors, strict=True)]
        if self.filter is not None:
            paintings = self._filtered(paintings, latents, self.filter)
        return paintings

    def _draw(self, latents: Tensor, plans: Sequence[ChangePlan], seeds: Sequence[int]) -> Tensor:
        """Images t2 f32 ``[B, C, H, W]``, on the CPU."""
        masks = torch.from_numpy(np.stack([plan.mask_t2 for plan in plans]).astype(np.int64))
        changes = torch.from_numpy(np.stack([plan.change_mask for plan in plans]))
        return self.pipeline.decode(self.pipeline.paint(latents, masks, changes, seeds, self.sampling)).cpu()

    def _filtered(self, batch: list[Painting], latents: Tensor | None, fidelity: FidelityFilter) -> list[Painting]:
        """Scores; poor pairs are painted again with other noise, or left out, as the options say."""
        settings = self.options.filter
        scores = fidelity.scores(torch.stack([p.image_t2 for p in batch]), [p.plan for p in batch])
        for painting, score in zip(batch, scores, strict=True):
            painting.score = score

        def is_poor(painting: Painting) -> bool:
            return painting.score is not None and painting.score < settings.min_score

        for attempt in range(1, settings.attempts if settings.action == "resample" else 1):
            chosen = [i for i, painting in enumerate(batch) if is_poor(painting)]
            if not chosen:
                break
            plans = [batch[i].plan for i in chosen]
            assert latents is not None  # only diffusion resamples, says GenerateOptions.check
            images = self._draw(latents[chosen], plans, [pair_seed(p.seed, "attempt", attempt) for p in plans])
            for i, image, score in zip(chosen, images, fidelity.scores(images, plans), strict=True):
                if (score or 0) > (batch[i].score or 0):
                    batch[i] = replace(batch[i], image_t2=image, score=score, attempt=attempt)
        return batch if settings.action == "score" else [p for p in batch if not is_poor(p)]

    def _other_tile(self, rng: np.random.Generator) -> Pixels:
        sample = self.source.read(int(rng.integers(len(self.source))))
        return _shares(sample.pixels())

    def finish(self, painting: Painting) -> ChangePair:
        """Paste-back, nuisances, order of the dates, record. Runs on a thread behind the device."""
        options, sample, plan = self.options, painting.sample, painting.plan
        finished = finish(
            _shares(painting.image_t1.permute(1, 2, 0).numpy()),
            _shares(painting.image_t2.permute(1, 2, 0).numpy().clip(-1, 1)),
            plan.change_mask,
            plan.seed,
            options.paste_back,
            options.random_order,
            options.nuisances,
            self._other_tile,
        )
        masks = sample.mask, plan.mask_t2
        if finished.real_date == 2:
            masks, plan = masks[::-1], exchange(sample.mask, plan)
        first, second = self._in_file_units(finished, sample)
        pair = ChangePair(
            key=painting.planned.key,
            image_t1=first,
            image_t2=second,
            change_mask=plan.change_mask,
            mask_t1=masks[0],
            mask_t2=masks[1],
            georef=sample.georef,
        )
        record = pair_record(
            pair,
            legend=self.pipeline.legend,
            item=_credited(sample.item, painting.donors),
            plan=plan,
            source=self.source.name,
            split=self.splits[sample.item.scene],
            image_format=cast(Literal["png", "geotiff"], options.image_format),
            bands=list(sample.bands),
            normalisation=asdict(sample.normalisation),
            model=Path(options.model).name,
            model_hash=self.pipeline.model.weights_hash,
            settings=self.settings,
            versions=self.versions,
            finishing={
                "real_date": finished.real_date,
                "nuisances": finished.nuisances,
                "fidelity": painting.score,
                "attempt": painting.attempt,
                "donors": [item.key for item in painting.donors],
            },
        )
        return replace(pair, metadata=record)

    def _in_file_units(self, finished: Finished, sample: SourceSample) -> list[Any]:
        """Images of both dates as they are written: uint8 for PNG, else the source's units and dtype."""
        images: list[Any] = []
        for date, image in ((1, finished.image_t1), (2, finished.image_t2)):
            touched = self.options.reconstruct_t1 or f"t{date}" in finished.nuisances
            if self.options.image_format == "png":
                images.append(np.rint(image * 255).astype(np.uint8))
                continue
            written = sample.normalisation.invert(image * 2 - 1, sample.image.dtype)
            if not touched:  # real pixels are written as they were read, with what lies beyond the stretch
                real = _shares(sample.pixels()) == image
                written[real] = sample.image[real]
            images.append(written)
        return images


def fitting_batch_size(pipeline: ChangePairPipeline, sampling: Sampling, tile_size: int) -> int:
    """Pairs that a GPU's memory takes at once, found by painting; on the CPU 4 (more is no faster)."""
    if pipeline.device.type == "cpu":
        return CPU_BATCH
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


def _credited(item: SourceItem, donors: Sequence[SourceItem]) -> SourceItem:
    """With the licences and credits of all whose pixels a pair has; licences as an SPDX expression."""
    licences = dict.fromkeys([item.licence, *(donor.licence for donor in donors)])
    credits = dict.fromkeys(filter(None, [item.attribution, *(donor.attribution for donor in donors)]))
    return replace(item, licence=" AND ".join(licences), attribution="; ".join(credits))


def _shares(image: Pixels) -> Pixels:
    """[-1, 1] → [0, 1]."""
    shares: Pixels = (image + 1) / np.float32(2)
    return shares
