"""What the buttons of the paint tab do, without Gradio: a session and plain values in, values and pictures out."""

from __future__ import annotations

import base64
import queue
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from changeanywhere.diffusion.options import Sampling
from changeanywhere.errors import InputError, LegendError, require
from changeanywhere.legend import Legend, Mask
from changeanywhere.limits import MAX_SEED
from changeanywhere.pairs.codec import encode_png
from changeanywhere.sample import in_8_bits
from changeanywhere.studio import pictures
from changeanywhere.studio.edits import AS_BEFORE, Edit, refuse_empty, request_of
from changeanywhere.studio.keeping import keep, set_folder
from changeanywhere.studio.painting import Painted, model_of
from changeanywhere.studio.session import Session
from changeanywhere.studio.snippets import MASKS, as_command, as_python, settings_of
from changeanywhere.studio.studio import Studio
from changeanywhere.studio.uploads import open_upload
from changeanywhere.text import xml

BEFORE = (255, 0, 255)
"""The brush's colour for ground that is to be as it was: one that legends have not."""
MAX_STEPS = 200
VARIATIONS = 3
UPLOADED = Path("my_folder")
"""What a snippet calls the folder of a tile that was dropped on the page."""
WINDOW = re.compile(r"_y\d{5}_x\d{5}$")
"""Ends the keys of tiles that are windows of larger images."""


@dataclass(frozen=True)
class Settings:
    """What the page says of a painting."""

    num_steps: int
    guidance_scale: float
    free_fraction: float
    own_strength: bool
    """Whether the model's recommended strength, by class, holds."""
    strength: float
    seed: int

    @staticmethod
    def of(values: Sequence[Any]) -> Settings:
        """Of the page's fields, in their order: steps, guidance, free tail, strength, whether the model's strength
        holds, seed. :class:`ConfigError` for one that was emptied."""
        steps, guidance, free, strength, own, seed = values
        names = ("steps", "guidance", "free tail", "strength", "seed")
        refuse_empty(names, (steps, guidance, free, strength, seed))
        return Settings(int(steps), guidance, free, bool(own), strength, int(seed))

    def sampling(self, defaults: Sampling) -> Sampling:
        """:class:`ConfigError` naming the first value that is not allowed."""
        require(1 <= self.num_steps <= MAX_STEPS, "steps", self.num_steps, f"1 to {MAX_STEPS}")
        require(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"0 to {MAX_SEED}")
        given: dict[str, Any] = {name: getattr(self, name) for name in ("num_steps", "guidance_scale", "free_fraction")}
        given |= {} if self.own_strength else {"exemplar_strength": self.strength}
        sampling = defaults.changed(given)
        sampling.check()
        return sampling


def brush_colours(legend: Legend) -> list[str]:
    """Of the brush: the classes', then that for ground as it was."""
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in (*(c.color for c in legend.classes), BEFORE)]


def class_choices(legend: Legend) -> list[str]:
    """What a box may become."""
    return [*legend.names, AS_BEFORE]


def upload(studio: Studio, session: Session, image: str | None, mask: str | None) -> Edit:
    """Begin with a file that was dropped on the page. What was dropped before goes; Gradio's own copies stay until the
    studio ends: they lie by what they hold, so that another page, or this one's next try, may mean the same file."""
    if not image:
        raise InputError("no image was chosen: PNG, JPEG or TIFF")
    given = [Path(place) for place in (image, mask) if place]
    folder = Path(mkdtemp(dir=session.folder))
    try:
        limit = studio.options.max_upload_mb
        source = open_upload(given[0], given[1] if mask else None, folder, studio.networks, limit)
    except BaseException:
        shutil.rmtree(folder)
        raise
    edit = session.begin(source, UPLOADED, source.items[0].key)
    for other in [] if session.painting else list(session.folder.iterdir()):  # a painting reads its own to the end
        if other != folder:
            shutil.rmtree(other)
    return edit


