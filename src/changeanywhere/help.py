"""What ``--help`` says: a line per option, grouped, a section in one line; ``--help=NAME`` says all of one.

A page has fewer than a hundred lines whatever the command has, so that it can be read. ``docs/cli.md`` has everything.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from changeanywhere.errors import require

HEADINGS = {
    "SourceOptions": "what is read, and how",
    "SimulateOptions": "the set",
    "SamplingOptions": "how it is painted",
    "GenerateOptions": "model, finishing, files, machine",
}
"""Of the options that a class brings along; those of a command's own class stand under "options"."""
PLACEHOLDERS = {"int": "N", "float": "X", "Path": "PATH", "bool": "true|false"}
Choices = Sequence[typing.Any] | Callable[[], Iterable[str]]
LISTS: dict[typing.Any, str] = {tuple: "[…]", list: "[…]", dict: "{…}"}
NAME_WIDTH = 26
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Option:
    """One flag: its name without dashes, what its value is, its default as text, its help, and who brings it;
    ``choices``: the words that it takes, or takes several of, where there are only some."""

    name: str
    value: str
    default: str
    text: str
    home: str
    choices: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        return self.name.partition(".")[0] if "." in self.name else ""


def one_of(choices: Choices, default: typing.Any = None) -> typing.Any:
    """A field of options that takes one of these words, or, being a list, some of them. Help shows them;
    :func:`check_choices` refuses all others. A function gives words that other packages may add to: those are refused
    where they are looked up."""
    return dataclasses.field(default=default, metadata=choose(choices))


def choose(choices: Choices) -> dict[str, typing.Any]:
    """The metadata of such a field, where it has no default, or a factory."""
    return {"choices": choices if callable(choices) else tuple(choices)}


def choices_of(field: dataclasses.Field[typing.Any]) -> tuple[str, ...]:
    """The words that a field takes, as text; none where it takes any."""
    choices = field.metadata.get("choices", ())
    return tuple(map(str, choices() if callable(choices) else choices))


def check_choices(options: typing.Any, prefix: str = "") -> None:
    """:class:`ConfigError` naming the first word that its option does not take, in ``options`` and its sections."""
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), f"{prefix}{field.name}"
        choices = field.metadata.get("choices")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check_choices(value, f"{name}.")
        elif choices is not None and not callable(choices) and value is not None:
            for each in value if isinstance(value, tuple | list) else (value,):
                require_one(name, each, choices)


def require_one(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise :class:`ConfigError` for an option whose value is none of ``choices``, with the one that was meant."""
    known = list(choices)
    require(value in known, name, value, among(value, known))


def among(word: object, choices: Iterable[object]) -> str:
    """What is allowed in place of ``word``, and which of it may have been meant."""
    words = [str(each) for each in choices]
    return f"{', '.join(words)}{meant(str(word), words)}"


@functools.cache
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
        home, choices = "" if prefix else homes[field.name], choices_of(field)
        yield Option(name, _value_of(field, hint, choices), _default_of(field), text, home, choices)


def _value_of(field: dataclasses.Field[typing.Any], hint: typing.Any, choices: Sequence[str]) -> str:
    if choices:
        return f"{{{','.join(choices)}}}{'[,…]' if is_list(hint) else ''}"
    if hint is bool and field.default is False:
        return ""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    origin = next((typing.get_origin(each) for each in (hint, *kinds) if typing.get_origin(each) in LISTS), None)
    if origin is not None:
        return LISTS[origin]
    return PLACEHOLDERS.get(getattr(kinds[0], "__name__", ""), "TEXT")


def is_list(hint: typing.Any) -> bool:
    """Whether a field of this type takes several values."""
    return bool({typing.get_origin(each) for each in (hint, *typing.get_args(hint))} & {tuple, list})


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
    needed = " ".join(f"--{each.name} {_briefly(each)}" for each in options if each.default == "required")
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


def _briefly(option: Option) -> str:
    """Its value, or, where that is long, its name for it."""
    return option.value if len(option.value) <= 12 else option.name.rpartition(".")[2].upper()


def _sections(kind: type) -> dict[str, str]:
    """Section → the first sentence about it."""
    hints, found = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            doc = inspect.getdoc(hints[field.name]) or ""
            found[field.name.replace("_", "-")] = _first_sentence(" ".join(doc.split()).replace("`", ""))
    return found


def _line(option: Option, width: int) -> str:
    """Name, value, the beginning of its text, its default, in one line; choices that do not fit beside a name have
    lines of their own, as many as they take."""
    short = len(option.value) <= 12
    start = f"  --{option.name} {option.value if short else ''}".rstrip()
    default = f" [{option.default}]" if option.default not in ("", "required") else ""
    default = default if len(default) < 24 else ""
    start = f"{start:<{NAME_WIDTH + 2}}  "
    room = width - len(start)
    beside = f"{option.value} " if option.choices and not short and len(option.value) <= room // 2 else ""
    lines = [_fitted(f"{start}{beside}{_first_sentence(option.text)}", width - len(default)) + default]
    if option.choices and not short and not beside:
        indent = " " * len(start)
        lines += _wrapped(option.value, width, indent, indent)
    return "\n".join(lines)


def _wrapped(value: str, width: int, first: str, others: str) -> list[str]:
    """Choices in as many lines as they take, no word broken; "" is none."""
    spaced = value.replace(",", ", ") if len(value) > width // 2 else value
    return textwrap.wrap(
        spaced, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False, break_long_words=False
    )


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
        value = _wrapped(each.value, width, f"  --{each.name} ", " " * 8) or [f"  --{each.name}"]
        lines += [*value[:-1], value[-1] + default]
        lines += textwrap.wrap(each.text, width - 8, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def meant(word: str, words: Iterable[str]) -> str:
    """``; did you mean …?``, or nothing where no word is near; the beginning of a name counts, too, and the last part
    of a dotted one."""
    known = list(dict.fromkeys(words))
    asked, lower = word.lower(), [each.lower() for each in known]
    near = [known[lower.index(each)] for each in difflib.get_close_matches(asked, lower, 1, 0.7)]
    near = near or [each for each in known if len(asked.strip("-")) > 1 and each.lower().startswith(asked)][:2]
    near = near or [each for each in known if each.rpartition(".")[2] == word.rpartition(".")[2]][:2]
    return f"; did you mean {' or '.join(near)}?" if near else ""
