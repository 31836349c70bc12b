"""What each option does against the artefact shortcut: whether a probe tells the dates apart where nothing changed.

    python benchmarks/shortcut.py --source ../shared/data/landcover/val --licences CC0-1.0 CC-BY-4.0 --out runs/shortcut

One set of pairs without change per line of the table, the same tiles and seeds; OUT/table.md. Date 2 of each has gone
through the first stage and the free tail. Accuracy 0.5 = indistinguishable; mean and spread over ten ways to cut the
scenes into folds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import changeanywhere as ca
from changeanywhere.diffusion.pipeline import default_device
from changeanywhere.evaluation.probe import probe_accuracy
from changeanywhere.evaluation.reading import load_features
from changeanywhere.generation.nuisances import NuisanceOptions
from changeanywhere.generation.targets import SetTargets
from changeanywhere.pairs import load_pairs
from tiles import add_source, tile_size_of

FOLDINGS = 10


def settings(recipe: Path) -> dict[str, dict[str, Any]]:
    """Name → options of ``generate``; one option at a time, then together, then with the recipe's disturbances."""
    content = yaml.safe_load(recipe.read_text())
    disturbed = {"nuisances": NuisanceOptions(**content["nuisances"])}
    tail = {key: content[key] for key in ("num_steps", "free_fraction")}
    first, order, paste = {"reconstruct_t1": True}, {"random_order": True}, {"paste_back": True}
    return {
        "default": {},
        "no detail restored": {"restore_detail": 0.0},
        "t1 through the first stage": first,
        "random order of dates": order,
        "paste-back": paste,
        "t1 through the first stage, random order": first | order,
        f"nuisances of {recipe.name}": disturbed,
        f"nuisances of {recipe.name}, t1 through the first stage": disturbed | first,
        f"{recipe.name}, with its free tail": disturbed | first | tail,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Make the sets, probe them, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="mini or a model folder")
    add_source(parser)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/realistic.yaml"), help="whose nuisances")
    parser.add_argument("--num-pairs", type=int, default=160, help="pairs per set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sets and the table")
    arguments = parser.parse_args(argv)
    tile_size = tile_size_of(arguments.model)
    features = load_features(default_device(), 8)
    lines = ["| options | probe's accuracy | spread over foldings |", "|---|---|---|"]
    for number, (name, options) in enumerate(settings(arguments.recipe).items()):
        folder = arguments.out / f"set{number}"
        ca.generate(
            arguments.source, folder, model=arguments.model, licences=arguments.licences, seed=1, batch_size=8,
            num_pairs=arguments.num_pairs, tile_size=tile_size, targets=SetTargets(no_change=1.0), **options,
        )  # fmt: skip
        dataset = load_pairs(folder)
        pairs = [dataset[i] for i in range(len(dataset))]
        assert not any(pair.change_mask.any() for pair in pairs)
        scenes = np.array([str(pair.metadata["scene"]) for pair in pairs])
        dates = features([pair.image_t1 for pair in pairs]), features([pair.image_t2 for pair in pairs])
        found = [probe_accuracy(*dates, scenes, seed) for seed in range(FOLDINGS)]
        lines.append(f"| {name} | {np.mean(found):.3f} | {np.std(found):.3f} |")
        print(lines[-1], flush=True)
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
