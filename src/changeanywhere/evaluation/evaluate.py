"""``changeanywhere evaluate``: every figure beside its ceiling, as JSON, as CSV and as one page with pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

import torch

from changeanywhere.diffusion.pipeline import ChangePairPipeline, default_device
from changeanywhere.documents import to_json
from changeanywhere.errors import LegendError, OutputError, PairsError, SourceError
from changeanywhere.evaluation.figures import Figure
from changeanywhere.evaluation.object_sets import RealObjects, painted_objects
from changeanywhere.evaluation.of_first_stage import first_stage_figures
from changeanywhere.evaluation.of_model import evaluate_model
from changeanywhere.evaluation.of_objects import Crops, compare, object_figures, object_pictures
from changeanywhere.evaluation.of_pairs import evaluate_pairs
from changeanywhere.evaluation.options import FIRST_STAGE, EvaluateOptions
from changeanywhere.evaluation.page import Cases, Pictures, write_page
from changeanywhere.evaluation.reading import Reader, load_features, load_judge, refuse_filter
from changeanywhere.legend import Legend
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.progress import Progress, silent
from changeanywhere.sample import rgb8
from changeanywhere.sources import open_source
from changeanywhere.sources.options import DEFAULT_TILE_SIZE
from changeanywhere.sources.problems import say_passed_over
from changeanywhere.storage import atomic_write
from changeanywhere.text import in_a_line

MIN_TILES = 4


@dataclass(frozen=True)
class Evaluation:
    """What a call of :func:`evaluate` measured."""

    figures: Sequence[Figure]
    skipped: Sequence[str] = ()
    """Why tiles were left out, a line each (``on_error: skip``)."""


def evaluate(options: EvaluateOptions, progress: Progress = silent) -> Evaluation:
    """Measure what ``options`` names; writes ``evaluation.{json,csv,html}`` into ``options.out``."""
    options.check()
    if options.judge is not None:
        for folder in filter(None, (options.pairs, *map(Path, options.also.values()))):
            refuse_filter(options.judge, folder)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{options.out}: cannot be written ({error.strerror})") from error
    opened = _Opened(options, progress)
    figures: list[Figure] = []
    pictures = Pictures()
    if opened.pipe is not None:
        figures, pictures = _of_model(opened, opened.pipe)
    if options.pairs is not None:
        found, cases, crops = _of_pairs(opened, options.pairs)
        figures += found
        pictures = replace(pictures, cases=cases, crops=crops)
    _write(options, figures, pictures)
    if opened.skipped:
        atomic_write(options.out / "skipped.txt", "".join(f"{in_a_line(line)}\n" for line in opened.skipped).encode())
    return Evaluation(figures, opened.skipped)


class _Opened:
    """What ``options`` name, opened once."""

    def __init__(self, options: EvaluateOptions, progress: Progress) -> None:
        self.options, self.progress = options, progress
        self.device = default_device()
        self.features = load_features(self.device, options.batch_size)
        self.pipe = None
        if options.model is not None:
            self.pipe = ChangePairPipeline.from_pretrained(options.model, device=str(self.device))
        self.skipped: Sequence[str] = ()
        self._real: dict[tuple[tuple[str, ...], int], RealObjects] = {}

    def judge(self, legend: Legend) -> Reader | None:
        """The judge, where there is one; :class:`LegendError` if it knows other classes."""
        folder, size = self.options.judge, self.options.batch_size
        return load_judge(folder, legend, self.device, size) if folder else None

    def real(self, legend: Legend, tile_size: int) -> RealObjects:
        """The real tiles in the classes of ``legend``, read as the options say, else as the model was trained."""
        options, pipe = self.options, self.pipe
        assert options.source is not None
        given = options.of_source(tile_size, *((pipe.model.bands, pipe.model.stretch) if pipe is not None else ()))
        wanted = (legend.names, given.tile_size or tile_size)
        if wanted not in self._real:
            source = open_source(options.source, given, progress=self.progress).with_legend(legend, options.legend_map)
            say_passed_over(source)
            self.skipped = source.skipped
            if len(source) < MIN_TILES:
                raise SourceError(f"{options.source}: {len(source)} tiles; distances between sets need {MIN_TILES}")
            self._real[wanted] = RealObjects(source, self.judge(legend), options.seed, self.progress)
        return self._real[wanted]


def _of_model(opened: _Opened, pipe: ChangePairPipeline) -> tuple[list[Figure], Pictures]:
    options, features = opened.options, opened.features
    real = opened.real(pipe.legend, pipe.model.tile_size)
    figures: list[Figure] = []
    pictures = Pictures()
    if options.num_images:
        judge = opened.judge(pipe.legend)
        figures, rows = evaluate_model(pipe, real.source, judge, features, options, opened.progress)
        pictures = Pictures(pipe.legend, rows)
    figures += first_stage_figures(real.raw, real.decoded(pipe), pipe.legend.names, features, options.seed)
    return figures, pictures


def _of_pairs(opened: _Opened, folder: Path) -> tuple[list[Figure], Cases, Crops]:
    options, features = opened.options, opened.features
    dataset, legend = _open_pairs(folder, options)
    names, judge = (legend.names, opened.judge(legend)) if legend is not None else ((), None)
    measured = evaluate_pairs(dataset, names, judge, features, options, opened.progress)
    figures, cases = measured.figures, Cases(legend, measured.groups, measured.shown)
    if options.source is None or legend is None:
        return figures, cases, {}
    side = _side(dataset)
    sets = {options.column: painted_objects(dataset, options.max_pairs, judge, options.seed, opened.progress)}
    for name, other in options.also.items():
        dataset, own = _open_pairs(Path(other), options)
        theirs = own.names if own is not None else ()
        if theirs != legend.names:
            raise LegendError(f"{other}: has the classes {', '.join(theirs)}; {folder} has {', '.join(legend.names)}")
        sets[name] = painted_objects(dataset, options.max_pairs, judge, options.seed, opened.progress)
    real = opened.real(legend, side)
    decoded = real.decoded(opened.pipe) if opened.pipe is not None else None
    compared, matched = compare(sets, real.raw, decoded, features, options.seed)
    if decoded is not None:
        sets[FIRST_STAGE] = decoded
    figures += object_figures(compared, legend.names, options.seed)
    return figures, cases, object_pictures(sets, real.raw, compared, matched, legend.names)


def _write(options: EvaluateOptions, figures: list[Figure], pictures: Pictures) -> None:
    """What was measured, in three forms."""
    given = {name: str(value) for name, value in vars(options).items() if value not in (None, {}) and name != "out"}
    record = {
        "version": version("changeanywhere"),
        "torch": str(torch.__version__),
        "options": given,
        "figures": [figure.to_dict() for figure in figures],
    }
    atomic_write(options.out / "evaluation.json", (to_json(record, indent=1) + "\n").encode())
    table = io.StringIO()
    rows = csv.DictWriter(table, [*(field.name for field in fields(Figure)), "verdict"], lineterminator="\n")
    rows.writeheader()
    for figure in figures:
        rows.writerow(figure.to_dict() | ({"value": None} if figure.withheld else {}))
    atomic_write(options.out / "evaluation.csv", table.getvalue().encode())
    write_page(options.out / "evaluation.html", figures, pictures, given)


def _open_pairs(folder: Path, options: EvaluateOptions) -> tuple[PairDataset, Legend | None]:
    """The pairs, and their classes where they have any: what a judge reads, and what objects are of."""
    dataset = load_pairs(folder, max_megapixels=options.max_megapixels)
    file = dataset.folder / "legend.json"
    if file.is_file():
        return dataset, Legend.load(file)
    asking = [f"--{name}" for name in ("judge", "source") if getattr(options, name) is not None]
    if asking:
        raise PairsError(f"{folder}: has no legend.json and no semantic masks; allowed: without {' and '.join(asking)}")
    return dataset, None


def _side(dataset: PairDataset) -> int:
    """The size of tiles that pairs were made of, where they are tiles."""
    height, width = rgb8(dataset[0])[0].shape[:2]
    return height if height == width and height % 16 == 0 else DEFAULT_TILE_SIZE
