"""Train a denoiser on, on latents of the embedded first stage, on one GPU.

    python train_denoiser.py --labelled DATA/landcover/train --images DATA/unlabelled/ventura_naip/images \
        DATA/unlabelled/ucmerced_usgs/images --hold-out eureka bishop --validation DATA/landcover/val \
        --first-stage mini/first_stage --start WEIGHTS --minutes 9.7 --out runs/denoiser

WEIGHTS holds `denoiser/` and `mask_encoder/`. Tiles stay on the device as bytes; every step cuts crops, mirrors half of
them left to right (the sun stays in the south), encodes them with the frozen first stage and takes one AdamW step on
the v-prediction error (l2, mask dropout 0.1, bf16). A share of the crops comes from the unlabelled folders, with the
null mask. The learning rate rises again from nothing and falls along a cosine of the time that is left; an average with
a half-life of 5 % of the steps so far is what is saved, --checkpoints times along the way (each in place of the last)
and at the end, in half precision. `training.jsonl` has every figure from the start.
"""

import argparse
import json
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image

from changeanywhere.legend import load_legend
from changeanywhere.models.denoiser import Denoiser, MaskEncoder
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.folder import load_first_stage, noise_schedule
from changeanywhere.sources import SourceOptions, open_source

LICENCES = ("CC0-1.0", "CC-BY-4.0")
DROPOUT, HALFLIFE, WARMUP, LOG_SHARE = 0.1, 0.05, 200, 0.01


def labelled_tiles(folder, legend):
    """Tiles uint8 ``[N, 256, 256, 3]`` and masks uint8 ``[N, 256, 256]`` that weights may be shipped from."""
    source = open_source(folder, SourceOptions(licences=LICENCES)).with_legend(legend)
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(source.read, range(len(source))))
    return np.stack([s.image for s in samples]), np.stack([s.mask for s in samples])


def plain_tiles(folder, towns):
    """Tiles without masks, those of ``towns`` (names before the year) left out."""
    files = [f for f in sorted(folder.glob("*.jpg")) if f.name.split("_2")[0] not in towns]
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda file: np.asarray(Image.open(file).convert("RGB")), files))
    return np.stack([image for image in images if image.shape == (256, 256, 3)])


def crops(images, masks, chances, crop, batch):
    """Pixels ``[B, 3, crop, crop]`` in [-1, 1], masks int64 ``[B, crop, crop]`` and tile numbers of a random batch."""
    device = images.device
    tile = torch.multinomial(chances, batch, replacement=True)
    offset = torch.randint(256 - crop + 1, (2, batch), device=device)
    line = torch.arange(crop, device=device)
    mirrored = torch.rand(batch, device=device) < 0.5
    rows = (offset[0][:, None] + line)[:, :, None]
    columns = (offset[1][:, None] + torch.where(mirrored[:, None], line.flip(0), line))[:, None, :]
    pixels = images[tile[:, None, None], rows, columns].permute(0, 3, 1, 2).float() / 127.5 - 1
    known = tile.clamp(max=len(masks) - 1)  # the null mask is put in place of what this gives for unlabelled tiles
    return pixels, masks[known[:, None, None], rows, columns].long(), tile


