"""Networks of a painter take shorter ways on a CPU and say the same."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from changeanywhere.diffusion.detail import WINDOW, _mean
from changeanywhere.diffusion.pipeline import ChangePairPipeline
from changeanywhere.models import packed as packing
from changeanywhere.models.blocks import quick_blocks
from changeanywhere.models.borrowed import ResnetBlock2D
from changeanywhere.models.norms import quick_norms
from changeanywhere.models.packed import can_pack, packed
from conftest import tiny_model


def convolution(dtype: torch.dtype, **settings: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(16, 32, 3, padding=1, **settings).to(dtype).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def picture(side: int, dtype: torch.dtype, rows: int = 2) -> Tensor:
    image = torch.randn(rows, 16, side, side, generator=torch.Generator().manual_seed(side))
    return image.to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [4, 16, 40, 64, 80])
def test_a_packed_convolution_convolves(dtype: torch.dtype, side: int) -> None:
    plain = convolution(dtype)
    own, names = deepcopy(plain), list(plain.state_dict())
    packed(own)
    with torch.no_grad():
        for rows in (1, 3):
            expected, found = plain(picture(side, dtype, rows)), own(picture(side, dtype, rows))
            assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(found, expected, atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0.02)
    assert list(own.state_dict()) == names and isinstance(own, nn.Conv2d)


def test_other_weights_are_laid_out_anew_and_a_copy_has_its_own() -> None:
    own = packed(convolution(torch.float32))
    image = picture(16, torch.float32)
    with torch.no_grad():
        before = own(image)
        copy = deepcopy(own)
        own.weight.mul_(2)
        assert own.bias is not None
        torch.testing.assert_close(own(image), 2 * before - own.bias[:, None, None], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(copy(image), before)
        own.weight.data = own.weight.data.bfloat16()
        own.bias.data = own.bias.data.bfloat16()
        assert own(image.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(own(image.bfloat16()).float(), copy.float()(image) * 2, atol=2.0, rtol=0.1)


def test_what_learns_is_not_packed() -> None:
    own = packed(convolution(torch.float32))
    own(picture(8, torch.float32)).sum().backward()
    assert own.weight.grad is not None and bool(own.weight.grad.any())


def test_a_torch_without_the_operators_goes_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Tensor:
        raise AttributeError("no such operator")

    assert can_pack(torch.float32), "this torch has them"
    can_pack.cache_clear()
    monkeypatch.setattr(packing, "_convolve", missing)
    plain = convolution(torch.float32)
    with torch.no_grad():
        expected = plain(picture(16, torch.float32))
        assert not can_pack(torch.float32) and torch.equal(packed(plain)(picture(16, torch.float32)), expected)
    can_pack.cache_clear()


@pytest.mark.parametrize("settings", [{"padding_mode": "circular"}, {"groups": 4, "dilation": 2}])
def test_unusual_convolutions_say_the_same(settings: dict[str, Any]) -> None:
    plain = convolution(torch.float32, **settings)
    with torch.no_grad():
        expected = plain(picture(16, torch.float32))
        torch.testing.assert_close(packed(deepcopy(plain))(picture(16, torch.float32)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {"temb_channels": None},
        {"temb_channels": 24},
        {"temb_channels": 24, "out_channels": 32},
        {"temb_channels": 24, "time_embedding_norm": "scale_shift"},
        {"temb_channels": 24, "output_scale_factor": 2.0},
        {"temb_channels": 24, "skip_time_act": True},
        {"temb_channels": None, "up": True},
        {"temb_channels": None, "non_linearity": "gelu"},
    ],
)
def test_a_quick_block_says_what_the_library_says(settings: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    block = ResnetBlock2D(in_channels=16, groups=4, **settings).to(dtype).eval()
    own: Any = quick_blocks(nn.ModuleList([deepcopy(block)]))[0]
    is_plain = set(settings) <= {"temb_channels", "out_channels"}
    assert (type(own) is not ResnetBlock2D) == is_plain
    image, wide = picture(12, dtype), settings["temb_channels"]
    time = None if wide is None else torch.randn(2, wide).to(dtype)
    first, second = image.clone(), None if time is None else time.clone()
    with torch.no_grad():
        assert torch.equal(own(image, time), block(image, time))
    assert torch.equal(image, first), "what came in stays"
    assert time is None or second is None or torch.equal(time, second)
    own(image.contiguous(), time).square().mean().backward()  # torch 2.13 fails on sums of channels-last maps
    assert own.conv1.weight.grad is not None


def test_a_pipeline_says_what_its_model_says() -> None:
    model, plain = tiny_model(), tiny_model()
    pipe = ChangePairPipeline(model, torch.device("cpu"))
    plain.first_stage.eval()
    plain.denoiser.eval()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = plain.first_stage.encode(images)
        torch.testing.assert_close(pipe.encode(images), latents, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pipe.decode(latents), plain.first_stage.decode(latents), atol=1e-4, rtol=1e-4)
        masks, times = torch.ones(2, 64, 64, dtype=torch.int64), torch.tensor([10, 900])
        expected = plain.denoiser(latents, times, plain.denoiser.encode_masks(masks))
        torch.testing.assert_close(pipe.predict_noise(latents, times, masks), expected, atol=1e-4, rtol=1e-4)


def test_means_of_neighbourhoods_end_at_the_border() -> None:
    image = torch.randn(1, 1, 30, 21)
    found, reach = _mean(image), WINDOW // 2
    for row, column in ((0, 0), (3, 20), (15, 10), (29, 2)):
        part = image[0, 0, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
        torch.testing.assert_close(found[0, 0, row, column], part.mean())


def test_norms_are_those_of_the_library() -> None:
    norm = nn.GroupNorm(4, 16).eval()
    expected = norm(picture(8, torch.float32))
    torch.testing.assert_close(quick_norms(norm)(picture(8, torch.float32)), expected)
