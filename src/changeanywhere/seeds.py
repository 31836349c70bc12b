"""Every random stream of the package, by name, in one table.

A stream is numpy's ``default_rng([seed, number, *place])``. To numpy missing numbers are zeros: a stream without one
and place 0 of one whose number is 0 begin alike (``plan.order``, ``evaluation.kernel``); no result has two such. What
is drawn at a place (a step, a row, a pair) does not depend on what was drawn before. Noise of the diffusion is a
function of seed, purpose, call and place (``diffusion/place_noise``); it does not depend on batch, order or device.
"""

from __future__ import annotations

import hashlib

import numpy as np

NUMBERS: dict[str, tuple[int, ...]] = {
    "plan.order": (),  # in which order tiles are visited
    "plan.bank": (17,),  # which shapes a bank keeps of a large class
    "plan.targets": (23,),  # which place in the plan gets which request
    "pair.events": (),  # the events of a pair, of the pair's own seed
    "pair.finish": (41,),  # order of the dates, nuisances
    "pair.donors": (53,),  # other tiles whose pixels are pasted
    "pair.exemplar": (59,),  # other tiles whose ground is an exemplar, strengths drawn from a range
    "pair.tail": (71,),  # a free tail drawn from a range
    "scene.events": (67,),  # the event of a place in a scene's plan: window, kind, instance
    "training.order": (1,),  # tiles of an epoch
    "training.crop": (2,),  # crop and view of a row of a step
    "training.view": (3,),  # encoded views of a step
    "training.decoded": (4,),  # which crops of a step pass which first stage
    "training.photometric": (6,),  # colours, sharpness and noise of a segmenter's crop in a row of a step
    "training.augment": (5,),  # crop, flip and colours of a pair in a row of a step
    "training.unlabelled": (7,),  # view and changed colours of a pair without a label in a row of a step
    "evaluation.kernel": (0,),  # resampling of a kernel distance
    "evaluation.mean": (1,),  # resampling of a mean
    "evaluation.share": (2,),  # resampling of a share
    "evaluation.masks": (3,),  # which masks are painted
    "evaluation.probe": (4,),  # folds of the probe
    "evaluation.objects": (5,),  # which objects are looked at, and which real ones beside them
    "benchmark.held_out": (),  # pairs held out for validation, the same for every seed of a protocol
    "benchmark.subset": (31,),  # which pairs are the labelled share
    "benchmark.stage": (37,),  # the seed of a round that goes on from the one before
    "benchmark.bootstrap": (61,),  # which seeds and test scenes a difference is measured on again
}
STEPS: dict[str, int] = {
    "training.noise": 1,  # timesteps and noise of the denoiser, restarted codes of the first stage
    "training.jitter": 64,  # brightness and contrast of a segmenter's crops
    "training.dropout": 64,  # torch's own stream in a detector, by process
    "training.guidance": 1024,  # which masks of a step are another tile's in a box
}
"""Streams of torch that a step of a training draws from: the distance between two steps' seeds."""
HELD_OUT_SEED = 47


def stream(name: str, seed: int, *place: int) -> np.random.Generator:
    """The stream ``name`` of ``seed`` at ``place``."""
    path = (*NUMBERS[name], *place)
    return np.random.default_rng([seed, *path] if path else seed)


def step_seed(name: str, seed: int, step: int, rank: int = 0) -> int:
    """Seed of torch's stream ``name`` at a step; networks begin from ``seed`` itself."""
    return (seed * 1_000_003 + step) * STEPS[name] + rank


def pair_seed(seed: int, key: str, index: int) -> int:
    """Seed of pair ``index`` of tile ``key``, 63 bits: the same on every machine, in any order of pairs."""
    return _number(f"{seed}\0{key}\0{index}")


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
