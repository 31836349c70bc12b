"""Weights into a network: all of them, none besides, each of its shape, every number finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from changeanywhere.errors import ModelError


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], where: Path | str, own: str = "the network") -> None:
    """Put ``weights`` into ``module``; :class:`ModelError` naming ``where`` they are from and the first that is wrong.

    ``own`` says in messages whose shapes are wanted. Numbers are cast to the module's dtype. A module on the device
    ``meta`` gets memory here, when it is known that the weights fit.
    """
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name not in weights:
            raise ModelError(f"{where}: no {name}, which {own} needs; the file is cut short, or of another network")
        check_shape(weights[name], tuple(tensor.shape), name, where, own)
    foreign = sorted(weights.keys() - wanted.keys())
    if foreign:
        raise ModelError(f"{where}: has {foreign[0]}, which {own} has not; the file is of another network")
    check_finite(weights, where)
    if any(tensor.is_meta for tensor in wanted.values()):
        own_memory: dict[str, Any] = {
            name: value.to(wanted[name].dtype, copy=True).contiguous() for name, value in weights.items()
        }
        for name, value in own_memory.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ModelError(f"{where}: {name} holds numbers beyond {value.dtype}; give --dtype float32")
        module.load_state_dict(own_memory, assign=True)
    else:
        module.load_state_dict(dict(weights))


def check_shape(value: Tensor, shape: tuple[int, ...], name: str, where: Path | str, own: str) -> None:
    """:class:`ModelError` naming a tensor of another shape, or of numbers where whole ones are wanted."""
    if tuple(value.shape) != shape:
        raise ModelError(f"{where}: {name} is {in_words(value.shape)}; {own} needs {in_words(shape)}")


def check_finite(weights: Mapping[str, Tensor], where: Path | str) -> None:
    """:class:`ModelError` naming the first tensor with a NaN or an infinity."""
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise ModelError(
                f"{where}: {name} is not finite in {count} of {value.numel()} numbers; "
                "the training that wrote it diverged, or the file is damaged: take an earlier one"
            )


def in_words(shape: torch.Size | tuple[int, ...]) -> str:
    """``64x3x3x3``; a single number has no sides."""
    return "x".join(map(str, shape)) or "a single number"
