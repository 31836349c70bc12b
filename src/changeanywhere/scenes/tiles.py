"""Training pairs cut from a finished scene: a set in the layout that ``generate`` writes. No torch here.

OUT/SCENE/tiles/               A, B, label, label1, label2, list/, metadata.jsonl, …
OUT/SCENE/tiles/tiles.json     written last: side and format
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import OutputError, SourceError
from changeanywhere.legend import Legend, Mask
from changeanywhere.pairs.names import FileKinds
from changeanywhere.pairs.record import Finish, Origin, PairRecord, Provenance, record_of
from changeanywhere.pairs.writer import finalise, write_pair
from changeanywhere.rasters.facts import Window
from changeanywhere.rasters.ground import georef_of
from changeanywhere.rasters.tiff import opened
from changeanywhere.sample import (
    ChangeEvent,
    ChangePair,
    ChangePlan,
    Image,
    SourceItem,
    change_mask_of,
    in_8_bits,
    runs_of,
)
from changeanywhere.scenes.inputs import SceneImage
from changeanywhere.scenes.settings import SceneSettings
from changeanywhere.seals import sealed, unsealed
from changeanywhere.sources.files import read_info
from changeanywhere.storage import LocalStore

FOLDER = "tiles"
DONE = "tiles.json"
BEGUN = ".cut.json"
"""Written before the first tile: without it nothing is taken away from the folder."""
SPLIT = "train"
"""A scene is not divided; which scenes test a detector, their user knows."""
HOW = "is that of a whole scene, painted by a latent diffusion model and cut into tiles."


@dataclass(frozen=True)
class Cut:
    """What is asked of the tiles of a scene."""

    side: int
    image_format: Literal["png", "geotiff"]

    def check(self, image: SceneImage) -> None:
        """:class:`SourceError` for a scene that has no tile of this side, or whose bands the format does not take."""
        height, width = image.shape
        if self.side > min(height, width):
            raise SourceError(f"{image.path}: is {width}x{height} px; tiles is {self.side}; allowed: up to the shorter")
        if self.image_format == "png" and len(image.bands) != 3:
            raise SourceError(
                f"{image.path}: {len(image.bands)} band(s) are painted; image_format is 'png'; allowed: geotiff"
            )


def cut_tiles(
    scene: Path, cut: Cut, image: SceneImage, legend: Legend, events: Sequence[ChangeEvent], settings: SceneSettings,
    model: str,
) -> int:  # fmt: skip
    """Cut the finished rasters in ``scene`` into pairs of ``cut.side`` px from the upper left corner on; what of known
    ground a tile has none of is left out, and what the grid leaves over at the right and at the bottom. The number of
    pairs; those that are there already are not cut again, :class:`OutputError` where they were cut otherwise."""
    store = LocalStore(scene / FOLDER)
    asked = {"side": cut.side, "image_format": cut.image_format}
    there = _done(store)
    if there is not None:
        if {name: there[name] for name in asked} != asked:
            raise OutputError(
                f"{store.root}: was cut with side {there['side']}, {there['image_format']}, asked now: {cut.side}, "
                f"{cut.image_format}; delete this folder, and the same command cuts the scene anew"
            )
        return int(there["pairs"])
    _remove_cut_short(store)
    shared = Provenance(
        model.rstrip("/").rpartition("/")[2], settings.model_hash,
        {"sampling": settings.sampling, "machine": settings.machine, "finishing": settings.finishing},
        settings.versions,
    )  # fmt: skip
    tiles = _Tiles(scene, cut, image, legend, events, (settings.seed, shared))
    records = list(tiles.written(store))
    if not records:
        raise SourceError(f"{scene}: no tile of {cut.side} px has known ground in it; allowed: a smaller --tiles")
    finalise(store, legend, records, how=HOW)
    store.keep(name for record in records for name in record.files.values())
    store.put(DONE, sealed({**asked, "pairs": len(records)}, indent=1))
    store.keep([DONE])
    return len(records)


def _remove_cut_short(store: LocalStore) -> None:
    """What a run that was ended left, and say that what comes is of a run. :class:`OutputError` where anything else
    lies in its place."""
    found = store.list()
    if found and not store.exists(BEGUN):
        raise OutputError(
            f"{store.root}: holds {found[0]}, and no {BEGUN} says that tiles of the scene were cut here; move this "
            "folder away, and the same command cuts the scene"
        )
    shutil.rmtree(store.root, ignore_errors=True)
    store.put(BEGUN, b"{}\n")


def _done(store: LocalStore) -> dict[str, Any] | None:
    try:
        return unsealed(store.get(DONE))[0]
    except (OSError, ValueError):
        return None


class _Tiles:
    """Pairs of a scene, one after the other."""

    def __init__(
        self, scene: Path, cut: Cut, image: SceneImage, legend: Legend, events: Sequence[ChangeEvent],
        made: tuple[int, Provenance],
    ) -> None:  # fmt: skip
        self._scene, self._cut, self._image, self._legend, self._events = scene, cut, image, legend, events
        self._seed, self._made = made
        self._boxes = np.array([event.bbox for event in events], np.int64).reshape(-1, 4)
        self._files = {name: read_info(scene / f"{name}.tif", None) for name in ("t1", "t2")}

    def written(self, store: LocalStore) -> Iterator[PairRecord]:
        """Each pair with known ground, written, in the order of their keys."""
        height, width = self._image.shape
        side = self._cut.side
        for row in range(0, height - side + 1, side):
            for column in range(0, width - side + 1, side):
                window = Window(row, column, side, side)
                masks = self._mask("mask_t1", window), self._mask("mask_t2", window)
                if masks[0].any():
                    yield self._write(store, window, masks)

    def _write(self, store: LocalStore, window: Window, masks: tuple[Mask, Mask]) -> PairRecord:
        image, cut = self._image, self._cut
        key = f"{self._scene.name}_{window.row:05d}_{window.column:05d}"
        georef = georef_of(image.facts, window)
        change = change_mask_of(*masks)
        images, said = (self._pixels("t1", window), self._pixels("t2", window)), image.facts.meanings_of(image.bands)
        pair = ChangePair(key, *images, change, *masks, georef=georef, meanings=(said, said))
        write_pair(store, pair, self._legend, FileKinds(cut.image_format))
        plan = ChangePlan(masks[1], change, tuple(self._within(window, masks)), self._seed)
        item = SourceItem(key, self._scene.name, SPLIT, gsd_m=image.gsd_m)
        bands = tuple(str(band) for band in image.bands)
        origin = Origin(item, image.path.name, SPLIT, bands, image.normalisation)
        return record_of(pair, plan, self._legend, origin, Finish(), cut.image_format, self._made)

    def _within(self, window: Window, masks: tuple[Mask, Mask]) -> Iterator[ChangeEvent]:
        """Events of the scene that show in a window, as far as they do: boxes and areas are those of the part."""
        row, column, height, width = self._boxes.T
        meets = (row < window.row + window.height) & (row + height > window.row)
        meets &= (column < window.column + window.width) & (column + width > window.column)
        for number in np.flatnonzero(meets):
            event = self._events[int(number)]
            top, left = max(event.bbox[0] - window.row, 0), max(event.bbox[1] - window.column, 0)
            bottom = min(event.bbox[0] - window.row + event.bbox[2], window.height)
            right = min(event.bbox[1] - window.column + event.bbox[3], window.width)
            before, after = (mask[top:bottom, left:right] for mask in masks)
            shown = event.within((window.row + top, window.column + left, bottom - top, right - left))
            changed = shown.changed(before, after)
            if changed.any():
                rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
                box = (top + int(rows[0]), left + int(columns[0]), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)
                own = runs_of(changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
                yield replace(event, bbox=box, area=int(changed.sum()), donor=None, runs=own)

    def _mask(self, name: str, window: Window) -> npt.NDArray[np.uint8]:
        """Its numbers, not the colours of its table."""
        with opened(self._scene / f"{name}.tif") as raster:
            mask: npt.NDArray[np.uint8] = raster.read(1, window=tuple((s.start, s.stop) for s in window.slices))
        return mask

    def _pixels(self, name: str, window: Window) -> Image:
        """Of the painted bands: as they are (what was not imaged as the dark end), or in 8 bits by the scene's
        stretch."""
        view = replace(self._image, path=self._scene / f"{name}.tif", facts=self._files[name])
        if self._cut.image_format == "geotiff":
            return view.filled(window)
        return in_8_bits(view.pixels(window))
