"""Names of networks that can be built, for those who ask before one is: no torch here."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

DETECTORS = (
    *("fc_ef", "fc_siam_conc", "fc_siam_diff", "snunet_c16", "snunet_c32", "bit_r18", "changer_ex_r18"),
    *("changeformer_mit-b0", "changeformer_mit-b1", "lightcdnet_s", "lightcdnet_b", "lightcdnet_l", "siam_unet_lite0"),
    "semantic_unet_lite0",
)
"""Those of this package; nobody else takes these names."""
SEMANTIC = ("semantic_unet_lite0",)
"""Of these, those that learn the classes of both dates."""
BACKBONES = ("lite0", "lite1", "unet")
"""Of a segmenter."""
GROUP = "changeanywhere.detectors"
"""Entry points by which other packages register detectors."""
ADAPTER = "changeanywhere.models.detectors.torchgeo"
"""Module of the change models of torchgeo."""


def detector_names() -> list[str]:
    """All names of detectors, the package's own first."""
    return [*DETECTORS, *outside_detectors()]


def outside_detectors() -> dict[str, EntryPoint]:
    """Entry points; torchgeo's, which this package adapts, where torchgeo is there."""
    found = {entry.name: entry for entry in sorted(entry_points(group=GROUP)) if entry.name not in DETECTORS}
    if find_spec("torchgeo") is None:
        found = {name: entry for name, entry in found.items() if entry.module != ADAPTER}
    return found
