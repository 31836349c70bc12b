"""The functions of the Python API that do what a command does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from changeanywhere.shipped import find_source
from changeanywhere.sources import Source, SourceOptions, open_source

if TYPE_CHECKING:
    from changeanywhere.generation.generate import GenerateReport
    from changeanywhere.models.detectors import Detector


def load_source(folder: str | Path, **options: Any) -> Source:
    """Open single-date tiles (a map-style dataset of ``SourceSample``); ``options``: fields of ``SourceOptions``.
    ``examples``: the tiles that come with the package, where no folder of that name lies here."""
    return open_source(Path(find_source(folder)), SourceOptions(**options))


def generate(source: str | Path, out: str | Path, **options: Any) -> GenerateReport:
    """What ``changeanywhere generate`` does; ``options``: fields of ``GenerateOptions`` (num_pairs, seed, …)."""
    from changeanywhere.generation.generate import generate as run
    from changeanywhere.generation.options import GenerateOptions
    from changeanywhere.progress import shown_progress

    for name in ("legend_map", "masks_t2"):
        if options.get(name) is not None:
            options[name] = Path(options[name])
    with shown_progress() as progress:
        return run(GenerateOptions(source=Path(find_source(source)), out=Path(out), **options), progress)


def load_detector(folder: str | Path) -> Detector:
    """A trained or imported change detector, in evaluation mode; :class:`ModelError` for any other folder."""
    from changeanywhere.models.detectors.folder import load_detector as load

    return load(Path(folder))[1]
