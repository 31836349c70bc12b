"""``ChangePairPipeline``: image t1, mask t2 and change mask in, image t2 out."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from changeanywhere.diffusion.blended import OnStep, paint_latents
from changeanywhere.diffusion.canvas import ATTENTIVE_GUARD, ATTENTIVE_RAMP, GUARD, RAMP, Plane, Remembering, Runner
from changeanywhere.diffusion.detail import give_back
from changeanywhere.diffusion.options import Sampling
from changeanywhere.diffusion.scene import ScenePainter
from changeanywhere.diffusion.scene_arrays import ArrayScene, mixed, pixels_of, scene_strengths
from changeanywhere.diffusion.scene_bands import paint_changes, paint_everywhere
from changeanywhere.diffusion.scene_groups import SceneView
from changeanywhere.diffusion.scene_windows import Networks
from changeanywhere.diffusion.windows import SIDE_STEP
from changeanywhere.errors import ConfigError, InputError, ModelError, require
from changeanywhere.help import among
from changeanywhere.legend import Legend
from changeanywhere.models.blocks import quick_blocks
from changeanywhere.models.copies import onto
from changeanywhere.models.first_stage import DOWNSAMPLING, channels_last
from changeanywhere.models.folder import Model, find_model, load_model, save_model
from changeanywhere.models.norms import quick_norms
from changeanywhere.models.packed import packed
from changeanywhere.sample import Normalisation

SCENE_BATCH = 4  # windows that go through the networks at once
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def default_device() -> torch.device:
    """CUDA where there is one, else CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_device(name: str | None) -> torch.device:
    """The device of a name, ``cuda:1`` too, default :func:`default_device`; :class:`ConfigError` for one that is not
    there."""
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device is {name!r}, which this PyTorch cannot use ({str(error).splitlines()[0]})"
        ) from error
    return device


