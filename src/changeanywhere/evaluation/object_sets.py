"""Sets of objects as they are looked at: painted ones of pairs, real ones of a source, these through a first stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from changeanywhere.diffusion.pipeline import ChangePairPipeline, to_uint8
from changeanywhere.errors import PairsError
from changeanywhere.evaluation.distances import Array
from changeanywhere.evaluation.objects import Spot, crops, find_spots, readings, seams
from changeanywhere.evaluation.reading import Extractor, Image, Reader
from changeanywhere.evaluation.scores import Mask
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.progress import Progress, silent
from changeanywhere.sample import ChangePair, in_8_bits, rgb8
from changeanywhere.seeds import stream
from changeanywhere.sources import Source

MAX_TILES = 1000
"""Real tiles to look at, evenly spaced: they are held in memory."""
MAX_OBJECTS = 240
"""Objects of one class to look at, drawn at random."""

Shown = tuple[Image, Mask, npt.NDArray[np.bool_] | None, tuple[str, ...], str]
"""Image, mask, where an object may be (None: anywhere), places, scene."""


@dataclass(frozen=True)
class ObjectSet:
    """Tiles with their objects. ``places``: per tile its key, then other tiles whose pixels are in it."""

    images: Mapping[int, Image]
    masks: Sequence[Mask]
    read: Mapping[int, Mask] | None
    """What the judge read, where there is one."""
    places: Sequence[tuple[str, ...]]
    scenes: Sequence[str]
    spots: Sequence[Spot]


@dataclass(frozen=True)
class Looked:
    """What was measured on ``N`` objects; places and scenes are those of their tiles."""

    classes: npt.NDArray[np.integer]
    whole: Array
    """Features of the whole crop ``[N, 1280]``."""
    alone: Array
    """Features of the object on grey ``[N, 1280]``."""
    seam: Array
    """NaN where an object is too small to have a seam ``[N]``."""
    reading: Array | None
    """Share of its px read as its class ``[N]``."""
    places: Sequence[tuple[str, ...]]
    scenes: Sequence[str]

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def tiles(self) -> npt.NDArray[np.str_]:
        """The tile of each."""
        return np.array([place[0] for place in self.places], str)

    def only(self, chosen: npt.NDArray[np.integer]) -> Looked:
        """Those of these numbers."""
        return Looked(
            self.classes[chosen],
            self.whole[chosen],
            self.alone[chosen],
            self.seam[chosen],
            None if self.reading is None else self.reading[chosen],
            [self.places[i] for i in chosen],
            [self.scenes[i] for i in chosen],
        )


def look(objects: ObjectSet, spots: Sequence[Spot], features: Extractor) -> Looked:
    """Measure ``spots``, at least one, on the images of ``objects``."""
    return Looked(
        np.array([spot.class_index for spot in spots]),
        features(crops(objects.images, spots, alone=False)),
        features(crops(objects.images, spots, alone=True)),
        seams(objects.images, objects.masks, spots),
        None if objects.read is None else readings(objects.read, spots),
        [objects.places[spot.tile] for spot in spots],
        [objects.scenes[spot.tile] for spot in spots],
    )


class RealObjects:
    """Objects of the tiles of a source, as they are (``raw``) and through a model's first stage (:meth:`decoded`)."""

    def __init__(self, source: Source, judge: Reader | None, seed: int, progress: Progress = silent) -> None:
        self.source, self._judge, self._seed, self._progress = source, judge, seed, progress
        evenly = np.linspace(0, len(source) - 1, min(MAX_TILES, len(source)))
        self._numbers = [int(i) for i in np.unique(evenly.astype(int))]
        self._decoded: ObjectSet | None = None

    @cached_property
    def raw(self) -> ObjectSet:
        """All that are there, of :data:`MAX_TILES` tiles at most."""
        return gather(self._tiles(), self._judge, self._seed)

    def decoded(self, pipe: ChangePairPipeline) -> ObjectSet:
        """The same objects, their tiles encoded and decoded as the model does it, nothing painted; made once."""
        if self._decoded is None:
            images = {}
            for tile, number in enumerate(self._numbers):
                pixels = torch.from_numpy(self.source.read(number).pixels()).permute(2, 0, 1)[None]
                images[tile] = to_uint8(pipe.decode(pipe.encode(pixels))[:, :3])[0]
                self._progress("through the first stage", len(images), len(self._numbers))
            self._decoded = replace(self.raw, images=images, read=_read(images, self._judge))
        return self._decoded

    def _tiles(self) -> Iterator[Shown]:
        for done, number in enumerate(self._numbers, 1):
            sample = self.source.read(number)
            image = in_8_bits(sample.pixels()[..., :3])
            self._progress("real objects", done, len(self._numbers))
            yield image, sample.mask, None, (sample.item.key,), sample.item.scene


