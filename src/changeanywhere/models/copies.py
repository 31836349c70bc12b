"""Copies between host and device for which neither waits longer than it must."""

from __future__ import annotations

import torch
from torch import Tensor


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """In memory from which a GPU copies by itself, if it is to be copied to one; else as it is."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def onto(tensor: Tensor, device: torch.device, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """``tensor`` on ``device``. A GPU copies when its turn comes, and the host goes on."""
    return pinned(tensor, device).to(device, memory_format=memory_format, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """``tensor`` on the host, contiguous, once it is there: what others gave the GPU to do since is not waited for."""
    if tensor.device.type != "cuda":
        return tensor.cpu().contiguous()
    here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    here.copy_(tensor.contiguous(), non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensor.device))
    arrived.synchronize()
    return here
