"""``changeanywhere evaluate``: every figure beside its ceiling, as JSON and as one page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from changeanywhere.diffusion.pipeline import ChangePairPipeline, default_device
from changeanywhere.documents import to_json
from changeanywhere.errors import OutputError, PairsError, SourceError
from changeanywhere.evaluation.figures import Figure
from changeanywhere.evaluation.of_model import evaluate_model
from changeanywhere.evaluation.of_pairs import evaluate_pairs
from changeanywhere.evaluation.options import EvaluateOptions
from changeanywhere.evaluation.page import Pictures, write_page
from changeanywhere.evaluation.reading import Extractor, load_features, load_judge
from changeanywhere.legend import Legend
from changeanywhere.pairs import load_pairs
from changeanywhere.progress import Progress, silent
from changeanywhere.sources import Source, open_source
from changeanywhere.sources.problems import say_passed_over
from changeanywhere.storage import atomic_write

MIN_TILES = 4


@dataclass(frozen=True)
class Evaluation:
    """What a call of :func:`evaluate` measured."""

    figures: Sequence[Figure]
    skipped: Sequence[str] = ()
    """Why tiles were left out, a line each (``on_error: skip``)."""


def evaluate(options: EvaluateOptions, progress: Progress = silent) -> Evaluation:
    """Measure what ``options`` names; writes ``evaluation.json`` and ``evaluation.html`` into ``options.out``."""
    options.check()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{options.out}: cannot be written ({error.strerror})") from error
    device = default_device()
    features = load_features(device, options.batch_size)
    figures: list[Figure] = []
    skipped: Sequence[str] = ()
    pictures = Pictures()
    if options.model is not None:
        pipe = ChangePairPipeline.from_pretrained(options.model, device=str(device))
        source = _tiles(options, pipe, progress)
        skipped = source.skipped
        judge = load_judge(options.judge, pipe.legend, device, options.batch_size) if options.judge else None
        found, rows = evaluate_model(pipe, source, judge, features, options, progress)
        figures, pictures = found, Pictures(pipe.legend, rows)
    if options.pairs is not None:
        figures += _of_pairs(options, options.pairs, features, progress)
    given = {name: str(value) for name, value in vars(options).items() if value is not None and name != "out"}
    record = {
        "version": version("changeanywhere"),
        "torch": str(torch.__version__),
        "options": given,
        "figures": [figure.to_dict() for figure in figures],
    }
    atomic_write(options.out / "evaluation.json", (to_json(record, indent=1) + "\n").encode())
    write_page(options.out / "evaluation.html", figures, pictures, given)
    if skipped:
        atomic_write(options.out / "skipped.txt", "".join(f"{line}\n" for line in skipped).encode())
    return Evaluation(figures, skipped)


def _tiles(options: EvaluateOptions, pipe: ChangePairPipeline, progress: Progress) -> Source:
    """The tiles that the model is held against, read as the options say, else as the model was trained."""
    assert options.source is not None
    given = options.of_source(pipe.model.tile_size, pipe.model.bands, pipe.model.stretch)
    source = open_source(options.source, given, progress=progress).with_legend(pipe.legend, options.legend_map)
    say_passed_over(source)
    if len(source) < MIN_TILES:
        raise SourceError(f"{options.source}: {len(source)} tiles; distances between sets need at least {MIN_TILES}")
    return source


def _of_pairs(options: EvaluateOptions, folder: Path, features: Extractor, progress: Progress) -> list[Figure]:
    dataset = load_pairs(folder, max_megapixels=options.max_megapixels)
    if not (folder / "legend.json").is_file():
        raise PairsError(f"{folder}: has no legend.json and no semantic masks; only generated sets can be evaluated")
    legend = Legend.load(folder / "legend.json")
    judge = load_judge(options.judge, legend, default_device(), options.batch_size) if options.judge else None
    real, count, seed = options.real_pairs, options.max_pairs, options.seed
    return evaluate_pairs(dataset, legend.names, judge, features, real, count, seed, progress)
