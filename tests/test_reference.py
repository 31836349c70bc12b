"""The documentation agrees with the program: the reference of options is current, commands in the pages parse."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from changeanywhere import cli, flags
from changeanywhere.diffusion.options import Sampling
from changeanywhere.errors import ConfigError
from changeanywhere.generation.options import GenerateOptions
from changeanywhere.models.info import find_model, read_info

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "recipes").glob("*.yaml"))]
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
COMMENT = re.compile(r"^# +", re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    """(page, command) of every ``changeanywhere …`` in a bash block, or in the head of a recipe."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = BLOCK.findall(text) if page.suffix == ".md" else [COMMENT.sub("", text)]
        for block in blocks:
            for line in block.replace("\\\n", " ").splitlines():
                words = re.split(r"--module ", line)[-1].strip()  # behind a launcher
                if words.startswith("changeanywhere ") and page.name != "cli.md":
                    found.append((page.name, words.split(" #")[0].rstrip("'")))
    return found


class ParsedError(Exception):
    """The command line was accepted."""


def test_reference_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "cli_reference.py"))
    assert (ROOT / "docs" / "cli.md").read_text() == page["reference"](), "make reference"


def test_there_are_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_of_the_pages_parse(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise ParsedError

    monkeypatch.setattr(flags, "_build", stop)
    monkeypatch.chdir(ROOT)
    with pytest.raises(ParsedError):
        code = cli.run(shlex.split(command)[1:])
        pytest.fail(f"{page}: {command}: exit code {code}")


def settings_of_method() -> list[tuple[str, str]]:
    """(what is ours, the options that switch it off): of each row of the table in method.md, the first words that are
    given to ``generate``, and all of them together."""
    page = (ROOT / "docs" / "method.md").read_text()
    rows = [
        line[2:].split(" | ") for line in page[page.index("## What is ours") :].splitlines() if line.startswith("| ")
    ]
    found = []
    for what, option, *_ in rows[1:]:
        given = [words for words in re.findall(r"`(--[^`]+)`", option) if re.match(r"--(?!config)[a-z-]+ ", words)]
        found += [(what, words) for words in dict.fromkeys((*given[:1], " ".join(given))) if words]
    return found


def test_there_are_settings_of_the_method() -> None:
    assert len(settings_of_method()) >= 5


@pytest.mark.parametrize(("what", "words"), settings_of_method())
def test_what_switches_our_ways_off_is_accepted_as_typed(
    what: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what the model of the package recommends."""
    monkeypatch.chdir(ROOT)
    given = flags.parse("generate", GenerateOptions, ["--source", "x", "--out", "y", *shlex.split(words)], "")
    recommended = Sampling(**read_info(find_model("mini")).defaults)
    try:
        recommended.changed(given.sampling_given).check()
    except ConfigError as error:
        pytest.fail(f"{what}: {words}: {error}")
