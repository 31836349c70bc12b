"""Single-date sources: folders of images and masks, OpenEarthMap and LoveDA trees, large GeoTIFFs by window."""

from __future__ import annotations

from changeanywhere.sources.base import Source
from changeanywhere.sources.dates import NO_DATES, SECOND_IMAGES, SECOND_MASKS
from changeanywhere.sources.joined import JoinedSource, held_out
from changeanywhere.sources.options import SourceOptions
from changeanywhere.sources.tiles import open_images, open_source

__all__ = [
    "NO_DATES",
    "SECOND_IMAGES",
    "SECOND_MASKS",
    "JoinedSource",
    "Source",
    "SourceOptions",
    "held_out",
    "open_images",
    "open_source",
]
