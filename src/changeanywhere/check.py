"""``changeanywhere check``: says what a folder is, what is wrong with it, and what to do next."""

from __future__ import annotations

import json
from pathlib import Path

from changeanywhere.errors import ChangeAnywhereError, InputError, PairsError
from changeanywhere.legend import Legend
from changeanywhere.pairs.layout import SPLITS, file_hash
from changeanywhere.pairs.reader import load_pairs
from changeanywhere.pairs.trees import tree_of
from changeanywhere.sample import change_mask_of
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.sources.files import read_info
from changeanywhere.sources.layouts import find_layout
from changeanywhere.sources.problems import Problems

MAX_SAMPLES = 64  # tiles or pairs whose pixels are read; spread evenly


def check_path(path: str | Path) -> str:
    """A few lines about ``path``. Raises :class:`InputError` with the first thing that is wrong."""
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"{folder}: does not exist")
    if folder.is_file():
        raise InputError(f"{folder}: is a file; give the folder it lies in")
    if (folder / "model.json").is_file():
        return _model(folder)
    if (folder / "plan" / "settings.json").is_file() or (folder / "shards").is_dir():
        return _generated(folder)
    if (folder / "training").is_dir():
        return _training(folder)
    if trees := [tree for tree in (folder, *(folder / split for split in SPLITS)) if tree_of(tree)]:
        return "\n".join(_pairs(tree) for tree in trees)
    return _source(folder)


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
    settings = folder / "plan" / "settings.json"
    if not settings.is_file():
        raise PairsError(f"{folder}: shards without plan/settings.json; its plan was deleted, so it cannot be resumed")
    planned = sum(1 for line in (folder / "plan" / "pairs.jsonl").read_text().splitlines() if line)
    markers = sorted((folder / "shards").glob("*.json"))
    done = 0
    for marker in markers:
        content = json.loads(marker.read_text())
        done += len(content["records"])
        for name, digest in content["files"].items():
            if not (folder / name).is_file():
                raise PairsError(f"{folder / name}: missing; the same generate command makes it again")
            if file_hash(folder / name) != digest:
                raise PairsError(f"{folder / name}: not the bytes that were written; delete it and generate again")
    if done < planned or not (folder / "metadata.jsonl").is_file():
        return f"{folder}: an unfinished dataset, {done} of {planned} pairs\nnext: the same generate command again"
    return f"{folder}: a generated dataset; every file is as it was written\n" + _pairs(folder)


def _training(folder: Path) -> str:
    lines = [f"{folder}: a training run"]
    for stage in ("first_stage", "denoiser"):
        metrics = folder / "training" / stage / "metrics.jsonl"
        if metrics.is_file():
            last = json.loads(metrics.read_text().splitlines()[-1])
            lines.append(f"{stage}: step {last['step']:.0f}, loss {last['loss']:.4f}")
    if (folder / "model").is_dir():
        lines.append(f"next: changeanywhere generate --model {folder / 'model'} --source DIR --out DIR")
    elif (folder / "first_stage").is_dir():
        lines.append(f"next: changeanywhere train denoiser --config RECIPE --out {folder}")
    else:
        lines.append(f"next: changeanywhere train first-stage --config RECIPE --out {folder}")
    return "\n".join(lines)


def _pairs(folder: Path) -> str:
    pairs = load_pairs(folder)
    changed, rows = 0.0, range(0, len(pairs), -(-len(pairs) // MAX_SAMPLES))
    for i in rows:
        pair = pairs[i]
        changed += float(pair.change_mask.mean())
        if pair.mask_t1 is not None and pair.mask_t2 is not None:
            wrong = int((pair.change_mask != change_mask_of(pair.mask_t1, pair.mask_t2)).sum())
            if wrong:
                raise PairsError(f"{folder}: change mask of {pair.key} disagrees with its semantic masks in {wrong} px")
    lines = [f"{folder}: {len(pairs)} bi-temporal pairs, change ratio {changed / len(rows):.3f} (mean of {len(rows)})"]
    if (folder / "legend.json").is_file():
        lines.append(f"legend: {', '.join(Legend.load(folder / 'legend.json').names)}")
        lines.append(f"change masks agree with the semantic masks in the {len(rows)} pairs read")
    return "\n".join(lines)


def _source(folder: Path) -> str:
    try:
        first = read_info(find_layout(folder, Problems(skip=False)).entries[0].image)
        tile_size = max(16, min(256, first.height // 16 * 16, first.width // 16 * 16))
        source = open_source(folder, SourceOptions(tile_size=tile_size))
    except ChangeAnywhereError as error:
        raise InputError(f"not a model, dataset or training run, and as a source: {error}") from error
    rows = range(0, len(source), -(-len(source) // MAX_SAMPLES))
    for i in rows:
        source.read(i)
    scenes = len({item.scene for item in source.items})
    licences = sorted({item.licence for item in source.items})
    return (
        f"{folder}: {len(source)} single-date tiles of {tile_size} px, {scenes} scenes, legend {source.legend.name}, "
        f"licences {', '.join(licences)}; {len(rows)} read without a fault\n"
        f"next: changeanywhere generate --source {folder} --out DIR"
    )
