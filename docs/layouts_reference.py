"""Writes docs/layouts.md from the layouts themselves: ``make reference``. A test compares (tests/test_export.py)."""

from __future__ import annotations

from pathlib import Path

from changeanywhere.exporting.base import CARRIED
from changeanywhere.exporting.options import IN_TABLES
from changeanywhere.exporting.registry import EXPORTERS

HEAD = """# Layouts

Generated from the source (`make reference`).

```bash
changeanywhere export SET --layout NAME --out OUT                        # copies; --link: symbolic links
changeanywhere export SET --layout second --legend second --out OUT      # SECOND's official classes and colours
changeanywhere export SET --layout coco --legend LEGEND --legend-map MAP --out OUT
changeanywhere generate --source TILES --out SET --layout NAME           # the set, then exported to SET/layouts/NAME
```

`SET` is a generated set (in a bucket, in tars or tables, too), or pairs of the field as downloaded
([data.md](data.md)). `generate` writes `levir` directly, which `datasets.load_dataset` opens as it is; every other
layout is exported from the finished set. Splits are kept; a set that names none is all `train`; pairs that none of
its lists names are left out, which the command says. Beside what a layout asks for lie `metadata.jsonl` (source,
licence, credit, events, seed and settings by pair, and the files that it is in now), `legend.json` (the classes that
are written) and `README.md` (card with licences, credits and the lines that load it). Classes that a map makes one
have no change between them any more; change from or to a class that it makes `unknown` is ground that no label speaks
of.

`OUT` is a new or empty folder, or one of an earlier export. What that wrote, as its `exported.jsonl` lists it, goes
when the new export is whole, and nothing else does: your own files in it stay. Any other folder is refused. An export
that fails leaves the earlier one as it was; one that was killed is ended by the same command.

## What each can carry

"""
NOTES = """
Images are PNGs of red, green and blue in 8 bits where a layout does not carry other bands and data types: those that
are so stay as they are; of others the first three bands are written (of grey ones and palettes what they show, black
where nothing is seen), those of more bits through their set's own stretch, and refused without one. They lose their
place, which `metadata.jsonl` keeps. Ground that a label leaves out (`ignore`)
is written as unchanged, which the command says. What both ends of a conversion carry survives it exactly, polygons
included (they follow the edges of pixels): `tests/test_export.py`.

"""


def layouts() -> str:
    """The whole page."""
    columns = list(CARRIED)
    parts = [HEAD + f"| layout | {' | '.join(CARRIED[name] for name in columns)} | `--link` |"]
    parts.append("|---" * (len(columns) + 2) + "|")
    for name, exporter in EXPORTERS.items():
        cells = ["yes" if column in exporter.carries else "" for column in columns]
        parts.append(f"| [{name}](#{name}) | {' | '.join(cells)} | {'' if name in IN_TABLES else 'yes'} |")
    parts.append(NOTES)
    for name, exporter in EXPORTERS.items():
        more = " Needs semantic masks." if exporter.needs_classes else ""
        parts += [f"## {name}", "", f"{exporter.what[0].upper()}{exporter.what[1:]}.{more}", ""]
        parts += ["```", exporter.tree, "```", "", "```py", exporter.load, "```", ""]
        parts += [f"Read back in our tests by {exporter.reader}.", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "layouts.md").write_text(layouts(), encoding="utf-8")
