"""What differs between two real dates beside change: light, air, optics, sensor, registration. No torch here.

Applied in the order in which light takes it: ground (season) → light (illumination, white balance, shadow) → air (haze)
→ geometry (misregistration) → optics (blur) → sensor (noise) → storage (JPEG). Labels stay as they are: that an image
lies some pixels beside its mask is what real pairs do.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from changeanywhere.errors import ConfigError, require
from changeanywhere.help import one_of, require_one

Where = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.float32]
"""Image ``[H, W, C]``, float32; 0 and 1 are the ends of the tile's stretch (black and white of 8-bit images)."""
SHADOW_SIZE = 48
"""Typical width of a cloud shadow, px."""
SHADOW_SHARE = 0.25
"""Share of the image under shadow where there is one."""
SHADOW_EDGE = 0.35
"""Softness of a shadow's edge, in standard deviations of the field it is cut from."""
DATES = ("second", "both")


def _off() -> list[float]:
    return [0.0, 0.0]


@dataclass(frozen=True)
class NuisanceOptions:
    """Ranges, as [low, high]; every image draws its amount uniformly. [0, 0] is off."""

    dates: str = one_of(DATES, "second")
    """Which images are changed: ``second``, or ``both``, each with amounts of its own."""
    season: list[float] = field(default_factory=_off)
    """How far mean and spread of every band move towards those of another tile of the same split, 0 to 1."""
    illumination: list[float] = field(default_factory=_off)
    """Relative change of brightness, e.g. [-0.2, 0.2]."""
    white_balance: list[float] = field(default_factory=_off)
    """Relative change of every band's brightness on its own, up to this far up or down, 0 to 1."""
    shadow: list[float] = field(default_factory=_off)
    """Share of light that cloud shadows take from a quarter of the image, 0 to 1."""
    haze: list[float] = field(default_factory=_off)
    """Share of light that comes from the air instead of the ground, 0 to 1."""
    misregistration: list[float] = field(default_factory=_off)
    """Length of a shift in a random direction, px (fractions by cubic interpolation)."""
    blur: list[float] = field(default_factory=_off)
    """Standard deviation of a Gaussian, px."""
    noise: list[float] = field(default_factory=_off)
    """Standard deviation of sensor noise, share of the range from black to white."""
    jpeg: list[float] = field(default_factory=_off)
    """Quality, 1 to 95 (lower = worse)."""

    def check(self) -> None:
        """Raise :class:`ConfigError` naming the first value that is not allowed."""
        require_one("nuisances.dates", self.dates, DATES)
        idle = self.dates != NuisanceOptions.dates and not self.any
        require(not idle, "nuisances.dates", self.dates, "beside a nuisance that is on")
        for name, (least, most) in _LIMITS.items():
            values = getattr(self, name)
            if len(values) != 2 or not least <= values[0] <= values[1] <= most:
                raise ConfigError(f"nuisances.{name} is {values}; allowed: [low, high] within {least:g} to {most:g}")

    @property
    def any(self) -> bool:
        """Whether anything is on."""
        return any(getattr(self, name) != [0, 0] for name in _LIMITS)

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Amounts for one image, by name, without those that are off."""
        drawn = {name: float(np.round(rng.uniform(*getattr(self, name)), 4)) for name in _LIMITS}
        return {name: drawn[name] for name in _LIMITS if getattr(self, name) != [0, 0]}


_LIMITS = {
    "season": (0.0, 1.0),
    "illumination": (-0.9, 9.0),
    "white_balance": (0.0, 1.0),
    "shadow": (0.0, 1.0),
    "haze": (0.0, 1.0),
    "misregistration": (0.0, 8.0),
    "blur": (0.0, 8.0),
    "noise": (0.0, 1.0),
    "jpeg": (0.0, 95.0),
}
assert set(_LIMITS) == {f.name for f in fields(NuisanceOptions)} - {"dates"}


def disturb(
    image: Pixels,
    amounts: dict[str, float],
    other: Pixels | None,
    rng: np.random.Generator,
    shown: Where | None = None,
) -> Pixels:
    """``image`` with ``amounts`` of each nuisance; ``other``: ground ``[N, C]`` that ``season`` moves it towards.
    ``shown``: bool ``[H, W]``, where it is ground (None: everywhere); what fills the rest counts for nothing."""
    from scipy import ndimage  # here: options are read by commands that disturb nothing

    shown = None if shown is None or shown.all() or not shown.any() else shown
    result: npt.NDArray[np.floating] = image if shown is None else _filled(image, shown)
    if amounts.get("season") and other is not None and len(other):
        result = _towards(result, other, amounts["season"], shown)
    if "illumination" in amounts:
        result = result * (1 + amounts["illumination"])
    if amounts.get("white_balance"):
        result = result * (1 + amounts["white_balance"] * rng.uniform(-1, 1, image.shape[2]))
    if "shadow" in amounts:
        result = result * (1 - amounts["shadow"] * _shadow(image.shape[:2], rng))[..., None]
    if "haze" in amounts:
        air = np.percentile(_ground(result, shown), 95, axis=0)
        result = result * (1 - amounts["haze"]) + amounts["haze"] * air
    if amounts.get("misregistration"):
        angle = rng.uniform(0, 2 * np.pi)
        by = (amounts["misregistration"] * np.sin(angle), amounts["misregistration"] * np.cos(angle))
        # Band by band: over three axes the spline has four times the terms.
        bands = [ndimage.shift(result[..., band], by, order=3, mode="reflect") for band in range(image.shape[2])]
        result = np.stack(bands, axis=2)
    if amounts.get("blur"):
        result = ndimage.gaussian_filter(result, (amounts["blur"], amounts["blur"], 0))
    if amounts.get("noise"):
        result = result + rng.normal(0, amounts["noise"], image.shape)
    result = np.clip(result, 0, 1)
    if amounts.get("jpeg"):
        result = _compress(result, round(amounts["jpeg"]))
    return result.astype(np.float32)


def _towards(
    image: npt.NDArray[np.floating], other: Pixels, share: float, shown: Where | None
) -> npt.NDArray[np.floating]:
    """Mean and standard deviation of every band, ``share`` of the way to the other's (Reinhard et al. 2001)."""
    own = _ground(image, shown)
    mean, spread = own.mean(0), own.std(0)
    wanted_mean = mean + share * (other.mean(0) - mean)
    wanted_spread = spread + share * (other.std(0) - spread)
    moved: npt.NDArray[np.floating] = (image - mean) * (wanted_spread / np.maximum(spread, 1e-3)) + wanted_mean
    return moved


