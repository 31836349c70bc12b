"""``changeanywhere train``: a recipe and a folder in, a stage out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

from changeanywhere.errors import ConfigError
from changeanywhere.help import one_of
from changeanywhere.legend import load_legend
from changeanywhere.limits import check_limits
from changeanywhere.models.info import find_model, read_info
from changeanywhere.progress import Progress, silent
from changeanywhere.sources import JoinedSource, Source, open_images, open_source
from changeanywhere.sources.problems import say_passed_over
from changeanywhere.storage import atomic_write, check_out
from changeanywhere.terminal import say
from changeanywhere.text import in_a_line
from changeanywhere.training.checks import UNREAD, cut_short, refuse_unread_flags, without_idle
from changeanywhere.training.evidence import Evidence
from changeanywhere.training.recipe import (
    STAGE_SECTIONS,
    CriticRecipe,
    DataRecipe,
    DenoiserRecipe,
    DetectorRecipe,
    FirstStageRecipe,
    Recipe,
    RunRecipe,
    SegmenterRecipe,
)
from changeanywhere.training.sections import TRACKERS

STAGES = ("first-stage", "denoiser", "critic", "segmenter", "detector")


@dataclass(frozen=True)
class TrainOptions:
    """Options of ``changeanywhere train``; the sections are those of a recipe file."""

    out: Path
    """Folder of the run; the same command on the same folder resumes."""
    first_stage_from: Path | None = None
    """Folder of a finished first stage for ``train denoiser`` and ``train critic``; default: OUT/first_stage."""
    init: str | None = None
    """Fine-tune this model (mini or a folder): same architecture; classes are matched by name, bands by number.
    For a detector: mini-detector, or its folder; for a segmenter: mini-segmenter, or its folder."""
    track: tuple[str, ...] = one_of(TRACKERS, ())
    """Services that get each line of metrics.jsonl too: ``mlflow``, ``wandb`` (each to be installed; they read their
    own variables and logins, as MLFLOW_TRACKING_URI, WANDB_MODE). A resumed training goes on in its run."""
    data: DataRecipe = field(default_factory=DataRecipe)
    first_stage: FirstStageRecipe = field(default_factory=FirstStageRecipe)
    denoiser: DenoiserRecipe = field(default_factory=DenoiserRecipe)
    critic: CriticRecipe = field(default_factory=CriticRecipe)
    segmenter: SegmenterRecipe = field(default_factory=SegmenterRecipe)
    detector: DetectorRecipe = field(default_factory=DetectorRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)


def open_training_source(data: DataRecipe) -> Source:
    """The tiles of a recipe, their masks in the model's legend."""
    if not data.source:
        raise ConfigError("data.source is missing; give it in the recipe or as --data.source DIR")
    source = open_source(Path(data.source), data.of_source())
    mapping = Path(data.legend_map) if data.legend_map else None
    if data.model_legend is not None:
        source = source.with_legend(load_legend(data.model_legend), mapping)
    parts, all_of = [source], replace(data.of_source(), splits=None)
    for folder in data.further:
        tiles = open_source(Path(folder), all_of)
        parts.append(tiles if tiles.legend == source.legend else tiles.with_legend(source.legend, mapping))
    for folder, became in data.evidence.items():
        parts.append(Evidence(folder, became, source.legend, data.evidence_split, data.bands))
    labelled = len(parts)
    parts += [open_images(folder, source.legend, all_of) for folder in data.images]
    return source if len(parts) == 1 else JoinedSource(parts, data.images_without, labelled)


def _like_model(data: DataRecipe, init: str) -> DataRecipe:
    """With bands and stretch of the model that training starts from, where none were given."""
    info = read_info(find_model(init))
    given = data.of_source(bands=info.bands, stretch=info.stretch)
    return replace(data, bands=given.bands, stretch=given.stretch)


def train(
    stage: str,
    options: TrainOptions,
    progress: Progress = silent,
    stop: Event | None = None,
    given: frozenset[str] = frozenset(),
) -> Path:
    """Train one of :data:`STAGES`, or resume it; returns the folder of the result.

    ``given``: names of the options that came as flags (``denoiser.loss``): one that the stage does not read is refused,
    and what one switches off may stay in the recipe file.
    Once ``stop`` is set it ends after the step it is at, with a checkpoint, in a :class:`KeyboardInterrupt`.
    """
    section = stage.replace("-", "_")
    check_limits(options)
    check_out(options.out, options.data.source)
    refuse_unread_flags(section, given)
    sections = {name: getattr(options, name) for name in ("data", *STAGE_SECTIONS, "run", "track", "init")}
    if options.init and stage in ("first-stage", "denoiser", "critic"):
        sections["data"] = _like_model(options.data, options.init)
    recipe = without_idle(Recipe(**sections), section, given)
    if stage == "first-stage":
        recipe, said = cut_short(recipe, given)
        if said and os.environ.get("RANK", "0") == "0":
            say(said, error=True)
    recipe.check(section)
    if stage == "detector":
        from changeanywhere.training.detector import train_detector

        return train_detector(recipe, options.out, progress=progress, stop=stop)
    recipe = _without_unread(recipe, section)
    source = open_training_source(recipe.data)
    _note_skipped(source, options.out)
    if stage == "first-stage":
        from changeanywhere.training.first_stage import train_first_stage

        return train_first_stage(source, recipe, options.out, progress, stop)
    if stage == "segmenter":
        from changeanywhere.training.segmenter import train_segmenter

        return train_segmenter(source, recipe, options.out, progress, stop)
    if stage == "critic":
        from changeanywhere.training.critic import train_critic

        return train_critic(source, recipe, options.out, options.first_stage_from, progress, stop)
    from changeanywhere.training.denoiser import train_denoiser

    return train_denoiser(source, recipe, options.out, options.first_stage_from, progress, stop)


def _without_unread(recipe: Recipe, stage: str) -> Recipe:
    """What ``data`` says for other stages that share the recipe is at its default: it changes nothing here."""
    names = [name.partition(".")[2] for name in UNREAD[stage] if name.startswith("data.")]
    return replace(recipe, data=replace(recipe.data, **{name: getattr(DataRecipe(), name) for name in names}))


def _note_skipped(source: Source, out: Path) -> None:
    if os.environ.get("RANK", "0") != "0":  # of the processes that a launcher started, one speaks
        return
    say_passed_over(source)
    if source.skipped:
        atomic_write(out / "skipped.txt", "".join(f"{in_a_line(line)}\n" for line in source.skipped).encode())
        say(f"left out: {len(source.skipped)} that could not be read, listed in {out / 'skipped.txt'}", error=True)
