"""What is known of a pair: a line of ``metadata.jsonl``. No timestamps: the same command writes the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from changeanywhere.documents import to_json
from changeanywhere.legend import Legend
from changeanywhere.pairs.annotations import event_record
from changeanywhere.pairs.names import CHANGE_FOLDER, IGNORE_FOLDER, IMAGE_FOLDERS, MASK_FOLDERS, SUFFIXES
from changeanywhere.sample import ChangePair, ChangePlan, Normalisation, SourceItem, change_transitions

OF_SECOND = ("second", "ignored_ratio")
"""Keys that real second dates bring."""
UNSAID = ("container", "free_fraction", *OF_SECOND)
"""Keys that only sets have of which they say something."""
FILE_FOLDERS = (*IMAGE_FOLDERS, CHANGE_FOLDER, *MASK_FOLDERS)
ALL_FOLDERS = (*FILE_FOLDERS, IGNORE_FOLDER)
"""Of pairs with ground that no label speaks of, too."""


@dataclass(frozen=True)
class Provenance:
    """What all pairs of a run share: half of a record's bytes."""

    model: str = ""
    model_hash: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """By what they are settings of: ``painter``, ``sampling``, ``machine``, ``finishing``."""
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The end of every line."""
        return {each.name: _no_empty(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave, within more; keys that are missing or null are at their defaults."""
        return cls(**{name: content[name] for name in SHARED if content.get(name) is not None})


SHARED = tuple(each.name for each in fields(Provenance))


def _no_empty(value: Any) -> Any:
    """Empty objects become null: no table has a type for an object without a key."""
    if isinstance(value, Mapping):
        return {name: _no_empty(each) for name, each in value.items()} or None
    return value


def transition_rows(transitions: Mapping[str, int]) -> list[dict[str, str | int]]:
    """``{"a->b": 3}`` → ``[{"from": "a", "to": "b", "pixels": 3}]``: the same keys in every line of a file."""
    rows: list[dict[str, str | int]] = []
    for name, pixels in transitions.items():
        before, _, after = name.partition("->")
        rows.append({"from": before, "to": after, "pixels": pixels})
    return rows


def transitions_of(rows: Sequence[Mapping[str, Any]] | Mapping[str, int]) -> dict[str, int]:
    """The way back; what earlier editions wrote, ``{"a->b": 3}``, stays as it is."""
    if isinstance(rows, Mapping):
        return dict(rows)
    return {f"{row['from']}->{row['to']}": int(row["pixels"]) for row in rows}


