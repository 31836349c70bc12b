"""Polygons of land cover onto a grid, and events as polygons, through pyogrio and shapely (the extra ``scenes``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
PROBES, MARGIN = 33, 1 / 16
"""The image is found in another CRS by so many places along each side, and what lies around it by this share."""
Frames = list[tuple[float, float, float, float]]
"""Left, bottom, right, top."""


@dataclass(frozen=True)
class Polygons:
    """Polygons of a file around an image, each of one piece, in their CRS, with their classes as they stand in it."""

    path: Path
    geometries: npt.NDArray[Any]
    values: Sequence[str | int | None]
    """None where nothing is said."""
    areas: npt.NDArray[np.float64]
    """Of each whole piece, in the units of its CRS."""
    crs: Any
    names: list[str] | None
    """Different classes of the whole file by name, sorted; None where they are numbers."""


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


def read_polygons(path: Path, class_field: str | None, layer: str | None, facts: Facts) -> Polygons:
    """The polygons of a file that meet the image of ``facts``. :class:`SourceError` naming what is missing: CRS, field,
    layer, polygons."""
    pyogrio, shapely = _libraries()
    if facts.crs is None:
        raise SourceError(f"{path}: the image has no CRS and transform, so that nobody knows where these lie")
    layer, info = _described(path, layer)
    name = _field(path, [str(field) for field in info["fields"]], class_field)
    crs = _crs(path, info["crs"])
    frames, moves = _frames(path, crs, facts), horizontal(facts.crs) != horizontal(crs)
    with _reading(path):
        words = pyogrio.raw.read(path, layer=layer, columns=[name], read_geometry=False)[3][0]
        parts = [
            (frame, *pyogrio.raw.read(path, layer=layer, columns=[name], bbox=frame, return_fids=True)[1:])
            for frame in frames
        ]
    geometries, values, areas, order = [], [], [], []
    for frame, fids, shapes, (column,) in parts:
        found = shapely.from_wkb(shapes)
        kinds = shapely.get_type_id(found)
        if not np.isin(kinds, (*POLYGONS, -1)).all():
            strange = found[~np.isin(kinds, (*POLYGONS, -1))][0].geom_type
            raise SourceError(f"{path}: holds a {strange}; allowed: polygons; take the others out")
        there = np.isin(kinds, POLYGONS)
        pieces, of = shapely.get_parts(shapely.force_2d(found[there]), return_index=True)
        clipped, of_piece = _clipped(pieces, frame) if moves else (pieces, np.arange(len(pieces)))
        geometries.append(clipped)
        areas.append(shapely.area(pieces)[of_piece])
        values += [_value(path, name, value) for value in column[there][of][of_piece]]
        order.append(fids[there][of][of_piece])
    if not values:
        raise SourceError(f"{path}: no polygon lies in the image; do both have the right CRS?")
    by_file = np.argsort(np.concatenate(order), kind="stable")
    texts = sorted({word for word in words if isinstance(word, str) and word.strip()})
    return Polygons(
        path, np.concatenate(geometries)[by_file], [values[number] for number in by_file],
        np.concatenate(areas)[by_file], crs, texts or None,
    )  # fmt: skip


def names_classes(path: Path, class_field: str | None, layer: str | None) -> bool:
    """Whether the classes of polygons are names, not numbers. :class:`SourceError` as :func:`read_polygons`."""
    _, info = _described(path, layer)
    fields = [str(field) for field in info["fields"]]
    return str(info["dtypes"][fields.index(_field(path, fields, class_field))]) == "object"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    pyogrio, _ = _libraries()
    try:
        yield
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError, RuntimeError) as error:
        raise SourceError(f"{path}: not readable polygons ({' '.join(str(error).split())[:200]})") from error


def _described(path: Path, layer: str | None) -> tuple[str, Any]:
    """The layer that is read, and what the file says of it."""
    pyogrio, _ = _libraries()
    if not path.is_file():
        raise SourceError(f"{path}: no such file; allowed: {', '.join(SUFFIXES)}")
    with _reading(path):
        layers = [str(name) for name, _ in pyogrio.list_layers(path)]
        if layer is None and len(layers) > 1:
            raise SourceError(f"{path}: has the layers {', '.join(layers)}; say which: --layer {layers[0]}")
        if layer is not None and layer not in layers:
            raise SourceError(f"{path}: no layer {layer!r}; allowed: {', '.join(layers)}")
        info = pyogrio.read_info(path, layer=layer, force_feature_count=True)
    if not info["features"] or any(kind in str(info["geometry_type"]) for kind in ("Point", "Line", "None")):
        raise SourceError(f"{path}: holds no polygons; land cover must be areas")
    return layer or layers[0], info


def _field(path: Path, fields: Sequence[str], asked: str | None) -> str:
    if asked is not None:
        if asked not in fields:
            raise SourceError(f"{path}: no field {asked!r}; --class-field is one of: {', '.join(fields) or 'none'}")
        return asked
    found = [name for wanted in FIELDS for name in fields if name.lower() == wanted]
    if not found:
        raise SourceError(f"{path}: which field is the class? --class-field is one of: {', '.join(fields) or 'none'}")
    return found[0]


def _value(path: Path, name: str, value: Any) -> str | int | None:
    """A class as a name or a whole number; None where it is empty: unknown ground, whatever number the classes begin
    with."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return None
    if isinstance(value, str):
        return value if value.strip() else None
    whole = isinstance(value, int | np.integer | float | np.floating) and bool(np.isfinite(value))
    if whole and float(value) == int(value):
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