def place_box(session: Session, box: Sequence[Any], name: str, legend: Legend) -> None:
    """A box of a class by its left, top, width and height in px."""
    refuse_empty(("left px", "top px", "width px", "height px"), box)
    require(all(isinstance(n, int | float) and n == int(n) for n in box), "box", list(box), "four whole numbers")
    left, top, width, height = (int(number) for number in box)
    index = 0 if name == AS_BEFORE else legend.index_of(name)
    session.edit = session.edited().with_box((left, top, width, height), index)


def apply_strokes(session: Session, editor: dict[str, Any] | None, legend: Legend) -> None:
    """What was drawn in the editor, snapped to classes."""
    layers = list((editor or {}).get("layers") or [])
    session.edit = session.edited().with_strokes(layers, legend, BEFORE)


def propose(session: Session, asked: Sequence[Any], seed: Any, legend: Legend) -> None:
    """An event of the simulator: kind, from, to, least and most per cent of the tile; ``seed``: a whole number.
    :class:`ConfigError` for a field that was emptied (None) or a number that is not allowed."""
    kind, before, after, low, high = asked
    refuse_empty(("least %", "most %", "seed"), (low, high, seed))
    require(0 <= seed <= MAX_SEED, "seed", seed, f"0 to {MAX_SEED}")
    session.edit = session.edited().proposed(request_of(kind, before, after, (low, high), legend), legend, seed)


def editor_image(edit: Edit, legend: Legend) -> pictures.Image8:
    """The tile with its second mask."""
    return pictures.with_change(in_8_bits(edit.sample.pixels()), edit.mask_t2, edit.change_mask, legend)


def told(edit: Edit) -> str:
    """How much changes."""
    share = 100 * float(edit.change_mask.mean())
    height, width = edit.sample.mask.shape
    steps = len(edit.steps) - 1
    return pictures.said(
        f"{edit.sample.item.key}, {width} x {height} px: {share:.2f} % of it changes; {steps} edit(s) to undo"
    )


@dataclass(frozen=True)
class Shown:
    """A moment of a painting: how far it is, or what came out."""

    progress: str = ""
    painted: tuple[Painted, ...] = ()


def painting(studio: Studio, session: Session, settings: Settings, count: int = 1) -> Iterator[Shown]:
    """Paint with ``count`` seeds from ``settings.seed`` on; the last moment has what was painted, and the session, too.
    :class:`PaintingStoppedError` once the session's ``stop`` is set."""
    import torch

    if session.painting:
        raise InputError("this page is painting already; stop it first")
    threads = torch.get_num_threads()  # a new thread has the machine's, and sums depend on how many there are
    sampling = settings.sampling(studio.networks.defaults)
    asked = [session.asked(sampling, settings.seed + i) for i in range(count)]
    session.stop, session.painting = threading.Event(), True
    told: queue.Queue[tuple[str, int, int] | None] = queue.Queue()
    painted: list[Painted] = []
    failed: list[BaseException] = []

    def work() -> None:
        torch.set_num_threads(threads)
        try:
            for number, each in enumerate(asked):
                which = f", {number + 1} of {count}" if count > 1 else ""

                def progress(what: str, done: int, total: int, which: str = which) -> None:
                    told.put((f"{what}{which}", done, total))

                painted.append(studio.networks.paint(each, progress, session.stop))
        except Exception as error:  # handed to whoever waits
            failed.append(error)
        finally:
            session.painting = False
            told.put(None)

    threading.Thread(target=work, daemon=True).start()
    while (moment := told.get()) is not None:
        while moment is not None and not told.empty():  # the newest only: pages are slower than paintings
            moment = told.get()
        if moment is None:
            break
        yield Shown(pictures.bar(*moment))
    if failed:
        raise failed[0]
    session.seeds = [settings.seed + i for i in range(count)]
    session.variations = painted
    session.take(0)
    yield Shown(painted=tuple(painted))


