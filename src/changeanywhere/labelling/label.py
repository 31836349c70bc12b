"""``changeanywhere label``: a folder of images becomes a source with masks that a segmenter read."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.diffusion.pipeline import find_device
from changeanywhere.documents import read_json_object
from changeanywhere.errors import ModelError, OutputError, SourceError
from changeanywhere.folders import entries_of
from changeanywhere.labelling.masks import mask_writer
from changeanywhere.labelling.options import LabelOptions
from changeanywhere.labelling.pictures import Strip, write_page
from changeanywhere.labelling.reading import ImageReader, Readers, open_readers
from changeanywhere.labelling.records import ORIGIN, patches_of, remove_gone
from changeanywhere.labelling.regions import guided, whole_objects
from changeanywhere.labelling.windows import cells, samples
from changeanywhere.legend import Mask
from changeanywhere.progress import Progress, silent
from changeanywhere.rasters.facts import Facts, Window
from changeanywhere.rasters.gate import inspect, read_image, read_stretch
from changeanywhere.regular import open_regular
from changeanywhere.sources.alone import images_alone
from changeanywhere.sources.dates import expected_second, of_one_date
from changeanywhere.sources.entries import Entry, Layout
from changeanywhere.sources.files import digest
from changeanywhere.sources.problems import Problems, say_passed
from changeanywhere.storage import atomic_file, atomic_write
from changeanywhere.terminal import say

JOB, TABLE = "label.json", "labels.csv"
MEANING = "meaning"
"""In the job: the classes that are written, and what became them."""
PATHS = ("source", "segmenter", "predictions", "legend", "legend_map")
Look = Callable[[Window, npt.NDArray[np.float32], Mask, npt.NDArray[np.float32]], None]
"""Takes a window, its pixels, its mask and how sure it is."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Labelled:
    """A line of ``labels.csv``."""

    patch: str
    known: float
    """Share of ground that has a class."""
    confidence: float
    """Mean probability of the most likely class over all ground with data; 0 where there is none."""
    shares: dict[str, float]
    """Of the ground, by class."""


def not_looked(*_: object) -> None:
    """Nobody wants a picture."""


def label(options: LabelOptions, progress: Progress = silent) -> list[Labelled]:
    """Label every image of a folder; those whose mask is there already are passed over. Returns all lines of the table.

    Raises :class:`SourceError` for images that cannot be read, :class:`OutputError` for a folder that was begun with
    other options.
    """
    options.check()
    problems = Problems(skip=False)
    layout = images_alone(options.source, problems)
    say_passed(options.source, problems.passed_over())
    alone = of_one_date(layout)
    if alone:
        expected = f"{alone[0].relative_to(options.source)}: expected {expected_second(alone[0], options.source)}"
        what = "image has" if len(alone) == 1 else "images have"
        say(f"{options.source}: {len(alone)} {what} no second date, the first {expected}", error=True)
    readers = open_readers(options, find_device(options.device))
    _begin(options, layout, readers)
    lines = []
    for number, (entry, patch) in enumerate(zip(layout.entries, patches_of(layout), strict=True)):
        lines.append(_label_one(entry, patch, options, readers))
        progress("labelling images", number + 1, len(layout.entries))
    _finish(options, layout, readers, lines)
    return lines


