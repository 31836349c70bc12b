"""The command line: parse and dispatch, nothing else.

Every command is a dataclass of options (its attribute docstrings are the help texts) and a function. Only the
command that is called is imported.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import signal
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from changeanywhere.errors import ChangeAnywhereError, ShortfallError
from changeanywhere.legend import load_legend

COMMANDS = {
    "generate": "single-date tiles → bi-temporal pairs with labels, report and dataset card",
    "simulate": "change events only: second masks and change masks, no model",
    "train": "train first-stage | denoiser | segmenter | detector from a recipe; the same command again resumes",
    "import": "ldm | opencd CHECKPOINT: published weights of a diffusion model or a detector → a folder of ours",
    "evaluate": "how good a generated set or a model is, beside real data: figures and a page with pictures",
    "benchmark": "zero- and few-shot protocol: what pre-training on a set brings to detectors on a real benchmark",
    "check": "say what a folder is, what is wrong with it, what to do next",
}
EPILOG = "changeanywhere COMMAND --help lists a command's options. Exit code: 0 done, 1 failed, 2 your input is wrong."


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``changeanywhere``; ends the process with the exit code."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from changeanywhere import __version__

        print(__version__)
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        return _fail(f"unknown command {command!r}; allowed: {', '.join(COMMANDS)}", 2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends like Ctrl-C: one line, nothing lost
    dispatch: dict[str, Callable[[list[str]], None]] = {
        "generate": _generate,
        "simulate": _simulate,
        "train": _train,
        "import": _import,
        "evaluate": _evaluate,
        "benchmark": _benchmark,
        "check": _check,
    }
    try:
        dispatch[command](arguments[1:])
    except ChangeAnywhereError as error:
        if isinstance(error, ShortfallError):
            _print_shortfall(error)
        return _fail(" ".join(str(error).split()), error.exit_code)
    except OSError as error:  # a full disk or a lost network folder, wherever it was noticed
        return _fail(f"{error.filename or command}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; what is finished is kept, the same command again goes on from there", 1)
    return 0


def _generate(arguments: list[str]) -> None:
    from changeanywhere.generation.options import GenerateOptions

    options = _parse("generate", GenerateOptions, arguments)
    from changeanywhere.generation.run import dry_run, generate

    if options.dry_run:
        plan = dry_run(options)
        missing = "".join(f", {count} {kind} without a place" for kind, count in plan.missing.items())
        print(f"would write {plan.num_pairs} pairs{missing}")
        print(f"about {plan.num_bytes / 1e6:.1f} MB and {_duration(plan.seconds)} (one batch painted and timed)")
        return
    report = generate(options)
    _print_targets(report.reached)
    if report.num_new:
        print(
            f"painted {report.num_new} pairs ({report.pairs_per_second:.2f} pairs/s); {report.num_pairs} in the dataset"
        )
    else:
        print(f"nothing to do: all {report.num_pairs} pairs are there")
    _print_skipped(report.skipped, options.out)
    if report.num_dropped:
        print(f"dropped by the filter: {report.num_dropped}")
    print(f"dataset: {report.out}")
    print(f"report:  {report.report}")


def _simulate(arguments: list[str]) -> None:
    from changeanywhere.generation.options import SimulateOptions

    options = _parse("simulate", SimulateOptions, arguments)
    from changeanywhere.generation.simulate import simulate_source

    report = simulate_source(options)
    _print_targets(report.reached)
    _print_skipped(report.skipped, options.out)
    print(f"wrote the masks of {report.num_pairs} pairs: {report.out}")


def _print_targets(rows: Sequence[tuple[str, float, float]]) -> None:
    for name, asked, reached in rows:
        print(f"{name}: asked {asked:.1%}, reached {reached:.1%}")


def _print_shortfall(error: ShortfallError) -> None:
    """What was made all the same."""
    report: Any = error.report
    if report is not None:
        _print_targets(report.reached)
        _print_skipped(report.skipped, report.out)


def _print_skipped(lines: Sequence[str], out: Path) -> None:
    if lines:
        print(f"left out: {len(lines)} that could not be read, listed in {out / 'skipped.txt'}")


def _train(arguments: list[str]) -> None:
    from changeanywhere.training.command import STAGES, TrainOptions, train

    if not arguments or arguments[0] not in STAGES:
        if arguments and arguments[0] in ("-h", "--help"):
            print(f"usage: changeanywhere train {{{','.join(STAGES)}}} --config RECIPE --out DIR\n\n{EPILOG}")
            return
        raise _usage(f"train needs a stage; allowed: {', '.join(STAGES)}")
    options = _parse(f"train {arguments[0]}", TrainOptions, arguments[1:])
    result = train(arguments[0], options)
    if os.environ.get("RANK", "0") == "0":  # of the processes that a launcher started, one speaks
        print(f"finished: {result}")


def _import(arguments: list[str]) -> None:
    from changeanywhere.models.import_options import FAMILIES, ImportDetectorOptions, ImportOptions

    if not arguments or arguments[0] not in FAMILIES:
        if arguments and arguments[0] in ("-h", "--help"):
            print(
                f"usage: changeanywhere import {{{','.join(FAMILIES)}}} CHECKPOINT [--legend NAME] --out DIR\n\n"
                f"{EPILOG}"
            )
            return
        raise _usage(f"import needs a family of checkpoints; allowed: {', '.join(FAMILIES)}")
    positional = arguments[1:2] if arguments[1:] and not arguments[1].startswith("-") else []
    flags = ["--checkpoint", *positional] if positional else []
    rest = [*flags, *arguments[1 + len(positional) :]]
    if arguments[0] == "opencd":
        detector = _parse("import opencd", ImportDetectorOptions, rest)
        from changeanywhere.models.detectors.folder import save_detector
        from changeanywhere.models.import_opencd import import_opencd

        name, net = import_opencd(detector.checkpoint)
        save_detector(net, name, detector.out)
        print(f"imported {name}: {detector.out}")
        return
    options = _parse("import ldm", ImportOptions, rest)
    from changeanywhere.models.folder import save_model
    from changeanywhere.models.import_ldm import import_ldm

    legend = load_legend(options.legend)
    save_model(import_ldm(options.checkpoint, legend, options.num_heads, options.use_ema), options.out)
    print(f"imported: {options.out}")


def _evaluate(arguments: list[str]) -> None:
    from changeanywhere.evaluation.options import EvaluateOptions

    options = _parse("evaluate", EvaluateOptions, arguments)
    from changeanywhere.evaluation.run import evaluate

    figures = evaluate(options)
    section = ""
    for figure in figures:
        if figure.section != section:
            section = figure.section
            print(section)
        print(f"  {figure.name}: {figure.in_words()}")
    print(f"report: {options.out / 'evaluation.html'}")


def _benchmark(arguments: list[str]) -> None:
    from changeanywhere.evaluation.benchmark_options import BenchmarkOptions

    options = _parse("benchmark", BenchmarkOptions, arguments)
    from changeanywhere.evaluation.benchmark import run_benchmark

    records = run_benchmark(options)
    print((options.out / "table.md").read_text())
    print(f"{len(records)} cells: {options.out}")


def _check(arguments: list[str]) -> None:
    from changeanywhere.check import check_path

    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        if arguments and arguments[0] in ("-h", "--help"):
            print(f"usage: changeanywhere check PATH\n\n{COMMANDS['check']}\n\n{EPILOG}")
            return
        raise _usage("check takes one path")
    print(check_path(arguments[0]))


def _overview() -> str:
    lines = ["usage: changeanywhere COMMAND [OPTIONS]", "", "commands:"]
    lines += [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", EPILOG])


def _fail(message: str, code: int) -> int:
    print(f"changeanywhere: error: {message}", file=sys.stderr)
    return code


def _usage(message: str) -> ChangeAnywhereError:
    from changeanywhere.errors import ConfigError

    return ConfigError(message)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


Options = typing.TypeVar("Options")


def _parse(command: str, kind: type[Options], arguments: list[str]) -> Options:
    """Flags and ``--config`` YAML → the dataclass ``kind``; anything unknown or of the wrong type is one line."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(
        prog=f"changeanywhere {command}", description=COMMANDS[command.split()[0]], epilog=EPILOG, exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options; flags win")
    _add_options(parser, kind, "")
    try:
        values = parser.parse_args(_config_first(arguments))
    except jsonargparse.ArgumentError as error:
        raise _usage(_shorten(str(error))) from error
    return _build(kind, values)


