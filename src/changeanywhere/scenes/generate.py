"""``changeanywhere generate --scene``: image and land cover → plan → windows → rasters and what stands beside them.

OUT/SCENE/scene.json              what its bytes follow from (frozen)
OUT/SCENE/plan.json               the events
OUT/SCENE/parts/                  what is computed so far; gone when the scene is finished
OUT/SCENE/t1.tif … report.html    the result
OUT/SCENE/done.json               written last: files and their hashes
OUT/SCENE/tiles/                  training pairs cut from it, where asked
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from changeanywhere.errors import ConfigError, OutputError, ShortfallError, SourceError, require
from changeanywhere.leases import Leases
from changeanywhere.legend import Legend
from changeanywhere.models.info import ModelInfo, find_model, read_info
from changeanywhere.progress import Progress, silent
from changeanywhere.scenes import descriptions
from changeanywhere.scenes.inputs import SceneFiles, SceneImage, find_scenes, idle_options, open_image, strips
from changeanywhere.scenes.options import SceneOptions
from changeanywhere.scenes.planning import SLACK, ScenePlan
from changeanywhere.scenes.prepare import PARTS, Prepared, load_events, prepare
from changeanywhere.scenes.rasters_out import Raster, cog
from changeanywhere.scenes.report import scene_report
from changeanywhere.scenes.settings import SceneSettings, save_settings, settings_of
from changeanywhere.scenes.tiles import Cut, cut_tiles
from changeanywhere.scenes.vectors import require_libraries, write_gpkg
from changeanywhere.seals import sealed, unsealed
from changeanywhere.stopping import polite_stop
from changeanywhere.storage import LocalStore, file_hash, remove_leftovers

if TYPE_CHECKING:
    from changeanywhere.diffusion.pipeline import ChangePairPipeline

DONE = "done.json"
T2 = "t2.tif"
PAINTED = f"{PARTS}/painted"
OLDER = "windows"
"""Where painted windows lay in PARTS when two groups could share a name, and calls noise: nothing there is taken up."""
PACKED = 0.75
"""What deflate leaves of imagery, about, overviews and masks counted."""


@dataclass(frozen=True)
class SceneReport:
    """What was done for one scene."""

    folder: Path
    num_events: int
    changed: float
    """Share of known ground."""
    seconds: float
    """Of this call; 0 where all was there."""
    num_tiles: int = 0
    """Training pairs cut from it, where they are asked for."""


@dataclass(frozen=True)
class SceneDryRun:
    """What a run would make of one scene."""

    key: str
    height: int
    width: int
    num_events: int
    changed: float
    windows: int
    seconds: float
    num_bytes: int
    scratch: int
    """Bytes on disk until it is finished."""
    finished: bool = False
    """All is there: no window is left, no second and no byte."""


def generate_scenes(options: SceneOptions, progress: Progress = silent) -> list[SceneReport]:
    """Make, or finish, every scene in ``options.out``.

    Raises :class:`InputError` for what the user gave wrong, and :class:`ShortfallError`, after writing all scenes, if
    fewer changes found a place than were asked for. SIGTERM ends the run after the windows that are being painted, with
    :class:`KeyboardInterrupt`; the same call goes on from there.
    """
    scenes, info = _opened(options)
    reports, missing = [], []
    with polite_stop() as stop:
        for files, image in scenes:
            store = LocalStore(options.out / files.key)
            leases = Leases(store)
            with leases.renewed(), leases.waited_for("scene", lambda: False):
                remove_leftovers(store.root)
                report, shortfall = _scene(options, (files, image), info, store, stop, progress)
                tiles = _tiles(options, (files, image), info, store)
            leases.sweep()
            with suppress(OSError):  # others hold leases, or it is no folder of leases alone
                (store.root / "leases").rmdir()
            reports.append(replace(report, num_tiles=tiles))
            missing += [shortfall] if shortfall else []
    if missing:
        raise ShortfallError("; ".join(missing))
    return reports


def _opened(options: SceneOptions) -> tuple[list[tuple[SceneFiles, SceneImage]], ModelInfo]:
    """All scenes with their headers, before anything is written."""
    options.check()
    if options.events_format == "gpkg":
        require_libraries()
    info = read_info(find_model(options.model))
    unknown = sorted(set(options.events.objects) - {*info.legend.names})
    require(not unknown, "events.objects", unknown, ", ".join(info.legend.names))
    source = options.of_source(info.bands, info.stretch)
    scenes = [(files, open_image(files.image, source, info.num_bands)) for files in find_scenes(options)]
    idle = [set(idle_options(files, image, options.max_megapixels)) for files, image in scenes]
    for name in sorted(set.intersection(*idle)):
        what = "with a raster on another grid than its image" if name == "resample_mask" else "with masks of polygons"
        require(getattr(options, name) in (None, False), name, getattr(options, name), what)
    for files, image in scenes:
        if options.events_format == "gpkg" and image.facts.crs is None:
            raise SourceError(f"{files.image}: has no CRS; events_format is 'gpkg'; allowed: geojson")
        if options.tiles is not None:
            _cut_of(options).check(image)
    return scenes, info


def _scene(
    options: SceneOptions,
    scene: tuple[SceneFiles, SceneImage],
    info: ModelInfo,
    store: LocalStore,
    stop: threading.Event,
    progress: Progress,
) -> tuple[SceneReport, str]:
    """One scene, and what is missing in it."""
    files, image = scene
    settings = settings_of(options, files, image, info, store)
    done = _done(store)
    if done is not None:
        return SceneReport(store.root, done["events"], done["changed"], 0.0), done["missing"]
    started = time.perf_counter()
    save_settings(settings, store)
    pipeline = None if (store.root / T2).is_file() else _pipeline_for(options, image, settings, store)
    prepared = prepare(options, files, image, info, store, progress)
    _write_masks(prepared, store.root, store.root / PARTS)
    _write_images(pipeline, prepared, settings, store, stop, progress)
    features = list(_events(prepared, world=True))
    _write_events(options.events_format, prepared, features, store)
    for name, content in descriptions.styles(info.legend).items():
        store.put(name, content)
    plan = prepared.plan
    changed = plan.changed / plan.known
    facts = _facts(prepared, changed)
    shown = {"model": options.model, "model_hash": settings.model_hash, "seed": settings.seed}
    made = {**shown, "sampling": settings.sampling, "machine": settings.machine, "finishing": settings.finishing}
    made |= {"legend_map": prepared.legend_map, "versions": settings.versions}
    report = scene_report(store.root, info.legend, image.bands, image.normalisation, features, facts, made)
    store.put("report.html", report)
    names = descriptions.out_names(options.events_format)
    extra = {"changeanywhere:events": len(plan.events), "changeanywhere:changed_share": round(changed, 6)}
    store.put("item.json", descriptions.stac_item(files.key, image, names, extra))
    missing = _shortfall(settings, plan, store)
    _finish(store, {"events": len(plan.events), "changed": changed, "missing": missing})
    return SceneReport(store.root, len(plan.events), changed, time.perf_counter() - started), missing


def _cut_of(options: SceneOptions) -> Cut:
    return Cut(options.tiles or 0, cast(Literal["png", "geotiff"], options.image_format))  # says check


def _tiles(options: SceneOptions, scene: tuple[SceneFiles, SceneImage], info: ModelInfo, store: LocalStore) -> int:
    """Cut a finished scene where it is asked for: how it is cut may change without painting it again."""
    if options.tiles is None:
        return 0
    settings, events = settings_of(options, *scene, info, store), load_events(store)
    return cut_tiles(store.root, _cut_of(options), scene[1], info.legend, events, settings, options.model)


def _shortfall(settings: SceneSettings, plan: ScenePlan, store: LocalStore) -> str:
    """What of the change that was asked for found no place; empty: nothing. Of pixels, what is missing must be more
    than the last event that would have been too small."""
    by_area = settings.quotas is None or settings.quotas["num_events"] is None
    least = SLACK * (plan.changed + plan.missing) if by_area else 0
    found = [f"{plan.missing} {'px' if by_area else 'events'} of change"] if plan.missing > least else []
    for text, (made, wanted) in plan.missing_pairs.items():
        found.append(f"{wanted - made} of {wanted} events of class_pairs {text!r}")
    return f"{store.root}: {', '.join(found)} found no place" if found else ""


def _done(store: LocalStore) -> dict[str, Any] | None:
    """What is said of a finished scene; None where it, or one of its files, is missing."""
    try:
        content, _ = unsealed(store.get(DONE))
        return content if all(store.exists(name) for name in content["files"]) else None
    except (OSError, ValueError, KeyError):
        return None


def _finish(store: LocalStore, facts: dict[str, Any]) -> None:
    shutil.rmtree(store.root / PARTS, ignore_errors=True)
    names = [n for n in store.list() if n not in (DONE, "scene.json") and not n.startswith(("leases/", "tiles/"))]
    store.keep(names)
    store.put(DONE, sealed({**facts, "files": {name: file_hash(store.root / name) for name in names}}, indent=1))
    store.keep([DONE])


def _pipeline_for(
    options: SceneOptions, image: SceneImage, settings: SceneSettings, store: LocalStore
) -> ChangePairPipeline:
    """The networks, on the device that the scene was begun on; :class:`ConfigError` for what cannot be painted, before
    a plan is made that settings would have to agree with."""
    from changeanywhere.diffusion.pipeline import ChangePairPipeline, find_device
    from changeanywhere.scenes.paint import check_painting

    device = options.device or settings.machine["device"]
    try:
        find_device(device)
    except ConfigError as error:
        if options.device:
            raise
        raise OutputError(
            f"{store.root}: was begun on device {device!r}, which this machine or its PyTorch does not have; finish it "
            "where there is one, or give another --out"
        ) from error
    pipeline = ChangePairPipeline.from_pretrained(options.model, device, settings.machine["dtype"])
    check_painting(pipeline, image, settings)
    return pipeline


def _write_images(
    pipeline: ChangePairPipeline | None,
    prepared: Prepared,
    settings: SceneSettings,
    store: LocalStore,
    stop: threading.Event,
    progress: Progress,
) -> None:
    """Both dates; without ``pipeline`` the second is there. What is whole already is left alone."""
    from changeanywhere.painters.diffusion import settled
    from changeanywhere.scenes.paint import lanes_of, raster_of, write_t2
    from changeanywhere.scenes.work import Parts

    root, scratch, image = store.root, store.root / PARTS, prepared.image
    if not (root / "t1.tif").is_file():
        with cog(root / "t1.tif", raster_of(image, settings, 1), scratch) as writer:
            for window in strips(image.shape):
                valid = image.valid(window)
                whole = np.ones((window.height, window.width), bool) if valid is None else valid
                rows = image.read(window, image.all_bands)
                writer.put(window.row, rows, whole if image.facts.hides_ground else None)
    if pipeline is not None:
        shutil.rmtree(scratch / OLDER, ignore_errors=True)
        with settled(lanes_of(settings).threads), cog(root / T2, raster_of(image, settings, 2), scratch) as writer:
            write_t2(pipeline, prepared, settings, writer, Parts(store, PAINTED), stop, progress)


def _write_masks(prepared: Prepared, root: Path, scratch: Path) -> None:
    image, legend = prepared.image, prepared.legend

    def raster(nodata: float | None, colours: Legend | None) -> Raster:
        return Raster(*image.shape, 1, "uint8", image.georef, nodata, colours)

    for name, mask in zip(("mask_t1.tif", "mask_t2.tif"), prepared.masks, strict=True):
        if not (root / name).is_file():
            with cog(root / name, raster(0, legend), scratch) as writer:
                for window in strips(image.shape):
                    writer.put(window.row, np.asarray(mask[window.slices])[..., None])
    if not (root / "change.tif").is_file():
        with cog(root / "change.tif", raster(None, None), scratch) as writer:
            for window in strips(image.shape):
                writer.put(window.row, prepared.changed[window.slices].astype(np.uint8)[..., None] * 255)


def _events(prepared: Prepared, world: bool) -> Any:
    return descriptions.event_features(
        prepared.plan.events, prepared.masks, prepared.image, prepared.legend, world=world
    )


def _write_events(kind: str, prepared: Prepared, features: Sequence[descriptions.Feature], store: LocalStore) -> None:
    if kind == "geojson":
        store.put("events.geojson", descriptions.geojson(iter(features)))
        return
    georef = prepared.image.georef
    assert georef is not None
    scratch = store.root / PARTS / "events.gpkg"
    scratch.unlink(missing_ok=True)
    write_gpkg(scratch, "events", _events(prepared, world=False), georef.crs)
    store.put("events.gpkg", scratch.read_bytes())


def _facts(prepared: Prepared, changed: float) -> list[tuple[str, str]]:
    height, width = prepared.image.shape
    gsd = prepared.image.gsd_m
    facts = [(f"{width} × {height}", "px"), (f"{len(prepared.plan.events)}", "events"), (f"{changed:.2%}", "changed")]
    facts.append((descriptions.place_of(prepared.image.georef), "CRS"))
    return facts + ([(f"{gsd:.3g} m", "ground sampling")] if gsd is not None else [])


def dry_run_scenes(options: SceneOptions, progress: Progress = silent) -> list[SceneDryRun]:
    """Plan every scene, paint a few windows of each, and extrapolate; nothing is left behind. A scene that is finished
    is neither planned nor painted, and needs no device."""
    from changeanywhere.painters.diffusion import settled
    from changeanywhere.scenes.paint import estimate, lanes_of

    scenes, info = _opened(options)
    found = []
    for files, image in scenes:
        store = LocalStore(options.out / files.key)
        settings = settings_of(options, files, image, info, store)
        height, width = image.shape
        done = _done(store)
        if done is not None:
            found.append(SceneDryRun(files.key, height, width, done["events"], done["changed"], 0, 0.0, 0, 0, True))
            continue
        pipeline = _pipeline_for(options, image, settings, store)
        scratch_folder = tempfile.TemporaryDirectory(prefix="changeanywhere-dry-run-")
        with scratch_folder as folder, settled(lanes_of(settings).threads):
            prepared = prepare(options, files, image, info, LocalStore(folder), progress)
            windows, seconds, scratch = estimate(pipeline, prepared, settings)
            plan = prepared.plan
        one = height * width * image.facts.count * np.dtype(image.facts.dtype).itemsize
        found.append(
            SceneDryRun(
                files.key,
                height,
                width,
                len(plan.events),
                plan.changed / plan.known,
                windows,
                seconds,
                int(2 * PACKED * one) + height * width // 20,
                scratch + one + 2 * height * width,
            )
        )
    return found
