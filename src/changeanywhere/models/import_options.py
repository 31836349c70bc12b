"""What ``changeanywhere import`` can be told. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FAMILIES = ("ldm", "opencd")


@dataclass(frozen=True)
class ImportOptions:
    """Options of ``changeanywhere import ldm``."""

    checkpoint: Path
    """The checkpoint file; also as the argument after ``ldm``."""
    out: Path
    """Folder of the model."""
    legend: str
    """Legend that the checkpoint was trained with, in its order (name or file); its class 0 is our class 1."""
    num_heads: int | None = None
    """Attention heads of the UNet: shapes do not tell (often 8)."""
    use_ema: bool = True
    """Averaged UNet weights; false for the raw ones."""


@dataclass(frozen=True)
class ImportDetectorOptions:
    """Options of ``changeanywhere import opencd``."""

    checkpoint: Path
    """The checkpoint file of Open-CD or mmengine; also as the argument after ``opencd``."""
    out: Path
    """Folder of the detector."""
