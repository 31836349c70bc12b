"""Published figures of a benchmark, to stand beside ours."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from changeanywhere.errors import ConfigError
from changeanywhere.folders import read_text

SHIPPED = "package"
"""In place of a file: the paper's Tables 1 to 5, as printed, of SECOND and SYSU-CD."""

NEEDED = ("benchmark", "labels_percent", "detector", "pretraining", "f1")
"""Columns that such a table must have."""


@dataclass(frozen=True)
class Published:
    """A cell of the paper."""

    detector: str
    """Letters and digits of its name, in lower case."""
    share: int
    pretraining: str
    """Name of the set; empty = from scratch."""
    scores: tuple[str, str, str, str]
    """As printed; empty where the paper has a dash."""

    def is_of(self, detector: str) -> bool:
        """Whether a detector of ours (``snunet_c16``) is the one that the paper means (SNUNet)."""
        return plain(detector).startswith(self.detector)


def plain(name: str) -> str:
    """Letters and digits, in lower case."""
    return "".join(c for c in name.lower() if c.isalnum())


def read_published(file: Path | None, benchmark: str) -> list[Published]:
    """Cells of ``benchmark`` from a CSV (columns benchmark, labels_percent, detector, pretraining, f1 …), or none.

    Raises :class:`ConfigError` for a file that cannot be read, lacks a column, or has a row that says too little.
    """
    if file is None:
        return []
    shipped = resources.files("changeanywhere") / "assets" / "paper" / "tables.csv"
    try:
        text = shipped.read_text(encoding="utf-8") if str(file) == SHIPPED else read_text(file)
        # A line end within quotes is part of the text: each line as it is, to count rows as editors do.
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        absent = [name for name in NEEDED if name not in (table.fieldnames or ())]
        if absent:
            raise ConfigError(
                f"{file}: not a table of published figures (no column {absent[0]}); its first line must name "
                f"{', '.join(NEEDED)}"
            )
        own = benchmark, None  # of a row that ends before it says which
        return [_published(row, f"{file}, line {table.line_num}") for row in table if row["benchmark"] in own]
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not readable as UTF-8 ({error}); save it as UTF-8") from error
    except csv.Error as error:
        where = f"{file}, line {table.reader.line_num}"
        raise ConfigError(f"{where}: not readable as CSV ({error}); mend the line") from error


def _published(row: Mapping[str, Any], where: str) -> Published:
    """A row of ``where``."""
    missing = [name for name in NEEDED if row[name] is None]
    if missing:
        raise ConfigError(f"{where}: has no {missing[0]}; allowed: a value, which may be empty, for each column")
    if None in row:
        raise ConfigError(f"{where}: has more values than there are columns; put one with a comma into quotes")
    known = {name: value or "" for name, value in row.items()}
    share = known["labels_percent"].strip()
    if not (share.isdecimal() and int(share) <= 100):
        raise ConfigError(f"{where}: labels_percent is {share[:80]!r}; allowed: 0 to 100")
    scores = known["f1"], known.get("precision", ""), known.get("recall", ""), known.get("iou", "")
    pretraining = "" if known["pretraining"] == "none" else known["pretraining"]
    return Published(plain(known["detector"]), int(share), pretraining, scores)
