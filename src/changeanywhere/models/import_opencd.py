"""``changeanywhere import opencd``: checkpoints of Open-CD / mmengine for the detectors of this package.

A ``.pth`` file with ``state_dict`` (or the weights alone), read with ``torch.load(weights_only=True)``. What mmengine
stores beside the weights (its training log, as objects of its own classes) is let through as empty stand-ins: nothing
of it is executed. Names and shapes tell which detector it is.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from changeanywhere.errors import ModelError
from changeanywhere.models.detectors import DETECTORS, Detector, build_detector

LOG_CLASSES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "__builtin__.getattr",
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
    ),
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{name}DType" for name in ("Float64", "Float32", "Int64", "Int32", "Bool")),
)
IGNORED_PREFIXES = ("data_preprocessor.",)


class _Nothing:
    """Stands for an object of the training log; whatever it is made of is dropped."""

    def __new__(cls, *_arguments: object, **_named: object) -> _Nothing:
        return object.__new__(cls)

    def __init__(self, *_arguments: object, **_named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def import_opencd(checkpoint: Path) -> tuple[str, Detector]:
    """Name and network; :class:`ModelError` naming what is missing or does not fit."""
    return detector_from_state(_read(checkpoint), str(checkpoint))


def detector_from_opencd(name: str, state_dict: Mapping[str, Tensor]) -> Detector:
    """The detector ``name`` with weights under Open-CD's names; :class:`ModelError` naming what does not fit."""
    net = build_detector(name)
    wanted = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    given = _cleaned(state_dict)
    for key, shape in wanted.items():
        if key not in given:
            raise ModelError(f"{name}: the checkpoint has no {key}")
        if tuple(given[key].shape) != shape:
            raise ModelError(f"{name}: {key} is {tuple(given[key].shape)}, the detector has {shape}")
    foreign = sorted(set(given) - set(wanted))
    if foreign:
        raise ModelError(f"{name}: the detector has no {foreign[0]}")
    net.load_state_dict(given)
    return net.eval()


def detector_from_state(state_dict: Mapping[str, Tensor], where: str) -> tuple[str, Detector]:
    """Finds the detector whose names and shapes the weights have."""
    given = {key: tuple(value.shape) for key, value in _cleaned(state_dict).items()}
    for name in DETECTORS:
        with torch.device("meta"):
            wanted = {key: tuple(value.shape) for key, value in build_detector(name).state_dict().items()}
        if wanted == given:
            return name, detector_from_opencd(name, state_dict)
    raise ModelError(f"{where}: weights of none of the detectors {', '.join(DETECTORS)}")


def _cleaned(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of parallel training and without the preprocessor's constants."""
    named = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return {key: value for key, value in named.items() if not key.startswith(IGNORED_PREFIXES)}


def _read(checkpoint: Path) -> Mapping[str, Tensor]:
    stand_ins: list[Any] = [(_Nothing, name) for name in LOG_CLASSES]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{checkpoint}: not a readable checkpoint ({reason})") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{checkpoint}: has no state_dict of tensors")
    return state
