"""``changeanywhere import ldm``: semantic-synthesis checkpoints of the published latent-diffusion code family.

Read are PyTorch-Lightning files (``state_dict`` with ``model.diffusion_model.*``, ``model_ema.*``,
``first_stage_model.*``, ``cond_stage_model.*``). What else such a file holds (callbacks, configurations) is passed
over, and nothing of it is run. Shapes tell the architecture; what they cannot tell (the number of attention heads, the
legend) is asked for; what this package has no counterpart for is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from changeanywhere.errors import ModelError
from changeanywhere.legend import Legend
from changeanywhere.models.borrowed import DDPMScheduler, UNet2DModel, VQModel
from changeanywhere.models.checkpoint import read_weights_file
from changeanywhere.models.denoiser import Denoiser, MaskEncoder, build_unet
from changeanywhere.models.first_stage import DOWNSAMPLING, FirstStage, build_vq_model
from changeanywhere.models.folder import Model
from changeanywhere.models.weights import check_finite, check_shape, in_words, load_weights

Built = TypeVar("Built")
UNET, FIRST_STAGE, CONDITION = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
MAX_TIMESTEPS = 100_000
RESNET_NAMES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


class Weights(dict[str, Tensor]):
    """Tensors of one part of a checkpoint; asking for one that is not there is a :class:`ModelError` naming it."""

    def __init__(self, tensors: Mapping[str, Tensor], checkpoint: Path, prefix: str = "") -> None:
        super().__init__(tensors)
        self.checkpoint, self.prefix = checkpoint, prefix

    def __missing__(self, name: str) -> Tensor:
        raise ModelError(f"{self.checkpoint}: no {self.prefix}{name} in it; cut short, or of another code family?")

    def shape(self, name: str, dimensions: int) -> torch.Size:
        """Of a tensor that must have so many dimensions."""
        shape = self[name].shape
        if len(shape) != dimensions:
            found = f"{self.prefix}{name} is {in_words(shape)}"
            raise ModelError(f"{self.checkpoint}: {found}; allowed: {dimensions} dimensions")
        return shape


def import_ldm(checkpoint: Path, legend: Legend, num_heads: int | None = None, use_ema: bool = True) -> Model:
    """Read ``checkpoint``; ``use_ema``: the averaged UNet weights, as sampling should.

    Raises :class:`ModelError` naming what is missing, does not fit the legend or is not supported.
    """
    state = Weights(read_weights_file(checkpoint), checkpoint)
    if not any(name.startswith(UNET) for name in state):
        raise ModelError(f"{checkpoint}: no {UNET}* in it; allowed: checkpoints of the latent-diffusion code family")
    unet = _import_unet(_unet_weights(state, use_ema, checkpoint), num_heads, checkpoint)
    kernel = _fold_rescaler(_part(state, CONDITION, checkpoint), checkpoint)
    if kernel.shape[1] != legend.num_classes:
        raise ModelError(
            f"{checkpoint}: masks have {kernel.shape[1]} classes, legend {legend.name!r} has {legend.num_classes}"
        )
    encoder = MaskEncoder(num_classes=legend.num_classes, mask_channels=kernel.shape[0])
    encoder.conv.weight.data.copy_(kernel)
    latent_channels = unet.config.in_channels - kernel.shape[0]
    vq_model = _import_vq(_part(state, FIRST_STAGE, checkpoint), checkpoint)
    if vq_model.config.latent_channels != latent_channels:
        raise ModelError(
            f"{checkpoint}: the UNet takes {latent_channels} latent channels, the first stage gives "
            f"{vq_model.config.latent_channels}"
        )
    scale = _scale(state)
    return Model(
        first_stage=FirstStage(vq_model, [0.0] * latent_channels, [1.0 / scale] * latent_channels).eval(),
        denoiser=Denoiser(unet, encoder).eval(),
        schedule=_import_schedule(state, checkpoint),
        legend=legend,
        mask_dropout=0.0,  # that code family trains without a null condition: guidance is refused
        defaults={"sampler": "ddim", "num_steps": 200, "known_noise": "fresh", "free_fraction": 0.15},
    )


def fold_convolutions(first: Tensor, second: Tensor, mapper: Tensor) -> Tensor:
    """Two strided 2×2 convolutions ``[M, K, 2, 2]``, ``[N, M, 2, 2]`` and a 1×1 ``[O, N, 1, 1]`` as one 4×4, stride 4.

    Exact where height and width divide by 4, since no window overlaps another → ``[O, K, 4, 4]``.
    """
    mapped = torch.einsum("on,nmab->omab", mapper[:, :, 0, 0], second)
    folded = torch.einsum("omab,mkcd->okacbd", mapped, first)
    return folded.reshape(mapper.shape[0], first.shape[1], 4, 4)


def _part(state: Weights, prefix: str, checkpoint: Path) -> Weights:
    part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not part:
        raise ModelError(f"{checkpoint}: no {prefix}* in it")
    return Weights(part, checkpoint, prefix)


def _unet_weights(state: Weights, use_ema: bool, checkpoint: Path) -> Weights:
    """Raw or averaged weights; the averaged ones stand under the same names without dots."""
    raw = _part(state, UNET, checkpoint)
    if not use_ema:
        return raw
    averaged = {name: "model_ema." + (UNET.removeprefix("model.") + name).replace(".", "") for name in raw}
    missing = [name for name in averaged.values() if name not in state]
    if missing:
        raise ModelError(f"{checkpoint}: no averaged weights ({missing[0]}); take the raw ones with --use-ema false")
    return Weights({name: state[other] for name, other in averaged.items()}, checkpoint, UNET)


def _import_unet(weights: Weights, num_heads: int | None, checkpoint: Path) -> UNet2DModel:
    if any("transformer_blocks" in name for name in weights):
        raise ModelError(f"{checkpoint}: UNet with cross-attention (transformer_blocks) is not supported")
    attending = sorted(
        {name.split(".")[0] + "." + name.split(".")[1] for name in weights if name.endswith("qkv.weight")}
    )
    elsewhere = [name for name in attending if not name.startswith("middle_block")]
    if elsewhere:
        raise ModelError(f"{checkpoint}: UNet attention outside the middle block ({elsewhere[0]}) is not supported")
    channels, layers = _unet_levels(weights)
    width = weights.shape("middle_block.1.qkv.weight", 3)[1]
    if num_heads is None:
        raise ModelError(f"{checkpoint}: shapes do not tell the number of attention heads; give --num-heads (often 8)")
    if num_heads < 1 or width % num_heads:
        raise ModelError(f"{checkpoint}: num_heads is {num_heads}; allowed: divisors of {width}")
    inputs, outputs = weights.shape("input_blocks.0.0.weight", 4)[1], weights.shape("out.2.weight", 4)[0]
    # diffusers fixes the dimension of a head where that code family fixes their number.
    unet = _built(
        lambda: build_unet(channels, layers, inputs - outputs, outputs, head_dim=width // num_heads), "UNet", checkpoint
    )
    renamed = _rename_unet(weights, len(channels), layers)
    for name, shape in (("weight", (3 * width, width, 1)), ("bias", (3 * width,))):
        check_shape(weights[f"middle_block.1.qkv.{name}"], shape, f"{UNET}middle_block.1.qkv.{name}", checkpoint, "it")
    qkv = weights["middle_block.1.qkv.weight"].reshape(num_heads, 3, width // num_heads, width)
    bias = weights["middle_block.1.qkv.bias"].reshape(num_heads, 3, width // num_heads)
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        renamed[f"mid_block.attentions.0.{name}.weight"] = qkv[:, i].reshape(width, width)
        renamed[f"mid_block.attentions.0.{name}.bias"] = bias[:, i].reshape(width)
    load_weights(unet, renamed, checkpoint, "the UNet")
    return unet


def _unet_levels(weights: Weights) -> tuple[list[int], int]:
    """Channels per level and residual blocks per level, from the sequence of input blocks."""
    numbers = _indices(weights, "input_blocks")
    levels: list[list[int]] = [[]]
    for number in numbers[1:]:
        if f"input_blocks.{number}.0.op.weight" in weights:
            levels.append([])
        else:
            levels[-1].append(weights.shape(f"input_blocks.{number}.0.out_layers.3.weight", 4)[0])
    if any(len(level) != len(levels[0]) or not level for level in levels):
        counts = ", ".join(str(len(level)) for level in levels)
        raise ModelError(
            f"{weights.checkpoint}: UNet levels of {counts} residual blocks; allowed: the same number, above 0"
        )
    return [level[-1] for level in levels], len(levels[0])


def _rename_unet(weights: Weights, levels: int, layers: int) -> dict[str, Tensor]:
    places = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    for level in range(levels):
        for layer in range(layers + 1):
            number = level * (layers + 1) + layer + 1
            down = f"down_blocks.{level}." + (f"resnets.{layer}" if layer < layers else "downsamplers.0.conv")
            places[f"input_blocks.{number}.0" + ("" if layer < layers else ".op")] = down
            number = level * (layers + 1) + layer
            places[f"output_blocks.{number}.0"] = f"up_blocks.{level}.resnets.{layer}"
            places[f"output_blocks.{number}.1.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    places |= {
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "middle_block.1.norm": "mid_block.attentions.0.group_norm",
        "middle_block.1.proj_out": "mid_block.attentions.0.to_out.0",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    renamed = {}
    for name, value in weights.items():
        if ".qkv." in name:
            continue
        module, _, kind = name.rpartition(".")
        inner = next((part for part in RESNET_NAMES if module.endswith("." + part)), None)
        place = places.get(module.removesuffix(f".{inner}") if inner else module, module)
        target = f"{place}.{RESNET_NAMES[inner]}" if inner else place
        renamed[f"{target}.{kind}"] = value.squeeze(-1) if value.dim() == 3 else value
    return renamed


def _import_vq(weights: Weights, checkpoint: Path) -> VQModel:
    levels = _indices(weights, "encoder.down")
    widths = [weights.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in levels]
    if not widths or 2 ** (len(widths) - 1) != DOWNSAMPLING:
        raise ModelError(f"{checkpoint}: first stage with {len(widths)} levels; allowed: 3, f = {DOWNSAMPLING}")
    if any(re.match(r"(encoder\.down|decoder\.up)\.\d+\.attn\.", name) for name in weights):
        raise ModelError(f"{checkpoint}: first stage with attention outside its middle is not supported")
    if "quantize.embedding.weight" not in weights:
        raise ModelError(f"{checkpoint}: first stage without a codebook (a KL autoencoder?) is not supported")
    codes, dimension = weights.shape("quantize.embedding.weight", 2)
    latent_channels = weights.shape("encoder.conv_out.weight", 4)[0]
    if latent_channels != dimension:
        raise ModelError(
            f"{checkpoint}: first stage with z {latent_channels} and codes of {dimension} is not supported"
        )
    image_channels = weights.shape("encoder.conv_in.weight", 4)[1]
    vq_model = _built(
        lambda: build_vq_model(
            widths,
            len(_indices(weights, "encoder.down.0.block")),
            codes,
            dimension,
            mid_attention="encoder.mid.attn_1.q.weight" in weights,
            image_channels=image_channels,
        ),
        "first stage",
        checkpoint,
    )
    load_weights(vq_model, _renamed_vq(weights, len(widths) - 1), checkpoint, "the first stage")
    return vq_model


def _renamed_vq(weights: Weights, top: int) -> dict[str, Tensor]:
    """``top``: the number of the coarsest level."""
    rules: list[tuple[str, str]] = [
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"\.down\.(\d+)\.block\.(\d+)\.", r".down_blocks.\1.resnets.\2."),
        (r"\.down\.(\d+)\.downsample\.conv\.", r".down_blocks.\1.downsamplers.0.conv."),
        (r"\.up\.(\d+)\.block\.(\d+)\.", r".up_blocks.\1.resnets.\2."),
        (r"\.up\.(\d+)\.upsample\.conv\.", r".up_blocks.\1.upsamplers.0.conv."),
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
        (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
        (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
        (r"\.norm_out\.", ".conv_norm_out."),
    ]
    renamed = {}
    for name, value in weights.items():
        if name.startswith(("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")):
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            # That code family counts the decoder's levels from full resolution, diffusers in the order of work.
            name = re.sub(r"up_blocks\.(\d+)\.", lambda found: f"up_blocks.{top - int(found.group(1))}.", name)
            renamed[name] = value[:, :, 0, 0] if ".attentions." in name and value.dim() == 4 else value
    return renamed


def _fold_rescaler(weights: Weights, checkpoint: Path) -> Tensor:
    """Either mask rescaler as one 4×4 kernel ``[mask_channels, K, 4, 4]``."""
    if any(name.endswith("bias") for name in weights):
        raise ModelError(f"{checkpoint}: mask rescaler with a bias is not supported (unknown ground must encode to 0)")
    if "channel_mapper.weight" not in weights:
        raise ModelError(f"{checkpoint}: mask encoder without channel_mapper is not supported")
    mapper = weights["channel_mapper.weight"]
    check_finite(weights, checkpoint)
    if weights.shape("channel_mapper.weight", 4)[2:] != (1, 1):
        raise ModelError(f"{checkpoint}: channel_mapper is {in_words(mapper.shape)}; allowed: a 1x1 convolution")
    stages = [weights[f"interpolator.{i}.weight"] for i in _indices(weights, "interpolator")]
    if not stages:
        # Halving bilinearly is the mean of 2×2; twice, the mean of 4×4.
        return mapper.expand(-1, -1, 4, 4) / 16
    if len(stages) != 2 or any(stage.dim() != 4 or stage.shape[2:] != (2, 2) for stage in stages):
        raise ModelError(f"{checkpoint}: mask rescaler other than two strided 2x2 convolutions is not supported")
    if (stages[1].shape[1], mapper.shape[1]) != (stages[0].shape[0], stages[1].shape[0]):
        chain = ", ".join(in_words(each.shape) for each in (*stages, mapper))
        raise ModelError(f"{checkpoint}: convolutions of the mask rescaler do not fit one another: {chain}")
    return fold_convolutions(stages[0], stages[1], mapper)


def _scale(state: Weights) -> float:
    """What latents are multiplied by before they diffuse; 1 where nothing is said."""
    if "scale_factor" not in state:
        return 1.0
    value = state["scale_factor"]
    scale = float(value.reshape(-1)[0]) if value.numel() == 1 else math.nan
    if not (math.isfinite(scale) and scale > 0):
        raise ModelError(f"{state.checkpoint}: scale_factor is {value.tolist()!r:.60}; allowed: a number above 0")
    return scale


def _import_schedule(state: Weights, checkpoint: Path) -> DDPMScheduler:
    """Linear in √β; the ends are read from the checkpoint and the whole is checked against it."""
    if "betas" not in state:
        raise ModelError(f"{checkpoint}: no noise schedule (betas) in it")
    betas = state["betas"].float()
    if betas.dim() != 1 or not 2 <= len(betas) <= MAX_TIMESTEPS or not bool(((betas > 0) & (betas < 1)).all()):
        raise ModelError(f"{checkpoint}: betas are no noise schedule; allowed: 2 to {MAX_TIMESTEPS} numbers, 0 to 1")
    schedule = DDPMScheduler(
        num_train_timesteps=len(betas),
        beta_start=float(betas[0]),
        beta_end=float(betas[-1]),
        beta_schedule="scaled_linear",
        clip_sample=False,
    )
    if not torch.allclose(schedule.betas, betas, rtol=1e-3):
        raise ModelError(f"{checkpoint}: a noise schedule that is not linear in the root of beta is not supported")
    return schedule


def _indices(weights: Mapping[str, Tensor], prefix: str) -> list[int]:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return sorted({int(found.group(1)) for name in weights if (found := pattern.match(name))})


def _built(build: Callable[[], Built], what: str, checkpoint: Path) -> Built:
    """A network that shapes ask for; :class:`ModelError` where there is none (channels that no group divides)."""
    try:
        return build()
    except (ValueError, ZeroDivisionError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ModelError(f"{checkpoint}: its shapes are those of no {what} ({reason})") from error
