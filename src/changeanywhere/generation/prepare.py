"""From options to a job: what the user said, what the model recommends, what the source holds. No torch for a set that
is finished already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from changeanywhere.buckets import listing_of
from changeanywhere.diffusion.options import Sampling, refuse_index
from changeanywhere.documents import parse_json
from changeanywhere.errors import ConfigError, ModelError, OutputError, require
from changeanywhere.folders import files_below
from changeanywhere.generation.fit import refuse_idle_limits, say_beyond_limits, warn_of_sampling
from changeanywhere.generation.job import Job, Machine, PainterChoice, as_named, load_job, refuse_others
from changeanywhere.generation.learning import learned_of, segmenter_hash
from changeanywhere.generation.like import like_pairs
from changeanywhere.generation.options import (
    CPU_SHARD,
    DEVICE_FLAGS,
    GPU_SHARD,
    PAINTER_FLAGS,
    FinishingOptions,
    GenerateOptions,
    SimulateOptions,
)
from changeanywhere.generation.plan import PlanSummary, load_summary, make_plan, plan_given
from changeanywhere.generation.second import SecondOptions
from changeanywhere.generation.tiles import SourceSettings, gather
from changeanywhere.legend import LEGEND_FILES, Legend
from changeanywhere.limits import MAX_PAIRS
from changeanywhere.machine import usable_processors
from changeanywhere.models.info import (
    EMBEDDED_MODEL,
    ModelInfo,
    find_model,
    find_segmenter,
    hash_files,
    hash_segmenter,
    read_info,
)
from changeanywhere.painters.base import PainterKind
from changeanywhere.painters.registry import find_painter
from changeanywhere.plain import to_plain
from changeanywhere.progress import Progress
from changeanywhere.sources import Source, SourceOptions, open_source
from changeanywhere.sources.options import DEFAULT_BANDS, DEFAULT_STRETCH, DEFAULT_TILE_SIZE
from changeanywhere.sources.problems import say_passed_over
from changeanywhere.storage import LocalStore, Store, address_of
from changeanywhere.terminal import say
from changeanywhere.text import in_a_line

CPU_BATCH = 2
"""Small, so that few pairs keep every lane at work: on a CPU more at once were not faster."""
NOT_ASKED = ("out", "layout", "dry_run", "shard", "executor", "address", "workers")
ASKED = "plan/asked.json"
"""What the command said and how the files it named looked: where nothing differs, nothing needs to be read again."""


def job_of(options: SimulateOptions, store: Store, progress: Progress) -> Job:
    """The job that ``options`` ask for, over an open source; that of the set begun in ``store`` where there is one.

    Raises :class:`InputError` for what the user gave wrong, other settings than the set was begun with among it.
    """
    options.check()
    targets, events = like_pairs(options.targets, options.events)
    options = replace(options, targets=targets, events=events)
    begun = load_job(store)
    painted = options if isinstance(options, GenerateOptions) else None
    kind, info = _painter_of(painted) if painted else (None, None)
    source_options = options.of_source(
        DEFAULT_TILE_SIZE,
        (info.bands if info else None) or DEFAULT_BANDS,
        (info.stretch if info else None) or DEFAULT_STRETCH,
    )
    masks_t2 = painted.masks_t2 if painted else None
    if painted is not None:
        _refuse_misfits(painted, source_options.bands or (), source_options.tile_size or 0, info)
    second_date = painted.second if painted else SecondOptions()
    given = open_source(options.source, source_options, None, progress, second_date.asked)
    source = _in_legend(given, options, info)
    say_passed_over(source)
    second = (
        _in_legend(open_source(options.source, source_options, masks_t2, progress), options, info) if masks_t2 else None
    )
    refuse_idle_limits(options, source)
    warn_of_sampling(options, source, info)
    say_beyond_limits(options, source, source_options.tile_size)
    settings = _settings(options, source_options, source, second, begun)  # first: what is learned is of the same files
    if settings.sole_trains and begun is None:
        say(f"{options.source}: one scene, which is never divided: all pairs are of the split train", error=True)
    learned = learned_of(options, source, begun, settings.fingerprint_second, progress)
    job = Job(
        source=settings,
        events=options.events,
        learned=learned,
        targets=options.targets,
        num_pairs=options.num_pairs,
        pairs_per_image=options.pairs_per_image,
        infeasible=options.infeasible,
        seed=options.seed,
        shard_size=(painted and painted.shard_size) or (begun.shard_size if begun else CPU_SHARD),
        finishing=_finishing(painted) if painted else FinishingOptions(mask_palette=options.mask_palette),
        container=painted.format if painted else GenerateOptions.format,
        second=second_date,
        segmenter_hash=segmenter_hash(second_date),
    )
    if kind is not None:
        job = _with_painter(job, options, kind, info, begun)
        on_gpu = job.machine is not None and job.machine.device != "cpu"
        if on_gpu and begun is None and painted is not None and painted.shard_size is None:
            job = replace(job, shard_size=GPU_SHARD)
    if begun is not None:
        # A plan that nobody has painted yet leaves open on what it is painted.
        refuse_others(begun if begun.machine else replace(begun, machine=job.machine), job, store)
    return job.opened_with(gather(source, second, learned, options.events, second_date, settings.sole_trains))


def _settings(
    options: SimulateOptions, read: SourceOptions, source: Source, second: Source | None, begun: Job | None
) -> SourceSettings:
    """What the job says of the source, opened with the options ``read``, and of ``second``, with the user's masks."""
    painted = options if isinstance(options, GenerateOptions) else None
    dated = painted is not None and painted.second.use != "none"
    return SourceSettings(
        folder=str(options.source),
        options=read,
        masks_t2=str(painted.masks_t2) if painted and painted.masks_t2 else None,
        name=begun.source.name if begun else source.name,  # one set, one name, wherever the source moved
        legend=source.legend.to_dict(),
        legend_map=source.mapping.to_dict() if source.mapping else None,
        fingerprint=source.fingerprint(),
        fingerprint_t2=second.fingerprint() if second else None,
        fingerprint_second=source.second_hash() if dated else None,
        sole_trains=begun.source.sole_trains if begun else len({item.scene for item in source.items}) == 1,
    )


