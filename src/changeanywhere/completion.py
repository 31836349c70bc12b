"""``changeanywhere completion SHELL``: commands, options and files at the TAB key (extra ``completion``)."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from changeanywhere.errors import ConfigError
from changeanywhere.flags import attribute_docstrings
from changeanywhere.shipped import recipes
from changeanywhere.terminal import PROGRESS
from changeanywhere.text import one_line

SHELLS = ("bash", "zsh", "fish", "powershell")
OPTIONS = {
    "generate": ("generation.options:GenerateOptions", "scenes.options:SceneOptions"),
    "plan": ("generation.options:GenerateOptions",),
    "finish": ("generation.options:FinishOptions",),
    "simulate": ("generation.options:SimulateOptions",),
    "label": ("labelling.options:LabelOptions",),
    "train": ("training.command:TrainOptions",),
    "import": ("models.import_options:ImportOptions", "models.import_options:ImportDetectorOptions"),
    "evaluate": ("evaluation.options:EvaluateOptions", "evaluation.detector_options:DetectorEvaluationOptions"),
    "predict": ("prediction.options:PredictOptions",),
    "export": ("exporting.options:ExportOptions",),
    "benchmark": ("benchmark.options:BenchmarkOptions",),
    "studio": ("studio.options:StudioOptions",),
    "speed": ("generation.speed:SpeedOptions",),
    "recipes": ("shipped:RecipesOptions",),
    "init": ("init:InitOptions",),
    "check": ("check:CheckOptions",),
    "completion": ("completion:CompletionOptions",),
}
"""Command → the dataclasses whose fields are its flags."""
WORDS = {
    "train": ("first-stage", "denoiser", "critic", "segmenter", "detector"),
    "import": ("ldm", "opencd"),
    "completion": SHELLS,
    "recipes": tuple(recipes()),
}
"""What the first word after a command may be; of the others it is a file."""
FIRST_SENTENCE = 80
"""Letters of help that a shell shows."""


@dataclass(frozen=True)
class CompletionOptions:
    """Options of ``changeanywhere completion``."""

    shell: str = "bash"
    """One of bash, zsh, fish, powershell; the same without the flag's name."""


def completion(options: CompletionOptions, commands: Mapping[str, str]) -> str:
    """A script for a shell; ``commands``: name → what it does.

    Raises :class:`ConfigError` for another shell, and where shtab, which writes the script, is not installed.
    """
    if options.shell not in SHELLS:
        raise ConfigError(f"shell is {options.shell[:80]!r}; allowed: {', '.join(SHELLS)}")
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise ConfigError("completion needs shtab: pip install 'changeanywhere[completion]'") from error
    parser = argparse.ArgumentParser(prog="changeanywhere")
    parser.add_argument("--version", action="store_true", help="say which version this is")
    kinds = {"file": shtab.FILE, "folder": shtab.DIRECTORY}
    children = parser.add_subparsers(dest="command")
    for name, text in commands.items():
        child = children.add_parser(name, help=_shown(text), description=_shown(text))
        words = WORDS.get(name)
        first = child.add_argument("word", nargs="?", choices=words, help="")
        if words is None:
            first.complete = shtab.FILE  # type: ignore[attr-defined]
        config = child.add_argument("--config", help="YAML file with any of these options, or a recipe of the package")
        config.complete = shtab.FILE  # type: ignore[attr-defined]
        child.add_argument("--progress", choices=PROGRESS, help="how progress is shown")
        child.add_argument("--quiet", action="store_true", help="neither bars nor remarks")
        for flag, help_text, kind in _flags(name):
            if kind == "switch":
                child.add_argument(flag, help=help_text, action="store_true")
                continue
            action = child.add_argument(flag, help=help_text)
            if kind in kinds:
                action.complete = kinds[kind]  # type: ignore[attr-defined]
    return str(shtab.complete(parser, options.shell))


def _flags(command: str) -> Iterator[tuple[str, str, str]]:
    """(flag, help, ``file``, ``folder``, ``switch`` or nothing) of all options of a command, each once."""
    seen = set[str]()
    for place in OPTIONS[command]:
        module, _, name = place.partition(":")
        kind: type = getattr(import_module(f"changeanywhere.{module}"), name)
        for flag, text, takes in _of(kind, ""):
            if flag not in seen:
                seen.add(flag)
                yield flag, text, takes


def _of(kind: type, prefix: str) -> Iterator[tuple[str, str, str]]:
    hints, texts = typing.get_type_hints(kind), attribute_docstrings(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _of(typing.cast(type, hint), f"{prefix}{field.name}.")
            continue
        is_path = Path in (hint, *typing.get_args(hint))
        is_folder = field.name in ("out", "source", "model", "detector", "pairs", "init")
        takes = "folder" if is_folder else "file" if is_path else "switch" if field.default is False else ""
        yield f"--{prefix}{field.name}".replace("_", "-"), _shown(texts.get(field.name, "")), takes


def _shown(text: str) -> str:
    """The first sentence, without what a shell may take for its own."""
    sentence = one_line(text).partition(". ")[0].partition("; ")[0].rstrip(".")
    plain = "".join(c for c in sentence if c not in "`'\"$\\[]{}%!")
    return plain if len(plain) <= FIRST_SENTENCE else f"{plain[:FIRST_SENTENCE].rpartition(' ')[0]} …"
