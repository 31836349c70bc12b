"""A scene in arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.diffusion.canvas import Box, mirrored
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.scene_groups import Cells, Pixels, cropped
from changeanywhere.legend import Legend
from changeanywhere.sample import Image, Normalisation


def boxed(array: Any, box: Box) -> npt.NDArray[Any]:
    """``box`` of ``[H, W, ...]``, mirrored beyond; of ``array`` (anything with a shape and slices) it reads the box
    alone."""
    row, column, height, width = box
    rows, columns = (
        mirrored(start, length, size).numpy()
        for start, length, size in ((row, height, array.shape[0]), (column, width, array.shape[1]))
    )
    top, left = int(rows.min()), int(columns.min())
    part = np.asarray(array[top : int(rows.max()) + 1, left : int(columns.max()) + 1])
    result: npt.NDArray[Any] = part[rows - top][:, columns - left]
    return result


@dataclass(frozen=True)
class ArrayScene:
    """A :class:`.scene_groups.SceneView` of arrays (in memory or mapped from disk).

    ``pixels``: box → date 1 float32 ``[h, w, C]``. ``strengths`` float32 ``[256]`` by class of mask t2; None: painted
    from noise. ``exemplars``: (box, changed box) → date 1 with real pixels of the new classes.
    """

    pixels: Callable[[Box], Pixels]
    mask_t2: npt.NDArray[np.uint8]
    changed: npt.NDArray[np.bool_]
    strengths: npt.NDArray[np.float32] | None = None
    exemplars: Callable[[Box, Box], Pixels] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """See :class:`SceneView`."""
        return self.mask_t2.shape[0], self.mask_t2.shape[1]

    def image(self, box: Box) -> Pixels:
        """See :class:`SceneView`."""
        return self.pixels(box)

    def mask(self, box: Box) -> npt.NDArray[np.uint8]:
        """See :class:`SceneView`."""
        return boxed(self.mask_t2, box)

    def change(self, box: Box) -> Cells:
        """See :class:`SceneView`."""
        return cropped(self.changed, box).astype(bool)

    def strength(self, box: Box, changed: Box) -> Pixels | None:
        """See :class:`SceneView`."""
        return None if self.strengths is None else self.strengths[self.mask(box)]

    def exemplar(self, box: Box, changed: Box) -> Pixels:
        """See :class:`SceneView`."""
        return self.image(box) if self.exemplars is None else self.exemplars(box, changed)


def pixels_of(image: npt.NDArray[Any], normalisation: Normalisation) -> Callable[[Box], Pixels]:
    """Of an image ``[H, W, C]`` in the units of its file."""
    return lambda box: normalisation.apply(boxed(image, box)).clip(-1, 1)


def scene_strengths(sampling: Sampling, legend: Legend) -> npt.NDArray[np.float32] | None:
    """Strength by class of mask t2, float32 ``[256]``; None where all is painted from noise. Of a range its middle."""
    given = sampling.exemplar_strength
    if given is None or not sampling.from_exemplars:
        return None
    if isinstance(given, dict):
        by_class = np.full(256, given.get("default", 1.0), np.float32)
        for name, value in given.items():
            if name != "default":
                by_class[legend.index_of(name)] = value
        return by_class
    return np.full(256, float(np.mean(given)), np.float32)


def mixed(stretch: Normalisation, before: Image, painted: npt.NDArray[np.float32], share: Pixels) -> Image:
    """``share`` of ``painted``, the rest of ``before``, in the units and dtype of ``before``."""
    kept = stretch.apply(before)
    return stretch.invert(kept + share[..., None] * (painted - kept), before.dtype)
