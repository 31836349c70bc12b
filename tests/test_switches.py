"""Options that are true or false, of every command: given alone, with a value, and taken back from a recipe."""

from __future__ import annotations

import dataclasses
import typing
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from changeanywhere.completion import OPTIONS
from changeanywhere.errors import ConfigError
from changeanywhere.flags import parse, with_words
from changeanywhere.help import choices_of

KINDS = sorted({place for places in OPTIONS.values() for place in places})


def kind_of(place: str) -> type:
    module, _, name = place.partition(":")
    kind: type = getattr(import_module(f"changeanywhere.{module}"), name)
    return kind


def switches(kind: Any, prefix: str = "") -> list[str]:
    """Dotted names of the fields that are bool, whatever their default."""
    found: list[str] = []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            found += switches(hints[field.name], f"{prefix}{field.name}.")
        elif hints[field.name] is bool:
            found.append(f"{prefix}{field.name}")
    return found


def nested(name: str, value: object) -> object:
    """``a.b`` → ``{"a": {"b": value}}``."""
    section, _, rest = name.partition(".")
    return {section: nested(rest, value) if rest else value}


def needed(kind: Any) -> list[str]:
    """Something for every option without a default."""
    fields = [f for f in dataclasses.fields(kind) if {f.default, f.default_factory} == {dataclasses.MISSING}]
    lists = [name for name, hint in typing.get_type_hints(kind).items() if typing.get_origin(hint) is tuple]
    words = {f.name: next(iter(choices_of(f)), "x") for f in fields}
    return [f"--{name.replace('_', '-')}={f'[{each}]' if name in lists else each}" for name, each in words.items()]


@pytest.mark.parametrize("place", [place for place in KINDS if switches(kind_of(place))])
def test_what_a_recipe_turns_on_is_taken_back(place: str, tmp_path: Path) -> None:
    kind: Any = kind_of(place)
    recipe = tmp_path / "recipe.yaml"
    for name in switches(kind):  # one by one: some exclude each other
        flag = f"--{name.replace('_', '-')}"

        def parsed(said: bool, *more: str, name: str = name) -> bool:
            recipe.write_text(yaml.safe_dump(nested(name, said)))
            given: Any = parse("command", kind, [*needed(kind), "--config", str(recipe), *more], "", "")
            return bool(attrgetter(name)(given))

        assert not parsed(True, f"{flag}=false") and parsed(False, flag, "true"), name


def test_a_switch_alone_is_true() -> None:
    kind = kind_of("generation.options:GenerateOptions")
    more = ["--dry-run", "--seed", "3", "--events.flip", "--learn-transitions"]
    given: Any = parse("generate", kind, [*needed(kind), *more], "", "")
    assert given.dry_run and given.events.flip and given.learn_transitions and given.seed == 3 and not given.paste_back


def test_a_value_of_a_switch_is_no_word() -> None:
    kind = kind_of("exporting.options:ExportOptions")
    assert with_words(["--link", "false", "set"], kind, "pairs") == ["--pairs", "set", "--link=false"]
    assert with_words(["--link", "set"], kind, "pairs") == ["--pairs", "set", "--link=true"]
    assert with_words([], kind, "pairs") == []
    assert with_words(["set", "--link=false"], kind, "pairs") == ["--pairs", "set", "--link=false"]


def test_another_word_is_refused() -> None:
    kind = kind_of("generation.options:SimulateOptions")
    with pytest.raises(ConfigError, match=r"mask_palette is 'perhaps'; allowed: bool"):
        parse("simulate", kind, [*needed(kind), "--mask-palette=perhaps"], "", "")
