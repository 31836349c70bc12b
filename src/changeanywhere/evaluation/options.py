"""What ``changeanywhere evaluate`` can be told. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from changeanywhere.errors import ConfigError


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``changeanywhere evaluate``: a generated set (``--pairs``), a model (``--model``), or both."""

    out: Path
    """Folder of evaluation.json and evaluation.html."""
    pairs: Path | None = None
    """Folder that generate wrote."""
    model: str | None = None
    """Model whose images, painted from masks alone, are judged (mini or a folder)."""
    source: Path | None = None
    """Real tiles with masks that no network was trained on: the masks to paint, and the ceiling of every figure."""
    judge: Path | None = None
    """Segmenter folder (train segmenter) that reads the images; without it no mask fidelity is measured."""
    real_pairs: Path | None = None
    """Folder with A/ and B/ of real, mostly unchanged image pairs, for the realism of unchanged ground."""
    licences: list[str] | None = None
    """Only tiles of ``source`` under these licences; default: all."""
    legend_map: str | None = None
    """YAML file, class of ``source`` → class of the model; default: equal names, or a mapping of the package."""
    num_images: int = 200
    """Images to paint from masks alone (masks are used again with other seeds if there are fewer)."""
    num_steps: int | None = None
    """Denoiser calls; default: the model's own."""
    max_pairs: int = 1000
    """Pairs of ``pairs`` to look at, evenly spaced."""
    batch_size: int = 8
    """Images at once."""
    seed: int = 0
    """Of painting and of every resampling."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming what is missing."""
        if self.pairs is None and self.model is None:
            raise ConfigError("nothing to evaluate; give --pairs DIR, --model NAME, or both")
        if self.model is not None and self.source is None:
            raise ConfigError("--model needs --source DIR: the tiles whose masks are painted")
        for name, least in (("num_images", 4), ("max_pairs", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: {least} and more")
