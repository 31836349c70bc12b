"""``changeanywhere check``: says what a folder is, what is wrong with it, and what to do next."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from changeanywhere.errors import ChangeAnywhereError, InputError, PairsError, require
from changeanywhere.generation.plan import load_summary
from changeanywhere.legend import Legend
from changeanywhere.models.info import find_model, outside_sampling
from changeanywhere.models.info import read_info as read_model_info
from changeanywhere.pairs.layouts import layout_of
from changeanywhere.pairs.names import FINAL_FILES, SPLITS
from changeanywhere.pairs.reader import load_pairs
from changeanywhere.sample import change_mask_of
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.sources.files import read_info
from changeanywhere.sources.layouts import find_layout
from changeanywhere.sources.options import DEFAULT_TILE_SIZE
from changeanywhere.sources.problems import Problems
from changeanywhere.storage import LocalStore, file_hash

MAX_SAMPLES = 64  # tiles or pairs whose pixels are read; spread evenly


@dataclass(frozen=True, kw_only=True)
class CheckOptions(SourceOptions):
    """Options of ``changeanywhere check``; those of a source are of use where the folder is one."""

    path: Path
    """Folder to look at."""


def check_path(path: str | Path, options: SourceOptions | None = None) -> str:
    """A few lines about ``path``. Raises :class:`InputError` with the first thing that is wrong.

    ``options``: how to open it where it is a source; :class:`ConfigError` for options of a source where it is none.
    """
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"{folder}: does not exist")
    if folder.is_file():
        raise InputError(f"{folder}: is a file; give the folder it lies in")
    described = _described(folder)
    if described is None:
        return _source(folder, options or SourceOptions())
    given = options.of_source() if options else SourceOptions()
    for each in fields(SourceOptions):
        value = getattr(given, each.name)
        require(value == each.default, each.name, value, f"for single-date tiles, which {folder} does not hold")
    return described


def _described(folder: Path) -> str | None:
    """What a folder is that is no source."""
    if (folder / "model.json").is_file():
        return _model(folder)
    for name, what in (("detector", "a change detector"), ("segmenter", "a network that reads land cover")):
        if (folder / f"{name}.json").is_file():
            return _network(folder, name, what)
    if (folder / "cells").is_dir():
        return _benchmark(folder)
    if (folder / "plan").is_dir() or (folder / "shards").is_dir():
        return _generated(folder)
    if (folder / "training").is_dir():
        return _training(folder)
    if trees := [tree for tree in (folder, *(folder / split for split in SPLITS)) if layout_of(tree)]:
        return "\n".join(_pairs(tree) for tree in trees)
    return None


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


def _generated(folder: Path) -> str:
    num_shards = _planned_shards(folder)
    if (folder / "events.jsonl").is_file():
        return f"{folder}: masks of change events (simulate), without images"
    markers = sorted((folder / "shards").glob("*.json"))
    for marker in markers:
        (content,) = _lines(marker)
        if not isinstance(content, dict) or not isinstance(content.get("files", {}), dict):
            raise PairsError(f"{marker}: damaged; delete it, and the same generate command makes its shard again")
        for name, digest in content.get("files", {}).items():
            if not (folder / name).is_file():
                raise PairsError(
                    f"{folder / name}: missing; delete {marker}, and the same generate command makes it again"
                )
            if file_hash(folder / name) != digest:
                raise PairsError(
                    f"{folder / name}: not the bytes that were written; delete {marker}, and the same generate command "
                    "makes it again"
                )
    if len(markers) < num_shards or not (folder / "metadata.jsonl").is_file():
        return (
            f"{folder}: an unfinished dataset, {len(markers)} of {num_shards} shards\n"
            "next: the same generate command again"
        )
    for name in FINAL_FILES:
        if not (folder / name).is_file():
            raise PairsError(f"{folder / name}: missing; the same generate command makes it again")
    return f"{folder}: a generated dataset; every image and mask is as it was written\n" + _pairs(folder)


def _planned_shards(folder: Path) -> int:
    """Of the plan; that of the first edition was one file."""
    if (folder / "plan" / "settings.json").is_file():
        return len({int(pair["shard"]) for pair in _lines(folder / "plan" / "pairs.jsonl")})
    summary = load_summary(LocalStore(folder))
    if summary is None:
        raise PairsError(f"{folder}: no plan/plan.json; its plan was not finished or was deleted: generate again")
    return summary.num_shards


def _lines(file: Path) -> list[Any]:
    """A JSON document, or one per line. Raises :class:`PairsError` for a damaged file."""
    try:
        text = file.read_text()
        return (
            [json.loads(text)] if file.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
        )
    except (OSError, ValueError) as error:
        raise PairsError(f"{file}: damaged ({' '.join(str(error).split())})") from error


def _network(folder: Path, name: str, what: str) -> str:
    (content,) = _lines(folder / f"{name}.json")
    described = ", ".join(f"{key} {value}" for key, value in content.items() if isinstance(value, str | int | float))
    uses = {
        "detector": f"changeanywhere train detector --init {folder} --detector.name {content.get('name')} "
        "--detector.pairs DIR --out DIR (fine-tuning)",
        "segmenter": f"changeanywhere evaluate --pairs DIR --judge {folder} --out DIR",
    }
    return f"{folder}: {what}; {described}\nnext: {uses[name]}"


def _benchmark(folder: Path) -> str:
    cells = len(list((folder / "cells").glob("*.json")))
    table = folder / "table.md"
    then = f"table: {table}" if table.is_file() else "next: the same benchmark command again"
    return f"{folder}: a benchmark, {cells} cells finished\n{then}"


def _training(folder: Path) -> str:
    lines = [f"{folder}: a training run"]
    for stage in ("first_stage", "denoiser", "segmenter", "detector"):
        metrics = folder / "training" / stage / "metrics.jsonl"
        if metrics.is_file() and (logged := _lines(metrics)):
            lines.append(f"{stage}: step {logged[-1]['step']:.0f}, loss {logged[-1]['loss']:.4f}")
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


def _pairs(folder: Path) -> str:
    pairs = load_pairs(folder)
    changed, compared, rows = 0.0, 0, range(0, len(pairs), -(-len(pairs) // MAX_SAMPLES))
    for i in rows:
        pair = pairs[i]
        changed += float(pair.change_mask.mean())
        if pair.mask_t1 is not None and pair.mask_t2 is not None:
            wrong = int((pair.change_mask != change_mask_of(pair.mask_t1, pair.mask_t2)).sum())
            compared += 1
            if wrong:
                raise PairsError(f"{folder}: change mask of {pair.key} disagrees with its semantic masks in {wrong} px")
    lines = [f"{folder}: {len(pairs)} bi-temporal pairs, change ratio {changed / len(rows):.3f} (mean of {len(rows)})"]
    lines.append(f"labels: {pairs.label_rule}")
    if (folder / "legend.json").is_file():
        lines.append(f"legend: {', '.join(Legend.load(folder / 'legend.json').names)}")
    if compared:
        lines.append(f"change masks agree with the semantic masks in the {compared} pairs read")
    return "\n".join(lines)


def _source(folder: Path, options: SourceOptions) -> str:
    try:
        first = read_info(find_layout(folder, Problems(options.on_error == "skip")).entries[0].image)
        fitting = max(16, min(DEFAULT_TILE_SIZE, first.height // 16 * 16, first.width // 16 * 16))
        chosen = options.of_source(tile_size=fitting)
        source = open_source(folder, chosen)
    except ChangeAnywhereError as error:
        raise InputError(f"not a model, dataset or training run, and as a source: {error}") from error
    rows = range(0, len(source), -(-len(source) // MAX_SAMPLES))
    for i in rows:
        source.read(i)
    sampling = outside_sampling(read_model_info(find_model("mini")), (item.gsd_m for item in source.items))
    scenes = len({item.scene for item in source.items})
    licences = sorted({item.licence for item in source.items})
    return (
        f"{folder}: {len(source)} single-date tiles of {chosen.tile_size} px, {scenes} scenes, "
        f"legend {source.legend.name}, "
        f"licences {', '.join(licences)}; {len(rows)} read without a fault"
        f"{f', {len(source.skipped)} left out' if source.skipped else ''}\n"
        f"{f'for the embedded model: {sampling}{chr(10)}' if sampling else ''}"
        f"next: changeanywhere generate --source {folder} --out DIR"
    )
