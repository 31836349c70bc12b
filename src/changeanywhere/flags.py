"""Typed options → flags and YAML: one dataclass is a command's flags, its recipe's keys and its help.

``num_steps`` is ``--num-steps``; a field that is a dataclass itself is a section, ``--events.min-area``. The string
below a field is its help. Anything unknown or of the wrong type is one line.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

import yaml

from changeanywhere.documents import MAX_BYTES, DocumentError, check_yaml, parse_yaml
from changeanywhere.errors import ConfigError
from changeanywhere.folders import UTF_16, read_text
from changeanywhere.help import check_choices, help_text, meant, options_of
from changeanywhere.limits import check_limits
from changeanywhere.regular import open_regular
from changeanywhere.terminal import say_lines

Options = typing.TypeVar("Options")


def parse(command: str, kind: type[Options], arguments: list[str], description: str, epilog: str = "") -> Options:
    """Flags and ``--config`` YAML → the dataclass ``kind``; :class:`ConfigError` for anything that does not fit."""
    _say_help(command, kind, arguments, description, epilog)
    known = {f"--{option.name}" for option in options_of(kind)} | {"--config", "--print_config"}
    _refuse_unknown(arguments, known)
    import jsonargparse  # here: help and what is mistyped need not wait for it

    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    _add_options(parser, kind, "")
    arguments = _config_first(_with_truth(arguments, set(_switches(kind, ""))))
    _check_yaml(arguments)
    try:
        values = parser.parse_args(_with_lists(_readable_config(arguments), _lists_of_words(kind)))
    except jsonargparse.ArgumentError as error:
        raise ConfigError(_shorten(str(error), known)) from error
    options = _build(kind, values)
    check_limits(options)
    check_choices(options)
    return options


def _say_help(command: str, kind: type, arguments: list[str], description: str, epilog: str) -> None:
    """Where it is asked for: the page, or all of what stands behind the flag; ends the command."""
    place = next(
        (i for i, each in enumerate(arguments) if each in ("-h", "--help") or each.startswith("--help=")), None
    )
    if place is None:
        return
    behind = "".join(arguments[place + 1 : place + 2])
    topic = arguments[place].partition("=")[2] or ("" if behind.startswith("-") else behind)
    try:
        say_lines(help_text(command, kind, description, epilog, topic))
    except ValueError as error:
        raise ConfigError(f"--help {topic}: no option or section of {command}{error}") from error
    raise SystemExit(0)


def _refuse_unknown(arguments: list[str], known: set[str]) -> None:
    """:class:`ConfigError` for a flag that the command does not have, with the one that may have been meant."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and len(name) > 2 and name.rstrip("+") not in known:
            if any(name.startswith(f"{each}.") for each in known):
                continue  # a key of an option that is a mapping
            raise ConfigError(f"unknown option {name[:80]}{meant(name.replace('_', '-'), sorted(known))}")


def _lists_of_words(kind: type, prefix: str = "") -> set[str]:
    """Flags of the fields that are lists of words."""
    found: set[str] = set()
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= _lists_of_words(typing.cast(type, hint), f"{prefix}{name}.")
        elif _is_words(hint):
            found.add(f"--{prefix}{name}".replace("_", "-"))
    return found


def _is_words(hint: Any) -> bool:
    parts = typing.get_args(hint)
    return bool({tuple[str, ...], list[str]} & {hint, *(parts if type(None) in parts else ())})


def _with_lists(arguments: list[str], flags: set[str]) -> list[str]:
    """``--class-names water,road`` → ``--class-names ["water", "road"]``, which is what the parser reads."""
    found, flag = [], ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if flag in flags and not argument.startswith(("[", "--", "null")):
            found.append(_as_list(argument))
        elif name in flags and equals and not value.startswith(("[", "null")):
            found.append(f"{name}={_as_list(value)}")
        else:
            found.append(argument)
        flag = argument
    return found


def _as_list(words: str) -> str:
    return json.dumps([word.strip() for word in words.split(",")])


