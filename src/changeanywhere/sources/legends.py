"""The legend of a source: from options, from its layout, or from a file beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from changeanywhere.errors import ConfigError, SourceError
from changeanywhere.folders import folders_of
from changeanywhere.legend import (
    LEGEND_FILES,
    Legend,
    MaskValues,
    find_legend_file,
    load_legend_values,
    parse_legend,
    read_legend,
)
from changeanywhere.regular import read_regular
from changeanywhere.sources.drafts import proposal
from changeanywhere.sources.entries import Layout
from changeanywhere.sources.options import SourceOptions


def legend_of(root: Path, options: SourceOptions, layout: Layout) -> tuple[Legend, MaskValues]:
    """Classes of the masks, and what their numbers mean. :class:`SourceError` with a proposal where nothing says so."""
    legend, values = _stated(root, options, layout)
    number = options.ignore_value
    if number is None or number in values.ignored:
        return legend, values
    counted = values.counted(legend.num_classes)
    if number in counted:
        name = legend.names[counted.index(number)]
        raise ConfigError(f"ignore_value is {number!r}, which is {name} in the legend; allowed: a number of no class")
    return legend, replace(values, ignored=tuple(sorted({*values.ignored, number})))


def where_from(root: Path, options: SourceOptions, layout: Layout) -> str:
    """Where :func:`legend_of` has it from, for ``check``."""
    if options.class_names is not None:
        return "--class-names"
    if options.legend is not None:
        return f"--legend {options.legend}"
    if layout.legend is not None:
        return "comes with the layout"
    file = _file(root)
    return "" if file is None else str(file)


def _stated(root: Path, options: SourceOptions, layout: Layout) -> tuple[Legend, MaskValues]:
    if options.class_names is not None:
        return parse_legend(list(options.class_names), str(root.resolve() / "class_names"), options.first_class)
    if options.legend is not None:
        return load_legend_values(options.legend, options.first_class)
    if layout.legend is not None:
        return load_legend_values(layout.legend, options.first_class)
    file = _file(root)
    if file is None:
        raise SourceError(
            f"{root}: no legend.json or classes.json here or in a parent folder; give --legend NAME or FILE, or "
            f"--class-names; {proposal(root, layout.entries)}"
        )
    return read_legend(file, options.first_class)


def _file(root: Path) -> Path | None:
    """Beside the source or above it; else in its parts, where all of them that have one say the same."""
    found = find_legend_file(root)
    if found is not None:
        return found
    files = [part / name for part in folders_of(root) for name in LEGEND_FILES if (part / name).is_file()]
    if files and len({read_regular(file) for file in files}) == 1:
        return files[0]
    return None
