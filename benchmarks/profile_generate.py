"""Where the time of generate goes: ms per pair of each stage, operations, and their share of the measured ceiling.

    python benchmarks/profile_generate.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0
    python benchmarks/profile_generate.py --source ../shared/data/landcover/val --config recipes/paper.yaml --pairs 4

First the stages one after the other on one thread, so that each has the machine to itself; then ``generate`` as it is,
with its threads ahead of and behind the device: "waiting" is wall time in which nothing is being painted. With --config
the networks are those of a recipe, with random weights. The ceiling: a large matrix product and a large convolution in
the same precision.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from changeanywhere.generation.painter import Painter
from torch.utils.flop_counter import FlopCounterMode

from changeanywhere.diffusion.pipeline import DTYPES
from changeanywhere.generation import painter as painter_module
from changeanywhere.generation import run as run_module
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.prepare import get_plan
from changeanywhere.legend import load_legend
from changeanywhere.models.first_stage import FirstStage, build_vq_model
from changeanywhere.models.folder import Model, noise_schedule, save_model
from changeanywhere.pairs import writer as writer_module
from changeanywhere.training.denoiser import build_denoiser
from training import ceiling, read_recipe


class Clock:
    """Seconds by stage; the device is waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, its time added to ``stage``."""

        def run(*arguments: Any, **named: Any) -> Any:
            started = self.now()
            try:
                return work(*arguments, **named)
            finally:
                self.seconds[stage] += self.now() - started

        return run


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
    save_model(Model(first_stage, denoiser, schedule, legend, 0.1, 256), folder, torch.float16)
    return str(folder)


@contextmanager
def instrumented(clock: Clock, painter: Painter) -> Iterator[None]:
    """Every stage of this painter adds to the clock."""
    pipeline = painter.pipeline
    parts = [
        (painter.source, "read", "reading"),
        (painter_module, "change_of", "events"),
        (pipeline, "encode", "encode"),
        (pipeline, "paint", "blended sampling, UNet included"),
        (pipeline, "decode", "decode"),
        (pipeline.denoiser, "forward", "UNet"),
        (painter, "finish", "finish"),
        (writer_module, "_png", "PNG"),
        (writer_module, "_put", "files"),
    ]
    patches = [patch.object(owner, name, clock.timed(stage, getattr(owner, name))) for owner, name, stage in parts]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def operations(painter: Painter) -> dict[str, float]:
    """Operations (multiply-adds count two) per pair and call of the three networks."""
    pipeline, size = painter.pipeline, painter.options.tile_size
    latents = torch.zeros(1, pipeline.first_stage.latent_mean.numel(), size // 4, size // 4)
    masks = torch.ones(1, size, size, dtype=torch.int64)
    works: dict[str, Callable[[], Any]] = {
        "encode": lambda: pipeline.encode(torch.zeros(1, 3, size, size)),
        "UNet": lambda: pipeline.predict_noise(latents, torch.zeros(1, dtype=torch.int64), masks),
        "decode": lambda: pipeline.decode(latents),
    }
    counts = {}
    for name, work in works.items():
        with FlopCounterMode(display=False) as counter:
            work()
        counts[name] = float(counter.get_total_flops())
    return counts


def profile(options: GenerateOptions) -> None:
    """Print the table of one model."""
    painter = Painter(options)
    device = painter.pipeline.device
    clock = Clock(device)
    plan = get_plan(options, painter.frozen_settings(), painter.source, painter.second, painter.events, save=False)
    size = painter.batch_size
    batches = [plan.pairs[i : i + size] for i in range(0, len(plan.pairs), size)]
    painter.paint(painter.read(batches[0]))  # warm-up
    calls = {"encode": 0.0, "UNet": 0.0, "decode": 0.0}
    count_calls(painter, calls)
    with instrumented(clock, painter), tempfile.TemporaryDirectory() as folder:
        for batch in batches:
            for painting in painter.paint(painter.read(batch)):
                run_module._write(painter, painting, Path(folder))
    calls = dict(calls)  # before the calls of operations()
    seconds = dict(clock.seconds)
    seconds["blending and solver"] = seconds.pop("blended sampling, UNet included") - seconds["UNet"]
    product, convolution = ceiling(device, DTYPES[painter.dtype])
    print(f"\n{painter.options.model}: {len(plan.pairs)} pairs, batch {size}, {painter.dtype}, {painter.sampling}")
    print(f"{device.type}, {painter.num_threads} threads, torch {torch.__version__}; ", end="")
    print(f"ceiling: matrix product {product:.2f}, convolution {convolution:.2f} TFLOP/s\n")
    print("| stage | ms per pair | share | GFLOP per pair | TFLOP/s | of the convolution |\n|---|---|---|---|---|---|")
    counts, total = operations(painter), sum(seconds.values())
    order = ["reading", "events", "encode", "UNet", "blending and solver", "decode", "finish", "PNG", "files"]
    for stage in order:
        took = seconds[stage]
        row = f"| {stage} | {took / len(plan.pairs) * 1e3:.1f} | {took / total:.1%} |"
        if stage in counts:
            work = counts[stage] * calls[stage]
            rate = work / took / 1e12
            row += f" {work / len(plan.pairs) / 1e9:.1f} | {rate:.3f} | {rate / convolution:.0%} |"
        else:
            row += " | | |"
        print(row)
    whole(options, total / len(plan.pairs))


def count_calls(painter: Painter, calls: dict[str, float]) -> None:
    """Count tiles that go through each network; a window counts as its share of a tile."""
    pipeline, size = painter.pipeline, painter.options.tile_size
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
    busy = Clock(torch.device("cpu"))
    with patch.object(run_module.Painter, "paint", busy.timed("paint", run_module.Painter.paint)):
        report = run_module.generate(options)
    wall = 1 / report.pairs_per_second
    paint = busy.seconds["paint"] / report.num_new
    print(f"\ngenerate: {wall * 1e3:.0f} ms per pair ({alone * 1e3:.0f} with the stages one after the other); ", end="")
    print(f"painting {paint / wall:.1%} of the wall time, waiting {1 - paint / wall:.1%}", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of tiles")
    parser.add_argument("--licences", nargs="*", help="only tiles under these licences")
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    parser.add_argument("--config", type=Path, help="recipe whose networks are built with random weights")
    parser.add_argument("--pairs", type=int, default=32, help="pairs")
    parser.add_argument("--num-steps", type=int, help="denoiser calls; default: the model's")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(arguments.config, Path(folder) / "model") if arguments.config else arguments.model
        profile(
            GenerateOptions(
                source=arguments.source,
                out=Path(folder) / "out",
                model=model,
                num_pairs=arguments.pairs,
                num_steps=arguments.num_steps,
                licences=arguments.licences,
                seed=1,
            )
        )


if __name__ == "__main__":
    main()
