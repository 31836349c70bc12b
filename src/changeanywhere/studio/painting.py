"""One pair painted, with progress and a way to stop; and what the segmenter reads in it.

Networks are loaded once per process, at first use or ahead of it, and used by one session at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from changeanywhere.diffusion.options import Sampling
from changeanywhere.errors import ChangeAnywhereError, require
from changeanywhere.legend import Legend, Mask
from changeanywhere.models.info import ModelInfo, find_model, find_segmenter, hash_segmenter, read_info
from changeanywhere.painters.base import Batch, Donors, PainterSettings
from changeanywhere.progress import Progress
from changeanywhere.sample import ChangePlan, SourceItem, SourceSample, in_8_bits
from changeanywhere.seeds import pair_seed
from changeanywhere.sources import Source

if TYPE_CHECKING:
    from changeanywhere.models.segmenter import Segmenter
    from changeanywhere.painters.diffusion import DiffusionPainter

Image8 = npt.NDArray[np.uint8]


class PaintingStoppedError(ChangeAnywhereError):
    """The painting was cancelled; nothing of it is kept."""


@dataclass(frozen=True)
class Asked:
    """A tile and what is to become of it."""

    sample: SourceSample
    plan: ChangePlan
    """Its seed is that of the page; see :func:`seed_of`."""
    sampling: Sampling
    source: Source
    """Where exemplars may be taken from …"""
    fellows: Sequence[int]
    """… : numbers of the tiles in the tile's split."""
    place: Path
    """Folder of ``source``, as commands name it."""
    split: str
    """Of the tile, as generate would divide the source."""
    drawn: bool = False
    """Whether any of the second mask was drawn by hand."""


@dataclass(frozen=True, eq=False)
class Painted:
    """A painted pair, as it would be kept."""

    asked: Asked
    image_t1: Image8
    image_t2: Image8
    read: Mask
    """What the segmenter reads in date 2, in ``read_legend``."""
    read_legend: Legend
    fidelity: float | None
    """Share of changed ground that is read as its new class, as the filter counts it; None where the segmenter has
    other classes."""
    donors: Sequence[SourceItem] = ()
    exemplars: Sequence[dict[str, Any]] = field(default_factory=tuple)


def seed_of(seed: int, key: str) -> int:
    """The pair's seed that ``generate --masks-t2 --seed`` gives the tile ``key``: the command paints the same."""
    return pair_seed(seed, key, 0)


class Networks:
    """The model and the segmenter of a studio."""

    def __init__(self, model: str, segmenter: str, device: str | None = None) -> None:
        self.model, self.segmenter, self.device = model, segmenter, device
        self.info: ModelInfo = read_info(find_model(model))
        hash_segmenter(segmenter)  # says now that there is none
        multiple = 32  # of the segmenter's own, which is known with torch alone; see _read
        require(self.info.tile_size % multiple == 0, "model", model, f"one of tiles of multiples of {multiple} px")
        self.num_loads = 0
        self._lock = threading.Lock()
        self._painter: DiffusionPainter | None = None
        self._reader: Segmenter | None = None

    @property
    def defaults(self) -> Sampling:
        """What the model recommends."""
        return Sampling(**self.info.defaults)

    @property
    def is_loaded(self) -> bool:
        """Whether the first painting need not wait."""
        return self._reader is not None

    def load(self) -> None:
        """Ahead of the first painting."""
        with self._lock:
            self._loaded()

    def _loaded(self) -> tuple[DiffusionPainter, Segmenter]:
        if self._painter is None or self._reader is None:
            from changeanywhere.models.first_stage import channels_last
            from changeanywhere.models.segmenter import Segmenter
            from changeanywhere.painters.diffusion import DiffusionPainter

            info = self.info
            settings = PainterSettings(
                self.model, info.legend, info.tile_size, info.bands or (), self.defaults, self.device
            )
            self._painter = DiffusionPainter(settings)
            segmenter = Segmenter.load(find_segmenter(self.segmenter))
            self._reader = channels_last(segmenter.to(self._painter.pipeline.device)).eval()
            self.num_loads += 1
        return self._painter, self._reader

    def paint(self, asked: Asked, progress: Progress, stop: threading.Event) -> Painted:
        """Date 2 of a tile; :class:`PaintingStoppedError` as soon as ``stop`` is set. Waits for paintings of others."""
        steps = asked.sampling.num_steps
        while not self._lock.acquire(timeout=0.2):
            progress("loading the model" if not self.is_loaded else "waiting for another painting", 0, steps)
            _check(stop)
        try:
            if not self.is_loaded:
                progress("loading the model", 0, steps)
            painter, reader = self._loaded()
            return _painted(painter, reader, asked, progress, stop)
        finally:
            self._lock.release()


def _painted(
    painter: DiffusionPainter, reader: Segmenter, asked: Asked, progress: Progress, stop: threading.Event
) -> Painted:
    import torch

    from changeanywhere.generation.fidelity import changed_recall

    sample, plan, legend = asked.sample, asked.plan, painter.pipeline.legend
    total = asked.sampling.num_steps

    def on_step(call: int, x: Any) -> None:
        _check(stop)
        progress("painting", call, total)

    batch = Batch([sample], [plan], [plan.seed], sample.pixels()[None], [0], [Donors(asked.source, asked.fellows)])
    painter.on_step, before = on_step, painter.sampling
    progress("laying real pixels on changed ground", 0, total)
    try:
        painter.use(asked.sampling)
        (painting,) = painter.paint(batch)
    finally:
        painter.on_step = None
        painter.use(before)
    progress("reading what was painted", total, total)
    _check(stop)
    pixels = torch.from_numpy(painting.image_t2[None, ..., :3]).permute(0, 3, 1, 2)
    read: Mask = reader.read(pixels.to(painter.pipeline.device)).cpu().numpy()[0].astype(np.uint8)
    same = reader.legend.names == legend.names
    fidelity = changed_recall(plan.mask_t2, plan.change_mask, read) if same else None
    how = [
        {"class": legend.name_of(each.class_index), "strength": each.strength, "timestep": each.timestep}
        for each in painting.exemplars
    ]
    images = in_8_bits(painting.image_t1), in_8_bits(painting.image_t2)
    return Painted(asked, *images, read, reader.legend, fidelity, painting.donors, how)


def model_of(networks: Networks) -> tuple[str, str]:
    """Name and hash of the weights, for records."""
    return Path(networks.model).name, networks.info.weights_hash


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise PaintingStoppedError("stopped; nothing of this painting is kept")