def _ground(image: npt.NDArray[np.floating], shown: Where | None) -> npt.NDArray[np.floating]:
    """What is shown of ``[H, W, C]``, as ``[N, C]``."""
    return image.reshape(-1, image.shape[2]) if shown is None else image[shown]


def _filled(image: Pixels, shown: Where) -> Pixels:
    """Ground that is not ``shown`` as the nearest that is: else its black would run into that by blur and shift."""
    from scipy import ndimage

    nearest = ndimage.distance_transform_edt(~shown, return_distances=False, return_indices=True)
    filled: Pixels = image[tuple(nearest)]
    return filled


def _shadow(shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Where shadows lie, 0 to 1 with soft edges: the top of a smooth random field."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(rng.normal(size=shape), SHADOW_SIZE / 2, mode="reflect")
    smooth = (smooth - smooth.mean()) / smooth.std()
    threshold = np.quantile(smooth, 1 - SHADOW_SHARE)
    field_: npt.NDArray[np.floating] = np.clip((smooth - threshold) / SHADOW_EDGE + 0.5, 0, 1)
    return field_


def _compress(image: npt.NDArray[np.floating], quality: int) -> npt.NDArray[np.floating]:
    """Through JPEG and back, ``[H, W, 3]``."""
    from PIL import Image as PillowImage

    buffer = io.BytesIO()
    PillowImage.fromarray(np.round(image * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    with PillowImage.open(buffer) as decoded:
        return np.asarray(decoded, np.float32) / 255
