"""What ``--help`` says: a line per option, grouped, a section in one line; ``--help=NAME`` says all of one.

A page has fewer than a hundred lines whatever the command has, so that it can be read. ``docs/cli.md`` has everything.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

HEADINGS = {
    "SourceOptions": "what is read, and how",
    "SimulateOptions": "the set",
    "SamplingOptions": "how it is painted",
    "GenerateOptions": "model, finishing, files, machine",
}
"""Of the options that a class brings along; those of a command's own class stand under "options"."""
PLACEHOLDERS = {"int": "N", "float": "X", "Path": "PATH", "bool": "true|false"}
LISTS: dict[typing.Any, str] = {tuple: "[…]", list: "[…]", dict: "{…}"}
NAME_WIDTH = 26
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Option:
    """One flag: its name without dashes, what its value is, its default as text, its help, and who brings it."""

    name: str
    value: str
    default: str
    text: str
    home: str

    @property
    def section(self) -> str:
        return self.name.partition(".")[0] if "." in self.name else ""


def one_of(choices: Sequence[str], default: str | None = None) -> typing.Any:
    """A field of options that takes one of these words, which help shows; ``check`` refuses all others."""
    return dataclasses.field(default=default, metadata={"choices": tuple(choices)})


def attribute_docstrings(kind: type) -> dict[str, str]:
    """Field name → the string literal below it, base classes first."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = typing.cast(ast.ClassDef, definition).body
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
                texts[field.target.id] = str(typing.cast(ast.Constant, text.value).value)
    return texts


def options_of(kind: type, prefix: str = "") -> Iterator[Option]:
    """Every flag of an options' dataclass, those of its sections under their dotted names."""
    texts, hints = attribute_docstrings(kind), typing.get_type_hints(kind)
    homes = {name: base.__name__ for base in kind.__mro__[-2::-1] for name in vars(base).get("__annotations__", {})}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from options_of(typing.cast(type, hint), f"{prefix}{field.name}.")
            continue
        text = " ".join(texts.get(field.name, "").split()).replace("``", "").replace(":class:", "").replace("`", "")
        name = f"{prefix}{field.name}".replace("_", "-")
        yield Option(name, _value_of(field, hint), _default_of(field), text, "" if prefix else homes[field.name])


def _value_of(field: dataclasses.Field[typing.Any], hint: typing.Any) -> str:
    if "choices" in field.metadata:
        return "{" + ",".join(field.metadata["choices"]) + "}"
    if hint is bool and field.default is False:
        return ""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    origin = next((typing.get_origin(each) for each in (hint, *kinds) if typing.get_origin(each) in LISTS), None)
    if origin is not None:
        return LISTS[origin]
    return PLACEHOLDERS.get(getattr(kinds[0], "__name__", ""), "TEXT")


def _default_of(field: dataclasses.Field[typing.Any]) -> str:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if value is dataclasses.MISSING:
        return "required"
    if value is None or value is False or value in ([], (), {}, ""):
        return ""
    return str(list(value) if isinstance(value, tuple) else value).replace("'", "")


def help_text(command: str, kind: type, about: str, epilog: str, topic: str = "") -> str:
    """The page of a command; of a ``topic`` (a section, an option, ``all``) all there is to say.

    ValueError says what a topic that does not exist may have meant.
    """
    options, width = list(options_of(kind)), min(shutil.get_terminal_size((100, 24)).columns, 140)
    if topic:
        return _in_full(command, options, topic.lstrip("-").replace("_", "-"), width)
    needed = " ".join(f"--{each.name} {each.value}" for each in options if each.default == "required")
    lines = [f"usage: changeanywhere {command} {needed} [OPTIONS]".replace("  ", " "), "", about]
    groups: dict[str, list[Option]] = {"needed": [each for each in options if each.default == "required"]}
    for each in options:
        if each.default != "required" and not each.section:
            groups.setdefault(HEADINGS.get(each.home, "options"), []).append(each)
    groups.setdefault("options", []).append(Option("config", "FILE", "", "YAML file with any of these; flags win.", ""))
    for heading, some in groups.items():
        if some:
            lines += ["", heading, *(_line(each, width) for each in some)]
    counts: dict[str, int] = {}
    for each in options:
        if each.section:
            counts[each.section] = counts.get(each.section, 0) + 1
    if counts:
        lines += ["", "sections, each with options of its own (--help=SECTION lists them)"]
        about_them = _sections(kind)
        lines += [
            _fitted(f"  --{name + '.*':<{NAME_WIDTH}}{count:>3}  {about_them[name]}", width)
            for name, count in counts.items()
        ]
    more = "--help=NAME says all of an option or a section, --help=all of everything; docs/cli.md has the same."
    return "\n".join([*lines, "", more, *textwrap.wrap(epilog, width)])


def _sections(kind: type) -> dict[str, str]:
    """Section → the first sentence about it."""
    hints, found = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            doc = inspect.getdoc(hints[field.name]) or ""
            found[field.name.replace("_", "-")] = _first_sentence(" ".join(doc.split()).replace("`", ""))
    return found


def _line(option: Option, width: int) -> str:
    """One line: name, value or choices, the beginning of its text, its default."""
    value = option.value if len(option.value) <= 12 else ""
    start = f"  --{option.name} {value}".rstrip()
    choices = f"{option.value} " if option.value.startswith("{") and not value else ""
    default = f" [{option.default}]" if option.default not in ("", "required") else ""
    default = default if len(default) < 24 else ""
    start = f"{start:<{NAME_WIDTH + 2}}  "
    return _fitted(f"{start}{choices}{_first_sentence(option.text)}", width - len(default)) + default


def _fitted(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1].rstrip()}…"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.]) (?=[A-Z])|;", text)[0].rstrip(".")


def _in_full(command: str, options: Sequence[Option], topic: str, width: int) -> str:
    some = [o for o in options if topic == ALL or o.section == topic or o.name == topic]
    if not some:
        raise ValueError(meant(topic, [ALL, *(o.section for o in options if o.section), *(o.name for o in options)]))
    lines = [f"changeanywhere {command}", ""]
    for each in some:
        default = f" [{each.default}]" if each.default else ""
        lines.append(f"  --{each.name} {each.value}".rstrip() + default)
        lines += textwrap.wrap(each.text, width - 8, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def meant(word: str, words: Iterable[str]) -> str:
    """``; did you mean …?``, or nothing where no word is near; the last part of a dotted name counts, too."""
    known = list(dict.fromkeys(words))
    near = difflib.get_close_matches(word, known, 1, 0.7)
    near = near or [each for each in known if each.rpartition(".")[2] == word.rpartition(".")[2]][:2]
    return f"; did you mean {' or '.join(near)}?" if near else ""
