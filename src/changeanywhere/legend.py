"""Legends: the classes of a semantic mask, and mappings between them.

In memory and on disk a mask is ``uint8 [H, W]`` with **0 = unknown and classes 1…K**. A legend gives
name and colour of each class; a model carries its legend, and a source with another legend reaches it
through a :class:`LegendMap`. File format (``legend.json`` / ``classes.json``)::

    {"name": "mini", "classes": [{"index": 1, "name": "bareland", "color": [128, 0, 0]}, ...]}

Index 0 may be listed, as unknown; ``rgb`` is accepted for ``color``, and classes without one get one. ``first_class`` 0
says that masks count from 0, ``ignore_index`` which numbers are no class, a class's ``value`` which number is its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.colours import distinct_colours
from changeanywhere.documents import DocumentError, parse_json, parse_yaml
from changeanywhere.errors import LegendError
from changeanywhere.folders import read_text
from changeanywhere.storage import atomic_write

Mask = npt.NDArray[np.uint8]
"""Semantic mask ``uint8 [H, W]``, 0 = unknown, 1…K = classes of a legend."""

UNKNOWN = "unknown"
LEGEND_FILES = tuple(f"{name}.{kind}" for kind in ("json", "yaml", "yml", "txt") for name in ("legend", "classes"))
NUM_OF_PARENTS = 6
"""So many of these may lie in a folder above; a text of that name there is more likely somebody else's."""
NAMES_OF_UNKNOWN = frozenset((
    "unknown", "unlabelled", "unlabeled", "unclassified", "nolabel", "nodata", "noinformation", "ignore", "ignored",
    "void", "invalid", "undefined",
))  # fmt: skip
"""What others call index 0, in small letters without what stands between them."""
LARGEST_VALUE = 65535  # of a class in the files of masks, 16 bits
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
        return parse_legend(data, where)[0]

    @staticmethod
    def load(path: Path) -> Legend:
        """Read a legend file; see :func:`read_legend`."""
        return read_legend(path)[0]


@dataclass(frozen=True)
class MaskValues:
    """What the numbers in mask files mean, where they are not 0 = unknown and 1…K = the classes."""

    of_classes: tuple[int, ...] | None = None
    """The number that stands for class 1…K; None: 1…K themselves."""
    ignored: tuple[int, ...] = ()
    """Numbers that stand for ground without a class, beside 0 where that is none."""
    own_colours: bool = True
    """Whether the legend came with colours; masks are never read by colours that were made up."""

    @property
    def is_plain(self) -> bool:
        """Whether files hold classes as we do."""
        return self.of_classes is None and not self.ignored

    def counted(self, num_classes: int) -> tuple[int, ...]:
        """The number of each class."""
        return self.of_classes or tuple(range(1, num_classes + 1))


