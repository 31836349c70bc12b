"""Does generate stay as fast and as small as it began? Four parts, each prints its lines.

    python benchmarks/scale.py --source ../shared/data/landcover/train --licences CC0-1.0 CC-BY-4.0

pairs   ms per pair of the embedded model at --few and --many real pairs: flat?
memory  largest resident set while --tiny-pairs pairs of a tiny random net are made: flat?
lines   seconds in which --lines records of finished shards become metadata.jsonl, lists, card and report
pixels  ms per megapixel of the embedded model at tiles of 256, 512 and 1024 px: no faster than the pixels?
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from changeanywhere.generation.run import generate
from PIL import Image

from changeanywhere.events import EventOptions
from changeanywhere.generation import run as run_module
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.generation.plan import PlannedPair
from changeanywhere.legend import find_legend, load_legend
from changeanywhere.models.first_stage import FirstStage, build_vq_model
from changeanywhere.models.folder import Model, noise_schedule, save_model
from changeanywhere.pairs.writer import SHARED, finalise
from changeanywhere.training.denoiser import build_denoiser
from changeanywhere.training.recipe import DenoiserRecipe


def resident() -> float:
    """Resident set now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def pairs(arguments: argparse.Namespace, folder: Path) -> None:
    """The embedded model, few pairs and many."""
    for count in (arguments.few, arguments.many):
        report = generate(
            GenerateOptions(
                source=arguments.source, out=folder / f"pairs{count}", num_pairs=count, licences=arguments.licences
            )
        )
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
    options = GenerateOptions(
        source=tiny_source(folder / "tiles", arguments.tiny_pairs // 50),
        out=folder / "tiny",
        model=tiny_model(folder / "model"),
        num_pairs=arguments.tiny_pairs,
        tile_size=32,
        num_steps=1,
        batch_size=32,
        shard_size=256,
        dtype="float32",
        events=EventOptions(min_area=9),
    )
    samples: list[tuple[int, float]] = []
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(2):
            shards = options.out / "shards"
            samples.append((len(list(shards.iterdir())) if shards.is_dir() else 0, resident()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    report = generate(options)
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
    first = generate(
        GenerateOptions(source=arguments.source, out=folder / "one", num_pairs=1, licences=arguments.licences)
    )
    record: dict[str, Any] = json.loads((first.out / "metadata.jsonl").read_text())
    shared = {name: record.pop(name) for name in SHARED}
    out, shard_size = folder / "many", 1000
    (out / "shards").mkdir(parents=True)
    shards = []
    for start in range(0, arguments.lines, shard_size):
        keys = [f"tile_{number:08d}_0" for number in range(start, min(start + shard_size, arguments.lines))]
        shards.append([PlannedPair(key, key, 0, None, 0, start // shard_size) for key in keys])
        names = {name: value.split("/")[0] for name, value in record.items() if name.endswith("_file_name")}
        records = [record | {"key": key} | {n: f"{f}/{key}.png" for n, f in names.items()} for key in keys]
        content = {"files": {}, "records": records, "shared": shared}
        (out / "shards" / f"{start // shard_size:05d}.json").write_text(json.dumps(content))
    for name in ("A", "B", "label", "label1", "label2"):
        (out / name).mkdir()
        source = next((first.out / name).iterdir())
        shown = np.unique(np.linspace(0, arguments.lines - 1, 48).astype(int))
        for number in shown:
            shutil.copy(source, out / name / f"tile_{number:08d}_0.png")
    before, started = resident(), time.perf_counter()
    counts, _ = finalise(out, load_legend("mini"), run_module._records(out, shards))
    seconds = time.perf_counter() - started
    size = (out / "metadata.jsonl").stat().st_size / 1e9
    print(f"lines: {counts.count:,} ({size:.1f} GB) in {seconds:.0f} s, {resident() - before:.0f} MB more", flush=True)


def pixels(arguments: argparse.Namespace, folder: Path) -> None:
    """Mosaics of real tiles, cut into larger and larger tiles."""
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
        for size in (256, 512, 1024):
            report = generate(
                GenerateOptions(
                    source=folder / "mosaic",
                    out=folder / f"px{size}-{margin}",
                    num_pairs=max(4, 16 * 256**2 // size**2),
                    tile_size=size,
                    batch_size=4 * 256**2 // size**2 or 1,
                    window_margin=margin,
                )
            )
            cost = 1e3 / report.pairs_per_second / size**2 * 1e6
            how = "windows around the change" if margin is None else "whole tiles"
            print(f"pixels: tiles of {size} px at {cost:.0f} ms per Mpx ({how})", flush=True)


def main() -> None:
    """Run the parts asked for."""
    parts = {"pairs": pairs, "memory": memory, "lines": lines, "pixels": pixels}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of real tiles")
    parser.add_argument("--licences", nargs="*", help="only tiles under these licences")
    parser.add_argument("--parts", nargs="*", default=list(parts), choices=list(parts))
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--tiny-pairs", type=int, default=100_000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    arguments = parser.parse_args()
    for name in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[name](arguments, Path(folder))


if __name__ == "__main__":
    main()
