"""Does generate stay as fast and as small as it began? Four parts, each prints its lines.

    python benchmarks/scale.py --source ../shared/data/landcover/train --licences CC0-1.0 CC-BY-4.0

pairs   ms per pair of the model at --few and --many real pairs: flat?
memory  largest resident set while --tiny-pairs pairs of a tiny random net are made: flat?
lines   seconds in which --lines records of finished shards become metadata.jsonl, lists, card and report
pixels  ms per megapixel of the model at tiles of once, twice and four times its size: no faster than the pixels?
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import changeanywhere as ca
from changeanywhere.events import EventOptions
from changeanywhere.generation.dataset import records_in_order
from changeanywhere.generation.generate import GenerateReport
from changeanywhere.generation.plan import PlanSummary
from changeanywhere.generation.shard import put_marker, read_marker
from changeanywhere.legend import find_legend, load_legend
from changeanywhere.models.first_stage import FirstStage, build_vq_model
from changeanywhere.models.folder import Model, noise_schedule, save_model
from changeanywhere.pairs.writer import finalise
from changeanywhere.storage import LocalStore
from changeanywhere.training.denoiser import build_denoiser
from changeanywhere.training.recipe import DenoiserRecipe
from tiles import add_source, tile_size_of


def resident() -> float:
    """Resident set now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def generate(arguments: argparse.Namespace, out: Path, num_pairs: int) -> GenerateReport:
    """Pairs of the given tiles."""
    return ca.generate(
        arguments.source,
        out,
        model=arguments.model,
        num_pairs=num_pairs,
        licences=arguments.licences,
        num_steps=arguments.num_steps,
        tile_size=tile_size_of(arguments.model),
    )


def pairs(arguments: argparse.Namespace, folder: Path) -> None:
    """The embedded model, few pairs and many."""
    for count in (arguments.few, arguments.many):
        report = generate(arguments, folder / f"pairs{count}", num_pairs=count)
        print(f"pairs: {count:,} at {1e3 / report.pairs_per_second:.0f} ms per pair", flush=True)


def tiny_model(folder: Path) -> str:
    """The smallest model that generate takes, with random weights."""
    torch.manual_seed(0)
    legend = load_legend("mini")
    first_stage = FirstStage(build_vq_model((4, 4, 8), 1, 16, 3, 1, False), [0.0] * 3, [1.0] * 3)
    recipe = DenoiserRecipe(channels=[8, 8], layers_per_block=1, head_dim=8, norm_groups=1)
    denoiser = build_denoiser(recipe, legend.num_classes, 3)
    save_model(Model(first_stage, denoiser, noise_schedule("epsilon"), legend, 0.1, 32), folder, torch.float32)
    return str(folder)


