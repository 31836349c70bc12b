"""How what was asked of a set fits what its source holds: classes, ground sampling, sizes. No torch here."""

from __future__ import annotations

from collections import Counter

from changeanywhere.errors import require
from changeanywhere.generation.options import SimulateOptions
from changeanywhere.models.info import ModelInfo, outside_sampling
from changeanywhere.sources import Source
from changeanywhere.sources.options import DEFAULT_TILE_SIZE
from changeanywhere.terminal import say


def refuse_idle_limits(options: SimulateOptions, source: Source) -> None:
    """What events are to be held to, and this source has not: classes, ground sampling."""
    names = source.legend.names
    unknown = [name for name in options.events.objects if name not in names]
    require(not unknown, "events.objects", unknown, ", ".join(names))
    for name in ("min_area_m2", "max_area_m2"):
        value = getattr(options.events, name)
        known = value is None or any(item.gsd_m is not None for item in source.items)
        require(known, f"events.{name}", value, "where the ground sampling is known (a CRS, or provenance.csv)")


def warn_of_sampling(options: SimulateOptions, source: Source, info: ModelInfo | None) -> None:
    """Say on stderr which tiles the model does not know at their size, and for which limits in m² do not hold."""
    gsds = [item.gsd_m for item in source.items]
    if info is not None and (warning := outside_sampling(info, gsds)):
        say(f"{options.source}: {warning}", error=True)
    limited = any(getattr(options.events, name) is not None for name in ("min_area_m2", "max_area_m2"))
    if limited and (unknown := gsds.count(None)):
        say(
            f"{options.source}: {unknown} of {len(gsds)} tiles have no known ground sampling; limits in m2 do not hold "
            "for them (give gsd_m in provenance.csv)",
            error=True,
        )


def say_beyond_limits(options: SimulateOptions, source: Source, tile_size: int | None) -> None:
    """Say on stderr how many of the sizes asked for no event reaches, and why."""
    shares: dict[str, float] = {}
    for gsd_m, count in Counter(item.gsd_m for item in source.items).items():
        for name, share in options.events.beyond_limits((tile_size or DEFAULT_TILE_SIZE) ** 2, gsd_m).items():
            shares[name] = shares.get(name, 0.0) + share * count / len(source)
    asked = "events.areas" if options.targets.like is None else "targets.like"
    words = options.events.beyond_in_words(shares, asked)
    if words:
        say(f"{options.source}: {words}", error=True)
