"""A model on disk.

MODEL/model.json                what it is: format, mask dropout, tile size, default generation settings, and bands and
                                stretch of the images it was trained on (left out where they are the usual ones),
                                and their ground sampling in metres, finest and coarsest (left out where not known)
MODEL/legend.json               its legend
MODEL/first_stage/              diffusers VQModel (config.json, safetensors) + latent_statistics.json (mean, standard
                                deviation; "quantises": false where it decodes latents as they are)
MODEL/denoiser/                 diffusers UNet2DModel
MODEL/denoiser_guided/          one more, where there is one: taught what the other says with guidance guided_scale
                                (model.json), in one call for two
MODEL/mask_encoder/             MaskEncoder (config.json, safetensors)
MODEL/scheduler/                diffusers scheduler_config.json: noise schedule and prediction type
MODEL/README.md                 model card
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from changeanywhere.errors import ModelError, OutputError
from changeanywhere.legend import Legend
from changeanywhere.models.borrowed import DDPMScheduler, FrozenDict, ModelMixin, UNet2DModel, VQModel
from changeanywhere.models.checkpoint import read_safetensors
from changeanywhere.models.configuration import (
    DENOISER,
    FIRST_STAGE,
    FLAG,
    MASK_ENCODER,
    SCHEDULER,
    Rule,
    check_rules,
    listing,
    read_configuration,
    read_object,
    real,
)
from changeanywhere.models.denoiser import Denoiser, MaskEncoder
from changeanywhere.models.first_stage import FirstStage
from changeanywhere.models.info import FORMAT, FORMAT_VERSION, find_model, hash_model, read_info
from changeanywhere.models.weights import load_weights
from changeanywhere.storage import atomic_folder

MAX_FILE = "15MB"  # code hosts and mail gateways refuse larger files without special storage
WEIGHTS = "diffusion_pytorch_model.safetensors"
GUIDED = "denoiser_guided"
NOISE_SETTINGS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
"""Of a scheduler: how much noise there is at each timestep."""

__all__ = [
    "Model",
    "find_model",
    "hash_model",
    "load_first_stage",
    "load_model",
    "load_schedule",
    "noise_schedule",
    "save_first_stage",
    "save_model",
    "schedule_hash",
]


@dataclass
class Model:
    """First stage, denoiser, noise schedule, legend, and what is known about them."""

    first_stage: FirstStage
    denoiser: Denoiser
    schedule: DDPMScheduler
    legend: Legend
    mask_dropout: float = 0.0
    tile_size: int = 256
    defaults: dict[str, Any] = field(default_factory=dict)
    weights_hash: str = ""
    bands: tuple[int, ...] | None = None
    """Band numbers, from 1, of the images that it was trained on; None: the first three."""
    stretch: tuple[float, float] | None = None
    """Percentiles that became black and white in images of other than 8 bits; None: 2 and 98."""
    gsd_m: tuple[float, float] | None = None
    """Finest and coarsest ground sampling in metres of the images that it was trained on; None: not known."""


def noise_schedule(prediction_type: str = "epsilon") -> DDPMScheduler:
    """T = 1000, β linear in √ from 0.0015 to 0.0205 (paper/notes.md; latent diffusion's "linear" schedule)."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.0015,
        beta_end=0.0205,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
    )


def load_schedule(folder: Path) -> DDPMScheduler:
    """The noise schedule of a model folder; :class:`ModelError` naming file and cause if it has none."""
    place = folder / "scheduler" / "scheduler_config.json"
    return _built(DDPMScheduler, *read_configuration(place, "DDPMScheduler", SCHEDULER), place)


def schedule_hash(schedule: DDPMScheduler) -> str:
    """Of how much noise there is at each timestep, 16 hexadecimal digits, whatever is predicted of it."""
    settings = [schedule.config[name] for name in NOISE_SETTINGS]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def save_first_stage(first_stage: FirstStage, folder: Path) -> None:
    """Write the folder ``first_stage/``, whole."""
    with atomic_folder(folder, "config.json") as part:
        _write_first_stage(first_stage, part)


