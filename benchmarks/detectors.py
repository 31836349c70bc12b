"""What a forward pass and a training step of every detector cost: seconds, CPU seconds, peak memory.

    python benchmarks/detectors.py --detectors fc_ef bit_r18

256×256 px (--size), batch 8, float32, AdamW; best of --repeats after one warm-up. Every detector runs in a process of
its own, so that peak memory (resident set) is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from changeanywhere.models.detectors import DETECTORS, build_detector
from changeanywhere.models.first_stage import channels_last
from changeanywhere.pairs import PairDataset, load_pairs
from changeanywhere.training.detection import detection_loss
from changeanywhere.training.pair_batches import training_batches
from changeanywhere.training.recipe import DetectorRecipe, RunRecipe


def measure(name: str, batch: int, size: int, threads: int, repeats: int) -> str:
    """One row of the table."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = channels_last(build_detector(name))
    first, second = (torch.rand(batch, 3, size, size).to(memory_format=torch.channels_last) * 2 - 1 for _ in range(2))
    labels = (torch.rand(batch, size, size) < 0.1).long()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)

    def forward() -> None:
        with torch.no_grad():
            net.eval()(first, second)

    def step() -> None:
        heads = net.train().all_logits(first, second)
        loss = detection_loss(heads[0], labels)
        for logits in heads[1:]:
            loss = loss + net.auxiliary_weight * detection_loss(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    cells = [name, f"{sum(p.numel() for p in net.parameters()):,}"]
    for what in (forward, step):
        seconds, cpu = [], []
        for _ in range(repeats + 1):
            started, before = time.perf_counter(), time.process_time()
            what()
            seconds.append(time.perf_counter() - started)
            cpu.append(time.process_time() - before)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        cells += [f"{min(seconds[1:]):.2f}", f"{min(cpu[1:]):.1f}", f"{memory:.1f}"]
    return "| " + " | ".join(cells) + " |"


def loading(pairs: PairDataset, batch: int, size: int, workers: int, steps: int) -> float:
    """Seconds per batch: reading, augmentation (``size`` px crops) and hand-over, nothing else running."""
    recipe = DetectorRecipe(crop_size=size, batch_size=batch, num_steps=steps + 1)
    batches = iter(training_batches(pairs, recipe, RunRecipe(num_workers=workers), 0, range(batch)))
    next(batches)  # starts the workers
    started = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return (time.perf_counter() - started) / steps


def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="*", default=list(DETECTORS), help="names; default: all")
    parser.add_argument("--batch", type=int, default=8, help="pairs")
    parser.add_argument("--size", type=int, default=256, help="px, crops of --pairs too")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=3, help="timed repetitions")
    parser.add_argument("--pairs", type=Path, help="folder of pairs: how long a training batch of them takes to load")
    arguments = parser.parse_args(argv)
    print("| detector | parameters | forward s | CPU s | GB | training step s | CPU s | GB |\n" + "|---" * 8 + "|")
    context = multiprocessing.get_context("spawn")
    for name in arguments.detectors:
        with context.Pool(1) as pool:
            row = pool.apply(measure, (name, arguments.batch, arguments.size, arguments.threads, arguments.repeats))
        print(row, flush=True)
    if arguments.pairs is not None:
        torch.set_num_threads(1)
        for workers in (0, 1, 2):
            took = loading(load_pairs(arguments.pairs), arguments.batch, arguments.size, workers, 20)
            print(f"loading, {workers} worker(s): {took:.2f} s per batch", flush=True)


if __name__ == "__main__":
    main()