def default_dtype(device: torch.device) -> str:
    """``bfloat16`` where the device computes in it, else ``float32``."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def dtype_note(begun: str | None, device: torch.device) -> str | None:
    """What to say of a dataset that was ``begun`` in another dtype than this machine's default; None: nothing.

    It is finished in the one it was begun in, so that its pairs are of one kind, also where that is slow.
    """
    default = default_dtype(device)
    if begun is None or begun == default:
        return None
    cost = ", which this machine has to emulate, slowly" if begun == "bfloat16" else ""
    return f"begun in {begun}{cost}, and finished in it; this machine's own default is {default}"


PURE = Sampling(exemplar_strength=1.0)
"""Nothing begins from exemplars."""


class ChangePairPipeline:
    """A model with its legend, ready to paint second dates.

    ``pipe(image_t1, mask_t2, change_mask)`` works on arrays; ``encode``, ``decode``, ``predict_noise`` and
    ``paint`` on tensors.
    """

    def __init__(self, model: Model, device: torch.device | None = None) -> None:
        self.model = model
        self.device = device or default_device()
        self.first_stage = quick_blocks(quick_norms(channels_last(model.first_stage.to(self.device))))
        self.denoiser = packed(quick_blocks(quick_norms(channels_last(model.denoiser.to(self.device)))))

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path = "mini", device: str | None = None, dtype: str | None = None
    ) -> Self:
        """Load ``mini`` or a model folder. ``device``: as torch calls it, ``cuda:1`` too; default: CUDA where there is
        one. ``dtype``: float32, bfloat16 or float16; default: the fastest there.

        Raises :class:`ModelError` for a missing or damaged folder, :class:`ConfigError` for an unknown dtype or a
        device that is not there.
        """
        place = find_device(device)
        precision = dtype or default_dtype(place)
        if precision not in DTYPES:
            raise ConfigError(f"dtype is {precision!r}; allowed: {among(precision, DTYPES)}")
        return cls(load_model(find_model(name_or_folder), DTYPES[precision]), place)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that :meth:`from_pretrained` and ``--model`` take."""
        save_model(self.model, Path(folder), self.denoiser.dtype)

    @property
    def legend(self) -> Legend:
        """The classes that masks must be in."""
        return self.model.legend

    @property
    def default_sampling(self) -> Sampling:
        """The settings that the model recommends."""
        return Sampling(**self.model.defaults)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images f32 ``[B, C, H, W]`` in [-1, 1] → standardised latents f32 ``[B, 3, H/4, W/4]``."""
        return self.first_stage.encode(onto(images, self.device, torch.channels_last))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Standardised latents ``[B, 3, h, w]`` → images f32 ``[B, C, 4h, 4w]`` in [-1, 1].

        Raises :class:`ModelError` for latents with NaN or infinity, of which some code is the nearest all the same.
        """
        if not bool(torch.isfinite(latents).all()):
            raise ModelError(
                f"painted latents are not finite: the model overflows in {self.denoiser.dtype}, or is damaged; "
                "give --dtype float32, or another --model"
            )
        return self.first_stage.decode(latents.to(self.device))

    def decode_painted(self, latents: Tensor, real: Tensor, encoded: Tensor, sampling: Sampling) -> Tensor:
        """Latents of date 2 → images as :meth:`decode`, with ``sampling.restore_detail`` of what the first stage loses
        of ``real`` f32 ``[B, C, H, W]`` (date 1, or exemplars), whose latents are ``encoded``."""
        images = self.decode(latents)
        if not sampling.restore_detail:
            return images
        return give_back(images, real.to(images), self.decode(encoded), sampling.restore_detail)

    @torch.no_grad()
    def predict_noise(self, latents: Tensor, timesteps: Tensor, masks: Tensor) -> Tensor:
        """ε for noisy latents ``[B, 3, h, w]``, timesteps int64 ``[B]``, masks int64 ``[B, H, W]`` → ``[B, 3, h, w]``.

        A v-prediction model's output is converted (Salimans & Ho 2022: ε = √ᾱ·v + √(1−ᾱ)·x). Raises
        :class:`LegendError` for a class that is not in the legend.
        """
        self.legend.check(masks.cpu().numpy(), "masks")
        latents, timesteps = latents.to(self.device), timesteps.to(self.device)
        prediction: Tensor = self.denoiser(latents, timesteps, self.denoiser.encode_masks(masks.to(self.device)))
        if self.model.schedule.config.prediction_type == "v_prediction":
            alphas = self.model.schedule.alphas_cumprod.to(self.device)[timesteps].view(-1, 1, 1, 1)
            prediction = alphas.sqrt() * prediction + (1 - alphas).sqrt() * latents
        return prediction

    @torch.no_grad()
    def paint(
        self,
        latents_t1: Tensor,
        masks_t2: Tensor,
        change_masks: Tensor,
        seeds: Sequence[int],
        sampling: Sampling,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Blended diffusion (paper eq. 6): latents of t1 → latents of t2, ``[B, 3, h, w]``.

        ``masks_t2`` int64 ``[B, H, W]``, ``change_masks`` bool ``[B, H, W]``; ``seeds`` one per pair: a pair's noise
        does not depend on its batch. ``on_step(i, x)`` is called before call i of the denoiser; what it raises ends
        the painting. Raises :class:`ConfigError` for more or fewer seeds than pairs.
        """
        self.check_sampling(sampling)
        seeds = _seeds_of(seeds, len(latents_t1))
        known, networks = latents_t1.to(self.device), (self.denoiser, self.model.schedule)
        return paint_latents(*networks, known, masks_t2, change_masks, seeds, sampling, on_step)

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise :class:`ConfigError` for settings that this model cannot do."""
        sampling.check()
        if sampling.guidance_scale != 1 and self.model.mask_dropout == 0:
            raise ConfigError(
                f"guidance_scale is {sampling.guidance_scale}; this model was trained without mask dropout; allowed: 1"
            )

    def __call__(
        self,
        image_t1: npt.NDArray[np.uint8],
        mask_t2: npt.NDArray[np.uint8],
        change_mask: npt.NDArray[np.bool_],
        *,
        num_steps: int | None = None,
        free_fraction: float | list[float] | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] = 0,
        **settings: Any,
    ) -> npt.NDArray[np.uint8]:
        """Image t1 uint8 ``[H, W, 3]``, mask t2 ``[H, W]``, change mask bool ``[H, W]`` → image t2 uint8 ``[H, W, 3]``.

        With a leading batch dimension on all three, ``[B, H, W, 3]``; ``seed`` is then one per pair, or one number
        from which pair i takes ``seed + i``. Height and width must be multiples of ``denoiser.size_multiple`` (16 px of
        ``mini``). Changed ground is painted from noise: exemplars, from which ``generate`` begins by default, need
        donors, which it finds in a source. Further settings: the other fields of :class:`Sampling`; what the model
        recommends of exemplars does not count here, nor what a sampler that is given cannot do
        (:meth:`Sampling.left_out`). Raises :class:`InputError` where the arrays do not fit,
        :class:`ConfigError` for exemplars, and for more or fewer seeds than images.
        """
        for name in ("exemplar_strength", "exemplar_ring"):
            if settings.get(name) not in (None, getattr(PURE, name)):
                raise ConfigError(
                    f"{name} is {settings[name]}; arrays bring no exemplar: generate finds some, paint_scene takes one"
                )
        given = {"num_steps": num_steps, "free_fraction": free_fraction, "guidance_scale": guidance_scale, **settings}
        sampling = replace(self._sampling_of(given), exemplar_strength=None, exemplar_ring=PURE.exemplar_ring)
        image, mask, change = np.asarray(image_t1), np.asarray(mask_t2), np.asarray(change_mask).astype(bool)
        single = image.ndim == 3
        if single:
            image, mask, change = image[None], mask[None], change[None]
        self._check_arrays(image, mask, change)
        seeds = _seeds_of(seed, len(image))
        pixels = torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
        masks, changes = torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(change)
        encoded = self.encode(pixels)
        painted = self.paint(encoded, masks, changes, seeds, sampling)
        result = to_uint8(self.decode_painted(painted, pixels, encoded, sampling))
        return result[0] if single else result

    def paint_scene(
        self,
        image_t1: npt.NDArray[np.uint8],
        mask_t2: npt.NDArray[np.uint8],
        change_mask: npt.NDArray[np.bool_],
        *,
        exemplar: npt.NDArray[np.uint8] | None = None,
        seed: int = 0,
        origin: tuple[int, int] = (0, 0),
        paste_back: bool = False,
        **settings: Any,
    ) -> npt.NDArray[np.uint8]:
        """A whole scene of any size by windows: image t1 uint8 ``[H, W, 3]``, mask t2 ``[H, W]``, change mask bool
        ``[H, W]`` → image t2 uint8 ``[H, W, 3]``.

        ``exemplar``: image t1 with real pixels of the new classes on changed ground (the command makes its own);
        without it changed ground is painted from noise. ``origin``: row and column of the first pixel in the world,
        multiples of 4: parts of a scene that are painted with their own origins fit together. ``settings``: fields of
        :class:`Sampling`. What is not painted keeps its bytes: with ``paste_back`` all that lies 8 px or more from what
        changed, without it and with ``free_fraction`` 0 all beyond the windows of the changes, else nothing.
        """
        image, mask, change = np.asarray(image_t1), np.asarray(mask_t2), np.asarray(change_mask).astype(bool)
        if exemplar is not None and settings.get("exemplar_strength") is None:  # whoever gives one wants it used
            settings = settings | {"exemplar_strength": self.default_sampling.exemplar_strength}
        (seed,), sampling = _seeds_of(seed, 1), self._sampling_of(settings)
        strengths = scene_strengths(sampling, self.legend) if exemplar is not None else None
        if exemplar is None:
            sampling = replace(sampling, exemplar_strength=None, exemplar_ring=Sampling.exemplar_ring)
        elif strengths is None or exemplar.shape != image.shape:
            raise InputError(f"exemplar is {exemplar.shape}; allowed: the shape of image_t1, with a strength below 1")
        if origin[0] % DOWNSAMPLING or origin[1] % DOWNSAMPLING:
            raise InputError(f"origin is {origin}; allowed: multiples of {DOWNSAMPLING}")
        self._check_arrays(image[None], mask[None], change[None], 1)
        stretch = Normalisation.eight_bit(image.shape[2])
        given = None if exemplar is None else pixels_of(exemplar, stretch)
        view = ArrayScene(
            pixels_of(image, stretch), mask, change, strengths, None if given is None else lambda box, _: given(box)
        )
        painter = self.scene_painter(view, sampling, seed, origin, size=SCENE_BATCH, run=Remembering())
        free = sampling.num_held < sampling.num_steps and not paste_back
        result = image.copy()
        for band in paint_everywhere(painter) if free else paint_changes(painter, paste_back):
            rows = result[band.row : band.row + len(band.image)]
            rows[...] = np.where(band.share[..., None] > 0, mixed(stretch, rows, band.image, band.share), rows)
        return result

    def scene_painter(
        self,
        view: SceneView,
        sampling: Sampling,
        seed: int,
        origin: tuple[int, int] = (0, 0),
        window: int | None = None,
        *,
        size: int,
        run: Runner,
    ) -> ScenePainter:
        """Paints ``view``; see :meth:`paint_scene`."""
        self.check_sampling(sampling)
        side = window or self.model.tile_size
        multiple = max(self.denoiser.size_multiple, DOWNSAMPLING * SIDE_STEP)
        is_attentive = bool(self.first_stage.vq_model.config.mid_block_add_attention)
        ramp = ATTENTIVE_RAMP if is_attentive else RAMP
        least = -(-2 * DOWNSAMPLING * (2 * GUARD + ramp) // multiple) * multiple
        if side % multiple or side < least:
            raise ConfigError(f"window is {side}; allowed: multiples of {multiple} px from {least}")
        networks = Networks(
            self.encode, self.decode, self.decode_painted, self.denoiser, self.model.schedule, is_attentive
        )
        height, width = (-(-length // DOWNSAMPLING) for length in view.shape)
        place = (origin[0] // DOWNSAMPLING, origin[1] // DOWNSAMPLING)
        cells = side // DOWNSAMPLING
        guard = max(GUARD, min(ATTENTIVE_GUARD, (cells // 2 - ramp) // 2)) if is_attentive else GUARD
        plane = Plane(*place, height, width, cells, ramp, guard=guard)
        if sampling.from_exemplars:
            plane = replace(plane, wide_ramp=ramp)
        return ScenePainter(networks, view, sampling, seed, plane, size, run)

    def _sampling_of(self, settings: dict[str, Any]) -> Sampling:
        """The model's own settings with those that are given (:meth:`Sampling.changed`); None: not given."""
        unknown_names = set(settings) - set(asdict(Sampling()))
        if unknown_names:
            raise ConfigError(f"unknown setting {sorted(unknown_names)[0]!r}; allowed: {', '.join(asdict(Sampling()))}")
        return self.default_sampling.changed({k: v for k, v in settings.items() if v is not None})

    def _check_arrays(
        self, image: npt.NDArray[Any], mask: npt.NDArray[Any], change: npt.NDArray[np.bool_], multiple: int = 0
    ) -> None:
        channels = self.first_stage.vq_model.config.in_channels
        if image.dtype != np.uint8 or image.ndim != 4 or image.shape[3] != channels:
            raise InputError(f"image_t1 is {image.dtype} {image.shape}; allowed: uint8 [B, H, W, {channels}]")
        if mask.shape != image.shape[:3] or change.shape != image.shape[:3]:
            raise InputError(f"mask_t2 {mask.shape} and change_mask {change.shape} must be {image.shape[:3]}")
        multiple = multiple or self.denoiser.size_multiple
        if image.shape[1] % multiple or image.shape[2] % multiple:
            raise InputError(f"image is {image.shape[1]}x{image.shape[2]} px; allowed: multiples of {multiple}")
        self.legend.check(mask, "mask_t2")


def _seeds_of(seed: int | Sequence[int], count: int) -> list[int]:
    """One per image: as given, or from one number on."""
    what = f"a whole number, or {count}, one per image"
    try:
        if np.ndim(seed) == 0:
            return [operator.index(cast(int, seed)) + i for i in range(count)]
        seeds = [operator.index(each) for each in cast(Sequence[int], seed)]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"seed is {seed!r}; allowed: {what}") from error
    require(len(seeds) == count, "seed", seeds, what)
    return seeds


def to_uint8(images: Tensor) -> npt.NDArray[np.uint8]:
    """Images ``[B, C, H, W]`` in [-1, 1] → uint8 ``[B, H, W, C]``."""
    scaled = images.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    result: npt.NDArray[np.uint8] = scaled.contiguous().cpu().numpy()
    return result
