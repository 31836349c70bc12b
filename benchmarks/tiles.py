"""The options by which the scripts of this folder find their tiles."""

from __future__ import annotations

import argparse
from pathlib import Path

from changeanywhere.models.folder import find_model, load_model
from changeanywhere.sources import Source, SourceOptions, open_source


def add_source(parser: argparse.ArgumentParser, flag: str = "--source") -> None:
    """``--source`` (or ``flag``) and ``--licences``."""
    parser.add_argument(flag, type=Path, required=True, help="folder of real tiles that nothing was trained on")
    parser.add_argument("--licences", nargs="*", help="only tiles under these licences")


def tile_size_of(model: str) -> int:
    """Height and width in px of the tiles that a model (mini or a folder) was trained on."""
    return load_model(find_model(model)).tile_size


def open_tiles(folder: Path, licences: list[str] | None, tile_size: int) -> Source:
    """The tiles of these licences; default: all."""
    options = SourceOptions(tile_size=tile_size, licences=tuple(licences) if licences else None)
    return open_source(folder, options)
