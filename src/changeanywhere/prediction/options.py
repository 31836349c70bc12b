"""Options of ``changeanywhere predict``. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from changeanywhere.errors import ConfigError, require
from changeanywhere.limits import check_limits
from changeanywhere.storage import check_out


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of ``changeanywhere predict``."""

    detector: Path
    """``mini-detector`` (in the package, a demonstration), or a detector's folder or address (train detector,
    import opencd)."""
    inputs: tuple[str, ...]
    """A folder of pairs (A/ and B/, or another layout; labels are not needed), or two images of the same ground, date 1
    first; the same without the flag's name."""
    out: Path
    """Folder to write: change/ and probability/ (of two images change.tif and probability.tif), changes.csv; of a
    semantic change detector also label1/, label2/ (label1.tif, label2.tif) and legend.json."""
    split: str | None = None
    """train, val or test of a folder that says which pairs these are; default: all."""
    threshold: float = 0.5
    """Probability above which ground is called changed."""
    window: int = 512
    """Side in px of the windows that the detector reads; what is smaller it reads whole."""
    overlap: int = 128
    """Px that neighbouring windows share, where their probabilities pass into each other; at most half a window."""
    bands: tuple[int, ...] | None = None
    """1-based numbers of the bands to read; default: the first ones."""
    stretch: tuple[float, float] = (2.0, 98.0)
    """Percentiles that become black and white in images of other than 8 bits, for each date on its own, where their set
    has no stretch of its own."""
    batch_size: int = 4
    """Windows at once."""
    max_megapixels: float | None = None
    """Largest PNG or JPEG, or block of a TIFF, in millions of px, that is taken into memory; default: 178."""
    device: str | None = None
    """cpu, cuda, cuda:1, …; default: cuda where there is one."""

    def __post_init__(self) -> None:
        for name in ("inputs", "stretch", "bands"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        check_limits(self)
        if len(self.inputs) not in (1, 2):
            raise ConfigError(
                f"inputs are {len(self.inputs)}; allowed: a folder of pairs, or two images, T1.tif T2.tif, date 1 first"
            )
        if len(self.inputs) == 1 and Path(self.inputs[0]).is_file():
            raise ConfigError(f"inputs is {self.inputs[0]!r}, one image; allowed: two, or a folder of pairs")
        require(self.split is None or len(self.inputs) == 1, "split", self.split, "nothing beside two images")
        require(0 < self.threshold < 1, "threshold", self.threshold, "above 0, below 1")
        require(self.window >= 32, "window", self.window, "32 px and more")
        require(0 <= self.overlap <= self.window // 2, "overlap", self.overlap, f"0 to half of window, {self.window}")
        require(self.bands is None or min(self.bands, default=0) >= 1, "bands", self.bands, "band numbers from 1")
        low, high = (*self.stretch, 0.0, 0.0)[:2]
        sound = len(self.stretch) == 2 and 0 <= low < high <= 100
        require(sound, "stretch", list(self.stretch), "two percentiles, 0 to 100, rising")
        check_out(self.out, self.inputs[0] if len(self.inputs) == 1 else None)