def parse_legend(data: Any, where: str, first_class: int | None = None) -> tuple[Legend, MaskValues]:
    """Content of a legend file → classes, and what the masks' numbers mean. ``where`` names the file in errors.

    ``first_class``: the masks' number of the first class, 0 or 1, where the user says so. An object with ``classes``
    (or ``names``), which is a list of objects, a list of names, or names by number; or such a list itself.
    """
    data = {"classes": data} if isinstance(data, list) and data else data
    entries = (data.get("classes") or data.get("names") or []) if isinstance(data, dict) else None
    if not isinstance(entries, list | dict) or not isinstance(data, dict):
        raise LegendError(f"{where}: not a legend; expected an object with a list 'classes', or a list of names")
    stated = data.get("first_class", first_class)
    if stated not in (None, 0, 1) or isinstance(stated, bool) or (first_class is not None and stated != first_class):
        raise LegendError(f"{where}: first_class is {stated!r}; allowed: 0 or 1, and the same as --first-class")
    ignored = _ignored(data.get("ignore_index"), where)
    listed = _listed(entries, stated, where)
    taken = {entry["index"] for entry in listed}
    first = 0 if stated == 0 and 0 in taken else 1
    classes = []
    for entry in listed:
        index, name = entry["index"], entry["name"]
        if _means_unknown(name) and (index in ignored or index == 255):
            ignored = tuple(sorted({*ignored, index}))
        elif index == 0 and first == 1:
            if not _means_unknown(name):
                raise LegendError(
                    f"{where}: index 0 is {name!r}, but 0 is ground without a label; if it is a class of the masks, "
                    'give --first-class 0 (in the file: "first_class": 0), else name it unknown'
                )
        else:
            classes.append({**entry, "index": index + 1 - first})
    if first == 1 and stated != 0:
        ignored = tuple(number for number in ignored if number != 0)  # it is unknown anyway
    legend = _with_colours(str(data.get("name", Path(where).parent.name or "legend")), classes)
    values = _stored(classes, 0 if stated == 0 else 1, where)
    clash = set(ignored) & set(values or range(1, legend.num_classes + 1))
    if clash:
        raise LegendError(f"{where}: ignore_index is {min(clash)}, which is a class too; allowed: numbers of no class")
    return legend, MaskValues(values, ignored, all(entry["color"] is not None for entry in classes))


def _ignored(given: Any, where: str) -> tuple[int, ...]:
    numbers = [] if given is None else given if isinstance(given, list) else [given]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise LegendError(f"{where}: ignore_index is {given!r}; allowed: a number, or a list of numbers")
    # No mask holds a number below 0 or beyond 16 bits; -100 and -1 stand for "none" with some programs.
    return tuple(sorted({number for number in numbers if 0 <= number <= LARGEST_VALUE}))


def _means_unknown(name: str) -> bool:
    return "".join(letter for letter in name.lower() if letter.isalpha()) in NAMES_OF_UNKNOWN


def _listed(entries: list[Any] | dict[Any, Any], first_class: int | None, where: str) -> list[dict[str, Any]]:
    """Index, name, color (None where there is none) and value of every class that is listed."""
    if isinstance(entries, dict):
        numbers = (int(key) if str(key).isdecimal() else key for key in entries)  # JSON has no other keys than words
        entries = [{"index": index, "name": name} for index, name in zip(numbers, entries.values(), strict=True)]
    if entries and all(isinstance(entry, str) for entry in entries):
        first = 0 if first_class == 0 or _means_unknown(entries[0]) else 1
        entries = [{"index": index, "name": name} for index, name in enumerate(entries, first)]
    listed = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise LegendError(f"{where}: class {entry!r} is not an object with index, name and color")
        index, name, color = entry.get("index"), entry.get("name"), entry.get("color", entry.get("rgb"))
        color = _colour(color) if isinstance(color, str) else color
        valid_color = color is None or (
            isinstance(color, list) and len(color) == 3 and all(type(v) is int and 0 <= v <= 255 for v in color)
        )
        value = entry.get("value", index)
        named = type(index) is int and (index == 0 or (isinstance(name, str) and bool(name))) and type(value) is int
        if not named or not valid_color:
            raise LegendError(
                f"{where}: class {entry!r} needs an integer index, a name and, if any, a color [r, g, b] and a value"
            )
        given = name if isinstance(name, str) else UNKNOWN
        listed.append({"index": index, "name": given, "color": color, "value": entry.get("value")})
    return sorted(listed, key=lambda entry: int(entry["index"]))


def _colour(text: str) -> Any:
    """ "#ff8000" → [255, 128, 0]; anything else stays as it is, and is refused."""
    try:
        return list(bytes.fromhex(text.removeprefix("#")))
    except ValueError:
        return text


def _with_colours(name: str, classes: list[dict[str, Any]]) -> Legend:
    given = [tuple(entry["color"]) for entry in classes if entry["color"] is not None]
    made = iter(distinct_colours(len(classes) - len(given), given) if len(classes) <= MAX_CLASSES else [])
    return Legend(
        name,
        tuple(
            LegendClass(entry["index"], entry["name"], tuple(entry["color"] or next(made, (0, 0, 0))))
            for entry in classes
        ),
    )


