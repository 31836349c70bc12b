"""Numbers of a training for the services that people watch, through accelerate's trackers.

``metrics.jsonl`` and TensorBoard's files are written in any case. A service that is lost takes no step from a training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from changeanywhere.documents import DocumentError, read_json_object
from changeanywhere.errors import ConfigError
from changeanywhere.storage import atomic_write
from changeanywhere.terminal import say
from changeanywhere.text import one_line
from changeanywhere.training.sections import TRACKERS

PROJECT = "changeanywhere"
RUNS = "tracking.json"
"""Tracker → the run that this folder's numbers belong to, so that a resumed training goes on in it."""


class _Service(Protocol):
    def start(self) -> None: ...
    def store_init_configuration(self, values: dict[str, Any]) -> None: ...
    def log(self, values: dict[str, float], step: int) -> None: ...
    def finish(self) -> None: ...


class Tracking:
    """The services of one training; of several processes the main one has it."""

    def __init__(self, names: Sequence[str], folder: Path, stage: str, recipe: Mapping[str, Any]) -> None:
        """Begin, or go on with, a run in each of ``names`` (``sections.TRACKERS``); ``recipe``: what it is filed under.

        :class:`ConfigError` if one of them is not installed or does not let us in.
        """
        self._services: dict[str, _Service] = {}
        runs = _runs(folder / RUNS) if names else {}
        for name in names:
            service, settings = _service(name, folder, stage, runs.get(name)), dict(_flat(recipe))
            try:
                service.start()
                if name not in runs:
                    service.store_init_configuration(settings)
                runs[name] = _run_of(name, service)
            except Exception as error:  # theirs: of a network, a login, a version
                self.close()
                raise ConfigError(f"track is {name!r}, which does not begin ({_short(error)})") from error
            self._services[name] = service
        if names:
            atomic_write(folder / RUNS, (json.dumps(runs, indent=1) + "\n").encode())

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at ``step``. A service that fails is said and left alone."""
        for name, service in list(self._services.items()):
            try:
                service.log(dict(values), step=step)
            except Exception as error:
                del self._services[name]
                say(f"{name}: lost ({_short(error)}); training goes on, metrics.jsonl has every number", error=True)

    def close(self) -> None:
        """The runs have ended."""
        for name, service in self._services.items():
            try:
                service.finish()
            except Exception as error:
                say(f"{name}: did not end in order ({_short(error)})", error=True)
        self._services.clear()


def _service(name: str, folder: Path, stage: str, run: str | None) -> _Service:
    from accelerate import tracking

    available = {str(kind.value) for kind in tracking.get_available_trackers()}
    if name not in available:
        raise ConfigError(f"track is {name!r}; it needs {name}: pip install {name}")
    title = f"{folder.parents[1].name}/{stage}"
    if name == "wandb":
        resumed = {} if run is None else {"id": run}
        service = tracking.WandBTracker(PROJECT, name=title, dir=str(folder), resume="allow", **resumed)
    else:
        service = tracking.MLflowTracker(PROJECT, run_id=run, run_name=title)
    found: _Service = service
    return found


def _run_of(name: str, service: Any) -> str:
    return str(service.tracker.id if name == "wandb" else service.tracker.info.run_id)


def _runs(file: Path) -> dict[str, str]:
    try:
        content = read_json_object(file)
    except FileNotFoundError:
        return {}
    except (OSError, DocumentError) as error:
        raise ConfigError(f"{file}: damaged ({error}); delete it: the training's numbers begin a new run") from error
    return {name: run for name, run in content.items() if name in TRACKERS and isinstance(run, str)}


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Sections as dotted names; what is no number stands as its text."""
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, (bool, int, float)) else one_line(str(value))[:250]


def _short(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")[:200]
