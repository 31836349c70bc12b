"""The job: everything that a dataset's bytes follow from, and nothing else. No torch here.

It is frozen, turns into JSON and back, and is enough for any worker that sees the source (and the model) to paint any
shard of the plan: what was learned from the source is in it and never learned again.

    OUT/plan/job.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib import metadata
from typing import Any

from changeanywhere.diffusion.options import CriticOptions, Sampling
from changeanywhere.errors import OutputError
from changeanywhere.events import EventOptions
from changeanywhere.generation.options import FinishingOptions
from changeanywhere.generation.second import SecondOptions
from changeanywhere.generation.targets import SetTargets
from changeanywhere.generation.tiles import Learned, SourceSettings, Tiles, open_tiles
from changeanywhere.painters.registry import package_of
from changeanywhere.pairs.record import Provenance
from changeanywhere.pairs.summary import SetSummary
from changeanywhere.plain import from_plain, to_plain
from changeanywhere.seals import sealed, unsealed
from changeanywhere.storage import Store, content_hash

FORMAT = 2
"""Of ``job.json``; the first edition had ``plan/settings.json`` instead."""
FILE = "plan/job.json"
FIRST_EDITION = "plan/settings.json"
NOT_COMPARED = (
    "source.folder",
    "source.masks_t2",
    "source.name",
    "painter.model",
    "painter.critic.model",
    "second.segmenter",
    "versions",
    "format",
)
"""Where a source or model lies may change; their fingerprints may not. Records say which versions painted them."""


@dataclass(frozen=True)
class PainterChoice:
    """Who paints: ``model`` is a name or folder and ``model_hash`` of its weights ("" for a painter without one)."""

    method: str
    model: str
    model_hash: str
    options: dict[str, Any]
    critic: CriticOptions = field(default_factory=CriticOptions)
    critic_hash: str = ""


@dataclass(frozen=True)
class Machine:
    """On what it is painted: sums in networks depend on it in the last bits."""

    device: str
    dtype: str
    batch_size: int
    num_threads: int
    compile: bool


@dataclass(frozen=True)
class Job:
    """A whole dataset to be. ``painter`` and what only painters need are None for ``simulate``."""

    source: SourceSettings
    events: EventOptions
    learned: Learned
    targets: SetTargets
    num_pairs: int | None
    pairs_per_image: int
    seed: int
    shard_size: int
    painter: PainterChoice | None = None
    sampling: Sampling | None = None
    machine: Machine | None = None
    finishing: FinishingOptions = field(default_factory=FinishingOptions)
    second: SecondOptions = field(default_factory=SecondOptions)
    segmenter_hash: str = ""
    """Of the segmenter that compared the dates: where it lies may change."""
    versions: dict[str, str] = field(default_factory=lambda: current_versions())
    container: str = "folder"
    """``folder``, ``webdataset`` or ``parquet``: what the pairs of a shard lie in."""
    infeasible: str = "elsewhere"
    """Where a change goes that its tile has no room for: ``elsewhere``, or nowhere (``leave``)."""
    format: int = FORMAT

    @cached_property
    def tiles(self) -> Tiles:
        """The source, opened at first use, once per process."""
        return open_tiles(self.source, self.learned, self.events, self.second)

    def opened_with(self, tiles: Tiles) -> Job:
        """The same job over a source that is open already."""
        copy = replace(self)
        copy.__dict__["tiles"] = tiles
        return copy

    def reached(self, counts: SetSummary) -> list[tuple[str, float, float]]:
        """(what, share asked, share reached) for every target, and for sizes of events that limits in px keep from
        some; those in m² hang on tiles, which are not looked at here."""
        rows, events, side = self.targets.reached(counts), self.events, self.source.options.tile_size
        if side and events.min_area_m2 is None and events.max_area_m2 is None:
            for name, share in events.beyond_limits(side**2, None).items():
                what = f"sizes asked for that events.{name} allows ({events.limit_in_words(name)})"
                rows.append((what, 1.0, round(1 - share, 6)))
        return rows

    @property
    def provenance(self) -> Provenance:
        """What every record of the set says of how it was made."""
        if self.painter is None or self.machine is None:
            return Provenance(versions=current_versions())
        painter: dict[str, Any] = {"method": self.painter.method}
        if self.painter.options:
            painter["options"] = self.painter.options
        if self.painter.critic.model is not None:
            place = self.painter.critic.model.name
            painter["critic"] = to_plain(self.painter.critic) | {"model": place, "hash": self.painter.critic_hash}
        settings: dict[str, Any] = {"painter": painter}
        if self.sampling is not None:
            settings["sampling"] = to_plain(self.sampling)
        settings["machine"] = to_plain(self.machine)
        source = self.source.options
        settings["source"] = {"stretch": to_plain(source.stretch)}
        if source.splits is not None:
            settings["source"]["splits"] = source.splits
        finishing, chosen = to_plain(self.finishing), self.finishing.filter.model
        settings["finishing"] = finishing | {"filter": finishing["filter"] | {"model": chosen and chosen.name}}
        if self.second.use != "none":
            reader = self.second.segmenter and self.second.segmenter.name
            settings["second"] = to_plain(self.second) | {"segmenter": reader, "segmenter_hash": self.segmenter_hash}
        name = self.painter.model.rstrip("/").rpartition("/")[2]
        versions = current_versions() | package_of(self.painter.method)
        return Provenance(name, self.painter.model_hash, settings, versions)

    def save(self, store: Store) -> str:
        """Write ``plan/job.json``; what plans name it by."""
        content = to_plain(self)
        if not self.source.sole_trains:  # a plan of an earlier edition names its job without it
            del content["source"]["sole_trains"]
        store.put(FILE, sealed(content, indent=1))
        return _identity(content)


def current_versions() -> dict[str, str]:
    """Of the packages that bytes depend on."""
    return dict(_versions())


@lru_cache(maxsize=1)
def _versions() -> tuple[tuple[str, str], ...]:
    """Read once: each is a file of a few hundred lines to be parsed."""
    return tuple((name, metadata.version(name)) for name in ("changeanywhere", "torch", "diffusers", "numpy"))


def load_job(store: Store) -> Job | None:
    """The job that a set was started with; None where there is none. :class:`OutputError` for a damaged one, for one of
    the first edition, and where something else lies in the place."""
    if not store.exists(FILE):
        if store.exists(FIRST_EDITION):
            raise OutputError(
                f"{store.describe()}: was begun by changeanywhere 0.1, whose sets are read as they are, not continued; "
                "give another --out (or finish it with version 0.1)"
            )
        return None
    try:
        content, _ = unsealed(store.get(FILE))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        content["finishing"].setdefault("mask_palette", True)  # what jobs older than the option were made with
        return from_plain(Job, content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(store, error) from error


def identity_of_job(store: Store) -> str:
    """What plans name the job of a set by; "" where there is none. :class:`OutputError` for a damaged one."""
    try:
        return _identity(unsealed(store.get(FILE))[0]) if store.exists(FILE) else ""
    except (OSError, ValueError) as error:
        raise _damaged(store, error) from error


def _identity(content: Mapping[str, Any]) -> str:
    """Hash of all that makes one job another than the next; its machine may be settled after the plan."""
    settings = {name: value for name, value in flat(content).items() if _is_compared(name)}
    settings = {name: value for name, value in settings.items() if name.partition(".")[0] != "machine"}
    return content_hash(json.dumps(settings, sort_keys=True).encode())


def _is_compared(name: str) -> bool:
    return not any(name == free or name.startswith(f"{free}.") for free in NOT_COMPARED)


def _damaged(store: Store, error: Exception) -> OutputError:
    return OutputError(f"{store.describe(FILE)}: damaged plan ({error}); give another --out")


def as_named(asked: Job, begun: Job) -> Job:
    """``asked`` in the words of ``begun`` where both say the same in others, which plans name their job by: a filter of
    the same weights, wherever it lies, and groups of shapes from a bank, which earlier editions took and never drew."""
    finishing, events = asked.finishing, asked.events
    if finishing.filter_hash and finishing.filter_hash == begun.finishing.filter_hash:
        place = begun.finishing.filter.model
        finishing = replace(finishing, filter=replace(finishing.filter, model=place))
    if events.shape_bank:
        events = replace(events, group_size=begun.events.group_size)
    return replace(asked, finishing=finishing, events=events)


def refuse_others(begun: Job, asked: Job, store: Store) -> None:
    """:class:`OutputError` naming the first setting in which two jobs differ."""
    before, now = flat(to_plain(begun)), flat(to_plain(as_named(asked, begun)))
    # Fingerprints late: they change with whatever else says more; what was found in the files says nothing to people.
    late = {"learned.ignored": 2} | dict.fromkeys((name for name in now if "fingerprint" in name), 1)
    for name in sorted({*before, *now}, key=lambda name: (late.get(name, 0), name)):
        if _is_compared(name) and before.get(name) != now.get(name):
            raise OutputError(
                f"{store.describe()}: was made with {name} = {before.get(name)!r}, asked now: {now.get(name)!r}; "
                "give another --out, or the same settings to resume"
            )


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names."""
    names: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            names |= flat(value, f"{prefix}{key}.")
        else:
            names[f"{prefix}{key}"] = value
    return names