def _write_first_stage(first_stage: FirstStage, folder: Path) -> None:
    save_part(first_stage.vq_model, folder)
    statistics: dict[str, Any] = {
        "latent_mean": first_stage.latent_mean.flatten().tolist(),
        "latent_std": first_stage.latent_std.flatten().tolist(),
    }
    if not first_stage.quantises:  # said only then: a model that does has the hash that it always had
        statistics["quantises"] = False
    (folder / "latent_statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")


def save_part(part: ModelMixin, folder: Path) -> None:
    """``save_pretrained``, with weights that whoever reads the config can read: safetensors makes them private (0600),
    which nobody expects of a folder that is shared on a cluster."""
    part._internal_dict = FrozenDict({k: v for k, v in part.config.items() if k != "_name_or_path"})  # of this machine
    try:
        part.save_pretrained(folder, max_shard_size=MAX_FILE)
    except SafetensorError as error:  # a full disk
        raise OutputError(f"{folder}: cannot be written ({error})") from error
    for weights in folder.glob("*.safetensors"):
        weights.chmod((folder / "config.json").stat().st_mode)


def load_first_stage(folder: Path, dtype: torch.dtype = torch.float32) -> FirstStage:
    """Read ``first_stage/``; :class:`ModelError` if it is not one."""
    vq_model = load_network(VQModel, folder, FIRST_STAGE, torch.float32)
    channels = int(vq_model.config.latent_channels)
    if (vq_model.config.vq_embed_dim or channels) != channels:
        raise ModelError(
            f"{folder / 'config.json'}: vq_embed_dim is not latent_channels, {channels}; allowed: the same"
        )
    file = folder / "latent_statistics.json"
    rules = {"latent_mean": listing(real(-1e6, 1e6), channels, channels)}
    rules["latent_std"] = listing(real(1e-9, 1e6), channels, channels)
    needed = tuple(rules)
    statistics = check_rules(read_object(file), rules | {"quantises": FLAG}, file, needed)
    first_stage = FirstStage(
        vq_model, statistics["latent_mean"], statistics["latent_std"], statistics.get("quantises", True)
    )
    cast_keeping_codebook(first_stage, dtype)
    return first_stage.eval()


def cast_keeping_codebook(first_stage: FirstStage, dtype: torch.dtype) -> None:
    """Convolutions to ``dtype``; codebook and statistics stay float32."""
    vq_model = first_stage.vq_model
    for part in (vq_model.encoder, vq_model.decoder, vq_model.quant_conv, vq_model.post_quant_conv):
        part.to(dtype)


def save_model(model: Model, folder: Path, weights_dtype: torch.dtype = torch.float32) -> None:
    """Write a model folder, whole; ``weights_dtype`` float16 halves it (the codebook is written in float32)."""
    cast_keeping_codebook(model.first_stage, weights_dtype)
    model.denoiser.to(weights_dtype)
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "mask_dropout": model.mask_dropout,
        "tile_size": model.tile_size,
        "defaults": model.defaults,
    }
    # Only where they are not the usual ones: a model of the usual ones has the hash that it always had.
    description |= {
        name: list(value) for name in ("bands", "stretch", "gsd_m") if (value := getattr(model, name)) is not None
    }
    guided = model.denoiser.guided
    if guided is not None:
        description["guided_scale"] = model.denoiser.guided_scale
    with atomic_folder(folder, "model.json") as part:
        _write_first_stage(model.first_stage, part / "first_stage")
        save_part(model.denoiser.unet, part / "denoiser")
        if guided is not None:
            save_part(guided, part / GUIDED)
        save_part(model.denoiser.mask_encoder, part / "mask_encoder")
        model.schedule.save_pretrained(part / "scheduler")
        model.legend.save(part / "legend.json")
        (part / "model.json").write_text(json.dumps(description, indent=1) + "\n")


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Model:
    """Read a model folder; :class:`ModelError` naming file and cause if it is not one or does not fit together."""
    info = read_info(folder)
    first_stage = load_first_stage(folder / "first_stage", dtype)
    unet = load_network(UNet2DModel, folder / "denoiser", DENOISER, dtype)
    encoder = load_network(MaskEncoder, folder / "mask_encoder", MASK_ENCODER, dtype)
    taken, given = unet.config.in_channels - encoder.config.mask_channels, first_stage.latent_mean.numel()
    if taken != given or unet.config.out_channels != given:
        raise ModelError(
            f"{folder}: the denoiser takes {taken} latent channels beside the mask's and gives "
            f"{unet.config.out_channels}, the first stage has {given}"
        )
    if encoder.num_classes != info.legend.num_classes:
        raise ModelError(
            f"{folder}: mask_encoder has {encoder.num_classes} classes, legend.json has {info.legend.num_classes}"
        )
    guided = _guided(folder, info.guided_scale, dtype)
    return Model(
        first_stage=first_stage,
        denoiser=Denoiser(unet, encoder, guided, info.guided_scale).eval(),
        schedule=load_schedule(folder),
        legend=info.legend,
        mask_dropout=info.mask_dropout,
        tile_size=info.tile_size,
        defaults=dict(info.defaults),
        weights_hash=info.weights_hash,
        bands=info.bands,
        stretch=info.stretch,
        gsd_m=info.gsd_m,
    )


