"""What the command line knows of its commands; those that turn pairs into something else, and recipes.

Only the command that is called is imported.
"""

from __future__ import annotations

import typing

from changeanywhere.errors import ConfigError
from changeanywhere.flags import parse, with_words
from changeanywhere.help import among
from changeanywhere.progress import shown_progress
from changeanywhere.shipped import RecipesOptions, find_recipe, list_recipes
from changeanywhere.terminal import PROGRESS, Manner, say, say_lines
from changeanywhere.text import one_line

COMMANDS = {
    "generate": "single-date tiles → bi-temporal pairs with labels, report and dataset card",
    "plan": "the plan of a set alone; then generate --shard I/N paints it in N jobs",
    "finish": "lists, metadata, card and report of a set whose shards were painted in several jobs",
    "simulate": "change events only: second masks and change masks, no model",
    "label": "masks for imagery that has none, from a segmenter; the folder is a --source of the other commands",
    "train": "train first-stage | denoiser | critic | segmenter | detector from a recipe; again: resumes",
    "import": "ldm | opencd CHECKPOINT: published weights of a diffusion model or a detector → a folder of ours",
    "evaluate": "how good a generated set or a model is, beside real data: figures and a page with pictures",
    "predict": "change maps from a detector: a folder of pairs, or T1.tif T2.tif of any size",
    "export": "a set of pairs in another layout: LAYOUT is levir, second, opencd, torchgeo, huggingface, coco, …",
    "studio": "a page in the browser: change a tile, paint it, keep it, review and export sets",
    "benchmark": "zero- and few-shot protocol: what pre-training on a set brings to detectors on a real benchmark",
    "speed": "what this machine paints per second, stage by stage, to paste into an issue",
    "recipes": "recipes that come with the package: --config NAME takes one, recipes NAME prints it",
    "completion": "bash | zsh | fish | powershell: a script for the TAB key of your shell",
    "init": "draft legend.json and a legend map from what the masks of a folder hold",
    "check": "say what a folder is, what is wrong with it, what to do next",
}
EPILOG = (
    "changeanywhere COMMAND --help lists a command's options. Every command takes --progress bars|json|none (json: "
    "lines of JSON on standard error) and --quiet (no bars, no remarks). --NAME=false turns a switch off that a recipe "
    "turns on. Exit "
    "code: 0 done, 1 failed, 2 your input is wrong."
)

Options = typing.TypeVar("Options")


def manner_of(arguments: list[str]) -> tuple[Manner, list[str]]:
    """``--progress KIND`` and ``--quiet``, wherever they stand, and the other arguments."""
    kind, quiet, rest, taken = "bars", False, list[str](), False
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if taken:
            taken = False
        elif name == "--progress":
            kind, taken = (value, False) if equals else ("".join(arguments[i + 1 : i + 2]), True)
            if kind not in PROGRESS:
                raise ConfigError(f"progress is {kind[:80]!r}; allowed: {among(kind, PROGRESS)}")
        elif argument == "--quiet":
            quiet = True
        else:
            rest.append(argument)
    return Manner(kind, quiet), rest


def parse_options(command: str, kind: type[Options], arguments: list[str]) -> Options:
    """Flags and recipe of a command → its options."""
    return parse(command, kind, arguments, COMMANDS[command.split()[0]], EPILOG)


def evaluate_detector_command(arguments: list[str]) -> None:
    """``evaluate --detector``."""
    from changeanywhere.evaluation.detector_options import DetectorEvaluationOptions as Options

    options = parse_options("evaluate", Options, with_words(arguments, Options, "pairs"))
    from changeanywhere.evaluation.detector_figures import SCORES
    from changeanywhere.evaluation.of_detector import evaluate_on_pairs

    with shown_progress() as progress:
        evaluation = evaluate_on_pairs(options, progress)
    values = evaluation.overall.to_dict()
    say(f"{one_line(evaluation.detector)} on {len(evaluation.pairs)} pairs, change class over all their pixels")
    for name in SCORES:
        value = values[name]
        say(f"  {name:<10} {'undefined' if value is None else f'{value:.4f}'}")
    if evaluation.semantic is not None:
        say("classes of both dates, from one confusion matrix")
        for name, value in evaluation.semantic.to_dict().items():
            say(f"  {name:<13} {'undefined' if value is None else f'{value:.4f}'}")
    elif evaluation.without:
        say(f"no scores in classes: {one_line(evaluation.without)}")
    say(f"report: {options.out / 'evaluation.html'}")


def predict_command(arguments: list[str]) -> None:
    """``predict``."""
    from changeanywhere.prediction.options import PredictOptions

    options = parse_options("predict", PredictOptions, with_words(arguments, PredictOptions, "inputs"))
    from changeanywhere.prediction.predict import TABLE, predict

    with shown_progress() as progress:
        lines = predict(options, progress)
    changed, valid = (sum(getattr(line, name) for line in lines) for name in ("changed_px", "valid_px"))
    say(f"predicted {len(lines)} pair(s): {changed / max(valid, 1):.2%} of their ground changed")
    say(f"table:  {options.out / TABLE}")


def export_command(arguments: list[str]) -> None:
    """``export``."""
    from changeanywhere.exporting.options import ExportOptions

    options = parse_options("export", ExportOptions, with_words(arguments, ExportOptions, "pairs"))
    from changeanywhere.exporting.export import export

    with shown_progress() as progress:
        report = export(options, progress)
    counts = ", ".join(f"{split} {count}" for split, count in report.splits.items())
    say(f"wrote {sum(report.splits.values())} pairs ({counts}) as {options.layout}: {options.out}")
    for what in report.lost:
        say(f"{options.layout} has no place for {what}")
    say(f"how to load it: {options.out / 'README.md'}")


def recipes_command(arguments: list[str]) -> None:
    """``recipes``."""
    options = parse_options("recipes", RecipesOptions, with_words(arguments, RecipesOptions, "name"))
    if options.name is None:
        say_lines(list_recipes())
        say("one of them: --config NAME; its text, to make it your own: changeanywhere recipes NAME > my.yaml")
    else:
        say_lines(find_recipe(options.name).read_text(encoding="utf-8").rstrip("\n"))


def completion_command(arguments: list[str]) -> None:
    """``completion``."""
    from changeanywhere.completion import CompletionOptions, completion

    options = parse_options("completion", CompletionOptions, with_words(arguments, CompletionOptions, "shell"))
    say_lines(completion(options, COMMANDS))


def speed_command(arguments: list[str]) -> None:
    """``speed``."""
    from changeanywhere.generation.speed import SpeedOptions, measure_speed

    options = parse_options("speed", SpeedOptions, arguments)
    with shown_progress() as progress:
        speed = measure_speed(options, progress)
    say_lines(speed.text())


def studio_command(arguments: list[str]) -> None:
    """``studio``."""
    from changeanywhere.studio.options import StudioOptions

    options = parse_options("studio", StudioOptions, arguments)
    from changeanywhere.studio.server import serve

    serve(options)
