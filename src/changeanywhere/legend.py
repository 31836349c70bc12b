"""Legends: the classes of a semantic mask, and mappings between them.

In memory and on disk a mask is ``uint8 [H, W]`` with **0 = unknown and classes 1…K**. A legend gives
name and colour of each class; a model carries its legend, and a source with another legend reaches it
through a :class:`LegendMap`. File format (``legend.json`` / ``classes.json``)::

    {"name": "mini", "classes": [{"index": 1, "name": "bareland", "color": [128, 0, 0]}, ...]}

Index 0 may be listed (its name is then always "unknown"); ``rgb`` is accepted for ``color``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from changeanywhere.errors import LegendError
from changeanywhere.storage import atomic_write

Mask = npt.NDArray[np.uint8]
"""Semantic mask ``uint8 [H, W]``, 0 = unknown, 1…K = classes of a legend."""

UNKNOWN = "unknown"
LEGEND_FILES = ("legend.json", "classes.json")
MAX_CLASSES = 254  # 255 stays free: it means "ignore" in detector labels


@dataclass(frozen=True)
class LegendClass:
    """One class: ``index`` ≥ 1, unique ``name``, ``color`` as (red, green, blue) 0–255."""

    index: int
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class Legend:
    """The classes 1…K of a mask, in index order. Raises :class:`LegendError` if they are not 1…K."""

    name: str
    classes: tuple[LegendClass, ...]

    def __post_init__(self) -> None:
        if not self.classes or len(self.classes) > MAX_CLASSES:
            raise LegendError(f"legend {self.name!r} has {len(self.classes)} classes; allowed: 1 to {MAX_CLASSES}")
        indices = [c.index for c in self.classes]
        if indices != list(range(1, len(indices) + 1)):
            raise LegendError(f"legend {self.name!r} has indices {indices}; allowed: 1 to K without gaps, in order")
        for what in ("name", "color"):
            values = [getattr(c, what) for c in self.classes]
            twice = {v for v in values if values.count(v) > 1}
            if twice:
                raise LegendError(f"legend {self.name!r} has the {what} {sorted(twice)[0]!r} more than once")
        if UNKNOWN in self.names:
            raise LegendError(f"legend {self.name!r} has a class named 'unknown'; that name is index 0")

    @property
    def num_classes(self) -> int:
        """K, without unknown."""
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of classes 1…K (``names[0]`` is class 1)."""
        return tuple(c.name for c in self.classes)

    def name_of(self, index: int) -> str:
        """Name of class ``index``; "unknown" for 0."""
        return UNKNOWN if index == 0 else self.classes[index - 1].name

    def index_of(self, name: str) -> int:
        """Index of class ``name`` (0 for "unknown"); :class:`LegendError` if there is none."""
        if name == UNKNOWN:
            return 0
        if name not in self.names:
            raise LegendError(f"legend {self.name!r} has no class {name!r}; allowed: {', '.join(self.names)}")
        return self.names.index(name) + 1

    def palette(self) -> npt.NDArray[np.uint8]:
        """Colours ``uint8 [256, 3]`` by mask value; unknown and unused values are black."""
        table = np.zeros((256, 3), np.uint8)
        for c in self.classes:
            table[c.index] = c.color
        return table

    def colorize(self, mask: Mask) -> npt.NDArray[np.uint8]:
        """Mask ``[H, W]`` → RGB ``uint8 [H, W, 3]``."""
        return self.palette()[mask]

    def check(self, mask: Mask, where: str) -> None:
        """Raise :class:`LegendError` naming ``where`` and the value if ``mask`` leaves 0…K."""
        largest = int(mask.max(initial=0))
        if largest > self.num_classes:
            raise LegendError(
                f"{where}: mask value {largest} is outside the legend {self.name!r}; "
                f"allowed: 0 (unknown) to {self.num_classes} ({self.names[-1]})"
            )

    def to_dict(self) -> dict[str, Any]:
        """The content of ``legend.json``."""
        return {
            "name": self.name,
            "classes": [{"index": c.index, "name": c.name, "color": list(c.color)} for c in self.classes],
        }

    def save(self, path: Path) -> None:
        """Write ``legend.json``."""
        atomic_write(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @staticmethod
    def from_dict(data: Any, where: str) -> Legend:
        """Parse the content of a legend file; ``where`` names it in errors."""
        if not isinstance(data, dict) or not isinstance(data.get("classes"), list):
            raise LegendError(f"{where}: not a legend; expected an object with a list 'classes'")
        classes = []
        for entry in data["classes"]:
            if not isinstance(entry, dict):
                raise LegendError(f"{where}: class {entry!r} is not an object with index, name and color")
            index, name, color = entry.get("index"), entry.get("name"), entry.get("color", entry.get("rgb"))
            if index == 0:
                continue
            valid_color = (
                isinstance(color, list) and len(color) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in color)
            )
            if not isinstance(index, int) or not isinstance(name, str) or not name or not valid_color:
                raise LegendError(f"{where}: class {entry!r} needs an integer index, a name and a color [r, g, b]")
            assert isinstance(color, list)
            classes.append(LegendClass(index, name, (color[0], color[1], color[2])))
        stem = Path(where).parent.name or "legend"
        return Legend(str(data.get("name", stem)), tuple(sorted(classes, key=lambda c: c.index)))

    @staticmethod
    def load(path: Path) -> Legend:
        """Read a legend file (JSON)."""
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise LegendError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise LegendError(f"{path}: not JSON ({error})") from error
        return Legend.from_dict(data, str(path))


