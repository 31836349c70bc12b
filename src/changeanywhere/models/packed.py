"""Convolutions of small maps on a CPU, their kernels laid out once instead of at every call.

Torch (2.13) hands oneDNN a kernel as it lies in memory, and oneDNN lays it out anew for each call: of windows of a
latent that is up to a quarter of the time. The layout depends on the size of the map. The operators are those of
torch's own compiler; where a torch has none, or they refuse, convolutions go on as they are.
"""

from __future__ import annotations

from functools import cache
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
MOST_PLACES = 64 * 64
"""Of a map: above that what a call computes outweighs the layout of its kernel, and layouts take memory."""
_Layouts = dict[tuple[int, int], Tensor]
_PACKED: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], _Layouts]] = WeakKeyDictionary()
"""By convolution: which weights were laid out (place, version), and their layouts by height and width."""


class _PackedConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[-2:]
        plain = input.device.type != "cpu" or height * width > MOST_PLACES or torch.is_grad_enabled()
        if plain or torch.compiler.is_compiling() or input.dtype != self.weight.dtype or not can_pack(input.dtype):
            return super().forward(input)
        return _convolve(self, input, (height, width))


def _convolve(module: nn.Conv2d, image: Tensor, size: tuple[int, int]) -> Tensor:
    stamp = module.weight.data_ptr(), module.weight._version
    known = _PACKED.get(module)
    if known is None or known[0] != stamp:
        known = _PACKED[module] = stamp, {}
    padding, stride, dilation = list(module.padding), list(module.stride), list(module.dilation)
    kernel = known[1].get(size)
    if kernel is None:
        kernel = known[1][size] = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
            module.weight.detach().to_mkldnn(), padding, stride, dilation, module.groups, list(image.shape)
        )
    convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
        image, kernel, module.bias, padding, stride, dilation, module.groups, "none", [], ""
    )
    return convolved


def packed(module: ModuleT) -> ModuleT:
    """Let the convolutions of ``module`` keep layouts of their kernels where they may; in place. Parameters, their
    names and, but for the last bit, results stay."""
    for each in module.modules():
        if type(each) is nn.Conv2d and each.padding_mode == "zeros" and not isinstance(each.padding, str):
            each.__class__ = _PackedConv
    return module


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators, and they take a small convolution of this type on this processor: where it
    has no instructions for bfloat16, torch itself convolves in it, slowly, and they refuse."""
    probe = nn.Conv2d(16, 16, 3, padding=1).to(dtype)
    try:
        with torch.no_grad():
            _convolve(probe, torch.zeros(1, 16, 4, 4, dtype=dtype), (4, 4))
    except (AttributeError, RuntimeError):
        return False
    return True
