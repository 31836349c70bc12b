"""Detectors beyond parity: any image size, files on disk, other people's weights."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import changeanywhere as ca
from changeanywhere.cli import run as command
from changeanywhere.errors import ModelError
from changeanywhere.models.detectors import DETECTORS, build_detector
from changeanywhere.models.detectors.folder import load_detector
from changeanywhere.models.detectors.pretrained import load_backbone
from changeanywhere.models.import_opencd import detector_from_opencd, detector_from_state


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
    with pytest.raises(ModelError, match=r"fc_ef: the checkpoint has no backbone.conv11.weight"):
        detector_from_opencd("fc_ef", {k: v for k, v in state.items() if "conv11.weight" not in k})
    with pytest.raises(ModelError, match="not a readable detector"):
        load_detector(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


def test_nothing_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": build_detector("fc_ef").state_dict(), "message_hub": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="not a readable checkpoint"):
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
