"""Polygons of land cover onto a grid, and events as polygons, through pyogrio and shapely (the extra ``scenes``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import ConfigError, SourceError
from changeanywhere.rasters.facts import Facts
from changeanywhere.rasters.ground import horizontal

SUFFIXES = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".json": "GeoJSON", ".fgb": "FlatGeobuf"}
"""Of files of polygons, with the driver that reads them: no other is tried, since some point to other places."""
FIELDS = ("class", "landcover", "land_cover", "label")
"""Where the class is looked for if nothing is said."""
GPKG_VERSION = "1.2"
"""The programs of a long-lived distribution (GDAL 3.6) warn of younger ones."""
DATE_OPTION, NO_DATE = "OGR_CURRENT_DATE", "1970-01-01T00:00:00.000Z"
"""A GeoPackage says when it was last changed; the same scene is to be the same bytes."""
POLYGONS = (3, 6)  # shapely: Polygon, MultiPolygon
SEGMENT = 16
"""Edges are cut into pieces of this many px before they change their CRS: a straight line there is bent here."""


@dataclass(frozen=True)
class Polygons:
    """Polygons of a file, in its CRS, with their classes as they stand in it."""

    path: Path
    geometries: npt.NDArray[Any]
    values: Sequence[str | int]
    crs: Any

    @property
    def names(self) -> list[str] | None:
        """Different classes by name, sorted; None where they are numbers."""
        words = sorted({value for value in self.values if isinstance(value, str)})
        return words or None


def is_vector(path: Path) -> bool:
    """By the suffix."""
    return path.suffix.lower() in SUFFIXES


def _libraries() -> tuple[Any, Any]:
    try:
        import pyogrio
        import shapely
    except ImportError as error:
        raise ConfigError(
            f"polygons need {error.name}, which is not installed; install it: pip install 'changeanywhere[scenes]'"
        ) from error
    return pyogrio, shapely


def require_libraries() -> None:
    """:class:`ConfigError` where the extra ``scenes`` is not installed."""
    _libraries()


def read_polygons(path: Path, class_field: str | None, layer: str | None) -> Polygons:
    """All polygons of a file. :class:`SourceError` naming what is missing: CRS, field, layer, polygons."""
    pyogrio, shapely = _libraries()
    if not path.is_file():
        raise SourceError(f"{path}: no such file; allowed: {', '.join(SUFFIXES)}")
    try:
        layers = [str(name) for name, _ in pyogrio.list_layers(path)]
        if layer is None and len(layers) > 1:
            raise SourceError(f"{path}: has the layers {', '.join(layers)}; say which: --layer {layers[0]}")
        if layer is not None and layer not in layers:
            raise SourceError(f"{path}: no layer {layer!r}; allowed: {', '.join(layers)}")
        meta, _, shapes, columns = pyogrio.raw.read(path, layer=layer)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError, RuntimeError) as error:
        raise SourceError(f"{path}: not readable polygons ({' '.join(str(error).split())[:200]})") from error
    fields = [str(name) for name in meta["fields"]]
    name = _field(path, fields, class_field)
    column = columns[fields.index(name)]
    geometries = shapely.from_wkb(shapes)
    kinds = shapely.get_type_id(geometries)
    if not len(geometries) or not np.isin(kinds, POLYGONS).any():
        raise SourceError(f"{path}: holds no polygons; land cover must be areas")
    if not np.isin(kinds, (*POLYGONS, -1)).all():
        strange = geometries[~np.isin(kinds, (*POLYGONS, -1))][0].geom_type
        raise SourceError(f"{path}: holds a {strange}; allowed: polygons; take the others out")
    there = np.isin(kinds, POLYGONS)
    values = [_value(path, name, value) for value in column[there]]
    return Polygons(path, shapely.force_2d(geometries[there]), values, _crs(path, meta["crs"]))


def _field(path: Path, fields: Sequence[str], asked: str | None) -> str:
    if asked is not None:
        if asked not in fields:
            raise SourceError(f"{path}: no field {asked!r}; --class-field is one of: {', '.join(fields) or 'none'}")
        return asked
    found = [name for wanted in FIELDS for name in fields if name.lower() == wanted]
    if not found:
        raise SourceError(f"{path}: which field is the class? --class-field is one of: {', '.join(fields) or 'none'}")
    return found[0]


def _value(path: Path, name: str, value: Any) -> str | int:
    """A class as a name or a whole number; what is empty is unknown ground."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)) or value == "":
        return 0
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer | float | np.floating) and float(value) == int(value):
        return int(value)
    raise SourceError(f"{path}: field {name} holds {value!r}; allowed: names of classes, or whole numbers")


