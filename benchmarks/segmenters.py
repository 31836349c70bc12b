"""What segmenters read on real tiles and on what first stages make of them: IoU per class.

    python benchmarks/segmenters.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0 \\
        --segmenters mini-segmenter runs/judge/segmenter --first-stages mini

Each first stage decodes with and without quantising. Mean: over the classes with at least 1 % of the pixels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from changeanywhere.evaluation.scores import Confusion
from changeanywhere.models.first_stage import FirstStage, channels_last
from changeanywhere.models.folder import load_first_stage
from changeanywhere.models.info import find_segmenter
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.training.decoded import find_first_stage
from tiles import add_source, open_tiles

BATCH = 8


def variants(images: Tensor, first_stages: dict[str, FirstStage]) -> Iterator[tuple[str, Tensor]]:
    """What is read: ``[B, 3, H, W]`` in [-1, 1], by name."""
    yield "raw", images
    for name, first_stage in first_stages.items():
        raw = first_stage.encode_raw(images)
        yield f"{name}, quantised", first_stage.decode_codes(first_stage.quantise(raw)[0]).clamp(-1, 1)
        yield f"{name}, not quantised", first_stage.decode_codes(raw).clamp(-1, 1)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--segmenters", nargs="+", default=["mini-segmenter"], help="mini-segmenter or folders")
    parser.add_argument("--first-stages", nargs="*", default=["mini"], help="mini, model or first-stage folders")
    parser.add_argument("--tile-size", type=int, default=256)
    arguments = parser.parse_args(argv)
    nets = {name: channels_last(Segmenter.load(find_segmenter(name))) for name in arguments.segmenters}
    first_stages = {n: channels_last(load_first_stage(find_first_stage(n))) for n in arguments.first_stages}
    legend = next(iter(nets.values())).legend
    source = open_tiles(arguments.source, arguments.licences, arguments.tile_size).with_legend(legend)
    found: dict[tuple[str, str], Confusion] = {}
    seconds = dict.fromkeys(nets, 0.0)
    for start in range(0, len(source), BATCH):
        samples = [source.read(i) for i in range(start, min(start + BATCH, len(source)))]
        images = torch.from_numpy(np.stack([s.pixels() for s in samples])).permute(0, 3, 1, 2)
        for shown, pixels in variants(images.contiguous(memory_format=torch.channels_last), first_stages):
            for name, net in nets.items():
                begun = time.process_time()
                read = net.read(pixels).numpy()
                seconds[name] += time.process_time() - begun
                confusion = found.setdefault((name, shown), Confusion(legend.num_classes))
                for sample, classes in zip(samples, read, strict=True):
                    confusion.add(sample.mask, classes)
    print("| segmenter | images | mean | " + " | ".join(legend.names) + " |\n|" + "---|" * (3 + len(legend.names)))
    for (name, shown), confusion in sorted(found.items()):
        ious = " | ".join(f"{iou:.3f}" for iou in confusion.iou())
        print(f"| {Path(name).name} | {shown} | {confusion.mean_iou():.3f} | {ious} |")
    for name, took in seconds.items():
        count = sum(p.numel() for p in nets[name].parameters())
        per_tile = took / len(source) / (1 + 2 * len(first_stages))
        print(f"\n{name}: {count / 1e6:.2f} M parameters, {per_tile * 1000:.0f} ms of processor time per tile")


if __name__ == "__main__":
    main()
