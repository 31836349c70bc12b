"""How change events are drawn. The paper (§2.3) names two kinds and no number: every default here is ours.

The defaults are the paper's recipe: one appearance or disappearance per pair, shapes of the tile itself, as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from changeanywhere.errors import ConfigError
from changeanywhere.help import among, one_of

PAPER_KINDS = ("appearance", "disappearance")
KINDS = (*PAPER_KINDS, "conversion", "growth", "shrinkage", "rebuild")
FILLS = ("majority", "nearest", "random")
PLACEMENTS = ("anywhere", "like_donor")
ROTATIONS = ("none", "right_angles", "any")


@dataclass(frozen=True)
class EventOptions:
    """Options of the change-event simulator; areas in px, shares of the whole tile."""

    kinds: tuple[str, ...] = one_of(KINDS, PAPER_KINDS)
    """Kinds of events, in the order in which a tile's pairs take them."""
    events_per_pair: tuple[int, int] = (1, 1)
    """Fewest and most events in one pair (drawn evenly; fewer where no more fit)."""
    min_area: int = 64
    """Smallest instance that appears, disappears or changes, px."""
    max_share: float = 0.15
    """Largest instance that appears, disappears or changes, as a share of the tile."""
    min_area_m2: float | None = None
    """Smallest instance in square metres, where the ground sampling is known; takes the place of min_area."""
    max_area_m2: float | None = None
    """Largest instance in square metres, where the ground sampling is known; on top of max_share."""
    objects: tuple[str, ...] = ()
    """Classes whose instances appear or disappear; default: all. Others are the ground on which they do."""
    areas: tuple[int, ...] = ()
    """Rising sizes of events, px: each event lies between two neighbouring ones, all alike, so that quantiles of real
    objects' sizes give objects of like sizes; within the limits above."""
    connectivity: int = one_of((4, 8), 8)
    """Neighbours that join pixels to an instance: 4 or 8."""
    margin: int = 2
    """Px of the receiving region that must remain around an appearance."""
    max_coverage: float = 0.5
    """Homogeneity: largest share of the receiving region that an appearance may cover."""
    shape_bank: bool = False
    """Take shapes of appearances from all tiles of the source, not from this tile alone."""
    rotate: str = one_of(ROTATIONS, "none")
    """Rotation of appearing shapes: none, right_angles or any."""
    flip: bool = False
    """Mirror appearing shapes at random."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the factor on the size (length) of appearing shapes."""
    group_size: int = 1
    """Most neighbouring instances of a class that appear together in their layout (a row of houses; not from a
    bank)."""
    placement: str = one_of(PLACEMENTS, "anywhere")
    """Where an appearance lies: anywhere that it fits, or ``like_donor``: where what is within 24 px of it is most like
    what is around the shape that it copies (ours)."""
    fill: str = one_of(FILLS, "majority")
    """What vanished ground becomes: the majority class of its ring, pixel by pixel the nearest class, or one of the
    classes of its ring at random."""
    move: bool = False
    """An appearance leaves its place, which takes the class around it, instead of being copied (not from a bank)."""
    spread: tuple[int, int] = (3, 12)
    """Px by which growth and shrinkage move an edge (drawn evenly)."""
    transitions: str | None = None
    """Weights of class transitions: "default", "buildings", "houses" (the package's) or a YAML file; default: all
    equal."""

    def __post_init__(self) -> None:
        for name in ("kinds", "events_per_pair", "scale", "spread", "areas", "objects"):  # YAML and flags give lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        few, many = self.events_per_pair if len(self.events_per_pair) == 2 else (0, 0)
        checks: list[tuple[str, object, bool, str]] = [
            ("kinds", self.kinds, bool(self.kinds) and not unknown, among("".join(unknown[:1]), KINDS)),
            ("events_per_pair", self.events_per_pair, 1 <= few <= many <= 64, "two counts, 1 to 64, rising"),
            ("min_area", self.min_area, self.min_area >= 1, "1 or more px"),
            ("max_share", self.max_share, 0 < self.max_share <= 1, "above 0 to 1"),
            *(
                (name, limit, limit is None or limit > 0, "above 0 m²")
                for name, limit in (("min_area_m2", self.min_area_m2), ("max_area_m2", self.max_area_m2))
            ),
            ("areas", self.areas, _rising(self.areas), "none, or two and more sizes of 1 px and more, rising"),
            (
                "move",
                self.move,
                not (self.move and (self.shape_bank or self.group_size > 1)),
                "false with these donors",
            ),
            ("connectivity", self.connectivity, self.connectivity in (4, 8), "4, 8"),
            ("margin", self.margin, 0 <= self.margin <= 64, "0 to 64 px"),
            ("max_coverage", self.max_coverage, 0 < self.max_coverage <= 1, "above 0 to 1"),
            ("rotate", self.rotate, self.rotate in ROTATIONS, among(self.rotate, ROTATIONS)),
            ("scale", self.scale, len(self.scale) == 2 and 0.1 <= self.scale[0] <= self.scale[1] <= 10, "0.1 to 10"),
            ("group_size", self.group_size, 1 <= self.group_size <= 32, "1 to 32"),
            ("placement", self.placement, self.placement in PLACEMENTS, among(self.placement, PLACEMENTS)),
            ("fill", self.fill, self.fill in FILLS, among(self.fill, FILLS)),
            (
                "spread",
                self.spread,
                len(self.spread) == 2 and 1 <= self.spread[0] <= self.spread[1] <= 128,
                "1 to 128 px",
            ),
        ]
        for name, value, allowed, what in checks:
            if not allowed:
                raise ConfigError(f"events.{name} is {value!r}; allowed: {what}")

    def area_limits(self, num_pixels: int, gsd_m: float | None) -> tuple[int, int]:
        """Smallest and largest area of an event in px, from px or square metres, on ground of ``num_pixels``."""
        smallest, largest = self.min_area, int(self.max_share * num_pixels)
        if gsd_m is not None:
            pixel = gsd_m**2
            if self.min_area_m2 is not None:
                smallest = max(1, round(self.min_area_m2 / pixel))
            if self.max_area_m2 is not None:
                largest = min(largest, int(self.max_area_m2 / pixel))
        return smallest, largest

    def beyond_limits(self, num_pixels: int, gsd_m: float | None) -> dict[str, float]:
        """Of the sizes that ``areas`` asks for, each band alike and evenly within it, the share that no event reaches
        on ground of ``num_pixels``, by the option that keeps it from them; {} where there is none."""
        smallest, largest = self.area_limits(num_pixels, gsd_m)
        bands = list(pairwise(self.areas))
        below = sum(min(1.0, max(0.0, (smallest - low) / (high - low))) for low, high in bands)
        above = sum(min(1.0, max(0.0, (high - largest) / (high - low))) for low, high in bands)
        in_metres = self.min_area_m2 is not None and gsd_m is not None
        share_holds = self.max_area_m2 is None or largest == int(self.max_share * num_pixels)
        parts = {
            "min_area_m2" if in_metres else "min_area": below,
            "max_share" if share_holds else "max_area_m2": above,
        }
        return {name: part / len(bands) for name, part in parts.items() if part}

    def beyond_in_words(self, shares: Mapping[str, float], asked: str) -> str:
        """What :meth:`beyond_limits` found, of what the option ``asked`` asks for; "" where there is nothing."""
        parts = [
            f"{share:.0%} ({'below' if name.startswith('min') else 'above'} events.{name}, {self.limit_in_words(name)})"
            for name, share in shares.items()
        ]
        return f"of the sizes that {asked} asks for {' and '.join(parts)} are never drawn" if parts else ""

    def limit_in_words(self, name: str) -> str:
        """The value of one of the limits of sizes, with its unit."""
        units = {"min_area": " px", "max_share": " of the tile"}
        return f"{getattr(self, name)}{units.get(name, ' m2')}"


def _rising(areas: Sequence[int]) -> bool:
    return len(areas) != 1 and min(areas, default=1) >= 1 and all(a < b for a, b in pairwise(areas))
