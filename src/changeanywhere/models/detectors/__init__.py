"""Change detectors by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from changeanywhere.errors import ConfigError
from changeanywhere.models.detectors.base import Detector
from changeanywhere.models.detectors.bit import BIT
from changeanywhere.models.detectors.changeformer import ChangeFormer
from changeanywhere.models.detectors.changer import ChangerEx
from changeanywhere.models.detectors.fcsn import FCEF, FCSiam
from changeanywhere.models.detectors.lightcdnet import LightCDNet
from changeanywhere.models.detectors.snunet import SNUNet

DETECTORS: dict[str, Callable[[], Detector]] = {
    "fc_ef": FCEF,
    "fc_siam_conc": partial(FCSiam, concatenate=True),
    "fc_siam_diff": partial(FCSiam, concatenate=False),
    "snunet_c16": partial(SNUNet, 16),
    "snunet_c32": partial(SNUNet, 32),
    "bit_r18": BIT,
    "changer_ex_r18": ChangerEx,
    "changeformer_mit-b0": partial(ChangeFormer, 32),
    "changeformer_mit-b1": partial(ChangeFormer, 64),
    "lightcdnet_s": partial(LightCDNet, "s"),
    "lightcdnet_b": partial(LightCDNet, "b"),
    "lightcdnet_l": partial(LightCDNet, "l"),
}


def build_detector(name: str) -> Detector:
    """A detector with random weights; :class:`ConfigError` for an unknown name."""
    if name not in DETECTORS:
        raise ConfigError(f"unknown detector {name!r}; allowed: {', '.join(DETECTORS)}")
    return DETECTORS[name]()


__all__ = ["DETECTORS", "Detector", "build_detector"]
