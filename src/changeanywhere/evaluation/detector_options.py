"""What ``changeanywhere evaluate --detector`` can be told. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from changeanywhere.errors import require
from changeanywhere.limits import check_limits
from changeanywhere.storage import check_out


@dataclass(frozen=True, kw_only=True)
class DetectorEvaluationOptions:
    """Options of ``changeanywhere evaluate --detector``: a detector on labelled pairs."""

    detector: Path
    """``mini-detector`` (in the package, a demonstration), or a detector's folder or address (train detector,
    import opencd)."""
    pairs: Path
    """Pairs with labels, in any layout that is read; the same without the flag's name."""
    out: Path
    """Folder of evaluation.json, evaluation.csv and evaluation.html."""
    split: str | None = None
    """train, val or test; default: all pairs."""
    listing: Path | None = None
    """Text file that names the pairs to look at, a line each."""
    change_classes: tuple[str, ...] | None = None
    """Of a set with semantic masks: count only what becomes, or ceases to be, one of these classes, 'building'."""
    batch_size: int = 8
    """Pairs at once."""
    num_workers: int = 0
    """Processes that read pairs; 0: the one that computes."""
    num_panels: int = 12
    """Pairs to show: a third the worst by F1, a third the best, the others evenly spaced."""
    max_megapixels: float | None = None
    """Largest image that is read, in millions of px of 8-bit RGB; default: 512, of PNG and JPEG 178."""
    device: str | None = None
    """cpu, cuda, cuda:1, …; default: cuda where there is one."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        check_limits(self)
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 and more")
        check_out(self.out, self.pairs)
