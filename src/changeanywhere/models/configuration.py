"""What the configurations of a model folder may say: types and bounds, looked at before anything is built. No torch.

The bounds are far above any model and far below what would fill a machine. A key that is younger than this edition is
handed back, and is allowed where it has its default (:mod:`changeanywhere.models.folder`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from changeanywhere.documents import DocumentError, read_json_object
from changeanywhere.errors import ModelError

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is allowed, and what is."""
MAX_CHANNELS, MAX_LEVELS, MAX_LAYERS, MAX_CODES, MAX_BANDS = 2**14, 8, 64, 2**20, 4096


def whole(low: int, high: int) -> Rule:
    """A whole number within bounds; true and false are none."""
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high, f"{low} to {high}"


def real(low: float, high: float) -> Rule:
    """A finite number within bounds."""

    def allowed(value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and low <= value <= high and math.isfinite(value)

    return allowed, f"a number, {low:g} to {high:g}"


def one_of(*values: object) -> Rule:
    """One of some values, of the same type."""
    return lambda v: any(v == each and type(v) is type(each) for each in values), ", ".join(map(str, values))


def listing(rule: Rule, least: int, most: int) -> Rule:
    """A list of so many values."""
    each, what = rule
    return lambda v: isinstance(v, list) and least <= len(v) <= most and all(map(each, v)), (
        f"a list of {least} to {most}, each {what}"
    )


def or_null(rule: Rule) -> Rule:
    """Null is allowed too."""
    allowed, what = rule
    return lambda v: v is None or allowed(v), f"null, or {what}"


FLAG = one_of(True, False)
CHANNELS, NORM, ACTIVATION = (
    whole(1, MAX_CHANNELS),
    whole(1, MAX_CHANNELS),
    one_of("silu", "swish", "mish", "gelu", "relu"),
)
WIDTHS = listing(CHANNELS, 1, MAX_LEVELS)
KINDS = ("", "Attn", "Skip", "AttnSkip")
FIRST_STAGE: Mapping[str, Rule] = {
    "in_channels": whole(1, MAX_BANDS),
    "out_channels": whole(1, MAX_BANDS),
    "down_block_types": listing(one_of("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), 1, MAX_LEVELS),
    "up_block_types": listing(one_of("UpDecoderBlock2D", "AttnUpDecoderBlock2D"), 1, MAX_LEVELS),
    "block_out_channels": WIDTHS,
    "layers_per_block": whole(1, MAX_LAYERS),
    "act_fn": ACTIVATION,
    "latent_channels": whole(1, 256),
    "sample_size": or_null(whole(1, 2**20)),
    "num_vq_embeddings": whole(1, MAX_CODES),
    "norm_num_groups": NORM,
    "vq_embed_dim": or_null(whole(1, 256)),
    "scaling_factor": real(1e-6, 1e6),
    "norm_type": one_of("group", "spatial"),
    "mid_block_add_attention": FLAG,
    "lookup_from_codebook": FLAG,
    "force_upcast": FLAG,
}
DENOISER: Mapping[str, Rule] = {
    "sample_size": or_null(whole(1, 2**20)),
    "in_channels": CHANNELS,
    "out_channels": whole(1, 256),
    "center_input_sample": FLAG,
    "time_embedding_type": one_of("positional", "fourier", "learned"),
    "time_embedding_dim": or_null(CHANNELS),
    "freq_shift": whole(0, 10),
    "flip_sin_to_cos": FLAG,
    "down_block_types": listing(one_of(*(f"{kind}DownBlock2D" for kind in KINDS)), 1, MAX_LEVELS),
    "mid_block_type": or_null(one_of("UNetMidBlock2D")),
    "up_block_types": listing(one_of(*(f"{kind}UpBlock2D" for kind in KINDS)), 1, MAX_LEVELS),
    "block_out_channels": WIDTHS,
    "layers_per_block": whole(1, MAX_LAYERS),
    "mid_block_scale_factor": real(1e-6, 1e6),
    "downsample_padding": whole(0, 8),
    "downsample_type": one_of("conv", "resnet"),
    "upsample_type": one_of("conv", "resnet"),
    "dropout": real(0, 1),
    "act_fn": ACTIVATION,
    "attention_head_dim": or_null(CHANNELS),
    "norm_num_groups": NORM,
    "attn_norm_num_groups": or_null(NORM),
    "norm_eps": real(0, 1),
    "resnet_time_scale_shift": one_of("default", "scale_shift"),
    "add_attention": FLAG,
    "class_embed_type": one_of(None),
    "num_class_embeds": one_of(None),
    "num_train_timesteps": or_null(whole(1, 100_000)),
}
MASK_ENCODER: Mapping[str, Rule] = {"num_classes": whole(1, 254), "mask_channels": whole(1, MAX_CHANNELS)}
SCHEDULER: Mapping[str, Rule] = {
    "num_train_timesteps": whole(2, 100_000),
    "beta_start": real(1e-9, 1),
    "beta_end": real(1e-9, 1),
    "beta_schedule": one_of("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "trained_betas": or_null(listing(real(1e-9, 1), 2, 100_000)),
    "variance_type": one_of("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "clip_sample": FLAG,
    "prediction_type": one_of("epsilon", "v_prediction"),
    "thresholding": FLAG,
    "dynamic_thresholding_ratio": real(0, 1),
    "clip_sample_range": real(1e-6, 1e6),
    "sample_max_value": real(1e-6, 1e6),
    "timestep_spacing": one_of("leading", "trailing", "linspace"),
    "steps_offset": whole(0, 1000),
    "rescale_betas_zero_snr": FLAG,
}
MODEL: Mapping[str, Rule] = {
    "mask_dropout": real(0, 1),
    "tile_size": whole(16, 2**16),
    "defaults": (lambda v: isinstance(v, dict), "an object"),
    "bands": or_null(listing(whole(1, 2**16), 1, MAX_BANDS)),
    "stretch": or_null(listing(real(0, 100), 2, 2)),
    "gsd_m": or_null(listing(real(0, 1e6), 2, 2)),
    "guided_scale": or_null(real(0, 1000)),
}


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``; :class:`ModelError` naming it and what is wrong."""
    try:
        return read_json_object(file)
    except (OSError, DocumentError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{file}: cannot be loaded ({reason})") from error


def check_rules(
    content: Mapping[str, Any], rules: Mapping[str, Rule], file: Path, needed: Sequence[str] = ()
) -> dict[str, Any]:
    """The keys of ``content`` that have a rule; :class:`ModelError` naming the first value that is not allowed, or one
    that is ``needed`` and missing."""
    for name in needed:
        if name not in content:
            raise ModelError(f"{file}: has no {name}; the file is damaged, or of another format")
    for name, (allowed, what) in rules.items():
        if name in content and not allowed(content[name]):
            raise ModelError(f"{file}: {name} is {content[name]!r:.80}; allowed: {what}")
    return {name: value for name, value in content.items() if name in rules}


def read_configuration(
    file: Path, kind: str, rules: Mapping[str, Rule], needed: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``file`` says of a network of the class ``kind``: by rules, and the rest, keys of no meaning here left out.

    Raises :class:`ModelError` naming the file and the value.
    """
    content = read_object(file)
    found = content.get("_class_name")
    if found != kind:
        raise ModelError(f"{file}: _class_name is {found!r:.80}; allowed: {kind}")
    own = {name: value for name, value in content.items() if not name.startswith("_")}
    known = check_rules(own, rules, file, needed)
    return known, {name: value for name, value in own.items() if name not in known}


def read_description(file: Path, name: str, version: int) -> dict[str, Any]:
    """The description of a folder of ours; :class:`ModelError` naming the file if it is of another format."""
    what = name.rpartition("-")[2]
    try:
        content = read_object(file)
    except ModelError as error:
        raise ModelError(f"{file.parent}: not a readable {what} ({error})") from error
    if (content.get("format"), content.get("format_version")) != (name, version):
        raise ModelError(f"{file.parent}: not a {what} of format {name} {version}")
    return content
