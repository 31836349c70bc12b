"""What this package takes of diffusers, imported without the rest of it: every other file asks here.

The packages in which its networks lie import all of their kind: sixty transformers, forty autoencoders, and through
their loaders ``transformers`` and ``peft`` wherever they are installed. That takes seconds before the first pair and is
never used here. So while the two networks are imported, these packages are empty ones that know where their files lie;
then they are gone again, and whoever asks for them gets them whole, with the same classes.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader, find_spec
from types import ModuleType
from typing import Any

CROWDED = tuple(
    f"diffusers.{name}" for name in ("models.autoencoders", "models.transformers", "models.unets", "quantizers")
)
"""Packages that import everything that is in them."""
COMPILER = "torch._dynamo"
"""Half of torch's own start; diffusers marks classes for it where it can be had, and does without where it cannot."""
STATISTICS = "scipy.stats"
"""As slow; a solver takes the beta distribution from it, for a spacing of timesteps that nobody asks for here."""


@contextmanager
def _emptied(names: tuple[str, ...]) -> Iterator[None]:
    """These packages without what they import themselves; those that are imported already stay as they are."""
    made = [name for name in names if name not in sys.modules]
    try:
        for name in made:
            spec = find_spec(name)
            assert spec is not None and spec.submodule_search_locations is not None
            module = ModuleType(name)
            module.__path__, module.__spec__, module.__package__ = list(spec.submodule_search_locations), spec, name
            sys.modules[name] = module
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)


@contextmanager
def _missing(name: str) -> Iterator[None]:
    """A module that is not imported yet cannot be."""
    absent: Any = None  # what the import statement takes for "there is none"
    put = name not in sys.modules
    if put:
        sys.modules[name] = absent
    try:
        yield
    finally:
        if put:
            del sys.modules[name]


class _AtFirstUse(MetaPathFinder):
    """A module whose import waits until something of it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """None for every other module."""
        spec = PathFinder.find_spec(name, path, target) if name == self._name else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)


class _Distributions(Mapping[str, list[str]]):
    """Which distributions bring a module, found out when somebody asks: it takes all files of all of them."""

    @cached_property
    def _found(self) -> Mapping[str, list[str]]:
        return _all_distributions()

    def __getitem__(self, name: str) -> list[str]:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


_all_distributions = importlib.metadata.packages_distributions


@contextmanager
def _distributions_when_asked() -> Iterator[None]:
    """Diffusers makes that list as it is imported, and looks up in it a few modules that most people do not have."""
    importlib.metadata.packages_distributions = _Distributions
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = _all_distributions


try:
    with _distributions_when_asked(), _missing(COMPILER), _emptied(CROWDED), _AtFirstUse(STATISTICS):
        import diffusers.quantizers.auto as _auto
        import diffusers.quantizers.base as _base

        # All that the networks want of that package, which without this would import transformers.
        sys.modules["diffusers.quantizers"].__dict__.update(
            DiffusersAutoQuantizer=_auto.DiffusersAutoQuantizer, DiffusersQuantizer=_base.DiffusersQuantizer
        )
        from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
        from diffusers.models.autoencoders.vq_model import VQModel
        from diffusers.models.modeling_utils import ModelMixin
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.unets.unet_2d import UNet2DModel
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
except ImportError:  # an edition whose networks need what is kept away here
    from diffusers import (
        ConfigMixin,
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        ModelMixin,
        UNet2DModel,
        VQModel,
    )
    from diffusers.configuration_utils import FrozenDict, register_to_config
    from diffusers.models.resnet import ResnetBlock2D

__all__ = [
    "ConfigMixin",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "FrozenDict",
    "ModelMixin",
    "ResnetBlock2D",
    "UNet2DModel",
    "VQModel",
    "register_to_config",
]
