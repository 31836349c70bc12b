"""The adapter to torchgeo's change models, on stand-ins with the signatures of torchgeo 0.8.1."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from changeanywhere.errors import ConfigError
from changeanywhere.models.detectors import DETECTORS, build_detector, detector_names
from changeanywhere.models.detectors.folder import load_detector
from changeanywhere.models.names import ADAPTER
from changeanywhere.sample import ChangePair
from changeanywhere.training.detector import train_detector
from changeanywhere.training.recipe import DetectorRecipe, Recipe, RunRecipe

STAND_INS = """
import torch
from torch import nn

class _Of(nn.Module):
    def __init__(self, bands, classes):
        super().__init__()
        self.conv = nn.Conv2d(bands, classes, 3, padding=1)

class FCSiamConc(_Of):
    def __init__(self, encoder_name="resnet34", encoder_depth=5, encoder_weights="imagenet",
                 decoder_use_batchnorm="batchnorm", decoder_channels=(256, 128, 64, 32, 16),
                 decoder_attention_type=None, in_channels=3, classes=1, activation=None):
        assert encoder_weights is None, "nothing is fetched"
        super().__init__(2 * in_channels, classes)
    def forward(self, x):  # [b, t, c, h, w] -> [b, classes, h, w]
        b, t, c, h, w = x.shape
        return self.conv(x.reshape(b, t * c, h, w))

class FCSiamDiff(_Of):
    def __init__(self, *args, **kwargs):
        kwargs["aux_params"] = None
        assert not args and kwargs.pop("encoder_weights") is None
        super().__init__(3, kwargs["classes"])
    def forward(self, x):
        return self.conv(x[:, 1] - x[:, 0])

class ChangeViT(_Of):
    def __init__(self, backbone, img_size=256, in_channels=3, num_classes=1, pretrained=False, **kwargs):
        super().__init__(2 * in_channels, num_classes)
    forward = FCSiamConc.forward

class BTC(_Of):
    def __init__(self, backbone, backbone_pretrained=False, classes=1):
        super().__init__(6, classes)
        self.seen = None
    def forward(self, x):  # [b, t * c, h, w], in [0, 1]
        self.seen = x.detach()
        return self.conv(x)

class ChangeStarFarSeg(_Of):
    def __init__(self, backbone="resnet50", classes=1, backbone_pretrained=True):
        assert not backbone_pretrained
        super().__init__(6, 1)
    def forward(self, x):
        b, t, c, h, w = x.shape
        one, two = (self.conv(y.reshape(b, t * c, h, w)) for y in (x, x.flip(1)))
        logits = {"bi_seg_logit": torch.zeros(b, t, 1, h, w)}
        if self.training:
            return logits | {"bi_change_logit": torch.stack([one, two], dim=1)}
        return logits | {"change_prob": one.sigmoid()}
"""
ENTRIES = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["entry-points"]
NAMES = ENTRIES["changeanywhere.detectors"]


def entries_at(site: Path) -> None:
    """The entry points of this package, as an installation has them."""
    (site / "adapted-1.0.dist-info").mkdir(parents=True)
    (site / "adapted-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: adapted\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in NAMES.items())
    (site / "adapted-1.0.dist-info" / "entry_points.txt").write_text(f"[changeanywhere.detectors]\n{lines}")


@pytest.fixture
def torchgeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins, installed."""
    site = tmp_path / "site"
    entries_at(site)
    (site / "torchgeo" / "models").mkdir(parents=True)
    (site / "torchgeo" / "__init__.py").write_text("")
    (site / "torchgeo" / "models" / "__init__.py").write_text(STAND_INS)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchgeo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(site))


def test_entry_points_name_what_is_there() -> None:
    assert len(NAMES) == 5
    for name, value in NAMES.items():
        module, _, function = value.partition(":")
        assert name.startswith("torchgeo_") and module == ADAPTER and callable(getattr(import_module(module), function))


def test_without_torchgeo_they_are_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "torchgeo" in sys.modules:
        pytest.skip("torchgeo is here")
    entries_at(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert set(detector_names()) == set(DETECTORS)
    with pytest.raises(ConfigError, match="'torchgeo_btc' is torchgeo's, which is not installed; pip install torchgeo"):
        build_detector("torchgeo_btc")


@pytest.mark.usefixtures("torchgeo")
@pytest.mark.parametrize("name", NAMES)
def test_one_class_is_change_by_its_sigmoid(name: str) -> None:
    torch.manual_seed(0)
    assert name in detector_names()
    net = build_detector(name)
    one, two = torch.rand(2, 2, 3, 40, 52) * 2 - 1
    with torch.no_grad():
        found = net.eval()(one, two)
        assert found.shape == (2, 2, 40, 52)
        inner = net.get_submodule("net")
        if name == "torchgeo_btc":
            seen = inner.seen
            assert isinstance(seen, torch.Tensor)
            torch.testing.assert_close(seen[..., :40, :52], (torch.cat([one, two], 1) + 1) / 2)
            return
        dates = torch.stack([net._normalise(one), net._normalise(two)], 1)
        given = inner(torch.nn.functional.pad(dates, (0, 12, 0, 24)))
        there = given["change_prob"] if isinstance(given, dict) else given.sigmoid()
        torch.testing.assert_close(found.softmax(1)[:, 1], there[:, 0, :40, :52], rtol=1e-4, atol=1e-4)
        assert len(net.train().all_logits(one, two)) == (2 if name == "torchgeo_changestar_farseg" else 1)


@pytest.mark.usefixtures("torchgeo")
@pytest.mark.parametrize("name", ["torchgeo_fc_siam_diff", "torchgeo_changestar_farseg"])
def test_one_is_trained_and_loaded(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 2, 32, 32, 3), np.uint8)
    pairs = [ChangePair(str(i), one, two, rng.random((32, 32)) < 0.3) for i, (one, two) in enumerate(images)]
    settings = DetectorRecipe(name=name, pairs="in memory", crop_size=32, batch_size=2, num_steps=2, warmup_steps=0)
    recipe = Recipe(detector=replace(settings, val_split=None), run=RunRecipe(num_workers=0))
    again, net = load_detector(train_detector(recipe, tmp_path / "out", pairs))
    assert again == name and net(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.usefixtures("torchgeo")
def test_other_numbers_of_classes_are_refused() -> None:
    net = build_detector("torchgeo_fc_siam_diff")
    for classes in (2, 3):
        net.get_submodule("net").conv = torch.nn.Conv2d(3, classes, 1)
        if classes == 2:
            assert net(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)
        else:
            with pytest.raises(ConfigError, match=r"torchgeo's FCSiamDiff has 3 classes; allowed: 1 \(change\) or 2"):
                net(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