def label_image(
    facts: Facts,
    pixels: Callable[[Window], tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]],
    options: LabelOptions,
    reader: ImageReader,
    write: Callable[[Window, Mask], None],
    offset: int = 0,
    look: Look = not_looked,
) -> tuple[npt.NDArray[np.int64], float]:
    """Label an image by windows: ``pixels`` gives a window f32 ``[h, w, 3]`` in [-1, 1] and where it is valid,
    ``write`` takes its mask. Returns pixels by class ``[K + 1]`` and the mean confidence of what is valid (0:
    nothing). Memory does not grow with the image."""
    counts, total, size = np.zeros(reader.legend.num_classes + 1, np.int64), 0.0, 0
    objects = [reader.legend.index_of(name) for name in options.cleaning.objects if name in reader.legend.names]
    with reader.settled(_shown(map(pixels, samples(facts.height, facts.width)))):
        for cell in cells(facts.height, facts.width, offset):
            image, valid = pixels(cell.window)
            found = reader.read(cell.window, image)
            if not np.isfinite(found).all():
                raise ModelError(f"{options.segmenter}: says NaN of an image; the segmenter is damaged: give another")
            known = 1 - found.sum(0) <= found.max(0)  # else unknown is the most likely
            brightness = (((image + 1) / 2) @ LUMA).astype(np.float32)
            probabilities = guided(found, brightness, options.cleaning.radius)
            if valid is not None:
                known &= valid
            mask, sure = whole_objects(probabilities, known, options.cleaning, objects)
            kept = np.ascontiguousarray(mask[cell.inside])
            counts += np.bincount(kept.ravel(), minlength=len(counts))
            there = np.ones(kept.shape, bool) if valid is None else valid[cell.inside]
            total += float(sure[cell.inside][there].sum())
            size += int(there.sum())
            write(cell.core, kept)
            look(cell.core, image[cell.inside], kept, sure[cell.inside])
    return counts, total / max(size, 1)


def _shown(
    windows: Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]],
) -> Iterator[npt.NDArray[np.float32]]:
    """The images of those windows of which half or more is valid; else of the one that shows most. What fills the
    margins of a scene is no ground, and says nothing of how its ground is to be read."""
    most, best, any_yet = 0.0, None, False
    for image, valid in windows:
        share = 1.0 if valid is None else float(valid.mean())
        if share >= 0.5:
            any_yet = True
            yield image
        elif share > most:
            most, best = share, image
    if not any_yet and best is not None:
        yield best


