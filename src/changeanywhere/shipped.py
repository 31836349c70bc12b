"""What comes with the package and has a name of its own: recipes, example tiles, pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template

from changeanywhere.errors import ConfigError
from changeanywhere.help import among, one_of
from changeanywhere.text import is_plain_name, one_line

ROOT = Path(__file__).parent
LETTERS = 100
"""Of what a list says of a recipe."""
SOURCES = ("--source", "--data.source")
EXAMPLES = "examples"
"""As a source: twelve tiles under CC0-1.0 and CC-BY-4.0."""


def recipes() -> dict[str, Path]:
    """Recipes of the package by name."""
    return {file.stem: file for file in sorted((ROOT / "recipes").glob("*.yaml"))}


@dataclass(frozen=True)
class RecipesOptions:
    """Options of ``changeanywhere recipes``."""

    name: str | None = one_of(recipes)
    """Recipe whose text is printed; the same without the flag's name; default: what recipes there are."""


def find_recipe(name: str) -> Path:
    """A recipe of the package; :class:`ConfigError` naming those there are."""
    if name not in recipes():
        names = among(name, recipes())
        raise ConfigError(f"config is {name!r}; allowed: a YAML file, or a recipe of the package: {names}")
    return recipes()[name]


def find_source(place: str | Path) -> str | Path:
    """``examples`` is the package's tiles where no folder of that name lies here; anything else is itself."""
    return ROOT / "assets" / EXAMPLES if str(place) == EXAMPLES and not Path(place).exists() else place


def asset(name: str) -> str:
    """A text of ``assets/``."""
    return (ROOT / "assets" / name).read_text("utf-8")


def page(name: str, **content: str) -> str:
    """``assets/NAME.html`` with its ``$names`` filled in; ``$style`` is what the pages of figures have in common."""
    return Template(asset(f"{name}.html")).substitute(content, style=asset("figures.css").rstrip())


def with_shipped(arguments: list[str]) -> list[str]:
    """Arguments of a command, ``--config NAME`` and ``--source examples`` as the files that they mean."""
    found, flag = list[str](), ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if flag in ("--config", *SOURCES):
            argument = _meant(flag, argument)
        elif name in ("--config", *SOURCES) and equals:
            argument = f"{name}={_meant(name, value)}"
        found.append(argument)
        flag = argument
    return found


def _meant(flag: str, value: str) -> str:
    if flag in SOURCES:
        return str(find_source(value))
    is_there = Path(value).exists() and not (Path(value).is_dir() and value in recipes())  # a run's folder, named alike
    is_name = is_plain_name(value) and "." not in value and not is_there
    return str(find_recipe(value)) if is_name else value


def list_recipes() -> str:
    """A line per recipe: its name, and the first sentence of its head."""
    width = max(map(len, recipes()))
    return "\n".join(f"{name:<{width}}  {_first_sentence(file)}" for name, file in recipes().items())


def _first_sentence(file: Path) -> str:
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").removeprefix(" ")
        if not line.startswith("#") or text.startswith(" "):  # a command, or what follows the head
            break
        lines.append(text)
    sentence = one_line(" ".join(lines)).partition(". ")[0].partition(": ")[0].rstrip(".:")
    return sentence if len(sentence) <= LETTERS else f"{sentence[:LETTERS].rpartition(' ')[0]} …"
