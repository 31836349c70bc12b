"""Test scenes stay apart: none in the other splits, none among unlabelled pairs, none behind a set that is pre-trained
on. Validation pairs are none of the training split, where the dataset itself says which they are. Unlabelled pairs that
the training split has already are passed over: they would be learned from twice.

Images are known again by their decoded pixels, whatever container and name they have now. A scene whose pixels were
changed (painted, disturbed, cut otherwise) is known by its name, where names tell: the record of a generated pair has
its tile, scene and donors. Detectors that were handed in do not say what they have seen: of them nothing is known.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from changeanywhere.benchmark.content import facts_of
from changeanywhere.benchmark.statistics import without_offsets
from changeanywhere.documents import DocumentError, read_json_object
from changeanywhere.errors import ConfigError
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.pairs.unlabelled import image_of
from changeanywhere.storage import atomic_write
from changeanywhere.terminal import say

SEEN = "apart.json"
"""File in OUT: which sets were looked through, by what they held then; so that it is done once."""

BLANK = (None,)
"""What a pair is known by of which a date shows nothing: many may, and none is another."""


@dataclass(frozen=True)
class Held:
    """What nobody may learn from."""

    split: str
    images: dict[str, Path]
    """Hash of pixels → file."""
    names: dict[str, str]
    """Name of a pair or of its scene → the pair; none where pairs of the training split bear one of them: then names
    do not tell one ground from another."""


@dataclass(frozen=True)
class Looked:
    """A set that arms learn from."""

    what: str
    pairs: PairDataset
    by_record: bool
    """Whether only records say which scenes are in it (a set made of others), or the names of its own files too."""
    against: tuple[str, ...] = ("test",)
    """The splits of which it must hold nothing."""
    names: bool = True
    """Whether names are looked at; those of the training split are what they are held against."""


Hash = Callable[[Path, float | None], str | None]
"""As :func:`pixel_hash`."""


def held_of(split: str, pairs: PairDataset, train: PairDataset, hash_of: Hash) -> Held:
    """What the images and the names of a split are known by."""
    images = {
        found: file
        for number in range(len(pairs))
        for file in pairs.images_of(number)
        if (found := hash_of(file, pairs.max_megapixels)) is not None
    }
    told = {name: pairs.key_of(n) for n in range(len(pairs)) for name in _names_in(pairs.key_of(n))}
    own = {name for number in range(len(train)) for name in _names_in(train.key_of(number))}
    return Held(split, images, {} if own & told.keys() else told)


def pixel_hash(file: Path, max_megapixels: float | None) -> str | None:
    """Of shape, type and values of an image; None of one that shows nothing (all of one value), as many may."""
    image, _ = image_of(file, max_megapixels)
    if image.min() == image.max():
        return None
    digest = hashlib.sha256(repr((image.shape, image.dtype.str)).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _names_in(key: str) -> set[str]:
    """Of a pair or a tile, and of its scene: without folders and dates before it. Numbers alone name nothing."""
    name = re.split(r"/|__", key)[-1]
    return {each for each in (name, without_offsets(name)) if each and re.search(r"[^\W\d_]", each)}


def _told(looked: Looked, number: int) -> set[str]:
    """Names of the scenes that are in a pair, as far as it says so."""
    record, found = looked.pairs.record_of(number), set[str]()
    donors = record.get("donors")
    listed = donors if isinstance(donors, list) else []
    first = [donor.get("key") if isinstance(donor, Mapping) else donor for donor in listed]  # or the keys alone
    keys = [record.get("source_key"), record.get("scene"), *first]
    for key in keys if looked.by_record else [*keys, looked.pairs.key_of(number)]:
        found |= _names_in(key) if isinstance(key, str) else set()
    return found


def _refuse(held: Sequence[Held], looked: Looked, hash_of: Hash) -> None:
    for number in range(len(looked.pairs)):
        for one in held if looked.names else ():
            for name in sorted(_told(looked, number) & one.names.keys()) if one.names else ():
                where = looked.pairs.images_of(number)[0]
                raise ConfigError(
                    f"{looked.what}: {where} is of {name}, as {one.names[name]} of the {one.split} split is; leave it "
                    "out (or, if it is other ground, rename it)"
                )
    for number in range(len(looked.pairs)):
        for file in looked.pairs.images_of(number):
            found = hash_of(file, looked.pairs.max_megapixels)
            for one in held:
                if found in one.images:
                    same = one.images[found]
                    said = f"is in the {one.split} split too" if same == file else f"is {same} of the {one.split} split"
                    raise ConfigError(f"{looked.what}: {file} {said}; leave it out")


def refuse_test_scenes(out: Path, splits: dict[str, PairDataset], looked: Sequence[Looked]) -> None:
    """Hold all of ``looked`` against ``splits`` (``train``, and what is held out), unless a run before has done so.

    :class:`ConfigError` naming the first image, or scene, that is in both.
    """
    before = _seen(out)
    train, known = splits["train"], dict[str, str]()
    hashes: dict[Path, str | None] = {}
    held: dict[str, Held] = {}

    def hash_of(image: Path, max_megapixels: float | None) -> str | None:
        if image not in hashes:  # what is held is looked at too, and no image is read twice
            hashes[image] = pixel_hash(image, max_megapixels)
        return hashes[image]

    for one in looked:
        known[one.what] = _state_of(one, [train, *(splits[name] for name in one.against)])
        if before.get(one.what) == known[one.what]:
            continue
        for name in one.against:
            if name not in held:
                held[name] = held_of(name, splits[name], train, hash_of)
        _refuse([held[name] for name in one.against], one, hash_of)
    if known:
        atomic_write(out / SEEN, (json.dumps(before | known, indent=1) + "\n").encode())


def each_once(out: Path, train: PairDataset, further: Sequence[tuple[str, PairDataset]]) -> list[PairDataset]:
    """Of each folder of ``further`` (name, pairs) those pairs that neither ``train`` nor a folder before it has, by the
    pixels of both dates; how many are passed over is said. A folder is looked through again when a file changes."""
    before, known, kept = _seen(out), dict[str, object](), list[PairDataset]()
    seen: set[tuple[str | None, ...]] = set()  # of pairs
    hashed: list[PairDataset] = []
    for number, (folder, pairs) in enumerate(further):
        others, what = [train, *(given for _, given in further[:number])], f"again in {folder}"
        state = _state_of(Looked(what, pairs, by_record=False), others)
        found = before.get(what)
        if not (isinstance(found, list) and found[:1] == [state]):
            for each in others[len(hashed) :]:
                seen |= {_pair_of(each, place) for place in range(len(each))} - {BLANK}
                hashed.append(each)
            found, own = [state], set(seen)
            for place, name in enumerate(pairs.names):
                pair = _pair_of(pairs, place)
                found += [name] if pair in own else []
                own |= {pair} - {BLANK}
        known[what] = found
        again = set(found[1:])
        if again:
            told = "are in the training split, or among unlabelled pairs before them; passed over"
            say(f"unlabelled {folder}: {len(again)} of {len(pairs)} pairs {told}")
        kept.append(pairs.subset([name for name in pairs.names if name not in again]) if again else pairs)
    if known:
        atomic_write(out / SEEN, (json.dumps(before | known, indent=1) + "\n").encode())
    return kept


def _pair_of(pairs: PairDataset, number: int) -> tuple[str | None, ...]:
    """:func:`pixel_hash` of both dates; :data:`BLANK` where one of them shows nothing."""
    found = tuple(pixel_hash(file, pairs.max_megapixels) for file in pairs.images_of(number))
    return BLANK if None in found else found


def _seen(out: Path) -> dict[str, object]:
    """What a run before noted; nothing where it cannot be believed."""
    try:
        return read_json_object(out / SEEN)
    except (OSError, DocumentError):
        return {}


def _state_of(looked: Looked, against: Sequence[PairDataset]) -> str:
    """Of what a set says of itself, and of all images, as a build tool looks: names, sizes, times."""
    digest = hashlib.sha256()
    for number in range(len(looked.pairs)):
        digest.update(repr(sorted(_told(looked, number))).encode())
    for pairs in (*against, looked.pairs):
        for number in range(len(pairs)):
            for file in pairs.images_of(number):
                digest.update(repr(facts_of(file)).encode())
        digest.update(b"|")
    return digest.hexdigest()[:16]
