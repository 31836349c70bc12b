"""Where the time of generate goes: ms per pair of each stage, operations, and their share of the measured ceiling.

    python benchmarks/profile_generate.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0
    python benchmarks/profile_generate.py --source ../shared/data/landcover/val --config recipes/paper.yaml --pairs 4

First the stages one after the other on one thread, so that each has the machine to itself; then ``generate`` as it is,
with what works ahead of and behind the device: "waiting" is wall time in which nothing is being painted. On a GPU: the
share of that time in which a kernel ran, and the gaps between kernels by length. Then what the host alone could feed a
device (benchmarks/host_stages.py). With --config the networks are those of a recipe, with random weights. The ceiling:
a large matrix product and a large convolution in the same precision.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from changeanywhere.diffusion.pipeline import DTYPES, ChangePairPipeline
from changeanywhere.generation import shard
from changeanywhere.generation.finish import finished_pair
from changeanywhere.generation.generate import generate, painter_of, threads_of
from changeanywhere.generation.job import Job
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.plan import PlannedPair, load_shard
from changeanywhere.generation.prepare import get_plan, job_of
from changeanywhere.generation.shard import read
from changeanywhere.generation.speed import Clock
from changeanywhere.legend import load_legend
from changeanywhere.models import packed
from changeanywhere.models.first_stage import FirstStage, build_vq_model
from changeanywhere.models.folder import Model, noise_schedule, save_model
from changeanywhere.painters import diffusion
from changeanywhere.painters.diffusion import DiffusionPainter
from changeanywhere.pairs.writer import write_pair
from changeanywhere.progress import silent
from changeanywhere.storage import LocalStore
from changeanywhere.training.denoiser import build_denoiser
from host_stages import add_host, print_host
from tiles import add_source, tile_size_of
from training import ceiling, gaps_between, read_recipe, watched

STAGES = ("reading", "events", "exemplars", "encode", "UNet", "blending and solver", "decode", "finish", "PNG", "files")


GAPS = (("below 20 µs", 0, 2e4), ("20 µs to 1 ms", 2e4, 1e6), ("1 to 20 ms", 1e6, 2e7), ("above 20 ms", 2e7, 1e18))
"""Between two kernels, ns: launches; the host inside a batch; between two batches; waiting for files."""


def random_model(config: Path, folder: Path) -> str:
    """A model folder with the networks of a recipe and random weights."""
    recipe = read_recipe(config)
    fs, legend = recipe.first_stage, load_legend("mini")
    vq_model = build_vq_model(
        fs.channels, fs.layers_per_block, fs.num_codes, fs.latent_channels, fs.norm_groups, fs.mid_attention
    )
    denoiser = build_denoiser(recipe.denoiser, legend.num_classes, fs.latent_channels)
    first_stage = FirstStage(vq_model, [0.0] * fs.latent_channels, [1.0] * fs.latent_channels)
    schedule = noise_schedule(recipe.denoiser.prediction_type)
    save_model(Model(first_stage, denoiser, schedule, legend, 0.1, recipe.data.tile_size), folder, torch.float16)
    return str(folder)


class TimedStore(LocalStore):
    """A folder whose writes add to the clock."""

    def __init__(self, root: Path, clock: Clock) -> None:
        super().__init__(root)
        self._clock = clock

    def put(self, name: str, content: bytes) -> None:
        """See :class:`LocalStore`."""
        self._clock.timed("files", super().put)(name, content)


@contextmanager
def instrumented(clock: Clock, job: Job, painter: DiffusionPainter) -> Iterator[None]:
    """Every stage of this painter adds to the clock."""
    pipeline = painter.pipeline
    parts = [
        (job.tiles.source, "read", "reading"),
        (shard, "change_of", "events"),
        (pipeline, "encode", "encode"),
        (shard, "exemplars_of", "exemplars"),
        (diffusion, "paint_latents", "blended sampling, UNet included"),
        (diffusion, "paint_from_exemplars", "blended sampling, UNet included"),
        (pipeline, "decode", "decode"),
        (pipeline.denoiser, "forward", "UNet"),
    ]
    patches = [patch.object(owner, name, clock.timed(stage, getattr(owner, name))) for owner, name, stage in parts]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def operations(pipeline: ChangePairPipeline, size: int) -> dict[str, float]:
    """Operations (multiply-adds count two) per pair and call of the three networks, at tiles of ``size`` px."""
    latents = torch.zeros(1, pipeline.first_stage.latent_mean.numel(), size // 4, size // 4)
    masks = torch.ones(1, size, size, dtype=torch.int64)
    works: dict[str, Callable[[], Any]] = {
        "encode": lambda: pipeline.encode(torch.zeros(1, 3, size, size)),
        "UNet": lambda: pipeline.predict_noise(latents, torch.zeros(1, dtype=torch.int64), masks),
        "decode": lambda: pipeline.decode(latents),
    }
    counts = {}
    for name, work in works.items():
        # Counted are torch's own operators, not those of kernels that are laid out already.
        with patch.object(packed, "MOST_PLACES", 0), FlopCounterMode(display=False) as counter:
            work()
        counts[name] = float(counter.get_total_flops())
    return counts


def timed_stages(clock: Clock, job: Job, painter: DiffusionPainter, batches: Sequence[Sequence[PlannedPair]]) -> None:
    """Every batch on this thread, stage after stage, from the tiles to the files."""
    legend, provenance = job.tiles.source.legend, job.provenance
    finish, write = clock.timed("finish", finished_pair), clock.timed("PNG and files", write_pair)
    with tempfile.TemporaryDirectory() as folder, instrumented(clock, job, painter):
        store = TimedStore(Path(folder), clock)
        for pairs in batches:
            batch = read(job, pairs)
            for painting in painter.paint(batch):
                pair, _ = finish(job, pairs[painting.place].key, painting, batch.samples[painting.place], provenance)
                write(store, pair, legend, job.finishing.files)


def profile(options: GenerateOptions, shrink: int) -> None:
    """Print the table of one model."""
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        job = job_of(options, store, silent)
        with threads_of(job):
            built, job = painter_of(job)
            assert isinstance(built, DiffusionPainter) and job.machine is not None
            plan = get_plan(job, store, silent)
            shards = [load_shard(store, number) for number in range(plan.num_shards)]
            batches = [batch for each in shards for batch in each.batches(job.machine.batch_size)]
            built.paint(read(job, batches[0]))  # warm-up
            alone = print_stages(job, built, batches, plan.num_pairs, shrink)
    whole(options, alone)


def print_stages(
    job: Job, painter: DiffusionPainter, batches: Sequence[Sequence[PlannedPair]], num_pairs: int, shrink: int
) -> float:
    """The table; seconds per pair, all stages together."""
    pipeline, size = painter.pipeline, job.source.options.tile_size
    assert job.machine is not None and job.painter is not None and size is not None
    clock, calls = Clock(str(pipeline.device)), {"encode": 0.0, "UNet": 0.0, "decode": 0.0}
    count_calls(pipeline, size, calls)
    timed_stages(clock, job, painter, batches)
    calls, seconds = dict(calls), dict(clock.seconds)  # before the calls of operations()
    seconds["blending and solver"] = seconds.pop("blended sampling, UNet included") - seconds["UNet"]
    seconds["PNG"] = seconds.pop("PNG and files") - seconds["files"]
    product, convolution = ceiling(pipeline.device, DTYPES[job.machine.dtype], shrink)
    machine, total = job.machine, sum(seconds.values())
    print(f"\n{job.painter.model}: {num_pairs} pairs, batch {machine.batch_size}, {machine.dtype}, {painter.sampling}")
    print(f"{machine.device}, {machine.num_threads} threads, torch {torch.__version__}; ", end="")
    print(f"ceiling: matrix product {product:.2f}, convolution {convolution:.2f} TFLOP/s\n")
    print("| stage | ms per pair | share | GFLOP per pair | TFLOP/s | of the convolution |\n|---|---|---|---|---|---|")
    counts = operations(pipeline, size)
    for stage in STAGES:
        took = seconds[stage]
        row = f"| {stage} | {took / num_pairs * 1e3:.1f} | {took / total:.1%} |"
        if stage in counts:
            work = counts[stage] * calls[stage]
            rate = work / took / 1e12
            row += f" {work / num_pairs / 1e9:.1f} | {rate:.3f} | {rate / convolution:.0%} |"
        else:
            row += " | | |"
        print(row)
    return total / num_pairs


def count_calls(pipeline: ChangePairPipeline, size: int, calls: dict[str, float]) -> None:
    """Count tiles that go through each network; a window counts as its share of a tile."""
    first_stage, denoiser = pipeline.first_stage, pipeline.denoiser
    for owner, name, what in (
        (first_stage, "encode", "encode"),
        (first_stage, "decode", "decode"),
        (denoiser, "forward", "UNet"),
    ):
        inner = getattr(owner, name)

        def counted(x: torch.Tensor, *rest: Any, inner: Any = inner, what: str = what) -> Any:
            side = size if what == "encode" else size // 4
            calls[what] += len(x) * x.shape[2] * x.shape[3] / side**2
            return inner(x, *rest)

        setattr(owner, name, counted)


def whole(options: GenerateOptions, alone: float) -> None:
    """``generate`` with its threads: wall time, and how much of it nothing was being painted."""
    busy = Clock("cpu")
    with patch.object(DiffusionPainter, "paint", busy.timed("paint", DiffusionPainter.paint)), watched() as kernels:
        report = generate(options)
    print_kernels(kernels)
    wall = 1 / report.pairs_per_second
    paint = busy.seconds["paint"] / report.num_new
    print(f"\ngenerate: {wall * 1e3:.0f} ms per pair ({alone * 1e3:.0f} with the stages one after the other); ", end="")
    print(f"painting {paint / wall:.1%} of the wall time, waiting {1 - paint / wall:.1%}", flush=True)


def print_kernels(kernels: list[tuple[int, int]]) -> None:
    """How much of the time between the first and the last kernel one ran, and how long it stood still between two."""
    if not kernels:
        return
    span, gaps = gaps_between(kernels)
    print(f"\ndevice busy {1 - sum(gaps) / span:.1%} of {span / 1e9:.2f} s, {len(kernels)} kernels; standing still:")
    print("| gap | share of the time | gaps |\n|---|---|---|")
    for name, low, high in GAPS:
        own = [gap for gap in gaps if low <= gap < high]
        print(f"| {name} | {sum(own) / span:.1%} | {len(own)} |")


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    add_host(parser)
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    parser.add_argument("--config", type=Path, help="recipe whose networks are built with random weights")
    parser.add_argument("--pairs", type=int, default=32, help="pairs")
    parser.add_argument("--num-steps", type=int, help="denoiser calls; default: the model's")
    parser.add_argument("--shrink-ceiling", type=int, default=1, help="sides of its products and images, divided by")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(arguments.config, Path(folder) / "model") if arguments.config else arguments.model
        size = tile_size_of(model)
        profile(
            GenerateOptions(
                source=arguments.source,
                out=Path(folder) / "out",
                model=model,
                num_pairs=arguments.pairs,
                num_steps=arguments.num_steps,
                tile_size=size,
                licences=arguments.licences,
                shard_size=arguments.shard_size,
                seed=1,
            ),
            arguments.shrink_ceiling,
        )
        print_host(arguments, model, size)


if __name__ == "__main__":
    main()
