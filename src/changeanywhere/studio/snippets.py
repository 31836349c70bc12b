"""What the page paints, as a command and as Python to copy: the same pixels where the mask was drawn."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from changeanywhere.diffusion.options import Sampling

MASKS = "masks_t2"
"""Folder that the mask is saved in."""
SHOWN = ("num_steps", "free_fraction", "guidance_scale", "exemplar_strength")


def settings_of(sampling: Sampling, defaults: Sampling) -> dict[str, Any]:
    """Those that are not the model's own."""
    return {name: getattr(sampling, name) for name in SHOWN if getattr(sampling, name) != getattr(defaults, name)}


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Flags of options, word by word."""
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def as_python(options: Mapping[str, Any], out: str) -> str:
    """Five lines that paint the mask that the page gives, and hold the pair."""
    given = ", ".join(f"{name}={value!r}" for name, value in _whole(options, out).items())
    return "\n".join([
        "import changeanywhere as ca",
        f"ca.generate({given})",
        f"pair = ca.load_pairs({out!r})[0]",
        "image_t1, image_t2 = pair.image_t1, pair.image_t2  # uint8 [H, W, 3]",
        "print(pair.key, pair.change_mask.mean())",
    ])  # fmt: skip


def as_command(options: Mapping[str, Any], out: str) -> str:
    """The same as a command."""
    return shlex.join(["changeanywhere", "generate", *as_words(_whole(options, out))])


def _whole(options: Mapping[str, Any], out: str) -> dict[str, Any]:
    """``options`` say what the page was opened with, and how it painted."""
    return {"source": options["source"], "masks_t2": MASKS, "out": out, "batch_size": 1, **options}
