"""Layouts of folders with files of equal names: LEVIR-CD (ours), SECOND, WHU-GCD, torchgeo. No torch here."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from changeanywhere.colours import distinct_colours
from changeanywhere.documents import to_json
from changeanywhere.exporting.base import Exporter
from changeanywhere.exporting.items import Item
from changeanywhere.pairs.card import hub_configs
from changeanywhere.pairs.layouts import UNCHANGED_WHITE
from changeanywhere.pairs.names import IGNORE_FOLDER, SPLITS, table_name
from changeanywhere.pairs.record import ALL_FOLDERS, FILE_FOLDERS, PairRecord


class Levir(Exporter):
    """``A/ B/ label/`` and lists, with semantic masks beside: what ``generate`` writes."""

    name = "levir"
    what = "LEVIR-CD's folders with lists of splits, as generate writes them"
    carries = frozenset(("images", "bands", "change", "semantic", "ignored", "splits"))
    tree = """\
A/KEY.png  B/KEY.png            images (GeoTIFFs stay GeoTIFFs)
label/KEY.png                   change, 0 or 255
label1/KEY.png  label2/KEY.png  semantic masks, grey: the numbers are the classes of legend.json
ignore/KEY.png                  255 = no label here; of sets with real second dates, and of classes that a map
                                makes unknown
list/{train,val,test}.txt       file names
{train,val,test}.jsonl          of a generated set: what datasets.load_dataset("OUT") reads"""
    load = """\
import changeanywhere as ca
pairs = ca.load_pairs("OUT", split="train")
pair = pairs[0]  # .image_t1 .image_t2 .change_mask .mask_t1 .mask_t2 .metadata"""
    reader = "`load_pairs`"

    def prepare(self) -> None:
        """See :class:`Exporter`."""
        self._listed: dict[str, list[str]] = {split: [] for split in SPLITS}
        self._rows: dict[str, list[str]] = {split: [] for split in SPLITS}
        self._folders: tuple[str, ...] = FILE_FOLDERS

    def add(self, item: Item) -> dict[str, str]:
        """See :class:`Exporter`."""
        files = {folder: self.target.image(f"{folder}/{item.key}", item, n, keep=True) for n, folder in enumerate("AB")}
        files["label"] = self.target.change(f"label/{item.key}", item, keep=True)
        if self.info.legend is not None:
            files |= {f"label{n + 1}": self.target.mask(f"label{n + 1}/{item.key}", item, n, keep=True) for n in (0, 1)}
        if item.notes_ignored:
            files[IGNORE_FOLDER] = self.target.ignored(f"{IGNORE_FOLDER}/{item.key}", item)
            self._folders = ALL_FOLDERS
        self._listed[item.split].append(files["A"].removeprefix("A/"))
        if "source_key" in item.record:  # of a set of ours
            line = {**item.record, **{f"{what}_file_name": name for what, name in files.items()}, "container": ""}
            self._rows[item.split].append(to_json(PairRecord.from_dict(line).flat(), ensure_ascii=False))
        return files

    def finish(self) -> None:
        """See :class:`Exporter`."""
        for split, names in self._listed.items():
            self.target.put(f"list/{split}.txt", "".join(f"{name}\n" for name in names).encode())
            if self._rows[split]:
                self.target.put(table_name(split), "".join(f"{row}\n" for row in self._rows[split]).encode())

    def front_matter(self) -> list[str]:
        """The flat tables, for ``load_dataset``, as in the card of a generated set."""
        return hub_configs([split for split in SPLITS if self._rows[split]], self._folders)


class Folders(Exporter):
    """A folder per split, in it folders of PNGs with equal names."""

    images: ClassVar[tuple[str, str]]
    change: ClassVar[str | None] = "label"
    masks: ClassVar[tuple[str, str] | None] = None

    def stem(self, item: Item, folder: str) -> str:
        """Where a file of a pair lies, without its suffix."""
        return f"{item.split}/{folder}/{item.key}"

    def add(self, item: Item) -> dict[str, str]:
        """See :class:`Exporter`."""
        files = {
            what: self.target.image(self.stem(item, folder), item, n)
            for n, (what, folder) in enumerate(zip("AB", self.images, strict=True))
        }
        if self.change is not None:
            files["label"] = self.target.change(self.stem(item, self.change), item)
        if self.masks is not None and self.info.legend is not None:
            for n, folder in enumerate(self.masks):
                files[f"label{n + 1}"] = self.target.mask(self.stem(item, folder), item, n)
        return files


