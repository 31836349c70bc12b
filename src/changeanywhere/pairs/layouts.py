"""How bi-temporal datasets lie on disk: names of their folders and files, and what their labels say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from changeanywhere.errors import PairsError
from changeanywhere.folders import composed, entries_of, files_below, folders_of, read_text
from changeanywhere.pairs.names import CHANGE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS, SPLITS

UNCHANGED_WHITE = (255, 255, 255)
"""Of ground that has not changed, in SECOND."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
KNOWN_SUFFIXES = (*IMAGE_SUFFIXES, ".webp", ".jp2", ".jxl", ".gif", ".bmp", ".img", ".hdf", ".vrt")
"""With those of images that are not read."""
SPLIT_FOLDERS = {
    "train": ("train", "training", "SECOND_train_set"),
    "val": ("val", "valid", "validation", "SECOND_val_set"),
    "test": ("test", "testing", "SECOND_test_set"),
}
"""Folders of a split, by its name; the first that holds pairs is taken."""


@dataclass(frozen=True)
class Layout:
    """Folders of one kind of dataset, files of equal names in them."""

    images: tuple[str, str]
    """Folders of date 1 and date 2."""
    change: str = CHANGE_FOLDER
    """Folder of the labels that say what has changed."""
    masks: tuple[str, ...] = ()
    """Folders of full semantic masks of both dates, where there are any."""
    names_classes: bool = False
    """Whether labels name classes of changed ground by colour and leave the rest white (SECOND)."""
    says: str = "label"
    """What says where change is: ``label``, values of a change label; ``masks``, that the semantic masks of the dates
    differ; ``bands``, a label of three bands: where anything was painted, class of date 1, class of date 2."""

    def lies_in(self, root: Path) -> bool:
        """Whether every folder that is needed is in ``root``."""
        return all((root / name).is_dir() for name in (*self.images, self.change))

    def files(self, root: Path, folder: str, passed: set[Path] | None = None) -> dict[str, Path]:
        """Name of a pair → its file in one of the folders; hidden and system files go to ``passed``."""
        return {file.name: file for file in _images(entries_of(root / folder, passed))}

    def left_out(self, root: Path) -> list[str]:
        """What of the set is not read although nothing is hidden about it, a line per reason with its count."""
        first = set(map(bare, self.files(root, self.images[0])))
        found = []
        for folder in (self.images[1], self.change):
            more = {bare(name) for name in self.files(root, folder)} - first
            if more:
                found.append(f"{len(more)} of {folder}/ without an image in {self.images[0]}/ ({min(more)})")
        alone = first - set(map(bare, self.files(root, self.change)))
        if alone and type(self) is not Layout:  # there it is an error
            found.append(f"{len(alone)} of {self.images[0]}/ without a label ({min(alone)})")
        return [*found, *self._unread(root)]

    def _unread(self, root: Path) -> Iterator[str]:
        """Images of other kinds, and those in folders where none are looked for."""
        for folder in (*self.images, self.change):
            read = set(self.files(root, folder).values())
            below = (file for file in files_below(root / folder) if file not in read)
            names = [f.relative_to(root / folder).as_posix() for f in below if f.suffix.lower() in KNOWN_SUFFIXES]
            if len(names) == 1:
                yield f"1 image of {folder}/ that is not read ({names[0]})"
            elif names:
                yield f"{len(names)} images of {folder}/ that are not read ({names[0]})"

    def split(self, root: Path, split: str) -> list[str]:
        """Names of the pairs of a split, each once. :class:`PairsError` if the set does not say."""
        listing = root / "list" / f"{split}.txt"
        if not listing.is_file():
            raise PairsError(f"{listing}: missing, so there is no split {split!r} in {root}")
        return _listed(listing)

    def splits(self, root: Path) -> list[str]:
        """Those that the set says; empty where it says none."""
        return [split for split in SPLITS if (root / "list" / f"{split}.txt").is_file()]


class Hrscd(Layout):
    """HRSCD: ``images_2006/2006/D14/14-2005-0415-6890-LA93.tif`` and so on: the year is part of the names."""

    def files(self, root: Path, folder: str, passed: set[Path] | None = None) -> dict[str, Path]:
        """By department and corner, as ``14-0415-6890``; by their own name where files are named otherwise."""
        return {self.key(file): file for file in _images(files_below(root / folder, passed))}

    @staticmethod
    def key(file: Path) -> str:
        """Name of the pair that a file is of."""
        named = re.match(r"(\d+)-\d{4}-(\d+)-(\d+)", file.stem)
        return "-".join(named.groups()) if named else f"{file.parent.name}-{file.stem}"


