"""Every transcript of the README, and the Python of the pages, runs as it stands there (that all other commands of the
pages are accepted: tests/test_reference.py)."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^\$ (changeanywhere .+)$", README, re.MULTILINE)
PAGES = README + (ROOT / "docs" / "python.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL)


def test_there_are_commands_and_python() -> None:
    assert len(COMMANDS) >= 3 and len(PYTHON) >= 2


@pytest.mark.slow
def test_commands_and_python_run(tmp_path: Path) -> None:
    """In order, in one empty folder beside the checkout's ``src`` and ``recipes``."""
    for name in ("src", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs = Path(sys.executable).parent
    for command in COMMANDS:
        arguments = [str(programs / "changeanywhere"), *shlex.split(command)[1:]]
        finished = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert finished.returncode == 0, f"{command}\n{finished.stderr}"
    for code in PYTHON:
        finished = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        assert finished.returncode == 0, f"{code}\n{finished.stderr}"


@pytest.mark.slow
def test_the_scene_of_the_page_runs(tmp_path: Path) -> None:
    """docs/scenes.md, from polygons to the files that QGIS opens, in its order; what it says of numbers holds."""
    pytest.importorskip("pyogrio")
    page = (ROOT / "docs" / "scenes.md").read_text()
    section = page[page.index("## From polygons to QGIS") :].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    steps = [[sys.executable, "-c", code]]
    commands = re.findall(r"^\$ (changeanywhere .+)$", section, re.MULTILINE)
    steps += [[str(Path(sys.executable).parent / "changeanywhere"), *shlex.split(each)[1:]] for each in commands]
    said = ""
    for step in steps:
        finished = subprocess.run(step, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert finished.returncode == 0, f"{step}\n{finished.stderr}"
        said += finished.stdout
    assert len(commands) == 3
    for number in ("1024 x 512 px", "26 events, 2.99% of known ground", "(8 pairs)"):
        assert number in section and number in said
    for name in ("t1.tif", "t2.tif", "mask_t2.tif", "change.tif", "mask_t2.qml", "change.qml", "events.gpkg"):
        assert (tmp_path / "scenes" / "ortho" / name).is_file()


def test_every_command_is_documented() -> None:
    from changeanywhere.commands import COMMANDS as NAMES

    assert [name for name in NAMES if f"changeanywhere {name}" not in README] == []


def test_every_local_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
