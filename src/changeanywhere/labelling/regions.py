"""From probabilities of classes to whole objects. No torch here.

Everything is local: a pixel's label depends on what lies around it, not on where a window was cut. So superpixels,
whose seeds lie in a grid, are not used; borders are brought to those of the image by a guided filter (He et al. 2013),
whose boxes move with the pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import label

from changeanywhere.labelling.options import CleaningOptions
from changeanywhere.legend import Mask

EDGE = 0.02**2
"""Variance of brightness (0 to 1) from which on the filter takes a difference for an edge."""
NEIGHBOURS = 2
"""Px around a crumb that say what it becomes."""

ROUNDING = 1e-4
"""What sums of probabilities miss by rounding alone."""

Probabilities = npt.NDArray[np.float32]


def guided(probabilities: Probabilities, brightness: npt.NDArray[np.float32], radius: int) -> Probabilities:
    """``[K, H, W]`` smoothed within the edges of ``brightness`` f32 ``[H, W]``, 0 to 1. What is missing to a sum of 1
    is the probability of unknown ground: it is smoothed with the others and stays missing."""
    if radius == 0:
        return probabilities
    size, num_classes = 2 * radius + 1, len(probabilities)
    unknown = 1 - probabilities.sum(0)
    if (unknown > ROUNDING).any():
        probabilities = np.concatenate([probabilities, unknown[None].clip(0)])

    def mean(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        smooth: npt.NDArray[np.float32] = ndimage.uniform_filter(image, size, mode="reflect")
        return smooth

    of_guide = mean(brightness)
    variance = mean(brightness * brightness) - of_guide**2
    result = np.empty_like(probabilities)
    for index, plane in enumerate(probabilities):
        of_plane = mean(plane)
        slope = (mean(brightness * plane) - of_guide * of_plane) / (variance + EDGE)
        result[index] = mean(slope) * brightness + mean(of_plane - slope * of_guide)
    result = result.clip(0, 1)
    smooth: Probabilities = result / np.maximum(result.sum(0, keepdims=True), 1e-6)
    return smooth[:num_classes]


def whole_objects(
    probabilities: Probabilities, known: npt.NDArray[np.bool_], options: CleaningOptions, objects: Sequence[int]
) -> tuple[Mask, npt.NDArray[np.float32]]:
    """``[K, H, W]`` → mask uint8 ``[H, W]`` of classes 1…K, 0 = unknown, and the probability of the most likely class
    f32 ``[H, W]``. ``known`` bool ``[H, W]``: other ground is of no class, of no object, and stays unknown.
    ``objects``: indices of the classes whose patches are kept or dropped whole."""
    mask = np.where(known, probabilities.argmax(0) + 1, 0).astype(np.uint8)
    sure: npt.NDArray[np.float32] = probabilities.max(0)
    mask = without_crumbs(mask, options.min_area)
    unsure = sure < options.min_confidence
    for class_index in objects:
        patches, count = label(mask == class_index, connectivity=1, return_num=True)
        if not count:
            continue
        means = ndimage.mean(probabilities[class_index - 1], patches, np.arange(count + 1))
        dropped = np.asarray(means) < options.min_confidence
        dropped[0] = False
        inside = patches > 0
        unsure = np.where(inside, dropped[patches], unsure)
    mask = without_crumbs(np.where(unsure, 0, mask).astype(np.uint8), options.min_area)
    return np.where(known, mask, 0).astype(np.uint8), sure


def without_crumbs(mask: Mask, min_area: int) -> Mask:
    """Patches of fewer than ``min_area`` px become the class that most of the ground around them has."""
    if min_area <= 1:
        return mask
    patches, count = label(mask, background=-1, connectivity=1, return_num=True)
    areas = np.bincount(patches.ravel(), minlength=count + 1)
    boxes = ndimage.find_objects(patches)
    cleaned = mask.copy()
    for number in np.flatnonzero(areas < min_area):
        if not areas[number]:
            continue
        rows, columns = boxes[number - 1]
        box = (
            slice(max(rows.start - NEIGHBOURS, 0), rows.stop + NEIGHBOURS),
            slice(max(columns.start - NEIGHBOURS, 0), columns.stop + NEIGHBOURS),
        )
        own = patches[box] == number
        around = ndimage.binary_dilation(own, iterations=NEIGHBOURS) & ~own & (areas[patches[box]] >= min_area)
        if around.any():
            cleaned[box][own] = np.bincount(mask[box][around]).argmax()
    return cleaned