def get_plan(job: Job, store: Store, progress: Progress) -> PlanSummary:
    """The plan in ``store``, or a new one, with the job beside it. The caller holds a lease.

    :class:`OutputError` where the plan is another job's: of a command that found the place empty as this one did.
    """
    plan = load_summary(store)
    if plan is not None:
        begun = load_job(store)
        if begun is not None:  # on what it is painted is settled by the first shard
            refuse_others(replace(begun, machine=job.machine), job, store)
        return plan
    name = job.save(store)
    tiles = job.tiles
    if tiles.second is not None:
        return plan_given(tiles, job.seed, job.shard_size, store, name)
    wanted = job.num_pairs or job.pairs_per_image * len(tiles.source)
    what = f"up to {MAX_PAIRS} pairs in all ({wanted} asked); make several sets, with other seeds"
    require(wanted <= MAX_PAIRS, "pairs_per_image", job.pairs_per_image, what)
    requests = job.targets.requests(wanted, len(tiles.source), job.events.kinds, tiles.source.legend, job.seed)
    return make_plan(tiles, requests, job.seed, job.shard_size, store, progress, name, job.infeasible == "elsewhere")


def settle_machine(job: Job, store: Store) -> None:
    """On what a set is painted, if that was left open (``plan``): as its first shard is. The caller holds a lease.

    :class:`OutputError` if another process has settled it otherwise meanwhile.
    """
    begun = load_job(store)
    if begun is None or begun.machine is None:
        (as_named(job, begun) if begun else job).save(store)
    else:
        refuse_others(begun, job, store)


def refuse_foreign(store: Store) -> None:
    """:class:`OutputError` where the place holds something that no command of ours put there."""
    if load_job(store) is None:
        if isinstance(store, LocalStore):
            found = [path.name for path in store.root.iterdir()] if store.root.is_dir() else []
        else:
            found = [name.partition("/")[0] for name in store.list()]
        strangers = sorted(set(found) - {"plan", "leases"})
        if strangers:
            raise OutputError(
                f"{store.describe()}: not empty ({strangers[0]}) and not made by this command; give another --out"
            )


def note_asked(options: SimulateOptions, store: Store) -> None:
    """Keep what was asked, and how the files looked, for :func:`is_asked_again`."""
    store.put(ASKED, (json.dumps(_asked(options), indent=1) + "\n").encode())


def is_asked_again(options: SimulateOptions, store: Store) -> bool:
    """Whether ``options`` say what the last run said, over files of the same names, sizes and times."""
    try:
        return bool(parse_json(store.get(ASKED)) == _asked(options))
    except (OSError, ValueError):
        return False


