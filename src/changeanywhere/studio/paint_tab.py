"""The tab on which a change is made: tile → second mask → painting → keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from changeanywhere.events.options import KINDS
from changeanywhere.sample import in_8_bits
from changeanywhere.studio import acts, pictures
from changeanywhere.studio.acts import Settings
from changeanywhere.studio.session import Session
from changeanywhere.studio.studio import Studio
from changeanywhere.studio.wiring import Wiring

MAX_CHOICES = 500
"""Tiles in the list; of larger sources the first ones."""
SHOWN_TILES = 12
BARE: dict[str, Any] = {
    **{"type": "numpy", "image_mode": "RGBA", "format": "png"},
    **{"sources": (), "transforms": (), "layers": False, "buttons": []},
}
"""An editor with a brush and an eraser, nothing else."""


class PaintTab:
    """Components and listeners of the tab."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.legend = studio, studio.legend
        self.message = gr.HTML(elem_id="paint-message", elem_classes="ca-message")
        self.wiring = Wiring(studio, self.message)
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                self._tile()
            with gr.Column(scale=4, min_width=300):
                self._edits()
        gr.HTML("<h2>3. Paint date 2</h2>")
        self._painting()
        self._result()
        self._listen()

    @property
    def _first_colour(self) -> str:
        """Of the brush: buildings, where there are any."""
        place = self.legend.names.index("building") if "building" in self.legend.names else 0
        return acts.brush_colours(self.legend)[place]

    @property
    def shown(self) -> list[Any]:
        """What every edit changes."""
        return [self.editor, self.facts]

    def _tile(self) -> None:
        keys = [item.key for item in self.studio.sessions.source.items][:MAX_CHOICES]
        gr.HTML("<h2>1. Choose a tile</h2>")
        self.tiles = gr.HTML(elem_id="tiles", js_on_load=pictures.ASK_JS)
        self.tile = gr.Dropdown(keys, value=keys[0], label="Tile", elem_id="tile")
        with gr.Accordion("Or an image of yours, with its mask or without", open=False):
            with gr.Row():
                self.image = gr.File(label="Image (PNG, JPEG, TIFF)", elem_id="upload-image", height=110)
                self.mask = gr.File(
                    label="Mask in the classes below (may be left out)", elem_id="upload-mask", height=110
                )
            self.take = gr.Button("Use this image", elem_id="upload", size="sm")
        brush = gr.Brush(
            colors=acts.brush_colours(self.legend),
            color_mode="fixed",
            default_size=16,
            default_color=self._first_colour,
        )
        self.editor = gr.ImageEditor(
            **BARE,
            brush=brush,
            eraser=gr.Eraser(default_size=16),
            canvas_size=(512, 512),
            height=560,
            label="Mask of date 2: draw on the tile",
            elem_id="editor",
        )

    def _edits(self) -> None:
        gr.HTML("<h2>2. Change it</h2>")
        names = acts.class_choices(self.legend)
        house = "building" if "building" in self.legend.names else names[0]
        self.apply = gr.Button("Take what I drew", elem_id="apply")
        with gr.Group():
            with gr.Row():
                self.box = [
                    gr.Number(
                        value, label=label, precision=0, minimum=0, min_width=70, elem_id=f"box-{label.split()[0]}"
                    )
                    for label, value in (("left px", 20), ("top px", 32), ("width px", 48), ("height px", 40))
                ]
            with gr.Row():
                self.becomes = gr.Dropdown(names, value=house, label="becomes", elem_id="box-class", min_width=140)
                self.place = gr.Button("Place the box", elem_id="box-place", min_width=120)
        with gr.Group():
            with gr.Row():
                self.kind = gr.Dropdown(
                    ["any", *KINDS], value="any", label="event", elem_id="event-kind", min_width=100
                )
                choices = ["any", *self.legend.names]
                self.before = gr.Dropdown(choices, value="any", label="from", elem_id="event-from", min_width=100)
                self.after = gr.Dropdown(choices, value="any", label="to", elem_id="event-to", min_width=100)
            with gr.Row():
                self.low = gr.Number(0, label="least % of the tile", minimum=0, maximum=90, min_width=90)
                self.high = gr.Number(0, label="most % (0: free)", minimum=0, maximum=90, min_width=90)
                self.event_seed = gr.Number(0, label="seed", precision=0, minimum=0, min_width=70, elem_id="event-seed")
            self.propose = gr.Button("Propose a change", elem_id="propose")
        with gr.Row():
            self.undo = gr.Button("Undo", elem_id="undo", min_width=80)
            self.again = gr.Button("Start over", elem_id="again", min_width=80)
        self.facts = gr.HTML(elem_id="facts")
        pink = pictures.said("the pink brush puts ground back as it was")
        gr.HTML("<b>Classes</b>" + pictures.classes(self.legend) + pink)

    def _painting(self) -> None:
        usual = self.studio.networks.defaults.settled(0)
        sliders = {
            "steps": ((1, acts.MAX_STEPS, usual.num_steps), 1, "calls of the network: time"),
            "guidance": ((0, 10, usual.guidance_scale), 0.1, "how hard the mask is obeyed; 1 = off"),
            "free tail": ((0, 1, usual.free_fraction), 0.05, "share of steps in which all may change light"),
            "strength": ((0, 1, 0.6), 0.05, "1: from noise; less: over real pixels"),
        }
        with gr.Row():
            info = "another seed, another picture"
            self.seed = gr.Number(0, label="seed", info=info, precision=0, minimum=0, elem_id="seed", min_width=110)
            self.sliders = [
                gr.Slider(*ends, step=step, label=name, info=info, elem_id=name.replace(" ", "-"), min_width=170)
                for name, (ends, step, info) in sliders.items()
            ]
        words = "strength by class, as the model recommends, in place of the one above"
        self.own = gr.Checkbox(True, label=words, elem_id="own-strength", container=False)
        with gr.Row():
            self.paint = gr.Button("Paint", variant="primary", elem_id="paint", min_width=110)
            self.vary = gr.Button(f"Paint {acts.VARIATIONS} variations", elem_id="vary", min_width=110)
            self.cancel = gr.Button("Stop", variant="stop", elem_id="cancel", min_width=110)

    def _result(self) -> None:
        self.progress = gr.HTML(elem_id="progress")
        self.variations = gr.HTML(elem_id="variations", js_on_load=pictures.ASK_JS)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self.swipe = gr.HTML(elem_id="swipe", js_on_load=pictures.SWIPE_JS)
            with gr.Column(scale=1, min_width=300):
                self.panels = gr.HTML(elem_id="panels")
        gr.HTML("<h2>4. Keep it</h2>")
        with gr.Row():
            self.name = gr.Textbox("my-set", label="set", max_lines=1, max_length=60, elem_id="set-name", min_width=160)
            self.keep = gr.Button("Keep this pair", elem_id="keep", min_width=140)
        self.kept = gr.HTML(elem_id="kept")
        with gr.Accordion("The same without the page", open=False, elem_id="copy"):
            self.code = gr.HTML(elem_id="code")

    def _listen(self) -> None:
        on, legend = self.wiring.on, self.legend
        on(self.tile.input, self._chosen, [self.tile], self.shown)
        self.wiring.asked(self.tiles, self._clicked, [self.tile, *self.shown])
        on(self.take.click, self._uploaded, [self.image, self.mask], [self.image, self.mask, *self.shown])
        edits = {
            self.apply: (lambda s, e: acts.apply_strokes(s, e, legend), [self.editor]),
            self.place: (lambda s, *v: acts.place_box(s, v[:4], v[4], legend), [*self.box, self.becomes]),
            self.propose: (
                lambda s, *v: acts.propose(s, v[:5], v[5], legend),
                [self.kind, self.before, self.after, self.low, self.high, self.event_seed],
            ),
            self.undo: (lambda s: setattr(s, "edit", s.edited().undone()), []),
            self.again: (lambda s: setattr(s, "edit", s.edited().anew()), []),
        }
        for button, (act, inputs) in edits.items():
            on(button.click, self._after(act), inputs, self.shown)
        settings = [*self.sliders, self.own, self.seed]
        outputs = [self.swipe, self.panels, self.variations, self.code, self.kept, self.progress]
        self.wiring.stream(self.paint.click, lambda s, *v: self._paint(s, 1, *v), settings, outputs)
        self.wiring.stream(self.vary.click, lambda s, *v: self._paint(s, acts.VARIATIONS, *v), settings, outputs)
        on(self.cancel.click, self._stop, [], [self.progress])
        self.wiring.asked(self.variations, self._take, outputs[:-1])
        on(self.keep.click, self._keep, [self.name], [self.kept])

    def _after(self, act: Any) -> Any:
        def run(session: Session, *values: Any) -> tuple[Any, ...]:
            act(session, *values)
            return self.look(session)

        return run

    def look(self, session: Session) -> tuple[Any, str]:
        """The editor and the facts of a session's edit."""
        edit = session.edited()
        image = acts.editor_image(edit, self.legend)
        return {"background": image, "layers": [], "composite": image}, acts.told(edit)

    def opened(self, session: Session) -> tuple[Any, ...]:
        """A page that was just opened: the first tile of the source."""
        self.studio.load_beside()
        if session.edit is None:
            session.choose(session.source.items[0].key)
        return self._strip(), *self.look(session)

    def _strip(self) -> str:
        source = self.studio.sessions.source
        parts = []
        for number, item in enumerate(source.items[:SHOWN_TILES]):
            image = pictures.picture(in_8_bits(source.read(number).pixels()), "", 96)
            parts.append(f"<figure>{pictures.asking(item.key, image, f'tile {item.key}')}</figure>")
        return f'<div class="ca-tiles">{"".join(parts)}</div>'

    def _chosen(self, session: Session, key: str) -> tuple[Any, ...]:
        session.choose(key)
        return self.look(session)

    def _clicked(self, session: Session, key: str) -> tuple[Any, ...]:
        return key, *self._chosen(session, key)

    def _uploaded(self, session: Session, image: str | None, mask: str | None) -> tuple[Any, ...]:
        acts.upload(self.studio, session, image, mask)
        return None, None, *self.look(session)

    def _paint(self, session: Session, count: int, *values: Any) -> Iterator[tuple[Any, ...]]:
        for shown in acts.painting(self.studio, session, Settings.of(values), count):
            if shown.painted:
                yield *self._painted(session), ""
            else:
                yield *([gr.skip()] * 5), shown.progress

    def _painted(self, session: Session) -> tuple[Any, ...]:
        assert session.painted is not None
        swipe, panels = acts.result(session.painted)
        return swipe, panels, acts.variation_sheet(session), acts.snippets(self.studio, session), ""

    def _take(self, session: Session, asked: str) -> tuple[Any, ...]:
        session.take(int(asked) if asked.isdigit() else -1)
        return self._painted(session)

    def _stop(self, session: Session) -> tuple[Any, ...]:
        session.stop.set()
        return (pictures.said("stopping") if session.painting else pictures.said("nothing is being painted"),)

    def _keep(self, session: Session, name: str) -> tuple[Any, ...]:
        key = acts.keep_painted(self.studio, session, name.strip())
        return (pictures.said(f"kept as {key} in the set {name.strip()}: see Review"),)