def _crs(path: Path, text: str | None) -> Any:
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    if not text:
        raise SourceError(f"{path}: says no CRS; save it with one (ogr2ogr -a_srs EPSG:…)")
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise SourceError(f"{path}: CRS {text[:80]!r} is not understood ({error})") from error


def rasterise(polygons: Polygons, values: Sequence[int], facts: Facts, out: npt.NDArray[np.uint8]) -> None:
    """Burn class ``values`` into ``out`` ``[H, W]`` on the image's grid; ground under no polygon stays as it is.

    A pixel is of the polygon that its centre is in. Where several overlap, the smallest by area is on top (a house lies
    in its field); of equal ones the later in the file.
    """
    _, shapely = _libraries()
    from rasterio.features import rasterize

    if facts.crs is None:
        raise SourceError(f"{polygons.path}: the image has no CRS and transform, so that nobody knows where these lie")
    placed = _moved(polygons, facts)
    height, width = out.shape
    left, top = facts.transform @ (0, 0)
    right, bottom = facts.transform @ (width, height)
    frame = shapely.box(min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    inside = shapely.intersects(placed, frame) if facts.transform.b == facts.transform.d == 0 else np.ones(len(placed))
    if not inside.any():
        raise SourceError(f"{polygons.path}: no polygon lies in the image; do both have the right CRS?")
    areas = shapely.area(placed)
    order = [number for number in np.argsort(-areas, kind="stable") if inside[number]]
    rasterize(
        ((placed[number], int(values[number])) for number in order), out=out, transform=facts.transform, dtype="uint8"
    )


def _moved(polygons: Polygons, facts: Facts) -> npt.NDArray[Any]:
    """Polygons in the CRS of the image."""
    _, shapely = _libraries()
    from rasterio.warp import transform

    here, there = horizontal(facts.crs), horizontal(polygons.crs)
    if here == there:
        return polygons.geometries
    pixel = (abs(facts.transform.a) + abs(facts.transform.e)) / 2
    metres = pixel * (111_320 if here.is_geographic else 1)
    length = SEGMENT * metres / (111_320 if there.is_geographic else 1)

    def moved(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        columns = transform(there, here, places[:, 0], places[:, 1])
        return np.stack(columns, 1)

    try:
        result: npt.NDArray[Any] = shapely.transform(shapely.segmentize(polygons.geometries, length), moved)
    except Exception as error:  # PROJ's own kinds: no way leads from one CRS to the other
        raise SourceError(f"{polygons.path}: {there} cannot be brought to {here} ({error})") from error
    return result


def write_gpkg(path: Path, layer: str, rows: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], crs: str) -> None:
    """Features (GeoJSON geometry, fields) of one kind as a GeoPackage."""
    pyogrio, shapely = _libraries()
    features = list(rows)
    geometries = np.array([shapely.to_wkb(shapely.geometry.shape(geometry)) for geometry, _ in features], object)
    names = list(features[0][1]) if features else ["kind"]
    fields = [np.array([np.nan if row[name] is None else row[name] for _, row in features]) for name in names]
    if not features:
        geometries, fields = np.array([], object), [np.array([], object)]
    pyogrio.set_gdal_config_options({DATE_OPTION: NO_DATE})
    try:
        pyogrio.raw.write(
            path, geometries, fields, names, layer=layer, driver="GPKG", geometry_type="MultiPolygon", crs=crs,
            promote_to_multi=True, dataset_options={"VERSION": GPKG_VERSION},
        )  # fmt: skip
    finally:
        pyogrio.set_gdal_config_options({DATE_OPTION: None})
