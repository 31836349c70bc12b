"""Which mask belongs to which image: by equal names, or by names that differ in a usual ending or beginning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from changeanywhere.errors import SourceError
from changeanywhere.folders import composed, entries_of, files_below
from changeanywhere.sources.entries import Found
from changeanywhere.sources.files import LOSSY_SUFFIXES, SUFFIXES
from changeanywhere.sources.problems import SYSTEM, Problems

MASK_WORDS = ("mask", "masks", "label", "labels", "gt", "annotation", "annotations", "seg", "msk", "lbl", "groundtruth")
IMAGE_WORDS = ("image", "img", "sat", "rgb", "ortho")
MASK_ENDINGS = (*(f"{mark}{word}" for word in MASK_WORDS for mark in "_-."), "_ground_truth", "_m")
IMAGE_ENDINGS = tuple(f"{mark}{word}" for word in IMAGE_WORDS for mark in "_-.")
MASK_BEGINNINGS = tuple(f"{word}{mark}" for word in MASK_WORDS for mark in "_-")
IMAGE_BEGINNINGS = tuple(f"{word}{mark}" for word in IMAGE_WORDS for mark in "_-")
LOSSY_MASKS = (*LOSSY_SUFFIXES, ".jp2")


@dataclass(frozen=True)
class Affix:
    """What a name has more than the tile that it is of."""

    beginning: str = ""
    ending: str = ""

    def core(self, stem: str) -> str | None:
        """``stem`` without it; None where it is not there, or all there is."""
        folder, slash, name = stem.rpartition("/")
        fits = name.lower().startswith(self.beginning) and name.lower().endswith(self.ending)
        core = name[len(self.beginning) : len(name) - len(self.ending)] if fits else ""
        return f"{folder}{slash}{core}" if core else None

    def example(self) -> str:
        """As people write it: ``NAME_mask``."""
        return f"{self.beginning}NAME{self.ending}"


PLAIN = Affix()
OF_MASKS = (*(Affix(ending=each) for each in MASK_ENDINGS), *(Affix(beginning=each) for each in MASK_BEGINNINGS))
OF_IMAGES = (*(Affix(ending=each) for each in IMAGE_ENDINGS), *(Affix(beginning=each) for each in IMAGE_BEGINNINGS))


@dataclass(frozen=True)
class Rule:
    """How the names of images and masks differ."""

    of_image: Affix = PLAIN
    of_mask: Affix = PLAIN

    def described(self) -> str:
        """For ``check``."""
        if self == Rule():
            return "equal names"
        return f"{self.of_image.example()} with {self.of_mask.example()}"


def best_rule(images: Iterable[str], masks: Iterable[str]) -> Rule:
    """Equal names where there are any; else the rule under which most images have a mask."""
    image_stems, mask_stems = set(images), set(masks)
    if image_stems & mask_stems:
        return Rule()
    image_cores = {affix: _cores(affix, image_stems) for affix in (PLAIN, *OF_IMAGES)}
    mask_cores = {affix: _cores(affix, mask_stems) for affix in (PLAIN, *OF_MASKS)}
    best, most = Rule(), 0
    for of_image, left in image_cores.items():
        for of_mask, right in mask_cores.items():
            if left and right and len(left & right) > most:
                best, most = Rule(of_image, of_mask), len(left & right)
    return best


def _cores(affix: Affix, stems: set[str]) -> set[str]:
    return {core for stem in stems if (core := affix.core(stem)) is not None}


def by_stem(files: Sequence[Path], folder: Path, problems: Problems) -> dict[str, Path]:
    """Path below ``folder`` without suffix → file, of all images and masks among ``files``.

    Accents are compared in their composed form, unless two files differ in nothing else.
    """
    written: dict[str, list[tuple[str, Path]]] = {}
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            kind = f"{file.suffix.lower()} files" if file.suffix else "files without a suffix"
            problems.pass_over(f"{kind} among the images and masks", file)
            continue
        stem = file.relative_to(folder).with_suffix("").as_posix()
        written.setdefault(composed(stem), []).append((stem, file))
    stems: dict[str, Path] = {}
    for name, group in written.items():
        apart = len({stem for stem, _ in group}) > 1
        for stem, file in group:
            key = stem if apart else name
            if key in stems:
                problems.add(SourceError(f"{file}: same name as {stems[key].name} in the same folder; keep one"))
                continue
            stems[key] = file
    return stems


def stems_below(folder: Path, problems: Problems) -> dict[str, Path]:
    """:func:`by_stem` of every file below ``folder``."""
    passed: set[Path] = set()
    files = files_below(folder, passed)
    problems.pass_over(SYSTEM, *passed)
    return by_stem(files, folder, problems)


def stems_in(folder: Path, problems: Problems) -> dict[str, Path]:
    """:func:`by_stem` of the files in ``folder`` itself."""
    passed: set[Path] = set()
    files = [path for path in entries_of(folder, passed) if not path.is_dir()]
    problems.pass_over(SYSTEM, *passed)
    return by_stem(files, folder, problems)


@dataclass(frozen=True)
class Places:
    """Where images and masks of a layout lie, and what is expected of them."""

    images: Path
    masks: Path
    required: bool = True
    """An image without mask is a problem; else it is left out."""
    images_required: bool = True
    """A mask without image is a problem; else it is left out with a count."""
    others: Sequence[Path] = ()
    """Folders of images that share ``masks``."""


def match(places: Places, problems: Problems, rule: Rule | None = None) -> tuple[list[Found], Rule]:
    """Images with their masks, subfolders included, and the rule by which they were found."""
    if not places.masks.is_dir():
        raise SourceError(f"{places.masks}: no such folder of masks")
    images = stems_below(places.images, problems) if places.images.is_dir() else {}
    masks = stems_below(places.masks, problems)
    if not places.others:
        return match_files(images, masks, places, problems, rule)
    shared = set().union(*(stems_below(folder, problems) for folder in places.others))
    return match_files(images, masks, places, problems, rule, shared)


def match_files(
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    places: Places,
    problems: Problems,
    rule: Rule | None = None,
    shared: Iterable[str] = (),
) -> tuple[list[Found], Rule]:
    """The same for files by stem; ``shared``: images of other folders, whose masks may be here too."""
    rule = rule or best_rule(images, masks)
    image_of = {core: stem for stem in images if (core := rule.of_image.core(stem)) is not None}
    mask_of = {core: stem for stem in masks if (core := rule.of_mask.core(stem)) is not None}
    for core, stem in image_of.items():
        if core in mask_of:
            continue
        if places.required:
            expected = rule.of_mask
            mask = places.masks / core
            name = f"{expected.beginning}{mask.name}{expected.ending}"
            problems.add(SourceError(f"{images[stem]}: has no mask; expected {mask.with_name(name)}.png or .tif"))
        else:
            problems.pass_over("images without a mask", images[stem])
    known = {*image_of, *(rule.of_image.core(stem) or stem for stem in shared)}
    for core, stem in mask_of.items():
        if core not in known and places.images_required:
            expected_image = places.images / core
            problems.add(SourceError(f"{masks[stem]}: has no image; expected {expected_image}.png, .jpg or .tif"))
        elif core not in known:
            problems.pass_over("masks without an image", masks[stem])
        elif core in image_of and masks[stem].suffix.lower() in LOSSY_MASKS:
            kind = "JPEG 2000" if masks[stem].suffix.lower() == ".jp2" else "JPEG"
            problems.add(SourceError(f"{masks[stem]}: {kind} changes the classes of a mask; allowed: .png and .tif"))
    found = [
        Found(image_of[core], places.images, images[image_of[core]], masks[mask_of[core]])
        for core in sorted(mask_of.keys() & image_of)
        if masks[mask_of[core]].suffix.lower() not in LOSSY_MASKS
    ]
    strangers = [masks[stem] for stem in masks if rule.of_mask.core(stem) is None]
    problems.pass_over("files named otherwise than the masks", *strangers)
    for stem in images:
        if rule.of_image.core(stem) is not None:
            continue
        if places.required:
            named = f"{rule.of_image.example()} and {rule.of_mask.example()}"
            problems.add(SourceError(f"{images[stem]}: has no mask; images and masks here are named {named}"))
        else:
            problems.pass_over("images without a mask", images[stem])
    return found, rule
