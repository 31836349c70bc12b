"""Latents of all tiles, encoded once and read from a memory-mapped file at every step."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from changeanywhere.documents import DocumentError, read_json_object
from changeanywhere.errors import OutputError
from changeanywhere.models.copies import onto
from changeanywhere.models.first_stage import DOWNSAMPLING, FirstStage
from changeanywhere.progress import Progress, silent
from changeanywhere.seeds import stream
from changeanywhere.sources import Source
from changeanywhere.storage import atomic_write
from changeanywhere.training.batches import Mixture, dihedral, tiles_of_step, turned
from changeanywhere.training.processes import Processes

ENCODE_BATCH = 8


RESIDENT_SHARE = 0.3
"""Of a GPU's free memory that latents and masks may take, so that steps gather their rows where they are needed."""


class LatentCache:
    """``views`` of every tile, as :func:`.dihedral` numbers them: latents float16 ``[N, V, 3, h, w]``, masks uint8
    ``[N, H, W]``."""

    _resident: tuple[Tensor, Tensor] | None = None
    """The same on a GPU, where they fit."""

    def __init__(self, folder: Path, views: Sequence[int], tiles: int | Mixture) -> None:
        self.folder, self.tiles = folder, tiles
        self.latents = np.load(folder / "latents.npy", mmap_mode="r")
        self.masks = np.load(folder / "masks.npy", mmap_mode="r")
        self.views = views
        self.fingerprint = _noted(folder / "done.json")
        """Of the first stage, the tiles' names and files, and their classes."""

    def batch(self, batch_size: int, seed: int, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Latents float32 ``[rows, 3, h, w]`` and masks int64 ``[rows, H, W]`` of these rows of a step's batch."""
        tiles = tiles_of_step(self.tiles, batch_size, seed, step)
        views = stream("training.view", seed, step).integers(len(self.views), size=batch_size)
        if self._resident is not None:
            return self._gathered([tiles[row] for row in rows], [int(views[row]) for row in rows])
        latents = np.stack([self.latents[tiles[row], views[row]] for row in rows]).astype(np.float32)
        masks = np.stack([dihedral(self.masks[tiles[row]], self.views[int(views[row])]) for row in rows])
        return torch.from_numpy(latents), torch.from_numpy(masks.astype(np.int64))

    @property
    def latent_shape(self) -> torch.Size:
        """Of one tile: channels, height, width."""
        return torch.Size(self.latents.shape[2:])

    def keep_on(self, device: torch.device) -> None:
        """Keep everything on a GPU that has room for it; on the CPU the file is as near."""
        if device.type != "cuda":
            return
        if self.latents.nbytes + self.masks.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            self._keep(device)

    def _keep(self, device: torch.device) -> None:
        latents, masks = (torch.from_numpy(np.array(file)).to(device) for file in (self.latents, self.masks))
        self._resident = latents, masks

    def _gathered(self, tiles: list[int], views: list[int]) -> tuple[Tensor, Tensor]:
        """:meth:`batch` on the device that keeps them."""
        assert self._resident is not None
        latents, masks = self._resident
        where, seen = (onto(torch.tensor(numbers), latents.device) for numbers in (tiles, views))
        own = masks[where]
        views_of_rows = torch.empty_like(own)
        for view in set(views):  # each of the few views at once
            rows = onto(torch.tensor([row for row, each in enumerate(views) if each == view]), own.device)
            views_of_rows[rows] = turned(own[rows], self.views[view])
        return latents[where, seen].float(), views_of_rows.long()

    def __len__(self) -> int:
        return len(self.masks)

    def examples(self, tiles: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Latents float32 ``[N, 3, h, w]`` and masks int64 ``[N, H, W]`` of whole tiles, as they are."""
        latents = np.stack([self.latents[tile, 0] for tile in tiles]).astype(np.float32)
        masks = np.stack([self.masks[tile] for tile in tiles]).astype(np.int64)
        return torch.from_numpy(latents), torch.from_numpy(masks)


def _noted(marker: Path) -> str:
    """The fingerprint in ``done.json``; "" where it is damaged or missing: the tiles are then encoded again."""
    try:
        return str(read_json_object(marker)["fingerprint"])
    except (OSError, DocumentError, KeyError):
        return ""


def _reserve(file: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """A file for an array, with its space on the disk: a full one would end the process while the map is filled."""
    try:
        file.unlink(missing_ok=True)  # a link is not followed
        np.lib.format.open_memmap(file, "w+", dtype, shape)
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise OutputError(f"{file}: cannot be written ({error.strerror})") from error


def build_latent_cache(
    folder: Path,
    source: Source,
    first_stage: FirstStage,
    views: Sequence[int],
    tiles: int | Mixture,
    processes: Processes,
    progress: Progress = silent,
) -> LatentCache:
    """Encode every tile of ``source`` unless ``folder`` already holds exactly that; processes share the work."""
    first_ones = list(views) == list(range(len(views)))
    fingerprint = latents_fingerprint(source, first_stage, len(views) if first_ones else list(views))
    marker = folder / "done.json"
    finished = _noted(marker) == fingerprint
    processes.wait()  # nobody writes before all have looked
    if finished:
        return LatentCache(folder, views, tiles)
    height, width = source.read(0).mask.shape
    if processes.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        shape = (
            len(source),
            len(views),
            first_stage.latent_mean.numel(),
            height // DOWNSAMPLING,
            width // DOWNSAMPLING,
        )
        _reserve(folder / "latents.npy", np.float16, shape)
        _reserve(folder / "masks.npy", np.uint8, (len(source), height, width))
    processes.wait()
    _encode_tiles(folder, source, first_stage, views, processes, progress if processes.is_main else silent)
    processes.wait()
    if processes.is_main:
        atomic_write(marker, (json.dumps({"fingerprint": fingerprint}) + "\n").encode())
    processes.wait()  # nobody reads it before it is there
    return LatentCache(folder, views, tiles)


def latents_fingerprint(source: Source, first_stage: FirstStage, seen: object) -> str:
    """Hash of a first stage's weights, of a source, and of what is ``seen`` of its tiles."""
    digest = hashlib.sha256()
    for value in first_stage.state_dict().values():
        digest.update(value.float().cpu().numpy().tobytes())
    digest.update(json.dumps([seen, source.fingerprint()]).encode())
    return digest.hexdigest()


@torch.no_grad()
def _encode_tiles(
    folder: Path,
    source: Source,
    first_stage: FirstStage,
    views: Sequence[int],
    processes: Processes,
    progress: Progress,
) -> None:
    """This process's share of the tiles, in all views, into the reserved files."""
    latents, masks = (np.load(folder / name, mmap_mode="r+") for name in ("latents.npy", "masks.npy"))
    starts = range(processes.rank * ENCODE_BATCH, len(source), processes.count * ENCODE_BATCH)
    total, done = sum(min(ENCODE_BATCH, len(source) - start) for start in starts), 0
    for start in starts:
        samples = [source.read(i) for i in range(start, min(start + ENCODE_BATCH, len(source)))]
        rows = slice(start, start + len(samples))
        masks[rows] = np.stack([sample.mask for sample in samples])
        images = [sample.pixels() for sample in samples]
        for place, view in enumerate(views):
            batch = np.stack([dihedral(image, view) for image in images]).transpose(0, 3, 1, 2)
            (pixels,) = processes.put(torch.from_numpy(np.ascontiguousarray(batch)))
            with processes.accelerator.autocast():
                encoded = first_stage.encode(pixels)
            latents[rows, place] = encoded.cpu().numpy()
        done += len(samples)
        progress("encoding tiles", done, total)
    latents.flush()
    masks.flush()
