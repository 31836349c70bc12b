"""What stands beside the rasters of a scene: events as features, a STAC item, styles for QGIS. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from changeanywhere.documents import to_json
from changeanywhere.legend import Legend, Mask
from changeanywhere.rasters.facts import Window
from changeanywhere.rasters.ground import gsd_of
from changeanywhere.sample import ChangeEvent, GeoReference
from changeanywhere.scenes.inputs import SceneImage
from changeanywhere.text import xml

WORLD = "EPSG:4326"
STAC_VERSION = "1.1.0"
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
CHANGE_COLOUR = (220, 30, 60)
TITLES = {
    "t1": "Image of date 1",
    "t2": "Image of date 2, painted",
    "mask_t1": "Land cover of date 1",
    "mask_t2": "Land cover of date 2",
    "change": "Change: 255, else 0",
}
TIMES = ("%Y:%m:%d %H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y:%m:%d %H:%M")
"""Of TIFF 6.0, and as programs write it otherwise."""
Feature = tuple[dict[str, Any], dict[str, Any]]
"""GeoJSON geometry and fields."""


def event_features(
    events: Sequence[ChangeEvent], masks: tuple[Mask, Mask], image: SceneImage, legend: Legend, world: bool
) -> Iterator[Feature]:
    """The changed ground of each event: as longitude and latitude (``world``), or in the CRS of the image; in pixels
    where it has none."""
    from rasterio.features import shapes
    from rasterio.transform import Affine
    from rasterio.warp import transform_geom

    facts = image.facts
    for number, event in enumerate(events):
        window = Window(*event.bbox)
        before, after = (np.asarray(mask[window.slices]) for mask in masks)
        changed = event.changed(before, after)
        move = Affine.translation(window.column, window.row)
        transform = move if facts.crs is None else facts.transform * move
        # Outlines of px that touch at a corner alone cross themselves with 8 neighbours, which no overlay takes.
        found = shapes(changed.astype(np.uint8), mask=changed, connectivity=4, transform=transform)
        geometry = {"type": "MultiPolygon", "coordinates": [shape["coordinates"] for shape, _ in found]}
        if world and facts.crs is not None:
            geometry = transform_geom(facts.crs, WORLD, geometry, precision=7)
        area, gsd = int(np.count_nonzero(changed)), gsd_of(facts, window)
        yield (
            dict(geometry),
            {
                "number": number,
                "kind": event.kind,
                "from_class": legend.name_of(event.from_class),
                "to_class": legend.name_of(event.to_class),
                "area_px": area,
                "area_m2": None if gsd is None else round(area * gsd * gsd, 2),
            },
        )


def geojson(features: Iterator[Feature]) -> bytes:
    """RFC 7946, a feature a line."""
    lines = [
        to_json({"type": "Feature", "properties": fields, "geometry": _plain(geometry)}, ensure_ascii=False)
        for geometry, fields in features
    ]
    return ('{"type": "FeatureCollection", "features": [\n' + ",\n".join(lines) + "\n]}\n").encode()


def _plain(geometry: Any) -> Any:
    """Tuples as lists."""
    return json.loads(json.dumps(geometry))


def stac_item(key: str, image: SceneImage, assets: Sequence[str], facts: dict[str, Any]) -> bytes:
    """A STAC item (1.1.0, projection extension). Of the image's date, where its file says none, all that is said is
    that it lies somewhere in time: a STAC item must have one."""
    georef = image.georef
    footprint, box = _footprint(image)
    properties: dict[str, Any] = {**_time_of(image), **facts}
    if image.gsd_m is not None:
        properties["gsd"] = round(image.gsd_m, 4)
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [],
        "id": key,
        "geometry": footprint,
        "properties": properties,
        "links": [],
        "assets": {name.rpartition(".")[0]: _asset(name) for name in assets},
    }
    if box is not None and georef is not None:
        item["bbox"] = box
        item["stac_extensions"] = [PROJECTION]
        height, width = image.shape
        properties |= {"proj:shape": [height, width], "proj:transform": [*georef.transform, 0, 0, 1]}
        properties["proj:code"] = georef.crs if georef.crs.startswith("EPSG:") else None
        if properties["proj:code"] is None:
            properties["proj:wkt2"] = georef.crs
    return (to_json(item, indent=1, ensure_ascii=False) + "\n").encode()


def _asset(name: str) -> dict[str, Any]:
    stem, _, suffix = name.rpartition(".")
    kinds = {
        "tif": "image/tiff; application=geotiff; profile=cloud-optimized",
        "geojson": "application/geo+json",
        "gpkg": "application/geopackage+sqlite3",
        "html": "text/html",
    }
    roles = ["metadata"] if suffix != "tif" else ["data"]
    return {"href": f"./{name}", "type": kinds[suffix], "title": TITLES.get(stem, stem), "roles": roles}


def _footprint(image: SceneImage) -> tuple[dict[str, Any] | None, list[float] | None]:
    from rasterio.warp import transform_bounds, transform_geom

    if image.facts.crs is None:
        return None, None
    height, width = image.shape
    corners = [(0, 0), (0, height), (width, height), (width, 0), (0, 0)]
    ring = [list(image.facts.transform @ corner) for corner in corners]
    placed = transform_geom(image.facts.crs, WORLD, {"type": "Polygon", "coordinates": [ring]}, precision=8)
    xs, ys = [x for x, _ in ring], [y for _, y in ring]
    bounds = transform_bounds(image.facts.crs, WORLD, min(xs), min(ys), max(xs), max(ys))
    return _plain(placed), [round(value, 8) for value in bounds]


def _time_of(image: SceneImage) -> dict[str, Any]:
    """The date in the TIFF's own tag, ``YYYY:MM:DD HH:MM:SS``, or with dashes; what is no date is none."""
    from changeanywhere.rasters.tiff import opened

    text = ""
    if image.facts.container == "TIFF":
        with opened(image.path) as raster:
            text = str(raster.tags().get("TIFFTAG_DATETIME", ""))
    for form in TIMES:
        try:
            return {"datetime": datetime.strptime(text.strip(), form).strftime("%Y-%m-%dT%H:%M:%SZ")}
        except ValueError:
            continue
    return {"datetime": None, "start_datetime": "0001-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}


def qgis_style(entries: Sequence[tuple[int, str, tuple[int, int, int]]], alpha: int = 255) -> bytes:
    """A QGIS style (.qml) for a raster of values: value, label, colour; QGIS takes the one that is called like the
    raster by itself."""
    lines = [
        f'      <paletteEntry value="{value}" label="{xml(label)}" color="#{red:02x}{green:02x}{blue:02x}" '
        f'alpha="{alpha}"/>'
        for value, label, (red, green, blue) in entries
    ]
    return "\n".join(
        [
            "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>",
            '<qgis version="3.22" styleCategories="Symbology">',
            "  <pipe>",
            '    <rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">',
            "     <colorPalette>",
            *lines,
            "     </colorPalette>",
            "    </rasterrenderer>",
            "  </pipe>",
            "  <blendMode>0</blendMode>",
            "</qgis>",
            "",
        ]
    ).encode()


def styles(legend: Legend) -> dict[str, bytes]:
    """Style files by name."""
    of_masks = qgis_style([(c.index, c.name, c.color) for c in legend.classes])
    of_change = qgis_style([(255, "changed", CHANGE_COLOUR)], alpha=180)
    return {"mask_t1.qml": of_masks, "mask_t2.qml": of_masks, "change.qml": of_change}


def place_of(georef: GeoReference | None) -> str:
    """For a line of a report."""
    return "no CRS" if georef is None else georef.crs.partition("[")[0] if "[" in georef.crs else georef.crs


def out_names(events_format: str) -> tuple[str, ...]:
    """Files of a scene that a STAC item names."""
    return "t1.tif", "t2.tif", "mask_t1.tif", "mask_t2.tif", "change.tif", f"events.{events_format}", "report.html"


def folder_of(out: Path, key: str) -> Path:
    """Where a scene lies."""
    return out / key
