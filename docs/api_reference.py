"""Writes docs/api.md from the docstrings of public names: ``make reference``. A test compares (tests/test_site.py)."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from pathlib import Path

import changeanywhere as ca
from changeanywhere.help import attribute_docstrings

HEAD = """# Every public name of Python

Made from the docstrings (`make reference`). `import changeanywhere as ca`; nothing is loaded before
a name is used. In short, with an example: [python.md](python.md).
"""
ROLE = re.compile(r":(?:class|func|meth|mod|data):`~?\.?([^`]+)`")


def text_of(thing: object) -> str:
    """A docstring as Markdown."""
    text = inspect.getdoc(thing) or ""
    text = ROLE.sub(r"`\1`", text).replace("``", "`")
    return re.sub(r"::\n\n((?:    .*\n?|\n)+)", r":\n\n\1", text)


def signature_of(thing: typing.Any, name: str) -> str:
    """``name(arguments) -> result`` with short annotations, an argument a line where it is long."""
    signature = inspect.signature(thing)
    kept = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    shown = [_parameter(p) for p in kept]
    stars = next((n for n, p in enumerate(kept) if p.kind is p.KEYWORD_ONLY), None)
    if stars is not None and not any(p.kind is p.VAR_POSITIONAL for p in kept):
        shown.insert(stars, "*")
    result = signature.return_annotation
    after = "" if result is inspect.Signature.empty else f" -> {re.sub(r'[a-z_]+[.]', '', str(result))}"
    line = f"{name}({', '.join(shown)}){after}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(shown) + f",\n){after}"


def _parameter(parameter: inspect.Parameter) -> str:
    star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{star}{parameter.name}: {re.sub(r'[a-z_]+[.](?=[A-Z])', '', str(parameter.annotation))}{default}"


def fields_of(kind: type) -> list[str]:
    """A row per field of a dataclass."""
    texts = attribute_docstrings(kind)
    rows = ["| field | type | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(typing.cast(typing.Any, kind)):
        told = " ".join(texts.get(field.name, "").split()).replace("``", "`").replace("|", "\\|")
        told = ROLE.sub(r"`\1`", told)
        rows.append(f"| `{field.name}` | `{str(field.type).replace('|', chr(92) + '|')}` | {told} |")
    return rows


def methods_of(kind: type) -> list[str]:
    """Public methods and properties that the class itself defines, and calling it."""
    parts: list[str] = []
    for name, member in vars(kind).items():
        plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if (name.startswith("_") and name != "__call__") or not (
            inspect.isfunction(plain) or isinstance(plain, property)
        ):
            continue
        shown = "pipe" if name == "__call__" else name
        if isinstance(plain, property):
            parts += [f"### `{kind.__name__}.{name}`", "", text_of(plain), ""]
            continue
        heading = f"### Calling a `{kind.__name__}`" if name == "__call__" else f"### `{kind.__name__}.{name}`"
        parts += [heading, "", f"```text\n{signature_of(plain, shown)}\n```", "", text_of(plain), ""]
    return parts


def reference() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in ca.__all__:
        thing = getattr(ca, name)
        if name == "__version__":
            continue
        parts += [f"## `{name}`", ""]
        if inspect.isclass(thing):
            parts += [text_of(thing), ""]
            if dataclasses.is_dataclass(thing):
                parts += [*fields_of(thing), ""]
            parts += methods_of(thing)
        else:
            parts += [f"```text\n{signature_of(thing, name)}\n```", "", text_of(thing), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "api.md").write_text(reference(), encoding="utf-8")
