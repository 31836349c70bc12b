"""The tab on which the pairs of a set are looked at, decided on, and exported."""

from __future__ import annotations

from typing import Any

import gradio as gr

from changeanywhere.exporting.options import LAYOUT_NAMES
from changeanywhere.pairs.names import SPLITS
from changeanywhere.studio import looks, pictures
from changeanywhere.studio.review import ANY, DECISIONS, OPEN, Filter, sets_in
from changeanywhere.studio.session import Session
from changeanywhere.studio.studio import Studio
from changeanywhere.studio.wiring import Wiring

KEYS = {"keep": "k", "drop": "d", "flag": "f", "next": "n", "back": "b"}
KEYS_JS = """
document.addEventListener('keydown', (e) => {
  const panel = element.closest('[role=tabpanel]');
  const typing = e.target.matches('input:not([type=range]):not([type=checkbox]), textarea, [contenteditable=true]');
  if (!panel || !panel.offsetParent || typing || e.ctrlKey || e.metaKey || e.altKey) return;
  const id = { k: 'keep', d: 'drop', f: 'flag', n: 'next', b: 'back' }[e.key.toLowerCase()];
  const button = id && panel.querySelector('#review-' + id);
  if (button) { e.preventDefault(); button.click(); }
});
"""
"""The keys work while this tab is seen and nobody types."""


class ReviewTab:
    """Components and listeners of the tab."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.message = gr.HTML(elem_id="review-message", elem_classes="ca-message")
        self.wiring = Wiring(studio, self.message)
        with gr.Row():
            self.set = gr.Dropdown([], label="set", elem_id="review-set", min_width=200)
            self.open = gr.Button("Open it", elem_id="review-open", min_width=100)
        self._filters()
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self.swipe = gr.HTML(elem_id="review-swipe", js_on_load=pictures.SWIPE_JS)
            with gr.Column(scale=1, min_width=300):
                self.buttons = self._buttons()
                self.said = gr.HTML(elem_id="review-said")
                self.panels = gr.HTML(elem_id="review-panels")
        self.sheet = gr.HTML(elem_id="sheet", js_on_load=pictures.ASK_JS + KEYS_JS)
        with gr.Accordion("What the set holds (a cell or bar filters)", open=True):
            self.charts = gr.HTML(elem_id="charts", js_on_load=pictures.ASK_JS)
        with gr.Row():
            self.layout = gr.Dropdown(
                list(LAYOUT_NAMES), value="levir", label="layout", elem_id="layout", min_width=140
            )
            self.export = gr.Button("Export the kept pairs", elem_id="export", min_width=160)
        self.exported = gr.HTML(elem_id="exported")
        self._listen()

    def _filters(self) -> None:
        with gr.Accordion("Filter", open=False), gr.Row():
            self.transition = gr.Dropdown([ANY], value=ANY, label="class pair", elem_id="filter-pair", min_width=160)
            self.split = gr.Dropdown([ANY, *SPLITS], value=ANY, label="split", min_width=90)
            self.low = gr.Number(0, label="least % changed", minimum=0, maximum=100, min_width=90)
            self.high = gr.Number(100, label="most % changed", minimum=0, maximum=100, min_width=90)
            self.fidelity = gr.Slider(0, 1, 0, step=0.05, label="least share read as asked", min_width=160)
            self.decision = gr.Dropdown([ANY, OPEN, *DECISIONS], value=ANY, label="decision", min_width=110)
            self.apply = gr.Button("Filter", elem_id="filter", min_width=80)

    def _buttons(self) -> dict[str, Any]:
        with gr.Row():
            return {
                name: gr.Button(
                    f"{name.capitalize()} ({key.upper()})", elem_id=f"review-{name}", min_width=84, size="md"
                )
                for name, key in KEYS.items()
            }

    @property
    def seen(self) -> list[Any]:
        """What every step changes."""
        return [self.swipe, self.panels, self.sheet, self.said]

    @property
    def filters(self) -> list[Any]:
        """In the order of :class:`Filter`."""
        return [self.transition, self.split, self.low, self.high, self.fidelity, self.decision]

    def _listen(self) -> None:
        on = self.wiring.on
        on(self.open.click, self._open, [self.set], [*self.filters, self.charts, *self.seen])
        on(self.apply.click, self._filter, self.filters, self.seen)
        for name, button in self.buttons.items():
            act = self._decision(name) if name in DECISIONS else self._step(1 if name == "next" else -1)
            on(button.click, act, [], self.seen, trigger_mode="multiple", concurrency_limit=1)
        self.wiring.asked(self.sheet, self._asked, [*self.filters, *self.seen])
        self.wiring.asked(self.charts, self._asked, [*self.filters, *self.seen])
        on(self.export.click, self._export, [self.layout], [self.exported])

    def names(self, session: Session) -> tuple[Any, ...]:
        """The sets that there are, when the tab is turned to."""
        found = sets_in(self.studio.options.out)
        return (gr.update(choices=found, value=found[0] if found and session.review is None else gr.skip()),)

    def _open(self, session: Session, name: str | None) -> tuple[Any, ...]:
        review = looks.open_set(self.studio, session, name or "")
        choices = [ANY, *sorted(review.transitions())]
        values = (gr.update(choices=choices, value=ANY), ANY, 0, 100, 0, ANY)
        return *values, looks.overview(session), *self._look(session)

    def _look(self, session: Session, said: str = "") -> tuple[str, ...]:
        return *looks.pair(session), looks.sheet(session), pictures.said(said) if said else ""

    def _filter(self, session: Session, *values: Any) -> tuple[Any, ...]:
        looks.filtered(session, Filter.of(values))
        return self._look(session)

    def _step(self, by: int) -> Any:
        def run(session: Session) -> tuple[Any, ...]:
            looks.move(session, by)
            return self._look(session)

        return run

    def _decision(self, decision: str) -> Any:
        def run(session: Session) -> tuple[Any, ...]:
            said = looks.decide(session, decision)
            return self._look(session, said)

        return run

    def _asked(self, session: Session, asked: str) -> tuple[Any, ...]:
        looks.ask(session, asked)
        now = session.filter
        values = (now.transition, now.split, now.low, now.high, now.fidelity, now.decision)
        return *values, *self._look(session)

    def _export(self, session: Session, layout: str) -> tuple[Any, ...]:
        out, report = looks.reviewed(session).export_kept(layout)
        count = sum(report.splits.values())
        lost = "".join(pictures.said(f"{layout} has no place for {what}") for what in report.lost)
        return (pictures.said(f"{count} kept pair(s) as {layout}: {out}") + lost,)
