"""Painters by name: those of the package, and those that other packages register."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from changeanywhere.errors import ConfigError
from changeanywhere.painters.base import PainterKind

GROUP = "changeanywhere.painters"
OWN = {
    "diffusion": "changeanywhere.painters.diffusion:DiffusionPainter",
    "copy_paste": "changeanywhere.painters.pasting:CopyPastePainter",
    "recolour": "changeanywhere.painters.pasting:RecolourPainter",
    "patch_exchange": "changeanywhere.painters.pasting:PatchExchangePainter",
}
MUST_HAVE = ("reads", "how", "repaints", "uses_model", "reconstructs", "build", "paint")


def painter_names() -> list[str]:
    """All names that ``--method`` takes, the package's own first."""
    return [*OWN, *sorted({point.name for point in entry_points(group=GROUP)} - set(OWN))]


def find_painter(name: str) -> type[PainterKind]:
    """The class behind ``name``, imported now; :class:`ConfigError` if there is none or it is no painter."""
    if name in OWN:
        module, _, attribute = OWN[name].partition(":")
        return cast(type[PainterKind], getattr(import_module(module), attribute))
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                kind: Any = point.load()
            except Exception as error:  # whatever a foreign package raises when it is imported
                raise ConfigError(f"method {name!r}: {point.value} cannot be imported ({error})") from error
            missing = [attribute for attribute in MUST_HAVE if not hasattr(kind, attribute)]
            if missing:
                raise ConfigError(
                    f"method {name!r}: {point.value} has no {missing[0]!r}; see changeanywhere.painters.base"
                )
            return cast(type[PainterKind], kind)
    raise ConfigError(f"method is {name!r}; allowed: {', '.join(painter_names())}")
