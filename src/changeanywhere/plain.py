"""Typed settings ↔ plain JSON: what a job, a plan and their readers on another machine share."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Kind = typing.TypeVar("Kind")


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as dicts, lists and strings, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[Kind], content: Any) -> Kind:
    """What :func:`to_plain` made of a ``kind``. ValueError naming what does not fit: keys missing or unknown, types.

    A key that is missing and has a default is younger than what was written: it was at its default then.
    """
    return typing.cast(Kind, _build(kind, content, kind.__name__))


def _build(hint: Any, content: Any, where: str) -> Any:
    if hint is Any:
        return content
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if content is None and type(None) in arguments:
            return None
        alternatives = [each for each in arguments if each is not type(None)]
        for each in alternatives[:-1]:
            with suppress(ValueError):
                return _build(each, content, where)
        return _build(alternatives[-1], content, where)
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, content, where)
    if origin is tuple and isinstance(content, list):
        if arguments[-1] is Ellipsis:
            return tuple(_build(arguments[0], entry, where) for entry in content)
        if len(arguments) == len(content):
            return tuple(_build(each, entry, where) for each, entry in zip(arguments, content, strict=True))
    if origin in (list, Sequence) and isinstance(content, list):
        return [_build(arguments[0], entry, where) for entry in content]
    if origin in (dict, Mapping) and isinstance(content, dict):
        key = arguments[0]
        return {key(name): _build(arguments[1], entry, f"{where}.{name}") for name, entry in content.items()}
    if origin is typing.Literal and content in arguments:
        return content
    if hint is Path and isinstance(content, str):
        return Path(content)
    if hint is float and isinstance(content, int) and not isinstance(content, bool):
        return float(content)
    if isinstance(hint, type) and isinstance(content, hint) and (hint is bool or not isinstance(content, bool)):
        return content
    raise ValueError(f"{where} is {content!r}")


def _dataclass(kind: Any, content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise ValueError(f"{where} is {content!r}")
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}
    missing = {dataclasses.MISSING}
    needed = {name for name, field in known.items() if {field.default, field.default_factory} == missing}
    odd = sorted({*(set(content) - set(known)), *(needed - set(content))})
    if odd:
        raise ValueError(f"{where}.{odd[0]} is {'unknown' if odd[0] in content else 'missing'}")
    return kind(**{name: _build(hints[name], value, f"{where}.{name}") for name, value in content.items()})
