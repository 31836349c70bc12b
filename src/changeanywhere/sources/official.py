"""Datasets of the field as they are downloaded: their folders, names, splits, legends and licences."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from changeanywhere.errors import SourceError
from changeanywhere.folders import entries_of, folders_of, read_names
from changeanywhere.legend import find_legend_file
from changeanywhere.sources.entries import SPLITS, Found, Layout, make_layout
from changeanywhere.sources.matching import (
    PLAIN,
    Affix,
    Places,
    Rule,
    match,
    match_files,
    stems_below,
    stems_in,
)
from changeanywhere.sources.problems import Problems

SHEET = re.compile(r"[MN]-3[34]-\d+-[A-D]-[a-d]-\d-\d(_\d+)?")
"""A map sheet of LandCover.ai, or a tile of it."""
PLACE = re.compile(r"\d+_\d+_(seg\.tif|rgb\.(jp2|tif))")
"""A mask or an image of GeoNRW, by its corner in kilometres."""
DOMAIN = re.compile(r"D\d[\dAB]{1,2}_\d{4}")
"""A domain of FLAIR: a department (three signs; 2A and 2B are Corsica's) and a year."""


def loveda(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    """``Train|Val/Urban|Rural/images_png + masks_png``, or one of Train and Val itself. Test has no masks."""
    tops = [root] if root.name in ("Train", "Val") else [root / "Train", root / "Val"]
    areas = [top / area for top in tops for area in ("Urban", "Rural") if (top / area / "images_png").is_dir()]
    if not areas:
        return None
    found = []
    others = tuple(other / "images_png" for other in areas) if masks else ()
    for area in areas:
        places = Places(area / "images_png", masks or area / "masks_png", False, masks is not None, others)
        for each in match(places, problems)[0]:
            key = f"{area.parent.name}_{area.name}_{each.name}".lower()
            found.append(replace(each, key=key, split=area.parent.name.lower()))
    said = "LoveDA: Train|Val/Urban|Rural/images_png with masks_png"
    return make_layout("loveda", found, said, "loveda", "CC-BY-NC-SA-4.0")


def openearthmap(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    """``REGION/images/REGION_N.tif``, ``REGION/labels/*``; ``train.txt`` and ``val.txt`` name the files of each split.

    Its test images come without labels, and the download without xBD has labels without images; both are left out.
    """
    regions = [folder for folder in folders_of(root) if (folder / "labels").is_dir()]
    lists = [root / f"{split}.txt" for split in SPLITS if (root / f"{split}.txt").is_file()]
    if not regions or not (lists or any(_named_after(region) for region in regions)):
        return None
    if _has_own_legend(root):  # the same folders, but classes of the user's own
        return None
    found: list[Found] = []
    others = tuple(region / "images" for region in regions if (region / "images").is_dir()) if masks else ()
    for region in regions:
        places = Places(region / "images", masks or region / "labels", False, masks is not None, others)
        found += match(places, problems)[0]
    splits = _listed_splits(lists)
    found = [replace(each, split=splits.get(Path(each.name).name)) for each in found]
    said = "OpenEarthMap: REGION/images with REGION/labels"
    return make_layout("openearthmap", found, said, "openearthmap", "CC-BY-NC-SA-4.0")


def _has_own_legend(root: Path) -> bool:
    file = find_legend_file(root)
    return file is not None and file.parent == root.resolve()


def _named_after(region: Path) -> bool:
    files = (file for folder in ("images", "labels") for file in entries_of(region / folder))
    return any(re.fullmatch(rf"{re.escape(region.name)}_\d+\.tiff?", file.name, re.IGNORECASE) for file in files)


def _listed_splits(lists: list[Path]) -> dict[str, str]:
    """Stem → split."""
    splits: dict[str, str] = {}
    for listing in lists:
        try:
            names = read_names(listing)
        except UnicodeDecodeError as error:
            raise SourceError(f"{listing}: not readable as UTF-8 ({error})") from error
        splits |= {_stem(name): listing.stem for name in names}
    return splits


def _stem(name: str) -> str:
    """Of a line of a list, which may come without a suffix: a name may hold dots."""
    path = Path(name)
    return path.stem if path.suffix.lower() in (".tif", ".tiff", ".png", ".jpg") else path.name


def flair(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    """``flair_aerial_train/D004_2021/Z1_UN/img/IMG_N.tif``, ``flair_labels_train/…/msk/MSK_N.tif``; and tests.

    A domain is a scene: its zones lie beside each other and were flown together, and FLAIR's own baselines divide
    domains into training and validation, never zones.
    """
    tops = [folder for folder in folders_of(root) if re.fullmatch(r"flair.*_aerial(_.*)?", folder.name, re.IGNORECASE)]
    pairs = [(top, top.with_name(re.sub("(?i)aerial", "labels", top.name))) for top in tops]
    pairs = [(images, labels) for images, labels in pairs if masks or labels.is_dir()]
    if not pairs or not any(DOMAIN.fullmatch(folder.name) for images, _ in pairs for folder in folders_of(images)):
        return None
    found = []
    several = len({_split_of(images) for images, _ in pairs}) > 1
    others = tuple(images for images, _ in pairs) if masks else ()
    for images, labels in pairs:
        image_files = {_patch(stem): (stem, file) for stem, file in stems_below(images, problems).items()}
        mask_files = {_patch(stem): file for stem, file in stems_below(masks or labels, problems).items()}
        places = Places(images, masks or labels, False, masks is not None, others)
        matched, _ = match_files(
            {core: file for core, (_, file) in image_files.items()}, mask_files, places, problems, Rule(),
            () if masks is None else mask_files,
        )  # fmt: skip
        for each in matched:
            stem = image_files[each.name][0]
            scene = stem.split("/")[0]
            split = _split_of(images) if several else None
            found.append(replace(each, name=stem, key=Path(stem).name, scene=scene, split=split))
    said = "FLAIR: *_aerial_*/DOMAIN/ZONE/img/IMG_N with *_labels_*/DOMAIN/ZONE/msk/MSK_N"
    return make_layout("flair", found, said, "flair", "etalab-2.0", 0.2)


def _patch(stem: str) -> str:
    """``D004_2021/Z1_UN/img/IMG_000001`` and ``…/msk/MSK_000001`` → ``000001``, which is unique in FLAIR."""
    return re.sub(r"(?i)^(img|msk)_", "", stem.rpartition("/")[2])


def _split_of(folder: Path) -> str:
    return "test" if "test" in folder.name.lower() else "train"


def landcoverai(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    """``images/SHEET.tif`` with ``masks/SHEET.tif``, or the tiles of its ``split.py``: ``output/SHEET_N.jpg, …_m.png``.

    The lists divide sheets, tile by tile; a tile is a scene of its own where they say the split, as they do.
    """
    if _has_own_legend(root):
        return None
    whole = root / "images"
    tiles = next((folder for folder in (root / "output", root) if _sheets(folder)), None)
    if _sheets(whole) and (masks or (root / "masks").is_dir()):
        found, _ = match(Places(whole, masks or root / "masks", False, masks is not None), problems)
        said = "LandCover.ai: images/SHEET with masks/SHEET"
    elif tiles is not None:
        files = stems_in(tiles, problems)
        images = {stem: file for stem, file in files.items() if not stem.endswith("_m")}
        of_masks = stems_below(masks, problems) if masks else {s: f for s, f in files.items() if s.endswith("_m")}
        rule = None if masks else Rule(PLAIN, Affix(ending="_m"))
        found, _ = match_files(
            images, of_masks, Places(tiles, masks or tiles, False, masks is not None), problems, rule
        )
        said = "LandCover.ai: output/SHEET_N.jpg with output/SHEET_N_m.png"
    else:
        return None
    places = (root, root.parent)
    splits = _listed_splits([p / f"{s}.txt" for p in places for s in SPLITS if (p / f"{s}.txt").is_file()])
    found = [replace(each, split=splits.get(each.name)) for each in found]
    return make_layout("landcoverai", found, said, "landcoverai", "CC-BY-NC-SA-4.0")


def _sheets(folder: Path) -> bool:
    """Whether the first image in ``folder`` is named as LandCover.ai names its own."""
    first = next((file for file in entries_of(folder) if file.suffix.lower() in (".tif", ".jpg", ".png")), None)
    return first is not None and SHEET.fullmatch(first.stem.removesuffix("_m")) is not None


def geonrw(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    """``CITY/E_N_rgb.jp2`` with ``CITY/E_N_seg.tif``; heights (``_dem``) are not read; three cities are tests."""
    cities = [folder for folder in folders_of(root) if any(PLACE.fullmatch(file.name) for file in entries_of(folder))]
    if not any(file.stem.endswith("_seg") for city in cities for file in entries_of(city)):
        return None
    found: list[Found] = []
    for city in cities:
        files = stems_in(city, problems)
        images = {stem: file for stem, file in files.items() if stem.endswith("_rgb")}
        of_masks = stems_below(masks, problems) if masks else {s: f for s, f in files.items() if s.endswith("_seg")}
        problems.pass_over("heights", *(file for stem, file in files.items() if stem.endswith("_dem")))
        rule = None if masks else Rule(Affix(ending="_rgb"), Affix(ending="_seg"))
        places = Places(city, masks or city, False, masks is not None)
        for each in match_files(images, of_masks, places, problems, rule, of_masks if masks else ())[0]:
            split = "test" if city.name.lower() in ("duesseldorf", "herne", "neuss") else "train"
            found.append(replace(each, key=f"{city.name}_{each.name.removesuffix('_rgb')}", split=split))
    if len({each.split for each in found}) == 1:
        found = [replace(each, split=None) for each in found]
    said = "GeoNRW: CITY/E_N_rgb with CITY/E_N_seg"
    return make_layout("geonrw", found, said, "geonrw", "CC-BY-4.0", 1.0)


def dfc2022(root: Path, problems: Problems, masks: Path | None) -> Layout | None:
    """``labeled_train/CITY/BDORTHO/NAME.tif`` with ``UrbanAtlas/NAME_UA2012.tif``; what has no labels is left out."""
    tops = [root, *(root / name for name in ("labeled_train", "train"))]
    cities = [city for top in tops for city in folders_of(top) if (city / "BDORTHO").is_dir()]
    cities = [city for city in cities if masks or (city / "UrbanAtlas").is_dir()]
    if not cities:
        return None
    found: list[Found] = []
    others = tuple(city / "BDORTHO" for city in cities) if masks else ()
    rule = None if masks else Rule(PLAIN, Affix(ending="_ua2012"))
    for city in cities:
        places = Places(city / "BDORTHO", masks or city / "UrbanAtlas", False, masks is not None, others)
        found += match(places, problems, rule)[0]
    said = "DFC2022 (MiniFrance): CITY/BDORTHO/NAME with CITY/UrbanAtlas/NAME_UA2012"
    return make_layout("dfc2022", found, said, "dfc2022", "unknown", 0.5)


OFFICIAL = (loveda, flair, landcoverai, geonrw, dfc2022)
"""Before the general layouts. OpenEarthMap comes after them: its folders are anybody's."""
