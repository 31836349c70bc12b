"""The paper's painter: blended latent diffusion under the second mask (paper §2.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from changeanywhere.diffusion.blended import OnStep, changed_cells, paint_latents
from changeanywhere.diffusion.critic import Pushed, best_seeds
from changeanywhere.diffusion.detail import give_back
from changeanywhere.diffusion.exemplars import Exemplars, begun_at, moments_of, paint_from_exemplars
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.errors import ConfigError, require
from changeanywhere.models.copies import onto, to_host
from changeanywhere.models.critic import Critic
from changeanywhere.models.denoiser import Denoiser
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.info import find_folder, find_model
from changeanywhere.painters.base import Batch, Exemplar, FromExemplar, Painter, PainterSettings, Painting, Pixels
from changeanywhere.painters.exemplars import exemplars_of
from changeanywhere.sample import ChangePlan, SourceItem
from changeanywhere.terminal import say

EXACT = partial(torch.backends.cudnn.flags, enabled=True, deterministic=True, allow_tf32=False)
"""float32 is float32 on a GPU too (convolutions have 10 bits of mantissa unless told otherwise), and the same twice."""
NO_WORKSPACE = ("unable to find an engine", "CUDNN_STATUS_NOT_SUPPORTED", "_STATUS_ALLOC_FAILED")
"""What convolutions and products say that got no memory to work in: no :class:`torch.OutOfMemoryError`."""


@contextmanager
def settled(threads: int) -> Iterator[None]:
    """So many CPU threads for each batch, and float32 of a GPU in full and the same twice, while the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # of this thread, and of all that begin from here on
    try:
        # Here too, and not by the painter alone: where two threads paint, one would take it back under the other.
        with EXACT():
            yield
    finally:
        torch.set_num_threads(before)