class Oscd(Layout):
    """OSCD: ``… - Images/CITY/pair/img1.png``, ``… - Train Labels/CITY/cm/cm.png``; lists with commas."""

    def lies_in(self, root: Path) -> bool:
        """Whether a city has both images."""
        return any(True for _ in self._of_cities(root, "pair/img1", "pair/img2"))

    def files(self, root: Path, folder: str, passed: set[Path] | None = None) -> dict[str, Path]:
        """By city. The labels are ``cm.png`` (0, 255), or ``CITY-cm.tif`` (1, 2) where that is all there is."""
        if folder != self.change:
            return dict(self._of_cities(root, folder))
        found = {}
        for top in _tops(root):
            for city in folders_of(top):
                for name in (f"{city.name}-cm.tif", "cm.png"):
                    if (city / "cm" / name).is_file():
                        found[city.name] = city / "cm" / name
        return found

    def split(self, root: Path, split: str) -> list[str]:
        """Cities of ``train.txt`` or ``test.txt``."""
        for top in _tops(root):
            if (top / f"{split}.txt").is_file():
                text = _text_of(top / f"{split}.txt")
                return once([name for name in re.split(r"[,\s]+", text) if name])
        raise PairsError(f"{root}: no {split}.txt beside the cities, so there is no split {split!r}")

    def splits(self, root: Path) -> list[str]:
        """By the lists beside the cities."""
        return [split for split in SPLITS if any((top / f"{split}.txt").is_file() for top in _tops(root))]

    def left_out(self, root: Path) -> list[str]:
        """Cities without labels, and the thirteen bands, of which the pictures are read instead."""
        cities, labelled = self.files(root, self.images[0]), self.files(root, self.change)
        unlabelled = sorted(cities.keys() - labelled)
        found = [f"{len(unlabelled)} cities without labels ({unlabelled[0]})"] if unlabelled else []
        banded = [city for city in _cities_of_bands(root) if city.name in cities]
        if banded:
            found.append(f"the thirteen bands of {len(banded)} cities (imgs_1_rect, imgs_2_rect); pair/ is read")
        bands = sorted(city.name for city in _cities_of_bands(root) if city.name not in cities)
        return found + ([f"{len(bands)} cities of bands without pair/img1 and img2 ({bands[0]})"] if bands else [])

    @staticmethod
    def _of_cities(root: Path, *names: str) -> Iterator[tuple[str, Path]]:
        for top in _tops(root):
            for city in folders_of(top):
                files = [file for name in names for file in city.glob(f"{name}.*") if file.suffix in IMAGE_SUFFIXES]
                if len(files) >= len(names):
                    yield city.name, files[0]


class WhuWhole(Layout):
    """WHU-CD as it is downloaded: one image per date and split, ``2012/whole_image/train/image/2012_train.tif``."""

    def files(self, root: Path, folder: str, passed: set[Path] | None = None) -> dict[str, Path]:
        """By split."""
        found = {}
        for split in folders_of(root / folder):
            inside = split / "image" if (split / "image").is_dir() else split
            files = list(_images(entries_of(inside, passed)))
            if len(files) == 1:
                found[split.name] = files[0]
        return found

    def split(self, root: Path, split: str) -> list[str]:
        """The one pair of it."""
        if split not in self.files(root, self.images[0]):
            raise PairsError(f"{root}: no split {split!r}; allowed: {', '.join(self.files(root, self.images[0]))}")
        return [split]

    def splits(self, root: Path) -> list[str]:
        """One image is one split."""
        return [split for split in SPLITS if split in self.files(root, self.change)]


class OneImage(Layout):
    """WHU-CD in its first edition: ``before/before.tif``, ``after/after.tif``, ``change label/change_label.tif``."""

    def files(self, root: Path, folder: str, passed: set[Path] | None = None) -> dict[str, Path]:
        """The one image of the folder that is named after it (labels of buildings lie there too)."""
        named = [file for file in _images(entries_of(root / folder, passed)) if not file.stem.endswith("_label")]
        if folder == self.change:
            named = list(_images(entries_of(root / folder, passed)))
        return {"whole": named[0]} if named else {}


class Synthetic(Layout):
    """Synthetic sets as others published them: no lists, all of it is there to train on."""

    def split(self, root: Path, split: str) -> list[str]:
        """By a list where somebody wrote one; else everything is ``train``."""
        if (root / "list").is_dir():
            return super().split(root, split)
        if split != "train":
            raise PairsError(f"{root}: no split {split!r}; allowed: train (the set has no lists: all of it is train)")
        return sorted(self.files(root, self.images[0]))


class Fsc(Synthetic):
    """FSC-180k of HySCDG: ``A/IMG_000001.tif``, ``B/IMG_000001.tif``, ``LBL/LBL_000001.tif``."""

    def files(self, root: Path, folder: str, passed: set[Path] | None = None) -> dict[str, Path]:
        """By what follows ``IMG_`` or ``LBL_``."""
        return {re.sub(r"^(IMG|LBL)\d*_", "", file.name): file for file in _images(entries_of(root / folder, passed))}


