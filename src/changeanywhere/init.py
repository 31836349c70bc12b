"""``changeanywhere init``: drafts a legend, and a map into a model's classes, from what the masks of a folder hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from changeanywhere.errors import ConfigError, OutputError
from changeanywhere.legend import LEGEND_FILES, UNKNOWN, Legend
from changeanywhere.models.info import find_model, read_info
from changeanywhere.sources.drafts import Seen, draft, look_at, parsed
from changeanywhere.sources.layouts import find_layout
from changeanywhere.sources.problems import Problems
from changeanywhere.storage import atomic_write


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """Options of ``changeanywhere init``."""

    path: Path
    """Folder of images and masks without a legend."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes, in the order of their numbers: water,building,road; default: class_1 and so on."""
    model: str = "mini"
    """Model (mini or a folder) into whose classes the map leads."""

    def __post_init__(self) -> None:
        names = self.class_names
        object.__setattr__(self, "class_names", None if names is None else tuple(names))


def init(options: InitOptions) -> str:
    """Write ``legend.json`` and ``legend_map.yaml`` into the folder; returns what was found, in a few lines."""
    root = options.path
    layout = find_layout(root, Problems(skip=True))
    if layout.legend is not None:
        raise ConfigError(f"{root}: is {layout.name}, whose legend comes with it; there is nothing to draft")
    legend_file, map_file = root / "legend.json", root / "legend_map.yaml"
    for file in (*(root / name for name in LEGEND_FILES), map_file):
        if file.exists():
            raise OutputError(f"{file}: is there already; delete it to draft another")
    seen = look_at(layout.entries)
    content = draft(seen, root.resolve().name, options.class_names)
    legend, numbers = parsed(content, str(legend_file))
    content["classes"] = [
        entry | {"color": list(known.color)} if seen.colours and not seen.numbers else entry
        for entry, known in zip(content["classes"], legend.classes, strict=True)
    ]
    atomic_write(legend_file, (json.dumps(content, indent=1) + "\n").encode())
    model = read_info(find_model(options.model)).legend
    atomic_write(map_file, _map_of(legend, model, options.model).encode())
    lines = [f"{root}: {layout.described}; {seen.num_masks} masks looked at"]
    counted = numbers.counted(legend.num_classes)
    lines += _lines(seen, legend, counted, numbers.ignored)
    if 0 not in counted and seen.share(0) > 0:
        lines.append(
            f"0 covers {seen.share(0):.1%} and is taken for unknown ground; if it is a class, give the draft "
            '"first_class": 0 and a class of index 0'
        )
    lines.append(f"wrote {legend_file} (put in names of yours) and {map_file} (class: class of {options.model})")
    return "\n".join([*lines, f"next: changeanywhere check {root} --preview preview.png"])


def _lines(seen: Seen, legend: Legend, counted: tuple[int, ...], ignored: tuple[int, ...]) -> list[str]:
    """A line per number or colour that was seen."""
    if not seen.numbers:
        total = max(1, sum(seen.colours.values()))
        of = {c.color: c.name for c in legend.classes}
        return [
            f"  {colour!s:<16} {count / total:>7.1%}  {of.get(colour, UNKNOWN)}"
            for colour, count in sorted(seen.colours.items())
        ]
    names = dict(zip(counted, legend.names, strict=True))
    what = dict.fromkeys(ignored, "ignored")
    return [
        f"  {number:<6} {seen.share(number):>7.1%}  {what.get(number) or names.get(number, UNKNOWN)}"
        for number in sorted(seen.numbers)
    ]


def _map_of(legend: Legend, model: Legend, name: str) -> str:
    """A line per class: its counterpart by name, else unknown, to be filled in."""
    known = {each.lower().removesuffix("s"): each for each in model.names}
    lines = [f"# class of {' '.join(legend.name.split())}: class of {name} ({', '.join(model.names)}), or unknown"]
    for each in legend.names:
        lines.append(yaml.safe_dump({each: known.get(each.lower().removesuffix("s"), UNKNOWN)}).strip())
    return "\n".join([*lines, ""])
