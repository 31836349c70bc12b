"""Published figures of a benchmark, to stand beside ours."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from changeanywhere.errors import ConfigError
from changeanywhere.folders import read_text

SHIPPED = "package"
"""In place of a file: the paper's Tables 1 to 5, as printed, of SECOND and SYSU-CD."""


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
    """Cells of ``benchmark`` from a CSV (columns benchmark, labels_percent, detector, pretraining, f1 …), or none."""
    if file is None:
        return []
    shipped = resources.files("changeanywhere") / "assets" / "paper" / "tables.csv"
    try:
        rows = list(csv.DictReader(io.StringIO(shipped.read_text() if str(file) == SHIPPED else read_text(file))))
        return [
            Published(
                plain(row["detector"]),
                int(row["labels_percent"]),
                "" if row["pretraining"] in ("", "none") else row["pretraining"],
                (row["f1"], row.get("precision") or "", row.get("recall") or "", row.get("iou") or ""),
            )
            for row in rows
            if row["benchmark"] == benchmark
        ]
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{file}: not a table of published figures ({error})") from error
