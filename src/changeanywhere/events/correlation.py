"""Where a shape meets another, at every place at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import fft

Grey = npt.NDArray[np.float32]


def correlated(image: Grey, kernel: Grey) -> Grey:
    """``image`` summed under ``kernel`` wherever that lies in it whole: float32 ``[H, W]`` and ``[h, w]``, no larger, →
    ``[H - h + 1, W - w + 1]``.

    By FFT, to the last bit as ``scipy.signal.fftconvolve`` has it, whose package brings ``scipy.stats``: a second
    before the first pair.
    """
    flipped = kernel[::-1, ::-1]
    axes = [axis for axis in (0, 1) if image.shape[axis] != 1 and kernel.shape[axis] != 1]
    if not axes:
        return image * flipped
    sizes = [fft.next_fast_len(image.shape[axis] + kernel.shape[axis] - 1, True) for axis in axes]
    product = fft.rfftn(image, sizes, axes=axes) * fft.rfftn(flipped, sizes, axes=axes)
    whole = fft.irfftn(product, sizes, axes=axes)
    height, width = image.shape
    valid: Grey = whole[kernel.shape[0] - 1 : height, kernel.shape[1] - 1 : width]
    return valid
