"""``train --init``: start from a trained model, with another legend or other bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from changeanywhere.errors import ConfigError, OutputError
from changeanywhere.legend import Legend
from changeanywhere.models.borrowed import DDPMScheduler
from changeanywhere.models.denoiser import Denoiser
from changeanywhere.models.first_stage import FirstStage
from changeanywhere.models.folder import (
    find_model,
    load_first_stage,
    load_model,
    load_schedule,
    noise_schedule,
    schedule_hash,
)
from changeanywhere.models.info import find_segmenter, read_info
from changeanywhere.models.segmenter import Segmenter

BAND_WEIGHTS = (
    "vq_model.encoder.conv_in.weight",
    "vq_model.decoder.conv_out.weight",
    "vq_model.decoder.conv_out.bias",
)
"""The only first-stage weights whose shape depends on the number of bands."""


OF_BANDS = ("in_channels", "out_channels")
"""Of a first stage's configuration: what another number of bands changes."""
INERT = ("sample_size", "dropout", "scaling_factor", "force_upcast")
"""Of a configuration: what changes nothing that a network gives."""
SETTINGS = {
    "attention_head_dim": "head_dim",
    "norm_num_groups": "norm_groups",
    "block_out_channels": "channels",
    "down_block_types": "attention_levels",
    "num_vq_embeddings": "num_codes",
    "mid_block_add_attention": "mid_attention",
}
"""What of a configuration is called otherwise in a recipe."""


HEAD = ("decoder.head.weight", "decoder.head.bias")
"""The only weights of a segmenter whose shape depends on the number of classes: a row each."""


@torch.no_grad()
def initialise_first_stage(first_stage: FirstStage, init: str) -> bool:
    """Copy the first stage of model ``init`` into a fresh one; True, since its codes are in place.

    Bands are matched by number. A further band starts invisible to the encoder (zero weights, which learn) and is
    decoded as the mean of the old ones, so that the first steps do no harm to what was learned.

    :class:`ConfigError` naming the first setting of the network in which the recipe differs.
    """
    folder = find_model(init) / "first_stage"
    model = load_first_stage(folder)
    _refuse_another(first_stage.vq_model, model.vq_model, f"{folder}", "first_stage", OF_BANDS)
    old, new = model.state_dict(), first_stage.state_dict()
    encoder, decoder, bias = (old[name] for name in BAND_WEIGHTS)
    bands = new[BAND_WEIGHTS[0]].shape[1]
    more = max(0, bands - encoder.shape[1])
    old[BAND_WEIGHTS[0]] = torch.cat([encoder, encoder.new_zeros(len(encoder), more, *encoder.shape[2:])], 1)[:, :bands]
    old[BAND_WEIGHTS[1]] = torch.cat([decoder, decoder.mean(0, keepdim=True).expand(more, -1, -1, -1)])[:bands]
    old[BAND_WEIGHTS[2]] = torch.cat([bias, bias.mean().expand(more)])[:bands]
    _load(first_stage, old, f"{folder}", "first_stage")
    return True


def initial_schedule(init: str | None, prediction_type: str | None = None) -> DDPMScheduler:
    """The noise schedule of a training: that of model ``init``, whose weights know no other; without one the usual.

    :class:`ConfigError` where ``init`` predicts something else than ``prediction_type``; None: nothing is asked of it.
    """
    if init is None:
        return noise_schedule(prediction_type or "epsilon")
    schedule = load_schedule(find_model(init))
    own = schedule.config.prediction_type
    if prediction_type not in (None, own):
        raise ConfigError(f"denoiser.prediction_type is {prediction_type!r}, but {init} predicts {own!r}")
    return schedule


def refuse_another_schedule(state: Mapping[str, Any], schedule: DDPMScheduler, init: str | None) -> None:
    """Raise :class:`OutputError` where the run that left ``state`` saw noise by another schedule than ``schedule``."""
    if state.get("schedule", schedule_hash(noise_schedule())) != schedule_hash(schedule):
        raise OutputError(
            f"{init}: has another noise schedule than the one that the run was begun with; give another --out"
        )


