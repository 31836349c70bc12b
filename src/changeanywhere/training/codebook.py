"""Placing codes where the latents are: at the start, and again wherever a code falls out of use."""

from __future__ import annotations

import torch
from torch import Tensor

from changeanywhere.models.first_stage import nearest_codes

LLOYD_ROUNDS = 10


@torch.no_grad()
def place_codes(vectors: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """k-means of latents ``[N, D]`` float32 → codes ``[num_codes, D]`` (a few Lloyd rounds from random latents)."""
    repeats = -(-num_codes // len(vectors))
    picked = torch.randperm(len(vectors), generator=generator).repeat(repeats)[:num_codes]
    codes = vectors[picked.to(vectors.device)].clone()
    for _ in range(LLOYD_ROUNDS):
        nearest = nearest_codes(vectors, codes)
        counts = torch.bincount(nearest, minlength=num_codes).to(vectors)
        sums = torch.zeros_like(codes).index_add_(0, nearest, vectors)
        used = counts > 0
        codes[used] = sums[used] / counts[used, None]
    return codes


@torch.no_grad()
def restart_dead_codes(codebook: Tensor, usage: Tensor, vectors: Tensor, generator: torch.Generator) -> Tensor:
    """Move codes with ``usage`` 0 onto random latents ``[N, D]`` of the current batch; returns which, int64."""
    dead = (usage == 0).nonzero().flatten()
    dead = dead[: len(vectors)]
    picked = torch.randperm(len(vectors), generator=generator)[: len(dead)]
    codebook[dead] = vectors[picked.to(vectors.device)].to(codebook)
    return dead


def perplexity(usage: Tensor) -> float:
    """exp of the entropy of code use ``[K]`` (counts): how many codes are used, counted evenly."""
    share = usage.double() / usage.sum().clamp(min=1)
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))
