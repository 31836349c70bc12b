"""``changeanywhere generate``: plan → shards → dataset.

    read tiles ─► simulate (events) ─► encode ─► blended diffusion ─► decode ─► files on threads ─► shards/N.json

A shard's marker is written last, with the files and their hashes: a shard without marker does not exist.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from changeanywhere.diffusion.blended import Sampling
from changeanywhere.diffusion.pipeline import ChangePairPipeline, default_device, default_dtype, to_uint8
from changeanywhere.errors import ConfigError, ShortfallError
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.plan import DatasetPlan, PlannedPair, change_of, settings_of
from changeanywhere.generation.prepare import event_settings, get_plan, locked, open_tiles, plan_settings
from changeanywhere.pairs.layout import atomic_write
from changeanywhere.pairs.split import assign_splits
from changeanywhere.pairs.writer import finalise, pair_record, write_pair
from changeanywhere.progress import progress_bar
from changeanywhere.sample import ChangePair, ChangePlan, SourceSample

WRITER_THREADS = 2
DRY_RUN_BATCHES = 2  # the first warms up, the second is timed
SAMPLING_FIELDS = tuple(asdict(Sampling()))


@dataclass(frozen=True)
class GenerateReport:
    """What a call of :func:`generate` did."""

    out: Path
    num_pairs: int
    """Pairs in the dataset now."""
    num_new: int
    """Pairs that this call painted."""
    pairs_per_second: float
    """Of this call, from the first batch to the last file; 0 if there was nothing to do."""

    reached: list[tuple[str, float, float]]
    """(target, share asked, share reached)."""

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.out / "report.html"


@dataclass(frozen=True)
class DryRun:
    """What a run would make."""

    num_pairs: int
    missing: Mapping[str, int]
    num_bytes: int
    seconds: float


class Generator:
    """A model, a source and a plan: paints planned pairs."""

    def __init__(self, options: GenerateOptions) -> None:
        options.check()
        self.options = options
        tiles = open_tiles(options, stretch=options.stretch)  # before the model: cheap, and most mistakes are here
        begun = settings_of(options.out)
        self.num_threads = int(options.num_threads or begun.get("num_threads") or os.cpu_count() or 1)
        torch.set_num_threads(self.num_threads)
        device = torch.device(options.device) if options.device else default_device()
        self.dtype = str(options.dtype or begun.get("dtype") or default_dtype(device))
        self.pipeline = ChangePairPipeline.from_pretrained(options.model, str(device), self.dtype)
        given = {name: getattr(options, name, None) for name in SAMPLING_FIELDS}
        self.sampling = replace(
            self.pipeline.default_sampling, **{name: value for name, value in given.items() if value is not None}
        )
        self.pipeline.check_sampling(self.sampling)
        multiple = self.pipeline.denoiser.size_multiple
        if options.tile_size % multiple:
            raise ConfigError(f"tile_size is {options.tile_size}; this model allows multiples of {multiple}")
        self.source = tiles.with_legend(self.pipeline.legend, options.legend_map)
        self.second = (
            open_tiles(options, options.masks_t2).with_legend(self.pipeline.legend, options.legend_map)
            if options.masks_t2
            else None
        )
        self.events = event_settings(options, self.source)
        self.splits = assign_splits({item.scene: item.split for item in self.source.items})
        self.settings = asdict(self.sampling) | {
            "image_format": options.image_format,
            "dtype": self.dtype,
            "batch_size": options.batch_size,
            "num_threads": self.num_threads,
            "stretch": options.stretch,
        }
        self.versions = {name: metadata.version(name) for name in ("changeanywhere", "torch", "diffusers", "numpy")}

    def frozen_settings(self) -> dict[str, Any]:
        """Everything that the dataset's bytes depend on."""
        second = [item.key for item in self.second.items] if self.second else None
        return (
            plan_settings(self.options, self.source)
            | self.settings
            | {
                "model_hash": self.pipeline.model.weights_hash,
                "masks_t2": second,
            }
        )

    def paint(self, pairs: Sequence[PlannedPair]) -> list[ChangePair]:
        """Read, change and paint one batch."""
        samples = [self.source.read(pair.source_index) for pair in pairs]
        plans = [change_of(pair, self.source, self.second, self.events) for pair in pairs]
        images = np.stack([s.normalisation.apply(s.image).clip(-1, 1) for s in samples])
        latents = self.pipeline.encode(torch.from_numpy(images).permute(0, 3, 1, 2))
        masks = torch.from_numpy(np.stack([plan.mask_t2 for plan in plans]).astype(np.int64))
        changes = torch.from_numpy(np.stack([plan.change_mask for plan in plans]))
        painted = self.pipeline.paint(latents, masks, changes, [pair.seed for pair in pairs], self.sampling)
        decoded = self.pipeline.decode(painted).cpu()
        return [self._pair(*together) for together in zip(pairs, samples, plans, images, decoded, strict=True)]

    def _pair(
        self, planned: PlannedPair, sample: SourceSample, plan: ChangePlan, image_t1: Any, image_t2: torch.Tensor
    ) -> ChangePair:
        if self.options.image_format == "geotiff":
            first = sample.image
            second = sample.normalisation.invert(image_t2.permute(1, 2, 0).numpy(), sample.image.dtype)
        else:
            first = to_uint8(torch.from_numpy(image_t1).permute(2, 0, 1)[None])[0]
            second = to_uint8(image_t2[None])[0]
        pair = ChangePair(
            key=planned.key,
            image_t1=first,
            image_t2=second,
            change_mask=plan.change_mask,
            mask_t1=sample.mask,
            mask_t2=plan.mask_t2,
            georef=sample.georef,
        )
        record = pair_record(
            pair,
            legend=self.pipeline.legend,
            item=sample.item,
            plan=plan,
            source=self.source.name,
            split=self.splits[sample.item.scene],
            image_format=cast(Literal["png", "geotiff"], self.options.image_format),
            bands=list(sample.bands),
            normalisation=asdict(sample.normalisation),
            model=Path(self.options.model).name,
            model_hash=self.pipeline.model.weights_hash,
            settings=self.settings,
            versions=self.versions,
        )
        return replace(pair, metadata=record)

    def batches(self, shard: Sequence[PlannedPair]) -> Iterator[Sequence[PlannedPair]]:
        """A shard in batches; a pair's batch is part of the plan, since sums depend on it in the last bits."""
        for start in range(0, len(shard), self.options.batch_size):
            yield shard[start : start + self.options.batch_size]


