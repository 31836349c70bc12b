"""What the folder of a benchmark was begun with, in OUT/benchmark.json: finished cells are believed of the same options
and the same data alone.

Data is known by its hash: of all bytes, but in folders of earlier editions, which took images by their sizes, until
the next run notes it anew. What earlier editions did not note (weights that were handed in, unlabelled pairs, …) is
asked of the trainings, which note what they saw; what nobody knows any more is not believed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from changeanywhere.benchmark.content import KIND, ContentHashes
from changeanywhere.benchmark.options import BenchmarkOptions
from changeanywhere.benchmark.sharing import freezing, living
from changeanywhere.benchmark.trainings import Cell, grown_seeds, handed_in, noted
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
PLACES = ("pairs", "lists")
"""Parts of it that say where data lies, which is known by its hash."""
MADE = ("cells", "training", "pretrain")
"""Folders in OUT of what depends on it."""
PAIRS, WEIGHTS = "other pairs, or other labels", "other weights"


@dataclass(frozen=True)
class Content:
    """Data that cells depend on."""

    hash: str
    sized: str | None = None
    """As earlier editions noted it, with images by their sizes; None: as ``hash``."""
    other: str = PAIRS
    """What it is if it is not what it was."""
    behind: str | None = None
    """Pattern of the names of cells and trainings that depend on it; None: every edition has noted it."""
    recorded: str | None = None
    """What those trainings noted of it, if they noted anything."""

    def beside(self, noted: object) -> str:
        """The hash to hold against what was noted: of the same kind."""
        of_bytes = isinstance(noted, str) and noted.startswith(KIND)
        return self.hash if of_bytes or self.sized is None else self.sized


def contents_of(
    options: BenchmarkOptions, data: Mapping[str, PairDataset], unlabelled: UnlabelledPairs | None
) -> dict[str, Content]:
    """All data that cells depend on, by what it is called: ``data``, its classes where a detector learns them,
    ``unlabelled`` pairs beside the training split, and weights that come from elsewhere."""
    semantic = [name for name in options.detectors if name in SEMANTIC]
    found, hashes = dict[str, Content](), ContentHashes(options.out)
    for name, pairs in data.items():
        sized = pairs.content_hash()
        found[name] = Content(hashes.of(pairs), sized)
        if name == f"the list of {options.rate_at} %":
            others = [name for name in options.detectors if name not in SEMANTIC]
            behind = _names(others, shares=f"{options.rate_at:03d}")
            found[name] = replace(found[name], behind=behind, recorded=sized)
        if semantic:
            behind = _names(semantic, **_users(options, name))
            found[f"the classes of {name}"] = Content(hash_of(pairs), None, "other classes of both dates", behind)
    if unlabelled is not None:
        behind, both = _names(options.detectors, options.unlabelled_arms), unlabelled.content_hash()
        for folder, pairs in zip(options.unlabelled, unlabelled.sets[1:], strict=True):
            own = UnlabelledPairs([pairs])
            hashed = hashes.of_unlabelled(own), own.content_hash()
            found[f"the unlabelled pairs of {folder}"] = Content(*hashed, "other images", behind, both)
    for arm, place in options.pretrained.items():
        for detector in options.detectors:
            folders = [handed_in(place, detector, seed) for seed in options.pretrain_seeds]
            files = [folder / name for folder in folders for name in ("detector.json", "model.safetensors")]
            behind = _names([detector], _arms_of(options, arm))
            found[f"the {detector} of {arm}"] = Content(_hash_of(files), None, WEIGHTS, behind)
    for detector, file in options.backbones.items():
        if Path(file).is_file():  # else it is the package's, or the training says what is wrong
            content = Content(_hash_of([Path(file)]), None, WEIGHTS, _names([detector]))
            found[f"the backbone of {detector}"] = content
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

    Raises :class:`OutputError` naming the difference. Where nothing has been made yet, and nobody is at it, nothing is
    different. Of several processes one does this at a time: who holds a lease of a cell, and has frozen the folder
    since, is at work on what stands there for as long as it holds one.
    """
    with ExitStack() as stack:
        at_work = stack.enter_context(freezing(out)) if write else living(out)
        made = any(any((out / name).iterdir()) for name in MADE if (out / name).is_dir())
        try:
            whole = _frozen(out, asked, contents, arms, made or bool(at_work))
        except OutputError as error:
            if made or not at_work:
                raise
            lease = out / "leases" / f"{at_work[0]}.json"
            raise OutputError(f"{error} (a process is at work there: {lease}; if none is, delete that file)") from error
        if write:
            atomic_write(out / FILE, (json.dumps(whole, indent=1) + "\n").encode())


def _frozen(
    out: Path, asked: Mapping[str, Any], contents: Mapping[str, Content], arms: Collection[str], begun: bool
) -> dict[str, Any]:
    """What is to stand in ``benchmark.json``; ``begun``: something depends on what stands there now."""
    file, now = out / FILE, json.loads(json.dumps(asked)) | {"contents": {k: c.hash for k, c in contents.items()}}
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
    return whole


def digest_of(asked: Mapping[str, Any], contents: Mapping[str, Content], cell: Cell, origin: str | None) -> str:
    """Of the options and the data that a cell depends on, ``origin`` being the arm whose pre-training it goes on from:
    16 hexadecimal digits, the same wherever the data lies."""
    common = {name: value for name, value in asked.items() if name not in (*GROWING, *PLACES, "seeds")}
    names = ["the test split", f"the set of {origin}", f"the {cell.detector} of {origin}"]
    names += [f"the backbone of {cell.detector}"]
    if cell.share:
        names += ["the training split", "the validation split", f"the list of {cell.share} %"]
    data = {name: contents[name].hash for name in names if name in contents}
    return hashlib.sha256(json.dumps([common, data], sort_keys=True).encode()).hexdigest()[:16]


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
        hashed = {name: contents[name].beside(there[name]) for name in both} if group == "contents" else come
        new |= {both[name]: hashed[name] for name in both}
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
