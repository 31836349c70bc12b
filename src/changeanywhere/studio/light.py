"""Gradio, imported in half of its time.

At every import it writes stubs for editors (``.pyi``) beside its own files, class by class: two of five seconds, and
writing into an installed package. Nobody edits here; what else it does stays as it is.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from changeanywhere.errors import ConfigError

WRITES_STUBS = "gradio.component_meta"


class _WithoutStubs(MetaPathFinder, Loader):
    """Finds that one module as everybody does, and takes its writing of stubs away once it is executed."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """None for every other module."""
        spec = PathFinder.find_spec(name, path, target) if name == WRITES_STUBS else None
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As usual."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As usual, but for that."""
        self._loader.exec_module(module)
        vars(module)["create_or_modify_pyi"] = lambda *_: None


def import_gradio(uploads: str) -> Any:
    """The library, told to ask nobody on the network and to put what is uploaded into the folder ``uploads``.
    :class:`ConfigError` where it is not installed, or of an edition that the page is not made for."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads, "HF_HUB_OFFLINE": "1"}
    finder = _WithoutStubs()
    sys.meta_path.insert(0, finder)
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(
            f"the studio needs Gradio, which cannot be imported ({error}); pip install 'changeanywhere[studio]'"
        ) from error
    finally:
        sys.meta_path.remove(finder)
    major = gradio.__version__.partition(".")[0]
    if major != "6":
        raise ConfigError(f"Gradio is {gradio.__version__}; allowed: 6; pip install 'changeanywhere[studio]'")
    return gradio