def generate(options: GenerateOptions) -> GenerateReport:
    """Make, or finish, the dataset in ``options.out``.

    Raises :class:`InputError` for what the user gave wrong and :class:`ShortfallError`, after writing all that could
    be made, if fewer changes are feasible than asked for.
    """
    generator = Generator(options)
    with locked(options.out):
        plan = get_plan(
            options, generator.frozen_settings(), generator.source, generator.second, generator.events, save=True
        )
        shards = plan.shards()
        open_shards = [n for n in range(len(shards)) if not _shard_is_done(options.out, n)]
        num_new = sum(len(shards[n]) for n in open_shards)
        started = time.perf_counter()
        with progress_bar() as bar, ThreadPoolExecutor(WRITER_THREADS) as threads:
            task = bar.add_task("painting pairs", total=len(plan.pairs), completed=len(plan.pairs) - num_new)
            done = 0
            for number in open_shards:
                writes: list[tuple[ChangePair, Future[dict[str, str]]]] = []
                for batch in generator.batches(shards[number]):
                    for pair in generator.paint(batch):
                        writes.append((pair, threads.submit(_write, options, generator, pair)))
                    done += len(batch)
                    rate = done / (time.perf_counter() - started)
                    bar.update(task, advance=len(batch), description=f"painting pairs  {rate:.2f}/s")
                _close_shard(options.out, number, writes)
        seconds = time.perf_counter() - started
        if open_shards or not (options.out / "report.html").is_file():
            records = _records(options.out, len(shards))
            finalise(options.out, generator.pipeline.legend, records, options.targets.reached(records))
        reached = options.targets.reached(_records(options.out, len(shards)))
    _raise_on_shortfall(plan, options.out)
    return GenerateReport(options.out, len(plan.pairs), num_new, num_new / seconds if num_new else 0.0, reached)


def dry_run(options: GenerateOptions) -> DryRun:
    """Plan, paint two batches without writing them, and extrapolate from the second."""
    generator = Generator(options)
    plan = get_plan(
        options, generator.frozen_settings(), generator.source, generator.second, generator.events, save=False
    )
    _raise_on_empty(plan, options.out)
    batches = [batch for shard in plan.shards() for batch in generator.batches(shard)]
    seconds, painted = 0.0, []
    for batch in (batches * DRY_RUN_BATCHES)[:DRY_RUN_BATCHES]:
        started = time.perf_counter()
        painted = generator.paint(batch)
        seconds = (time.perf_counter() - started) / len(batch)
    with tempfile.TemporaryDirectory() as folder:
        for pair in painted:
            _write(options, generator, pair, Path(folder))
        num_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    total = len(plan.pairs)
    return DryRun(total, plan.missing, num_bytes * total // len(painted), seconds * total)


def _write(
    options: GenerateOptions, generator: Generator, pair: ChangePair, folder: Path | None = None
) -> dict[str, str]:
    image_format = cast(Literal["png", "geotiff"], options.image_format)
    return write_pair(folder or options.out, pair, generator.pipeline.legend, image_format)


def _marker(out: Path, number: int) -> Path:
    return out / "shards" / f"{number:05d}.json"


def _shard_is_done(out: Path, number: int) -> bool:
    """Its marker is there and so are its files."""
    try:
        content = json.loads(_marker(out, number).read_text())
        return all((out / name).is_file() for name in content["files"])
    except (OSError, ValueError, KeyError):
        return False


def _close_shard(out: Path, number: int, writes: list[tuple[ChangePair, Future[dict[str, str]]]]) -> None:
    files: dict[str, str] = {}
    for _, future in writes:
        files |= future.result()
    content = {"files": files, "records": [pair.metadata for pair, _ in writes]}
    atomic_write(_marker(out, number), (json.dumps(content) + "\n").encode())


def _records(out: Path, num_shards: int) -> list[dict[str, Any]]:
    return [record for n in range(num_shards) for record in json.loads(_marker(out, n).read_text())["records"]]


def _raise_on_empty(plan: DatasetPlan, out: Path) -> None:
    if not plan.pairs:
        raise ShortfallError(f"{out}: no change is feasible in any tile of the source; see 'kinds' and 'min_area'")


def _raise_on_shortfall(plan: DatasetPlan, out: Path) -> None:
    _raise_on_empty(plan, out)
    if plan.missing:
        parts = ", ".join(f"{count} {kind}" for kind, count in plan.missing.items())
        asked = len(plan.pairs) + sum(plan.missing.values())
        raise ShortfallError(f"{out}: {len(plan.pairs)} of {asked} pairs; missing: {parts}")
