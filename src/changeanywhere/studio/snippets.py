"""What the page paints, as a command and as Python to copy: the same pixels where the mask was drawn."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from changeanywhere.diffusion.options import Sampling

SHOWN = ("num_steps", "free_fraction", "guidance_scale", "exemplar_strength")


def settings_of(sampling: Sampling, defaults: Sampling) -> dict[str, Any]:
    """Those that are not the model's own."""
    return {name: getattr(sampling, name) for name in SHOWN if getattr(sampling, name) != getattr(defaults, name)}


def as_python(source: Path, model: str, settings: dict[str, Any], seed: int, out: str) -> str:
    """Five lines that paint the mask that the page gives, and hold the pair."""
    given = "".join(f", {name}={value!r}" for name, value in ({"model": model} | settings).items())
    place = str(source)
    return "\n".join([
        "import changeanywhere as ca",
        f'ca.generate(source={place!r}, masks_t2="masks_t2", out={out!r}, batch_size=1, seed={seed}{given})',
        f"pair = ca.load_pairs({out!r})[0]",
        "image_t1, image_t2 = pair.image_t1, pair.image_t2  # uint8 [H, W, 3]",
        "print(pair.key, pair.change_mask.mean())",
    ])  # fmt: skip


def as_command(source: Path, model: str, settings: dict[str, Any], seed: int, out: str) -> str:
    """The same as a command."""
    words = ["changeanywhere", "generate", "--source", str(source), "--masks-t2", "masks_t2", "--out", out]
    words += ["--batch-size", "1", "--seed", str(seed), "--model", model]
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
