"""What a scene's bytes follow from, and whether a folder was begun with the same. No torch here.

OUT/SCENE/scene.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from changeanywhere.diffusion.options import Sampling, refuse_index
from changeanywhere.errors import OutputError, require
from changeanywhere.events import EventOptions
from changeanywhere.events.transitions import load_table
from changeanywhere.generation.job import current_versions, flat
from changeanywhere.machine import usable_processors
from changeanywhere.models.info import ModelInfo, outside_sampling
from changeanywhere.plain import to_plain
from changeanywhere.scenes.inputs import SceneFiles, SceneImage, fingerprint, idle_options, legends_as_read
from changeanywhere.scenes.options import DEFAULT_SHARE, SceneOptions
from changeanywhere.scenes.planning import Quotas
from changeanywhere.seals import sealed, unsealed
from changeanywhere.storage import LocalStore
from changeanywhere.terminal import say

FILE = "scene.json"
PLANNED = ("plan.json", "done.json")
"""What lies in a folder from its plan on, and from its end on."""
UNPLANNED = "parts/mask_"
"""What lies in a folder before its plan: it is made anew."""
NOT_COMPARED = ("versions", "files")
"""Where files lie may change; what they hold may not."""
READ = ("legends", "transitions")
"""What other files say than images and masks."""


@dataclass(frozen=True)
class SceneSettings:
    """All of it, of one scene, frozen."""

    files: dict[str, str]
    fingerprint: dict[str, str | None]
    legend_map: str
    reading: dict[str, Any]
    events: dict[str, Any] | None
    """None: second masks were given."""
    quotas: dict[str, Any] | None
    seed: int
    model_hash: str
    sampling: dict[str, Any]
    finishing: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    legends: dict[str, Any]
    """What the numbers of the masks mean, as read: a legend lies beside a mask, and can be edited there."""
    transitions: dict[str, dict[str, float]] | None
    """Weights from class to class, as read; None: all equal, or second masks were given."""


def quotas_of(options: SceneOptions) -> Quotas:
    """What the scene is to show."""
    share = None if options.num_events else options.change_share or DEFAULT_SHARE
    return Quotas(share, options.num_events, dict(options.class_pairs))


def sampling_of(options: SceneOptions, info: ModelInfo) -> Sampling:
    """The model's own settings with what was said; refuses what does nothing."""
    sampling = Sampling(**info.defaults).changed(options.sampling_given)
    sampling.check()
    if isinstance(sampling.exemplar_strength, dict):
        names = ("default", *info.legend.names)
        unknown = sorted(set(sampling.exemplar_strength) - {*names})
        require(not unknown, "exemplar_strength", unknown, ", ".join(names))
    ranged = isinstance(sampling.free_fraction, list)
    require(not ranged, "free_fraction", sampling.free_fraction, "one number for a scene")
    given = isinstance(sampling.exemplar_strength, list)
    require(not given, "exemplar_strength", sampling.exemplar_strength, "a number, or one by class, for a scene")
    idle = options.eta is not None and sampling.sampler != "ddim"
    require(not idle, "eta", options.eta, f"with sampler ddim; {sampling.sampler} has none")
    return sampling


def settings_of(
    options: SceneOptions, files: SceneFiles, image: SceneImage, info: ModelInfo, store: LocalStore
) -> SceneSettings:
    """What is asked now, with the machine of what was begun in ``store``; :class:`OutputError` naming the first setting
    in which both differ."""
    begun = _begun(store)
    left_out = Sampling(**info.defaults).said_of_left_out(options.sampling_given)
    if left_out and begun is None:
        say(f"{files.image}: {left_out}", error=True)
    warning = outside_sampling(info, [image.gsd_m])
    if warning and begun is None:
        say(f"{files.image}: {warning.replace('1 of 1 tiles have', 'has')}", error=True)
    height, width = image.shape
    words = options.events.beyond_in_words(options.events.beyond_limits(height * width, image.gsd_m), "events.areas")
    if words and begun is None:
        say(f"{files.image}: {words}", error=True)
    planned, table = options.mask_t2 is None, options.events.transitions
    legend_map = options.legend_map.read_text() if options.legend_map and options.legend_map.is_file() else ""
    idle = idle_options(files, image, options.max_megapixels)
    asked = SceneSettings(
        files={name: str(path) for name, path in (("image", files.image), ("mask", files.mask))},
        fingerprint=fingerprint(files),
        legend_map=legend_map,
        reading=_reading(options, image, idle),
        events=to_plain(options.events) if planned else None,
        quotas=to_plain(quotas_of(options)) if planned else None,
        seed=options.seed,
        model_hash=info.weights_hash,
        sampling=asdict(sampling_of(options, info)),
        finishing={name: getattr(options, name) for name in ("paste_back", "other_bands", "events_format")},
        machine=_machine(options, info, begun),
        versions=current_versions(),
        legends=legends_as_read(files, options),
        transitions=load_table(table, info.legend).to_dict() if planned and table is not None else None,
    )
    if begun is not None:
        _refuse_others(_completed(begun, to_plain(asked), idle), to_plain(asked), store.root)
    return asked