LAYOUTS: tuple[Layout, ...] = (
    Layout(IMAGE_FOLDERS, masks=MASK_FOLDERS),  # ours, LEVIR-CD(+), WHU-CD tiles, anything prepared for Open-CD
    Layout(("time1", "time2")),  # SYSU-CD, CLCD
    Layout(("im1", "im2")),  # WHU-GCD, and SECOND with labels made binary
    Layout(("im1", "im2"), change="label1", names_classes=True),  # SECOND; classes of changed ground only: no masks
    Layout(("Image1", "Image2")),  # S2Looking
    Layout(IMAGE_FOLDERS, change="OUT"),  # CDD
    Layout(("t1", "t2"), change="mask"),  # DSIFN
    Synthetic(("t1_images", "t2_images"), change="t1_masks", masks=("t1_masks", "t2_masks"), says="masks"),  # Changen2
    Synthetic(("pre_event", "images"), change="cd_mask"),  # SyntheWorld of 512 px: date 2 is images/
    Synthetic(("small_pre_images", "images"), change="cd_mask"),  # SyntheWorld of 1,024 px
    Fsc(IMAGE_FOLDERS, change="LBL", says="bands"),  # HySCDG
    Hrscd(("images_2006", "images_2012"), change="labels_change"),
    Oscd(("pair/img1", "pair/img2"), change="cm"),
    WhuWhole(("2012/whole_image", "2016/whole_image"), change="change_label"),
    OneImage(("before", "after"), change="change label"),
    OneImage(("before", "after"), change="change_label"),
)


def refuse_bands(root: Path) -> None:
    """:class:`PairsError` for OSCD's bands alone: which of thirteen are a picture, and how bright, its own ``pair/``
    says."""
    cities = _cities_of_bands(root)
    if cities:
        raise PairsError(
            f"{cities[0]}: OSCD's thirteen bands without pair/img1.png and pair/img2.png, the pictures that are read; "
            "take them from the same download, or save bands 4, 3 and 2 of each date there in 8 bits"
        )


def layout_of(folder: Path) -> Layout | None:
    """What ``folder`` holds: the first of :data:`LAYOUTS` of which every needed folder exists."""
    return next((layout for layout in LAYOUTS if layout.lies_in(folder)), None) if folder.is_dir() else None


def split_folders(root: Path) -> dict[str, Path]:
    """Split → the folder of it in ``root``, of those that hold pairs."""
    found = {}
    for split in SPLITS:
        places = (root / name for name in SPLIT_FOLDERS[split])
        place = next((place for place in places if layout_of(place)), None)
        if place is not None:
            found[split] = place
    return found


def trees_of(root: Path) -> list[Path]:
    """``root`` where it holds pairs itself, else the folders of its splits."""
    return [root] if layout_of(root) else list(split_folders(root).values())


def below(root: Path, depth: int = 2) -> list[Path]:
    """Folders below ``root`` that hold datasets: downloads put them into folders of their own."""
    found = []
    for folder in folders_of(root):
        if trees_of(folder):
            found.append(folder)
        elif depth > 1:
            found += below(folder, depth - 1)
    return found


def expected() -> str:
    """For error messages."""
    plain = (layout for layout in LAYOUTS if type(layout) in (Layout, Synthetic))
    folders = ", or ".join(", ".join(f"{name}/" for name in (*layout.images, layout.change)) for layout in plain)
    return f"{folders}, or HRSCD, OSCD or WHU-CD as downloaded"


def _images(files: Sequence[Path]) -> Iterator[Path]:
    return (file for file in files if file.suffix.lower() in IMAGE_SUFFIXES)


def _tops(root: Path) -> list[Path]:
    """Folders that hold cities: ``root``, and those of images and labels in it."""
    return [root, *(folder for folder in folders_of(root) if re.search(r"(?i)images|labels", folder.name))]


def _cities_of_bands(root: Path) -> list[Path]:
    """Cities of OSCD that hold Sentinel-2's bands, a file each, for both dates."""
    cities = (city for top in _tops(root) for city in folders_of(top))
    return [c for c in cities if any(all((c / f"imgs_{d}{end}").is_dir() for d in (1, 2)) for end in ("_rect", ""))]


def bare(name: str) -> str:
    """Without the suffix of an image, accents composed."""
    path = Path(name)
    return composed(path.stem if path.suffix.lower() in IMAGE_SUFFIXES else name)


def once(names: Sequence[str]) -> list[str]:
    """Names of pairs in the order of their first appearance: one that a list names again, with or without its suffix,
    is the same pair, and would count twice."""
    found = dict[str, str]()
    for name in names:
        found.setdefault(bare(name), name)
    return list(found.values())


def _listed(listing: Path) -> list[str]:
    return once([composed(line.strip()) for line in _text_of(listing).split("\n") if line.strip()])


def _text_of(listing: Path) -> str:
    try:
        return read_text(listing)
    except UnicodeDecodeError as error:
        raise PairsError(f"{listing}: not readable as UTF-8 ({error})") from error
