"""The adversarial part of the VQGAN loss (Esser et al. 2021, §3.1 and appendix; PatchGAN, Isola et al. 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.training.processes import Processes


class PatchDiscriminator(nn.Module):
    """Images ``[B, C, H, W]`` → a logit per overlapping patch ``[B, 1, h, w]`` (two strided levels: 34 px patches)."""

    def __init__(self, image_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(image_channels, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False),
            nn.GroupNorm(4, 2 * channels),  # batches are small and split over devices: no batch statistics
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * channels, 4 * channels, 4, padding=1, bias=False),
            nn.GroupNorm(4, 4 * channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * channels, 1, 4, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, > 0 = looks real."""
        logits: Tensor = self.layers(images)
        return logits


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss, scalar."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, processes: Processes) -> Tensor:
    """λ = ‖∇ reconstruction‖ / ‖∇ adversarial‖ at the decoder's last layer (Esser et al. 2021, eq. 7), scalar.

    The gradients are those of the batch over all processes.
    """
    grad_reconstruction = processes.mean(torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0])
    grad_adversarial = processes.mean(torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0])
    ratio: Tensor = grad_reconstruction.norm() / (grad_adversarial.norm() + 1e-4)
    return ratio.clamp(0, 1e4).detach()
