"""Where a file lies, and how much ground a pixel covers."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from changeanywhere.errors import RasterError
from changeanywhere.rasters.facts import Facts, Window
from changeanywhere.sample import GeoReference

DISTORTION = 0.02
"""Share by which a pixel's area on a map may differ from the ground's before the latter is taken (UTM: 0.0008)."""
WGS84_A, WGS84_E2 = 6_378_137.0, 0.00669437999014
MAX_GCP_ERROR = 0.5  # px


def place_of(path: Path, raster: Any) -> tuple[Any, Any, str]:
    """CRS, transform and, where a file says half of it, why it counts as none.

    Ground control points stand in for a transform where one fits them to half a pixel.
    """
    if raster.crs is not None:
        transform = raster.transform
        numbers = tuple(transform)[:6]
        if not all(math.isfinite(number) for number in numbers) or transform.determinant == 0:
            raise RasterError(
                f"{path}: transform {numbers} maps all pixels to one line; save it with a valid transform"
            )
        if transform.is_identity:
            return None, None, "a CRS, but no transform"
        return raster.crs, transform, ""
    points, crs = raster.gcps
    if not points or crs is None:
        return None, None, ""
    from rasterio.transform import from_gcps

    try:
        transform = from_gcps(points)
        errors = [np.subtract(~transform @ (point.x, point.y), (point.col, point.row)) for point in points]
    except Exception:  # GDAL's own kinds, and numpy's for points on a line
        return None, None, f"{len(points)} control points that no transform fits"
    off = float(np.abs(errors).max())
    if not off <= MAX_GCP_ERROR:
        return None, None, f"{len(points)} control points, {off:.1f} px off any transform; warp it to a grid (gdalwarp)"
    return crs, transform, ""


def georef_of(facts: Facts, window: Window) -> GeoReference | None:
    """CRS and transform of a window; None without a place."""
    if facts.crs is None:
        return None
    a, b, c, d, e, f = tuple(facts.transform)[:6]
    origin = (c + a * window.column + b * window.row, f + d * window.column + e * window.row)
    epsg = _epsg(facts.crs)
    return GeoReference(f"EPSG:{epsg}" if epsg else facts.crs.to_wkt(), (a, b, origin[0], d, e, origin[1]))


@lru_cache(maxsize=64)
def _epsg(crs: Any) -> int | None:
    """PROJ takes its time over this."""
    epsg: int | None = crs.to_epsg()
    return epsg


def gsd_of(facts: Facts, window: Window) -> float | None:
    """Side in metres of a square with the area that a pixel covers on the ground, at the centre of ``window``.

    The map's own unit where the map is true to 2 % there, else measured on the ellipsoid: degrees, web Mercator. None
    without a place, or with a CRS that is not of this Earth (a local one).
    """
    if facts.crs is None:
        return None
    a, b, _, d, e, _ = tuple(facts.transform)[:6]
    straight = b == d == 0 and abs(a) == abs(e)
    nominal = abs(a) if straight else math.sqrt(abs(a * e - b * d))
    unit = _metres(facts.crs)
    measured = _measured(facts, window.column + window.width / 2, window.row + window.height / 2)
    if unit is not None and (measured is None or abs((measured / (nominal * unit)) ** 2 - 1) <= DISTORTION):
        return float(nominal * unit)
    return measured


@lru_cache(maxsize=64)
def _metres(crs: Any) -> float | None:
    """Metres per unit of a projected CRS; None for degrees and for what is neither."""
    flat = horizontal(crs)
    return float(flat.linear_units_factor[1]) if flat.is_projected else None


def _measured(facts: Facts, column: float, row: float) -> float | None:
    """By the change of longitude and latitude over one pixel (a, b: WGS 84)."""
    from rasterio.warp import transform

    places = [facts.transform @ place for place in ((column, row), (column + 1, row), (column, row + 1))]
    try:
        longitudes, latitudes = transform(
            horizontal(facts.crs), "EPSG:4326", [place[0] for place in places], [place[1] for place in places]
        )
    except Exception:  # a CRS without relation to the Earth: rasterio's and PROJ's own kinds
        return None
    if not all(map(math.isfinite, (*longitudes, *latitudes))) or abs(latitudes[0]) >= 90:
        return None
    sine = math.sin(math.radians(latitudes[0]))
    bent = 1 - WGS84_E2 * sine * sine
    east = WGS84_A / math.sqrt(bent) * math.sqrt(1 - sine * sine)
    north = WGS84_A * (1 - WGS84_E2) / bent**1.5
    (x1, y1), (x2, y2) = (
        (
            math.radians((longitudes[i] - longitudes[0] + 180) % 360 - 180) * east,
            math.radians(latitudes[i] - latitudes[0]) * north,
        )
        for i in (1, 2)
    )
    area = abs(x1 * y2 - x2 * y1)
    return math.sqrt(area) if area > 0 else None


@lru_cache(maxsize=64)
def horizontal(crs: Any) -> Any:
    """The CRS without heights: of a compound one its first part, of a bound one its source."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        described = crs.to_dict(projjson=True)
        while described.get("type") in ("CompoundCRS", "BoundCRS"):
            described = described["components"][0] if described["type"] == "CompoundCRS" else described["source_crs"]
            crs = CRS.from_dict(described)
    except (CRSError, KeyError, AttributeError, IndexError):
        return crs
    return crs


def lies_elsewhere(one: Facts, other: Facts) -> bool:
    """Whether both have a place, and a corner differs by half a pixel; heights and names of CRS do not count."""
    if one.crs is None or other.crs is None:
        return False
    corners = [(0, 0), (one.width, 0), (0, one.height), (one.width, one.height)]
    places = [other.transform @ corner for corner in corners]
    if one.crs != other.crs:
        flat, flat_other = horizontal(one.crs), horizontal(other.crs)
        if flat != flat_other:
            from rasterio.warp import transform

            try:
                moved = transform(flat_other, flat, [place[0] for place in places], [place[1] for place in places])
            except Exception:  # no way leads from one to the other
                return True
            places = list(zip(*moved, strict=True))
    to_pixels = ~one.transform
    offsets = [np.subtract(to_pixels @ place, corner) for place, corner in zip(places, corners, strict=True)]
    return not bool(np.abs(offsets).max() < 0.5)
