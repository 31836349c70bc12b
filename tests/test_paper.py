"""The commands of docs/paper.md, in order, on tiny trees in the official layouts: tables shaped like the paper's.

Short form: two detectors, two shares, a few steps, the embedded model in place of a trained one. The trainings of the
first stage and the denoiser are typed by ``test_reference.py`` and run by ``test_training.py``.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from changeanywhere.cli import run as command

ROOT = Path(__file__).parents[1]
SHORT = {
    "generate": "--model mini --num-pairs 4 --num-steps 1 --batch-size 2 --tile-size 64 --num-threads 1",
    "benchmark": "--detectors [fc_ef,siam_unet_lite0] --shares [0,50] --pretrain.num-steps 2 --pretrain.warmup-steps 1 "
    "--pretrain.batch-size 2 --pretrain.crop-size 64 --finetune.batch-size 2 --finetune.crop-size 64 "
    "--finetune-epochs 2 --warmup-epochs 1 --candidates 2 --run.num-workers 0 --run.mixed-precision no --num-panels 1",
}


def _tiles(root: Path) -> None:
    """OpenEarthMap: REGION/images and REGION/labels, values 1 to 8."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / "aachen" / folder).mkdir(parents=True)
    for number in range(1, 4):
        mask = np.full((64, 64), 1, np.uint8)
        mask[10:26, 8 + number : 24 + number], mask[40:60, 30:50] = 8, 5
        image = (30 * mask[..., None] + rng.integers(0, 15, (64, 64, 3))).astype(np.uint8)
        Image.fromarray(image).save(root / "aachen" / "images" / f"aachen_{number}.tif")
        Image.fromarray(mask).save(root / "aachen" / "labels" / f"aachen_{number}.tif")


def _pairs(root: Path, splits: tuple[str, ...], folders: tuple[str, str], labels: dict[str, bool]) -> None:
    """Two dates and labels; ``labels``: folder → whether it names classes by colour and leaves the rest white."""
    rng = np.random.default_rng(1)
    for split in splits:
        for number in range(4):
            changed = np.zeros((64, 64), bool)
            changed[8:40, 4 + 4 * number : 30 + 4 * number] = True
            for place, (folder, by_class) in enumerate({**dict.fromkeys(folders), **labels}.items()):
                (root / split / folder).mkdir(parents=True, exist_ok=True)
                picture = rng.integers(0, 99, (64, 64, 3), np.uint8) + np.uint8(90 * (place == 1)) * changed[..., None]
                if by_class is not None:
                    picture = np.where(changed[..., None], (0, 128, 0), (255, 255, 255)).astype(np.uint8)
                    picture = picture if by_class else (changed * np.uint8(255))
                Image.fromarray(picture).save(root / split / folder / f"{number:05d}.png")


def test_the_page_runs_from_tiles_to_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    _tiles(tmp_path / "OpenEarthMap_wo_xBD")
    _pairs(tmp_path / "SECOND", ("SECOND_train_set", "test"), ("im1", "im2"), {"label1": True, "label2": True})
    _pairs(tmp_path / "SYSU-CD", ("train", "val", "test"), ("time1", "time2"), {"label": False})
    page = (ROOT / "docs" / "paper.md").read_text()
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    lines = [shlex.split(line)[1:] for line in block.replace("\\\n", " ").splitlines()]
    assert [line[0] for line in lines] == ["train", "train", "generate", "benchmark", "benchmark"]
    for line in lines[2:]:
        assert command([*line, *SHORT[line[0]].split()]) == 0, capsys.readouterr().err
    for name, of_paper in (("second", "47.54"), ("sysu", "53.15")):
        table = (tmp_path / "runs" / name / "table.md").read_text()
        assert "## Zero-shot" in table and "## Many labels" in table
        assert re.search(r"^\| fc_ef \+ Ce-100K \|", table, re.M) and re.search(r"^\| fc_ef \|", table, re.M)
        assert "| the paper's fc_ef + Ce-100K |" in table and of_paper not in table, "BiT is not among these detectors"
        assert (tmp_path / "runs" / name / "curves.svg").is_file() and (
            tmp_path / "runs" / name / "panels.png"
        ).is_file()
    assert len(list((tmp_path / "runs" / "pretrained").iterdir())) == 2, "made once, shared by both datasets"
