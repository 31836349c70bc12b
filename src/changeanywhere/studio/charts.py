"""What a set holds, as HTML whose cells and bars answer clicks; every name in it is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from changeanywhere.pairs.codec import decode_image
from changeanywhere.pairs.pictures import photo
from changeanywhere.regular import read_regular
from changeanywhere.studio import pictures
from changeanywhere.studio.review import Review
from changeanywhere.text import xml

THUMB = 72


def transition_matrix(counts: Mapping[str, int], names: Sequence[str]) -> str:
    """Pairs by class pair, rows = before; a cell asks for ``transition:FROM->TO``."""
    used = [name for name in names if any(name in pair.split("->") for pair in counts)]
    if not used:
        return pictures.said("no pair changes anything")
    head = "".join(f'<th scope="col">{xml(name)}</th>' for name in used)
    rows = []
    for before in used:
        cells = []
        for after in used:
            pair = f"{before}->{after}"
            count = counts.get(pair, 0)
            shown = pictures.asking(f"transition:{pair}", str(count), f"{count} pairs from {before} to {after}")
            cells.append(f"<td>{shown if count else ''}</td>")
        rows.append(f'<tr><th scope="row">{xml(before)}</th>{"".join(cells)}</tr>')
    whole = pictures.asking("transition:any", "all class pairs")
    corner = '<th scope="col">from \\ to</th>'
    return (
        f'<table class="ca-table"><caption>pairs by class pair: {whole}</caption>'
        f"<thead><tr>{corner}{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def ratio_bars(bins: Sequence[tuple[float, float, int]]) -> str:
    """Pairs by changed ground; a bar asks for ``ratio:LOW:HIGH``."""
    most = max((count for _, _, count in bins), default=1) or 1
    parts = []
    for low, high, count in bins:
        bar = f'<i style="height:{70 * count / most:.1f}%"></i><small>{count or ""}</small>'
        parts.append(pictures.asking(f"ratio:{low:g}:{high:g}", bar, f"{count} pairs of {low:g} to {high:g} % changed"))
    top = bins[-1][1] if bins else 0
    whole = pictures.asking("ratio:0:100", "all of them")
    return (
        f'<div class="ca-bars">{"".join(parts)}</div>'
        f'<p class="ca-said ca-table">pairs by changed ground, 0 to {top:g} %: '
        f"{whole}</p>"
    )


def sheet(review: Review, keys: Sequence[str], current: str) -> str:
    """A contact sheet: both dates small, what was decided as a border and in words; a picture asks for ``pair:KEY``."""
    decisions = review.decisions
    parts = []
    for key in keys:
        decision = decisions.get(key, "")
        place = ' aria-current="true"' if key == current else ""
        facts = review.facts[key]
        score = "" if facts.fidelity is None else f", {100 * facts.fidelity:.0f} % read"
        words = f"{key}: {decision or 'undecided'}"
        images = "".join(pictures.picture(image, "", THUMB) for image in _dates(review, review.numbers[key]))
        caption = f"{xml(key)}<br><b>{xml(decision or '–')}</b> {facts.ratio:.1f} %{score}"
        parts.append(
            f'<figure class="{xml(decision)}"{place}>{pictures.asking(f"pair:{key}", images, words)}'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f'<div class="ca-sheet">{"".join(parts)}</div>'


def _dates(review: Review, number: int) -> list[pictures.Image8]:
    """Both dates through the stretch of their set, without reading the masks."""
    stretch = review.pairs.record_of(number).get("normalisation") or {}
    ends = stretch.get("low", ()), stretch.get("high", ())
    files = review.pairs.images_of(number)
    return [photo(decode_image(read_regular(file), file.name), *ends) for file in files]
