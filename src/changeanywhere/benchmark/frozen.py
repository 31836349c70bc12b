"""What the folder of a benchmark was begun with, in OUT/benchmark.json: finished cells are believed of the same options
and the same data alone.

Data is known by its hash. What earlier editions did not note (weights that were handed in, unlabelled pairs, …) is
asked of the trainings, which note what they saw; what nobody knows any more is not believed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from changeanywhere.benchmark.options import BenchmarkOptions
from changeanywhere.benchmark.trainings import grown_seeds, handed_in, noted
from changeanywhere.documents import DocumentError, read_json_object
from changeanywhere.errors import ConfigError, OutputError
from changeanywhere.models.names import SEMANTIC
from changeanywhere.pairs.reader import PairDataset
from changeanywhere.pairs.semantics import hash_of
from changeanywhere.pairs.unlabelled import UnlabelledPairs
from changeanywhere.regular import open_regular
from changeanywhere.storage import atomic_write
from changeanywhere.storage import hash_of as hash_of_file

FILE = "benchmark.json"
GROWING = ("arms", "backbones", "contents")
"""Parts of it in which further ones may come: what is in them depends on detectors, arms and shares."""
MADE = ("cells", "training", "pretrain")
"""Folders in OUT of what depends on it."""
PAIRS, WEIGHTS = "other pairs, or other labels", "other weights"


@dataclass(frozen=True)
class Content:
    """Data that cells depend on."""

    hash: str
    other: str = PAIRS
    """What it is if it is not what it was."""
    behind: str | None = None
    """Pattern of the names of cells and trainings that depend on it; None: every edition has noted it."""
    recorded: str | None = None
    """What those trainings noted of it, if they noted anything."""


def contents_of(
    options: BenchmarkOptions, data: Mapping[str, PairDataset], unlabelled: UnlabelledPairs | None
) -> dict[str, Content]:
    """All data that cells depend on, by what it is called: ``data``, its classes where a detector learns them,
    ``unlabelled`` pairs beside the training split, and weights that come from elsewhere."""
    semantic = [name for name in options.detectors if name in SEMANTIC]
    found: dict[str, Content] = {}
    for name, pairs in data.items():
        found[name] = Content(pairs.content_hash())
        if name == f"the list of {options.rate_at} %":
            others = [name for name in options.detectors if name not in SEMANTIC]
            behind = _names(others, shares=f"{options.rate_at:03d}")
            found[name] = Content(found[name].hash, behind=behind, recorded=found[name].hash)
        if semantic:
            behind = _names(semantic, **_users(options, name))
            found[f"the classes of {name}"] = Content(hash_of(pairs), "other classes of both dates", behind)
    if unlabelled is not None:
        behind, both = _names(options.detectors, options.unlabelled_arms), unlabelled.content_hash()
        for folder, pairs in zip(options.unlabelled, unlabelled.sets[1:], strict=True):
            own = UnlabelledPairs([pairs]).content_hash()
            found[f"the unlabelled pairs of {folder}"] = Content(own, "other images", behind, both)
    for arm, place in options.pretrained.items():
        for detector in options.detectors:
            folders = [handed_in(place, detector, seed) for seed in options.pretrain_seeds]
            files = [folder / name for folder in folders for name in ("detector.json", "model.safetensors")]
            behind = _names([detector], _arms_of(options, arm))
            found[f"the {detector} of {arm}"] = Content(_hash_of(files), WEIGHTS, behind)
    for detector, file in options.backbones.items():
        if Path(file).is_file():  # else it is the package's, or the training says what is wrong
            found[f"the backbone of {detector}"] = Content(_hash_of([Path(file)]), WEIGHTS, _names([detector]))
    return found


def _arms_of(options: BenchmarkOptions, origin: str) -> list[str]:
    """The arms that go on from one pre-training."""
    return [arm for arm in (*options.arms, *options.tuned_arms) if options.way_of(arm).origin == origin]


def _users(options: BenchmarkOptions, name: str) -> dict[str, Any]:
    """Arms and shares whose cells depend on these pairs."""
    if name.startswith("the set of "):
        return {"arms": _arms_of(options, name.removeprefix("the set of "))}
    listed = re.fullmatch(r"the list of (\d+) %", name)
    if listed:
        return {"shares": f"{int(listed[1]):03d}"}
    return {} if name == "the test split" else {"shares": "(?!000)[0-9]{3}"}


def _names(detectors: Sequence[str], arms: Sequence[str] | None = None, shares: str = "[0-9]{3}") -> str:
    """Pattern of the names of cells and trainings; ``arms``: None = any; ``shares``: a pattern of three digits."""
    one, two = ("|".join(map(re.escape, names)) for names in (detectors, arms or ()))
    return rf"(?:{one or '(?!)'})-(?:{'.+' if arms is None else two or '(?!)'})-{shares}-[0-9]+(?:-|\.json$)"


def _hash_of(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            with open_regular(file) as content:
                digest.update(hash_of_file(content).encode())
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()[:16]


def freeze(
    out: Path, asked: Mapping[str, Any], contents: Mapping[str, Content], arms: Collection[str], write: bool = True
) -> None:
    """Refuse to mix results of other options, or of other data, in ``out``; further arms, detectors and shares may
    come, and further seeds behind those that are there. ``arms``: those that are pre-trained; ``write``: note it down.

    Raises :class:`OutputError` naming the difference. Where nothing has been made yet, nothing is different.
    """
    file, now = out / FILE, json.loads(json.dumps(asked)) | {"contents": {k: c.hash for k, c in contents.items()}}
    begun = any(any((out / name).iterdir()) for name in MADE if (out / name).is_dir())
    blank = now | {group: {} for group in GROWING}
    try:
        before = noted(file) if file.exists() else blank
        whole = _grown(out, before, now, contents, arms)
    except OutputError:
        if begun:
            raise
        whole = _grown(out, blank, now, contents, arms)
    if begun and file.exists():
        for name in contents.keys() - before["contents"].keys():
            _refuse_unknown(out, name, contents[name])
    if write:
        atomic_write(file, (json.dumps(whole, indent=1) + "\n").encode())


def _grown(
    out: Path, before: dict[str, Any], now: dict[str, Any], contents: Mapping[str, Content], arms: Collection[str]
) -> dict[str, Any]:
    """What was noted and what is asked now, together; :class:`OutputError` where one is not as the other."""
    old, new, whole = dict(before), dict(now), dict(now)
    whole["seeds"] = grown_seeds(out, old.pop("seeds", None), new.pop("seeds"))
    for group in GROWING:  # what is there once stays, further ones may come
        there, come = old.pop(group, None), new.pop(group)
        if not isinstance(there, dict):
            raise OutputError(f"{out / FILE}: damaged (no {group}); give another --out")
        both = {name: _called(group, name, arms) for name in there.keys() & come.keys()}
        old |= {both[name]: there[name] for name in both}
        new |= {both[name]: come[name] for name in both}
        whole[group] = there | come
    _refuse(out, old, new, contents)
    return whole


def _called(group: str, name: str, arms: Collection[str]) -> str:
    what = "pretraining" if name in arms else "settings"
    return f"{what if group == 'arms' else group} of {name}"


def _refuse(out: Path, old: Mapping[str, Any], new: Mapping[str, Any], contents: Mapping[str, Content]) -> None:
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    for key in sorted(differing, key=lambda key: key.startswith("contents")):
        if key.startswith("contents"):
            name = key.partition(" of ")[2]
            raise OutputError(f"{out}: {name} is not what it was ({contents[name].other}); give another --out")
        name, was, asked = key, old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(asked, dict):  # a stage: one of its settings
            part = next(part for part in sorted({*was, *asked}) if was.get(part) != asked.get(part))
            name, was, asked = f"{key}.{part}", was.get(part), asked.get(part)
        raise OutputError(
            f"{out}: was begun with {name} = {was!r}, asked now: {asked!r}; give another --out, or the same settings "
            "to go on"
        )


def _refuse_unknown(out: Path, name: str, content: Content) -> None:
    """Of data that the folder does not note: refused where it is known to be other, or nobody knows and something
    depends on it."""
    if content.behind is None:
        return
    pattern = re.compile(content.behind)
    places = [out / part for part in MADE[:2] if (out / part).is_dir()]
    made = [path for place in places for path in place.iterdir() if pattern.match(path.name)]
    said = [_recorded(path) for path in made if path.parent.name == "training"]
    if content.recorded is not None and any(found and content.recorded not in found for found in said):
        raise OutputError(f"{out}: {name} is not what it was ({content.other}); give another --out")
    known = content.recorded is not None and any(said)
    if made and not known:
        raise OutputError(
            f"{out}: has results that depend on {name}, of which an earlier edition noted nothing; give another --out "
            f"(or, if it is what it was, delete {out / FILE})"
        )


def _recorded(training: Path) -> list[str]:
    """Hashes of the data that a training noted; empty where it noted none."""
    try:
        said = read_json_object(training / "training" / "detector" / "recipe.json").get("data")
    except (OSError, DocumentError):
        return []
    content = said.get("content") if isinstance(said, dict) else None
    return content.split("-") if isinstance(content, str) else []