def _guided(folder: Path, scale: float | None, dtype: torch.dtype) -> UNet2DModel | None:
    """The network that was taught guidance ``scale``, of the same configuration as the one that taught it."""
    place, other = folder / GUIDED / "config.json", folder / "denoiser" / "config.json"
    if scale is None:
        if place.is_file():
            raise ModelError(f"{folder / 'model.json'}: guided_scale is missing, which {GUIDED}/ was taught")
        return None
    own, taught = (read_configuration(file, "UNet2DModel", DENOISER) for file in (place, other))
    if own != taught:
        raise ModelError(f"{place}: is not the network of {other}; allowed: the same configuration")
    guided: UNet2DModel = load_network(UNet2DModel, folder / GUIDED, DENOISER, dtype)
    return guided


def load_network(kind: Any, folder: Path, rules: Mapping[str, Rule], dtype: torch.dtype) -> Any:
    """A network of diffusers: its configuration looked at, built without memory, then given weights that fit."""
    place = folder / "config.json"
    known, unknown = read_configuration(place, kind.__name__, rules)
    with torch.device("meta"), _Uninitialised():
        network = _built(kind, known, unknown, place)
    torch.nn.Module.to(network, dtype)  # diffusers' own says that weights should be cast while they are read
    load_weights(network, _weights_of(folder), folder, f"the {kind.__name__} of config.json")
    return network.eval()


class _Uninitialised(TorchFunctionMode):
    """Weights are not drawn: others are put in their place. On a device without memory torch draws them by way of its
    compiler, whose import takes longer than all else here."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        """As torch calls it: ``function`` with its arguments, unless it is one of ``torch.nn.init``."""
        named = named or {}
        if getattr(function, "__module__", "") == init.__name__:
            return named["tensor"] if "tensor" in named else arguments[0]
        return function(*arguments, **named)


def _built(kind: Any, known: Mapping[str, Any], unknown: Mapping[str, Any], place: Path) -> Any:
    """``kind(**known)``; a key that this edition does not know must have its default."""
    parameters = inspect.signature(kind.__init__).parameters
    for name, value in unknown.items():
        if name not in parameters or parameters[name].default != value:
            raise ModelError(f"{place}: {name} is {value!r:.80}, which this version does not know; allowed: nothing")
    try:
        return kind(**known)
    except Exception as error:  # diffusers raises its own kinds where numbers do not fit one another
        raise ModelError(f"{place}: cannot be loaded ({' '.join(str(error).split())[:200]})") from error


def _weights_of(folder: Path) -> dict[str, Tensor]:
    """Of one file, or of several that an index names (none outside the folder)."""
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return read_safetensors(folder / WEIGHTS)
    parts = read_object(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
        raise ModelError(f"{index}: has no weight_map of files; the file is damaged")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(parts.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index}: names the file {name!r:.80}; allowed: .safetensors in this folder")
        weights |= read_safetensors(folder / name)
    return weights
