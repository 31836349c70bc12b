"""Networks that look at images for an evaluation: the judge, ImageNet features."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from changeanywhere.buckets import store_at
from changeanywhere.errors import ConfigError, LegendError, require
from changeanywhere.generation.job import FILE as JOB_FILE
from changeanywhere.generation.job import load_job
from changeanywhere.legend import Legend
from changeanywhere.models.efficientnet import EfficientNetLite0, find_weights
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.info import EMBEDDED_SEGMENTER, find_segmenter, hash_segmenter
from changeanywhere.models.segmenter import Segmenter

Image = npt.NDArray[np.uint8]
Reader = Callable[[Sequence[Image]], Collection[npt.NDArray[np.uint8]]]
"""Images uint8 ``[H, W, 3]``, each of its own size → classes uint8 ``[H, W]`` of each."""
Extractor = Callable[[Sequence[Image]], npt.NDArray[np.float64]]
FEATURES = "EfficientNet-Lite0, ImageNet, 1,280 pooled features"


def to_tensor(images: Sequence[Image]) -> Tensor:
    """uint8 ``[H, W, 3]`` each → float32 ``[B, 3, H, W]`` in [-1, 1], channels last."""
    pixels = torch.from_numpy(np.stack(images).astype(np.float32) / 127.5 - 1)
    return pixels.permute(0, 3, 1, 2)


def _batches(images: Sequence[Image], batch_size: int) -> Iterator[Sequence[Image]]:
    """As they follow one another, at most ``batch_size`` of one size at once."""
    for _, some in groupby(images, np.shape):
        alike = list(some)
        yield from (alike[i : i + batch_size] for i in range(0, len(alike), batch_size))


def load_judge(folder: Path, legend: Legend, device: torch.device, batch_size: int) -> Reader:
    """Images of any sizes → classes uint8 ``[H, W]`` of each. :class:`LegendError` if the judge knows other
    classes than ``legend``, :class:`ConfigError` if it is the embedded segmenter, which filters and labels."""
    if hash_segmenter(folder) == hash_segmenter(EMBEDDED_SEGMENTER):
        raise ConfigError(
            f"judge is {str(folder)!r}, the package's own segmenter, by which sets are filtered and labelled: it would "
            "judge itself; allowed: another (changeanywhere train segmenter --config judge --out DIR)"
        )
    net = channels_last(Segmenter.load(find_segmenter(folder)).to(device))
    if net.legend.names != legend.names:
        raise LegendError(
            f"{folder}: the judge knows {', '.join(net.legend.names)}; the images have {', '.join(legend.names)}"
        )

    def read(images: Sequence[Image]) -> list[npt.NDArray[np.uint8]]:
        found: list[npt.NDArray[np.uint8]] = []
        for some in _batches(images, batch_size):
            height, width = some[0].shape[:2]  # of odd sides the network's own maps have one more
            found += list(net.read(to_tensor(some).to(device))[:, :height, :width].cpu().numpy().astype(np.uint8))
        return found

    return read


def refuse_filter(judge: Path, pairs: Path) -> None:
    """:class:`ConfigError` where the set ``pairs`` was filtered by ``judge``, which finds good what it chose itself."""
    store = store_at(pairs)
    job = load_job(store) if store.exists(JOB_FILE) else None  # sets of the first edition do not say
    if job is not None and job.finishing.filter.action != "score":
        chosen = job.finishing.filter_hash == hash_segmenter(judge)
        require(not chosen, "judge", str(judge), f"a segmenter by which {pairs} was not filtered")


def load_features(device: torch.device, batch_size: int) -> Extractor:
    """Images of any sizes → :data:`FEATURES` ``[B, 1280]``."""
    net = channels_last(EfficientNetLite0(find_weights()).to(device)).eval()

    @torch.no_grad()
    def extract(images: Sequence[Image]) -> npt.NDArray[np.float64]:
        parts = [net(to_tensor(some).to(device)).cpu().numpy() for some in _batches(images, batch_size)]
        return np.concatenate(parts).astype(np.float64)

    return extract
