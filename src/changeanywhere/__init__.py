"""ChangeAnywhere: single-date land-cover data in, change-detection training pairs out.

Heavy imports (torch, diffusers) happen at first use of the name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from changeanywhere.machine import quiet_threads

if TYPE_CHECKING:
    from changeanywhere.api import generate, load_detector, load_source
    from changeanywhere.diffusion.options import Sampling
    from changeanywhere.diffusion.pipeline import ChangePairPipeline
    from changeanywhere.errors import ChangeAnywhereError, InputError
    from changeanywhere.events import EventOptions, simulate
    from changeanywhere.legend import Legend, load_legend
    from changeanywhere.models.detectors import Detector, build_detector
    from changeanywhere.models.import_opencd import detector_from_opencd
    from changeanywhere.pairs import load_pairs, stream_pairs
    from changeanywhere.sample import ChangeEvent, ChangePair, ChangePlan, SourceSample

quiet_threads()  # before anything here imports torch, which reads it once
__version__ = version("changeanywhere")

_HOMES = {
    "ChangeAnywhereError": "errors",
    "ChangeEvent": "sample",
    "ChangePair": "sample",
    "ChangePairPipeline": "diffusion.pipeline",
    "ChangePlan": "sample",
    "Detector": "models.detectors",
    "EventOptions": "events",
    "InputError": "errors",
    "Legend": "legend",
    "Sampling": "diffusion.options",
    "SourceSample": "sample",
    "build_detector": "models.detectors",
    "detector_from_opencd": "models.import_opencd",
    "generate": "api",
    "load_detector": "api",
    "load_legend": "legend",
    "load_pairs": "pairs",
    "load_source": "api",
    "stream_pairs": "pairs",
    "simulate": "events",
}

__all__ = [
    "ChangeAnywhereError",
    "ChangeEvent",
    "ChangePair",
    "ChangePairPipeline",
    "ChangePlan",
    "Detector",
    "EventOptions",
    "InputError",
    "Legend",
    "Sampling",
    "SourceSample",
    "__version__",
    "build_detector",
    "detector_from_opencd",
    "generate",
    "load_detector",
    "load_legend",
    "load_pairs",
    "load_source",
    "simulate",
    "stream_pairs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'changeanywhere' has no attribute {name!r}")
    return getattr(import_module(f"changeanywhere.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