@torch.no_grad()
def noise_error(denoiser, latents, masks, alphas):
    """As benchmarks/noise_error.py: ten timesteps, fixed noise, masks as the condition."""
    generator, errors = torch.Generator().manual_seed(0), []
    for start in range(0, len(latents), 8):
        here = latents[start : start + 8]
        for t in range(50, 1000, 100):
            noise = torch.randn(here.shape, generator=generator).to(here)
            signal, sigma = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
            noisy = signal * here + sigma * noise
            with torch.autocast(here.device.type, dtype=torch.bfloat16):
                times = torch.full((len(here),), t, device=here.device)
                v = denoiser(noisy, times, denoiser.encode_masks(masks[start : start + 8]))
            errors.append((signal * v + sigma * noisy - noise).square().mean())
    return float(torch.stack(errors).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", type=Path, required=True, help="folder of tiles with masks and provenance")
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="folders of *.jpg, 256×256 px, no masks")
    parser.add_argument("--hold-out", nargs="*", default=[], help="towns: names before the year")
    parser.add_argument("--unlabelled-share", type=float, default=0.15)
    parser.add_argument("--validation", type=Path, required=True, help="folder of labelled tiles")
    parser.add_argument("--first-stage", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True, help="folder with denoiser/ and mask_encoder/")
    parser.add_argument("--minutes", type=float, default=11, help="after the first step (compiling)")
    parser.add_argument("--until", type=float, help="or: the time of the end, seconds since 1970")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    torch.manual_seed(arguments.seed)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    legend = load_legend("mini")
    images, masks = labelled_tiles(arguments.labelled, legend)
    parts = [images, *(plain_tiles(folder, arguments.hold_out) for folder in arguments.images)]
    others = sum(len(p) for p in parts[1:])
    unlabelled = arguments.unlabelled_share if others else 0.0
    chances = [torch.full((len(images),), (1 - unlabelled) / len(images))]
    chances += [torch.full((len(p),), unlabelled / len(parts[1:]) / len(p)) for p in parts[1:]]
    chances, masks = torch.cat(chances).to(device), torch.from_numpy(masks).to(device)
    images = torch.from_numpy(np.concatenate(parts)).to(device)

    first_stage = channels_last(load_first_stage(arguments.first_stage).to(device)).requires_grad_(False)
    checks = {}
    for name, (pixels, known) in {
        "val": labelled_tiles(arguments.validation, legend),
        "train": (images[: len(masks)].cpu().numpy(), masks.cpu().numpy()),
    }.items():
        chosen = np.unique(np.linspace(0, len(pixels) - 1, 41).astype(int))
        real = torch.from_numpy(pixels[chosen]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            latents = [first_stage.encode(image) for image in real.split(1)]
        checks[name] = torch.cat(latents), torch.from_numpy(known[chosen]).long().to(device)

    alphas = noise_schedule("v_prediction").alphas_cumprod.to(device)
    unet = UNet2DModel.from_pretrained(arguments.start / "denoiser", local_files_only=True).float()
    encoder = MaskEncoder.from_pretrained(arguments.start / "mask_encoder", local_files_only=True).float()
    denoiser = channels_last(Denoiser(unet, encoder).to(device)).train()
    compiled, vq_model = denoiser.unet, first_stage.vq_model
    vq_encoder = vq_model.encoder
    if not arguments.no_compile:
        compiled, vq_encoder = torch.compile(denoiser.unet), torch.compile(vq_model.encoder)
    weights = list(denoiser.parameters())
    average = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(weights, arguments.learning_rate, weight_decay=0.01, fused=device.type == "cuda")
    log = (arguments.out / "training.jsonl").open("w")
    started = end = None
    step, next_log, next_save, sums = 0, LOG_SHARE, 1 / arguments.checkpoints, []

    def write(line):
        log.write(json.dumps(line) + "\n")
        log.flush()
        print(arguments.out.name, line, flush=True)

    def with_average(work):
        live = [w.detach().clone() for w in weights]
        torch._foreach_copy_([w.data for w in weights], average)
        result = work()
        torch._foreach_copy_([w.data for w in weights], live)
        return result

    def check():
        denoiser.eval()
        figures = {name: round(noise_error(denoiser, *check, alphas), 6) for name, check in checks.items()}
        denoiser.train()
        return figures

    def save():
        writing = arguments.out / "writing"
        shutil.rmtree(writing, ignore_errors=True)
        for name, part in (("denoiser", unet), ("mask_encoder", encoder)):
            copy = type(part).from_config(part.config)
            copy.load_state_dict({k: v.cpu() for k, v in part.state_dict().items()})
            copy.half().save_pretrained(writing / name)
        shutil.rmtree(arguments.out / "weights", ignore_errors=True)
        writing.replace(arguments.out / "weights")

    write({"settings": {k: str(v) for k, v in vars(arguments).items()}, "tiles": [len(p) for p in parts]})
    write({"step": 0, "prepared": round(time.time() - began, 1)} | check())
    while True:
        share = 0.0 if started is None else min((time.time() - started) / (end - started), 1.0)
        if sums and share >= next_log:
            next_log = max(next_log + LOG_SHARE, share)
            line = {"step": step, "share": round(share, 4), "seconds": round(time.time() - started, 1)}
            write(line | {"loss": round(float(torch.stack(sums).mean()), 5)})
            sums = []
        if share >= next_save - 1e-9 or share >= 1:
            next_save += 1 / arguments.checkpoints
            figures = with_average(check)
            with_average(save)
            write({"step": step, "share": round(share, 4), "crops": step * arguments.batch} | figures)
        if share >= 1:
            break
        rate = min(1, (step + 1) / WARMUP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        optimizer.param_groups[0]["lr"] = arguments.learning_rate * rate
        pixels, mask, tile = crops(images, masks, chances, arguments.crop, arguments.batch)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
            raw = vq_model.quant_conv(vq_encoder(pixels)).float()
        latents = (raw - first_stage.latent_mean) / first_stage.latent_std
        times, noise = torch.randint(1000, (len(latents),), device=device), torch.randn_like(latents)
        signal, sigma = (x.sqrt().view(-1, 1, 1, 1) for x in (alphas[times], 1 - alphas[times]))
        dropped = (torch.rand(len(latents), device=device) < DROPOUT) | (tile >= len(masks))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            condition = denoiser.encode_masks(mask, dropped)
            inputs = torch.cat([(signal * latents + sigma * noise).to(condition.dtype), condition], 1)
            v = compiled(inputs.contiguous(memory_format=torch.channels_last), times).sample.float()
        loss = (v - (signal * noise - sigma * latents)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        sums.append(loss.detach())
        torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - 0.5 ** (1 / max(HALFLIFE * step, 1)))
        if step % 16 == 0 and device.type == "cuda":
            torch.cuda.synchronize()  # the clock is the host's: it must not run ahead
        if started is None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.time()
            end = arguments.until or started + 60 * arguments.minutes
            write({"step": 1, "compiled": round(started - began, 1), "train_seconds": round(end - started, 1)})


if __name__ == "__main__":
    main()
