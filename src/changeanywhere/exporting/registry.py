"""All layouts by name. No torch here."""

from __future__ import annotations

from changeanywhere.exporting.base import Exporter
from changeanywhere.exporting.coco import Coco
from changeanywhere.exporting.folders import Levir, Second, TorchGeo, WhuGcd
from changeanywhere.exporting.opencd import OpenCd
from changeanywhere.exporting.options import LAYOUT_NAMES
from changeanywhere.exporting.tables import HuggingFace, Torchange
from changeanywhere.exporting.taco import Taco
from changeanywhere.exporting.xview2 import XView2
from changeanywhere.exporting.yolo import YoloSeg

_ALL: tuple[type[Exporter], ...] = (
    *(Levir, Second, OpenCd, TorchGeo, HuggingFace, Torchange),
    *(WhuGcd, XView2, Coco, YoloSeg, Taco),
)
EXPORTERS: dict[str, type[Exporter]] = {name: next(e for e in _ALL if e.name == name) for name in LAYOUT_NAMES}
