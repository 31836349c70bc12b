"""What ``changeanywhere evaluate`` can be told. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from changeanywhere.errors import ConfigError, require
from changeanywhere.limits import check_limits
from changeanywhere.sources.options import SourceOptions
from changeanywhere.storage import check_out

REAL, FIRST_STAGE = "real data", "first stage"
"""Columns that every table of objects may have."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SourceOptions):
    """Options of ``changeanywhere evaluate``: a generated set (``--pairs``), a model (``--model``), or both.

    Those of a source (bands, legend, stretch and so on) are of the real tiles that either is held against.
    """

    out: Path
    """Folder of evaluation.json and evaluation.html."""
    pairs: Path | None = None
    """Folder that generate wrote, or other pairs; without semantic masks neither ``judge`` nor ``source`` has a use."""
    also: dict[str, str] = field(default_factory=dict)
    """Other sets, whose objects stand beside those of ``pairs``: name → folder, ``{copy-paste: DIR}``."""
    model: str | None = None
    """Model whose images, painted from masks alone, are judged (mini or a folder), and its first stage: what it leaves
    of real objects; with ``pairs`` that stands beside theirs."""
    source: Path | None = None
    """Real tiles with masks that no network was trained on: the masks to paint, the real objects that those of
    ``pairs`` are held against, and the ceiling of every figure."""
    legend_map: Path | None = None
    """YAML file, class of ``source`` → class of the model or of the pairs; default: equal names, or a mapping of the
    package."""
    judge: Path | None = None
    """Segmenter folder (train segmenter) that reads the images, and neither filtered them nor is ``mini-segmenter``;
    without it no mask fidelity is measured."""
    real_pairs: Path | None = None
    """Folder with A/ and B/ of real, mostly unchanged image pairs, for the realism of unchanged ground."""
    num_images: int = 200
    """Images to paint from masks alone (masks are used again with other seeds if there are fewer); 0: none, only the
    first stage is measured."""
    num_steps: int | None = None
    """Denoiser calls; default: the model's own."""
    max_pairs: int = 1000
    """Pairs of a set to look at, evenly spaced."""
    num_panels: int = 12
    """Pairs of the set to show: a third the worst, a third the best, the others evenly spaced."""
    batch_size: int = 8
    """Images at once."""
    seed: int = 0
    """Of painting and of every resampling."""

    @property
    def column(self) -> str:
        """What tables of objects call ``pairs``: its folder's name."""
        name = self.pairs.resolve().name if self.pairs is not None else ""
        return name if name not in ("", REAL, FIRST_STAGE) else "pairs"

    def check(self) -> None:
        """Raise :class:`ConfigError` naming what is missing, not allowed, or would do nothing."""
        check_limits(self)
        check_out(self.out, self.source)
        if self.pairs is None and self.model is None:
            raise ConfigError("nothing to evaluate; give --pairs DIR, --model NAME, or both")
        if self.model is not None and self.source is None:
            raise ConfigError("--model needs --source DIR: the tiles whose masks are painted")
        for name, least in (("max_pairs", 1), ("batch_size", 1)):
            require(getattr(self, name) >= least, name, getattr(self, name), f"{least} and more")
        require(self.num_images == 0 or self.num_images >= 4, "num_images", self.num_images, "0, or 4 and more")
        require(self.num_steps is None or self.num_steps >= 1, "num_steps", self.num_steps, "1 and more")
        of_source = [each.name for each in fields(SourceOptions) if each.name != "max_megapixels"]  # of pairs too
        self._check_also()
        if self.model is None:
            self._refuse("--model", "num_images", "num_steps")
        elif self.num_images == 0:
            self._refuse("images to paint", "num_steps")
        if self.source is None:
            self._refuse("--source", *of_source, "legend_map", "also")
        if self.pairs is None:
            self._refuse("--pairs", "real_pairs", "max_pairs", "num_panels", "also")

    def _check_also(self) -> None:
        """Every set has a name of its own, that of its column."""
        taken = {REAL, FIRST_STAGE, self.column}
        for name in self.also:
            require(bool(name) and name not in taken, "also", name, f"names other than {', '.join(sorted(taken))}")

    def _refuse(self, without: str, *names: str) -> None:
        """What only the evaluation of a model, of pairs, or beside real tiles reads."""
        plain = EvaluateOptions(out=self.out)
        for name in names:
            value = getattr(self, name)
            require(value == getattr(plain, name), name, value, f"nothing without {without}, it would not be read")
