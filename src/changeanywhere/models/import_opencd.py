"""``changeanywhere import opencd``: checkpoints of Open-CD / mmengine for the detectors of this package.

A ``.pth`` file with ``state_dict`` (or the weights alone). What mmengine stores beside the weights (its training log,
as objects of its own classes) is passed over, and nothing of it is run. Names and shapes tell which detector it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from changeanywhere.errors import ModelError
from changeanywhere.models.checkpoint import read_weights_file
from changeanywhere.models.detectors import DETECTORS, Detector, build_detector
from changeanywhere.models.weights import load_weights

IGNORED_PREFIXES = ("data_preprocessor.",)
OUTER_PREFIXES = ("model.", "net.", "network.", "detector.")
"""What trainers of other families put before every name."""
ALIKE = 0.5
"""Share of tensors from which on a file is taken for a detector's, and what is wrong with it is named."""


def import_opencd(checkpoint: Path) -> tuple[str, Detector]:
    """Name and network; :class:`ModelError` naming what is missing or does not fit."""
    return detector_from_state(read_weights_file(checkpoint), str(checkpoint))


def detector_from_opencd(name: str, state_dict: Mapping[str, Tensor], where: str = "") -> Detector:
    """The detector ``name`` with weights under Open-CD's names; :class:`ModelError` naming what does not fit."""
    net = build_detector(name)
    load_weights(net, _cleaned(state_dict), where or name, f"the detector {name}")
    return net.eval()


def detector_from_state(state_dict: Mapping[str, Tensor], where: str) -> tuple[str, Detector]:
    """Finds the detector whose names and shapes the weights have."""
    given = {(key, tuple(value.shape)) for key, value in _cleaned(state_dict).items()}
    shared: dict[str, float] = {}
    for name in DETECTORS:
        with torch.device("meta"):
            wanted = {(key, tuple(value.shape)) for key, value in build_detector(name).state_dict().items()}
        shared[name] = len(wanted & given) / len(wanted | given)
    likeliest = max(shared, key=lambda name: shared[name])
    if shared[likeliest] < ALIKE:
        raise ModelError(f"{where}: weights of none of the detectors {', '.join(DETECTORS)}")
    return likeliest, detector_from_opencd(likeliest, state_dict, where)


def _cleaned(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of parallel training, the preprocessor's constants, and the copies that mmcv's averaging keeps
    (it puts the averaged weights under the usual names and the others under ``ema_`` with underscores)."""
    named = {key.removeprefix("module."): value for key, value in state_dict.items()}
    for prefix in OUTER_PREFIXES:
        if named and all(key.startswith(prefix) for key in named):
            named = {key.removeprefix(prefix): value for key, value in named.items()}
    copies = {"ema_" + key.replace(".", "_") for key in named}
    return {key: value for key, value in named.items() if not key.startswith(IGNORED_PREFIXES) and key not in copies}
