"""New objects of several sets of the same plan side by side: date 1, change, then date 2 of each set; evenly spaced.

python benchmarks/object_pictures.py --sets runs/first runs/pure runs/default --count 24 --out docs/objects.jpg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

HALF = 64
"""Px around an object's middle."""
GAP = 2


def main(argv: Sequence[str] | None = None) -> None:
    """Write one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, nargs="+", required=True, help="folders that generate wrote, of one plan")
    parser.add_argument("--classes", nargs="+", default=["building", "road"], help="what appears")
    parser.add_argument("--count", type=int, default=24, help="objects, evenly spaced among all that appear")
    parser.add_argument("--per-row", type=int, default=2, help="objects side by side")
    parser.add_argument("--least", type=int, default=150, help="px of the smallest object")
    parser.add_argument("--out", type=Path, required=True, help="PNG or JPEG file")
    arguments = parser.parse_args(argv)
    found = appearing(arguments.sets[0], arguments.classes, arguments.least)
    shown = [found[i * len(found) // arguments.count] for i in range(min(arguments.count, len(found)))]
    rows = [row_of(arguments.sets, key, box) for key, box in shown]
    if not rows:
        raise SystemExit(f"{arguments.sets[0]}: nothing of {', '.join(arguments.classes)} appears in it")
    width, height, across = rows[0].width + 8 * GAP, rows[0].height + GAP, arguments.per_row
    sheet = Image.new("RGB", (width * across, height * -(-len(rows) // across)), "white")
    for place, row in enumerate(rows):
        sheet.paste(row, (width * (place % across), height * (place // across)))
    sheet.save(arguments.out, quality=86)
    print(f"{arguments.out}: {len(rows)} of {len(found)} objects")


def appearing(folder: Path, classes: Sequence[str], least: int) -> list[tuple[str, Sequence[int]]]:
    """Key of the pair and box (row, column, height, width) of every object that appears, in the order of the set."""
    records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    return [
        (record["key"], event["bbox"])
        for record in records
        for event in record["events"]
        if event["kind"] == "appearance" and event["to_class"] in classes and event["area"] >= least
    ]


def row_of(sets: Sequence[Path], key: str, box: Sequence[int]) -> Image.Image:
    """Crops around one object: image t1, change, image t2 of each set."""
    files = [sets[0] / "A" / f"{key}.png", sets[0] / "label" / f"{key}.png", *(s / "B" / f"{key}.png" for s in sets)]
    images = [Image.open(file).convert("RGB") for file in files]
    width, height = images[0].size
    left = min(max(box[1] + box[3] // 2 - HALF, 0), max(width - 2 * HALF, 0))
    top = min(max(box[0] + box[2] // 2 - HALF, 0), max(height - 2 * HALF, 0))
    row = Image.new("RGB", ((2 * HALF + GAP) * len(images), 2 * HALF), "white")
    for place, image in enumerate(images):
        row.paste(image.crop((left, top, left + 2 * HALF, top + 2 * HALF)), ((2 * HALF + GAP) * place, 0))
    return row


if __name__ == "__main__":
    main()
