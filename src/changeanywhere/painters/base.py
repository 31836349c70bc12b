"""The Painter protocol: a batch of planned changes in, paintings out. No torch here.

A painter from outside is a class that keeps :class:`Painter` and :class:`PainterKind`, named in the entry point group
``changeanywhere.painters`` of its own package (docs/painters.md)::

    [project.entry-points."changeanywhere.painters"]
    inpainting = "my_package:InpaintingPainter"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from changeanywhere.diffusion.options import CriticOptions, Sampling
from changeanywhere.legend import Legend
from changeanywhere.sample import ChangePlan, SourceItem, SourceSample
from changeanywhere.sources import Source

Pixels = npt.NDArray[np.float32]
"""Image ``[H, W, C]``, float32 in [-1, 1]."""


@dataclass
class Donors:
    """Tiles that pixels may be taken from, and those that some were taken from."""

    source: Source
    allowed: Sequence[int]
    """Numbers of the tiles in the receiver's split: else pixels of a validation scene would be trained on."""
    used: list[SourceItem] = field(default_factory=list)

    def draw(self, rng: np.random.Generator) -> int:
        """The number of a random tile."""
        return self.allowed[int(rng.integers(len(self.allowed)))]

    def note(self, item: SourceItem) -> None:
        """Pixels of this tile were taken: its licence holds for the pair too."""
        if item not in self.used:
            self.used.append(item)


@dataclass(frozen=True)
class Exemplar:
    """Date 1 with real pixels of the new classes on changed ground, made beside the reading of tiles."""

    image: Pixels
    strengths: npt.NDArray[np.float32]
    """How much of it is painted over, by class index: f32 ``[256]``."""
    donors: Sequence[SourceItem]
    """Other tiles whose pixels are in it."""


@dataclass(frozen=True)
class Batch:
    """Pairs that are painted together. Entry i of ``samples``, ``plans``, ``seeds``, ``rows``, ``donors`` is pair i."""

    samples: Sequence[SourceSample]
    plans: Sequence[ChangePlan]
    seeds: Sequence[int]
    """All that is random in a painting follows from its seed; the plan's, unless it is painted again."""
    images: Pixels
    """The tiles, each once however many of its pairs are here: float32 ``[N, H, W, C]`` in [-1, 1]."""
    rows: Sequence[int]
    """Row in ``images`` of each pair's tile."""
    donors: Sequence[Donors]
    exemplars: Sequence[Exemplar] = ()
    """One per pair where the sampling begins from exemplars, else none."""
    memo: dict[str, Any] = field(default_factory=dict)
    """What painters keep of ``images`` (latents), so that nothing is computed twice for one batch."""

    def __len__(self) -> int:
        return len(self.plans)

    def part(self, chosen: Sequence[int]) -> Batch:
        """The pairs ``chosen`` alone, with their tiles and as if they had been read alone."""
        rows = sorted({self.rows[i] for i in chosen})
        alone = self.again(chosen, [self.seeds[i] for i in chosen])
        return replace(alone, images=self.images[rows], rows=[rows.index(row) for row in alone.rows], memo={})

    def again(self, chosen: Sequence[int], seeds: Sequence[int]) -> Batch:
        """The pairs ``chosen`` alone, with other seeds; what was taken from donors before does not count for them."""

        def of(values: Sequence[Any]) -> list[Any]:
            return [values[i] for i in chosen]

        return replace(
            self,
            samples=of(self.samples),
            plans=of(self.plans),
            seeds=list(seeds),
            rows=of(self.rows),
            donors=[replace(donors, used=[]) for donors in of(self.donors)],
            exemplars=of(self.exemplars) if self.exemplars else (),
        )


@dataclass(frozen=True)
class FromExemplar:
    """How a class of changed ground was painted over real pixels."""

    class_index: int
    strength: float
    timestep: int
    """At which painting began, of 1000; 0: the exemplar as it is."""


@dataclass(frozen=True)
class Painting:
    """One painted pair."""

    place: int
    """Which pair of its batch it is."""
    plan: ChangePlan
    """What it shows; the batch's plan, unless the painter makes changes of its own."""
    image_t1: Pixels
    image_t2: Pixels
    donors: Sequence[SourceItem] = ()
    """Other tiles whose pixels are in it."""
    exemplars: Sequence[FromExemplar] = ()
    """By class of mask t2; empty where changed ground was painted from noise."""
    free_fraction: float | None = None
    """Its free tail, where that was drawn from a range."""
    score: float | None = None
    """Share of changed ground that the filter reads as its new class."""
    attempt: int = 0
    """Which painting was kept, counted from 0."""


class Painter(Protocol):
    """Paints batches. A pair's painting must follow from its own sample, plan and seed, whatever else is in the batch
    (up to the last bits of a sum)."""

    def paint(self, batch: Batch) -> list[Painting]:
        """The paintings of ``batch``; those that are not to be kept are left out."""
        ...


@dataclass(frozen=True)
class PainterSettings:
    """What a painter is built from. ``model`` is what ``--model`` says: a folder or ``mini``, or, for a painter with
    ``uses_model`` False, whatever it takes, "" where nothing was said. ``options`` are a painter's own, by name."""

    model: str
    legend: Legend
    tile_size: int
    bands: tuple[int, ...]
    sampling: Sampling
    device: str | None = None
    dtype: str | None = None
    compile: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    critic: CriticOptions = field(default_factory=CriticOptions)


class PainterKind(Protocol):
    """What a name of ``--method`` stands for: a class with these, whose instances are :class:`Painter`."""

    reads: ClassVar[frozenset[str]]
    """Options of ``generate`` that it reads, of those that not every painter reads: the fields of
    :class:`~changeanywhere.diffusion.options.Sampling`, ``critic``, ``compile``, ``device``, ``dtype``,
    ``num_threads``. One that it does not read is refused when it is given."""
    how: ClassVar[str]
    """How the other date comes about, for the dataset card: "is painted by …"."""
    repaints: ClassVar[bool]
    """Whether another seed gives another painting (``filter.action: resample``)."""
    uses_model: ClassVar[bool]
    """Whether ``--model`` is a model of this package, whose legend masks are then in; else the source's own."""
    reconstructs: ClassVar[bool]
    """Whether its images come out of the model's first stage already (``reconstruct_t1`` then leaves date 2 alone)."""

    @classmethod
    def build(cls, settings: PainterSettings) -> Self:
        """A painter; :class:`ConfigError` or :class:`ModelError` for settings that it cannot do."""
        ...

    def paint(self, batch: Batch) -> list[Painting]:
        """See :class:`Painter`."""
        ...
