"""Latents of all tiles, encoded once and read from a memory-mapped file at every step."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from changeanywhere.errors import OutputError
from changeanywhere.models.first_stage import FirstStage
from changeanywhere.progress import progress_bar
from changeanywhere.sources import Source
from changeanywhere.storage import atomic_write
from changeanywhere.training.batches import dihedral, step_rng, tiles_of_step
from changeanywhere.training.processes import Processes

ENCODE_BATCH = 8


class LatentCache:
    """``views`` flips/rotations of every tile: latents float16 ``[N, V, 3, h, w]``, masks uint8 ``[N, H, W]``."""

    def __init__(self, folder: Path, views: int) -> None:
        self.latents = np.load(folder / "latents.npy", mmap_mode="r")
        self.masks = np.load(folder / "masks.npy", mmap_mode="r")
        self.views = views
        self.fingerprint = str(json.loads((folder / "done.json").read_text())["fingerprint"])
        """Of the first stage, the tiles' names and files, and their classes."""

    def batch(self, batch_size: int, seed: int, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """Latents float32 ``[rows, 3, h, w]`` and masks int64 ``[rows, H, W]`` of these rows of a step's batch."""
        tiles = tiles_of_step(len(self.masks), batch_size, seed, step)
        views = step_rng(seed, 3, step).integers(self.views, size=batch_size)
        latents = np.stack([self.latents[tiles[row], views[row]] for row in rows]).astype(np.float32)
        masks = np.stack([dihedral(self.masks[tiles[row]], int(views[row])) for row in rows])
        return torch.from_numpy(latents), torch.from_numpy(masks.astype(np.int64))


def _reserve(file: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """A file for an array, with its space on the disk: a full one would end the process while the map is filled."""
    try:
        np.lib.format.open_memmap(file, "w+", dtype, shape)
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise OutputError(f"{file}: cannot be written ({error.strerror})") from error


def build_latent_cache(
    folder: Path, source: Source, first_stage: FirstStage, views: int, processes: Processes
) -> LatentCache:
    """Encode every tile of ``source`` unless ``folder`` already holds exactly that; processes share the work."""
    fingerprint = hashlib.sha256()
    for value in first_stage.state_dict().values():
        fingerprint.update(value.float().cpu().numpy().tobytes())
    fingerprint.update(json.dumps([views, source.fingerprint()]).encode())
    marker = folder / "done.json"
    finished = marker.is_file() and json.loads(marker.read_text())["fingerprint"] == fingerprint.hexdigest()
    processes.wait()  # nobody writes before all have looked
    if finished:
        return LatentCache(folder, views)
    height, width = source.read(0).mask.shape
    channels = first_stage.latent_mean.numel()
    if processes.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        shape = (len(source), views, channels, height // 4, width // 4)
        _reserve(folder / "latents.npy", np.float16, shape)
        _reserve(folder / "masks.npy", np.uint8, (len(source), height, width))
    processes.wait()
    latents, masks = (np.load(folder / name, mmap_mode="r+") for name in ("latents.npy", "masks.npy"))
    starts = range(processes.rank * ENCODE_BATCH, len(source), processes.count * ENCODE_BATCH)
    with progress_bar(processes.is_main) as bar, torch.no_grad():
        task = bar.add_task("encoding tiles", total=sum(min(ENCODE_BATCH, len(source) - start) for start in starts))
        for start in starts:
            rows = range(start, min(start + ENCODE_BATCH, len(source)))
            samples = [source.read(i) for i in rows]
            masks[start : start + len(rows)] = np.stack([s.mask for s in samples])
            images = [s.normalisation.apply(s.image).clip(-1, 1) for s in samples]
            for view in range(views):
                batch = np.stack([dihedral(image, view) for image in images]).transpose(0, 3, 1, 2)
                pixels = torch.from_numpy(np.ascontiguousarray(batch))
                with processes.accelerator.autocast():
                    encoded = first_stage.encode(pixels.to(processes.device, memory_format=torch.channels_last))
                latents[start : start + len(rows), view] = encoded.cpu().numpy()
            bar.advance(task, len(rows))
    latents.flush()
    masks.flush()
    processes.wait()
    if processes.is_main:
        atomic_write(marker, (json.dumps({"fingerprint": fingerprint.hexdigest()}) + "\n").encode())
    processes.wait()  # nobody reads it before it is there
    return LatentCache(folder, views)
