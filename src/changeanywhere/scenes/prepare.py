"""A scene before it is painted: its land cover of both dates on the image's grid, and its events. No torch here.

OUT/SCENE/parts/mask_t1.npy, mask_t2.npy    uint8 [H, W], mapped from disk
OUT/SCENE/plan.json                         events, and the hash of the second mask
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import OutputError, SourceError
from changeanywhere.legend import Legend, Mask
from changeanywhere.models.info import ModelInfo
from changeanywhere.plain import to_plain
from changeanywhere.progress import Progress
from changeanywhere.sample import ChangeEvent, change_mask_of
from changeanywhere.scenes.inputs import SceneFiles, SceneImage, read_land_cover, strips
from changeanywhere.scenes.options import SceneOptions
from changeanywhere.scenes.planning import ScenePlan, events_of, given_events, plan_scene
from changeanywhere.scenes.settings import quotas_of
from changeanywhere.seals import sealed, unsealed
from changeanywhere.storage import LocalStore, file_hash

PLAN = "plan.json"
PARTS = "parts"
MASKS = ("mask_t1", "mask_t2")


@dataclass(frozen=True)
class Prepared:
    """A scene that is ready to be painted."""

    files: SceneFiles
    image: SceneImage
    legend: Legend
    masks: tuple[Mask, Mask]
    changed: npt.NDArray[np.bool_]
    plan: ScenePlan
    legend_map: dict[str, str]


def prepare(
    options: SceneOptions, files: SceneFiles, image: SceneImage, info: ModelInfo, store: LocalStore, progress: Progress
) -> Prepared:
    """Masks and plan, as they lie in ``store`` or made now. Raises :class:`SourceError` and :class:`LegendError`."""
    begun = _load(store)
    if begun is not None:
        masks = tuple(np.load(_place(store, name), mmap_mode="r") for name in MASKS)
        pairs = {text: (made, wanted) for text, (made, wanted) in begun.get("missing_pairs", {}).items()}
        plan = ScenePlan(events_of(begun["events"]), begun["known"], begun["changed"], begun["missing"], pairs)
        first, second = masks
        return Prepared(files, image, info.legend, (first, second), _changed(first, second), plan, begun["legend_map"])
    first, second = (_new(store, name, image.shape) for name in MASKS)
    legend_map = read_land_cover(files.mask, image, info.legend, options, first)
    if not first.any():
        raise SourceError(f"{files.mask}: no pixel of the image has a known class")
    if files.mask_t2 is not None:
        read_land_cover(files.mask_t2, image, info.legend, options, second)
        for window in strips(image.shape):  # where one date is unknown, nothing changes and date 1 is what is known
            part = second[window.slices]
            np.copyto(part, first[window.slices], where=(part == 0) | (first[window.slices] == 0))
        events = tuple(given_events(first, second))
        known, changed = (int(sum(np.count_nonzero(part) for part in parts)) for parts in _counted(first, second))
        plan = ScenePlan(events, known, changed, 0)
    else:
        second[...] = first
        quotas, place = quotas_of(options), (options.seed, image.gsd_m)
        plan = plan_scene(first, second, info.legend, options.events, quotas, place, progress)
    for mask in (first, second):
        mask.flush()
    _save(store, plan, legend_map)
    return Prepared(files, image, info.legend, (first, second), _changed(first, second), plan, legend_map)


def _counted(first: Mask, second: Mask) -> tuple[list[npt.NDArray[np.bool_]], list[npt.NDArray[np.bool_]]]:
    windows = strips((first.shape[0], first.shape[1]))
    known = [first[window.slices] != 0 for window in windows]
    return known, [change_mask_of(first[window.slices], second[window.slices]) for window in windows]


def _changed(first: Mask, second: Mask) -> npt.NDArray[np.bool_]:
    changed = np.zeros(first.shape, bool)
    for window in strips((first.shape[0], first.shape[1])):
        changed[window.slices] = change_mask_of(first[window.slices], second[window.slices])
    return changed


def _place(store: LocalStore, name: str) -> Path:
    return store.root / PARTS / f"{name}.npy"


def _new(store: LocalStore, name: str, shape: tuple[int, int]) -> np.memmap[Any, np.dtype[np.uint8]]:
    place = _place(store, name)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)  # mapped by another process it stays whole for that one
    created: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(place, "w+", np.uint8, shape)
    return created


def _save(store: LocalStore, plan: ScenePlan, legend_map: dict[str, str]) -> None:
    hashes = {name: file_hash(_place(store, name)) for name in MASKS}
    content = to_plain(plan)
    if not plan.missing_pairs:  # plans of which nothing is missing are what they were before this was kept
        del content["missing_pairs"]
    store.put(PLAN, sealed({**content, "legend_map": legend_map, "masks": hashes}))


def load_events(store: LocalStore) -> tuple[ChangeEvent, ...]:
    """Of a finished scene. :class:`OutputError` where its plan is damaged."""
    try:
        return events_of(unsealed(store.get(PLAN))[0]["events"])
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{store.describe(PLAN)}: damaged ({error}); give another --out") from error


def _load(store: LocalStore) -> dict[str, Any] | None:
    """The plan, if it is whole and of the masks that lie there; else it is made again, with the same result."""
    try:
        content, _ = unsealed(store.get(PLAN))
        if any(file_hash(_place(store, name)) != content["masks"][name] for name in MASKS):
            return None
    except (OSError, ValueError, KeyError):
        return None
    return content