def _stored(classes: list[dict[str, Any]], first: int, where: str) -> tuple[int, ...] | None:
    """What stands in the files for class 1…K; None where it is 1…K."""
    stored = tuple(entry["index"] - 1 + first if entry["value"] is None else int(entry["value"]) for entry in classes)
    wrong = next((value for value in stored if not 0 <= value <= LARGEST_VALUE or stored.count(value) > 1), None)
    if wrong is not None:
        raise LegendError(f"{where}: a class has the value {wrong}; allowed: 0 to {LARGEST_VALUE}, of one class each")
    return None if stored == tuple(range(1, len(classes) + 1)) else stored


def read_legend(path: Path, first_class: int | None = None) -> tuple[Legend, MaskValues]:
    """A legend file, JSON, YAML or text with a name per line; see :func:`parse_legend`."""
    try:
        text = read_text(path)
    except OSError as error:
        raise LegendError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise LegendError(f"{path}: not readable as UTF-8 ({error})") from error
    kind = path.suffix.lower()
    if kind == ".txt":
        return parse_legend([line.strip() for line in text.split("\n") if line.strip()], str(path), first_class)
    try:
        data = parse_yaml(text) if kind in (".yaml", ".yml") else parse_json(text)
    except DocumentError as error:
        raise LegendError(f"{path}: {error}") from error
    return parse_legend(data, str(path), first_class)


def builtin_legends() -> tuple[str, ...]:
    """Names of the legends that come with the package."""
    folder = resources.files("changeanywhere") / "assets" / "legends"
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")))


def load_legend(name_or_file: str | Path) -> Legend:
    """A built-in legend by name, or a legend file."""
    return load_legend_values(name_or_file)[0]


def load_legend_values(name_or_file: str | Path, first_class: int | None = None) -> tuple[Legend, MaskValues]:
    """A built-in legend by name, or a legend file, and what the masks' numbers mean."""
    if str(name_or_file) in builtin_legends():
        text = (resources.files("changeanywhere") / "assets" / "legends" / f"{name_or_file}.json").read_text("utf-8")
        return parse_legend(json.loads(text), str(name_or_file), first_class)
    path = Path(name_or_file)
    if not path.is_file():
        raise LegendError(
            f"no legend {str(name_or_file)!r}; allowed: {', '.join(builtin_legends())}, or a JSON, YAML or text file"
        )
    return read_legend(path, first_class)


def find_legend_file(folder: Path) -> Path | None:
    """The first of :data:`LEGEND_FILES` in ``folder`` or the nearest parent; lists of names in ``folder`` alone."""
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        for name in LEGEND_FILES if place == folder else LEGEND_FILES[:NUM_OF_PARENTS]:
            if (place / name).is_file():
                return place / name
    return None


def find_legend(folder: Path) -> Legend | None:
    """The legend in ``folder`` or the nearest parent; None if there is none."""
    file = find_legend_file(folder)
    return None if file is None else Legend.load(file)


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
        return LegendMap.from_names(source, target, _read_map(lambda: read_text(file), str(file)), str(file))
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
        f"legend {source.name!r} does not fit legend {target.name!r}: no counterpart for "
        f"{', '.join(missing)}; give --legend-map FILE with a line 'class: class-or-unknown' for each class"
    )


def _read_map(read_text: Any, where: str) -> dict[str, str]:
    try:
        data = parse_yaml(read_text())
    except OSError as error:
        raise LegendError(f"{where}: cannot be read ({error.strerror})") from error
    except (DocumentError, UnicodeDecodeError) as error:
        raise LegendError(f"{where}: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in data.items()):
        raise LegendError(f"{where}: not a legend map; expected lines 'class: class-or-unknown'")
    return dict(data)
