"""How second dates are painted: settings of blended diffusion. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from changeanywhere.errors import ConfigError, require
from changeanywhere.help import among, one_of
from changeanywhere.seeds import stream

SAMPLERS = ("ddim", "dpmsolver++", "unipc")
KNOWN_NOISE = ("fresh", "fixed")
DTYPES = ("float32", "bfloat16", "float16")


def refuse_index(device: str | None) -> None:
    """Raise :class:`ConfigError` for one of several devices of a kind, where a set or scene keeps the kind alone and is
    painted on the first, in all threads."""
    kind, _, number = (device or "").partition(":")
    if number.strip("0"):
        chosen = f", with CUDA_VISIBLE_DEVICES={number} before the command, which then sees that GPU alone"
        raise ConfigError(f"device is {device!r}; allowed: {kind}{chosen if kind == 'cuda' else ''}")


@dataclass(frozen=True)
class CriticOptions:
    """A small network reads latents while they are painted (train critic)."""

    model: Path | None = None
    """Folder or address of a critic (train critic), of the model's own first stage and legend; default: none."""
    starts: int = 1
    """Noises that are tried per pair; the one that shows most of the new classes is painted in full."""
    calls: int = 3
    """Denoiser calls with which each start is tried."""
    push: float = 0.0
    """How far early calls are moved towards what the critic wants to see, in noise-weighted deviations of latents."""
    until: int = 400
    """Last timestep, of 1000, at which ``push`` acts."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed, or would do nothing."""
        require(1 <= self.starts <= 64, "critic.starts", self.starts, "1 to 64")
        require(1 <= self.calls < 1000, "critic.calls", self.calls, "1 to 999")
        require(0 <= self.push <= 10, "critic.push", self.push, "0 to 10")
        require(0 <= self.until < 1000, "critic.until", self.until, "0 to 999")
        if self.model is None and self != CriticOptions():
            raise ConfigError("critic.model is missing; the other critic options do nothing without it")
        used = self.model is None or self.starts > 1 or self.push > 0
        require(
            used, "critic.model", str(self.model), "with critic.starts above 1 or critic.push above 0, which read it"
        )
        read = self.starts > 1 or self.calls == CriticOptions.calls
        require(read, "critic.calls", self.calls, "with critic.starts above 1, which alone reads it")
        read = self.push > 0 or self.until == CriticOptions.until
        require(read, "critic.until", self.until, "with critic.push above 0, which alone reads it")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What commands that paint can be told of :class:`Sampling` and of the device; what is left out, the model
    recommends."""

    sampler: str | None = one_of(SAMPLERS)
    """ddim, dpmsolver++ or unipc. With ddim where eta is above 0, and with known_noise fresh, what the model recommends
    of exemplar_strength and window_margin, which these cannot do, is left out."""
    num_steps: int | None = None
    """Denoiser calls per image."""
    free_fraction: float | list[float] | None = None
    """Share of the last steps in which unchanged ground is painted freely, 0 to 1; 0 keeps it as it is. Or (not for
    scenes) a range to draw each pair's from, '[0, 0.3]' (the paper's)."""
    guidance_scale: float | None = None
    """Classifier-free guidance; 1 = off."""
    guidance_interval: list[int] | None = None
    """Guide between these timesteps alone, '[200, 700]' of 1000; default: at every call."""
    known_noise: str | None = one_of(KNOWN_NOISE)
    """Noise on unchanged ground: fresh at every step, or fixed."""
    eta: float | None = None
    """Stochasticity of ddim, 0 to 1; the other samplers have none."""
    dilate_cells: int | None = None
    """Latent cells (4 px) by which the painted part reaches over the change mask."""
    window_margin: int | None = None
    """Latent cells around the change that the network sees until the free tail; 0 = the whole tile, or window."""
    exemplar_strength: float | list[float] | dict[str, float] | None = None
    """How much of changed ground is painted over real pixels: 1 = all of it, from noise (the paper's); 0 = nothing. By
    class, '{"building": 0.25, "default": 0.5}', or (not for scenes) a range to draw from, '[0.2, 0.4]'."""
    exemplar_ring: int | None = None
    """Pixels around an exemplar that come along, fading out: where its shadow lies."""
    restore_detail: float | None = None
    """Share of what the first stage loses of real pixels given back to date 2 where it still shows them, 0 to 1."""
    device: str | None = None
    """cpu, cuda, …; default: cuda where there is one. Of several GPUs CUDA_VISIBLE_DEVICES=1 before the command takes
    the second."""
    dtype: str | None = one_of(DTYPES)
    """float32, bfloat16 or float16; default: that of what was begun, else bfloat16 where the device has it."""
    num_threads: int | None = None
    """CPU threads of the model: on up to four batches at once (sums depend on the threads of each in the last bits);
    default: those of what was begun, else all."""

    @property
    def sampling_given(self) -> dict[str, Any]:
        """What is said of :class:`Sampling`."""
        given = {each.name: getattr(self, each.name) for each in fields(Sampling)}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Sampling:
    """How the second date is painted. The reference setting is 200 DDIM steps, η = 1, fresh noise."""

    sampler: str = "dpmsolver++"
    """``ddim``, ``dpmsolver++`` (2M) or ``unipc``."""
    num_steps: int = 20
    """Denoiser calls."""
    free_fraction: float | list[float] = 0.1
    """Share of the last steps in which unchanged ground is painted freely under mask t2 (N_min of the paper), or a
    range to draw each pair's from."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 = off."""
    known_noise: str = "fixed"
    """Noise on the known latent: ``fresh`` at every step or ``fixed``, one per pair (what ODE solvers assume)."""
    eta: float = 1.0
    """Stochasticity of ddim: 1 = DDPM-like (reference), 0 = deterministic; the other samplers have none."""
    dilate_cells: int = 0
    """Latent cells (4 px) by which the repainted part reaches over the change mask."""
    window_margin: int = 0
    """Latent cells around the change that the network sees until the free tail; 0 = the whole tile."""
    exemplar_strength: float | list[float] | dict[str, float] | None = None
    """How much of changed ground is painted: 1 (or None) all of it, from noise, as in the paper; 0 nothing: real pixels
    of an exemplar. By class of mask t2 ({building: 0.25, default: 0.5}), or a range to draw each pair's from."""

    exemplar_ring: int = 6
    """Pixels around an exemplar's instance that come along, fading out: its shadow and its edge."""
    restore_detail: float = 0.0
    """Share of what the first stage loses of real pixels, date 1's and exemplars', that date 2 is given back after
    decoding wherever it still shows them; 0 = none, as in the paper."""
    guidance_interval: list[int] | None = None
    """Timesteps (of 1000, whatever number a model was trained with; both inclusive) between which guidance is applied;
    other calls see the mask alone, at half the cost (Kynkäänniemi et al. 2024). None = at every call."""

    @property
    def from_exemplars(self) -> bool:
        """Whether any changed ground begins from real pixels."""
        return any(strength < 1 for strength in self._strengths)

    @property
    def _has_tail(self) -> bool:
        given = self.free_fraction
        ends = given if isinstance(given, list) else [given, given]
        return len(ends) == 2 and 0 <= ends[0] <= ends[1] <= 1

    @property
    def _strengths(self) -> list[float]:
        given = self.exemplar_strength
        numbers = list(given.values()) if isinstance(given, dict) else given
        return [] if numbers is None else numbers if isinstance(numbers, list) else [numbers]

    @property
    def num_held(self) -> int:
        """Calls in which unchanged ground is held (eq. 6); those after them are the free tail.

        :class:`ConfigError` where the tail is a range: each pair has its own, see :meth:`settled`.
        """
        if isinstance(self.free_fraction, list):
            raise ConfigError(f"free_fraction is {self.free_fraction}; allowed: one number, for one pair or scene")
        return int(round(self.num_steps * (1 - self.free_fraction), 9))  # 10 * (1 - 0.9) is 0.9999999999999998

    def settled(self, seed: int) -> Sampling:
        """These settings for the pair whose noise has this seed: its free tail, where a range is given."""
        if not isinstance(self.free_fraction, list):
            return self
        low, high = self.free_fraction
        return replace(self, free_fraction=round(float(stream("pair.tail", seed).uniform(low, high)), 4))

    def guides(self, timestep: float) -> bool:
        """Whether the call at this timestep, of 1000, is guided."""
        interval = self.guidance_interval
        return self.guidance_scale != 1 and (interval is None or interval[0] <= timestep <= interval[1])

    def changed(self, given: Mapping[str, Any]) -> Sampling:
        """These settings with those that are ``given``. What does nothing any more, since something given switches it
        off, goes back to its default: ``guidance_scale`` 1 is all that it takes. So does what a sampler that is given
        cannot do (:meth:`left_out`): a recommendation, of the model for its own sampler, stands in nobody's way."""
        usual = Sampling()
        settings = replace(self, **{name: getattr(usual, name) for name in self.left_out(given)} | dict(given))
        if settings.guidance_scale == 1 and "guidance_interval" not in given:
            settings = replace(settings, guidance_interval=None)
        if not settings.from_exemplars and "exemplar_ring" not in given:
            settings = replace(settings, exemplar_ring=Sampling.exemplar_ring)
        return settings

    def left_out(self, given: Mapping[str, Any]) -> list[str]:
        """Names of these settings, of those that are not ``given``, which a sampler or a noise that is given cannot do:
        windows around changes and exemplars need the noise of a place to be one all along."""
        settings = replace(self, **given)
        if settings.has_fixed_noise:
            return []
        idle = {"window_margin": not self.window_margin, "exemplar_strength": not self.from_exemplars}
        return [name for name in idle if name not in given and not idle[name]]

    def said_of_left_out(self, given: Mapping[str, Any]) -> str:
        """A line about :meth:`left_out`; "" where nothing is."""
        left = [f"{name} {getattr(self, name)}" for name in self.left_out(given)]
        asked = [f"{name} {given[name]}" for name in ("sampler", "eta", "known_noise") if name in given]
        return f"{', '.join(asked)}: painted without {' and '.join(left)}, which the model recommends" if left else ""

    @property
    def has_fixed_noise(self) -> bool:
        """Whether the noise of a place is one and the same at all calls."""
        return self.known_noise == "fixed" and self.is_deterministic

    @property
    def is_deterministic(self) -> bool:
        """Whether the sampler draws no noise of its own."""
        return self.sampler != "ddim" or self.eta == 0

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        checks = [
            ("sampler", self.sampler, self.sampler in SAMPLERS, among(self.sampler, SAMPLERS)),
            ("num_steps", self.num_steps, 1 <= self.num_steps < 1000, "1 to 999"),
            ("free_fraction", self.free_fraction, self._has_tail, "0 to 1, or [low, high]"),
            ("guidance_scale", self.guidance_scale, 0 <= self.guidance_scale <= 30, "0 to 30"),
            ("known_noise", self.known_noise, self.known_noise in KNOWN_NOISE, among(self.known_noise, KNOWN_NOISE)),
            ("eta", self.eta, 0 <= self.eta <= 1, "0 to 1"),
            ("restore_detail", self.restore_detail, 0 <= self.restore_detail <= 1, "0 to 1"),
            ("dilate_cells", self.dilate_cells, 0 <= self.dilate_cells <= 16, "0 to 16"),
            ("window_margin", self.window_margin, self.window_margin >= 0, "0 and more"),
            (
                "window_margin",
                self.window_margin,
                not self.window_margin or self.has_fixed_noise,
                "0 with known_noise fresh, and with ddim where eta is above 0",
            ),
        ]
        interval, ring = self.guidance_interval, self.exemplar_ring
        fits = interval is None or (len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1000)
        checks.append(("guidance_interval", interval, fits, "two timesteps, 0 to 1000, rising"))
        fits = interval is None or self.guidance_scale != 1
        checks.append(("guidance_interval", interval, fits, "nothing with guidance_scale 1, which is no guidance"))
        checks.append(("exemplar_ring", ring, 0 <= ring <= 64, "0 to 64 px"))
        fits = ring == Sampling.exemplar_ring or self.from_exemplars
        checks.append(("exemplar_ring", ring, fits, "with an exemplar_strength below 1, else it does nothing"))
        strengths, numbers = self.exemplar_strength, self._strengths
        what = "1 with known_noise fresh, and with ddim where eta is above 0: tiles begin at steps of their own"
        checks.append(("exemplar_strength", strengths, self.has_fixed_noise or not self.from_exemplars, what))
        ranged = not isinstance(strengths, list) or (len(strengths) == 2 and strengths[0] <= strengths[1])
        fits = all(0 <= number <= 1 for number in numbers) and ranged
        what = "0 to 1, [low, high], or {class: 0 to 1}"
        checks.append(("exemplar_strength", strengths, fits, what))
        for name, value, allowed, what in checks:
            require(allowed, name, value, what)
