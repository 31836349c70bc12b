"""Training throughput of both stages: images/s, achieved TFLOP/s, share of the measured ceiling, peak memory.

    python benchmarks/training.py --config recipes/mini.yaml --steps 20

Networks and losses of the recipe at its batch size, on one batch of random tiles, taken again and again (reading is
measured by the ``images_per_second`` of a real run). The adversarial loss takes part if the recipe has one; the
perceptual one is left out, and the row says so, where its weights are not here. Operations are counted by
torch.utils.flop_counter in one step, forward and backward. The ceiling: a large matrix product and a large convolution
in the same precision.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
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
from changeanywhere.sources import Source, SourceOptions, open_source
from changeanywhere.training.denoiser import DenoiserTraining
from changeanywhere.training.first_stage import FirstStageTraining
from changeanywhere.training.latents import build_latent_cache
from changeanywhere.training.loop import take_step
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DataRecipe, DenoiserRecipe, FirstStageRecipe, Recipe, RunRecipe
from changeanywhere.training.stage import Stage

LEGEND = load_legend("mini")


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
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--shrink-ceiling", type=int, default=1, help="sides of its products and images, divided by")
    arguments = parser.parse_args(argv)
    asked = read_recipe(arguments.config)
    recipe = without_missing_weights(replace(asked, run=replace(asked.run, compile=arguments.compile)))
    lacks = asked.first_stage.perceptual_weight and not recipe.first_stage.perceptual_weight
    note = " without the perceptual loss (its weights are not here)" if lacks else ""
    processes = Processes(recipe.run)
    device = processes.device
    crop, size = recipe.first_stage.crop_size, recipe.data.tile_size
    with tempfile.TemporaryDirectory() as folder:
        source = random_tiles(Path(folder), size)
        first = FirstStageTraining(recipe, processes, source)
        first.codes_placed = True
        cache = build_latent_cache(
            Path(folder) / "latents", source, first.first_stage, range(recipe.denoiser.views), len(source), processes
        )
        denoiser = DenoiserTraining(recipe, processes, source, first.first_stage, cache)
        late = recipe.first_stage.num_steps - 1  # every loss takes part
        batches = {"first": next(first.batches(late)), "denoiser": next(denoiser.batches(0))}

    def steps(stage: Stage, name: str, step: int) -> Callable[[], object]:
        return lambda: take_step(stage, batches[name], step)

    stages: dict[str, tuple[Callable[[], object], int]] = {
        f"first stage, {crop} px crops{note}": (steps(first, "first", late), first.batch_size),
        f"denoiser, {size} px tiles": (steps(denoiser, "denoiser", 0), denoiser.batch_size),
    }
    dtype = torch.bfloat16 if recipe.run.mixed_precision == "bf16" else torch.float32
    product, convolution = ceiling(device, dtype, arguments.shrink_ceiling)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, {dtype}; ceiling: matrix product {product:.2f}, ", end="")
    print(f"convolution {convolution:.2f} TFLOP/s\n")
    print("| stage | batch | images/s | TFLOP/s | of the convolution | peak memory, GB |\n|---|---|---|---|---|---|")
    for stage, (work, count) in stages.items():
        with FlopCounterMode(display=False) as counter:
            work()
        duration = seconds(work, arguments.steps, device)
        rate = counter.get_total_flops() / duration / 1e12
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated() / 1e9
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # of the process so far
        print(
            f"| {stage} | {count} | {count / duration:.1f} | {rate:.3f} | {rate / convolution:.0%} | {memory:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
