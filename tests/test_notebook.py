"""docs/scenes.ipynb, executed cell by cell in a kernel that reaches no network: ``make test-notebook``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "scenes.ipynb"
GUARD = """
import socket

_connect = socket.socket.connect

def connect(self, address):
    local = not isinstance(address, tuple) or address[0] in ("127.0.0.1", "localhost", "::1")
    assert local, f"the notebook asked the network: {address}"
    return _connect(self, address)

socket.socket.connect = connect
"""
TILES = """
import re, urllib.request
from math import asinh, pi, radians, tan

def tile_at(url, longitude, latitude, zoom):
    count = 2**zoom
    x = int((longitude + 180) / 360 * count)
    y = int((1 - asinh(tan(radians(latitude))) / pi) / 2 * count)
    return url.replace("{z}", str(zoom)).replace("{x}", str(x)).replace("{y}", str(y))

split = next(control for control in swipe.controls if type(control).__name__ == "SplitMapControl")
middle = (west + east) / 2, (south + north) / 2
def own(layer):
    # Jupyter hands these addresses on to the server of this process.
    return re.sub(r"^/localtileserver-proxy/(\\d+)", r"http://127.0.0.1:\\1", layer.url)

sides = [own(layer) for layer in (split.left_layer, split.right_layer)]
seen = [urllib.request.urlopen(tile_at(url, *middle, 17)).read() for url in sides]
assert all(image.startswith(b"\\x89PNG") and len(image) > 5000 for image in seen) and seen[0] != seen[1]
urls = [own(layer) for layer in (*swipe.layers, *changed.layers) if hasattr(layer, "url")]
assert all(url.startswith("http://127.0.0.1") for url in [*urls, *sides]), urls
"""
"""Both sides of the swipe have pixels, of different dates, and no layer is of another server."""


@pytest.mark.notebook
def test_the_notebook_of_scenes_runs_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat: Any = pytest.importorskip("nbformat")
    nbclient: Any = pytest.importorskip("nbclient")
    pytest.importorskip("leafmap", reason="pip install 'changeanywhere[notebook]'")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in book.cells), "kept without outputs"
    for place, code in ((0, GUARD), (len(book.cells) + 1, TILES)):
        book.cells.insert(place, nbformat.v4.new_code_cell(code))
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.data for cell in book.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("application/vnd.jupyter.widget-view+json" in data for data in shown) >= 2
    assert json.loads((tmp_path / "scenes" / "ortho" / "events.geojson").read_text())["features"]
