"""What ``generate`` and ``simulate`` can be told. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from changeanywhere.diffusion.options import CriticOptions, SamplingOptions
from changeanywhere.errors import ConfigError, require
from changeanywhere.events import EventOptions
from changeanywhere.exporting.options import LAYOUT_NAMES
from changeanywhere.generation.nuisances import NuisanceOptions
from changeanywhere.generation.second import SecondOptions
from changeanywhere.generation.targets import SetTargets
from changeanywhere.help import one_of, require_one
from changeanywhere.limits import check_limits
from changeanywhere.painters.registry import painter_names
from changeanywhere.pairs.containers import FORMATS, check_format
from changeanywhere.pairs.names import FileKinds, ImageFormat
from changeanywhere.sources.options import SourceOptions
from changeanywhere.storage import address_of, check_place

CPU_SHARD, GPU_SHARD = 32, 64
"""Pairs of a shard where nobody says: a GPU fills up with a shard, a CPU takes seconds for a pair."""
INFEASIBLE = ("elsewhere", "leave")
FILTER_ACTIONS = ("score", "drop", "resample")
EXECUTORS = ("threads", "ray")
IMAGE_FORMATS = ("png", "geotiff")
PAINTER_FLAGS = (
    *("sampler", "num_steps", "free_fraction", "guidance_scale"),
    *("known_noise", "eta", "dilate_cells", "window_margin", "guidance_interval"),
    *("exemplar_strength", "exemplar_ring", "restore_detail", "critic", "compile"),
)
"""Options that some painters read and others do not."""
DEVICE_FLAGS = ("device", "dtype", "num_threads")
"""Those of them that whatever computes on a device reads: the filter and the first stage of ``reconstruct_t1`` too."""
EVENTS_READ_BY = {
    "appearance": "objects move margin max_coverage rotate flip scale group_size shape_bank placement",
    "disappearance": "objects fill",
    "growth": "spread",
    "shrinkage": "spread",
    "rebuild": "margin rotate flip scale shape_bank fill",
}
"""Options of events that only some kinds read."""


@dataclass(frozen=True, kw_only=True)
class SimulateOptions(SourceOptions):
    """Options of ``changeanywhere simulate`` (events only, no model)."""

    source: Path
    """Folder or address (s3://…) of single-date tiles: images/ + masks/, or one of the trees of docs/data.md."""
    out: Path
    """Folder or address (s3://…) of the result; the same command again finishes what was interrupted."""
    num_pairs: int | None = None
    """Pairs in all; default: pairs_per_image times the number of tiles."""
    pairs_per_image: int = 2
    """Pairs per tile where num_pairs is not given (2 = one appearance, one disappearance: the paper's set)."""
    infeasible: str = one_of(INFEASIBLE, "elsewhere")
    """A change that its tile has no room for: tried on other tiles (``elsewhere``), or left out and counted, so that no
    tile has more than its turn (``leave``; the paper's set: one appearance and one disappearance of each image)."""
    seed: int = 0
    """Every random number follows from it, the tile and the pair's number on that tile."""
    events: EventOptions = field(default_factory=EventOptions)
    learn_transitions: bool = False
    """Estimate weights of transitions and usual sizes of objects from the source (what borders what, how large)."""
    targets: SetTargets = field(default_factory=SetTargets)
    mask_palette: bool = False
    """Write semantic masks with the legend's colours as palette, for eyes; default: grey, the numbers being the
    classes, since many readers (Open-CD's) turn palettes into brightness."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed, or that would do nothing."""
        check_limits(self)
        check_place(self.out, self.source)
        self.targets.check()
        require(self.num_pairs is None or self.num_pairs > 0, "num_pairs", self.num_pairs, "1 or more")
        require(self.pairs_per_image > 0, "pairs_per_image", self.pairs_per_image, "1 or more")
        alone = self.num_pairs is None or self.pairs_per_image == SimulateOptions.pairs_per_image
        require(alone, "pairs_per_image", self.pairs_per_image, "nothing beside num_pairs, which says it all")
        require_one("infeasible", self.infeasible, INFEASIBLE)
        twice = self.learn_transitions and self.events.transitions
        require(not twice, "learn_transitions", True, "false where events.transitions is given")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        refuse_idle_events(self.events)
        refuse_two_ways(self.events, self.targets.class_pairs, "targets.class_pairs")


def refuse_two_ways(events: EventOptions, class_pairs: Mapping[str, float], name: str) -> None:
    """:class:`ConfigError` for class pairs of events that move, whose place becomes ground of a further one."""
    require(not (events.move and class_pairs), "events.move", True, f"false beside {name}")


def refuse_idle_events(events: EventOptions) -> None:
    """:class:`ConfigError` for an option that none of the asked kinds reads: it would do nothing."""
    alone = not events.shape_bank or events.group_size == EventOptions.group_size
    require(alone, "events.group_size", events.group_size, "1 with events.shape_bank, which gives one shape at a time")
    for name in sorted({name for names in EVENTS_READ_BY.values() for name in names.split()}):
        readers = [kind for kind, names in EVENTS_READ_BY.items() if name in names.split()]
        value = getattr(events, name)
        if name == "fill" and events.move:
            readers.append("appearance")  # what it leaves
        read = value == getattr(EventOptions(), name) or set(readers) & set(events.kinds)
        require(bool(read), f"events.{name}", value, f"with one of the kinds {', '.join(readers)}, which read it")


@dataclass(frozen=True)
class FilterOptions:
    """A second network reads the painted changes; poor pairs are marked, dropped or painted again."""

    model: Path | None = None
    """``mini-segmenter``, or a segmenter's folder or address (train segmenter); default: no filter."""
    action: str = one_of(FILTER_ACTIONS, "drop")
    """``score`` (write the score only), ``drop`` (leave poor pairs out), ``resample`` (other noise, then drop)."""
    min_score: float = 0.5
    """Least share of the changed ground that must be read as its new class, 0 to 1."""
    attempts: int = 3
    """With ``resample``: paintings of a pair at most."""

    @property
    def drops(self) -> bool:
        """Whether pairs of the plan may be missing in the set."""
        return self.model is not None and self.action != "score"

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        require_one("filter.action", self.action, FILTER_ACTIONS)
        require(0 <= self.min_score <= 1, "filter.min_score", self.min_score, "0 to 1")
        require(self.attempts >= 1, "filter.attempts", self.attempts, "1 and more")
        if self.model is None and self != FilterOptions():
            raise ConfigError("filter.model is missing; the other filter options do nothing without it")
        read = self.action == "resample" or self.attempts == FilterOptions.attempts
        require(read, "filter.attempts", self.attempts, "with filter.action resample, which alone reads it")
        read = self.action != "score" or self.min_score == FilterOptions.min_score
        require(read, "filter.min_score", self.min_score, "with filter.action drop or resample, which read it")


@dataclass(frozen=True)
class FinishingOptions:
    """What happens to a painted pair before it is written; on the command line these have no section."""

    image_format: ImageFormat = "png"
    reconstruct_t1: bool = False
    paste_back: bool = False
    random_order: bool = False
    nuisances: NuisanceOptions = field(default_factory=NuisanceOptions)
    filter: FilterOptions = field(default_factory=FilterOptions)
    filter_hash: str = ""
    """Of the filter's weights: where they lie may change."""
    mask_palette: bool = False

    @property
    def files(self) -> FileKinds:
        """How pairs are written."""
        return FileKinds(self.image_format, self.mask_palette)


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(SamplingOptions, SimulateOptions):
    """Options of ``changeanywhere generate``. Settings left out are those that the model recommends."""

    model: str = "mini"
    """``mini`` (in the package), or a model's folder or address (s3://…)."""
    legend_map: Path | None = None
    """YAML file 'source class: target class or unknown'; default: equal names, or a mapping of the package."""
    shard_size: int | None = None
    """Pairs that are finished together: what an interruption can cost; default: as the dataset was begun, else 32, on a
    GPU 64."""
    masks_t2: Path | None = None
    """Folder of your own second masks, named like the source's masks and in its legend; no events are simulated."""
    method: str = one_of(painter_names, "diffusion")
    """How date 2 is made: ``diffusion``; for comparison ``copy_paste``, ``recolour``, ``patch_exchange``; or a painter
    that another package registers."""
    critic: CriticOptions = field(default_factory=CriticOptions)
    reconstruct_t1: bool = False
    """Write image t1 as the first stage gives it back, so that its look does not tell the dates apart."""
    paste_back: bool = False
    """Put the pixels of image t1 back on unchanged ground, with a soft seam of 8 px around the change."""
    random_order: bool = False
    """Exchange the dates of half of the pairs: date 1 is then painted, and what appeared disappears."""
    nuisances: NuisanceOptions = field(default_factory=NuisanceOptions)
    filter: FilterOptions = field(default_factory=FilterOptions)
    second: SecondOptions = field(default_factory=SecondOptions)
    image_format: str = one_of(IMAGE_FORMATS, "png")
    """png (8-bit RGB) or geotiff (CRS, transform, bands and dtype of the source, and what it says of the bands: names,
    units, scales, offsets)."""
    format: str = one_of(FORMATS, "folder")
    """What pairs lie in: ``folder`` (a file per image), ``webdataset`` (a tar per shard) or ``parquet`` (a table per
    shard, for Hugging Face datasets and pandas)."""
    layout: str = one_of(LAYOUT_NAMES, "levir")
    """Layout of the pairs: ``levir`` is written directly; for another name of ``changeanywhere export`` the finished
    set is exported to OUT/layouts/NAME, too, by links where files stay as they are."""
    batch_size: int | None = None
    """Pairs painted at once; default: that of the dataset begun, else 4 on the CPU, on a GPU what its memory takes."""
    compile: bool = False
    """Compile the denoiser with torch.compile: minutes first, then about 15 % faster; pays from thousands of pairs
    (needs a C++ compiler on the CPU)."""
    shard: str | None = None
    """Paint this share of the set alone, I/N with I from 0 to N - 1: N jobs on one --out share the work; the one that
    finishes last, or changeanywhere finish, makes lists and report."""
    executor: str = one_of(EXECUTORS, "threads")
    """Who paints: ``threads`` of this process, or ``ray``: actors on a Ray cluster whose nodes see source and out."""
    address: str | None = None
    """With ``ray``: auto, or HOST:PORT of the cluster; default: one of this machine alone, for this run."""
    workers: int | None = None
    """With ``ray``: actors; default: one per GPU, on CPUs one per ``num_threads`` of what the cluster has."""
    dry_run: bool = False
    """Plan, time one batch, say pairs, bytes and time; write nothing."""

    painter_options: dict[str, Any] = field(default_factory=dict)
    """Options of a painter from another package, by name; the package's own painters have flags."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed, or that would do nothing."""
        super().check()
        require(not (self.shard and self.dry_run), "shard", self.shard, "nothing beside dry_run, which paints none")
        self.nuisances.check()
        self.filter.check()
        self.critic.check()
        self._check_second()
        ordered = not (self.random_order and self.targets.class_pairs)
        require(ordered, "random_order", True, "false with targets.class_pairs, which have a direction")
        for name in ("shard_size", "batch_size", "num_threads"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "1 or more")
        require_one("image_format", self.image_format, IMAGE_FORMATS)
        check_format(self.format)
        require_one("layout", self.layout, LAYOUT_NAMES)
        folder = self.layout == GenerateOptions.layout or address_of(self.out) is None
        require(folder, "layout", self.layout, "with a folder of this machine as out; else export the set afterwards")
        require_one("executor", self.executor, EXECUTORS)
        for name in ("address", "workers"):
            value = getattr(self, name)
            require(value is None or self.executor == "ray", name, value, "with executor ray, which alone reads it")
        require(self.workers is None or self.workers > 0, "workers", self.workers, "1 or more")
        if self.masks_t2 is not None:
            self._check_given_masks()

    def _check_second(self) -> None:
        """What would do nothing beside a real second date, or undo it."""
        self.second.check()
        use = self.second.use
        shown = not (self.second.shown and self.reconstruct_t1)
        what = "false beside a second date that is shown: both dates are real there (paste_back keeps its pixels)"
        require(shown, "reconstruct_t1", True, what)
        undisturbed = use != "style" or not self.nuisances.any
        require(undisturbed, "second.use", use, "without nuisances, whose place it takes")
        asked = not self.second.no_change or self.targets.no_change > 0 or self.targets.like is not None
        require(asked, "second.no_change", True, "with targets.no_change above 0")
        own = self.masks_t2 is None or use == "none"
        require(own, "second.use", use, "none beside masks_t2, which say themselves what the second date shows")

    def _check_given_masks(self) -> None:
        """With second masks of the user's own, what says how changes are drawn would do nothing."""
        require(self.splits is None, "splits", self.splits, "nothing beside masks_t2, whose files say which tiles")
        for name in ("num_pairs", "pairs_per_image", "infeasible", "targets", "events", "learn_transitions"):
            value = getattr(self, name)
            blank = GenerateOptions(source=self.source, out=self.out)
            what = "without num_pairs and targets: your masks say what changes, one pair each"
            require(value == getattr(blank, name), "masks_t2", f"{self.masks_t2} beside {name}", what)

    @property
    def finishing(self) -> FinishingOptions:
        """What happens to a painted pair."""
        image_format = cast(ImageFormat, self.image_format)  # says check
        return FinishingOptions(
            *(image_format, self.reconstruct_t1, self.paste_back, self.random_order, self.nuisances, self.filter),
            mask_palette=self.mask_palette,
        )


@dataclass(frozen=True, kw_only=True)
class FinishOptions:
    """Options of ``changeanywhere finish``."""

    path: Path
    """Folder of the set."""
