"""Painters by name: those of the package, and those that other packages register."""

from __future__ import annotations

from collections.abc import Callable, Set
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from changeanywhere.errors import ConfigError
from changeanywhere.help import among
from changeanywhere.painters.base import PainterKind

GROUP = "changeanywhere.painters"
OWN = {
    "diffusion": "changeanywhere.painters.diffusion:DiffusionPainter",
    "copy_paste": "changeanywhere.painters.pasting:CopyPastePainter",
    "recolour": "changeanywhere.painters.pasting:RecolourPainter",
    "patch_exchange": "changeanywhere.painters.pasting:PatchExchangePainter",
}
MUST_HAVE: dict[str, Any] = {
    "reads": Set,
    "how": str,
    "repaints": bool,
    "uses_model": bool,
    "reconstructs": bool,
    "build": Callable,
    "paint": Callable,
}
"""What :class:`PainterKind` asks of a class, with its type."""


def painter_names() -> list[str]:
    """All names that ``--method`` takes, the package's own first."""
    return [*OWN, *sorted({point.name for point in entry_points(group=GROUP)} - set(OWN))]


def find_painter(name: str) -> type[PainterKind]:
    """The class behind ``name``, imported now; :class:`ConfigError` if there is none or it is no painter."""
    if name in OWN:
        module, _, attribute = OWN[name].partition(":")
        return cast(type[PainterKind], getattr(import_module(module), attribute))
    points = _points_of(name)
    if not points:
        raise ConfigError(f"method is {name!r}; allowed: {among(name, painter_names())}")
    if len(points) > 1:
        values = ", ".join(sorted(point.value for point in points))
        raise ConfigError(f"method {name!r}: several packages register it ({values}); allowed: one of them")
    try:
        kind: Any = points[0].load()
    except Exception as error:  # whatever a foreign package raises when it is imported
        raise ConfigError(f"method {name!r}: {points[0].value} cannot be imported ({error})") from error
    for attribute, wanted in MUST_HAVE.items():
        if not hasattr(kind, attribute):
            raise ConfigError(f"method {name!r}: {points[0].value} has no {attribute!r}; see docs/painters.md")
        found = getattr(kind, attribute)
        if not isinstance(found, wanted):
            raise ConfigError(f"method {name!r}: {attribute!r} of {points[0].value} is {found!r}; see docs/painters.md")
    return cast(type[PainterKind], kind)


def package_of(name: str) -> dict[str, str]:
    """Name and version of the other package that a painter comes from; empty for the own ones."""
    found = [point.dist for point in _points_of(name) if point.dist] if name not in OWN else []
    return {package.name: package.version for package in found}


def _points_of(name: str) -> list[EntryPoint]:
    return [point for point in entry_points(group=GROUP) if point.name == name]
