"""The command line: parse and dispatch, nothing else.

Every command is a dataclass of options (its attribute docstrings are the help texts) and a function. Only the
command that is called is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from changeanywhere.commands import (
    COMMANDS,
    EPILOG,
    completion_command,
    evaluate_detector_command,
    export_command,
    manner_of,
    parse_options,
    predict_command,
    recipes_command,
    speed_command,
    studio_command,
)
from changeanywhere.errors import ChangeAnywhereError, ConfigError, ShortfallError
from changeanywhere.flags import given_flags, names_option
from changeanywhere.help import among, meant
from changeanywhere.legend import load_legend
from changeanywhere.progress import shown_progress
from changeanywhere.shipped import find_source, with_shipped
from changeanywhere.stopping import polite_stop
from changeanywhere.storage import check_out, shown
from changeanywhere.terminal import escape_streams, escaped_streams, manner, say, say_event, say_lines, speaking
from changeanywhere.text import one_line


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``changeanywhere``; ends the process with the exit code, and quietly where its reader has gone."""
    escape_streams()  # to the end of the process: a traceback quotes names, too
    try:
        code = run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        code = 1
        for stream in (sys.stdout, sys.stderr):  # what is left in them is for nobody
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        say_lines(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from changeanywhere import __version__

        say(__version__)
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        return _fail(f"unknown command {command!r}{meant(command, COMMANDS) or '; allowed: ' + ', '.join(COMMANDS)}", 2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends like Ctrl-C: one line, nothing lost
    dispatch: dict[str, Callable[[list[str]], None]] = {
        "generate": _generate,
        "plan": _plan,
        "finish": _finish,
        "simulate": _simulate,
        "label": _label,
        "train": _train,
        "import": _import,
        "evaluate": _evaluate,
        "predict": predict_command,
        "export": export_command,
        "benchmark": _benchmark,
        "speed": speed_command,
        "studio": studio_command,
        "recipes": recipes_command,
        "completion": completion_command,
        "init": _init,
        "check": _check,
    }
    try:
        how, rest = manner_of(arguments[1:])
    except ConfigError as error:
        return _fail(str(error), error.exit_code)
    with speaking(how):
        code = _ended(command, lambda: dispatch[command](with_shipped(rest)))
        if how.progress == "json" and code == 0:
            say_event("end", exit_code=0)
    return code


def _ended(command: str, do: Callable[[], None]) -> int:
    """Do it, and say in one line what ended it; returns the exit code."""
    try:
        with escaped_streams():
            do()
    except ChangeAnywhereError as error:
        if isinstance(error, ShortfallError):
            _print_shortfall(error)
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk or a lost network folder, wherever it was noticed
        return _fail(f"{error.filename or command}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; what is finished is kept, the same command again goes on from there", 1)
    return 0


def _generate(arguments: list[str]) -> None:
    from changeanywhere.generation.options import GenerateOptions

    if names_option(arguments, "scene"):
        _generate_scenes(arguments)
        return

    options = parse_options("generate", GenerateOptions, arguments)
    from changeanywhere.generation.generate import dry_run, generate

    if options.dry_run:
        with shown_progress() as progress:
            plan = dry_run(options, progress)
        missing = "".join(f", {count} {kind} without a place" for kind, count in plan.missing.items())
        say(f"would write {plan.num_pairs} pairs{missing}")
        if plan.ignored is not None:
            say(f"{plan.ignored:.1%} of the ground differs between the real dates and gets no label")
        say(f"about {plan.num_bytes / 1e6:.1f} MB and {_duration(plan.seconds)} (one batch painted and timed)")
        return
    with shown_progress() as progress:
        report = generate(options, progress)
    _print_targets(report.reached)
    painted = f"painted {report.num_new} pairs ({report.pairs_per_second:.2f} pairs/s)"
    if report.num_open:
        say(f"{painted}; {report.num_open} shards are still open")
        say(f"next: the other shares paint them; the last one, or finish {shown(report.out)}, makes the lists")
        return
    if report.num_new:
        say(f"{painted}; {report.num_pairs} in the dataset")
    else:
        say(f"nothing to do: all {report.num_pairs} pairs are there")
    _print_skipped(report.skipped, options.out)
    _print_left_out(report.left_out)
    _print_dropped(report.num_dropped)
    say(f"dataset: {shown(report.out)}")
    say(f"report:  {shown(report.report)}")
    if report.exported is not None:
        say(f"as {options.layout}, exported from it: {shown(report.exported)}")


def _generate_scenes(arguments: list[str]) -> None:
    from changeanywhere.scenes.options import SceneOptions

    options = parse_options("generate", SceneOptions, arguments)
    from changeanywhere.scenes.generate import dry_run_scenes, generate_scenes

    if options.dry_run:
        with shown_progress() as progress:
            plans = dry_run_scenes(options, progress)
        for plan in plans:
            megapixels = plan.width * plan.height / 1e6
            say(f"{one_line(plan.key)}: {plan.width} x {plan.height} px ({megapixels:.1f} megapixels)")
            if plan.finished:
                done = f"{plan.num_events} events, {plan.changed:.2%} of known ground changed"
                say(f"  {done}; nothing to do, all is there")
                continue
            say(f"  {plan.num_events} events, {plan.changed:.2%} of known ground changes; {plan.windows} windows")
            say(f"  about {_duration(plan.seconds)} (windows painted and timed), {plan.num_bytes / 1e6:.0f} MB")
            say(f"  and {plan.scratch / 1e6:.0f} MB more until it is finished")
        return
    with shown_progress() as progress:
        reports = generate_scenes(options, progress)
    for report in reports:
        done = f"painted in {_duration(report.seconds)}" if report.seconds else "nothing to do, all is there"
        say(f"{report.num_events} events, {report.changed:.2%} of known ground changed; {done}")
        say(f"scene:  {report.folder}")
        if report.num_tiles:
            say(f"tiles:  {report.folder / 'tiles'} ({report.num_tiles} pairs)")
        say(f"report: {report.folder / 'report.html'}")


def _plan(arguments: list[str]) -> None:
    from changeanywhere.generation.options import GenerateOptions

    options = parse_options("plan", GenerateOptions, arguments)
    from changeanywhere.generation.shares import plan_set

    with shown_progress() as progress:
        plan = plan_set(options, progress)
    missing = "".join(f", {count} {kind} without a place" for kind, count in plan.missing.items())
    say(f"planned {plan.num_pairs} pairs in {plan.num_shards} shards{missing}: {shown(options.out)}")
    say("next: the same command as generate, with --shard 0/N to N-1/N in N jobs")


def _finish(arguments: list[str]) -> None:
    from changeanywhere.generation.options import FinishOptions

    options = parse_options("finish", FinishOptions, _with_path(arguments))
    from changeanywhere.generation.shares import finish

    report = finish(options.path)
    _print_targets(report.reached)
    _print_skipped(report.skipped, options.path)
    _print_left_out(report.left_out)
    _print_dropped(report.num_dropped)
    say(f"dataset: {shown(options.path)} ({report.num_pairs} pairs)")
    say(f"report:  {shown(options.path / 'report.html')}")


def _simulate(arguments: list[str]) -> None:
    from changeanywhere.generation.options import SimulateOptions

    options = parse_options("simulate", SimulateOptions, arguments)
    from changeanywhere.generation.simulate import simulate_source

    with shown_progress() as progress:
        report = simulate_source(options, progress)
    _print_targets(report.reached)
    _print_skipped(report.skipped, options.out)
    _print_left_out(report.left_out)
    say(f"wrote the masks of {report.num_pairs} pairs: {shown(report.out)}")


def _print_targets(rows: Sequence[tuple[str, float, float]]) -> None:
    for name, asked, reached in rows:
        say(f"{one_line(name)}: asked {asked:.1%}, reached {reached:.1%}")


def _print_shortfall(error: ShortfallError) -> None:
    """What was made all the same."""
    report: Any = error.report
    if report is not None:
        _print_targets(report.reached)
        _print_skipped(report.skipped, report.out)
        _print_dropped(getattr(report, "num_dropped", 0))
        if getattr(report, "exported", None) is not None:
            say(f"exported from it: {shown(report.exported)}")


def _print_dropped(count: int) -> None:
    if count:
        say(f"dropped by the filter: {count}")


def _print_left_out(changes: Mapping[str, int]) -> None:
    for what, count in changes.items():
        say(f"left out: {count} {one_line(what)}")


def _print_skipped(lines: Sequence[str], out: Path) -> None:
    if lines:
        say(f"left out: {len(lines)} that could not be read, listed in {shown(out / 'skipped.txt')}")


def _label(arguments: list[str]) -> None:
    from changeanywhere.labelling.options import LabelOptions

    options = parse_options("label", LabelOptions, arguments)
    from changeanywhere.labelling.label import label

    with shown_progress() as progress:
        lines = label(options, progress)
    known = sum(line.known for line in lines) / len(lines)
    confidence = sum(line.confidence for line in lines) / len(lines)
    say(f"labelled {len(lines)} images: {known:.1%} of their ground, mean confidence {confidence:.2f}")
    say(f"table:  {options.out / 'labels.csv'}")
    say(f"next:   changeanywhere check {options.out} --preview preview.png")


def _train(arguments: list[str]) -> None:
    from changeanywhere.training.command import STAGES, TrainOptions, train

    if not arguments or arguments[0] not in STAGES:
        if arguments and arguments[0] in ("-h", "--help"):
            say_lines(f"usage: changeanywhere train {{{','.join(STAGES)}}} --config RECIPE --out DIR\n\n{EPILOG}")
            return
        raise ConfigError(f"train needs a stage; allowed: {among(''.join(arguments[:1]), STAGES)}")
    options = parse_options(f"train {arguments[0]}", TrainOptions, arguments[1:])
    with shown_progress() as progress, polite_stop(on_key=True) as stop:
        result = train(arguments[0], options, progress, stop, given_flags(arguments[1:]))
    if os.environ.get("RANK", "0") == "0":  # of the processes that a launcher started, one speaks
        say(f"finished: {result}")


def _import(arguments: list[str]) -> None:
    from changeanywhere.models.import_options import FAMILIES, ImportDetectorOptions, ImportOptions

    if not arguments or arguments[0] not in FAMILIES:
        if arguments and arguments[0] in ("-h", "--help"):
            say_lines(
                f"usage: changeanywhere import {{{','.join(FAMILIES)}}} CHECKPOINT [--legend NAME] --out DIR\n\n"
                f"{EPILOG}"
            )
            return
        raise ConfigError(f"import needs a family of checkpoints; allowed: {among(''.join(arguments[:1]), FAMILIES)}")
    positional = arguments[1:2] if arguments[1:] and not arguments[1].startswith("-") else []
    flags = ["--checkpoint", *positional] if positional else []
    rest = [*flags, *arguments[1 + len(positional) :]]
    if arguments[0] == "opencd":
        detector = parse_options("import opencd", ImportDetectorOptions, rest)
        from changeanywhere.models.detectors.folder import save_detector
        from changeanywhere.models.import_opencd import import_opencd

        check_out(detector.out)
        name, net = import_opencd(detector.checkpoint)
        save_detector(net, name, detector.out)
        say(f"imported {name}: {detector.out}")
        return
    options = parse_options("import ldm", ImportOptions, rest)
    from changeanywhere.models.folder import save_model
    from changeanywhere.models.import_ldm import import_ldm

    check_out(options.out)
    legend = load_legend(options.legend)
    save_model(import_ldm(options.checkpoint, legend, options.num_heads, options.use_ema), options.out)
    say(f"imported: {options.out}")


def _evaluate(arguments: list[str]) -> None:
    from changeanywhere.evaluation.options import EvaluateOptions

    if names_option(arguments, "detector"):
        evaluate_detector_command(arguments)
        return
    options = parse_options("evaluate", EvaluateOptions, arguments)
    from changeanywhere.evaluation.evaluate import evaluate
    from changeanywhere.progress import shown_progress

    with shown_progress() as progress:
        evaluation = evaluate(options, progress)
    section = ""
    for figure in evaluation.figures:
        if figure.section != section:
            section = figure.section
            say(section)
        name = f"{figure.name}, {figure.of}" if figure.of else figure.name
        say(f"  {one_line(name)}: {one_line(figure.in_words())}")
    _print_skipped(evaluation.skipped, options.out)
    say(f"report: {options.out / 'evaluation.html'}")


def _benchmark(arguments: list[str]) -> None:
    from changeanywhere.benchmark.options import BenchmarkOptions

    options = parse_options("benchmark", BenchmarkOptions, arguments)
    from changeanywhere.benchmark.protocol import run_benchmark

    with shown_progress() as progress, polite_stop() as stop:
        records = run_benchmark(options, progress, stop)
    page = options.out / ("plan.md" if options.dry_run else "table.md")
    say_lines(page.read_text())
    say(f"plan: {page}" if options.dry_run else f"{len(records)} cells: {options.out}")


def _init(arguments: list[str]) -> None:
    from changeanywhere.init import InitOptions, init

    say_lines(init(parse_options("init", InitOptions, _with_path(arguments))))


def _check(arguments: list[str]) -> None:
    from changeanywhere.check import CheckOptions, check_path

    options = parse_options("check", CheckOptions, _with_path(arguments))
    say_lines(check_path(Path(find_source(options.path)), options))


def _with_path(arguments: list[str]) -> list[str]:
    """``FOLDER …`` as ``--path FOLDER …``."""
    positional = arguments[:1] if arguments[:1] and not arguments[0].startswith("-") else []
    flags = ["--path", *positional] if positional else []
    return [*flags, *arguments[len(positional) :]]


def _overview() -> str:
    lines = ["usage: changeanywhere COMMAND [OPTIONS]", "", "commands:"]
    lines += [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", EPILOG])


def _fail(message: str, code: int) -> int:
    if manner().progress == "json":
        say_event("error", message=one_line(message), exit_code=code)
    else:
        say(f"changeanywhere: error: {one_line(message)}", error=True)
    return code


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