def _probes(path: Path, crs: Any, facts: Facts) -> npt.NDArray[np.float64]:
    """Places of the image in ``crs``, ``[PROBES, PROBES, 2]``; longitudes of one that lies across 180° go on beyond."""
    columns, rows = np.meshgrid(np.linspace(0, facts.width, PROBES), np.linspace(0, facts.height, PROBES))
    xs, ys = facts.transform @ (columns, rows)
    if horizontal(facts.crs) != horizontal(crs):
        xs, ys = (axis.reshape(xs.shape) for axis in moved(path, facts.crs, crs, xs.ravel(), ys.ravel()))
        east = np.where(xs < 0, xs + 360, xs)
        if horizontal(crs).is_geographic and np.ptp(east) < np.ptp(xs):
            xs = east
    return np.stack([xs, ys], 2)


def moved(path: Path, one: Any, other: Any, xs: Any, ys: Any) -> tuple[Any, Any]:
    """Places f64 ``[N]`` in CRS ``one`` → in ``other``, heights apart. :class:`SourceError` naming ``path``, which lies
    there, where no way leads from one to the other."""
    from rasterio.warp import transform

    one, other = horizontal(one), horizontal(other)
    if one == other:
        return xs, ys
    try:
        found = [np.asarray(axis, np.float64) for axis in transform(one, other, xs, ys)]
    except Exception as error:  # rasterio's and PROJ's own kinds
        raise SourceError(f"{path}: {one} cannot be brought to {other} ({error})") from error
    if not all(np.isfinite(axis).all() for axis in found):
        raise SourceError(f"{path}: {one} cannot be brought to {other} where the image lies; do both have the right?")
    return found[0], found[1]


def _frames(path: Path, crs: Any, facts: Facts) -> Frames:
    """Around the image, in the CRS of polygons: what lies beyond is neither read nor moved, since of a continent's
    polygons cut into pieces of some px nothing would be left of the memory, and few maps hold the whole Earth."""
    places = _probes(path, crs, facts).reshape(-1, 2)
    (left, bottom), (right, top) = places.min(0), places.max(0)
    if horizontal(facts.crs) == horizontal(crs):
        return [(left, bottom, right, top)]
    wide, tall = MARGIN * (right - left), MARGIN * (top - bottom)
    left, bottom, right, top = left - wide, bottom - tall, right + wide, top + tall
    if not horizontal(crs).is_geographic:
        return [(left, bottom, right, top)]
    bottom, top = max(bottom, -90.0), min(top, 90.0)
    if right - left >= 360:
        return [(-180.0, bottom, 180.0, top)]
    turns = (left + turn for turn in (-360, 0, 360))  # files count to 180, or to 360
    return [(west, bottom, west + right - left, top) for west in turns if west < 360 and west + right - left > -180]


def _clipped(pieces: npt.NDArray[Any], frame: tuple[float, float, float, float]) -> tuple[npt.NDArray[Any], Any]:
    """What of polygons lies in a frame, in pieces, and the number of the polygon that each is of."""
    _, shapely = _libraries()
    box = shapely.box(*frame)
    beyond = np.flatnonzero(~shapely.covered_by(shapely.envelope(pieces), box))
    cut = pieces.copy()
    sound = shapely.is_valid(pieces[beyond])
    cut[beyond[~sound]] = shapely.make_valid(pieces[beyond[~sound]])
    cut[beyond] = shapely.intersection(cut[beyond], box)
    parts, of = shapely.get_parts(cut, return_index=True)
    nested = shapely.get_type_id(parts) == POLYGONS[1]  # a polygon that was mended can be a collection
    inner, of_inner = shapely.get_parts(parts[nested], return_index=True)
    parts, of = np.concatenate([parts[~nested], inner]), np.concatenate([of[~nested], of[nested][of_inner]])
    kept = (shapely.get_type_id(parts) == POLYGONS[0]) & ~shapely.is_empty(parts)
    order = np.argsort(of[kept], kind="stable")
    return parts[kept][order], of[kept][order]


def rasterise(polygons: Polygons, values: Sequence[int], facts: Facts, out: npt.NDArray[np.uint8]) -> None:
    """Burn class ``values`` into ``out`` ``[H, W]`` on the image's grid; ground under no polygon stays as it is.

    A pixel is of the polygon that its centre is in. Where several overlap, the smallest by area is on top (a house lies
    in its field), each piece of a multipolygon by its own; of equal ones the later in the file.
    """
    _, shapely = _libraries()
    from rasterio.features import rasterize

    placed = _moved(polygons, facts)
    height, width = out.shape
    corners = [facts.transform @ corner for corner in ((0, 0), (width, 0), (width, height), (0, height))]
    inside = shapely.intersects(placed, shapely.Polygon(corners))
    if not inside.any():
        raise SourceError(f"{polygons.path}: no polygon lies in the image; do both have the right CRS?")
    order = [number for number in np.argsort(-polygons.areas, kind="stable") if inside[number]]
    rasterize(
        ((placed[number], int(values[number])) for number in order), out=out, transform=facts.transform, dtype="uint8"
    )


def _moved(polygons: Polygons, facts: Facts) -> npt.NDArray[Any]:
    """Polygons in the CRS of the image."""
    _, shapely = _libraries()
    if horizontal(facts.crs) == horizontal(polygons.crs):
        return polygons.geometries
    places = _probes(polygons.path, polygons.crs, facts)
    along, down = np.diff(places, axis=1)[:-1], np.diff(places, axis=0)[:, :-1]
    cells = np.abs(along[..., 0] * down[..., 1] - along[..., 1] * down[..., 0])
    pixel = (PROBES - 1) * np.sqrt(np.median(cells) / (facts.height * facts.width))

    def here(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.stack(moved(polygons.path, polygons.crs, facts.crs, places[:, 0], places[:, 1]), 1)

    result: npt.NDArray[Any] = shapely.transform(shapely.segmentize(polygons.geometries, SEGMENT * pixel), here)
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
