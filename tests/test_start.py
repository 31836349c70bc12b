"""What the first pair waits for: networks are imported without the library's other thousand modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PAINTS = """
import sys
import numpy as np
import changeanywhere as ca
pipe = ca.ChangePairPipeline.from_pretrained("mini", device="cpu")
mask, change = np.ones((256, 256), np.uint8), np.zeros((256, 256), bool)
change[64:96, 64:96] = True
pipe(np.zeros((256, 256, 3), np.uint8), mask, change, num_steps=2)
import changeanywhere.generation.painting
print(*sorted(sys.modules))
"""
WHOLE = """
import changeanywhere.models.borrowed as borrowed
import diffusers, scipy.stats
from diffusers.models.unets import UNet2DModel
assert diffusers.UNet2DModel is UNet2DModel is borrowed.UNet2DModel and diffusers.VQModel is borrowed.VQModel
assert diffusers.DPMSolverMultistepScheduler is borrowed.DPMSolverMultistepScheduler
assert issubclass(diffusers.UNet2DConditionModel, borrowed.ModelMixin)
assert 0.4 < scipy.stats.beta(2, 2).mean() < 0.6
import torch._dynamo
import importlib.metadata
known = diffusers.utils.import_utils._package_map
assert "_found" not in vars(known), "nobody asked"
assert known["diffusers"] == ["diffusers"] and dict(known) == importlib.metadata.packages_distributions()
"""


def printed(code: str, *paths: Path) -> str:
    """By a fresh interpreter that finds its modules in ``paths`` first."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, paths), *filter(None, sys.path)])}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """Where transformers and peft are installed, as far as anybody looks who does not import them."""
    for name, version in (("transformers", "5.0.0"), ("peft", "0.19.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('{name} is imported')\n")
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return tmp_path


def test_an_open_model_paints_without_what_it_never_uses(beside: Path) -> None:
    modules = set(printed(PAINTS, beside).split())
    assert "changeanywhere.models.borrowed" in modules and "diffusers.models.unets.unet_2d" in modules
    assert not modules & {"torch._dynamo", "torch._inductor", "sympy", "scipy.stats._stats_py", "transformers", "peft"}
    assert not [name for name in modules if name.startswith("diffusers.loaders.")]
    assert len([name for name in modules if name.startswith("diffusers.models.transformers.")]) < 6
    assert len([name for name in modules if name.startswith("diffusers.models.autoencoders.")]) < 6


def test_whoever_asks_for_the_rest_gets_it_with_the_same_classes() -> None:
    printed(WHOLE)
