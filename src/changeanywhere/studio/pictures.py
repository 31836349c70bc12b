"""What the page shows: pictures as HTML, every name in them escaped, every image inside the page itself."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from changeanywhere.legend import Legend, Mask
from changeanywhere.pairs.pictures import data_uri, photo
from changeanywhere.text import visible, xml

Image8 = npt.NDArray[np.uint8]
SIDE = 512
CHANGED = (255, 40, 40)


def rgb(image: npt.NDArray[np.uint8]) -> Image8:
    """Three bands to look at, of any number."""
    return photo(image, (), ())


def over(image: Image8, colours: npt.NDArray[np.uint8], where: npt.NDArray[np.bool_], share: float = 0.5) -> Image8:
    """``colours`` over ``image`` where it is asked."""
    mixed = image * (1 - share) + colours * share
    return np.where(where[..., None], mixed, image).astype(np.uint8)


def with_mask(image: Image8, mask: Mask, legend: Legend, share: float = 0.5) -> Image8:
    """A mask in its colours over an image; unknown ground without colour."""
    return over(rgb(image), legend.colorize(mask), mask > 0, share)


def with_change(image: Image8, mask: Mask, change: npt.NDArray[np.bool_], legend: Legend) -> Image8:
    """What the editor shows: changed ground in the colours of its new classes, framed; the rest as it is."""
    shown = over(rgb(image), legend.colorize(mask), change, 0.7)
    inner = change.copy()
    for axis in (0, 1):
        for way in (1, -1):
            inner &= np.roll(change, way, axis)
    return over(shown, np.broadcast_to(np.array(CHANGED, np.uint8), shown.shape), change & ~inner, 1.0)


def swipe(first: Image8, second: Image8) -> str:
    """Date 1 and date 2 over each other; a slider, which keys move too, says where date 2 begins (:data:`SWIPE_JS`)."""
    return (
        f'<div class="ca-swipe"><img src="{_photo(first)}" alt="date 1"><img class="ca-over" src="{_photo(second)}" '
        'alt="date 2"><input type="range" min="0" max="100" value="50" aria-label="where date 2 begins, per cent">'
        '<div class="ca-bar"></div></div>'
        "<p>date 1 is left of the line, date 2 right: drag it, or use the arrow keys</p>"
    )


SWIPE_JS = """
element.addEventListener('input', (e) => {
  if (e.target.matches('.ca-swipe input'))
    e.target.parentElement.style.setProperty('--at', e.target.value + '%');
});
"""
ASK_JS = """
element.addEventListener('click', (e) => {
  const asked = e.target.closest('[data-ask]');
  if (asked) trigger('click', { asked: asked.dataset.ask });
});
"""
"""Buttons of ours: what their ``data-ask`` says is the event's ``asked``."""


def asking(ask: str, inside: str, label: str = "") -> str:
    """A button that tells the page ``ask``; ``inside`` is HTML already."""
    named = f' aria-label="{xml(label)}"' if label else ""
    return f'<button type="button" data-ask="{xml(ask)}"{named}>{inside}</button>'


def picture(image: Image8, words: str, side: int = SIDE) -> str:
    """One image, described."""
    return f'<img src="{data_uri(rgb(image), "JPEG", side)}" alt="{xml(words)}">'


def figures(panels: Sequence[tuple[str, Image8]]) -> str:
    """Pictures side by side, each with its words."""
    parts = [
        f"<figure>{picture(image, words)}<figcaption>{xml(words)}</figcaption></figure>" for words, image in panels
    ]
    return f'<div class="ca-row">{"".join(parts)}</div>'


def classes(legend: Legend) -> str:
    """Colours and names of a legend."""
    parts = [f'<li><span style="background:rgb{c.color}"></span>{xml(c.name)}</li>' for c in legend.classes]
    return f'<ul class="ca-legend" aria-label="classes">{"".join(parts)}</ul>'


def code(text: str, label: str) -> str:
    """Lines to copy."""
    shown = html.escape(visible(text))
    return f'<pre class="ca-code" tabindex="0" role="region" aria-label="{xml(label)}"><code>{shown}</code></pre>'


def bar(what: str, done: int, total: int) -> str:
    """Progress, also for who cannot see it."""
    words = xml(f"{what}: {done} of {total}")
    shown = f'<progress max="{max(total, 1)}" value="{done}"></progress>'
    return f'<label class="ca-said" role="status">{words} {shown}</label>'


def _photo(image: Image8) -> str:
    return data_uri(rgb(image), "JPEG", SIDE)


def error(text: str) -> str:
    """One clear line."""
    return f'<p class="ca-error" role="alert">{xml(text)}</p>' if text else ""


def said(text: str) -> str:
    """A line of what was done."""
    return f'<p class="ca-said" role="status">{xml(text)}</p>'
