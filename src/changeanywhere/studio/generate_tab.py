"""The tab on which a small set is made: the command line's own job, its progress, its log, its report."""

from __future__ import annotations

import shlex
from typing import Any

import gradio as gr

from changeanywhere.events.options import KINDS
from changeanywhere.studio import pictures
from changeanywhere.studio.jobs import MAX_PAIRS, Job, Wanted
from changeanywhere.studio.reports import report_link
from changeanywhere.studio.session import Session
from changeanywhere.studio.studio import Studio
from changeanywhere.studio.wiring import Wiring
from changeanywhere.text import xml

EVERY = 1.0
"""Seconds between looks at a running job."""


class GenerateTab:
    """Components and listeners of the tab."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.message = gr.HTML(elem_id="generate-message", elem_classes="ca-message")
        self.wiring = Wiring(studio, self.message)
        names = ["any", *studio.legend.names]
        place = "the example tiles" if studio.options.source is None else str(studio.options.source)
        gr.HTML(pictures.said(f"from {len(studio.sessions.source.items)} tiles: {place}"))
        with gr.Row():
            self.name = gr.Textbox(
                "first-set", label="set", max_lines=1, max_length=60, elem_id="job-name", min_width=140
            )
            self.count = gr.Number(
                8, label="pairs", precision=0, minimum=1, maximum=MAX_PAIRS, elem_id="job-pairs", min_width=80
            )
            self.seed = gr.Number(0, label="seed", precision=0, minimum=0, elem_id="job-seed", min_width=80)
            self.kind = gr.Dropdown(["any", *KINDS], value="any", label="event", elem_id="job-kind", min_width=120)
        with gr.Row():
            self.before = gr.Dropdown(names, value="any", label="from", elem_id="job-from", min_width=130)
            self.after = gr.Dropdown(names, value="any", label="to", elem_id="job-to", min_width=130)
            self.share = gr.Slider(5, 100, 50, step=5, label="% of pairs with it", min_width=160)
            self.read = gr.Checkbox(True, label="read every pair (fidelity)", elem_id="job-read", min_width=160)
        with gr.Row():
            self.start = gr.Button("Start, or go on", variant="primary", elem_id="job-start", min_width=130)
            self.stop = gr.Button("Stop", variant="stop", elem_id="job-stop", min_width=100)
        self.command = gr.HTML(elem_id="job-command")
        self.progress = gr.HTML(elem_id="job-progress")
        self.log = gr.HTML(elem_id="job-log")
        self.timer = gr.Timer(EVERY, active=False)
        self._listen()

    def _listen(self) -> None:
        on, shown = self.wiring.on, [self.command, self.progress, self.log, self.timer]
        asked = [self.name, self.count, self.seed, self.kind, self.before, self.after, self.share, self.read]
        on(self.start.click, self._start, asked, shown)
        on(self.stop.click, self._stop, [], shown)
        on(self.timer.tick, self._tick, [], shown)

    def _start(self, session: Session, *values: Any) -> tuple[Any, ...]:
        wanted = Wanted.of(values)
        self.studio.jobs.start(wanted)
        session.job = wanted.name
        return self._tick(session)

    def _stop(self, session: Session) -> tuple[Any, ...]:
        job = self.studio.jobs.of(session.job)
        if job is not None:
            job.stop()
        return self._tick(session)

    def _tick(self, session: Session) -> tuple[Any, ...]:
        job = self.studio.jobs.of(session.job)
        if job is None:
            return "", pictures.said("nothing is being made from this page"), "", gr.Timer(active=False)
        command = pictures.code(shlex.join(job.command), "command")
        return command, said_of(job, session.job), log_of(job), gr.Timer(active=job.code is None)


def said_of(job: Job, name: str) -> str:
    """How far a job is, or how it ended."""
    done, total = job.progress
    code = job.code
    if code is None:
        return pictures.bar(*job.moment)
    if code == 0:
        link = f'<a href="{xml(report_link(name))}" target="_blank" rel="noopener">open its report</a>'
        return pictures.said(f"{name} is finished: {total} pairs") + f"<p>{link}; Review opens the set</p>"
    last = job.log.splitlines()[-1:] or ["no word"]
    return pictures.error(f"{name} ended with exit code {code} after {done} of {total} pairs: {last[0]}")


def log_of(job: Job) -> str:
    """HTML of the last lines that it said."""
    return f'<div class="ca-log">{pictures.code(job.log or "…", "log")}</div>'
