"""Residual blocks of diffusers' networks without the passes over memory that change nothing.

Where nothing is learned, activations overwrite what only they read, the sum overwrites the branch, and nothing is
divided by one: on a CPU, whose memory decides at full resolution, a tenth of a decoder's time.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from changeanywhere.models.borrowed import ResnetBlock2D

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class _QuickBlock(ResnetBlock2D):  # type: ignore[misc]
    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *others: Any, **named: Any) -> Tensor:
        """A residual block of He et al. 2016 in the order of Ho et al. 2020: norm, SiLU, convolution, twice; the
        embedding of the timestep between them."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            whole: Tensor = super().forward(input_tensor, temb, *others, **named)
            return whole
        hidden = self.conv1(silu(self.norm1(input_tensor), inplace=True))
        if temb is not None and self.time_emb_proj is not None:
            hidden += self.time_emb_proj(silu(temb))[:, :, None, None]
        hidden = self.conv2(silu(self.norm2(hidden), inplace=True))
        hidden += input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        result: Tensor = hidden
        return result


def _is_plain(block: ResnetBlock2D) -> bool:
    """Whether it is made of nothing but what :class:`_QuickBlock` does."""
    embeds = block.time_emb_proj is None or (block.time_embedding_norm == "default" and not block.skip_time_act)
    resizes = block.upsample is not None or block.downsample is not None
    activates = isinstance(block.nonlinearity, nn.SiLU) and block.output_scale_factor == 1
    return embeds and activates and not resizes and (block.dropout.p == 0 or not block.training)


def quick_blocks(module: ModuleT) -> ModuleT:
    """Let the residual blocks of ``module``, which is not trained any more, take the shorter way where they may; in
    place. Parameters, their names and results stay."""
    for each in module.eval().modules():
        if type(each) is ResnetBlock2D and _is_plain(each):
            each.__class__ = _QuickBlock
    return module
