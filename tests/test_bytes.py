"""The same command with the same seed keeps meaning the same set: masks, labels, lists and records, by hash.

The hashes of masks, labels and lists were taken before the shard became the unit (first edition, 0.1.0). A change on
purpose renews them in a commit of its own; the failing assertion prints the new ones. Those of the records of painted
pairs are of the day on which they began to say who labelled their tiles (`labelled_by`).
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
    "simulate": (["simulate", "--seed", "3", "--num-pairs", "9"], "996e62029e471f74", "8db10db550b81480"),
    "simulate-learned": (
        [
            "simulate",
            "--seed=4",
            "--learn-transitions",
            "--events.shape-bank",
            "--events.kinds=[appearance,conversion,growth,shrinkage,rebuild]",
            "--events.events-per-pair=[1,3]",
        ],
        "18bf2596de25515c",
        "d958d0332754c3c6",
    ),
    "generate": (
        ["generate", "--seed", "5", "--num-pairs", "8", "--num-steps", "2", "--shard-size", "3"],
        "bba221f732619a64",
        "2e76ae76c7b3fe69",
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
        "1912c34dedade2b8",
        "05bab22f4ebf8d03",
    ),
    "generate-ratios": (
        ["generate", "--seed=7", "--num-pairs=8", "--num-steps=2", '--targets.ratios={"0.01-0.05": 0.5}'],
        "fcb2347c95830609",
        "4452d1b32ddad971",
    ),
    "copy-paste": (
        ["generate", "--seed=8", "--method=copy_paste", "--num-pairs=8"],
        "2d14f3b0ce820e9c",
        "1877e180fa2fb2cc",
    ),
    "recolour": (
        ["generate", "--seed=8", "--method=recolour", "--num-pairs=8", "--reconstruct-t1"],
        "2d14f3b0ce820e9c",
        "deb7b8fa9373c9ea",
    ),
    "patch-exchange": (
        ["generate", "--seed=9", "--method=patch_exchange", "--num-pairs=8"],
        "3c5749d733627fa7",
        "a6ee5006ecd176c1",
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
    assert found == ("a785364f9dbb5159", "a3d509725d1eb2c7"), found


def test_same_labels_of_the_example_tiles(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(["simulate", "--source", str(EXAMPLES), "--out", str(out), "--num-pairs", "16", "--seed", "1"]) == 0
    found = labels_of(out), records_of(out)
    assert found == ("8af1bd26e5cdd6ad", "2f738f41ebb5b41e"), found
