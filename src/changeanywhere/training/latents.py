"""Latents of all tiles, encoded once and read from a memory-mapped file at every step."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from changeanywhere.storage import atomic_folder, remove_leftovers
from changeanywhere.training.batches import Mixture, dihedral, tiles_of_step, turned
from changeanywhere.training.processes import Processes

ENCODE_BATCH = 8
MARKER = "done.json"
KINDS: dict[str, type] = {"latents.npy": np.float16, "masks.npy": np.uint8}
"""The arrays, each in a file."""
LATENTS = {"denoiser": "training/latents", "critic": "training/critic/latents"}
"""Stage → the folder in ``OUT`` of the latents that it encodes: its own, which nobody else writes, since one training
of a stage is at work at a time. What lies in another's is read where it is the same."""
RESIDENT_SHARE = 0.3
"""Of a GPU's free memory that latents and masks may take, so that steps gather their rows where they are needed."""


class LatentCache:
    """``views`` of every tile, as :func:`.dihedral` numbers them: latents float16 ``[N, V, 3, h, w]``, masks uint8
    ``[N, H, W]``."""

    _resident: tuple[Tensor, Tensor] | None = None
    """The same on a GPU, where they fit."""

    def __init__(self, folder: Path, views: Sequence[int], tiles: int | Mixture) -> None:
        self.folder, self.tiles = folder, tiles
        self.latents, self.masks = (np.lib.format.open_memmap(folder / name, mode="r") for name in KINDS)
        self.views = views
        self.fingerprint = _noted(folder / MARKER)
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
        np.lib.format.open_memmap(file, "w+", dtype, shape)
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror})") from error


def build_latent_cache(
    folder: Path,
    source: Source,
    first_stage: FirstStage,
    views: Sequence[int],
    tiles: int | Mixture,
    processes: Processes,
    progress: Progress = silent,
    others: Sequence[Path] = (),
) -> LatentCache:
    """Every tile of ``source``, encoded: what ``folder`` holds, or one of ``others`` does, if it is exactly that and
    whole; else ``folder`` is filled anew, in place of what it held, and the processes share the work.

    It is filled beside its place and put there whole: who reads what it held goes on reading that.
    """
    first_ones = list(views) == list(range(len(views)))
    fingerprint = latents_fingerprint(source, first_stage, len(views) if first_ones else list(views))
    height, width = source.read(0).mask.shape
    channels = first_stage.latent_mean.numel()
    shape = (len(source), len(views), channels, height // DOWNSAMPLING, width // DOWNSAMPLING)
    shapes = {"latents.npy": shape, "masks.npy": (len(source), height, width)}
    for place in (folder, *others):
        cache = _finished(place, views, tiles, fingerprint, shapes)
        if not processes.any(cache is None) and cache is not None:
            return cache
    with _filled(folder, shapes, fingerprint, processes) as part:
        _encode_tiles(part, source, first_stage, views, processes, progress if processes.is_main else silent)
    return LatentCache(folder, views, tiles)


def _finished(
    folder: Path, views: Sequence[int], tiles: int | Mixture, fingerprint: str, shapes: Mapping[str, tuple[int, ...]]
) -> LatentCache | None:
    """What ``folder`` holds; None where that is not of ``fingerprint``, not whole, or replaced at this moment."""
    if _noted(folder / MARKER) != fingerprint:
        return None
    try:
        cache = LatentCache(folder, views, tiles)
    except (OSError, ValueError, EOFError):  # cut off, or no arrays
        return None
    arrays = {"latents.npy": cache.latents, "masks.npy": cache.masks}
    whole = all(arrays[name].shape == shape and arrays[name].dtype == KINDS[name] for name, shape in shapes.items())
    return cache if whole and cache.fingerprint == fingerprint else None


@contextmanager
def _filled(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], fingerprint: str, processes: Processes
) -> Iterator[Path]:
    """A folder with room for the arrays, the same in all processes; what they write into it becomes ``folder``."""
    if not processes.is_main:
        yield Path(processes.said_by_main(""))
        processes.wait()
        processes.wait()
        return
    if folder.parent.is_dir():
        remove_leftovers(folder.parent)
    with atomic_folder(folder, MARKER) as part:
        for name in (MARKER, *KINDS):  # of other tiles: both need not fit onto the disk
            (folder / name).unlink(missing_ok=True)
        for name, shape in shapes.items():
            _reserve(part / name, KINDS[name], shape)
        processes.said_by_main(str(part))
        yield part
        processes.wait()  # until all have written theirs
        (part / MARKER).write_text(json.dumps({"fingerprint": fingerprint}) + "\n")
    processes.wait()  # nobody reads it before it is there


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
    latents, masks = (np.load(folder / name, mmap_mode="r+") for name in KINDS)
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
