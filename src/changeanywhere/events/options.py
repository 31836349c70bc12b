"""How change events are drawn. The paper (§2.3) names the two kinds and no number: every default here is ours."""

from __future__ import annotations

from dataclasses import dataclass

from changeanywhere.errors import ConfigError

KINDS = ("appearance", "disappearance")


@dataclass(frozen=True)
class EventOptions:
    """Options of the change-event simulator; areas in px, shares of the whole tile."""

    kinds: tuple[str, ...] = KINDS
    """Kinds of events, in the order in which a tile's pairs take them."""
    min_area: int = 64
    """Smallest instance that appears or disappears, px."""
    max_share: float = 0.15
    """Largest instance that appears or disappears, as a share of the tile."""
    connectivity: int = 8
    """Neighbours that join pixels to an instance: 4 or 8."""
    margin: int = 2
    """Px of the receiving region that must remain around an appearance."""
    max_coverage: float = 0.5
    """Largest share of the receiving region that an appearance may cover: it has to remain the larger one."""

    def __post_init__(self) -> None:
        checks: list[tuple[str, object, bool, str]] = [
            ("kinds", self.kinds, bool(self.kinds) and set(self.kinds) <= set(KINDS), ", ".join(KINDS)),
            ("min_area", self.min_area, self.min_area >= 1, "1 or more px"),
            ("max_share", self.max_share, 0 < self.max_share <= 1, "above 0 to 1"),
            ("connectivity", self.connectivity, self.connectivity in (4, 8), "4, 8"),
            ("margin", self.margin, 0 <= self.margin <= 64, "0 to 64 px"),
            ("max_coverage", self.max_coverage, 0 < self.max_coverage <= 1, "above 0 to 1"),
        ]
        for name, value, allowed, what in checks:
            if not allowed:
                raise ConfigError(f"events.{name} is {value!r}; allowed: {what}")
