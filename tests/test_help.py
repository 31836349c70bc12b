"""Help texts: short enough to be read, complete where they are asked, and the word that was meant."""

from __future__ import annotations

import dataclasses
import runpy
import shlex
import typing
from pathlib import Path

import pytest

from changeanywhere.cli import run
from changeanywhere.diffusion.options import DTYPES
from changeanywhere.help import Option, choices_of, help_text, options_of
from changeanywhere.training.command import STAGES

OPTIONS: dict[str, type] = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "cli_reference.py"))["OPTIONS"]


@pytest.mark.parametrize("command", OPTIONS)
def test_a_page_has_less_than_a_hundred_lines_and_every_option_is_found(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    kind = OPTIONS[command]
    page = help_text(command, kind, "about", "end")
    assert page.count("\n") < 100 and max(map(len, page.splitlines()[3:])) <= 100
    everything = help_text(command, kind, "about", "end", "all")
    for option in options_of(kind):
        shown = f"--{option.section}.*" if option.section else f"--{option.name}"
        assert shown in page, option.name
        assert f"--{option.name}" in everything
        assert " ".join(option.text.split()[:4]) in " ".join(everything.split())
        assert f"--{option.name}" in help_text(command, kind, "about", "end", option.name)


BEGUN: dict[str, list[str]] = {
    "generate": ["generate", "--source", "examples"],
    "generate --scene": ["generate", "--scene", "t.tif", "--mask", "m.tif"],
    "simulate": ["simulate", "--source", "examples"],
    "label": ["label", "--source", "examples"],
    "evaluate": ["evaluate", "--pairs", "x"],
    "evaluate --detector DIR PAIRS": ["evaluate", "--detector", "x", "y"],
    "export PAIRS": ["export", "x"],
    "benchmark": ["benchmark", "--pairs", "x"],
    "check PATH": ["check", "examples"],
    "speed": ["speed"],
    "recipes NAME": ["recipes"],
    "completion SHELL": ["completion"],
    f"train {' | '.join(STAGES)}": ["train"],
}
"""How a command begins that says what is wrong with one more option."""
HAVE_NO_OUT = ("check", "speed", "recipes", "completion")
CHOSEN = {
    (option.name, option.choices): (command, option)
    for command, kind in OPTIONS.items()
    for option in options_of(kind)
    if option.choices
}
"""An option that several commands have stands here once."""


@pytest.mark.parametrize(("command", "option"), CHOSEN.values(), ids=lambda each: getattr(each, "name", each))
def test_choices_are_shown_and_a_wrong_one_says_which_was_meant(
    command: str, option: Option, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of every command: all words in help, and in one line where another is given."""
    everything = " ".join(help_text(command, OPTIONS[command], "about", "end", option.name).split())
    assert f"{{{', '.join(option.choices)}}}" in everything.replace(",", ", ").replace(",  ", ", ")
    begun = BEGUN[command]
    if begun == ["train"]:
        stage = option.section if option.section in STAGES else "segmenter" if option.section == "data" else "detector"
        begun = ["train", stage, "--detector.pairs", "x"] if stage == "detector" else ["train", stage]
        begun += ["--data.source", "examples"] if stage in ("segmenter", "denoiser", "first-stage") else []
    word = option.choices[-1]
    wrong = word[:-1] + "#" if len(word) > 3 else f"{word}#"
    wrong = "9" if word.isdigit() else wrong
    out = [] if begun[0] in HAVE_NO_OUT else ["--out", str(tmp_path / "out")]
    assert run([*begun, *out, f"--{option.name}={wrong}"]) == 2
    said = capsys.readouterr().err
    assert all(each in said for each in option.choices) and said.count("\n") == 1, said
    near = [each for each in option.choices if f"did you mean {each}" in said]
    assert near or len(word) < 4, said
    assert not (tmp_path / "out").exists()


def test_choices_are_checked_in_recipes_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("denoiser: {prediction_type: v_pred}\n")
    assert run(["train", "denoiser", "--config", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "prediction_type is 'v_pred'; allowed: epsilon, v_prediction; did you mean v_prediction?" in said


def test_names_that_are_shown_are_those_that_are_built() -> None:
    from changeanywhere.models.detectors import DETECTORS
    from changeanywhere.models.names import BACKBONES
    from changeanywhere.models.names import DETECTORS as NAMES
    from changeanywhere.models.segmenter import BACKBONES as BUILT

    assert tuple(DETECTORS) == NAMES and tuple(BUILT) == BACKBONES


def test_dtypes_that_are_shown_are_those_that_are_known() -> None:
    from changeanywhere.diffusion.pipeline import DTYPES as KNOWN

    assert set(DTYPES) == set(KNOWN)


def test_a_default_is_one_of_the_choices() -> None:
    def fields(kind: type) -> typing.Iterator[dataclasses.Field[typing.Any]]:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield field
            if dataclasses.is_dataclass(hints[field.name]):
                yield from fields(typing.cast(type, hints[field.name]))

    chosen = [field for kind in OPTIONS.values() for field in fields(kind) if "choices" in field.metadata]
    assert len(chosen) > 20
    for field in chosen:
        default = field.default_factory() if callable(field.default_factory) else field.default
        values = default if isinstance(default, tuple | list) else (default,)
        some = {str(each) for each in values if each not in (None, dataclasses.MISSING)}
        assert some <= set(choices_of(field)), field.name


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generate --sorce x", "unknown option --sorce; did you mean --source?"),
        ("generate --num_pairs 3", "did you mean --num-pairs?"),
        ("generate --min-area 3", "did you mean --events.min-area?"),
        ("generate --xyzzy 3", "unknown option --xyzzy"),
        ("genrate", "unknown command 'genrate'; did you mean generate?"),
        ("xyzzy", "unknown command 'xyzzy'; allowed: generate, plan"),
        (
            "train detektor --out x",
            "allowed: first-stage, denoiser, critic, segmenter, detector; did you mean detector?",
        ),
        ("import opncd x", "allowed: ldm, opencd; did you mean opencd?"),
        ("generate --progress jsn", "progress is 'jsn'; allowed: bars, json, none; did you mean json?"),
        ("benchmark --pairs x --out y --baselines only_sup,scratch-flat", "did you mean only-sup?"),
        ("recipes minni", "did you mean mini?"),
        ("generate --help=smapler", "did you mean sampler?"),
    ],
)
def test_what_was_meant(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shlex.split(line)) == 2
    assert said in capsys.readouterr().err


def test_what_was_meant_in_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("events: {min_are: 3}\n")
    assert run(["generate", "--config", str(tmp_path / "r.yaml"), "--source", "x", "--out", "y"]) == 2
    assert "did you mean events.min_area?" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["generate --help", "generate --help filter", "predict --help=window", "check -h"])
def test_help_ends_well(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(shlex.split(line))
    assert ended.value.code == 0 and "--" in capsys.readouterr().out


def test_a_mapping_takes_keys_behind_a_dot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "--source", str(tmp_path / "x"), "--out", "y", "--targets.ratios.0-0.1", "0.5"]) == 2
    assert "unknown option" not in capsys.readouterr().err