def given_flags(arguments: list[str]) -> frozenset[str]:
    """Names of the options that came as flags: ``--denoiser.num-steps 3`` → ``denoiser.num_steps``."""
    flags = (argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--"))
    return frozenset(flag.replace("-", "_") for flag in flags) - {"config"}


def with_words(arguments: list[str], kind: type, name: str) -> list[str]:
    """Words that are no flag's value as the values of the option ``name``: ``A B --out C`` → ``--inputs ["A", "B"]
    --out C``, or as its one value where the option is no list."""
    switches = set(_switches(kind, "")) | {"-h", "--help"}
    words, rest, held = [], list[str](), False
    for argument in _with_truth(arguments, switches - {"-h", "--help"}):
        if held or argument.startswith("-"):
            rest.append(argument)
            held = not held and "=" not in argument and argument not in switches
        else:
            words.append(argument)
    if not words:
        return arguments
    many = tuple[str, ...] == typing.get_type_hints(kind)[name]
    if not many and len(words) > 1:
        raise ConfigError(f"{' '.join(words)[:200]}: {len(words)} words where one is taken, {name}")
    return [f"--{name.replace('_', '-')}", json.dumps(words) if many else words[0], *rest]


def _switches(kind: type, prefix: str) -> typing.Iterator[str]:
    """Flags that need no value: given alone they are true."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _switches(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")
        elif hints[field.name] is bool and field.default is False:
            yield f"--{prefix}{field.name}".replace("_", "-")


def _with_truth(arguments: list[str], switches: set[str]) -> list[str]:
    """``--flip`` → ``--flip=true`` and ``--flip false`` → ``--flip=false``: a switch has a value, which may take back
    what a recipe turns on."""
    found, taken = list[str](), False
    for place, argument in enumerate(arguments):
        behind = "".join(arguments[place + 1 : place + 2])
        if argument in switches:
            said = behind.lower() in ("true", "false")
            found.append(f"{argument}={behind.lower() if said else 'true'}")
        elif not taken:
            found.append(argument)
        taken = argument in switches and said
    return found


def names_option(arguments: list[str], name: str) -> bool:
    """Whether an option is given, as a flag or as a key of the ``--config`` file."""
    if name in given_flags(arguments):
        return True
    for i, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        file = Path(value or "".join(arguments[i + 1 : i + 2]))
        if flag == "--config" and file.is_file():
            try:
                content = parse_yaml(read_text(file))
            except (OSError, UnicodeError, DocumentError):
                return False  # the parser says what is wrong with it
            return isinstance(content, dict) and name in content
    return False


def _check_yaml(arguments: list[str]) -> None:
    """Recipe files, and values that are YAML themselves, within bounds: jsonargparse reads them without any."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if not name.startswith("-") or not equals:
            value = argument
        is_recipe = (name if equals else arguments[i - 1] if i else "") == "--config"
        is_file = is_recipe and Path(value).is_file()
        if is_recipe and not is_file and Path(value).exists():
            raise ConfigError(f"config is {value!r}; allowed: a file (a pipe or device would be waited for)")
        try:
            content = _bounded(Path(value)) if is_file else value
            check_yaml(content)
            if is_recipe and _names_a_recipe(yaml.compose(content, Loader=yaml.SafeLoader)):
                raise ConfigError(f"{value[:80]}: config is in it; allowed: options, since a recipe opens no other")
        except DocumentError as error:
            raise ConfigError(f"{value if is_file else name[:80]}: {error}") from error
        except (yaml.YAMLError, UnicodeError) as error:
            if is_file:
                raise ConfigError(f"{value}: not YAML ({' '.join(str(error).split())[:200]})") from error
        except RecursionError as error:
            raise ConfigError(f"{value if is_file else name[:80]}: nested without end") from error


def _names_a_recipe(node: yaml.Node | None) -> bool:
    """Whether a mapping has the key ``config``, which the parser would open, or merges one that has it."""
    if isinstance(node, yaml.SequenceNode):
        return any(map(_names_a_recipe, node.value))
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return any(key.value == "config" or (key.value == "<<" and _names_a_recipe(value)) for key, value in pairs)


def _bounded(file: Path) -> bytes:
    with open_regular(file) as opened:
        content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DocumentError(f"more than {MAX_BYTES} bytes")
    return content


def _shorten(message: str, known: set[str]) -> str:
    """jsonargparse's report on a value of the wrong type, as ``name is value; allowed: type``."""
    unknown = re.search(r"Option '([^']+)' is not accepted", message)
    if unknown:
        keys = [each[2:].replace("-", "_") for each in sorted(known)]
        return f"unknown option {unknown.group(1)!r} in the YAML file{meant(unknown.group(1), keys)}"
    name = re.search(r'Parser key "([^"]+)"', message)
    value = re.search(r"(?:Given|Got) value: (.+)", message)
    kinds = re.findall(r"Expected an? <class '([^']+)'>", message)
    if not (name and value and kinds):
        return message
    allowed = " or ".join("nothing" if kind == "NoneType" else kind for kind in kinds)
    return f"{name.group(1)} is {value.group(1).strip()!r}; allowed: {allowed}"


def _add_options(parser: Any, kind: type, prefix: str) -> None:
    """One flag per field: ``num_steps`` → ``--num-steps``; a nested dataclass → ``--events.min-area``."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            _add_options(parser, typing.cast(type, hints[field.name]), f"{name}.")
            continue
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = field.default_factory() if callable(field.default_factory) else field.default
        settings: dict[str, Any] = {"required": True} if required else {"default": default}
        parser.add_argument(f"--{name.replace('_', '-')}", type=hints[field.name], **settings)


def _build(kind: type[Options], values: Any) -> Options:
    hints = typing.get_type_hints(kind)
    content = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        value = values[field.name]
        content[field.name] = _build(hints[field.name], value) if dataclasses.is_dataclass(hints[field.name]) else value
    return kind(**content)


def _readable_config(arguments: list[str]) -> list[str]:
    """A ``--config`` in UTF-16, as Notepad may save it, given by its text: the parser opens files as UTF-8 alone."""
    if arguments[:1] != ["--config"] and not "".join(arguments[:1]).startswith("--config="):
        return arguments
    flag, equals, value = arguments[0].partition("=")
    file, rest = Path(value if equals else "".join(arguments[1:2])), arguments[1 if equals else 2 :]
    if not file.is_file() or not _bounded(file).startswith(UTF_16):
        return arguments
    return [flag, read_text(file), *rest]


def _config_first(arguments: list[str]) -> list[str]:
    """Move ``--config FILE`` to the front, so that a flag wins wherever it stands."""
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            return [*arguments[i : i + 2], *arguments[:i], *arguments[i + 2 :]]
        if argument.startswith("--config="):
            return [argument, *arguments[:i], *arguments[i + 1 :]]
    return arguments
