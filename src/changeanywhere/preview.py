"""``check --preview``: a few tiles or pairs as they were understood, in one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageDraw

from changeanywhere.errors import require
from changeanywhere.legend import Legend, Mask
from changeanywhere.sample import ChangePair, SourceSample, in_8_bits
from changeanywhere.storage import atomic_write, check_out

Pixels = npt.NDArray[np.uint8]
SIDE, GAP, LINE = 256, 6, 18
NUM_ROWS = 4
UNKNOWN_COLOURS = (225, 160)
"""Unknown ground is chequered, so that no class can look like it."""
CHANGED = (255, 40, 40)
OPACITY = 0.5


def check_target(file: Path) -> None:
    """:class:`ConfigError` for a picture that is no PNG."""
    require(file.suffix.lower() == ".png", "preview", str(file), "a file that ends in .png")
    check_out(file)


def draw_samples(samples: Sequence[SourceSample], legend: Legend, file: Path) -> None:
    """Image | mask | mask over image, a row per tile, and the colours of the classes below."""
    rows = []
    for sample in samples:
        image, mask = _eight_bit(sample.pixels()), _in_colours(sample.mask, legend)
        rows.append((sample.item.key, [image, mask, _over(image, mask, sample.mask > 0)]))
    _draw(("image", "mask", "mask over image"), rows, legend, file)


def draw_pairs(pairs: Sequence[ChangePair], legend: Legend | None, file: Path) -> None:
    """Date 1 | date 2 | changed ground over date 2, and where there are masks, theirs."""
    rows = []
    masked = legend is not None and all(pair.mask_t1 is not None and pair.mask_t2 is not None for pair in pairs)
    for pair in pairs:
        first, second = _stretched(pair)
        red = np.broadcast_to(np.array(CHANGED, np.uint8), second.shape)
        panels = [first, second, _over(second, red, pair.change_mask)]
        if masked and legend is not None and pair.mask_t1 is not None and pair.mask_t2 is not None:
            panels += [_in_colours(pair.mask_t1, legend), _in_colours(pair.mask_t2, legend)]
        rows.append((pair.key, panels))
    titles = ("date 1", "date 2", "changed (red)", "mask 1", "mask 2")[: 5 if masked else 3]
    _draw(titles, rows, legend if masked else None, file)


def _eight_bit(pixels: npt.NDArray[np.float32]) -> Pixels:
    """[-1, 1], any number of bands → RGB; the first band alone, or the first three."""
    image = in_8_bits(pixels)
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def _stretched(pair: ChangePair) -> list[Pixels]:
    """As they are in 8 bits; else between the 2nd and 98th percentile of all bands and dates: what has not changed must
    not look as if it had. What shows no ground counts nothing, and is black."""
    dates = [image[..., None] if image.ndim == 2 else image for image in (pair.image_t1, pair.image_t2)]
    shown = [np.ones(d.shape[:2], bool) if s is None else s for d, s in zip(dates, pair.seen, strict=True)]
    if any(image.dtype != np.uint8 for image in dates):
        ground = np.concatenate([image[where].ravel() for image, where in zip(dates, shown, strict=True)])
        low, high = np.percentile(ground, (2, 98)) if ground.size else (0.0, 1.0)
        filled = (np.where(w[..., None], d, low).astype(np.float32) for d, w in zip(dates, shown, strict=True))
        dates = [np.clip((d - low) / max(float(high - low), 1e-9) * 255, 0, 255).astype(np.uint8) for d in filled]
    colours = (d[..., :3] if d.shape[2] >= 3 else np.repeat(d[..., :1], 3, axis=2) for d in dates)
    return [np.where(w[..., None], c, 0).astype(np.uint8) for c, w in zip(colours, shown, strict=True)]


def _in_colours(mask: Mask, legend: Legend) -> Pixels:
    rows, columns = np.indices(mask.shape)
    chequered = np.where((rows // 8 + columns // 8) % 2, *UNKNOWN_COLOURS).astype(np.uint8)
    return np.where((mask == 0)[..., None], chequered[..., None], legend.colorize(mask)).astype(np.uint8)


def _over(image: Pixels, colours: Pixels, where: npt.NDArray[np.bool_]) -> Pixels:
    mixed = image * (1 - OPACITY) + colours * OPACITY
    return np.where(where[..., None], mixed, image).astype(np.uint8)


def _draw(
    titles: Sequence[str], rows: Sequence[tuple[str, Sequence[Pixels]]], legend: Legend | None, file: Path
) -> None:
    width = len(titles) * (SIDE + GAP) + GAP
    names = [] if legend is None else [("unknown", (192, 192, 192)), *((c.name, c.color) for c in legend.classes)]
    per_row = max(1, width // 190)
    height = LINE + len(rows) * (SIDE + LINE + GAP) + -(-len(names) // per_row) * LINE + GAP
    sheet = PillowImage.new("RGB", (width, height), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((GAP + column * (SIDE + GAP), 3), title, fill=(0, 0, 0))
    for number, (key, panels) in enumerate(rows):
        top = LINE + number * (SIDE + LINE + GAP)
        pen.text((GAP, top + 2), _plain(key), fill=(90, 90, 90))
        for column, panel in enumerate(panels):
            picture = PillowImage.fromarray(np.ascontiguousarray(panel))
            kind = PillowImage.Resampling.NEAREST if max(picture.size) <= SIDE else PillowImage.Resampling.BOX
            scale = SIDE / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            sheet.paste(picture.resize(size, kind), (GAP + column * (SIDE + GAP), top + LINE))
    top = LINE + len(rows) * (SIDE + LINE + GAP)
    for number, (name, colour) in enumerate(names):
        left, line = GAP + number % per_row * 190, top + number // per_row * LINE
        pen.rectangle((left, line + 3, left + 12, line + 14), fill=colour, outline=(0, 0, 0))
        pen.text((left + 18, line + 3), _plain(name)[:26], fill=(0, 0, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    atomic_write(file, buffer.getvalue())


def _plain(text: str) -> str:
    """Letters that the built-in font has; others as a question mark."""
    return text.encode("latin-1", "replace").decode("latin-1")
