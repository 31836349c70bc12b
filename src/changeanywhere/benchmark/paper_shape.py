"""Results in the shape of the paper's Tables 1 to 5: a row per detector and arm, four scores per share of labels.

Zero-shot, few-shot and many labels are three tables, as in the paper; its own figures follow each detector's rows where
a table of them was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from changeanywhere import text
from changeanywhere.benchmark.arms import BASELINES, ONLY_SUP
from changeanywhere.benchmark.published import Published
from changeanywhere.benchmark.summary import SCORES

SCORE_NAMES = ("F1", "precision", "recall", "IoU")
MANY = 50
"""From this share (percent) on, labels are many: the paper's Tables 4 and 5."""


def shaped_tables(
    rows: Sequence[Mapping[str, Any]], constants: Mapping[str, Mapping[str, float | None]], paper: Sequence[Published]
) -> list[tuple[str, list[list[str]]]]:
    """(title, lines of cells, the first being the headings) of the tables that ``rows`` have shares for.

    ``rows`` as of :func:`.benchmark_tables.summarise`; ``constants``: what constant predictions score.
    """
    shares = sorted({row["share"] for row in rows})
    groups = {
        "Zero-shot": [s for s in shares if s == 0],
        "Few labels": [s for s in shares if 0 < s < MANY],
        "Many labels": [s for s in shares if s >= MANY],
    }
    return [(title, _table(rows, group, constants, paper)) for title, group in groups.items() if group]


def _table(
    rows: Sequence[Mapping[str, Any]],
    shares: Sequence[int],
    constants: Mapping[str, Mapping[str, float | None]],
    paper: Sequence[Published],
) -> list[list[str]]:
    lines = [["method", *(f"{name}, {share} %" for share in shares for name in SCORE_NAMES)]]
    detectors, arms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("detector", "arm"))
    found = {(row["detector"], row["arm"], row["share"]): row for row in rows}
    for detector in detectors:
        for arm in sorted(
            arms, key=lambda arm: arm not in BASELINES
        ):  # without pre-training first, the others in their order
            cells = [found.get((detector, arm, share)) for share in shares]
            if any(cells):
                name = _named(detector, arm)
                lines.append([name, *(text for cell in cells for text in score_cells(cell))])
        known = [cell for cell in paper if cell.is_of(detector)]
        for pretraining in dict.fromkeys(cell.pretraining for cell in known):
            printed = {cell.share: cell.scores for cell in known if cell.pretraining == pretraining}
            if any(share in printed for share in shares):
                name = f"the paper's {detector}" + (f" + {pretraining}" if pretraining else "")
                lines.append([name, *(text or "-" for share in shares for text in printed.get(share, ("",) * 4))])
    lines += [[f"({name})", *constant_cells(scores) * len(shares)] for name, scores in constants.items()]
    return lines


def _named(detector: str, arm: str) -> str:
    """The paper's rows: a detector alone is trained on labels alone."""
    return detector if arm == ONLY_SUP else f"{detector}, {arm}" if arm in BASELINES else f"{detector} + {arm}"


def constant_cells(scores: Mapping[str, float | None]) -> list[str]:
    """The four scores of a constant prediction in %; a dash where a score is undefined."""
    values = (scores[name] for name in SCORES)
    return ["-" if value is None else f"{100 * value:.1f}" for value in values]


def score_cells(row: Mapping[str, Any] | None) -> list[str]:
    """The four scores of a row in %, with standard errors where there are several seeds."""
    if row is None:
        return ["-"] * len(SCORES)
    spread = row["seeds"] > 1
    return [f"{100 * row[s]:.1f}" + (f" ± {100 * row[f'{s}_error']:.1f}" if spread else "") for s in SCORES]


def latex(tables: Sequence[tuple[str, list[list[str]]]]) -> str:
    """The tables as ``tabular`` environments, titles as comments."""
    parts = []
    for title, lines in tables:
        body = "\n".join(" & ".join(map(text.latex, line)) + r" \\" for line in lines)
        columns = "l" + "r" * (len(lines[0]) - 1)
        parts.append(f"% {text.one_line(title)}\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n")
    return "\n".join(parts)
