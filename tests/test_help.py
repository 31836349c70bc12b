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
from changeanywhere.help import help_text, options_of

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


def test_choices_are_shown_and_are_those_that_are_allowed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from changeanywhere.generation.options import GenerateOptions

    shown = [option for option in options_of(GenerateOptions) if option.value.startswith("{") and "," in option.value]
    assert len(shown) >= 10
    for option in shown:
        if option.name == "dtype":  # said when a network is loaded
            continue
        allowed = option.value.strip("{}").split(",")
        if option.name == "events.fill":
            continue  # which of them an event reads is said first
        code = run(["generate", "--source", "examples", "--out", str(tmp_path / "out"), f"--{option.name}", "neither"])
        said = capsys.readouterr().err
        assert code == 2 and all(each in said for each in allowed), f"{option.name}: {said}"


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
    assert chosen and all(field.default is None or field.default in field.metadata["choices"] for field in chosen)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generate --sorce x", "unknown option --sorce; did you mean --source?"),
        ("generate --num_pairs 3", "did you mean --num-pairs?"),
        ("generate --min-area 3", "did you mean --events.min-area?"),
        ("generate --xyzzy 3", "unknown option --xyzzy"),
        ("genrate", "unknown command 'genrate'; did you mean generate?"),
        ("xyzzy", "unknown command 'xyzzy'; allowed: generate, plan"),
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