def _shorten(message: str) -> str:
    """jsonargparse's report on a value of the wrong type, as ``name is value; allowed: type``."""
    name = re.search(r'Parser key "([^"]+)"', message)
    value = re.search(r"Given value: (.+)", message)
    kinds = re.findall(r"Expected an? <class '([^']+)'>", message)
    if not (name and value and kinds):
        return message
    allowed = " or ".join("nothing" if kind == "NoneType" else kind for kind in kinds)
    return f"{name.group(1)} is {value.group(1).strip()!r}; allowed: {allowed}"


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


def _add_options(parser: Any, kind: type, prefix: str) -> None:
    """One flag per field: ``num_steps`` → ``--num-steps``; a nested dataclass → ``--events.min-area``."""
    texts = attribute_docstrings(kind)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            _add_options(parser, typing.cast(type, hints[field.name]), f"{name}.")
            continue
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = field.default_factory() if callable(field.default_factory) else field.default
        settings: dict[str, Any] = {"required": True} if required else {"default": default}
        if hints[field.name] is bool and default is False:
            settings["action"] = "store_true"
        else:
            settings["type"] = hints[field.name]
        parser.add_argument(f"--{name.replace('_', '-')}", help=texts.get(field.name), **settings)


def _build(kind: type[Options], values: Any) -> Options:
    hints = typing.get_type_hints(kind)
    content = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        value = values[field.name]
        content[field.name] = _build(hints[field.name], value) if dataclasses.is_dataclass(hints[field.name]) else value
    return kind(**content)


def _config_first(arguments: list[str]) -> list[str]:
    """Move ``--config FILE`` to the front, so that a flag wins wherever it stands."""
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            return [*arguments[i : i + 2], *arguments[:i], *arguments[i + 2 :]]
        if argument.startswith("--config="):
            return [argument, *arguments[:i], *arguments[i + 1 :]]
    return arguments
