"""The one source behind all layouts: files cut into tiles."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from changeanywhere.buckets import local_copy
from changeanywhere.errors import InputError, SourceError
from changeanywhere.legend import Legend, Mask
from changeanywhere.progress import Progress, silent
from changeanywhere.rasters.facts import Facts, Valid, Window
from changeanywhere.rasters.ground import georef_of, gsd_of, lies_elsewhere
from changeanywhere.rasters.values import PLAIN, to_stored
from changeanywhere.sample import GeoReference, Image, Normalisation, SourceItem, SourceSample
from changeanywhere.sources.alone import images_alone
from changeanywhere.sources.base import Source
from changeanywhere.sources.dates import NO_DATES, SECOND_MASKS, expected_second
from changeanywhere.sources.entries import Entry
from changeanywhere.sources.files import (
    read_image,
    read_info,
    read_mask,
    read_mask_info,
    read_stretch,
    read_valid,
)
from changeanywhere.sources.layouts import find_layout
from changeanywhere.sources.legends import legend_of
from changeanywhere.sources.options import DEFAULT_BANDS, DEFAULT_STRETCH, DEFAULT_TILE_SIZE, SourceOptions
from changeanywhere.sources.problems import Problems
from changeanywhere.sources.splits import chosen
from changeanywhere.sources.unchanged import Unchanged, changed


@dataclass(frozen=True)
class _Tile:
    entry: Entry
    window: Window


class TileSource(Source):
    """Images with masks, cut into tiles of ``options.tile_size``; opening reads headers only.

    With ``legend`` no masks are looked for: all ground is unknown, in that legend. ``dates``: what of a second date
    each tile must have, of :mod:`.dates`' NO_DATES, SECOND_IMAGES, SECOND_MASKS.
    """

    def __init__(
        self,
        root: Path,
        options: SourceOptions,
        masks: Path | None = None,
        progress: Progress = silent,
        legend: Legend | None = None,
        dates: str = NO_DATES,
    ) -> None:
        problems = Problems(options.on_error == "skip")
        layout = find_layout(root, problems, masks) if legend is None else images_alone(root, problems)
        self.root, self.name = root, layout.name
        self.legend, self._numbers = legend_of(root, options, layout) if legend is None else (legend, PLAIN)
        self._bands = options.bands or DEFAULT_BANDS
        self._stretch = options.stretch or DEFAULT_STRETCH
        self._tile_size = options.tile_size or DEFAULT_TILE_SIZE
        self._max_megapixels = options.max_megapixels
        self._unchanged = Unchanged()
        pairs, unplaced = [], []
        licensed = [e for e in layout.entries if options.licences is None or e.licence in options.licences]
        if layout.entries and not licensed:
            raise SourceError(f"{root}: no tile under the licences {', '.join(options.licences or ())}")
        for entry in licensed if options.splits is None else chosen(root, licensed, options.splits):
            try:
                info = self._check(entry)
                if dates != NO_DATES:
                    self._check_second(entry, info)
            except InputError as error:
                problems.add(error)
                continue
            if info.place_note:
                unplaced.append(f"{entry.image.name}: {info.place_note}")
            for key, window in _windows(entry, info, self._tile_size):
                gsd = entry.gsd_m if entry.gsd_m is not None else gsd_of(info, window)
                item = SourceItem(
                    key, entry.scene, entry.split, entry.licence, gsd, entry.attribution, entry.labelled_by
                )
                pairs.append((item, _Tile(entry, window)))
        if not pairs and problems.found:
            raise SourceError(f"{root}: no tile can be read; the first: {problems.found[0]}")
        pairs.sort(key=lambda pair: pair[0].key)
        self.unplaced = tuple(unplaced)
        self.items = tuple(item for item, _ in pairs)
        self._tiles = [tile for _, tile in pairs]
        for before, after in zip(self.items, self.items[1:], strict=False):
            if before.key == after.key:
                raise SourceError(f"{root}: two tiles would be called {after.key}; rename one of the files")
        if problems.skip:
            self._leave_out_unreadable(problems, progress, dates)
        self.skipped, self.passed = tuple(problems.found), problems.passed_over()

    def _leave_out_unreadable(self, problems: Problems, progress: Progress, dates: str) -> None:
        """Read every tile once, and what it must have of a second date."""
        good = []
        for index in range(len(self.items)):
            try:
                self.read(index)
                if dates != NO_DATES:
                    self.read_second(index)
                if dates == SECOND_MASKS:
                    self.read_second_mask(index)
                good.append(index)
            except InputError as error:
                problems.add(error)
            progress("checking tiles", index + 1, len(self.items))
        if not good:
            raise SourceError(f"{self.root}: no tile can be read; the first: {problems.found[0]}")
        self.items, self._tiles = tuple(self.items[i] for i in good), [self._tiles[i] for i in good]
        self.__dict__.pop("_of_image", None)  # numbers of tiles: others now

    def content_hash(self) -> str:
        seen = hashlib.sha256()
        for entry in {tile.entry.stem: tile.entry for tile in self._tiles}.values():
            size = self._unchanged.size(entry.image)
            mask = "" if entry.mask is None else self._unchanged.digest(entry.mask)
            seen.update(f"{entry.stem} {size} {mask}\n".encode())
        seen.update(json.dumps([self._bands, self._stretch]).encode())
        if not self._numbers.is_plain:
            seen.update(json.dumps([self._numbers.of_classes, self._numbers.ignored]).encode())
        return seen.hexdigest()[:16]

    def stored(self, mask: Mask) -> Mask:
        return to_stored(mask, self.legend, self._numbers)

    def read_mask(self, index: int) -> Mask:
        tile = self._tiles[index]
        info = self._info(tile, tile.entry.image)
        return self._mask(tile, read_valid(tile.entry.image, tile.window, self._bands, info))

    def _mask(self, tile: _Tile, valid: Valid | None) -> Mask:
        """Ground that was not imaged is unknown."""
        if tile.entry.mask is None:
            return np.zeros((tile.window.height, tile.window.width), np.uint8)
        info = self._info(tile, tile.entry.mask)
        mask = read_mask(tile.entry.mask, tile.window, self.legend, info, self._numbers)
        self._unchanged.check(tile.entry.mask)
        return mask if valid is None or valid.all() else np.where(valid, mask, 0).astype(np.uint8)

    def _info(self, tile: _Tile, path: Path) -> Facts:
        """Of a file that was sound when the source was opened, and may have been exchanged since."""
        info, window = read_info(path, self._max_megapixels), tile.window
        inside = window.row + window.height <= info.height and window.column + window.width <= info.width
        if not inside or (path == tile.entry.image and max(self._bands) > info.count):
            raise changed(path)
        return info

    def georef(self, index: int) -> GeoReference | None:
        tile = self._tiles[index]
        return georef_of(read_info(tile.entry.image, self._max_megapixels), tile.window)

    def read(self, index: int) -> SourceSample:
        tile = self._tiles[index]
        info = self._info(tile, tile.entry.image)
        normalisation = read_stretch(tile.entry.image, self._bands, self._stretch, self._max_megapixels)
        image, valid = self._image(tile, tile.entry.image, info, normalisation)
        return SourceSample(
            item=self.items[index],
            image=image,
            mask=self._mask(tile, valid),
            bands=tuple(str(band) for band in self._bands),
            normalisation=normalisation,
            georef=georef_of(info, tile.window),
            meanings=info.meanings_of(self._bands),
            valid=valid,
        )

    def read_second(self, index: int) -> SourceSample:
        tile, first = self._tiles[index], self.read(index)
        second = _second_of(tile.entry, self.root)
        info = self._info(tile, second)
        image, valid = self._image(tile, second, info, first.normalisation)
        if image.dtype != first.image.dtype:
            raise SourceError(f"{second}: {image.dtype}, the first date {tile.entry.image.name} is {first.image.dtype}")
        mask = first.mask if valid is None else np.where(valid, first.mask, 0).astype(np.uint8)
        return replace(first, image=image, mask=mask, date=2, meanings=info.meanings_of(self._bands), valid=valid)

    @cached_property
    def _of_image(self) -> dict[tuple[Path, Window], int]:
        return {(tile.entry.image, tile.window): index for index, tile in enumerate(self._tiles)}

    def read_second_mask(self, index: int) -> Mask:
        tile = self._tiles[index]
        second = _second_of(tile.entry, self.root)
        twin = self._of_image.get((second, tile.window))
        if twin is None:
            raise SourceError(
                f"{second}: the second date of {tile.entry.image.name} has no mask among the source's; "
                "`changeanywhere label` on the folder of both dates (A/ and B/) gives masks to both"
            )
        return self.read_mask(twin)

    def second_hash(self) -> str:
        seen = hashlib.sha256()
        for entry in {tile.entry.stem: tile.entry for tile in self._tiles}.values():
            second = self._check_second(entry, read_info(entry.image, self._max_megapixels))
            seen.update(f"{entry.stem} {self._unchanged.size(second)}\n".encode())
        return seen.hexdigest()[:16]

    def _check_second(self, entry: Entry, first: Facts) -> Path:
        """Size, bands and place of the second date, from the headers."""
        second = _second_of(entry, self.root)
        info = read_info(second, self._max_megapixels)
        _check_fit(second, info, entry.image, first, "its first date")
        if max(self._bands) > info.count:
            raise SourceError(f"{second}: has {info.count} band(s), asked for {list(self._bands)}")
        return second

    def _image(self, tile: _Tile, file: Path, info: Facts, normalisation: Normalisation) -> tuple[Image, Valid | None]:
        image, valid = read_image(file, tile.window, self._bands, info)
        self._unchanged.check(file)
        return normalisation.filled(image, valid), valid

    def _check(self, entry: Entry) -> Facts:
        """Sizes, bands, places and what a mask may be, from the headers."""
        image = read_info(entry.image, self._max_megapixels)
        if entry.mask is not None:
            _check_fit(entry.image, image, entry.mask, read_mask_info(entry.mask, self._max_megapixels))
        if max(self._bands) > image.count:
            raise SourceError(
                f"{entry.image}: has {image.count} band(s), asked for {list(self._bands)}; choose with bands"
            )
        size = self._tile_size
        if min(image.height, image.width) < size:
            raise SourceError(
                f"{entry.image}: {image.width}x{image.height} px is smaller than a tile of {size}x{size}; "
                "set tile_size to a multiple of 16 that fits"
            )
        return image


def _check_fit(image: Path, of_image: Facts, mask: Path, of_mask: Facts, what: str = "its mask") -> None:
    if (of_image.height, of_image.width) != (of_mask.height, of_mask.width):
        raise SourceError(
            f"{image}: {of_image.width}x{of_image.height} px, but {what} {mask.name} has "
            f"{of_mask.width}x{of_mask.height} px; they must be equal"
        )
    if lies_elsewhere(of_image, of_mask):
        raise SourceError(f"{mask}: lies elsewhere than its image {image.name} (CRS or transform differ)")


def _second_of(entry: Entry, root: Path) -> Path:
    if entry.second is None:
        raise SourceError(f"{entry.image}: no image of a second date; expected {expected_second(entry.image, root)}")
    return entry.second


def _windows(entry: Entry, info: Facts, size: int) -> list[tuple[str, Window]]:
    """Windows that cover the image; the last of each direction is shifted back inside."""
    if info.height == info.width == size:
        return [(entry.stem, Window(0, 0, size, size))]
    rows, columns = ([*range(0, length - size, size), length - size] for length in (info.height, info.width))
    return [
        (f"{entry.stem}_y{row:05d}_x{column:05d}", Window(row, column, size, size))
        for row in rows
        for column in columns
    ]


def open_source(
    root: Path | str,
    options: SourceOptions | None = None,
    masks: Path | None = None,
    progress: Progress = silent,
    dates: str = NO_DATES,
) -> Source:
    """Open a folder or address of single-date tiles, in any known layout: :class:`SourceError`, :class:`LegendError`.

    ``masks``: a folder of other masks for the same images (``generate --masks-t2``); images without one are left out.
    ``dates``: what of a second date each tile must have (:class:`TileSource`).
    """
    second = local_copy(masks) if masks else None
    return TileSource(local_copy(root), options or SourceOptions(), second, progress, dates=dates)


def open_images(root: Path | str, legend: Legend, options: SourceOptions | None = None) -> Source:
    """Open a folder of images whose masks do not matter or are missing: all ground unknown, in ``legend``.

    Raises :class:`SourceError`.
    """
    return TileSource(local_copy(root), options or SourceOptions(), legend=legend)
