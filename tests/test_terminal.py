"""What reaches the terminal and the lines of a log: text of others shows what it holds, and does nothing."""

from __future__ import annotations

import ast
import json
import logging
import os
import pty
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from changeanywhere.cli import run
from changeanywhere.models.folder import save_model
from changeanywhere.progress import progress_bars
from changeanywhere.terminal import Manner, escaped_streams, say, say_lines, speaking
from changeanywhere.text import INVISIBLE, JOINERS
from conftest import tiny_model, write_source

PACKAGE = Path(__file__).parents[1] / "src" / "changeanywhere"
NAME = "x\x1b[2J\x1b]0;owned\x07\r\u202egnp\u2066\x9b31m\x08\x7f"
"""Clears the screen, names the window, overwrites the line, turns the writing: what a name may try."""


def commands_in(text: str) -> list[str]:
    """Characters that a terminal obeys."""
    kept = "\n\t" + JOINERS
    return [c for c in text if c not in kept and unicodedata.category(c) in INVISIBLE]


def test_nothing_prints_but_say() -> None:
    """One way out: no other file prints, or writes to a stream, by itself."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and path.name != "terminal.py":
                called = ast.unparse(node.func)
                assert called != "print", f"{path}:{node.lineno}: say()"
                assert not re.fullmatch(r"sys\.(stdout|stderr)\.(write|writelines|buffer.*)", called), path
                assert called not in ("os.write", "warnings.warn"), f"{path}:{node.lineno}: say()"


def test_a_line_is_a_line_and_says_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{NAME}\nchangeanywhere: all is well")
    say(NAME, error=True)
    say_lines(f"a: {NAME}\nb: ö\u200d日本")
    out, errors = capsys.readouterr()
    assert out.count("\n") == 3 and "\\nchangeanywhere" in out and out.endswith("b: ö\u200d日本\n")
    assert not commands_in(out + errors) and "\\x1b[2J" in errors


def test_what_libraries_print_is_escaped_too(capsys: pytest.CaptureFixture[str]) -> None:
    with escaped_streams():
        print(NAME)
        sys.stderr.writelines([NAME, "\n"])
        handler = logging.StreamHandler(sys.stderr)
        handler.emit(logging.LogRecord("library", logging.ERROR, "", 0, NAME, None, None))
    out, errors = capsys.readouterr()
    assert "\\x1b[2J" in out and errors.count("\\x1b[2J") == 2
    assert not commands_in(out + errors)
    print("\x1b")
    assert capsys.readouterr().out == "\x1b\n", "after the command the streams are as before"


def of_legend(folder: Path) -> None:
    content = json.loads((folder / "src" / "legend.json").read_text())
    content["name"] = NAME
    content["classes"][0]["name"] = NAME
    (folder / "src" / "legend.json").write_text(json.dumps(content))


def of_tiles(folder: Path) -> None:
    for kind in ("images", "masks"):
        (folder / "src" / kind / "tile_1.png").rename(folder / "src" / kind / f"{NAME}.png")
    (folder / "src" / "images" / f"alone{NAME}.png").write_bytes(b"no image")


def of_provenance(folder: Path) -> None:
    (folder / "src" / "provenance.csv").write_text(
        f'patch,scene,licence,attribution\ntile_0,"{NAME}","{NAME}","{NAME}"\n'
    )


def of_map(folder: Path) -> None:
    (folder / "map.yaml").write_text(yaml.safe_dump({NAME: "road", "road": NAME}))


def of_places(folder: Path) -> None:
    (folder / "src").rename(folder / f"src{NAME}")
    (folder / "src").symlink_to(folder / f"src{NAME}")


def of_model(folder: Path) -> None:
    for file in (folder / "model").glob("*.json"):
        content = json.loads(file.read_text())
        if "legend" in content:
            content["legend"]["classes"][0]["name"] = NAME
        file.write_text(json.dumps(content | {NAME: NAME}))


HOSTILE: dict[str, Callable[[Path], None]] = {
    each.__name__: each for each in (of_legend, of_tiles, of_provenance, of_map, of_places, of_model)
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_source(folder / "src", num_tiles=3)
    save_model(tiny_model(), folder / "model")
    return folder


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_of_others_do_nothing_in_the_main_commands(
    hostile: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "case"
    shutil.copytree(world, folder)
    HOSTILE[hostile](folder)
    monkeypatch.chdir(folder)
    pairs = ["--num-pairs=2", "--tile-size=64", "--events.min-area=16", "--on-error=skip"]
    paste = ["generate", "--source=src", *pairs, "--method=copy_paste"]
    commands = [
        ["check", "src"],
        ["check", "model"],
        ["check", f"no{NAME}"],
        ["simulate", "--source=src", "--out=masks", *pairs],
        [*paste, "--out=set"],
        [*paste, "--out=set"],
        [*paste, f"--out=set{NAME}"],
        [*paste, "--out=other", "--legend-map=map.yaml"],
        ["check", "set"],
        ["evaluate", "--pairs=set", "--out=judged", "--num-images=0"],
        ["evaluate", f"--judge={NAME}", "--out=judged", "--pairs=set"],
        ["generate", "--source=src", "--model=model", "--out=painted", *pairs, "--num-steps=1", "--num-threads=1"],
        ["generate", "--source=src", f"--model={NAME}", f"--legend={NAME}", "--out=none", *pairs],
        ["init", "src", f"--class-names={NAME}"],
        ["import", "ldm", NAME, "--legend=mini", "--out=imported"],
        ["train", "segmenter", "--data.source=src", "--out=trained", f"--data.legend={NAME}"],
        ["benchmark", "--pairs=set", f"--name={NAME}", f"--detectors=[{NAME}]", "--out=benchmark"],
        [f"what{NAME}"],
        ["generate", f"--{NAME}=1"],
    ]
    said = 0
    for command in commands:
        code = run(command)
        out, errors = capsys.readouterr()
        assert code in (0, 1, 2) and not commands_in(out + errors), (command, out, errors)
        said += "\\x1b[2J" in out + errors
    assert said >= 5, "the names are said, as they are"
    for log in folder.rglob("skipped.txt"):
        assert not commands_in(log.read_text())


def test_bars_draw_and_their_words_do_nothing() -> None:
    """On a terminal: a bar may move the cursor, the words in it and the lines printed above it may not."""
    script = f"""
