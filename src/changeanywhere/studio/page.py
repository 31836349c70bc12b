"""All tabs as one page."""

from __future__ import annotations

from typing import Any

import gradio as gr

from changeanywhere.shipped import asset
from changeanywhere.studio.generate_tab import GenerateTab
from changeanywhere.studio.paint_tab import PaintTab
from changeanywhere.studio.review_tab import ReviewTab
from changeanywhere.studio.studio import Studio

FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
THEME = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    input_placeholder_color="*neutral_600",
    input_placeholder_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    color_accent="*primary_700",
)
"""Fonts that the machine has, none is fetched; contrasts of 4.5 and more."""
LOOK: dict[str, Any] = {"theme": THEME, "css": asset("studio.css")}


def build(studio: Studio) -> Any:
    """The page of a studio."""
    with gr.Blocks(analytics_enabled=False, title="ChangeAnywhere studio") as page:
        gr.HTML('<h1 class="ca-title">ChangeAnywhere studio</h1>')
        with gr.Tabs():
            with gr.Tab("Paint", id="paint", elem_id="tab-paint"):
                paint = PaintTab(studio)
            with gr.Tab("Review", id="review", elem_id="tab-review") as turned:
                review = ReviewTab(studio)
            with gr.Tab("Generate", id="generate", elem_id="tab-generate"):
                GenerateTab(studio)
        review.wiring.on(turned.select, review.names, [], [review.set])
        paint.wiring.on(page.load, paint.opened, [], [paint.tiles, *paint.shown])

        def left(request: gr.Request) -> None:
            studio.sessions.end(str(request.session_hash))

        page.unload(left)
    page.queue(default_concurrency_limit=8, max_size=64, api_open=False)
    return page