def _nuisance_rows(nuisances: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    return [
        {"date": int(date[1:]), "name": name, "amount": amount}
        for date, amounts in nuisances.items()
        for name, amount in amounts.items()
    ]


def _nuisances_of(rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> dict[str, dict[str, float]]:
    if isinstance(rows, Mapping):  # of an earlier edition
        return dict(rows)
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(f"t{row['date']}", {})[row["name"]] = row["amount"]
    return found


@dataclass(frozen=True)
class PairRecord:
    """One pair; the keys of its line are the names here, with ``FOLDER_file_name`` for each of ``files``.

    Lines are alike: ``transitions`` and ``nuisances`` are lists of objects with fixed keys in them, and no object is
    empty, so that JSON lines become a table of any kind.
    """

    key: str
    files: Mapping[str, str]
    """Folder (``A``, ``B``, ``label``, ``label1``, ``label2``) → path in the set."""
    source: str
    source_key: str
    scene: str
    split: str
    licence: str
    attribution: str
    gsd_m: float | None
    crs: str | None
    transform: Sequence[float] | None
    bands: Sequence[str]
    normalisation: Mapping[str, Sequence[float]]
    """``low`` and ``high`` of the stretch, by band."""
    kind: str
    """Kinds of its events; "given" for a user's own second mask, "no_change" where nothing changes."""
    events: Sequence[Mapping[str, Any]]
    transitions: Mapping[str, int]
    """Changed pixels by class transition, ``from->to``; in a line ``[{"from", "to", "pixels"}]``."""
    change_ratio: float
    unknown_ratio: float
    seed: int
    real_date: int = 1
    """Which image is real; the other one is painted."""
    nuisances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Amounts, by ``t1`` and ``t2``; in a line ``[{"date", "name", "amount"}]``."""
    fidelity: float | None = None
    """Share of changed ground that the filter reads as its new class."""
    attempt: int = 0
    donors: Sequence[Mapping[str, str]] = ()
    """Other tiles whose pixels are in it: ``key``, ``split``, ``licence``."""
    exemplars: Sequence[Mapping[str, Any]] = ()
    """Classes of changed ground that were painted over real pixels: ``class``, ``strength``, first ``timestep``."""
    free_fraction: float | None = None
    """Its free tail; None where all of the set have one, and the line does not say so."""
    container: str = ""
    """File of the set that the pair lies in; "": its files lie in folders, and the line does not say so."""
    labelled_by: str = ""
    """The machine that made the tile's mask; "" for people."""
    second: str = ""
    """What a real image of the second date was to the painted date: ``base``, ``style``; "" : there was none."""
    ignored_ratio: float | None = None
    """Share of ground that no label speaks of: there the real dates differ in earnest; None: none is shown."""
    provenance: Provenance = field(default_factory=Provenance)

    def own(self) -> dict[str, Any]:
        """The line without what all pairs share."""
        content: dict[str, Any] = {"key": self.key}
        content |= {f"{folder}_file_name": name for folder, name in self.files.items()}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in ("key", "files", "provenance") and (each.name not in UNSAID or value not in ("", None)):
                content[each.name] = list(value) if isinstance(value, tuple) else value
        content["transitions"] = transition_rows(self.transitions)
        content["nuisances"] = _nuisance_rows(self.nuisances)
        return content

    def flat(self) -> dict[str, str | int | float]:
        """A row of the flat table of its split: in every row the same keys, under each one type, and nothing null,
        empty list or empty object, whose type a table cannot tell. ``gsd_m`` is 0 and ``crs`` empty where unknown;
        ``transitions`` is JSON, a list of ``{"from", "to", "pixels"}``."""
        row: dict[str, str | int | float] = {f"{folder}_file_name": name for folder, name in self.files.items()}
        return row | {
            "key": self.key,
            "source": self.source,
            "source_key": self.source_key,
            "scene": self.scene,
            "licence": self.licence,
            "attribution": self.attribution,
            "crs": self.crs or "",
            "gsd_m": float(self.gsd_m or 0),
            "kind": self.kind,
            "transitions": to_json(transition_rows(self.transitions), ensure_ascii=False),
            "change_ratio": float(self.change_ratio),
            "unknown_ratio": float(self.unknown_ratio),
            "real_date": self.real_date,
        }

    def to_dict(self) -> dict[str, Any]:
        """The whole line."""
        return self.own() | self.provenance.to_dict()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """A line as it was read. Keys of a younger edition are passed over; KeyError names one that is missing."""
        own: dict[str, Any] = {
            "files": {f: content[f"{f}_file_name"] for f in ALL_FOLDERS if f"{f}_file_name" in content},
            "provenance": Provenance.from_dict(content),
            "transitions": transitions_of(content["transitions"]),
            "nuisances": _nuisances_of(content.get("nuisances", ())),
        }
        has_default = {
            "real_date",
            "nuisances",
            "fidelity",
            "attempt",
            "donors",
            "exemplars",
            "free_fraction",
            "container",
            "labelled_by",
            *OF_SECOND,
        }
        for each in fields(cls):
            if each.name not in own and (each.name in content or each.name not in has_default):
                own[each.name] = content[each.name]
        return cls(**own)


@dataclass(frozen=True)
class Finish:
    """What happened to a painted pair before it was written."""

    real_date: int = 1
    nuisances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    fidelity: float | None = None
    attempt: int = 0
    donors: Sequence[SourceItem] = ()
    exemplars: Sequence[Mapping[str, Any]] = ()
    free_fraction: float | None = None
    second: str = ""


@dataclass(frozen=True)
class Origin:
    """Where a pair comes from: its tile (credited), the source's name, its split, bands and stretch."""

    item: SourceItem
    source: str
    split: str
    bands: Sequence[str]
    normalisation: Normalisation


def record_of(
    pair: ChangePair,
    plan: ChangePlan,
    legend: Legend,
    origin: Origin,
    finish: Finish,
    image_format: str,
    provenance: Provenance,
) -> PairRecord:
    """The record of a finished pair, whose masks, like ``plan``, are those that are written."""
    assert pair.mask_t1 is not None and pair.mask_t2 is not None
    folders = FILE_FOLDERS if pair.ignored is None else ALL_FOLDERS
    masks, item, georef = (pair.mask_t1, pair.mask_t2), origin.item, pair.georef
    return PairRecord(
        key=pair.key,
        files={folder: f"{folder}/{pair.key}{SUFFIXES[image_format]}" for folder in folders},
        source=origin.source,
        source_key=item.key,
        scene=item.scene,
        split=origin.split,
        licence=item.licence,
        attribution=item.attribution,
        gsd_m=item.gsd_m,
        crs=georef.crs if georef else None,
        transform=list(georef.transform) if georef else None,
        bands=list(origin.bands),
        normalisation={"low": list(origin.normalisation.low), "high": list(origin.normalisation.high)},
        kind=_kind(plan),
        events=[event_record(event, *masks, legend, georef, item.gsd_m) for event in plan.events],
        transitions=change_transitions(*masks, legend),
        change_ratio=round(float(pair.change_mask.mean()), 6),
        unknown_ratio=round(float((pair.mask_t1 == 0).mean()), 6),
        seed=plan.seed,
        real_date=finish.real_date,
        nuisances=finish.nuisances,
        fidelity=finish.fidelity,
        attempt=finish.attempt,
        donors=[{"key": donor.key, "split": origin.split, "licence": donor.licence} for donor in finish.donors],
        exemplars=finish.exemplars,
        free_fraction=finish.free_fraction,
        labelled_by=item.labelled_by,
        second=finish.second,
        ignored_ratio=None if pair.ignored is None else round(float(pair.ignored.mean()), 6),
        provenance=provenance,
    )


def _kind(plan: ChangePlan) -> str:
    kinds = sorted({event.kind for event in plan.events})
    return "+".join(kinds) if kinds else "given" if plan.change_mask.any() else "no_change"