def builtin_legends() -> tuple[str, ...]:
    """Names of the legends that come with the package."""
    folder = resources.files("changeanywhere") / "assets" / "legends"
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")))


def load_legend(name_or_file: str | Path) -> Legend:
    """A built-in legend by name, or a legend file."""
    if str(name_or_file) in builtin_legends():
        text = (resources.files("changeanywhere") / "assets" / "legends" / f"{name_or_file}.json").read_text()
        return Legend.from_dict(json.loads(text), str(name_or_file))
    path = Path(name_or_file)
    if not path.is_file():
        raise LegendError(f"no legend {str(name_or_file)!r}; allowed: {', '.join(builtin_legends())}, or a JSON file")
    return Legend.load(path)


def find_legend(folder: Path) -> Legend | None:
    """``legend.json`` or ``classes.json`` in ``folder`` or the nearest parent; None if there is none."""
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        for name in LEGEND_FILES:
            if (place / name).is_file():
                return Legend.load(place / name)
    return None


@dataclass(frozen=True)
class LegendMap:
    """Rewrites masks of ``source`` into masks of ``target``.

    ``table`` is ``uint8 [256]``: mask value of ``source`` → mask value of ``target`` (0 = unknown).
    """

    source: Legend
    target: Legend
    table: npt.NDArray[np.uint8]

    def apply(self, mask: Mask) -> Mask:
        """Mask ``[H, W]`` of ``source`` → mask ``[H, W]`` of ``target``."""
        return self.table[mask]

    def to_dict(self) -> dict[str, str]:
        """Class name → class name or "unknown", for provenance."""
        return {c.name: self.target.name_of(int(self.table[c.index])) for c in self.source.classes}

    @staticmethod
    def from_names(source: Legend, target: Legend, names: dict[str, str], where: str) -> LegendMap:
        """Build from name → name; every class of ``source`` must be a key (``unknown`` is a value too)."""
        missing = [c.name for c in source.classes if c.name not in names]
        if missing:
            raise LegendError(
                f"{where}: no counterpart for {', '.join(missing)} of legend {source.name!r}; "
                f"add a line 'class: class-or-unknown' for each; allowed: {', '.join(target.names)}, unknown"
            )
        table = np.zeros(256, np.uint8)
        for c in source.classes:
            if names[c.name] != UNKNOWN and names[c.name] not in target.names:
                raise LegendError(
                    f"{where}: {c.name} → {names[c.name]!r} is not a class of legend {target.name!r}; "
                    f"allowed: {', '.join(target.names)}, unknown"
                )
            table[c.index] = target.index_of(names[c.name])
        return LegendMap(source, target, table)


def load_legend_map(source: Legend, target: Legend, file: Path | None) -> LegendMap:
    """Mapping from a YAML file (name → name or ``unknown``).

    Without a file: by equal names if ``target`` has every class of ``source``, else the first mapping of the
    package that knows every class of ``source`` and leads into ``target``. Raises :class:`LegendError` naming
    the classes without counterpart.
    """
    if file is not None:
        return LegendMap.from_names(source, target, _read_map(file.read_text, str(file)), str(file))
    identity = {name: name for name in source.names}
    if set(source.names) <= set(target.names):
        return LegendMap.from_names(source, target, identity, "equal names")
    folder = resources.files("changeanywhere") / "assets" / "legend_maps"
    for entry in sorted(folder.iterdir(), key=lambda f: f.name):
        names = _read_map(entry.read_text, entry.name)
        if set(source.names) <= set(names) and set(names.values()) <= {*target.names, UNKNOWN}:
            return LegendMap.from_names(source, target, names, entry.name)
    missing = [name for name in source.names if name not in target.names]
    raise LegendError(
        f"legend {source.name!r} does not fit the model's legend {target.name!r}: no counterpart for "
        f"{', '.join(missing)}; give --legend-map FILE with a line 'class: class-or-unknown' for each class"
    )


def _read_map(read_text: Any, where: str) -> dict[str, str]:
    try:
        data = yaml.safe_load(read_text())
    except OSError as error:
        raise LegendError(f"{where}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LegendError(f"{where}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in data.items()):
        raise LegendError(f"{where}: not a legend map; expected lines 'class: class-or-unknown'")
    return dict(data)
