"""Training throughput: images/s, achieved TFLOP/s, share of the measured ceiling, how busy the device is, peak memory.

    python benchmarks/training.py --config recipes/mini.yaml --steps 20

Networks and losses of the recipe at its batch size, and a detector: first on one batch of random tiles, taken again and
again, then fed as a training feeds them, by the stage's own batches, with the share of that time in which the device
computed (a GPU: some kernel ran; a CPU: processor time over that of all its threads). The adversarial loss takes part
if the recipe has one; the perceptual one is left out, and the row says so, where its weights are not here. Operations
are counted by torch.utils.flop_counter in one step, forward and backward. The ceiling: a large matrix product and a
large convolution in the same precision.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from changeanywhere.legend import load_legend
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.perceptual import find_weights
from changeanywhere.pairs import load_pairs
from changeanywhere.sources import Source, SourceOptions, open_source
from changeanywhere.training import loop
from changeanywhere.training.denoiser import DenoiserTraining
from changeanywhere.training.detector import DetectorTraining
from changeanywhere.training.first_stage import FirstStageTraining
from changeanywhere.training.latents import build_latent_cache
from changeanywhere.training.loop import take_step
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import (
    DataRecipe,
    DenoiserRecipe,
    DetectorRecipe,
    FirstStageRecipe,
    Recipe,
    RunRecipe,
)
from changeanywhere.training.stage import Stage

LEGEND = load_legend("mini")
WARM = 4
"""Steps before a recording is played."""


def read_recipe(path: Path) -> Recipe:
    """The sections of a recipe file."""
    kinds = {"data": DataRecipe, "first_stage": FirstStageRecipe, "denoiser": DenoiserRecipe, "run": RunRecipe}
    sections = yaml.safe_load(path.read_text())
    return Recipe(**{name: kinds[name](**values) for name, values in sections.items()})


def without_missing_weights(recipe: Recipe) -> Recipe:
    """The recipe, without a perceptual loss whose weights are not here."""
    first_stage = recipe.first_stage
    given = first_stage.perceptual_weights
    found = Path(given).is_file() if given else first_stage.perceptual_features != "vgg16" and find_weights()
    return recipe if found else replace(recipe, first_stage=replace(first_stage, perceptual_weight=0.0))


def random_tiles(folder: Path, size: int) -> Source:
    """A source of one tile of noise, over all classes of a legend."""
    rng = np.random.default_rng(0)
    contents = {
        "images": rng.integers(0, 256, (size, size, 3), np.uint8),
        "masks": rng.integers(0, LEGEND.num_classes + 1, (size, size), np.uint8),
    }
    for name, content in contents.items():
        (folder / name).mkdir()
        Image.fromarray(content).save(folder / name / "noise.png")
    LEGEND.save(folder / "legend.json")
    return open_source(folder, SourceOptions(tile_size=size))


def seconds(work: Callable[..., object], repeats: int, device: torch.device) -> float:
    """Mean seconds of a call, after two for warming up."""
    for _ in range(2):
        work()
    started = _now(device)
    for _ in range(repeats):
        work()
    return (_now(device) - started) / repeats


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def watched() -> Iterator[list[tuple[int, int]]]:
    """(begin, end) in ns of all that ran on a GPU within; nothing where there is none."""
    kernels: list[tuple[int, int]] = []
    if not torch.cuda.is_available():
        yield kernels
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        yield kernels
        torch.cuda.synchronize()
    for event in profiler.profiler.kineto_results.events():
        if event.device_type().name == "CUDA":
            kernels.append((event.start_ns(), event.start_ns() + event.duration_ns()))


def gaps_between(kernels: list[tuple[int, int]]) -> tuple[int, list[int]]:
    """Time from the first to the last of them, and how long none ran within it, each time; ns."""
    gaps, (first, end) = [], min(kernels)
    for begin, until in sorted(kernels):
        if begin > end:
            gaps.append(begin - end)
        end = max(end, until)
    return end - first, gaps


def fed(stage: Stage, first: int, steps: int) -> tuple[float, float]:
    """Seconds of a step from ``first`` on with the stage's own batches, as a training takes them, some left out for
    warming up; and the share of that time in which the device computed."""
    device, recorded = stage.processes.device, loop.recorded_steps(stage)
    last = first + WARM + steps
    with closing(stage.batches(first)) as batches, ExitStack() as watching:
        kernels: list[tuple[int, int]] = []
        for step, batch in zip(range(first, last), batches, strict=False):
            if step == first + WARM:
                started, used = _now(device), time.process_time()
                kernels = watching.enter_context(watched())
            if recorded:
                recorded.take(batch, step)
            else:
                take_step(stage, batch, step)
        took = _now(device) - started
        busy = (time.process_time() - used) / took / torch.get_num_threads()
    if kernels:
        span, gaps = gaps_between(kernels)
        busy = 1 - sum(gaps) / span
    return took / steps, busy


def random_pairs(folder: Path, size: int, count: int) -> Path:
    """Pairs of noise, in ``train``."""
    rng = np.random.default_rng(0)
    for name, shape in (("A", (size, size, 3)), ("B", (size, size, 3)), ("label", (size, size))):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(count):
            content = rng.integers(0, 256, shape, np.uint8)
            pixels = content // 128 * 255 if name == "label" else content
            Image.fromarray(pixels).save(folder / "train" / name / f"{number}.png")
    return folder


def ceiling(device: torch.device, dtype: torch.dtype, shrink: int = 1) -> tuple[float, float]:
    """TFLOP/s of a large matrix product and of a large 3x3 convolution (channels-last), the best of several shapes.

    ``shrink`` divides their sides: quick, and no ceiling.
    """
    large = 4 if device.type == "cuda" else 1
    products, convolutions = [], []
    for side in (1024 * large // shrink, 2048 * large // shrink):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        products.append(2 * side**3 / seconds(lambda a=a, b=b: a @ b, 5, device) / 1e12)
    for channels, side in ((64, 256), (128, 128), (128, 256), (256, 64), (512, 32)):
        batch, size = 4 * large, side // shrink
        x = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        conv = channels_last(torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(device, dtype))
        with torch.no_grad():
            duration = seconds(lambda conv=conv, x=x: conv(x), 5, device)
        convolutions.append(2 * batch * channels**2 * 9 * size**2 / duration / 1e12)
    return max(products), max(convolutions)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("recipes/mini.yaml"), help="recipe")
    parser.add_argument("--steps", type=int, default=10, help="steps to time, after two for warming up")
    parser.add_argument("--detector", default="changer_ex_r18", help="which one")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a detector's step")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--shrink-ceiling", type=int, default=1, help="sides of its products and images, divided by")
    arguments = parser.parse_args(argv)
    asked = read_recipe(arguments.config)
    recipe = without_missing_weights(replace(asked, run=replace(asked.run, compile=arguments.compile)))
    late, more = recipe.first_stage.num_steps - 1, WARM + arguments.steps  # late: every loss takes part
    recipe = replace(
        recipe,
        first_stage=replace(recipe.first_stage, num_steps=late + more),
        denoiser=replace(recipe.denoiser, num_steps=more),
    )
    lacks = asked.first_stage.perceptual_weight and not recipe.first_stage.perceptual_weight
    note = " without the perceptual loss (its weights are not here)" if lacks else ""
    processes = Processes(recipe.run)
    device = processes.device
    crop, size = recipe.first_stage.crop_size, recipe.data.tile_size
    dtype = torch.bfloat16 if recipe.run.mixed_precision == "bf16" else torch.float32
    product, convolution = ceiling(device, dtype, arguments.shrink_ceiling)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, {dtype}; ceiling: matrix product {product:.2f}, ", end="")
    print(f"convolution {convolution:.2f} TFLOP/s\n")
    print(
        "| stage | batch | images/s | TFLOP/s | of the convolution | images/s with its own batches | device busy | "
        "peak memory, GB |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        source = random_tiles(Path(folder), size)
        first = FirstStageTraining(recipe, processes, source)
        first.codes_placed = True
        print_row(f"first stage, {crop} px crops{note}", first, late, arguments.steps, convolution)
        cache = build_latent_cache(
            Path(folder) / "latents", source, first.first_stage, range(recipe.denoiser.views), len(source), processes
        )
        cache.keep_on(device)
        denoiser = DenoiserTraining(recipe, processes, source, first.first_stage, cache)
        print_row(f"denoiser, {size} px tiles", denoiser, 0, arguments.steps, convolution)
        pairs = random_pairs(Path(folder) / "pairs", size, arguments.batch)
        settings = DetectorRecipe(
            name=arguments.detector, pairs=str(pairs), batch_size=arguments.batch, crop_size=size, val_split=None
        )
        detector = DetectorTraining(replace(recipe, detector=settings), processes, load_pairs(pairs, "train"), None)
        print_row(f"{arguments.detector}, {size} px pairs", detector, 0, arguments.steps, convolution)


def print_row(name: str, stage: Stage, step: int, steps: int, convolution: float) -> None:
    """One stage's; ``step``: which one is taken again and again."""
    device = stage.processes.device
    with closing(stage.batches(step)) as batches:
        batch = next(batches)

    def work() -> object:
        return take_step(stage, batch, step)

    with FlopCounterMode(display=False) as counter:
        work()
    duration = seconds(work, steps, device)
    rate = counter.get_total_flops() / duration / 1e12
    with_batches, busy = fed(stage, step, steps)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e9
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # of the process so far
    print(
        f"| {name} | {stage.batch_size} | {stage.batch_size / duration:.1f} | {rate:.3f} | {rate / convolution:.0%} | "
        f"{stage.batch_size / with_batches:.1f} | {busy:.0%} | {memory:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
