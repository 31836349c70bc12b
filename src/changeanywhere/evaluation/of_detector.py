"""``changeanywhere evaluate --detector``: scores of the change class, of all pairs and of each."""

from __future__ import annotations

import csv
import html
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
from changeanywhere.evaluation.detector_options import DetectorEvaluationOptions
from changeanywhere.models.detectors import Detector, SemanticDetector
from changeanywhere.models.detectors.folder import load_detector
from changeanywhere.models.first_stage import channels_last
from changeanywhere.pairs import load_pairs
from changeanywhere.pairs.pictures import data_uri
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.pairs.semantics import NO_CLASSES, legend_of
from changeanywhere.progress import Progress, silent
from changeanywhere.sample import rgb8
from changeanywhere.shipped import page as filled
from changeanywhere.storage import atomic_write
from changeanywhere.text import csv_cell, visible, xml
from changeanywhere.training.detection import IGNORE, ChangeScores, score_pairs, sum_of
from changeanywhere.training.pair_batches import label_of, to_tensors, whole_batches
from changeanywhere.training.semantic import SCORES as SEMANTIC_SCORES
from changeanywhere.training.semantic import TITLES as SEMANTIC_TITLES
from changeanywhere.training.semantic import SemanticScores, score_classes

SCORES = ("precision", "recall", "f1", "iou")
COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")
FOUND, FALSE, MISSED, UNKNOWN = (255, 255, 255), (222, 80, 60), (70, 130, 230), (110, 110, 110)
SHOWN_ROWS = 500
"""Pairs in the table of the page; the CSV has all."""


@dataclass(frozen=True)
class DetectorEvaluation:
    """Scores of every pair by its key, and of all together (from the sum of their pixels, as in the literature)."""

    detector: str
    pairs: dict[str, ChangeScores]
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
    evaluation = DetectorEvaluation(name, {pairs.key_of(n): each for n, each in enumerate(scores)}, semantic, without)
    _write(options, evaluation, _panels(net, pairs, scores, options.num_panels))
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


def _panels(net: Detector, pairs: PairDataset, scores: Sequence[ChangeScores], count: int) -> list[str]:
    """Pairs as pictures: those with most wrong pixels first, then others, evenly spaced."""
    order = sorted(range(len(pairs)), key=lambda n: -(scores[n].false_positives + scores[n].false_negatives))
    worst = order[: (count + 1) // 2]
    rest = sorted(set(order) - set(worst))
    spaced = np.unique(np.linspace(0, len(rest) - 1, min(count - len(worst), len(rest))).round().astype(int))
    return [_panel(net, pairs, n, scores[n]) for n in [*worst, *(rest[int(i)] for i in spaced)]]


@torch.no_grad()
def _panel(net: Detector, pairs: PairDataset, number: int, scores: ChangeScores) -> str:
    pair, device = pairs[number], next(net.parameters()).device
    images, label = rgb8(pair, net.in_channels), label_of(pair)
    tensors = to_tensors(*images, label)[:2]
    found = net(*(date.unsqueeze(0).to(device) for date in tensors)).argmax(1)[0].cpu().numpy() == 1
    shown = np.zeros((*label.shape, 3), np.uint8)
    for where, colour in (
        (found & (label == 1), FOUND),
        (found & (label == 0), FALSE),
        (~found & (label == 1), MISSED),
    ):
        shown[where] = colour
    shown[label == IGNORE] = UNKNOWN
    first, second = (
        data_uri(np.ascontiguousarray(image[..., :3] if image.shape[2] > 2 else image[..., [0, 0, 0]]), "JPEG")
        for image in images
    )
    cells = ((first, "date 1"), (second, "date 2"), (data_uri(shown, "PNG"), _in_words(scores)))
    strip = "".join(f'<div><img src="{uri}" alt=""><small>{xml(what)}</small></div>' for uri, what in cells)
    return f'<div><small>{xml(pair.key)}</small><div class="strip">{strip}</div></div>'


def _in_words(scores: ChangeScores) -> str:
    if scores.f1 is not None:
        return f"F1 {scores.f1:.3f}"
    wrong = scores.false_positives + scores.false_negatives
    return "nothing changed, nothing called so" if not wrong else f"{wrong} px wrong"


def _write(options: DetectorEvaluationOptions, evaluation: DetectorEvaluation, panels: Sequence[str]) -> None:
    given = {name: str(value) for name, value in vars(options).items() if value is not None and name != "out"}
    record = {
        "version": version("changeanywhere"),
        "torch": str(torch.__version__),
        "options": given,
        "detector": evaluation.detector,
        "overall": evaluation.overall.to_dict(),
        **({"semantic": evaluation.semantic.to_dict()} if evaluation.semantic else {}),
        **({"no_semantic_scores": evaluation.without} if evaluation.without else {}),
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


def _page(evaluation: DetectorEvaluation, panels: Sequence[str], given: dict[str, str]) -> str:
    rows = sorted(evaluation.pairs.items(), key=lambda item: (item[1].f1 is None, item[1].f1 or 0.0, item[0]))
    left = f"<p>{len(rows) - SHOWN_ROWS} more in evaluation.csv.</p>" if len(rows) > SHOWN_ROWS else ""
    return filled(
        "detector",
        title=xml(f"{evaluation.detector} on {len(rows)} pairs"),
        overall=f"<table>{_head('')}{_row('all pairs', evaluation.overall)}</table>{_in_classes(evaluation)}",
        panels="".join(panels),
        pairs=f"<table>{_head('')}{''.join(_row(key, scores) for key, scores in rows[:SHOWN_ROWS])}</table>{left}",
        made=html.escape(visible("\n".join(f"{name}: {value}" for name, value in given.items()))),
    )


def _in_classes(evaluation: DetectorEvaluation) -> str:
    """The scores of both dates' classes; nothing of a detector of change alone."""
    if evaluation.without:
        return f"<p>No scores in classes: {xml(evaluation.without)}.</p>"
    if evaluation.semantic is None:
        return ""
    values = evaluation.semantic.to_dict()
    names = "".join(f"<th>{title}</th>" for title in SEMANTIC_TITLES)
    cells = "".join(f"<td>{'–' if values[key] is None else f'{values[key]:.4f}'}</td>" for key in SEMANTIC_SCORES)
    return f'<table><tr><th></th>{names}</tr><tr><th scope="row">classes of both dates</th>{cells}</tr></table>'


def _head(name: str) -> str:
    return f"<tr><th>{name}</th><th>precision</th><th>recall</th><th>F1</th><th>IoU</th><th>changed px</th></tr>"


def _row(key: str, scores: ChangeScores) -> str:
    values = scores.to_dict()
    shown = ("–" if values[name] is None else f"{values[name]:.4f}" for name in SCORES)
    cells = "".join(f"<td>{value}</td>" for value in shown)
    return f'<tr><th scope="row">{xml(key)}</th>{cells}<td>{scores.true_positives + scores.false_negatives:,}</td></tr>'
