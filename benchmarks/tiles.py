"""The options by which the scripts of this folder find their tiles, and some of these."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from changeanywhere.models.folder import find_model, load_model
from changeanywhere.sample import SourceSample
from changeanywhere.sources import Source, SourceOptions, open_source


def add_source(parser: argparse.ArgumentParser, flag: str = "--source") -> None:
    """``--source`` (or ``flag``) and ``--licences``."""
    parser.add_argument(flag, type=Path, required=True, help="folder of real tiles that nothing was trained on")
    parser.add_argument("--licences", nargs="*", help="only tiles under these licences")


def tile_size_of(model: str) -> int:
    """Height and width in px of the tiles that a model (mini or a folder) was trained on."""
    return load_model(find_model(model)).tile_size


def open_tiles(folder: Path, licences: list[str] | None, tile_size: int) -> Source:
    """The tiles of these licences; default: all."""
    options = SourceOptions(tile_size=tile_size, licences=tuple(licences) if licences else None)
    return open_source(folder, options)


def evenly(source: Source, count: int) -> list[SourceSample]:
    """So many tiles, evenly spaced."""
    places = np.unique(np.linspace(0, len(source) - 1, count).astype(int))
    return [source.read(int(place)) for place in places]


def as_tensor(samples: Sequence[SourceSample]) -> torch.Tensor:
    """Their images float32 ``[N, C, H, W]`` in [-1, 1]."""
    return torch.from_numpy(np.stack([sample.pixels() for sample in samples])).permute(0, 3, 1, 2)
