"""Parity of the detectors with the reference implementation (Open-CD): logits, losses, gradient norms."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch

from changeanywhere.models.detectors import DETECTORS, Detector, build_detector
from changeanywhere.training.detection import OHEM, detection_loss
from conftest import shared

pytestmark = pytest.mark.numerical
ZERO_GRADIENTS = ("decoder.7.ff.3.bias", "flow_make.0.bias", "key_conv.bias")


IN_OPENCD = [name for name in DETECTORS if name not in ("siam_unet_lite0", "semantic_unet_lite0")]
"""The ninth is ours: nothing there to compare it with."""


def golden(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray], Detector]:
    folder = shared("golden", "opencd")
    sys.path.insert(0, str(folder))
    from fill import fill, inputs

    description = json.loads((folder / f"{name}.json").read_text())
    arrays = dict(np.load(folder / f"{name}.npz"))
    arrays["input_A"], arrays["input_B"], arrays["label"] = inputs()
    net = build_detector(name)
    state = {key: torch.from_numpy(np.asarray(fill(key, tuple(shape)))) for key, shape, _ in description["state_dict"]}
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == {
        key: list(value.shape) for key, value in state.items()
    }
    net.load_state_dict(state)
    return description, arrays, net.double().eval()


@pytest.mark.parametrize("name", IN_OPENCD)
def test_logits_losses_and_gradients(name: str) -> None:
    description, arrays, net = golden(name)
    std = float(np.max(description["logits_std"])) if not isinstance(description["logits_std"], dict) else 1.0
    first, second = (torch.from_numpy(arrays[key]).double() for key in ("input_A", "input_B"))
    heads = net.heads(first, second)
    np.testing.assert_allclose(heads[0].detach(), arrays["logits_raw_f64"], rtol=1e-6, atol=1e-6 * std)
    if "aux_logits_raw_f64" in arrays:
        np.testing.assert_allclose(heads[1].detach(), arrays["aux_logits_raw_f64"], rtol=1e-6, atol=1e-6 * std)
    if "logits_f64" in arrays:
        full = net.forward_normalised(first, second).detach()
        np.testing.assert_allclose(full, arrays["logits_f64"], rtol=1e-6, atol=1e-6 * std)
    label = torch.from_numpy(arrays["label"]).long()
    losses = {key: value for key, value in description["losses"].items() if "loss" in key}
    ours = [
        detection_loss(logits, label, OHEM if i == 0 and name in OHEM_NETS else None) for i, logits in enumerate(heads)
    ]
    assert float(ours[0].detach()) == pytest.approx(losses["decode.loss_ce"], abs=1e-5)
    total = ours[0] + sum((net.auxiliary_weight * loss for loss in ours[1:]), torch.zeros((), dtype=torch.float64))
    assert float(total.detach()) == pytest.approx(sum(losses.values()), abs=1e-5)
    total.backward()
    for key, parameter in net.named_parameters():
        expected = description["grad_norm"][key]
        if expected is None:
            assert parameter.grad is None, key
        else:
            assert parameter.grad is not None, key
            tolerance = 1e-4 if name in OHEM_NETS else 1e-5
            assert float(parameter.grad.norm()) == pytest.approx(expected, rel=tolerance, abs=1e-9), key


OHEM_NETS = {"changer_ex_r18", "lightcdnet_s", "lightcdnet_b", "lightcdnet_l"}


@pytest.mark.parametrize("name", IN_OPENCD)
def test_training_mode(name: str) -> None:
    """Batch statistics, no dropout."""
    _, arrays, net = golden(name)
    net.train()
    for module in net.modules():
        if hasattr(module, "p"):
            setattr(module, "p", 0.0)  # noqa: B010 (modules type their attributes as tensors)
    first, second = (torch.from_numpy(arrays[key]).double() for key in ("input_A", "input_B"))
    with torch.no_grad():
        logits = net.heads(first, second)[0]
    expected = arrays["train_logits_raw_f64"]
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6 * expected.std())