def _label_one(entry: Entry, patch: str, options: LabelOptions, readers: Readers) -> Labelled:
    facts = inspect(entry.image, options.max_megapixels)
    if max(options.bands) > facts.count:
        raise SourceError(
            f"{entry.image}: has {facts.count} band(s), asked for {list(options.bands)}; choose with bands"
        )
    note, content = options.out / "parts" / f"{patch}.json", digest(entry.image)
    if note.is_file() and _strip_of(options.out, patch).is_file() and mask_file(options.out, patch, facts).is_file():
        noted = json.loads(note.read_text())
        if noted.pop("image", content) == content:  # else it was replaced since
            return Labelled(**noted)
    reader = readers.of(patch, entry.image, facts)
    normalisation = read_stretch(entry.image, options.bands, options.stretch, options.max_megapixels)

    def pixels(window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
        image, valid = read_image(entry.image, facts, window, options.bands)
        return normalisation.apply(normalisation.filled(image, valid)).clip(-1, 1), valid

    with mask_writer(mask_file(options.out, patch, facts), facts, reader.legend) as write:
        strip = Strip(facts.height, facts.width, reader.legend)
        counts, confidence = label_image(facts, pixels, options, reader, write, look=strip.look)
    strip.save(_strip_of(options.out, patch))
    shares = counts / max(int(counts.sum()), 1)
    by_class = {name: round(float(share), 5) for name, share in zip(reader.legend.names, shares[1:], strict=True)}
    line = Labelled(patch, round(1 - float(shares[0]), 5), round(confidence, 5), by_class)
    atomic_write(note, json.dumps(asdict(line) | {"image": content}).encode())
    return line


def _strip_of(out: Path, patch: str) -> Path:
    return out / "parts" / f"{patch}.jpg"


def mask_file(out: Path, patch: str, facts: Facts) -> Path:
    """A GeoTIFF where the image is a TIFF, else an index PNG."""
    return out / "masks" / f"{patch}.{'tif' if facts.container == 'TIFF' else 'png'}"


def _begin(options: LabelOptions, layout: Layout, readers: Readers) -> None:
    """Folders, legend, images and where these come from; refuses a folder that was begun otherwise, or is another's.
    Images that were taken out of the source since go, with their masks."""
    asked = _job(options, readers)
    _refuse_others(options.out, asked)
    atomic_write(options.out / JOB, (json.dumps(asked, indent=1) + "\n").encode())
    readers.legend.save(options.out / "legend.json")
    gone = remove_gone(options.out, layout, readers.called, options.images == "link")
    if gone:
        what = "image, with its mask, that is" if gone == 1 else "images, with their masks, that are"
        say(f"{options.out}: removed {gone} {what} no longer in the source", error=True)
    _write_origin(options.out, layout, readers)  # before there are images: it is what a later run knows them by
    for entry, folder in zip(layout.entries, layout.folders, strict=True):
        place = options.out / "images" / entry.image.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if options.images == "link":
            if not os.path.lexists(place):
                with suppress(FileExistsError):  # another process was as fast
                    place.symlink_to(entry.image.resolve())
        elif not place.exists() or digest(place) != digest(entry.image):
            with open_regular(entry.image) as image, atomic_file(place) as target:
                shutil.copyfileobj(image, target)


def _refuse_others(out: Path, asked: dict[str, Any]) -> None:
    """:class:`OutputError` for a folder that was begun with other options, another segmenter or other classes, and for
    one with anything in it that this command did not begin: masks that people drew would be written over."""
    file = out / JOB
    if not os.path.lexists(file):
        found = [path.name for path in entries_of(out)] if out.is_dir() else []
        if found:
            raise OutputError(f"{out}: not empty ({found[0]}) and not made by this command; give another --out")
        return
    begun = read_json_object(file)
    if begun.setdefault(MEANING, asked[MEANING]) != asked[MEANING]:  # folders of an earlier edition do not say
        raise OutputError(f"{file}: this folder was begun with other classes or another legend map; give another out")
    if _placed(begun) != _placed(asked):
        raise OutputError(f"{file}: this folder was begun with other options or another segmenter; give another out")


def _placed(job: dict[str, Any]) -> dict[str, Any]:
    """With whole paths: one place may be spelled in several ways."""
    return {k: str(Path(v).resolve()) if k in PATHS and isinstance(v, str) else v for k, v in job.items()}


def _job(options: LabelOptions, readers: Readers) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(asdict(options), default=str))
    del content["out"], content["device"]
    return content | {"labelled_by": readers.called, MEANING: readers.meaning}


def _finish(options: LabelOptions, layout: Layout, readers: Readers, lines: list[Labelled]) -> None:
    """Tables and page: what was read, and where the images come from."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["patch", "known", "confidence", *readers.legend.names])
    for line in lines:
        rows.writerow([line.patch, line.known, line.confidence, *(line.shares[name] for name in readers.legend.names)])
    atomic_write(options.out / TABLE, table.getvalue().encode())
    _write_origin(options.out, layout, readers)
    pages = [
        (line.patch, line.known, line.confidence, line.shares, _strip_of(options.out, line.patch)) for line in lines
    ]
    write_page(options.out / "report.html", options.out.resolve().name, readers.called, pages, readers.legend)


def _write_origin(out: Path, layout: Layout, readers: Readers) -> None:
    """``provenance.csv``: where the images come from, with who labelled them."""
    origin = io.StringIO()
    rows = csv.writer(origin, lineterminator="\n")
    rows.writerow(["patch", "scene", "split", "licence", "gsd_m", "attribution", "labelled_by"])
    for entry, patch in zip(layout.entries, patches_of(layout), strict=True):
        gsd = "" if entry.gsd_m is None else entry.gsd_m
        rows.writerow([patch, entry.scene, entry.split or "", entry.licence, gsd, entry.attribution, readers.called])
    atomic_write(out / ORIGIN, origin.getvalue().encode())
