"""``python -m changeanywhere``: the command, for launchers that start modules."""

from __future__ import annotations

from changeanywhere.cli import main

if __name__ == "__main__":
    main()
