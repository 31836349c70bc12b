"""Writes docs/cli.md from the options' dataclasses: ``make reference``. A test compares (tests/test_reference.py)."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

from changeanywhere.benchmark.options import BenchmarkOptions
from changeanywhere.check import CheckOptions
from changeanywhere.commands import COMMANDS
from changeanywhere.completion import CompletionOptions
from changeanywhere.evaluation.detector_options import DetectorEvaluationOptions
from changeanywhere.evaluation.options import EvaluateOptions
from changeanywhere.exporting.options import ExportOptions
from changeanywhere.generation.options import FinishOptions, GenerateOptions, SimulateOptions
from changeanywhere.generation.speed import SpeedOptions
from changeanywhere.help import attribute_docstrings, choices_of, is_list
from changeanywhere.init import InitOptions
from changeanywhere.labelling.options import LabelOptions
from changeanywhere.models.import_options import ImportDetectorOptions, ImportOptions
from changeanywhere.prediction.options import PredictOptions
from changeanywhere.scenes.options import SceneOptions
from changeanywhere.shipped import RecipesOptions
from changeanywhere.studio.options import StudioOptions
from changeanywhere.training.command import STAGES, TrainOptions

OPTIONS: dict[str, type] = {
    "generate": GenerateOptions,
    "generate --scene": SceneOptions,
    "finish PATH": FinishOptions,
    "simulate": SimulateOptions,
    "label": LabelOptions,
    f"train {' | '.join(STAGES)}": TrainOptions,
    "import ldm CHECKPOINT": ImportOptions,
    "import opencd CHECKPOINT": ImportDetectorOptions,
    "evaluate": EvaluateOptions,
    "evaluate --detector DIR PAIRS": DetectorEvaluationOptions,
    "predict INPUTS": PredictOptions,
    "export PAIRS": ExportOptions,
    "studio": StudioOptions,
    "benchmark": BenchmarkOptions,
    "speed": SpeedOptions,
    "recipes NAME": RecipesOptions,
    "completion SHELL": CompletionOptions,
    "init PATH": InitOptions,
    "check PATH": CheckOptions,
}
SUMMARIES = {
    "generate --scene": "one large image and its land cover → a second date for a GIS, with change map and events",
    "evaluate --detector DIR PAIRS": "how good a detector is on labelled pairs: figures and a page with the worst",
}
"""Of commands in another mode."""
ALIKE = {"generate": "`plan` takes the same options; its jobs repeat them with `--shard` ([several jobs](cluster.md))."}
HEAD = """# Options of every command

Generated from the source (`make reference`); `changeanywhere COMMAND --help=all` prints the same, `--help`
a line of each. Every option is a flag
and a key of the YAML file that `--config` takes (`--events.min-area 64`, or `events: {min_area: 64}`); a flag wins, an
unknown key is an error. A switch (default `False`) needs no value; `--NAME=false` turns off what a recipe turns on.
Exit code: 0 done, 1 failed, 2 your input is wrong.

Every command also takes, on the command line alone, `--quiet` (neither bars nor remarks; errors and what was asked for
stay) and `--progress bars|json|none`. With `json`, standard error is one JSON object a line: `{"event": "progress",
"what", "note", "done", "total", "seconds"}` at most twice a second for each kind of work, `{"event": "note",
"message"}`, and last `{"event": "end", "exit_code": 0}` or `{"event": "error", "message", "exit_code"}`.
"""


def rows(kind: type, prefix: str = "") -> list[str]:
    """A line per option; those of nested dataclasses under their dotted names."""
    texts, hints = attribute_docstrings(kind), typing.get_type_hints(kind)
    lines = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        name = f"{prefix}{field.name}".replace("_", "-")
        if dataclasses.is_dataclass(hint):
            lines += rows(typing.cast(type, hint), f"{prefix}{field.name}.")
            continue
        text = " ".join(texts[field.name].split()).replace("``", "`").replace("|", "\\|")
        choices = choices_of(field)
        if any(each not in text for each in choices):
            text += f" {'Some' if is_list(hint) else 'One'} of {', '.join(f'`{each}`' for each in choices)}."
        lines.append(f"| `--{name}` | {default_of(field)} | {text} |")
    return lines


def default_of(field: dataclasses.Field[typing.Any]) -> str:
    """As a table shows it: what has none is required."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is dataclasses.MISSING:
        return "**required**"
    else:
        value = field.default
    if value is None or value in ([], {}, ""):
        return ""
    return f"`{list(value) if isinstance(value, tuple) else value}`".replace("'", "")


def reference() -> str:
    """The whole page."""
    parts = [HEAD]
    for command, kind in OPTIONS.items():
        parts += [f"## {command}", "", SUMMARIES.get(command, COMMANDS[command.split()[0]]), ""]
        parts += [ALIKE[command], ""] if command in ALIKE else []
        parts += ["| option | default | meaning |", "|---|---|---|", *rows(kind), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(reference(), encoding="utf-8")