class WhuGcd(Folders):
    """WHU-GCD."""

    name = "whu-gcd"
    what = "WHU-GCD's folders"
    carries = frozenset(("images", "change", "splits"))
    images = ("im1", "im2")
    tree = """\
{train,val,test}/im1/KEY.png  im2/KEY.png   images
{train,val,test}/label/KEY.png              change, 0 or 255"""
    load = """\
import changeanywhere as ca
pairs = ca.load_pairs("OUT", split="train")
pair = pairs[0]  # .image_t1 .image_t2 .change_mask"""
    reader = "its public folders and values, and `load_pairs`"


class TorchGeo(Folders):
    """torchgeo's LEVIRCD takes files by the beginning of their names."""

    name = "torchgeo"
    what = "what torchgeo's LEVIRCD class reads, with semantic masks beside"
    carries = frozenset(("images", "change", "semantic", "splits"))
    images, masks = ("A", "B"), ("label1", "label2")
    tree = """\
A/SPLIT_KEY.png  B/SPLIT_KEY.png            images; SPLIT is train, val or test
label/SPLIT_KEY.png                         change, 0 or 255
label1/SPLIT_KEY.png  label2/SPLIT_KEY.png  semantic masks, grey"""
    load = """\
import torch
from torchgeo.datasets import LEVIRCD
class WithMasks(LEVIRCD):  # LEVIRCD itself gives images and change
    def __getitem__(self, index):
        sample = super().__getitem__(index)  # image [2, 3, H, W], mask [1, H, W], 1 = changed
        change = str(self.files[index]["mask"]).rpartition("label/")
        files = [f"{change[0]}label{date}/{change[2]}" for date in (1, 2)]
        masks = [torch.from_numpy(__import__("numpy").array(__import__("PIL.Image").Image.open(f))) for f in files]
        return {**sample, "semantic": torch.stack(masks).long()}  # [2, H, W], 0 = unknown
pairs = WithMasks("OUT", split="train")"""
    reader = "the rules of torchgeo's LEVIRCD (glob of `A/SPLIT*.png`, labels clamped to 1); torchgeo needs torchvision"

    def stem(self, item: Item, folder: str) -> str:
        """See :class:`Folders`."""
        return f"{folder}/{item.split}_{item.key}"


MEANT = (UNCHANGED_WHITE, (0, 0, 0))
"""Colours of SECOND's labels that are no class: ground that has not changed, and changed ground of unknown class."""


class Second(Folders):
    """SECOND: colours name the classes of changed ground, white is unchanged."""

    name = "second"
    what = "SECOND's folders: classes of changed ground by colour, white elsewhere"
    carries = frozenset(("images", "changed classes", "change", "splits"))
    images, change = ("im1", "im2"), None
    needs_classes = True
    tree = """\
{train,val,test}/im1/KEY.png  im2/KEY.png         images
{train,val,test}/label1/KEY.png  label2/KEY.png   changed ground in the colours of legend.json (a white or a
                                                 black class gets another), black where the class is
                                                 unknown, all else white"""
    load = """\
import changeanywhere as ca
pairs = ca.load_pairs("OUT", split="train")
pair = pairs[0]  # .image_t1 .image_t2 .change_mask; SECOND's official classes and colours: --legend second"""
    reader = "its public rule (colour → class, white = unchanged), and `load_pairs`"

    def prepare(self) -> None:
        """A class that is white, which means unchanged here, or black, which means unknown, gets a colour of its own;
        ``legend.json`` says which."""
        colours = [c.color for c in self.legend.classes]
        free = dict(zip(MEANT, distinct_colours(len(MEANT), colours), strict=True))
        classes = tuple(replace(c, color=free.get(c.color, c.color)) for c in self.legend.classes)
        self.info.legend = replace(self.legend, classes=classes)

    def add(self, item: Item) -> dict[str, str]:
        """See :class:`Exporter`."""
        files = super().add(item)
        for n, mask in enumerate((item.pair.mask_t1, item.pair.mask_t2)):
            assert mask is not None
            colours = np.where(item.pair.change_mask[..., None], self.legend.colorize(mask), np.uint8(255))
            files[f"label{n + 1}"] = self.target.put_png(f"{self.stem(item, f'label{n + 1}')}.png", colours)
        return files
