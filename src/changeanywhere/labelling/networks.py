"""Networks that read land cover: ours, those of Hugging Face ``transformers``, those of other packages.

Every one is a module that takes images f32 ``[B, 3, H, W]`` in [-1, 1], sides divisible by 32, and gives probabilities
f32 ``[B, K, H, W]`` of the classes of its ``legend``; what is missing to 1 is the probability of unknown ground. Files
of others are safetensors, and no code of theirs is run; a package that names itself as an entry point is code that the
user has installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from changeanywhere.documents import DocumentError, read_json_object
from changeanywhere.errors import ConfigError, ModelError
from changeanywhere.labelling.options import LabelOptions
from changeanywhere.legend import LegendMap, load_legend, load_legend_map, parse_legend
from changeanywhere.models.first_stage import channels_last
from changeanywhere.models.info import find_segmenter, hash_segmenter
from changeanywhere.models.outside import built
from changeanywhere.models.segmenter import Segmenter

GROUP = "changeanywhere.segmenters"
"""Entry points: name → a function without arguments that gives a :class:`ForeignSegmenter`."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


class OwnSegmenter(nn.Module):
    """A network of ``train segmenter``."""

    def __init__(self, net: Segmenter) -> None:
        super().__init__()
        self.net, self.legend = net, net.legend
        self.mapping: LegendMap | None = None

    def forward(self, images: Tensor) -> Tensor:
        """See the module."""
        logits: Tensor = self.net(images)
        return logits.softmax(1)


class ForeignSegmenter(nn.Module):
    """Any module that takes images f32 ``[B, 3, H, W]`` and gives logits ``[B, K, h, w]``: as a tensor, as the
    ``logits`` of a ``transformers`` output, or as ``out`` of a torchvision one. Smaller maps are enlarged.

    ``classes``: names of the K channels, in their order. ``mean`` and ``std``: what it wants of images in [0, 1].
    torchgeo's ``SemanticSegmentationTask`` is such a module.
    """

    def __init__(
        self,
        net: nn.Module,
        classes: Sequence[str],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        listed = {"classes": [{"index": index + 1, "name": name} for index, name in enumerate(classes)]}
        self.net, self.legend = net, parse_legend(listed, "classes of the segmenter")[0]
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise ConfigError(f"{name} of the segmenter is {list(values)}; allowed: three numbers")
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.std: Tensor
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))
        self.table: Tensor
        self.register_buffer("table", torch.eye(len(classes)))
        self.mapping: LegendMap | None = None

    def mapped(self, mapping: LegendMap) -> ForeignSegmenter:
        """The same in another legend: probabilities of classes that become one add up."""
        table = torch.zeros(mapping.target.num_classes + 1, mapping.source.num_classes)
        for c in mapping.source.classes:
            table[int(mapping.table[c.index]), c.index - 1] = 1
        self.table, self.legend, self.mapping = table[1:], mapping.target, mapping
        return self

    def forward(self, images: Tensor) -> Tensor:
        """See the module."""
        found = self.net(((images + 1) / 2 - self.mean) / self.std)
        if isinstance(found, Mapping) and "out" in found:
            found = found["out"]
        logits = cast(Tensor, getattr(found, "logits", found))
        if logits.dim() != 4 or logits.shape[1] != self.table.shape[1]:
            raise ModelError(
                f"the segmenter gives {tuple(logits.shape)} for images {tuple(images.shape)}; expected logits "
                f"[B, {self.table.shape[1]}, h, w]"
            )
        logits = F.interpolate(logits.float(), size=images.shape[2:], mode="bilinear", align_corners=False)
        return torch.einsum("kc,bchw->bkhw", self.table, logits.softmax(1))


Network = OwnSegmenter | ForeignSegmenter


def open_network(options: LabelOptions, device: torch.device) -> tuple[Network, str]:
    """The segmenter that is asked for, on ``device``, and what records call it: name and hash of its weights.

    :class:`ModelError` for a folder that holds none, :class:`ConfigError` for a package that is missing or fails.
    """
    place = options.segmenter
    folder = find_segmenter(place)
    if (folder / "segmenter.json").is_file() or not ((folder / "config.json").is_file() or str(place) in names()):
        for name in ("legend", "legend_map"):
            if getattr(options, name) is not None:
                raise ConfigError(
                    f"{name} is {getattr(options, name)}; allowed: nothing beside {place}, whose classes stay as they "
                    "are (other commands map them)"
                )
        return OwnSegmenter(channels_last(Segmenter.load(folder).to(device))), f"{place.name} {hash_segmenter(place)}"
    net, called = _of_package(str(place)) if str(place) in names() else _of_transformers(folder)
    if options.legend is not None:
        target = load_legend(options.legend)
        net = net.mapped(load_legend_map(net.legend, target, options.legend_map))
    return net.to(device).eval(), called


def names() -> list[str]:
    """Segmenters of other packages."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def _of_package(name: str) -> tuple[ForeignSegmenter, str]:
    entry = next(entry for entry in entry_points(group=GROUP) if entry.name == name)
    net = built("segmenter", entry, ForeignSegmenter)
    digest = hashlib.sha256()
    for key, tensor in sorted(net.net.state_dict().items()):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).tobytes())
    return net, f"{name} {digest.hexdigest()[:16]}"


def _of_transformers(folder: Path) -> tuple[ForeignSegmenter, str]:
    """A folder as ``save_pretrained`` writes it, or as it is downloaded from a hub; nothing is downloaded here."""
    configuration = _object(folder / "config.json")
    architectures = configuration.get("architectures") or ["nothing"]
    if not str(architectures[0]).endswith("ForSemanticSegmentation"):
        raise ModelError(
            f"{folder / 'config.json'}: a {architectures[0]}; allowed: a transformers model ForSemanticSegmentation"
        )
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ModelError(f"{folder}: no {WEIGHTS[0]}; other weight files can run code and are not read; convert them")
    try:
        from transformers import AutoModelForSemanticSegmentation
    except ImportError as error:
        raise ConfigError(f"{folder}: needs transformers: pip install 'changeanywhere[transformers]'") from error
    try:
        net = AutoModelForSemanticSegmentation.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: transformers cannot open it ({reason})") from error
    labels = net.config.id2label
    classes = [str(labels[index]) for index in sorted(labels)]
    file = folder / "preprocessor_config.json"
    wanted = _object(file) if file.is_file() else {}
    mean, std = wanted.get("image_mean", IMAGENET_MEAN), wanted.get("image_std", IMAGENET_STD)
    if wanted.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    digest = hashlib.sha256()
    for weights in sorted(folder.glob("*.safetensors")):
        digest.update(weights.read_bytes())
    return ForeignSegmenter(net, classes, mean, std), f"{folder.resolve().name} {digest.hexdigest()[:16]}"


def _object(file: Path) -> dict[str, Any]:
    try:
        return read_json_object(file)
    except (OSError, DocumentError, json.JSONDecodeError) as error:
        raise ModelError(f"{file}: cannot be read ({error})") from error
