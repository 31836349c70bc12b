"""What a segmenter reads in a window: probabilities, averaged over mirrorings and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.labelling.networks import Network, open_network
from changeanywhere.labelling.options import LabelOptions
from changeanywhere.labelling.predictions import Predictions
from changeanywhere.legend import Legend
from changeanywhere.models.segmenter import of_any_size
from changeanywhere.rasters.facts import Facts, Window

MIRRORINGS: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))


class SettledNorm(nn.Module):
    """Group normalisation whose statistics can be settled for an image, so that windows of it do not differ by them."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.seen: list[Tensor] | None = None
        """Means and mean squares of groups ``[2, G]``, a row per call, while they are looked at."""
        self.fixed: Tensor | None = None
        """Factor and shift per channel ``[2, C, 1, 1]``."""

    def forward(self, x: Tensor) -> Tensor:
        """As group normalisation, with its own statistics until others are settled."""
        if self.fixed is not None:
            return x * self.fixed[0] + self.fixed[1]
        if self.seen is not None:
            groups = x.flatten(2).unflatten(1, (self.norm.num_groups, -1))
            self.seen.append(torch.stack([groups.mean((0, 2, 3)), groups.square().mean((0, 2, 3))]))
        result: Tensor = self.norm(x)
        return result

    def settle(self) -> None:
        """From here on the mean statistics of what was seen hold."""
        assert self.seen
        width = self.norm.num_channels // self.norm.num_groups
        mean, square = torch.stack(self.seen).mean(0).repeat_interleave(width, 1)
        factor = self.norm.weight / (square - mean.square() + self.norm.eps).sqrt()
        self.fixed = torch.stack([factor, self.norm.bias - mean * factor]).view(2, -1, 1, 1)

    def clear(self, looking: bool = False) -> None:
        """Own statistics again, looked at or not."""
        self.seen, self.fixed = [] if looking else None, None


class ImageReader(Protocol):
    """What says the classes of one image."""

    legend: Legend

    def settled(self, samples: Iterable[npt.NDArray[np.float32]]) -> AbstractContextManager[None]:
        """While it is open, windows of the image are read alike; ``samples`` are some of them."""
        ...

    def read(self, window: Window, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A window, its pixels f32 ``[h, w, 3]`` in [-1, 1] → probabilities f32 ``[K, h, w]``, unknown ground apart."""
        ...


class Reader:
    """A segmenter on a device."""

    def __init__(self, net: Network, device: torch.device, scales: Sequence[float], flips: bool) -> None:
        self.net, self.legend = net, net.legend
        self._device, self._scales = device, scales
        self._mirrorings = MIRRORINGS if flips else MIRRORINGS[:1]
        with_settled_norms(self.net)

    def read(self, window: Window, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See :class:`ImageReader`."""
        return self.probabilities(pixels)

    @contextmanager
    def settled(self, samples: Iterable[npt.NDArray[np.float32]]) -> Iterator[None]:
        """Read windows of one image under statistics that ``samples`` of it have together: only then does a pixel's
        label not depend on where its window was cut. Without samples each window has its own."""
        norms = [module for module in self.net.modules() if isinstance(module, SettledNorm)]
        for norm in norms:
            norm.clear(looking=True)
        try:
            for sample in samples:
                self.probabilities(sample)
            for norm in norms:
                norm.settle() if norm.seen else norm.clear()
            yield
        finally:
            for norm in norms:
                norm.clear()

    @torch.no_grad()
    def probabilities(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Pixels f32 ``[H, W, 3]`` in [-1, 1] → probabilities f32 ``[K, H, W]``."""
        image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).to(self._device)
        total = torch.zeros((), device=self._device)
        for scale in self._scales:
            scaled = image if scale == 1 else F.interpolate(image, scale_factor=scale, mode="bilinear", antialias=True)
            for dims in self._mirrorings:
                found = torch.flip(of_any_size(self.net, torch.flip(scaled, dims)), dims)
                if scale != 1:
                    found = F.interpolate(found, size=image.shape[2:], mode="bilinear")
                total = total + found
        result: npt.NDArray[np.float32] = (total[0] / (len(self._scales) * len(self._mirrorings))).cpu().numpy()
        return result


def with_settled_norms(net: nn.Module) -> None:
    """Put a :class:`SettledNorm` around every group normalisation of ``net``."""
    for name, module in list(net.named_children()):
        if isinstance(module, nn.GroupNorm):
            setattr(net, name, SettledNorm(module))
        else:
            with_settled_norms(module)


class Readers:
    """Who reads each image of a folder: one network all of them, or a raster of its own each."""

    def __init__(self, by: Predictions | Reader, called: str) -> None:
        self._by = by
        self.legend, self.called = by.legend, called
        mapping = by.mapping if isinstance(by, Predictions) else by.net.mapping
        self.meaning: dict[str, Any] = {"legend": by.legend.to_dict(), "from": mapping and mapping.to_dict()}
        """What is written, and which classes become it; and what numbers of rasters mean."""
        if isinstance(by, Predictions):
            self.meaning["numbers"] = repr(by.numbers)

    def of(self, patch: str, image: Path, facts: Facts) -> ImageReader:
        """See :class:`Predictions`."""
        return self._by.of(patch, image, facts) if isinstance(self._by, Predictions) else self._by


def open_readers(options: LabelOptions, device: torch.device) -> Readers:
    """Those that the options ask for."""
    if options.predictions is not None:
        predictions = Predictions(options, options.predictions)
        return Readers(predictions, predictions.called)
    net, called = open_network(options, device)
    return Readers(Reader(net, device, options.scales, options.flips), called)