def note_inputs(job: Job, store: Store) -> None:
    """Write ``skipped.txt`` (tiles left out) and ``transitions.json`` (weights, usual sizes), where there are any."""
    tiles = job.tiles
    if tiles.skipped:
        store.put("skipped.txt", "".join(f"{in_a_line(line)}\n" for line in tiles.skipped).encode())
    context, legend = tiles.events.context, tiles.source.legend
    if context.transitions is not None:
        sizes = {legend.name_of(c): list(limits) for c, limits in context.sizes.items()}
        used = {"weights": context.transitions.to_dict(), "sizes_px": sizes}
        store.put("transitions.json", (json.dumps(used, indent=1) + "\n").encode())


def device_flags_read(options: GenerateOptions, kind: type[PainterKind]) -> frozenset[str]:
    """Which of :data:`DEVICE_FLAGS` anything of a run reads; none: it computes on no device."""
    others = options.reconstruct_t1 or options.filter.model is not None
    return frozenset(DEVICE_FLAGS) if others else frozenset(DEVICE_FLAGS) & kind.reads


def _painter_of(options: Any) -> tuple[type[PainterKind], ModelInfo | None]:
    """The painter's class, and what its model's folder says; refuses options that it does not read."""
    kind = find_painter(options.method)
    blank = GenerateOptions(source=options.source, out=options.out)
    for name in PAINTER_FLAGS:
        value = getattr(options, name)
        read = value == getattr(blank, name) or name in kind.reads
        require(read, name, value, f"with a method that reads it, which {options.method} does not")
    for name in sorted(set(DEVICE_FLAGS) - device_flags_read(options, kind)):
        value = getattr(options, name)
        what = f"with a method that computes on a device and reads it, which {options.method} does not"
        require(value is None, name, value, what)
    again = options.filter.action != "resample" or kind.repaints
    require(again, "filter.action", options.filter.action, "score, drop where there is no other noise to paint with")
    if kind.uses_model:
        return kind, read_info(find_model(options.model))
    require(not options.reconstruct_t1, "reconstruct_t1", True, "false with a painter that has no first stage")
    what = "with a method that paints in a model's legend; this one's masks stay in the source's"
    require(options.legend_map is None, "legend_map", str(options.legend_map), what)
    return kind, None


def _refuse_misfits(options: GenerateOptions, bands: Sequence[int], tile_size: int, info: ModelInfo | None) -> None:
    """What this model, if there is one, and these files cannot do with these tiles."""
    if info is not None and len(bands) != info.num_bands:
        raise ConfigError(f"bands is {list(bands)}; this model takes {info.num_bands}")
    if options.image_format == "png" and len(bands) != 3:
        raise ConfigError(f"image_format is 'png'; allowed for images of {len(bands)} band(s): geotiff")
    if info is not None and tile_size % info.size_multiple:
        raise ConfigError(f"tile_size is {tile_size}; this model allows multiples of {info.size_multiple}")
    if options.nuisances.jpeg != [0, 0] and len(bands) != 3:
        raise ConfigError(f"nuisances.jpeg is {options.nuisances.jpeg}; allowed for images of three bands only")


def _in_legend(source: Source, options: Any, info: ModelInfo | None) -> Source:
    return source if info is None else source.with_legend(info.legend, options.legend_map)


def _finishing(options: GenerateOptions) -> FinishingOptions:
    if options.filter.model is None:
        return options.finishing
    return replace(options.finishing, filter_hash=hash_segmenter(options.filter.model))


def _with_painter(job: Job, options: Any, kind: type[PainterKind], info: ModelInfo | None, begun: Job | None) -> Job:
    """Who paints, how and on what."""
    sampling = None
    if kind.reads & set(asdict(Sampling())):
        recommended = Sampling(**info.defaults) if info else Sampling()
        if options.reconstruct_t1:  # both dates are to lack the same: what a model recommends does not hold then
            recommended = replace(recommended, restore_detail=0.0)
            idle = not options.restore_detail
            require(idle, "restore_detail", options.restore_detail, "0 with reconstruct_t1, which takes it from date 1")
        sampling = recommended.changed(options.sampling_given)
        sampling.check()
        if begun is None and (left_out := recommended.said_of_left_out(options.sampling_given)):
            say(f"{options.out}: {left_out}", error=True)
        if isinstance(sampling.exemplar_strength, dict):
            names = ("default", *Legend.from_dict(job.source.legend, "the job").names)
            unknown = sorted(set(sampling.exemplar_strength) - {*names})
            allowed = ", ".join(names)
            require(not unknown, "exemplar_strength", unknown, allowed)
        _warn_of_turned_shadows(sampling, options)
        idle = options.eta is not None and "sampler" in kind.reads and sampling.sampler != "ddim"
        require(not idle, "eta", options.eta, f"with sampler ddim; {sampling.sampler} has none")
    model, weights = str(options.model), info.weights_hash if info else ""
    if info is None:  # a painter with a model of its own, or with none: mini is then no more than the option's default
        model = "" if model == GenerateOptions.model else model
        weights = hash_files(Path(model)) if model else ""
    critic, critic_hash = options.critic, ""
    if critic.model is not None:
        critic_hash = hash_files(critic.model)
        if not critic_hash:
            raise ModelError(f"{critic.model}: no critic; train one: changeanywhere train critic")
    choice = PainterChoice(options.method, model, weights, dict(options.painter_options), critic, critic_hash)
    machine = _machine(options, device_flags_read(options, kind), begun.machine if begun else None)
    return replace(job, painter=choice, sampling=sampling, machine=machine)


