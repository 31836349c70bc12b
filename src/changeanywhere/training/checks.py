"""What a recipe may hold: values that are allowed, and no option that does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from changeanywhere.errors import ConfigError, require
from changeanywhere.help import require_one
from changeanywhere.models.configuration import MAX_LEVELS
from changeanywhere.models.info import DOWNSAMPLING
from changeanywhere.models.names import BACKBONES, detector_names
from changeanywhere.training.sections import (
    FLIPS,
    LOSSES,
    OF_UNLABELLED,
    PARTS,
    PERCEPTUAL_FEATURES,
    PRECISIONS,
    PREDICTIONS,
    SCHEDULES,
    TRACKERS,
    USUAL_BANDS,
    RunRecipe,
    Sections,
)

RecipeT = TypeVar("RecipeT", bound=Sections)
READ_BY = {
    "first_stage": ("data", "first_stage", "run", "track", "init", "out"),
    "denoiser": ("data", "denoiser", "run", "track", "init", "out", "first_stage_from"),
    "critic": ("data", "critic", "run", "track", "init", "out", "first_stage_from", "denoiser.views"),
    "segmenter": ("data", "segmenter", "run", "track", "init", "out"),
    "detector": ("detector", "run", "track", "init", "out"),
}
"""Stage → sections and options that it reads."""
OF_IMAGES = ("data.images", "data.images_share", "data.images_without")
OF_SEGMENTERS = ("data.complete", "data.complete_margin", "data.evidence", "data.evidence_split")
UNREAD = {
    "first_stage": ("run.keep_mib", *OF_SEGMENTERS),
    "denoiser": ("run.num_workers", "run.keep_mib", *OF_SEGMENTERS),
    "critic": ("run.num_workers", "run.compile", "run.keep_mib", *OF_IMAGES, *OF_SEGMENTERS),
    "segmenter": ("run.keep_mib",),
    "detector": (),
}
"""Stage → options of its sections that it does not read; recipes that stages share hold them."""


def refuse_unread_flags(stage: str, given: frozenset[str]) -> None:
    """Raise :class:`ConfigError` for a flag that training ``stage`` does not read.

    ``given``: names of the options that came as flags (``denoiser.loss``). What a recipe file says of other stages is
    no error: it is shared.
    """
    for name in sorted(given):
        if not {name, name.split(".")[0]} & set(READ_BY[stage]) or name in UNREAD.get(stage, ()):
            flag, command = name.replace("_", "-"), stage.replace("_", "-")
            read = ", ".join(section.replace("_", "-") for section in READ_BY[stage])
            but = f" (but not {', '.join(UNREAD[stage])})".replace("_", "-") if UNREAD.get(stage) else ""
            raise ConfigError(f"--{flag}: train {command} does not read it; allowed: {read}{but}")


def check_recipe(recipe: Sections, stages: Sequence[str]) -> None:
    """Raise :class:`ConfigError` naming the first value of ``stages`` that is not allowed, or does nothing."""
    for stage in stages:
        if stage != "detector":
            _check_data(recipe)
        _CHECKS[stage](recipe)
        _check_sizes(stage, getattr(recipe, stage))
        _check_groups(recipe, stage)
    _check_run(recipe.run, stages)
    for name in recipe.track:
        require_one("track", name, TRACKERS)
    for option in _idle(recipe, stages):
        value, switch = _value(recipe, option.name), _value(recipe, option.switch)
        raise ConfigError(f"{option.name} is {value!r}, which does nothing while {option.switch} is {switch!r}")


def _check_data(recipe: Sections) -> None:
    data = recipe.data
    require(bool(data.source), "data.source", data.source, "a folder")
    for name, share in (("images_share", data.images_share), ("further_share", data.further_share)):
        require(0 < share < 1, f"data.{name}", share, "between 0 and 1")
    read = bool(data.further or data.evidence) or data.further_share == type(data)().further_share
    require(read, "data.further_share", data.further_share, "with data.further or data.evidence, whose share it is")
    require(data.complete_margin >= 0, "data.complete_margin", data.complete_margin, "0 px and more")


def _check_sizes(section: str, settings: Any) -> None:
    names = ["batch_size", "num_steps", "learning_rate"]
    if section in ("first_stage", "denoiser"):
        names += ["norm_groups", "layers_per_block"]
        uneven = [c for c in settings.channels if c <= 0 or c % max(settings.norm_groups, 1)]
        require(not uneven, f"{section}.channels", settings.channels, f"multiples of {settings.norm_groups}")
    for name in names:
        require(getattr(settings, name) > 0, f"{section}.{name}", getattr(settings, name), "above 0")
    require(settings.warmup_steps >= 0, f"{section}.warmup_steps", settings.warmup_steps, "0 and more")


def _check_first_stage(recipe: Sections) -> None:
    fs = recipe.first_stage
    require(len(fs.channels) == 3, "first_stage.channels", fs.channels, "three numbers (f = 4)")
    allowed = 16 <= fs.crop_size <= recipe.data.tile_size
    require(allowed, "first_stage.crop_size", fs.crop_size, "16 to data.tile_size")
    require(1 <= fs.views <= 8, "first_stage.views", fs.views, "1 to 8")
    require(fs.crop_size % 16 == 0, "first_stage.crop_size", fs.crop_size, "a multiple of 16")
    require(
        not fs.linear_start or fs.norm_groups == 1,
        "first_stage.linear_start",
        fs.linear_start,
        f"false (it needs norm_groups 1, which is {fs.norm_groups})",
    )
    features, file = fs.perceptual_features, fs.perceptual_weights
    require_one("first_stage.perceptual_features", features, PERCEPTUAL_FEATURES)
    require(
        bool(file) or features != "vgg16" or not fs.perceptual_weight,
        "first_stage.perceptual_weights",
        file,
        "the file of VGG16 weights (this package downloads nothing)",
    )
    few = len(recipe.data.bands or USUAL_BANDS) < 3
    what = "0 for images of fewer than three bands (data.bands), which its features read"
    require(not (few and fs.perceptual_weight), "first_stage.perceptual_weight", fs.perceptual_weight, what)
    _check_parts(recipe)
    allowed = fs.adaptive_steps is None or fs.adaptive_steps > 0
    require(allowed, "first_stage.adaptive_steps", fs.adaptive_steps, "above 0")
    allowed = 0 <= fs.ema_halflife_share <= 0.1
    require(allowed, "first_stage.ema_halflife_share", fs.ema_halflife_share, "0 to 0.1")
    require(fs.restart_codes_every > 0, "first_stage.restart_codes_every", fs.restart_codes_every, "above 0")
    allowed = fs.quantise_from_step < fs.num_steps
    require(allowed, "first_stage.quantise_from_step", fs.quantise_from_step, "below first_stage.num_steps")


def _check_parts(recipe: Sections) -> None:
    fs = recipe.first_stage
    require_one("first_stage.parts", fs.parts, PARTS)
    whole = fs.parts == "all"
    given = "all, unless init names the model whose encoder stays"
    require(whole or bool(recipe.init), "first_stage.parts", fs.parts, given)
    without = "true, unless parts is decoder (codes are learned by what is decoded from them)"
    require(fs.quantise or not whole, "first_stage.quantise", fs.quantise, without)
    noisy = "0, unless parts is decoder and quantise false"
    require(not fs.latent_noise or not (whole or fs.quantise), "first_stage.latent_noise", fs.latent_noise, noisy)
    require(0 <= fs.latent_noise <= 1, "first_stage.latent_noise", fs.latent_noise, "0 to 1")


def _check_depth(recipe: Sections, section: str, channels: Sequence[int]) -> int:
    """A UNet halves latents once between any two levels: of how many px tiles and crops are multiples."""
    allowed = 1 <= len(channels) <= MAX_LEVELS
    require(allowed, f"{section}.channels", channels, f"1 to {MAX_LEVELS} numbers, one for each level")
    multiple: int = DOWNSAMPLING * 2 ** (len(channels) - 1)
    what = f"a multiple of {multiple}, by which {section}.channels of {len(channels)} levels divide it"
    require(recipe.data.tile_size % multiple == 0, "data.tile_size", recipe.data.tile_size, what)
    return multiple


def _check_groups(recipe: Sections, stage: str) -> None:
    """A UNet's coarsest map may be one cell, but not one channel of it a group: one value is normalised to nothing,
    and torch refuses it where it is alone in its batch."""
    from changeanywhere.models.critic import NORM_GROUPS

    if stage not in ("denoiser", "critic"):
        return  # a first stage's coarsest map has 16 cells and more, a segmenter's groups have channels
    dn = recipe.denoiser
    channels, groups = (dn.channels, dn.norm_groups) if stage == "denoiser" else (recipe.critic.channels, NORM_GROUPS)
    crop = dn.crop_size if stage == "denoiser" else None
    name, side = ("data.tile_size", recipe.data.tile_size) if crop is None else ("denoiser.crop_size", crop)
    multiple: int = DOWNSAMPLING * 2 ** (len(channels) - 1)
    fits = side > multiple or min(channels[-2:]) > groups
    levels = f"{stage}.channels of {len(channels)} levels"
    of_one = f"{levels}, whose coarsest map is one cell in {groups} groups of one value"
    require(fits, name, side, f"{2 * multiple} px and more ({of_one})")


def _check_denoiser(recipe: Sections) -> None:
    dn = recipe.denoiser
    require_one("denoiser.flip", dn.flip, FLIPS)
    crop, multiple = dn.crop_size, max(16, _check_depth(recipe, "denoiser", dn.channels))
    allowed = crop is None or (16 <= crop <= recipe.data.tile_size and crop % multiple == 0)
    what = f"a multiple of {multiple}, up to data.tile_size ({len(dn.channels)} levels of denoiser.channels)"
    require(allowed, "denoiser.crop_size", crop, what)
    require_one("denoiser.loss", dn.loss, LOSSES)
    require_one("denoiser.prediction_type", dn.prediction_type, PREDICTIONS)
    allowed = dn.min_snr_gamma is None or dn.min_snr_gamma > 0
    require(allowed, "denoiser.min_snr_gamma", dn.min_snr_gamma, "above 0")
    require(dn.gradient_clip > 0, "denoiser.gradient_clip", dn.gradient_clip, "above 0")
    last = len(dn.channels) - 1
    allowed = all(0 <= level <= last for level in dn.attention_levels)
    require(allowed, "denoiser.attention_levels", dn.attention_levels, f"0 to {last}")
    attending = [channels for level, channels in enumerate(dn.channels) if level in (*dn.attention_levels, last)]
    require(
        dn.head_dim > 0 and not any(channels % dn.head_dim for channels in attending),
        "denoiser.head_dim",
        dn.head_dim,
        "a divisor of the channels at attention_levels and at the last level",
    )
    require(1 <= dn.views <= 8, "denoiser.views", dn.views, "1 to 8")
    require(0 <= dn.mask_dropout < 1, "denoiser.mask_dropout", dn.mask_dropout, "0 to below 1")
    require(0 <= dn.unknown_weight <= 1, "denoiser.unknown_weight", dn.unknown_weight, "0 to 1")
    scale = dn.distil_guidance
    needed = "above 1 to 1000, with init: the model whose guidance is learned"
    require(scale is None or (1 < scale <= 1000 and bool(recipe.init)), "denoiser.distil_guidance", scale, needed)
    pair = "2 and more with denoiser.distil_guidance: half of the masks are another tile's in a box"
    require(scale is None or dn.batch_size != 1, "denoiser.batch_size", dn.batch_size, pair)
    require(0 <= dn.held_out < 1, "denoiser.held_out", dn.held_out, "0 to below 1")
    require(dn.val_every > 0, "denoiser.val_every", dn.val_every, "above 0")
    allowed = 0 < dn.ema_halflife_share <= 0.1
    require(allowed, "denoiser.ema_halflife_share", dn.ema_halflife_share, "above 0 to 0.1")


def _check_critic(recipe: Sections) -> None:
    from changeanywhere.models.critic import NORM_GROUPS

    channels = recipe.critic.channels
    fits = bool(channels) and all(c > 0 and c % NORM_GROUPS == 0 for c in channels)
    require(fits, "critic.channels", channels, f"one or more multiples of {NORM_GROUPS}")
    _check_depth(recipe, "critic", channels)
    require(1 <= recipe.denoiser.views <= 8, "denoiser.views", recipe.denoiser.views, "1 to 8")
    require(not recipe.run.compile, "run.compile", recipe.run.compile, "false for a critic")


def _check_segmenter(recipe: Sections) -> None:
    from changeanywhere.models.segmenter import Segmenter

    sg, side, bands = recipe.segmenter, Segmenter.size_multiple, list(recipe.data.bands or USUAL_BANDS)
    require(len(bands) == 3, "data.bands", bands, "three for a segmenter, which reads red, green and blue")
    require_one("segmenter.backbone", sg.backbone, BACKBONES)
    allowed = side <= sg.crop_size <= recipe.data.tile_size
    require(allowed, "segmenter.crop_size", sg.crop_size, f"{side} to data.tile_size")
    require(sg.crop_size % side == 0, "segmenter.crop_size", sg.crop_size, f"a multiple of {side}")
    require(0 <= sg.colour_jitter < 1, "segmenter.colour_jitter", sg.colour_jitter, "0 to below 1")
    most = 0 if sg.backbone == "unet" else 5
    require(0 <= sg.frozen_levels <= most, "segmenter.frozen_levels", sg.frozen_levels, f"0 to {most} ({sg.backbone})")
    require(0 <= sg.scale <= 1, "segmenter.scale", sg.scale, "0 to 1")
    require(0 <= sg.decoded <= 1, "segmenter.decoded", sg.decoded, "0 to 1")
    require(bool(sg.first_stage), "segmenter.first_stage", sg.first_stage, "mini or folders, one or more")
    require(0 <= sg.photometric <= 1, "segmenter.photometric", sg.photometric, "0 to 1")
    _check_teacher(recipe)


def _check_teacher(recipe: Sections) -> None:
    sg, halflife = recipe.segmenter, recipe.segmenter.ema_halflife_share
    wanted = "above 0 to 0.1 (the average teaches on data.images)" if recipe.data.images else "0 to 0.1"
    allowed = 0 <= halflife <= 0.1 and (halflife > 0 or not recipe.data.images)
    require(allowed, "segmenter.ema_halflife_share", halflife, wanted)
    allowed = sg.taught_from_step < sg.num_steps
    require(allowed, "segmenter.taught_from_step", sg.taught_from_step, "below segmenter.num_steps")
    allowed = len(sg.confidence) == 2 and all(0 < each < 1 for each in sg.confidence)
    require(allowed, "segmenter.confidence", sg.confidence, "two numbers between 0 and 1: at first, and at last")


def _check_detector(recipe: Sections) -> None:
    de = recipe.detector
    require_one("detector.name", de.name, detector_names())
    require(bool(de.pairs), "detector.pairs", de.pairs, "a folder")
    require(de.crop_size > 0, "detector.crop_size", de.crop_size, "above 0")
    require(0 <= de.rotate_degrees <= 180, "detector.rotate_degrees", de.rotate_degrees, "0 to 180")
    require_one("detector.schedule", de.schedule, SCHEDULES)
    require(0 <= de.change_crops <= 1, "detector.change_crops", de.change_crops, "0 to 1")
    require(de.weight_decay >= 0, "detector.weight_decay", de.weight_decay, "0 and more")
    require(de.val_every > 0, "detector.val_every", de.val_every, "above 0")
    allowed = de.validations is None or 1 <= de.validations <= de.num_steps
    require(allowed, "detector.validations", de.validations, "1 to detector.num_steps")
    allowed = de.max_megapixels is None or 0 < de.max_megapixels < 1e6
    require(allowed, "detector.max_megapixels", de.max_megapixels, "above 0, below 1e6")
    require(0 < de.rehearsed_share < 1, "detector.rehearsed_share", de.rehearsed_share, "between 0 and 1")
    alone = not (de.rehearsed and de.unlabelled)
    require(alone, "detector.rehearsed", de.rehearsed, "nothing beside detector.unlabelled")
    _check_unlabelled(recipe)


def _check_unlabelled(recipe: Sections) -> None:
    de = recipe.detector
    require(0 < de.unlabelled_share < 1, "detector.unlabelled_share", de.unlabelled_share, "between 0 and 1")
    require(de.unlabelled_weight > 0, "detector.unlabelled_weight", de.unlabelled_weight, "above 0")
    require(0 <= de.unlabelled_ramp <= 1, "detector.unlabelled_ramp", de.unlabelled_ramp, "0 to 1")
    sure, halflife = de.unlabelled_confidence, de.unlabelled_halflife_share
    # At one half nothing is left out: one of two classes always has as much.
    require(0.5 < sure < 1, "detector.unlabelled_confidence", sure, "above 0.5, below 1")
    changed = de.unlabelled_confidence_changed
    allowed = changed is None or 0.5 < changed < 1
    require(allowed, "detector.unlabelled_confidence_changed", changed, "above 0.5, below 1")
    require(0 <= halflife <= 0.1, "detector.unlabelled_halflife_share", halflife, "0 to 0.1")


_CHECKS: dict[str, Callable[[Sections], None]] = {
    "first_stage": _check_first_stage,
    "denoiser": _check_denoiser,
    "critic": _check_critic,
    "segmenter": _check_segmenter,
    "detector": _check_detector,
}


def _check_run(run: RunRecipe, stages: Sequence[str]) -> None:
    require(run.num_workers >= 0, "run.num_workers", run.num_workers, "0 and more")
    require_one("run.mixed_precision", run.mixed_precision, PRECISIONS)
    for name in ("accumulation_steps", "log_every", "save_every"):
        require(getattr(run, name) > 0, f"run.{name}", getattr(run, name), "above 0")
    for stage in stages:
        if stage in ("segmenter", "detector"):
            whole = f"1 (a {stage} takes its batch whole: it normalises over it)"
            require(run.accumulation_steps == 1, "run.accumulation_steps", run.accumulation_steps, whole)
            require(not run.compile, "run.compile", run.compile, f"false for a {stage}")


@dataclass(frozen=True)
class Idle:
    """An option that does nothing where another one switches it off."""

    name: str
    switch: str
    off: Callable[[Any], bool]
    """Of the value of ``switch``."""


def _zero(value: float) -> bool:
    return value == 0


def _missing(value: object) -> bool:
    return not value


def _decoder(value: str) -> bool:
    return value == "decoder"


def _horizontal(value: str) -> bool:
    return value == "horizontal"


IDLE = (
    Idle("data.legend_map", "data.model_legend", _missing),
    Idle("first_stage.perceptual_features", "first_stage.perceptual_weight", _zero),
    Idle("first_stage.perceptual_weights", "first_stage.perceptual_weight", _zero),
    Idle("first_stage.perceptual_from_step", "first_stage.perceptual_weight", _zero),
    Idle("first_stage.adversarial_from_step", "first_stage.adversarial_weight", _zero),
    Idle("first_stage.discriminator_channels", "first_stage.adversarial_weight", _zero),
    Idle("first_stage.adaptive_steps", "first_stage.adversarial_weight", _zero),
    Idle("first_stage.commitment", "first_stage.codebook_weight", _zero),
    Idle("first_stage.codebook_weight", "first_stage.parts", _decoder),
    Idle("first_stage.commitment", "first_stage.parts", _decoder),
    Idle("first_stage.restart_codes_every", "first_stage.parts", _decoder),
    Idle("data.images_share", "data.images", _missing),
    Idle("data.images_without", "data.images", _missing),
    Idle("data.complete_margin", "data.complete", _missing),
    Idle("data.evidence_split", "data.evidence", _missing),
    Idle("segmenter.taught_from_step", "data.images", _missing),
    Idle("segmenter.confidence", "data.images", _missing),
    Idle("denoiser.views", "denoiser.flip", _horizontal),
    Idle("denoiser.val_every", "denoiser.held_out", _zero),
    Idle("denoiser.patience", "denoiser.held_out", _zero),
    Idle("first_stage.linear_start", "init", bool),
    Idle("first_stage.quantise_from_step", "init", bool),
    Idle("segmenter.first_stage", "segmenter.decoded", _zero),
    Idle("detector.backbone_weights", "init", bool),
    Idle("detector.val_every", "detector.val_split", _missing),
    Idle("detector.validations", "detector.val_split", _missing),
    Idle("detector.val_every", "detector.validations", bool),
    Idle("detector.rehearsed_classes", "detector.rehearsed", _missing),
    Idle("detector.rehearsed_share", "detector.rehearsed", _missing),
    *(Idle(f"detector.unlabelled_{name}", "detector.unlabelled", _missing) for name in OF_UNLABELLED),
)


def _idle(recipe: Sections, stages: Sequence[str]) -> Iterator[Idle]:
    """Options of the stages' sections that are set and do nothing."""
    sections = {*stages, *(["data"] if set(stages) - {"detector"} else [])}
    for option in IDLE:
        value, default = (_value(part, option.name) for part in (recipe, type(recipe)()))
        if option.name.split(".")[0] in sections and value != default and option.off(_value(recipe, option.switch)):
            yield option


