"""``changeanywhere evaluate``: every figure beside its ceiling, as JSON and as one page with pictures."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import torch

from changeanywhere.diffusion.pipeline import ChangePairPipeline, default_device
from changeanywhere.errors import OutputError, PairsError, SourceError
from changeanywhere.evaluation.figures import Figure
from changeanywhere.evaluation.of_model import evaluate_model
from changeanywhere.evaluation.of_pairs import evaluate_pairs
from changeanywhere.evaluation.options import EvaluateOptions
from changeanywhere.evaluation.page import Pictures, write_page
from changeanywhere.evaluation.reading import Extractor, load_features, load_judge
from changeanywhere.legend import Legend
from changeanywhere.pairs import load_pairs
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.storage import atomic_write

MIN_TILES = 4


def evaluate(options: EvaluateOptions) -> list[Figure]:
    """Measure what ``options`` names; writes ``evaluation.json`` and ``evaluation.html`` into ``options.out``."""
    options.check()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{options.out}: cannot be written ({error.strerror})") from error
    device = default_device()
    features = load_features(device, options.batch_size)
    figures: list[Figure] = []
    pictures = Pictures()
    if options.model is not None:
        found, pictures = _of_model(options, device, features)
        figures += found
    if options.pairs is not None:
        figures += _of_pairs(options, options.pairs, device, features)
    given = {name: str(value) for name, value in vars(options).items() if value is not None and name != "out"}
    record = {
        "version": version("changeanywhere"),
        "torch": str(torch.__version__),
        "options": given,
        "figures": [figure.to_dict() for figure in figures],
    }
    atomic_write(options.out / "evaluation.json", (json.dumps(record, indent=1) + "\n").encode())
    write_page(options.out / "evaluation.html", figures, pictures, given)
    return figures


def _of_model(options: EvaluateOptions, device: torch.device, features: Extractor) -> tuple[list[Figure], Pictures]:
    assert options.model is not None and options.source is not None
    pipe = ChangePairPipeline.from_pretrained(options.model, device=str(device))
    source = open_source(
        options.source,
        SourceOptions(tile_size=pipe.model.tile_size, licences=tuple(options.licences) if options.licences else None),
    ).with_legend(pipe.legend, Path(options.legend_map) if options.legend_map else None)
    if len(source) < MIN_TILES:
        raise SourceError(f"{options.source}: {len(source)} tiles; distances between sets need at least {MIN_TILES}")
    judge = load_judge(options.judge, pipe.legend, device, options.batch_size) if options.judge else None
    figures, rows = evaluate_model(pipe, source, judge, features, options)
    return figures, Pictures(pipe.legend, rows)


def _of_pairs(options: EvaluateOptions, folder: Path, device: torch.device, features: Extractor) -> list[Figure]:
    dataset = load_pairs(folder)
    if not (folder / "legend.json").is_file():
        raise PairsError(f"{folder}: has no legend.json and no semantic masks; only generated sets can be evaluated")
    legend = Legend.load(folder / "legend.json")
    judge = load_judge(options.judge, legend, device, options.batch_size) if options.judge else None
    return evaluate_pairs(
        dataset,
        legend.names,
        judge,
        features,
        options.real_pairs,
        options.max_pairs,
        options.seed,
    )
