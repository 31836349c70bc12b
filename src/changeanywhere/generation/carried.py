"""Models that travel with a job: read once, where the command was given, unpacked on any node while they are loaded.

So nodes need no folder of models in common, and a bucket is asked for a model once. What the package holds stays there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from changeanywhere.folders import files_below
from changeanywhere.generation.job import Job
from changeanywhere.models.info import EMBEDDED_MODEL, EMBEDDED_SEGMENTER, find_folder
from changeanywhere.painters.registry import OWN
from changeanywhere.regular import read_regular

Files = dict[str, npt.NDArray[np.uint8]]
"""Of a model, by name below its folder. Arrays, since Ray shares those without a copy."""
OURS = (".json", ".safetensors")
"""What our own models are read from."""


def packed(job: Job) -> dict[str, Files]:
    """What the job's painter, critic and filter are read from, by their names in the job: of our own kinds, which are
    read once and not looked at again, and none of the package."""
    assert job.painter is not None
    places = {name: str(place) for name, place in _places(job).items() if place}
    if job.painter.method not in OWN:
        del places["model"]
    return {name: _read(place) for name, place in places.items() if place not in (EMBEDDED_MODEL, EMBEDDED_SEGMENTER)}


@contextmanager
def unpacked(job: Job, models: Mapping[str, Files]) -> Iterator[Job]:
    """The job, to build its painter from; its models lie in a folder that goes when the context ends."""
    with tempfile.TemporaryDirectory(prefix="changeanywhere-model-") as folder:
        named, places = _places(job), dict[str, Path]()
        for name, files in models.items():
            top = Path(folder) / name / Path(str(named[name])).name
            for file, content in files.items():
                place = top / file
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content.data)
            places[name] = top
        yield _moved(job, places)


def _places(job: Job) -> dict[str, Any]:
    assert job.painter is not None
    critic, reader = job.painter.critic.model, job.finishing.filter.model
    return {"model": job.painter.model, "critic": critic, "filter": reader}


def _moved(job: Job, places: Mapping[str, Path]) -> Job:
    assert job.painter is not None
    painter, finishing = job.painter, job.finishing
    if "model" in places:
        painter = replace(painter, model=str(places["model"]))
    if "critic" in places:
        painter = replace(painter, critic=replace(painter.critic, model=places["critic"]))
    if "filter" in places:
        finishing = replace(finishing, filter=replace(finishing.filter, model=places["filter"]))
    return replace(job, painter=painter, finishing=finishing).opened_with(job.tiles)


def _read(place: str) -> Files:
    folder = find_folder(place)
    files = [file for file in files_below(folder) if file.suffix in OURS]
    return {file.relative_to(folder).as_posix(): np.frombuffer(read_regular(file), np.uint8) for file in files}
