"""What a model folder says of its model, read without torch: enough to plan a set and to know it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from changeanywhere.buckets import local_copy
from changeanywhere.diffusion.options import Sampling
from changeanywhere.documents import parse_json
from changeanywhere.errors import ConfigError, ModelError, OutputError
from changeanywhere.legend import Legend
from changeanywhere.models.configuration import (
    DENOISER,
    FIRST_STAGE,
    MODEL,
    check_rules,
    read_configuration,
    read_object,
)
from changeanywhere.regular import read_regular
from changeanywhere.storage import address_of, file_hash

FORMAT = "changeanywhere-model"
FORMAT_VERSION = 1
DOWNSAMPLING = 4
"""Image px per latent cell (f = 4)."""
SAMPLING_SLACK = 1.25
OF_SEVERAL_FORMS = ("exemplar_strength", "guidance_interval", "free_fraction")
"""Settings of :class:`Sampling` that may be a number or more."""
EMBEDDED_MODEL = "mini"
EMBEDDED_SEGMENTER = "mini-segmenter"
"""The network of the package that reads land cover: it filters and labels, and so never judges."""
EMBEDDED_DETECTOR = "mini-detector"
"""The change detector of the package: a demonstration."""


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
    gsd_m: tuple[float, float] | None = None
    """Finest and coarsest ground sampling, in metres, of the images that it was trained on; None: not said."""
    guided_scale: float | None = None
    """Guidance that a second denoiser of the folder was taught, in one call for two; None: there is none."""


def find_folder(place: str | Path) -> Path:
    """Where a network lies: a path as it is, there or not; of an address (``s3://…``) a copy in the cache, whose bytes
    are held to their hashes. :class:`ModelError` where nothing is at the address or it does not answer."""
    if address_of(place) is None:
        return Path(place)
    try:
        return local_copy(place, verified=True)
    except OutputError as error:
        raise ModelError(str(error)) from error


def find_model(name_or_folder: str | Path) -> Path:
    """Folder of a model: ``mini`` is in the package, else as :func:`find_folder`. :class:`ModelError` if missing."""
    if str(name_or_folder) == EMBEDDED_MODEL:
        return _embedded(EMBEDDED_MODEL)
    path = find_folder(name_or_folder)
    if not path.is_dir():
        raise ModelError(f"{path}: no such model folder; allowed: mini, or a folder or address with model.json")
    return path


def find_segmenter(name_or_folder: str | Path) -> Path:
    """Folder of a segmenter: :data:`EMBEDDED_SEGMENTER` is in the package, else as :func:`find_folder`."""
    return _embedded(EMBEDDED_SEGMENTER) if str(name_or_folder) == EMBEDDED_SEGMENTER else find_folder(name_or_folder)


def find_detector(name_or_folder: str | Path) -> Path:
    """Folder of a change detector: :data:`EMBEDDED_DETECTOR` is in the package, else as :func:`find_folder`."""
    return _embedded(EMBEDDED_DETECTOR) if str(name_or_folder) == EMBEDDED_DETECTOR else find_folder(name_or_folder)


def _embedded(name: str) -> Path:
    return Path(str(resources.files("changeanywhere") / "assets" / name))


def hash_segmenter(name_or_folder: str | Path) -> str:
    """Of a segmenter's weights, 16 hexadecimal digits; :class:`ModelError` if there are none."""
    folder = find_segmenter(name_or_folder)
    try:
        return hashlib.sha256(read_regular(folder / "model.safetensors")).hexdigest()[:16]
    except OSError as error:
        raise ModelError(
            f"{folder}: no segmenter ({error.strerror}: model.safetensors); train one, or give {EMBEDDED_SEGMENTER}"
        ) from error


def read_info(folder: Path) -> ModelInfo:
    """:class:`ModelError` naming the file if ``folder`` is no model of this format."""
    if not (folder / "model.json").is_file():
        raise ModelError(f"{folder}: not a model folder (no model.json); train one, or use --model mini")
    file = folder / "model.json"
    description = read_object(file)
    found = (description.get("format"), description.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ModelError(f"{file}: format {found}; this version reads {(FORMAT, FORMAT_VERSION)}")
    check_rules(description, MODEL, file, ("mask_dropout", "tile_size", "defaults"))
    first_stage, _ = read_configuration(
        folder / "first_stage" / "config.json", "VQModel", FIRST_STAGE, ("in_channels", "latent_channels")
    )
    unet, _ = read_configuration(
        folder / "denoiser" / "config.json", "UNet2DModel", DENOISER, ("in_channels", "block_out_channels")
    )
    bands, stretch, gsd, scale = (description.get(name) for name in ("bands", "stretch", "gsd_m", "guided_scale"))
    if stretch is not None and stretch[0] >= stretch[1]:
        raise ModelError(f"{file}: stretch is {stretch}; allowed: the smaller percentile first")
    if bands is not None and len(bands) != first_stage["in_channels"]:
        raise ModelError(f"{file}: bands is {bands}; the first stage takes {first_stage['in_channels']}")
    return ModelInfo(
        folder=folder,
        legend=Legend.load(folder / "legend.json"),
        weights_hash=hash_model(folder),
        mask_dropout=float(description["mask_dropout"]),
        tile_size=description["tile_size"],
        num_bands=first_stage["in_channels"],
        size_multiple=DOWNSAMPLING * int(2 ** (len(unet["block_out_channels"]) - 1)),
        defaults=_sampling(description["defaults"], file),
        bands=None if bands is None else tuple(bands),
        stretch=None if stretch is None else (float(stretch[0]), float(stretch[1])),
        gsd_m=None if gsd is None else (float(gsd[0]), float(gsd[1])),
        guided_scale=None if scale is None else float(scale),
    )


def _sampling(defaults: dict[str, Any], file: Path) -> dict[str, Any]:
    """Settings that a model recommends: those of :class:`Sampling`, of its types, within its bounds."""
    usual = asdict(Sampling())
    for name, value in defaults.items():
        if name not in usual:
            raise ModelError(f"{file}: defaults.{name} is unknown; allowed: {', '.join(usual)}")
        if name in OF_SEVERAL_FORMS:  # Sampling.check looks at them
            continue
        kind: Any = type(usual[name])
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (isinstance(value, kind) and not isinstance(value, bool)) and not (kind is float and is_number):
            raise ModelError(f"{file}: defaults.{name} is {value!r:.80}; allowed: as in {usual[name]!r}")
    try:
        Sampling(**defaults).check()
    except (ConfigError, TypeError) as error:
        raise ModelError(f"{file}: defaults: {error}") from error
    return dict(defaults)


def sampling_range(gsds: Iterable[float | None]) -> tuple[float, float] | None:
    """Finest and coarsest of the ground samplings of tiles, in metres to three digits; None where one is not known."""
    known = list(gsds)
    stated = [float(f"{gsd:.3g}") for gsd in known if gsd is not None]
    return (min(stated), max(stated)) if stated and len(stated) == len(known) else None


def outside_sampling(info: ModelInfo, gsds: Iterable[float | None]) -> str | None:
    """A warning, with the figure, where tiles are sampled finer or coarser than ``info``'s model knows; None else.

    A quarter more or less is no warning: that is the difference between the flights of one campaign.
    """
    known = [gsd for gsd in gsds if gsd is not None]
    if info.gsd_m is None or not known:
        return None
    low, high = info.gsd_m
    strange = [gsd for gsd in known if not low / SAMPLING_SLACK <= gsd <= high * SAMPLING_SLACK]
    if not strange:
        return None
    found = f"{min(strange):.3g}" if min(strange) == max(strange) else f"{min(strange):.3g} to {max(strange):.3g}"
    return (
        f"{len(strange)} of {len(known)} tiles have a ground sampling of {found} m; the model knows {low:g} to {high:g}"
        " m, and paints objects of the wrong size elsewhere: resample them, or train on such tiles"
    )


def hash_model(folder: Path) -> str:
    """sha256 over names and bytes of all weights and configurations, 16 hexadecimal digits.

    Without the ``gsd_m`` of model.json, on which no pixel depends: a model that says it is the model it was before.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".safetensors", ".json"):
            digest.update(file.relative_to(folder).as_posix().encode())
            try:
                content = read_regular(file)
            except OSError as error:
                raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
            digest.update(_without_sampling(content) if file.name == "model.json" else content)
    return digest.hexdigest()[:16]


def _without_sampling(content: bytes) -> bytes:
    """``model.json`` without the ground sampling: it says what the weights know, and is none of them."""
    try:
        description = parse_json(content)
        del description["gsd_m"]
    except (ValueError, KeyError, TypeError):
        return content
    return (json.dumps(description, indent=1) + "\n").encode()


def hash_files(place: Path) -> str:
    """Of a model whose format is not ours: sha256 over names and bytes of all its files but hidden ones, 16 hexadecimal
    digits; "" where there is nothing."""
    place = find_folder(place)
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(place).as_posix()
        if not any(part.startswith(".") and part != "." for part in name.split("/")):
            digest.update(name.encode() + bytes.fromhex(file_hash(file)))
    return digest.hexdigest()[:16] if files else ""
