"""A first stage that begins as a picture: latents = 4×4 colour means, decoding = plain enlargement.

Ours, for short trainings. From random weights a VQGAN spends its first hours finding out that colours exist. Here the
untrained network already passes colours through: every residual branch starts at zero, six "carrier" channels hold
±red, ±green, ±blue, and two hold a constant ±LEVEL. Because SiLU(x) − SiLU(−x) = x, the last activation is linear in
the carriers; because the constant dominates the spread of the single normalisation group, that normalisation is nearly
a fixed scale, which :func:`linear_start` measures and undoes. All weights remain free to learn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.errors import ConfigError
from changeanywhere.models.borrowed import VQModel
from changeanywhere.models.first_stage import DOWNSAMPLING

LEVEL = 2.0  # of the constant carriers; images are in [-1, 1]. Larger: more exactly linear, and slower to train


@torch.no_grad()
def linear_start(vq_model: VQModel, images: Tensor) -> None:
    """Set the weights of ``vq_model`` in place; ``images`` ``[B, C, H, W]`` in [-1, 1] calibrate the scale.

    Raises :class:`ConfigError` unless the model has one normalisation group, as many latent as image channels, and room
    for the carriers (2·C + 2 channels at full resolution).
    """
    colours = vq_model.config.in_channels
    if (
        vq_model.config.norm_num_groups != 1
        or vq_model.config.latent_channels != colours
        or vq_model.config.block_out_channels[0] < 2 * colours + 2
    ):
        raise ConfigError(
            "first_stage.linear_start is True; it needs norm_groups 1, as many latent_channels as the image has bands, "
            "and first_stage.channels of 2 x bands + 2 or more"
        )
    for net in (vq_model.encoder, vq_model.decoder):
        _carry_in(net.conv_in, colours)
        for name, module in net.named_modules():
            if name.endswith("conv2"):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
            elif name.endswith("conv_shortcut") or name.endswith("upsamplers.0.conv"):
                _carry_through(module, colours, _centre_tap(module))
            elif name.endswith("downsamplers.0.conv"):
                _carry_through(module, colours, _mean_of_two_by_two(module))
        _carry_out(net.conv_out, colours)
    for conv in (vq_model.quant_conv, vq_model.post_quant_conv):
        conv.weight.copy_(torch.eye(colours).view(colours, colours, 1, 1))
        nn.init.zeros_(conv.bias)
    means = F.avg_pool2d(images, DOWNSAMPLING)
    vq_model.encoder.conv_out.weight.mul_(_gain(vq_model.encoder(images), means))
    vq_model.decoder.conv_out.weight.mul_(_gain(vq_model.decoder(means), images))


def _gain(output: Tensor, target: Tensor) -> Tensor:
    """Least-squares scale of ``output`` onto ``target``, scalar."""
    return (output * target).sum() / output.square().sum()


def _carry_in(conv: nn.Conv2d, colours: int) -> None:
    """Input c goes to carriers c (+) and colours + c (−); the last two carriers hold ±LEVEL."""
    assert conv.bias is not None
    carriers = 2 * colours + 2
    conv.weight[:carriers] = 0
    conv.bias[:carriers] = 0
    for c in range(colours):
        conv.weight[c, c, 1, 1] = 1
        conv.weight[colours + c, c, 1, 1] = -1
    conv.bias[carriers - 2], conv.bias[carriers - 1] = LEVEL, -LEVEL


def _carry_through(conv: nn.Conv2d, colours: int, kernel: Tensor) -> None:
    """Each carrier to itself through ``kernel``."""
    assert conv.bias is not None
    carriers = 2 * colours + 2
    conv.weight[:carriers] = 0
    conv.bias[:carriers] = 0
    for c in range(carriers):
        conv.weight[c, c] = kernel


def _carry_out(conv: nn.Conv2d, colours: int) -> None:
    """Output c = carrier c − carrier (colours + c)."""
    assert conv.bias is not None
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    for c in range(colours):
        conv.weight[c, c, 1, 1] = 1
        conv.weight[c, colours + c, 1, 1] = -1


def _centre_tap(conv: nn.Conv2d) -> Tensor:
    kernel = torch.zeros(conv.kernel_size)
    kernel[conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    return kernel


def _mean_of_two_by_two(conv: nn.Conv2d) -> Tensor:
    """Stride 2 with padding on the right and bottom only: the window starts at the pixel."""
    kernel = torch.zeros(conv.kernel_size)
    kernel[:2, :2] = 0.25
    return kernel
