"""YOLO segmentation: changed ground as polygons on date 2. No torch here."""

from __future__ import annotations

from changeanywhere.documents import to_json
from changeanywhere.exporting.base import Exporter
from changeanywhere.exporting.items import Item
from changeanywhere.exporting.shapes import shapes_of
from changeanywhere.pairs.names import SPLITS

DIGITS = 6
"""Of coordinates that are shares of a side: a thousandth of a pixel in an image of 1000 px."""


class YoloSeg(Exporter):
    """A text file per image, a line per polygon: class, then x and y as shares of the sides."""

    name = "yolo-seg"
    what = "YOLO segmentation: what changed ground has become, as polygons on date 2"
    carries = frozenset(("images", "changed classes", "instances", "change", "splits"))
    tree = """\
images/{train,val,test}/KEY.png      image of date 2
images_t1/{train,val,test}/KEY.png   image of date 1, which YOLO does not read
labels/{train,val,test}/KEY.txt      a line per region: its new class from 0, then x y … as shares; holes are cut,
                                     ground whose new class is unknown is in none
data.yaml                            splits, beside it; names ("change" where there are no classes); val, which
                                     YOLO asks for, is train (test without one) where there are no val pairs"""
    load = """\
from ultralytics import YOLO
model = YOLO("yolo11n-seg.yaml")
model.train(data="OUT/data.yaml", imgsz=256, epochs=50)"""
    reader = "the public rule of its files, filled as polygons; no code of ultralytics (AGPL) is used"

    def prepare(self) -> None:
        """See :class:`Exporter`."""
        self._unknown = 0

    def add(self, item: Item) -> dict[str, str]:
        """See :class:`Exporter`."""
        pair = item.pair
        mask = pair.mask_t2 if self.info.legend is not None else None
        values = pair.change_mask.astype("uint8") if mask is None else mask
        height, width = pair.change_mask.shape
        lines = []
        known = pair.change_mask & (values > 0)
        self._unknown += bool((pair.change_mask & ~known).any())
        for shape in shapes_of(values, known):
            points = " ".join(f"{x / width:.{DIGITS}f} {y / height:.{DIGITS}f}" for x, y in shape.one_ring()[:-1])
            lines.append(f"{shape.value - 1} {points}\n")
        stem = f"{item.split}/{item.key}"
        return {
            "A": self.target.image(f"images_t1/{stem}", item, 0),
            "B": self.target.image(f"images/{stem}", item, 1),
            "label": self.target.put(f"labels/{stem}.txt", "".join(lines).encode()),
        }

    def lost(self) -> list[str]:
        """See :class:`Exporter`."""
        what = "changed ground whose class on date 2 is unknown"
        return [f"{what}, in {self._unknown} pairs: it is in no region"] if self._unknown else []

    def finish(self) -> None:
        """Write ``data.yaml``."""
        names = self.info.legend.names if self.info.legend is not None else ("change",)
        splits = self.info.splits
        places = {split: f"images/{split}" for split in SPLITS if splits[split] or split != "test"}
        if not splits["val"]:  # of the two that ultralytics asks for, it opens this one in any case
            places["val"] = f"images/{'train' if splits['train'] else 'test'}  # there are no validation pairs"
        lines = [f"{split}: {place}" for split, place in places.items()]
        lines += ["names:", *(f"  {n}: {to_json(name)}" for n, name in enumerate(names))]  # JSON's strings are YAML's
        self.target.put("data.yaml", "".join(f"{line}\n" for line in lines).encode())
