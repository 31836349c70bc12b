"""Bounds of every number that can be set, in one table; and what no option of any kind may hold.

A number that is wrong by a typing error (one nought too many, a minus, NaN) is refused before work begins, not when
memory is full. What an option means narrows its bounds further, where the option is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from changeanywhere.errors import require

MAX_ENTRIES = 10_000
"""Of a list or mapping among options."""
MAX_LETTERS = 4096
"""Of a word or path: what a file system takes."""
MAX_SEED = 2**32 - 1
"""The streams of a step are a thousand million apart and must fit 64 bits."""
MAX_PAIRS = 10_000_000
"""Of a set: planning holds some tens of bytes a pair."""

COUNTS = {
    "accumulation_steps": 65_536, "attempts": 1000, "batch_size": 65_536, "crop_size": 65_536, "group_size": 1000,
    "discriminator_channels": 4096, "head_dim": 4096, "latent_channels": 64, "layers_per_block": 64, "log_every": 10**9,
    "mask_channels": 4096, "max_pairs": MAX_PAIRS, "norm_groups": 4096, "num_codes": 2**20, "num_heads": 1024,
    "num_events": 1_000_000, "num_pairs": MAX_PAIRS, "num_steps": 10**9, "num_threads": 1024, "views": 8,
    "workers": 100_000,
    "pairs_per_image": 100_000, "restart_codes_every": 10**9, "save_every": 10**9, "shard_size": 100_000,
    "tile_size": 65_536, "tiles": 65_536, "val_every": 10**9, "validations": 10**9, "window": 65_536,
}  # fmt: skip
"""Numbers from 1 on: name → the largest."""
AMOUNTS = {
    "calls": 1000, "change_share": 1, "decoded": 1, "frozen_levels": 64, "push": 1e6, "starts": 1000, "until": 1000,
    "adaptive_steps": 10**9, "exemplar_ring": 16_384, "images_share": 1, "restore_detail": 1, "latent_noise": 1e6,
    "adversarial_from_step": 10**9, "adversarial_weight": 1e6, "attention_levels": 64, "chroma_weight": 1e6,
    "codebook_weight": 1e6, "colour_jitter": 1, "commitment": 1e6, "connectivity": 8, "dilate_cells": 16_384, "eta": 1,
    "distil_guidance": 1000, "ema_halflife_share": 1, "first_class": 1, "free_fraction": 1, "gradient_clip": 1e9,
    "guidance_scale": 1000,
    "ignore_value": 65_535, "learning_rate": 1e3, "margin": 65_536, "mask_dropout": 1, "max_area_m2": 1e12,
    "max_coverage": 1, "max_megapixels": 1e6, "max_share": 1, "min_area": 2**32, "min_area_m2": 1e12, "min_score": 1,
    "min_snr_gamma": 1e6, "no_change": 1, "num_images": MAX_PAIRS, "num_panels": 1000, "num_workers": 256,
    "min_confidence": 1, "overlap": 65_536, "radius": 32, "scales": 4, "threshold": 1,
    "perceptual_from_step": 10**9, "perceptual_weight": 1e6,
    "quantise_from_step": 10**9, "rotate_degrees": 180, "rate_at": 100, "change_crops": 1,
    "candidates": 10_000, "rate_seeds": 10**6, "rounds": 1000, "patience": 1000, "least_gain": 1,
    "finetune_epochs": 1e6, "warmup_epochs": 1e6, "pretrain_seeds": MAX_SEED, "claims_at": 100,
    "seed": MAX_SEED, "seeds": MAX_SEED, "shares": 100, "val_share": 99, "warmup_steps": 10**9, "weight_decay": 1e3,
    "further_share": 1, "held_out": 1, "unknown_weight": 1, "photometric": 1, "taught_from_step": 10**9,
    "window_margin": 16_384, "keep_mib": 2**24, "complete_margin": 65_536, "min_z": 1000, "min_correlation": 1,
    "unlabelled_share": 1, "unlabelled_weight": 1e6, "unlabelled_ramp": 1, "unlabelled_confidence": 1,
    "unlabelled_confidence_changed": 1, "unlabelled_halflife_share": 1, "rehearsed_share": 1,
}  # fmt: skip
"""Numbers from 0 on: name → the largest."""
IN_LISTS = {
    "areas": (1, 2**32), "confidence": (0, 1),
    "bands": (1, 65_535), "channels": (1, 16_384), "class_pairs": (0, 1), "events_per_pair": (0, 1000),
    "exemplar_strength": (0, 1), "ratios": (0, 1), "scale": (0, 1000), "learning_rates": (0, 1e3),
    "splits": (1, MAX_PAIRS), "step_seconds": (0, 1e6),
    "guidance_interval": (0, 1000), "seeds_at": (0, 1_000_000), "spread": (0, 65_536), "stretch": (0, 100),
}  # fmt: skip
"""Least and largest of numbers in a list or mapping; nuisances say their own."""
LIMITS: Mapping[str, tuple[float, float]] = (
    {name: (1, most) for name, most in COUNTS.items()} | {name: (0, most) for name, most in AMOUNTS.items()} | IN_LISTS
)


def check_limits(options: Any) -> None:
    """:class:`ConfigError` naming the first value beyond a bound, in ``options``, a dataclass, and its sections."""
    for name, value in _values(options, ""):
        _check(name, value)


def _values(options: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _values(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _check(name: str, value: Any) -> None:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        _check_number(name, value)
    elif isinstance(value, str | Path):
        text = str(value)
        require("\0" not in text, name, text[:80], "text without null characters")
        require(len(text) <= MAX_LETTERS, name, f"{text[:40]}…", f"up to {MAX_LETTERS} letters")
    elif isinstance(value, Mapping | list | tuple):
        require(len(value) <= MAX_ENTRIES, name, f"{len(value)} entries", f"up to {MAX_ENTRIES}")
        for entry in value:
            if isinstance(value, Mapping):
                _check(f"{name}.{str(entry)[:40]}", value[entry])
                entry = str(entry)
            _check(name, entry)


def _check_number(name: str, value: float) -> None:
    require(math.isfinite(value), name, value, "a finite number")
    own = next((part for part in reversed(name.split(".")) if part in LIMITS), "")
    least, most = LIMITS.get(own, (-1e18, 1e18))
    require(least <= value <= most, name, value, f"{least:.15g} to {most:.15g}")
