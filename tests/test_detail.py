"""Detail that the first stage loses, given back where date 2 still shows what was real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from changeanywhere.cli import run
from changeanywhere.diffusion.detail import contrast_structure, give_back
from changeanywhere.diffusion.pipeline import ChangePairPipeline
from conftest import write_source


def images(seed: int) -> torch.Tensor:
    """Smooth images with structure, float32 [2, 3, 64, 64] in [-1, 1]."""
    coarse = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return F.interpolate(coarse, size=64, mode="bicubic")


EXAMPLES = Path(__file__).parents[1] / "src" / "changeanywhere" / "assets" / "examples"
THROUGH, GRAIN = images(0), 0.05 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(9))
REAL = THROUGH + GRAIN


def share_returned(painted: torch.Tensor, share: float = 1.0) -> float:
    """How much of the grain a result has: 1 all of it."""
    added = give_back(painted, REAL, THROUGH, share) - painted
    return float((added * GRAIN).sum() / GRAIN.square().sum())


def test_what_painting_left_alone_gets_all_of_it_back() -> None:
    torch.testing.assert_close(give_back(THROUGH, REAL, THROUGH, 1.0), REAL, atol=1e-4, rtol=0)
    assert share_returned(THROUGH, 0.5) == pytest.approx(0.5, abs=1e-3)
    assert share_returned(THROUGH, 0.0) == 0


def test_another_light_is_the_same_ground_and_other_ground_is_not() -> None:
    brighter = THROUGH + 0.2
    assert share_returned(brighter) == pytest.approx(1, abs=1e-3)
    assert share_returned(0.8 * THROUGH) > 0.9
    assert share_returned(images(1)) < 0.25
    assert share_returned(-THROUGH) < 0.05


def test_agreement_is_local_and_symmetric() -> None:
    half = torch.where(torch.arange(64) < 32, THROUGH, images(1))
    found = contrast_structure(half.mean(1, keepdim=True), THROUGH.mean(1, keepdim=True))
    assert float(found[..., :24].min()) > 0.99 and float(found[..., 40:].mean()) < 0.5
    back = contrast_structure(THROUGH.mean(1, keepdim=True), half.mean(1, keepdim=True))
    torch.testing.assert_close(found, back)
    assert float(found.abs().max()) <= 1 + 1e-3


def test_flat_ground_agrees_with_flat_ground() -> None:
    flat = torch.full((1, 1, 32, 32), 0.3)
    torch.testing.assert_close(contrast_structure(flat, flat - 0.2), torch.ones_like(flat), atol=1e-3, rtol=0)


def test_the_embedded_model_keeps_unchanged_ground_nearer_with_it() -> None:
    pipe = ChangePairPipeline.from_pretrained("mini", device="cpu", dtype="float32")
    tile = sorted((EXAMPLES / "images").glob("*"))[0]
    image = np.asarray(Image.open(tile).convert("RGB"))[:128, :128]
    mask = np.full(image.shape[:2], 1, np.uint8)
    change = np.zeros(mask.shape, bool)
    change[48:80, 48:80] = True

    def error(share: float) -> float:
        painted = pipe(image, mask, change, num_steps=4, restore_detail=share, free_fraction=0.0)
        far = np.ones(mask.shape, bool)
        far[28:100, 28:100] = False
        difference: npt.NDArray[np.float64] = painted[far].astype(float) - image[far]
        return float(np.sqrt((difference**2).mean()))

    assert error(1.0) < 0.35 * error(0.0)


def test_a_set_says_so_and_date_1_through_the_first_stage_switches_it_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "tiles", 2, 256)
    common = ["generate", "--source", str(tmp_path / "tiles"), "--num-pairs", "1", "--num-steps", "2"]
    assert run([*common, "--restore-detail", "1", "--out", str(tmp_path / "a")]) == 0
    assert run([*common, "--restore-detail", "0", "--out", str(tmp_path / "b")]) == 0
    names = sorted(path.name for path in (tmp_path / "a" / "B").glob("*.png"))
    assert names and any(
        (tmp_path / "a" / "B" / name).read_bytes() != (tmp_path / "b" / "B" / name).read_bytes() for name in names
    )
    assert run([*common, "--reconstruct-t1", "--restore-detail", "1", "--out", str(tmp_path / "c")]) == 2
    assert "restore_detail" in capsys.readouterr().err
    assert run([*common, "--reconstruct-t1", "--out", str(tmp_path / "d")]) == 0
