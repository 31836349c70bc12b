"""Which images make a pair, and their pixels by window, as a detector reads them. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import PairsError
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.pairs.unlabelled import open_images
from changeanywhere.prediction.options import PredictOptions
from changeanywhere.rasters.facts import Facts, Valid, Window, raising
from changeanywhere.rasters.gate import alpha_of, inspect, read_image, read_stretch
from changeanywhere.rasters.ground import lies_elsewhere
from changeanywhere.sample import Normalisation


@dataclass(frozen=True)
class OpenPair:
    """Two images of the same ground, of which windows can be read."""

    key: str
    """"" where two images were named."""
    files: tuple[Path, Path]
    facts: tuple[Facts, Facts]
    bands: tuple[tuple[int, ...], tuple[int, ...]]
    stretches: tuple[Normalisation, Normalisation]

    @property
    def may_lack_ground(self) -> bool:
        """Whether a file says that some of its pixels show nothing, or is of a kind that can."""
        return any(
            facts.alpha is not None
            or facts.has_mask
            or facts.transparent is not None
            or facts.palette is not None
            or any(value is not None for value in facts.nodata)
            or facts.dtype.startswith("float")
            for facts in self.facts
        )

    def read(self, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], Valid | None]:
        """Both dates f32 ``[C, h, w]`` in [-1, 1], in steps of 8 bits as in training, what shows nothing as the dark
        end; and where both are valid."""
        images, valid = [], None
        for file, facts, bands, stretch in zip(self.files, self.facts, self.bands, self.stretches, strict=True):
            with raising(PairsError):
                image, seen = read_image(file, facts, window, bands)
            pixels = stretch.apply(stretch.filled(image, seen)).clip(-1, 1)
            if image.dtype != np.uint8:
                pixels = np.rint((pixels + 1) * 127.5).astype(np.float32) / 127.5 - 1
            images.append(np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32))
            if seen is not None:
                valid = seen if valid is None else valid & seen
        return images[0], images[1], valid


def open_pairs(options: PredictOptions, in_channels: int) -> tuple[int, Iterator[OpenPair]]:
    """How many pairs are asked for, and these, opened one after the other. :class:`PairsError` for what is none, and
    for two pairs of one name (a.jpg beside a.png), whose maps would lie in one place."""
    if len(options.inputs) == 2:
        date_1, date_2 = map(Path, options.inputs)
        return 1, iter([_opened("", (date_1, date_2), options, in_channels)])
    pairs = open_images(options.inputs[0], options.split, options.max_megapixels)
    first: dict[str, str] = {}
    for number, name in enumerate(pairs.names):
        other = first.setdefault(pairs.key_of(number), name)
        if other != name:
            raise PairsError(
                f"{pairs.folder}: {pairs.key_of(number)} names two pairs ({other}, {name}), of which one map would be "
                "left; rename one"
            )
    return len(pairs), _of_folder(pairs, options, in_channels)


def _of_folder(pairs: PairDataset, options: PredictOptions, in_channels: int) -> Iterator[OpenPair]:
    for number in range(len(pairs)):
        stretch = pairs.record_of(number).get("normalisation")
        own = Normalisation(tuple(stretch["low"]), tuple(stretch["high"])) if stretch else None
        yield _opened(pairs.key_of(number), pairs.images_of(number), options, in_channels, own)


def _opened(
    key: str, files: tuple[Path, Path], options: PredictOptions, in_channels: int, own: Normalisation | None = None
) -> OpenPair:
    with raising(PairsError):
        first, second = (inspect(file, options.max_megapixels) for file in files)
        sizes = [f"{facts.width}x{facts.height}" for facts in (first, second)]
        if sizes[0] != sizes[1]:
            raise PairsError(
                f"{files[1]}: {sizes[1]} px, {files[0]} has {sizes[0]}; allowed: both dates on one grid "
                f"(rio warp {files[1].name} OUT.tif --like {files[0].name})"
            )
        if lies_elsewhere(first, second):
            raise PairsError(
                f"{files[1]}: lies on other ground than {files[0]}; allowed: both dates on one grid "
                f"(rio warp {files[1].name} OUT.tif --like {files[0].name})"
            )
        bands = [
            _bands(file, facts, options.bands, in_channels) for file, facts in zip(files, (first, second), strict=True)
        ]
        stretches = [
            _of_set(file, numbers, own)
            if own is not None and facts.dtype != "uint8"
            else _stretch(file, numbers, options)
            for file, facts, numbers in zip(files, (first, second), bands, strict=True)
        ]
    return OpenPair(key, files, (first, second), (bands[0], bands[1]), (stretches[0], stretches[1]))


def _of_set(file: Path, bands: Sequence[int], own: Normalisation) -> Normalisation:
    """The entries of the set's stretch, which is in the order of its files' bands, for the bands that are read."""
    known = len(own.low)
    if max(bands) > known:
        read = ", ".join(map(str, bands))
        raise PairsError(
            f"{file}: bands {read} are read, its set has a stretch of {known}; allowed: --bands of 1 to {known}, or a "
            "set whose metadata.jsonl has a stretch of all bands"
        )
    return Normalisation(*(tuple(ends[band - 1] for band in bands) for ends in (own.low, own.high)))


def _stretch(file: Path, bands: Sequence[int], options: PredictOptions) -> Normalisation:
    return read_stretch(file, tuple(bands), options.stretch, options.max_megapixels)


def _bands(file: Path, facts: Facts, asked: tuple[int, ...] | None, in_channels: int) -> tuple[int, ...]:
    """The bands that are read: those asked for, the first ones, or a grey one three times."""
    there = [number for number in range(1, facts.count + 1) if number != alpha_of(file, facts)]
    if asked is not None:
        if len(asked) != in_channels or max(asked) > facts.count:
            raise PairsError(
                f"{file}: has {facts.count} band(s), bands is {list(asked)}; allowed: {in_channels} of them, which the "
                "detector reads"
            )
        return asked
    if len(there) < in_channels and in_channels == 3 and there:
        return (there[0],) * 3
    if len(there) < in_channels:
        raise PairsError(f"{file}: has {len(there)} band(s); the detector reads {in_channels}")
    return tuple(there[:in_channels])
