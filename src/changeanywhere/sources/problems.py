"""What is wrong with single tiles: raised at once, or collected. And what is passed over without being wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from changeanywhere.errors import InputError
from changeanywhere.terminal import say

SYSTEM = "hidden or system files"


class HasPassed(Protocol):
    """A source, as far as :func:`say_passed_over` and :func:`without_place` look at it."""

    root: Path

    @property
    def passed(self) -> Sequence[str]:
        """A line per reason."""

    @property
    def unplaced(self) -> Sequence[str]:
        """An image and a reason each."""


class Problems:
    """With ``skip`` a source leaves out what it cannot read and says so; without, the first problem is raised."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.found: list[str] = []
        """One line per tile left out."""
        self.passed: dict[str, set[Path]] = {}
        """Files that are not read, by the reason why; nothing is wrong with them."""

    def add(self, error: InputError) -> None:
        """Raise ``error``, or note it."""
        if not self.skip:
            raise error
        self.found.append(" ".join(str(error).split()))

    def pass_over(self, reason: str, *files: Path) -> None:
        """Note that ``files`` are not read."""
        self.passed.setdefault(reason, set()).update(files)

    def passed_over(self) -> tuple[str, ...]:
        """A line per reason, with its count."""
        return tuple(f"{len(files)} {reason}" for reason, files in self.passed.items() if files)


def without_place(source: HasPassed) -> str:
    """How many images are read as if they had no place although they say something of it; empty for none."""
    if not source.unplaced:
        return ""
    return f"{len(source.unplaced)} images count as without a place on the ground, the first {source.unplaced[0]}"


def say_passed_over(source: HasPassed) -> None:
    """On standard error, a line for the files that a source's layout leaves out, such as masks without an image, and
    one for images whose place is not understood."""
    say_passed(source.root, source.passed)
    if said := without_place(source):
        say(f"{source.root}: {said}", error=True)


def say_passed(root: Path, passed: Sequence[str]) -> None:
    """On standard error, a line for the files below ``root`` that are not read, by the reasons of ``passed``."""
    lines = [line for line in passed if SYSTEM not in line]
    if lines:
        say(f"{root}: passed over {', '.join(lines)}", error=True)