def painted_objects(
    dataset: PairDataset, max_pairs: int, judge: Reader | None, seed: int, progress: Progress = silent
) -> ObjectSet:
    """What changed ground became in the painted image of each pair: at most :data:`MAX_OBJECTS` of a class."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, max_pairs).astype(int))

    def tiles() -> Iterator[Shown]:
        for done, number in enumerate(chosen, 1):
            pair = readable(dataset[int(number)])
            progress("painted objects", done, len(chosen))
            record = pair.metadata
            painted_first = record.get("real_date", 1) != 1
            mask = pair.mask_t1 if painted_first else pair.mask_t2
            assert mask is not None
            if pair.change_mask.any():
                image = pair.image_t1 if painted_first else pair.image_t2
                yield image, mask, pair.change_mask, places_of(record, pair.key), str(record.get("scene", pair.key))

    objects = gather(tiles(), judge, seed)
    rng = stream("evaluation.objects", seed, 1)
    spots: list[Spot] = []
    for class_index in sorted({spot.class_index for spot in objects.spots}):
        of_class = [spot for spot in objects.spots if spot.class_index == class_index]
        spots += [of_class[i] for i in sorted(rng.permutation(len(of_class))[:MAX_OBJECTS])]
    return replace(objects, spots=spots)


def places_of(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Its tile, then the tiles of its donors, by a line of metadata; a pair that says nothing is its own place."""
    donors = [donor["key"] if isinstance(donor, Mapping) else donor for donor in record.get("donors", ())]
    return str(record.get("source_key", key)), *map(str, donors)  # first editions list keys alone


def readable(pair: ChangePair, masks: bool = True) -> ChangePair:
    """With images uint8 ``[H, W, 3]``, and sure to have semantic ``masks``; ignored ground is unknown in them."""
    if masks and (pair.mask_t1 is None or pair.mask_t2 is None):
        raise PairsError(f"{pair.key}: has no semantic masks (label1/, label2/); they are what is evaluated")
    first, second = rgb8(pair)
    pair = replace(pair, image_t1=first, image_t2=second)
    if pair.ignored is None:
        return pair
    known = ~pair.ignored
    mask_t1, mask_t2 = (None if mask is None else mask * known for mask in (pair.mask_t1, pair.mask_t2))
    return replace(pair, change_mask=pair.change_mask & known, mask_t1=mask_t1, mask_t2=mask_t2)


def gather(tiles: Iterable[Shown], judge: Reader | None, seed: int) -> ObjectSet:
    """Find the objects of ``tiles``, and have them read."""
    images, masks, places, scenes = {}, [], [], []
    spots: list[Spot] = []
    for number, (image, mask, where, place, scene) in enumerate(tiles):
        spots += find_spots(mask, number, stream("evaluation.objects", seed, 0, number), where)
        images[number] = image
        masks.append(mask)
        places.append(place)
        scenes.append(scene)
    return ObjectSet(images, masks, _read(images, judge), places, scenes, spots)


def _read(images: Mapping[int, Image], judge: Reader | None) -> dict[int, Mask] | None:
    if judge is None or not images:
        return None
    return dict(zip(images, judge(list(images.values())), strict=True))
