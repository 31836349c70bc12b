"""Detectors on disk.

DETECTOR/detector.json        format, name; of a semantic change detector the legend of its classes. May say what it is
                              for and not for (about: a line) and the ground sampling that it knows (gsd_m: finest and
                              coarsest, in metres); one that is trained on from it says neither
DETECTOR/model.safetensors    weights, under the names of the reference implementation
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from changeanywhere.errors import LegendError, ModelError
from changeanywhere.legend import Legend
from changeanywhere.models.checkpoint import read_safetensors
from changeanywhere.models.configuration import Rule, check_rules, listing, or_null, read_description, real
from changeanywhere.models.detectors import Detector, SemanticDetector, build_detector
from changeanywhere.models.info import EMBEDDED_DETECTOR, find_detector
from changeanywhere.models.weights import load_weights
from changeanywhere.storage import atomic_folder
from changeanywhere.text import one_line

FORMAT, FORMAT_VERSION = "changeanywhere-detector", 1
MOST_LETTERS = 300
"""Of what a detector may say of itself."""
PURPOSE: Mapping[str, Rule] = {
    "about": (
        lambda v: v is None or (isinstance(v, str) and len(v) <= MOST_LETTERS),
        f"{MOST_LETTERS} letters at most",
    ),
    "gsd_m": or_null(listing(real(0, 1e6), 2, 2)),
}


def save_detector(net: Detector, name: str, folder: Path) -> None:
    """Write a detector folder, whole; ``name``: as in the registry."""
    weights = {key: value.contiguous() for key, value in net.state_dict().items()}
    description: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "name": name}
    if isinstance(net, SemanticDetector):
        description["legend"] = net.legend.to_dict()
    with atomic_folder(folder, "detector.json") as part:
        (part / "model.safetensors").write_bytes(save(weights))
        (part / "detector.json").write_text(json.dumps(description, indent=1) + "\n")


@dataclass(frozen=True)
class Purpose:
    """What a detector's folder says of what it is for; None: not said."""

    about: str | None = None
    """A line."""
    gsd_m: tuple[float, float] | None = None
    """Finest and coarsest ground sampling that it knows, in metres."""


def read_purpose(folder: Path) -> Purpose:
    """Of a detector as :func:`load_detector` takes it; :class:`ModelError` naming what is not as it must be."""
    file = _existing(folder) / "detector.json"
    description = read_description(file, FORMAT, FORMAT_VERSION)
    said = check_rules(description, PURPOSE, file)
    about, gsd = said.get("about"), said.get("gsd_m")
    if gsd is not None and gsd[0] > gsd[1]:
        raise ModelError(f"{file}: gsd_m is {gsd}; allowed: the finer first")
    return Purpose(one_line(about) if about else None, None if gsd is None else (float(gsd[0]), float(gsd[1])))


def load_detector(folder: Path) -> tuple[str, Detector]:
    """Name and network of a detector's folder or address, or of the package's ``mini-detector``, in float32 whatever
    its file holds; :class:`ModelError` naming it if it is not one."""
    folder = _existing(folder)
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


def _existing(name_or_folder: Path) -> Path:
    folder = find_detector(name_or_folder)
    if not folder.exists():
        raise ModelError(f"{folder}: no such detector; allowed: {EMBEDDED_DETECTOR}, or a folder or address of one")
    return folder
