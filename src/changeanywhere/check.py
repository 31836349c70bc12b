"""``changeanywhere check``: says what a folder is, what is wrong with it, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from changeanywhere.buckets import local_copy
from changeanywhere.check_data import describe_pairs, describe_source
from changeanywhere.check_set import describe_set
from changeanywhere.documents import parse_json
from changeanywhere.errors import ConfigError, InputError, PairsError, require
from changeanywhere.models.info import EMBEDDED_SEGMENTER, hash_segmenter
from changeanywhere.pairs.hub import unpacked
from changeanywhere.pairs.layouts import below, refuse_bands, trees_of
from changeanywhere.preview import check_target
from changeanywhere.regular import read_regular
from changeanywhere.sources import SourceOptions
from changeanywhere.storage import address_of

NETWORKS = (
    ("detector", "a change detector"),
    ("segmenter", "a network that reads land cover"),
    ("critic", "a network that reads noisy latents"),
)
"""Folders with NAME.json, and what they are."""

STAGES = ("first_stage", "denoiser", "critic", "segmenter", "detector")
OF_BENCHMARK = ("benchmark.json", "cells/*-[0-9][0-9][0-9]-*.json")
"""Patterns of files, as the next two: folders named training/, cells/ or plan/ may be anybody's."""
OF_SET = ("plan/job.json", "plan/plan.json", "plan/settings.json", f"shards/{'[0-9]' * 5}.json")
OF_TRAINING = tuple(f"training/{stage}/{name}" for stage in STAGES for name in ("recipe.json", "metrics.jsonl"))


@dataclass(frozen=True, kw_only=True)
class CheckOptions(SourceOptions):
    """Options of ``changeanywhere check``; those of a source are of use where the folder is one."""

    path: Path
    """Folder to look at."""
    preview: Path | None = None
    """PNG to draw a few tiles (image, mask, mask over image) or pairs into, where the folder holds such."""
    legend_map: Path | None = None
    """YAML file, class of the tiles → class of the model, as generate takes it."""
    model: str | None = None
    """Model (mini or a folder) in whose classes the tiles are shown; default: their own, with legend_map mini's."""


def check_path(path: str | Path, options: SourceOptions | None = None) -> str:
    """A few lines about ``path``. Raises :class:`InputError` with the first thing that is wrong.

    ``options``: how to open it where it is a source; :class:`ConfigError` for options of a source where it is none.
    """
    address = address_of(path)
    if address is not None:
        return _check_address(address, options)
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"{folder}: does not exist")
    if folder.is_file():
        raise InputError(f"{folder}: is a file; give the folder it lies in")
    asked = options if isinstance(options, CheckOptions) else CheckOptions(path=folder)
    if asked.preview is not None:
        check_target(asked.preview)
    described = _described(folder, asked)
    if described is None:
        of_source = options.of_source() if options else SourceOptions()
        return describe_source(folder, of_source, asked.preview, asked.model, asked.legend_map)
    given = options.of_source() if options else SourceOptions()
    for each in fields(SourceOptions):
        if each.name == "max_megapixels" and " bi-temporal pairs, " in described:
            continue
        value = getattr(given, each.name)
        require(value == each.default, each.name, value, f"for single-date tiles, which {folder} does not hold")
    for name in ("model", "legend_map"):
        value = getattr(asked, name)
        require(value is None, name, value, f"for single-date tiles, which {folder} does not hold")
    if asked.preview is not None and "picture: " not in described:
        raise ConfigError(f"preview is {str(asked.preview)!r}; {folder} holds neither tiles nor whole pairs to draw")
    return described


def _check_address(address: str, options: SourceOptions | None) -> str:
    """:func:`check_path` of a copy, which has the same bytes; said of the address."""
    copy = local_copy(address)
    asked = replace(options, path=copy) if isinstance(options, CheckOptions) else options
    try:
        return check_path(copy, asked).replace(str(copy), address)
    except InputError as error:
        raise type(error)(str(error).replace(str(copy), address)) from error


def _described(folder: Path, asked: CheckOptions) -> str | None:
    """What a folder is that is no source."""
    if (folder / "model.json").is_file():
        return _model(folder)
    for name, what in NETWORKS:
        if (folder / f"{name}.json").is_file():
            return _network(folder, name, what)
    if _has(folder, OF_BENCHMARK):
        return _benchmark(folder)
    if _has(folder, OF_SET):
        return describe_set(folder, asked.preview, asked.max_megapixels)
    if _has(folder, OF_TRAINING):
        return _training(folder)
    if unpacked(folder) != folder:  # a copy of a set of containers, without its plan
        return describe_pairs(folder, asked.preview, asked.max_megapixels)
    if trees := trees_of(folder):
        pictures = [asked.preview if tree == trees[0] else None for tree in trees]
        described = zip(trees, pictures, strict=True)
        return "\n".join(describe_pairs(tree, picture, asked.max_megapixels) for tree, picture in described)
    if inside := below(folder):
        listed = ", ".join(str(tree) for tree in inside[:6])
        raise InputError(f"{folder}: holds datasets of pairs in folders of their own; check one of {listed}")
    refuse_bands(folder)
    return None


