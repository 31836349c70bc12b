"""``changeanywhere evaluate --detector``: scores of the change class, of all pairs and of each, and their page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from changeanywhere.diffusion.pipeline import find_device
from changeanywhere.documents import to_json
from changeanywhere.errors import OutputError
from changeanywhere.evaluation.cases import groups_of, sheets
from changeanywhere.evaluation.detector_figures import (
    COUNTS,
    SCORES,
    class_figures,
    detector_figures,
    rank_of,
    ranking,
)
from changeanywhere.evaluation.detector_options import DetectorEvaluationOptions
from changeanywhere.evaluation.figures import Figure
from changeanywhere.evaluation.page import HOVER, in_lines, tables
from changeanywhere.models.detectors import Detector, SemanticDetector
from changeanywhere.models.detectors.folder import load_detector
from changeanywhere.models.first_stage import channels_last
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.pictures import class_item, dates, img
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.pairs.semantics import NO_CLASSES, legend_of
from changeanywhere.progress import Progress, silent
from changeanywhere.sample import rgb8
from changeanywhere.shipped import page as filled
from changeanywhere.storage import atomic_write
from changeanywhere.text import csv_cell, xml
from changeanywhere.training.detection import IGNORE, ChangeScores, score_pairs, sum_of
from changeanywhere.training.pair_batches import label_of, to_tensors, whole_batches
from changeanywhere.training.semantic import SemanticScores, score_classes

FOUND, FALSE, MISSED, UNKNOWN = (255, 255, 255), (222, 80, 60), (70, 130, 230), (110, 110, 110)
COLOURS = {"found": FOUND, "called changed and is not": FALSE, "missed": MISSED, "no label": UNKNOWN}
AGAINST = "prediction against label"
PROBABILITY = "probability of change, white: sure"
SHOWN_ROWS = 500
"""Pairs in the table of the page; the CSV has all."""


@dataclass(frozen=True)
class DetectorEvaluation:
    """Scores of every pair by its key, and of all together (from the sum of their pixels, as in the literature)."""

    detector: str
    pairs: dict[str, ChangeScores]
    figures: Sequence[Figure] = ()
    """Those of all pairs, each with its interval, beside what guessing gives, and those of classes."""
    semantic: SemanticScores | None = None
    """Of all pairs together, in the classes of their set; None of a detector of change alone."""
    without: str = ""
    """Why a semantic detector has no scores in classes."""

    @property
    def overall(self) -> ChangeScores:
        return sum_of(self.pairs.values())


def evaluate_on_pairs(options: DetectorEvaluationOptions, progress: Progress = silent) -> DetectorEvaluation:
    """Score a detector; writes ``evaluation.{json,csv,html}`` into ``options.out``.

    Raises :class:`ModelError` for a folder that is no detector, :class:`PairsError` for pairs without labels.
    """
    options.check()
    name, net = load_detector(options.detector)
    net = channels_last(net.to(find_device(options.device)))
    pairs = _selected(options)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{options.out}: cannot be written ({error.strerror})") from error
    scores, semantic, without = _scores(net, pairs, options, progress)
    keys = [pairs.key_of(n) for n in range(len(pairs))]
    if len(set(keys)) < len(keys):  # a.png beside a.tif
        keys = list(pairs.names)
    scenes = [str(pairs.record_of(n).get("scene", key)) for n, key in enumerate(keys)]
    figures = detector_figures(scores, scenes) + (class_figures(semantic, scores, scenes) if semantic else [])
    evaluation = DetectorEvaluation(name, dict(zip(keys, scores, strict=True)), figures, semantic, without)
    groups = groups_of(ranking(scores), len(pairs), options.num_panels)
    _write(options, evaluation, sheets(groups, lambda number: _panel(net, pairs, number, scores[number])))
    return evaluation


def _selected(options: DetectorEvaluationOptions) -> PairDataset:
    pairs = load_pairs(options.pairs, options.split, options.max_megapixels)
    if options.change_classes:
        pairs = pairs.counting(options.change_classes)
    return pairs if options.listing is None else pairs.listed(options.listing, str(options.pairs))


def _scores(
    net: Detector, pairs: PairDataset, options: DetectorEvaluationOptions, progress: Progress
) -> tuple[list[ChangeScores], SemanticScores | None, str]:
    """Of each pair; of all of them in classes, or why there are none."""
    device, legend = next(net.parameters()).device, legend_of(pairs)

    def counted(semantic: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        done = 0
        for batch in whole_batches(pairs, options.batch_size, net.in_channels, options.num_workers, semantic):
            yield batch
            done += len(batch[0])
            progress("scoring pairs", done, len(pairs))

    if not isinstance(net, SemanticDetector):
        return score_pairs(net, counted(False), device), None, ""
    if legend is None:
        return score_pairs(net, counted(False), device), None, f"{pairs.folder}: {NO_CLASSES}"
    scores, semantic = score_classes(net, counted(True), device, legend)
    strangers = f"the detector knows none of {', '.join(legend.names)}"
    return scores, semantic, "" if semantic else strangers


@torch.no_grad()
def _panel(net: Detector, pairs: PairDataset, number: int, scores: ChangeScores) -> str:
    pair, device = pairs[number], next(net.parameters()).device
    images, label = rgb8(pair, net.in_channels), label_of(pair)
    tensors = to_tensors(*images, label)[:2]
    logits = net(*(date.unsqueeze(0).to(device) for date in tensors))
    found = logits.argmax(1)[0].cpu().numpy() == 1
    probability = (logits.softmax(1)[0, 1].cpu().numpy() * 255).round().astype(np.uint8)
    shown = np.zeros((*label.shape, 3), np.uint8)
    for where, colour in (
        (found & (label == 1), FOUND),
        (found & (label == 0), FALSE),
        (~found & (label == 1), MISSED),
    ):
        shown[where] = colour
    shown[label == IGNORE] = UNKNOWN
    first, second = (
        np.ascontiguousarray(image[..., :3] if image.shape[2] > 2 else image[..., [0, 0, 0]]) for image in images
    )
    both = dates(first, second, label == 1, ("image t1", "image t2"), str(number))
    maps = [(img(shown, "PNG", AGAINST), AGAINST), (img(probability, "JPEG", PROBABILITY), PROBABILITY)]
    below = "".join(f'<div><div class="view">{tag}</div><small>{what}</small></div>' for tag, what in maps)
    said = f"<span>{xml(_in_words(scores))}</span><span>{(label == 1).mean():.2%} changed</span>"
    return (
        f'<figure class="pair"><figcaption><b>{xml(pair.key)}</b>{said}</figcaption>'
        f'<div class="strip">{both}{below}</div></figure>'
    )


def _in_words(scores: ChangeScores) -> str:
    wrong = scores.false_positives + scores.false_negatives
    f1 = rank_of(scores)
    return "nothing changed, nothing called so" if f1 is None else f"F1 {f1:.3f}, {wrong:,} px wrong"


def _write(options: DetectorEvaluationOptions, evaluation: DetectorEvaluation, panels: str) -> None:
    given = {name: str(value) for name, value in vars(options).items() if value is not None and name != "out"}
    record = {
        "version": version("changeanywhere"),
        "torch": str(torch.__version__),
        "options": given,
        "detector": evaluation.detector,
        "overall": evaluation.overall.to_dict(),
        **({"semantic": evaluation.semantic.to_dict()} if evaluation.semantic else {}),
        **({"no_semantic_scores": evaluation.without} if evaluation.without else {}),
        "figures": [figure.to_dict() for figure in evaluation.figures],
        "pairs": {key: scores.to_dict() for key, scores in evaluation.pairs.items()},
    }
    atomic_write(options.out / "evaluation.json", (to_json(record, indent=1) + "\n").encode())
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["key", *SCORES, *COUNTS])
    for key, scores in [*evaluation.pairs.items(), ("all pairs", evaluation.overall)]:
        values = scores.to_dict()
        rows.writerow([csv_cell(key), *(values[name] for name in (*SCORES, *COUNTS))])
    atomic_write(options.out / "evaluation.csv", table.getvalue().encode())
    atomic_write(options.out / "evaluation.html", _page(evaluation, panels, given).encode())


def _page(evaluation: DetectorEvaluation, panels: str, given: dict[str, str]) -> str:
    places = {key: 2.0 if (rank := rank_of(scores)) is None else rank for key, scores in evaluation.pairs.items()}
    rows = sorted(evaluation.pairs.items(), key=lambda item: (places[item[0]], item[0]))
    left = f"<p>{len(rows) - SHOWN_ROWS} more in evaluation.csv.</p>" if len(rows) > SHOWN_ROWS else ""
    table = f"{_head()}{_row('all pairs', evaluation.overall)}"
    table += "".join(_row(key, scores) for key, scores in rows[:SHOWN_ROWS])
    without = f"<p>No scores in classes: {xml(evaluation.without)}.</p>" if evaluation.without else ""
    count = panels.count('<figure class="pair"')
    return filled(
        "detector",
        title=xml(f"{evaluation.detector} on {len(rows)} pairs"),
        overall=tables(evaluation.figures) + without,
        note=f"{count} of {len(rows)} pairs.",
        hover=HOVER,
        colours="".join(class_item(name, colour) for name, colour in COLOURS.items()),
        panels=panels,
        pairs=f'<div class="scroll"><table>{table}</table></div>{left}',
        made=in_lines(given),
    )


def _head() -> str:
    return "<tr><th></th><th>F1</th><th>precision</th><th>recall</th><th>IoU</th><th>changed px</th></tr>"


def _row(key: str, scores: ChangeScores) -> str:
    values = scores.to_dict()
    shown = ("–" if values[name] is None else f"{values[name]:.4f}" for name in ("f1", "precision", "recall", "iou"))
    cells = "".join(f"<td>{value}</td>" for value in shown)
    return f'<tr><th scope="row">{xml(key)}</th>{cells}<td>{scores.true_positives + scores.false_negatives:,}</td></tr>'
