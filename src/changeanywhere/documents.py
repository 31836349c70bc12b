"""JSON and YAML that others wrote, read within bounds; and JSON as every reader takes it.

A document of a few hundred bytes can stand for gigabytes (aliases of aliases in YAML) or end the interpreter (brackets
in brackets). Nothing that belongs to this package is large, deep, or refers to itself. And of a key that is given
twice every parser takes the last and says nothing: here it is an error.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from changeanywhere.regular import open_regular

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 64
"""Of lists and mappings in one another."""
MAX_ALIASES = 100
"""References of a YAML file to parts of itself."""
MAX_NODES = 200_000
"""Values of a YAML file, those that aliases repeat among them."""


class DocumentError(ValueError):
    """A document that is damaged or out of bounds; the text says what is wrong, in one line, without the file."""


def parse_json(text: str | bytes) -> Any:
    """JSON without NaN and Infinity, which are none; :class:`DocumentError` saying what is wrong."""
    if len(text) > MAX_BYTES:
        raise DocumentError(f"{len(text)} bytes; allowed: {MAX_BYTES}")
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_each_once)
    except DocumentError:
        raise
    except RecursionError as error:
        raise DocumentError("not JSON (brackets in brackets without end)") from error
    except ValueError as error:
        raise DocumentError(f"not JSON ({_one_line(error)})") from error


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``; :class:`DocumentError` saying what is wrong, ``OSError`` if it cannot be read."""
    with open_regular(file) as opened:
        content = parse_json(opened.read(MAX_BYTES + 1))
    if not isinstance(content, dict):
        raise DocumentError("not a JSON object")
    return content


def _refuse_constant(name: str) -> float:
    raise DocumentError(f"not JSON ({name} is no number of JSON)")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise DocumentError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return content


def to_json(content: Any, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """JSON as the standard has it: what is not a finite number becomes null."""
    encode = _encoder(indent, ensure_ascii).encode
    try:
        return encode(content)
    except ValueError:  # rare: looked for only where there is one
        return encode(finite(content))


@lru_cache  # json.dumps makes a new one at every call
def _encoder(indent: int | None, ensure_ascii: bool) -> json.JSONEncoder:
    return json.JSONEncoder(indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def finite(content: Any) -> Any:
    """``content`` with None in place of NaN and infinities, all the way down."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content


def parse_yaml(text: str | bytes) -> Any:
    """YAML of plain values; :class:`DocumentError` saying what is wrong, or which bound it goes beyond."""
    if len(text) > MAX_BYTES:
        raise DocumentError(f"{len(text)} bytes; allowed: {MAX_BYTES}")
    try:
        check_yaml(text)
        return yaml.safe_load(text)
    except RecursionError as error:
        raise DocumentError(f"not YAML (nested more than {MAX_DEPTH} deep)") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DocumentError(f"not YAML ({_one_line(error)})") from error
    except DocumentError:
        raise
    except (ValueError, TypeError, OverflowError, AttributeError) as error:  # 2024-99-99, {[]: 1}, 1:99:…
        raise DocumentError(f"not YAML ({_one_line(error)})") from error


def check_yaml(text: str | bytes) -> None:
    """:class:`DocumentError` where YAML goes beyond a bound (depth, aliases, values with all aliases written out), or
    gives a key twice.

    ``yaml.YAMLError`` where it is none.
    """
    keys = _Keys()
    depth = aliases = 0
    sizes: dict[str, int] = {}
    open_anchors: list[tuple[str | None, int]] = []
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        keys.see(event)
        if isinstance(event, yaml.AliasEvent):
            aliases += 1
            if any(anchor == event.anchor for anchor, _ in open_anchors):
                raise DocumentError(f"not YAML of plain values (*{event.anchor} refers to itself)")
            count += sizes.get(str(event.anchor), 0)
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            open_anchors.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            anchor, before = open_anchors.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        for found, allowed, what in (
            (depth, MAX_DEPTH, "lists and mappings in one another"),
            (aliases, MAX_ALIASES, "aliases"),
            (count, MAX_NODES, "values with all aliases written out"),
        ):
            if found > allowed:
                raise DocumentError(f"{found} {what}; allowed: {allowed}")


class _Keys:
    """The keys of the mappings that are open, innermost last; None for a list."""

    def __init__(self) -> None:
        self._open: list[set[str] | None] = []
        self._is_value: list[bool] = []

    def see(self, event: yaml.Event) -> None:
        """The next event of a document; :class:`DocumentError` for a key that its mapping has already."""
        if isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
            self._is_value.pop()
            return
        if not isinstance(event, yaml.NodeEvent):
            return
        if self._open:
            keys = self._open[-1]
            if isinstance(event, yaml.ScalarEvent) and keys is not None and not self._is_value[-1]:
                if event.value in keys:
                    line = "" if event.start_mark is None else f" (line {event.start_mark.line + 1})"
                    raise DocumentError(f"{event.value!r} is given twice{line}")
                keys.add(event.value)
            self._is_value[-1] = not self._is_value[-1]
        if isinstance(event, yaml.CollectionStartEvent):
            self._open.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
            self._is_value.append(False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
