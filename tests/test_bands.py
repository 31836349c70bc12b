"""Four bands from a source through training to a painted pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from changeanywhere.cli import run
from changeanywhere.models.first_stage import FirstStage, build_vq_model
from changeanywhere.models.folder import save_first_stage
from changeanywhere.models.info import read_info
from changeanywhere.pairs import load_pairs
from conftest import write_source
from raster_files import write_tif

RECIPE: dict[str, Any] = {
    "first_stage": {
        "channels": [8, 8, 8], "layers_per_block": 1, "norm_groups": 1, "mid_attention": False, "num_codes": 16,
        "crop_size": 32, "batch_size": 2, "num_steps": 2, "warmup_steps": 0, "discriminator_channels": 4,
    },
    "denoiser": {
        "channels": [8, 16], "layers_per_block": 1, "attention_levels": [1], "head_dim": 8, "norm_groups": 4,
        "views": 1, "batch_size": 2, "num_steps": 2, "warmup_steps": 0,
    },
    "run": {"num_workers": 0, "log_every": 1, "save_every": 2},
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_four_bands_from_source_to_pair(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(tmp_path / "source", num_tiles=4)
    rng = np.random.default_rng(0)
    for number in range(4):
        (source / "images" / f"tile_{number}.png").unlink()
        four = rng.integers(1, 250, (64, 64, 4)).astype(dtype)
        four[:20, :20, 3] = 0  # water, in near infrared
        write_tif(source / "images" / f"tile_{number}.tif", four)
    recipe = tmp_path / "recipe.yaml"
    data = {"source": str(source), "tile_size": 64, "bands": [1, 2, 3, 4]}
    recipe.write_text(yaml.safe_dump(RECIPE | {"data": data}))
    out, pairs = tmp_path / "run", tmp_path / "pairs"
    for stage in ("first-stage", "denoiser"):
        assert run(["train", stage, "--config", str(recipe), "--out", str(out)]) == 0, capsys.readouterr().err
    assert read_info(out / "model").num_bands == 4 and read_info(out / "model").gsd_m == (0.5, 0.5)
    command = ["generate", "--source", str(source), "--model", str(out / "model"), "--num-pairs", "2"]
    command += ["--num-steps", "2", "--num-threads", "1", "--events.min-area", "16", "--tile-size", "64"]
    assert run([*command, "--out", str(tmp_path / "no")]) == 2
    assert "image_format is 'png'" in capsys.readouterr().err, "refused before anything is planned"
    assert not (tmp_path / "no").exists()
    assert run([*command, "--image-format", "geotiff", "--out", str(pairs)]) == 0, capsys.readouterr().err
    for pair in (load_pairs(pairs)[i] for i in range(2)):
        assert pair.image_t1.shape == pair.image_t2.shape == (64, 64, 4) and pair.image_t1.dtype == dtype
        assert pair.ignored is None and pair.mask_t1 is not None and (pair.mask_t1[:20, :5] > 0).all()
    assert run([*command, "--bands", "[1,2,3]", "--image-format", "geotiff", "--out", str(tmp_path / "b")]) == 2
    assert "this model takes 4" in capsys.readouterr().err


def test_networks_of_other_bands_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is encoded or trained."""
    source, four, recipe = write_source(tmp_path / "source", 4), tmp_path / "four", tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"data": {"source": str(source), "tile_size": 64}}))
    save_first_stage(FirstStage(build_vq_model([8, 8, 8], 1, 16, 3, 1, False, image_channels=4)), four)
    for command, said in (
        (["denoiser", "--first-stage-from", str(four)], "data.bands is [1, 2, 3]; allowed: 4 of them, as many as the"),
        (["critic", "--first-stage-from", str(four)], "data.bands is [1, 2, 3]; allowed: 4 of them, as many as the"),
        (["critic", "--init", "mini", "--data.bands", "[1, 2]"], "data.bands is [1, 2]; allowed: 3 of them"),
        (["segmenter", "--data.bands", "[1, 2]"], "data.bands is [1, 2]; allowed: three for a segmenter"),
        (
            ["first-stage", "--data.bands", "[1, 2]"],
            "first_stage.perceptual_weight is 1.0; allowed: 0 for images of few",
        ),
        (
            [
                "segmenter",
                "--segmenter.crop-size",
                "64",
                "--segmenter.decoded",
                "0.5",
                "--segmenter.first-stage",
                f"[{four}]",
            ],
            f"{four}: takes 4 bands; allowed in segmenter.first_stage: first stages of 3",
        ),
    ):
        out = tmp_path / "out"
        assert run(["train", *command, "--config", str(recipe), "--out", str(out)]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert said in lines[-1] and len(lines) == 1, lines
        assert not (out / "training").exists()
