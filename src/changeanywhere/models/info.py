"""What a model folder says of its model, read without torch: enough to plan a set and to know it again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from changeanywhere.errors import ModelError
from changeanywhere.legend import Legend

FORMAT = "changeanywhere-model"
FORMAT_VERSION = 1
DOWNSAMPLING = 4
"""Image px per latent cell (f = 4)."""


@dataclass(frozen=True)
class ModelInfo:
    """A model's folder, what its ``model.json`` says, and what its networks take."""

    folder: Path
    legend: Legend
    weights_hash: str
    mask_dropout: float
    tile_size: int
    num_bands: int
    """Bands of its images."""
    size_multiple: int
    """Height and width of images must be divisible by this (px)."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Settings of :class:`Sampling` that the model recommends."""
    bands: tuple[int, ...] | None = None
    """1-based band numbers that it was trained on; None: not said (first edition)."""
    stretch: tuple[float, float] | None = None
    """Percentiles that were black and white in training; None: not said."""


def find_model(name_or_folder: str | Path) -> Path:
    """Folder of a model: ``mini`` is in the package, anything else is a path. :class:`ModelError` if missing."""
    if str(name_or_folder) == "mini":
        return Path(str(resources.files("changeanywhere") / "assets" / "mini"))
    path = Path(name_or_folder)
    if not path.is_dir():
        raise ModelError(f"{path}: no such model folder; allowed: mini, or a folder with model.json")
    return path


def read_info(folder: Path) -> ModelInfo:
    """:class:`ModelError` naming the file if ``folder`` is no model of this format."""
    if not (folder / "model.json").is_file():
        raise ModelError(f"{folder}: not a model folder (no model.json); train one, or use --model mini")
    description = _json(folder / "model.json")
    found = (description.get("format"), description.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ModelError(f"{folder / 'model.json'}: format {found}; this version reads {(FORMAT, FORMAT_VERSION)}")
    first_stage = _json(folder / "first_stage" / "config.json")
    unet = _json(folder / "denoiser" / "config.json")
    try:
        bands, stretch = description.get("bands"), description.get("stretch")
        return ModelInfo(
            folder=folder,
            legend=Legend.load(folder / "legend.json"),
            weights_hash=hash_model(folder),
            mask_dropout=float(description["mask_dropout"]),
            tile_size=int(description["tile_size"]),
            num_bands=int(first_stage["in_channels"]),
            size_multiple=DOWNSAMPLING * int(2 ** (len(unet["block_out_channels"]) - 1)),
            defaults=dict(description["defaults"]),
            bands=None if bands is None else tuple(int(band) for band in bands),
            stretch=None if stretch is None else (float(stretch[0]), float(stretch[1])),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"{folder}: cannot be loaded (a configuration lacks {error})") from error


def hash_model(folder: Path) -> str:
    """sha256 over names and bytes of all weights and configurations, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".safetensors", ".json"):
            digest.update(file.relative_to(folder).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def hash_files(place: Path) -> str:
    """Of a model whose format is not ours: sha256 over names and bytes of all its files but hidden ones, 16 hexadecimal
    digits; "" where there is nothing."""
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(place).as_posix()
        if not any(part.startswith(".") and part != "." for part in name.split("/")):
            with file.open("rb") as content:
                digest.update(name.encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16] if files else ""


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{file.parent}: cannot be loaded ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: not a JSON object")
    return content
