"""Reads bi-temporal datasets: generated ones, and those of the field in their own folders (:mod:`.layouts`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from changeanywhere.buckets import local_copy
from changeanywhere.errors import ConfigError, EmptySplitError, PairsError
from changeanywhere.folders import composed, read_names
from changeanywhere.legend import Legend, Mask
from changeanywhere.pairs.hub import unpacked
from changeanywhere.pairs.kept import Kept
from changeanywhere.pairs.labels import OWN, SAMPLED, LabelReader, LabelRule, read_bands, read_ignored, without
from changeanywhere.pairs.layouts import (
    IMAGE_SUFFIXES,
    LAYOUTS,
    Layout,
    below,
    expected,
    layout_of,
    once,
    refuse_bands,
    split_folders,
)
from changeanywhere.pairs.masks import class_of_zero, legend_in, read_mask
from changeanywhere.pairs.metadata import Metadata, metadata_of
from changeanywhere.pairs.names import IGNORE_FOLDER
from changeanywhere.rasters.facts import Valid, raising
from changeanywhere.rasters.gate import inspect_whole, read_whole
from changeanywhere.rasters.ground import lies_elsewhere
from changeanywhere.rasters.values import PLAIN
from changeanywhere.regular import read_regular
from changeanywhere.sample import ChangePair, change_mask_of

RULES = {
    "masks": LabelRule("changed is where the masks of the two dates differ"),
    "classes": LabelRule("changed is where the masks of the two dates are of two classes; unknown ground is ignored"),
    "bands": LabelRule("changed is what was painted (band 1) and has another class (bands 2 and 3)"),
}
"""Of layouts whose labels are no change labels."""
Transform = Callable[[dict[str, Any]], Any]
"""Of the dictionaries that ``load_pairs(…, as_dict=True)`` hands out."""


class PairDataset:
    """Map-style dataset of :class:`ChangePair` (a torch ``DataLoader`` takes it); files are read at access."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        metadata: Metadata | None = None,
        layout: Layout = LAYOUTS[0],
        counted: Sequence[int] = (),
        max_megapixels: float | None = None,
    ) -> None:
        self.folder = folder
        self.names = tuple(names)
        self.max_megapixels = max_megapixels
        """Largest image that is read; None: the default of the readers."""
        self._metadata, self._layout, self._counted = metadata, layout, tuple(counted)
        self._files: dict[str, dict[str, Path]] = {}
        self.kept = Kept(0)
        """What those who read decode from the pairs, and want to have again; shared by all subsets."""
        self.legend, self.numbers = legend_in(folder) if layout.masks else (None, PLAIN)
        """Of the semantic masks, and what stands for its classes in their files; None where there are no masks, or
        nobody says what their numbers mean."""
        says = "classes" if layout.says == "masks" and self.legend else layout.says
        self._labels = LabelReader(
            self._some_labels,
            layout.names_classes,
            RULES.get(says, None if metadata is None else OWN),
            max_megapixels,
            lambda: class_of_zero(folder),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> ChangePair:
        name = self.names[index]
        layout = self._layout
        (first, valid), (second, valid_t2) = (
            _read(self._file(folder, name), self.max_megapixels) for folder in layout.images
        )
        change_mask, ignored, masks = self._changes(name)
        for what, array in {layout.images[1]: second, layout.change: change_mask, **masks}.items():
            if array.shape[:2] != first.shape[:2]:
                raise PairsError(
                    f"{self.folder / what / name}: {array.shape[:2]} px, image {layout.images[0]} has {first.shape[:2]}"
                )
        key, record = self.key_of(index), self.record_of(index)
        mask_t1, mask_t2 = (masks.get(folder) for folder in layout.masks or ("", ""))
        if self._counted:
            if mask_t1 is None or mask_t2 is None:
                raise PairsError(f"{self.folder}: {name} has no semantic masks; changes of some classes cannot be told")
            change_mask = change_mask & (np.isin(mask_t1, self._counted) != np.isin(mask_t2, self._counted))
        for seen in (valid, valid_t2):
            if seen is not None:  # no label holds where one of the dates shows nothing
                ignored = ~seen if ignored is None else ignored | ~seen
                change_mask = change_mask & seen
        return ChangePair(
            key, first, second, change_mask, mask_t1, mask_t2, record, ignored=ignored, seen=(valid, valid_t2)
        )

    def _changes(self, name: str) -> tuple[Valid, Valid | None, dict[str, Mask]]:
        """Changed ground, what is neither (None: nothing), and semantic masks by their folder, as far as there are."""
        layout, masks = self._layout, dict[str, Mask]()
        label = self._file(layout.change, name)
        if layout.says == "bands":
            return *read_bands(label, self.max_megapixels), masks
        # Numbers without names are nobody's classes: 0 may be unknown, unchanged, or one of them.
        for folder in layout.masks if layout.says == "masks" or self.legend else ():
            file = self.find(folder, name) if layout.says == "label" else self._file(folder, name)
            if file is not None:
                masks[folder] = read_mask(file, self.legend, self.numbers, self.max_megapixels)
        if layout.says == "label":
            return *self._known(name, *self._labels.read(label)), masks
        first, second = masks.values()
        if first.shape != second.shape:
            raise PairsError(f"{label}: {first.shape} px, the mask of date 2 has {second.shape}")
        if self.legend is None:
            return first != second, None, {}
        return *without(change_mask_of(first, second), (first == 0) | (second == 0)), masks

    def _known(self, name: str, changed: Valid, ignored: Valid | None) -> tuple[Valid, Valid | None]:
        """With the ground of which a set of ours says that no label speaks."""
        if not self._says_ignored:
            return changed, ignored
        unsaid = read_ignored(self._file(IGNORE_FOLDER, name), self.max_megapixels)
        if unsaid.shape != changed.shape:
            raise PairsError(f"{self.folder / IGNORE_FOLDER / name}: {unsaid.shape} px, its label has {changed.shape}")
        return without(changed, unsaid if ignored is None else ignored | unsaid)

    @property
    def _says_ignored(self) -> bool:
        return self._layout == LAYOUTS[0] and (self.folder / IGNORE_FOLDER).is_dir()

    def key_of(self, index: int) -> str:
        """The name of a pair."""
        return stem_of(self.names[index])

    def images_of(self, index: int) -> tuple[Path, Path]:
        """The files of both dates; :class:`PairsError` where one is missing."""
        first, second = (self._file(folder, self.names[index]) for folder in self._layout.images)
        return first, second

    def record_of(self, index: int) -> dict[str, Any]:
        """The line of the metadata; empty where there is none."""
        return self._metadata.of(self.key_of(index)) if self._metadata else {}

    @property
    def has_masks(self) -> bool:
        """Whether any pair has a file of a semantic mask, whatever its numbers mean."""
        return any(self.find(folder, name) for folder in self._layout.masks for name in self.names)

    def require_files(self) -> None:
        """:class:`PairsError` naming the first file that is missing, without opening one."""
        for name in self.names:
            for folder in (*self._layout.images, self._layout.change):
                self._file(folder, name)

    def lies_elsewhere(self, index: int) -> str:
        """Which file of a pair lies on other ground than its first image, by CRS and transform; empty for none."""
        first, *others = (
            self._file(folder, self.names[index]) for folder in (*self._layout.images, self._layout.change)
        )
        with raising(PairsError):
            facts = inspect_whole(first, self.max_megapixels)
            off = (file for file in others if lies_elsewhere(facts, inspect_whole(file, self.max_megapixels)))
            return next(map(str, off), "")

    @property
    def label_rule(self) -> str:
        """What values of labels were taken for changed, in words; :class:`PairsError` where they fit no rule."""
        return self._labels.told

    def _some_labels(self) -> list[Path]:
        """Evenly spaced over the set."""
        return [self._file(self._layout.change, name) for name in self.names[:: -(-len(self.names) // SAMPLED) or 1]]

    def keeping(self, mib: int) -> PairDataset:
        """The same pairs, with so many MiB of memory for what is decoded from them, in each process that reads."""
        other = self._like(self.names, self._counted)
        other.kept = Kept(mib)
        return other

    def subset(self, names: Sequence[str]) -> PairDataset:
        """The pairs of these names, in this order."""
        return self._like(names, self._counted)

    def listed(self, listing: Path, where: str) -> PairDataset:
        """The pairs that a text file names, a line each, with or without suffix; one that is named again is there once.
        :class:`ConfigError` for a file that cannot be read, is empty, or names what is not ``where``, in words."""
        try:
            names = read_names(listing)
        except OSError as error:
            raise ConfigError(f"{listing}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{listing}: not readable as UTF-8 ({error})") from error
        known = {stem_of(name): name for name in self.names} | {name: name for name in self.names}
        absent = [name for name in names if name not in known and stem_of(name) not in known]
        if absent or not names:
            raise ConfigError(f"{listing}: {f'{absent[0]} is not in {where}' if absent else 'is empty'}")
        return self.subset(once([known.get(name) or known[stem_of(name)] for name in names]))

    def _like(self, names: Sequence[str], counted: Sequence[int]) -> PairDataset:
        """Others of this set, under the rule of its labels: a few pairs may not tell it."""
        other = PairDataset(self.folder, names, self._metadata, self._layout, counted, self.max_megapixels)
        other._labels = self._labels
        other.kept = self.kept if tuple(counted) == self._counted else Kept(0)
        return other

    def counting(self, classes: Sequence[str]) -> PairDataset:
        """The same pairs, in which only what becomes, or ceases to be, one of ``classes`` counts as changed.

        LEVIR-CD and WHU-CD label buildings alone, whatever else changes around them. :class:`LegendError` for a name
        that is not in the set's ``legend.json``, :class:`PairsError` where there is none.
        """
        file = self.folder / "legend.json"
        if not file.is_file():
            raise PairsError(f"{file}: missing; without a legend, changes of {', '.join(classes)} cannot be told")
        legend = Legend.load(file)
        counted = [legend.index_of(name) for name in classes]
        return self._like(self.names, counted)

    def content_hash(self) -> str:
        """Of names in their order, labels and masks by their bytes, images by their size, and what counts as changed:
        16 hexadecimal digits. Changes when labels are corrected."""
        digest = hashlib.sha256(repr((self._layout.change, self._counted)).encode())
        if not self.numbers.is_plain:
            digest.update(repr(self.numbers).encode())
        if self._layout.says == "masks" and self.legend:  # it says what is changed, and what nobody knows
            digest.update(repr(self.legend.classes).encode())
        for name in self.names:
            digest.update(name.encode())
            digest.update(repr([self._file(folder, name).stat().st_size for folder in self._layout.images]).encode())
            for folder in (self._layout.change, *self._layout.masks, *[IGNORE_FOLDER] * self._says_ignored):
                file = self.find(folder, name)
                digest.update(hashlib.sha256(read_regular(file)).digest() if file else b"none")
        return digest.hexdigest()[:16]

    def find(self, folder: str, name: str) -> Path | None:
        """The file of a pair in a folder of the layout: of that name, else of another suffix."""
        if folder not in self._files:
            self._files[folder] = by_name(self._layout.files(self.folder, folder))
        files = self._files[folder]
        return files.get(composed(name)) or files.get(stem_of(composed(name)))

    def _file(self, folder: str, name: str) -> Path:
        file = self.find(folder, name)
        if file is None:
            raise PairsError(f"{self.folder / folder / name}: missing")
        return file


class PairArrays:
    """Pairs as plain dictionaries, which a torch ``DataLoader`` collates; made by ``load_pairs(…, as_dict=True)``.

    ``key`` str; ``image_t1``, ``image_t2`` as stored, ``[H, W]`` or ``[H, W, C]``; ``seen_t1``, ``seen_t2`` uint8
    ``[H, W]``, 1 = the image shows ground, elsewhere it holds nodata; ``change_mask`` uint8 ``[H, W]``, 1 = changed;
    ``ignored`` uint8 ``[H, W]``, 1 = no label holds here; ``mask_t1``, ``mask_t2`` uint8 ``[H, W]`` where the layout
    has semantic masks. ``transform`` takes such a dictionary and gives what is handed out instead.
    """

    def __init__(self, pairs: PairDataset, transform: Transform | None = None) -> None:
        self.pairs, self.transform = pairs, transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        pair = self.pairs[index]
        content: dict[str, Any] = {"key": pair.key, "image_t1": pair.image_t1, "image_t2": pair.image_t2}
        ignored = np.zeros(pair.change_mask.shape, bool) if pair.ignored is None else pair.ignored
        content |= {"change_mask": pair.change_mask.astype(np.uint8), "ignored": ignored.astype(np.uint8)}
        for name, seen in zip(("seen_t1", "seen_t2"), pair.seen, strict=True):
            content[name] = (np.ones(ignored.shape, bool) if seen is None else seen).astype(np.uint8)
        masks = {"mask_t1": pair.mask_t1, "mask_t2": pair.mask_t2}
        content |= {name: mask for name, mask in masks.items() if mask is not None}
        for name, array in content.items():
            if name != "key":  # decoders' arrays may be read-only: neither tensors nor transforms may write to those
                content[name] = np.require(array, requirements=["C", "W"])
        return content if self.transform is None else self.transform(content)


@overload
def load_pairs(
    folder: str | Path,
    split: str | None = None,
    max_megapixels: float | None = None,
    *,
    as_dict: Literal[False] = False,
) -> PairDataset: ...
@overload
def load_pairs(
    folder: str | Path,
    split: str | None = None,
    max_megapixels: float | None = None,
    *,
    as_dict: Literal[True],
    transform: Transform | None = None,
) -> PairArrays: ...
def load_pairs(
    folder: str | Path,
    split: str | None = None,
    max_megapixels: float | None = None,
    *,
    as_dict: bool = False,
    transform: Transform | None = None,
) -> PairDataset | PairArrays:
    """Open a folder or address: one of :data:`.layouts.LAYOUTS`, maybe with ``list/SPLIT.txt``, or such in ``SPLIT/``;
    or a set of containers.

    ``split``: "train", "val", "test", or None for everything. A split that is asked for and not defined raises
    :class:`PairsError`; it is never silently the whole set. ``max_megapixels``: largest image that is read, by what its
    header says, in millions of px of 8-bit RGB; default: 512, of PNG and JPEG 178. ``as_dict``: dictionaries of arrays
    in place of :class:`ChangePair` (:class:`PairArrays`); ``transform`` of each, :class:`PairsError` without it.
    """
    if transform is not None and not as_dict:
        raise PairsError("transform is given; allowed: with as_dict=True, whose dictionaries it takes")
    pairs = _open(folder, split, max_megapixels)
    return PairArrays(pairs, transform) if as_dict else pairs


def _open(folder: str | Path, split: str | None, max_megapixels: float | None) -> PairDataset:
    root = unpacked(local_copy(folder))
    if not root.is_dir():
        raise PairsError(f"{root}: no such folder")
    layout = layout_of(root)
    if layout is None:
        return _of_split(root, split, max_megapixels)
    images = root / layout.images[0]
    first = layout.files(root, layout.images[0])
    # Cities and sheets whose labels are not published are left out; of folders with equal names each must be whole.
    known = by_name(first)
    labelled = known if type(layout) is Layout else by_name(layout.files(root, layout.change))
    present = sorted(name for name in first if _is_in(labelled, name))
    if split is not None:
        names = layout.split(root, split)
        absent = [name for name in names if not _is_in(known, name)]
        if absent:
            raise PairsError(f"{root / 'list' / f'{split}.txt'}: names {absent[0]}, which is not in {images}")
        present = [name for name in names if _is_in(labelled, name)]
    if not present and split:
        raise EmptySplitError(f"{root}: split {split!r} is empty")
    if not present:
        raise PairsError(f"{images}: holds no image; allowed: {', '.join(IMAGE_SUFFIXES)}")
    return PairDataset(root, present, metadata_of(root, layout), layout, (), max_megapixels)


def _is_in(files: Mapping[str, Path], name: str) -> bool:
    return composed(name) in files or stem_of(composed(name)) in files


def _of_split(root: Path, split: str | None, max_megapixels: float | None) -> PairDataset:
    """Of ``root`` without images of its own: the layout of one split."""
    folders = split_folders(root)
    if not folders:
        inside = [str(folder.relative_to(root)) for folder in below(root)]
        if inside:
            raise PairsError(f"{root}: holds datasets in folders of their own; give one of {', '.join(inside[:6])}")
        refuse_bands(root)
        raise PairsError(f"{root}: no bi-temporal dataset; expected {expected()}; or these in train/, val/ or test/")
    if split is None:
        raise PairsError(f"{root}: has the splits {', '.join(folders)} as folders; say which")
    if split not in folders:
        raise PairsError(f"{root}: no split {split!r}; allowed: {', '.join(folders)}")
    return _open(folders[split], None, max_megapixels)


def stem_of(name: str) -> str:
    """A pair's name without the suffix of an image, if it has one."""
    suffix = Path(name).suffix
    return name[: -len(suffix)] if suffix.lower() in IMAGE_SUFFIXES else name


def by_name(files: Mapping[str, Path]) -> dict[str, Path]:
    """Files by whole name and, in the order of their kinds, by name without suffix."""
    found = {composed(name): file for name, file in files.items()}
    for suffix in IMAGE_SUFFIXES:
        for name, file in files.items():
            if file.suffix.lower() == suffix:
                found.setdefault(stem_of(composed(name)), file)
    return found


def _read(path: Path, max_megapixels: float | None) -> tuple[npt.NDArray[Any], Valid | None]:
    """Image ``[H, W]`` or ``[H, W, C]``, and where it is valid, bool ``[H, W]`` (None: everywhere)."""
    with raising(PairsError):
        image, valid, _ = read_whole(path, max_megapixels)
    return image, valid