def tiny_source(folder: Path, tiles: int) -> Path:
    """Tiles of 32 px with a rectangle each."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(tiles):
        mask = np.full((32, 32), 1 + number % 3, np.uint8)
        mask[8:16, 8:20] = 4 + number % 3
        Image.fromarray(mask).save(folder / "masks" / f"{number:06d}.png")
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / "images" / f"{number:06d}.png")
    load_legend("mini").save(folder / "legend.json")
    return folder


def memory(arguments: argparse.Namespace, folder: Path) -> None:
    """The resident set over a long run."""
    source, model = tiny_source(folder / "tiles", -(-arguments.tiny_pairs // 50)), tiny_model(folder / "model")
    out = folder / "tiny"
    samples: list[tuple[int, float]] = []
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(2):
            shards = out / "shards"
            samples.append((len(list(shards.iterdir())) if shards.is_dir() else 0, resident()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    report = ca.generate(
        source,
        out,
        model=model,
        num_pairs=arguments.tiny_pairs,
        tile_size=32,
        num_steps=1,
        batch_size=32,
        shard_size=256,
        dtype="float32",
        events=EventOptions(min_area=9),
    )
    finished.set()
    watcher.join()
    planned = [m for shards, m in samples if not shards]
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        some = [m for shards, m in samples if 0 < shards * 256 <= share * arguments.tiny_pairs]
        if some:
            print(f"memory: {max(some):.0f} MB up to {share:.0%} of {report.num_pairs:,} pairs", flush=True)
    print(f"memory: {max(planned, default=0):.0f} MB while planning; {report.pairs_per_second:.0f} pairs/s", flush=True)


def lines(arguments: argparse.Namespace, folder: Path) -> None:
    """Records of many shards → metadata, lists, card, report. The pictures of all are those of one real pair."""
    one = LocalStore(generate(arguments, folder / "one", num_pairs=1).out)
    marker = read_marker(one, 0)
    assert marker is not None
    (record,) = marker.records
    many, shard_size, first_keys = LocalStore(folder / "many"), 1000, []
    for start in range(0, arguments.lines, shard_size):
        keys = [f"tile_{number:08d}_0" for number in range(start, min(start + shard_size, arguments.lines))]
        first_keys.append(keys[0])
        records = [replace(record, key=key, files={name: f"{name}/{key}.png" for name in record.files}) for key in keys]
        put_marker(many, start // shard_size, [({}, each) for each in records])
    shown = np.unique(np.linspace(0, arguments.lines - 1, 48).astype(int))
    for name, file in record.files.items():
        content = one.get(file)
        for number in shown:
            many.put(f"{name}/tile_{number:08d}_0.png", content)
    before, started = resident(), time.perf_counter()
    counts, _ = finalise(
        many, load_legend("mini"), records_in_order(many, PlanSummary(arguments.lines, tuple(first_keys), {}))
    )
    seconds = time.perf_counter() - started
    size = (many.root / "metadata.jsonl").stat().st_size / 1e9
    print(f"lines: {counts.count:,} ({size:.1f} GB) in {seconds:.0f} s, {resident() - before:.0f} MB more", flush=True)


def pixels(arguments: argparse.Namespace, folder: Path) -> None:
    """Mosaics of real tiles of the model's size, cut into larger and larger tiles."""
    side = tile_size_of(arguments.model)
    originals = sorted((arguments.source / "images").iterdir())[:16]
    stems = {file.stem for file in originals}
    masks = [file for file in sorted((arguments.source / "masks").iterdir()) if file.stem in stems]
    for name, files in (("images", originals), ("masks", masks)):
        whole = np.concatenate(
            [np.concatenate([np.asarray(Image.open(f)) for f in files[i : i + 4]], 1) for i in range(0, 16, 4)]
        )
        (folder / "mosaic" / name).mkdir(parents=True)
        Image.fromarray(whole).save(folder / "mosaic" / name / "m.png")
    legend = find_legend(arguments.source)
    assert legend is not None, "no legend.json or classes.json beside the source"
    legend.save(folder / "mosaic" / "legend.json")
    for margin in (None, 0):
        for times in (1, 2, 4):
            size = times * side
            report = ca.generate(
                folder / "mosaic",
                folder / f"px{size}-{margin}",
                model=arguments.model,
                num_pairs=max(4, 16 // times**2),
                tile_size=size,
                batch_size=4 // times**2 or 1,
                num_steps=arguments.num_steps,
                window_margin=margin,
            )
            cost = 1e3 / report.pairs_per_second / size**2 * 1e6
            how = "windows around the change" if margin is None else "whole tiles"
            print(f"pixels: tiles of {size} px at {cost:.0f} ms per Mpx ({how})", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts asked for."""
    parts = {"pairs": pairs, "memory": memory, "lines": lines, "pixels": pixels}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    parser.add_argument("--num-steps", type=int, help="denoiser calls; default: the model's")
    parser.add_argument("--parts", nargs="*", default=list(parts), choices=list(parts))
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--tiny-pairs", type=int, default=100_000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    arguments = parser.parse_args(argv)
    for name in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[name](arguments, Path(folder))


if __name__ == "__main__":
    main()
