"""What ``changeanywhere evaluate`` can be told. No torch here."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from changeanywhere.errors import ConfigError, require
from changeanywhere.sources.options import SourceOptions


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SourceOptions):
    """Options of ``changeanywhere evaluate``: a generated set (``--pairs``), a model (``--model``), or both.

    Those of a source (bands, legend, stretch and so on) are of the tiles that a model is held against.
    """

    out: Path
    """Folder of evaluation.json and evaluation.html."""
    pairs: Path | None = None
    """Folder that generate wrote."""
    model: str | None = None
    """Model whose images, painted from masks alone, are judged (mini or a folder)."""
    source: Path | None = None
    """Real tiles with masks that no network was trained on: the masks to paint, and the ceiling of every figure."""
    legend_map: Path | None = None
    """YAML file, class of ``source`` → class of the model; default: equal names, or a mapping of the package."""
    judge: Path | None = None
    """Segmenter folder (train segmenter) that reads the images; without it no mask fidelity is measured."""
    real_pairs: Path | None = None
    """Folder with A/ and B/ of real, mostly unchanged image pairs, for the realism of unchanged ground."""
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
        """Raise :class:`ConfigError` naming what is missing, not allowed, or would do nothing."""
        if self.pairs is None and self.model is None:
            raise ConfigError("nothing to evaluate; give --pairs DIR, --model NAME, or both")
        if self.model is not None and self.source is None:
            raise ConfigError("--model needs --source DIR: the tiles whose masks are painted")
        for name, least in (("num_images", 4), ("max_pairs", 1), ("batch_size", 1)):
            require(getattr(self, name) >= least, name, getattr(self, name), f"{least} and more")
        require(self.num_steps is None or self.num_steps >= 1, "num_steps", self.num_steps, "1 and more")
        of_source = [field.name for field in fields(SourceOptions) if field.name != "max_megapixels"]  # of pairs too
        if self.model is None:
            self._refuse("model", *of_source, "source", "legend_map", "num_images", "num_steps")
        if self.pairs is None:
            self._refuse("pairs", "real_pairs", "max_pairs")

    def _refuse(self, without: str, *names: str) -> None:
        """What only the evaluation of a model, or of pairs, reads."""
        defaults = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        for name in names:
            value = getattr(self, name)
            require(value == defaults[name], name, value, f"nothing without --{without}, it would not be read")
