"""The fuzzer in short (``make test-fuzz`` is the long form), and that its eyes see."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import changeanywhere.check
import fuzz_world
from fuzz import fuzz
from fuzz_kinds import a_seed
from fuzz_seeds import PASTE, SEEDS
from fuzz_world import Trial


@pytest.mark.parametrize("first", [1])
def test_nothing_is_found_in_short(first: int) -> None:
    report = fuzz(minutes=2, first=first, trials=24)
    assert not report.found, report.found
    assert report.trials == 24 and len(report.by_kind) >= 4


def test_every_reported_case_is_among_the_seeds() -> None:
    assert len(SEEDS) == 25 and all(each.__doc__ or each.__name__ for each in SEEDS.values())
    assert {a_seed.__name__}.isdisjoint(SEEDS)


def write_elsewhere() -> None:
    Path("victim/file").write_text("x")


def write_with_a_library() -> None:
    os.close(os.open(os.fsencode("victim/new"), os.O_CREAT | os.O_WRONLY))


def ask_the_network() -> None:
    with socket.socket() as one:
        one.settimeout(0.1)
        one.connect_ex(("127.0.0.1", 9))


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "exception": (lambda: dict[str, int]()["missing"], "KeyError in"),
    "memory": (lambda: bytearray(16 << 30), "MemoryError in"),
    "writes": (write_elsewhere, "writes outside"),
    "writes by a library": (write_with_a_library, "writes outside"),
    "network": (ask_the_network, "socket.connect"),
    "hangs": (lambda: time.sleep(60), "hangs in"),
    "spins": (lambda: [None for _ in iter(int, 1)], "hangs in"),
    "exits": (lambda: os._exit(7), "ends with 7"),
    "escapes": (lambda: os.write(1, b"\x1b[2J"), "commands of a terminal"),
    "promises": (lambda: None, "exit code 0 with damaged output"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fuzzer that finds nothing proves nothing."""
    mistake, cause = MISTAKES[name]

    def check(path: Path, options: object = None) -> str:
        mistake()
        return "all is well"

    def trial(root: Path, draw: object) -> Trial:
        return Trial("mistake", [["check", "src"]], refuse=name == "promises")

    monkeypatch.setattr(changeanywhere.check, "check_path", check)
    monkeypatch.setattr(fuzz_world, "SILENCE", 0.5)
    report = fuzz(minutes=1, first=0, trials=1, kinds=[trial])
    assert any(cause in found for found in report.found), report.found


def test_a_damaged_image_of_a_finished_set_is_left_to_check_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run does not look at the images of a finished set; that ``check`` does is looked at."""

    def trial(root: Path, draw: object) -> Trial:
        (root / "set" / "label1" / "tile_1_0.png").write_bytes(b"")
        return Trial(
            "images", [[each.replace("--out=out", "--out=set") for each in PASTE]], outputs=("set",), checked=checked
        )

    checked = True
    assert not fuzz(minutes=1, first=0, trials=1, kinds=[trial]).found
    checked = False
    assert "exit code 0 with damaged output (images)" in fuzz(minutes=1, first=0, trials=1, kinds=[trial]).found
    checked = True
    monkeypatch.setattr(changeanywhere.check, "check_path", lambda path, options: "a generated dataset")
    (found,) = fuzz(minutes=1, first=0, trials=1, kinds=[trial]).found.values()
    assert "calls it sound" in found[0]