class DiffusionPainter:
    """encode (each tile once) → blended diffusion → decode, on one device."""

    reads: ClassVar[frozenset[str]] = frozenset(
        [
            "sampler",
            "num_steps",
            "free_fraction",
            "guidance_scale",
            "known_noise",
            "eta",
            "dilate_cells",
            "window_margin",
            "exemplar_strength",
            "exemplar_ring",
            "restore_detail",
            "guidance_interval",
            "critic",
            "compile",
            "device",
            "dtype",
            "num_threads",
        ]
    )
    how: ClassVar[str] = (
        "is painted by a latent diffusion model: changed ground follows the new mask, unchanged ground is kept and may "
        "get another light."
    )
    repaints: ClassVar[bool] = True
    uses_model: ClassVar[bool] = True
    reconstructs: ClassVar[bool] = True

    def __init__(self, settings: PainterSettings) -> None:
        require(not settings.options, "painter_options", dict(settings.options), "none with method diffusion")
        self.pipeline = ChangePairPipeline.from_pretrained(settings.model, settings.device, settings.dtype)
        self.on_step: OnStep | None = None
        """Looks on at every call of the denoiser; what it raises ends the painting."""
        self._most = 2**31
        self.use(settings.sampling)
        self.critic = critic_of(settings, self.pipeline)
        self.critic_options = settings.critic
        if settings.compile:
            for unet in (self.pipeline.denoiser.unet, self.pipeline.denoiser.guided):
                if unet is not None:
                    unet.compile()
        elif self.pipeline.device.type == "cuda":
            self.pipeline.denoiser.record()

    @classmethod
    def build(cls, settings: PainterSettings) -> Self:
        """See :class:`PainterKind`."""
        return cls(settings)

    def use(self, sampling: Sampling) -> None:
        """Paint by these settings from now on; :class:`ConfigError` for what the model cannot do."""
        self.pipeline.check_sampling(sampling)
        self.sampling, self._moments = sampling, moments_of(sampling, self.pipeline.model.schedule)

    def paint(self, batch: Batch) -> list[Painting]:
        """See :class:`Painter`. Where the device's memory does not take the batch, in halves, from then on."""
        while len(batch) <= self._most:
            try:
                with EXACT():
                    return self._paint(batch)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise ConfigError(
                        f"device {self.pipeline.device} has no memory for one pair; give a smaller --tile-size or "
                        "--model"
                    ) from error
                self._most = (len(batch) + 1) // 2
                batch.memo.clear()
                say(f"out of memory with {len(batch)} pairs at once; painting {self._most} from here on", error=True)
            torch.cuda.empty_cache()  # outside of the handler, which holds what was computed
        painted: list[Painting] = []
        for first in range(0, len(batch), self._most):
            places = range(first, min(first + self._most, len(batch)))
            some = self.paint(batch.part(places))
            painted += [replace(each, place=places[each.place]) for each in some]
        return painted

    def _paint(self, batch: Batch) -> list[Painting]:
        masks = onto(torch.from_numpy(np.stack([plan.mask_t2 for plan in batch.plans])), self.pipeline.device).long()
        changes = torch.from_numpy(np.stack([plan.change_mask for plan in batch.plans]))
        denoiser, schedule = self._denoiser(changes), self.pipeline.model.schedule
        donors: list[list[SourceItem]] = [[] for _ in batch.plans]
        made: Sequence[Exemplar] = ()
        given, exemplars, real = (masks, changes), None, tiles_of(batch)
        if self.sampling.from_exemplars:
            made = self._made(batch)
            real = exemplars_in(batch, made)
            donors = [list(each.donors) for each in made]
            strength = np.stack([each.strengths[p.mask_t2] for each, p in zip(made, batch.plans, strict=True)])
            exemplars = Exemplars(real.latents(self.pipeline), torch.from_numpy(strength))
        # Exemplars are date 1 but where something changed: one encoding is that of both.
        latents = real.latents(self.pipeline)

        def paint_seeds(seeds: Sequence[int], sampling: Sampling) -> Tensor:
            if exemplars is None:
                return paint_latents(denoiser, schedule, latents, masks, changes, seeds, sampling, self.on_step)
            return paint_from_exemplars(denoiser, schedule, latents, exemplars, given, seeds, sampling, self.on_step)

        seeds = batch.seeds
        if self.critic is not None and self.critic_options.starts > 1:
            seeds = best_seeds(paint_seeds, self.critic, given, seeds, self.sampling, self.critic_options)
        painted, own = paint_seeds(seeds, self.sampling), [self.sampling.settled(seed) for seed in seeds]
        how = [self._how(*each) for each in zip(batch.plans, made, own, strict=True)] if made else [[] for _ in own]
        decoded, share = self.pipeline.decode(painted), self.sampling.restore_detail
        if share:
            decoded = give_back(decoded, real.images(self.pipeline), real.decoded(self.pipeline), share)
        images = to_pixels(decoded)
        return [
            Painting(i, plan, batch.images[row], images[i], donors[i], how[i], self._tail(own[i]))
            for i, (plan, row) in enumerate(zip(batch.plans, batch.rows, strict=True))
        ]

    def _denoiser(self, changes: Tensor) -> Denoiser:
        """The model's own, or pushed by the critic on what changed."""
        denoiser, schedule = self.pipeline.denoiser, self.pipeline.model.schedule
        if self.critic is None or self.critic_options.push == 0:
            return denoiser
        changed = changed_cells(changes.to(self.pipeline.device))
        return Pushed(denoiser, self.critic, schedule, changed, self.critic_options, self.sampling)

    def _how(self, plan: ChangePlan, made: Exemplar, own: Sampling) -> list[FromExemplar]:
        """How each class that appears in ``plan`` was painted, by a pair's own settings."""
        found = []
        for class_index in np.unique(plan.mask_t2[plan.change_mask]):
            strength = float(made.strengths[class_index])
            begun = begun_at(strength, self._moments, own)
            found.append(FromExemplar(int(class_index), round(strength, 4), begun))
        return found

    def _tail(self, own: Sampling) -> float | None:
        """The free tail of a pair's own settings, where it was drawn for it."""
        return None if own is self.sampling or isinstance(own.free_fraction, list) else own.free_fraction

    def _made(self, batch: Batch) -> Sequence[Exemplar]:
        """Changed ground in real pixels: the batch's, else made here."""
        images = [batch.images[row] for row in batch.rows]
        return batch.exemplars or exemplars_of(
            images, batch.samples, batch.plans, batch.donors, self.sampling, self.pipeline.legend
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a smaller batch may succeed where this was raised."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in NO_WORKSPACE)


def critic_of(settings: PainterSettings, pipeline: ChangePairPipeline) -> Critic | None:
    """The critic that the settings name, on the pipeline's device; None without one."""
    folder = settings.critic.model
    if folder is None:
        return None
    critic = Critic.load(find_folder(folder))
    place = find_model(settings.model) / "first_stage"
    critic.check_model(place, pipeline.model.schedule, pipeline.legend, folder)
    return channels_last(critic.to(pipeline.device))


class Reconstructed:
    """Another painter's pairs with date 1 as the first stage gives it back, so that its look does not tell the dates
    apart (``reconstruct_t1``); date 2 too, where it did not come out of the first stage."""

    def __init__(self, painter: Painter, pipeline: ChangePairPipeline, reconstructs: bool) -> None:
        self._painter, self._pipeline, self._reconstructs = painter, pipeline, reconstructs

    def paint(self, batch: Batch) -> list[Painting]:
        """See :class:`Painter`."""
        first = to_pixels(tiles_of(batch).decoded(self._pipeline))
        paintings = self._painter.paint(batch)
        if not paintings:
            return []
        second = np.stack([painting.image_t2 for painting in paintings])
        if not self._reconstructs:
            second = to_pixels(self._pipeline.decode(self._pipeline.encode(to_tensor(second))))
        return [
            replace(painting, image_t1=first[painting.place], image_t2=image)
            for painting, image in zip(paintings, second, strict=True)
        ]


@dataclass(frozen=True)
class Real:
    """Real pixels of a batch on the device, encoded, and as the first stage gives them back: each computed once for the
    batch and for all that is painted again of it, and then taken by pair."""

    memo: dict[str, Any]
    name: str
    pixels: Callable[[], Pixels]
    """float32 ``[N, H, W, C]``: each once, however many pairs show it."""
    rows: Sequence[int]
    """Which of them each pair shows."""

    def images(self, pipeline: ChangePairPipeline) -> Tensor:
        """``[B, C, H, W]``."""
        return self._by_pair(self._images(pipeline))

    def latents(self, pipeline: ChangePairPipeline) -> Tensor:
        """``[B, 3, h, w]``."""
        return self._by_pair(self._latents(pipeline))

    def decoded(self, pipeline: ChangePairPipeline) -> Tensor:
        """``[B, C, H, W]``."""
        return self._by_pair(self._once("decoded", lambda: pipeline.decode(self._latents(pipeline))))

    def _images(self, pipeline: ChangePairPipeline) -> Tensor:
        return self._once("images", lambda: onto(to_tensor(self.pixels()), pipeline.device))

    def _latents(self, pipeline: ChangePairPipeline) -> Tensor:
        return self._once("latents", lambda: pipeline.encode(self._images(pipeline)))

    def _once(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        name = f"{self.name} {what}"
        if name not in self.memo:
            self.memo[name] = compute()
        found: Tensor = self.memo[name]
        return found

    def _by_pair(self, each: Tensor) -> Tensor:
        if list(self.rows) == list(range(len(each))):
            return each
        return each[onto(torch.tensor(self.rows), each.device)]


def tiles_of(batch: Batch) -> Real:
    """Date 1 of each pair."""
    return Real(batch.memo, "tiles", lambda: batch.images, batch.rows)


def exemplars_in(batch: Batch, made: Sequence[Exemplar]) -> Real:
    """Exemplars of each pair; those that come with the batch, and with parts of it, are computed once."""
    rows: dict[int, int] = batch.memo.setdefault("exemplars", {id(each): row for row, each in enumerate(made)})
    known = batch.exemplars and all(id(each) in rows for each in made)
    memo, places = (batch.memo, [rows[id(each)] for each in made]) if known else ({}, list(range(len(made))))
    return Real(memo, "exemplars", lambda: np.stack([each.image for each in made]), places)


def to_tensor(images: Pixels) -> Tensor:
    """float32 ``[N, H, W, C]`` → ``[N, C, H, W]`` (channels last in memory, as the convolutions want it)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def to_pixels(images: Tensor) -> Pixels:
    """``[N, C, H, W]`` on any device → float32 ``[N, H, W, C]``, clipped to [-1, 1]."""
    pixels: Pixels = to_host(images.permute(0, 2, 3, 1).float()).numpy().clip(-1, 1)
    return pixels
