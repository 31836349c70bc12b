"""Backbone weights from a user's file: ResNet-18 (v1c, or timm's) and Mix Transformers in their three namings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from changeanywhere.errors import ModelError
from changeanywhere.models.checkpoint import read_weights_file
from changeanywhere.models.weights import check_finite

STAGE = r"(?P<stage>\d)"
BLOCK = rf"{STAGE}\.(?P<block>\d+)"
# Pattern → our name within ``layers.STAGE.``; stages are counted from 0 (transformers) or 1 (NVIDIA's code).
TRANSFORMERS = {
    rf"encoder\.patch_embeddings\.{STAGE}\.proj": "0.projection",
    rf"encoder\.patch_embeddings\.{STAGE}\.layer_norm": "0.norm",
    rf"encoder\.block\.{BLOCK}\.layer_norm_(?P<what>[12])": "1.{block}.norm{what}",
    rf"encoder\.block\.{BLOCK}\.attention\.self\.(?P<what>query|key|value)": "1.{block}.attn.attn.{what}",
    rf"encoder\.block\.{BLOCK}\.attention\.self\.sr": "1.{block}.attn.sr",
    rf"encoder\.block\.{BLOCK}\.attention\.self\.layer_norm": "1.{block}.attn.norm",
    rf"encoder\.block\.{BLOCK}\.attention\.output\.dense": "1.{block}.attn.attn.out_proj",
    rf"encoder\.block\.{BLOCK}\.mlp\.dense1": "1.{block}.ffn.layers.0",
    rf"encoder\.block\.{BLOCK}\.mlp\.dwconv\.dwconv": "1.{block}.ffn.layers.1",
    rf"encoder\.block\.{BLOCK}\.mlp\.dense2": "1.{block}.ffn.layers.4",
    rf"encoder\.layer_norm\.{STAGE}": "2",
}
NVIDIA = {
    rf"patch_embed{STAGE}\.proj": "0.projection",
    rf"patch_embed{STAGE}\.norm": "0.norm",
    rf"block{BLOCK}\.norm(?P<what>[12])": "1.{block}.norm{what}",
    rf"block{BLOCK}\.attn\.(?P<what>q|kv)": "1.{block}.attn.attn.{what}",
    rf"block{BLOCK}\.attn\.(?P<what>sr|norm)": "1.{block}.attn.{what}",
    rf"block{BLOCK}\.attn\.proj": "1.{block}.attn.attn.out_proj",
    rf"block{BLOCK}\.mlp\.fc1": "1.{block}.ffn.layers.0",
    rf"block{BLOCK}\.mlp\.dwconv\.dwconv": "1.{block}.ffn.layers.1",
    rf"block{BLOCK}\.mlp\.fc2": "1.{block}.ffn.layers.4",
    rf"norm{STAGE}": "2",
}
PARTS = (("query", "key", "value"), ("q", "kv"))


def load_backbone(net: nn.Module, file: Path) -> list[str]:
    """Put the weights of ``file`` into the submodule ``backbone`` of ``net``; returns the names that it did not have.

    Only the stem of a ResNet may be missing (timm's has another one); classifier layers are left out. Raises
    :class:`ModelError` naming what else is missing or has another shape.
    """
    own: dict[str, Tensor] = net.get_submodule("backbone").state_dict()
    given = _renamed(read_weights_file(file))
    found = {key: given[key].reshape(value.shape) for key, value in own.items() if _fits(given.get(key), value)}
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    for key in missing:
        if not key.startswith("stem."):
            what = f"{key} of shape {tuple(given[key].shape)}" if key in given else f"no {key}"
            raise ModelError(f"{file}: has {what}; the backbone needs {tuple(own[key].shape)}")
    check_finite(found, file)
    net.get_submodule("backbone").load_state_dict(found, strict=False)
    return missing


def _fits(given: Tensor | None, own: Tensor) -> bool:
    """Linear layers and 1×1 convolutions hold the same numbers."""
    return given is not None and [n for n in given.shape if n != 1] == [n for n in own.shape if n != 1]


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All known namings → ours."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        name = re.sub(r"^((module|backbone|model|segformer)\.)+", "", key)
        result[_ours(name) or name] = value
    return _joined(result)


def _ours(name: str) -> str | None:
    for rules, first_stage in ((TRANSFORMERS, 0), (NVIDIA, 1)):
        for pattern, target in rules.items():
            match = re.fullmatch(rf"{pattern}\.(?P<leaf>weight|bias)", name)
            if match:
                found = match.groupdict()
                return f"layers.{int(found['stage']) - first_stage}.{target.format(**found)}.{found['leaf']}"
    return None


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Separate projections of queries, keys and values → one ``in_proj``."""
    for parts in PARTS:
        for key in [k for k in state if k.endswith(f".attn.attn.{parts[0]}.weight")]:
            prefix = key.removesuffix(f"{parts[0]}.weight")
            for leaf in ("weight", "bias"):
                names = [f"{prefix}{part}.{leaf}" for part in parts]
                if all(name in state for name in names):  # else the whole is missing, and is named
                    state[f"{prefix}in_proj_{leaf}"] = torch.cat([state.pop(name) for name in names])
    return state
