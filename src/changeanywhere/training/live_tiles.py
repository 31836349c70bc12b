"""Tiles kept on the device, cropped, turned and encoded at each step: no view is encoded that is not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from changeanywhere.models.first_stage import DOWNSAMPLING, FirstStage
from changeanywhere.progress import Progress, silent
from changeanywhere.sample import Normalisation
from changeanywhere.seeds import stream
from changeanywhere.sources import Source
from changeanywhere.training.batches import Mixture, tiles_of_step, turned
from changeanywhere.training.latents import latents_fingerprint
from changeanywhere.training.processes import Processes

MIRRORED = 4
"""The view that is the tile mirrored left to right."""


class LiveTiles:
    """Images ``[N, C, H, W]`` and masks uint8 ``[N, H, W]`` on the device: bytes where all of the source's images have
    8 bits, else float16 in [-1, 1]. Each crop is seen in one of ``views``, as :func:`.dihedral` numbers them."""

    def __init__(
        self,
        source: Source,
        first_stage: FirstStage,
        tiles: int | Mixture,
        crop_size: int | None,
        views: Sequence[int],
        processes: Processes,
        progress: Progress = silent,
    ) -> None:
        self._first_stage, self._tiles, self._processes = first_stage, tiles, processes
        self._views = list(views)
        images, masks, told = [], [], progress if processes.is_main else silent
        for index in range(len(source)):
            sample = source.read(index)
            of_bytes = sample.image.dtype == np.uint8 and sample.normalisation == Normalisation.eight_bit(
                sample.image.shape[2]
            )
            images.append(sample.image.copy() if of_bytes else sample.pixels().astype(np.float16))
            masks.append(torch.from_numpy(sample.mask.copy()))
            told("reading tiles", index + 1, len(source))
        mixed = len({image.dtype for image in images}) > 1
        if mixed:  # bytes among others would be taken for pixels in [-1, 1]
            images = [
                Normalisation.eight_bit(image.shape[2]).apply(image).astype(np.float16)
                if image.dtype == np.uint8
                else image
                for image in images
            ]
        rows = [torch.from_numpy(image).permute(2, 0, 1).contiguous() for image in images]
        self.images = torch.stack(rows).to(processes.device)
        self.masks = torch.stack(masks).to(processes.device)
        self.crop_size = crop_size or self.masks.shape[1]
        # As they were named when there were no others: a run of an earlier edition goes on.
        named = {(0,): False, (0, MIRRORED): True}
        seen = named.get(tuple(self._views), self._views)
        # An earlier edition misread what is mixed: its runs do not go on as if they had seen it.
        self.fingerprint = latents_fingerprint(
            source, first_stage, ["live", self.crop_size, seen, *(["mixed"] if mixed else [])]
        )

    @property
    def latent_shape(self) -> torch.Size:
        """Of one crop: channels, height, width."""
        side = self.crop_size // DOWNSAMPLING
        return torch.Size([self._first_stage.latent_mean.numel(), side, side])

    def __len__(self) -> int:
        return len(self.masks)

    def batch(self, batch_size: int, seed: int, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Latents float32 ``[rows, 3, h, w]`` and masks int64 ``[rows, H, W]`` of these rows of a step's batch."""
        tiles = tiles_of_step(self._tiles, batch_size, seed, step)
        height, width = self.masks.shape[1:]
        images, masks = [], []
        for row in rows:
            rng = stream("training.crop", seed, step, row)
            top, left = (int(rng.integers(side - self.crop_size + 1)) for side in (height, width))
            view = self._views[int(rng.integers(len(self._views)))]
            window = slice(top, top + self.crop_size), slice(left, left + self.crop_size)
            image, mask = self.images[tiles[row]][:, *window], self.masks[tiles[row]][window]
            images.append(turned(image, view))
            masks.append(turned(mask, view))
        return self.encode(torch.stack(images)), torch.stack(masks).long()

    def examples(self, tiles: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Latents ``[N, 3, h, w]`` and masks ``[N, H, W]`` of whole tiles, as they are."""
        places = list(tiles)
        return self.encode(self.images[places]), self.masks[places].long()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pixels as they are kept → standardised latents float32."""
        pixels = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()
        with self._processes.accelerator.autocast():
            latents = self._first_stage.encode(pixels.contiguous(memory_format=torch.channels_last))
        return latents.float()
