"""The documentation agrees with the program: the reference of options is current, commands in the pages parse."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from changeanywhere import cli, flags

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
