"""Detectors on disk.

DETECTOR/detector.json        format, name
DETECTOR/model.safetensors    weights, under the names of the reference implementation
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from changeanywhere.errors import ChangeAnywhereError, ModelError
from changeanywhere.models.detectors import Detector, build_detector
from changeanywhere.storage import atomic_folder

FORMAT, FORMAT_VERSION = "changeanywhere-detector", 1


def save_detector(net: Detector, name: str, folder: Path) -> None:
    """Write a detector folder, whole; ``name``: as in the registry."""
    weights = {key: value.contiguous() for key, value in net.state_dict().items()}
    description = {"format": FORMAT, "format_version": FORMAT_VERSION, "name": name}
    with atomic_folder(folder, "detector.json") as part:
        (part / "model.safetensors").write_bytes(save(weights))
        (part / "detector.json").write_text(json.dumps(description, indent=1) + "\n")


def load_detector(folder: Path) -> tuple[str, Detector]:
    """Name and network of a detector folder; :class:`ModelError` naming it if it is not one."""
    try:
        description = json.loads((folder / "detector.json").read_text())
        if (description["format"], description["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise ModelError(f"{folder}: not a detector of format {FORMAT} {FORMAT_VERSION}")
        net = build_detector(description["name"])
        net.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ChangeAnywhereError):
            raise
        raise ModelError(f"{folder}: not a readable detector ({' '.join(str(error).split())[:150]})") from error
    return description["name"], net.eval()
