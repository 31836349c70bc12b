"""A prepared scene painted, and written row by row."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.diffusion.canvas import Box, Runner, at_once
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.diffusion.scene import ScenePainter
from changeanywhere.diffusion.scene_arrays import ArrayScene, boxed, mixed, scene_strengths
from changeanywhere.diffusion.scene_bands import Band, paint_changes, paint_everywhere
from changeanywhere.diffusion.scene_groups import Pixels, SceneView
from changeanywhere.errors import ConfigError, ModelError
from changeanywhere.generation.lanes import Lanes, laid_out
from changeanywhere.progress import Progress
from changeanywhere.rasters.facts import Window
from changeanywhere.scenes.exemplars import SceneExemplars, SceneTiles
from changeanywhere.scenes.inputs import SceneImage
from changeanywhere.scenes.prepare import Prepared
from changeanywhere.scenes.rasters_out import Raster, RowWriter
from changeanywhere.scenes.settings import SceneSettings
from changeanywhere.scenes.work import DiskRunner, Parts


class FileScene:
    """Pixels of an image file by box, mirrored beyond it."""

    def __init__(self, image: SceneImage) -> None:
        self._image = image

    def pixels(self, box: Box) -> Pixels:
        """float32 ``[h, w, C]`` in [-1, 1]."""
        row, column, tall, wide = box
        height, width = self._image.shape
        if row >= 0 and column >= 0 and row + tall <= height and column + wide <= width:
            return self._image.pixels(Window(*box))
        return boxed(_Lazy(self._image), box)


class _Lazy:
    """An image of which slices are read."""

    def __init__(self, image: SceneImage) -> None:
        self._image = image
        self.shape = image.shape

    def __getitem__(self, place: tuple[slice, slice]) -> Pixels:
        rows, columns = place
        return self._image.pixels(
            Window(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        )


def painter_of(
    pipeline: ChangePairPipeline, prepared: Prepared, settings: SceneSettings, run: Runner
) -> tuple[ScenePainter, bool]:
    """The painter of a scene, and whether it paints all of it or what changes."""
    sampling = Sampling(**settings.sampling)
    view_of = FileScene(prepared.image)
    strengths = scene_strengths(sampling, prepared.legend)
    over: Callable[[Box, Box], Pixels] | None = None
    if strengths is not None:
        tiles = SceneTiles(prepared.image, prepared.masks[0], prepared.legend)
        ring = sampling.exemplar_ring
        exemplars = SceneExemplars(tiles, prepared.masks, prepared.plan.events, settings.seed, ring)

        def over(box: Box, changed: Box) -> Pixels:
            return exemplars.over(view_of.pixels(box), box, changed)

    view = ArrayScene(view_of.pixels, prepared.masks[1], prepared.changed, strengths, over)
    everywhere = sampling.num_held < sampling.num_steps and not settings.finishing["paste_back"]
    return _painter(pipeline, view, settings, run), everywhere


def _painter(pipeline: ChangePairPipeline, view: SceneView, settings: SceneSettings, run: Runner) -> ScenePainter:
    sampling, machine = Sampling(**settings.sampling), settings.machine
    return pipeline.scene_painter(
        view, sampling, settings.seed, (0, 0), machine["window"], size=machine["batch_size"], run=run
    )


def bands_of(painter: ScenePainter, everywhere: bool, paste_back: bool) -> Iterator[Band]:
    """The second date from top to bottom."""
    return paint_everywhere(painter) if everywhere else paint_changes(painter, paste_back)


def num_units(painter: ScenePainter, everywhere: bool, sampling: Sampling, size: int) -> int:
    """How many units of work a progress bar counts."""
    units = len(painter.batches)
    if everywhere:
        tail = sampling.num_steps - sampling.num_held
        units += (2 + tail) * -(-len(painter.plane.windows()) // size)
    return units


def write_t2(
    pipeline: ChangePairPipeline,
    prepared: Prepared,
    settings: SceneSettings,
    writer: RowWriter,
    parts: Parts,
    stop: threading.Event,
    progress: Progress,
) -> None:
    """Paint and write all rows of date 2. :class:`KeyboardInterrupt` after ``stop``."""
    sampling = Sampling(**settings.sampling)
    counting, everywhere = painter_of(pipeline, prepared, settings, DiskRunner(parts, stop, progress, 1))
    total = num_units(counting, everywhere, sampling, settings.machine["batch_size"])
    lanes = lanes_of(settings)
    with ThreadPoolExecutor(lanes.count) as pool:
        run = DiskRunner(parts, stop, progress, total, (pool, lanes.count))
        painter, _ = painter_of(pipeline, prepared, settings, run)
        painter.__dict__["changes"] = counting.changes
        for band in bands_of(painter, everywhere, settings.finishing["paste_back"]):
            if not np.isfinite(band.image).all():
                raise ModelError(
                    f"{prepared.files.image}: painted with NaN or infinity; the model is damaged, or overflows: give "
                    "--dtype float32 or another --model, and another --out"
                )
            rows, valid = painted_rows(band, prepared, settings.finishing["other_bands"])
            writer.put(band.row, rows, valid)


def painted_rows(
    band: Band, prepared: Prepared, other_bands: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """Rows of date 2, all bands in the units of the file ``[h, W, bands]``, and where they are valid, where there is a
    mask band."""
    image, height = prepared.image, len(band.image)
    window = Window(band.row, 0, height, image.shape[1])
    rows = image.read(window, image.all_bands).copy()
    imaged = image.valid(window)
    share = band.share if imaged is None else np.where(imaged, band.share, np.float32(0))
    nodata = image.facts.shown_nodata
    before = rows[..., [number - 1 for number in image.bands]]
    painted = mixed(image.normalisation, before, band.image, share)
    if nodata is not None and not np.isnan(nodata):
        painted = _not_nodata(painted, nodata)
    for number in dict.fromkeys(image.bands):
        rows[..., number - 1] = np.where(share > 0, painted[..., image.bands.index(number)], rows[..., number - 1])
    if other_bands == "nodata":
        changed = prepared.changed[window.slices]
        for number in set(image.all_bands) - {*image.bands, image.facts.alpha}:
            rows[..., number - 1][changed] = nodata
    mask = (np.ones(share.shape, bool) if imaged is None else imaged) if image.facts.hides_ground else None
    return rows, mask


def _not_nodata(painted: npt.NDArray[Any], nodata: float) -> npt.NDArray[Any]:
    """What was painted is there: a value that would say otherwise goes to its neighbour."""
    largest = np.iinfo(painted.dtype).max if painted.dtype.kind in "ui" else np.inf
    beside = nodata - 1 if nodata >= largest else nodata + 1
    return np.where(painted == nodata, np.asarray(beside).astype(painted.dtype), painted)


def check_painting(pipeline: ChangePairPipeline, image: SceneImage, settings: SceneSettings) -> None:
    """:class:`ConfigError` for what cannot be painted or written, whatever changes."""
    raster_of(image, settings, 2)
    nothing = np.zeros((1, 1), np.uint8)
    view = ArrayScene(FileScene(image).pixels, nothing, nothing.astype(bool))
    _painter(pipeline, view, settings, at_once)


def raster_of(image: SceneImage, settings: SceneSettings, date: int) -> Raster:
    """What ``t1.tif`` and ``t2.tif`` are."""
    facts = image.facts
    nodata = facts.shown_nodata
    others = [str(number) for number in image.all_bands if number not in image.bands]
    tags = {}
    if date == 2:
        tags["CHANGEANYWHERE_PAINTED_BANDS"] = ",".join(str(band) for band in dict.fromkeys(image.bands))
        if others:
            kept = "copied from date 1"
            if settings.finishing["other_bands"] == "nodata":
                kept += ", nodata on changed ground"
            tags["CHANGEANYWHERE_OTHER_BANDS"] = f"{','.join(others)}: {kept}"
    if settings.finishing["other_bands"] == "nodata" and (nodata is None or not others):
        what = "copy for an image that names no nodata" if nodata is None else "copy: the model paints all bands"
        raise ConfigError(f"other_bands is 'nodata'; allowed: {what} ({image.path})")
    return Raster(
        *image.shape,
        facts.count,
        facts.dtype,
        image.georef,
        nodata,
        alpha=facts.alpha == facts.count,
        masked=facts.hides_ground,
        tags=tags,
        meanings=facts.shown_meanings,
    )


def estimate(pipeline: ChangePairPipeline, prepared: Prepared, settings: SceneSettings) -> tuple[int, float, int]:
    """Windows of a scene, seconds and bytes of scratch that they take, from one batch of each kind, painted twice."""
    painter, everywhere = painter_of(pipeline, prepared, settings, at_once)
    windows, seconds, num_bytes = 0, 0.0, 0
    for trial in painter.trials(everywhere):
        trial.paint()
        started = time.perf_counter()
        num_bytes += int(trial.paint() * trial.times)
        seconds += (time.perf_counter() - started) * trial.times / lanes_of(settings).count
        windows += trial.windows
    return windows, seconds, num_bytes


def lanes_of(settings: SceneSettings) -> Lanes:
    """How a scene lays out the CPU threads that it froze: batches of windows at once, as ``generate`` does pairs."""
    threads = int(settings.machine["num_threads"])
    return laid_out(threads) if settings.machine["device"] == "cpu" else Lanes(1, threads)