def _begun(store: LocalStore) -> dict[str, Any] | None:
    """What is in ``store`` was made with; None where nothing was: bad input is told before there is a plan, and may be
    mended. :class:`OutputError` for a folder of somebody else."""
    begun = load_settings(store)
    if begun is None and store.root.is_dir():
        strangers = sorted(p.name for p in store.root.iterdir() if p.name != "leases")
        if strangers:
            raise OutputError(
                f"{store.root}: not empty ({strangers[0]}) and not made by this command; give another --out"
            )
    if any(store.exists(name) for name in PLANNED):  # its tiles may be many: they need not be listed
        return begun
    made = (name for name in store.names() if name != FILE and not name.startswith(("leases/", UNPLANNED)))
    return begun if next(made, None) else None


def _reading(options: SceneOptions, image: SceneImage, idle: Sequence[str]) -> dict[str, Any]:
    """How files are read; what is given for another scene and does nothing in this one is left at its default."""
    names = ("class_field", "layer", "resample_mask", "legend", "class_names", "first_class", "ignore_value")
    return {
        **{name: to_plain(getattr(SceneOptions if name in idle else options, name)) for name in names},
        "bands": list(image.bands),
        "stretch": to_plain(image.normalisation),
    }


def _machine(options: SceneOptions, info: ModelInfo, begun: dict[str, Any] | None) -> dict[str, Any]:
    before = begun["machine"] if begun else {}
    device, dtype = options.device or before.get("device"), options.dtype or before.get("dtype")
    if not before or options.device:
        from changeanywhere.diffusion.pipeline import default_dtype, find_device

        refuse_index(options.device)
        found = find_device(options.device)
        device, dtype = found.type, dtype or default_dtype(found)
    return {
        "device": device,
        "dtype": dtype,
        "num_threads": options.num_threads or before.get("num_threads") or usable_processors(),
        "batch_size": options.batch_size,
        "window": options.window or info.tile_size,
    }


def load_settings(store: LocalStore) -> dict[str, Any] | None:
    """What a scene was begun with; None where there is nothing. :class:`OutputError` for a damaged file."""
    if not store.exists(FILE):
        return None
    try:
        return unsealed(store.get(FILE))[0]
    except (OSError, ValueError) as error:
        raise OutputError(f"{store.describe(FILE)}: damaged ({error}); give another --out") from error


def save_settings(settings: SceneSettings, store: LocalStore) -> None:
    """Freeze them."""
    store.put(FILE, sealed(to_plain(settings), indent=1))


def _completed(begun: dict[str, Any], asked: dict[str, Any], idle: Sequence[str]) -> dict[str, Any]:
    """What was begun, with what is younger than it: settings were at their default then, and what files said is taken
    to be what they say now. What did nothing then is no difference."""
    young = {"events": to_plain(EventOptions()), "sampling": asdict(Sampling())}
    begun = {**begun, "reading": {**begun["reading"], **{name: asked["reading"][name] for name in idle}}}
    known = {name: {**values, **begun[name]} for name, values in young.items() if begun.get(name) is not None}
    return {**{name: asked[name] for name in READ if name not in begun}, **begun, **known}


def _refuse_others(begun: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    before, now = flat(begun), flat(asked)
    for name in sorted({*before, *now}):
        if name.partition(".")[0] not in NOT_COMPARED and before.get(name) != now.get(name):
            raise OutputError(
                f"{folder}: was made with {name} = {before.get(name)!r}, asked now: {now.get(name)!r}; "
                "give another --out, or the same settings to resume"
            )