def _warn_of_turned_shadows(sampling: Sampling, options: GenerateOptions) -> None:
    """An exemplar brings the shadow that its object casts; turned, it falls where no sun could throw it."""
    events = options.events
    for name, value in (("rotate", events.rotate), ("flip", events.flip)):
        if sampling.from_exemplars and value not in ("none", False):
            say(
                f"{options.out}: events.{name} {value} turns shadows with the objects that cast them; leave it out, or "
                "give --exemplar-strength 1",
                error=True,
            )


def _machine(options: GenerateOptions, read: frozenset[str], before: Machine | None) -> Machine:
    """On what the set is painted: as asked, else as begun, else the fastest that is there. ``batch_size`` 0: whatever
    the device takes, which only painting tells."""
    if not read:
        return Machine("cpu", "float32", options.batch_size or CPU_BATCH, 1, False)
    from changeanywhere.diffusion.pipeline import default_dtype, dtype_note, find_device

    refuse_index(options.device)
    device = find_device(options.device if "device" in read else "cpu")
    fastest = default_dtype(device) if "dtype" in read else "float32"
    if before and "dtype" in read and options.dtype is None and (note := dtype_note(before.dtype, device)):
        say(f"{options.out}: {note}", error=True)
    batch_size = options.batch_size or (before.batch_size if before else 0)
    return Machine(
        device=device.type,
        dtype=options.dtype or (before.dtype if before else fastest),
        batch_size=batch_size or (CPU_BATCH if device.type == "cpu" else 0),
        num_threads=options.num_threads or (before.num_threads if before else usable_processors()),
        compile=options.compile,
    )


def _asked(options: SimulateOptions) -> dict[str, Any]:
    said = {name: value for name, value in to_plain(options).items() if name not in NOT_ASKED}
    asked = {"options": said, "files": _looks(_named_files(options))}
    listing = listing_of(options.source)
    if listing is not None:
        asked["listing"] = listing
    models = {name: listing_of(place) for name, place in _networks(options).items() if address_of(place) is not None}
    return asked | {"models": models} if models else asked


def _networks(options: SimulateOptions) -> dict[str, str | Path]:
    """Names or places of what paints and judges."""
    if not isinstance(options, GenerateOptions):
        return {}
    named = {"model": options.model, "critic": options.critic.model, "filter": options.filter.model}
    named["dates"] = options.second.segmenter
    return {name: place for name, place in named.items() if place is not None}


def _named_files(options: SimulateOptions) -> Iterator[Path]:
    """Files and folders that an answer may depend on."""
    if address_of(options.source) is None:
        yield from _source_and_above(options.source)
    for name in ("legend", "legend_map", "masks_t2"):
        value = getattr(options, name, None)
        if value is not None:
            yield Path(value)
    if options.events.transitions is not None:
        yield Path(options.events.transitions)
    if options.targets.like is not None:
        yield Path(options.targets.like)
    if options.targets.like_list is not None:
        yield Path(options.targets.like_list)
    for name, place in _networks(options).items():
        if address_of(place) is None:
            is_embedded = name == "model" and place == EMBEDDED_MODEL
            yield (
                find_model(place)
                if is_embedded
                else find_segmenter(place)
                if name in ("filter", "dates")
                else Path(place)
            )


def _source_and_above(source: Path) -> Iterator[Path]:
    yield source
    for parent in source.resolve().parents:  # legends and provenance are looked for there
        yield from (parent / name for name in (*LEGEND_FILES, "provenance.csv"))


def _looks(places: Iterator[Path]) -> str:
    """Hash of names, sizes and times of files, as a build tool sees them."""
    seen = hashlib.sha256()
    for place in places:
        files = [place] if place.is_file() else files_below(place) if place.is_dir() else []
        for file in files:
            if not file.exists():  # a link to nowhere
                seen.update(f"{file}\n".encode())
                continue
            status = file.stat()
            seen.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return seen.hexdigest()[:16]
