"""Train the decoder of a first stage on, encoder and codebook frozen, on one GPU: what a denoiser paints stays valid.

    python train_decoder.py --labelled DATA/landcover/train --images DATA/unlabelled/ventura_naip/images \
        DATA/unlabelled/ucmerced_usgs/images --hold-out eureka bishop --validation DATA/landcover/val \
        --first-stage mini/first_stage --minutes 9.7 --adversarial 0.1 --out runs/decoder

Tiles stay on the device as bytes. A step cuts crops (half of them from the labelled tiles, the rest in equal parts from
the folders of --images), mirrors half of them left to right, encodes them, adds noise of up to --noise standard
deviations to the latents, decodes them *without* quantising and takes one step on
L1 + 2 colour + ST-LPIPS + adversarial weight × hinge.

The discriminator has spectral norms everywhere and looks twice: at the pixels (full resolution first) and, in five
small heads, at the feature maps that ST-LPIPS has computed anyway. The adversarial weight is a share of the other
losses' gradient at the last layer (Esser et al. 2021), measured every 8 steps and averaged; it sets in after 300 steps.

An average of the weights, half-life 5 % of the steps so far, is what is saved, --checkpoints times along the way and at
the end, as `step-NNNNNN.safetensors` (decoder.* and post_quant_conv.*); `put_decoder.py` makes a folder of one. The
end comes by the clock; the learning rates fall along a cosine of it. `training.jsonl` has every figure from the start.
"""

import argparse
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch._functorch.config
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.folder import load_first_stage
from changeanywhere.models.perceptual import ShiftTolerantLPIPS
from changeanywhere.sources import SourceOptions, open_source

LICENCES = ("CC0-1.0", "CC-BY-4.0")
CHROMA, HALFLIFE, WARMUP = 2.0, 0.05, 100
ADVERSARIAL_FROM, ADVERSARIAL_RAMP, WEIGHT_EVERY, WEIGHT_MEMORY = 300, 700, 8, 0.9
LOG_SHARE = 0.01


def tiles(files):
    """Images ``[N, 256, 256, 3]`` uint8."""
    with ThreadPoolExecutor(8) as pool:
        return np.stack(list(pool.map(lambda file: np.asarray(Image.open(file).convert("RGB")), files)))


def labelled_tiles(folder):
    """The tiles of a labelled folder under the licences that weights may be shipped from."""
    source = open_source(folder, SourceOptions(licences=LICENCES))
    with ThreadPoolExecutor(8) as pool:
        return np.stack(list(pool.map(lambda i: source.read(i).image, range(len(source)))))


def is_held_out(file, towns):
    return file.name.split("_2")[0] in towns


def plain_tiles(folder, towns, held):
    files = [f for f in sorted(folder.glob("*.jpg")) if is_held_out(f, towns) == held]
    sizes_fit = [f for f in files if Image.open(f).size == (256, 256)]
    return tiles(sizes_fit) if sizes_fit else np.zeros((0, 256, 256, 3), np.uint8)


def crops(images, chances, crop, batch):
    """Pixels ``[B, 3, crop, crop]`` in [-1, 1], half of them mirrored."""
    device = images.device
    tile = torch.multinomial(chances, batch, replacement=True)
    offset = torch.randint(256 - crop + 1, (2, batch), device=device)
    line = torch.arange(crop, device=device)
    mirrored = torch.rand(batch, device=device) < 0.5
    rows = (offset[0][:, None] + line)[:, :, None]
    columns = (offset[1][:, None] + torch.where(mirrored[:, None], line.flip(0), line))[:, None, :]
    return images[tile[:, None, None], rows, columns].permute(0, 3, 1, 2).float() / 127.5 - 1


def convolution(*arguments, **settings):
    return spectral_norm(nn.Conv2d(*arguments, **settings))


