"""The pictures of README and docs, from a generated dataset: pairs are evenly spaced, not chosen.

python benchmarks/pictures.py --pairs demo --count 4 --out docs/strip.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from changeanywhere.pairs.sheet import contact_sheet


def main(argv: Sequence[str] | None = None) -> None:
    """Write one PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="folder that generate wrote")
    parser.add_argument("--count", type=int, default=24, help="pairs on the sheet")
    parser.add_argument("--side", type=int, default=160, help="px per picture")
    parser.add_argument("--per-row", type=int, default=2, help="pairs side by side")
    parser.add_argument("--out", type=Path, required=True, help="PNG or JPEG file")
    arguments = parser.parse_args(argv)
    sheet = contact_sheet(arguments.pairs, arguments.count, arguments.side, arguments.per_row)
    sheet.save(arguments.out, quality=88)
    print(f"{arguments.out}: {sheet.width}x{sheet.height} px")


if __name__ == "__main__":
    main()
