"""What the sampling settings buy: fidelity, realism and time of one model under many settings, same masks, same seeds.

    python benchmarks/ablation.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0 \
        --judge runs/judge/segmenter --real-pairs ../shared/data/naip_bitemporal --out runs/ablation

Writes OUT/images.md (images painted from masks alone: sampler, steps, guidance), OUT/pairs.md (pairs: known noise, free
fraction, dilation, pooling) and a line per setting into OUT/results.jsonl; finished settings are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from changeanywhere.diffusion import blended, samplers
from changeanywhere.diffusion.blended import changed_cells
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.pipeline import ChangePairPipeline, default_device
from changeanywhere.evaluation.differences import boundary_contrast, difference, far_from
from changeanywhere.evaluation.distances import against_halves, kid
from changeanywhere.evaluation.of_model import real_tiles
from changeanywhere.evaluation.of_pairs import read_real_pairs
from changeanywhere.evaluation.reading import load_features, load_judge
from changeanywhere.evaluation.scores import Confusion
from changeanywhere.events import EventContext, pair_seed, simulate
from changeanywhere.generation.fidelity import changed_recall
from changeanywhere.models.perceptual import ShiftTolerantLPIPS
from changeanywhere.sample import ChangePlan
from tiles import add_source, open_tiles

GUIDED = 2.0
"""Samplers are compared at the guidance that the embedded model recommends."""
REFERENCE = Sampling("ddim", 200, 0.0, GUIDED, "fresh", 1.0)
"""What published code does, guidance aside: 200 DDIM steps, η = 1."""
IMAGES = [
    REFERENCE,
    *(Sampling("dpmsolver++", steps, 0.0, GUIDED) for steps in (20, 15, 10, 8, 6)),
    Sampling("unipc", 10, 0.0, GUIDED),
    Sampling("ddim", 20, 0.0, GUIDED, eta=0.0),
    *(Sampling("dpmsolver++", 8, 0.0, scale) for scale in (1.0, 1.5, 3.0)),
]
SPACINGS = {"even spacing": 1.0, "quadratic spacing": 2.0}
"""Beside the default's exponent, :data:`.samplers.SPACING`."""
CHOSEN = Sampling("dpmsolver++", 8, 0.1, GUIDED, "fixed", dilate_cells=1, window_margin=8)
"""What the embedded model recommends; pairs are painted with one setting changed at a time."""
PAIRS = [
    CHOSEN,
    *(replace(CHOSEN, num_steps=steps) for steps in (6, 10, 15)),
    *(replace(CHOSEN, free_fraction=free) for free in (0.0, 0.25, 0.4)),
    *(replace(CHOSEN, guidance_scale=scale) for scale in (1.0, 1.5, 3.0)),
    *(replace(CHOSEN, dilate_cells=cells) for cells in (0, 2)),
    *(replace(CHOSEN, window_margin=margin) for margin in (4, 16, 0)),
    replace(CHOSEN, window_margin=0, known_noise="fresh"),
]
BATCH = 8


def nearest_cells(change_masks: Tensor, dilate_cells: int = 0) -> Tensor:
    """What resizing a mask by nearest neighbour gives: one pixel of each 4 × 4 cell decides."""
    return F.interpolate(change_masks.float().unsqueeze(1), scale_factor=0.25, mode="nearest") > 0


