"""What is wrong with single tiles: raised at once, or collected."""

from __future__ import annotations

from changeanywhere.errors import InputError


class Problems:
    """With ``skip`` a source leaves out what it cannot read and says so; without, the first problem is raised."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.found: list[str] = []
        """One line per tile left out."""

    def add(self, error: InputError) -> None:
        """Raise ``error``, or note it."""
        if not self.skip:
            raise error
        self.found.append(" ".join(str(error).split()))
