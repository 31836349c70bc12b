"""The same command with the same seed keeps meaning the same set: masks, labels, lists and records, by hash.

A change on purpose renews the hashes in a commit of its own; the failing assertion prints the new ones. These are of
the day on which masks lost their palettes (`simulate-palette` has them still, and the hash of edition 0.1.0), and
records their objects without fixed keys.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from changeanywhere.cli import run
from conftest import write_source

pytestmark = pytest.mark.numerical
EXAMPLES = Path(__file__).parents[1] / "src" / "changeanywhere" / "assets" / "examples"
OF_THIS_RUN = ("settings", "versions", "model", "model_hash", "source")
"""What a record says of settings and machine; everything else in it follows from seed and source."""


def labels_of(out: Path) -> str:
    """Hash of all masks and labels (name, size, pixels, palette) and lists (name, bytes).

    Pixels and not PNG bytes: deflate may choose other matches with the instructions of another processor.
    """
    seen = hashlib.sha256()
    for file in sorted(file for folder in ("label", "label1", "label2", "list") for file in (out / folder).glob("*")):
        seen.update(f"{file.relative_to(out)}\n".encode())
        if file.suffix == ".txt":
            seen.update(file.read_bytes())
        else:
            with Image.open(file) as image:
                seen.update(f"{image.mode} {image.size} {image.getpalette()}\n".encode())
                seen.update(np.asarray(image).tobytes())
    return seen.hexdigest()[:16]


def records_of(out: Path) -> str:
    """Hash of the records, without what they say of settings and machine."""
    lines = (out / ("metadata.jsonl" if (out / "metadata.jsonl").is_file() else "events.jsonl")).read_text()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines.splitlines()]
    own = [{key: value for key, value in record.items() if key not in OF_THIS_RUN} for record in records]
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]


RECIPES: dict[str, tuple[list[str], str, str]] = {
    "simulate-palette": (
        ["simulate", "--seed", "3", "--num-pairs", "9", "--mask-palette"],
        "996e62029e471f74",
        "852f74d6826ad386",
    ),
    "simulate": (["simulate", "--seed", "3", "--num-pairs", "9"], "f90e6927e4986084", "852f74d6826ad386"),
    "simulate-learned": (
        [
            "simulate",
            "--seed=4",
            "--learn-transitions",
            "--events.shape-bank",
            "--events.kinds=[appearance,conversion,growth,shrinkage,rebuild]",
            "--events.events-per-pair=[1,3]",
        ],
        "8c098398d547a0cc",
        "51928fdec4f9a379",
    ),
    "generate": (
        ["generate", "--seed", "5", "--num-pairs", "8", "--num-steps", "2", "--shard-size", "3"],
        "02e1e2b24239eb1f",
        "c8f073e972fbd294",
    ),
    "generate-finished": (
        [
            "generate",
            "--seed=6",
            "--num-steps=2",
            "--random-order",
            "--nuisances.season=[0.2,0.5]",
            "--nuisances.noise=[0.01,0.02]",
            "--targets.no-change=0.25",
        ],
        "cea03d81c5806c6b",
        "d1e7306ebeaad568",
    ),
    "generate-ratios": (
        ["generate", "--seed=7", "--num-pairs=8", "--num-steps=2", '--targets.ratios={"0.01-0.05": 0.5}'],
        "c52e16e5cc871d4a",
        "0acadf89b35e8713",
    ),
    "copy-paste": (
        ["generate", "--seed=8", "--method=copy_paste", "--num-pairs=8"],
        "f769a988022c4256",
        "10883e812a708fa8",
    ),
    "recolour": (
        ["generate", "--seed=8", "--method=recolour", "--num-pairs=8", "--reconstruct-t1"],
        "f769a988022c4256",
        "0d30a5a9b6ecb425",
    ),
    "patch-exchange": (
        ["generate", "--seed=9", "--method=patch_exchange", "--num-pairs=8"],
        "c47de4f3f1aabf6d",
        "7b4697010d26ace4",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_same_labels_and_records(name: str, source_folder: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    command, labels, records = RECIPES[name]
    out = tmp_path / "out"
    model = ["--model", str(tiny_model_folder)] if command[0] == "generate" else []
    assert run([*command, "--source", str(source_folder), "--out", str(out), "--tile-size", "64", *model]) == 0
    found = labels_of(out), records_of(out)
    assert found == (labels, records), found


def test_same_labels_of_given_masks(source_folder: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    second = write_source(tmp_path / "second", num_tiles=4)
    for file in (second / "masks").glob("*.png"):
        mask = np.array(Image.open(file))
        mask[40:50, 30:50] = 3
        Image.fromarray(mask).save(file)
    out = tmp_path / "out"
    command = ["generate", "--source", str(source_folder), "--out", str(out), "--tile-size", "64", "--num-steps", "2"]
    assert run([*command, "--model", str(tiny_model_folder), "--masks-t2", str(second / "masks")]) == 0
    found = labels_of(out), records_of(out)
    assert found == ("979e9e2ec2fe9281", "72d5a5604f24fc1e"), found


def test_same_labels_of_the_example_tiles(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(["simulate", "--source", str(EXAMPLES), "--out", str(out), "--num-pairs", "16", "--seed", "1"]) == 0
    found = labels_of(out), records_of(out)
    assert found == ("ff787be4840c288f", "4f1e79d77bc8a913"), found
