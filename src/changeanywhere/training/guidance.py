"""Guidance distillation: a denoiser learns what another one says with classifier-free guidance, in one call for two.

After Meng et al. 2023 ("On Distillation of Guided Diffusion Models", stage one), for one guidance scale. What painting
asks for is not what tiles show: changed ground lies under a mask that the image does not have yet. Half of the masks
are therefore another tile's, in a box.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from changeanywhere.errors import ConfigError, require
from changeanywhere.legend import Legend
from changeanywhere.models.critic import latents_hash
from changeanywhere.models.denoiser import Denoiser
from changeanywhere.models.folder import Model, find_model, load_first_stage, load_model
from changeanywhere.models.info import read_info
from changeanywhere.seeds import step_seed
from changeanywhere.sources.options import DEFAULT_STRETCH
from changeanywhere.training.sections import USUAL_BANDS, DataRecipe

MISMATCHED = 0.5
"""Share of the masks that are another tile's in a box."""

LEAST_CHANGE = 0.01
"""Added to the mean square of what guidance changes, so that rows in which it changes nothing do not weigh all."""


def first_stage_of_teacher(init: str, data: DataRecipe, trained: Path, given: Path | None) -> Path:
    """The folder of the first stage on whose latents a denoiser is taught: that of model ``init``, with which it is
    written, and no other.

    :class:`ConfigError` where one is ``given``, where ``trained``, which lies in OUT, has other latents, or where
    ``data`` has other bands, or another stretch, than the model says, with which what is taught is written.
    """
    folder = find_model(init)
    own, info = folder / "first_stage", read_info(folder)
    for name, usual in (("bands", USUAL_BANDS), ("stretch", DEFAULT_STRETCH)):
        asked, known = (list(getattr(part, name) or usual) for part in (data, info))
        as_it_is = f"{known} with denoiser.distil_guidance, as {init} has it"
        require(asked == known, f"data.{name}", asked, as_it_is)
    alone = f"none with denoiser.distil_guidance: the first stage of {init} is the one that its teacher knows"
    require(given is None, "first_stage_from", str(given), alone)
    if trained.is_dir():
        load_first_stage(trained)  # what is wrong with the folder is said by its name
        if latents_hash(trained) != latents_hash(own):
            raise ConfigError(
                f"{trained}: has other latents than the first stage of {init}, the only one that "
                "denoiser.distil_guidance teaches on; give another --out"
            )
    return own


class Teacher:
    """The denoiser of a model, which guides by two calls; it does not learn."""

    def __init__(self, init: str, scale: float, legend: Legend, device: torch.device) -> None:
        """``init``: ``mini`` or a model folder, of the classes of ``legend``. :class:`ConfigError` for a model that
        cannot be guided, or of other classes."""
        self.scale, model = scale, load_model(find_model(init))
        if model.mask_dropout == 0:
            raise ConfigError(f"denoiser.distil_guidance is {scale}, but {init} was trained without mask dropout")
        if [c.name for c in model.legend.classes] != [c.name for c in legend.classes]:
            names = ", ".join(c.name for c in model.legend.classes)
            raise ConfigError(
                f"denoiser.distil_guidance is {scale}, but {init} has other classes than the tiles; allowed: {names} "
                "(data.model_legend)"
            )
        self.denoiser = model.denoiser.requires_grad_(False).to(device)

    @torch.no_grad()
    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Guided prediction f32 ``[B, 3, h, w]`` for noisy latents, timesteps int64 ``[B]`` and encoded masks; and the
        weight ``[B]`` of an error of it, 1 over what guidance changes: a hundred times as much in pure noise as in
        little noise, where painting over exemplars happens."""
        conditions = torch.cat([condition, torch.zeros_like(condition)])
        both = self.denoiser(torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps]), conditions)
        conditional, unconditional = both.chunk(2)
        guided = unconditional + self.scale * (conditional - unconditional)
        return guided, 1 / ((guided - conditional).square().mean((1, 2, 3)) + LEAST_CHANGE)


def mixed(masks: Tensor, before: Tensor, batch_size: int, rows: range, seed: int, step: int) -> Tensor:
    """Masks int64 ``[rows, H, W]`` of a step, half of them those of the row before it in a box.

    Drawn for the whole batch, then cut. ``before``: the mask ``[H, W]`` of the row before the first of ``rows``, which
    is the batch's last one for its first: each row borrows from the same whichever process takes it.
    """
    generator = torch.Generator().manual_seed(step_seed("training.guidance", seed, step))
    corners = torch.rand(batch_size, 2, 2, generator=generator).sort(-1).values  # row, column: first, last
    corners[torch.rand(batch_size, generator=generator) >= MISMATCHED] = 2.0  # nowhere
    own = corners[rows.start : rows.stop].to(masks.device)
    inside = [
        (own[:, axis, :1] <= places) & (places < own[:, axis, 1:])
        for axis, places in enumerate(torch.arange(n, device=masks.device)[None] / n for n in masks.shape[1:])
    ]
    lent = torch.cat([before[None], masks[:-1]])
    return torch.where(inside[0][:, :, None] & inside[1][:, None, :], lent, masks)


def taught(init: str, guided: Denoiser, scale: float) -> Model:
    """The model ``init`` with a denoiser more, which knows guidance ``scale``."""
    model = load_model(find_model(init))
    own = model.denoiser
    # Nothing that it gives depends on these, and both are written as one configuration.
    guided.unet.register_to_config(**{name: own.unet.config[name] for name in ("sample_size", "dropout")})
    model.denoiser = Denoiser(own.unet, own.mask_encoder, guided.unet, scale).to(guided.unet.device).eval()
    model.first_stage.to(guided.unet.device)
    return model
