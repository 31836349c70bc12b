"""The networks of a scene's painter, by windows: images of boxes → latents of a plane → pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from changeanywhere.diffusion.blended import Calls
from changeanywhere.diffusion.canvas import (
    AveragedCalls,
    Blend,
    Box,
    Corner,
    Plane,
    Runner,
    at_once,
    over_windows,
    see,
)
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.place_noise import PlaceNoise
from changeanywhere.diffusion.scene_groups import Cover, Group, SceneView, in_pixels
from changeanywhere.models.borrowed import DDPMScheduler
from changeanywhere.models.denoiser import Denoiser

CODES = 32_767
"""Painted pixels are kept as whole numbers of -CODES to CODES: half the disk of floats."""
Image = npt.NDArray[np.float32]
Reader = Callable[[Box], Image]


@dataclass(frozen=True)
class Networks:
    """What paints: ``encode``, ``decode`` and ``decode_painted`` of a pipeline, its denoiser and schedule."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    decode_painted: Callable[[Tensor, Tensor, Tensor, Sampling], Tensor]
    denoiser: Denoiser
    schedule: DDPMScheduler
    is_attentive: bool = False
    """Whether the first stage attends to all of a window."""


class SceneWindows:
    """A scene, what paints it, and where its cells lie."""

    def __init__(
        self,
        networks: Networks,
        view: SceneView,
        sampling: Sampling,
        seed: int,
        plane: Plane,
        size: int = 4,
        run: Runner = at_once,
    ) -> None:
        """``plane``: where the scene's cells lie in the world."""
        self._networks, self.view, self._sampling, self._seed = networks, view, sampling, seed
        self.plane, self._size, self._run = plane, size, run
        self._num_held = sampling.num_held
        calls = Calls(networks.denoiser, networks.schedule, sampling, PlaceNoise(0, [], (0, 0, 0)))
        self._moments = calls.moments

    @property
    def is_attentive(self) -> bool:
        """Whether windows disagree in their detail, too; see :class:`Networks`."""
        return self._networks.is_attentive

    @property
    def _device(self) -> torch.device:
        return next(self._networks.denoiser.parameters()).device

    @property
    def _channels(self) -> int:
        return int(self._networks.denoiser.unet.config.out_channels)

    @property
    def _is_from_noise(self) -> bool:
        return not self._sampling.from_exemplars

    def _branches(self) -> list[Tensor]:
        """As many conditions as a call has, for calls that make their own by window."""
        scale = self._sampling.guidance_scale
        return [torch.zeros(0)] * (1 if scale == 1 or self._networks.denoiser.guides_itself(scale) else 2)

    def _calls(self, noise: PlaceNoise, plane: Plane, corners: Sequence[Corner], name: str) -> AveragedCalls:
        """On the windows ``corners`` of ``plane``, a part of the scene's."""
        place = plane.row - self.plane.row, plane.column - self.plane.column

        def masks(some: Sequence[Corner]) -> Tensor:
            boxes = [(row + place[0], column + place[1], plane.side, plane.side) for row, column in some]
            return torch.from_numpy(np.stack([self.view.mask(in_pixels(box)) for box in boxes]).astype(np.int64))

        networks = self._networks.denoiser, self._networks.schedule
        calls = AveragedCalls(networks, self._sampling, noise, plane, masks, self._run)
        calls.corners, calls.size, calls.name = list(corners), self._size, name
        return calls

    def part_of(self, group: Group, cover: Cover | None = None) -> Plane:
        """The cells of a group's region under the windows of ``cover``, by default the canonical ones."""
        cover = cover or group.whole
        return replace(self.plane.part(group.region), side=cover.side, ramp=cover.ramp, guard=cover.guard)

    def _encode(self, images: Sequence[Image]) -> Tensor:
        return self._networks.encode(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))

    def _encoded(self, name: str, plane: Plane, corners: Sequence[Corner], image: Reader) -> Tensor:
        """Latents ``[1, 3, h, w]`` of a plane, on the CPU."""

        def encode(some: Sequence[Corner]) -> Tensor:
            return self._encode([image(in_pixels((*corner, plane.side, plane.side))) for corner in some])

        blend = Blend(self._channels, plane)
        for corner, part in over_windows(name, plane, corners, self._size, encode, self._run):
            blend.add(corner, part)
        return blend.result()

    def _decoded(
        self, name: str, plane: Plane, corners: Sequence[Corner], latents: tuple[Tensor, Tensor], real: Reader
    ) -> Iterator[tuple[Corner, Tensor]]:
        """Windows of the plane's pixels in :data:`CODES`, of ``latents``: painted ones, and those of ``real``."""

        def decode(some: Sequence[Corner]) -> Tensor:
            painted, encoded = (see(each, some, plane.side) for each in latents)
            boxes = [in_pixels((*corner, plane.side, plane.side)) for corner in some]
            return self._pixels(painted, [real(box) for box in boxes], encoded)

        return over_windows(name, plane, corners, self._size, decode, self._run)

    def _pixels(self, painted: Tensor, real: Sequence[Image], encoded: Tensor) -> Tensor:
        """Decoded, with what the first stage loses of ``real`` given back, in :data:`CODES`."""
        images = torch.from_numpy(np.stack(real)).permute(0, 3, 1, 2)
        return coded(self._networks.decode_painted(painted, images, encoded, self._sampling))

    def _real(self, box: Box, changed: Box | None = None) -> Image:
        """Date 1 with exemplars on what changed in ``changed``, by default in ``box``."""
        place = changed or box
        if self._is_from_noise or not self.view.change(place).any():
            return self.view.image(box)
        return self.view.exemplar(box, place)

    @property
    def _bands(self) -> int:
        return int(self.view.image((0, 0, 1, 1)).shape[2])


def coded(images: Tensor) -> Tensor:
    """[-1, 1] → int16."""
    coded: Tensor = (images.clamp(-1, 1) * CODES).round().to(torch.int16)
    return coded
