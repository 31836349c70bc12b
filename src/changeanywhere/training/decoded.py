"""Crops as painted images are: encoded and decoded by a first stage, which takes detail and adds a grain of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from changeanywhere.diffusion.pipeline import DTYPES, default_dtype
from changeanywhere.errors import ConfigError, ModelError
from changeanywhere.models.configuration import FIRST_STAGE, read_configuration
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.folder import load_first_stage
from changeanywhere.models.info import find_model, hash_model
from changeanywhere.seeds import stream

QUANTISED = 0.5
"""Share of decoded crops whose latents are quantised first: models of both habits are read alike."""


def find_first_stage(name_or_folder: str) -> Path:
    """Folder of a first stage of three bands: that of ``mini``, of a model folder, or the folder itself."""
    folder = find_model(name_or_folder)
    folder = folder / "first_stage" if (folder / "first_stage").is_dir() else folder
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no first stage (no config.json); allowed: mini, a model folder, its first_stage/")
    said, _ = read_configuration(folder / "config.json", "VQModel", FIRST_STAGE, ("in_channels",))
    if said["in_channels"] != 3:
        raise ConfigError(
            f"{folder}: takes {said['in_channels']} bands; allowed in segmenter.first_stage: first stages of 3, which "
            "a segmenter reads"
        )
    return folder


def content_of(first_stages: Sequence[str]) -> str:
    """Hash of what crops pass, in its order."""
    return "-".join(hash_model(find_first_stage(name)) for name in first_stages)


@dataclass(frozen=True)
class Drawn:
    """What happens to the crops of a step, for its whole batch."""

    passes: list[bool]
    first_stage: list[int]
    quantised: list[bool]


def draw(share: float, count: int, batch_size: int, seed: int, step: int) -> Drawn:
    """A ``share`` of ``batch_size`` crops pass one of ``count`` first stages, :data:`QUANTISED` of them quantised."""
    rng = stream("training.decoded", seed, step)
    passes, quantised = rng.random(batch_size) < share, rng.random(batch_size) < QUANTISED
    return Drawn(passes.tolist(), rng.integers(count, size=batch_size).tolist(), quantised.tolist())


class Decoded:
    """Sends crops through first stages, in the number format in which ``generate`` would paint on ``device``."""

    def __init__(self, first_stages: Sequence[str], device: torch.device) -> None:
        dtype = DTYPES[default_dtype(device)]
        folders = [find_first_stage(name) for name in first_stages]
        self.first_stages = [channels_last(load_first_stage(folder, dtype).to(device)) for folder in folders]

    @torch.no_grad()
    def __call__(self, images: Tensor, drawn: Drawn, rows: range) -> Tensor:
        """Crops ``[rows, C, H, W]`` in [-1, 1] → the same, some of them decoded."""
        result = images.clone()
        for number, first_stage in enumerate(self.first_stages):
            for quantised in (False, True):
                own = [
                    place
                    for place, row in enumerate(rows)
                    if drawn.passes[row] and drawn.first_stage[row] == number and drawn.quantised[row] == quantised
                ]
                if own:
                    raw = first_stage.encode_raw(images[own])
                    codes = first_stage.quantise(raw)[0] if quantised else raw
                    result[own] = first_stage.decode_codes(codes).clamp(-1, 1)
        return result