@torch.no_grad()
def initialise_denoiser(denoiser: Denoiser, legend: Legend, init: str) -> list[str]:
    """Copy the denoiser of model ``init``; returns the classes whose mask-encoder weights were taken over, by name.

    The others keep their fresh weights. :class:`ConfigError` as :func:`refuse_another_denoiser`.
    """
    model = load_model(find_model(init))
    refuse_another_denoiser(denoiser, model.denoiser, init)
    weights = denoiser.mask_encoder.conv.weight.data
    old = model.denoiser.mask_encoder.conv.weight.data
    old_rows = {c.name: c.index - 1 for c in model.legend.classes}
    taken = [c for c in legend.classes if c.name in old_rows]
    for c in taken:
        weights[:, c.index - 1] = old[:, old_rows[c.name]].to(weights)
    _load(denoiser.unet, model.denoiser.unet.state_dict(), init, "denoiser")
    return [c.name for c in taken]


def recommended(init: str, legend: Legend, mask_dropout: float) -> dict[str, Any]:
    """The sampling settings that model ``init`` recommends, as far as they hold for one of ``legend`` that goes on from
    it: exemplar strengths of its classes, guidance where it is trained without a mask at times.

    They belong to the architecture and to what exemplars are, not to the ground: without them a model that was adapted
    to a region would paint from pure noise, unguided and without detail.
    """
    settings = dict(read_info(find_model(init)).defaults)
    strengths = settings.get("exemplar_strength")
    if isinstance(strengths, dict):
        known = {*legend.names, "default"}
        settings["exemplar_strength"] = {name: value for name, value in strengths.items() if name in known}
        if not settings["exemplar_strength"]:
            settings = {name: value for name, value in settings.items() if not name.startswith("exemplar")}
    if not mask_dropout:
        settings = {name: value for name, value in settings.items() if not name.startswith("guidance")}
    return settings


def refuse_another_denoiser(denoiser: Denoiser, old: Denoiser, init: str) -> None:
    """:class:`ConfigError` naming the first setting in which ``denoiser``, the recipe's, is another network than
    ``old``, that of model ``init``; the classes of its masks may differ."""
    own, before = (each.mask_encoder.conv.out_channels for each in (denoiser, old))
    if own != before:
        raise ConfigError(f"denoiser.mask_channels is {own}, but {init} has {before}")
    _refuse_another(denoiser.unet, old.unet, init, "denoiser")


@torch.no_grad()
def initialise_segmenter(net: Segmenter, init: str) -> list[str]:
    """Copy the segmenter ``init`` (``mini-segmenter`` or a folder); returns the classes that were taken over, by name.

    The others keep their fresh weights.
    """
    old = Segmenter.load(find_segmenter(Path(init)))
    if old.backbone != net.backbone:
        raise ConfigError(f"segmenter.backbone is {net.backbone!r}, but {init} is a {old.backbone}; give that one")
    state, own = old.state_dict(), net.state_dict()
    rows = {c.name: c.index - 1 for c in old.legend.classes}
    taken = [c for c in net.legend.classes if c.name in rows]
    for name in HEAD:
        head = own[name].clone()
        for c in taken:
            head[c.index - 1] = state[name][rows[c.name]].to(head)
        state[name] = head
    _load(net, state, init, "segmenter")
    return [c.name for c in taken]


def _refuse_another(own: Any, old: Any, origin: str, section: str, free: Sequence[str] = ()) -> None:
    """Of two networks of diffusers, by their configurations: weights of equal shape may be read by other heads, or
    normalised in other groups, which would begin as another network than the one that was trained."""

    def settings(network: Any) -> dict[str, Any]:
        plain = {name: value for name, value in network.config.items() if not name.startswith("_")}
        left = {name: value for name, value in plain.items() if name not in (*free, *INERT)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in left.items()}

    ours, theirs = settings(own), settings(old)
    for name in ours:
        if ours[name] != theirs.get(name):
            called = f"{section}.{SETTINGS.get(name, name)}"
            raise ConfigError(
                f"{origin} has another architecture than the recipe's {section}: {name} is {theirs.get(name)}, not "
                f"{ours[name]} ({called})"
            )


def _load(module: torch.nn.Module, state: Mapping[str, Tensor], origin: str, section: str) -> None:
    """Load what must fit exactly; :class:`ConfigError` naming the first difference."""
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        shapes = [tuple(part[name].shape) if name in part else None for part in (own, state)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"{origin} has another architecture than the recipe's {section}: {name} is {shapes[1]}, not {shapes[0]}"
            )
    module.load_state_dict(state)
