"""What the buttons of the review tab do, without Gradio: a session's set, its filter, the pair that is looked at."""

from __future__ import annotations

from dataclasses import replace

from changeanywhere.errors import InputError
from changeanywhere.legend import Legend
from changeanywhere.sample import rgb8
from changeanywhere.studio import charts, pictures
from changeanywhere.studio.review import ANY, Filter, Review, open_review
from changeanywhere.studio.session import Session
from changeanywhere.studio.studio import Studio

SHEET = 48
"""Pairs of a contact sheet; the next page has the next."""


def open_set(studio: Studio, session: Session, name: str) -> Review:
    """Look at a set, from its first pair."""
    session.review = open_review(studio.options.out, name)
    session.at = next(iter(session.review.numbers))
    session.filter = Filter()
    return session.review


def reviewed(session: Session) -> Review:
    """The open set; :class:`InputError` before one is."""
    if session.review is None:
        raise InputError("no set is open yet: choose one, and open it")
    return session.review


def move(session: Session, by: int) -> None:
    """To the next pair, or the one before, of those that pass the filter; the last stays."""
    keys = reviewed(session).chosen(session.filter)
    if not keys:
        raise InputError("no pair passes the filter")
    if session.at in keys:
        session.at = keys[min(max(keys.index(session.at) + by, 0), len(keys) - 1)]
    else:  # what was decided may not pass any more: on from where it stood
        order = reviewed(session).numbers
        later = [key for key in keys if order[key] > order[session.at]]
        session.at = later[0] if later else keys[-1]


def decide(session: Session, decision: str) -> str:
    """Saved at once; then the next pair. Returns what was said of which."""
    review, key = reviewed(session), session.at
    review.decide(key, decision)
    if review.chosen(session.filter):
        move(session, 1)
    return f"{key}: {decision}"


def ask(session: Session, asked: str) -> None:
    """What a chart or the sheet asks for: ``pair:KEY``, ``transition:FROM->TO``, ``ratio:LOW:HIGH``."""
    what, _, value = asked.partition(":")
    review = reviewed(session)
    if what == "pair" and value in review.numbers:
        session.at = value
    elif what == "transition" and (value == ANY or value in review.transitions()):
        filtered(session, replace(session.filter, transition=value))
    elif what == "ratio":
        low, _, high = value.partition(":")
        try:
            filtered(session, replace(session.filter, low=float(low), high=float(high)))
        except ValueError as error:
            raise InputError(f"ratio is {value[:40]!r}; allowed: two numbers") from error
    else:
        raise InputError(f"{asked[:80]!r} is nothing that this set has")


def filtered(session: Session, asked: Filter) -> None:
    """Look at those pairs only."""
    keys = reviewed(session).chosen(asked)
    session.filter = asked
    if keys and session.at not in keys:
        session.at = keys[0]


def sheet(session: Session) -> str:
    """HTML of the page of the contact sheet that the current pair is on, and how many there are."""
    review = reviewed(session)
    keys = review.chosen(session.filter)
    if not keys:
        return pictures.said(f"0 of {len(review.numbers)} pairs pass the filter")
    place = keys.index(session.at) if session.at in keys else 0
    first = place // SHEET * SHEET
    decided = review.decisions
    kept = sum(decision == "keep" for decision in decided.values())
    head = (
        f"{len(keys)} of {len(review.numbers)} pairs pass the filter, {first + 1} to "
        f"{min(first + SHEET, len(keys))} shown; {len(decided)} decided, {kept} kept"
    )
    return pictures.said(head) + charts.sheet(review, keys[first : first + SHEET], session.at)


def pair(session: Session) -> tuple[str, str]:
    """HTML of the swipe of the current pair, and of its panels and facts."""
    review = reviewed(session)
    found = review.pairs[review.numbers[session.at]]
    facts = review.facts[session.at]
    first, second = rgb8(found)
    panels = []
    if found.mask_t1 is not None and found.mask_t2 is not None:
        legend = Legend.load(review.folder / "legend.json")
        panels = [
            ("what changed", pictures.with_change(second, found.mask_t2, found.change_mask, legend)),
            ("mask of date 1", pictures.with_mask(first, found.mask_t1, legend, 0.6)),
            ("mask of date 2", pictures.with_mask(second, found.mask_t2, legend, 0.6)),
        ]
    read = "" if facts.fidelity is None else f"; {100 * facts.fidelity:.0f} % of it is read as its new class"
    decision = review.decisions.get(session.at, "undecided")
    words = f"{session.at} ({facts.split}): {decision}. {facts.ratio:.2f} % changed{read}"
    return pictures.swipe(first, second), pictures.said(words) + pictures.figures(panels)


def overview(session: Session) -> str:
    """HTML of the charts of the whole set."""
    review = reviewed(session)
    names = Legend.load(review.folder / "legend.json").names
    return charts.transition_matrix(review.transitions(), names) + charts.ratio_bars(review.ratios())