class Discriminator(nn.Module):
    """Images and their five feature maps → a list of logit maps, > 0 = looks real."""

    def __init__(self, channels, feature_channels):
        super().__init__()
        self.pixels = nn.Sequential(
            convolution(3, channels, 3, padding=1),
            nn.LeakyReLU(0.2),
            convolution(channels, 2 * channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            convolution(2 * channels, 4 * channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            convolution(4 * channels, 4 * channels, 3, padding=1),
            nn.LeakyReLU(0.2),
            convolution(4 * channels, 1, 3, padding=1),
        )
        self.heads = nn.ModuleList(
            nn.Sequential(
                convolution(c, channels, 1),
                nn.LeakyReLU(0.2),
                convolution(channels, channels, 3, padding=1),
                nn.LeakyReLU(0.2),
                convolution(channels, 1, 1),
            )
            for c in feature_channels
        )

    def forward(self, images, maps):
        # Maps have unit length over channels: brought to a variance of about one.
        return [self.pixels(images)] + [head(m * m.shape[1] ** 0.5) for head, m in zip(self.heads, maps, strict=True)]


def mean_over(maps, term):
    """Half the weight to the pixels, half to the heads together."""
    terms = [term(m.float()).mean() for m in maps]
    return 0.5 * terms[0] + 0.5 * torch.stack(terms[1:]).mean()


def chroma(images):
    return images - images.mean(1, keepdim=True)


def bands(images):
    """Energy of the brightness in three octaves below the Nyquist frequency, summed over images ``[3]``."""
    grey = images.mean(1)
    power = torch.fft.rfft2(grey - grey.mean((1, 2), keepdim=True)).abs().square().sum(0)
    radius = torch.maximum(
        torch.fft.fftfreq(grey.shape[1], device=grey.device).abs()[:, None],
        torch.fft.rfftfreq(grey.shape[2], device=grey.device)[None],
    )
    edges = (0.0625, 0.125, 0.25, 0.51)
    return torch.stack([power[(radius >= a) & (radius < b)].sum() for a, b in pairwise(edges)])


@torch.no_grad()
def validate(first_stage, perceptual, sets):
    """PSNR, ST-LPIPS and energy ratios per octave (coarse to fine) of whole tiles, latents not quantised."""
    figures = {}
    for name, images in sets.items():
        mse, distance, energy = [], [], torch.zeros(2, 3, device=images.device)
        for start in range(0, len(images), 8):
            real = images[start : start + 8].permute(0, 3, 1, 2).float() / 127.5 - 1
            decoded = first_stage.decode_codes(first_stage.encode_raw(real)).clamp(-1, 1)
            mse.append((decoded - real).square().mean((1, 2, 3)))
            distance.append(perceptual(decoded, real))
            energy += torch.stack([bands(decoded), bands(real)])
        figures[f"{name}_psnr"] = float((10 * torch.log10(4 / torch.cat(mse))).mean())
        figures[f"{name}_st_lpips"] = float(torch.cat(distance).mean())
        figures[f"{name}_energy"] = [round(float(v), 3) for v in energy[0] / energy[1]]
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", type=Path, required=True, help="folder of tiles with masks and provenance")
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="folders of *.jpg, 256×256 px")
    parser.add_argument("--hold-out", nargs="*", default=[], help="towns: names before the year; these validate")
    parser.add_argument("--validation", type=Path, required=True, help="folder of labelled tiles")
    parser.add_argument("--first-stage", type=Path, required=True, help="folder to start from")
    parser.add_argument("--perceptual", type=Path, help="weight file of stlpips-pytorch; default: the installed one")
    parser.add_argument("--minutes", type=float, default=11, help="after the first step (compiling)")
    parser.add_argument("--until", type=float, help="or: the time of the end, seconds since 1970")
    parser.add_argument("--adversarial", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--channels", type=int, default=64, help="of the discriminator")
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    torch.manual_seed(arguments.seed)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    parts = [labelled_tiles(arguments.labelled)]
    parts += [plain_tiles(folder, arguments.hold_out, held=False) for folder in arguments.images]
    shares = [0.5] + [0.5 / max(len(parts) - 1, 1)] * (len(parts) - 1)
    chances = torch.cat([torch.full((len(p),), s / len(p)) for p, s in zip(parts, shares, strict=True)]).to(device)
    images = torch.from_numpy(np.concatenate(parts)).to(device)
    held = labelled_tiles(arguments.validation)
    held = held[np.unique(np.linspace(0, len(held) - 1, 41).astype(int))]
    sets = {"val": torch.from_numpy(held).to(device)}
    for folder in arguments.images:
        elsewhere = plain_tiles(folder, arguments.hold_out, held=True)
        if len(elsewhere):
            sets["towns"] = torch.from_numpy(elsewhere).to(device)

    first_stage = channels_last(load_first_stage(arguments.first_stage).to(device))
    vq_model = first_stage.vq_model.requires_grad_(False)
    trained = nn.ModuleDict({"decoder": vq_model.decoder, "post_quant_conv": vq_model.post_quant_conv})
    trained.requires_grad_(True)
    weights = list(trained.parameters())
    average = [w.detach().clone() for w in weights]
    perceptual = channels_last(ShiftTolerantLPIPS(arguments.perceptual).to(device))
    discriminator = channels_last(
        Discriminator(arguments.channels, [c.out_channels for c in perceptual.convolutions]).to(device)
    )
    fused = device.type == "cuda"
    optimizer = torch.optim.Adam(weights, arguments.learning_rate, betas=(0.5, 0.99), fused=fused)
    critic_optimizer = torch.optim.Adam(
        discriminator.parameters(), 1.5 * arguments.learning_rate, betas=(0.5, 0.99), fused=fused
    )
    encode, features, decode = first_stage.encode_raw, perceptual.features, first_stage.decode_codes
    if not arguments.no_compile:
        torch._functorch.config.donated_buffer = False  # the adaptive weight goes backward twice
        encoder, decoder = torch.compile(vq_model.encoder), torch.compile(vq_model.decoder)
        features = torch.compile(perceptual.features)

        def encode(pixels):
            return vq_model.quant_conv(encoder(pixels)).float()

        def decode(raw):
            return decoder(vq_model.post_quant_conv(raw)).float()

    log = (arguments.out / "training.jsonl").open("w")
    last_layer = vq_model.decoder.conv_out.weight
    started = end = None
    step, next_log, next_save, ratio, sums = 0, LOG_SHARE, 1 / arguments.checkpoints, None, {}

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

    def save():
        part = arguments.out / "writing"
        save_file({k: v.detach().contiguous().cpu() for k, v in trained.state_dict().items()}, part)
        part.replace(arguments.out / f"step-{step:06d}.safetensors")

    write({"settings": {k: str(v) for k, v in vars(arguments).items()}, "tiles": [len(p) for p in parts]})
    write({"step": 0, "prepared": round(time.time() - began, 1)} | validate(first_stage, perceptual, sets))
    while True:
        share = 0.0 if started is None else min((time.time() - started) / (end - started), 1.0)
        if sums and share >= next_log:
            next_log = max(next_log + LOG_SHARE, share)
            count = sums.pop("count")
            line = {"step": step, "share": round(share, 4), "seconds": round(time.time() - started, 1)}
            write(line | {k: round(float(v) / count, 5) for k, v in sums.items()})
            sums = {}
        if share >= next_save - 1e-9 or share >= 1:
            next_save += 1 / arguments.checkpoints
            figures = with_average(lambda: validate(first_stage, perceptual, sets))
            with_average(save)
            write({"step": step, "share": round(share, 4), "crops": step * arguments.batch} | figures)
        if share >= 1:
            break
        rate = min(1, (step + 1) / WARMUP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        optimizer.param_groups[0]["lr"] = arguments.learning_rate * rate
        critic_optimizer.param_groups[0]["lr"] = 1.5 * arguments.learning_rate * rate

        real = crops(images, chances, arguments.crop, arguments.batch).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            with torch.no_grad():
                raw = encode(real)
                amount = arguments.noise * torch.rand(len(raw), 1, 1, 1, device=device)
                raw = raw + amount * first_stage.latent_std * torch.randn_like(raw)
                real_maps = features(real)
            decoded = decode(raw)
            maps = features(decoded)
            distance = sum(
                F.conv2d((a - b).square(), head).float().mean()
                for a, b, head in zip(maps, real_maps, perceptual.heads, strict=True)
            )
            l1, colour = F.l1_loss(decoded, real), F.l1_loss(chroma(decoded), chroma(real))
            reconstruction = l1 + CHROMA * colour + distance
            discriminator.requires_grad_(False)
            adversarial = -mean_over(discriminator(decoded, maps), lambda x: x)
            discriminator.requires_grad_(True)
        if step % WEIGHT_EVERY == 0:
            norms = [
                torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
                for loss in (reconstruction, adversarial)
            ]
            now = (norms[0] / (norms[1] + 1e-6)).clamp(0, 1e4).detach()
            ratio = now if ratio is None else ratio.lerp(now, 1 - WEIGHT_MEMORY)
        strength = arguments.adversarial * min(max((step - ADVERSARIAL_FROM) / ADVERSARIAL_RAMP, 0), 1)
        loss = reconstruction + strength * ratio * adversarial
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

        with torch.autocast(device.type, dtype=torch.bfloat16):
            both = torch.cat([real, decoded.detach()])
            logits = discriminator(both, [torch.cat([a, b.detach()]) for a, b in zip(real_maps, maps, strict=True)])
            half = arguments.batch
            critic = mean_over([x[:half] for x in logits], lambda x: F.relu(1 - x)) + mean_over(
                [x[half:] for x in logits], lambda x: F.relu(1 + x)
            )
        critic_optimizer.zero_grad(set_to_none=True)
        critic.backward()
        critic_optimizer.step()
        step += 1
        torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - 0.5 ** (1 / max(HALFLIFE * step, 1)))
        values = {"l1": l1, "colour": colour, "st_lpips": distance, "adversarial": adversarial, "critic": critic}
        for name, value in (values | {"weight": ratio * strength, "gradient_norm": norm}).items():
            sums[name] = sums.get(name, 0) + value.detach().double()
        sums["count"] = sums.get("count", 0) + 1
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
