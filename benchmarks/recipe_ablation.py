"""What the recipe's choices buy: short trainings that differ in one thing, measured on tiles nobody trained on.

    python benchmarks/recipe_ablation.py --config recipes/mini.yaml --val ../shared/data/landcover/val \
        --licences CC0-1.0 CC-BY-4.0 --judge runs/judge/segmenter --first-stage runs/mini --out runs/recipe

Denoisers learn on the finished first stage of --first-stage (a run's folder; its latents serve again). All variants of
a stage take the same number of steps, over as many pixels, with the recipe's schedule squeezed into them. Writes
OUT/denoiser.md, OUT/first_stage.md and a line per variant into OUT/results.jsonl; every part resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from changeanywhere.diffusion.pipeline import ChangePairPipeline, default_device
from changeanywhere.evaluation.distances import kid
from changeanywhere.evaluation.of_model import paint, real_tiles
from changeanywhere.evaluation.reading import load_features, load_judge
from changeanywhere.evaluation.scores import Confusion
from changeanywhere.models.folder import load_first_stage
from changeanywhere.models.perceptual import ShiftTolerantLPIPS
from changeanywhere.training.codebook import perplexity
from changeanywhere.training.command import open_training_source
from changeanywhere.training.denoiser import train_denoiser
from changeanywhere.training.first_stage import train_first_stage
from changeanywhere.training.recipe import FirstStageRecipe
from noise_error import noise_error
from reconstruction import measure
from tiles import add_source, open_tiles
from training import read_recipe

BATCH = 8
DENOISERS: dict[str, dict[str, Any]] = {
    "as in the recipe": {},
    "ε instead of v": {"prediction_type": "epsilon"},
    "min-SNR, γ = 5": {"min_snr_gamma": 5.0},
    "3 mask channels instead of 16": {"mask_channels": 3},
    "tiles of 128 px, four times as many": {"tile_size": 128, "batch_size": 16},
}
FIRST_STAGES: dict[str, dict[str, Any]] = {
    "as in the recipe": {},
    "thinner: 8-16-32": {"channels": [8, 16, 32]},
    "wider: 32-64-128": {"channels": [32, 64, 128]},
    "crops of 64 px, batch 9": {"crop_size": 64, "batch_size": 9},
    "crops of 192 px, batch 1": {"crop_size": 192, "batch_size": 1},
}


def squeeze(recipe: FirstStageRecipe, num_steps: int) -> FirstStageRecipe:
    """The same schedule in fewer steps."""
    share = num_steps / recipe.num_steps
    starts = ("quantise_from_step", "perceptual_from_step", "adversarial_from_step", "restart_codes_every")
    earlier: dict[str, Any] = {name: int(getattr(recipe, name) * share) for name in starts}
    return replace(recipe, num_steps=num_steps, **earlier)


class Trials:
    """Real tiles that judge the variants, and what is measured on them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out: Path = arguments.out
        self.recipe = read_recipe(arguments.config)
        self.finished: Path = arguments.first_stage
        self.judge: Path = arguments.judge
        self.val = open_tiles(arguments.val, arguments.licences, self.recipe.data.tile_size)
        self.num_images: int = arguments.num_images

    def denoiser(self, name: str, changes: dict[str, Any], num_steps: int) -> dict[str, Any]:
        """Train one variant and measure the images it paints from validation masks."""
        changes = dict(changes)
        tile_size = changes.pop("tile_size", self.recipe.data.tile_size)
        recipe = replace(
            self.recipe,
            data=replace(self.recipe.data, tile_size=tile_size),
            denoiser=replace(self.recipe.denoiser, num_steps=num_steps, **changes),
        )
        out = self.out / f"denoiser-{slug(name)}"
        latents = out / "training" / "latents"
        if tile_size == self.recipe.data.tile_size and not latents.exists():
            # The same files under another name: a folder of a run may not lead elsewhere.
            shutil.copytree(self.finished / "training" / "latents", latents, copy_function=os.link)
        source = open_training_source(recipe.data)
        clock = Clock(out / "training" / "denoiser", num_steps)
        model = train_denoiser(source, recipe, out, self.finished / "first_stage")
        return {"cpu_seconds_per_step": clock.per_step(), **self._of_model(model)}

    @torch.no_grad()
    def _of_model(self, folder: Path) -> dict[str, float]:
        device = default_device()
        pipe = ChangePairPipeline.from_pretrained(str(folder), str(device))
        real, masks = real_tiles(self.val.with_legend(pipe.legend))
        chosen = np.unique(np.linspace(0, len(masks) - 1, self.num_images).astype(int))
        batches = paint(pipe, [masks[i] for i in chosen], [int(i) for i in chosen], BATCH)
        painted = [image for images in batches for image in images]
        ours, theirs = Confusion(pipe.legend.num_classes), Confusion(pipe.legend.num_classes)
        judge = load_judge(self.judge, pipe.legend, device, BATCH)
        for confusion, images in ((ours, painted), (theirs, [real[i] for i in chosen])):
            for i, read in zip(chosen, judge(images), strict=True):
                confusion.add(masks[i], read)
        features = load_features(device, BATCH)
        distance = kid(features(painted), features(real))
        drift = [abs(float(one.mean()) - float(real[i].mean())) for i, one in zip(chosen, painted, strict=True)]
        return {
            "noise_error": noise_error(pipe, [real[i] for i in chosen], [masks[i] for i in chosen]),
            "iou": ours.mean_iou(theirs.frequent()),
            "iou_real": theirs.mean_iou(),
            "kid": distance.value,
            "kid_low": distance.low,
            "kid_high": distance.high,
            "brightness": float(np.mean(drift)),
        }

    def first_stage(self, name: str, changes: dict[str, Any], num_steps: int) -> dict[str, Any]:
        """Train one variant and measure its reconstructions."""
        recipe = replace(self.recipe, first_stage=squeeze(replace(self.recipe.first_stage, **changes), num_steps))
        out = self.out / f"first-stage-{slug(name)}"
        clock = Clock(out / "training" / "first_stage", num_steps)
        folder = train_first_stage(open_training_source(recipe.data), recipe, out)
        return {"cpu_seconds_per_step": clock.per_step(), **self._of_first_stage(folder)}

    @torch.no_grad()
    def _of_first_stage(self, folder: Path) -> dict[str, float]:
        net = load_first_stage(folder).eval()
        metric = ShiftTolerantLPIPS()
        rows: list[np.ndarray] = []
        usage = torch.zeros(len(net.codebook), dtype=torch.long)
        images, _ = real_tiles(self.val)
        for start in range(0, len(images), BATCH):
            pixels: Tensor = torch.from_numpy(np.stack(images[start : start + BATCH])).permute(0, 3, 1, 2) / 127.5 - 1
            latents = net.encode(pixels)
            usage += torch.bincount(
                net.quantise(latents * net.latent_std + net.latent_mean)[1].flatten(), minlength=len(usage)
            )
            rows.extend(measure(pixels, net.decode(latents).clamp(-1, 1), metric))
        psnr, ssim, colour, distance = (float(v) for v in np.mean(rows, 0))
        used = float(perplexity(usage))
        return {"psnr": psnr, "ssim": ssim, "colour": colour, "st_lpips": distance, "perplexity": used}


