"""Change detectors by name: those of this package, and those that other packages register.

A package registers one under the entry point group ``changeanywhere.detectors``: its name, and a class (or another
callable without arguments) that gives a :class:`Detector`. In its pyproject.toml::

    [project.entry-points."changeanywhere.detectors"]
    my_detector = "my_package:MyDetector"
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from changeanywhere.errors import ConfigError
from changeanywhere.help import among
from changeanywhere.legend import Legend
from changeanywhere.models.detectors.base import Detector
from changeanywhere.models.detectors.bit import BIT
from changeanywhere.models.detectors.changeformer import ChangeFormer
from changeanywhere.models.detectors.changer import ChangerEx
from changeanywhere.models.detectors.fcsn import FCEF, FCSiam
from changeanywhere.models.detectors.lightcdnet import LightCDNet
from changeanywhere.models.detectors.semantic import SemanticDetector, SemanticUNetLite0
from changeanywhere.models.detectors.siam_unet import SiamUNetLite0
from changeanywhere.models.detectors.snunet import SNUNet
from changeanywhere.models.names import detector_names, outside_detectors
from changeanywhere.models.outside import built

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
    "siam_unet_lite0": SiamUNetLite0,
    "semantic_unet_lite0": SemanticUNetLite0,
}
"""Those of :data:`changeanywhere.models.names.DETECTORS`."""


def names_classes(name: str) -> bool:
    """Whether a detector of this package is a :class:`SemanticDetector`, without building it."""
    made = DETECTORS.get(name)
    return isinstance(made, type) and issubclass(made, SemanticDetector)


def build_detector(name: str, legend: Legend | None = None) -> Detector:
    """A detector with random weights; :class:`ConfigError` for an unknown name, or one whose package fails.

    ``legend``: the classes of a :class:`SemanticDetector` (default: ``mini``); detectors of change alone have none.
    """
    net = _built(name)
    if legend is not None:
        if not isinstance(net, SemanticDetector):
            raise ConfigError(f"{name}: detects change alone; allowed: no legend")
        net.adopt(legend)
    return net


def _built(name: str) -> Detector:
    if name in DETECTORS:
        return DETECTORS[name]()
    outside = outside_detectors()
    if name.startswith("torchgeo_") and name not in outside and find_spec("torchgeo") is None:
        raise ConfigError(f"detector {name!r} is torchgeo's, which is not installed; pip install torchgeo")
    if name not in outside:
        raise ConfigError(f"unknown detector {name!r}; allowed: {among(name, detector_names())}")
    return built("detector", outside[name], Detector)  # type: ignore[type-abstract]


__all__ = ["DETECTORS", "Detector", "SemanticDetector", "build_detector", "detector_names", "names_classes"]