def _has(folder: Path, patterns: Iterable[str]) -> bool:
    return any(file.is_file() for pattern in patterns for file in folder.glob(pattern))


def _model(folder: Path) -> str:
    from changeanywhere.models.folder import load_model

    model = load_model(folder)
    size = sum(p.numel() for p in model.denoiser.parameters()) / 1e6
    first = sum(p.numel() for p in model.first_stage.parameters()) / 1e6
    return (
        f"{folder}: a model; first stage {first:.1f} M, denoiser {size:.1f} M parameters, hash {model.weights_hash}\n"
        f"legend {model.legend.name}: {', '.join(model.legend.names)}\n"
        f"guidance {'possible' if model.mask_dropout else 'not possible'}\n"
        f"next: changeanywhere generate --model {folder} --source DIR --out DIR"
    )


def _lines(file: Path) -> list[dict[str, Any]]:
    """A JSON object, or one per line; a last one without its end is being written, or was when a kill came. Raises
    :class:`PairsError` for a damaged file."""
    try:
        text = read_regular(file).decode()
        whole = file.suffix == ".json"
        lines = [text] if whole else [line for line in text[: text.rfind("\n") + 1].splitlines() if line]
        found = [parse_json(line) for line in lines]
    except (OSError, ValueError) as error:
        raise PairsError(f"{file}: damaged ({' '.join(str(error).split())})") from error
    if not all(isinstance(each, dict) for each in found):
        raise PairsError(f"{file}: damaged (not a JSON object)")
    return found


def _network(folder: Path, name: str, what: str) -> str:
    (content,) = _lines(folder / f"{name}.json")
    classes = ""
    if name == "detector":  # loading says what is wrong with its weights
        from changeanywhere.models.detectors.folder import load_detector

        _, net = load_detector(folder)
        legend = getattr(net, "legend", None)
        classes = "" if legend is None else f"; classes {', '.join(legend.names)}"
    elif name == "critic":
        from changeanywhere.models.critic import Critic

        Critic.load(folder)
    else:
        from changeanywhere.models.segmenter import Segmenter

        Segmenter.load(folder)
    described = ", ".join(f"{key} {value}" for key, value in content.items() if isinstance(value, str | int | float))
    uses = {
        "critic": f"changeanywhere generate --source DIR --critic.model {folder} --critic.starts 4 --out DIR",
        "detector": f"changeanywhere predict --detector {folder} T1 T2 --out DIR, or "
        f"changeanywhere train detector --init {folder} --detector.name {content.get('name')} "
        "--detector.pairs DIR --out DIR (fine-tuning)",
        "segmenter": f"changeanywhere evaluate --pairs DIR --judge {folder} --out DIR, or, not both, "
        f"changeanywhere generate --source DIR --filter.model {folder} --out DIR",
    }
    if name == "segmenter" and hash_segmenter(folder) == hash_segmenter(EMBEDDED_SEGMENTER):  # which never judges
        uses[name] = f"changeanywhere generate --source DIR --filter.model {EMBEDDED_SEGMENTER} --out DIR"
    return f"{folder}: {what}; {described}{classes}\nnext: {uses[name]}"


def _benchmark(folder: Path) -> str:
    cells = len(list((folder / "cells").glob("*.json")))
    table = folder / "table.md"
    then = f"table: {table}" if table.is_file() else "next: the same benchmark command again"
    return f"{folder}: a benchmark, {cells} cells finished\n{then}"


def _training(folder: Path) -> str:
    lines = [f"{folder}: a training run"]
    for stage in STAGES:
        metrics = folder / "training" / stage / "metrics.jsonl"
        if metrics.is_file() and (logged := _lines(metrics)):
            step, loss = (logged[-1].get(name) for name in ("step", "loss"))
            if not isinstance(step, int | float) or not isinstance(loss, int | float):
                raise PairsError(f"{metrics}: damaged (no step or loss in its last line)")
            lines.append(f"{stage}: step {step:.0f}, loss {loss:.4f}")
    for name in ("segmenter", "detector"):
        if (folder / "training" / name).is_dir():
            done = (folder / name).is_dir()
            lines.append(
                _network(folder / name, name, "ready") if done else f"next: the same train {name} command again"
            )
            return "\n".join(lines)
    if (folder / "model").is_dir():
        lines.append(f"next: changeanywhere generate --model {folder / 'model'} --source DIR --out DIR")
    elif (folder / "first_stage").is_dir():
        lines.append(f"next: changeanywhere train denoiser --config RECIPE --out {folder}")
    else:
        lines.append(f"next: changeanywhere train first-stage --config RECIPE --out {folder}")
    return "\n".join(lines)
