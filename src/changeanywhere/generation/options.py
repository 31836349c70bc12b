"""What ``generate`` and ``simulate`` can be told. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from changeanywhere.errors import ConfigError, require
from changeanywhere.events import EventOptions
from changeanywhere.generation.nuisances import NuisanceOptions
from changeanywhere.generation.targets import SetTargets
from changeanywhere.sources.options import SourceOptions

DEFAULT_SHARD = 32
METHODS = ("diffusion", "copy_paste", "recolour", "patch_exchange")


@dataclass(frozen=True, kw_only=True)
class SimulateOptions(SourceOptions):
    """Options of ``changeanywhere simulate`` (events only, no model)."""

    source: Path
    """Folder of single-date tiles: images/ + masks/, an OpenEarthMap tree, or a LoveDA tree."""
    out: Path
    """Folder of the result; the same command again finishes what was interrupted."""
    num_pairs: int | None = None
    """Pairs in all; default: pairs_per_image times the number of tiles."""
    pairs_per_image: int = 2
    """Pairs per tile where num_pairs is not given (2 = one appearance, one disappearance: the paper's set)."""
    seed: int = 0
    """Every random number follows from it, the tile and the pair's number on that tile."""
    events: EventOptions = field(default_factory=EventOptions)
    learn_transitions: bool = False
    """Estimate weights of transitions and usual sizes of objects from the source (what borders what, how large)."""
    targets: SetTargets = field(default_factory=SetTargets)

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        self.targets.check()
        checks: list[tuple[str, object, bool, str]] = [
            ("num_pairs", self.num_pairs, self.num_pairs is None or self.num_pairs > 0, "1 or more"),
            ("pairs_per_image", self.pairs_per_image, self.pairs_per_image > 0, "1 or more"),
            (
                "learn_transitions",
                self.learn_transitions,
                not (self.learn_transitions and self.events.transitions),
                "false where events.transitions is given",
            ),
            ("seed", self.seed, self.seed >= 0, "0 or more"),
        ]
        for name, value, allowed, what in checks:
            require(allowed, name, value, what)


@dataclass(frozen=True)
class FilterOptions:
    """A second network reads the painted changes; poor pairs are marked, dropped or painted again."""

    model: Path | None = None
    """Segmenter folder (train segmenter); default: no filter."""
    action: str = "drop"
    """``score`` (write the score only), ``drop`` (leave poor pairs out), ``resample`` (other noise, then drop)."""
    min_score: float = 0.5
    """Least share of the changed ground that must be read as its new class, 0 to 1."""
    attempts: int = 3
    """With ``resample``: paintings of a pair at most."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        if self.action not in ("score", "drop", "resample"):
            raise ConfigError(f"filter.action is {self.action!r}; allowed: score, drop, resample")
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"filter.min_score is {self.min_score}; allowed: 0 to 1")
        if self.attempts < 1:
            raise ConfigError(f"filter.attempts is {self.attempts}; allowed: 1 and more")
        if self.model is None and self != FilterOptions():
            raise ConfigError("filter.model is missing; the other filter options do nothing without it")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(SimulateOptions):
    """Options of ``changeanywhere generate``. Settings left out are those that the model recommends."""

    model: str = "mini"
    """``mini`` (in the package) or a model folder."""
    legend_map: Path | None = None
    """YAML file 'source class: target class or unknown'; default: equal names, or a mapping of the package."""
    shard_size: int = DEFAULT_SHARD
    """Pairs that are finished together: what an interruption can cost."""
    masks_t2: Path | None = None
    """Folder of your own second masks, named like the source's masks and in its legend; no events are simulated."""
    method: str = "diffusion"
    """How date 2 is made: ``diffusion``; for comparison ``copy_paste``, ``recolour``, ``patch_exchange``."""
    sampler: str | None = None
    """ddim, dpmsolver++ or unipc."""
    num_steps: int | None = None
    """Denoiser calls per image."""
    free_fraction: float | None = None
    """Share of the last steps in which unchanged ground is painted freely, 0 to 1; 0 keeps it as it is."""
    guidance_scale: float | None = None
    """Classifier-free guidance; 1 = off."""
    known_noise: str | None = None
    """Noise on unchanged ground: fresh at every step, or fixed per pair."""
    eta: float | None = None
    """Stochasticity of ddim, 0 to 1."""
    dilate_cells: int | None = None
    """Latent cells (4 px) by which the painted part reaches over the change mask."""
    window_margin: int | None = None
    """Latent cells around the change that the network sees until the free tail; 0 = the whole tile."""
    reconstruct_t1: bool = False
    """Write image t1 as the first stage gives it back, so that its look does not tell the dates apart."""
    paste_back: bool = False
    """Put the pixels of image t1 back on unchanged ground, with a soft seam of 8 px around the change."""
    random_order: bool = False
    """Exchange the dates of half of the pairs: date 1 is then painted, and what appeared disappears."""
    nuisances: NuisanceOptions = field(default_factory=NuisanceOptions)
    filter: FilterOptions = field(default_factory=FilterOptions)
    image_format: str = "png"
    """png (8-bit RGB) or geotiff (CRS, transform, bands and dtype of the source)."""
    batch_size: int | None = None
    """Pairs painted at once; default: that of the dataset begun, else 4 on the CPU, on a GPU what its memory takes."""
    device: str | None = None
    """cpu, cuda, …; default: cuda where there is one."""
    dtype: str | None = None
    """float32, bfloat16 or float16; default: that of the dataset begun, else bfloat16 where the device has it."""
    num_threads: int | None = None
    """CPU threads of the model (sums depend on it in the last bits); default: those of the dataset begun, else all."""
    compile: bool = False
    """Compile the denoiser with torch.compile: minutes first, then about 15 % faster; pays from thousands of pairs
    (needs a C++ compiler on the CPU)."""
    dry_run: bool = False
    """Plan, time one batch, say pairs, bytes and time; write nothing."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        super().check()
        self.nuisances.check()
        self.filter.check()
        checks: list[tuple[str, object, bool, str]] = [
            (
                "random_order",
                self.random_order,
                not (self.random_order and self.targets.class_pairs),
                "false with targets.class_pairs, which have a direction",
            ),
            (
                "filter.action",
                self.filter.action,
                self.method == "diffusion" or self.filter.action != "resample",
                "score, drop where method is not diffusion: there is no other noise",
            ),
            ("shard_size", self.shard_size, self.shard_size > 0, "1 or more"),
            (
                "masks_t2",
                str(self.masks_t2),
                self.masks_t2 is None or (self.num_pairs is None and self.targets == SetTargets()),
                "without num_pairs and targets: your masks say what changes, one pair each",
            ),
            ("method", self.method, self.method in METHODS, ", ".join(METHODS)),
            ("batch_size", self.batch_size, self.batch_size is None or self.batch_size > 0, "1 or more"),
            ("num_threads", self.num_threads, self.num_threads is None or self.num_threads > 0, "1 or more"),
            ("image_format", self.image_format, self.image_format in ("png", "geotiff"), "png, geotiff"),
        ]
        for name, value, allowed, what in checks:
            require(allowed, name, value, what)