import sys
from changeanywhere.progress import progress_bars
from changeanywhere.terminal import escaped_streams, say
with escaped_streams(), progress_bars() as show:
    show({NAME!r} + " [bold]of[/bold]", 1, 2)
    print({NAME!r}, file=sys.stderr)
    say({NAME!r}, error=True)
    show({NAME!r} + " [bold]of[/bold]", 2, 2)
"""
    leader, follower = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "TERM": "xterm", "COLUMNS": "300"}
    child = subprocess.Popen([sys.executable, "-c", script], stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    drawn = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        drawn += part
    assert child.wait() == 0
    os.close(leader)
    text = drawn.decode()
    assert "\x1b[" in text and "\\x1b[2J" in text and "[bold]of" in text
    assert not set(re.findall("\x1b\\[2J|\x1b\\]|\x07|\u202e|\u2066|\x9b|\x08|\x7f", text)), text


def test_bars_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stderr
    with progress_bars() as show:
        show(NAME, 1, 1)
    assert sys.stderr is before
    assert not commands_in(capsys.readouterr().err)


def test_a_traceback_quotes_names_as_they_are() -> None:
    script = """
import changeanywhere.cli as cli
def broken(arguments): raise RuntimeError("\\x1b[2J")
cli._check = broken
cli.main(["check", "x"])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert ended.returncode == 1 and "RuntimeError: \\x1b[2J" in ended.stderr and "\x1b" not in ended.stderr


def events_in(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_progress_as_json_is_lines_that_programs_read(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run, of an error, of a remark in between; standard output stays as it is."""
    paste = ["generate", f"--source={world / 'src'}", "--num-pairs=3", "--tile-size=64", "--events.min-area=16"]
    assert run([*paste, "--method=copy_paste", "--progress", "json", f"--out={tmp_path / 'set'}"]) == 0
    out, errors = capsys.readouterr()
    events = events_in(errors)
    assert out.splitlines()[-2].startswith("dataset: ")
    assert events[-1] == {"event": "end", "exit_code": 0}
    whole = [event for event in events if event.get("what") == "painting pairs"]
    assert whole[-1]["done"] == whole[-1]["total"] == 3 and 0 < float(str(whole[-1]["seconds"])) < 600
    assert run([*paste, "--method=nothing", "--progress=json", f"--out={tmp_path / 'other'}"]) == 2
    (error,) = events_in(capsys.readouterr().err)
    assert error["event"] == "error" and error["exit_code"] == 2 and "nothing" in str(error["message"])
    with speaking(Manner("json")):
        say(NAME, error=True)
    (note,) = events_in(capsys.readouterr().err)
    assert note["event"] == "note" and not commands_in(str(note["message"]))


def test_quiet_is_nothing_but_what_was_asked_for(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate = ["simulate", f"--source={world / 'src'}", "--num-pairs=2", "--tile-size=64", "--events.min-area=16"]
    assert run([*simulate, "--quiet", f"--out={tmp_path / 'masks'}"]) == 0
    assert capsys.readouterr() == ("", "")
    assert run([*simulate, "--progress=none", f"--out={tmp_path / 'more'}"]) == 0
    out, errors = capsys.readouterr()
    assert "wrote the masks of 2 pairs" in out and not errors
    assert run(["check", str(world / "src"), "--quiet"]) == 0
    assert "3 tiles" in capsys.readouterr().out
    assert run(["check", "nowhere", "--quiet"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--progress"], ["--progress=wild"], ["--progress", "bars json"]])
def test_no_other_manner(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", ".", *words]) == 2
    assert "allowed: bars, json, none" in capsys.readouterr().err
