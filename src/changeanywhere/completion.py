"""``changeanywhere completion SHELL``: commands, options and files at the TAB key (extra ``completion``)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from changeanywhere.errors import ConfigError
from changeanywhere.help import Option, one_of, options_of, require_one
from changeanywhere.models.import_options import FAMILIES
from changeanywhere.shipped import recipes
from changeanywhere.terminal import PROGRESS
from changeanywhere.training.command import STAGES

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
    "train": STAGES,
    "import": FAMILIES,
    "completion": SHELLS,
    "recipes": tuple(recipes()),
}
"""What the first word after a command may be; of the others it is a file."""
FIRST_SENTENCE = 80
"""Letters of help that a shell shows."""
FOLDERS = ("out", "source", "model", "detector", "pairs", "init")


@dataclass(frozen=True)
class CompletionOptions:
    """Options of ``changeanywhere completion``."""

    shell: str = one_of(SHELLS, "bash")
    """Which shell; the same without the flag's name."""


def completion(options: CompletionOptions, commands: Mapping[str, str]) -> str:
    """A script for a shell; ``commands``: name → what it does.

    Raises :class:`ConfigError` for another shell, and where shtab, which writes the script, is not installed.
    """
    require_one("shell", options.shell, SHELLS)
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
        for option in _options(name):
            if not option.value:
                child.add_argument(f"--{option.name}", help=_shown(option.text), action="store_true")
                continue
            action = child.add_argument(f"--{option.name}", help=_shown(option.text), choices=option.choices or None)
            if (kind := _takes(option)) is not None:
                action.complete = kinds[kind]  # type: ignore[attr-defined]
    return str(shtab.complete(parser, options.shell))


def _options(command: str) -> list[Option]:
    """All options of a command, each once, and those that every command has."""
    found = {
        "config": Option("config", "FILE", "", "YAML file with any of these options, or a recipe of the package", ""),
        "progress": Option("progress", "KIND", "", "how progress is shown", "", PROGRESS),
        "quiet": Option("quiet", "", "", "neither bars nor remarks", ""),
    }
    for place in OPTIONS[command]:
        module, _, name = place.partition(":")
        kind: type = getattr(import_module(f"changeanywhere.{module}"), name)
        for option in options_of(kind):
            found.setdefault(option.name, option)
    return list(found.values())


def _takes(option: Option) -> str | None:
    if option.name.rpartition(".")[2] in FOLDERS:
        return "folder"
    return "file" if option.value in ("PATH", "FILE") else None


def _shown(text: str) -> str:
    """The first sentence, without what a shell may take for its own."""
    sentence = text.partition(". ")[0].partition("; ")[0].rstrip(".")
    plain = "".join(c for c in sentence if c not in "`'\"$\\[]{}%!")
    return plain if len(plain) <= FIRST_SENTENCE else f"{plain[:FIRST_SENTENCE].rpartition(' ')[0]} …"
