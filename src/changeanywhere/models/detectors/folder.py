"""Detectors on disk.

DETECTOR/detector.json        format, name; of a semantic change detector the legend of its classes
DETECTOR/model.safetensors    weights, under the names of the reference implementation
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from changeanywhere.errors import LegendError, ModelError
from changeanywhere.legend import Legend
from changeanywhere.models.checkpoint import read_safetensors
from changeanywhere.models.configuration import read_description
from changeanywhere.models.detectors import Detector, SemanticDetector, build_detector
from changeanywhere.models.info import find_folder
from changeanywhere.models.weights import load_weights
from changeanywhere.storage import atomic_folder

FORMAT, FORMAT_VERSION = "changeanywhere-detector", 1


def save_detector(net: Detector, name: str, folder: Path) -> None:
    """Write a detector folder, whole; ``name``: as in the registry."""
    weights = {key: value.contiguous() for key, value in net.state_dict().items()}
    description: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "name": name}
    if isinstance(net, SemanticDetector):
        description["legend"] = net.legend.to_dict()
    with atomic_folder(folder, "detector.json") as part:
        (part / "model.safetensors").write_bytes(save(weights))
        (part / "detector.json").write_text(json.dumps(description, indent=1) + "\n")


def load_detector(folder: Path) -> tuple[str, Detector]:
    """Name and network of a detector's folder or address; :class:`ModelError` naming it if it is not one."""
    folder = find_folder(folder)
    description = read_description(folder / "detector.json", FORMAT, FORMAT_VERSION)
    name = description.get("name")
    if not isinstance(name, str):
        raise ModelError(f"{folder}: not a readable detector (its name is {name!r:.80})")
    net = build_detector(name)
    if isinstance(net, SemanticDetector):
        try:
            net.adopt(Legend.from_dict(description.get("legend"), str(folder / "detector.json")))
        except LegendError as error:
            raise ModelError(f"{folder}: not a readable detector ({error})") from error
    file = folder / "model.safetensors"
    load_weights(net, read_safetensors(file), file, f"the detector {name}")
    return name, net.eval()