def without_idle(recipe: RecipeT, stage: str, given: frozenset[str]) -> RecipeT:
    """Options of a recipe file that a flag switches off are at their defaults: ``--first-stage.adversarial-weight 0``
    is all that it takes. ``given``: names of the options that came as flags."""
    for option in list(_idle(recipe, [stage])):
        if option.switch in given and option.name not in given:
            section, _, name = option.name.partition(".")
            default = _value(type(recipe)(), option.name)
            changed: Any = replace(getattr(recipe, section), **{name: default})
            recipe = replace(recipe, **{section: changed})
    return recipe


def cut_short(recipe: RecipeT, given: frozenset[str]) -> tuple[RecipeT, str]:
    """A recipe file that a flag ends before its codebook would be placed (``--first-stage.num-steps 1``, to try it)
    places it half way; and a line that says so, or ""."""
    settings = recipe.first_stage
    late = settings.quantise_from_step >= settings.num_steps > 0
    if not late or "first_stage.num_steps" not in given or "first_stage.quantise_from_step" in given:
        return recipe, ""
    step = settings.num_steps // 2
    said = (
        f"first_stage.quantise_from_step is {settings.quantise_from_step} in the recipe, beyond the "
        f"{settings.num_steps} steps asked for: {step} here"
    )
    return replace(recipe, first_stage=replace(settings, quantise_from_step=step)), said


def _value(recipe: Sections, name: str) -> Any:
    section, _, key = name.partition(".")
    part = getattr(recipe, section)
    return getattr(part, key) if key else part
