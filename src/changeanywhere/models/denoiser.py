"""Denoiser: a UNet that predicts the noise of a latent under a semantic mask (paper §2.2).

The mask enters as extra input channels: one-hot at full resolution → one linear patch convolution (kernel 4,
stride 4, no bias) → concatenated with the noisy latent. Unknown ground has the all-zero one-hot; so has the
null condition of classifier-free guidance (Ho & Salimans 2022), of which the paper has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from changeanywhere.models.borrowed import ConfigMixin, ModelMixin, UNet2DModel, register_to_config
from changeanywhere.models.first_stage import DOWNSAMPLING
from changeanywhere.models.recorded import Recordings


def one_hot(masks: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Masks int64 ``[B, H, W]``, 0 = unknown → ``[B, K, H, W]``; unknown, and what is above K, is all zeros."""
    classes = torch.arange(1, num_classes + 1, device=masks.device)
    return (masks.unsqueeze(-1) == classes).permute(0, 3, 1, 2).to(dtype)


class MaskEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Masks int64 ``[B, H, W]`` → ``[B, mask_channels, H/4, W/4]``.

    Linear and per patch, so that the mask rescalers of published checkpoints (bilinear halving or strided 2×2
    convolutions, then 1×1) fold into it exactly.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, num_classes: int, mask_channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_classes, mask_channels, DOWNSAMPLING, stride=DOWNSAMPLING, bias=False)

    @property
    def num_classes(self) -> int:
        """K, without unknown."""
        return self.conv.in_channels

    def forward(self, masks: Tensor, dropped: Tensor | None = None) -> Tensor:
        """``dropped``: bool ``[B]``, True replaces the whole mask by the null condition."""
        planes = one_hot(masks, self.num_classes, self.conv.weight.dtype)
        if dropped is not None:
            planes = planes * (~dropped).view(-1, 1, 1, 1)
        features: Tensor = self.conv(planes)
        return features


def build_unet(
    channels: Sequence[int],
    layers_per_block: int,
    mask_channels: int,
    latent_channels: int = 3,
    attention_levels: Sequence[int] = (),
    head_dim: int = 32,
    norm_groups: int = 32,
    dropout: float = 0.0,
) -> UNet2DModel:
    """A ``UNet2DModel``; ``attention_levels`` counts from 0 = full latent resolution; the middle always attends."""
    levels = range(len(channels))
    down = tuple("AttnDownBlock2D" if i in attention_levels else "DownBlock2D" for i in levels)
    up = tuple("AttnUpBlock2D" if i in attention_levels else "UpBlock2D" for i in reversed(levels))
    return UNet2DModel(
        in_channels=latent_channels + mask_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(channels),
        layers_per_block=layers_per_block,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=head_dim,
        norm_num_groups=norm_groups,
        dropout=dropout,
    )


class Denoiser(nn.Module):
    """UNet and mask encoder, trained together; and, where there is one, a UNet that was taught what both branches of
    classifier-free guidance say together (Meng et al. 2023, guidance distillation), for half of its calls."""

    def __init__(
        self,
        unet: UNet2DModel,
        mask_encoder: MaskEncoder,
        guided: UNet2DModel | None = None,
        guided_scale: float | None = None,
    ) -> None:
        """``guided_scale``: the guidance that ``guided`` was taught, and the only one that it knows."""
        super().__init__()
        self.unet = unet
        self.mask_encoder = mask_encoder
        self.guided = guided
        self.guided_scale = guided_scale
        self._recordings: dict[bool, Recordings] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the convolutions."""
        dtype: torch.dtype = self.unet.conv_in.weight.dtype
        return dtype

    @property
    def size_multiple(self) -> int:
        """Images must have height and width divisible by this (px)."""
        return DOWNSAMPLING * int(2 ** (len(self.unet.config.block_out_channels) - 1))

    def record(self) -> None:
        """Call the networks by CUDA graphs from here on, one for each size of their input."""
        networks = {False: self.unet, True: self.guided}
        self._recordings = {key: Recordings(each) for key, each in networks.items() if each is not None}

    def guides_itself(self, scale: float) -> bool:
        """Whether a call with ``guided`` has this guidance without its null branch."""
        return self.guided is not None and scale == self.guided_scale

    def of_rows(self, rows: Sequence[int]) -> Denoiser:
        """The denoiser of these rows of a batch alone: itself, unless it knows something of each."""
        return self

    def encode_masks(self, masks: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Masks int64 ``[B, H, W]`` → condition ``[B, mask_channels, H/4, W/4]``; once per sampling run."""
        condition: Tensor = self.mask_encoder(masks, dropped)
        return condition

    def forward(self, latents: Tensor, timesteps: Tensor, condition: Tensor, guided: bool = False) -> Tensor:
        """Noisy latents ``[B, 3, h, w]``, timesteps int64 ``[B]``, condition → prediction ``[B, 3, h, w]`` float32.

        ``guided``: that of guidance ``guided_scale``, of a denoiser that has learned it.
        """
        inputs = torch.cat([latents.to(condition.dtype), condition], dim=1).contiguous(
            memory_format=torch.channels_last
        )
        unet = self.guided if guided and self.guided is not None else self.unet
        recorded = self._recordings.get(unet is self.guided)
        prediction: Tensor = unet(inputs, timesteps).sample if recorded is None else recorded(inputs, timesteps)
        return prediction.float()
