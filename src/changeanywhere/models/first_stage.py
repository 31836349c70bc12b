"""First stage: a VQGAN that turns images into latents and back (paper §2.2; VQGAN, Esser et al. 2021).

The network is diffusers' ``VQModel``, f = 4. Around it stand the parts that diffusion needs and that
``VQModel`` does not have: code search in float32 and in chunks, and latents standardised per channel by
statistics of the training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from changeanywhere.models.borrowed import VQModel

ModuleT = TypeVar("ModuleT", bound=nn.Module)

DOWNSAMPLING = 4
"""Pixels per latent cell in each direction (f)."""
CODE_SEARCH_CHUNK = 16_384
"""Latent cells per code search: bounds the distance matrix to 16,384 × codes."""


def build_vq_model(
    channels: Sequence[int] = (128, 256, 512),
    layers_per_block: int = 2,
    num_codes: int = 8192,
    latent_channels: int = 3,
    norm_groups: int = 32,
    mid_attention: bool = True,
    image_channels: int = 3,
) -> VQModel:
    """A ``VQModel`` with f = 4: three levels of ``channels``, codes of ``latent_channels`` dimensions."""
    return VQModel(
        in_channels=image_channels,
        out_channels=image_channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        num_vq_embeddings=num_codes,
        vq_embed_dim=latent_channels,
        norm_num_groups=norm_groups,
        mid_block_add_attention=mid_attention,
    )


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of each vector: ``[N, D]``, ``[K, D]`` → int64 ``[N]``, searched in float32.

    bf16 has 8 bits of mantissa: in it thousands of codes collapse onto each other.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        codebook = codebook.float()
        norms = codebook.square().sum(1)
        # |v - c|² without |v|², which is the same for every code; argmin over chunks bounds the memory.
        chunks = torch.split(vectors.float(), CODE_SEARCH_CHUNK)
        return torch.cat([torch.addmm(norms, v, codebook.T, alpha=-2.0).argmin(1) for v in chunks])


def channels_last(module: ModuleT) -> ModuleT:
    """Store convolution weights channels-last, which CPU and tensor cores prefer; in place."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


class FirstStage(nn.Module):
    """Images ``[B, C, H, W]`` in [-1, 1] ↔ standardised latents ``[B, 3, H/4, W/4]``.

    What diffuses is the encoder's output *before* quantisation. Decoding quantises first, as latent diffusion does,
    unless the decoder was trained to do without (``quantises``): rounding to codes costs the finest detail.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        vq_model: VQModel,
        latent_mean: Sequence[float] | None = None,
        latent_std: Sequence[float] | None = None,
        quantises: bool = True,
    ) -> None:
        super().__init__()
        self.vq_model, self.quantises = vq_model, quantises
        channels = int(vq_model.config.latent_channels)
        self.register_buffer("latent_mean", torch.tensor(latent_mean or [0.0] * channels).view(1, -1, 1, 1))
        self.register_buffer("latent_std", torch.tensor(latent_std or [1.0] * channels).view(1, -1, 1, 1))

    @property
    def codebook(self) -> Tensor:
        """Codes ``[K, D]``."""
        weight: Tensor = self.vq_model.quantize.embedding.weight
        return weight

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the convolutions (the codebook is searched in float32 whatever it is)."""
        dtype: torch.dtype = self.vq_model.encoder.conv_in.weight.dtype
        return dtype

    def encode_raw(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` → encoder output before quantisation ``[B, 3, H/4, W/4]``, float32."""
        latents: Tensor = self.vq_model.encode(images.to(self.dtype)).latents
        return latents.float()

    def quantise(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Raw latents ``[B, D, h, w]`` → nearest codes ``[B, D, h, w]`` and their indices int64 ``[B, h, w]``."""
        vectors = raw.permute(0, 2, 3, 1)
        indices = nearest_codes(vectors.reshape(-1, raw.shape[1]), self.codebook)
        codes = self.codebook.float()[indices].view(vectors.shape).permute(0, 3, 1, 2)
        return codes, indices.view(raw.shape[0], *raw.shape[2:])

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes, or raw latents, ``[B, D, h, w]`` → images ``[B, C, H, W]`` float32, not clipped."""
        images: Tensor = self.vq_model.decode(codes.to(self.dtype), force_not_quantize=True).sample
        return images.float()

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [-1, 1] → standardised latents ``[B, 3, H/4, W/4]`` float32."""
        latents: Tensor = (self.encode_raw(images) - self.latent_mean) / self.latent_std
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Standardised latents ``[B, 3, h, w]`` → images ``[B, C, 4h, 4w]`` in [-1, 1] float32 (clipped)."""
        return self.decode_raw(latents.float() * self.latent_std + self.latent_mean).clamp(-1, 1)

    def decode_raw(self, raw: Tensor) -> Tensor:
        """Encoder output ``[B, 3, h, w]`` → images ``[B, C, 4h, 4w]`` float32, not clipped; by way of the codes where
        the model :attr:`quantises`."""
        return self.decode_codes(self.quantise(raw)[0] if self.quantises else raw)
