"""What other packages bring as entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import TypeVar

from changeanywhere.errors import ConfigError

Kind = TypeVar("Kind")


def built(what: str, entry: EntryPoint, kind: type[Kind]) -> Kind:
    """What the function behind ``entry`` gives, without arguments; :class:`ConfigError`, in one line, if it fails or
    gives no ``kind``. ``what``: "detector", "segmenter"."""
    try:
        made: object = entry.load()()
    except Exception as error:  # somebody else's code
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(f"{what} {entry.name!r} ({entry.value}) cannot be built ({reason})") from error
    if not isinstance(made, kind):
        raise ConfigError(
            f"{what} {entry.name!r} ({entry.value}) is a {type(made).__name__}, not a {entry.group} {kind.__name__}"
        )
    return made