class Ablation:
    """Real tiles, their masks, the changes asked for, and who judges."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out: Path = arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        device = default_device()
        self.pipe = ChangePairPipeline.from_pretrained(arguments.model, str(device))
        tiles = open_tiles(arguments.source, arguments.licences, self.pipe.model.tile_size)
        self.source = tiles.with_legend(self.pipe.legend)
        self.images, self.masks = real_tiles(self.source)
        self.judge = load_judge(arguments.judge, self.pipe.legend, device, BATCH)
        self.features = load_features(device, BATCH)
        self.real_features = self.features(self.images)
        self.plans = self._plans(arguments.num_pairs)
        self.num_tiles: int = arguments.num_tiles
        self.real_pairs = read_real_pairs(arguments.real_pairs)
        self.metric = ShiftTolerantLPIPS()
        self._real_shifts: np.ndarray | None = None

    def _plans(self, count: int) -> list[tuple[int, ChangePlan]]:
        """One change per tile, appearance and disappearance in turn, in the order of the tiles."""
        plans = []
        for index in range(len(self.source)):
            seed = pair_seed(1, self.source.items[index].key, 0)
            context = EventContext(gsd_m=self.source.items[index].gsd_m)
            plan = simulate(self.masks[index], self.pipe.legend, seed, context=context)
            if plan is not None:
                plans.append((index, plan))
        chosen = np.unique(np.linspace(0, len(plans) - 1, count).astype(int))
        return [plans[i] for i in chosen]

    def paint(self, items: list[tuple[int, ChangePlan]], sampling: Sampling) -> tuple[list[np.ndarray], float]:
        """Images t2 and seconds per image, decoding included."""
        painted: list[np.ndarray] = []
        started = time.perf_counter()
        for start in range(0, len(items), BATCH):
            part = items[start : start + BATCH]
            pixels = np.stack([self.images[i] for i, _ in part])
            masks = np.stack([plan.mask_t2 for _, plan in part])
            changes = np.stack([plan.change_mask for _, plan in part])
            settings = asdict(sampling)
            painted += list(self.pipe(pixels, masks, changes, seed=[p.seed for _, p in part], **settings))
        return painted, (time.perf_counter() - started) / len(items)

    def measure_images(self, name: str, sampling: Sampling) -> dict[str, Any]:
        """Everything is repainted: what the mask alone gives."""
        everywhere = np.ones_like(self.masks[0], bool)
        chosen = np.unique(np.linspace(0, len(self.masks) - 1, self.num_tiles).astype(int))
        items = [(int(i), ChangePlan(self.masks[i], everywhere, (), 1000 + int(i))) for i in chosen]
        painted, seconds = self.paint(items, sampling)
        ours, theirs = Confusion(self.pipe.legend.num_classes), Confusion(self.pipe.legend.num_classes)
        for confusion, images in ((ours, painted), (theirs, [self.images[i] for i in chosen])):
            for i, read in zip(chosen, self.judge(images), strict=True):
                confusion.add(self.masks[i], read)
        distance = kid(self.features(painted), self.real_features)
        self._row("images", name, painted[:: max(1, len(painted) // 8)][:8])
        return {
            "iou": ours.mean_iou(theirs.frequent()),
            "iou_real": theirs.mean_iou(),
            "kid": distance.value,
            "kid_low": distance.low,
            "kid_high": distance.high,
            "seconds": seconds,
        }

    def measure_pairs(self, name: str, sampling: Sampling) -> dict[str, Any]:
        """Changed ground: what the judge reads. Unchanged ground: how far it moved, and how far real dates do."""
        painted, seconds = self.paint(self.plans, sampling)
        recalls = [
            changed_recall(plan.mask_t2, plan.change_mask, read)
            for (_, plan), read in zip(self.plans, self.judge(painted), strict=True)
        ]
        errors, contrasts, found = [], [], []
        for (index, plan), image in zip(self.plans, painted, strict=True):
            far = far_from(plan.change_mask)
            if far.any():
                difference_ = image[far].astype(float) - self.images[index][far]
                errors.append(10 * np.log10(255**2 / max(float(np.square(difference_).mean()), 1e-9)))
            contrasts.append(boundary_contrast(image, plan.change_mask))
            found.append(difference(self.images[index], image, plan.change_mask, self.metric))
        if self._real_shifts is None:
            real = [difference(a, b, change, self.metric) for a, b, change in self.real_pairs]
            self._real_shifts = np.array([r.colour_shift for r in real if r is not None])
        comparison = against_halves(np.array([f.colour_shift for f in found if f is not None]), self._real_shifts)
        self._row("pairs", name, painted[:: max(1, len(painted) // 8)][:8])
        return {
            "recall": float(np.mean([r for r in recalls if r is not None])),
            "psnr": float(np.mean(errors)),
            "edges": float(np.mean([f.gradient_correlation for f in found if f is not None])),
            "colour": comparison.distance,
            "colour_real": comparison.between_halves,
            "seam": float(np.median([c for c in contrasts if c is not None])),
            "seconds": seconds,
        }

    def _row(self, part: str, name: str, images: list[np.ndarray]) -> None:
        """The same eight tiles under every setting."""
        Image.fromarray(np.hstack(images)).save(self.out / f"{part}-{name.replace(' ', '-')}.png")

    def run(
        self, part: str, settings: list[tuple[str, Sampling]], measure: Callable[[str, Sampling], dict[str, Any]]
    ) -> None:
        """Measure what results.jsonl does not have yet."""
        file = self.out / "results.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        done = {(row["part"], row["name"]) for row in rows}
        for name, sampling in settings:
            if (part, name) in done:
                continue
            pooling = nearest_cells if "nearest" in name else changed_cells
            spacing = next((SPACINGS[words] for words in SPACINGS if words in name), samplers.SPACING)
            with patch.object(blended, "changed_cells", pooling), patch.object(samplers, "SPACING", spacing):
                row = {"part": part, "name": name, **asdict(sampling), **measure(name, sampling)}
            rows.append(row)
            with file.open("a") as target:
                target.write(json.dumps(row) + "\n")
            print(part, name, {k: round(v, 4) for k, v in row.items() if isinstance(v, float)}, flush=True)


def name_of(sampling: Sampling) -> str:
    """Short and usable in file names."""
    eta = f"-eta{sampling.eta:g}" if sampling.sampler == "ddim" else ""
    noise = f"-{sampling.known_noise}" if sampling.known_noise != "fixed" else ""
    wide = f"-dilate{sampling.dilate_cells}" if sampling.dilate_cells else ""
    guided = f"-guidance{sampling.guidance_scale:g}" if sampling.guidance_scale != 1 else ""
    window = f"-window{sampling.window_margin}" if sampling.window_margin else ""
    return f"{sampling.sampler}{eta}-{sampling.num_steps}-free{sampling.free_fraction:g}{noise}{wide}{guided}{window}"


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Measure both parts; print as it goes, tables at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--judge", type=Path, required=True, help="segmenter folder")
    parser.add_argument("--real-pairs", type=Path, required=True, help="A/ and B/ of real, mostly unchanged pairs")
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    parser.add_argument("--num-pairs", type=int, default=96, help="pairs per setting")
    parser.add_argument("--num-tiles", type=int, default=165, help="tiles per setting whose masks alone are painted")
    parser.add_argument("--out", type=Path, required=True, help="folder of results; finished settings are kept")
    parser.add_argument("--parts", nargs="*", default=["images", "pairs"], help="images, pairs or both")
    parser.add_argument("--only", nargs="*", help="only these settings, e.g. dpmsolver++-10-free0-guidance2")
    arguments = parser.parse_args(argv)
    ablation = Ablation(arguments)
    images = [(name_of(s), s) for s in IMAGES]
    images += [(f"{words} {n}", Sampling("dpmsolver++", n, 0.0, GUIDED)) for words in SPACINGS for n in (10, 8)]
    pairs = [(name_of(s), s) for s in PAIRS] + [("nearest pooling", replace(CHOSEN, dilate_cells=0))]
    pairs += [(words, CHOSEN) for words in SPACINGS]
    for part, settings, measure in (
        ("images", images, ablation.measure_images),
        ("pairs", pairs, ablation.measure_pairs),
    ):
        if part in arguments.parts:
            wanted = [(name, s) for name, s in settings if arguments.only is None or name in arguments.only]
            ablation.run(part, wanted, measure)
    write_tables(ablation.out)
    write_picture(ablation.out)


def write_picture(out: Path) -> None:
    """``settings.jpg``: the same tiles under some of the settings, a row each, as far as these were measured."""
    wanted = {
        name_of(REFERENCE): "200 DDIM steps, eta = 1",
        "even spacing 8": "8 steps, evenly spaced",
        name_of(Sampling("dpmsolver++", 8, 0.0, GUIDED)): "8 steps, the default's spacing",
        name_of(Sampling("dpmsolver++", 20, 0.0, GUIDED)): "20 steps",
        name_of(Sampling("dpmsolver++", 8, 0.0, 1.0)): "8 steps, guidance 1",
        name_of(Sampling("dpmsolver++", 8, 0.0, 3.0)): "8 steps, guidance 3",
    }
    files = {words: out / f"images-{name.replace(' ', '-')}.png" for name, words in wanted.items()}
    rows = [(words, Image.open(file)) for words, file in files.items() if file.is_file()]
    if not rows:
        return
    width, height = rows[0][1].width * 5 // 8, rows[0][1].height * 5 // 8
    picture = Image.new("RGB", (width, (height + 20) * len(rows)), "white")
    for number, (words, row) in enumerate(rows):
        top = number * (height + 20)
        ImageDraw.Draw(picture).text((4, top + 4), words, fill="black", font=ImageFont.load_default(12))
        picture.paste(row.resize((width, height), Image.Resampling.LANCZOS), (0, top + 20))
    picture.save(out / "settings.jpg", quality=88)


def write_tables(out: Path) -> None:
    """``results.jsonl`` → ``images.md``, ``pairs.md``."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    lines = [
        "| sampler | steps | guidance | judge's mIoU | KID (95 % interval) | s per image |",
        "|---|---|---|---|---|---|",
    ]
    for r in (r for r in rows if r["part"] == "images"):
        sampler = f"{r['sampler']}, η = {r['eta']:g}" if r["sampler"] == "ddim" else r["sampler"]
        sampler += "".join(f", {words}" for words in SPACINGS if words in r["name"])
        lines.append(
            f"| {sampler} | {r['num_steps']} | {r['guidance_scale']:g} | {r['iou']:.3f} | "
            f"{r['kid']:.4f} ({r['kid_low']:.4f} to {r['kid_high']:.4f}) | {r['seconds']:.2f} |"
        )
    (out / "images.md").write_text("\n".join(lines) + "\n")
    lines = [
        "| steps | free fraction | known noise | dilation (cells) | window margin | guidance | recall of new class | "
        "unchanged: PSNR dB | "
        "unchanged: edges | unchanged: colour shift (W1 to real) | contrast at the change border | s per pair |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in (r for r in rows if r["part"] == "pairs"):
        extra = ", nearest pooling" if "nearest" in r["name"] else ""
        spaced = "".join(f", {words}" for words in SPACINGS if words in r["name"])
        lines.append(
            f"| {r['num_steps']}{spaced} | {r['free_fraction']:g} | {r['known_noise']} | {r['dilate_cells']}{extra} | "
            f"{r.get('window_margin') or 'tile'} | {r['guidance_scale']:g} | "
            f"{r['recall']:.3f} | {r['psnr']:.1f} | {r['edges']:.3f} | {r['colour']:.2f} (halves of real: "
            f"{r['colour_real']:.2f}) | {r['seam']:.2f} | {r['seconds']:.2f} |"
        )
    (out / "pairs.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
