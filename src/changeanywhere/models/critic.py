"""A critic: a small segmenter of *noisy latents*, which says what a painting will show before it is finished.

CRITIC/critic.json      format, hashes of the encoder whose latents it reads and of the noise schedule that it saw them
                        under (left out where it is the usual one)
CRITIC/legend.json      what its classes are
CRITIC/unet/            diffusers UNet2DModel: noisy latent and timestep → class logits
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.errors import LegendError, ModelError
from changeanywhere.legend import Legend
from changeanywhere.models.borrowed import DDPMScheduler, UNet2DModel
from changeanywhere.models.checkpoint import read_safetensors
from changeanywhere.models.configuration import DENOISER, read_description
from changeanywhere.models.denoiser import one_hot
from changeanywhere.models.first_stage import DOWNSAMPLING
from changeanywhere.models.folder import WEIGHTS, load_network, noise_schedule, save_part, schedule_hash
from changeanywhere.storage import atomic_folder

FORMAT, FORMAT_VERSION = "changeanywhere-critic", 1
NORM_GROUPS = 8


class Critic(nn.Module):
    """Noisy latents ``[B, 3, h, w]``, timesteps int64 ``[B]`` → logits ``[B, K, h, w]``; channel k is class k + 1."""

    def __init__(self, unet: UNet2DModel, legend: Legend, latents: str, schedule: str | None = None) -> None:
        """``latents``: :func:`latents_hash` of the first stage whose latents it reads; ``schedule``:
        :func:`schedule_hash` of their noise, by default the usual one's."""
        super().__init__()
        self.unet, self.legend, self.latents = unet, legend, latents
        self.schedule = schedule or schedule_hash(noise_schedule())

    @classmethod
    def fresh(
        cls,
        channels: Sequence[int],
        legend: Legend,
        latents: str,
        latent_channels: int = 3,
        schedule: str | None = None,
    ) -> Critic:
        """Random weights; ``channels`` per level, full latent resolution first, multiples of 8."""
        unet = UNet2DModel(
            in_channels=latent_channels,
            out_channels=legend.num_classes,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            norm_num_groups=NORM_GROUPS,
            add_attention=False,
        )
        return cls(unet, legend, latents, schedule)

    def forward(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Logits ``[B, K, h, w]`` float32."""
        dtype = self.unet.conv_in.weight.dtype
        logits: Tensor = self.unet(latents.to(dtype), timesteps).sample
        return logits.float()

    def save(self, folder: Path) -> None:
        """Write a critic's folder, whole, in half precision."""
        description = {"format": FORMAT, "format_version": FORMAT_VERSION, "latents": self.latents}
        if self.schedule != schedule_hash(noise_schedule()):  # said only then: as critics were always written
            description["schedule"] = self.schedule
        with atomic_folder(folder, "critic.json") as part:
            self.legend.save(part / "legend.json")
            save_part(self.unet.half(), part / "unet")
            (part / "critic.json").write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Critic:
        """Read a critic's folder, in float32; :class:`ModelError` naming it if it is not one."""
        description = read_description(folder / "critic.json", FORMAT, FORMAT_VERSION)
        legend = Legend.load(folder / "legend.json")
        for name in ("latents", "schedule"):
            value = description.get(name, "" if name == "schedule" else None)
            if not isinstance(value, str):
                raise ModelError(f"{folder / 'critic.json'}: {name} is {value!r:.80}; allowed: a hash")
        unet = load_network(UNet2DModel, folder / "unet", DENOISER, torch.float32)
        if unet.config.out_channels != legend.num_classes:
            raise ModelError(
                f"{folder}: unet gives {unet.config.out_channels} classes, legend.json has {legend.num_classes}"
            )
        return cls(unet, legend, description["latents"], description.get("schedule")).eval()

    def check_model(self, first_stage: Path, schedule: DDPMScheduler, legend: Legend, folder: Path) -> None:
        """Raise where a model has other latents, noise or classes than this critic, read from ``folder``, was trained
        on."""
        if self.legend.names != legend.names:
            known, asked = ", ".join(self.legend.names), ", ".join(legend.names)
            raise LegendError(f"{folder}: the critic knows {known}; the model has {asked}")
        if self.latents != latents_hash(first_stage):
            raise ModelError(
                f"{folder}: the critic reads latents of another encoder than {first_stage}; train one for this model"
            )
        if self.schedule != schedule_hash(schedule):
            raise ModelError(
                f"{folder}: the critic was trained under another noise schedule than that of {first_stage.parent}; "
                "train one for this model (--init)"
            )


def latents_hash(first_stage: Path) -> str:
    """Of what latents follow from in a folder ``first_stage/``, 16 hexadecimal digits: encoder and statistics. Decoders
    and codebooks may differ."""
    weights = read_safetensors(first_stage / WEIGHTS)
    digest = hashlib.sha256()
    for name in sorted(weights):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode() + weights[name].float().numpy().tobytes())
    statistics = json.loads((first_stage / "latent_statistics.json").read_text())
    digest.update(json.dumps([statistics["latent_mean"], statistics["latent_std"]]).encode())
    return digest.hexdigest()[:16]


def cell_classes(masks: Tensor, num_classes: int) -> Tensor:
    """Masks int64 ``[B, H, W]`` → the most frequent known class of each cell, int64 ``[B, h, w]``; 0 where all of it is
    unknown."""
    shares = F.avg_pool2d(one_hot(masks, num_classes), DOWNSAMPLING)
    most, index = shares.max(1)
    return torch.where(most > 0, index + 1, 0)