def result(painted: Painted) -> tuple[str, str]:
    """HTML of the swipe, and of the panels below it."""
    asked = painted.asked
    change, legend, mask = asked.plan.change_mask, painted.read_legend, asked.plan.mask_t2
    second = pictures.rgb(painted.image_t2)
    own = asked.source.legend
    panels = [
        ("date 2, what changed", pictures.with_change(second, mask, change, own)),
        ("mask of date 2, as asked", pictures.with_mask(second, mask, own, 0.6)),
        ("date 2, as the embedded segmenter reads it", pictures.with_mask(second, painted.read, legend, 0.6)),
    ]
    if painted.fidelity is None:
        read = "the segmenter has other classes than the model: no figure"
    else:
        read = f"{100 * painted.fidelity:.0f} % of what changed is read as its new class"
    return pictures.swipe(painted.image_t1, painted.image_t2), pictures.said(read) + pictures.figures(panels)


def variation_sheet(session: Session) -> str:
    """Paintings by seed side by side, each a button that takes it."""
    if len(session.variations) < 2:
        return ""
    parts = []
    for number, (seed, painted) in enumerate(zip(session.seeds, session.variations, strict=True)):
        score = "" if painted.fidelity is None else f", {100 * painted.fidelity:.0f} % read"
        current = ' aria-current="true"' if painted is session.painted else ""
        image = pictures.picture(painted.image_t2, f"date 2 with seed {seed}")
        words = f"seed {seed}{score}"
        parts.append(
            f"<figure{current}>{pictures.asking(str(number), image, f'take {words}')}"
            f"<figcaption>{words}</figcaption></figure>"
        )
    return f'<div class="ca-row">{"".join(parts)}</div>'


def keep_painted(studio: Studio, session: Session, name: str) -> str:
    """Add what was painted to a set; returns the key. :class:`InputError` where there is nothing, or it is kept."""
    if session.painted is None:
        raise InputError("nothing is painted yet")
    folder = set_folder(studio.options.out, name)
    if session.kept == str(folder):
        raise InputError(f"this painting is in the set {name} already")
    asked = session.painted.asked
    where = asked.place.name, asked.split
    key = keep(folder, session.painted, studio.legend, where, model_of(studio.networks))
    session.kept = str(folder)
    return key


def snippets(studio: Studio, session: Session) -> str:
    """HTML: the mask to save, a command and five lines of Python that paint it."""
    painted = session.painted
    if painted is None:
        return ""
    asked, key = painted.asked, painted.asked.sample.item.key
    dropped = asked.place == UPLOADED
    try:
        stored = asked.source.stored(asked.plan.mask_t2)
    except LegendError as error:
        return pictures.said(f"no command paints this mask: {error}")
    options = studio.said(UPLOADED if dropped else None) | settings_of(asked.sampling, studio.networks.defaults)
    options |= {"seed": session.seeds[session.variations.index(painted)]}
    note = "paints the same pixels"
    if asked.plan.events:
        note = "paints the same mask; proposed objects are here copied from the tile, there filled with ground"
    if dropped:
        note += f"; {UPLOADED} holds your image in images, called {key}, and the mask of date 1 in masks"
    if WINDOW.search(key):
        note += "; the tile is a part of a larger image: cut it out first, row and column of its corner are in its name"
    masks = [_saved(stored, 2, f"{MASKS}/{key}.png")]
    masks += [_saved(asked.source.stored(asked.sample.mask), 1, f"{UPLOADED}/masks/{key}.png")] if dropped else []
    code = as_command(options, "my_pairs"), as_python(options, "my_pairs")
    return (
        f"<p>{', '.join(masks)}; then this {xml(note)}:</p>"
        f"{pictures.code(code[0], 'command')}{pictures.code(code[1], 'Python')}"
    )


def _saved(mask: Mask, date: int, file: str) -> str:
    """A link that saves a mask, and what is to become of it."""
    content, name = base64.b64encode(encode_png(mask)).decode(), xml(file.rpartition("/")[2])
    link = f'<a download="{name}" href="data:image/png;base64,{content}">Save the mask of date {date}</a>'
    return f"{link} as {xml(file)}"