def slug(name: str) -> str:
    """A folder name."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.replace("ε", "epsilon"))


class Clock:
    """CPU seconds per step of this process: neither other programs nor pauses count."""

    def __init__(self, folder: Path, num_steps: int) -> None:
        log = folder / "metrics.jsonl"
        done = int(json.loads(log.read_text().splitlines()[-1])["step"]) if log.exists() else 0
        self._steps, self._started = num_steps - done, time.process_time()

    def per_step(self) -> float:
        """Of the steps since the clock was made; NaN if there were none."""
        return (time.process_time() - self._started) / self._steps if self._steps > 0 else float("nan")


COLUMNS: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "denoiser": {
        "noise error": lambda r: f"{r['noise_error']:.4f}",
        "judge's mean IoU (real)": lambda r: f"{r['iou']:.3f} ({r['iou_real']:.3f})",
        "KID": lambda r: f"{r['kid']:.3f} ({r['kid_low']:.3f} to {r['kid_high']:.3f})",
        "brightness off by": lambda r: f"{r['brightness']:.1f}",
    },
    "first_stage": {
        "PSNR dB": lambda r: f"{r['psnr']:.2f}",
        "SSIM": lambda r: f"{r['ssim']:.3f}",
        "ΔE2000": lambda r: f"{r['colour']:.2f}",
        "ST-LPIPS": lambda r: f"{r['st_lpips']:.3f}",
        "perplexity": lambda r: f"{r['perplexity']:.0f}",
        "CPU s per step": lambda r: f"{r['cpu_seconds_per_step']:.2f}",
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure what results.jsonl does not have yet; write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("recipes/mini.yaml"), help="the recipe to vary")
    add_source(parser, "--val")
    parser.add_argument("--judge", type=Path, required=True, help="segmenter folder")
    parser.add_argument("--first-stage", type=Path, required=True, help="run with the first stage that denoisers use")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--stages", nargs="*", default=["denoiser", "first_stage"], choices=list(COLUMNS))
    parser.add_argument("--denoiser-steps", type=int, default=800, help="steps of each denoiser")
    parser.add_argument("--first-stage-steps", type=int, default=1000, help="steps of each first stage")
    parser.add_argument("--num-images", type=int, default=82, help="validation tiles to paint")
    parser.add_argument("--only", nargs="*", help="only these variants, e.g. 'as in the recipe'")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    trials = Trials(arguments)
    file = arguments.out / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["stage"], row["name"]) for row in rows}
    for stage in arguments.stages:
        is_denoiser = stage == "denoiser"
        steps = arguments.denoiser_steps if is_denoiser else arguments.first_stage_steps
        for name, changes in (DENOISERS if is_denoiser else FIRST_STAGES).items():
            if (stage, name) in done or (arguments.only is not None and name not in arguments.only):
                continue
            work = trials.denoiser if is_denoiser else trials.first_stage
            row = {"stage": stage, "name": name, "steps": steps, **work(name, changes, steps)}
            rows.append(row)
            with file.open("a") as target:
                target.write(json.dumps(row) + "\n")
            print(row, flush=True)
        cells = COLUMNS[stage]
        table = [f"| {stage} | " + " | ".join(cells) + " |", "|---" * (len(cells) + 1) + "|"]
        table += [
            f"| {r['name']} | " + " | ".join(cell(r) for cell in cells.values()) + " |"
            for r in rows
            if r["stage"] == stage
        ]
        (arguments.out / f"{stage}.md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
